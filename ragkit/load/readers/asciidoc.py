"""AsciiDoc: headings, lists, tables, fenced code and quotes, labels; the text is the source itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ragkit.core.types import Block, Document, Span
from ragkit.load.limits import Options
from ragkit.load.readers.markup import Line, LineSource, paragraph_end, read_lines

_HEADING = re.compile(r"(=|#){1,6}[ \t]+(\S.*)")
_FENCE = re.compile(r"(-{4,}|\.{4,}|_{4,}|={4,}|\*{4,}|\+{4,}|/{4,}|--|```\w*)\s*")
_TABLE = re.compile(r"[|,:!]={3,}\s*")
_CELL = re.compile(r"(?:(?<!\S)(\d{1,3})\+)?(?:(?<!\S)[a-z.<>^]+)?(?<!\\)\|")  # with how many columns it covers
_COLUMNS = 1000
_ITEM = re.compile(r"\s*(?:\*{1,5}|-|\.{1,5}|\d+\.)\s+\S|\s*\S.{0,200}::(?:\s+\S|\s*$)")
_ATTRIBUTE = re.compile(r":([\w-]+):[ \t]*(.*)")
_AUTHOR = re.compile(r"([^\W\d_][^<>\n=:|]{2,80}?)\s*(?:<[^<>]*>)?\s*")
_META = {"revdate": "created", **{name: name for name in ("author", "lang", "description", "keywords")}}
_LABEL = re.compile(r"\.[^\s.].*")


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of an .adoc file."""
    yield read_lines(path, _read)


def _read(source: LineSource) -> None:
    at, attributes = 0, ""  # attributes: the line "[...]" above a block, or above its label
    while at < len(source.lines):
        line = source.lines[at]
        if line.text.startswith("[") and line.text.rstrip().endswith("]"):
            attributes = line.text
            at += 1
        elif _LABEL.fullmatch(line.text):
            source.blocks.append(Block("caption", Span(line.start + 1, line.start + len(line.text.rstrip()))))
            at += 1
        else:
            at = _read_block(source, at, attributes)
            attributes = ""


def _read_block(source: LineSource, at: int, attributes: str) -> int:
    """Read what begins at a line; return the line after it."""
    line = source.lines[at]
    if line.blank or _is_comment(line):
        return at + 1
    if match := _HEADING.fullmatch(line.text.rstrip()):
        return _read_heading(source, at, match)
    if match := _ATTRIBUTE.fullmatch(line.text):
        _read_attribute(source, match)
        return at + 1
    if _TABLE.fullmatch(line.text):
        return _read_table(source, at, attributes)
    if match := _FENCE.fullmatch(line.text):
        return _read_fenced(source, at, match[1], is_source=_is_source(attributes))
    if _ITEM.match(line.text):
        return source.read_list(at, _ITEM)
    end = paragraph_end(source.lines, at, _is_fence)
    if _is_source(attributes) or line.indent:
        source.add_code(at, end)
    else:
        source.add("paragraph", at, end)
    return end


def _read_attribute(source: LineSource, match: re.Match[str]) -> None:
    if match[1] in _META and match[2].strip():
        source.meta.setdefault(_META[match[1]], match[2].strip())


def _is_source(attributes: str) -> bool:
    return re.match(r"\[(source|listing|,)", attributes) is not None


def _is_comment(line: Line) -> bool:
    return line.text.startswith("//") and not line.text.startswith("////")  # "////" is a fence


def _is_fence(line: Line) -> bool:
    return _FENCE.fullmatch(line.text) is not None or _TABLE.fullmatch(line.text) is not None


def _read_heading(source: LineSource, at: int, match: re.Match[str]) -> int:
    line = source.lines[at]
    level = len(line.text) - len(line.text.lstrip("=#"))
    source.blocks.append(Block("heading", Span(line.start + match.start(2), line.start + match.end(2)), level))
    is_title = level == 1 and len(source.blocks) == 1
    return _read_head(source, at + 1) if is_title else at + 1


def _read_head(source: LineSource, at: int) -> int:
    """Read the lines under a document's title: authors, then the revision; return the line after them."""
    lines = source.lines
    if at == len(lines):
        return at
    authors = [match[1].strip() for author in lines[at].text.split(";") if (match := _AUTHOR.fullmatch(author.strip()))]
    if len(authors) <= lines[at].text.count(";"):  # the line names something else than authors
        return at
    source.meta["author"] = ", ".join(authors)
    at += 1
    if at < len(lines) and (date := re.search(r"\d{4}-\d\d-\d\d", lines[at].text)) and not lines[at].text.startswith(":"):
        source.meta["created"] = date[0]
        at += 1
    return at


def _read_table(source: LineSource, first: int, attributes: str) -> int:
    """Read a table between two fences. Its first row is a header where the attributes say so, or a blank line follows it."""
    lines = source.lines
    end = next((n for n in range(first + 1, len(lines)) if _TABLE.fullmatch(lines[n].text)), len(lines))
    if not source.add("table", first + 1, end):
        return end + 1
    inside = [n for n in range(first + 1, end) if not lines[n].blank]
    if lines[first].text.startswith("|"):
        rows = _rows(lines, inside, _columns(attributes))
    else:  # comma-separated values and their like: a row is a line
        rows = [[n] for n in inside]
    has_header = _has_header(lines, rows, attributes)
    for number, row in enumerate(rows):
        source.add("row", row[0], row[-1] + 1, int(has_header and number == 0))
    return end + 1


def _has_header(lines: list[Line], rows: list[list[int]], attributes: str) -> bool:
    if len(rows) < 2:
        return False
    return "header" in attributes or (len(rows[0]) == 1 and lines[rows[0][0] + 1].blank)


def _rows(lines: list[Line], inside: list[int], columns: int) -> list[list[int]]:
    """Group the lines of a table into rows: a row goes on until it has `columns` cells, or as many as the first line."""
    columns = max(_cells(lines[inside[0]].text), columns)
    rows: list[list[int]] = []
    filled = 0  # columns of the row under way
    for n in inside:
        cells = _cells(lines[n].text)
        if not rows or (cells and filled >= columns):
            rows.append([n])
            filled = cells
        else:
            rows[-1].append(n)
            filled += cells
    return rows


def _cells(line: str) -> int:
    """Return how many columns the cells cover that begin in a line of a table."""
    return sum(int(width or 1) for width in _CELL.findall(line))


def _columns(attributes: str) -> int:
    """Return the number of columns that a table's attributes state (cols="1,2", cols=3*); 0 where they state none."""
    match = re.search(r"""cols=(?:"([^"]*)"|([^,\]]*))""", attributes)
    parts = (match[1] or match[2] or "").split(",") if match else []
    return sum(min(int(times[1]), _COLUMNS) if (times := re.match(r"(\d{1,4})\*", part.strip())) else 1 for part in parts)


def _read_fenced(source: LineSource, at: int, fence: str, *, is_source: bool) -> int:
    """Read a fenced block: code, a quote, a comment. An example, a sidebar or an open block holds blocks like any other."""
    lines = source.lines
    closing = "```" if fence.startswith("```") else fence
    end = next((n for n in range(at + 1, len(lines)) if lines[n].text.rstrip() == closing), None)
    if end is None:
        return at + 1
    sign = fence[0]
    if sign == "/":
        return end + 1
    if sign in "-.+`" and (fence != "--" or is_source):
        source.add_code(at + 1, end)
        return end + 1
    if sign == "_":
        source.add("quote", at + 1, end)
        return end + 1
    return at + 1

"""AsciiDoc: headings, lists, tables, fenced code and quotes, labels; the text is the source itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragkit.core.types import Block, Document, Span
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers.markup import Line, document, items, lines_of, paragraph_end, trimmed

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
    """The one Document of an .adoc file."""
    text = text_of(path.read_bytes())
    yield document(text, *_read(text, lines_of(text)))


def _read(text: str, lines: list[Line]) -> tuple[list[Block], dict[str, Any]]:
    blocks: list[Block] = []
    meta: dict[str, Any] = {}
    at, said = 0, ""  # said: the attributes in the line above
    while at < len(lines):
        line = lines[at]
        if line.blank or (line.text.startswith("//") and not line.text.startswith("////")):
            at += 1
        elif match := _HEADING.fullmatch(line.text.rstrip()):
            level = len(line.text) - len(line.text.lstrip("=#"))
            blocks.append(Block("heading", Span(line.start + match.start(2), line.start + match.end(2)), level))
            at += 1
            if level == 1 and len(blocks) == 1:
                at = _read_head(lines, at, meta)
        elif match := _ATTRIBUTE.fullmatch(line.text):
            _read_attribute(match, meta)
            at += 1
        elif line.text.startswith("[") and line.text.rstrip().endswith("]"):
            said = line.text
            at += 1
            continue
        elif _TABLE.fullmatch(line.text):
            at = _read_table(lines, at, blocks, said)
        elif match := _FENCE.fullmatch(line.text):
            at = _read_fenced(lines, at, match[1], blocks, source=_is_source(said))
        elif _LABEL.fullmatch(line.text):
            blocks.append(Block("caption", Span(line.start + 1, line.start + len(line.text.rstrip()))))
            at += 1
            continue
        elif _ITEM.match(line.text):
            at = items(lines, at, blocks, _ITEM)
        else:
            first = at
            at = paragraph_end(lines, at, lambda n: bool(_FENCE.fullmatch(lines[n].text) or _TABLE.fullmatch(lines[n].text)))
            span = trimmed(lines, first, at)
            assert span is not None
            kind = "code" if _is_source(said) or line.indent else "paragraph"
            blocks.append(Block(kind, Span(line.start if kind == "code" else span.start, span.end)))
        said = ""
    return blocks, meta


def _is_source(said: str) -> bool:
    return re.match(r"\[(source|listing|,)", said) is not None


def _read_head(lines: list[Line], at: int, meta: dict[str, Any]) -> int:
    """The lines under a document's title: author, then revision, then attributes."""
    authors = [_AUTHOR.fullmatch(one.strip()) for one in lines[at].text.split(";")] if at < len(lines) else [None]
    if all(authors):
        meta["author"] = ", ".join(one[1].strip() for one in authors if one)
        at += 1
        if at < len(lines) and (date := re.search(r"\d{4}-\d\d-\d\d", lines[at].text)) and not lines[at].text.startswith(":"):
            meta["created"] = date[0]
            at += 1
    return at


def _read_attribute(match: re.Match[str], meta: dict[str, Any]) -> None:
    if match[1] in _META and match[2].strip():
        meta.setdefault(_META[match[1]], match[2].strip())


def _read_table(lines: list[Line], at: int, blocks: list[Block], said: str) -> int:
    """A table between two fences. A row goes on until it has as many cells as the first line, or as the attributes say; the
    first is the header where they say so, or where it is a line that a blank one follows."""
    first = at
    at += 1
    while at < len(lines) and not _TABLE.fullmatch(lines[at].text):
        at += 1
    inside = [n for n in range(first + 1, at) if not lines[n].blank]
    span = trimmed(lines, first + 1, at)
    if span is None:
        return at + 1
    blocks.append(Block("table", span))
    columns = max(_cells(lines[inside[0]].text), _columns(said))
    rows: list[list[int]] = [] if lines[first].text.startswith("|") else [[n] for n in inside]
    held = columns
    for n in inside if not rows else ():
        cells = _cells(lines[n].text)
        if not rows or (cells and held >= columns):
            rows.append([n])
            held = cells
        else:
            rows[-1].append(n)
            held += cells
    has_header = len(rows) > 1 and ("header" in said or (len(rows[0]) == 1 and lines[inside[0] + 1].blank))
    for number, row in enumerate(rows):
        if (span := trimmed(lines, row[0], row[-1] + 1)) is not None:
            blocks.append(Block("row", span, int(has_header and number == 0)))
    return at + 1


def _cells(line: str) -> int:
    """The columns of the cells that begin in a line of a table."""
    return sum(int(wide or 1) for wide in _CELL.findall(line))


def _columns(said: str) -> int:
    """The columns that a table's attributes tell: cols="1,2", cols=3*."""
    match = re.search(r"""cols=(?:"([^"]*)"|([^,\]]*))""", said)
    parts = (match[1] or match[2] or "").split(",") if match else []
    return sum(min(int(times[1]), _COLUMNS) if (times := re.match(r"(\d{1,4})\*", part.strip())) else 1 for part in parts)


def _read_fenced(lines: list[Line], at: int, fence: str, blocks: list[Block], *, source: bool) -> int:
    """A fenced block: code, a quote, a comment; an example, a sidebar or an open block is text."""
    closing = "```" if fence.startswith("```") else fence
    end = next((n for n in range(at + 1, len(lines)) if lines[n].text.rstrip() == closing), None)
    if end is None:
        return at + 1
    sign = fence[0]
    if sign == "/":
        return end + 1
    if sign in "-.+`" and (fence != "--" or source):
        if (span := trimmed(lines, at + 1, end)) is not None:
            lead = next(n for n in range(at + 1, end) if not lines[n].blank)
            blocks.append(Block("code", Span(lines[lead].start, span.end)))
        return end + 1
    if sign == "_":
        if (span := trimmed(lines, at + 1, end)) is not None:
            blocks.append(Block("quote", span))
        return end + 1
    return at + 1

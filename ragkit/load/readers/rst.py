"""reStructuredText: headings by their rules, lists, tables, code, notes, footnotes; the text is the source itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from ragkit.core.types import Document
from ragkit.load.limits import Options
from ragkit.load.readers.markup import Line, LineSource, indented_end, paragraph_end, read_lines

_RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")
_ITEM = re.compile(r"\s*(?:[-*+•]|#\.|\(?(?:\d+|[A-Za-z]|[ivxIVX]+)[.)])\s+\S")
_DIRECTIVE = re.compile(r"\s*\.\. (?:([\w:+.-]+)::|\[(#?[\w-]*|\*)\]\s)")
_FIELD = re.compile(r":(author|authors|date|title|lang|version|description|keywords):\s*(.+)", re.IGNORECASE)
_FIELD_NAMES = {"authors": "author", "date": "created"}
_GRID = re.compile(r"\s*\+[-=+]{3,}\+\s*")
_SIMPLE = re.compile(r"\s*={2,}(?: +={2,})+\s*")
_HEADER_ROWS = re.compile(r"\s*:header-rows:\s*(\d{1,3})\s*$")
_CODE = {"code", "code-block", "sourcecode", "literalinclude", "math", "parsed-literal", "highlight"}

_Style = tuple[str, bool]  # of a heading: the sign of its rule, and whether there is a rule over it too
_Row = tuple[int, int, bool]  # first line, the line after the last, whether it is a header row


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of an .rst file."""
    yield read_lines(path, _read)


def _read(source: LineSource) -> None:
    styles: list[_Style] = []  # in the order in which they come: the first is level 1
    at = 0
    while at < len(source.lines):
        if source.lines[at].blank:
            at += 1
        elif (heading := _heading_at(source.lines, at)) is not None:
            words, style = heading
            if style not in styles:
                styles.append(style)
            source.add("heading", words, words + 1, min(styles.index(style) + 1, 6))
            at = words + 2
        else:
            at = _read_block(source, at)


def _heading_at(lines: list[Line], at: int) -> tuple[int, _Style] | None:
    """Return the line of the words of a heading that begins at a line, and its style; None where no heading begins there."""

    def rule(n: int) -> str:
        return lines[n].text[0] if n < len(lines) and _RULE.fullmatch(lines[n].text) else ""

    if (sign := rule(at)) and at + 2 < len(lines) and not lines[at + 1].blank and rule(at + 2) == sign:
        return at + 1, (sign, True)
    if at + 1 == len(lines) or rule(at) or lines[at].indent:
        return None
    sign = rule(at + 1)
    return (at, (sign, False)) if sign and len(lines[at + 1].text.rstrip()) >= min(len(lines[at].text.rstrip()), 4) else None


def _read_block(source: LineSource, at: int) -> int:
    """Read what begins at a line that is neither blank nor a heading; return the line after it."""
    line = source.lines[at]
    if _GRID.fullmatch(line.text):
        return _read_table(source, at, _GRID)
    if _SIMPLE.fullmatch(line.text):
        return _read_table(source, at, _SIMPLE)
    if match := _DIRECTIVE.match(line.text):
        return _read_directive(source, at, match)
    if line.text.lstrip().startswith(".. "):  # a comment or a target
        return indented_end(source.lines, at + 1, line.indent)
    if match := _FIELD.match(line.text):
        name = match[1].lower()
        source.meta.setdefault(_FIELD_NAMES.get(name, name), match[2].strip())
        return at + 1
    if _ITEM.match(line.text):
        return source.read_list(at, _ITEM)
    return _read_paragraph(source, at)


def _read_table(source: LineSource, first: int, rule: re.Pattern[str]) -> int:
    """Read a table: a grid ends at a blank line, a simple one at the first blank line after its second rule."""
    lines, is_grid = source.lines, rule is _GRID
    rules: list[int] = []
    end = first
    while end < len(lines) and (not lines[end].blank or (not is_grid and len(rules) < 2)):
        if rule.fullmatch(lines[end].text):
            rules.append(end)
        end += 1
    if len(rules) < 2:
        return end
    source.add("table", first, end)
    for start, stop, is_header in _grid_rows(lines, rules) if is_grid else _simple_rows(rules):
        source.add("row", start, stop, int(is_header))
    return end


def _grid_rows(lines: list[Line], rules: list[int]) -> list[_Row]:
    """Return the stretches between the rules of a grid; those above the first rule of "=" are headers."""
    head_end = next((number for number in rules if "=" in lines[number].text), -1)
    return [(above + 1, below, below <= head_end) for above, below in pairwise(rules)]


def _simple_rows(rules: list[int]) -> list[_Row]:
    """Return the lines of a simple table that are no rules; those above the second of three rules are headers."""
    return [(n, n + 1, len(rules) > 2 and n < rules[1]) for n in range(rules[0] + 1, rules[-1]) if n not in rules]


def _read_directive(source: LineSource, at: int, match: re.Match[str]) -> int:
    lines = source.lines
    end = indented_end(lines, at + 1, lines[at].indent)
    body = at + 1
    while body < end and re.match(r"\s+:[\w-]+:", lines[body].text):  # options of the directive
        body += 1
    if match[1] is None:
        source.add("footnote", at, end)
        return end
    name = match[1].lower()
    if name in _CODE:
        source.add_code(body, end)
    elif name == "list-table":
        _read_list_table(source, at, body, end)
    elif name in ("image", "figure"):
        source.add("caption", at, end)
    else:  # a note, a table directive, …: what stands in it is read like any other text
        return body
    return end


def _read_list_table(source: LineSource, at: int, body: int, end: int) -> None:
    """Read a table written as a list of lists: each item of the outer list is a row."""
    if not source.add("table", body, end):
        return
    options = (_HEADER_ROWS.match(line.text) for line in source.lines[at + 1 : body])
    headers = next((int(option[1]) for option in options if option), 0)
    starts = [n for n in range(body, end) if source.lines[n].text.lstrip().startswith("* -")]
    for number, (first, last) in enumerate(pairwise([*starts, end])):
        source.add("row", first, last, int(number < headers))


def _read_paragraph(source: LineSource, at: int) -> int:
    """Read a paragraph, which is a quote where it is indented, and the literal block that "::" at its end announces."""
    indent = source.lines[at].indent
    end = paragraph_end(source.lines, at)
    source.add("quote" if indent else "paragraph", at, end)
    if source.lines[end - 1].text.rstrip().endswith("::"):
        code_end = indented_end(source.lines, end, indent)
        if source.add_code(end, code_end):
            return code_end
    return end

"""reStructuredText: headings by their rules, lists, tables, code, notes, footnotes; the text is the source itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from ragkit.core.types import Block, Document, Span
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers.markup import Line, document, indented, items, lines_of, paragraph_end, trimmed

_RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")
_ITEM = re.compile(r"\s*(?:[-*+•]|#\.|\(?(?:\d+|[A-Za-z]|[ivxIVX]+)[.)])\s+\S")
_DIRECTIVE = re.compile(r"\s*\.\. (?:([\w:+.-]+)::|\[(#?[\w-]*|\*)\]\s)")
_FIELD = re.compile(r":(author|authors|date|title|lang|version|description|keywords):\s*(.+)", re.IGNORECASE)
_GRID = re.compile(r"\s*\+[-=+]{3,}\+\s*")
_SIMPLE = re.compile(r"\s*={2,}(?: +={2,})+\s*")
_HEADER_ROWS = re.compile(r"\s*:header-rows:\s*(\d{1,3})\s*$")
_CODE = {"code", "code-block", "sourcecode", "literalinclude", "math", "parsed-literal", "highlight"}


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of an .rst file."""
    text = text_of(path.read_bytes())
    yield document(text, *_read(text, lines_of(text)))


def _read(text: str, lines: list[Line]) -> tuple[list[Block], dict[str, Any]]:
    blocks: list[Block] = []
    styles: list[tuple[str, bool]] = []
    meta: dict[str, Any] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.blank:
            at += 1
        elif (heading := _read_heading(lines, at)) is not None:
            content, style = heading
            if style not in styles:
                styles.append(style)
            span = trimmed(lines, content, content + 1)
            assert span is not None
            blocks.append(Block("heading", span, min(styles.index(style) + 1, 6)))
            at = content + 2
        elif _GRID.fullmatch(line.text) or _SIMPLE.fullmatch(line.text):
            at = _read_table(lines, at, blocks)
        elif match := _DIRECTIVE.match(line.text):
            at = _read_directive(lines, at, match, blocks)
        elif line.text.lstrip().startswith(".. "):
            at = indented(lines, at + 1, line.indent)  # a comment or a target
        elif match := _FIELD.match(line.text):
            name = {"authors": "author", "date": "created"}.get(match[1].lower(), match[1].lower())
            meta.setdefault(name, match[2].strip())
            at += 1
        elif _ITEM.match(line.text):
            at = items(lines, at, blocks, _ITEM)
        else:
            at = _read_paragraph(lines, at, blocks)
    return blocks, meta


def _read_heading(lines: list[Line], at: int) -> tuple[int, tuple[str, bool]] | None:
    """Where a heading begins at a line: the line of its words, and its style (its rule's sign, overlined or not)."""

    def rule(n: int) -> str:
        return lines[n].text[0] if n < len(lines) and _RULE.fullmatch(lines[n].text) else ""

    if (sign := rule(at)) and at + 2 < len(lines) and not lines[at + 1].blank and rule(at + 2) == sign:
        return at + 1, (sign, True)
    if at + 1 == len(lines) or rule(at) or lines[at].indent:
        return None
    sign = rule(at + 1)
    return (at, (sign, False)) if sign and len(lines[at + 1].text.rstrip()) >= min(len(lines[at].text.rstrip()), 4) else None


def _read_table(lines: list[Line], at: int, blocks: list[Block]) -> int:
    """A grid or a simple table: its rows are the stretches between its rules."""
    first, grid = at, bool(_GRID.fullmatch(lines[at].text))
    rules: list[int] = []
    while at < len(lines) and (not lines[at].blank if grid else len(rules) < 2 or not lines[at].blank):
        if (_GRID if grid else _SIMPLE).fullmatch(lines[at].text):
            rules.append(at)
        at += 1
        if not grid and len(rules) >= 2 and (at == len(lines) or lines[at].blank):
            break
    span = trimmed(lines, first, at)
    if span is None or len(rules) < 2:
        return max(at, first + 1)
    blocks.append(Block("table", span))
    if grid:
        heads = [number for number in rules if "=" in lines[number].text]
        ranges = [(a + 1, b, bool(heads) and b <= heads[0]) for a, b in pairwise(rules)]
    else:
        ranges = [(n, n + 1, len(rules) > 2 and n < rules[1]) for n in range(rules[0] + 1, rules[-1]) if n not in rules]
    for start, end, is_header in ranges:
        if (row := trimmed(lines, start, end)) is not None:
            blocks.append(Block("row", row, int(is_header)))
    return at


def _read_directive(lines: list[Line], at: int, match: re.Match[str], blocks: list[Block]) -> int:
    end = indented(lines, at + 1, lines[at].indent)
    name = (match[1] or "").lower()
    body = at + 1
    while body < end and re.match(r"\s+:[\w-]+:", lines[body].text):
        body += 1
    if match[1] is None:
        if (span := trimmed(lines, at, end)) is not None:
            blocks.append(Block("footnote", span))
    elif name in _CODE:
        if (span := trimmed(lines, body, end)) is not None:
            lead = next(lines[n].start for n in range(body, end) if not lines[n].blank)
            blocks.append(Block("code", Span(lead, span.end)))
    elif name == "list-table":
        _read_list_table(lines, at, body, end, blocks)
    elif name in ("image", "figure"):
        if (span := trimmed(lines, at, end)) is not None:
            blocks.append(Block("caption", span))
    else:  # a note, a table directive, …: what stands in it is text
        return body if body > at + 1 else at + 1
    return end


def _read_list_table(lines: list[Line], at: int, body: int, end: int, blocks: list[Block]) -> None:
    """A table written as a list of lists: each item of the outer one is a row."""
    span = trimmed(lines, body, end)
    if span is None:
        return
    headers = next((int(match[1]) for n in range(at + 1, body) if (match := _HEADER_ROWS.match(lines[n].text))), 0)
    starts = [n for n in range(body, end) if lines[n].text.lstrip().startswith("* -")]
    blocks.append(Block("table", span))
    for number, (first, last) in enumerate(pairwise([*starts, end])):
        if (row := trimmed(lines, first, last)) is not None:
            blocks.append(Block("row", row, int(number < headers)))


def _read_paragraph(lines: list[Line], at: int, blocks: list[Block]) -> int:
    """A paragraph, a quote where it is indented, and the literal block that "::" at its end announces."""
    first, indent = at, lines[at].indent
    at = paragraph_end(lines, at, lambda n: False)
    span = trimmed(lines, first, at)
    assert span is not None
    blocks.append(Block("quote" if indent else "paragraph", span))
    if lines[at - 1].text.rstrip().endswith("::"):
        end = indented(lines, at, indent)
        code = trimmed(lines, at, end)
        if code is not None:
            lead = next(lines[n].start for n in range(at, end) if not lines[n].blank)
            blocks.append(Block("code", Span(lead, code.end)))
            return end
    return at

"""LaTeX: sections, lists, tables, listings and formulas, footnotes and captions; the text is the source itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragkit.core.types import Block, Document, Span
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers.markup import Line, document, lines_of, stripped

_LEVELS = {"part": 1, "chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4, "paragraph": 5, "subparagraph": 6}
_COMMAND = re.compile(
    r"(?<!\\)%[^\n]*"
    r"|\\(part|chapter|section|subsection|subsubsection|paragraph|subparagraph|title|author|date|footnote|caption)\*?"
    r"\s*(?:\[[^\]]{0,500}\])?\s*\{"
    r"|\\(begin|end)\s*\{([A-Za-z]+\*?)\}"
    r"|\\item\b"
)
_LISTS = {"itemize", "enumerate", "description"}
_TABLES = {"tabular", "tabularx", "longtable", "tabulary", "array"}
_CODE = {"verbatim", "lstlisting", "minted", "equation", "align", "gather", "multline", "eqnarray", "algorithm", "alltt"}
_QUOTES = {"quote", "quotation", "verse", "abstract"}
_ROW = re.compile(r"((?:[^\\]|\\[^\\])*)(?:\\\\(?:\[[^\]]*\])?|\Z)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_RULE = re.compile(r"\\(?:hline|toprule|midrule|bottomrule|cline\{[^}]*\})")
_MARKUP = re.compile(r"\\(?:[A-Za-z]+\*?|.)|[{}~]")


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of a .tex file."""
    text = text_of(path.read_bytes())
    yield document(text, *_read(text, lines_of(text)))


def _read(text: str, lines: list[Line]) -> tuple[list[Block], dict[str, Any]]:
    blocks: list[Block] = []
    meta: dict[str, Any] = {}
    stack: list[tuple[str, int, int]] = []  # environment, where its inside begins, blocks before it
    items: list[list[int]] = []
    paragraphs_from, at = 0, 0
    heads = [m[1] for m in _COMMAND.finditer(text) if m[1] in _LEVELS]
    top = min((_LEVELS[name] for name in heads), default=1)
    covered: list[tuple[int, int]] = []
    while match := _COMMAND.search(text, at):
        at = match.end()
        if match[1]:
            end = _closing(text, at)
            span = stripped(text, at, end)
            _read_command(match[1], text, span, top, blocks, meta)
            if match[1] in _LEVELS and span is not None:
                covered.append((match.start(), end + 1))
        elif match[2] == "begin":
            name = match[3].rstrip("*")
            if name == "document":
                paragraphs_from = at
            if name in _CODE:
                closing = text.find(f"\\end{{{match[3]}}}", at)
                closing = len(text) if closing < 0 else closing
                if (span := stripped(text, at, closing)) is not None:
                    blocks.append(Block("code", span))
                covered.append((match.start(), closing + len(match[3]) + 6))
                at = min(closing + len(match[3]) + 6, len(text))
            elif len(stack) < 100:
                stack.append((name, at, match.start()))
                items.append([])
        elif match[2] == "end":
            if stack and stack[-1][0] == match[3].rstrip("*"):
                name, inside, start = stack.pop()
                _read_environment(name, text, inside, match.start(), items.pop(), len(stack), blocks)
                if name in _LISTS | _TABLES | _QUOTES:
                    covered.append((start, match.end()))
        elif match[0].startswith("\\item") and stack:
            items[-1].append(at)
    blocks += _read_paragraphs(text, paragraphs_from, sorted(covered))
    return blocks, meta


def _read_command(name: str, text: str, span: Span | None, top: int, blocks: list[Block], meta: dict[str, Any]) -> None:
    if span is None:
        return
    if name in _LEVELS:
        blocks.append(Block("heading", span, _LEVELS[name] - top + 1))
    elif name in ("footnote", "caption"):
        blocks.append(Block(name, span))
    else:
        plain = " ".join(_MARKUP.sub(" ", span.of(text).replace("\\and", ",")).split())
        if plain:
            meta.setdefault({"date": "created"}.get(name, name), plain)


def _read_environment(name: str, text: str, inside: int, end: int, items: list[int], depth: int, blocks: list[Block]) -> None:
    span = stripped(text, inside, end)
    if span is None:
        return
    if name in _LISTS:
        blocks.append(Block("list", span, 0))
        for start, stop in zip(items, [*items[1:], end], strict=True):
            if (one := stripped(text, start, stop - 5 if stop != end else stop)) is not None:
                blocks.append(Block("paragraph", one, 1))
    elif name in _TABLES:
        blocks.append(Block("table", span))
        cells = text.find("}", inside, end) + 1 if text.startswith("{", inside) else inside
        rows = [row for row in _read_rows(text, cells, end) if row is not None]
        blocks += [Block("row", row, int(number == 0 and len(rows) > 1)) for number, row in enumerate(rows)]
    elif name in _QUOTES:
        blocks.append(Block("quote", span))


def _read_rows(text: str, start: int, end: int) -> Iterator[Span | None]:
    """The rows of a table, between its "\\\\"s and without its rules."""
    for match in _ROW.finditer(text, start, end):
        cells = _RULE.sub(lambda rule: " " * len(rule[0]), match[1])
        inner = stripped(cells, 0, len(cells))
        yield None if inner is None else Span(match.start() + inner.start, match.start() + inner.end)


def _read_paragraphs(text: str, start: int, covered: list[tuple[int, int]]) -> Iterator[Block]:
    """The stretches between blank lines that no heading, list, table or listing covers."""
    at = start
    for first, end in [*covered, (len(text), len(text))]:
        if first > at:
            for match in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text[at:first]):
                piece = match[0].rstrip()
                if re.search(r"[^\W\d_]", _MARKUP.sub(" ", piece)):
                    yield Block("paragraph", Span(at + match.start(), at + match.start() + len(piece)))
        at = max(at, end)


def _closing(text: str, at: int) -> int:
    """Where the brace opened just before `at` closes; at most a page further on."""
    depth = 1
    for match in _BRACE.finditer(text, at, at + 20_000):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return at

"""LaTeX: sections, lists, tables, listings and formulas, footnotes and captions; the text is the source itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ragkit.core.types import Block, Document, Json, Span
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers import markup
from ragkit.load.readers.markup import stripped

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
_NESTED = 100  # environments within each other that are kept apart, at most
_ROW = re.compile(r"((?:[^\\]|\\[^\\])*)(?:\\\\(?:\[[^\]]*\])?|\Z)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_RULE = re.compile(r"\\(?:hline|toprule|midrule|bottomrule|cline\{[^}]*\})")
_MARKUP = re.compile(r"\\(?:[A-Za-z]+\*?|.)|[{}~]")


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a .tex file."""
    text = text_of(path.read_bytes())
    reader = _Reader(text)
    reader.read()
    yield markup.document(text, reader.blocks, reader.meta)


@dataclass(slots=True)
class _Environment:
    """An environment that is open: a \\begin whose \\end has not come yet."""

    name: str
    start: int  # of its \begin
    inside: int  # where its content begins
    items: list[int] = field(default_factory=list)  # where the content of each \item begins


class _Reader:
    """Goes from command to command, and keeps which stretches are covered: paragraphs lie between those."""

    def __init__(self, text: str) -> None:
        self.blocks: list[Block] = []
        self.meta: Json = {}
        self._text = text
        self._open: list[_Environment] = []
        self._covered: list[tuple[int, int]] = []  # start and end
        self._paragraphs_from = 0
        self._top = min((_LEVELS[match[1]] for match in _COMMAND.finditer(text) if match[1] in _LEVELS), default=1)

    def read(self) -> None:
        at = 0
        while match := _COMMAND.search(self._text, at):
            at = self._read_match(match)
        self.blocks += _paragraphs(self._text, self._paragraphs_from, sorted(self._covered))

    def _read_match(self, match: re.Match[str]) -> int:
        """Read a command, comment or item; return where reading goes on."""
        if match[1]:
            self._read_command(match)
        elif match[2] == "begin":
            return self._begin(match)
        elif match[2] == "end":
            self._end(match)
        elif match[0].startswith("\\item") and self._open:
            self._open[-1].items.append(match.end())
        return match.end()

    def _read_command(self, match: re.Match[str]) -> None:
        name, end = match[1], _closing(self._text, match.end())
        span = stripped(self._text, match.end(), end)
        if span is None:
            return
        if name in _LEVELS:
            self.blocks.append(Block("heading", span, _LEVELS[name] - self._top + 1))
            self._covered.append((match.start(), end + 1))
        elif name in ("footnote", "caption"):
            self.blocks.append(Block(name, span))
        else:
            plain = " ".join(_MARKUP.sub(" ", span.of(self._text).replace("\\and", ",")).split())
            if plain:
                self.meta.setdefault({"date": "created"}.get(name, name), plain)

    def _begin(self, match: re.Match[str]) -> int:
        """Open an environment, or read it whole where its content is no LaTeX text; return where reading goes on."""
        name, inside = match[3].rstrip("*"), match.end()
        if name == "document":
            self._paragraphs_from = inside
        if name not in _CODE:
            if len(self._open) < _NESTED:
                self._open.append(_Environment(name, match.start(), inside))
            return inside
        closing = self._text.find(f"\\end{{{match[3]}}}", inside)
        closing = len(self._text) if closing < 0 else closing
        if (span := stripped(self._text, inside, closing)) is not None:
            self.blocks.append(Block("code", span))
        end = closing + len(match[3]) + len("\\end{}")
        self._covered.append((match.start(), end))
        return min(end, len(self._text))

    def _end(self, match: re.Match[str]) -> None:
        """Close the innermost environment, where it is the one that an \\end names."""
        if not self._open or self._open[-1].name != match[3].rstrip("*"):
            return
        environment = self._open.pop()
        self.blocks += _environment_blocks(self._text, environment, match.start())
        if environment.name in _LISTS | _TABLES | _QUOTES:
            self._covered.append((environment.start, match.end()))


def _environment_blocks(text: str, environment: _Environment, end: int) -> Iterator[Block]:
    """Yield the blocks of a list, a table or a quote whose content ends at `end`."""
    name, inside = environment.name, environment.inside
    span = stripped(text, inside, end)
    if span is None:
        return
    if name in _LISTS:
        yield Block("list", span, 0)
        yield from _items(text, environment.items, end)
    elif name in _TABLES:
        yield Block("table", span)
        cells = text.find("}", inside, end) + 1 if text.startswith("{", inside) else inside
        rows = list(_rows(text, cells, end))
        for number, row in enumerate(rows):
            yield Block("row", row, int(number == 0 and len(rows) > 1))
    elif name in _QUOTES:
        yield Block("quote", span)


def _items(text: str, starts: list[int], end: int) -> Iterator[Block]:
    if not starts:
        return
    stops = [*(start - len("\\item") for start in starts[1:]), end]
    for start, stop in zip(starts, stops, strict=True):
        if (item := stripped(text, start, stop)) is not None:
            yield Block("paragraph", item, 1)


def _rows(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the rows of a table that are not empty: they lie between its "\\\\"s, and rules are no part of them."""
    for match in _ROW.finditer(text, start, end):
        cells = _RULE.sub(lambda rule: " " * len(rule[0]), match[1])
        inner = stripped(cells, 0, len(cells))
        if inner is not None:
            yield Span(match.start() + inner.start, match.start() + inner.end)


def _paragraphs(text: str, start: int, covered: list[tuple[int, int]]) -> Iterator[Block]:
    """Yield the stretches between blank lines that no heading, list, table or listing covers."""
    at = start
    for first, end in [*covered, (len(text), len(text))]:
        for match in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text[at:first]) if first > at else ():
            piece = match[0].rstrip()
            if re.search(r"[^\W\d_]", _MARKUP.sub(" ", piece)):
                yield Block("paragraph", Span(at + match.start(), at + match.start() + len(piece)))
        at = max(at, end)


def _closing(text: str, at: int) -> int:
    """Return where the brace opened just before `at` closes; `at` where it does not within 20,000 characters."""
    depth = 1
    for match in _BRACE.finditer(text, at, at + 20_000):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return at

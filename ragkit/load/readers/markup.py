"""Source text with light markup: what the readers of reStructuredText, AsciiDoc and LaTeX share.

The text of such a Document is the file's own, so offsets are the file's. Blocks are found by the rules that nearly all files
keep. Nothing is included from other files and nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ragkit.core.types import Block, Document, Json, Span
from ragkit.load.decode import text_of


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a source text, and the offset at which it begins."""

    start: int
    text: str  # without its line end

    @property
    def blank(self) -> bool:
        return not self.text.strip()

    @property
    def indent(self) -> int:
        return len(self.text) - len(self.text.lstrip())


@dataclass(slots=True)
class LineSource:
    """The lines of a source text, with the blocks and the metadata that a reader has found in them so far."""

    lines: list[Line]
    blocks: list[Block] = field(default_factory=list)
    meta: Json = field(default_factory=dict)

    def add(self, kind: str, first: int, end: int, level: int = 0) -> bool:
        """Add a block of the lines [first, end), unless all of them are blank. Return whether a block was added."""
        span = trimmed(self.lines, first, end)
        if span is not None:
            self.blocks.append(Block(kind, span, level))
        return span is not None

    def add_code(self, first: int, end: int) -> bool:
        """Add a code block of the lines [first, end); the indentation of its first line belongs to it."""
        span = trimmed(self.lines, first, end)
        if span is not None:
            start = next(line.start for line in self.lines[first:end] if not line.blank)
            self.blocks.append(Block("code", Span(start, span.end)))
        return span is not None

    def read_list(self, at: int, item: re.Pattern[str]) -> int:
        """Add the list that begins at a line, and its items with what is indented under them; return the line after it."""
        first, base = at, self.lines[at].indent
        starts: list[int] = []
        while at < len(self.lines) and self._in_list(at, base, item):
            line = self.lines[at]
            if not line.blank and line.indent >= base and item.match(line.text):
                starts.append(at)
            at += 1
        self.add("list", first, at)
        for start, end in zip(starts, [*starts[1:], at], strict=True):
            self.add("paragraph", start, end, 1 + (self.lines[start].indent > base))
        return at

    def _in_list(self, at: int, base: int, item: re.Pattern[str]) -> bool:
        """Whether a line still belongs to a list whose items are indented by `base`."""
        line = self.lines[at]
        if line.blank:  # a list goes on over blank lines to its next item and to what is indented under an item
            following = next((self.lines[n] for n in range(at, len(self.lines)) if not self.lines[n].blank), None)
            if following is None or following.indent < base:
                return False
            return following.indent > base or item.match(following.text) is not None
        if line.indent > base:
            return True
        if line.indent < base:
            return False
        return item.match(line.text) is not None or not self.lines[at - 1].blank


def read_lines(path: Path, read: Callable[[LineSource], None]) -> Document:
    """Return the Document of a file that `read` goes through line by line."""
    text = text_of(path.read_bytes())
    source = LineSource(lines_of(text))
    read(source)
    return document(text, source.blocks, source.meta)


def document(text: str, blocks: Sequence[Block], meta: Json) -> Document:
    """Return the Document of a source text, its blocks in order. Its title is the one in `meta`, else its first heading."""
    blocks = sorted(blocks, key=lambda block: (block.span.start, -block.span.end))
    title = str(meta.pop("title", "")) or next((b.span.of(text) for b in blocks if b.kind == "heading"), "")
    return Document(text=text, title=" ".join(title.split()), meta=meta, blocks=tuple(blocks))


def lines_of(text: str) -> list[Line]:
    lines, at = [], 0
    for piece in text.splitlines(keepends=True):
        lines.append(Line(at, piece.rstrip("\r\n\f\v\x1c\x1d\x1e\x85\u2028\u2029")))
        at += len(piece)
    return lines


def trimmed(lines: list[Line], first: int, end: int) -> Span | None:
    """Return the span of the lines [first, end) without the white space around it; None where all of them are blank."""
    while first < end and lines[first].blank:
        first += 1
    while end > first and lines[end - 1].blank:
        end -= 1
    if first == end:
        return None
    return Span(lines[first].start + lines[first].indent, lines[end - 1].start + len(lines[end - 1].text.rstrip()))


def indented_end(lines: list[Line], at: int, over: int) -> int:
    """Return the first line from `at` on that is not blank and not indented by more than `over`."""
    while at < len(lines) and (lines[at].blank or lines[at].indent > over):
        at += 1
    return at


def paragraph_end(lines: list[Line], at: int, stop: Callable[[Line], bool] = lambda line: False) -> int:
    """Return the line after a paragraph that begins at a line: a blank one, or one where `stop` is true."""
    at += 1
    while at < len(lines) and not lines[at].blank and not stop(lines[at]):
        at += 1
    return at


def stripped(text: str, start: int, end: int) -> Span | None:
    """Return the span of text[start:end] without the white space around it; None where nothing else is in it."""
    piece = text[start:end]
    if not piece.strip():
        return None
    lead = len(piece) - len(piece.lstrip())
    return Span(start + lead, start + len(piece.rstrip()))

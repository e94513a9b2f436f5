"""Source text with light markup, line by line: what the readers of reStructuredText, AsciiDoc and LaTeX share.

The text is the file's own, so that offsets are. Blocks are found by the rules that nearly all files keep. Nothing is
included from other files and nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ragkit.core.types import Block, Document, Span


@dataclass(frozen=True, slots=True)
class Line:
    start: int
    text: str  # without its end

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def blank(self) -> bool:
        return not self.text.strip()

    @property
    def indent(self) -> int:
        return len(self.text) - len(self.text.lstrip())


def document(text: str, blocks: Sequence[Block], meta: dict[str, Any]) -> Document:
    """The Document of a source text: blocks in order, called by its title, or after its first heading."""
    blocks = sorted(blocks, key=lambda block: (block.span.start, -block.span.end))
    title = str(meta.pop("title", "")) or next((b.span.of(text) for b in blocks if b.kind == "heading"), "")
    return Document(text=text, title=" ".join(title.split()), meta=meta, blocks=tuple(blocks))


def lines_of(text: str) -> list[Line]:
    found, at = [], 0
    for piece in text.splitlines(keepends=True):
        found.append(Line(at, piece.rstrip("\r\n\f\v\x1c\x1d\x1e\x85\u2028\u2029")))
        at += len(piece)
    return found


def trimmed(lines: list[Line], first: int, end: int) -> Span | None:
    """The span of lines [first, end) without the blank ones around them."""
    while first < end and lines[first].blank:
        first += 1
    while end > first and lines[end - 1].blank:
        end -= 1
    if first == end:
        return None
    return Span(lines[first].start + lines[first].indent, lines[end - 1].start + len(lines[end - 1].text.rstrip()))


def indented(lines: list[Line], at: int, over: int) -> int:
    """The first line from `at` on that is not blank and indented by no more than `over`."""
    while at < len(lines) and (lines[at].blank or lines[at].indent > over):
        at += 1
    return at


def paragraph_end(lines: list[Line], at: int, stop: Callable[[int], bool]) -> int:
    """The end of a paragraph that begins at a line."""
    at += 1
    while at < len(lines) and not lines[at].blank and not stop(at):
        at += 1
    return at


def stripped(text: str, start: int, end: int) -> Span | None:
    piece = text[start:end]
    if not piece.strip():
        return None
    lead = len(piece) - len(piece.lstrip())
    return Span(start + lead, start + len(piece.rstrip()))


def items(lines: list[Line], at: int, blocks: list[Block], item: re.Pattern[str]) -> int:
    """A list: items and what is indented under them, to the first line that is neither."""
    first, base = at, lines[at].indent
    starts: list[int] = []
    while at < len(lines):
        line = lines[at]
        if line.blank:
            following = next((n for n in range(at, len(lines)) if not lines[n].blank), len(lines))
            goes_on = following < len(lines) and (
                lines[following].indent > base or (lines[following].indent == base and item.match(lines[following].text))
            )
            if not goes_on:
                break
        elif item.match(line.text) and line.indent >= base:
            starts.append(at)
        elif line.indent < base or (line.indent == base and lines[at - 1].blank):
            break
        at += 1
    span = trimmed(lines, first, at)
    assert span is not None
    blocks.append(Block("list", span))
    for start, end in zip(starts, [*starts[1:], at], strict=True):
        if (one := trimmed(lines, start, end)) is not None:
            blocks.append(Block("paragraph", one, 1 + (lines[start].indent > base)))
    return at

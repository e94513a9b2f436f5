"""A PDF's outline (its bookmarks) makes headings of the lines that it names, at its own levels."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ragkit.core.types import Block, Page, Span

_LEAST = 2  # letters and digits of a title
_NUMBERING = r"(?:(?:[A-Za-z]+\s+)?[\dIVXivx]+(?:\.[\dA-Za-z]+)*[.:]?\s+)?"  # "1.2 ", "Chapter 3: ", which the outline may lack
_ENTRIES = 5000


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of an outline: level from 1, title, page counted from 0."""

    level: int
    title: str
    page: int


def with_outline(text: str, pages: Sequence[Page], blocks: tuple[Block, ...], entries: Sequence[Entry]) -> tuple[Block, ...]:
    """Return the blocks, with a heading for each entry whose title begins a line of its page; paragraphs are parted there."""
    headings: dict[int, tuple[int, int]] = {}  # start: end, level
    taken: dict[int, int] = {}  # by page, where its last title ended: outlines go down the page
    for entry in entries[:_ENTRIES]:
        words = entry.title.split()
        if not 0 <= entry.page < len(pages) or sum(map(str.isalnum, entry.title)) < _LEAST:
            continue
        span = pages[entry.page].span
        pattern = re.compile(r"(?:^|(?<=\n))" + _NUMBERING + r"\s+".join(map(re.escape, words)) + r"(?=\s|\Z)", re.IGNORECASE)
        match = pattern.search(text, taken.get(entry.page, span.start), span.end)
        if match:
            taken[entry.page] = match.end()
            headings[match.start()] = (match.end(), min(entry.level, 6))
    return _parted(blocks, headings) if headings else blocks


def _parted(blocks: tuple[Block, ...], headings: dict[int, tuple[int, int]]) -> tuple[Block, ...]:
    """Return the blocks, with headings cut out of the paragraphs and headings that hold them."""
    starts = [block.span.start for block in blocks]
    within: dict[int, list[tuple[int, int, int]]] = {}
    for start, (end, level) in sorted(headings.items()):
        at = bisect_right(starts, start) - 1
        if at >= 0 and blocks[at].kind in ("paragraph", "heading") and end <= blocks[at].span.end:
            within.setdefault(at, []).append((start, end, level))
    parts: list[Block] = []
    for number, block in enumerate(blocks):
        at = block.span.start
        for start, end, level in within.get(number, ()):
            if at < start:
                parts.append(replace(block, span=Span(at, start)))
            parts.append(Block("heading", Span(start, end), level))
            at = end
        if at < block.span.end:
            parts.append(replace(block, span=Span(at, block.span.end)))
    return tuple(parts)

"""What a document's pages and blocks say about where to cut: regions that no chunk leaves, cuts, and heading paths.

A region is a (start, end) range that is packed by itself. Every non-blank character lies in exactly one region.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ragkit.chunk.pack import Ruler
from ragkit.chunk.segment import CLAUSE, ITEM, LINE, PARAGRAPH, SECTION, SENTENCE, WORD, Cuts, can_cut, cuts_of, extent, merge
from ragkit.core.types import Block, Document, Ints

_NONBLANK = re.compile(r"\S")
_RUNNING = frozenset({"paragraph", "quote", "caption", "footnote"})  # text in which a line's end means nothing
_WHOLE = frozenset({"table", "row", "code", "list"})  # blocks that the structure chunker keeps whole where they fit
_FURNITURE = frozenset({"header", "footer"})
_MARKS = re.compile(r"^#{1,6}\s+|\s+#+\s*$")


@dataclass(frozen=True, slots=True)
class Outline:
    """The headings in force from each of `starts` (ascending character offsets) on; nothing is in force before the first."""

    starts: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]

    def at(self, position: int) -> tuple[str, ...]:
        """The path of headings over a character, outermost first; a heading's own characters are under it."""
        found = bisect_right(self.starts, position)
        return self.paths[found - 1] if found else ()


def outline(document: Document) -> Outline:
    """From the document's heading blocks: a heading closes those of its own level and deeper."""
    starts, paths = [], []
    stack: list[tuple[int, str]] = []
    for block in document.blocks:
        title = " ".join(_MARKS.sub("", block.span.of(document.text).strip()).split())
        if block.kind != "heading" or not title:
            continue
        stack = [*(entry for entry in stack if entry[0] < block.level), (block.level, title)]
        starts.append(block.span.start)
        paths.append(tuple(text for _, text in stack))
    return Outline(tuple(starts), tuple(paths))


def with_blocks(text: str, cuts: Cuts, blocks: tuple[Block, ...]) -> Cuts:
    """The sentence cuts corrected by what the loader saw: blocks end pieces, and are cut inside by their kind."""
    if not blocks:
        return cuts
    strength = cuts.strength.copy()
    edges: list[tuple[int, int]] = []
    after_headings = []
    for block in blocks:
        start, end = extent(text, block.span.start, block.span.end)
        if start == end:
            continue
        low, high = np.searchsorted(cuts.at, [start + 1, end])
        strength[low:high] = _inside(block.kind, strength[low:high])
        after = _next(text, end)
        edges += [(start, SECTION if block.kind == "heading" else _edge(block)), (after, _edge(block))]
        if block.kind == "heading":
            after_headings.append(after)
    merged = merge(Cuts(cuts.at, strength), cuts_of([(at, s) for at, s in edges if 0 < at < len(text) and can_cut(text, at)]))
    # A heading stays with what it announces, unless that is another heading.
    glued = np.isin(merged.at, after_headings) & (merged.strength < SECTION)
    return Cuts(merged.at, np.where(glued, WORD, merged.strength))


def _edge(block: Block) -> int:
    if block.kind == "row":
        return LINE
    return ITEM if block.kind == "list" and block.level > 0 else PARAGRAPH


def _inside(kind: str, strength: Ints) -> Ints:
    """What the cuts found by punctuation and line ends are worth inside a block."""
    if kind == "heading":
        return np.full_like(strength, WORD)
    if kind == "row":
        return np.full_like(strength, CLAUSE)
    if kind == "code":
        return np.where(strength == SENTENCE, WORD, strength)
    return np.where(strength == LINE, SENTENCE, strength) if kind in _RUNNING else strength


def _next(text: str, at: int) -> int:
    found = _NONBLANK.search(text, at)
    return found.start() if found else len(text)


def sections(text: str, blocks: tuple[Block, ...]) -> list[tuple[int, int]]:
    """Regions from heading to heading; a heading without a text of its own belongs to the section after it."""
    headings = [extent(text, b.span.start, b.span.end) for b in blocks if b.kind == "heading"]
    starts = [0]
    body_from = 0
    for start, end in headings:
        if start == end or not can_cut(text, start):
            continue
        if _next(text, body_from) < start:
            starts.append(start)
        body_from = max(body_from, end)
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def pages(document: Document) -> list[tuple[int, int]]:
    """One region per page; what stands between pages is a region of its own."""
    edges = sorted({0, len(document.text), *(p.span.start for p in document.pages), *(p.span.end for p in document.pages)})
    return list(pairwise(edges))


def without_repeats(text: str, regions: list[tuple[int, int]], blocks: tuple[Block, ...]) -> list[tuple[int, int]]:
    """The regions without the running headers and footers that repeat an earlier page's, and parted where one stood."""
    repeats = [b.span for b in blocks if b.kind in _FURNITURE and b.level > 0 and b.span.length]
    if not repeats:
        return regions
    parts: list[tuple[int, int]] = []
    ends = [span.end for span in repeats]
    for start, end in regions:
        for span in repeats[bisect_right(ends, start) :]:
            if span.start >= end:
                break
            if not (can_cut(text, span.start) and can_cut(text, span.end)):
                continue
            if start < span.start:
                parts.append((start, span.start))
            start = max(start, span.end)
        if start < end:
            parts.append((start, end))
    return parts


def keep_whole(text: str, cuts: Cuts, blocks: tuple[Block, ...], ruler: Ruler, budget: int) -> Cuts:
    """Without the cuts inside tables, rows, lists and code that fit the budget; larger ones are cut at their inner blocks."""
    keep = np.ones(len(cuts), dtype=np.bool_)
    kept_to = 0
    for block in blocks:
        start, end = extent(text, block.span.start, block.span.end)
        if block.kind not in _WHOLE or end <= kept_to or ruler.count(start, end) > budget:
            continue
        low, high = np.searchsorted(cuts.at, [start + 1, end])
        keep[low:high] = False
        kept_to = end
    return cuts.where(keep)

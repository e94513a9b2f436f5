"""What a document's pages and blocks tell about where to cut: regions that no chunk leaves, cuts, and heading paths.

A region is a (start, end) range that is packed by itself. Every non-blank character lies in exactly one region.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ragkit.chunk.pack import Ruler
from ragkit.chunk.segment import CLAUSE, ITEM, LINE, PARAGRAPH, SECTION, SENTENCE, WORD, Cuts, can_cut, cuts_of, extent, merge
from ragkit.core.types import Block, Document, Ints, Span

_NONBLANK = re.compile(r"\S")
_RUNNING_TEXT = frozenset({"paragraph", "quote", "caption", "footnote"})  # a line's end means nothing in these
_WHOLE = frozenset({"table", "row", "code", "list"})  # blocks that the structure chunker keeps whole where they fit
_HEADERS_FOOTERS = frozenset({"header", "footer"})
_HEADING_MARKS = re.compile(r"^#{1,6}\s+|\s+#+\s*$")


@dataclass(frozen=True, slots=True)
class Outline:
    """The headings in force from each of `starts` (ascending character offsets) on; none is in force before the first."""

    starts: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]

    def at(self, position: int) -> tuple[str, ...]:
        """Return the path of headings over a character, outermost first; a heading's own characters are under it."""
        count = bisect_right(self.starts, position)
        return self.paths[count - 1] if count else ()


def outline(document: Document) -> Outline:
    """Return the outline by the document's heading blocks: a heading closes those of its own level and deeper."""
    starts, paths = [], []
    stack: list[tuple[int, str]] = []
    for block in document.blocks:
        title = " ".join(_HEADING_MARKS.sub("", block.span.of(document.text).strip()).split())
        if block.kind != "heading" or not title:
            continue
        stack = [*(entry for entry in stack if entry[0] < block.level), (block.level, title)]
        starts.append(block.span.start)
        paths.append(tuple(text for _, text in stack))
    return Outline(tuple(starts), tuple(paths))


def with_blocks(text: str, cuts: Cuts, blocks: tuple[Block, ...]) -> Cuts:
    """Return the sentence cuts corrected by the blocks that the loader recorded: they end pieces, and are cut by their kind."""
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
    merged = merge(Cuts(cuts.at, strength), cuts_of(_possible(text, edges)))
    # A heading stays with the text that follows it, unless that is another heading.
    glued = np.isin(merged.at, after_headings) & (merged.strength < SECTION)
    return Cuts(merged.at, np.where(glued, WORD, merged.strength))


def _possible(text: str, edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those (position, strength) at which the text can be cut."""
    return [(at, strength) for at, strength in edges if 0 < at < len(text) and can_cut(text, at)]


def _edge(block: Block) -> int:
    """Return the strength of the cut at the end of a block."""
    if block.kind == "row":
        return LINE
    return ITEM if block.kind == "list" and block.level > 0 else PARAGRAPH


def _inside(kind: str, strength: Ints) -> Ints:
    """Return the strengths, inside a block, of cuts at punctuation and line ends."""
    if kind == "heading":
        return np.full_like(strength, WORD)
    if kind == "row":
        return np.full_like(strength, CLAUSE)
    if kind == "code":
        return np.where(strength == SENTENCE, WORD, strength)
    return np.where(strength == LINE, SENTENCE, strength) if kind in _RUNNING_TEXT else strength


def _next(text: str, at: int) -> int:
    """Return the first non-blank position from `at` on."""
    match = _NONBLANK.search(text, at)
    return match.start() if match else len(text)


def sections(text: str, blocks: tuple[Block, ...]) -> list[tuple[int, int]]:
    """Return the regions from heading to heading; a heading without a text of its own belongs to the section after it."""
    headings = [extent(text, block.span.start, block.span.end) for block in blocks if block.kind == "heading"]
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
    """Return one region per page; text between pages is a region of its own."""
    page_edges = (at for page in document.pages for at in page.span)
    return list(pairwise(sorted({0, len(document.text), *page_edges})))


def without_repeats(text: str, regions: list[tuple[int, int]], blocks: tuple[Block, ...]) -> list[tuple[int, int]]:
    """Return the regions without the running headers and footers that repeat an earlier page's, and parted where one stood."""
    repeats = [block.span for block in blocks if block.kind in _HEADERS_FOOTERS and block.level > 0 and block.span.length]
    if not repeats:
        return regions
    ends = [span.end for span in repeats]
    return [part for start, end in regions for part in _parted(text, start, end, repeats[bisect_right(ends, start) :])]


def _parted(text: str, start: int, end: int, spans: list[Span]) -> Iterator[tuple[int, int]]:
    """Yield the parts of [start, end) that are outside the spans, which are ascending; none is cut within a grapheme."""
    for span in spans:
        if span.start >= end:
            break
        if not (can_cut(text, span.start) and can_cut(text, span.end)):
            continue
        if start < span.start:
            yield start, span.start
        start = max(start, span.end)
    if start < end:
        yield start, end


def keep_whole(text: str, cuts: Cuts, blocks: tuple[Block, ...], ruler: Ruler, budget: int) -> Cuts:
    """Drop the cuts inside tables, rows, lists and code that fit the budget; larger ones are cut at their inner blocks."""
    keep = np.ones(len(cuts), dtype=np.bool_)
    whole_until = 0
    for block in blocks:
        start, end = extent(text, block.span.start, block.span.end)
        if block.kind not in _WHOLE or end <= whole_until or ruler.count(start, end) > budget:
            continue
        low, high = np.searchsorted(cuts.at, [start + 1, end])
        keep[low:high] = False
        whole_until = end
    return cuts.where(keep)

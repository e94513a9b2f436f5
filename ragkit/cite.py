"""A span becomes evidence: the pages it stands on, and boxes around its words.

Boxes follow the law: their union covers every cited word and has at most 1.5 times the words' own area. Words are joined
into a box while they fill it: along a line, or down a vertical one, never across columns, lines or tables' gaps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragkit.types import Box, Citation, CitedBox, Floats, Page, Span

FILL = 0.72  # a joined box is at least this full of its words, so that the union stays below 1.5 (1 / 0.72 = 1.39)


def cite(source: str, span: Span, pages: Sequence[Page]) -> Citation:
    """The citation of a span. `pages` are those whose text overlaps it, in order, or none for a text without pages."""
    numbers, boxes = [], []
    for page in pages:
        cited = word_boxes(page, span)
        if len(cited) or _has_text(page, span):
            numbers.append(page.number)
        boxes += [CitedBox(page.number, box, page.width, page.height) for box in join_boxes(cited)]
    return Citation(source, span, tuple(numbers), tuple(boxes))


def _has_text(page: Page, span: Span) -> bool:
    return len(page.words) == 0 and page.span.overlaps(span)


def word_boxes(page: Page, span: Span) -> Floats:
    """Boxes of the page's words that share a character with the span, in reading order, (w, 4) float32."""
    spans = page.words.spans
    first = int(np.searchsorted(spans[:, 1], span.start, side="right"))
    last = int(np.searchsorted(spans[:, 0], span.end, side="left"))
    return page.words.boxes[first:last]


def join_boxes(words: Floats) -> list[Box]:
    """Word boxes (w, 4) in reading order as few boxes: each at least FILL full of its words."""
    joined: list[Box] = []
    filled = 0.0  # area of the words in the last box
    for x0, y0, x1, y1 in words.astype(float).tolist():
        word = Box(x0, y0, x1, y1)
        if joined:
            # Overlapping words count once, or two words printed over each other would vouch for empty space.
            overlap = Box(
                max(joined[-1].x0, word.x0), max(joined[-1].y0, word.y0), min(joined[-1].x1, word.x1), min(joined[-1].y1, word.y1)
            ).area
            both = joined[-1].union(word)
            if overlap < 0.5 * max(word.area, 1e-9) and filled + word.area - overlap >= FILL * both.area:
                joined[-1], filled = both, filled + word.area - overlap
                continue
            if overlap >= word.area > 0:
                continue  # already covered
        joined.append(word)
        filled = word.area
    return joined

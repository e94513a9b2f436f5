"""Cite a span: the pages it is on, and boxes around its words.

The law of boxes: their union covers every cited word and has at most 1.5 times the words' own area. Words are joined into a box
while they fill it: along a line, or down a vertical one, never across columns, lines or the gaps of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ragkit.core.types import Box, Citation, CitedBox, Floats, Json, Metadata, Page, Span
from ragkit.store.local.reader import Reader
from ragkit.store.values import DocumentRow, UnitRow

HIDDEN = "hidden"  # the field of a document's metadata that lists the text hidden on its pages
FILL = 0.72  # a joined box is at least this full of its words, so that the union stays below 1.5 (1 / 0.72 = 1.39)


def cite(source: str, span: Span, pages: Sequence[Page]) -> Citation:
    """Return the citation of a span. `pages` are those whose text overlaps it, in order, or none for a text without pages."""
    numbers, boxes = [], []
    for page in pages:
        words = word_boxes(page, span)
        if len(words) or _has_text(page, span):
            numbers.append(page.number)
        boxes += [CitedBox(page.number, box, page.width, page.height) for box in join_boxes(words)]
    return Citation(source, span, tuple(numbers), tuple(boxes))


def _has_text(page: Page, span: Span) -> bool:
    """Return whether the span is on a page whose words have no boxes."""
    return len(page.words) == 0 and page.span.overlaps(span)


def word_boxes(page: Page, span: Span) -> Floats:
    """Return the boxes of the page's words that share a character with the span, in reading order, (w, 4) float32."""
    spans = page.words.spans
    first = int(np.searchsorted(spans[:, 1], span.start, side="right"))
    last = int(np.searchsorted(spans[:, 0], span.end, side="left"))
    return page.words.boxes[first:last]


def join_boxes(words: Floats) -> list[Box]:
    """Join word boxes (w, 4), in reading order, to few boxes, each filled by its words to at least FILL."""
    joined: list[Box] = []
    filled = 0.0  # area of the words in the current box, [left, right] x [top, bottom]
    left = top = right = bottom = 0.0
    started = False
    # Bare floats, since a search cites thousands of words: with Box objects this loop was two thirds of a lexical search.
    for x0, y0, x1, y1 in words.tolist():
        area = (x1 - x0) * (y1 - y0)
        if started:
            # Overlapping words count once, or two words printed over each other would make up for empty space.
            wide, high = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
            overlap = wide * high if wide > 0 and high > 0 else 0.0
            both = min(left, x0), min(top, y0), max(right, x1), max(bottom, y1)
            if overlap < 0.5 * max(area, 1e-9) and filled + area - overlap >= FILL * (both[2] - both[0]) * (both[3] - both[1]):
                (left, top, right, bottom), filled = both, filled + area - overlap
                continue
            if overlap >= area > 0:
                continue  # already covered
            joined.append(Box(left, top, right, bottom))
        left, top, right, bottom, filled, started = x0, y0, x1, y1, area, True
    if started:
        joined.append(Box(left, top, right, bottom))
    return joined


def cite_page(source: str, span: Span, number: int, size: tuple[float, float]) -> Citation:
    """Return the citation of a whole page; `size` is its width and height in points."""
    width, height = size
    return Citation(source, span, (number,), (CitedBox(number, Box(0.0, 0.0, width, height), width, height),))


def hidden_pages(meta: Metadata) -> tuple[int, ...]:
    """Return the pages on which the loader found text that a document hides from its readers; see docs/pdf.md."""
    return tuple(dict.fromkeys(int(passage["page"]) for passage in meta[HIDDEN])) if _has_hidden_text(meta) else ()


def without_hidden(meta: Metadata) -> Json:
    """Return the metadata that a model may see: the amount of hidden text, without the text."""
    return {name: value for name, value in meta.items() if name != HIDDEN or not _has_hidden_text(meta)}


def _has_hidden_text(meta: Metadata) -> bool:
    """Return whether "hidden" was written by the loader and is not a field of the user's own."""
    passages = meta.get(HIDDEN)
    by_page = isinstance(passages, list) and all(
        isinstance(passage, Mapping) and isinstance(passage.get("page"), int) for passage in passages
    )
    return by_page and isinstance(meta.get("hidden_characters"), int)


def shared(first: Span, second: Span) -> int:
    """Return how many characters two spans have in common."""
    return max(0, min(first.end, second.end) - max(first.start, second.start))


def citation(reader: Reader, document: DocumentRow, unit: UnitRow) -> Citation:
    """Return the citation of a unit of a stored document."""
    if unit.page is not None:
        size = reader.page_sizes([(document.id, unit.page)])[document.id, unit.page]
        return cite_page(document.source, unit.span, unit.page, size)
    return cite(document.source, unit.span, reader.pages(document.id, unit.span))

"""A hit becomes a wider one: its neighbours, its page or its section, read from the catalog and cited anew.

Widening never leaves the document's version that was found; where that is gone by now, ValueError says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ragkit.core.types import Block, Citation, Hit, Span
from ragkit.search.cite import cite, cite_page
from ragkit.store.catalog.documents import CommittedDocuments
from ragkit.store.values import UnitRow

if TYPE_CHECKING:
    from ragkit.search.explanation import Explanation


@dataclass(frozen=True, slots=True, eq=False)
class HitExpander:
    """What a hit reads more of its document with, and asks why it was found. A copy of a hit shares it; a pickled hit goes
    without."""

    documents: CommittedDocuments
    why: Callable[[Hit, str | None], Explanation] | None = None

    def explain(self, hit: Hit, space: str | None) -> Explanation:
        """The MaxSim score of the hit, or of the page that it was found by, taken apart."""
        if self.why is None:
            raise ValueError("this hit does not know its query: use Index.explain(query, hit.key)")
        return self.why(hit, space)

    def neighbours(self, hit: Hit, *, before: int, after: int) -> Hit:
        """From the start of the unit `before` places earlier to the end of the one `after` places later."""
        unit = self._unit(hit)
        units = [one for one in self.documents.units_of(unit.document) if one.kind == unit.kind]
        units.sort(key=lambda one: (one.span.start, one.key))
        at = next(position for position, one in enumerate(units) if one.key == unit.key)
        near = units[max(at - before, 0) : at + after + 1]
        if unit.page is not None:
            return self._pages(hit, unit.document, near)
        return self._widened(hit, unit, Span(near[0].span.start, max(one.span.end for one in near)))

    def page(self, hit: Hit) -> Hit:
        """The whole text of the pages the hit stands on; a document without pages leaves the hit as it is."""
        unit = self._unit(hit)
        pages = [] if unit.page is not None else self.documents.pages(unit.document, hit.span)
        if not pages:
            return hit
        start, end = min(hit.span.start, pages[0].span.start), max(hit.span.end, pages[-1].span.end)
        return self._widened(hit, unit, Span(start, end))

    def section(self, hit: Hit) -> Hit:
        """The section the hit begins in, its heading and subsections included; a document without headings is one section."""
        unit = self._unit(hit)
        row = self.documents.documents_by_id([unit.document])[unit.document]
        headings = [block for block in self.documents.blocks(unit.document) if block.kind == "heading"]
        return self._widened(hit, unit, section_of(hit.span, headings, row.characters))

    def _pages(self, hit: Hit, document: int, near: Sequence[UnitRow]) -> Hit:
        """Pages one after the other, each cited as a whole."""
        numbers = [one.page for one in near if one.page is not None]
        sizes = self.documents.page_sizes([(document, number) for number in numbers])
        span = Span(near[0].span.start, near[-1].span.end)
        boxes = [box for one in numbers for box in cite_page(hit.source, span, one, sizes[document, one]).boxes]
        text = self.documents.text(document, span)
        return replace(hit, text=text, citation=Citation(hit.source, span, tuple(numbers), tuple(boxes)))

    def _unit(self, hit: Hit) -> UnitRow:
        known = self.documents.known_units([hit.key])
        if not known:
            raise ValueError(
                f"{hit.document_id} was replaced or deleted since unit {hit.key} was found, so there is no more of it to read"
            )
        return known[hit.key]

    def _widened(self, hit: Hit, unit: UnitRow, span: Span) -> Hit:
        [(text, pages)] = self.documents.passages([(unit.document, span)])
        return replace(hit, text=text, citation=cite(hit.source, span, pages))

    def __deepcopy__(self, memo: Any) -> HitExpander:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()


def _nothing() -> None:
    return None


def section_of(span: Span, headings: Sequence[Block], end: int) -> Span:
    """From the last heading at or before the span's start to the first later one that is not below it.

    Before the first heading: from the start of the text to the first heading beyond the span. It always covers the span.
    """
    above = [block for block in headings if block.span.start <= span.start]
    level = above[-1].level if above else 7  # any heading ends what stands before the first
    after = [block.span.start for block in headings if block.span.start >= span.end and block.level <= level]
    return Span(above[-1].span.start if above else 0, min(after, default=end))

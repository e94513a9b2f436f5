"""Expand a hit to its neighbours, its page or its section, read from the index, with a new citation.

An expanded hit is always of the document's version that was found; if that version is gone, ValueError says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragkit.core.types import Block, Citation, Hit, Span
from ragkit.search.cite import cite, cite_page
from ragkit.store.catalog.documents import CommittedDocuments
from ragkit.store.values import UnitRow

if TYPE_CHECKING:
    from ragkit.search.explanation import Explanation


@dataclass(frozen=True, slots=True, eq=False)
class HitExpander:
    """Reads more of a hit's document, and explains why the hit was found. A copy of a hit shares it; a pickled hit loses it."""

    documents: CommittedDocuments
    why: Callable[[Hit, str | None], Explanation] | None = None

    def explain(self, hit: Hit, space: str | None) -> Explanation:
        """Return the parts of the MaxSim score of the hit, or of the page through which it was found."""
        if self.why is None:
            raise ValueError("this hit does not know its query: use Index.explain(query, hit.key)")
        return self.why(hit, space)

    def neighbours(self, hit: Hit, *, before: int, after: int) -> Hit:
        """Return the text from the start of the unit `before` places earlier to the end of the unit `after` places later."""
        unit = self._unit(hit)
        units = [other for other in self.documents.units_of(unit.document) if other.kind == unit.kind]
        units.sort(key=lambda other: (other.span.start, other.key))
        at = next(position for position, other in enumerate(units) if other.key == unit.key)
        near = units[max(at - before, 0) : at + after + 1]
        if unit.page is not None:
            return self._pages(hit, unit.document, near)
        return self._expanded(hit, unit, Span(near[0].span.start, max(other.span.end for other in near)))

    def page(self, hit: Hit) -> Hit:
        """Return the whole text of the pages that the hit is on; the hit itself if its document has no pages."""
        unit = self._unit(hit)
        pages = [] if unit.page is not None else self.documents.pages(unit.document, hit.span)
        if not pages:
            return hit
        start, end = min(hit.span.start, pages[0].span.start), max(hit.span.end, pages[-1].span.end)
        return self._expanded(hit, unit, Span(start, end))

    def section(self, hit: Hit) -> Hit:
        """Return the section in which the hit begins, with its heading and subsections. A document without headings is one
        section."""
        unit = self._unit(hit)
        row = self.documents.documents_by_id([unit.document])[unit.document]
        headings = [block for block in self.documents.blocks(unit.document) if block.kind == "heading"]
        return self._expanded(hit, unit, section_of(hit.span, headings, row.characters))

    def _pages(self, hit: Hit, document: int, near: Sequence[UnitRow]) -> Hit:
        """Return a hit of consecutive page images, each cited as a whole."""
        numbers = [page.page for page in near if page.page is not None]
        sizes = self.documents.page_sizes([(document, number) for number in numbers])
        span = Span(near[0].span.start, near[-1].span.end)
        boxes = [box for number in numbers for box in cite_page(hit.source, span, number, sizes[document, number]).boxes]
        text = self.documents.text(document, span)
        return replace(hit, text=text, citation=Citation(hit.source, span, tuple(numbers), tuple(boxes)))

    def _unit(self, hit: Hit) -> UnitRow:
        known = self.documents.known_units([hit.key])
        if not known:
            raise ValueError(
                f"{hit.document_id} was replaced or deleted since unit {hit.key} was found, so no more of it can be read. "
                "Search again."
            )
        return known[hit.key]

    def _expanded(self, hit: Hit, unit: UnitRow, span: Span) -> Hit:
        [(text, pages)] = self.documents.passages([(unit.document, span)])
        return replace(hit, text=text, citation=cite(hit.source, span, pages))

    def __deepcopy__(self, memo: object) -> HitExpander:
        return self

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _unpickled, ()  # the index is not pickled with a hit


def _unpickled() -> None:
    return None


def section_of(span: Span, headings: Sequence[Block], end: int) -> Span:
    """Return the section of a span: from the last heading at or before its start to the next heading that is not a subheading.

    Before the first heading, the section reaches from the start of the text to the first heading after the span. A section always
    covers its span.
    """
    above = [block for block in headings if block.span.start <= span.start]
    level = above[-1].level if above else 7  # any heading ends the text before the first
    after = [block.span.start for block in headings if block.span.start >= span.end and block.level <= level]
    return Span(above[-1].span.start if above else 0, min(after, default=end))

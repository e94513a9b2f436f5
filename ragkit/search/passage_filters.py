"""Filters on passages, beside those on documents: `hit.headings`, `hit.kind`, `hit.page`, `hit.page_label`.

    {"hit.headings": {"$contains": "Methods"}, "year": 2024}      passages that stand under the heading, of documents of the year
    {"hit.page": {"$lte": 10}}                                    that begin on one of the first ten pages
    {"hit.kind": "page"}                                          page images, each a hit of its own; or "chunk"
    {"hit.page_label": "iv"}                                      by the printed number, a sheet's name, a minute of subtitles

A page image is on its own page, and under no heading. The filter's part on documents narrows the search as ever
(`filters`); what is found is then tested whole, each passage with its document, and the search looks deeper until it has
as many as were asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ragkit.core.types import Span
from ragkit.search.filters import UNIT_FIELDS, Filters, field_value, fields_of, matches, parse
from ragkit.store.local.reader import Reader
from ragkit.store.values import DocumentRow, UnitRow


def passage_test(filters: Filters | None, reader: Reader) -> Callable[[UnitRow], bool] | None:
    """Whether a passage satisfies a filter; None where the filter speaks of documents alone."""
    tree = None if filters is None else parse(filters)
    if tree is None or not fields_of(tree) & UNIT_FIELDS:
        return None
    rows: dict[int, DocumentRow] = {}

    def satisfied(unit: UnitRow) -> bool:
        if unit.document not in rows:
            rows.update(reader.documents_by_id([unit.document]))
        return _holds(tree, unit, rows[unit.document], reader)

    return satisfied


def _holds(tree: tuple[Any, ...], unit: UnitRow, row: DocumentRow, reader: Reader) -> bool:
    if tree[0] in ("and", "or", "not"):
        verdicts = (_holds(child, unit, row, reader) for child in tree[1])
        if tree[0] == "or":
            return any(verdicts)
        return bool(all(verdicts) != (tree[0] == "not"))
    op, field, target = tree
    value = _value(unit, field, reader) if field in UNIT_FIELDS else field_value(row, field)
    return bool(matches(op, value, target))


def _value(unit: UnitRow, field: str, reader: Reader) -> Any:
    """A passage's kind, its headings, outermost first, or the number or label of the page that it begins on, or is the image of;
    None where it has none."""
    if field == "hit.headings":
        return list(unit.headings)
    if field == "hit.kind":
        return unit.kind
    if unit.page is not None:  # a page image, which may have no text to find it by
        return unit.page if field == "hit.page" else reader.page(unit.document, unit.page).label
    pages = reader.pages(unit.document, Span(unit.span.start, unit.span.start + 1)) or reader.pages(unit.document, unit.span)
    if not pages:
        return None
    return pages[0].number if field == "hit.page" else pages[0].label

"""Read documents, pages and units of an index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ragkit.core.space import Space
from ragkit.core.types import Floats, Span
from ragkit.search.cite import shared
from ragkit.search.filters import Filters, parse_for_documents
from ragkit.search.view import View
from ragkit.store.local.reader import Reader
from ragkit.store.values import PAGE, DocumentRow, UnitRow

READ = 16  # documents whose texts and vectors are read together


@dataclass(frozen=True, slots=True, eq=False)
class StoredDocument:
    """A document as it is stored: its row, its text, its dense vectors (n, d), n units by key, or None."""

    row: DocumentRow
    text: str
    vectors: Floats | None


def list_documents(reader: Reader, filters: Filters | None) -> Iterator[DocumentRow]:
    """Return the documents, or those that match a filter, oldest version first, without their texts."""
    return reader.documents(None if filters is None else parse_for_documents(filters))


def read_documents(view: View, filters: Filters | None) -> Iterator[StoredDocument]:
    """Yield the documents that match a filter, with texts and vectors. The view is held until the end."""
    rows = list_documents(view.reader, filters)
    while batch := list(islice(rows, READ)):
        texts = view.reader.passages([(row.id, Span(0, row.characters)) for row in batch])
        vectors = view.reader.rows_of(np.array([row.id for row in batch], dtype=np.int64))
        for row, (text, _) in zip(batch, texts, strict=True):
            yield StoredDocument(row, text, vectors.get(row.id))


def find_documents(reader: Reader, reference: str) -> list[DocumentRow]:
    """Return the document that a source, id or path names, or none. ValueError if it names several."""
    rows = reader.find([reference], by="reference")
    exact = [row for row in rows if row.identity in (reference, f"id:{reference}")]
    if len(exact) == 1:
        return exact
    if len(rows) > 1:
        raise ValueError(f"{reference!r} names several documents; give one of: {', '.join(row.identity for row in rows)}")
    return rows


def find_document(path: Path, reader: Reader, reference: str) -> DocumentRow:
    """Return the document that a source, id or path names. ValueError if there is none in the index at `path`, or several."""
    rows = find_documents(reader, reference)
    if not rows:
        raise ValueError(f"{path} has no document {reference!r}. See: ragkit list {path}")
    return rows[0]


def find_unit(path: Path, reader: Reader, key: int) -> tuple[UnitRow, DocumentRow]:
    """Return a unit and its document by key. ValueError if it is not in the index at `path` any more."""
    unit = reader.known_units([key]).get(key) if -(2**63) <= key < 2**63 else None
    rows = [] if unit is None else reader.find([unit.document], by="id")
    if unit is None or not rows:
        raise ValueError(f"{path} has no unit {key}; it may have been deleted or replaced since")
    return unit, rows[0]


def page_key_of(reader: Reader, unit: UnitRow, row: DocumentRow, spaces: tuple[Space, ...]) -> int | None:
    """Return the key of the page that a unit is on: its own, or that of the page which has most of a chunk. None if the index
    has no multi-vectors of that page."""
    if Space.PAGE_MULTI not in spaces:
        return None
    if unit.kind == PAGE:
        return unit.key
    pages = reader.pages(row.id, unit.span)
    largest = max(pages, key=lambda page: (shared(page.span, unit.span), -page.number), default=None)
    if largest is None:
        return None
    return next((other.key for other in reader.units_of(row.id) if other.page == largest.number), None)

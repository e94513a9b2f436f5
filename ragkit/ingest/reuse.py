"""Find vectors that an index holds already: of a document with the same content under another name, or of a former version.

A document's vectors follow from its text, its title, its chunks and the recipe. Where all of these are those of a live
document, its vectors are taken from there, exactly as they are stored, and nothing is embedded twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ragkit.core.errors import Damaged
from ragkit.core.types import Chunk, Document, Floats, Ints, Page, Span
from ragkit.store.local.reader import Reader
from ragkit.store.values import CHUNK, PAGE, DocumentRow, PageVectors, UnitRow
from ragkit.store.vectors.multi_layout import Stored


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingInput:
    """What a document's vectors are made from, the hash of its content, and the version that it replaces."""

    document: Document
    chunks: tuple[Chunk, ...]
    content_hash: str
    former: DocumentRow | None


@dataclass(frozen=True, slots=True, eq=False)
class ReusedVectors:
    """A live document version with the same input, and its vectors: one for each chunk, of each kind that is stored."""

    row: DocumentRow
    dense: Sequence[Floats | None]
    multi: Sequence[Stored | None]


def reusable_vectors(
    reader: Reader, inputs: Sequence[EmbeddingInput], *, recipe_hash: str, multi: bool
) -> list[ReusedVectors | None]:
    """Return the vectors in the index for each input, or None where it must be embedded. multi: whether the index's chunks have
    multi-vectors, too."""
    if reader.missing:  # what is left of a damaged index may lack vectors
        return [None] * len(inputs)
    try:
        return list(_reusable_vectors(reader, inputs, recipe_hash, multi=multi))
    except Damaged:  # what cannot be read is embedded anew; `ragkit verify` reports the damage
        return [None] * len(inputs)


def same_content(reader: Reader, hashes: Iterable[str], *, recipe_hash: str) -> dict[str, list[DocumentRow]]:
    """Return the documents made by a recipe from contents with the given hashes, by hash, oldest first."""
    rows: dict[str, list[DocumentRow]] = {}
    for row in reader.find(sorted(hashes), by="content"):
        if row.recipe_hash == recipe_hash:
            rows.setdefault(row.content_hash, []).append(row)
    return rows


def _reusable_vectors(
    reader: Reader, inputs: Sequence[EmbeddingInput], recipe_hash: str, *, multi: bool
) -> Iterator[ReusedVectors | None]:
    rows = _rows_with_same_input(reader, inputs, recipe_hash)
    ids = sorted({row.id for row in rows if row is not None})
    dense, tokens = _stored_vectors(reader, np.array(ids, dtype=np.int64))
    for embedding_input, row in zip(inputs, rows, strict=True):
        if row is None:
            yield None
        else:
            yield _complete(row, dense.get(row.id), tokens.get(row.id), len(embedding_input.chunks), multi=multi)


def _complete(
    row: DocumentRow, dense: Sequence[Floats] | None, tokens: Sequence[Stored] | None, count: int, *, multi: bool
) -> ReusedVectors | None:
    """Return the vectors of a row where they are there for all `count` chunks, in every kind that is stored."""
    counts = {len(vectors) for vectors in (dense, tokens) if vectors is not None}
    if counts != {count} or (multi and tokens is None):
        return None
    none = [None] * count
    return ReusedVectors(row, none if dense is None else dense, none if tokens is None else tokens)


def _rows_with_same_input(reader: Reader, inputs: Sequence[EmbeddingInput], recipe_hash: str) -> list[DocumentRow | None]:
    """Return a live row with the same title, chunks and text for each input: its former version, or one of the same hash."""
    hashes = {embedding_input.content_hash for embedding_input in inputs if embedding_input.chunks}
    by_hash = same_content(reader, hashes, recipe_hash=recipe_hash)
    rows: list[DocumentRow | None] = []
    for embedding_input in inputs:
        former = embedding_input.former
        candidates = list(by_hash.get(embedding_input.content_hash, ()))
        if former is not None and former.recipe_hash == recipe_hash:
            candidates.insert(0, former)
        same = (row for row in candidates if _has_same_input(reader, row, embedding_input))
        rows.append(next(same, None) if embedding_input.chunks else None)
    return rows


def _stored_vectors(reader: Reader, ids: Ints) -> tuple[dict[int, Sequence[Floats]], dict[int, list[Stored]]]:
    """Return the stored vectors of document versions, by their ids: dense ones, and multi-vectors."""
    if len(ids) == 0:
        return {}, {}
    return {id: list(rows) for id, rows in reader.rows_of(ids).items()}, reader.multi_of(ids)


def stored_pages(reader: Reader, row: DocumentRow, pages: Sequence[Page]) -> PageVectors | None:
    """Return the stored vectors of the page images of a live document version that has these pages; None where some are missing,
    or there are none."""
    try:
        units = page_units(reader, row)
        ids = np.array([row.id], dtype=np.int64)
        dense, multi = reader.rows_of(ids, kind=PAGE).get(row.id), reader.multi_of(ids, kind=PAGE).get(row.id)
    except Damaged:  # the pages are seen anew; `ragkit verify` reports the damage
        return None
    embedded = _pages_of(units, pages)
    counts = {len(embedded), *(len(vectors) for vectors in (dense, multi) if vectors is not None)}
    if not units or counts != {len(units)} or (dense is None and multi is None):
        return None
    return PageVectors(embedded, tuple(unit.patches for unit in units), dense, tuple(multi or ()))


def _pages_of(units: Sequence[UnitRow], pages: Sequence[Page]) -> tuple[Page, ...]:
    """Return the pages of page units, in their order, those left out that are not among `pages`."""
    by_number = {page.number: page for page in pages}
    return tuple(by_number[unit.page] for unit in units if unit.page in by_number)


def page_units(reader: Reader, row: DocumentRow) -> list[UnitRow]:
    """Return the units of a document that are page images."""
    return [unit for unit in reader.units_of(row.id) if unit.kind == PAGE]


def same_input(first: EmbeddingInput, second: EmbeddingInput) -> bool:
    """Whether two documents in memory have the same vectors."""
    same_text = first.document.title == second.document.title and first.document.text == second.document.text
    return same_text and first.chunks == second.chunks


def _has_same_input(reader: Reader, row: DocumentRow, embedding_input: EmbeddingInput) -> bool:
    """Whether a stored document has the title, chunks and text of one in memory. The text is read last."""
    document, chunks = embedding_input.document, embedding_input.chunks
    text = document.text
    if (row.title, row.characters) != (document.title, len(text)) or row.units < len(chunks):
        return False
    stored = tuple(Chunk(unit.span, unit.headings) for unit in reader.units_of(row.id) if unit.kind == CHUNK)
    return stored == chunks and reader.text(row.id, Span(0, row.characters)) == text

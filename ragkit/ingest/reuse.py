"""Vectors that are known already: of a document whose content the index holds under another name, or held before.

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
from ragkit.store.values import CHUNK, PAGE, DocumentRow, PageVectors
from ragkit.store.vectors.multi_layout import Stored


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A document whose vectors are asked for, the hash of its content, and the version that it replaces."""

    document: Document
    chunks: tuple[Chunk, ...]
    content_hash: str
    former: DocumentRow | None


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A live document version that has the same vectors: its row, and they, one of each kind that is kept per chunk."""

    row: DocumentRow
    dense: Sequence[Floats | None]
    multi: Sequence[Stored | None]


def twins(reader: Reader, wanted: Sequence[Wanted], *, recipe_hash: str, multi: bool) -> list[Twin | None]:
    """Return for each document its twin among those of a reader, or None where it must be embedded. multi: whether the reader's
    chunks have multi-vectors, too."""
    if reader.missing:  # what is left of a damaged index may lack vectors
        return [None] * len(wanted)
    try:
        return list(_twins(reader, wanted, recipe_hash, multi))
    except Damaged:  # what cannot be read is embedded anew; `ragkit verify` tells of the damage
        return [None] * len(wanted)


def same_content(reader: Reader, hashes: Iterable[str], *, recipe_hash: str) -> dict[str, list[DocumentRow]]:
    """Return the documents made by a recipe from contents with the given hashes, by hash, oldest first."""
    rows: dict[str, list[DocumentRow]] = {}
    for row in reader.find(sorted(hashes), by="content"):
        if row.recipe_hash == recipe_hash:
            rows.setdefault(row.content_hash, []).append(row)
    return rows


def _twins(reader: Reader, wanted: Sequence[Wanted], recipe_hash: str, multi: bool) -> Iterator[Twin | None]:
    same = same_content(reader, {one.content_hash for one in wanted if one.chunks}, recipe_hash=recipe_hash)
    chosen: list[DocumentRow | None] = []
    for one in wanted:
        former = [one.former] if one.former is not None and one.former.recipe_hash == recipe_hash else []
        candidates = [*former, *same.get(one.content_hash, ())] if one.chunks else []
        chosen.append(next((row for row in candidates if _alike(reader, row, one)), None))
    ids = sorted({row.id for row in chosen if row is not None})
    stored_dense, stored_multi = _stored(reader, np.array(ids, dtype=np.int64))
    for one, row in zip(wanted, chosen, strict=True):
        count = len(one.chunks)
        rows, tokens = (None, None) if row is None else (stored_dense.get(row.id), stored_multi.get(row.id))
        found = [len(kind) for kind in (rows, tokens) if kind is not None]
        whole = set(found) == {count} and (not multi or tokens is not None)
        none = [None] * count
        yield Twin(row, none if rows is None else rows, none if tokens is None else tokens) if row and whole else None


def _stored(reader: Reader, ids: Ints) -> tuple[dict[int, Sequence[Floats]], dict[int, list[Stored]]]:
    """What is stored of document versions, dense and multi-vectors."""
    if len(ids) == 0:
        return {}, {}
    return {id: list(rows) for id, rows in reader.rows_of(ids).items()}, reader.multi_of(ids)


def stored_pages(reader: Reader, row: DocumentRow, pages: Sequence[Page]) -> PageVectors | None:
    """What is stored of the page images of a live document version, of which these are the pages; None where there is nothing,
    or not all."""
    try:
        units = [unit for unit in reader.units_of(row.id) if unit.kind == PAGE]
        ids = np.array([row.id], dtype=np.int64)
        dense, multi = reader.rows_of(ids, kind=PAGE).get(row.id), reader.multi_of(ids, kind=PAGE).get(row.id)
    except Damaged:  # seen anew; `ragkit verify` tells of the damage
        return None
    known = {page.number: page for page in pages}
    shown = tuple(known[unit.page] for unit in units if unit.page in known)
    found = {len(kind) for kind in (dense, multi) if kind is not None}
    if not units or found != {len(shown)} or len(shown) != len(units):
        return None
    return PageVectors(shown, tuple(unit.patches for unit in units), dense, tuple(multi or ()))


def alike(first: Wanted, second: Wanted) -> bool:
    """Whether two documents at hand have the same vectors."""
    same_text = first.document.title == second.document.title and first.document.text == second.document.text
    return same_text and first.chunks == second.chunks


def _alike(reader: Reader, row: DocumentRow, one: Wanted) -> bool:
    """Whether a stored document has the title, chunks and text of one at hand; the text is read last."""
    text = one.document.text
    if (row.title, row.characters) != (one.document.title, len(text)) or row.units < len(one.chunks):
        return False
    chunks = tuple(Chunk(unit.span, unit.headings) for unit in reader.units_of(row.id) if unit.kind == CHUNK)
    return chunks == one.chunks and reader.text(row.id, Span(0, row.characters)) == text

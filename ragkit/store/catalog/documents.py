"""Read the documents that one commit sees: their rows, units, texts, pages and structure.

Every row is checked before it becomes a value, so that a flipped bit hides none. What a commit number N sees: rows with
added <= N and (deleted is NULL or deleted > N).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, or_, select, tuple_

from ragkit.core.errors import Damaged
from ragkit.core.types import Block, Document, Ints, Page, Span
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.database import Database, in_batches
from ragkit.store.catalog.rows import PIECE, blocks_of, document_of, page_of, unit_of
from ragkit.store.values import PAGE, DocumentRow, UnitRow

LISTED = 1000  # rows of documents read in one transaction
PAGES_IN = 100  # spans per statement that looks for their pages

Conditions = Sequence[ColumnElement[bool]]  # a row that satisfies any of them
FindBy = Literal["identity", "reference", "file", "beneath", "content", "id"]
Pieces = dict[tuple[int, int], str]  # pieces of text by document and start


class CommittedDocuments:
    """The documents of one commit. Thread-safe: every call is a short transaction of its own.

    A purge may remove documents that no reader holds; who reads an older commit keeps them by a lock, as the local `Reader` does.
    """

    def __init__(self, database: Database, number: int) -> None:
        self._database = database
        self._number = number

    # Documents

    def every_document(self) -> Iterator[DocumentRow]:
        """Yield the documents by id, streamed in short reads."""
        return (_as_live(row) for row in versions(self._database) if self._sees(row))

    def find(self, names: Iterable[str | int], *, by: FindBy) -> list[DocumentRow]:
        """Return the documents that the names name, by id.

        by "identity"; "reference": a source, a record's id, a path or an identity, of which several documents may answer to one;
        "file": those read from one file that holds several, by its source or its path; "beneath": those read from a file, or
        from any file beneath a folder; "content": the hash of their content; "id": of the version.
        """
        found: dict[int, DocumentRow] = {}
        with self._database.reading() as connection:
            for batch in in_batches(list(names)):
                for row in connection.execute(self._visible(CONDITIONS[by](batch))).mappings():
                    document = _as_live(document_of(row))
                    found[document.id] = document
        return [found[id] for id in sorted(found)]

    def by_identity(self, identity: str) -> DocumentRow | None:
        """Return the version of the document with this identity; None where there is none."""
        return next(iter(self.find([identity], by="identity")), None)

    def documents_by_id(self, ids: Iterable[int]) -> dict[int, DocumentRow]:
        """Return document versions by id; Damaged where one is not there."""
        ids = set(ids)
        found = {row.id: row for row in self.find(ids, by="id")}
        for id in ids - found.keys():
            raise self._database.damaged(f"it has no document {id}")
        return found

    def _visible(self, conditions: Conditions) -> Select[tuple[object, ...]]:
        # Live rows and those that ended later apart, since each has an index of its own.
        columns = s.documents.c
        lives = (columns.deleted.is_(None), columns.deleted > self._number)
        added = columns.added <= self._number
        return select(s.documents).where(or_(*(and_(condition, life, added) for condition in conditions for life in lives)))

    def _sees(self, row: DocumentRow) -> bool:
        return row.added <= self._number and (row.deleted is None or row.deleted > self._number)

    # Units

    def units(self, keys: Iterable[int]) -> dict[int, UnitRow]:
        """Return units by key; Damaged where a key is not there, because no search would have found it otherwise."""
        keys = list(keys)
        found = self.known_units(keys)
        for key in keys:
            if key not in found:
                raise self._database.damaged(f"it has no unit {key}")
        return found

    def known_units(self, keys: Iterable[int]) -> dict[int, UnitRow]:
        """Return those units that the commit sees, by key."""
        rows: list[RowMapping] = []
        with self._database.reading() as connection:
            for batch in in_batches(list(keys)):
                query = self._units().where(s.units.c.key.in_(batch))
                rows += [s.checked(s.units, row) for row in connection.execute(query).mappings()]
            pages = _page_units(connection, rows)
            return {row["key"]: unit_of(row, pages) for row in rows}

    def units_of(self, document: int) -> list[UnitRow]:
        """Return all units of one document version, by key."""
        with self._database.reading() as connection:
            query = self._units().where(s.units.c.document == document).order_by(s.units.c.key)
            rows = [s.checked(s.units, row) for row in connection.execute(query).mappings()]
            pages = _page_units(connection, rows)
            return [unit_of(row, pages) for row in rows]

    def unit_keys(self, *, kind: str) -> Ints:
        """Return the keys of all units of a kind, ascending, (n,) int64."""
        with self._database.reading() as connection:
            query = self._units(s.units.c.key).where(s.units.c.kind == kind).order_by(s.units.c.key)
            return np.array(connection.execute(query).scalars().all(), dtype=np.int64)

    def _units(self, *columns: ColumnElement[int]) -> Select[tuple[object, ...]]:
        owner = s.documents.c
        life = or_(owner.deleted.is_(None), owner.deleted > self._number)
        joined = s.units.join(s.documents, owner.id == s.units.c.document)
        return select(*(columns or s.units.c)).select_from(joined).where(owner.added <= self._number, life)

    # Texts, pages and structure, by document version

    def text(self, document: int, span: Span) -> str:
        """Return a span of a document's text; only the pieces it touches are read."""
        with self._database.reading() as connection:
            return _cut(_pieces(connection, [(document, span)]), document, span, self._database)

    def passages(self, spans: Sequence[tuple[int, Span]]) -> list[tuple[str, list[Page]]]:
        """Return, for each (document, span), its text and the pages it overlaps, with their words; two statements for all."""
        with self._database.reading() as connection:
            pieces = _pieces(connection, spans)
            pages = _overlapping(connection, spans)
        return [
            (_cut(pieces, document, span, self._database), [page for page in pages.get(document, []) if page.span.overlaps(span)])
            for document, span in spans
        ]

    def pages(self, document: int, span: Span | None = None) -> list[Page]:
        """Return a document's pages, or those whose text overlaps a span, with their words and boxes."""
        conditions: list[ColumnElement[bool]] = [s.pages.c.document == document]
        if span is not None:
            conditions += [s.pages.c.start < span.end, s.pages.c.end > span.start]
        with self._database.reading() as connection:
            rows = connection.execute(select(s.pages).where(*conditions).order_by(s.pages.c.number)).mappings().all()
            return [page_of(row) for row in rows]

    def page(self, document: int, number: int) -> Page:
        """Return a page by its number; Damaged where it is gone."""
        query = select(s.pages).where(s.pages.c.document == document, s.pages.c.number == number)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
            if row is None:
                raise Damaged(f"it has no page {number} of document {document}")
            return page_of(row)

    def page_sizes(self, pages: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[float, float]]:
        """Return (width, height) in points of pages, by document and number; Damaged where one is gone."""
        keys = sorted(set(pages))
        columns = (s.pages.c.document, s.pages.c.number)
        sizes: dict[tuple[int, int], tuple[float, float]] = {}
        with self._database.reading() as connection:
            for batch in in_batches(keys):
                for row in connection.execute(select(s.pages).where(tuple_(*columns).in_(batch))).mappings():
                    s.checked(s.pages, row)
                    sizes[row["document"], row["number"]] = (row["width"], row["height"])
            if missing := [key for key in keys if key not in sizes]:
                raise Damaged(f"it has no page {missing[0][1]} of document {missing[0][0]}")
        return sizes

    def blocks(self, document: int) -> tuple[Block, ...]:
        """Return the structure that a document's loader saw, in order."""
        with self._database.reading() as connection:
            row = connection.execute(select(s.blocks).where(s.blocks.c.document == document)).mappings().first()
            return () if row is None else blocks_of(row)

    def document(self, row: DocumentRow) -> Document:
        """Return a whole document, as its loader made it."""
        return Document(
            text=self.text(row.id, Span(0, row.characters)),
            id=row.source,
            title=row.title,
            meta=row.meta,
            pages=tuple(self.pages(row.id)),
            blocks=self.blocks(row.id),
            mime=row.mime,
        )


def versions(database: Database, *, after: int = 0) -> Iterator[DocumentRow]:
    """Yield every version of every document with an id above `after`, deleted ones included, by id, streamed in short reads."""
    while True:
        with database.reading() as connection:
            query = select(s.documents).where(s.documents.c.id > after).order_by(s.documents.c.id).limit(LISTED)
            rows = [document_of(row) for row in connection.execute(query).mappings()]
        yield from rows
        if len(rows) < LISTED:
            return
        after = rows[-1].id


def _as_live(row: DocumentRow) -> DocumentRow:
    """Return the row as it was while the document lived: a later commit may have ended that."""
    return row if row.deleted is None else replace(row, deleted=None)


def _absolute(reference: object) -> str:
    return os.path.abspath(os.path.expanduser(str(reference)))  # noqa: PTH100, PTH111 - Path.resolve would follow links


def _referred(names: Sequence[str | int]) -> Conditions:
    identities = [identity for name in names for identity in (str(name), f"id:{name}", _absolute(name))]
    return [s.documents.c.source.in_(list(map(str, names))), s.documents.c.identity.in_(identities)]


def _of_file(names: Sequence[str | int]) -> Conditions:
    columns = s.documents.c
    paths = columns.path.in_([_absolute(name) for name in names])
    sources = [columns.source.startswith(f"{name}#", autoescape=True) for name in names]
    return [and_(columns.path.is_not(None), or_(paths, *sources))]


def _beneath(names: Sequence[str | int]) -> Conditions:
    path = s.documents.c.path
    folders = [str(name).rstrip("/") + "/" for name in names]
    return [path.in_(list(map(str, names))), *(path.startswith(folder, autoescape=True) for folder in folders)]


def _among(column: ColumnElement[Any]) -> Callable[[Sequence[str | int]], Conditions]:
    return lambda names: [column.in_(names)]


CONDITIONS: dict[FindBy, Callable[[Sequence[str | int]], Conditions]] = {
    "identity": _among(s.documents.c.identity),
    "reference": _referred,
    "file": _of_file,
    "beneath": _beneath,
    "content": _among(s.documents.c.content_hash),
    "id": _among(s.documents.c.id),
}


def _pieces(connection: Connection, spans: Sequence[tuple[int, Span]]) -> Pieces:
    """Return the pieces of text that the spans touch."""
    keys = {(document, start) for document, span in spans for start in range(span.start // PIECE * PIECE, span.end, PIECE)}
    rows: list[RowMapping] = []
    for batch in in_batches(sorted(keys)):
        query = select(s.texts).where(tuple_(s.texts.c.document, s.texts.c.start).in_(batch))
        rows += [s.checked(s.texts, row) for row in connection.execute(query).mappings()]
    return {(row["document"], row["start"]): zlib.decompress(row["body"]).decode() for row in rows}


def _cut(pieces: Pieces, document: int, span: Span, database: Database) -> str:
    first = span.start // PIECE * PIECE
    text = "".join(pieces.get((document, start), "") for start in range(first, span.end, PIECE))
    cut = text[span.start - first : span.end - first]
    if len(cut) != span.length:
        raise database.damaged(f"document {document} ends before {span}")
    return cut


def _overlapping(connection: Connection, spans: Sequence[tuple[int, Span]]) -> dict[int, list[Page]]:
    """Return the pages that any of the spans overlaps, by document, in order."""
    found: dict[int, dict[int, Page]] = {}
    columns = s.pages.c
    for batch in in_batches(spans, PAGES_IN):
        overlaps = [
            and_(columns.document == document, columns.start < span.end, columns.end > span.start) for document, span in batch
        ]
        query = select(s.pages).where(or_(*overlaps)).order_by(columns.document, columns.number)
        for row in connection.execute(query).mappings():
            pages = found.setdefault(row["document"], {})
            if row["number"] not in pages:
                pages[row["number"]] = page_of(row)
    return {document: [pages[number] for number in sorted(pages)] for document, pages in found.items()}


def _page_units(connection: Connection, units: Sequence[RowMapping]) -> dict[int, RowMapping]:
    """Return the rows of page images of those units that are pages, by key; Damaged where one is gone."""
    keys = [row["key"] for row in units if row["kind"] == PAGE]
    found: dict[int, RowMapping] = {}
    for batch in in_batches(keys):
        for row in connection.execute(select(s.page_units).where(s.page_units.c.key.in_(batch))).mappings():
            found[row["key"]] = s.checked(s.page_units, row)
    if len(found) != len(keys):
        raise Damaged(f"it has no page number for unit {next(key for key in keys if key not in found)}")
    return found

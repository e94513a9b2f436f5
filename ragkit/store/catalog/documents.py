"""Read documents and units: their rows, texts, pages and structure. Every row is checked before it becomes a value."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, RowMapping, Table, and_, bindparam, or_, select, true, tuple_

from ragkit.core.errors import Damaged
from ragkit.core.types import Block, Document, Ints, Page, Span
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.database import Database, in_batches, latest_commit
from ragkit.store.catalog.rows import PIECE, blocks_of, document_of, page_of, unit_of
from ragkit.store.values import PAGE, DocumentRow, UnitRow

PAGES_IN = 100  # spans per statement that looks for their pages
BY_IDENTITY = select(s.documents).where(
    s.documents.c.identity.in_(bindparam("values", expanding=True)), s.documents.c.deleted.is_(None)
)


class Documents(Database):
    """The documents of the catalog."""

    def find(self, identity: str) -> DocumentRow | None:
        """The live version of a document."""
        with self.reading() as connection:
            query = select(s.documents).where(s.documents.c.identity == identity, s.documents.c.deleted.is_(None))
            row = connection.execute(query).mappings().first()
            return None if row is None else document_of(row)

    def contents(self) -> set[str]:
        """The content hashes of all live documents. Every row is checked, so that a flipped bit hides none."""
        return {row.content_hash for row in self._documents() if row.deleted is None}

    def live_ids(self, identities: Iterable[str]) -> tuple[int, list[tuple[str, int]]]:
        """Identity and id of the live versions of those documents that there are, and the commit as of which this is so."""
        found: list[tuple[str, int]] = []
        with self.reading() as connection:
            commit = latest_commit(connection).number
            for batch in in_batches(list(identities)):
                rows = connection.execute(BY_IDENTITY, {"values": batch}).mappings()
                found += [(row["identity"], row["id"]) for row in rows if s.checked(s.documents, row)]
        return commit, found

    def by_content(self, hashes: Iterable[str], *, recipe_hash: str) -> dict[str, list[DocumentRow]]:
        """The live documents made by a recipe from contents with the given hashes, by hash, oldest first."""
        found: dict[str, list[DocumentRow]] = {}
        columns = s.documents.c
        with self.reading() as connection:
            for batch in in_batches(sorted(hashes)):
                live = (columns.content_hash.in_(batch), columns.recipe_hash == recipe_hash, columns.deleted.is_(None))
                for row in connection.execute(select(s.documents).where(*live).order_by(columns.id)).mappings():
                    found.setdefault(row["content_hash"], []).append(document_of(row))
        return found

    def resolve(self, reference: str) -> list[DocumentRow]:
        """The live documents that a source, a record's id, a path or an identity names; several where roots share a name."""
        path = os.path.abspath(os.path.expanduser(reference))  # noqa: PTH100, PTH111 - Path.resolve would follow links
        names = or_(s.documents.c.source == reference, s.documents.c.identity.in_([reference, f"id:{reference}", path]))
        with self.reading() as connection:
            query = select(s.documents).where(names, s.documents.c.deleted.is_(None)).order_by(s.documents.c.id)
            return [document_of(row) for row in connection.execute(query).mappings()]

    def within(self, reference: str) -> list[DocumentRow]:
        """The live documents read from one file that holds several, named by its source or its path."""
        path = os.path.abspath(os.path.expanduser(reference))  # noqa: PTH100, PTH111 - Path.resolve would follow links
        inside = or_(s.documents.c.path == path, s.documents.c.source.startswith(f"{reference}#", autoescape=True))
        with self.reading() as connection:
            query = select(s.documents).where(inside, s.documents.c.path.is_not(None), s.documents.c.deleted.is_(None))
            return [document_of(row) for row in connection.execute(query).mappings()]

    def beneath(self, root: Path) -> list[DocumentRow]:
        """The live documents read from a file, or from any file beneath a folder."""
        inside = or_(s.documents.c.path == str(root), s.documents.c.path.startswith(f"{str(root).rstrip('/')}/", autoescape=True))
        return list(self._documents(inside, s.documents.c.deleted.is_(None)))

    def documents(self, commit: int) -> Iterator[DocumentRow]:
        """The documents a commit sees, by id, streamed in short reads. Every row is checked, so that a flipped bit hides none."""
        return (row for row in self._documents() if row.added <= commit and (row.deleted is None or row.deleted > commit))

    def versions(self, *, after: int = 0) -> Iterator[DocumentRow]:
        """Every version of every document with an id above `after`, deleted ones included, by id, streamed in short reads."""
        return self._documents(after=after)

    def _documents(self, *conditions: ColumnElement[bool], after: int = 0) -> Iterator[DocumentRow]:
        while True:
            with self.reading() as connection:
                query = select(s.documents).where(*conditions, s.documents.c.id > after)
                rows = [document_of(row) for row in connection.execute(query.order_by(s.documents.c.id).limit(1000)).mappings()]
            yield from rows
            if len(rows) < 1000:
                return
            after = rows[-1].id

    def deleted_documents(self, commit: int) -> Ints:
        """Ids of the document versions that a commit no longer sees, ascending, (n,) int64."""
        with self.reading() as connection:
            rows = _lives(connection, s.documents.c.deleted <= commit)
            for row in rows:
                if not _lived(row):
                    raise Damaged(f"the row id={row.id} of documents does not match its checksum")
        return np.array([row.id for row in rows], dtype=np.int64)

    def deleted_or_damaged(self, commit: int) -> tuple[Ints, int]:
        """As `deleted_documents`, with those of which that cannot be told; and how many these are."""
        with self.reading() as connection:
            rows = _lives(connection, true())
        doubtful = sum(1 for row in rows if not _lived(row))
        gone = [row.id for row in rows if not _lived(row) or (row.deleted is not None and row.deleted <= commit)]
        return np.array(gone, dtype=np.int64), doubtful

    def documents_by_id(self, ids: Iterable[int]) -> dict[int, DocumentRow]:
        """Versions of documents by id; Damaged where one has no row."""
        wanted = set(ids)
        found = self.known_documents(wanted)
        for id in wanted - found.keys():
            raise Damaged(f"{self.path} is damaged: it has no document {id}. Run: ragkit repair {self.path.parent}")
        return found

    def known_documents(self, ids: Iterable[int]) -> dict[int, DocumentRow]:
        """Those of the versions that the catalog still has."""
        rows = self._by(s.documents, s.documents.c.id, ids)
        return {row["id"]: document_of(row) for row in rows}

    def units(self, keys: Iterable[int]) -> dict[int, UnitRow]:
        """Units by key; Damaged where a key has no row, because a vector index would not know it otherwise."""
        keys = list(keys)
        found = self.known_units(keys)
        for key in keys:
            if key not in found:
                raise Damaged(f"{self.path} is damaged: it has no unit {key}. Run: ragkit repair {self.path.parent}")
        return found

    def known_units(self, keys: Iterable[int]) -> dict[int, UnitRow]:
        """Those units of the keys that the catalog still has, deleted ones included until they are purged."""
        rows = self._by(s.units, s.units.c.key, keys)
        with self.reading() as connection:
            pages = _page_units(connection, rows)
        return {row["key"]: unit_of(row, pages) for row in rows}

    def units_of(self, document: int) -> list[UnitRow]:
        """All units of one document version, by key."""
        with self.reading() as connection:
            query = select(s.units).where(s.units.c.document == document).order_by(s.units.c.key)
            rows = [s.checked(s.units, row) for row in connection.execute(query).mappings()]
            pages = _page_units(connection, rows)
            return [unit_of(row, pages) for row in rows]

    def text(self, document: int, span: Span) -> str:
        """A span of a document's text; reads only the pieces it touches."""
        with self.reading() as connection:
            return _cut(_pieces(connection, [(document, span)]), document, span, self.path)

    def passages(self, wanted: Sequence[tuple[int, Span]]) -> list[tuple[str, list[Page]]]:
        """For each (document, span), its text and the pages it overlaps, with their words; two statements for all of them."""
        with self.reading() as connection:
            pieces = _pieces(connection, wanted)
            pages = _overlapping(connection, wanted)
        return [
            (_cut(pieces, document, span, self.path), [page for page in pages.get(document, []) if page.span.overlaps(span)])
            for document, span in wanted
        ]

    def pages(self, document: int, span: Span | None = None) -> list[Page]:
        """A document's pages, or those whose text overlaps a span, with their words and boxes."""
        mine: list[ColumnElement[bool]] = [s.pages.c.document == document]
        if span is not None:
            mine += [s.pages.c.start < span.end, s.pages.c.end > span.start]
        with self.reading() as connection:
            rows = connection.execute(select(s.pages).where(*mine).order_by(s.pages.c.number)).mappings().all()
            return [page_of(row) for row in rows]

    def page(self, document: int, number: int) -> Page:
        """A page by its number; Damaged where it is gone."""
        wanted = select(s.pages).where(s.pages.c.document == document, s.pages.c.number == number)
        with self.reading() as connection:
            row = connection.execute(wanted).mappings().first()
            if row is None:
                raise Damaged(f"it has no page {number} of document {document}")
            return page_of(row)

    def page_sizes(self, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[float, float]]:
        """(width, height) in points of pages, by document and number; Damaged where one is gone."""
        keys = sorted(set(wanted))
        columns = (s.pages.c.document, s.pages.c.number)
        found: dict[tuple[int, int], tuple[float, float]] = {}
        with self.reading() as connection:
            for batch in in_batches(keys):
                for row in connection.execute(select(s.pages).where(tuple_(*columns).in_(batch))).mappings():
                    s.checked(s.pages, row)
                    found[row["document"], row["number"]] = (row["width"], row["height"])
            if missing := [key for key in keys if key not in found]:
                raise Damaged(f"it has no page {missing[0][1]} of document {missing[0][0]}")
        return found

    def blocks(self, document: int) -> tuple[Block, ...]:
        """The structure its loader saw, in order."""
        with self.reading() as connection:
            row = connection.execute(select(s.blocks).where(s.blocks.c.document == document)).mappings().first()
            return () if row is None else blocks_of(row)

    def document(self, row: DocumentRow) -> Document:
        """A document whole again, as its loader made it."""
        return Document(
            text=self.text(row.id, Span(0, row.characters)),
            id=row.source,
            title=row.title,
            meta=row.meta,
            pages=tuple(self.pages(row.id)),
            blocks=self.blocks(row.id),
            mime=row.mime,
        )

    def unit_keys(self, commit: int, *, kind: str) -> Ints:
        """Keys of the units of a kind that a commit sees, ascending, (n,) int64."""
        with self.reading() as connection:
            query = (
                select(s.units.c.key)
                .join(s.documents, s.documents.c.id == s.units.c.document)
                .where(*_visible(s.documents, commit), s.units.c.kind == kind)
            )
            return np.array(connection.execute(query.order_by(s.units.c.key)).scalars().all(), dtype=np.int64)

    def _by(self, table: Table, column: ColumnElement[Any], values: Iterable[Any]) -> list[RowMapping]:
        rows: list[RowMapping] = []
        with self.reading() as connection:
            for batch in in_batches(list(values)):
                rows += [s.checked(table, row) for row in connection.execute(select(table).where(column.in_(batch))).mappings()]
        return rows


Pieces = dict[tuple[int, int], str]


def _pieces(connection: Connection, wanted: Sequence[tuple[int, Span]]) -> Pieces:
    """The pieces of text that the spans touch, by document and start."""
    keys = {(document, at) for document, span in wanted for at in range(span.start // PIECE * PIECE, span.end, PIECE)}
    rows: list[RowMapping] = []
    for batch in in_batches(sorted(keys)):
        query = select(s.texts).where(tuple_(s.texts.c.document, s.texts.c.start).in_(batch))
        rows += [s.checked(s.texts, row) for row in connection.execute(query).mappings()]
    return {(row["document"], row["start"]): zlib.decompress(row["body"]).decode() for row in rows}


def _cut(pieces: Pieces, document: int, span: Span, path: Path) -> str:
    first = span.start // PIECE * PIECE
    text = "".join(pieces.get((document, at), "") for at in range(first, span.end, PIECE))
    cut = text[span.start - first : span.end - first]
    if len(cut) != span.length:
        raise Damaged(f"{path} is damaged: document {document} ends before {span}. Run: ragkit repair {path.parent}")
    return cut


def _overlapping(connection: Connection, wanted: Sequence[tuple[int, Span]]) -> dict[int, list[Page]]:
    """The pages that any of the spans overlaps, by document, in order."""
    found: dict[int, dict[int, Page]] = {}
    columns = s.pages.c
    for batch in in_batches(wanted, PAGES_IN):
        overlaps = [
            and_(columns.document == document, columns.start < span.end, columns.end > span.start) for document, span in batch
        ]
        for row in connection.execute(
            select(s.pages).where(or_(*overlaps)).order_by(columns.document, columns.number)
        ).mappings():
            mine = found.setdefault(row["document"], {})
            if row["number"] not in mine:
                mine[row["number"]] = page_of(row)
    return {document: [pages[number] for number in sorted(pages)] for document, pages in found.items()}


def _page_units(connection: Connection, units: Sequence[RowMapping]) -> dict[int, RowMapping]:
    """What the catalog has of those units that are pages, by key; Damaged where a page's row is gone."""
    keys = [row["key"] for row in units if row["kind"] == PAGE]
    found: dict[int, RowMapping] = {}
    for batch in in_batches(keys):
        for row in connection.execute(select(s.page_units).where(s.page_units.c.key.in_(batch))).mappings():
            found[row["key"]] = s.checked(s.page_units, row)
    if len(found) != len(keys):
        raise Damaged(f"it has no page number for unit {next(key for key in keys if key not in found)}")
    return found


def _lives(connection: Connection, condition: ColumnElement[bool]) -> list[Any]:
    columns = (s.documents.c.id, s.documents.c.added, s.documents.c.deleted, s.documents.c.life_sum)
    return list(connection.execute(select(*columns).where(condition).order_by(s.documents.c.id)))


def _lived(row: Any) -> bool:
    try:
        return bool(s.life_sum(row.id, row.added, row.deleted) == row.life_sum)
    except (TypeError, OverflowError, struct.error):
        return False


def _visible(table: Table, commit: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.added <= commit, or_(table.c.deleted.is_(None), table.c.deleted > commit)



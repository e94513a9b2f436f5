"""The catalog: documents, pages, units, segments and settings of one index, in SQLite through SQLAlchemy Core.

In go our values, out come our values; rows become values here and nowhere else, and only after their checksum was
compared. Reads are short transactions: a snapshot is a commit number, never a transaction held open, because a pinned
reader lets the write-ahead log grow without bound. Writers say BEGIN IMMEDIATE, so two of them queue instead of failing.
What a commit number N sees: rows with added <= N and (deleted is NULL or deleted > N).
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Insert,
    RowMapping,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.exc import DatabaseError, OperationalError

from ragkit.core.errors import Damaged, FormatTooNew, StorageError
from ragkit.core.space import Space
from ragkit.core.types import Block, Box, Document, Ints, Page, Patches, Span, Words
from ragkit.store.catalog import schema as s
from ragkit.store.local.files import FileRecord
from ragkit.store.values import PAGE, VECTOR, Change, Commit, DamagedRow, DocumentRow, Failure, NewDocument, SegmentRow, UnitRow

PIECE = 1 << 14  # characters of text per row: a hit inflates one or two pieces (about 0.1 ms), whatever the document's length
BUSY = 60.0  # seconds a writer waits for another connection's short transaction
PAGES_IN = 100  # spans per statement that looks for their pages
MASTER = "SELECT type, name, tbl_name, sql FROM sqlite_master"
STATE = "state"  # the counter that is none: see `Catalog.state`
IN = 500  # values per IN list, well below SQLite's limit on variables


# Statements of every commit, built once: building one costs three times as much as running it.
LATEST = select(s.commits).order_by(s.commits.c.number.desc()).limit(1)
SETTING = select(s.settings).where(text("+name = :wanted"))  # by reading all: a damaged index hides none of them
COUNTER = select(s.counters).where(s.counters.c.name == bindparam("wanted"))
COUNT_ON = (
    update(s.counters).where(s.counters.c.name == bindparam("wanted")).values(next=bindparam("to"), sum=bindparam("to_sum"))
)
STAMP = insert(s.counters).prefix_with("OR REPLACE")
FILES = select(s.files).where(s.files.c.folder == bindparam("wanted")).order_by(s.files.c.name)
FOLDERS = select(s.files.c.folder).distinct()
BY_IDENTITY = select(s.documents).where(
    s.documents.c.identity.in_(bindparam("wanted", expanding=True)), s.documents.c.deleted.is_(None)
)
FORGET_COMMITS = delete(s.commits).where(s.commits.c.number < bindparam("before"), s.commits.c.lexical == "")
OLDEST = select(func.min(s.commits.c.number))
DEAD = select(s.documents.c.id).where(s.documents.c.deleted <= bindparam("before"))
PURGE_SEGMENTS = delete(s.segments).where(s.segments.c.deleted <= bindparam("before"))


class Catalog:
    """catalog.db. Thread-safe: every call takes its own connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
        self._engine = create_engine(_url(path, writable=writable), connect_args={"check_same_thread": False, "timeout": BUSY})
        event.listen(self._engine, "connect", _configure if writable else _configure_read_only)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A short transaction that reads; its errors are ours."""
        with self._errors(), self._engine.connect() as connection, connection.begin():
            _driver(connection).execute("BEGIN")
            yield connection

    @contextmanager
    def writing(self, *, synced: bool = True) -> Iterator[Connection]:
        """A transaction that writes, committed at the end of the block unless that raises. Not `synced`, power loss may undo it,
        until the next that is: what is written again where it is missing needs no wait for the disk."""
        with self._errors(), self._engine.connect() as connection, connection.begin():
            source = _driver(connection)
            source.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")  # has no effect within a transaction
            source.execute("BEGIN IMMEDIATE")
            yield connection
            _stamp_state(connection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, sqlite3.OperationalError) as error:
            if str(_plain(error)).startswith("no such"):  # table, column or index
                raise Damaged(f"{self.path} is damaged: {_plain(error)}. Run: ragkit repair {self.path.parent}") from error
            self._engine.dispose()  # SQLite opens a file that it may not write to for reading, and stays so: try anew next time
            raise StorageError(f"{self.path}: {_plain(error)}. Is the disk full, or the folder read-only or gone?") from error
        except Damaged as error:
            if "Run: " in str(error):
                raise
            raise Damaged(f"{self.path} is damaged: {error}. Run: ragkit repair {self.path.parent}") from error
        except (zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:  # checked rows never get here
            raise Damaged(f"{self.path} is damaged: {error}. Run: ragkit repair {self.path.parent}") from error
        except (DatabaseError, sqlite3.DatabaseError) as error:
            raise Damaged(f"{self.path} is damaged: {_plain(error)}. Run: ragkit repair {self.path.parent}") from error

    # Settings and counters

    def setting(self, name: str) -> Any:
        """A setting, decoded from JSON; None where it was never set."""
        with self.reading() as connection:
            row = connection.execute(SETTING, {"wanted": name}).mappings().first()
            return None if row is None else json.loads(s.checked(s.settings, row)["value"])

    def check_format(self) -> None:
        """FormatTooNew where a later ragkit wrote this."""
        stored = self.setting("format")
        if stored is None:
            raise Damaged(f"{self.path} has no format version: it is not a catalog of ragkit, or it was cut short.")
        if stored > s.FORMAT:
            raise FormatTooNew(
                f"{self.path.parent} has format {stored}; this ragkit reads up to {s.FORMAT}. Run: pip install -U ragkit"
            )

    def reserve(self, *, documents: int, units: int) -> tuple[int, int]:
        """The first of as many fresh document ids and unit keys. Committed at once, so that none is ever given out twice."""
        first = []
        with self.writing() as connection:
            for name, count in (("document", documents), ("key", units)):
                row = connection.execute(COUNTER, {"wanted": name}).mappings().first()
                if row is None:
                    raise Damaged(f"it has no counter {name!r}")
                value = s.checked(s.counters, row)["next"]
                fresh = s.summed(s.counters, {"name": name, "next": value + count})
                connection.execute(COUNT_ON, {"wanted": name, "to": fresh["next"], "to_sum": fresh["sum"]})
                first.append(value)
        return first[0], first[1]

    # The file itself

    def state(self) -> int | None:
        """A random number that every transaction replaces; None where none did so yet: the catalog is of an earlier ragkit."""
        with self.reading() as connection:
            return state_of(connection)

    def image(self) -> tuple[int | None, bytes]:
        """The state, and all bytes of the file as of it, what is still in the log included; from the disk, not from a cache."""
        with self.reading() as connection:
            connection.exec_driver_sql("PRAGMA shrink_memory")
            return state_of(connection), _driver(connection).serialize()

    def settle(self) -> bool:
        """Bring the write-ahead log into the file and empty it; False where somebody reads at this moment, and it stays."""
        with self._outside() as connection:
            connection.execute("PRAGMA busy_timeout=0")
            try:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute(f"PRAGMA busy_timeout={int(1000 * BUSY)}")
        return not busy

    def vacuum(self) -> None:
        """Write the file anew from its rows, without what stood in its free space."""
        with self._outside() as connection:
            connection.execute("VACUUM")

    @contextmanager
    def _outside(self) -> Iterator[sqlite3.Connection]:
        """A connection for what SQLite does not do within a transaction."""
        with self._errors():
            connection = self._engine.raw_connection()
            try:
                source = connection.driver_connection
                assert isinstance(source, sqlite3.Connection)
                yield source
            finally:
                connection.close()

    # Commits

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], *, lexical: str, lexical_files: Sequence[FileRecord]) -> None:
        """A new catalog: tables, settings, counters and the first commit, all in one transaction."""
        catalog = cls(path)
        with catalog.writing() as connection:
            s.metadata.create_all(connection, tables=s.WITHOUT_PAGES)
            store_settings(connection, {"format": s.FORMAT, **settings})
            insert_rows(connection, s.counters, [{"name": "document", "next": 1}, {"name": "key", "next": 1}])
            insert_files(connection, lexical, lexical_files)
            insert_rows(connection, s.commits, [commit_row(1, "create", lexical, documents=0, units=0)])
        catalog.close()

    @property
    def exists(self) -> bool:
        """Whether a catalog was created here: a file cut short by a crash during creation is not one."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return False
        with self.reading() as connection:
            return connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'commits'")).first() is not None

    def latest(self) -> Commit:
        """The newest commit. This is what makes a writer's work visible to readers."""
        with self.reading() as connection:
            return _latest(connection)

    def commit(self, change: Change) -> Commit:
        """Make a change visible: one transaction."""
        with self.writing() as connection:
            before = _latest(connection)
            if change.number != before.number + 1:
                raise StorageError(
                    f"commit {change.number} was prepared on top of {change.number - 1}, but the index is at {before.number}"
                )
            gone = end_lives(connection, s.documents, change.deleted_documents, change.number)
            end_lives(connection, s.segments, change.retired_segments, change.number)
            if change.settings:
                store_settings(connection, change.settings)
                _stamp(connection, change)
            insert_rows(connection, s.documents, [_document_fields(document, change) for document in change.documents])
            for document in change.documents:
                _insert_content(connection, document)
            for segment, files in change.segments:
                insert_segment(connection, segment, files, commit=change.number)
            insert_files(connection, change.lexical, change.lexical_files)
            added_units = sum(len(document.units) for document in change.documents)
            totals = {
                "documents": before.documents + len(change.documents) - len(gone),
                "units": before.units + added_units - sum(row["units"] for row in gone),
            }
            insert_rows(connection, s.commits, [commit_row(change.number, change.kind, change.lexical, **totals)])
            _clear_failures(connection, [document.origin.identity for document in change.documents])
        return Commit(change.number, change.lexical, **totals)

    def forget(self, folders: Sequence[str], *, commits_before: int = 0, keep: Ints) -> Ints:
        """Forget folders that are gone: their files, the commits whose lexical generation they were, those before
        `commits_before` that had none, and what was deleted at or before the oldest commit left, since those before it can
        have no readers. The ids of the document versions whose rows are gone.

        `keep` are versions of which a live segment still holds rows: they lose their text, pages and units, but their row
        stays as the tombstone that hides those rows. Not synced: after a crash it is only done again.
        """
        with self.writing(synced=False) as connection:
            for names in in_batches(folders):
                connection.execute(_delete(s.files.c.folder), {"wanted": names})
                connection.execute(_delete(s.commits.c.lexical), {"wanted": names})
            if commits_before:
                connection.execute(FORGET_COMMITS, {"before": commits_before})
            return _purge(connection, int(connection.execute(OLDEST).scalar_one()), keep)

    # Segments and files

    def segments(self, commit: int) -> list[SegmentRow]:
        """The segments a commit sees, oldest first. Every row is checked, so that a flipped bit hides none."""
        with self.reading() as connection:
            query = select(s.segments).order_by(s.segments.c.added, s.segments.c.id)
            rows = [s.checked(s.segments, row) for row in connection.execute(query).mappings()]
        seen = [row for row in rows if row["added"] <= commit and (row["deleted"] is None or row["deleted"] > commit)]
        return [SegmentRow(row["id"], row["rows"], row["bytes"], tuple(map(Space, json.loads(row["spaces"])))) for row in seen]

    def files(self, folder: str) -> list[FileRecord]:
        """The records of a folder's files, by name."""
        with self.reading() as connection:
            rows = [s.checked(s.files, row) for row in connection.execute(FILES, {"wanted": folder}).mappings()]
        return [FileRecord(row["name"], row["size"], row["block"], row["sums"]) for row in rows]

    def folders(self) -> set[str]:
        """Every folder that has file records."""
        with self.reading() as connection:
            return set(connection.execute(FOLDERS).scalars())

    # Documents and units

    def find(self, identity: str) -> DocumentRow | None:
        """The live version of a document."""
        with self.reading() as connection:
            query = select(s.documents).where(s.documents.c.identity == identity, s.documents.c.deleted.is_(None))
            row = connection.execute(query).mappings().first()
            return None if row is None else _document(row)

    def contents(self) -> set[str]:
        """The content hashes of all live documents. Every row is checked, so that a flipped bit hides none."""
        return {row.content_hash for row in self._documents() if row.deleted is None}

    def live_ids(self, identities: Iterable[str]) -> tuple[int, list[tuple[str, int]]]:
        """Identity and id of the live versions of those documents that there are, and the commit as of which this is so."""
        found: list[tuple[str, int]] = []
        with self.reading() as connection:
            commit = _latest(connection).number
            for batch in in_batches(list(identities)):
                rows = connection.execute(BY_IDENTITY, {"wanted": batch}).mappings()
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
                    found.setdefault(row["content_hash"], []).append(_document(row))
        return found

    def resolve(self, reference: str) -> list[DocumentRow]:
        """The live documents that a source, a record's id, a path or an identity names; several where roots share a name."""
        path = os.path.abspath(os.path.expanduser(reference))  # noqa: PTH100, PTH111 - Path.resolve would follow links
        names = or_(s.documents.c.source == reference, s.documents.c.identity.in_([reference, f"id:{reference}", path]))
        with self.reading() as connection:
            query = select(s.documents).where(names, s.documents.c.deleted.is_(None)).order_by(s.documents.c.id)
            return [_document(row) for row in connection.execute(query).mappings()]

    def within(self, reference: str) -> list[DocumentRow]:
        """The live documents read from one file that holds several, named by its source or its path."""
        path = os.path.abspath(os.path.expanduser(reference))  # noqa: PTH100, PTH111 - Path.resolve would follow links
        inside = or_(s.documents.c.path == path, s.documents.c.source.startswith(f"{reference}#", autoescape=True))
        with self.reading() as connection:
            query = select(s.documents).where(inside, s.documents.c.path.is_not(None), s.documents.c.deleted.is_(None))
            return [_document(row) for row in connection.execute(query).mappings()]

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
                rows = [_document(row) for row in connection.execute(query.order_by(s.documents.c.id).limit(1000)).mappings()]
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
        return {row["id"]: DocumentRow(**_fields(row)) for row in rows}

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
        return {row["key"]: _unit(row, pages) for row in rows}

    def units_of(self, document: int) -> list[UnitRow]:
        """All units of one document version, by key."""
        with self.reading() as connection:
            query = select(s.units).where(s.units.c.document == document).order_by(s.units.c.key)
            rows = [s.checked(s.units, row) for row in connection.execute(query).mappings()]
            pages = _page_units(connection, rows)
            return [_unit(row, pages) for row in rows]

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
            return [_page(s.checked(s.pages, row)) for row in rows]

    def page(self, document: int, number: int) -> Page:
        """A page by its number; Damaged where it is gone."""
        wanted = select(s.pages).where(s.pages.c.document == document, s.pages.c.number == number)
        with self.reading() as connection:
            row = connection.execute(wanted).mappings().first()
            if row is None:
                raise Damaged(f"it has no page {number} of document {document}")
            return _page(s.checked(s.pages, row))

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
            found = connection.execute(select(s.blocks).where(s.blocks.c.document == document)).mappings().first()
            structure = [] if found is None else json.loads(zlib.decompress(s.checked(s.blocks, found)["body"]))
        return tuple(Block(kind, Span(start, end), level) for kind, start, end, level in structure)

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

    # Verifying

    def damaged_rows(self) -> Iterator[DamagedRow]:
        """Every row compared with its checksums; SQLite's own check of the file, and that of the schema, come first."""
        try:
            with self.reading() as connection:
                for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
                    if line != "ok":
                        yield DamagedRow("", None, f"{self.path}: {line}")
                stored = {tuple(row) for row in connection.execute(text(MASTER))}
        except Damaged as error:
            yield DamagedRow("", None, _without_way_out(error))
            return
        if stored not in (_master(pages=False), _master(pages=True)):
            yield DamagedRow("", None, f"{self.path}: its tables are not those of format {s.FORMAT}")
            return
        for table in s.metadata.sorted_tables if stored == _master(pages=True) else s.WITHOUT_PAGES:
            yield from self._damaged_rows_of(table)

    def _damaged_rows_of(self, table: Table) -> Iterator[DamagedRow]:
        """One pass over the table; where SQLite cannot make that, the rows by their keys, as far as those can be read."""
        try:
            with self.reading() as connection:
                found = [
                    _damaged_row(self.path, table, row)
                    for rows in connection.execute(select(table)).mappings().partitions(1000)
                    for row in rows
                    if not s.is_whole(table, row)
                ]
        except Damaged:
            yield from self._damaged_rows_by_key(table)
        else:
            yield from found

    def _damaged_rows_by_key(self, table: Table) -> Iterator[DamagedRow]:
        keys = list(table.primary_key)
        try:
            with self.reading() as connection:
                names = connection.execute(select(*keys)).all()
        except Damaged as error:
            yield DamagedRow(table.name, None, _without_way_out(error))
            return
        for batch in in_batches(names):
            try:
                with self.reading() as connection:
                    rows = connection.execute(select(table).where(tuple_(*keys).in_(batch))).mappings().all()
            except Damaged as error:
                yield DamagedRow(table.name, None, _without_way_out(error))
                continue
            for row in rows:
                if not s.is_whole(table, row):
                    yield _damaged_row(self.path, table, row)

    def spent_counters(self) -> Iterator[str]:
        """Counters that would give out a number again; one line each."""
        for name, column in (("document", s.documents.c.id), ("key", s.units.c.key)):
            with self.reading() as connection:
                next_one = connection.execute(select(s.counters.c.next).where(s.counters.c.name == name)).scalar()
                most = connection.execute(select(func.max(column))).scalar() or 0
            if next_one is None or next_one <= most:
                yield f"{self.path}: the counter {name!r} is at {next_one}, and {most} was given out already"

    def unit_keys(self, commit: int, *, kind: str) -> Ints:
        """Keys of the units of a kind that a commit sees, ascending, (n,) int64."""
        with self.reading() as connection:
            query = (
                select(s.units.c.key)
                .join(s.documents, s.documents.c.id == s.units.c.document)
                .where(*_visible(s.documents, commit), s.units.c.kind == kind)
            )
            return np.array(connection.execute(query.order_by(s.units.c.key)).scalars().all(), dtype=np.int64)

    # Failures

    def record_failure(self, failure: Failure) -> None:
        row = {name: getattr(failure, name) for name in ("identity", "source", "content_hash", "reason")}
        with self.writing() as connection:
            _clear_failures(connection, [failure.identity])
            insert_rows(connection, s.failures, [{**row, "made": now()}])

    def failures(self) -> list[Failure]:
        """Documents that failed when they were last added, by source."""
        with self.reading() as connection:
            query = select(s.failures).order_by(s.failures.c.source)
            rows = [s.checked(s.failures, row) for row in connection.execute(query).mappings()]
        return [Failure(row["identity"], row["source"], row["content_hash"], row["reason"]) for row in rows]

    def clear_failures(self, identities: Sequence[str]) -> None:
        if identities:
            with self.writing() as connection:
                _clear_failures(connection, identities)

    def _by(self, table: Table, column: ColumnElement[Any], values: Iterable[Any]) -> list[RowMapping]:
        rows: list[RowMapping] = []
        with self.reading() as connection:
            for batch in in_batches(list(values)):
                rows += [s.checked(table, row) for row in connection.execute(select(table).where(column.in_(batch))).mappings()]
        return rows


def _url(path: Path, *, writable: bool) -> URL:
    if writable:
        return URL.create("sqlite", database=str(path))
    # Where no -shm file can be made, SQLite reads only what is declared immutable, and then it ignores the write-ahead log.
    log = path.with_name(path.name + "-wal")
    still = not (log.exists() and log.stat().st_size)
    query = {"mode": "ro", "uri": "true", **({"immutable": "1"} if still else {})}
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)


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
                mine[row["number"]] = _page(s.checked(s.pages, row))
    return {document: [pages[number] for number in sorted(pages)] for document, pages in found.items()}


def _configure(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late: two reads would see two states
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cell_size_check=ON", "wal_autocheckpoint=1000", "secure_delete=FAST"):
        connection.execute(f"PRAGMA {pragma}")


def _configure_read_only(connection: Any, record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA cell_size_check=ON")


def _driver(connection: Connection) -> sqlite3.Connection:
    """SQLite's own connection: BEGIN takes a tenth of the time there, and SQLAlchemy leaves it to us."""
    source = connection.connection.driver_connection
    assert isinstance(source, sqlite3.Connection)
    return source


def _plain(error: Exception) -> object:
    """What SQLite said."""
    return getattr(error, "orig", error)


def _latest(connection: Connection) -> Commit:
    row = connection.execute(LATEST).mappings().first()
    if row is None:
        raise Damaged("it has no commit")
    s.checked(s.commits, row)
    return Commit(row["number"], row["lexical"], row["documents"], row["units"])


def _purge(connection: Connection, before: int, keep: Ints) -> Ints:
    dead = np.array(connection.execute(DEAD, {"before": before}).scalars().all(), dtype=np.int64)
    for batch in in_batches(dead.tolist()):
        for table in parts(connection):
            connection.execute(_delete(table.c.document), {"wanted": batch})
    gone = np.setdiff1d(dead, keep)
    for batch in in_batches(gone.tolist()):
        connection.execute(_delete(s.documents.c.id), {"wanted": batch})
    connection.execute(PURGE_SEGMENTS, {"before": before})
    return gone


@cache
def _delete(column: Column[Any]) -> Delete:
    return delete(column.table).where(column.in_(bindparam("wanted", expanding=True)))


def _lives(connection: Connection, condition: ColumnElement[bool]) -> list[Any]:
    columns = (s.documents.c.id, s.documents.c.added, s.documents.c.deleted, s.documents.c.life_sum)
    return list(connection.execute(select(*columns).where(condition).order_by(s.documents.c.id)))


def _lived(row: Any) -> bool:
    try:
        return bool(s.life_sum(row.id, row.added, row.deleted) == row.life_sum)
    except (TypeError, OverflowError, struct.error):
        return False


def _damaged_row(path: Path, table: Table, row: RowMapping) -> DamagedRow:
    key = tuple(row[column.name] for column in table.primary_key)
    name = ", ".join(f"{column.name}={value!r}" for column, value in zip(table.primary_key, key, strict=True))
    return DamagedRow(table.name, key, f"{path}: the row {name} of {table.name} does not match its checksum")


def _without_way_out(error: Damaged) -> str:
    return str(error).partition(" Run: ")[0]


@cache
def _master(*, pages: bool) -> frozenset[tuple[Any, ...]]:
    """The schema as SQLite itself writes it down, with or without the table of page images."""
    engine = create_engine("sqlite://")
    s.metadata.create_all(engine, tables=None if pages else s.WITHOUT_PAGES)
    with engine.connect() as connection:
        found = frozenset(tuple(row) for row in connection.execute(text(MASTER)))
    engine.dispose()
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def in_batches(values: Sequence[Any], size: int = IN) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _visible(table: Table, commit: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.added <= commit, or_(table.c.deleted.is_(None), table.c.deleted > commit)


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(_insert(table), [s.summed(table, row) for row in rows])


@cache
def _insert(table: Table) -> Insert:
    return insert(table)


def insert_segment(connection: Connection, row: SegmentRow, files: Sequence[FileRecord], *, commit: int) -> None:
    fields = {"id": row.id, "rows": row.rows, "bytes": row.bytes, "spaces": json.dumps(row.spaces), "added": commit}
    insert_rows(connection, s.segments, [fields])
    insert_files(connection, row.id, files)


def _stamp(connection: Connection, change: Change) -> None:
    """Give every live document the hash of the new recipe, which its vectors now follow; one that is to be made anew has none."""
    ids = connection.execute(select(s.documents.c.id).where(s.documents.c.deleted.is_(None))).scalars().all()
    for batch in in_batches(ids):
        for row in connection.execute(select(s.documents).where(s.documents.c.id.in_(batch))).mappings().all():
            fields = dict(s.checked(s.documents, row))
            fields["recipe_hash"] = change.recipe_hash if row["recipe_hash"] and row["mime"] not in change.unmade else ""
            fresh = s.summed(s.documents, fields)
            values = {name: fresh[name] for name in ("recipe_hash", "sum")}
            connection.execute(update(s.documents).where(s.documents.c.id == row["id"]).values(**values))


def state_of(connection: Connection) -> int | None:
    """See `Catalog.state`."""
    row = connection.execute(select(s.counters).where(s.counters.c.name == STATE)).mappings().first()
    return None if row is None else int(s.checked(s.counters, row)["next"])


def _stamp_state(connection: Connection) -> None:
    connection.execute(STAMP, s.summed(s.counters, {"name": STATE, "next": secrets.randbits(62)}))


def insert_files(connection: Connection, folder: str, records: Sequence[FileRecord]) -> None:
    fields = ("name", "size", "block", "sums")
    insert_rows(
        connection, s.files, [{"folder": folder, **{field: getattr(record, field) for field in fields}} for record in records]
    )


def store_settings(connection: Connection, settings: Mapping[str, Any]) -> None:
    connection.execute(delete(s.settings).where(s.settings.c.name.in_(list(settings))))
    insert_rows(connection, s.settings, [{"name": name, "value": json.dumps(value)} for name, value in settings.items()])


def _clear_failures(connection: Connection, identities: Sequence[str]) -> None:
    for batch in in_batches(identities):
        connection.execute(_delete(s.failures.c.identity), {"wanted": batch})


def commit_row(number: int, kind: str, lexical: str, **totals: int) -> dict[str, Any]:
    return {"number": number, "made": now(), "kind": kind, "lexical": lexical, **totals}


def end_lives(connection: Connection, table: Table, ids: Sequence[int | str], commit: int) -> list[RowMapping]:
    ended: list[RowMapping] = []
    living, end = _lives_of(table)
    for batch in in_batches(ids):
        rows = connection.execute(living, {"wanted": batch}).mappings().all()
        ends = [
            {"one": s.checked(table, row)["id"], "end": commit, "end_sum": s.life_sum(row["id"], row["added"], commit)}
            for row in rows
        ]
        if ends:
            connection.execute(end, ends)
        ended += rows
    if len(ended) != len(ids):
        raise StorageError(
            f"{len(ids) - len(ended)} of {len(ids)} {table.name} to replace are not live any more; nothing was changed"
        )
    return ended


@cache
def _lives_of(table: Table) -> tuple[Select[Any], Update]:
    """What selects live rows of a table, and what ends the life of one."""
    living = select(table).where(table.c.id.in_(bindparam("wanted", expanding=True)), table.c.deleted.is_(None))
    end = update(table).where(table.c.id == bindparam("one")).values(deleted=bindparam("end"), life_sum=bindparam("end_sum"))
    return living, end


def _document_fields(new: NewDocument, change: Change) -> dict[str, Any]:
    document = new.document
    return {
        "id": new.id,
        **asdict(new.origin),
        "recipe_hash": change.recipe_hash if new.settled else "",
        "title": document.title,
        "mime": document.mime,
        "meta": json.dumps(dict(document.meta), ensure_ascii=False, sort_keys=True),
        "characters": len(document.text),
        "units": len(new.units),
        "added": change.number,
    }


def _insert_content(connection: Connection, new: NewDocument) -> None:
    document = new.document
    starts = range(0, len(document.text), PIECE)
    pieces = [{"document": new.id, "start": at, "body": _deflate(document.text[at : at + PIECE].encode())} for at in starts]
    insert_rows(connection, s.texts, pieces)
    if document.blocks:
        structure = [[block.kind, block.span.start, block.span.end, block.level] for block in document.blocks]
        insert_rows(connection, s.blocks, [{"document": new.id, "body": _deflate(json.dumps(structure).encode())}])
    insert_rows(connection, s.pages, [_page_row(new.id, page) for page in document.pages])
    insert_rows(connection, s.units, [_unit_row(unit) for unit in new.units if unit.kind != VECTOR])
    if pages := [_page_unit_row(unit) for unit in new.units if unit.kind == PAGE]:
        s.page_units.create(connection, checkfirst=True)
        insert_rows(connection, s.page_units, pages)


def parts(connection: Connection) -> list[Table]:
    """The tables that hold what a document is made of."""
    return [s.texts, s.blocks, s.pages, s.units, *([s.page_units] if has_pages(connection) else [])]


def has_pages(connection: Connection) -> bool:
    """Whether there is a table of page images: it is made with the first of them."""
    return connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'page_units'")).first() is not None


def _deflate(body: bytes) -> bytes:
    return zlib.compress(body, 3)


def _page_row(document: int, page: Page) -> dict[str, Any]:
    spans = (page.words.spans - page.span.start).astype("<i4")
    return {
        "document": document,
        "number": page.number,
        "label": page.label,
        "width": float(page.width),
        "height": float(page.height),
        "rotation": page.rotation,
        "start": page.span.start,
        "end": page.span.end,
        "words": _deflate(spans.tobytes() + page.words.boxes.astype("<f4").tobytes()),
    }


def _page(row: RowMapping) -> Page:
    body = zlib.decompress(row["words"])
    count = len(body) // 24  # two int32 and four float32 a word
    spans = np.frombuffer(body, dtype="<i4", count=2 * count).reshape(count, 2).astype(np.int64) + row["start"]
    boxes = np.frombuffer(body, dtype="<f4", offset=8 * count).reshape(count, 4).astype(np.float32)
    span = Span(row["start"], row["end"])
    return Page(row["number"], row["width"], row["height"], span, Words(spans, boxes), row["label"], row["rotation"])


def _unit_row(unit: UnitRow) -> dict[str, Any]:
    headings = json.dumps(unit.headings, ensure_ascii=False)
    return {
        **{name: getattr(unit, name) for name in ("key", "document", "kind")},
        "start": unit.span.start,
        "end": unit.span.end,
        "headings": headings,
    }


def _unit(row: RowMapping, pages: Mapping[int, RowMapping]) -> UnitRow:
    page = pages.get(row["key"])
    return UnitRow(
        row["key"],
        row["document"],
        row["kind"],
        Span(row["start"], row["end"]),
        tuple(json.loads(row["headings"])),
        None if page is None else page["number"],
        None if page is None or page["patches"] is None else unpack_patches(page["patches"]),
    )


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


def _page_unit_row(unit: UnitRow) -> dict[str, Any]:
    patches = None if unit.patches is None else pack_patches(unit.patches)
    return {"key": unit.key, "document": unit.document, "number": unit.page, "patches": patches}


def pack_patches(patches: Patches) -> bytes:
    """zlib of: rows and columns as two int32, the region x0, y0, x1, y1 as four float64, then (rows, columns) int32 tokens."""
    head = struct.pack("<2i4d", *patches.tokens.shape, *patches.region)
    return _deflate(head + patches.tokens.astype("<i4").tobytes())


def unpack_patches(body: bytes) -> Patches:
    plain = zlib.decompress(body)
    rows, columns, *region = struct.unpack_from("<2i4d", plain)
    tokens = np.frombuffer(plain, dtype="<i4", offset=struct.calcsize("<2i4d")).reshape(rows, columns)
    return Patches(Box(*region), tokens.astype(np.int64))


def _document(row: RowMapping) -> DocumentRow:
    return DocumentRow(**_fields(s.checked(s.documents, row)))


def _fields(row: RowMapping) -> dict[str, Any]:
    return {**{name: row[name] for name in DocumentRow.__slots__}, "meta": json.loads(row["meta"])}

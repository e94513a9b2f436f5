"""Write a commit to the catalog, whole in one transaction; and forget what no reader can see any more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, RowMapping, Select, Table, Update, bindparam, delete, func, select, update

from ragkit.core.errors import StorageError
from ragkit.core.types import Ints
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.database import (
    Database,
    delete_where,
    in_batches,
    insert_rows,
    latest_commit,
    now,
    parts,
    store_settings,
)
from ragkit.store.catalog.rows import Row, block_rows, document_row, page_row, page_unit_rows, text_rows, unit_rows
from ragkit.store.local.files import FileRecord
from ragkit.store.values import Change, Commit, Failure, NewDocument, SegmentRow

FORGET_COMMITS = delete(s.commits).where(s.commits.c.number < bindparam("before"), s.commits.c.lexical == "")
OLDEST = select(func.min(s.commits.c.number))
DEAD = select(s.documents.c.id).where(s.documents.c.deleted <= bindparam("before"))
PURGE_SEGMENTS = delete(s.segments).where(s.segments.c.deleted <= bindparam("before"))


def create(path: Path, settings: Mapping[str, Any], *, lexical: str, lexical_files: Sequence[FileRecord]) -> None:
    """Create a catalog: tables, settings, counters and the first commit, all in one transaction."""
    database = Database(path)
    with database.writing() as connection:
        s.metadata.create_all(connection, tables=s.WITHOUT_PAGES)
        store_settings(connection, {"format": s.FORMAT, **settings})
        insert_rows(connection, s.counters, [{"name": "document", "next": 1}, {"name": "key", "next": 1}])
        insert_files(connection, lexical, lexical_files)
        insert_rows(connection, s.commits, [commit_row(1, "create", lexical, documents=0, units=0)])
    database.close()


def write_commit(database: Database, change: Change) -> Commit:
    """Make a change visible, in one transaction."""
    with database.writing() as connection:
        before = latest_commit(connection)
        if change.number != before.number + 1:
            raise StorageError(
                f"commit {change.number} was prepared on top of {change.number - 1}, but the index is at {before.number}"
            )
        ended = end_lives(connection, s.documents, change.deleted_documents, change.number)
        end_lives(connection, s.segments, change.retired_segments, change.number)
        if change.settings:
            store_settings(connection, change.settings)
            _stamp_documents(connection, change)
        rows = [document_row(new, recipe_hash=change.recipe_hash, commit=change.number) for new in change.documents]
        insert_rows(connection, s.documents, rows)
        for new in change.documents:
            _insert_content(connection, new)
        for segment, files in change.segments:
            insert_segment(connection, segment, files, commit=change.number)
        insert_files(connection, change.lexical, change.lexical_files)
        totals = {
            "documents": before.documents + len(change.documents) - len(ended),
            "units": before.units + sum(len(new.units) for new in change.documents) - sum(row["units"] for row in ended),
        }
        insert_rows(connection, s.commits, [commit_row(change.number, change.kind, change.lexical, **totals)])
        clear_failures(connection, [*change.forgiven, *(new.origin.identity for new in change.documents)])
        record_failures(connection, change.failures)
    return Commit(change.number, change.lexical, **totals)


def forget(database: Database, folders: Sequence[str], *, commits_before: int = 0, keep: Ints) -> Ints:
    """Forget folders that are gone; return the ids of the document versions whose rows are gone.

    Forgotten are the folders' files, the commits whose lexical generation they were, the commits before `commits_before` that
    had no generation, and what was deleted at or before the oldest commit left, since no reader can be older than that.

    `keep` are versions of which a live segment still holds rows: they lose their text, pages and units, but their row
    stays as the tombstone that hides those rows. Not synced: after a crash it is only done again.
    """
    with database.writing(synced=False) as connection:
        for names in in_batches(folders):
            connection.execute(delete_where(s.files.c.folder), {"values": names})
            connection.execute(delete_where(s.commits.c.lexical), {"values": names})
        if commits_before:
            connection.execute(FORGET_COMMITS, {"before": commits_before})
        return _purge(connection, int(connection.execute(OLDEST).scalar_one()), keep)


def _purge(connection: Connection, before: int, keep: Ints) -> Ints:
    dead = np.array(connection.execute(DEAD, {"before": before}).scalars().all(), dtype=np.int64)
    for batch in in_batches(dead.tolist()):
        for table in parts(connection):
            connection.execute(delete_where(table.c.document), {"values": batch})
    gone = np.setdiff1d(dead, keep)
    for batch in in_batches(gone.tolist()):
        connection.execute(delete_where(s.documents.c.id), {"values": batch})
    connection.execute(PURGE_SEGMENTS, {"before": before})
    return gone


def end_lives(connection: Connection, table: Table, ids: Sequence[int | str], commit: int) -> list[RowMapping]:
    """End the lives of documents or segments with this commit; return their rows. StorageError where one is not live."""
    ended: list[RowMapping] = []
    living, end = _lives_of(table)
    for batch in in_batches(ids):
        rows = connection.execute(living, {"values": batch}).mappings().all()
        ends = [
            {"row_id": s.checked(table, row)["id"], "end": commit, "end_sum": s.life_sum(row["id"], row["added"], commit)}
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
    """Return the statement that selects live rows of a table, and the one that ends the life of a row."""
    living = select(table).where(table.c.id.in_(bindparam("values", expanding=True)), table.c.deleted.is_(None))
    end = update(table).where(table.c.id == bindparam("row_id")).values(deleted=bindparam("end"), life_sum=bindparam("end_sum"))
    return living, end


def _insert_content(connection: Connection, new: NewDocument) -> None:
    document = new.document
    insert_rows(connection, s.texts, text_rows(new.id, document.text))
    insert_rows(connection, s.blocks, block_rows(new.id, document))
    insert_rows(connection, s.pages, [page_row(new.id, page) for page in document.pages])
    insert_rows(connection, s.units, unit_rows(new))
    if page_units := page_unit_rows(new):
        s.page_units.create(connection, checkfirst=True)
        insert_rows(connection, s.page_units, page_units)


def insert_segment(connection: Connection, row: SegmentRow, files: Sequence[FileRecord], *, commit: int) -> None:
    """Insert a segment, visible from `commit` on, and the records of its files."""
    fields = {"id": row.id, "rows": row.rows, "bytes": row.bytes, "spaces": json.dumps(row.spaces), "added": commit}
    insert_rows(connection, s.segments, [fields])
    insert_files(connection, row.id, files)


def insert_files(connection: Connection, folder: str, records: Sequence[FileRecord]) -> None:
    """Insert the records of a folder's files."""
    fields = ("name", "size", "block", "sums")
    insert_rows(
        connection, s.files, [{"folder": folder, **{field: getattr(record, field) for field in fields}} for record in records]
    )


def commit_row(number: int, kind: str, lexical: str, *, documents: int, units: int) -> Row:
    """Return the row of a commit made now, with its live totals."""
    return {"number": number, "made": now(), "kind": kind, "lexical": lexical, "documents": documents, "units": units}


def record_failures(connection: Connection, failures: Sequence[Failure]) -> None:
    """Write failures over those of the same identities; of several of one identity, the last."""
    last = {failure.identity: failure for failure in failures}
    clear_failures(connection, list(last))
    insert_rows(connection, s.failures, [{**asdict(failure), "made": now()} for failure in last.values()])


def clear_failures(connection: Connection, identities: Sequence[str]) -> None:
    """Delete the failures of documents, where there are any."""
    for batch in in_batches(identities):
        connection.execute(delete_where(s.failures.c.identity), {"values": batch})


def _stamp_documents(connection: Connection, change: Change) -> None:
    """Give every live document the hash of the new recipe, which its vectors follow now; one to be made anew gets none."""
    ids = connection.execute(select(s.documents.c.id).where(s.documents.c.deleted.is_(None))).scalars().all()
    for batch in in_batches(ids):
        for row in connection.execute(select(s.documents).where(s.documents.c.id.in_(batch))).mappings().all():
            fields = dict(s.checked(s.documents, row))
            fields["recipe_hash"] = change.recipe_hash if row["recipe_hash"] and row["mime"] not in change.reparse_mimes else ""
            fresh = s.summed(s.documents, fields)
            values = {name: fresh[name] for name in ("recipe_hash", "sum")}
            connection.execute(update(s.documents).where(s.documents.c.id == row["id"]).values(**values))

"""Replace the contents of a catalog by those of another, which was built beside it, in one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Table, insert, select

from ragkit.store.catalog import schema as s
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.commit import commit_row, end_lives, insert_files, insert_segment
from ragkit.store.catalog.database import in_batches, insert_rows, parts, store_settings
from ragkit.store.values import Change

BATCH = 500  # documents copied between two statements


def replace_contents(catalog: Catalog, staged: Catalog, change: Change) -> None:
    """Make the staged documents, units and segments those of commit `change.number`; their folders must be in place.

    Everything that was live ends. Rows keep their ids and keys, so these must come from `catalog`'s counters. Each row is
    checked on the way.
    """
    latest = staged.latest()
    segments = staged.segments(latest.number)
    files = {row.id: staged.files(row.id) for row in segments}
    with staged.reading() as connection:
        copied_tables = parts(connection)
    with catalog.writing() as connection:
        if s.page_units in copied_tables:
            s.page_units.create(connection, checkfirst=True)
        for table in (s.documents, s.segments):
            live = list(connection.execute(select(table.c.id).where(table.c.deleted.is_(None))).scalars())
            end_lives(connection, table, live, change.number)
        for document_rows in _documents(staged, latest.number):
            fresh = [{**row, "added": change.number} for row in document_rows]
            for row in fresh:
                if row["mime"] in change.reparse_mimes:
                    row["recipe_hash"] = ""
            insert_rows(connection, s.documents, fresh)
            ids = [row["id"] for row in document_rows]
            for table in copied_tables:
                copied = [dict(row) for row in _of_documents(staged, table, ids)]
                if copied:
                    connection.execute(insert(table), copied)
        for segment in segments:
            insert_segment(connection, segment, files[segment.id], commit=change.number)
        insert_files(connection, change.lexical, change.lexical_files)
        store_settings(connection, change.settings)
        totals = {"documents": latest.documents, "units": latest.units}
        insert_rows(connection, s.commits, [commit_row(change.number, change.kind, change.lexical, **totals)])


def _documents(staged: Catalog, commit: int) -> Iterator[list[dict[str, Any]]]:
    ids = [row.id for row in staged.documents(commit).every_document()]
    for batch in in_batches(ids, BATCH):
        yield [dict(row) for row in _of(staged, s.documents, s.documents.c.id.in_(batch))]


def _of_documents(staged: Catalog, table: Table, ids: Sequence[int]) -> Iterator[Any]:
    return _of(staged, table, table.c.document.in_(ids))


def _of(staged: Catalog, table: Table, condition: Any) -> Iterator[Any]:
    with staged.reading() as connection:
        for row in connection.execute(select(table).where(condition)).mappings():
            yield s.checked(table, row)

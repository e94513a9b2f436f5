"""The catalog: documents, pages, units, segments and settings of one index, in SQLite through SQLAlchemy Core.

Our values go in, our values come out; rows become values in `rows.py` and nowhere else, and only after their checksum was
compared. Documents are read through one commit: see `documents.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Row, RowMapping, bindparam, select, true
from sqlalchemy.exc import DatabaseError

from ragkit.core.errors import Damaged
from ragkit.core.types import Ints
from ragkit.store.catalog import commit as commits
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.database import STATE, Database, latest_commit
from ragkit.store.catalog.documents import CommittedDocuments
from ragkit.store.catalog.rows import failure_of, file_of, segment_of
from ragkit.store.local.files import FileRecord
from ragkit.store.values import Change, Commit, Failure, SegmentRow

FILES = select(s.files).where(s.files.c.folder == bindparam("folder")).order_by(s.files.c.name)
FOLDERS = select(s.files.c.folder).distinct()
FAILURES = select(s.failures).order_by(s.failures.c.source)

STATE_NUMBER = select(s.counters.c.next).where(s.counters.c.name == STATE)

Life = Row[Any]  # id, added, deleted and life_sum of a document version
FailureRows = Sequence[RowMapping] | DatabaseError  # not checked yet, or what reading them raised


@dataclass(frozen=True, slots=True)
class Head:
    """The newest commit, the state of the catalog (see `Database.state`), and the failures, where they were read."""

    commit: Commit
    state: int | None
    failures: FailureRows | None


class Catalog(Database):
    """The catalog of one index. Thread-safe: every call takes its own connection."""

    def documents(self, commit: int) -> CommittedDocuments:
        """Return the documents that a commit sees."""
        return CommittedDocuments(self, commit)

    def commit(self, change: Change) -> Commit:
        """Make a change visible, in one transaction."""
        return commits.write_commit(self, change)

    def forget(self, folders: Sequence[str], *, commits_before: int = 0, keep: Ints) -> Ints:
        """See `ragkit.store.catalog.commit.forget`."""
        return commits.forget(self, folders, commits_before=commits_before, keep=keep)

    def segments(self, commit: int) -> list[SegmentRow]:
        """Return the segments a commit sees, oldest first. Every row is checked, so that a flipped bit hides none."""
        with self.reading() as connection:
            query = select(s.segments).order_by(s.segments.c.added, s.segments.c.id)
            rows = [s.checked(s.segments, row) for row in connection.execute(query).mappings()]
        return [segment_of(row) for row in rows if row["added"] <= commit and (row["deleted"] is None or row["deleted"] > commit)]

    def files(self, folder: str) -> list[FileRecord]:
        """Return the records of a folder's files, by name."""
        with self.reading() as connection:
            return [file_of(row) for row in connection.execute(FILES, {"folder": folder}).mappings()]

    def folders(self) -> set[str]:
        """Return every folder that has file records."""
        with self.reading() as connection:
            return set(connection.execute(FOLDERS).scalars())

    def deleted_documents(self, commit: int) -> Ints:
        """Return the ids of the document versions that a commit no longer sees, ascending, (n,) int64."""
        with self.reading() as connection:
            rows = _lives(connection, s.documents.c.deleted <= commit)
            for row in rows:
                if not _is_whole(row):
                    raise Damaged(f"the row id={row.id} of documents does not match its checksum")
        return np.array([row.id for row in rows], dtype=np.int64)

    def deleted_or_damaged(self, commit: int) -> tuple[Ints, int]:
        """Like `deleted_documents`, plus the versions whose lifetime is damaged; and the number of these."""
        with self.reading() as connection:
            rows = _lives(connection, true())
        damaged = sum(1 for row in rows if not _is_whole(row))
        hidden = [row.id for row in rows if not _is_whole(row) or (row.deleted is not None and row.deleted <= commit)]
        return np.array(hidden, dtype=np.int64), damaged

    def head(self, known: int | None) -> Head:
        """Return the newest commit with the state of the catalog; and the failures, unless the state is the `known` one."""
        with self.reading() as connection:
            commit = latest_commit(connection)
            state = connection.execute(STATE_NUMBER).scalar()  # unchecked: a wrong one only means that failures are read again
            if state is not None and state == known:
                return Head(commit, state, None)
            return Head(commit, state, _failure_rows(connection))

    def failures_of(self, rows: FailureRows) -> list[Failure]:
        """Return the failures of rows that `head` returned, checked."""
        with self._errors():
            if isinstance(rows, DatabaseError):
                raise rows
            return [failure_of(row) for row in rows]

    def write_failures(self, failures: Sequence[Failure], *, forgiven: Sequence[str] = ()) -> None:
        """Record failures, and forget those of the identities `forgiven`, without a commit: readers see documents as before."""
        with self.writing() as connection:
            commits.clear_failures(connection, forgiven)
            commits.record_failures(connection, failures)


def _failure_rows(connection: Connection) -> FailureRows:
    try:
        return tuple(connection.execute(FAILURES).mappings())
    except DatabaseError as error:  # searches go on; who asks for failures learns of the damage
        return error


def _lives(connection: Connection, condition: ColumnElement[bool]) -> list[Life]:
    columns = (s.documents.c.id, s.documents.c.added, s.documents.c.deleted, s.documents.c.life_sum)
    return list(connection.execute(select(*columns).where(condition).order_by(s.documents.c.id)))


def _is_whole(life: Life) -> bool:
    try:
        return bool(s.life_sum(life.id, life.added, life.deleted) == life.life_sum)
    except (TypeError, OverflowError, struct.error):
        return False

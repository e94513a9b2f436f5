"""The catalog: documents, pages, units, segments and settings of one index, in SQLite through SQLAlchemy Core.

Our values go in, our values come out; rows become values in `rows.py` and nowhere else, and only after their checksum was
compared. What a commit number N sees: rows with added <= N and (deleted is NULL or deleted > N).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select

from ragkit.core.types import Ints
from ragkit.store.catalog import commit as commits
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.documents import Documents
from ragkit.store.catalog.rows import failure_of, file_of, segment_of
from ragkit.store.local.files import FileRecord
from ragkit.store.values import Change, Commit, Failure, SegmentRow

FILES = select(s.files).where(s.files.c.folder == bindparam("folder")).order_by(s.files.c.name)
FOLDERS = select(s.files.c.folder).distinct()


class Catalog(Documents):
    """catalog.db. Thread-safe: every call takes its own connection."""

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

    def failures(self) -> list[Failure]:
        """Return the documents that failed when they were last added, by source."""
        with self.reading() as connection:
            query = select(s.failures).order_by(s.failures.c.source)
            return [failure_of(row) for row in connection.execute(query).mappings()]

    def record_failure(self, failure: Failure) -> None:
        """Write a failure over an earlier one of the same document."""
        with self.writing() as connection:
            commits.record_failures(connection, [failure])

    def clear_failures(self, identities: Sequence[str]) -> None:
        """Delete the failures of documents, where there are any."""
        if identities:
            with self.writing() as connection:
                commits.clear_failures(connection, identities)

"""A copy of catalog.db as one commit left it, made while writers go on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import func, select

from ragkit.core.errors import StorageError
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.database import Database, driver
from ragkit.store.local.files import sync_file

PAGES = 1024  # copied between two looks at the keyboard


def copy_catalog(database: Database, target: Path, *, commit: int) -> bool:
    """Write the catalog to the new file `target`, and sync it; False, and no file, where `commit` is not the newest any more.

    The copy is one transaction's view: SQLite's backup reads through the connection that began it, so neither a commit
    nor a checkpoint moves it. The write-ahead log cannot shrink meanwhile.
    """
    with database.reading() as connection:
        if connection.execute(select(func.max(s.commits.c.number))).scalar() != commit:
            return False
        try:
            with closing(sqlite3.connect(target)) as copy:
                driver(connection).backup(copy, pages=PAGES)
        except sqlite3.OperationalError as error:
            raise StorageError(f"{target} cannot be written: {error}. Is the disk full?") from error
    sync_file(target)
    return True

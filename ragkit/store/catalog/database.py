"""The SQLite file of one index: connections, short transactions, settings, counters and the newest commit.

Reads are short transactions: a reader is a commit number, never a transaction held open, because a pinned reader lets the
write-ahead log grow without bound. Writers say BEGIN IMMEDIATE, so two of them queue instead of failing. No document is known
here: `documents.py` reads them, `commit.py` writes them.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Delete,
    Insert,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DatabaseError, OperationalError

from ragkit.core.errors import Damaged, FormatTooNew, StorageError
from ragkit.store.catalog import schema as s
from ragkit.store.values import Commit

BUSY = 60.0  # seconds a writer waits for another connection's short transaction
STATE = "state"  # the counter that counts nothing: see `Database.state`
IN = 500  # values per IN list, well below SQLite's limit on variables

# Statements of every commit, built once: building one costs three times as much as running it.
LATEST = select(s.commits).order_by(s.commits.c.number.desc()).limit(1)
SETTING = select(s.settings).where(text("+name = :name"))  # a scan of the table: a damaged index hides no setting
COUNTER = select(s.counters).where(s.counters.c.name == bindparam("counter"))
ADVANCE_COUNTER = (
    update(s.counters).where(s.counters.c.name == bindparam("counter")).values(next=bindparam("to"), sum=bindparam("to_sum"))
)
STAMP = insert(s.counters).prefix_with("OR REPLACE")


class Database:
    """catalog.db. Thread-safe: every call takes its own connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
        self._engine = create_engine(_url(path, writable=writable), connect_args={"check_same_thread": False, "timeout": BUSY})
        event.listen(self._engine, "connect", _configure if writable else _configure_read_only)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._engine.dispose()

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a short transaction that reads; SQLite's errors become ours."""
        with self._errors(), self._engine.connect() as connection, connection.begin():
            driver(connection).execute("BEGIN")
            yield connection

    @contextmanager
    def writing(self, *, synced: bool = True) -> Iterator[Connection]:
        """Open a transaction that writes; it is committed at the end of the block unless that raises.

        Where `synced` is False, a power loss may undo it until the next synced one: work that is simply done again where it is
        missing need not wait for the disk.
        """
        with self._errors(), self._engine.connect() as connection, connection.begin():
            source = driver(connection)
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
                raise self.damaged(_plain(error)) from error
            self._engine.dispose()  # SQLite opens a file that it may not write to for reading, and stays so: try anew next time
            raise StorageError(f"{self.path}: {_plain(error)}. Is the disk full, or the folder read-only or gone?") from error
        except Damaged as error:
            if "Run: " in str(error):
                raise
            raise self.damaged(error) from error
        except (zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:  # checked rows never get here
            raise self.damaged(error) from error
        except (DatabaseError, sqlite3.DatabaseError) as error:
            raise self.damaged(_plain(error)) from error

    def damaged(self, problem: object) -> Damaged:
        """Return the error that names this file, the problem and the way out."""
        return Damaged(f"{self.path} is damaged: {problem}. Run: ragkit repair {self.path.parent}")

    # Settings, counters, commits

    @property
    def exists(self) -> bool:
        """Whether a catalog was created here. A file that a crash cut short during creation does not count."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return False
        with self.reading() as connection:
            return connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'commits'")).first() is not None

    def setting(self, name: str) -> Any:
        """Return a setting, decoded from JSON; None where it was never set."""
        with self.reading() as connection:
            row = connection.execute(SETTING, {"name": name}).mappings().first()
            return None if row is None else json.loads(s.checked(s.settings, row)["value"])

    def check_format(self) -> None:
        """Raise FormatTooNew where a later ragkit wrote this catalog."""
        stored = self.setting("format")
        if stored is None:
            raise Damaged(f"{self.path} has no format version: it is not a catalog of ragkit, or it was cut short.")
        if stored > s.FORMAT:
            raise FormatTooNew(
                f"{self.path.parent} has format {stored}; this ragkit reads up to {s.FORMAT}. Run: pip install -U ragkit"
            )

    def reserve(self, *, documents: int, units: int) -> tuple[int, int]:
        """Reserve so many document ids and unit keys; return the first of each. Committed at once: none is given out twice."""
        first = []
        with self.writing() as connection:
            for name, count in (("document", documents), ("key", units)):
                row = connection.execute(COUNTER, {"counter": name}).mappings().first()
                if row is None:
                    raise Damaged(f"it has no counter {name!r}")
                value = s.checked(s.counters, row)["next"]
                fresh = s.summed(s.counters, {"name": name, "next": value + count})
                connection.execute(ADVANCE_COUNTER, {"counter": name, "to": fresh["next"], "to_sum": fresh["sum"]})
                first.append(value)
        return first[0], first[1]

    def latest(self) -> Commit:
        """Return the newest commit. It is what makes a writer's work visible to readers."""
        with self.reading() as connection:
            return latest_commit(connection)

    # The file itself

    def state(self) -> int | None:
        """Return a random number that every transaction replaces; None in a catalog of an earlier ragkit."""
        with self.reading() as connection:
            return state_of(connection)

    def settle(self) -> bool:
        """Bring the write-ahead log into the file and empty it; False where a reader is active, and the log stays."""
        with self._outside() as connection:
            connection.execute("PRAGMA busy_timeout=0")
            try:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute(f"PRAGMA busy_timeout={int(1000 * BUSY)}")
        return not busy

    @contextmanager
    def _outside(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for commands that SQLite refuses within a transaction."""
        with self._errors():
            connection = self._engine.raw_connection()
            try:
                source = connection.driver_connection
                assert isinstance(source, sqlite3.Connection)
                yield source
            finally:
                connection.close()


def driver(connection: Connection) -> sqlite3.Connection:
    """Return SQLite's own connection: BEGIN takes a tenth of the time there, and SQLAlchemy leaves it to us."""
    source = connection.connection.driver_connection
    assert isinstance(source, sqlite3.Connection)
    return source


def latest_commit(connection: Connection) -> Commit:
    """Return the newest commit that the transaction sees."""
    row = connection.execute(LATEST).mappings().first()
    if row is None:
        raise Damaged("it has no commit")
    s.checked(s.commits, row)
    return Commit(row["number"], row["lexical"], row["documents"], row["units"])


def state_of(connection: Connection) -> int | None:
    """See `Database.state`."""
    row = connection.execute(select(s.counters).where(s.counters.c.name == STATE)).mappings().first()
    return None if row is None else int(s.checked(s.counters, row)["next"])


def store_settings(connection: Connection, settings: Mapping[str, Any]) -> None:
    """Write settings, encoded as JSON, over those of the same names."""
    connection.execute(delete(s.settings).where(s.settings.c.name.in_(list(settings))))
    insert_rows(connection, s.settings, [{"name": name, "value": json.dumps(value)} for name, value in settings.items()])


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, their checksums filled in."""
    if rows:
        connection.execute(_insert(table), [s.summed(table, row) for row in rows])


@cache
def _insert(table: Table) -> Insert:
    return insert(table)


@cache
def delete_where(column: Column[Any]) -> Delete:
    """Return the statement that deletes the rows whose `column` is among the parameter `values`."""
    return delete(column.table).where(column.in_(bindparam("values", expanding=True)))


def parts(connection: Connection) -> list[Table]:
    """Return the tables that hold a document's content."""
    return [s.texts, s.blocks, s.pages, s.units, *([s.page_units] if has_pages(connection) else [])]


def has_pages(connection: Connection) -> bool:
    """Whether the table of page images exists: it is created with the first image."""
    return connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'page_units'")).first() is not None


def in_batches(values: Sequence[Any], size: int = IN) -> Iterator[Sequence[Any]]:
    """Cut values into slices of `size`, for IN lists."""
    return (values[start : start + size] for start in range(0, len(values), size))


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stamp_state(connection: Connection) -> None:
    connection.execute(STAMP, s.summed(s.counters, {"name": STATE, "next": secrets.randbits(62)}))


def _url(path: Path, *, writable: bool) -> URL:
    if writable:
        return URL.create("sqlite", database=str(path))
    # Where no -shm file can be made, SQLite reads only what is declared immutable, and then it ignores the write-ahead log.
    log = path.with_name(path.name + "-wal")
    still = not (log.exists() and log.stat().st_size)
    query = {"mode": "ro", "uri": "true", **({"immutable": "1"} if still else {})}
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)


def _configure(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late: two reads would see two states
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cell_size_check=ON", "wal_autocheckpoint=1000", "secure_delete=FAST"):
        connection.execute(f"PRAGMA {pragma}")


def _configure_read_only(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA cell_size_check=ON")


def _plain(error: Exception) -> object:
    """Return SQLite's own words of an error."""
    return getattr(error, "orig", error)

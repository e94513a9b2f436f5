"""Compare every row of the catalog with its checksums."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping, Table, create_engine, func, select, text, tuple_

from ragkit.core.errors import Damaged
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.database import Database, in_batches
from ragkit.store.values import DamagedRow

MASTER = "SELECT type, name, tbl_name, sql FROM sqlite_master"
ROWS = 1000  # read together


def damaged_rows(database: Database) -> Iterator[DamagedRow]:
    """Yield every row that does not match its checksums; SQLite's own check of the file, and that of the schema, come first."""
    try:
        with database.reading() as connection:
            for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
                if line != "ok":
                    yield DamagedRow("", None, f"{database.path}: {line}")
            stored = {tuple(row) for row in connection.execute(text(MASTER))}
    except Damaged as error:
        yield DamagedRow("", None, _without_remedy(error))
        return
    if stored not in (_master(pages=False), _master(pages=True)):
        yield DamagedRow("", None, f"{database.path}: its tables are not those of format {s.FORMAT}")
        return
    for table in s.metadata.sorted_tables if stored == _master(pages=True) else s.WITHOUT_PAGES:
        yield from _damaged_rows_of(database, table)


def _damaged_rows_of(database: Database, table: Table) -> Iterator[DamagedRow]:
    """Read the table in one pass; where SQLite cannot, read its rows by their keys, as far as those can be read."""
    try:
        with database.reading() as connection:
            damaged = [
                _damaged_row(database.path, table, row)
                for rows in connection.execute(select(table)).mappings().partitions(ROWS)
                for row in rows
                if not s.is_whole(table, row)
            ]
    except Damaged:
        yield from _damaged_rows_by_key(database, table)
    else:
        yield from damaged


def _damaged_rows_by_key(database: Database, table: Table) -> Iterator[DamagedRow]:
    columns = list(table.primary_key)
    try:
        with database.reading() as connection:
            keys = connection.execute(select(*columns)).all()
    except Damaged as error:
        yield DamagedRow(table.name, None, _without_remedy(error))
        return
    for batch in in_batches(keys):
        try:
            with database.reading() as connection:
                rows = connection.execute(select(table).where(tuple_(*columns).in_(batch))).mappings().all()
        except Damaged as error:
            yield DamagedRow(table.name, None, _without_remedy(error))
            continue
        for row in rows:
            if not s.is_whole(table, row):
                yield _damaged_row(database.path, table, row)


def spent_counters(database: Database) -> Iterator[str]:
    """Yield a line for each counter that would give out a number again."""
    for name, column in (("document", s.documents.c.id), ("key", s.units.c.key)):
        with database.reading() as connection:
            upcoming = connection.execute(select(s.counters.c.next).where(s.counters.c.name == name)).scalar()
            largest = connection.execute(select(func.max(column))).scalar() or 0
        if upcoming is None or upcoming <= largest:
            yield f"{database.path}: the counter {name!r} is at {upcoming}, but {largest} was given out already"


def _damaged_row(path: Path, table: Table, row: RowMapping) -> DamagedRow:
    key = tuple(row[column.name] for column in table.primary_key)
    name = ", ".join(f"{column.name}={value!r}" for column, value in zip(table.primary_key, key, strict=True))
    return DamagedRow(table.name, key, f"{path}: the row {name} of {table.name} does not match its checksum")


def _without_remedy(error: Damaged) -> str:
    return str(error).partition(" Run: ")[0]


@cache
def _master(*, pages: bool) -> frozenset[tuple[Any, ...]]:
    """Return the schema as SQLite itself writes it down, with or without the table of page images."""
    engine = create_engine("sqlite://")
    s.metadata.create_all(engine, tables=None if pages else s.WITHOUT_PAGES)
    with engine.connect() as connection:
        schema = frozenset(tuple(row) for row in connection.execute(text(MASTER)))
    engine.dispose()
    return schema

"""Take damaged rows out of the catalog, so that the rest is whole again and says what was lost.

A document with a damaged row is dropped as a whole. A tombstone stays, which hides its vectors, and a failure, which says what to
add again. What follows from other rows (the last commit's totals, the counters) is computed anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, RowMapping, Table, delete, func, insert, select, text, update

from ragkit.core.errors import Damaged
from ragkit.core.types import Ints
from ragkit.store.catalog import schema as s
from ragkit.store.catalog.commit import record_failures
from ragkit.store.catalog.database import Database, has_pages, in_batches, insert_rows, now, parts
from ragkit.store.catalog.rows import PIECE
from ragkit.store.values import PAGE, DamagedRow, Failure

LOST = "its rows in the catalog were damaged; add it again"
NAMELESS = "its name went with its row in the catalog; add everything again: what is there stays"
MARGIN = 1 << 20  # numbers skipped where a counter was damaged: none may be given out twice
PDF = "application/pdf"
READ = s.documents.c.path == s.documents.c.identity  # from its file, by a loader of ours
NO_WORDS = "-"  # a lexical generation that never exists, so that it is made anew


def reindex(database: Database) -> None:
    """Build SQLite's indexes anew, from the tables. Damaged where the tables themselves cannot be read.

    Not that of `pages`, which is the table itself (WITHOUT ROWID): nothing says how many pages there were, so the rest of a
    damaged one would pass for all.
    """
    others = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'pages'"
    with database.writing() as connection:
        for (name,) in connection.execute(text(others)).all():
            connection.execute(text(f"REINDEX {name}"))


def remove_damaged_rows(database: Database, rows: Sequence[DamagedRow]) -> list[Failure]:
    """Take damaged rows out, in one transaction; return the live documents that are lost with them.

    Damaged where that is not possible: pages of the file cannot be read, or the settings are lost.
    """
    unsalvageable = [row for row in rows if row.key is None or row.table == "settings"]
    if unsalvageable:
        raise Damaged(f"{unsalvageable[0].problem}.")
    keys: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        assert row.key is not None
        keys[row.table].append(row.key)
    with database.writing() as connection:
        number = _last_commit(connection)
        owners = {int(key[0]) for table in ("documents", "texts", "blocks", "pages") for key in keys[table]}
        for table in (*parts(connection), s.segments, s.files, s.failures):
            _delete_keys(connection, table, keys[table.name])
        lost = _drop(connection, owners | set(_incomplete(connection)), number)
        for name in ("document", "key"):
            _repair_counter(connection, name, damaged=(name,) in keys["counters"])
        _delete_keys(connection, s.commits, [key for key in keys["commits"] if key != (number,)])
        _recount(connection, number)
    return lost


def tombstone_orphans(database: Database, ids: Iterable[int]) -> list[Failure]:
    """Write tombstones for document versions that segments hold and the catalog has lost; return those that were live, as their
    units show."""
    with database.writing() as connection:
        known = set(connection.execute(select(s.documents.c.id)).scalars())
        owners = set(connection.execute(select(s.units.c.document)).scalars()) - known
        number = _last_commit(connection)
        insert_rows(connection, s.documents, [_tombstone(id, number) for id in sorted((set(ids) | owners) - known)])
    return [Failure(f"lost:{id}", f"document {id}", "", NAMELESS) for id in sorted(owners)]


def drop_documents(database: Database, ids: Iterable[int], *, reason: str) -> list[Failure]:
    """Drop live documents as of the newest commit; return them as failures with this reason."""
    with database.writing() as connection:
        number = _last_commit(connection)
        lost = _drop(connection, set(ids), number, reason=reason)
        _recount(connection, number)
    return lost


def live_units(database: Database, commit: int) -> tuple[Ints, Ints]:
    """Return the keys of the units that a commit sees, ascending, and their document versions: (n,) int64 each."""
    with database.reading() as connection:
        query = (
            select(s.units.c.key, s.units.c.document)
            .join(s.documents, s.documents.c.id == s.units.c.document)
            .where(s.documents.c.added <= commit, s.documents.c.deleted.is_(None) | (s.documents.c.deleted > commit))
            .order_by(s.units.c.key)
        )
        pairs = np.array(connection.execute(query).all(), dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def short_of_units(database: Database) -> set[int]:
    """Return the live documents that have fewer units than were counted: their text is there, and can be chunked again."""
    with database.reading() as connection:
        return _short_of_units(connection)


def _short_of_units(connection: Connection) -> set[int]:
    count = select(func.count()).where(s.units.c.document == s.documents.c.id).scalar_subquery()
    live = s.documents.c.deleted.is_(None)
    short = set(connection.execute(select(s.documents.c.id).where(live, s.documents.c.units != count)).scalars())
    if not has_pages(connection):
        return short
    known = select(s.page_units.c.key)
    lacking = select(s.units.c.document).where(s.units.c.kind == PAGE, s.units.c.key.not_in(known))
    return short | set(connection.execute(select(s.documents.c.id).where(live, s.documents.c.id.in_(lacking))).scalars())


def _last_commit(connection: Connection) -> int:
    columns = (s.commits.c.number, s.segments.c.added, s.segments.c.deleted)
    numbers = [connection.execute(select(func.max(column))).scalar() for column in columns]
    return max(number for number in numbers if isinstance(number, int))


def _delete_keys(connection: Connection, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
    for key in keys:
        same = [column == value for column, value in zip(table.primary_key, key, strict=True)]
        connection.execute(delete(table).where(*same))


def incomplete(database: Database) -> list[int]:
    """Return the live documents that lack a piece of text, a page or a unit, by id."""
    with database.reading() as connection:
        return sorted({*_incomplete(connection), *_short_of_units(connection)})


def _incomplete(connection: Connection) -> Iterator[int]:
    live = s.documents.c.deleted.is_(None)
    documents = dict(connection.execute(select(s.documents.c.id, s.documents.c.characters).where(live)).all())
    counted = set(connection.execute(select(s.documents.c.id).where(live, s.documents.c.mime == PDF, READ)).scalars())
    seen = _imaged_pages(connection)
    starts: dict[int, list[int]] = defaultdict(list)
    for document, start in connection.execute(select(s.texts.c.document, s.texts.c.start)):
        starts[document].append(start)
    pages: dict[int, list[int]] = defaultdict(list)
    for document, number in connection.execute(select(s.pages.c.document, s.pages.c.number)):
        pages[document].append(number)
    for id, characters in documents.items():
        whole = sorted(starts[id]) == list(range(0, characters, PIECE))
        gaps = id in counted and sorted(pages[id]) != list(range(1, len(pages[id]) + 1))  # other formats may leave numbers out
        if not whole or gaps or not seen[id] <= set(pages[id]):
            yield id


def _imaged_pages(connection: Connection) -> dict[int, set[int]]:
    """Return the numbers of the pages that have images, by document."""
    seen: dict[int, set[int]] = defaultdict(set)
    if has_pages(connection):
        for document, number in connection.execute(select(s.page_units.c.document, s.page_units.c.number)):
            seen[document].add(number)
    return seen


def _drop(connection: Connection, ids: set[int], number: int, *, reason: str = LOST) -> list[Failure]:
    """Replace documents by tombstones, as of commit `number`; return those that were live, which are failures now."""
    rows: list[RowMapping] = []
    for batch in in_batches(sorted(ids)):
        rows += connection.execute(select(s.documents).where(s.documents.c.id.in_(batch))).mappings().all()
        for table in parts(connection):
            connection.execute(delete(table).where(table.c.document.in_(batch)))
        connection.execute(delete(s.documents).where(s.documents.c.id.in_(batch)))
    insert_rows(connection, s.documents, [_tombstone(row["id"], number) for row in rows])
    lost = [
        Failure(str(row["identity"]), str(row["source"]), "", reason)
        for row in rows
        if row["deleted"] is None or not s.is_whole(s.documents, row)
    ]
    record_failures(connection, lost)
    return lost


def _tombstone(id: int, number: int) -> dict[str, Any]:
    texts = ("identity", "source", "content_hash", "recipe_hash", "title", "mime", "lang")
    fields: dict[str, Any] = {**dict.fromkeys(texts, ""), "identity": f"lost:{id}", "meta": "{}", "characters": 0, "units": 0}
    return {"id": id, **fields, "added": number, "deleted": number}


def _repair_counter(connection: Connection, name: str, *, damaged: bool) -> None:
    column = s.documents.c.id if name == "document" else s.units.c.key
    most = connection.execute(select(func.max(column))).scalar() or 0
    stored = connection.execute(select(s.counters.c.next).where(s.counters.c.name == name)).scalar()
    if not damaged and isinstance(stored, int) and stored > most:
        return
    trusted = stored if isinstance(stored, int) and 0 <= stored < 1 << 60 else 0
    connection.execute(delete(s.counters).where(s.counters.c.name == name))
    insert_rows(connection, s.counters, [{"name": name, "next": max(most, trusted) + MARGIN}])


def _recount(connection: Connection, number: int) -> None:
    """Write the last commit's row with its totals counted anew; a damaged one loses its lexical generation."""
    row = connection.execute(select(s.commits).where(s.commits.c.number == number)).mappings().first()
    whole = row is not None and s.is_whole(s.commits, row)
    documents = connection.execute(select(func.count()).where(s.documents.c.deleted.is_(None))).scalar_one()
    live = select(s.documents.c.id).where(s.documents.c.deleted.is_(None))
    units = connection.execute(select(func.count()).where(s.units.c.document.in_(live))).scalar_one()
    fields = {
        "number": number,
        "made": row["made"] if whole and row else now(),
        "kind": row["kind"] if whole and row else "repair",
        "lexical": row["lexical"] if whole and row else NO_WORDS,
        "documents": documents,
        "units": units,
    }
    fresh = s.summed(s.commits, fields)
    if row is None:
        connection.execute(insert(s.commits), [fresh])
    else:
        connection.execute(update(s.commits).where(s.commits.c.number == number).values(**fresh))

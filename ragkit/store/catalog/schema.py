"""The tables of catalog.db, and the checksum that every row carries.

docs/format.md prints this schema for readers who come with sqlite3 alone. SQLAlchemy is imported in this folder and
nowhere else.

Rows are inserted once. Two columns change later: `documents.deleted` and `segments.deleted`, when a commit replaces
them, so each has a sum of its own (`life_sum`). SQLite does not notice flipped bits, so nothing read from here is
used before its sum was compared (`checked`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import xxhash
from sqlalchemy import BLOB, REAL, Column, Index, Integer, MetaData, RowMapping, Table, Text, text

from ragkit.core.errors import Damaged

FORMAT = 1

metadata = MetaData()

settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),  # format, recipe, fingerprint, probes
    Column("value", Text, nullable=False),  # JSON
    Column("sum", BLOB, nullable=False),
)
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),  # "key", "document"
    Column("next", Integer, nullable=False),  # the next number to give out; reserved in a transaction of its own
    Column("sum", BLOB, nullable=False),
)
commits = Table(
    "commits",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("made", Text, nullable=False),  # ISO 8601, UTC
    Column("kind", Text, nullable=False),  # create, add, delete, compact
    Column("lexical", Text, nullable=False),  # the generation folder under lexical/ that belongs to this commit
    Column("documents", Integer, nullable=False),  # live documents as of this commit
    Column("units", Integer, nullable=False),  # live units as of this commit
    Column("sum", BLOB, nullable=False),
)
documents = Table(
    "documents",
    metadata,
    Column("id", Integer, primary_key=True),  # of this version of the document; never reused
    Column("identity", Text, nullable=False),  # absolute path (and #record), or "id:" + the id of a record
    Column("root", Text),  # the absolute folder that was added; NULL for records
    Column("path", Text),  # the absolute path of the file it was read from; NULL for records
    Column("source", Text, nullable=False),  # path relative to root, or the record's id
    Column("content_hash", Text, nullable=False),  # sha256 of the file's bytes or of the record
    Column("recipe_hash", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("mime", Text, nullable=False),
    Column("lang", Text, nullable=False),  # ISO 639-1, declared or recognised, or empty: what its words are stemmed by
    Column("meta", Text, nullable=False),  # JSON
    Column("characters", Integer, nullable=False),
    Column("units", Integer, nullable=False),
    Column("added", Integer, nullable=False),  # commit
    Column("sum", BLOB, nullable=False),
    Column("deleted", Integer),  # commit, or NULL while live
    Column("life_sum", BLOB, nullable=False),
)
Index("documents_live", documents.c.identity, unique=True, sqlite_where=text("deleted IS NULL"))
Index("documents_source", documents.c.source)
Index("documents_content", documents.c.content_hash, sqlite_where=text("deleted IS NULL"))
Index("documents_deleted", documents.c.deleted, sqlite_where=text("deleted IS NOT NULL"))

texts = Table(
    "texts",  # a document's text in pieces, so that a hit reads a piece, not a book
    metadata,
    Column("document", Integer, primary_key=True),
    Column("start", Integer, primary_key=True),  # character offset of the piece
    Column("body", BLOB, nullable=False),  # zlib of UTF-8
    Column("sum", BLOB, nullable=False),
    sqlite_with_rowid=False,
)
blocks = Table(
    "blocks",
    metadata,
    Column("document", Integer, primary_key=True),
    Column("body", BLOB, nullable=False),  # zlib of JSON [[kind, start, end, level], …]
    Column("sum", BLOB, nullable=False),
)
pages = Table(
    "pages",
    metadata,
    Column("document", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1
    Column("label", Text),
    Column("width", REAL, nullable=False),  # points, as displayed
    Column("height", REAL, nullable=False),
    Column("rotation", Integer, nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("words", BLOB, nullable=False),  # zlib of: spans (w, 2) int32 relative to start, then boxes (w, 4) float32
    Column("sum", BLOB, nullable=False),
    sqlite_with_rowid=False,
)
units = Table(
    "units",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("document", Integer, nullable=False),
    Column("kind", Text, nullable=False),  # chunk, page
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("headings", Text, nullable=False),  # JSON list, outermost first
    Column("sum", BLOB, nullable=False),
)
Index("units_document", units.c.document)

page_units = Table(
    "page_units",  # the units that are pages; only in an index with page images
    metadata,
    Column("key", Integer, primary_key=True),
    Column("document", Integer, nullable=False),
    Column("number", Integer, nullable=False),  # of the page, from 1
    Column("patches", BLOB),  # where its vectors look: see `pack_patches`; NULL where that is not known
    Column("sum", BLOB, nullable=False),
)
Index("page_units_document", page_units.c.document)

segments = Table(
    "segments",
    metadata,
    Column("id", Text, primary_key=True),  # the folder under segments/
    Column("rows", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("spaces", Text, nullable=False),  # JSON list
    Column("added", Integer, nullable=False),
    Column("sum", BLOB, nullable=False),
    Column("deleted", Integer),
    Column("life_sum", BLOB, nullable=False),
)
files = Table(
    "files",  # of segments and of lexical generations
    metadata,
    Column("folder", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("block", Integer, nullable=False),
    Column("sums", BLOB, nullable=False),  # xxh3-64 of each block, little-endian
    Column("sum", BLOB, nullable=False),
    sqlite_with_rowid=False,
)
failures = Table(
    "failures",  # documents that could not be added, until they can
    metadata,
    Column("identity", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("made", Text, nullable=False),
    Column("sum", BLOB, nullable=False),
)

WITHOUT_PAGES = [table for table in metadata.sorted_tables if table is not page_units]

HEAD, INTEGER, FLOAT = (struct.Struct(form).pack for form in ("<cQ", "<cQq", "<cQd"))
EMPTY = HEAD(b"n", 0)
LIFE = frozenset({"sum", "life_sum", "deleted"})


def row_sum(values: Iterable[Any]) -> bytes:
    """Return the xxh3-64, little-endian, of the values in order, each as a tag, its length and its bytes.

    Tags: n for NULL, i for an integer (8 bytes, signed, little-endian), f for a float (8 bytes, IEEE 754,
    little-endian), s for UTF-8 text, b for bytes. Lengths are 8 bytes, little-endian.
    """
    parts = []
    for value in values:
        if value is None:
            parts.append(EMPTY)
        elif isinstance(value, int):
            parts.append(INTEGER(b"i", 8, value))
        elif isinstance(value, float):
            parts.append(FLOAT(b"f", 8, value))
        else:
            tag, body = (b"s", value.encode()) if isinstance(value, str) else (b"b", bytes(value))
            parts += (HEAD(tag, len(body)), body)
    return xxhash.xxh3_64_intdigest(b"".join(parts)).to_bytes(8, "little")


def summed(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with its sums filled in, ready to insert. Columns left out are NULL."""
    full = {column.name: row.get(column.name) for column in table.columns if column.name not in ("sum", "life_sum")}
    full["sum"] = row_sum(value for name, value in full.items() if name not in LIFE)
    if "life_sum" in table.columns:
        full["life_sum"] = life_sum(row["id"], row["added"], row.get("deleted"))
    return full


def life_sum(id: int | str, added: int, deleted: int | None) -> bytes:
    """Return the sum over the columns that say when a row lived."""
    return row_sum((id, added, deleted))


def checked(table: Table, row: RowMapping) -> RowMapping:
    """Return the row itself if its sums are right; Damaged otherwise. The database adds the file and the way out."""
    if is_whole(table, row):
        return row
    name = ", ".join(f"{column.name}={row[column.name]!r}" for column in table.primary_key)
    raise Damaged(f"the row {name} of {table.name} does not match its checksum")


def is_whole(table: Table, row: RowMapping) -> bool:
    """Whether a row's sums are right. A value of a type that is never stored there is damage, too."""
    try:
        expected = row_sum(row[column.name] for column in table.columns if column.name not in LIFE)
        return expected == row["sum"] and (
            "life_sum" not in row or life_sum(row["id"], row["added"], row["deleted"]) == row["life_sum"]
        )
    except (TypeError, ValueError, OverflowError, struct.error):
        return False

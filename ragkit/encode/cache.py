"""An embedding cache on disk: what was encoded once, by this very model in this very role, is not encoded again.

    encoder = cached(load_encoder(), "~/.cache/ragkit/embeddings.db", max_bytes=4 << 30)

One SQLite file, shared by any number of processes. A key is sha256 over the content, the card's fingerprint, and the full task,
so nothing is ever found under another model, revision, dtype, limit or role. Every value carries a checksum over key and value:
what does not match is encoded again. Kept are whole vectors; cutting them to fewer dims happens afterwards, so that one entry
serves all. When the file has grown over its bound, what was not used for longest goes first.

A cache never fails a call: a file that is locked or damaged is warned of, once, and the encoder works without it.
Late chunking is not cached: its vectors depend on the whole document.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from ragkit.core.arrays import MultiVectors, truncate_dims, unit_rows
from ragkit.core.errors import EncodeError
from ragkit.core.types import Floats
from ragkit.encode.contract import Encoder, EncoderCard, Encoding, ImageEncoder, Item
from ragkit.encode.tasks import full_task
from ragkit.encode.texts import check_truncate_dim, split_item

Result = TypeVar("Result")
VERSION = 1  # of keys and values; another one finds nothing of this one's
MAX_BYTES = 4 << 30  # some 2.5 million vectors of 384 dims
OVERHEAD = 96  # bytes a row takes beside its value
STALE = 3600  # seconds: how fresh "used" is, so that reading seldom writes
SOME = 500  # keys a statement
PATIENCE = 10  # seconds to wait for another process

_HEADER = struct.Struct("<?III")  # whether the input was cut; dense dims; rows and dims of the multi-vector
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL, used INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
"""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What one input became: `dense` (d,) of unit length or None, `multi` (t, d) unit rows or None."""

    dense: Floats | None
    multi: Floats | None
    cut: bool

    def pack(self) -> bytes:
        dense = b"" if self.dense is None else self.dense.astype("<f4").tobytes()
        multi = b"" if self.multi is None else self.multi.astype("<f4").tobytes()
        rows, dims = (0, 0) if self.multi is None else self.multi.shape
        return _HEADER.pack(self.cut, len(dense) // 4, rows, dims) + dense + multi

    @classmethod
    def unpack(cls, value: bytes) -> Entry:
        cut, width, rows, dims = _HEADER.unpack_from(value)
        numbers = np.frombuffer(value, dtype="<f4", offset=_HEADER.size).astype(np.float32)
        multi = numbers[width:].reshape(rows, dims) if rows else None
        return cls(numbers[:width] if width else None, multi, cut)


class EmbeddingCache:
    """The file. Thread-safe, and safe beside other processes. max_bytes: of values and what rows take beside them."""

    def __init__(self, path: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Open the file, or make it. ValueError for a bound below 1 MB."""
        if max_bytes < 1 << 20:
            raise ValueError(f"max_bytes must be at least {1 << 20}, got {max_bytes}")
        self.path = Path(path).expanduser().absolute()
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._out_of_order = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """What is there of these keys, whole."""
        return self._run(lambda connection: _read(connection, keys), {})

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep these, and make room for them."""
        values = {key: entry.pack() for key, entry in entries.items()}
        self._run(lambda connection: _write(connection, values, self.max_bytes), None)

    def size(self) -> tuple[int, int]:
        """(entries, bytes)."""

        def count(connection: sqlite3.Connection) -> tuple[int, int]:
            return connection.execute("SELECT (SELECT count(*) FROM entries), bytes FROM total").fetchone()  # type: ignore[no-any-return]

        return self._run(count, (0, 0))

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @property
    def usable(self) -> bool:
        """False once the file was found damaged or unreachable."""
        return not self._out_of_order

    def _run(self, work: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """What the work returns; after an error a warning, and `otherwise`."""
        with self._lock:
            try:
                return work(self._connected())
            except (sqlite3.Error, OSError, struct.error, ValueError) as error:
                busy, reason = isinstance(error, sqlite3.OperationalError) and "locked" in str(error), str(error)
        self.close()
        self._out_of_order = not busy
        warnings.warn(
            f"the embedding cache {self.path} is {'busy' if busy else 'out of order'} ({reason}); encoding goes on without it."
            f"{'' if busy else ' Delete the file to begin a new one'}",
            stacklevel=5,
        )
        return otherwise

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions are begun and ended here, and nowhere else.
            self._connection = sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=False, isolation_level=None)
            for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_SCHEMA)
        return self._connection


def _read(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Entry]:
    """The entries whose checksum holds; those not used for long are marked as used now."""
    found, stale, now = {}, [], int(time.time())
    for some in _parts(keys):
        statement = f"SELECT key, value, sum, used FROM entries WHERE key IN ({_marks(some)})"
        for key, value, checksum, used in connection.execute(statement, some).fetchall():
            if checksum == _checksum(key, value):
                found[key] = Entry.unpack(value)
                stale += [key] * (used < now - STALE)
    for some in _parts(stale):
        connection.execute(f"UPDATE entries SET used = ? WHERE key IN ({_marks(some)})", [now, *some])
    return found


def _write(connection: sqlite3.Connection, values: Mapping[bytes, bytes], max_bytes: int) -> None:
    """One transaction: the values in, their sizes into the total, and the oldest out if that is beyond the bound."""
    now, grown = int(time.time()), sum(len(value) + OVERHEAD for value in values.values())
    connection.execute("BEGIN IMMEDIATE")
    for some in _parts(list(values)):
        statement = f"SELECT length(value) FROM entries WHERE key IN ({_marks(some)})"
        grown -= sum(size + OVERHEAD for (size,) in connection.execute(statement, some))
    rows = [(key, value, _checksum(key, value), now) for key, value in values.items()]
    connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)
    connection.execute("UPDATE total SET bytes = bytes + ?", [grown])
    [[total]] = connection.execute("SELECT bytes FROM total").fetchall()
    if total > max_bytes:
        _evict(connection, total, room=max_bytes * 9 // 10)  # a tenth more than needed, so that not every call evicts
    connection.execute("COMMIT")
    connection.execute("PRAGMA incremental_vacuum").fetchall()


def _evict(connection: sqlite3.Connection, total: int, *, room: int) -> None:
    gone: list[list[bytes]] = []
    for key, size in connection.execute("SELECT key, length(value) FROM entries ORDER BY used"):
        if total <= room:
            break
        gone.append([key])
        total -= size + OVERHEAD
    connection.executemany("DELETE FROM entries WHERE key = ?", gone)
    connection.execute("UPDATE total SET bytes = ?", [total])


def _marks(keys: Sequence[bytes]) -> str:
    return ",".join("?" * len(keys))


def _checksum(key: bytes, value: bytes) -> bytes:
    return xxhash.xxh3_128_digest(key + value)


def _parts(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), SOME):
        yield keys[start : start + SOME]


def content_key(index: int, item: Item, card: EncoderCard, task: str) -> bytes:
    """sha256 over a text, an image or a pair, the encoder, and the full task it is encoded for. index: for the TypeError."""
    text, image = split_item(index, item)
    running = hashlib.sha256(f"{VERSION}\0{card.fingerprint}\0{task}\0".encode())
    if text is not None:
        content = text.encode("utf-8", "surrogatepass")
        running.update(b"text %d\0" % len(content) + content)
    if image is not None:
        # The pixels, and what decides how they are read: mode, palette, transparency, orientation.
        how = (image.mode, image.size, image.getpalette(), image.info.get("transparency"), image.getexif().tobytes())
        running.update(f"image {how!r}\0".encode())
        running.update(image.tobytes())
    return running.digest()


def cached(encoder: Encoder, cache: EmbeddingCache | str | Path, *, max_bytes: int = MAX_BYTES) -> Encoder:
    """The encoder behind a cache; a path is opened, and bounded by max_bytes."""
    opened = cache if isinstance(cache, EmbeddingCache) else EmbeddingCache(cache, max_bytes=max_bytes)
    wrapped: Any = CachedImageEncoder(encoder, opened) if isinstance(encoder, ImageEncoder) else CachedEncoder(encoder, opened)
    return wrapped  # type: ignore[no-any-return]


class CachedEncoder:
    """An `Encoder` that asks its cache first. All but the three ways to encode is the encoder's own, if it has it."""

    def __init__(self, encoder: Encoder, cache: EmbeddingCache) -> None:
        self.encoder = encoder
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    @property
    def card(self) -> EncoderCard:
        return self.encoder.card

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        full = full_task(task, self.card, role="query")
        return self._encode(queries, full, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        full = full_task(task, self.card, role="document")
        return self._encode(documents, full, truncate_dim=truncate_dim, truncate=truncate)

    def encode(self, inputs: Sequence[Item], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        return self._encode(inputs, full_task(task, self.card, role=None), truncate_dim=truncate_dim, truncate=truncate)

    def _encode(self, items: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        entries = None
        if self.cache.usable and len(items) and not isinstance(items, str) and (self.card.dims or truncate_dim is None):
            check_truncate_dim(truncate_dim, self.card)
            entries = self._entries(items, task, truncate=truncate)
        if entries is None:
            return self.encoder.encode(items, task=task, truncate_dim=truncate_dim, truncate=truncate)
        return _joined(entries, self.card, truncate_dim=truncate_dim)

    def _entries(self, items: Sequence[Item], task: str, *, truncate: bool) -> list[Entry] | None:
        """One per item, from the cache or new; None where the encoder has to see all items at once."""
        try:
            keys = [content_key(i, item, self.card, task) for i, item in enumerate(items)]
        except TypeError:
            return None  # the encoder knows what it takes
        known = self.cache.get([*dict.fromkeys(keys)])
        if not truncate:
            known = {key: entry for key, entry in known.items() if not entry.cut}
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        if missing:
            try:
                encoding = self.encoder.encode([*missing.values()], task=task, truncate=truncate)
            except EncodeError:
                return None  # it will say so again, of all items, with the number the caller knows an input by
            cut = self._which_were_cut([*missing.values()], encoding.truncated)
            if cut is None:
                return None
            new = {key: _entry(encoding, i, cut=cut[i]) for i, key in enumerate(missing)}
            self.cache.put(new)
            known |= new
        return [known[key] for key in keys]

    def _which_were_cut(self, items: Sequence[Item], count: int) -> list[bool] | None:
        """An encoder says how many it cut; the longest they were. None where that does not settle it."""
        if count in (0, len(items)):
            return [count > 0] * len(items)
        tokens = self.encoder.count_tokens([split_item(i, item)[0] or "" for i, item in enumerate(items)])
        cut = [bool(one) for one in tokens > self.card.max_tokens]
        return cut if sum(cut) == count else None


class CachedImageEncoder(CachedEncoder):
    """The same of an encoder that sees: an `ImageEncoder`, which `__getattr__` alone would not make it."""

    def __init__(self, encoder: Any, cache: EmbeddingCache) -> None:  # an `Encoder` that is an `ImageEncoder`, too
        super().__init__(encoder, cache)
        self.image_size, self.patches = encoder.image_size, encoder.patches


def _entry(encoding: Encoding, i: int, *, cut: bool) -> Entry:
    dense, multi = encoding.dense, encoding.multi
    return Entry(None if dense is None else dense[i], None if multi is None else multi[i], cut)


def _joined(entries: Sequence[Entry], card: EncoderCard, *, truncate_dim: int | None) -> Encoding:
    dense = multi = None
    if card.dims:
        rows = np.stack([entry.dense for entry in entries if entry.dense is not None])
        dense = unit_rows(rows) if truncate_dim is None else truncate_dims(rows, truncate_dim)
    if card.multi_dims:
        multi = MultiVectors.pack([entry.multi for entry in entries if entry.multi is not None])
    return Encoding(dense=dense, multi=multi, truncated=sum(entry.cut for entry in entries))

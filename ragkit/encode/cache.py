"""An embedding cache on disk: an input is encoded once per model and role, and then read from the cache.

    encoder = cached(load_encoder(), "~/.cache/ragkit/embeddings.db", max_bytes=4 << 30)

One SQLite file, shared by any number of processes. A key is sha256 over the content, the card's fingerprint, and the full task,
so no entry is found under another model, revision, dtype, limit or role. Every entry has a checksum over key and value: an
entry that does not match it is encoded again. Vectors are kept whole and cut to fewer dims afterwards, so that one entry
serves all widths. When the file has grown over its bound, the entries that were not used for longest go first.

A cache never fails a call: if the file is locked or damaged, it warns once, and the encoder works without it.
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
from typing import TypeVar, cast

import numpy as np
import xxhash

from ragkit.core.arrays import MultiVectors, truncate_dims, unit_rows
from ragkit.core.errors import EncodeError
from ragkit.core.types import Floats, Patches
from ragkit.encode.contract import Encoder, EncoderCard, Encoding, ImageEncoder, Item
from ragkit.encode.tasks import full_task
from ragkit.encode.texts import check_truncate_dim, split_item

Result = TypeVar("Result")
VERSION = 1  # of keys and values; another version finds no entry of this one
MAX_BYTES = 4 << 30  # some 2.5 million vectors of 384 dims
OVERHEAD = 96  # bytes a row takes beside its value
STALE = 3600  # seconds: how fresh "used" is, so that reading seldom writes
KEYS = 500  # per statement
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
    """The vectors of one input: `dense` (d,) of unit length or None, `multi` (t, d) unit rows or None; whether it was cut."""

    dense: Floats | None
    multi: Floats | None
    cut: bool

    def pack(self) -> bytes:
        """Return the entry as stored: a header, then the numbers as little-endian float32."""
        dense = b"" if self.dense is None else self.dense.astype("<f4").tobytes()
        multi = b"" if self.multi is None else self.multi.astype("<f4").tobytes()
        rows, dims = (0, 0) if self.multi is None else self.multi.shape
        return _HEADER.pack(self.cut, len(dense) // 4, rows, dims) + dense + multi

    @classmethod
    def unpack(cls, value: bytes) -> Entry:
        """Read what `pack` returned. Raises struct.error or ValueError for other bytes."""
        cut, width, rows, dims = _HEADER.unpack_from(value)
        numbers = np.frombuffer(value, dtype="<f4", offset=_HEADER.size).astype(np.float32)
        multi = numbers[width:].reshape(rows, dims) if rows else None
        return cls(numbers[:width] if width else None, multi, cut)


class EmbeddingCache:
    """The file. Thread-safe, and safe beside other processes. max_bytes: of the rows, their values and overhead."""

    def __init__(self, path: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Note the path; the file is opened, or made, when it is first used. Raises ValueError for a bound below 1 MB."""
        if max_bytes < 1 << 20:
            raise ValueError(f"max_bytes must be at least {1 << 20}, got {max_bytes}")
        self.path = Path(path).expanduser().absolute()
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._damaged = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries of these keys that are there and whole."""
        return self._run(lambda connection: _read(connection, keys), {})

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Store these entries, and make room for them."""
        values = {key: entry.pack() for key, entry in entries.items()}
        self._run(lambda connection: _write(connection, values, self.max_bytes), None)

    def size(self) -> tuple[int, int]:
        """Return (entries, bytes)."""

        def count(connection: sqlite3.Connection) -> tuple[int, int]:
            [row] = connection.execute("SELECT (SELECT count(*) FROM entries), bytes FROM total").fetchall()
            return int(row[0]), int(row[1])

        return self._run(count, (0, 0))

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @property
    def usable(self) -> bool:
        """False once the file proved damaged or unreachable."""
        return not self._damaged

    def _run(self, work: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """Return what `work` returns; after an error, warn and return `otherwise`."""
        with self._lock:
            try:
                return work(self._connected())
            except (sqlite3.Error, OSError, struct.error, ValueError) as error:
                busy, reason = isinstance(error, sqlite3.OperationalError) and "locked" in str(error), str(error)
        self.close()
        self._damaged = not busy
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
    """Return the entries whose checksum holds, and mark those not used for STALE seconds as used now."""
    entries, stale, now = {}, [], int(time.time())
    for group in _groups(keys):
        statement = f"SELECT key, value, sum, used FROM entries WHERE key IN ({_marks(group)})"
        for key, value, checksum, used in connection.execute(statement, group).fetchall():
            if checksum == _checksum(key, value):
                entries[key] = Entry.unpack(value)
                stale += [key] * (used < now - STALE)
    for group in _groups(stale):
        connection.execute(f"UPDATE entries SET used = ? WHERE key IN ({_marks(group)})", [now, *group])
    return entries


def _write(connection: sqlite3.Connection, values: Mapping[bytes, bytes], max_bytes: int) -> None:
    """In one transaction, add the values, add their sizes to the total, and delete the oldest if that is over the bound."""
    now, grown = int(time.time()), sum(len(value) + OVERHEAD for value in values.values())
    connection.execute("BEGIN IMMEDIATE")
    for group in _groups(list(values)):
        statement = f"SELECT length(value) FROM entries WHERE key IN ({_marks(group)})"
        grown -= sum(size + OVERHEAD for (size,) in connection.execute(statement, group))
    rows = [(key, value, _checksum(key, value), now) for key, value in values.items()]
    connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)
    connection.execute("UPDATE total SET bytes = bytes + ?", [grown])
    [[total]] = connection.execute("SELECT bytes FROM total").fetchall()
    if total > max_bytes:
        _evict(connection, total, room=max_bytes * 9 // 10)  # a tenth more than needed, so that not every call evicts
    connection.execute("COMMIT")
    connection.execute("PRAGMA incremental_vacuum").fetchall()


def _evict(connection: sqlite3.Connection, total: int, *, room: int) -> None:
    """Delete the entries that were not used for longest, until the rest takes at most `room` bytes."""
    evicted: list[list[bytes]] = []
    for key, size in connection.execute("SELECT key, length(value) FROM entries ORDER BY used"):
        if total <= room:
            break
        evicted.append([key])
        total -= size + OVERHEAD
    connection.executemany("DELETE FROM entries WHERE key = ?", evicted)
    connection.execute("UPDATE total SET bytes = ?", [total])


def _marks(keys: Sequence[bytes]) -> str:
    return ",".join("?" * len(keys))


def _checksum(key: bytes, value: bytes) -> bytes:
    return xxhash.xxh3_128_digest(key + value)


def _groups(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), KEYS):
        yield keys[start : start + KEYS]


def content_key(index: int, item: Item, card: EncoderCard, task: str) -> bytes:
    """Return the sha256 over a text, an image or a pair, the encoder, and the full task it is encoded for.

    index: the input's number, for the TypeError.
    """
    text, image = split_item(index, item)
    running = hashlib.sha256(f"{VERSION}\0{card.fingerprint}\0{task}\0".encode())
    if text is not None:
        content = text.encode("utf-8", "surrogatepass")
        running.update(b"text %d\0" % len(content) + content)
    if image is not None:
        # The pixels, and everything that decides how they are read: mode, palette, transparency, orientation.
        how = (image.mode, image.size, image.getpalette(), image.info.get("transparency"), image.getexif().tobytes())
        running.update(f"image {how!r}\0".encode())
        running.update(image.tobytes())
    return running.digest()


def cached(encoder: Encoder, cache: EmbeddingCache | str | Path, *, max_bytes: int = MAX_BYTES) -> Encoder:
    """Return the encoder behind a cache. A path is opened as a cache of at most `max_bytes`."""
    store = cache if isinstance(cache, EmbeddingCache) else EmbeddingCache(cache, max_bytes=max_bytes)
    kind = CachedImageEncoder if isinstance(encoder, ImageEncoder) else CachedEncoder
    return cast("Encoder", kind(encoder, store))  # the methods that are not here are the encoder's own, by __getattr__


class CachedEncoder:
    """An `Encoder` that asks its cache first. Everything but the three ways to encode is the encoder's own."""

    def __init__(self, encoder: Encoder, cache: EmbeddingCache) -> None:
        self.encoder = encoder
        self.cache = cache

    def __getattr__(self, name: str) -> object:
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
        """Return an entry per item, from the cache or new; None where the encoder has to see all items at once."""
        try:
            keys = [content_key(i, item, self.card, task) for i, item in enumerate(items)]
        except TypeError:
            return None  # the encoder knows which inputs it takes
        known = self.cache.get([*dict.fromkeys(keys)])
        if not truncate:
            known = {key: entry for key, entry in known.items() if not entry.cut}
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        new = self._encode_missing(missing, task, truncate=truncate) if missing else {}
        if new is None:
            return None
        entries = known | new
        return [entries[key] for key in keys]

    def _encode_missing(self, missing: Mapping[bytes, Item], task: str, *, truncate: bool) -> dict[bytes, Entry] | None:
        """Encode items and put them into the cache; None if they cannot be encoded by themselves."""
        items = [*missing.values()]
        try:
            encoding = self.encoder.encode(items, task=task, truncate=truncate)
        except EncodeError:
            return None  # encoding all items raises it again, with the number by which the caller knows the input
        cut = self._which_were_cut(items, encoding.truncated)
        if cut is None:
            return None
        new = {key: _entry(encoding, i, cut=cut[i]) for i, key in enumerate(missing)}
        self.cache.put(new)
        return new

    def _which_were_cut(self, items: Sequence[Item], count: int) -> list[bool] | None:
        """Return which items were cut, if the encoder says how many: those over its limit. None if that is another number."""
        if count in (0, len(items)):
            return [count > 0] * len(items)
        tokens = self.encoder.count_tokens([split_item(i, item)[0] or "" for i, item in enumerate(items)])
        cut: list[bool] = (tokens > self.card.max_tokens).tolist()
        return cut if sum(cut) == count else None


class CachedImageEncoder(CachedEncoder):
    """A `CachedEncoder` that is an `ImageEncoder`, too: isinstance does not see what `__getattr__` finds."""

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        return cast("ImageEncoder", self.encoder).image_size(width, height)

    def patches(self, width: int, height: int) -> Patches:
        return cast("ImageEncoder", self.encoder).patches(width, height)


def _entry(encoding: Encoding, i: int, *, cut: bool) -> Entry:
    dense, multi = encoding.dense, encoding.multi
    return Entry(None if dense is None else dense[i], None if multi is None else multi[i], cut)


def _joined(entries: Sequence[Entry], card: EncoderCard, *, truncate_dim: int | None) -> Encoding:
    """Return the entries as one Encoding, dense vectors cut to `truncate_dim`."""
    dense = multi = None
    if card.dims:
        rows = np.stack([entry.dense for entry in entries if entry.dense is not None])
        dense = unit_rows(rows) if truncate_dim is None else truncate_dims(rows, truncate_dim)
    if card.multi_dims:
        multi = MultiVectors.pack([entry.multi for entry in entries if entry.multi is not None])
    return Encoding(dense=dense, multi=multi, truncated=sum(entry.cut for entry in entries))

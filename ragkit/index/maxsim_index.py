"""MaxSimIndex: multi-vectors on disk under the user's own keys, without documents.

    index = MaxSimIndex.open("vectors", dim=128, precision="int8")     # created on first use
    index.add(keys, multivectors)          # (t, d) arrays, as MultiVectorEncoder.encode_document returns them
    index.delete([7])
    index.commit()                         # durable, and seen by every reader
    keys, scores = index.search(query, k=10)

The store, the commit and the format are those of `Index`: immutable checksummed segments, one writer, any number of readers,
tombstones. This object sees its own additions and deletions at once; others see them after the commit, all or none. A process
that dies before the commit leaves the index as it was. Each key is a row of the catalog's table of documents.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, overload

import numpy as np

from ragkit.core.arrays import MultiVectors, top_k
from ragkit.core.errors import NotAnIndex, RecipeMismatch
from ragkit.core.space import Space
from ragkit.core.types import Array, Document, Floats, Ints, Json
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.locks import writer_lock
from ragkit.store.local.reader import Ranked
from ragkit.store.local.rewrite import compact
from ragkit.store.local.store import INDEX_FILES, Store
from ragkit.store.values import CHUNK, Commit, Origin, Prepared
from ragkit.store.vectors import maxsim
from ragkit.store.vectors.multi_layout import Layout, Precision, Stored
from ragkit.store.vectors.tiles import Items, Scores

if TYPE_CHECKING:
    from ragkit.care.export import ExportReport
    from ragkit.care.verify import Finding

LOCK_TIMEOUT = 10.0  # seconds
SETTING = "maxsim"  # the catalog's setting that distinguishes such an index from one of documents
REPAIR = "compact(), which makes coarse vectors anew; what else is damaged, restore from a backup, or add it again"
IDENTITY = "key:"  # before a key, it is the identity of its row of the table of documents
NO_DOCUMENT = Document(text="", mime="")

Keys = Sequence[int] | Array


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """The parts of a score, by query token: `tokens` (q,) int64, the item's vector that matched best; `shares` (q,) float64."""

    tokens: Ints
    shares: Scores

    @property
    def score(self) -> float:
        """Return the sum of the shares: exactly the score of a search."""
        return float(self.shares.sum())


class MaxSimIndex:
    """Multi-vectors on disk, searched by exact MaxSim. Open one with `MaxSimIndex.open`; threads may share it."""

    def __init__(self, path: Path, catalog: Catalog, layout: Layout, *, device: str | None = None) -> None:
        self.path = path
        self.layout = layout
        self._store = Store(path, catalog, recall=1.0, layouts={CHUNK: layout})
        self._store.device = device
        self._store.repair_command = REPAIR
        self._lock = threading.RLock()
        self._added: dict[int, Stored] = {}  # since the last commit
        self._deleted: set[int] = set()
        self._known: tuple[int, dict[int, int | None]] = (0, {})  # a commit's number, and the live versions of keys in it

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        dim: int | None = None,
        precision: Precision | None = None,
        coarse: int | None = None,
        device: str | None = None,
        create: bool = True,
    ) -> MaxSimIndex:
        """Open the index in the folder `path`, or create it there.

        dim: the width of the vectors, needed to create an index. precision: "int8" (the default, for vectors of unit length),
        "float16" or "float32". coarse: with 4, say, one more int8 vector is kept for every four vectors of an item, which must
        have unit length; `search(…, candidates=256)` uses it to choose which items to score exactly. The default 0 keeps none. An
        index that exists remembers these three: leave them out. device: "cuda" scans what is committed with torch, to the same
        scores within `ragkit.store.vectors.maxsim_torch.TOLERANCE`; None uses the kernel.

        Raises NotAnIndex if the folder holds something else, or if there is no index and `create` is False; RecipeMismatch if the
        index was made with other values.
        """
        path = Path(path).absolute()
        if not (path / "catalog.db").exists():
            _create(path, dim, precision, coarse, create=create)
        catalog = Catalog(path / "catalog.db")
        try:
            layout = _stored_layout(catalog, path, {"dim": dim, "precision": precision, "coarse": coarse})
        except BaseException:
            catalog.close()
            raise
        return cls(path, catalog, layout, device=device)

    def close(self) -> None:
        """Close all files. What was not committed is lost."""
        self._store.close()

    def __enter__(self) -> MaxSimIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of keys, uncommitted changes included."""
        with self._lock:
            outdated = self._committed(self._deleted | set(self._added))
            return self._store.reader().commit.documents - len(outdated) + len(self._added)

    def __repr__(self) -> str:
        coarse = f", coarse={self.layout.coarse}" if self.layout.coarse else ""
        return f"MaxSimIndex({str(self.path)!r}, dim={self.layout.dims}, precision={self.layout.precision!r}{coarse})"

    # Changing

    def add(self, keys: Keys, vectors: MultiVectors | Sequence[Array]) -> None:
        """Store items under keys, one (t, d) array each, t >= 1; an item replaces the one stored under the same key.

        Raises ValueError, and adds nothing, if the keys are not distinct int64, the width differs, or a value cannot be stored.
        """
        numbers = _key_list(keys, distinct=True)
        packed = _pack(vectors, len(numbers))
        if not numbers:
            return
        stored = self.layout.store(packed)
        offsets = packed.offsets
        with self._lock:
            for at, key in enumerate(numbers):
                rows = slice(int(offsets[at]), int(offsets[at + 1]))
                self._added[key] = Stored(stored.values[rows], stored.lengths[at : at + 1], stored.loss)
                self._deleted.add(key)

    def delete(self, keys: Keys) -> int:
        """Delete keys and return how many existed; others are ignored."""
        numbers = set(_key_list(keys, distinct=True))
        with self._lock:
            uncommitted = numbers & set(self._added)
            committed = self._committed(numbers - uncommitted - self._deleted)
            for key in uncommitted:
                del self._added[key]
            self._deleted |= numbers
            return len(uncommitted) + len(committed)

    def commit(self, *, lock_timeout: float = LOCK_TIMEOUT) -> int:
        """Make all additions and deletions durable at once; return the commit's number. Raises IndexLocked, StorageError."""
        with self._lock, self._store.writer(timeout=lock_timeout) as writer:
            known = self._committed(self._deleted, writer.latest)
            replaced = {key: known[key] for key in self._added if key in known}
            for key, row in self._added.items():
                writer.add(_prepared(key, row, replaced.get(key)))
            writer.delete(version for key, version in known.items() if key not in replaced)
            commit = writer.commit("add" if self._added else "delete")
            self._added, self._deleted, self._known = {}, set(), (0, {})
            return commit.number

    def compact(self, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        """Commit, then rewrite all segments as one without deleted rows. No score changes."""
        self.commit(lock_timeout=lock_timeout)
        with self._store.writer(timeout=lock_timeout) as writer:
            compact(writer)

    def _committed(self, keys: set[int], latest: Commit | None = None) -> dict[int, int]:
        """Return the live version of each key that the catalog has. If `latest` is the commit of the versions known already, only
        other keys are looked up."""
        number, known = self._known
        if latest is None or number != latest.number:
            known = {}
        if unknown := keys - known.keys():
            reader = self._store.reader()
            number = reader.commit.number
            rows = reader.find(map(_identity, unknown), by="identity")
            versions = {int(row.identity.removeprefix(IDENTITY)): row.id for row in rows}
            known = (self._known[1] if number == self._known[0] else {}) | {key: versions.get(key) for key in unknown}
            self._known = (number, known)
        return {key: id for key in keys if (id := known.get(key)) is not None}

    # Searching

    @overload
    def search(
        self,
        query: Array,
        k: int = 10,
        *,
        allowed: Keys | None = None,
        candidates: int | None = None,
        threads: int | None = None,
    ) -> Ranked: ...
    @overload
    def search(
        self,
        query: Sequence[Array],
        k: int = 10,
        *,
        allowed: Keys | None = None,
        candidates: int | None = None,
        threads: int | None = None,
    ) -> list[Ranked]: ...
    def search(
        self,
        query: Array | Sequence[Array],
        k: int = 10,
        *,
        allowed: Keys | None = None,
        candidates: int | None = None,
        threads: int | None = None,
    ) -> Ranked | list[Ranked]:
        """Return the best min(k, allowed) keys of a query (q, d), (k,) int64, and their scores, (k,) float64: best first, ties by
        the smaller key. For a list of queries, return a list. Uncommitted items are searched too.

        allowed: the keys to search; None for all. candidates: if the index has coarse vectors, score only this many items, at
        least k, those that the coarse vectors rank first. Every score is exact, but a good item may be missed; None scores all
        items. Raises ValueError if there are no coarse vectors.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if candidates is not None and (candidates < 1 or not self.layout.coarse):
            raise ValueError(f"candidates must be at least 1, of an index made with coarse=4, say; got {candidates} for {self}")
        if isinstance(query, np.ndarray) and query.ndim == 2:
            return self._search([query], k, allowed, candidates=candidates, threads=threads)[0]
        return self._search(query, k, allowed, candidates=candidates, threads=threads)

    def _search(
        self, queries: Iterable[Array], k: int, allowed: Keys | None, *, candidates: int | None, threads: int | None
    ) -> list[Ranked]:
        rows = [np.asarray(query, dtype=np.float32) for query in queries]
        among = None if allowed is None else np.unique(np.array(_key_list(allowed, distinct=False), dtype=np.int64))
        with self._lock:
            reader, added, deleted = self._store.reader(), dict(self._added), np.array(sorted(self._deleted), dtype=np.int64)
        results = reader.search_multi(rows, k, keys=among, without=deleted, threads=threads, candidates=candidates)
        if not added:
            return results
        items = _items(added, self.layout)
        uncommitted = maxsim.scan(rows, items, k=k, allowed=None if among is None else np.isin(items.keys, among))
        return [_merge(first, second, k) for first, second in zip(results, uncommitted, strict=True)]

    def explain(self, query: Array, key: int) -> Shares:
        """Return which of an item's vectors each query token matched best, and its share of the score; KeyError for an unknown
        key."""
        with self._lock:
            added, deleted, reader = self._added.get(key), key in self._deleted, self._store.reader()
        rows: Floats = np.asarray(query, dtype=np.float32)
        if added is not None:
            return Shares(*maxsim.explain(rows, _items({key: added}, self.layout), 0))
        if deleted:
            raise KeyError(key)
        return Shares(*reader.matches(Space.MULTI, rows, key))

    # Looking inside

    def stats(self) -> list[Json]:
        """Return, for each committed segment, its rows, live rows, tokens, dims, precision and number of coarse vectors."""
        return list(self._store.reader().multi_stats())

    def export(self, target: str | Path) -> ExportReport:
        """Write the committed keys and vectors to the new folder `target`: see docs/exchange.md."""
        from ragkit.care.export import export

        return export(self._store, Path(target))

    @classmethod
    def import_from(
        cls, path: str | Path, folder: str | Path, *, coarse: int | None = None, lock_timeout: float = LOCK_TIMEOUT
    ) -> int:
        """Add what `export` wrote to `folder` to the index at `path`, under the same keys, and return how many items.

        The index is created if there is none, with the exported `coarse` unless another is passed; see `open`. An item replaces
        the one stored under the same key. Raises RecipeMismatch, Damaged, StorageError; ValueError if `coarse` is not possible
        for these vectors.
        """
        from ragkit.care.export_folder import open_export
        from ragkit.care.import_ import BATCH_BYTES, keyed_vectors

        layout, items = keyed_vectors(open_export(Path(folder)))
        if coarse is None and not (Path(path) / "catalog.db").exists():
            coarse = layout.coarse
        with cls.open(path, dim=layout.dims, precision=layout.precision, coarse=coarse) as index:
            count = size = 0
            for key, stored in items:
                index._added[key] = stored
                index._deleted.add(key)
                count, size = count + 1, size + stored.values.nbytes
                if size >= BATCH_BYTES:
                    index.commit(lock_timeout=lock_timeout)
                    size = 0
            index.commit(lock_timeout=lock_timeout)
            return count

    def verify(self) -> list[Finding]:
        """Compare every checksum, and the catalog with the segments; return what is damaged."""
        from ragkit.care.verify import verify

        return verify(self._store)


def _create(path: Path, dim: int | None, precision: Precision | None, coarse: int | None, *, create: bool) -> None:
    if not create:
        raise NotAnIndex(f"there is no index at {path}")
    if dim is None:
        raise ValueError(f"there is no index at {path} yet; to create it, say how wide its vectors are: dim=128")
    layout = Layout(_python_int(dim), precision or "int8", _python_int(coarse or 0))
    if path.exists() and (not path.is_dir() or any(entry.name not in INDEX_FILES for entry in path.iterdir())):
        raise NotAnIndex(f"{path} is not empty and holds no index. Name an empty or a new folder.")
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path / "LOCK", timeout=LOCK_TIMEOUT):
        if not (path / "catalog.db").exists():  # another process may have been quicker
            setting = {"dim": layout.dims, "precision": layout.precision, "coarse": layout.coarse}
            Store.create(path, {SETTING: setting}, lexical=False)


def _stored_layout(catalog: Catalog, path: Path, settings: Json) -> Layout:
    """Return the layout that an index was made with; RecipeMismatch if it disagrees with the settings that are not None."""
    catalog.check_format()
    setting = catalog.setting(SETTING)
    if setting is None:
        raise NotAnIndex(f"{path} is an index of documents: open it with ragkit.Index")
    stored = {"coarse": 0, **setting}  # indexes older than the setting have none
    for name, value in settings.items():
        if value not in (None, stored[name]):
            way_out = f", or import an export of it to a new index with coarse={value!r}" if name == "coarse" else ""
            raise RecipeMismatch(f"{path} was made with {name}={stored[name]!r}, not {value!r}: leave it out{way_out}")
    return Layout(stored["dim"], stored["precision"], stored["coarse"])


def _python_int(number: int) -> int:
    """Return a number of NumPy's as one of Python's, which JSON takes."""
    plain: int = number.item() if isinstance(number, np.generic) else number
    return plain


def _key_list(keys: Keys, *, distinct: bool) -> list[int]:
    numbers = np.asarray(keys)
    if numbers.size == 0:
        return []
    if numbers.ndim != 1 or not _fits_int64(numbers):
        raise ValueError(f"keys are a list of int64, got {numbers.dtype} of shape {numbers.shape}")
    if distinct and (repeated := len(numbers) - len(np.unique(numbers))):
        raise ValueError(f"of {len(numbers)} keys, {repeated} repeat another: each key may be named once")
    listed: list[int] = numbers.tolist()
    return listed


def _fits_int64(numbers: Array) -> bool:
    return numbers.dtype.kind == "i" or (numbers.dtype.kind == "u" and int(numbers.max()) <= np.iinfo(np.int64).max)


def _pack(vectors: MultiVectors | Sequence[Array], count: int) -> MultiVectors:
    if len(vectors) != count:
        raise ValueError(f"{count} keys need as many items, got {len(vectors)}")
    if isinstance(vectors, MultiVectors):
        return vectors
    if not count:
        return MultiVectors(np.empty((0, 1), np.float32), np.zeros(1, np.int64))
    arrays = [np.asarray(item) for item in vectors]
    for at, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[1]:
            raise ValueError(f"item {at} must be (t, {arrays[0].shape[-1]}), got {array.shape}")
    return MultiVectors.pack(arrays)


def _identity(key: int) -> str:
    return f"{IDENTITY}{key}"


def _prepared(key: int, row: Stored, replaces: int | None) -> Prepared:
    origin = Origin(identity=_identity(key), source=str(key), content_hash="", lang="")
    return Prepared(origin, NO_DOCUMENT, (), dense=None, replaces=replaces, multi=row, key=key)


def _items(rows: dict[int, Stored], layout: Layout) -> Items:
    joined = Stored.join(list(rows.values()))
    offsets = np.concatenate([[0], np.cumsum(joined.lengths)]).astype(np.int64)
    return Items(joined.values, offsets, np.array(list(rows), dtype=np.int64), layout.quantiser)


def _merge(first: Ranked, second: Ranked, k: int) -> Ranked:
    """Return the k best of both."""
    keys, scores = np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
    best = top_k(scores, keys, k)
    return keys[best], scores[best]

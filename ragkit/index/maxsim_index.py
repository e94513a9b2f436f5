"""MaxSimIndex: multi-vectors under their user's own keys, on disk, without documents.

    index = MaxSimIndex.open("vectors", dim=128, precision="int8")     # created on first use
    index.add(keys, multivectors)          # (t, d) arrays, as MultiVectorEncoder.encode_document returns them
    index.delete([7])
    index.commit()                         # durable, and seen by every reader
    keys, scores = index.search(query, k=10)

The store, the commit and the format are those of `Index`: immutable checksummed segments, one writer, any number of readers,
tombstones. What was added or deleted is searchable at once in this object, and by others after the commit, whole or not at all;
a process that dies before it leaves the index as it was. Each key is a row of the catalog's table of documents.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import MultiVectors, top_k
from ragkit.core.errors import NotAnIndex, RecipeMismatch
from ragkit.core.space import Space
from ragkit.core.types import Document, Ints
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.locks import writer_lock
from ragkit.store.local.reader import Reader
from ragkit.store.local.rewrite import compact
from ragkit.store.local.store import Store
from ragkit.store.values import CHUNK, Commit, Origin, Prepared
from ragkit.store.vectors import maxsim
from ragkit.store.vectors.multi_layout import Layout, Stored
from ragkit.store.vectors.tiles import Items, Scores

if TYPE_CHECKING:
    from ragkit.care.export import ExportReport
    from ragkit.care.verify import Finding

LOCK_TIMEOUT = 10.0  # seconds
SETTING = "maxsim"  # the setting of the catalog that tells such an index from one of documents
OURS = {"segments", "lexical", "LOCK", "catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal"}
MEND = "compact(), which makes coarse vectors anew; what else is damaged, restore from a backup, or add it again"
NOTHING = Document(text="", mime="")

Keys = Sequence[int] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """A score taken apart: per query token, `tokens` (q,) int64, which of the item's vectors won, and `shares` (q,) float64."""

    tokens: Ints
    shares: Scores

    @property
    def score(self) -> float:
        """The sum of the shares: exactly the score of a search."""
        return float(self.shares.sum())


class MaxSimIndex:
    """Multi-vectors on disk, searched by exact MaxSim. Open one with `MaxSimIndex.open`; threads may share it."""

    def __init__(self, path: Path, catalog: Catalog, layout: Layout, *, device: str | None = None) -> None:
        self.path = path
        self.layout = layout
        self._store = Store(path, catalog, recall=1.0, layouts={CHUNK: layout})
        self._store.device = device
        self._store.repair_command = MEND
        self._lock = threading.RLock()
        self._added: dict[int, Stored] = {}  # since the last commit
        self._deleted: set[int] = set()
        self._known: tuple[int, dict[int, int | None]] = (0, {})  # the live versions of keys, as of a commit

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        dim: int | None = None,
        precision: str | None = None,
        coarse: int | None = None,
        device: str | None = None,
        create: bool = True,
    ) -> MaxSimIndex:
        """Open the index in the folder `path`, or create it there; `dim` is needed then, and precision is "int8" unless given
        ("float16", "float32"). int8 takes vectors of unit length. Later all may be left out. device: "cuda" scans what is
        committed with torch, to the same scores within `ragkit.store.vectors.maxsim_torch.TOLERANCE`; None is the kernel.

        coarse: 4, say, keeps one int8 vector more for every four of an item, of unit length too, by which `search(…,
        candidates=256)` finds what is worth an exact look; 0, unless given, keeps none.

        Raises NotAnIndex for a folder that holds something else, or for none when `create` is False; RecipeMismatch.
        """
        path = Path(path).absolute()
        if not (path / "catalog.db").exists():
            _create(path, dim, precision, coarse, create=create)
        catalog = Catalog(path / "catalog.db")
        try:
            catalog.check_format()
            stored = catalog.setting(SETTING)
            if stored is None:
                raise NotAnIndex(f"{path} is an index of documents: open it with ragkit.Index")
            stored = {"coarse": 0, **stored}  # of which indexes made before there was one say nothing
            for name, given in (("dim", dim), ("precision", precision), ("coarse", coarse)):
                if given not in (None, stored[name]):
                    other = f", or import an export of it to a new index with coarse={given!r}" if name == "coarse" else ""
                    raise RecipeMismatch(f"{path} was made with {name}={stored[name]!r}, not {given!r}: leave it out{other}")
        except BaseException:
            catalog.close()
            raise
        return cls(path, catalog, Layout(stored["dim"], stored["precision"], stored["coarse"]), device=device)

    def close(self) -> None:
        """Let go of files. What was not committed is lost."""
        self._store.close()

    def __enter__(self) -> MaxSimIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """How many keys there are, those not committed yet included."""
        with self._lock:
            known = self._committed(self._deleted | set(self._added))
            return self._store.reader().commit.documents - len(known) + len(self._added)

    def __repr__(self) -> str:
        coarse = f", coarse={self.layout.coarse}" if self.layout.coarse else ""
        return f"MaxSimIndex({str(self.path)!r}, dim={self.layout.dims}, precision={self.layout.precision!r}{coarse})"

    # Changing

    def add(self, keys: Keys, vectors: MultiVectors | Sequence[npt.NDArray[Any]]) -> None:
        """Put items under keys, one (t, d) array each, t >= 1; a key that is there already is replaced. ValueError for keys that
        are not distinct int64, another width, or values that cannot be kept; then nothing was added."""
        wanted = _keys(keys)
        packed = _packed(vectors, len(wanted))
        if len(wanted) == 0:
            return
        stored = self.layout.store(packed)
        offsets = packed.offsets
        with self._lock:
            for at, key in enumerate(wanted):
                rows = slice(int(offsets[at]), int(offsets[at + 1]))
                self._added[key] = Stored(stored.values[rows], stored.lengths[at : at + 1], stored.loss)
                self._deleted.add(key)

    def delete(self, keys: Keys) -> int:
        """Take keys out; those that are not there are passed over. How many there were."""
        wanted = set(_keys(keys))
        with self._lock:
            fresh = wanted & set(self._added)
            stored = set(self._committed(wanted - fresh - self._deleted))
            for key in fresh:
                del self._added[key]
            self._deleted |= wanted
            return len(fresh) + len(stored)

    def commit(self, *, lock_timeout: float = LOCK_TIMEOUT) -> int:
        """Make what was added and deleted durable, all at once; the number of the commit. Raises IndexLocked, StorageError."""
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
        """Commit, and rewrite all segments as one without deleted rows. No score changes."""
        self.commit(lock_timeout=lock_timeout)
        with self._store.writer(timeout=lock_timeout) as writer:
            compact(writer)

    def _committed(self, keys: set[int], latest: Commit | None = None) -> dict[int, int]:
        """The live version of each key that the catalog has; what is known as of the `latest` commit is not looked up again."""
        number, known = self._known
        if latest is None or number != latest.number:
            known = {}
        if unknown := keys - known.keys():
            reader = self._store.reader()
            number = reader.commit.number
            rows = reader.find(map(_identity, unknown), by="identity")
            versions = {int(row.identity.removeprefix("key:")): row.id for row in rows}
            known = (self._known[1] if number == self._known[0] else {}) | {key: versions.get(key) for key in unknown}
            self._known = (number, known)
        return {key: id for key in keys if (id := known.get(key)) is not None}

    # Searching

    @overload
    def search(
        self,
        query: npt.NDArray[Any],
        k: int = 10,
        *,
        allowed: Keys | None = None,
        candidates: int | None = None,
        threads: int | None = None,
    ) -> tuple[Ints, Scores]: ...
    @overload
    def search(
        self,
        query: Sequence[npt.NDArray[Any]],
        k: int = 10,
        *,
        allowed: Keys | None = None,
        candidates: int | None = None,
        threads: int | None = None,
    ) -> list[tuple[Ints, Scores]]: ...
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        allowed: Keys | None = None,
        candidates: int | None = None,
        threads: int | None = None,
    ) -> tuple[Ints, Scores] | list[tuple[Ints, Scores]]:
        """The best min(k, allowed) keys of a query (q, d), best first, ties by the smaller key, with their scores in float64;
        for a list of queries, a list. allowed: keys to answer from, None for all. What was not committed yet is found, too.

        candidates: of an index with coarse vectors, score only so many items, at least k, those that these rank first. Every
        score is exact, but a good item may be missed; None looks at all. ValueError where there are no coarse vectors.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if candidates is not None and (candidates < 1 or not self.layout.coarse):
            raise ValueError(f"candidates must be at least 1, of an index made with coarse=4, say; got {candidates} for {self}")
        queries = [query] if isinstance(query, np.ndarray) and query.ndim == 2 else list(query)
        queries = [np.asarray(one, dtype=np.float32) for one in queries]
        among = None if allowed is None else np.unique(np.array(_keys(allowed, distinct=False), dtype=np.int64))
        with self._lock:
            reader, fresh, hidden = self._store.reader(), dict(self._added), np.array(sorted(self._deleted), dtype=np.int64)
        found = reader.search_multi(queries, k, keys=among, without=hidden, threads=threads, candidates=candidates)
        if fresh:
            items = _items(fresh, self.layout)
            mask = None if among is None else np.isin(items.keys, among)
            parts = maxsim.scan(queries, items, k=k, allowed=mask)
            found = [_merged(one, two, k) for one, two in zip(found, parts, strict=True)]
        return found[0] if isinstance(query, np.ndarray) and query.ndim == 2 else found

    def explain(self, query: npt.NDArray[Any], key: int) -> Shares:
        """Which of an item's vectors each query token matched best, and its share; KeyError for a key that is not there."""
        with self._lock:
            fresh, gone = self._added.get(key), key in self._deleted
            reader: Reader = self._store.reader()
        rows = np.asarray(query, dtype=np.float32)
        if fresh is not None:
            return Shares(*maxsim.explain(rows, _items({key: fresh}, self.layout), 0))
        if gone:
            raise KeyError(key)
        return Shares(*reader.matches(Space.MULTI, rows, key))

    # Looking inside

    def stats(self) -> list[dict[str, Any]]:
        """Per committed segment: rows, how many are live, tokens, dims, precision, how many coarse vectors."""
        return list(self._store.reader().multi_stats())

    def export(self, target: str | Path) -> ExportReport:
        """Write what is committed, keys and vectors, to the new folder `target`: see docs/exchange.md."""
        from ragkit.care.export import export

        return export(self._store, Path(target))

    @classmethod
    def import_from(
        cls, path: str | Path, folder: str | Path, *, coarse: int | None = None, lock_timeout: float = LOCK_TIMEOUT
    ) -> int:
        """Put what `export` wrote to `folder` into the index at `path`, which is made where there is none, under the same keys;
        how many. Keys that are there already are replaced. coarse: as in `open`; a new index has that of the exported one, unless
        given. Raises RecipeMismatch, Damaged, StorageError; ValueError for vectors that `coarse` is not for."""
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
        """Compare every checksum, and the catalog with the segments. Empty where the index is whole."""
        from ragkit.care.verify import verify

        return verify(self._store)


def _create(path: Path, dim: int | None, precision: str | None, coarse: int | None, *, create: bool) -> None:
    if not create:
        raise NotAnIndex(f"there is no index at {path}")
    if dim is None:
        raise ValueError(f"there is no index at {path} yet; to create it, say how wide its vectors are: dim=128")
    chosen: Any = precision or "int8"
    layout = Layout(_plain(dim), chosen, _plain(coarse or 0))
    if path.exists() and (not path.is_dir() or any(entry.name not in OURS for entry in path.iterdir())):
        raise NotAnIndex(f"{path} is not empty and holds no index. Name an empty or a new folder.")
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path / "LOCK", timeout=LOCK_TIMEOUT):
        if not (path / "catalog.db").exists():  # another process may have been quicker
            setting = {"dim": layout.dims, "precision": layout.precision, "coarse": layout.coarse}
            Store.create(path, {SETTING: setting}, lexical=False)


def _plain(number: int) -> int:
    """NumPy's numbers as Python's, which JSON takes."""
    plain: int = number.item() if isinstance(number, np.generic) else number
    return plain


def _keys(keys: Keys, *, distinct: bool = True) -> list[int]:
    given = np.asarray(keys)
    if given.size == 0:
        return []
    if given.ndim != 1 or given.dtype.kind not in "iu" or (given.dtype.kind == "u" and given.max() > np.iinfo(np.int64).max):
        raise ValueError(f"keys are a list of int64, got {given.dtype} of shape {given.shape}")
    if distinct and len(np.unique(given)) != len(given):
        raise ValueError(f"{len(given)} keys were given, and {len(given) - len(np.unique(given))} of them twice")
    listed: list[int] = given.tolist()
    return listed


def _packed(vectors: MultiVectors | Sequence[npt.NDArray[Any]], count: int) -> MultiVectors:
    items = len(vectors)
    if items != count:
        raise ValueError(f"{count} keys need as many items, got {items}")
    if isinstance(vectors, MultiVectors) or not items:
        return vectors if isinstance(vectors, MultiVectors) else MultiVectors(np.empty((0, 1), np.float32), np.zeros(1, np.int64))
    arrays = [np.asarray(one) for one in vectors]
    for at, one in enumerate(arrays):
        if one.ndim != 2 or one.shape[1] != arrays[0].shape[1]:
            raise ValueError(f"item {at} must be (t, {arrays[0].shape[-1]}), got {one.shape}")
    return MultiVectors.pack(arrays)


def _identity(key: int) -> str:
    return f"key:{key}"


def _prepared(key: int, row: Stored, replaces: int | None) -> Prepared:
    origin = Origin(identity=_identity(key), source=str(key), content_hash="", lang="")
    return Prepared(origin, NOTHING, (), dense=None, replaces=replaces, multi=row, key=key)


def _items(rows: dict[int, Stored], layout: Layout) -> Items:
    joined = Stored.join(list(rows.values()))
    offsets = np.concatenate([[0], np.cumsum(joined.lengths)]).astype(np.int64)
    return Items(joined.values, offsets, np.array(list(rows), dtype=np.int64), layout.quantiser)


def _merged(one: tuple[Ints, Scores], two: tuple[Ints, Scores], k: int) -> tuple[Ints, Scores]:
    keys, scores = np.concatenate([one[0], two[0]]), np.concatenate([one[1], two[1]])
    best = top_k(scores, keys, k)
    return keys[best], scores[best]

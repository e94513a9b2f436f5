"""Single vectors: one unit row per key, searched by cosine. Positions in, positions and scores out.

A segment's vectors are three files in its folder, written once:

    <name>.npy     (n, d) float16 rows, an ordinary NumPy file: np.load(path, mmap_mode="r") reads it
    <name>.json    what was chosen and measured when it was written: DenseStats
    <name>.faiss   a FAISS index of 4-bit codes, only where it pays: it finds candidates, the rows decide

Rules. The rows are the truth: every score that leaves this module is the inner product of the query with a stored row,
summed in float64 by one function, so it does not depend on the path, the neighbours, the block or k. Compressed codes are
used only unfiltered or nearly so; a filter is a scan of the allowed rows, which is exact. Higher is better, ties break by
the smaller key, and exactly min(k, allowed) come back. Nothing is read before its checksum was compared.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import top_k, truncate_dims
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Array, Floats, Ints, Json, Mask
from ragkit.store.local.files import CheckedFolder, map_array
from ragkit.store.vectors.cosines import BLOCK, MARGIN, SCORES, Halves, block_scores, cosines
from ragkit.store.vectors.dense_compress import (
    DEPTH,
    DenseStats,
    FaissIndex,
    compress,
    faiss_module,
    nearest,
    worth_compressing,
)
from ragkit.store.vectors.rows import RowBlocks, npy_header

FEW = 6  # queries; up to here FAISS scans the rows in place, above it converting blocks once for all queries is faster
GATHER = 0.1  # share of allowed rows below which they are gathered instead of tested in place
MOSTLY = 0.8  # share of allowed rows from which the compressed index serves; dead rows only cost it candidates


# --- writing ----------------------------------------------------------------------------------------------------------


def write_dense(folder: Path, name: str, blocks: Iterable[Floats], *, recall: float = 0.99, seed: int = 0) -> DenseStats:
    """Write rows and, where it pays, the compressed index; return what was chosen and measured.

    blocks: (m, d) float32 unit rows, streamed; at least one, all of one width. `recall` is the share of the exact first ten
    that unfiltered searches shall find: the effort is raised until it is measured, and if it cannot be reached there is no
    compressed index. The files are garbage until a commit records them. ValueError: no rows, uneven or not finite.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be in (0, 1], got {recall}")
    path = folder / f"{name}.npy"
    with path.open("wb") as file:
        rows, dims = _write_rows(file, blocks)
    stats = DenseStats(rows=rows, dims=dims, recall_target=recall)
    if recall < 1 and worth_compressing(rows, dims):
        stored: Halves = np.load(path, mmap_mode="r", allow_pickle=False)
        stats = compress(stored, folder / f"{name}.faiss", recall=recall, seed=seed)
    (folder / f"{name}.json").write_text(json.dumps(asdict(stats), indent=1) + "\n")
    return stats


def _write_rows(file: BinaryIO, blocks: Iterable[Floats]) -> tuple[int, int]:
    """Write the rows in float16; return how many, and their dims."""
    rows, dims = 0, 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] == 0 or (dims and block.shape[1] != dims):
            raise ValueError(f"rows must be (m, {dims or 'd'}), got {block.shape}")
        if not dims:
            dims = block.shape[1]
            file.write(npy_header("<f2", 0, dims))
        halves = np.ascontiguousarray(block, dtype="<f2")
        if not np.isfinite(halves).all():
            raise ValueError(f"rows {rows} to {rows + len(block)} hold a value that is not finite in float16")
        file.write(halves.data)
        rows += len(block)
    if rows == 0:
        raise ValueError("no rows: a segment has at least one")
    file.seek(0)
    file.write(npy_header("<f2", rows, dims))
    return rows, dims


# --- reading ----------------------------------------------------------------------------------------------------------


class _Mapped:
    """What a search needs, held together: the mapped rows, and FAISS looking at the same memory (None without FAISS)."""

    def __init__(self, stored: Halves) -> None:
        self.stored = stored
        self.flat = _flat_view(stored)


def _flat_view(stored: Halves) -> FaissIndex | None:
    """Return a FAISS index over the mapped rows themselves, without a copy; None without FAISS, or where it has no views."""
    try:
        faiss = faiss_module()
        flat = faiss.IndexScalarQuantizer(stored.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        codes: FaissIndex = flat.codes
        start = faiss.swig_ptr(stored.view(np.uint8).reshape(-1))
        # The vector of codes becomes a view of foreign memory, as when FAISS maps a file itself: never freed, never grown.
        codes.is_owned = False
        codes.view_data = codes.c_ptr = start
        codes.view_size = codes.c_size = stored.nbytes
    except (MissingExtra, AttributeError):
        return None
    flat.ntotal = len(stored)
    return flat


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """A search, checked: the k best of `count` rows, k at most that many. `dims` None: all; `allowed` None: all rows."""

    queries: Floats
    k: int
    keys: Ints
    allowed: Mask | None
    count: int
    dims: int | None


class DenseReader:
    """A segment's vectors, mapped read-only. Thread-safe; `close()` lets go of the map when running searches end."""

    def __init__(self, folder: CheckedFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        folder.verify(f"{name}.json")
        self.stats = DenseStats(**json.loads(folder.file(f"{name}.json").read_text()))
        path = folder.file(f"{name}.npy")
        self._blocks = RowBlocks(folder, path.name, rows=self.stats.rows, row_bytes=2 * self.stats.dims)
        self._lock = threading.Lock()
        self._compressed: FaissIndex | None = None
        self._open: _Mapped | None = _Mapped(map_array(path))

    @property
    def n(self) -> int:
        return self.stats.rows

    @property
    def dims(self) -> int:
        return self.stats.dims

    def describe(self) -> Json:
        """Return the stats as plain values, for JSON."""
        return asdict(self.stats)

    def close(self) -> None:
        """Let go of the map. Later searches are a ValueError; running ones end well."""
        with self._lock:
            self._open = None
            self._compressed = None

    def rows(self, positions: npt.NDArray[np.int64]) -> Floats:
        """Return the stored vectors at positions, (m, d) float32."""
        stored = self._mapped().stored
        self._blocks.verify(positions, positions + 1)
        return np.asarray(stored[positions], dtype=np.float32)

    def search(
        self,
        queries: Floats,
        k: int,
        *,
        keys: Ints,
        allowed: Mask | None = None,
        dims: int | None = None,
        exact: bool = False,
    ) -> tuple[Ints, Floats]:
        """Return the k best rows per query: positions and cosines, (q, min(k, allowed)) int64 and float32, best first.

        queries (q, d) float32 unit rows, or (q, dims) already cut; keys (n,) int64 break ties; allowed (n,) bool. `dims`
        compares prefixes, renormalised on both sides. `exact` scans the rows even where a compressed index would serve.
        """
        search = self._checked(queries, k, keys=keys, allowed=allowed, dims=dims)
        positions = np.empty((len(queries), search.k), dtype=np.int64)
        scores = np.empty((len(queries), search.k), dtype=np.float32)
        todo = np.arange(len(queries))
        if search.k and not exact and search.dims is None and self._compressed_pays(search):
            todo = self._search_compressed(search, positions, scores)
        if search.k and len(todo):
            positions[todo], scores[todo] = self._scan(replace(search, queries=search.queries[todo]))
        return positions, scores

    def _checked(self, queries: Floats, k: int, *, keys: Ints, allowed: Mask | None, dims: int | None) -> _Search:
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        if dims is not None and not 1 <= dims <= self.dims:
            raise ValueError(f"dims must be between 1 and {self.dims}, got {dims}")
        if queries.ndim != 2 or queries.shape[1] not in {self.dims, dims}:
            raise ValueError(f"queries must be (q, {self.dims}), got {queries.shape}")
        self._check_rows("keys", keys)
        if allowed is not None:
            self._check_rows("allowed", allowed)
        dims = None if dims == self.dims else dims
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        cut = queries if dims is None else truncate_dims(queries, dims)
        count = self.n if allowed is None else int(np.count_nonzero(allowed))
        return _Search(cut, min(k, count), keys, None if count == self.n else allowed, count, dims)

    def _check_rows(self, name: str, column: Array) -> None:
        if column.shape != (self.n,):
            raise ValueError(f"{name} must be ({self.n},), one per row, got {column.shape}")

    def _candidates_wanted(self, k: int) -> int:
        return self.stats.factor * max(k, DEPTH)

    def _compressed_pays(self, search: _Search) -> bool:
        compressed = self.stats.structure != "rows" and search.count >= MOSTLY * self.n
        return compressed and 8 * self._candidates_wanted(search.k) < self.n

    def _search_compressed(self, search: _Search, positions: Ints, scores: Floats) -> Ints:
        """Fill in positions and scores (q, k); return the queries for which only a scan will do, ascending."""
        stored, index, allowed = self._mapped().stored, self._codes(), search.allowed
        wanted = self._candidates_wanted(search.k)
        count = wanted if allowed is None else 2 * wanted
        near, nearest_positions = nearest(index, search.queries, count, probes=self.stats.probes)
        left = []
        for row, query in enumerate(search.queries):
            found = nearest_positions[row]
            usable = found >= 0 if allowed is None else (found >= 0) & allowed[found]
            at = found[usable]
            if len(at) < wanted:  # its neighbourhood was deleted, or its lists ran out
                left.append(row)
                continue
            self._blocks.verify(at, at + 1)
            exact = cosines(stored[at], query, dims=None)
            best = top_k(exact, search.keys[at], search.k)
            last = exact[best[-1]]
            # Equal rows have equal codes: where the last place's equals reach the end of the list, more may lie beyond it.
            if near[row][usable][exact == last].min() <= near[row][-1]:
                left.append(row)
                continue
            positions[row], scores[row] = at[best], exact[best]
        return np.array(left, dtype=np.int64)

    def _scan(self, search: _Search) -> tuple[Ints, Floats]:
        """Return positions and cosines (q, k) by a scan of all allowed rows."""
        mapped = self._mapped()
        positions = np.empty((len(search.queries), search.k), dtype=np.int64)
        scores = np.empty((len(search.queries), search.k), dtype=np.float32)
        for row, (query, at) in enumerate(zip(search.queries, self._scan_candidates(mapped, search), strict=True)):
            pieces = [at[start : start + BLOCK] for start in range(0, len(at), BLOCK)]
            exact = np.concatenate([cosines(mapped.stored[piece], query, dims=search.dims) for piece in pieces])
            best = top_k(exact, search.keys[at], search.k)
            positions[row], scores[row] = at[best], exact[best]
        return positions, scores

    def _scan_candidates(self, mapped: _Mapped, search: _Search) -> list[Ints]:
        """Return, per query, every allowed row that may be among the k best."""
        in_place = search.dims is None and len(search.queries) <= FEW and 4 * (search.k + 16) < search.count
        if mapped.flat is not None and in_place and (search.allowed is None or search.count >= GATHER * self.n):
            self._blocks.verify_all()
            return _flat_candidates(mapped.flat, search)
        if search.allowed is None:
            self._blocks.verify_all()
            return _block_candidates(mapped.stored, search, positions=None)
        positions = np.flatnonzero(search.allowed)
        self._blocks.verify(positions, positions + 1)
        return _block_candidates(mapped.stored, search, positions=positions)

    def _mapped(self) -> _Mapped:
        mapped = self._open
        if mapped is None:
            raise ValueError(f"{self._folder.path} is closed")
        return mapped

    def _codes(self) -> FaissIndex:
        """Return the compressed index, read once, after its whole file was verified: FAISS believes what it reads."""
        with self._lock:
            if self._compressed is None:
                self._folder.verify(f"{self._name}.faiss")
                self._compressed = faiss_module().read_index(str(self._folder.file(f"{self._name}.faiss")))
            return self._compressed


def _flat_candidates(flat: FaissIndex, search: _Search) -> list[Ints]:
    """Return, per query, every allowed row that may be among the k best, by a scan in place."""
    faiss = faiss_module()
    parameters = None
    if search.allowed is not None:
        bits = np.packbits(search.allowed, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
    return [_flat_candidates_of(query[None], flat, search, parameters) for query in search.queries]


def _flat_candidates_of(query: Floats, flat: FaissIndex, search: _Search, parameters: object) -> Ints:
    fetch = search.k + 16
    while True:
        fetch = min(fetch, search.count)
        near, positions = flat.search(query, fetch, params=parameters)
        least = near[0, search.k - 1] - MARGIN
        if fetch == search.count or near[0, -1] < least:
            candidates: Ints = positions[0][near[0] >= least]
            return candidates
        fetch *= 4


def _block_candidates(stored: Halves, search: _Search, *, positions: Ints | None) -> list[Ints]:
    """Return, per query, every row at `positions` (or of all) that may be among the k best, by converting blocks."""
    candidates: list[Ints] = []
    step = max(1, SCORES // search.count)
    for start in range(0, len(search.queries), step):
        for scores in block_scores(stored, search.queries[start : start + step], positions, dims=search.dims):
            last = np.partition(scores, search.count - search.k)[search.count - search.k]
            at = np.flatnonzero(scores >= last - MARGIN)
            candidates.append(at if positions is None else positions[at])
    return candidates

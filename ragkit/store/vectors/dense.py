"""Single vectors: one unit row per key, searched by cosine. Positions in, positions and scores out; FAISS only here.

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
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import top_k, truncate_dims
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Floats, Ints
from ragkit.store.local.files import CheckedFolder, map_array

Halves = npt.NDArray[np.float16]
Mask = npt.NDArray[np.bool_]

# Sizes in stored components, n * d, since that is what a scan reads. Best in benchmarks/dense.py.
COMPRESS = 10_000 * 384  # below it a scan of the rows takes less than a millisecond, and 4-bit codes gain nothing
INVERT = 400_000 * 384  # above it a flat scan of 4-bit codes is slower than inverted lists that reach the same recall
FEW = 6  # queries; up to here FAISS scans the rows in place, above it converting blocks once for all queries is faster
GATHER = 0.1  # share of allowed rows below which they are gathered instead of tested in place
MOSTLY = 0.8  # share of allowed rows from which the compressed index serves; dead rows only cost it candidates
BLOCK = 1024  # rows converted at a time; 1.5 MB of float32 at 384 dims stays in the second-level cache
SCORES = 1 << 24  # scores held at a time, 64 MB
DEPTH = 10  # recall is measured, and held, among the first ten
FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # candidates per result
PROBES = (4, 8, 16, 32, 64, 128, 256)  # inverted lists visited
TRIALS = 256  # rows held out of the training to measure recall with, and as many blurred ones
SPREAD = 1 << 14  # rows whose spread the blurring noise has
BLUR = 0.6  # cosine of a blurred row with itself; at 0.6 they foretold the recall of real questions, or a little less
# A scan in float32 orders rows to within its rounding, so candidates this close to the last place are kept and re-scored.
MARGIN = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseStats:
    """What a segment's vectors are searched with. `recall` is measured on vectors that are not in the index."""

    rows: int
    dims: int
    structure: str = "rows"  # "rows": scanned exactly; else a FAISS factory string
    factor: int = 0  # candidates re-scored per result
    probes: int = 0  # inverted lists visited, where there are any
    recall_target: float = 1.0
    recall: float = 1.0  # of the exact first ten, the share found: the smaller of the next two
    recall_rows: float = 1.0  # with stored rows as queries, each left out of its own answers
    recall_blurred: float = 1.0  # with such rows as queries, blurred to a cosine of BLUR with themselves
    trials: int = 0  # queries of each kind


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
    if recall < 1 and rows * dims >= COMPRESS and rows >= 4 * TRIALS + 1024:
        stored: Halves = np.load(path, mmap_mode="r", allow_pickle=False)
        stats = _compress(stored, folder / f"{name}.faiss", recall=recall, seed=seed)
    (folder / f"{name}.json").write_text(json.dumps(asdict(stats), indent=1) + "\n")
    return stats


def _write_rows(file: BinaryIO, blocks: Iterable[Floats]) -> tuple[int, int]:
    rows, dims = 0, 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] == 0 or (dims and block.shape[1] != dims):
            raise ValueError(f"rows must be (m, {dims or 'd'}), got {block.shape}")
        if not dims:
            dims = block.shape[1]
            file.write(_header(0, dims))
        halves = np.ascontiguousarray(block, dtype="<f2")
        if not np.isfinite(halves).all():
            raise ValueError(f"rows {rows} to {rows + len(block)} hold a value that is not finite in float16")
        file.write(halves.data)
        rows += len(block)
    if rows == 0:
        raise ValueError("no rows: a segment has at least one")
    file.seek(0)
    file.write(_header(rows, dims))
    return rows, dims


def _header(rows: int, dims: int) -> bytes:
    """NumPy's header (format 1.0), always 128 bytes long, so that it can be written again when the rows are counted."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {dims}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


# --- scores -----------------------------------------------------------------------------------------------------------


def _widen(rows: Halves, out: Floats) -> Floats:
    """Float16 rows as float32, into out[:len(rows)].

    The exponent is moved into place and rebased by a product, exact for every finite value: three times NumPy's cast.
    """
    out = out[: len(rows)]
    bits = out.view(np.int32)
    np.copyto(bits, rows.view(np.int16))  # widens with the sign
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # sign, exponent, fraction
    np.multiply(out, np.float32(2.0**112), out=out)
    return out


def _cosines(rows: Halves, query: Floats, *, dims: int | None) -> Floats:
    """The scores that leave this module: rows (m, d) with query (d or dims,), (m,) float32, summed in float64.

    With `dims`, the rows' prefixes are renormalised; a prefix of zeros scores 0.
    """
    wide = np.asarray(rows[:, :dims], dtype=np.float64)
    scores: npt.NDArray[np.float64] = np.einsum("md,d->m", wide, query.astype(np.float64))
    if dims is not None:
        lengths = np.sqrt(np.einsum("md,md->m", wide, wide))
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    return scores.astype(np.float32)


def _block_scores(stored: Halves, queries: Floats, positions: Ints | None, *, dims: int | None) -> Floats:
    """Scores in float32, by blocks, (q, m) of all rows or those at `positions`; they choose candidates and never leave."""
    total = len(stored) if positions is None else len(positions)
    scores = np.empty((len(queries), total), dtype=np.float32)
    width = stored.shape[1] if dims is None else dims
    buffer = np.empty((min(BLOCK, total), width), dtype=np.float32)
    for start in range(0, total, BLOCK):
        stop = min(start + BLOCK, total)
        halves = stored[start:stop, :width] if positions is None else stored[positions[start:stop], :width]
        block = _widen(halves, buffer)
        if dims is not None:
            lengths = np.sqrt(np.einsum("md,md->m", block, block))[:, None]
            np.divide(block, lengths, out=block, where=lengths > 0)
        np.matmul(queries, block.T, out=scores[:, start:stop])
    return scores


# --- the compressed index ---------------------------------------------------------------------------------------------


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtra.of("faiss", "cpu", "a compressed index of dense vectors") from None
    return faiss


def _structures(rows: int, dims: int) -> list[tuple[str, int]]:
    """FAISS factory strings to try for so many rows, each with its number of inverted lists (0: none).

    Two components per 4-bit code where the width allows it, else three or one.
    """
    parts = next(dims // step for step in (2, 3, 1) if dims % step == 0)
    flat = [(f"PQ{parts}x4fs", 0)]
    if rows * dims < INVERT:
        return flat
    lists = 1 << round(math.log2(math.sqrt(rows)))
    return [(f"IVF{lists},PQ{parts}x4fsr", lists), *flat]


def _compress(stored: Halves, path: Path, *, recall: float, seed: int) -> DenseStats:
    """Train, fill and measure a compressed index; write it if it reaches the recall, else say that the rows are scanned.

    Recall is measured with queries that the index has not seen. Rows held out of the training are queries, each left out
    of both the exact and the approximate answers, which is what an index without that row would have answered: its codes
    depend on other rows only through the training. Questions lie farther from the rows than rows lie from each other,
    which is harder, so the same rows, blurred by noise that spreads as the rows do, are a second set. The worse one counts.
    """
    rows, dims = stored.shape
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rows)
    held = np.sort(shuffled[:TRIALS])
    spread = np.asarray(stored[np.sort(shuffled[TRIALS:][:SPREAD])], dtype=np.float32).std(axis=0)
    trial = _Trial.of(stored, held, rng.normal(scale=spread, size=(TRIALS, dims)).astype(np.float32))
    for structure, lists in _structures(rows, dims):
        index = _filled(stored, structure, np.sort(shuffled[TRIALS:][: max(1 << 14, 64 * lists)]), seed=seed)
        # A quarter of the lists is no faster than a flat scan of the codes.
        for probes in [count for count in PROBES if 4 * count <= lists] if lists else [0]:
            curve = trial.recalls(stored, index, probes=probes)
            factor, own, blurred = next((step for step in curve if min(step[1:]) >= recall), (0, 0.0, 0.0))
            if factor:
                path.write_bytes(_faiss().serialize_index(index).data)  # FAISS itself only prints that the last bytes did not fit
                return DenseStats(
                    rows=rows, dims=dims, structure=structure, factor=factor, probes=probes, recall_target=recall,
                    recall=min(own, blurred), recall_rows=own, recall_blurred=blurred, trials=TRIALS,
                )  # fmt: skip
    return DenseStats(rows=rows, dims=dims, recall_target=recall)


def _filled(stored: Halves, structure: str, sample: Ints, *, seed: int) -> Any:
    faiss = _faiss()
    index = faiss.index_factory(stored.shape[1], structure, faiss.METRIC_INNER_PRODUCT)
    if "IVF" in structure:
        index.cp.seed, index.cp.niter = seed + 1, 10
    index.pq.cp.seed = seed + 1
    index.train(np.asarray(stored[sample], dtype=np.float32))
    buffer = np.empty((16 * BLOCK, stored.shape[1]), dtype=np.float32)
    for start in range(0, len(stored), len(buffer)):
        index.add(_widen(stored[start : start + len(buffer)], buffer))
    return index


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """Queries (q, d) with the exact tenth-best score of each, (q,); `own` (q,) is the row each must not find, or -1."""

    queries: Floats
    own: Ints
    tenth: Floats

    @classmethod
    def of(cls, stored: Halves, held: Ints, noise: Floats) -> _Trial:
        """held (q,) are positions of rows; noise (q, d)."""
        rows = np.asarray(stored[held], dtype=np.float32)
        queries = np.concatenate([rows, _unit(BLUR * rows + math.sqrt(1 - BLUR**2) * _unit(noise))])
        own = np.concatenate([held, np.full(len(held), -1)])
        tenth = np.empty(len(queries), dtype=np.float32)
        step = max(1, SCORES // len(stored))
        for start in range(0, len(queries), step):
            scores = _block_scores(stored, queries[start : start + step], None, dims=None)
            for row, position in enumerate(own[start : start + step].tolist()):
                if position >= 0:
                    scores[row, position] = -np.inf
            tenth[start : start + step] = -np.partition(-scores, DEPTH - 1, axis=1)[:, DEPTH - 1]
        return cls(queries, own, tenth)

    def recalls(self, stored: Halves, index: Any, *, probes: int) -> list[tuple[int, float, float]]:
        """Each of FACTORS, with its recall on rows and on blurred rows. Scores decide: any of equal rows is right."""
        most = min(FACTORS[-1] * DEPTH + 1, len(stored))
        found = _nearest(index, self.queries, most, probes=probes)[1]
        right = np.zeros((len(found), most), dtype=np.bool_)
        for row, (query, own, tenth) in enumerate(zip(self.queries, self.own, self.tenth, strict=True)):
            candidates = found[row][(found[row] >= 0) & (found[row] != own)]
            right[row, : len(candidates)] = _cosines(stored[candidates], query, dims=None) >= tenth - MARGIN / 10
        shares = np.minimum(np.cumsum(right, axis=1), DEPTH) / DEPTH
        half = len(found) // 2
        curve = []
        for factor in FACTORS:
            at = shares[:, min(factor * DEPTH, most) - 1]
            curve.append((factor, float(at[:half].mean()), float(at[half:].mean())))
        return curve


def _nearest(index: Any, queries: Floats, count: int, *, probes: int) -> tuple[Floats, Ints]:
    """Approximate scores and positions (q, count), best first; -1 where inverted lists ran out."""
    parameters = _faiss().SearchParametersIVF(nprobe=probes) if probes else None
    scores, positions = index.search(queries, count, params=parameters)
    return scores, positions


# --- reading ----------------------------------------------------------------------------------------------------------


class _Open:
    """What a search needs, held together: the mapped rows, and FAISS looking at the same memory (None without FAISS)."""

    def __init__(self, stored: Halves) -> None:
        self.stored = stored
        self.flat = _flat_view(stored)


def _flat_view(stored: Halves) -> Any:
    """A FAISS index over the mapped rows themselves, without a copy; None where this FAISS has no views."""
    try:
        import faiss

        flat = faiss.IndexScalarQuantizer(stored.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        codes: Any = flat.codes
        start = faiss.swig_ptr(stored.view(np.uint8).reshape(-1))
        # The vector of codes becomes a view of foreign memory, as when FAISS maps a file itself: never freed, never grown.
        codes.is_owned = False
        codes.view_data = codes.c_ptr = start
        codes.view_size = codes.c_size = stored.nbytes
    except (ImportError, AttributeError):
        return None
    flat.ntotal = len(stored)
    return flat


class DenseReader:
    """A segment's vectors, mapped read-only. Thread-safe; `close()` lets go of the map when running searches end."""

    def __init__(self, folder: CheckedFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        folder.verify(f"{name}.json")
        self.stats = DenseStats(**json.loads(folder.file(f"{name}.json").read_text()))
        path = folder.file(f"{name}.npy")
        self._start = path.stat().st_size - 2 * self.stats.rows * self.stats.dims
        folder.verify(f"{name}.npy", 0, self._start)
        stored = map_array(path)
        record = folder.records[path.name]
        self._seen = np.zeros(-(-record.size // record.block), dtype=np.bool_)
        self._block = record.block
        self._lock = threading.Lock()
        self._compressed: Any = None
        self._open: _Open | None = _Open(stored)

    @property
    def n(self) -> int:
        return self.stats.rows

    @property
    def dims(self) -> int:
        return self.stats.dims

    def describe(self) -> dict[str, Any]:
        """The stats as plain values, for JSON."""
        return asdict(self.stats)

    def close(self) -> None:
        """Let go of the map. Later searches are a ValueError; running ones end well."""
        with self._lock:
            self._open = None
            self._compressed = None

    def rows(self, positions: npt.NDArray[np.int64]) -> Floats:
        """The stored vectors at positions, (m, d) float32."""
        stored = self._mapped().stored
        self._verify(positions)
        return np.asarray(stored[positions], dtype=np.float32)

    def iter_blocks(self, size: int = 4 * BLOCK) -> Iterator[Floats]:
        """All rows in order, (m, d) float32 with m <= size."""
        for start in range(0, self.n, size):
            yield self.rows(np.arange(start, min(start + size, self.n)))

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
        """The k best rows per query: positions and cosines, (q, min(k, allowed)) int64 and float32, best first.

        queries (q, d) float32 unit rows, or (q, dims) already cut; keys (n,) int64 break ties; allowed (n,) bool. `dims`
        compares prefixes, renormalised on both sides. `exact` scans the rows even where a compressed index would serve.
        """
        queries, dims = self._prepared(queries, k, keys=keys, allowed=allowed, dims=dims)
        count = self.n if allowed is None else int(np.count_nonzero(allowed))
        allowed = None if count == self.n else allowed
        k = min(k, count)
        positions = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        todo = np.arange(len(queries))
        if k and not exact and dims is None and self._compressed_pays(k, count):
            todo = self._search_compressed(queries, keys, allowed, positions, scores)
        if k and len(todo):
            positions[todo], scores[todo] = self._scan(queries[todo], k, keys=keys, allowed=allowed, count=count, dims=dims)
        return positions, scores

    def _prepared(
        self, queries: Floats, k: int, *, keys: Ints, allowed: Mask | None, dims: int | None
    ) -> tuple[Floats, int | None]:
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        if dims is not None and not 1 <= dims <= self.dims:
            raise ValueError(f"dims must be between 1 and {self.dims}, got {dims}")
        if queries.ndim != 2 or queries.shape[1] not in {self.dims, dims}:
            raise ValueError(f"queries must be (q, {self.dims}), got {queries.shape}")
        for given, what in ((keys, "keys"), (allowed, "allowed")):
            if given is not None and given.shape != (self.n,):
                raise ValueError(f"{what} must be ({self.n},), one per row, got {given.shape}")
        dims = None if dims == self.dims else dims
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        return (queries if dims is None else truncate_dims(queries, dims)), dims

    def _compressed_pays(self, k: int, count: int) -> bool:
        wanted = self.stats.factor * max(k, DEPTH)
        return self.stats.structure != "rows" and count >= MOSTLY * self.n and 8 * wanted < self.n

    def _search_compressed(self, queries: Floats, keys: Ints, allowed: Mask | None, positions: Ints, scores: Floats) -> Ints:
        """Fill in positions and scores (q, k); return the queries for which only a scan will do, ascending."""
        stored, index = self._mapped().stored, self._codes()
        k = positions.shape[1]
        wanted = self.stats.factor * max(k, DEPTH)
        near, found = _nearest(index, queries, wanted if allowed is None else 2 * wanted, probes=self.stats.probes)
        left = []
        for row, query in enumerate(queries):
            usable = found[row] >= 0 if allowed is None else (found[row] >= 0) & allowed[found[row]]
            at = found[row][usable]
            if len(at) < wanted:  # its neighbourhood was deleted, or its lists ran out
                left.append(row)
                continue
            self._verify(at)
            cosines = _cosines(stored[at], query, dims=None)
            best = top_k(cosines, keys[at], k)
            last = cosines[best[-1]]
            # Equal rows have equal codes: where the last place's equals reach the end of the list, more may lie beyond it.
            if near[row][usable][cosines == last].min() <= near[row][-1]:
                left.append(row)
                continue
            positions[row], scores[row] = at[best], cosines[best]
        return np.array(left, dtype=np.int64)

    def _scan(
        self, queries: Floats, k: int, *, keys: Ints, allowed: Mask | None, count: int, dims: int | None
    ) -> tuple[Ints, Floats]:
        opened = self._mapped()
        in_place = opened.flat is not None and dims is None and len(queries) <= FEW and 4 * (k + 16) < count
        if in_place and (allowed is None or count >= GATHER * self.n):
            self._verify(None)
            found = _flat_candidates(opened, queries, k, allowed=allowed, count=count)
        else:
            chosen = None if allowed is None else np.flatnonzero(allowed)
            self._verify(chosen)
            found = _block_candidates(opened.stored, queries, k, chosen=chosen, dims=dims)
        positions = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        for row, (query, at) in enumerate(zip(queries, found, strict=True)):
            pieces = [at[start : start + BLOCK] for start in range(0, len(at), BLOCK)]
            cosines = np.concatenate([_cosines(opened.stored[piece], query, dims=dims) for piece in pieces])
            best = top_k(cosines, keys[at], k)
            positions[row], scores[row] = at[best], cosines[best]
        return positions, scores

    def _mapped(self) -> _Open:
        opened = self._open
        if opened is None:
            raise ValueError(f"{self._folder.path} is closed")
        return opened

    def _codes(self) -> Any:
        """The compressed index, read once, after its whole file was verified: FAISS believes what it reads."""
        with self._lock:
            if self._compressed is None:
                self._folder.verify(f"{self._name}.faiss")
                self._compressed = _faiss().read_index(str(self._folder.file(f"{self._name}.faiss")))
            return self._compressed

    def _verify(self, positions: Ints | None) -> None:
        """Compare the checksums of the blocks that hold these rows, or all, unless that was done before."""
        if self._seen.all():
            return
        name, width = f"{self._name}.npy", 2 * self.dims
        if positions is None:
            self._folder.verify(name)
            self._seen[:] = True
            return
        first = self._start + positions * width
        blocks = np.unique(np.concatenate([first, first + width - 1]) // self._block)
        for block in blocks[~self._seen[blocks]].tolist():
            self._folder.verify(name, block * self._block, (block + 1) * self._block)
            self._seen[block] = True


def _flat_candidates(opened: _Open, queries: Floats, k: int, *, allowed: Mask | None, count: int) -> list[Ints]:
    """Per query, every allowed row that may be among the k best, by a scan in place."""
    faiss = _faiss()
    parameters = None
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
    return [_flat_candidates_of(opened.flat, query[None], k, count=count, parameters=parameters) for query in queries]


def _flat_candidates_of(flat: Any, query: Floats, k: int, *, count: int, parameters: Any) -> Ints:
    fetch = k + 16
    while True:
        fetch = min(fetch, count)
        near, found = flat.search(query, fetch, params=parameters)
        if fetch == count or near[0, -1] < near[0, k - 1] - MARGIN:
            within: Ints = found[0][near[0] >= near[0, k - 1] - MARGIN]
            return within
        fetch *= 4


def _block_candidates(stored: Halves, queries: Floats, k: int, *, chosen: Ints | None, dims: int | None) -> list[Ints]:
    """Per query, every row of `chosen` (or all) that may be among the k best, by converting blocks."""
    total = len(stored) if chosen is None else len(chosen)
    found: list[Ints] = []
    step = max(1, SCORES // total)
    for start in range(0, len(queries), step):
        for scores in _block_scores(stored, queries[start : start + step], chosen, dims=dims):
            within = np.flatnonzero(scores >= np.partition(scores, total - k)[total - k] - MARGIN)
            found.append(within if chosen is None else chosen[within])
    return found


# --- near duplicates --------------------------------------------------------------------------------------------------


def near_duplicates(parts: Sequence[tuple[DenseReader, Ints, Mask]], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows with a cosine of at least `threshold`, exact, each once: smaller key, larger key, cosine.

    parts: segments, each its reader, keys (n,) int64 and live (n,) bool. Every row is compared with every other, by blocks,
    in memory that does not grow: 100 k rows of 384 dims are 4 TFLOP, below a minute on two cores. The order is by blocks.
    """
    size = 2 * BLOCK
    blocks = [
        (reader, keys, positions[start : start + size])
        for reader, keys, live in parts
        for positions in (np.flatnonzero(live),)
        for start in range(0, len(positions), size)
    ]
    for left, (reader, keys, positions) in enumerate(blocks):
        rows = _unit(reader.rows(positions))
        for right in range(left, len(blocks)):
            other_reader, other_keys, other_positions = blocks[right]
            others = rows if left == right else _unit(other_reader.rows(other_positions))
            pairs = rows @ others.T >= threshold - MARGIN
            at, to = np.nonzero(np.triu(pairs, 1) if left == right else pairs)
            for start in range(0, len(at), size):
                some = slice(start, start + size)
                yield from _certain(
                    rows[at[some]], others[to[some]], keys[positions[at[some]]], other_keys[other_positions[to[some]]], threshold
                )


def _unit(rows: Floats) -> Floats:
    return truncate_dims(rows, rows.shape[1])


def _certain(one: Floats, two: Floats, keys: Ints, others: Ints, threshold: float) -> Iterator[tuple[int, int, float]]:
    a, b = one.astype(np.float64), two.astype(np.float64)
    dots = np.einsum("md,md->m", a, b)
    lengths = np.sqrt(np.einsum("md,md->m", a, a)) * np.sqrt(np.einsum("md,md->m", b, b))
    cosines = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0).astype(np.float32)
    for key, other, cosine in zip(keys.tolist(), others.tolist(), cosines.tolist(), strict=True):
        if cosine >= threshold:
            yield min(key, other), max(key, other), cosine

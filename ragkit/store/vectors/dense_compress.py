"""The compressed index of a segment's dense vectors: 4-bit codes that find candidates, built and measured with FAISS.

It is made where it pays and where its measured recall suffices; otherwise the rows are scanned. FAISS is imported here only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Floats, Ints
from ragkit.store.vectors.cosines import BLOCK, MARGIN, SCORES, Halves, block_scores, cosines, widen

# Sizes in stored components, n * d, since that is what a scan reads. Best in benchmarks/dense.py.
COMPRESS = 10_000 * 384  # below it a scan of the rows takes less than a millisecond, and 4-bit codes gain nothing
INVERT = 400_000 * 384  # above it a flat scan of 4-bit codes is slower than inverted lists that reach the same recall
DEPTH = 10  # recall is measured, and held, among the first ten
FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # candidates per result
PROBES = (4, 8, 16, 32, 64, 128, 256)  # inverted lists visited
TRIALS = 256  # rows held out of the training to measure recall with, and as many blurred ones
SPREAD = 1 << 14  # rows whose spread the blurring noise has
BLUR = 0.6  # cosine of a blurred row with itself; at 0.6 they foretold the recall of real questions, or a little less

FaissIndex = Any  # faiss.Index: FAISS is imported when it is used


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


def faiss_module() -> ModuleType:
    """Import FAISS. MissingExtra where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise MissingExtra.of("faiss", "cpu", "a compressed index of dense vectors") from None
    module: ModuleType = faiss
    return module


def worth_compressing(rows: int, dims: int) -> bool:
    """Whether a compressed index would be faster than a scan, with rows enough to train and measure it."""
    return rows * dims >= COMPRESS and rows >= 4 * TRIALS + 1024


def compress(stored: Halves, path: Path, *, recall: float, seed: int) -> DenseStats:
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
    trial = Trial.of(stored, held, rng.normal(scale=spread, size=(TRIALS, dims)).astype(np.float32))
    for structure, lists in _structures(rows, dims):
        index = _trained(stored, structure, np.sort(shuffled[TRIALS:][: max(1 << 14, 64 * lists)]), seed=seed)
        for probes in _probes(lists):
            curve = trial.recalls(stored, index, probes=probes)
            factor, own, blurred = next((step for step in curve if min(step[1:]) >= recall), (0, 0.0, 0.0))
            if factor:
                # FAISS's own writer only prints that the last bytes did not fit on a full disk.
                path.write_bytes(faiss_module().serialize_index(index).data)
                return DenseStats(
                    rows=rows, dims=dims, structure=structure, factor=factor, probes=probes, recall_target=recall,
                    recall=min(own, blurred), recall_rows=own, recall_blurred=blurred, trials=TRIALS,
                )  # fmt: skip
    return DenseStats(rows=rows, dims=dims, recall_target=recall)


def _structures(rows: int, dims: int) -> Iterator[tuple[str, int]]:
    """Yield FAISS factory strings to try for so many rows, each with its number of inverted lists (0: none).

    Two components share a 4-bit code where the width allows it, else three or one.
    """
    parts = next(dims // step for step in (2, 3, 1) if dims % step == 0)
    if rows * dims >= INVERT:
        lists = 1 << round(math.log2(math.sqrt(rows)))
        yield f"IVF{lists},PQ{parts}x4fsr", lists
    yield f"PQ{parts}x4fs", 0


def _probes(lists: int) -> list[int]:
    """Return the numbers of inverted lists to try: a quarter of them is no faster than a flat scan of the codes."""
    return [count for count in PROBES if 4 * count <= lists] if lists else [0]


def _trained(stored: Halves, structure: str, sample: Ints, *, seed: int) -> FaissIndex:
    """Return an index of all rows, trained on those at the positions `sample`."""
    faiss = faiss_module()
    index = faiss.index_factory(stored.shape[1], structure, faiss.METRIC_INNER_PRODUCT)
    if "IVF" in structure:
        index.cp.seed, index.cp.niter = seed + 1, 10
    index.pq.cp.seed = seed + 1
    index.train(np.asarray(stored[sample], dtype=np.float32))
    buffer = np.empty((16 * BLOCK, stored.shape[1]), dtype=np.float32)
    for start in range(0, len(stored), len(buffer)):
        index.add(widen(stored[start : start + len(buffer)], buffer))
    return index


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Queries (q, d) with the exact tenth-best score of each, (q,); `own` (q,) is the row each must not find, or -1."""

    queries: Floats
    own: Ints
    tenth: Floats

    @classmethod
    def of(cls, stored: Halves, held: Ints, noise: Floats) -> Trial:
        """held (q,) are positions of rows; noise (q, d)."""
        rows = np.asarray(stored[held], dtype=np.float32)
        queries = np.concatenate([rows, unit_rows(BLUR * rows + math.sqrt(1 - BLUR**2) * unit_rows(noise))])
        own = np.concatenate([held, np.full(len(held), -1)])
        tenth = np.empty(len(queries), dtype=np.float32)
        step = max(1, SCORES // len(stored))
        for start in range(0, len(queries), step):
            scores = block_scores(stored, queries[start : start + step], None, dims=None)
            for row, position in enumerate(own[start : start + step].tolist()):
                if position >= 0:
                    scores[row, position] = -np.inf
            tenth[start : start + step] = -np.partition(-scores, DEPTH - 1, axis=1)[:, DEPTH - 1]
        return cls(queries, own, tenth)

    def recalls(self, stored: Halves, index: FaissIndex, *, probes: int) -> list[tuple[int, float, float]]:
        """Return each of FACTORS with its recall on rows and on blurred rows. Scores decide: any of equal rows is right."""
        most = min(FACTORS[-1] * DEPTH + 1, len(stored))
        positions = nearest(index, self.queries, most, probes=probes)[1]
        right = np.zeros((len(positions), most), dtype=np.bool_)
        for row, (query, own, tenth) in enumerate(zip(self.queries, self.own, self.tenth, strict=True)):
            candidates = positions[row][(positions[row] >= 0) & (positions[row] != own)]
            right[row, : len(candidates)] = cosines(stored[candidates], query, dims=None) >= tenth - MARGIN / 10
        shares = np.minimum(np.cumsum(right, axis=1), DEPTH) / DEPTH
        half = len(positions) // 2
        curve = []
        for factor in FACTORS:
            at = shares[:, min(factor * DEPTH, most) - 1]
            curve.append((factor, float(at[:half].mean()), float(at[half:].mean())))
        return curve


def nearest(index: FaissIndex, queries: Floats, count: int, *, probes: int) -> tuple[Floats, Ints]:
    """Return approximate scores and positions (q, count), best first; -1 where inverted lists ran out."""
    parameters = faiss_module().SearchParametersIVF(nprobe=probes) if probes else None
    scores, positions = index.search(queries, count, params=parameters)
    return scores, positions

"""Dense search: the paths of ragkit/store/vectors/dense.py against a flat FAISS scan and NumPy, in the same run.

    python benchmarks/dense.py [rows.npy queries.npy]

Without files: 384-dimensional clustered synthetic rows (1 centre per 40 rows) and queries that are rows blurred to a
cosine of 0.6. With files, (n, d) and (q, d) float32 unit rows of your own. One thread unless OMP_NUM_THREADS says else.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Floats
from ragkit.store.local.files import CheckedFolder, seal
from ragkit.store.vectors import dense

REPEATS = 15


def synthetic(n: int, d: int = 384) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n // 40, d)).astype(np.float32)
    rows = unit_rows(centres[rng.integers(len(centres), size=n)] + rng.normal(size=(n, d)).astype(np.float32))
    return rows, unit_rows(0.6 * rows[:300] + 0.8 * unit_rows(rng.normal(size=(300, d))))


def milliseconds(call: Callable[[int], object]) -> tuple[float, float]:
    taken = []
    for number in range(REPEATS):
        start = time.perf_counter()
        call(number)
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.percentile(taken, 50)), float(np.percentile(taken, 95))


def report(rows: Floats, queries: Floats) -> None:
    import faiss

    keys = np.arange(len(rows))
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    tenth = flat.search(queries, 10)[0][:, -1:]
    with tempfile.TemporaryDirectory() as path:
        start = time.perf_counter()
        stats = dense.write_dense(Path(path), "x", (rows[at : at + 4096] for at in range(0, len(rows), 4096)))
        built = time.perf_counter() - start
        reader = dense.DenseReader(CheckedFolder(Path(path), seal(Path(path))), "x")
        print(f"\n{len(rows)} rows x {rows.shape[1]}, written in {built:.1f} s: {stats.structure}, factor {stats.factor}")
        found = reader.search(queries, 10, keys=keys)[1]
        print(f"  recall@10: measured at writing {stats.recall:.4f}, on these queries {(found >= tenth - 5e-4).mean():.4f}")
        rare = np.random.default_rng(1).random(len(rows)) < 0.01
        third = np.random.default_rng(1).random(len(rows)) < 0.33

        def show(name: str, search: Callable[[Floats], object]) -> None:
            one = milliseconds(lambda number: search(queries[number : number + 1]))
            many = milliseconds(lambda number: search(queries[number : number + 32]))
            times = f"1 query {one[0]:8.2f} p50 {one[1]:8.2f} p95   32 queries {many[0]:8.2f} p50 {many[1]:8.2f} p95 ms"
            print(f"  {name:22} {times}")

        show("search", lambda some: reader.search(some, 10, keys=keys))
        show("search, exact", lambda some: reader.search(some, 10, keys=keys, exact=True))
        show("search, 33 % allowed", lambda some: reader.search(some, 10, keys=keys, allowed=third))
        show("search, 1 % allowed", lambda some: reader.search(some, 10, keys=keys, allowed=rare))
        show("search, dims=128", lambda some: reader.search(some, 10, keys=keys, dims=128))
        show("FAISS flat fp32", lambda some: flat.search(some, 10))
        show("NumPy fp32", lambda some: np.argpartition(-(some @ rows.T), 10, axis=1)[:, :10])


def main() -> None:
    if len(sys.argv) == 3:
        report(np.load(sys.argv[1]), np.load(sys.argv[2]))
        return
    for n in (5_000, 10_000, 100_000):
        report(*synthetic(n))


if __name__ == "__main__":
    main()

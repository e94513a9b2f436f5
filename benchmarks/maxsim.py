"""MaxSim: the kernels of ragkit/store/vectors/maxsim.py against torch and NumPy in float32, and against what the core can do.

    python benchmarks/maxsim.py [values.npy offsets.npy queries.npy query_offsets.npy]

Without files: 5,183 items of about 240 tokens (1.24 million) and queries of 32, unit rows of 128 dims around 4,096 centres,
the shapes of SciFact's abstracts under a ColBERT-like encoder. With files, ragged unit rows of your own, float16 or float32.

CPU time of one thread, the median of interleaved rounds, so that what else the machine does falls on all alike. `peak` is the
share of the core's own rate of multiplying and adding bytes, measured with registers alone right before each scan; a busy
neighbour on the same physical core lowers the share more than the peak, so `best` is the best round.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Floats, Ints
from ragkit.store.vectors.compiled import NUMPY, extension, kernels
from ragkit.store.vectors.maxsim import error_bound, scan, scores_of
from ragkit.store.vectors.quantise import Loss, Quantiser, quantise
from ragkit.store.vectors.tiles import Items

ROUNDS = 9
QUERIES = 20
K = 10


def synthetic(count: int = 5183, dims: int = 128) -> tuple[Floats, Ints, list[Floats]]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.4, 0.4, count).astype(int), 10, 512)
    centres = unit_rows(rng.normal(size=(4096, dims)))
    topics = rng.integers(0, 4096, (count, 24))  # an item's tokens crowd around few centres, as a text's do

    def around(item: int, size: int) -> Floats:
        noise = rng.normal(size=(size, dims), scale=0.8 / np.sqrt(dims)).astype(np.float32)
        return unit_rows(centres[rng.choice(topics[item], size)] + noise)

    values = np.concatenate([around(item, length) for item, length in enumerate(lengths)])
    queries = [around(int(item), 32) for item in rng.integers(0, count, QUERIES)]
    return values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), queries


def load(paths: list[str]) -> tuple[Floats, Ints, list[Floats]]:
    values, offsets, rows, bounds = (np.load(path) for path in paths)
    some = np.linspace(0, len(bounds) - 2, min(200, len(bounds) - 1)).astype(int)
    queries = [rows[bounds[i] : bounds[i + 1]].astype(np.float32) for i in some]
    return values.astype(np.float32), offsets.astype(np.int64), queries


def torch_search(values: Floats, offsets: Ints) -> Callable[[Floats], Ints]:
    import torch

    torch.set_num_threads(1)
    tokens = torch.from_numpy(values)

    def search(query: Floats) -> Ints:
        rows, scores = torch.from_numpy(query), []
        for start in range(0, len(offsets) - 1, 32):
            cut = offsets[start : start + 33]
            products = (rows @ tokens[cut[0] : cut[-1]].T).numpy()
            scores.append(np.maximum.reduceat(products, cut[:-1] - cut[0], axis=1).sum(axis=0))
        return np.argsort(-np.concatenate(scores), kind="stable")[:K]

    return search


def seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def report(values: Floats, offsets: Ints, queries: list[Floats]) -> None:
    tokens, dims = values.shape
    keys = np.arange(len(offsets) - 1)
    quantiser = Quantiser.of(dims)
    building = time.thread_time()
    codes, loss = quantise(values, quantiser)
    building = time.thread_time() - building
    int8 = Items(codes, offsets, keys, quantiser)
    bytes_per_token = (codes.nbytes + offsets.nbytes + keys.nbytes) / tokens
    print(f"{len(keys)} items, {tokens} tokens of {dims} dims, {len(queries)} queries of {len(queries[0])} tokens, 1 thread")
    print(f"quantising: {building:.2f} CPU s, {bytes_per_token:.1f} bytes per token; worst loss of a row {loss.residual:.4f}")

    calls = {"torch float32": torch_search(values, offsets)}
    stored = {"int8": int8, "float16": Items(values.astype(np.float16), offsets, keys), "float32": Items(values, offsets, keys)}
    for form, items in stored.items():
        for kernel in kernels() if form == "int8" else kernels()[:1]:
            calls[f"{form} {kernel}"] = lambda query, items=items, kernel=kernel: scan([query], items, k=K, kernel=kernel)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    shares: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS):
        query = queries[number % len(queries)]
        for name, call in calls.items():
            best = peak(name.partition(" ")[2]) if name.startswith("int8") else 0.0
            taken = seconds(lambda call=call, query=query: call(query))
            spent[name].append(taken)
            shares[name].append(2.0 * len(query) * tokens * dims / taken / best if best else 0.0)
    base = float(np.median(spent["torch float32"]))
    for name, taken in spent.items():
        middle, share = float(np.median(taken)), shares[name]
        ratio = f"{base / middle:5.1f}x torch"
        rate = f"   peak {np.median(share):.2f}, best {max(share):.2f}" if max(share) else ""
        print(f"  {name:22} {middle * 1e3:7.1f} CPU ms a query, least {min(taken) * 1e3:7.1f}, {ratio}{rate}")
    batch = min(seconds(lambda: scan(queries[:16], int8, k=K)) / len(queries[:16]) for _ in range(3))
    print(f"  int8, 16 at once       {batch * 1e3:7.1f} CPU ms a query, least")
    quality(int8, stored["float32"], queries, loss)


def peak(kernel: str) -> float:
    """Operations a second of multiplying and adding in registers; 0 where there is no such loop."""
    if extension is None or kernel == NUMPY or not extension.spin(kernel, 1):
        return 0.0
    rounds = 300_000
    start = time.thread_time()
    operations: int = extension.spin(kernel, rounds)
    return operations / (time.thread_time() - start)


def quality(int8: Items, exact: Items, queries: list[Floats], loss: Loss) -> None:
    """Recall of the exact first ten, and how far scores are from the float ones, against the bound."""
    found = scan(queries, int8, k=K)
    truth = scan(queries, exact, k=K)
    recall = np.mean([len(np.intersect1d(a, b)) / len(b) for (a, _), (b, _) in zip(found, truth, strict=True)])
    some = np.arange(0, len(exact), 7)
    errors = np.abs(scores_of(queries[:20], int8, some) - scores_of(queries[:20], exact, some))
    assert int8.quantiser is not None
    bound = max(error_bound(query, int8.quantiser, loss) for query in queries[:20])
    gaps = np.median([pairwise_gap(scores) for _, scores in truth])
    print(f"  recall@{K} of int8 {recall:.4f}; its scores off by {errors.mean():.4f} on average, {errors.max():.4f} at most")
    print(f"  (bound {bound:.2f}, of {len(queries[0])}; the first ten are {gaps:.4f} apart)")


def pairwise_gap(scores: Floats) -> float:
    return float(np.median([one - two for one, two in pairwise(scores)]))


if __name__ == "__main__":
    report(*(load(sys.argv[1:]) if len(sys.argv) > 1 else synthetic()))

"""Late interaction: ragged multi-vectors scanned by MaxSim. Queries in, keys and scores out.

    score(query, item) = sum over query tokens of the largest inner product with any of the item's tokens
    (Khattab & Zaharia 2020)

Three precisions: float32, float16 (exact: widened, multiplied in float32) and int8, the codes and weights of `quantise`.

Rules. A score is a whole number of units, and the unit a number of few bits, so scores are exact in float64, in every order of
adding: threads, blocks and neighbours change nothing, and an explanation's shares sum to the score exactly. For int8 the
kernels of all instruction sets, and NumPy where there is no compiled one, give the same numbers; for the float precisions
they differ in float32 rounding. Higher is better, ties break by the smaller key, exactly min(k, allowed) come back.
Nothing is copied: values, offsets and keys may be read-only maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from ragkit.core.types import Array, Floats, Ints, Mask
from ragkit.store.vectors.compiled import NUMPY, extension, kernels
from ragkit.store.vectors.maxsim_numpy import numpy_scan, numpy_totals
from ragkit.store.vectors.quantise import Loss, Quantiser, rotate
from ragkit.store.vectors.tiles import PRECISION_CODES, Items, Scores, Tile, build_tile, build_tiles, check_queries

PIECE = 1 << 22  # tokens scanned before Python looks up again, for Ctrl-C


def scan(
    queries: Sequence[Floats], items: Items, *, k: int, allowed: Mask | None = None, threads: int = 1, kernel: str | None = None
) -> list[tuple[Ints, Scores]]:
    """Return each query's best min(k, allowed) items, best first, ties by the smaller key: (keys int64, scores float64).

    queries: (q, d) float32 each; several are scanned together, with the same answers as one by one. allowed: (n,) bool over
    positions in `items`, or None for all. kernel: one of `kernels()`; None: the first.
    """
    if k < 0 or threads < 1:
        raise ValueError(f"k must not be negative and threads at least 1, got {k} and {threads}")
    if allowed is not None and (allowed.shape != (len(items),) or allowed.dtype != np.bool_):
        raise ValueError(f"allowed must be ({len(items)},) bool, got {allowed.shape} {allowed.dtype}")
    name = _kernel_named(kernel)
    results: list[tuple[Ints, Scores]] = []
    for tile in build_tiles(queries, items):
        if name == NUMPY:
            ranked = numpy_scan(tile, items, k, allowed)
        else:
            ranked = _compiled_scan(name, tile, items, k, allowed, threads)
        results += [(keys, totals * unit) for (totals, keys), unit in zip(ranked, tile.units, strict=True)]
    return results


def scores_of(queries: Sequence[Floats], items: Items, positions: Ints, *, kernel: str | None = None) -> Scores:
    """Return the scores of the items at `positions` (m,), (queries, m) float64: the numbers that `scan` would give them."""
    positions = np.ascontiguousarray(positions, dtype=np.int64)
    _check_positions(positions, items)
    name = _kernel_named(kernel)
    parts = [_totals(name, tile, items, positions) * tile.units[:, None] for tile in build_tiles(queries, items)]
    return np.concatenate(parts) if parts else np.empty((0, len(positions)))


def explain(query: Floats, items: Items, position: int, *, kernel: str | None = None) -> tuple[Ints, Scores]:
    """Return, per query token, the item's token that matched best (the first of equals), and its share, (q,) each.

    The shares are float64 and sum, in any order, to exactly the score that `scan` gives.
    """
    [query] = check_queries([query], items)
    _check_positions(np.array([position]), items)
    begin, end = int(items.offsets[position]), int(items.offsets[position + 1])
    if not 0 <= begin < end <= len(items.values):
        raise ValueError(f"item {position} is not there, or its offsets are not ascending within the values")
    numbers = np.arange(end - begin)
    tokens = Items(items.values[begin:end], np.arange(end - begin + 1), numbers, items.quantiser)
    rows = build_tile([query], items.quantiser).split
    totals = _totals(_kernel_named(kernel), rows, tokens, numbers)
    winners: Ints = totals.argmax(axis=1)
    return winners, totals[np.arange(len(totals)), winners] * rows.units


def error_bound(query: Floats, quantiser: Quantiser, loss: Loss) -> float:
    """Return how far an int8 score of `query` (q, d) can be from the float score, for items quantised with this `loss`.

    With x' and q' the rounded rows, |q'.x' - q.x| <= |q||x' - x| + |q' - q||x'|; a maximum moves no more than what it is taken
    over; the rows' bounds add up. The last term is float32 rounding in the rotation.
    """
    tile = build_tile([query], quantiser)
    rotated = rotate(query, quantiser).astype(np.float64)
    rounded = tile.rows[:, : quantiser.dims] * (tile.weights[:, None] * (tile.units[0] / quantiser.step))
    length, lost = np.linalg.norm(query.astype(np.float64), axis=1), np.linalg.norm(rounded - rotated, axis=1)
    rounding = length * loss.longest * math.log2(2 * quantiser.dims) * 2**-20
    return float((length * loss.residual + lost * (loss.longest + loss.residual) + rounding).sum())


def _check_positions(positions: Ints, items: Items) -> None:
    outside = (positions < 0) | (positions >= len(items))
    if outside.any():
        raise ValueError(f"positions must be from 0 to {len(items) - 1}, got {positions[outside.argmax()]}")


def _kernel_named(kernel: str | None) -> str:
    names = kernels()
    if kernel is not None and kernel not in names:
        raise ValueError(f"kernel must be one of {', '.join(names)}, got {kernel}")
    return kernel or names[0]


# --- the compiled kernel ----------------------------------------------------------------------------------------------


def _call(name: str, tile: Tile, items: Items) -> tuple[object, ...]:
    """Return the arguments that the compiled functions share."""
    values, quantiser = items.values, items.quantiser
    width, weighed = (quantiser.width, quantiser.weighed) if quantiser else (values.shape[1], False)
    form = (PRECISION_CODES[values.dtype], int(weighed), width)
    return name, *form, values, items.offsets, tile.rows, tile.bounds, 1 / tile.units, tile.weights


def _compiled_scan(name: str, tile: Tile, items: Items, k: int, allowed: Mask | None, threads: int) -> list[tuple[Ints, Ints]]:
    """Return (totals, keys) per query, ranked. Threads take pieces of the items; the ranking is total, so pieces do not show."""
    k = min(k, len(items))
    mask = None if allowed is None else np.ascontiguousarray(allowed).view(np.uint8)

    def scan_piece(start: int, stop: int) -> Array:
        best = np.empty((len(tile), min(k, stop - start), 2), dtype=np.int64)
        size = extension.scan(*_call(name, tile, items), items.keys, mask, start, stop, best.shape[1], best)
        return best[:, :size]

    cuts = _cuts(items, threads)
    if threads == 1 or len(cuts) == 2:
        pieces = [scan_piece(start, stop) for start, stop in pairwise(cuts)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            pieces = list(pool.map(scan_piece, cuts[:-1], cuts[1:]))
    both = np.concatenate(pieces, axis=1)
    order = np.lexsort((both[:, :, 1], -both[:, :, 0]), axis=1)[:, :k]
    return [(pairs[rank, 0], pairs[rank, 1]) for pairs, rank in zip(both, order, strict=True)]


def _cuts(items: Items, threads: int) -> list[int]:
    """Return positions that cut the items into pieces of about equal numbers of tokens, a few for each thread."""
    tokens = len(items.values)
    pieces = max(-(-tokens // PIECE), 4 * threads if threads > 1 else 1)
    inner = np.searchsorted(items.offsets[1:], np.arange(1, pieces) * (tokens / pieces))
    return np.unique([0, *np.minimum(inner, len(items)), len(items)]).tolist() if len(items) else [0, 0]


def _totals(name: str, tile: Tile, items: Items, positions: Ints) -> Ints:
    """Return all totals, (queries, m) int64: what `scan` ranks."""
    if name == NUMPY:
        return numpy_totals(tile, items, positions)
    totals = np.empty((len(tile), len(positions)), dtype=np.int64)
    extension.totals(*_call(name, tile, items), positions, totals)
    return totals

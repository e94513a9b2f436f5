"""MaxSim in NumPy, for machines without a compiler: for int8 the same numbers as the compiled kernel, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import top_k
from ragkit.core.types import Array, Floats, Ints, Mask
from ragkit.store.vectors.quantise import ZERO, Codes, Quantiser
from ragkit.store.vectors.tiles import Items, Tile

BLOCK = 2048  # tokens that are multiplied at a time
EXACT = 512  # dimensions; 255 * 127 * 512 < 2 ** 24, so float32 sums of byte products up to here are exact
LARGEST_SHARE = 2.0**51  # in units; only rows some 2 ** 15 times longer than the query's reach it


def numpy_scan(tile: Tile, items: Items, k: int, allowed: Mask | None) -> list[tuple[Ints, Ints]]:
    """Return the k best items of each query, best first, ties by key: totals and keys, int64."""
    positions = np.arange(len(items)) if allowed is None else np.flatnonzero(allowed)
    if items.quantiser:
        totals = numpy_totals(tile, items, positions)
        keys = items.keys[positions]
        best = [top_k(row, keys, k) for row in totals]
        return [(row[rank], keys[rank]) for row, rank in zip(totals, best, strict=True)]
    return [_float_scan(query, items, k, positions) for query in tile.each()]


def _float_scan(tile: Tile, items: Items, k: int, positions: Ints) -> tuple[Ints, Ints]:
    """A matrix product's rounding depends on its shape, so it only chooses candidates, and one function scores them."""
    if k == 0 or len(positions) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    rough, longest = np.empty(len(positions)), 0.0
    for place, rows, starts in _blocks(items, positions):
        wide = rows.astype(np.float32, copy=False)
        rough[place] = np.maximum.reduceat(wide @ tile.rows.T, starts, axis=0).sum(axis=1, dtype=np.float64)
        longest = max(longest, float(np.einsum("td,td->t", wide, wide).max()))
    slack = np.linalg.norm(tile.rows, axis=1).sum() * math.sqrt(longest) * items.dims * 2**-22
    least = np.sort(rough)[-min(k, len(rough))] - slack
    candidates = positions[rough >= least]
    totals = numpy_totals(tile, items, candidates)[0]
    rank = top_k(totals, items.keys[candidates], k)
    return totals[rank], items.keys[candidates[rank]]


def numpy_totals(tile: Tile, items: Items, positions: Ints) -> Ints:
    """Return the totals of the items at `positions` (m,), (queries, m) int64: what a scan ranks."""
    totals = np.empty((len(tile), len(positions)), dtype=np.int64)
    multiply = _code_products(tile.rows, items.quantiser) if items.quantiser else _float_products(tile.rows)
    for place, rows, starts in _blocks(items, positions):
        products = multiply(rows)
        maxima = np.maximum.reduceat(products, starts, axis=0)
        if items.quantiser is None:
            counted = np.rint(maxima / np.repeat(tile.units, np.diff(tile.bounds)))
            shares = np.clip(counted, -LARGEST_SHARE, LARGEST_SHARE).astype(np.int64)
        else:
            shares = maxima.astype(np.int64) * tile.weights
        totals[:, place] = np.add.reduceat(shares, tile.bounds[:-1], axis=1).T
    return totals


def _code_products(rows: npt.NDArray[np.int8], quantiser: Quantiser) -> Callable[[Codes], Floats]:
    """Return a function from codes as they are stored (t, row_bytes) to their exact products with the rows, times the weights,
    (t, r).

    Products are taken in float32 as far as it holds them exactly, and the parts added in float64. The function's arrays are used
    again: new ones cost as much as filling them.
    """
    parts = [slice(at, min(at + EXACT, quantiser.width)) for at in range(0, quantiser.width, EXACT)]
    factors = [np.ascontiguousarray(rows[:, part].T, dtype=np.float32) for part in parts]
    surplus = rows.astype(np.int64).sum(axis=1) * ZERO
    wide_buffer, buffer = np.empty((0, len(factors[0])), np.float32), np.empty((0, len(rows)), np.float32)

    def multiply(codes: Codes) -> Floats:
        nonlocal wide_buffer, buffer
        if len(codes) > len(buffer):
            wide_buffer = np.empty((len(codes), wide_buffer.shape[1]), np.float32)
            buffer = np.empty((len(codes), len(rows)), np.float32)
        products: Floats = buffer[: len(codes)]
        total: npt.NDArray[np.float64] | None = None
        for part, factor in zip(parts, factors, strict=True):
            wide = wide_buffer[: len(codes), : len(factor)]
            np.copyto(wide, codes[:, part])
            np.matmul(wide, factor, out=products)
            if len(parts) > 1:
                total = products.astype(np.float64) if total is None else total + products
        if total is None:
            products -= surplus.astype(np.float32)  # whole numbers below 2 ** 24, as is the difference
        else:
            np.copyto(products, total - surplus, casting="same_kind")
        if quantiser.weighed:
            products *= codes[:, quantiser.width :].astype(np.float32)
        return products

    return multiply


def _float_products(rows: Floats) -> Callable[[Array], Floats]:
    """Return a function from values (t, d) to their products with the rows, (t, r). Each is summed by itself: unlike a matrix
    product's, they do not depend on the block."""

    def multiply(values: Array) -> Floats:
        products: Floats = np.einsum("td,rd->tr", values.astype(np.float32, copy=False), rows)
        return products

    return multiply


def _blocks(items: Items, positions: Ints) -> Iterator[tuple[slice, Array, Ints]]:
    """Yield whole items, about BLOCK tokens at a time: which of the positions, their tokens, where each item starts in these."""
    begins, ends = items.offsets[positions], items.offsets[positions + 1]
    lengths = ends - begins
    bad = (begins < 0) | (lengths < 1) | (ends > len(items.values))
    if bad.any():
        raise ValueError(f"item {int(positions[bad.argmax()])} is not there, or its offsets are not ascending within the values")
    totals = np.cumsum(lengths)
    start = 0
    while start < len(positions):
        before = totals[start] - lengths[start]
        stop = max(start + 1, int(np.searchsorted(totals, before + BLOCK, side="right")))
        inside = slice(start, stop)
        if np.array_equal(begins[start + 1 : stop], ends[start : stop - 1]):  # neighbours: no copy
            rows = items.values[begins[start] : ends[stop - 1]]
        else:
            rows = np.concatenate([items.values[begin:end] for begin, end in zip(begins[inside], ends[inside], strict=True)])
        yield inside, rows, totals[inside] - lengths[inside] - before
        start = stop

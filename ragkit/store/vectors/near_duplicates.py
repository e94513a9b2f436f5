"""Pairs of rows that are nearly equal, over all segments, exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Floats, Ints, Mask
from ragkit.store.vectors.cosines import BLOCK, MARGIN
from ragkit.store.vectors.dense import DenseReader

SIZE = 2 * BLOCK  # rows compared with as many others at a time


def near_duplicates(parts: Sequence[tuple[DenseReader, Ints, Mask]], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of rows with a cosine of at least `threshold`, exact, each once: smaller key, larger key, cosine.

    parts: segments, each its reader, keys (n,) int64 and live (n,) bool. Every row is compared with every other, by blocks,
    in memory that does not grow: 100 k rows of 384 dims are 4 TFLOP, below a minute on two cores. The order is by blocks.
    """
    blocks = list(_blocks(parts))
    for left, (reader, keys, positions) in enumerate(blocks):
        rows = unit_rows(reader.rows(positions))
        for right in range(left, len(blocks)):
            other_reader, other_keys, other_positions = blocks[right]
            others = rows if left == right else unit_rows(other_reader.rows(other_positions))
            alike = rows @ others.T >= threshold - MARGIN
            at, to = np.nonzero(np.triu(alike, 1) if left == right else alike)
            for start in range(0, len(at), SIZE):
                first, second = at[start : start + SIZE], to[start : start + SIZE]
                exact = _cosines(rows[first], others[second]).tolist()
                pairs = zip(keys[positions[first]].tolist(), other_keys[other_positions[second]].tolist(), exact, strict=True)
                yield from ((min(key, other), max(key, other), cosine) for key, other, cosine in pairs if cosine >= threshold)


def _blocks(parts: Sequence[tuple[DenseReader, Ints, Mask]]) -> Iterator[tuple[DenseReader, Ints, Ints]]:
    """Yield the live rows of all segments, SIZE at a time: reader, its keys, and positions of rows."""
    for reader, keys, live in parts:
        positions = np.flatnonzero(live)
        for start in range(0, len(positions), SIZE):
            yield reader, keys, positions[start : start + SIZE]


def _cosines(first: Floats, second: Floats) -> Floats:
    """Return the cosine of each row with the other's of the same number, (m,) float32, summed in float64; 0 for zeros."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    dots = np.einsum("md,md->m", a, b)
    lengths = np.sqrt(np.einsum("md,md->m", a, a)) * np.sqrt(np.einsum("md,md->m", b, b))
    cosines: Floats = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0).astype(np.float32)
    return cosines

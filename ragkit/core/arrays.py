"""Arrays of uneven length, unit rows, and the best k: numpy only.

Ragged data is values + offsets, never padded. Scores are higher-is-better, and ties break by the smaller key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragkit.core.types import Array, Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class MultiVectors:
    """n items of uneven length: item i is `values[offsets[i]:offsets[i + 1]]`.

    values (sum_t, d) float32; offsets (n + 1,) int64 from 0 to sum_t, strictly ascending: no item is empty.
    """

    values: Floats
    offsets: Ints

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.offsets.ndim != 1 or len(self.offsets) == 0:
            raise ValueError(
                f"MultiVectors need values (sum_t, d) and offsets (n + 1,), got {self.values.shape} and {self.offsets.shape}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(f"offsets must run from 0 to {len(self.values)}, got {self.offsets[0]} to {self.offsets[-1]}")
        # np.maximum.reduceat returns the next item's value for an empty segment, so empty items are refused here.
        if len(self.offsets) > 1 and np.diff(self.offsets).min() < 1:
            raise ValueError(f"item {int(np.diff(self.offsets).argmin())} has no vectors; every item needs at least one")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, item: int) -> Floats:
        return self.values[self.offsets[item] : self.offsets[item + 1]]

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])

    @classmethod
    def pack(cls, items: Sequence[Array]) -> MultiVectors:
        """Return the items of a list of (t, d) arrays, at least one."""
        if not items:
            raise ValueError("no items: the width of the vectors is unknown")
        lengths = np.array([0, *(len(item) for item in items)], dtype=np.int64)
        return cls(np.concatenate(items).astype(np.float32, copy=False), np.cumsum(lengths))


def unit_rows(rows: Array) -> Floats:
    """Return rows scaled to length one, (n, d) float32. A row of zeros stays zero."""
    rows = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def unit_and_lengths(rows: Array, dims: int | None = None) -> tuple[Floats, Floats]:
    """Return `unit_rows` of the rows, or of their first `dims`, and the lengths that these had, (n,) float32."""
    cut = np.asarray(rows if dims is None else rows[:, :dims], dtype=np.float32)
    return (unit_rows(cut) if dims is None else truncate_dims(rows, dims)), np.linalg.norm(cut, axis=1)


def truncate_dims(rows: Array, dims: int) -> Floats:
    """Return the first `dims` of each row, renormalised (Matryoshka representation learning, Kusupati et al. 2022)."""
    if not 1 <= dims <= rows.shape[1]:
        raise ValueError(f"dims must be between 1 and {rows.shape[1]}, got {dims}")
    return unit_rows(rows[:, :dims])


def top_k(scores: Array, keys: Array, k: int) -> Ints:
    """Return the positions of the k best of `scores` (n,), best first, ties by the smaller of `keys` (n,), (min(k, n),) int64."""
    if k < 1:
        return np.empty(0, dtype=np.int64)
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold)  # all ties of the last place are still here
    else:
        candidates = np.arange(len(scores))
    order = np.lexsort((keys[candidates], -scores[candidates]))
    return candidates[order[:k]].astype(np.int64)


def mean_vector(rows: Floats) -> Floats:
    """Return the direction of the mean of unit rows (n, d), (1, d) float32, of unit length."""
    return unit_rows(rows.mean(axis=0, keepdims=True))

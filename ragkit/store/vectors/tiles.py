"""What MaxSim multiplies: stored items, and queries made ready for them. It checks both and scores nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ragkit.core.types import Array, Floats, Ints
from ragkit.store.vectors.quantise import LONGEST, WIDEST, Quantiser, rotate, round_up

Scores = npt.NDArray[np.float64]

PRECISION_CODES = {np.dtype(np.uint8): 0, np.dtype(np.float16): 1, np.dtype(np.float32): 2}  # as in kernel/maxsim.h
QUERY_WEIGHT = 1023  # of the heaviest row of a query
SHARE_BITS = 36  # of a float share: finer than float32, and 2,048 of them still sum exactly
TILE = 1 << 18  # bytes of query rows scanned at once; packed, they stay in the second-level cache


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """n stored items: item i has key `keys[i]` and tokens `values[offsets[i]:offsets[i + 1]]`, at least one.

    values (sum_t, d) float32 or float16, or (sum_t, quantiser.row_bytes) uint8; offsets (n + 1,) and keys (n,) int64. All
    C-contiguous; read-only maps are fine. Offsets are checked item by item when they are used, so opening reads nothing.
    """

    values: Array
    offsets: Ints
    keys: Ints
    quantiser: Quantiser | None = None

    def __post_init__(self) -> None:
        self._check_values()
        if self.offsets.dtype != np.int64 or self.keys.dtype != np.int64 or self.offsets.shape != (len(self.keys) + 1,):
            raise ValueError(f"items need offsets (n + 1,) and keys (n,) int64, got {self.offsets.shape} and {self.keys.shape}")
        if not all(array.flags.c_contiguous for array in (self.values, self.offsets, self.keys)):
            raise ValueError("values, offsets and keys must be C-contiguous")

    def _check_values(self) -> None:
        values, dtype = self.values, self.values.dtype
        if values.ndim != 2 or dtype not in PRECISION_CODES or (dtype == np.uint8) != (self.quantiser is not None):
            kinds = "float32 or float16, or uint8 and its quantiser"
            raise ValueError(f"items need values (sum_t, d) of {kinds}, got {values.shape} {dtype} and {self.quantiser}")
        width = values.shape[1]
        fits = width == self.quantiser.row_bytes if self.quantiser else 1 <= width <= WIDEST
        if not fits:
            raise ValueError(f"values {values.shape} do not fit {self.quantiser or f'1 to {WIDEST} dims'}")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dims(self) -> int:
        return self.quantiser.dims if self.quantiser else int(self.values.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Queries made ready: `rows` (r, width) int8 or float32, query j being rows bounds[j] to bounds[j + 1].

    A match of row i counts `weights[i]` times, and a total of query j `units[j]`.
    """

    rows: Array
    bounds: Ints
    units: Scores
    weights: Ints

    def __len__(self) -> int:
        return len(self.units)

    @property
    def split(self) -> Tile:
        """Every row as a query of its own, in the units it had."""
        return Tile(self.rows, np.arange(len(self.rows) + 1), np.repeat(self.units, np.diff(self.bounds)), self.weights)

    def each(self) -> Iterator[Tile]:
        """Yield every query as a tile of its own."""
        for query, (begin, end) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            yield Tile(self.rows[begin:end], np.array([0, end - begin]), self.units[query : query + 1], self.weights[begin:end])


def build_tile(queries: Sequence[Floats], quantiser: Quantiser | None) -> Tile:
    """Make queries (q, d) float32 each ready for items of this quantiser, or of floats."""
    prepared = [_codes_of(query, quantiser) if quantiser else _floats_of(query) for query in queries]
    bounds = np.cumsum([0, *(len(query) for query in queries)], dtype=np.int64)
    rows, weights, units = zip(*prepared, strict=True)
    return Tile(np.concatenate(rows), bounds, np.array(units), np.concatenate(weights))


def build_tiles(queries: Sequence[Floats], items: Items) -> Iterator[Tile]:
    """Check the queries, and make them ready in groups of at most TILE bytes, at least one query each."""
    row = items.dims * (1 if items.quantiser else 4)
    group: list[Floats] = []
    for query in check_queries(queries, items):
        if group and (len(query) + sum(map(len, group))) * row > TILE:
            yield build_tile(group, items.quantiser)
            group = []
        group.append(query)
    if group:
        yield build_tile(group, items.quantiser)


def _codes_of(query: Floats, quantiser: Quantiser) -> tuple[Array, Ints, float]:
    """Return int8 codes, the rows' weights, and the unit.

    A query never clips: its step is its own, as everything that its scores are compared with shares it.
    """
    rotated = rotate(query, quantiser)
    largest = np.abs(rotated).max(axis=1, keepdims=True)
    step = round_up(max(float(largest.max()), 1e-30) / (127 * QUERY_WEIGHT), 1)
    weights = np.maximum(np.ceil(largest / np.float32(127 * step)), 1)
    codes = np.zeros((len(query), quantiser.width), dtype=np.int8)
    codes[:, : quantiser.dims] = np.rint(rotated / (np.float32(step) * weights))
    return codes, weights[:, 0].astype(np.int64), step * quantiser.step


def _floats_of(query: Floats) -> tuple[Array, Ints, float]:
    longest = float(np.sqrt(np.einsum("qd,qd->q", query, query, dtype=np.float64).max()))
    unit = math.ldexp(1.0, math.frexp(max(longest, 1e-30))[1] - SHARE_BITS)
    return np.ascontiguousarray(query), np.ones(len(query), dtype=np.int64), unit


def check_queries(queries: Sequence[Floats], items: Items) -> list[Floats]:
    """Return the queries as float32. ValueError: another width, no token, a value that is not finite, or a row too long."""
    queries = [np.asarray(query, dtype=np.float32) for query in queries]
    for number, query in enumerate(queries):
        if query.ndim != 2 or len(query) == 0 or query.shape[1] != items.dims:
            raise ValueError(f"query {number} must be (q, {items.dims}) with at least one token, got {query.shape}")
        if not (np.einsum("qd,qd->q", query, query, dtype=np.float64) <= LONGEST**2).all():
            raise ValueError(f"query {number} holds a value that is not finite, or a row longer than 1e15")
    return queries

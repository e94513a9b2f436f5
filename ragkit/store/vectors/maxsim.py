"""Late interaction: ragged multi-vectors scanned by MaxSim. Queries in, keys and scores out; the C kernel only here.

    score(query, item) = sum over query tokens of the largest inner product with any of the item's tokens
    (Khattab & Zaharia 2020)

Three precisions: float32, float16 (exact: widened, multiplied in float32) and int8. For int8, rows are rotated, which
spreads what they hold evenly over the dimensions, and rounded to 127 steps either way of their own largest value. A row's step
is its weight, a byte behind its codes, times one step that all rows share: so integer products times weights compare across
items and segments, and times one factor they are float scores.

Rules. A score is a whole number of units, and the unit a number of few bits, so scores are exact in float64, in every order of
adding: threads, blocks and neighbours change nothing, and an explanation's shares sum to the score exactly. For int8 the
kernels of all instruction sets, and NumPy where there is no compiled one, give the same numbers; for the float precisions
they differ in float32 rounding. Higher is better, ties break by the smaller key, exactly min(k, allowed) come back.
Nothing is copied: values, offsets and keys may be read-only maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import top_k
from ragkit.core.types import Floats, Ints

try:
    from ragkit.store.vectors import _maxsim  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # installed without a compiler
    _maxsim = None
if not hasattr(_maxsim, "interface") or _maxsim.interface() != 3:  # built from other sources than these: run setup.py build_ext
    _maxsim = None

Codes = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

NUMPY = "numpy"
PRECISIONS = {np.dtype(np.uint8): 0, np.dtype(np.float16): 1, np.dtype(np.float32): 2}  # as in kernel/maxsim.h
ZERO = 128  # the code of 0: the kernel's byte products want one side unsigned
LONGEST = 1e15  # length of a row; beyond it float32 products and sums could overflow
WIDEST = 32768  # dimensions; below it no sum of byte products leaves 32 bits
HEAVIEST = 255  # weight of a token, a byte
ROOM = 1.01  # times the length that a quantiser is for, the longest row that it need not clip
STEP_BITS = 8  # of a step; ours has one, and its product times a total fits the 53 bits of a float64
QUERY_WEIGHT = 1023  # of the heaviest row of a query
SHARE_BITS = 36  # of a float share: finer than float32, and 2,048 of them still sum exactly
LARGEST_SHARE = 2.0**51  # in units; only rows some 2 ** 15 times longer than the query's reach it
TILE = 1 << 18  # bytes of query rows scanned at once; packed, they stay in the second-level cache
PIECE = 1 << 22  # tokens scanned before Python looks up again, for Ctrl-C
BLOCK = 2048  # tokens that NumPy multiplies at a time
RUN = 2048  # tokens of an item thinned together, as in kernel/maxsim.h: the work grows with its square
EXACT = 512  # dimensions; 255 * 127 * 512 < 2 ** 24, so float32 sums of byte products up to here are exact


# --- values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiser:
    """How rows become codes: rotate with `seed`, divide by `step` times the row's weight, round. What is merged must share one.

    Not `weighed`, all weights are 1 and none is stored: so were rows quantised before there were weights.
    """

    dims: int
    step: float
    seed: int = 0
    weighed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.dims <= WIDEST or not 1e-30 < self.step < 1e30 or self.step != _few_bits(self.step, STEP_BITS):
            raise ValueError(f"a quantiser needs 1 to {WIDEST} dims and a step of {STEP_BITS} bits, got {self}: use Quantiser.of")

    @classmethod
    def of(cls, dims: int, *, length: float = 1.0, seed: int = 0) -> Quantiser:
        """For rows no longer than `length`, give or take a hundredth."""
        return cls(dims=dims, step=_few_bits(ROOM * length / (127 * HEAVIEST), 1), seed=seed, weighed=True)

    @property
    def width(self) -> int:
        """Codes of a row: dims up to a multiple of 4."""
        return -(-self.dims // 4) * 4

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: its codes, and its weight."""
        return self.width + self.weighed


@dataclass(frozen=True, slots=True)
class Loss:
    """What quantising lost, at worst: `residual` the length of the difference it made to a row, `longest` that of a row."""

    residual: float = 0.0
    longest: float = 0.0

    def __or__(self, other: Loss) -> Loss:
        return Loss(max(self.residual, other.residual), max(self.longest, other.longest))


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """n stored items: item i has key `keys[i]` and tokens `values[offsets[i]:offsets[i + 1]]`, at least one.

    values (sum_t, d) float32 or float16, or (sum_t, quantiser.row_bytes) uint8; offsets (n + 1,) and keys (n,) int64. All
    C-contiguous; read-only maps are fine. Offsets are checked item by item when they are used, so opening reads nothing.
    """

    values: npt.NDArray[Any]
    offsets: Ints
    keys: Ints
    quantiser: Quantiser | None = None

    def __post_init__(self) -> None:
        values, dtype = self.values, self.values.dtype
        if values.ndim != 2 or dtype not in PRECISIONS or (dtype == np.uint8) != (self.quantiser is not None):
            kinds = "float32 or float16, or uint8 and its quantiser"
            raise ValueError(f"items need values (sum_t, d) of {kinds}, got {values.shape} {dtype} and {self.quantiser}")
        if values.shape[1] != (self.quantiser.row_bytes if self.quantiser else min(max(values.shape[1], 1), WIDEST)):
            raise ValueError(f"values {values.shape} do not fit {self.quantiser or f'1 to {WIDEST} dims'}")
        if self.offsets.dtype != np.int64 or self.keys.dtype != np.int64 or self.offsets.shape != (len(self.keys) + 1,):
            raise ValueError(f"items need offsets (n + 1,) and keys (n,) int64, got {self.offsets.shape} and {self.keys.shape}")
        if not all(array.flags.c_contiguous for array in (values, self.offsets, self.keys)):
            raise ValueError("values, offsets and keys must be C-contiguous")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dims(self) -> int:
        return self.quantiser.dims if self.quantiser else int(self.values.shape[1])


def kernels() -> list[str]:
    """The kernels that run on this machine, best first; the last is NumPy."""
    return [*_compiled(), NUMPY]


@cache  # asking the processor traps in virtual machines: a millisecond or more each time
def _compiled() -> tuple[str, ...]:
    return tuple(_maxsim.kernels()) if _maxsim else ()


def kernel_name() -> str:
    """The kernel that runs unless another is asked for."""
    return kernels()[0]


# --- quantising -------------------------------------------------------------------------------------------------------


def quantise(values: Floats, quantiser: Quantiser) -> tuple[Codes, Loss]:
    """Rows (t, d) float32 as codes, 128 for 0, and weights: (t, quantiser.row_bytes) uint8. ValueError: not finite, too long,
    another width.

    The same codes on every machine, with and without the compiled kernel.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != quantiser.dims:
        raise ValueError(f"rows must be (t, {quantiser.dims}), got {values.shape}")
    codes = np.full((len(values), quantiser.row_bytes), ZERO, dtype=np.uint8)
    if _maxsim is None:
        residual, longest = _numpy_quantise(values, quantiser, codes)
    else:
        signs, how = _signs(quantiser.dims, quantiser.seed), (quantiser.step, quantiser.weighed)
        residual, longest = _maxsim.quantise(values, quantiser.dims, quantiser.width, signs, *how, codes)
    return codes, Loss(math.sqrt(residual), math.sqrt(longest))


def _numpy_quantise(values: Floats, quantiser: Quantiser, codes: Codes) -> tuple[float, float]:
    """Fill `codes`; return the largest squared loss and length, as the compiled kernel does."""
    residual = longest = 0.0
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        lengths = np.einsum("td,td->t", block, block, dtype=np.float64)
        if not (lengths <= LONGEST**2).all():
            raise ValueError(f"row {start + int((lengths <= LONGEST**2).argmin())} is not finite, or longer than 1e15")
        lost = _round(_rotate(block, quantiser), quantiser, codes[start : start + BLOCK])
        residual = max(residual, float(np.einsum("td,td->t", lost, lost, dtype=np.float64).max()))
        longest = max(longest, float(lengths.max()))
    return residual, longest


def _round(rotated: Floats, quantiser: Quantiser, codes: Codes) -> Floats:
    """Fill `codes` with rotated rows; return what that lost, (t, d)."""
    step = np.full((len(rotated), 1), quantiser.step, dtype=np.float32)
    if quantiser.weighed:
        largest = np.abs(rotated).max(axis=1, keepdims=True)
        weights = np.clip(np.ceil(largest / (np.float32(127) * step)), 1, HEAVIEST)
        codes[:, quantiser.width] = weights[:, 0].astype(np.uint8)
        step *= weights
    whole = np.rint(np.clip(rotated / step, -127, 127))
    codes[:, : quantiser.dims] = (whole + ZERO).astype(np.uint8)
    lost: Floats = rotated - step * whole
    return lost


def signed_rows(codes: Codes, quantiser: Quantiser) -> Ints:
    """What codes stand for, (t, dims) int64, in steps of the quantiser."""
    weights = codes[:, quantiser.width :].astype(np.int64) if quantiser.weighed else 1
    return (codes[:, : quantiser.dims].astype(np.int64) - ZERO) * weights


def requantise(codes: Codes, old: Quantiser, new: Quantiser) -> tuple[Codes, Loss]:
    """Codes of another quantiser with the same rotation. What each lost adds up: the loss here is only of the second."""
    if (old.dims, old.seed) != (new.dims, new.seed):
        raise ValueError(f"codes of {old} have another rotation than {new}: quantise the vectors themselves")
    rotated = (signed_rows(codes, old) * old.step).astype(np.float32)
    fresh = np.full((len(codes), new.row_bytes), ZERO, dtype=np.uint8)
    lost = _round(rotated, new, fresh)
    return fresh, Loss(float(np.linalg.norm(lost, axis=1).max(initial=0.0)))


def thin(codes: Codes, lengths: Ints, quantiser: Quantiser, factor: int) -> tuple[Codes, Ints]:
    """One row for every `factor` of an item's tokens, so that fewer stand for it where candidates are looked for.

    codes (sum_t, row_bytes) as `quantise` makes them, with weights; lengths (n,) int64 of the items, at least one token each.
    Returns the same of fewer: (sum_m, row_bytes) uint8 and (n,) int64, m = t / factor rounded up, for every RUN tokens.

    Seeds are chosen one after the other, always the token that is least like those before (the farthest-first traversal of
    Gonzalez 1985), so that what is unlike all else is kept as it is; every token joins the seed it is nearest to, and the mean
    stands for them, as long as the longest. The same rows on every machine, with and without the compiled kernel.
    """
    if not quantiser.weighed or codes.ndim != 2 or codes.shape[1] != quantiser.row_bytes or codes.dtype != np.uint8:
        raise ValueError(f"codes must be (t, {quantiser.row_bytes}) uint8 with weights, got {codes.shape} {codes.dtype}")
    if factor < 1 or (lengths < 1).any() or lengths.sum() != len(codes):
        raise ValueError(f"factor must be at least 1, and lengths add up to {len(codes)}; got {factor} and {lengths.sum()}")
    factor = min(factor, RUN)
    whole, rest = np.divmod(lengths, RUN)
    kept = whole * -(-RUN // factor) + -(-rest // factor)
    fewer = np.empty((int(kept.sum()), quantiser.row_bytes), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if _maxsim is None:
        _numpy_thin(codes, offsets, quantiser, factor, fewer)
    else:
        _maxsim.thin(np.ascontiguousarray(codes), quantiser.width, offsets, factor, fewer)
    return fewer, kept


def _numpy_thin(codes: Codes, offsets: Ints, quantiser: Quantiser, factor: int, fewer: Codes) -> None:
    """Fill `fewer`, as the compiled kernel does. Whole numbers below 2 ** 53 all, so float64 holds them exactly."""
    runs = [(at, min(at + RUN, end)) for begin, end in pairwise(offsets.tolist()) for at in range(begin, end, RUN)]
    place = 0
    for begin, end in runs:
        rows = signed_rows(codes[begin:end], quantiser).astype(np.float64)
        seeds = -(-len(rows) // factor)
        owner = _farthest_first(rows, seeds)
        sums, longest = np.zeros((seeds, rows.shape[1])), np.zeros(seeds)
        np.add.at(sums, owner, rows)
        np.maximum.at(longest, owner, np.einsum("td,td->t", rows, rows))
        squares = np.einsum("sd,sd->s", sums, sums)
        scale = np.divide(np.sqrt(longest), np.sqrt(squares), out=np.zeros(seeds), where=squares > 0)[:, None]
        weights = np.clip(np.ceil(np.abs(sums).max(axis=1, keepdims=True) * scale / 127), 1, HEAVIEST)
        block = fewer[place : place + seeds]
        block[:] = ZERO
        block[:, : quantiser.dims] = (np.clip(np.rint(sums * scale / weights), -127, 127) + ZERO).astype(np.uint8)
        block[:, quantiser.width] = weights[:, 0].astype(np.uint8)
        place += seeds


def _farthest_first(rows: npt.NDArray[np.float64], seeds: int) -> Ints:
    """Which of as many seeds each row joins, (t,) int64; the first of equals in everything."""
    nearest, owner, chosen = np.full(len(rows), -np.inf), np.zeros(len(rows), dtype=np.int64), 0
    for seed in range(seeds):
        like = rows @ rows[chosen]
        like[chosen] = np.inf
        joins = like > nearest
        owner[joins], nearest[joins] = seed, like[joins]
        chosen = int(nearest.argmin())
    return owner


def error_bound(query: Floats, quantiser: Quantiser, loss: Loss) -> float:
    """How far an int8 score of `query` (q, d) can be from the float score, for items quantised with this `loss`.

    With x' and q' the rounded rows, |q'.x' - q.x| <= |q||x' - x| + |q' - q||x'|; a maximum moves no more than what it is taken
    over; the rows' bounds add up. The last term is float32 rounding in the rotation.
    """
    tile = build_tile([query], quantiser)
    rotated = _rotate(query, quantiser).astype(np.float64)
    rounded = tile.rows[:, : quantiser.dims] * (tile.weights[:, None] * (tile.units[0] / quantiser.step))
    length, lost = np.linalg.norm(query.astype(np.float64), axis=1), np.linalg.norm(rounded - rotated, axis=1)
    rounding = length * loss.longest * math.log2(2 * quantiser.dims) * 2**-20
    return float((length * loss.residual + lost * (loss.longest + loss.residual) + rounding).sum())


def _few_bits(number: float, bits: int) -> float:
    """The number, rounded up to so many significant bits."""
    fraction, exponent = math.frexp(number)
    return math.ldexp(math.ceil(math.ldexp(fraction, bits)), exponent - bits)


@lru_cache(maxsize=16)
def _signs(dims: int, seed: int) -> Floats:
    """(3, dims) float32 of -1 and 1: the top bits of splitmix64 (Steele et al. 2014) counted from the seed."""
    z = np.uint64(seed) + np.arange(1, 3 * dims + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs: Floats = np.where((z ^ (z >> np.uint64(31))) >> np.uint64(63), np.float32(-1), np.float32(1)).reshape(3, dims)
    return signs


def _rotate(rows: Floats, quantiser: Quantiser) -> Floats:
    """Random signs, then the Walsh-Hadamard transform, over the first 2^m dims; where those are not all, again over the last
    2^m, and the first. Additions, and products with one number: no library, thread or machine changes a bit."""
    dims, signs = quantiser.dims, _signs(quantiser.dims, quantiser.seed)
    size = 1 << (dims.bit_length() - 1)
    rotated = np.array(rows, dtype=np.float32)
    for turn in range(1 if size == dims else 3):
        rotated *= signs[turn]
        part = rotated[:, dims - size :] if turn == 1 else rotated[:, :size]
        part[:] = _hadamard(part, size)
    return rotated


def _hadamard(rows: Floats, size: int) -> Floats:
    """Each step adds neighbours and moves sums to the first half, differences to the second: natural order after all."""
    for _ in range(size.bit_length() - 1):
        one, two = rows[:, 0::2], rows[:, 1::2]
        rows = np.concatenate([one + two, one - two], axis=1)
    return rows * np.float32(1 / math.sqrt(size))


# --- queries ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """Queries made ready: `rows` (r, width) int8 or float32, query j being rows bounds[j] to bounds[j + 1].

    A match of row i counts `weights[i]` times, and a total of query j `units[j]`.
    """

    rows: npt.NDArray[Any]
    bounds: Ints
    units: Scores
    weights: Ints

    def __len__(self) -> int:
        return len(self.units)

    @property
    def split(self) -> _Tile:
        """Every row a query of its own, in the units it had."""
        return _Tile(self.rows, np.arange(len(self.rows) + 1), np.repeat(self.units, np.diff(self.bounds)), self.weights)


def build_tile(queries: Sequence[Floats], quantiser: Quantiser | None) -> _Tile:
    ready = [_codes_of(query, quantiser) if quantiser else _floats_of(query) for query in queries]
    bounds = np.cumsum([0, *(len(query) for query in queries)], dtype=np.int64)
    rows, weights = (np.concatenate([one[part] for one in ready]) for part in (0, 1))
    return _Tile(rows, bounds, np.array([unit for _, _, unit in ready]), weights)


def _codes_of(query: Floats, quantiser: Quantiser) -> tuple[npt.NDArray[np.int8], Ints, float]:
    """Codes, the rows' weights, and the unit. A query never clips: its steps are its own, as all that is compared shares them."""
    rotated = _rotate(query, quantiser)
    largest = np.abs(rotated).max(axis=1, keepdims=True)
    step = _few_bits(max(float(largest.max()), 1e-30) / (127 * QUERY_WEIGHT), 1)
    weights = np.maximum(np.ceil(largest / np.float32(127 * step)), 1)
    codes = np.zeros((len(query), quantiser.width), dtype=np.int8)
    codes[:, : quantiser.dims] = np.rint(rotated / (np.float32(step) * weights))
    return codes, weights[:, 0].astype(np.int64), step * quantiser.step


def _floats_of(query: Floats) -> tuple[Floats, Ints, float]:
    longest = float(np.sqrt(np.einsum("qd,qd->q", query, query, dtype=np.float64).max()))
    unit = math.ldexp(1.0, math.frexp(max(longest, 1e-30))[1] - SHARE_BITS)
    return np.ascontiguousarray(query), np.ones(len(query), dtype=np.int64), unit


def check_queries(queries: Sequence[Floats], items: Items) -> list[Floats]:
    queries = [np.asarray(query, dtype=np.float32) for query in queries]
    for number, query in enumerate(queries):
        if query.ndim != 2 or len(query) == 0 or query.shape[1] != items.dims:
            raise ValueError(f"query {number} must be (q, {items.dims}) with at least one token, got {query.shape}")
        if not (np.einsum("qd,qd->q", query, query, dtype=np.float64) <= LONGEST**2).all():
            raise ValueError(f"query {number} holds a value that is not finite, or a row longer than 1e15")
    return queries


def _tiles(queries: Sequence[Floats], items: Items) -> Iterator[_Tile]:
    """Queries in groups of at most TILE bytes, at least one each."""
    row = items.dims * (1 if items.quantiser else 4)
    group: list[Floats] = []
    for query in check_queries(queries, items):
        if group and (len(query) + sum(map(len, group))) * row > TILE:
            yield build_tile(group, items.quantiser)
            group = []
        group.append(query)
    if group:
        yield build_tile(group, items.quantiser)


# --- searching --------------------------------------------------------------------------------------------------------


def scan(
    queries: Sequence[Floats], items: Items, *, k: int, allowed: Mask | None = None, threads: int = 1, kernel: str | None = None
) -> list[tuple[Ints, Scores]]:
    """Each query's best min(k, allowed) items, best first, ties by the smaller key: (keys int64, scores float64).

    queries: (q, d) float32 each; several are scanned together, with the same answers as one by one. allowed: (n,) bool over
    positions in `items`, or None for all. kernel: one of `kernels()`; None: the first.
    """
    if k < 0 or threads < 1:
        raise ValueError(f"k must not be negative and threads at least 1, got {k} and {threads}")
    if allowed is not None and (allowed.shape != (len(items),) or allowed.dtype != np.bool_):
        raise ValueError(f"allowed must be ({len(items)},) bool, got {allowed.shape} {allowed.dtype}")
    name = _chosen(kernel)
    found: list[tuple[Ints, Scores]] = []
    for tile in _tiles(queries, items):
        if name == NUMPY:
            ranked = _numpy_scan(tile, items, k, allowed)
        else:
            ranked = _compiled_scan(name, tile, items, k, allowed, threads)
        found += [(keys, totals * unit) for (totals, keys), unit in zip(ranked, tile.units, strict=True)]
    return found


def scores_of(queries: Sequence[Floats], items: Items, positions: Ints, *, kernel: str | None = None) -> Scores:
    """The scores of the items at `positions` (m,), (number of queries, m) float64: the numbers that `scan` would give them."""
    positions = np.ascontiguousarray(positions, dtype=np.int64)
    _check_positions(positions, items)
    name = _chosen(kernel)
    parts = [_totals(name, tile, items, positions) * tile.units[:, None] for tile in _tiles(queries, items)]
    return np.concatenate(parts) if parts else np.empty((0, len(positions)))


def explain(query: Floats, items: Items, position: int, *, kernel: str | None = None) -> tuple[Ints, Scores]:
    """Per query token: the item's token that matched best (the first of equals), and its share, (q,) each.

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
    totals = _totals(_chosen(kernel), rows, tokens, numbers)
    winners: Ints = totals.argmax(axis=1)
    return winners, totals[np.arange(len(totals)), winners] * rows.units


def _check_positions(positions: Ints, items: Items) -> None:
    outside = (positions < 0) | (positions >= len(items))
    if outside.any():
        raise ValueError(f"positions must be from 0 to {len(items) - 1}, got {positions[outside.argmax()]}")


def _chosen(kernel: str | None) -> str:
    names = kernels()
    if kernel is not None and kernel not in names:
        raise ValueError(f"kernel must be one of {', '.join(names)}, got {kernel}")
    return kernel or names[0]


def _call(name: str, tile: _Tile, items: Items) -> tuple[Any, ...]:
    """The arguments that the compiled functions share."""
    values, quantiser = items.values, items.quantiser
    width, weighed = (quantiser.width, quantiser.weighed) if quantiser else (values.shape[1], False)
    form = (PRECISIONS[values.dtype], int(weighed), width)
    return name, *form, values, items.offsets, tile.rows, tile.bounds, 1 / tile.units, tile.weights


def _compiled_scan(name: str, tile: _Tile, items: Items, k: int, allowed: Mask | None, threads: int) -> list[tuple[Ints, Ints]]:
    """Per query (totals, keys), ranked. Threads take pieces of the items; the ranking is total, so pieces do not show."""
    k = min(k, len(items))
    mask = None if allowed is None else np.ascontiguousarray(allowed).view(np.uint8)

    def piece(start: int, stop: int) -> Ints:
        best = np.empty((len(tile), min(k, stop - start), 2), dtype=np.int64)
        size = _maxsim.scan(*_call(name, tile, items), items.keys, mask, start, stop, best.shape[1], best)
        return best[:, :size]

    cuts = _cuts(items, threads)
    if threads == 1 or len(cuts) == 2:
        parts = [piece(start, stop) for start, stop in pairwise(cuts)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(piece, cuts[:-1], cuts[1:]))
    both = np.concatenate(parts, axis=1)
    order = np.lexsort((both[:, :, 1], -both[:, :, 0]), axis=1)[:, :k]
    return [(found[rank, 0], found[rank, 1]) for found, rank in zip(both, order, strict=True)]


def _cuts(items: Items, threads: int) -> list[int]:
    """Positions that cut the items into pieces of about equal numbers of tokens, a few for each thread."""
    tokens = len(items.values)
    pieces = max(-(-tokens // PIECE), 4 * threads if threads > 1 else 1)
    inner = np.searchsorted(items.offsets[1:], np.arange(1, pieces) * (tokens / pieces))
    return np.unique([0, *np.minimum(inner, len(items)), len(items)]).tolist() if len(items) else [0, 0]


def _totals(name: str, tile: _Tile, items: Items, positions: Ints) -> Ints:
    """All totals, (queries, m) int64: what `scan` ranks."""
    if name == NUMPY:
        return _numpy_totals(tile, items, positions)
    totals = np.empty((len(tile), len(positions)), dtype=np.int64)
    _maxsim.totals(*_call(name, tile, items), positions, totals)
    return totals


# --- without a compiler -----------------------------------------------------------------------------------------------


def _numpy_scan(tile: _Tile, items: Items, k: int, allowed: Mask | None) -> list[tuple[Ints, Ints]]:
    positions = np.arange(len(items)) if allowed is None else np.flatnonzero(allowed)
    if items.quantiser:
        totals = _numpy_totals(tile, items, positions)
        keys = items.keys[positions]
        best = [top_k(row, keys, k) for row in totals]
        return [(row[rank], keys[rank]) for row, rank in zip(totals, best, strict=True)]
    return [_numpy_float_scan(part, items, k, positions) for part in _each(tile)]


def _each(tile: _Tile) -> Iterator[_Tile]:
    for query, (begin, end) in enumerate(zip(tile.bounds[:-1], tile.bounds[1:], strict=True)):
        yield _Tile(tile.rows[begin:end], np.array([0, end - begin]), tile.units[query : query + 1], tile.weights[begin:end])


def _numpy_float_scan(tile: _Tile, items: Items, k: int, positions: Ints) -> tuple[Ints, Ints]:
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
    totals = _numpy_totals(tile, items, candidates)[0]
    rank = top_k(totals, items.keys[candidates], k)
    return totals[rank], items.keys[candidates[rank]]


def _numpy_totals(tile: _Tile, items: Items, positions: Ints) -> Ints:
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
    """A function from codes as they are stored (t, row_bytes) to their exact products with the rows, times the weights, (t, r).

    In float32 as far as it holds them, the parts added in float64. Its arrays are used again: new ones cost as much as filling.
    """
    parts = [slice(at, min(at + EXACT, quantiser.width)) for at in range(0, quantiser.width, EXACT)]
    factors = [np.ascontiguousarray(rows[:, part].T, dtype=np.float32) for part in parts]
    surplus = rows.astype(np.int64).sum(axis=1) * ZERO
    wide, products = np.empty((0, len(factors[0])), np.float32), np.empty((0, len(rows)), np.float32)

    def multiply(codes: Codes) -> Floats:
        nonlocal wide, products
        if len(codes) > len(wide):
            wide, products = np.empty((len(codes), wide.shape[1]), np.float32), np.empty((len(codes), len(rows)), np.float32)
        found: Floats = products[: len(codes)]
        total: npt.NDArray[np.float64] | None = None
        for part, factor in zip(parts, factors, strict=True):
            some = wide[: len(codes), : len(factor)]
            np.copyto(some, codes[:, part])
            np.matmul(some, factor, out=found)
            if len(parts) > 1:
                total = found.astype(np.float64) if total is None else total + found
        if total is None:
            found -= surplus.astype(np.float32)  # whole numbers below 2 ** 24, as is the difference
        else:
            np.copyto(found, total - surplus, casting="same_kind")
        if quantiser.weighed:
            found *= codes[:, quantiser.width :].astype(np.float32)
        return found

    return multiply


def _float_products(rows: Floats) -> Callable[[npt.NDArray[Any]], Floats]:
    """A function from values (t, d) to (t, r) products, each summed by itself: unlike a matrix product's, they do not depend
    on the block."""

    def multiply(values: npt.NDArray[Any]) -> Floats:
        products: Floats = np.einsum("td,rd->tr", values.astype(np.float32, copy=False), rows)
        return products

    return multiply


def _blocks(items: Items, positions: Ints) -> Iterator[tuple[slice, npt.NDArray[Any], Ints]]:
    """About BLOCK tokens at a time, whole items: (which of the positions, their tokens, where each item starts among them)."""
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

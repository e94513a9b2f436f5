"""Token vectors as int8 codes, and fewer codes for an item. It knows rows and codes, no items, queries or files.

Rows are rotated, which spreads what they hold evenly over the dimensions, and rounded to 127 steps either way of their own
largest value. A row's step is its weight, a byte behind its codes, times one step that all rows share: so integer products times
weights compare across items and segments, and times one factor they are float scores.

The codes are the same on every machine, with and without the compiled kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ragkit.core.types import Floats, Ints
from ragkit.store.vectors.compiled import extension

Codes = npt.NDArray[np.uint8]

ZERO = 128  # the code of 0: the kernel's byte products want one side unsigned
LONGEST = 1e15  # length of a row; beyond it float32 products and sums could overflow
WIDEST = 32768  # dimensions; below it no sum of byte products leaves 32 bits
HEAVIEST = 255  # weight of a token, a byte
ROOM = 1.01  # times the length that a quantiser is for, the longest row that it need not clip
STEP_BITS = 8  # of a step; ours has one, and its product times a total fits the 53 bits of a float64
BLOCK = 2048  # rows that NumPy quantises at a time
RUN = 2048  # tokens of an item thinned together, as in kernel/maxsim.h: the work grows with its square


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiser:
    """How rows become codes: rotate with `seed`, divide by `step` times the row's weight, round. What is merged must share one.

    Without `weighed`, all weights are 1 and none is stored: so were rows quantised before there were weights.
    """

    dims: int
    step: float
    seed: int = 0
    weighed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.dims <= WIDEST or not 1e-30 < self.step < 1e30 or self.step != round_up(self.step, STEP_BITS):
            raise ValueError(f"a quantiser needs 1 to {WIDEST} dims and a step of {STEP_BITS} bits, got {self}: use Quantiser.of")

    @classmethod
    def of(cls, dims: int, *, length: float = 1.0, seed: int = 0) -> Quantiser:
        """Return the quantiser for rows no longer than `length`, give or take a hundredth."""
        return cls(dims=dims, step=round_up(ROOM * length / (127 * HEAVIEST), 1), seed=seed, weighed=True)

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
    """What quantising lost, at worst over all rows: `residual`, the length of the difference it made, and `longest`, a row's."""

    residual: float = 0.0
    longest: float = 0.0

    def __or__(self, other: Loss) -> Loss:
        return Loss(max(self.residual, other.residual), max(self.longest, other.longest))


def quantise(values: Floats, quantiser: Quantiser) -> tuple[Codes, Loss]:
    """Return the codes of rows (t, d) float32, 128 for 0, and their weights, (t, quantiser.row_bytes) uint8; and the loss.

    ValueError: a row is not finite, too long, or of another width.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != quantiser.dims:
        raise ValueError(f"rows must be (t, {quantiser.dims}), got {values.shape}")
    codes = np.full((len(values), quantiser.row_bytes), ZERO, dtype=np.uint8)
    if extension is None:
        residual, longest = _numpy_quantise(values, quantiser, codes)
    else:
        signs = _signs(quantiser.dims, quantiser.seed)
        sizes = (quantiser.dims, quantiser.width)
        residual, longest = extension.quantise(values, *sizes, signs, quantiser.step, quantiser.weighed, codes)
    return codes, Loss(math.sqrt(residual), math.sqrt(longest))


def _numpy_quantise(values: Floats, quantiser: Quantiser, codes: Codes) -> tuple[float, float]:
    """Fill `codes`; return the largest squared loss and length, as the compiled kernel does."""
    residual = longest = 0.0
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        lengths = np.einsum("td,td->t", block, block, dtype=np.float64)
        if not (lengths <= LONGEST**2).all():
            raise ValueError(f"row {start + int((lengths <= LONGEST**2).argmin())} is not finite, or longer than 1e15")
        lost = _round(rotate(block, quantiser), quantiser, codes[start : start + BLOCK])
        residual = max(residual, float(np.einsum("td,td->t", lost, lost, dtype=np.float64).max()))
        longest = max(longest, float(lengths.max()))
    return residual, longest


def _round(rotated: Floats, quantiser: Quantiser, codes: Codes) -> Floats:
    """Fill `codes` with rotated rows; return what rounding lost, (t, d) float32."""
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
    """Return what codes stand for, in steps of the quantiser: rotated rows, (t, dims) int64."""
    weights = codes[:, quantiser.width :].astype(np.int64) if quantiser.weighed else 1
    return (codes[:, : quantiser.dims].astype(np.int64) - ZERO) * weights


def requantise(codes: Codes, old: Quantiser, new: Quantiser) -> tuple[Codes, Loss]:
    """Return the codes by another quantiser with the same rotation, and what this rounding lost; the two losses add up."""
    if (old.dims, old.seed) != (new.dims, new.seed):
        raise ValueError(f"codes of {old} have another rotation than {new}: quantise the vectors themselves")
    rotated = (signed_rows(codes, old) * old.step).astype(np.float32)
    requantised = np.full((len(codes), new.row_bytes), ZERO, dtype=np.uint8)
    lost = _round(rotated, new, requantised)
    return requantised, Loss(float(np.linalg.norm(lost, axis=1).max(initial=0.0)))


# --- thinning ---------------------------------------------------------------------------------------------------------


def thin(codes: Codes, lengths: Ints, quantiser: Quantiser, factor: int) -> tuple[Codes, Ints]:
    """Return one row for every `factor` of an item's tokens, so that fewer stand for it where candidates are looked for.

    codes (sum_t, row_bytes) as `quantise` makes them, with weights; lengths (n,) int64 of the items, at least one token each.
    Returns the same of fewer: (sum_m, row_bytes) uint8 and (n,) int64, m = t / factor rounded up, for every RUN tokens.

    Seeds are chosen one after the other, always the token that is least like those before (the farthest-first traversal of
    Gonzalez 1985), so that what is unlike all else is kept as it is. Every token joins the seed it is nearest to, and the mean
    stands for them, as long as the longest.
    """
    if not quantiser.weighed or codes.ndim != 2 or codes.shape[1] != quantiser.row_bytes or codes.dtype != np.uint8:
        raise ValueError(f"codes must be (t, {quantiser.row_bytes}) uint8 with weights, got {codes.shape} {codes.dtype}")
    if factor < 1 or (lengths < 1).any() or lengths.sum() != len(codes):
        raise ValueError(f"factor must be at least 1, and lengths add up to {len(codes)}; got {factor} and {lengths.sum()}")
    factor = min(factor, RUN)
    whole, rest = np.divmod(lengths, RUN)
    thinned_lengths = whole * -(-RUN // factor) + -(-rest // factor)
    thinned = np.empty((int(thinned_lengths.sum()), quantiser.row_bytes), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if extension is None:
        _numpy_thin(codes, offsets, quantiser, factor, thinned)
    else:
        extension.thin(np.ascontiguousarray(codes), quantiser.width, offsets, factor, thinned)
    return thinned, thinned_lengths


def _numpy_thin(codes: Codes, offsets: Ints, quantiser: Quantiser, factor: int, thinned: Codes) -> None:
    """Fill `thinned`, as the compiled kernel does. All whole numbers stay below 2 ** 53, so float64 holds them exactly."""
    place = 0
    for begin, end in _runs(offsets):
        rows = signed_rows(codes[begin:end], quantiser).astype(np.float64)
        seeds = -(-len(rows) // factor)
        owner = _farthest_first(rows, seeds)
        sums, longest = np.zeros((seeds, rows.shape[1])), np.zeros(seeds)
        np.add.at(sums, owner, rows)
        np.maximum.at(longest, owner, np.einsum("td,td->t", rows, rows))
        squares = np.einsum("sd,sd->s", sums, sums)
        scale = np.divide(np.sqrt(longest), np.sqrt(squares), out=np.zeros(seeds), where=squares > 0)[:, None]
        weights = np.clip(np.ceil(np.abs(sums).max(axis=1, keepdims=True) * scale / 127), 1, HEAVIEST)
        block = thinned[place : place + seeds]
        block[:] = ZERO
        block[:, : quantiser.dims] = (np.clip(np.rint(sums * scale / weights), -127, 127) + ZERO).astype(np.uint8)
        block[:, quantiser.width] = weights[:, 0].astype(np.uint8)
        place += seeds


def _runs(offsets: Ints) -> Iterator[tuple[int, int]]:
    """Cut each item into runs of RUN tokens, the last shorter: the first token of a run and the one behind it."""
    for begin, end in pairwise(offsets.tolist()):
        for start in range(begin, end, RUN):
            yield start, min(start + RUN, end)


def _farthest_first(rows: npt.NDArray[np.float64], seeds: int) -> Ints:
    """Choose that many seeds; return which of them each row joins, (t,) int64. Of equals, the first wins."""
    nearest, owner, chosen = np.full(len(rows), -np.inf), np.zeros(len(rows), dtype=np.int64), 0
    for seed in range(seeds):
        like = rows @ rows[chosen]
        like[chosen] = np.inf
        joins = like > nearest
        owner[joins], nearest[joins] = seed, like[joins]
        chosen = int(nearest.argmin())
    return owner


# --- rotating ---------------------------------------------------------------------------------------------------------


def rotate(rows: Floats, quantiser: Quantiser) -> Floats:
    """Return rows (t, d) float32 rotated: random signs, then the Walsh-Hadamard transform, over the first 2^m dims; where those
    are not all, again over the last 2^m, and the first.

    These are additions, and products with one number: no library, thread or machine changes a bit.
    """
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
        even, odd = rows[:, 0::2], rows[:, 1::2]
        rows = np.concatenate([even + odd, even - odd], axis=1)
    return rows * np.float32(1 / math.sqrt(size))


@lru_cache(maxsize=16)
def _signs(dims: int, seed: int) -> Floats:
    """Return (3, dims) float32 of -1 and 1: the top bits of splitmix64 (Steele et al. 2014) counted from the seed."""
    z = np.uint64(seed) + np.arange(1, 3 * dims + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs: Floats = np.where((z ^ (z >> np.uint64(31))) >> np.uint64(63), np.float32(-1), np.float32(1)).reshape(3, dims)
    return signs


def round_up(number: float, bits: int) -> float:
    """Return the number, rounded up to that many significant bits."""
    fraction, exponent = math.frexp(number)
    return math.ldexp(math.ceil(math.ldexp(fraction, bits)), exponent - bits)

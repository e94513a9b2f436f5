"""How multi-vectors lie on disk: their precision, the rows in memory just as they will be written, and what that lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from ragkit.core.arrays import MultiVectors
from ragkit.core.types import Array, Ints
from ragkit.store.vectors.quantise import LONGEST, ROOM, WIDEST, Loss, Quantiser, quantise, thin

Precision = Literal["int8", "float16", "float32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES: dict[str, np.dtype[Any]] = {"int8": np.dtype("u1"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
UNIT = ROOM  # length; the quantiser covers unit rows, and would clip longer ones
COPIED = 1 << 16  # tokens copied, or made fewer, at a time when a segment is written


@dataclass(frozen=True, slots=True)
class Layout:
    """How multi-vectors are stored, the same for all segments of an index. `dims` of a vector; see `maxsim` for precisions.
    coarse: how many of a row's vectors one more stands for, to find candidates by; 0 for none. It does not change the vectors."""

    dims: int
    precision: Precision = "int8"
    coarse: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not isinstance(self.dims, int) or not 1 <= self.dims <= WIDEST:
            raise ValueError(f"dims must be from 1 to {WIDEST}, got {self.dims}")
        if not isinstance(self.coarse, int) or self.coarse < 0 or self.coarse == 1:
            raise ValueError(f"coarse must be 0, or at least 2 vectors that one stands for, got {self.coarse}")

    @property
    def quantiser(self) -> Quantiser | None:
        return Quantiser.of(self.dims) if self.precision == "int8" else None

    @property
    def width(self) -> int:
        """Stored components of a token."""
        return self.quantiser.row_bytes if self.quantiser else self.dims

    @property
    def token_bytes(self) -> int:
        return self.width * DTYPES[self.precision].itemsize

    @property
    def bytes_a_token(self) -> float:
        """On disk, the coarse vectors included."""
        return self.token_bytes + (Quantiser.of(self.dims).row_bytes / self.coarse if self.coarse else 0)

    def store(self, multi: MultiVectors) -> Stored:
        """Return vectors as they will lie on disk. ValueError: another width, not finite, or too large for the precision."""
        values = multi.values
        if values.shape[1] != self.dims:
            raise ValueError(f"vectors must have {self.dims} dims, got {values.shape[1]}")
        lengths = np.diff(multi.offsets)
        if self.quantiser:
            codes, loss = quantise(values, self.quantiser)
            if loss.longest > UNIT:
                raise ValueError(f"int8 is for vectors of unit length, got one of {loss.longest:.4g}: normalise, or use float16")
            return Stored(codes, lengths, loss)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype=DTYPES[self.precision])
        squares = np.einsum("td,td->t", stored, stored, dtype=np.float64)
        if not (squares <= LONGEST**2).all():
            raise ValueError(f"vector {int((squares <= LONGEST**2).argmin())} is not finite, or too large for {self}")
        longest = float(np.sqrt(squares.max(initial=0.0)))
        if self.coarse:
            _check_unit(longest)
        return Stored(stored, lengths, Loss(0.0, longest))

    def thinned(self, part: Stored) -> Stored:
        """Return the coarse vectors of rows that `store` made.

        ValueError: vectors that are not of unit length; a layout without `coarse` stores these, too.
        """
        quantiser, codes = Quantiser.of(self.dims), part.values
        if self.precision != "int8":
            codes, loss = quantise(part.values.astype(np.float32), quantiser)
            _check_unit(loss.longest)
        fewer, lengths = thin(codes, part.lengths, quantiser, self.coarse)
        return Stored(fewer, lengths, part.loss)


def _check_unit(longest: float) -> None:
    if longest > UNIT:
        raise ValueError(f"coarse is for vectors of unit length, got one of {longest:.4g}: normalise, or leave it out")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """n rows as on disk: values (sum_t, w), lengths (n,) int64 of at least one token each, and what storing them lost."""

    values: Array
    lengths: Ints
    loss: Loss

    def __len__(self) -> int:
        return len(self.lengths)

    def pieces(self) -> Iterator[Stored]:
        """Yield the rows in order, about COPIED tokens at a time, not copied."""
        ends = np.cumsum(self.lengths)
        for numbers in runs_of_rows(self.lengths):
            begin, end = ends[numbers[0]] - self.lengths[numbers[0]], ends[numbers[-1]]
            yield Stored(self.values[begin:end], self.lengths[numbers], self.loss)

    @classmethod
    def join(cls, parts: Sequence[Stored]) -> Stored:
        """Return the rows of all parts, at least one part; those of a single one are not copied."""
        if len(parts) == 1:
            return parts[0]
        loss = Loss()
        for part in parts:
            loss |= part.loss
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts]), loss)


def runs_of_rows(lengths: Ints) -> list[Ints]:
    """Return the numbers 0, 1, ... of rows of these lengths, cut into runs of about COPIED tokens."""
    turns = np.cumsum(lengths) // COPIED
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(turns)) + 1) if len(lengths) else []

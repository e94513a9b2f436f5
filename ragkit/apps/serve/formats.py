"""Vectors as JSON holds them: numbers, base64 of little-endian float32, or sign bits, eight to a byte."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ragkit.core.types import Floats

Format = Literal["float", "base64", "binary", "ubinary"]


def formatted(row: Floats, formats: Format | Sequence[Format]) -> object:
    """Return a vector (d,) in one format, or, for a list of formats, an object with one entry for each."""
    if isinstance(formats, str):
        return _in_format(row, formats)
    return {name: _in_format(row, name) for name in formats}


def formatted_rows(rows: Floats, formats: Format | Sequence[Format]) -> object:
    """Return a multi-vector (t, d) as a list of vectors, or an object of such lists."""
    if isinstance(formats, str):
        return [_in_format(row, formats) for row in rows]
    return {name: [_in_format(row, name) for row in rows] for name in formats}


def _in_format(row: Floats, name: Format) -> object:
    """Return the vector in one format. ubinary: numpy.packbits of the signs, first dimension first, 0 counting as negative;
    binary: ubinary minus 128."""
    if name == "float":
        return np.ascontiguousarray(row, dtype=np.float32)  # the answer writes them
    if name == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    packed = np.packbits(row > 0)
    return packed.tolist() if name == "ubinary" else (packed.astype(np.int16) - 128).tolist()

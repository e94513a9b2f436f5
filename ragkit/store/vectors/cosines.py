"""Cosines of stored float16 rows: the scores that leave an index, and fast ones in float32 that only choose candidates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ragkit.core.types import Floats, Ints

Halves = npt.NDArray[np.float16]

BLOCK = 1024  # rows converted at a time; 1.5 MB of float32 at 384 dims stays in the second-level cache
SCORES = 1 << 24  # scores held at a time, 64 MB
# A scan in float32 orders rows to within its rounding, so candidates this close to the last place are kept and re-scored.
MARGIN = 1e-5


def widen(rows: Halves, out: Floats) -> Floats:
    """Return float16 rows as float32, in out[:len(rows)].

    The exponent is moved into place and rebased by a product, exact for every finite value: three times as fast as NumPy's cast.
    """
    out = out[: len(rows)]
    bits = out.view(np.int32)
    np.copyto(bits, rows.view(np.int16))  # widens with the sign
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # sign, exponent, fraction
    np.multiply(out, np.float32(2.0**112), out=out)
    return out


def cosines(rows: Halves, query: Floats, *, dims: int | None) -> Floats:
    """Return the scores that leave an index: rows (m, d) with query (d or dims,), (m,) float32, summed in float64.

    With `dims`, the rows' prefixes are renormalised; a prefix of zeros scores 0.
    """
    wide = np.asarray(rows[:, :dims], dtype=np.float64)
    scores: npt.NDArray[np.float64] = np.einsum("md,d->m", wide, query.astype(np.float64))
    if dims is not None:
        lengths = np.sqrt(np.einsum("md,md->m", wide, wide))
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    return scores.astype(np.float32)


def block_scores(stored: Halves, queries: Floats, positions: Ints | None, *, dims: int | None) -> Floats:
    """Return scores in float32, (q, m) for all rows or those at `positions`, taken by blocks: they only choose candidates."""
    total = len(stored) if positions is None else len(positions)
    scores = np.empty((len(queries), total), dtype=np.float32)
    width = stored.shape[1] if dims is None else dims
    buffer = np.empty((min(BLOCK, total), width), dtype=np.float32)
    for start in range(0, total, BLOCK):
        stop = min(start + BLOCK, total)
        halves = stored[start:stop, :width] if positions is None else stored[positions[start:stop], :width]
        block = widen(halves, buffer)
        if dims is not None:
            lengths = np.sqrt(np.einsum("md,md->m", block, block))[:, None]
            np.divide(block, lengths, out=block, where=lengths > 0)
        np.matmul(queries, block.T, out=scores[:, start:stop])
    return scores

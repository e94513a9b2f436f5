"""What the three models share, in float64: norms, activations, attention, rotation of pairs, unit vectors."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    """The exact one: x times the normal distribution's share below x."""
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def attention(q: Array, k: Array, v: Array, added: Array | float = 0.0) -> Array:
    """One head: q (t, d), k (s, d), v (s, d); `added` (t, s) joins the scores, -inf where a key is not seen."""
    scores = q @ k.T / math.sqrt(q.shape[1]) + added
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True) @ v


def heads_of(x: Array, heads: int) -> list[Array]:
    """x (t, heads * d) as one (t, d) per head."""
    return np.split(x, heads, axis=1)


def rotate_halves(x: Array, angles: Array) -> Array:
    """Rotary embedding that pairs component i with i + d/2: x (t, d), angles (t, d/2) in radians."""
    first, second = np.split(x, 2, axis=1)
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
    )


def rotate_neighbours(x: Array, angles: Array) -> Array:
    """Rotary embedding that pairs component 2i with 2i + 1: x (t, d), angles (t, d/2) in radians."""
    even, odd = x[:, 0::2], x[:, 1::2]
    turned = np.empty_like(x)
    turned[:, 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    turned[:, 1::2] = odd * np.cos(angles) + even * np.sin(angles)
    return turned


def frequencies(theta: float, pairs: int) -> Array:
    """(pairs,): theta^(-2i / 2 pairs), the angle that one position turns pair i."""
    return np.array([theta ** (-i / pairs) for i in range(pairs)])


def unit(x: Array) -> Array:
    """The vector, or each row, at length 1."""
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def shortened(vector: Array, dims: int | None) -> Array:
    """The first `dims` numbers (all if None) of a vector or of each row, at length 1."""
    return unit(vector[..., :dims])

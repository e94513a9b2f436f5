"""Ragged items to try MaxSim with, and scores by definition."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Floats, Ints
from ragkit.store.vectors.quantise import Loss, Quantiser, quantise, round_up
from ragkit.store.vectors.tiles import Items, build_tile

FORMS = ("float32", "float16", "int8", "unweighed")
CODES = ("int8", "unweighed")


def naive(query: Any, items: list[Any]) -> list[float]:
    """The definition, in float64, one product at a time."""
    scores = []
    for item in items:
        score = 0.0
        for row in query:
            best = -math.inf
            for token in item:
                best = max(best, math.fsum(float(a) * float(b) for a, b in zip(row, token, strict=True)))
            score += best
        scores.append(score)
    return scores


def stored(tokens: Floats, lengths: Ints, form: str = "int8", *, keys: Ints | None = None) -> tuple[Items, Loss]:
    """Items of these lengths over (t, d) rows, in a precision."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    keys = np.arange(len(lengths), dtype=np.int64) if keys is None else keys
    if form not in CODES:
        return Items(tokens.astype(form), offsets, keys), Loss()
    quantiser = Quantiser.of(tokens.shape[1]) if form == "int8" else unweighed(tokens.shape[1])
    codes, loss = quantise(tokens, quantiser)
    return Items(codes, offsets, keys, quantiser), loss


def unweighed(dims: int) -> Quantiser:
    """As rows were quantised before they had weights: one step, for five standard deviations."""
    return Quantiser(dims=dims, step=round_up(min(5 / math.sqrt(dims), 1.0) / 127, 8))


def cut(rows: Any, items: Items) -> list[Any]:
    """The rows of each item."""
    return [rows[begin:end] for begin, end in pairwise(items.offsets)]


def corpus(
    seed: int = 0, *, dims: int = 128, count: int = 40, longest: int = 40, form: str = "int8", keys: Ints | None = None
) -> tuple[Items, Loss, Floats]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    tokens = unit_rows(rng.normal(size=(lengths.sum(), dims)))
    return *stored(tokens, lengths, form, keys=keys), tokens


def query_of(size: int, dims: int = 128, seed: int = 1) -> Floats:
    return unit_rows(np.random.default_rng(seed).normal(size=(size, dims)))


def totals_of(items: Items, query: Floats) -> tuple[Ints, float]:
    """The int8 score as it is defined: products of codes, times the token's weight in float32, the best times the row's; and what
    they count."""
    assert items.quantiser is not None
    width, tile = items.quantiser.width, build_tile([query], items.quantiser)
    products = (items.values[:, :width].astype(np.int64) - 128) @ tile.rows.astype(np.int64).T
    weights = items.values[:, width:] if items.quantiser.weighed else np.ones((len(products), 1))
    weighed = (products.astype(np.float32) * weights.astype(np.float32)).astype(np.int64)
    return np.array([int((part.max(axis=0) * tile.weights).sum()) for part in cut(weighed, items)], dtype=np.int64), tile.units[0]

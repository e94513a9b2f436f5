"""Codes of token vectors, and fewer codes for an item: the same with and without the compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Floats
from ragkit.store.vectors.maxsim import scores_of
from ragkit.store.vectors.quantise import (
    RUN,
    Loss,
    Quantiser,
    _numpy_quantise,
    _numpy_thin,
    _signs,
    quantise,
    requantise,
    rotate,
    signed_rows,
    thin,
)
from ragkit.store.vectors.tiles import Items, build_tile
from tests.store.vectors.multivectors import corpus, cut, query_of, unweighed

# --- quantising -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**63), st.sampled_from([1e-3, 1.0, 1e6]))
def test_codes_do_not_depend_on_the_kernel(dims: int, seed: int, length: float) -> None:
    quantiser = Quantiser.of(dims, length=length, seed=seed)
    rows = (length * unit_rows(np.random.default_rng(seed).standard_t(2, size=(7, dims)))).astype(np.float32)
    codes, loss = quantise(rows, quantiser)
    other = np.full_like(codes, 128)
    residual, longest = _numpy_quantise(rows, quantiser, other)
    assert (codes == other).all()
    assert (codes[:, dims : quantiser.width] == 128).all()
    assert codes.min() >= 1
    assert (np.abs(codes[:, :dims].astype(int) - 128).max(axis=1) >= 63).all()  # no weight is larger than the row needs
    assert math.isclose(loss.residual, math.sqrt(residual), rel_tol=1e-9)
    assert math.isclose(loss.longest, math.sqrt(longest), rel_tol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 64, 96, 128, 130, 384, 1000])
def test_the_rotation_is_orthogonal_and_spreads(dims: int) -> None:
    rotated = rotate(np.eye(dims, dtype=np.float32), Quantiser.of(dims)).astype(np.float64)
    np.testing.assert_allclose(rotated @ rotated.T, np.eye(dims), atol=3e-6)
    assert np.abs(rotated).max() <= 1 or dims == 1
    if dims >= 64:
        assert np.abs(rotated).max() <= 6 / math.sqrt(dims)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_the_signs_are_the_top_bits_of_splitmix64(seed: int) -> None:
    state, tops, word = seed, [], 2**64 - 1
    for _ in range(3 * 5):
        state = (state + 0x9E3779B97F4A7C15) & word
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        tops.append((z ^ (z >> 31)) >> 63)
    assert _signs(5, seed).ravel().tolist() == [-1.0 if top else 1.0 for top in tops]


def test_the_loss_is_that_of_the_worst_row() -> None:
    rows = query_of(200)
    quantiser = Quantiser.of(128)
    codes, loss = quantise(rows, quantiser)
    lost = rotate(rows, quantiser).astype(np.float64) - signed_rows(codes, quantiser) * quantiser.step
    assert math.isclose(loss.residual, np.linalg.norm(lost, axis=1).max(), rel_tol=1e-5)
    assert math.isclose(loss.longest, 1, rel_tol=1e-5)
    assert loss | Loss(2.0, 0.5) == Loss(2.0, loss.longest)


@pytest.mark.parametrize("size", [1, 7, 32, 200])
def test_a_query_is_rounded_and_never_clipped(size: int) -> None:
    quantiser, query = Quantiser.of(128), query_of(size, seed=size) * np.float32(3 + size)
    tile = build_tile([query], quantiser)
    steps = tile.weights[:, None] * (tile.units[0] / quantiser.step)
    rotated = rotate(query, quantiser)
    assert (np.abs(tile.rows * steps - rotated) <= 0.5001 * steps).all()
    assert (127 * steps <= np.abs(rotated).max(axis=1, keepdims=True) * (1 + 2**-7)).all()  # and no more range than a row needs


def test_codes_without_weights_are_given_some_at_less_than_they_had_lost() -> None:
    items, loss, tokens = corpus(9, form="unweighed")
    old, new = items.quantiser, Quantiser.of(128)
    assert old is not None
    codes, again = requantise(items.values, old, new)
    assert 0 < again.residual < loss.residual
    rotated = rotate(tokens, new).astype(np.float64)
    lost = np.linalg.norm(rotated - signed_rows(codes, new) * new.step, axis=1)
    assert lost.max() <= loss.residual + again.residual
    with pytest.raises(ValueError, match="another rotation"):
        requantise(items.values, old, Quantiser.of(128, seed=1))


def test_rounding_costs_little_on_average() -> None:
    items, _, tokens = corpus(8, count=200)
    query = query_of(32)
    exact = [(query @ item.T).max(axis=1).sum() for item in cut(tokens, items)]
    assert np.abs(scores_of([query], items, np.arange(200))[0] - exact).mean() < 0.01  # of 32


# --- thinning ---------------------------------------------------------------------------------------------------------


def thinned(rows: Floats, factor: int) -> Floats:
    """The definition, in Python, one token at a time: what stands for a single item."""
    like = rows.astype(np.float64) @ rows.T.astype(np.float64)
    seeds = [0]
    while len(seeds) < -(-len(rows) // factor):
        others = [at for at in range(len(rows)) if at not in seeds]
        seeds.append(min(others, key=lambda at: (like[seeds, at].max(), at)))
    owner = [seeds.index(at) if at in seeds else int(like[seeds, at].argmax()) for at in range(len(rows))]
    sums = np.stack([rows[[at for at in range(len(rows)) if owner[at] == seed]].sum(axis=0) for seed in range(len(seeds))])
    return unit_rows(sums)


def opened(codes: Any, quantiser: Quantiser) -> Floats:
    """Codes as the rotated rows that they stand for."""
    return (signed_rows(codes, quantiser) * quantiser.step).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.lists(st.integers(1, 40), max_size=8), st.integers(1, 50), st.integers(0, 2**32), st.data())
def test_thinned_rows_are_the_same_without_the_compiled_kernel(
    dims: int, lengths: list[int], factor: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    rows = unit_rows(rng.standard_t(2, size=(sum(lengths), dims)))
    for at in data.draw(st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=6)) if len(rows) else []:
        rows[at] = data.draw(st.sampled_from([rows[0], -rows[at - 1], 0 * rows[0], 0.3 * rows[at], rows[at - 1]]))
    quantiser = Quantiser.of(dims, seed=seed)
    codes, _ = quantise(rows, quantiser)
    fewer, kept = thin(codes, np.array(lengths, dtype=np.int64), quantiser, factor)
    assert kept.tolist() == [-(-length // factor) for length in lengths]
    other = np.zeros_like(fewer)
    _numpy_thin(codes, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), quantiser, factor, other)
    assert (fewer == other).all()


@pytest.mark.parametrize("factor", [2, 3, 4, 9, 100])
def test_thinned_rows_are_means_about_seeds_far_from_each_other(factor: int) -> None:
    items, _, _ = corpus(3, dims=48, longest=30)
    assert items.quantiser is not None
    lengths = np.diff(items.offsets)
    fewer, kept = thin(items.values, lengths, items.quantiser, factor)
    rows, found = opened(items.values, items.quantiser), opened(fewer, items.quantiser)
    for begin, end, (first, last) in zip(
        items.offsets[:-1], items.offsets[1:], pairwise(np.concatenate([[0], np.cumsum(kept)])), strict=True
    ):
        np.testing.assert_allclose(found[first:last], thinned(rows[begin:end], factor), atol=0.02)
        alone, _ = thin(items.values[begin:end], np.array([end - begin]), items.quantiser, factor)
        assert (alone == fewer[first:last]).all()  # whatever stands beside it


def test_what_is_unlike_all_else_is_kept_as_it_is() -> None:
    rng = np.random.default_rng(5)
    rows = unit_rows(np.ones((40, 64)) + 0.1 * rng.normal(size=(40, 64)))
    rows[23] = unit_rows(rng.normal(size=(1, 64)))[0]
    codes, _ = quantise(rows, Quantiser.of(64))
    fewer, _ = thin(codes, np.array([40]), Quantiser.of(64), 10)
    assert len(fewer) == 4
    assert (fewer == codes[23]).all(axis=1).any()


def test_a_token_between_two_seeds_joins_the_first() -> None:
    rows = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    codes, _ = quantise(rows, Quantiser.of(2))
    fewer, _ = thin(codes, np.array([3]), Quantiser.of(2), 2)
    other = np.zeros_like(fewer)
    _numpy_thin(codes, np.array([0, 3]), Quantiser.of(2), 2, other)
    assert (fewer == other).all()
    assert (fewer[1] == codes[1]).all()  # alone: the third joined the first


def test_a_factor_beyond_all_lengths_leaves_one_row() -> None:
    items, _, _ = corpus(4, dims=20)
    assert items.quantiser is not None
    for factor in (2048, 2049, 2**63 - 1, 2**80):
        fewer, kept = thin(items.values, np.diff(items.offsets), items.quantiser, factor)
        assert (kept == 1).all()
        assert (fewer == thin(items.values, np.diff(items.offsets), items.quantiser, 100)[0]).all()


def test_any_bytes_are_thinned_without_a_crash_and_alike() -> None:
    rng = np.random.default_rng(7)
    for dims in (1, 5, 48, 300):
        quantiser = Quantiser.of(dims)
        codes = rng.integers(0, 256, (90, quantiser.row_bytes), dtype=np.uint8)
        codes[:, dims : quantiser.width] = 128
        lengths = np.array([1, 60, 29])
        fewer, _ = thin(codes, lengths, quantiser, 3)
        other = np.zeros_like(fewer)
        _numpy_thin(codes, np.array([0, 1, 61, 90]), quantiser, 3, other)
        assert (fewer == other).all()


def test_a_long_item_is_thinned_in_runs() -> None:
    rows = query_of(2 * RUN + 5, 16)
    codes, _ = quantise(rows, Quantiser.of(16))
    fewer, kept = thin(codes, np.array([len(rows)]), Quantiser.of(16), 1000)
    assert kept.tolist() == [7]
    runs = [thin(part, np.array([len(part)]), Quantiser.of(16), 1000)[0] for part in np.split(codes, [2048, 4096])]
    assert (np.concatenate(runs) == fewer).all()


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda items: quantise(np.full((2, 128), np.inf, np.float32), items.quantiser), "row 0 is not finite"),
        (lambda items: quantise(query_of(2, 64), items.quantiser), "rows must be"),
        (lambda items: Quantiser(dims=4, step=0.3), "use Quantiser.of"),
        (lambda items: thin(items.values, np.diff(items.offsets), items.quantiser, 0), "factor must be at least 1"),
        (lambda items: thin(items.values, np.diff(items.offsets)[1:], items.quantiser, 2), "lengths add up to"),
        (lambda items: thin(items.values, np.array([0, len(items.values)]), items.quantiser, 2), "lengths add up to"),
        (lambda items: thin(items.values[:, 1:], np.diff(items.offsets), items.quantiser, 2), "codes must be"),
        (lambda items: thin(items.values, np.diff(items.offsets), unweighed(128), 2), "with weights"),
    ],
)
def test_misuse_is_refused(call: Callable[[Items], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(corpus()[0])

"""Late interaction: every kernel against a triple loop, and against each other."""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.care import doctor
from ragkit.core.arrays import unit_rows
from ragkit.core.types import Floats, Ints
from ragkit.store.vectors import maxsim
from ragkit.store.vectors.compiled import extension, kernels
from ragkit.store.vectors.maxsim import error_bound, explain, scan, scores_of
from ragkit.store.vectors.quantise import (
    RUN,
    WIDEST,
    Loss,
    Quantiser,
    _numpy_quantise,
    _numpy_thin,
    _signs,
    quantise,
    requantise,
    rotate,
    round_up,
    signed_rows,
    thin,
)
from ragkit.store.vectors.tiles import QUERY_WEIGHT, Items, Tile, build_tile

SOURCES = Path(maxsim.__file__).parent / "kernel"
COMPILED = [name for name in kernels() if name != "numpy"]
HEADERS = Path(sysconfig.get_paths()["include"])
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


def ranked(scores: Any, keys: Ints, k: int) -> list[tuple[int, float]]:
    return sorted(((int(key), float(score)) for key, score in zip(keys, scores, strict=True)), key=lambda f: (-f[1], f[0]))[:k]


def pairs(found: tuple[Ints, Any]) -> list[tuple[int, float]]:
    return [(int(key), float(score)) for key, score in zip(*found, strict=True)]


# --- the definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", kernels())
def test_scores_are_the_triple_loops(kernel: str, form: str) -> None:
    items, loss, tokens = corpus(dims=20, count=6, longest=9, form=form)
    query = query_of(5, 20)
    scores = scores_of([query], items, np.arange(6), kernel=kernel)[0]
    if form in CODES:
        totals, unit = totals_of(items, query)
        assert scores.tolist() == (totals * unit).tolist()
        assert np.abs(scores - naive(query, cut(tokens, items))).max() <= error_bound(query, items.quantiser, loss)
    else:
        np.testing.assert_allclose(scores, naive(query, cut(items.values, items)), rtol=0, atol=1e-5)


@st.composite
def searches(draw: st.DrawFn) -> tuple[Floats, Ints, list[Floats], Ints, int, Any]:
    """Ragged rows with repeats and signs, queries, keys in any order, k, and who is allowed."""
    dims = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 96, 127, 128, 200, 384, 511, 512])))
    short = draw(st.lists(st.one_of(st.integers(1, 14), st.integers(1, 300)), min_size=0, max_size=8))
    long = draw(st.one_of(st.just([]), st.lists(st.integers(300, 3000), min_size=1, max_size=1)))
    lengths = np.array([*short, *long], dtype=np.int64)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = unit_rows(rng.normal(size=(int(lengths.sum()), dims)))
    queries = [unit_rows(rng.normal(size=(size, dims))) for size in draw(st.lists(st.integers(1, 70), min_size=1, max_size=3))]
    shape = draw(st.sampled_from(["any", "duplicates", "negative", "zeros"]))
    if shape == "duplicates":
        tokens = tokens[rng.integers(0, max(1, len(tokens) // 8), len(tokens))]
    if shape == "negative":
        tokens, queries = -np.abs(tokens), [np.abs(query) for query in queries]
    if shape == "zeros":
        tokens = tokens * (rng.random((len(tokens), 1)) < 0.5)
    keys = rng.permutation(10 * len(lengths) + 1)[: len(lengths)] - len(lengths)
    allowed = draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
    mask = None if allowed is None else rng.random(len(lengths)) < allowed
    return tokens.astype(np.float32), lengths, queries, keys.astype(np.int64), draw(st.integers(0, 12)), mask


@settings(max_examples=60, deadline=None)
@given(searches(), st.sampled_from(CODES))
def test_int8_is_the_same_whole_numbers_on_every_kernel(
    case: tuple[Floats, Ints, list[Floats], Ints, int, Any], form: str
) -> None:
    tokens, lengths, queries, keys, k, allowed = case
    items, loss = stored(tokens, lengths, form, keys=keys)
    among = np.flatnonzero(allowed) if allowed is not None else np.arange(len(keys))
    found = {name: scan(queries, items, k=k, allowed=allowed, kernel=name) for name in kernels()}
    for number, query in enumerate(queries):
        totals, unit = totals_of(items, query)
        for name in kernels():
            assert pairs(found[name][number]) == ranked(totals[among] * unit, keys[among], k)
            assert scores_of([query], items, np.arange(len(keys)), kernel=name)[0].tolist() == (totals * unit).tolist()
        exact = [(query.astype(np.float64) @ item.T).max(axis=1).sum() for item in cut(tokens.astype(np.float64), items)]
        assert (np.abs(totals * unit - exact) <= error_bound(query, items.quantiser, loss)).all()


@settings(max_examples=40, deadline=None)
@given(searches(), st.sampled_from(["float32", "float16"]))
def test_floats_are_exact_to_float32_rounding(case: tuple[Floats, Ints, list[Floats], Ints, int, Any], form: str) -> None:
    tokens, lengths, queries, keys, k, allowed = case
    items, _ = stored(tokens, lengths, form, keys=keys)
    among = np.flatnonzero(allowed) if allowed is not None else np.arange(len(keys))
    floats = cut(items.values.astype(np.float64), items)
    for name in kernels():
        for query, found in zip(queries, scan(queries, items, k=k, allowed=allowed, kernel=name), strict=True):
            exact = np.array([(query.astype(np.float64) @ item.T).max(axis=1).sum() for item in floats])
            scores = scores_of([query], items, np.arange(len(keys)), kernel=name)[0]
            assert np.abs(scores - exact).max(initial=0) <= 2e-6 * len(query)
            assert pairs(found) == ranked(scores[among], keys[among], k)


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", kernels())
def test_threads_change_nothing(kernel: str, form: str) -> None:
    items, _, _ = corpus(2, count=300, form=form, keys=np.random.default_rng(0).permutation(300))
    queries = [query_of(32), query_of(7)]
    for allowed in (None, np.random.default_rng(1).random(300) < 0.3):
        one, two, five = (scan(queries, items, k=25, allowed=allowed, threads=threads, kernel=kernel) for threads in (1, 2, 5))
        assert [pairs(found) for found in one] == [pairs(found) for found in two] == [pairs(found) for found in five]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", kernels())
def test_a_score_does_not_depend_on_neighbours_order_or_other_queries(kernel: str, form: str) -> None:
    items, _, tokens = corpus(3, count=50, form=form)
    queries = [query_of(size, seed=size) for size in (1, 8, 15, 16, 17, 32, 33, 64, 65, 200)]
    together = scores_of(queries, items, np.arange(50), kernel=kernel)
    lengths = np.diff(items.offsets)
    for position in (0, 17, 49):
        begin, end = items.offsets[position : position + 2]
        alone, _ = stored(tokens[begin:end], lengths[position : position + 1], form)
        backwards, _ = stored(tokens[begin:end][::-1], lengths[position : position + 1], form)
        for number, query in enumerate(queries):
            assert scores_of([query], alone, np.array([0]), kernel=kernel)[0, 0] == together[number, position]
            assert scores_of([query], backwards, np.array([0]), kernel=kernel)[0, 0] == together[number, position]


def test_a_query_of_2048_tokens_and_an_item_of_3000() -> None:
    rng = np.random.default_rng(4)
    items, _ = stored(unit_rows(rng.normal(size=(3010, 24))), np.array([7, 3000, 3]))
    query = query_of(2048, 24)
    totals, unit = totals_of(items, query)
    for name in kernels():
        assert scores_of([query], items, np.arange(3), kernel=name)[0].tolist() == (totals * unit).tolist()


@pytest.mark.parametrize("kernel", kernels())
def test_the_widest_rows_do_not_overflow(kernel: str) -> None:
    quantiser = Quantiser.of(WIDEST, length=1.0)
    codes = np.full((2, quantiser.row_bytes), 255, dtype=np.uint8)  # +127 everywhere, and the heaviest weight
    codes[1, : quantiser.width] = 1  # -127 everywhere
    items = Items(codes, np.array([0, 1, 2]), np.array([0, 1]), quantiser)
    heaviest = np.array([QUERY_WEIGHT])
    tile = Tile(np.full((1, WIDEST), 127, dtype=np.int8), np.array([0, 1]), np.array([1.0]), heaviest)
    totals = maxsim._totals(kernel, tile, items, np.array([0, 1]))
    largest = 127 * 127 * WIDEST * 255 * QUERY_WEIGHT
    assert totals.tolist() == [[largest, -largest]]


@pytest.mark.parametrize("form", FORMS)
def test_read_only_maps_serve(tmp_path: Path, form: str) -> None:
    items, _, _ = corpus(5, form=form)
    for name in ("values", "offsets", "keys"):
        np.save(tmp_path / f"{name}.npy", getattr(items, name))
    mapped = Items(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("values", "offsets", "keys")), items.quantiser)
    for kernel in kernels():
        query = query_of(32)
        assert pairs(scan([query], mapped, k=9, kernel=kernel)[0]) == pairs(scan([query], items, k=9, kernel=kernel)[0])


# --- ranking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", kernels())
def test_ties_break_by_the_smaller_key(kernel: str, form: str) -> None:
    tokens = np.tile(query_of(3), (20, 1))
    items, _ = stored(tokens, np.full(20, 3), form, keys=np.random.default_rng(0).permutation(20))
    assert scan([query_of(32, seed=9)], items, k=7, kernel=kernel)[0][0].tolist() == list(range(7))


@pytest.mark.parametrize("kernel", kernels())
def test_as_many_as_are_allowed_come_back(kernel: str) -> None:
    items, _, _ = corpus(6, count=30)
    query = query_of(4)
    for allowed in (np.zeros(30, bool), np.arange(30) == 29, np.arange(30) % 3 == 0):
        for k in (0, 1, 5, 100):
            keys, scores = scan([query], items, k=k, allowed=allowed, kernel=kernel)[0]
            assert len(keys) == len(scores) == min(k, allowed.sum())
            assert allowed[keys].all()


@pytest.mark.parametrize("kernel", kernels())
def test_no_items_and_no_queries_give_empty_answers(kernel: str) -> None:
    items, _ = stored(np.empty((0, 8), np.float32), np.empty(0, np.int64))
    assert [pairs(found) for found in scan([query_of(2, 8)], items, k=3, kernel=kernel)] == [[]]
    assert scan([], items, k=3, kernel=kernel) == []
    assert scores_of([], items, np.empty(0, np.int64), kernel=kernel).shape == (0, 0)


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", kernels())
def test_shares_sum_exactly_to_the_score_in_any_order(kernel: str, form: str) -> None:
    items, _, _ = corpus(7, dims=96, form=form)
    query = query_of(33, 96)
    (keys, scores), rng = scan([query], items, k=40, kernel=kernel)[0], np.random.default_rng(0)
    for key, score in zip(keys, scores, strict=True):
        winners, shares = explain(query, items, int(key), kernel=kernel)
        assert shares.sum() == score == sum(rng.permutation(shares)) == math.fsum(shares)
        item = items.values[items.offsets[key] : items.offsets[key + 1]].astype(np.float64)
        if form not in CODES:
            assert (winners == (query.astype(np.float64) @ item.T).argmax(axis=1)).all()


def test_the_first_of_equal_tokens_wins() -> None:
    items, _ = stored(np.tile(query_of(1), (5, 1)), np.array([2, 3]))
    assert explain(query_of(4, seed=3), items, 1)[0].tolist() == [0, 0, 0, 0]


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
        (lambda items: scan([query_of(2, 64)], items, k=1), "must be \\(q, 128\\)"),
        (lambda items: scan([np.empty((0, 128), np.float32)], items, k=1), "at least one token"),
        (lambda items: scan([np.full((1, 128), np.nan, np.float32)], items, k=1), "not finite"),
        (lambda items: scan([query_of(2)], items, k=-1), "must not be negative"),
        (lambda items: scan([query_of(2)], items, k=1, allowed=np.ones(3, bool)), "allowed must be"),
        (lambda items: scan([query_of(2)], items, k=1, kernel="mmx"), "must be one of"),
        (lambda items: scores_of([query_of(2)], items, np.array([40])), "positions must be from 0 to 39"),
        (lambda items: scores_of([query_of(2)], items, np.array([-1])), "positions must be from 0 to 39"),
        (lambda items: explain(query_of(2), items, 40), "positions must be from 0 to 39"),
        (lambda items: quantise(np.full((2, 128), np.inf, np.float32), items.quantiser), "row 0 is not finite"),
        (lambda items: quantise(query_of(2, 64), items.quantiser), "rows must be"),
        (lambda items: Quantiser(dims=4, step=0.3), "use Quantiser.of"),
        (lambda items: thin(items.values, np.diff(items.offsets), items.quantiser, 0), "factor must be at least 1"),
        (lambda items: thin(items.values, np.diff(items.offsets)[1:], items.quantiser, 2), "lengths add up to"),
        (lambda items: thin(items.values, np.array([0, len(items.values)]), items.quantiser, 2), "lengths add up to"),
        (lambda items: thin(items.values[:, 1:], np.diff(items.offsets), items.quantiser, 2), "codes must be"),
        (lambda items: thin(items.values, np.diff(items.offsets), unweighed(128), 2), "with weights"),
        (lambda items: Items(items.values, items.offsets, items.keys), "uint8 and its quantiser"),
        (lambda items: Items(items.values[:, ::2], items.offsets, items.keys, Quantiser.of(64)), "C-contiguous"),
        (lambda items: Items(items.values, items.offsets[1:], items.keys, items.quantiser), "offsets \\(n \\+ 1,\\)"),
    ],
)
def test_misuse_is_refused(call: Callable[[Items], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(corpus()[0])


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("wrong", [[0, 5, 5, 9], [0, 9, 5, 9], [-1, 3, 5, 9], [0, 3, 5, 10], [0, 3, 2**62, 9]])
def test_offsets_that_do_not_hold_are_refused_not_followed(kernel: str, wrong: list[int]) -> None:
    codes, _ = quantise(query_of(9), Quantiser.of(128))
    items = Items(codes, np.array(wrong), np.arange(3), Quantiser.of(128))
    for threads in (1, 2):
        with pytest.raises(ValueError, match=r"item \d is not there, or its offsets"):
            scan([query_of(2)], items, k=1, threads=threads, kernel=kernel)


# --- the build --------------------------------------------------------------------------------------------------------


def digest() -> str:
    """Of codes and answers."""
    found = hashlib.sha256()
    for form in CODES:
        items, _, _ = corpus(10, dims=70, count=60, form=form)
        found.update(items.values.tobytes())
        for keys, scores in scan([query_of(9, 70), query_of(33, 70)], items, k=20, allowed=np.arange(60) % 3 > 0):
            found.update(keys.tobytes() + scores.tobytes())
    found.update(thin(corpus(10, dims=70)[0].values, np.diff(corpus(10, dims=70)[0].offsets), Quantiser.of(70), 4)[0].tobytes())
    return found.hexdigest()


def test_without_the_extension_the_answers_are_the_same_and_doctor_says_what_runs() -> None:
    script = (
        "import sys; sys.modules['ragkit.store.vectors._maxsim'] = None\n"
        "from ragkit.care import doctor\n"
        "from tests.store.vectors.test_maxsim import digest, kernels\n"
        "assert kernels() == ['numpy'] == [doctor._maxsim()]\n"
        "print(digest())\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == [digest()]
    assert doctor._maxsim() == kernels()[0]


@pytest.mark.skipif(not (shutil.which("cc") and (HEADERS / "Python.h").exists()), reason="no C compiler")
@pytest.mark.parametrize("source", ["maxsim.c", "module.c"])
def test_the_kernel_compiles_without_a_warning(source: str) -> None:
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    command = ["cc", *flags, "-fsyntax-only", "-I", str(HEADERS), str(SOURCES / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not COMPILED, reason="the extension was not built")
def test_the_extension_checks_its_arguments() -> None:
    items, _, _ = corpus(count=3)
    tile = build_tile([query_of(4)], items.quantiser)
    call = maxsim._call(COMPILED[0], tile, items)
    best = np.empty((1, 2, 2), np.int64)
    for wrong in [
        (*call, items.keys[:2], None, 0, 3, 2, best),
        (*call, items.keys, np.ones(2, np.uint8), 0, 3, 2, best),
        (*call, items.keys, None, 0, 4, 2, best),
        (*call, items.keys, None, -1, 3, 2, best),
        (*call, items.keys, None, 0, 3, 3, best),
        (*call[:2], 2, *call[3:], items.keys, None, 0, 3, 2, best),
        (*call[:3], 130, *call[4:], items.keys, None, 0, 3, 2, best),
        (*call[:6], tile.rows[:3], *call[7:], items.keys, None, 0, 3, 2, best),
        (*call[:9], tile.weights[:3], items.keys, None, 0, 3, 2, best),
        ("mmx", *call[1:], items.keys, None, 0, 3, 2, best),
    ]:
        with pytest.raises(ValueError):
            extension.scan(*wrong)
    with pytest.raises(ValueError):
        extension.totals(*call, np.arange(3), np.empty(2, np.int64))
    for position in (-1, 3):
        with pytest.raises(ValueError):
            extension.totals(*call, np.array([position]), np.empty(1, np.int64))
    with pytest.raises(ValueError):
        extension.quantise(query_of(2), 128, 128, np.ones((2, 128), np.float32), 0.1, False, np.empty((2, 128), np.uint8))
    codes, offsets, fewer = items.values, items.offsets, np.empty((3, items.values.shape[1]), np.uint8)
    for unfit in [
        (codes, 128, offsets, 1000, fewer[:2]),
        (codes, 128, offsets, 0, fewer),
        (codes, 128, offsets, 2**63 - 1, fewer),
        (codes, 0, offsets, 1000, fewer),
        (codes, 1 << 20, offsets, 1000, fewer),
        (codes[:-1], 128, offsets, 1000, fewer),
        (codes, 128, offsets + np.array([0, 0, len(codes), 0]), 1000, fewer),
        (codes, 128, offsets - 1, 1000, fewer),
    ]:
        with pytest.raises(ValueError, match=r"not there|do not fit|no room"):
            extension.thin(*unfit)
    extension.thin(codes, 128, offsets, 1000, fewer)

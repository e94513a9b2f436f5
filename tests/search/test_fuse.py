"""The laws of fusing spaces: scales do not matter, chance has little to say, and what stands out does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.core.space import Space
from ragkit.search.fuse import DEPTH, fuse, shares, standing_out
from ragkit.search.plan import SearchPlan
from ragkit.search.queries import QueryVectors
from ragkit.search.request import SearchRequest

SCORES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=150).map(lambda rows: np.sort(np.array(rows))[::-1])
SPACES = ("chunk.dense", "chunk.lexical", "page.dense", "page.multi")


def planned(spaces: Iterable[str], **options: Any) -> SearchPlan:
    """A request to an index that has these spaces."""
    return SearchPlan(SearchRequest(**options), tuple(map(Space, spaces)), QueryVectors(()))


@given(SCORES)
def test_shares_keep_the_order_and_are_neither_negative_nor_boundless(scores: np.ndarray) -> None:
    found = standing_out(scores, usual=scores[:DEPTH])
    assert found.shape == scores.shape
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (np.diff(found) <= 1e-9).all()
    assert found.max() <= DEPTH**0.5


@given(SCORES, st.floats(0.01, 100), st.floats(-50, 50))
def test_neither_unit_nor_origin_of_a_scale_matters(scores: np.ndarray, unit: float, origin: float) -> None:
    usual = scores[:DEPTH]
    if usual.std() > 1e-3 * (1 + np.abs(usual).max()):
        moved = scores * unit + origin
        np.testing.assert_allclose(
            standing_out(moved, usual=moved[:DEPTH]), standing_out(scores, usual=usual), rtol=1e-5, atol=1e-7
        )


def test_equal_scores_are_told_apart_by_nobody() -> None:
    same = np.full(7, 0.3)
    assert len(set(standing_out(same, usual=same).tolist())) == 1
    ranked = {space: (np.arange(7), same) for space in ("chunk.dense", "chunk.multi")}
    assert [one.key for one in fuse(ranked, shares(ranked, planned(ranked)))] == list(range(7))


def test_spaces_of_nothing_but_chance_move_no_answer_that_stands_out() -> None:
    draw = np.random.default_rng(3)
    options = planned(SPACES)
    kept, first_by_ranks = 0, 0
    for _ in range(200):
        text = np.sort(draw.normal(size=80))[::-1]
        text[0] = text[1] + 3.0  # found, by three standard deviations
        ranked = {"chunk.dense": (np.arange(80), text)}
        for space in SPACES[2:]:  # of the same units, so that they can displace each other
            noise = draw.normal(size=80)
            order = np.argsort(-noise)
            ranked[space] = (order, noise[order])
        kept += fuse(ranked, shares(ranked, options))[0].key == 0
        by_ranks = planned(SPACES, rrf=15.0, weights=dict.fromkeys(SPACES[2:], 1.0))
        first_by_ranks += fuse(ranked, shares(ranked, by_ranks))[0].key == 0
    assert kept == 200
    assert first_by_ranks < 150


def test_a_space_that_finds_something_is_heard_beside_one_that_finds_nothing() -> None:
    draw = np.random.default_rng(4)
    options = planned(("chunk.dense", "chunk.lexical"))
    for _ in range(50):
        noise = np.sort(draw.normal(size=100))[::-1]
        words = {"chunk.dense": (np.arange(100), noise), "chunk.lexical": (np.array([70]), np.array([4.0]))}
        assert fuse(words, shares(words, options))[0].key == 70  # the one unit that has the word


def test_the_shares_of_a_space_do_not_depend_on_how_deep_it_was_searched() -> None:
    draw = np.random.default_rng(5)
    options = planned(("chunk.dense", "chunk.lexical"))
    long = {space: (np.arange(400), np.sort(draw.exponential(size=400))[::-1]) for space in options.spaces}
    short = {space: (keys[:DEPTH], scores[:DEPTH]) for space, (keys, scores) in long.items()}
    for space, share in shares(short, options).items():
        np.testing.assert_array_equal(share, shares(long, options)[space][:DEPTH])


def test_a_space_without_candidates_says_nothing() -> None:
    ranked = {"chunk.dense": (np.arange(3), np.array([0.9, 0.5, 0.1])), "chunk.lexical": (np.empty(0, int), np.empty(0))}
    given = shares(ranked, planned(("chunk.dense", "chunk.lexical")))
    assert given["chunk.lexical"].size == 0
    assert [one.key for one in fuse(ranked, given)] == [0, 1, 2]
    nothing = {space: (np.empty(0, int), np.empty(0)) for space in ranked}
    assert fuse(nothing, shares(nothing, planned(("chunk.dense", "chunk.lexical")))) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_index_of_very_few_units_is_ordered_too(count: int) -> None:
    scores = np.linspace(0.9, 0.2, count)
    ranked = {space: (np.arange(count), scores) for space in ("chunk.dense", "chunk.multi")}
    options = planned(ranked)
    assert [one.key for one in fuse(ranked, shares(ranked, options))] == list(range(count))

"""Fewer vectors for a picture, and the truth about where each of them looks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Box, Patches
from ragkit.search.heat import relevance
from ragkit.store.vectors.patches import ALIKE, bare_cells, fewer_patches
from ragkit.testing import HashEncoder

WHOLE = Box(0, 0, 1, 1)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[np.ndarray, Patches]:
    """Vectors of a prompt before and after those of the cells, some of which are alike, share a vector or have none."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    before, after = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    kinds = draw(st.integers(1, rows * columns))
    directions = rng.normal(size=(kinds, 12))
    cells = directions[rng.integers(0, kinds, rows * columns)] + rng.normal(scale=0.02, size=(rows * columns, 12))
    tokens = before + np.arange(rows * columns).reshape(rows, columns)
    tokens[rng.random((rows, columns)) < draw(st.sampled_from([0, 0.3]))] = draw(st.sampled_from([-1, before]))
    region = draw(st.sampled_from([WHOLE, Box(0.1, 0, 0.9, 1), Box(0, 0, 1, 1.9)]))
    return unit_rows(np.concatenate([rng.normal(size=(before, 12)), cells, rng.normal(size=(after, 12))])), Patches(
        region, tokens
    )


@given(case=pictures(), pool=st.integers(1, 9), background=st.booleans())
@settings(max_examples=120, deadline=None)
def test_every_cell_has_the_mean_of_its_cluster_and_what_looks_nowhere_is_kept(case: Any, pool: int, background: bool) -> None:
    vectors, patches = case
    made, now = fewer_patches(vectors, patches, pool=pool, background=background)
    assert now.region == patches.region
    assert now.tokens.shape == patches.tokens.shape
    assert -1 <= now.tokens.min() <= now.tokens.max() < len(made) <= len(vectors)
    assert (now.tokens[patches.tokens == -1] == -1).all()
    for vector in np.unique(now.tokens[now.tokens >= 0]):
        members = np.unique(patches.tokens[now.tokens == vector])
        mean = vectors[members].mean(axis=0)
        if pool > 1 and not background:
            continue  # a mean of means: copies do not weigh in
        assert np.abs(made[vector] - mean / np.linalg.norm(mean)).max() < 1e-5
    words = np.setdiff1d(np.arange(len(vectors)), patches.tokens)
    kept = np.setdiff1d(np.arange(len(made)), now.tokens)
    assert np.array_equal(made[kept], vectors[words])
    firsts = [patches.tokens[now.tokens == vector].min() for vector in np.unique(now.tokens[now.tokens >= 0])]
    assert firsts == sorted(firsts)
    looking = len(np.unique(patches.tokens[patches.tokens >= 0]))
    assert len(made) <= len(words) + max(looking > 0, looking // pool)


@given(case=pictures(), pool=st.integers(1, 9), background=st.booleans())
@settings(max_examples=60, deadline=None)
def test_shares_still_sum_to_the_score(case: Any, pool: int, background: bool) -> None:
    made, now = fewer_patches(*case, pool=pool, background=background)
    query = unit_rows(np.random.default_rng(1).normal(size=(5, 12)))
    similar = query @ made.T
    found = relevance(similar.argmax(axis=1), similar.max(axis=1), now)
    assert found.score == pytest.approx(float(similar.max(axis=1).sum()), abs=1e-5)


@given(case=pictures())
@settings(max_examples=60, deadline=None)
def test_a_factor_of_one_changes_nothing_and_copies_cost_next_to_nothing(case: Any) -> None:
    vectors, patches = case
    same, still = fewer_patches(vectors, patches, pool=1, background=True)
    assert np.array_equal(same, vectors)
    assert np.array_equal(still.tokens, patches.tokens)
    if patches.region.y1 > 1:
        return
    made, _ = fewer_patches(vectors, patches, background=False)
    query = unit_rows(np.random.default_rng(2).normal(size=(9, 12)))
    moved = np.abs((query @ made.T).max(axis=1) - (query @ vectors.T).max(axis=1))
    assert moved.max() <= 2 * math.sqrt(2 - 2 * ALIKE)  # a mean of what lies about a vector lies about it, too


def test_copies_become_one_and_no_score_changes() -> None:
    rng = np.random.default_rng(4)
    kinds, query = unit_rows(rng.normal(size=(5, 16))), unit_rows(rng.normal(size=(7, 16)))
    which = rng.integers(0, 5, 24)
    vectors = np.concatenate([kinds[[0]], kinds[which]])
    made, now = fewer_patches(vectors, Patches(WHOLE, 1 + np.arange(24).reshape(4, 6)), background=False)
    assert len(made) == 1 + len(np.unique(which))  # the first looks nowhere, and is kept
    assert np.abs((query @ made.T).max(axis=1) - (query @ vectors.T).max(axis=1)).max() < 1e-6
    assert np.abs(made[now.tokens.ravel()] - kinds[which]).max() < 1e-6


def test_what_is_alike_in_steps_is_not_all_the_same() -> None:
    angles = np.radians(np.arange(0, 90, 5))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    made, now = fewer_patches(vectors, Patches(WHOLE, np.arange(18).reshape(3, 6)), background=False)
    for vector in range(len(made)):
        members = vectors[now.tokens.ravel() == vector]
        assert (members @ members[0]).min() >= ALIKE
    assert len(made) == 6  # of three steps each: 10 degrees are alike, 15 are not


def test_padding_is_dropped() -> None:
    vectors = unit_rows(np.random.default_rng(0).normal(size=(14, 8)))
    patches = Patches(Box(0, 0, 1, 1.5), 1 + np.arange(12).reshape(6, 2))
    made, now = fewer_patches(vectors, patches, background=False)
    assert np.array_equal(now.tokens, [[1, 2], [3, 4], [5, 6], [7, 8], [-1, -1], [-1, -1]])
    assert np.array_equal(made, vectors[[*range(9), 13]])


@pytest.mark.parametrize("pool", [1, 4, 9])
def test_a_mark_is_found_in_its_cell_after_reduction(pool: int) -> None:
    encoder = HashEncoder(64, multi_dims=64, images=True)
    size = encoder.image_size(612, 792)
    page, patches = Image.new("RGB", size, (252, 251, 250)), encoder.patches(*size)
    mark = patches.box(5, 3)
    corners = [round(side * at) + shift for side, at, shift in zip(2 * size, mark, (0, 0, -1, -1), strict=True)]
    ImageDraw.Draw(page).rectangle(corners, fill="red")
    [vectors] = encoder.encode_document([page]).multi
    [asked] = encoder.encode_query(["red"]).multi
    made, now = fewer_patches(vectors, patches, pool=pool, background=False, image=page)
    assert len(made) == 3 + 2  # the prompt's, paper, and red: nothing is left to pool but these two
    made, now = fewer_patches(vectors, patches, pool=pool)
    found = relevance((asked @ made.T).argmax(axis=1), (asked @ made.T).max(axis=1), now)
    assert np.argwhere(found.cells > 0).tolist() == [[5, 3]]


def test_bare_paper_is_seen_by_its_pixels_whatever_the_vectors_say() -> None:
    page = Image.new("RGB", (280, 280), (250, 250, 250))
    draw = ImageDraw.Draw(page)
    draw.rectangle((140, 0, 279, 139), fill=(30, 60, 200))
    draw.line((5, 200, 100, 205), fill="black")
    patches = Patches(WHOLE, 2 + np.arange(100).reshape(10, 10))
    bare = bare_cells(page, patches)
    assert len(np.unique(bare)) == 3  # print, white, blue
    assert np.argwhere(bare == -1).tolist() == [[7, 0], [7, 1], [7, 2], [7, 3]]
    vectors = unit_rows(np.random.default_rng(0).normal(size=(103, 16)))
    made, now = fewer_patches(vectors, patches, background=False, image=page)
    assert len(made) == 2 + 4 + 2 + 1
    assert len(np.unique(now.tokens[:5, 5:])) == 1
    assert len(np.unique(now.tokens[7, :4])) == 4
    patches.tokens[0, 0] = patches.tokens[7, 0]  # one vector for paper and print: it is print's
    _, now = fewer_patches(vectors, patches, background=False, image=page)
    assert now.tokens[0, 0] == now.tokens[7, 0]
    assert now.tokens[0, 0] not in now.tokens[0, 1:]
    assert bare_cells(page, Patches(Box(0, 0, 2, 2), np.zeros((2, 2), np.int64))).tolist()[1][1] == -1  # beyond the page


def test_what_cannot_be_is_refused() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="pool must be at least 1, got 0"):
        fewer_patches(vectors, Patches(WHOLE, np.zeros((1, 1), np.int64)), pool=0)
    with pytest.raises(ValueError, match="name vector 3, but there are 3"):
        fewer_patches(vectors, Patches(WHOLE, np.array([[3]])))

"""Shares on a page: parts that sum to the score, maps that keep it, boxes that hold the winning cells and little else."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Box, Citation, Span
from ragkit.encode.contract import Patches
from ragkit.search import heat
from ragkit.search.explain import explain_page, query_spans
from ragkit.search.heat import evidence_boxes, heat_map, heat_png, relevance, similarity_maps, smoothed, vector_boxes
from ragkit.store.vectors import maxsim
from ragkit.store.vectors.tiles import Items
from ragkit.testing import HashEncoder

WHOLE = Box(0, 0, 1, 1)


def grid(rows: int, columns: int, region: Box = WHOLE, *, first: int = 2) -> Patches:
    return Patches(region, first + np.arange(rows * columns, dtype=np.int64).reshape(rows, columns))


@st.composite
def explained(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Patches]:
    """Winners, shares and a grid in which cells may share a vector or have none."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = draw(st.integers(1, 2 * rows * columns + 3))
    tokens = rng.integers(-1, vectors, (rows, columns))
    region = draw(st.sampled_from([WHOLE, Box(0, 0.2, 1, 0.7), Box(-0.1, -0.3, 1.2, 1)]))
    count = draw(st.integers(0, 12))
    return rng.integers(0, vectors, count), rng.normal(0.3, 0.4, count), Patches(region, tokens)


@given(case=explained())
@settings(max_examples=150, deadline=None)
def test_cells_and_what_fell_elsewhere_sum_to_the_score_cell_by_cell(case: Any) -> None:
    winners, shares, patches = case
    found = relevance(winners, shares, patches)
    assert found.score == pytest.approx(math.fsum(shares), abs=1e-9)
    cells, elsewhere = np.zeros(patches.tokens.shape), 0.0
    for winner, share in zip(winners.tolist(), shares.tolist(), strict=True):
        at = np.argwhere(patches.tokens == winner).tolist()
        elsewhere += share * (not at)
        for row, column in at:
            cells[row, column] += share / len(at)
    assert np.abs(found.cells - cells).max() < 1e-9
    assert found.elsewhere == pytest.approx(elsewhere, abs=1e-9)


def test_as_many_shares_as_winners() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) winners and \(1,\) shares"):
        relevance(np.array([0, 1]), [0.5], grid(2, 2))


def test_similarities_are_those_of_each_token_and_cell() -> None:
    rng = np.random.default_rng(0)
    query, vectors = unit_rows(rng.normal(size=(3, 5))), unit_rows(rng.normal(size=(6, 5)))
    patches = Patches(WHOLE, np.array([[2, 5], [-1, 0]]))
    maps = similarity_maps(query, vectors, patches)
    assert maps.shape == (3, 2, 2)
    assert maps[1, 0, 1] == pytest.approx(query[1] @ vectors[5], abs=1e-6)
    assert np.isnan(maps[:, 1, 0]).all()
    assert np.isfinite(maps).sum() == 9


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99), sigma=st.floats(0.3, 3))
@settings(max_examples=60, deadline=None)
def test_smoothing_keeps_the_sum_and_is_the_known_filter(rows: int, columns: int, seed: int, sigma: float) -> None:
    cells = np.random.default_rng(seed).normal(size=(rows, columns))
    soft = smoothed(cells, sigma=sigma)
    assert soft.sum() == pytest.approx(cells.sum(), abs=1e-9)
    reach = 3 * math.ceil(sigma) + 1
    assert np.abs(soft - ndimage.gaussian_filter(cells, sigma, mode="reflect", radius=reach)).max() < 1e-6
    assert smoothed(np.abs(cells), sigma=sigma).min() >= 0
    assert np.array_equal(smoothed(cells, sigma=0), cells)


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 20), columns=st.integers(1, 20), share=st.floats(0.05, 0.9))
@settings(max_examples=100, deadline=None)
def test_what_hangs_together_is_one_component(seed: int, rows: int, columns: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    expected, count = ndimage.label(mask, structure=np.ones((3, 3)))
    found = heat._components(mask)
    assert found.max(initial=0) == count
    assert len(set(zip(found[mask].tolist(), expected[mask].tolist(), strict=True))) == count
    assert not found[~mask].any()


def test_one_winner_is_one_box_its_cell() -> None:
    for patches in (grid(7, 5), grid(30, 24), grid(1, 1), grid(6, 6, Box(0.25, 0, 0.75, 1))):
        for row, column in ((0, 0), (patches.tokens.shape[0] - 1, patches.tokens.shape[1] // 2)):
            [(box, mass)] = evidence_boxes(relevance(np.array([patches.tokens[row, column]]), [0.7], patches))
            assert tuple(box) == pytest.approx(tuple(patches.box(row, column)))
            assert mass == pytest.approx(0.7)


def test_neighbours_are_one_box_and_what_is_far_is_another_most_first() -> None:
    patches = grid(20, 20)
    at = [(2, 2), (2, 3), (3, 2), (15, 16), (9, 9)]
    found = relevance(np.array([patches.tokens[cell] for cell in at]), [0.3, 0.3, 0.3, 0.5, 0.05], patches)
    boxes = evidence_boxes(found)
    assert [mass for _, mass in boxes] == pytest.approx([0.9, 0.5])  # 0.05 of 1.45 is too little for a box
    assert tuple(boxes[0][0]) == pytest.approx((2 / 20, 2 / 20, 4 / 20, 4 / 20))
    assert tuple(boxes[1][0]) == pytest.approx((16 / 20, 15 / 20, 17 / 20, 16 / 20))


@given(case=explained())
@settings(max_examples=150, deadline=None)
def test_boxes_are_few_ordered_apart_and_on_the_page(case: Any) -> None:
    found = relevance(*case)
    boxes = evidence_boxes(found)
    assert len(boxes) <= heat.MOST_BOXES
    masses = [mass for _, mass in boxes]
    assert masses == sorted(masses, reverse=True)
    total = np.maximum(found.cells, 0).sum()
    assert sum(masses) <= total + 1e-9
    assert all(mass >= heat.LEAST * total for mass in masses[1:])
    for i, (box, _) in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
        for other, _ in boxes[:i]:
            assert min(box.x1, other.x1) - max(box.x0, other.x0) < 1e-9 or min(box.y1, other.y1) - max(box.y0, other.y0) < 1e-9


def test_a_box_within_anothers_bounds_joins_it_and_of_many_the_best_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = grid(20, 20)
    corner = [*((row, 1) for row in range(1, 16)), *((15, column) for column in range(2, 16))]
    found = relevance(np.array([patches.tokens[cell] for cell in [*corner, (4, 12)]]), [*[0.1] * 29, 0.4], patches)
    [(box, mass)] = evidence_boxes(found)
    assert mass == pytest.approx(3.3)
    assert tuple(box) == pytest.approx((1 / 20, 1 / 20, 16 / 20, 16 / 20))
    apart = [(row, column) for row in (2, 10, 18) for column in (2, 10, 18)]
    scattered = evidence_boxes(relevance(np.array([patches.tokens[cell] for cell in apart]), np.linspace(0.5, 0.6, 9), patches))
    assert [mass for _, mass in scattered] == pytest.approx([0.6])  # a page is never without any
    monkeypatch.setattr(heat, "LEAST", 0.1)
    best = evidence_boxes(relevance(np.array([patches.tokens[cell] for cell in apart]), np.linspace(0.5, 0.6, 9), patches))
    assert [mass for _, mass in best] == pytest.approx(np.linspace(0.5, 0.6, 9)[::-1][:4].tolist())


def test_nothing_on_the_page_is_no_box() -> None:
    patches = grid(4, 4)
    for winners, shares in (([0, 1], [0.5, 0.4]), ([], []), ([2, 3], [-0.1, 0.0])):
        assert evidence_boxes(relevance(np.array(winners, dtype=np.int64), shares, patches)) == []
    beyond = grid(2, 1, Box(0, 0, 1, 2))  # the second cell is padding below the page
    assert evidence_boxes(relevance(np.array([3]), [0.5], beyond)) == []


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 8), columns=st.integers(1, 8), kinds=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_the_boxes_of_a_vector_cover_its_cells_and_nothing_else(seed: int, rows: int, columns: int, kinds: int) -> None:
    patches = Patches(WHOLE, np.random.default_rng(seed).integers(-1, kinds, (rows, columns)))
    for vector in range(-1, kinds + 1):
        covered = np.zeros((rows, columns), dtype=int)
        for box in vector_boxes(patches, vector):
            left, right = (round(x * columns) for x in (box.x0, box.x1))
            top, bottom = (round(y * rows) for y in (box.y0, box.y1))
            covered[top:bottom, left:right] += 1
        assert np.array_equal(covered, patches.tokens == vector if vector >= 0 else covered * 0)


def lightness(colour: tuple[int, ...]) -> float:
    """L* of CIE 1976, 0 black to 100 white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_more_is_darker_and_print_stays_legible() -> None:
    steps = [tuple(np.asarray(heat_map(Image.new("RGB", (40, 40), "white"), _ramp()))[20, at]) for at in range(1, 40)]
    falling = np.diff([lightness(one) for one in steps])
    assert (falling <= 0.5).all()  # rounding to 8 bits may raise it a little
    assert lightness(steps[-1]) < lightness(steps[0]) - 35
    assert lightness(steps[-1]) > 45  # black print on it has more than 4.5 to 1
    black = np.asarray(heat_map(Image.new("RGB", (40, 40), "black"), _ramp()))
    assert not black.any()


def _ramp() -> heat.Relevance:
    return heat.Relevance(np.tile(np.linspace(0, 1, 40), (40, 1)), 0.0, WHOLE)


def test_the_heat_is_where_the_winner_is_and_nothing_elsewhere_changes_the_page() -> None:
    page = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(page).line((0, 0, 299, 199), fill="black")
    for region, at in ((WHOLE, (0.45, 0.75)), (Box(0.2, 0, 0.8, 1), (0.47, 0.75))):
        patches = grid(10, 10, region)
        drawn = np.asarray(heat_map(page, relevance(np.array([patches.tokens[7, 4]]), [0.9], patches)), dtype=int)
        changed = np.abs(drawn - np.asarray(page, dtype=int)).sum(axis=-1)
        y, x = np.unravel_index(changed.argmax(), changed.shape)
        assert abs(x / 300 - at[0]) < 0.05
        assert abs(y / 200 - at[1]) < 0.05
        outside = np.abs((np.arange(300) + 0.5) / 300 - 0.5) > (region.x1 - region.x0) / 2
        assert not changed[:, outside].any()
        assert changed[:40].max() == 0  # four cells and more above
    nothing = relevance(np.array([0]), [0.9], grid(10, 10))
    assert np.array_equal(np.asarray(heat_map(page, nothing)), np.asarray(page))
    assert Image.open(io.BytesIO(heat_png(page, nothing))).size == (300, 200)


@pytest.mark.parametrize("size", [(612.0, 792.0), (792.0, 612.0), (1700.0, 80.0), (37.0, 41.0)])
def test_a_page_is_explained_by_the_place_of_its_mark(size: tuple[float, float]) -> None:
    encoder = HashEncoder(64, multi_dims=128, images=True)
    pixels = encoder.image_size(*size)
    patches = encoder.patches(*pixels)
    row, column = patches.tokens.shape[0] // 3, patches.tokens.shape[1] // 2
    cell = patches.box(row, column)
    page = Image.new("RGB", pixels, "white")
    corners = [
        round(cell.x0 * pixels[0]),
        round(cell.y0 * pixels[1]),
        round(cell.x1 * pixels[0]) - 1,
        round(cell.y1 * pixels[1]) - 1,
    ]
    ImageDraw.Draw(page).rectangle(corners, fill="red")
    query = "red bar"
    [asked], [seen] = encoder.encode_query([query]).multi, encoder.encode_document([page]).multi
    winners, shares = (asked @ seen.T).argmax(axis=1), (asked @ seen.T).max(axis=1)
    explanation = explain_page(
        winners, shares, query=query, query_spans=query_spans(encoder, query, count=len(asked)), patches=patches, key=7,
        cited=Citation("a.pdf", Span(0, 9), (3,)), page_size=size,
    )  # fmt: skip
    assert explanation.score == pytest.approx(float(shares.sum()))
    assert explanation.relevance is not None
    assert explanation.relevance.score == pytest.approx(explanation.score)
    red, bar = explanation.matches
    assert (red.query_word, red.query_span, bar.query_word) == ("red", Span(0, 3), "bar")
    assert tuple(red.boxes[0].relative) == pytest.approx(tuple(cell))
    assert (red.boxes[0].page, red.boxes[0].page_width, red.boxes[0].page_height) == (3, *size)
    assert tuple(explanation.citation.boxes[0].relative) == pytest.approx(tuple(cell))
    assert str(explanation.citation) == "a.pdf, p. 3"


def test_the_shares_of_the_stored_codes_are_what_is_explained() -> None:
    """int8 and all: relevance sums to the score of the index."""
    rng = np.random.default_rng(3)
    query, vectors, patches = unit_rows(rng.normal(size=(6, 32))), unit_rows(rng.normal(size=(22, 32))), grid(4, 5, first=1)
    from ragkit.core.arrays import MultiVectors
    from ragkit.store.vectors.multi_layout import Layout

    layout = Layout(32)
    stored = layout.store(MultiVectors.pack([vectors]))
    items = Items(stored.values, np.array([0, 22]), np.array([1]), layout.quantiser)
    winners, shares = maxsim.explain(query, items, 0)
    [[score]] = maxsim.scores_of([query], items, np.array([0]))
    assert relevance(winners, shares, patches).score == pytest.approx(float(score), abs=1e-5)

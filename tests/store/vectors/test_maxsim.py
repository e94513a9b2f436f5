"""Late interaction: every kernel against a triple loop, and against each other."""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
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
    WIDEST,
    Quantiser,
    quantise,
    thin,
)
from ragkit.store.vectors.tiles import QUERY_WEIGHT, Items, Tile, build_tile
from tests.store.vectors.multivectors import CODES, FORMS, corpus, cut, naive, query_of, stored, totals_of

SOURCES = Path(maxsim.__file__).parent / "kernel"
COMPILED = [name for name in kernels() if name != "numpy"]
HEADERS = Path(sysconfig.get_paths()["include"])


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

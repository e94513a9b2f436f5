"""Ragged arrays, unit rows and the best k against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.core.arrays import MultiVectors, top_k, truncate_dims, unit_rows


def test_packing_keeps_every_item() -> None:
    items = [np.full((n, 3), n, dtype=np.float32) for n in (2, 1, 5)]
    packed = MultiVectors.pack(items)
    assert len(packed) == 3
    assert packed.dim == 3
    for at, item in enumerate(items):
        np.testing.assert_array_equal(packed[at], item)


def test_an_empty_item_is_refused() -> None:
    with pytest.raises(ValueError, match="item 1"):
        MultiVectors(np.zeros((3, 2), dtype=np.float32), np.array([0, 3, 3]))


def test_unit_rows_leave_zero_rows_alone() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]])


def test_truncating_is_slicing_and_renormalising() -> None:
    rows = unit_rows(np.random.default_rng(0).normal(size=(5, 8)))
    for dims in range(1, 9):
        expected = rows[:, :dims] / np.linalg.norm(rows[:, :dims], axis=1, keepdims=True)
        np.testing.assert_allclose(truncate_dims(rows, dims), expected, atol=1e-6)
    with pytest.raises(ValueError, match="between 1 and 8"):
        truncate_dims(rows, 9)


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(0, 35), st.randoms())
def test_top_k_equals_sorting_with_ties_by_key(values: list[int], k: int, random: object) -> None:
    keys = np.arange(len(values), dtype=np.int64) * 7 % 31
    expected = sorted(range(len(values)), key=lambda at: (-values[at], keys[at]))[:k]
    assert top_k(np.array(values, dtype=np.float32), keys, k).tolist() == expected

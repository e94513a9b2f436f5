"""All pairs of rows that are nearly equal, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.store.vectors.near_duplicates import near_duplicates
from tests.store.vectors.test_dense import written


def test_near_duplicates_are_all_pairs_across_segments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = unit_rows(rng.normal(size=(2600, 12)))
    rows[2100:2200] = unit_rows(rows[:100] + 0.05 * rng.normal(size=(100, 12)))
    rows[2300] = rows[7]
    keys = rng.permutation(5000)[:2600]
    live = rng.random(2600) < 0.9
    live[[7, 2300]] = True
    parts = []
    for number, (start, stop) in enumerate([(0, 2250), (2250, 2600)]):
        parts.append((written(tmp_path / str(number), rows[start:stop]), keys[start:stop], live[start:stop]))
    found = {(one, two): score for one, two, score in near_duplicates(parts, 0.97)}
    wide = unit_rows(rows.astype(np.float16)).astype(np.float64)
    cosines = wide @ wide.T
    expected = {
        (min(keys[i], keys[j]), max(keys[i], keys[j])): cosines[i, j]
        for i, j in zip(*np.nonzero(np.triu(cosines >= 0.97, 1)), strict=True)
        if live[i] and live[j]
    }
    assert found.keys() == expected.keys()
    assert len(found) > 50
    assert all(abs(found[pair] - expected[pair]) < 1e-6 for pair in found)
    same = tuple(sorted((int(keys[7]), int(keys[2300]))))
    assert {(one, two) for one, two, _ in near_duplicates(parts, 1.0)} == {same}

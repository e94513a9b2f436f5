"""Torch gives the kernel's answers. Run on torch's CPU device: no graphics card was at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragkit import MaxSimIndex
from ragkit.core.arrays import unit_rows
from ragkit.store.vectors import maxsim_torch
from ragkit.store.vectors.maxsim import scan
from ragkit.store.vectors.maxsim_torch import TOLERANCE, TorchItems
from ragkit.store.vectors.quantise import Quantiser, quantise
from ragkit.store.vectors.tiles import Items

FORMS = ("int8", "float16", "float32")


def stored(form: str, *, dims: int = 128, count: int = 60) -> Items:
    rng = np.random.default_rng(dims)
    lengths = rng.integers(1, 40, count)
    tokens = unit_rows(rng.normal(size=(lengths.sum(), dims)))
    offsets, keys = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), rng.permutation(count).astype(np.int64)
    if form != "int8":
        return Items(tokens.astype(form), offsets, keys)
    quantiser = Quantiser.of(dims)
    return Items(quantise(tokens, quantiser)[0], offsets, keys, quantiser)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("dims", [5, 128, 700])
@pytest.mark.parametrize("form", FORMS)
def test_scores_and_order_are_the_kernels(form: str, dims: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    items = stored(form, dims=dims)
    if not kept:
        monkeypatch.setattr(maxsim_torch, "CPU_BLOCK", 1 << 11)  # blocks of a few items, none of them kept on the device
    on_device = TorchItems(items, "cpu")
    assert (on_device.resident is not None) == kept
    queries = [unit_rows(np.random.default_rng(seed).normal(size=(size, dims))) for seed, size in enumerate((1, 9, 33))]
    for allowed in (None, np.arange(60) % 7 == 3, np.zeros(60, dtype=bool)):
        for k in (1, 10, 100):
            for mine, theirs, query in zip(
                on_device.scan(queries, k=k, allowed=allowed), scan(queries, items, k=k, allowed=allowed), queries, strict=True
            ):
                assert mine[0].tolist() == theirs[0].tolist()
                if form == "int8":
                    assert mine[1].tolist() == theirs[1].tolist()
                else:
                    assert np.abs(mine[1] - theirs[1]).max(initial=0) <= TOLERANCE * len(query)


def test_an_index_opened_on_a_device_answers_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with MaxSimIndex.open(tmp_path / "v", dim=32) as index:
        index.add(range(50), [unit_rows(rng.normal(size=(size, 32))) for size in rng.integers(1, 9, 50)])
        index.commit()
        index.delete([3, 4])
        index.commit()
        query = unit_rows(rng.normal(size=(6, 32)))
        expected = index.search(query, k=60)
    with MaxSimIndex.open(tmp_path / "v", device="cpu") as again:
        found = again.search(query, k=60)
        assert (found[0].tolist(), found[1].tolist()) == (expected[0].tolist(), expected[1].tolist())
        assert again.explain(query, int(found[0][0])).score == found[1][0]

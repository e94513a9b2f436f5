"""The merge policy as arithmetic: n additions leave O(log n) segments, and a row is rewritten O(log n) times."""

from __future__ import annotations

import math

import pytest

from ragkit.store.local.merge import FANOUT, SMALL, merge_policy


@pytest.mark.parametrize("new", [2_000, 400_000, 3 << 20])
@pytest.mark.parametrize("count", [10, 300, 3000])
def test_segments_grow_with_the_logarithm_of_the_additions(new: int, count: int) -> None:
    sizes: list[int] = []
    written = most = 0
    for _ in range(count):
        chosen = merge_policy(sizes, new=new, dead=[0.0] * len(sizes))
        merged = new + sum(sizes[at] for at in chosen)
        sizes = [size for at, size in enumerate(sizes) if at not in chosen] + [merged]
        written += merged
        most = max(most, len(sizes))
    assert sum(sizes) == count * new
    tiers = math.log(max(count * new / SMALL, 1), FANOUT) + 2
    assert most <= (FANOUT - 1) * tiers + 1
    assert written <= count * new * (tiers + SMALL / new)


def test_a_segment_mostly_dead_is_rewritten() -> None:
    assert merge_policy([50 << 20, 60 << 20], new=10, dead=[0.6, 0.1]) == [0]
    assert merge_policy([50 << 20], new=0, dead=[1.0]) == [0]


def test_a_deletion_alone_rewrites_nothing_that_lives() -> None:
    assert merge_policy([100, 200, 300], new=0, dead=[0.2, 0.0, 0.5]) == []

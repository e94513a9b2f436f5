"""Decide which segments a commit rewrites."""

from __future__ import annotations

from collections.abc import Sequence

SMALL = 1 << 20  # bytes; segments below this are one tier, and are merged into the next commit at once
FANOUT = 4  # segments of one tier, four times as large each, before they are merged into the next
DEAD = 0.5  # share of deleted rows at which a segment is rewritten by the next commit


def merge_policy(sizes: Sequence[int], *, new: int, dead: Sequence[float]) -> list[int]:
    """Return the positions of the segments to rewrite together with `new` bytes of fresh rows, ascending.

    A log-structured merge: segments fall into tiers by size, each FANOUT times as large as the last; everything under SMALL is
    the lowest tier. A tier that would hold FANOUT segments is merged, and the result may fill the next tier. So n additions
    leave O(log n) segments, and a row is rewritten O(log n) times. Segments that are mostly dead are rewritten, too.
    """
    chosen = {position for position, share in enumerate(dead) if share > DEAD}
    total = new + sum(sizes[position] for position in chosen)
    if total == 0:
        return sorted(chosen)
    small = {position for position, size in enumerate(sizes) if size < SMALL} - chosen
    chosen |= small
    total += sum(sizes[position] for position in small)
    while True:
        tier = _tier(total)
        peers = [position for position, size in enumerate(sizes) if position not in chosen and _tier(size) <= tier]
        if len(peers) < FANOUT - 1:
            return sorted(chosen)
        chosen.update(peers)
        total += sum(sizes[position] for position in peers)


def _tier(size: int) -> int:
    tier = 0
    while size >= SMALL:
        size //= FANOUT
        tier += 1
    return tier

"""Fuse the candidates of several spaces into one ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.space import PAGE_SPACES, Space
from ragkit.core.types import Ints, Reason
from ragkit.search.cite import shared
from ragkit.search.request import SearchOptions
from ragkit.store.local.reader import Reader
from ragkit.store.values import UnitRow

RRF = 15.0  # for answers to several phrasings; the paper's 60 is worse on both collections tried (docs/decisions/0004-fusion.md)
DEPTH = 100  # candidates per space before fusing, at least; the first so many tell what scores are usual for a query
SHARPNESS = 4.0  # how soon below the mean a share is nothing; 2 or 4 changes nothing (docs/decisions/0004-fusion.md)
Ranked = tuple[Ints, npt.NDArray[Any]]  # keys (n,), scores (n,), best first


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A unit before it is read from the catalog."""

    key: int
    score: float
    via: tuple[Reason, ...]


def standing_out(scores: npt.NDArray[Any], *, usual: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How far each of n scores stands out among the usual ones, (m,): softplus(4 (z - 1)) / 4, (n,) float64.

    That is nearly z - 1 for what is more than a standard deviation above the mean (z-scores are summed by Montague & Aslam 2001),
    and nearly nothing below, where a space only orders what it did not find. So a space that finds nothing in particular has
    little to say, whoever is first there. m scores bound z by the root of m - 1: one space alone cannot drown all others.
    """
    deviation = float(usual.std(dtype=np.float64))
    above = (scores - usual.mean(dtype=np.float64)) / deviation - 1 if deviation > 0 else np.full(len(scores), -1.0)
    return np.logaddexp(0.0, SHARPNESS * above) / SHARPNESS


def shares(ranked: Mapping[Space, Ranked], options: SearchOptions) -> dict[Space, npt.NDArray[np.float64]]:
    """What each candidate of each space adds to its score. One space keeps its own scores."""
    if len(ranked) == 1:
        return {space: values.astype(np.float64) for space, (_, values) in ranked.items()}
    count = min(DEPTH, max((len(keys) for keys, _ in ranked.values()), default=0))
    found = {}
    for space, (_, values) in ranked.items():
        if options.rrf is None:
            usual = values[:count]
            if space == Space.LEXICAL:  # what shares no word with the query is not listed: its score is 0
                usual = np.concatenate([usual, np.zeros(count - len(usual))])
            share = standing_out(values, usual=usual) if len(values) else np.empty(0)
        else:
            share = 1 / (options.rrf + np.arange(1, len(values) + 1))
        found[space] = options.weight(space) * share
    return found


def fuse(
    ranked: Mapping[Space, Ranked], given: Mapping[Space, npt.NDArray[np.float64]], *, stands_for: Mapping[int, int] | None = None
) -> list[Candidate]:
    """All candidates, best first, by the sum of their `given` shares over the spaces.

    stands_for: the chunk that a page is found as, by their keys; the page's shares count for it.
    """
    scores: dict[int, float] = {}
    reasons: dict[int, list[Reason]] = {}
    for space, (keys, values) in ranked.items():
        rows = zip(keys.tolist(), values.tolist(), given[space].tolist(), strict=True)
        for rank, (key, value, share) in enumerate(rows, start=1):
            unit = stands_for.get(key, key) if stands_for else key
            scores[unit] = scores.get(unit, 0.0) + share
            reasons.setdefault(unit, []).append(Reason(space, rank, value, None if unit == key else key, share))
    order = sorted(scores, key=lambda key: (-scores[key], key))
    return [Candidate(key, scores[key], tuple(reasons[key])) for key in order]


def chunks_on_pages(
    ranked: Mapping[Space, Ranked],
    given: Mapping[Space, npt.NDArray[np.float64]],
    reader: Reader,
    *,
    wanted: Callable[[UnitRow], bool] | None = None,
) -> dict[int, int]:
    """For each page among the candidates on which a chunk among them stands, by key: the chunk that ranks best there, of those
    that are `wanted`.

    A chunk stands on the page that has most of it.
    """
    texts = {space: found for space, found in ranked.items() if space not in PAGE_SPACES}
    pages = {key for space in PAGE_SPACES if space in ranked for key in ranked[space][0].tolist()}
    if not texts or not pages:
        return {}
    rows = reader.known_units(pages)
    by_document: dict[int, list[UnitRow]] = {}
    for row in rows.values():
        by_document.setdefault(row.document, []).append(row)
    order = [one.key for one in fuse(texts, given)]
    chunks = reader.known_units(order)
    found: dict[int, int] = {}
    for chunk in (chunks[key] for key in order if key in chunks):
        shares = {page.key: shared(page.span, chunk.span) for page in by_document.get(chunk.document, ())}
        page = max(shares, key=lambda key: (shares[key], -key), default=None)
        # The page with most of the chunk may not be among the candidates; then less than half of it is on any other.
        if page is None or page in found or not 2 * shares[page] >= chunk.span.length > 0:
            continue
        if wanted is None or wanted(chunk):  # a page that is wanted must not go with a chunk that is not
            found[page] = chunk.key
    return found

"""Fuse the candidates of several spaces into one ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.space import PAGE_SPACES, Space
from ragkit.core.types import Ints, Reason
from ragkit.search.cite import shared
from ragkit.search.plan import SearchPlan
from ragkit.store.local.reader import Reader
from ragkit.store.values import UnitRow

RRF = 15.0  # for answers to several phrasings; the paper's 60 is worse on both collections tried (docs/decisions/0004-fusion.md)
DEPTH = 100  # candidates per space before fusing, at least; the first so many tell what scores are usual for a query
SHARPNESS = 4.0  # how soon below the mean a share is nothing; 2 or 4 changes nothing (docs/decisions/0004-fusion.md)
Ranked = tuple[Ints, npt.NDArray[Any]]  # keys (n,), scores (n,), best first


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A unit before it is read from the reader."""

    key: int
    score: float
    via: tuple[Reason, ...]


def standing_out(scores: npt.NDArray[Any], *, usual: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return how far each of n scores stands out among the usual ones, (m,): softplus(4 (z - 1)) / 4, (n,) float64.

    That is nearly z - 1 for scores more than a standard deviation above the mean (z-scores are summed by Montague & Aslam 2001),
    and nearly 0 below, where a space only orders what it did not find. So a space that finds nothing in particular adds little,
    even to its first candidate. m scores bound z by the root of m - 1: one space alone cannot drown all others.
    """
    deviation = float(usual.std(dtype=np.float64))
    above = (scores - usual.mean(dtype=np.float64)) / deviation - 1 if deviation > 0 else np.full(len(scores), -1.0)
    return np.logaddexp(0.0, SHARPNESS * above) / SHARPNESS


def shares(ranked: Mapping[Space, Ranked], plan: SearchPlan) -> dict[Space, npt.NDArray[np.float64]]:
    """Return what each candidate of each space adds to its score. A space alone keeps its own scores."""
    if len(ranked) == 1:
        return {space: values.astype(np.float64) for space, (_, values) in ranked.items()}
    count = min(DEPTH, max((len(keys) for keys, _ in ranked.values()), default=0))
    constant = plan.request.rrf
    parts = {}
    for space, (_, values) in ranked.items():
        if constant is None:
            part = _zscore_shares(space, values, count)
        else:
            part = 1 / (constant + np.arange(1, len(values) + 1))
        parts[space] = plan.weight(space) * part
    return parts


def _zscore_shares(space: Space, values: npt.NDArray[Any], count: int) -> npt.NDArray[np.float64]:
    """Return how far scores, best first, stand out among the first `count`."""
    usual = values[:count]
    if space == Space.LEXICAL:  # a unit that shares no word with the query is not listed: its score is 0
        usual = np.concatenate([usual, np.zeros(count - len(usual))])
    return standing_out(values, usual=usual) if len(values) else np.empty(0)


def fuse(
    ranked: Mapping[Space, Ranked], parts: Mapping[Space, npt.NDArray[np.float64]], *, stands_for: Mapping[int, int] | None = None
) -> list[Candidate]:
    """Return all candidates, best first, by the sum of their parts over the spaces.

    parts: what each adds, see `shares`. stands_for: the chunk that a page is found as, by their keys; the page's parts count for
    the chunk.
    """
    scores: dict[int, float] = {}
    reasons: dict[int, list[Reason]] = {}
    for space, (keys, values) in ranked.items():
        rows = zip(keys.tolist(), values.tolist(), parts[space].tolist(), strict=True)
        for rank, (key, value, part) in enumerate(rows, start=1):
            unit = stands_for.get(key, key) if stands_for else key
            scores[unit] = scores.get(unit, 0.0) + part
            reasons.setdefault(unit, []).append(Reason(space, rank, value, None if unit == key else key, part))
    order = sorted(scores, key=lambda key: (-scores[key], key))
    return [Candidate(key, scores[key], tuple(reasons[key])) for key in order]


def chunks_on_pages(
    ranked: Mapping[Space, Ranked],
    parts: Mapping[Space, npt.NDArray[np.float64]],
    reader: Reader,
    *,
    accept: Callable[[UnitRow], bool] | None = None,
) -> dict[int, int]:
    """Return the best chunk on each page, by keys, where a page and a chunk on it are both candidates.

    A chunk is on the page that has most of it. accept: only chunks that pass this test.
    """
    texts = {space: found for space, found in ranked.items() if space not in PAGE_SPACES}
    pages = _candidate_pages(ranked, reader) if texts else {}
    if not pages:
        return {}
    order = [candidate.key for candidate in fuse(texts, parts)]
    chunks = reader.known_units(order)
    best: dict[int, int] = {}
    for chunk in (chunks[key] for key in order if key in chunks):
        page_key = _page_of(chunk, pages.get(chunk.document, ()))
        # A page that is accepted must not be found as a chunk that is not.
        if page_key is not None and page_key not in best and (accept is None or accept(chunk)):
            best[page_key] = chunk.key
    return best


def _candidate_pages(ranked: Mapping[Space, Ranked], reader: Reader) -> dict[int, list[UnitRow]]:
    """Return the page images among the candidates, by the ids of their documents."""
    keys = {key for space in PAGE_SPACES if space in ranked for key in ranked[space][0].tolist()}
    pages: dict[int, list[UnitRow]] = {}
    for page in reader.known_units(keys).values() if keys else ():
        pages.setdefault(page.document, []).append(page)
    return pages


def _page_of(chunk: UnitRow, pages: Sequence[UnitRow]) -> int | None:
    """Return the key of the page that has at least half of a chunk; None if that page is not among the candidates."""
    common = {page.key: shared(page.span, chunk.span) for page in pages}
    key = max(common, key=lambda key: (common[key], -key), default=None)
    return key if key is not None and 2 * common[key] >= chunk.span.length > 0 else None

"""A planned question becomes candidates: the best of each space, fused, filtered exactly, grouped.

    queries ──┬─ chunk.dense    FAISS  ─┐
              ├─ chunk.lexical  BM25   ─┤
              ├─ chunk.multi    MaxSim ─┼─ fuse by z-scores ─ k candidates ─ hits.py
              ├─ page.dense     FAISS  ─┤
              └─ page.multi     MaxSim ─┘

A page found by its image and by a chunk that stands on it is one hit, the chunk's, with all reasons. Cosines of texts and of
images are never compared: a score counts by how far it stands out among those of its own space, for this query.

Scores: "cosine", "bm25" and "maxsim" where one space answers. Where several do, the sum over spaces of weight * share: "zscore",
with a share that grows with the z-score (`standing_out`), or on request "rrf", with 1 / (constant + rank), Cormack et al. 2009.
Higher is better on every scale. Ties break by key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ragkit.core.errors import Damaged
from ragkit.core.space import PAGE_SPACES, Space
from ragkit.search.fuse import DEPTH, Candidate, Ranked, chunks_on_pages, fuse, shares
from ragkit.search.hits import read_hits
from ragkit.search.plan import SearchPlan
from ragkit.search.view import View
from ragkit.store.filter import Filter
from ragkit.store.local.reader import Reader, SpaceQueries
from ragkit.store.values import UnitRow

UnitTest = Callable[[UnitRow], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best candidates for one query, best first, and what a degraded search had to leave out."""

    candidates: list[Candidate]
    missing: tuple[str, ...] = ()


def rank(view: View, plan: SearchPlan, *, k: int, where: Filter | None = None, accept: UnitTest | None = None) -> list[Ranking]:
    """Rank the k best units per query.

    where: the documents that may answer; None is all. accept: drops units after they were read, such as
    those of the document whose neighbours are asked for.
    """
    depth = k if len(plan.spaces) == 1 else max(DEPTH, 2 * k)
    if plan.request.group_by or accept is not None:
        depth = max(DEPTH, 4 * k)
    rankings = [Ranking([])] * len(plan.queries.texts)
    open_queries = list(range(len(plan.queries.texts)))
    while open_queries:
        ranked = _candidates(view, plan, open_queries, depth, where)
        unfinished = []
        for query, spaces in zip(open_queries, ranked, strict=True):
            exhausted = all(len(keys) < depth for keys, _ in spaces.values())
            chosen, below, lost = _choose(spaces, view.reader, plan, k=k, accept=accept)
            if len(chosen) == k or exhausted or below:
                rankings[query] = Ranking(chosen, (*view.reader.missing, *lost))
            else:
                unfinished.append(query)
        open_queries, depth = unfinished, depth * 4  # grouping swallowed candidates: look deeper
    return rankings


def _candidates(
    view: View, plan: SearchPlan, rows: Sequence[int], depth: int, where: Filter | None
) -> list[dict[Space, Ranked]]:
    """Return, for each of the queries at `rows`, the candidates of each space that is searched."""
    ranked: list[dict[Space, Ranked]] = [{} for _ in rows]
    for space in plan.spaces:
        for candidates, found in zip(ranked, _search_space(view, plan, space, rows, depth, where), strict=True):
            candidates[space] = found
    return ranked


def _search_space(
    view: View, plan: SearchPlan, space: Space, rows: Sequence[int], depth: int, where: Filter | None
) -> Sequence[Ranked]:
    request = plan.request
    vectors = plan.queries.pages if space in PAGE_SPACES else plan.queries.chunks
    queries: SpaceQueries
    dims = None
    if space.form == "lexical":
        queries = [plan.queries.texts[row] for row in rows]
    elif space.form == "dense":
        assert vectors.dense is not None
        queries = vectors.dense[list(rows)]
        dims = request.dims if request.dims is not None and request.dims < queries.shape[1] else None
    else:
        assert vectors.multi is not None
        queries = [vectors.multi[row] for row in rows]
    return view.reader.search(space, queries, depth, where=where, dims=dims, exact=request.exact)


def _choose(
    spaces: Mapping[Space, Ranked], reader: Reader, plan: SearchPlan, *, k: int, accept: UnitTest | None
) -> tuple[list[Candidate], bool, list[str]]:
    """Return the k best, whether candidates fell below the least score (then a deeper search finds no more), and what of the
    candidates is damaged in the reader, for a degraded search."""
    request, lost = plan.request, list[str]()
    if request.degraded:
        damaged = _damaged(list(dict.fromkeys(key for keys, _ in spaces.values() for key in keys.tolist())), reader)
        lost = [f"unit {key}: {problem}" for key, problem in damaged.items()]
        spaces = {space: _without(ranked, damaged) for space, ranked in spaces.items()}
    parts = shares(spaces, plan)
    fused = fuse(spaces, parts, stands_for=chunks_on_pages(spaces, parts, reader, accept=accept))
    least = None if request.rescores else request.min_score
    candidates = fused if least is None else [candidate for candidate in fused if candidate.score >= least]
    below = len(candidates) < len(fused)
    if request.group_by is None and accept is None:
        return candidates[:k], below, lost
    return _accepted(candidates, reader, k=k, grouped=request.group_by is not None, accept=accept), below, lost


def _accepted(
    candidates: Sequence[Candidate], reader: Reader, *, k: int, grouped: bool, accept: UnitTest | None
) -> list[Candidate]:
    """Return the first k candidates that pass the test, if `grouped` one for each document."""
    units = reader.units([candidate.key for candidate in candidates])
    chosen: list[Candidate] = []
    documents: set[int] = set()
    for candidate in candidates:
        if len(chosen) == k:
            break
        unit = units[candidate.key]
        if (grouped and unit.document in documents) or (accept is not None and not accept(unit)):
            continue
        documents.add(unit.document)
        chosen.append(candidate)
    return chosen


def _without(ranked: Ranked, keys: Collection[int]) -> Ranked:
    intact = ~np.isin(ranked[0], list(keys))
    return ranked[0][intact], ranked[1][intact]


def _damaged(keys: Sequence[int], reader: Reader) -> dict[int, str]:
    """Return the keys that cannot be read from the reader, and what is wrong with each; found by halving."""
    try:
        read_hits([Candidate(key, 0.0, ()) for key in keys], reader, scale="")
    except Damaged as error:
        middle = len(keys) // 2
        return _damaged(keys[:middle], reader) | _damaged(keys[middle:], reader) if middle else {keys[0]: str(error)}
    return {}

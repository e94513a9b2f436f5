"""Answer questions: plan, rank, read, refine.

    queries ─ plan ─ rank ─ read_hits ─ refine ─ hits
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ragkit.core.space import MAXSIM_SPACES, PAGE_SPACES, Space
from ragkit.core.types import Hit, Hits
from ragkit.search.explain import explain_unit
from ragkit.search.explanation import Explanation
from ragkit.search.filters import parse
from ragkit.search.fuse import RRF, Candidate
from ragkit.search.hits import read_hits
from ragkit.search.plan import SearchPlan
from ragkit.search.queries import QueryBatch, QueryVectors
from ragkit.search.rerank import refine
from ragkit.search.retrieve import UnitTest, rank
from ragkit.search.view import View
from ragkit.store.filter import Filter
from ragkit.store.values import CHUNK, PAGE

STREAMED = 16  # hits read from the catalog together when they are streamed

Why = Callable[[int, Hit, str | None], Explanation]  # the number of a query, its hit, a space or None


def answer(view: View, plan: SearchPlan, batch: QueryBatch, *, why: Why) -> list[Hits]:
    """Return the hits of each query, best first; of one query with phrasings, one list."""
    request = plan.request
    k = max(request.k, request.candidates) if request.refines else request.k
    where = None if request.filters is None else parse(request.filters)
    accept = view.reader.passage_test(where)
    found = find(view, plan, k=k, where=where, accept=accept, why=why)
    if not request.refines:
        return found
    kind = PAGE if set(plan.spaces) <= set(PAGE_SPACES) else CHUNK
    answers = [found] if request.phrasings else [[hits] for hits in found]
    return [
        refine(
            text,
            hits,
            request,
            constant=RRF if request.rrf is None else request.rrf,
            rows=partial(view.reader.known_rows, kind=kind),
            maxsim=partial(_maxsim, view, plan.queries, number),
        )
        for number, (text, hits) in enumerate(zip(batch.texts, answers, strict=False))
    ]


def find(
    view: View, plan: SearchPlan, *, k: int, where: Filter | None = None, accept: UnitTest | None = None, why: Why | None = None
) -> list[Hits]:
    """Return the hits of each query, best first, without refining: rank, and one reading of the catalog for each query."""
    results = []
    for number, ranking in enumerate(rank(view, plan, k=k, where=where, accept=accept)):
        hits = _reading(view, plan, number, why)(ranking.candidates, 1)
        results.append(Hits(hits, missing=ranking.missing))
    return results


def stream(view: View, plan: SearchPlan, *, why: Why) -> Iterator[Hit]:
    """Search at once, and read the hits of one query as they are taken. The view is held until the end, so that nothing it sees
    is purged before it is read."""
    request = plan.request
    where = None if request.filters is None else parse(request.filters)
    accept = view.reader.passage_test(where)
    [ranking] = rank(view, plan, k=request.k, where=where, accept=accept)
    return _stream(view, ranking.candidates, _reading(view, plan, 0, why))


def _stream(view: View, candidates: list[Candidate], read: Callable[[list[Candidate], int], list[Hit]]) -> Iterator[Hit]:
    for start in range(0, len(candidates), STREAMED):
        yield from read(candidates[start : start + STREAMED], start + 1)
    del view


def _reading(view: View, plan: SearchPlan, number: int, why: Why | None) -> Callable[[list[Candidate], int], list[Hit]]:
    """Return what reads hits of a query, ranked from a number on."""
    multi = plan.queries.pages.multi

    def read(candidates: list[Candidate], first: int) -> list[Hit]:
        return read_hits(
            candidates,
            view.reader,
            scale=plan.scale,
            first=first,
            explain=None if why is None else partial(why, number),
            locate=None if multi is None else partial(view.reader.matches, Space.PAGE_MULTI, multi[number]),
        )

    return read


def _maxsim(view: View, queries: QueryVectors, number: int, keys: list[int]) -> dict[int, float]:
    """Return the MaxSim scores of units for a query."""
    assert queries.chunks.multi is not None
    scored, scores = view.reader.scores(Space.MULTI, queries.chunks.multi[number], np.array(keys, dtype=np.int64))
    return dict(zip(scored.tolist(), scores.tolist(), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Explainer:
    """Explain the hits of a search, from the newest commit, so that no hit holds back purging."""

    newest: Callable[[], View]
    batch: QueryBatch
    queries: QueryVectors

    def __call__(self, number: int, hit: Hit, space: str | None) -> Explanation:
        """Take the MaxSim score of a query's hit apart, in a space or the first that found it."""
        reasons = {reason.space: reason for reason in hit.via}
        chosen = next((each for each in MAXSIM_SPACES if each in reasons and space in (None, each)), None)
        if chosen is None:
            where = f" in {space}" if space else ""
            raise ValueError(f"unit {hit.key} was not found by MaxSim{where}, but by {', '.join(reasons)}")
        return explain_unit(self.newest(), self.batch, self.queries, number, reasons[chosen].key or hit.key)

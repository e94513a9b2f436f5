"""A query becomes hits: candidates per space, fused, filtered exactly, and cited.

    query ─ encode_query ─┬─ chunk.dense    FAISS  ─┐
                          ├─ chunk.lexical  BM25   ─┤
                          ├─ chunk.multi    MaxSim ─┼─ fuse by z-scores ─ k hits ─ catalog
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
from functools import partial

import numpy as np

from ragkit.core.errors import Damaged
from ragkit.core.space import PAGE_SPACES, Space
from ragkit.core.types import Hit, Hits, Ints
from ragkit.search.explanation import Explanation
from ragkit.search.fuse import DEPTH, Candidate, Ranked, chunks_on_pages, fuse, shares
from ragkit.search.hits import read_hits
from ragkit.search.queries import Queries
from ragkit.search.request import SearchOptions
from ragkit.store.local.reader import Reader
from ragkit.store.values import UnitRow

LIKELY = 512  # units that MaxSim scores exactly, at least, of those that coarse vectors rank first; and so many times the depth:
TIMES = 16  # measured in docs/decisions/coarse-vectors.md


def search(
    reader: Reader,
    *,
    queries: Queries,
    k: int,
    allowed: Ints | None,
    options: SearchOptions,
    wanted: Callable[[UnitRow], bool] | None = None,
    explain: Callable[[int, Hit, str | None], Explanation] | None = None,
) -> list[Hits]:
    """Hits per query, best first: `rank`, and then one reading of the catalog for each. explain: what hits keep to tell why
    they were found, by the number of the query."""
    ranked = rank(reader, queries=queries, k=k, allowed=allowed, options=options, wanted=wanted)
    results = []
    for number, (chosen, missing) in enumerate(ranked):
        why = None if explain is None else partial(explain, number)
        multi = queries.pages.multi
        locate = None if multi is None else partial(reader.explain_multi, multi[number])
        results.append(Hits(read_hits(chosen, reader, scale=options.scale, explain=why, locate=locate), missing=missing))
    return results


def rank(
    reader: Reader,
    *,
    queries: Queries,
    k: int,
    allowed: Ints | None,
    options: SearchOptions,
    wanted: Callable[[UnitRow], bool] | None = None,
) -> list[tuple[list[Candidate], tuple[str, ...]]]:
    """The k best units per query, best first, and what a degraded search had to leave out.

    `queries` with vectors for the spaces that take part; `allowed` are document versions, ascending; `wanted` drops units after
    they were read (used to leave a document out of its own neighbours)."""
    depth = k if len(options.spaces) == 1 else max(DEPTH, 2 * k)
    if options.group_by or wanted is not None:
        depth = max(DEPTH, 4 * k)
    results: list[tuple[list[Candidate], tuple[str, ...]]] = [([], ())] * len(queries.texts)
    open_queries = list(range(len(queries.texts)))
    while open_queries:
        ranked = _candidates(reader, queries, open_queries, depth, allowed, options)
        unfinished = []
        for q, spaces in zip(open_queries, ranked, strict=True):
            lost: list[str] | None = [] if options.degraded else None
            chosen, below = _chosen(spaces, reader, k=k, options=options, wanted=wanted, lost=lost)
            exhausted = all(len(keys) < depth for keys, _ in spaces.values())
            if len(chosen) == k or exhausted or below:
                results[q] = chosen, (*reader.missing, *(lost or ()))
            else:
                unfinished.append(q)
        open_queries, depth = unfinished, depth * 4  # grouping swallowed candidates: look deeper
    return results


def _candidates(
    reader: Reader,
    queries: Queries,
    rows: Sequence[int],
    depth: int,
    allowed: Ints | None,
    options: SearchOptions,
) -> list[dict[Space, Ranked]]:
    """Per query (`rows` are those of `queries`), the candidates of each space, in the order of `options.spaces`."""
    ranked: list[dict[Space, Ranked]] = [{} for _ in rows]
    for space in options.spaces:
        kind = space.kind
        vectors = queries.pages if space in PAGE_SPACES else queries.chunks
        found: list[Ranked]
        if space == Space.LEXICAL:
            found = [reader.search_lexical(queries.texts[row], depth, allowed=allowed) for row in rows]
        elif space.scale == "cosine":
            assert vectors.dense is not None
            asked = vectors.dense[list(rows)]
            dims = options.dims if options.dims is not None and options.dims < asked.shape[1] else None
            found = [*reader.search_dense(asked, depth, kind=kind, allowed=allowed, dims=dims, exact=options.exact)]
        else:
            assert vectors.multi is not None
            asked_multi = [vectors.multi[row] for row in rows]
            candidates = None if options.exact else max(LIKELY, TIMES * depth)
            found = [*reader.search_multi(asked_multi, depth, kind=kind, allowed=allowed, candidates=candidates)]
        for spaces, one in zip(ranked, found, strict=True):
            spaces[space] = one
    return ranked


def _chosen(
    spaces: Mapping[Space, Ranked],
    reader: Reader,
    *,
    k: int,
    options: SearchOptions,
    wanted: Callable[[UnitRow], bool] | None,
    lost: list[str] | None,
) -> tuple[list[Candidate], bool]:
    """The k best, and whether candidates fell below the least score: then a deeper search finds no more.

    `lost`, where given, takes what of the candidates is damaged in the reader, and of the others is chosen.
    """
    if lost is not None:
        damaged = _damaged(list(dict.fromkeys(key for keys, _ in spaces.values() for key in keys.tolist())), reader)
        lost += [f"unit {key}: {problem}" for key, problem in damaged.items()]
        spaces = {space: _without(ranked, damaged) for space, ranked in spaces.items()}
    given = shares(spaces, options)
    stands_for = chunks_on_pages(spaces, given, reader, wanted=wanted)
    found = fuse(spaces, given, stands_for=stands_for)
    candidates = found if options.min_score is None else [one for one in found if one.score >= options.min_score]
    below = len(candidates) < len(found)
    if options.group_by is None and wanted is None:
        return candidates[:k], below
    units = reader.units([one.key for one in candidates])
    chosen: list[Candidate] = []
    seen: set[int] = set()
    for candidate in candidates:
        if len(chosen) == k:
            break
        unit = units[candidate.key]
        if (options.group_by and unit.document in seen) or (wanted is not None and not wanted(unit)):
            continue
        seen.add(unit.document)
        chosen.append(candidate)
    return chosen, below


def _without(ranked: Ranked, keys: Collection[int]) -> Ranked:
    kept = ~np.isin(ranked[0], list(keys))
    return ranked[0][kept], ranked[1][kept]


def _damaged(keys: Sequence[int], reader: Reader) -> dict[int, str]:
    """Those of the keys that cannot be read from the reader, and what is wrong with each; halved until they are found."""
    try:
        read_hits([Candidate(key, 0.0, ()) for key in keys], reader, scale="")
    except Damaged as error:
        middle = len(keys) // 2
        return _damaged(keys[:middle], reader) | _damaged(keys[middle:], reader) if middle else {keys[0]: str(error)}
    return {}



"""A query becomes hits: candidates per space, fused, filtered exactly, and cited.

    query ─ encode_query ─┬─ chunk.dense    FAISS  ─┐
                          ├─ chunk.lexical  BM25   ─┼─ fuse by reciprocal ranks ─ k hits ─ catalog
                          └─ chunk.multi    MaxSim ─┘

Scores: "cosine", "bm25" and "maxsim" where one space answers, "rrf" where several do: the sum over spaces of weight /
(constant + rank), Cormack et al. 2009. Higher is better on every scale; scores of different scales are never added. Ties break
by key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy.typing as npt

from ragkit.catalog.catalog import Catalog, DocumentRow, UnitRow
from ragkit.cite import cite
from ragkit.encode.contract import Encoding
from ragkit.errors import Damaged
from ragkit.ragged import unit_rows
from ragkit.store import DENSE, LEXICAL, MULTI, Snapshot
from ragkit.types import Citation, Floats, Hit, Hits, Ints, Reason, Span
from ragkit.widen import CatalogReader

RRF = 15.0  # from benchmarks/main_job.py; the paper's 60 is worse on both collections tried
NO_MULTI = "this index keeps no multi-vectors for MaxSim. Make one that does: Index.open(path, multi=True)"
DEPTH = 100  # candidates per space before fusing, at least: a reciprocal rank beyond it adds under a seventh of the first's
SCALES = {DENSE: "cosine", LEXICAL: "bm25", MULTI: "maxsim"}
MODES = {
    "hybrid": (DENSE, LEXICAL, MULTI),
    "text": (DENSE, LEXICAL, MULTI),
    "dense": (DENSE,),
    "lexical": (LEXICAL,),
    "multi": (MULTI,),
}

Ranked = tuple[Ints, npt.NDArray[Any]]  # keys (n,), scores (n,), best first


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search: what `Index.search` takes beside the query and k; `available` are the spaces that the index has."""

    mode: str = "hybrid"
    available: tuple[str, ...] = (DENSE, LEXICAL)
    dims: int | None = None
    min_score: float | None = None
    group_by: str | None = None  # "document": at most one hit per document
    weights: Mapping[str, float] = field(default_factory=dict)  # per space, 1 where not given
    rrf: float = RRF
    exact: bool = False
    degraded: bool = False  # answer from what is intact, and say what is missing

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.mode == "multi" and MULTI not in self.available:
            raise ValueError(NO_MULTI)
        if self.mode == "dense" and DENSE not in self.available:
            raise ValueError("this index keeps no dense vectors, since its model makes none; search it with mode='multi'")
        if self.group_by not in (None, "document"):
            raise ValueError(f"group_by must be 'document' or None, got {self.group_by!r}")
        unknown = set(self.weights) - set(SCALES)
        if unknown:
            raise ValueError(f"weights are per space ({', '.join(SCALES)}), got {sorted(unknown)[0]!r}")
        if not all(0 <= weight < math.inf for weight in self.weights.values()):
            raise ValueError(f"weights are numbers from 0 on, got {dict(self.weights)}")
        if not self.spaces:
            raise ValueError(f"every space of mode {self.mode!r} has the weight 0, so nothing would be searched")
        if not 0 <= self.rrf < math.inf:
            raise ValueError(f"rrf, the constant of reciprocal-rank fusion, is a number from 0 on, got {self.rrf}")
        if self.min_score is not None and math.isnan(self.min_score):
            raise ValueError("min_score is not a number")

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces that take part: those there are, without those weighted with zero."""
        return tuple(space for space in MODES[self.mode] if space in self.available and self.weights.get(space, 1.0) > 0)

    @property
    def scale(self) -> str:
        """The scale of the scores."""
        return SCALES[self.spaces[0]] if len(self.spaces) == 1 else "rrf"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A unit before it is read from the catalog."""

    key: int
    score: float
    via: tuple[Reason, ...]


def fuse(ranked: Mapping[str, Ranked], *, weights: Mapping[str, float], constant: float) -> list[Candidate]:
    """All candidates, best first. One space keeps its own scores; several are fused by reciprocal ranks."""
    scores: dict[int, float] = {}
    reasons: dict[int, list[Reason]] = {}
    for space, (keys, values) in ranked.items():
        weight = weights.get(space, 1.0)
        for rank, (key, value) in enumerate(zip(keys.tolist(), values.tolist(), strict=True), start=1):
            gain = value if len(ranked) == 1 else weight / (constant + rank)
            scores[key] = scores.get(key, 0.0) + gain
            reasons.setdefault(key, []).append(Reason(space, rank, value))
    order = sorted(scores, key=lambda key: (-scores[key], key))
    return [Candidate(key, scores[key], tuple(reasons[key])) for key in order]


def search(
    snapshot: Snapshot,
    catalog: Catalog,
    *,
    queries: Sequence[str],
    vectors: Encoding,
    k: int,
    allowed: Ints | None,
    options: SearchOptions,
    wanted: Callable[[UnitRow], bool] | None = None,
) -> list[Hits]:
    """Hits per query, best first: `rank`, and then one reading of the catalog for each."""
    ranked = rank(snapshot, catalog, queries=queries, vectors=vectors, k=k, allowed=allowed, options=options, wanted=wanted)
    return [Hits(read_hits(chosen, catalog, scale=options.scale), missing=missing) for chosen, missing in ranked]


def rank(
    snapshot: Snapshot,
    catalog: Catalog,
    *,
    queries: Sequence[str],
    vectors: Encoding,
    k: int,
    allowed: Ints | None,
    options: SearchOptions,
    wanted: Callable[[UnitRow], bool] | None = None,
) -> list[tuple[list[Candidate], tuple[str, ...]]]:
    """The k best units per query, best first, and what a degraded search had to leave out.

    `vectors` of the queries, for the spaces that take part; `allowed` are document
    versions, ascending; `wanted` drops units after they were read (used to leave a document out of its own neighbours)."""
    depth = k if len(options.spaces) == 1 else max(DEPTH, 2 * k)
    if options.group_by or wanted is not None:
        depth = max(DEPTH, 4 * k)
    results: list[tuple[list[Candidate], tuple[str, ...]]] = [([], ())] * len(queries)
    open_queries = list(range(len(queries)))
    while open_queries:
        ranked = _candidates(snapshot, [queries[q] for q in open_queries], vectors, open_queries, depth, allowed, options)
        unfinished = []
        for q, spaces in zip(open_queries, ranked, strict=True):
            lost: list[str] | None = [] if options.degraded else None
            chosen, below = _chosen(spaces, catalog, k=k, options=options, wanted=wanted, lost=lost)
            exhausted = all(len(keys) < depth for keys, _ in spaces.values())
            if len(chosen) == k or exhausted or below:
                results[q] = chosen, (*snapshot.missing, *(lost or ()))
            else:
                unfinished.append(q)
        open_queries, depth = unfinished, depth * 4  # grouping swallowed candidates: look deeper
    return results


def _candidates(
    snapshot: Snapshot,
    queries: Sequence[str],
    vectors: Encoding,
    rows: Sequence[int],
    depth: int,
    allowed: Ints | None,
    options: SearchOptions,
) -> list[dict[str, Ranked]]:
    ranked: list[dict[str, Ranked]] = [{} for _ in queries]
    if DENSE in options.spaces:
        assert vectors.dense is not None
        dense = snapshot.search_dense(vectors.dense[list(rows)], depth, allowed=allowed, dims=options.dims, exact=options.exact)
        for spaces, found in zip(ranked, dense, strict=True):
            spaces[DENSE] = found
    if LEXICAL in options.spaces:
        for spaces, query in zip(ranked, queries, strict=True):
            spaces[LEXICAL] = snapshot.search_lexical(query, depth, allowed=allowed)
    if MULTI in options.spaces:
        assert vectors.multi is not None
        multi = snapshot.search_multi([vectors.multi[row] for row in rows], depth, allowed=allowed)
        for spaces, scored in zip(ranked, multi, strict=True):
            spaces[MULTI] = scored
    return ranked


def _chosen(
    spaces: Mapping[str, Ranked],
    catalog: Catalog,
    *,
    k: int,
    options: SearchOptions,
    wanted: Callable[[UnitRow], bool] | None,
    lost: list[str] | None,
) -> tuple[list[Candidate], bool]:
    """The k best, and whether candidates fell below the least score: then a deeper search finds no more.

    `lost`, where given, takes what of them is damaged in the catalog, and the others are chosen.
    """
    found = fuse(spaces, weights=options.weights, constant=options.rrf)
    candidates = found if options.min_score is None else [one for one in found if one.score >= options.min_score]
    plain = options.group_by is None and wanted is None
    below = len(candidates) < len(found)
    if lost is not None:
        candidates = list(islice(_readable(candidates, catalog, lost), k if plain else None))
    if plain:
        return candidates[:k], below
    units = catalog.units([one.key for one in candidates])
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


def _readable(candidates: Sequence[Candidate], catalog: Catalog, lost: list[str]) -> Iterator[Candidate]:
    """Those whose rows in the catalog are whole, each tried by itself; what is wrong with the others goes to `lost`."""
    for candidate in candidates:
        try:
            read_hits([candidate], catalog, scale="")
        except Damaged as error:
            lost.append(f"unit {candidate.key}: {error}")
        else:
            yield candidate


def read_hits(candidates: Sequence[Candidate], catalog: Catalog, *, scale: str, first: int = 1) -> list[Hit]:
    """Candidates, ranked from `first` on, with their text, document and citation from the catalog."""
    units = catalog.units([one.key for one in candidates])
    found = [units[one.key] for one in candidates]
    documents = catalog.documents_by_id({unit.document for unit in found})
    passages = catalog.passages([(unit.document, unit.span) for unit in found])
    reader = CatalogReader(catalog)
    hits = []
    for rank, (candidate, unit, (text, pages)) in enumerate(zip(candidates, found, passages, strict=True), start=first):
        document = documents[unit.document]
        hits.append(
            Hit(
                rank=rank,
                score=candidate.score,
                scale=scale,
                key=unit.key,
                kind=unit.kind,
                text=text,
                document_id=document.source,
                title=document.title,
                citation=cite(document.source, unit.span, pages),
                headings=unit.headings,
                meta=document.meta,
                via=candidate.via,
                whole=document.units == 1,
                reader=reader,
            )
        )
    return hits


def citation(catalog: Catalog, document: DocumentRow, span: Span) -> Citation:
    """The citation of a span of a stored document."""
    return cite(document.source, span, catalog.pages(document.id, span))


def mean_vector(rows: Floats) -> Floats:
    """The direction of the mean of unit rows (n, d): (1, d) float32, unit length."""
    return unit_rows(rows.mean(axis=0, keepdims=True))

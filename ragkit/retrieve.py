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

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.catalog.catalog import CHUNK, PAGE, Catalog, DocumentRow, UnitRow
from ragkit.cite import cite, cite_page
from ragkit.encode.contract import Encoding
from ragkit.errors import Damaged
from ragkit.explain import Explanation, page_evidence
from ragkit.heat import relevance
from ragkit.ragged import unit_rows
from ragkit.store import DENSE, LEXICAL, MULTI, PAGE_DENSE, PAGE_MULTI, Snapshot
from ragkit.types import Citation, Floats, Hit, Hits, Ints, Reason, Span
from ragkit.vectors.maxsim import Scores
from ragkit.widen import CatalogReader

NO_PAGES = "this index has no page images. Make one that has: Index.open(path, pages='auto', page_model=...)"
RRF = 15.0  # for answers to several phrasings; the paper's 60 is worse on both collections tried (docs/decisions/0004-fusion.md)
NO_MULTI = "this index keeps no multi-vectors for MaxSim. Make one that does: Index.open(path, multi=True)"
DEPTH = 100  # candidates per space before fusing, at least; the first so many tell what scores are usual for a query
LIKELY = 512  # units that MaxSim scores exactly, at least, of those that coarse vectors rank first; and so many times the depth:
TIMES = 16  # measured in docs/decisions/coarse-vectors.md
SHARPNESS = 4.0  # how soon below the mean a share is nothing; 2 or 4 changes nothing (docs/decisions/0004-fusion.md)
SCALES = {DENSE: "cosine", LEXICAL: "bm25", MULTI: "maxsim", PAGE_DENSE: "cosine", PAGE_MULTI: "maxsim"}
OF_PAGES = (PAGE_DENSE, PAGE_MULTI)
MODES = {
    "hybrid": (DENSE, LEXICAL, MULTI, *OF_PAGES),
    "text": (DENSE, LEXICAL, MULTI),
    "pages": OF_PAGES,
    "dense": (DENSE,),
    "lexical": (LEXICAL,),
    "multi": (MULTI,),
    **{space: (space,) for space in SCALES},
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
    weights: Mapping[str, float] = field(default_factory=dict)  # per space; see `weight`
    rrf: float | None = None  # fuse by reciprocal ranks with this constant instead of by z-scores
    exact: bool = False  # nothing compressed and nothing coarse decides what is looked at
    degraded: bool = False  # answer from what is intact, and say what is missing

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if set(MODES[self.mode]) <= set(OF_PAGES) and not set(OF_PAGES) & set(self.available):
            raise ValueError(NO_PAGES)
        if MODES[self.mode] == (MULTI,) and MULTI not in self.available:
            raise ValueError(NO_MULTI)
        if MODES[self.mode] == (DENSE,) and DENSE not in self.available:
            raise ValueError("this index keeps no dense vectors, since its model makes none; search it with mode='multi'")
        if self.group_by not in (None, "document"):
            raise ValueError(f"group_by must be 'document' or None, got {self.group_by!r}")
        unknown = set(self.weights) - set(SCALES)
        if unknown:
            raise ValueError(f"weights are per space ({', '.join(SCALES)}), got {sorted(unknown)[0]!r}")
        if not all(0 <= weight < math.inf for weight in self.weights.values()):
            raise ValueError(f"weights are numbers from 0 on, got {dict(self.weights)}")
        if not self.spaces:
            there = set(MODES[self.mode]) & set(self.available)
            problem = "has the weight 0" if there else "is not in this index"
            raise ValueError(f"every space of mode {self.mode!r} {problem}, so nothing would be searched")
        if self.rrf is not None and not 0 <= self.rrf < math.inf:
            raise ValueError(f"rrf, the constant of reciprocal-rank fusion, is a number from 0 on, got {self.rrf}")
        if self.min_score is not None and math.isnan(self.min_score):
            raise ValueError("min_score is not a number")

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces that take part: those there are, without those weighted with zero."""
        return tuple(space for space in MODES[self.mode] if space in self.available and self.weight(space) > 0)

    def weight(self, space: str) -> float:
        """What a space counts when spaces are fused. Those of pages are filled by one encoder, and share one vote."""
        voters = [one for one in OF_PAGES if one in self.available and self.weights.get(one, 1) > 0] if space in OF_PAGES else ()
        return self.weights.get(space, 1 / max(1, len(voters)))

    @property
    def scale(self) -> str:
        """The scale of the scores."""
        if len(self.spaces) == 1:
            return SCALES[self.spaces[0]]
        return "zscore" if self.rrf is None else "rrf"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A unit before it is read from the catalog."""

    key: int
    score: float
    via: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """What is asked, n queries: their texts, empty where there is none, their vectors in the spaces of chunks, and in those of
    pages."""

    texts: Sequence[str]
    chunks: Encoding = field(default_factory=Encoding)
    pages: Encoding = field(default_factory=Encoding)


def standing_out(scores: npt.NDArray[Any], *, usual: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How far each of n scores stands out among the usual ones, (m,): softplus(4 (z - 1)) / 4, (n,) float64.

    That is nearly z - 1 for what is more than a standard deviation above the mean (z-scores are summed by Montague & Aslam 2001),
    and nearly nothing below, where a space only orders what it did not find. So a space that finds nothing in particular has
    little to say, whoever is first there. m scores bound z by the root of m - 1: one space alone cannot drown all others.
    """
    deviation = float(usual.std(dtype=np.float64))
    above = (scores - usual.mean(dtype=np.float64)) / deviation - 1 if deviation > 0 else np.full(len(scores), -1.0)
    return np.logaddexp(0.0, SHARPNESS * above) / SHARPNESS


def shares(ranked: Mapping[str, Ranked], options: SearchOptions) -> dict[str, npt.NDArray[np.float64]]:
    """What each candidate of each space adds to its score. One space keeps its own scores."""
    if len(ranked) == 1:
        return {space: values.astype(np.float64) for space, (_, values) in ranked.items()}
    count = min(DEPTH, max((len(keys) for keys, _ in ranked.values()), default=0))
    found = {}
    for space, (_, values) in ranked.items():
        if options.rrf is None:
            usual = values[:count]
            if space == LEXICAL:  # what shares no word with the query is not listed: its score is 0
                usual = np.concatenate([usual, np.zeros(count - len(usual))])
            share = standing_out(values, usual=usual) if len(values) else np.empty(0)
        else:
            share = 1 / (options.rrf + np.arange(1, len(values) + 1))
        found[space] = options.weight(space) * share
    return found


def fuse(
    ranked: Mapping[str, Ranked], given: Mapping[str, npt.NDArray[np.float64]], *, stands_for: Mapping[int, int] | None = None
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
    ranked: Mapping[str, Ranked],
    given: Mapping[str, npt.NDArray[np.float64]],
    catalog: Catalog,
    *,
    wanted: Callable[[UnitRow], bool] | None = None,
) -> dict[int, int]:
    """For each page among the candidates on which a chunk among them stands, by key: the chunk that ranks best there, of those
    that are `wanted`.

    A chunk stands on the page that has most of it.
    """
    texts = {space: found for space, found in ranked.items() if space not in OF_PAGES}
    pages = {key for space in OF_PAGES if space in ranked for key in ranked[space][0].tolist()}
    if not texts or not pages:
        return {}
    rows = catalog.known_units(pages)
    by_document: dict[int, list[UnitRow]] = {}
    for row in rows.values():
        by_document.setdefault(row.document, []).append(row)
    order = [one.key for one in fuse(texts, given)]
    chunks = catalog.known_units(order)
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


def shared(first: Span, second: Span) -> int:
    """Characters that two spans have in common."""
    return max(0, min(first.end, second.end) - max(first.start, second.start))


def search(
    snapshot: Snapshot,
    catalog: Catalog,
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
    ranked = rank(snapshot, catalog, queries=queries, k=k, allowed=allowed, options=options, wanted=wanted)
    results = []
    for number, (chosen, missing) in enumerate(ranked):
        why = None if explain is None else partial(explain, number)
        multi = queries.pages.multi
        locate = None if multi is None else partial(snapshot.explain_multi, multi[number])
        results.append(Hits(read_hits(chosen, catalog, scale=options.scale, explain=why, locate=locate), missing=missing))
    return results


def rank(
    snapshot: Snapshot,
    catalog: Catalog,
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
        ranked = _candidates(snapshot, queries, open_queries, depth, allowed, options)
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
    queries: Queries,
    rows: Sequence[int],
    depth: int,
    allowed: Ints | None,
    options: SearchOptions,
) -> list[dict[str, Ranked]]:
    """Per query (`rows` are those of `queries`), the candidates of each space, in the order of `options.spaces`."""
    ranked: list[dict[str, Ranked]] = [{} for _ in rows]
    for space in options.spaces:
        kind = PAGE if space in OF_PAGES else CHUNK
        vectors = queries.pages if space in OF_PAGES else queries.chunks
        found: list[Ranked]
        if space == LEXICAL:
            found = [snapshot.search_lexical(queries.texts[row], depth, allowed=allowed) for row in rows]
        elif SCALES[space] == "cosine":
            assert vectors.dense is not None
            asked = vectors.dense[list(rows)]
            dims = options.dims if options.dims is not None and options.dims < asked.shape[1] else None
            found = [*snapshot.search_dense(asked, depth, kind=kind, allowed=allowed, dims=dims, exact=options.exact)]
        else:
            assert vectors.multi is not None
            asked_multi = [vectors.multi[row] for row in rows]
            candidates = None if options.exact else max(LIKELY, TIMES * depth)
            found = [*snapshot.search_multi(asked_multi, depth, kind=kind, allowed=allowed, candidates=candidates)]
        for spaces, one in zip(ranked, found, strict=True):
            spaces[space] = one
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

    `lost`, where given, takes what of the candidates is damaged in the catalog, and of the others is chosen.
    """
    if lost is not None:
        damaged = _damaged(list(dict.fromkeys(key for keys, _ in spaces.values() for key in keys.tolist())), catalog)
        lost += [f"unit {key}: {problem}" for key, problem in damaged.items()]
        spaces = {space: _without(ranked, damaged) for space, ranked in spaces.items()}
    given = shares(spaces, options)
    stands_for = chunks_on_pages(spaces, given, catalog, wanted=wanted)
    found = fuse(spaces, given, stands_for=stands_for)
    candidates = found if options.min_score is None else [one for one in found if one.score >= options.min_score]
    below = len(candidates) < len(found)
    if options.group_by is None and wanted is None:
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


def _without(ranked: Ranked, keys: Collection[int]) -> Ranked:
    kept = ~np.isin(ranked[0], list(keys))
    return ranked[0][kept], ranked[1][kept]


def _damaged(keys: Sequence[int], catalog: Catalog) -> dict[int, str]:
    """Those of the keys that cannot be read from the catalog, and what is wrong with each; halved until they are found."""
    try:
        read_hits([Candidate(key, 0.0, ()) for key in keys], catalog, scale="")
    except Damaged as error:
        middle = len(keys) // 2
        return _damaged(keys[:middle], catalog) | _damaged(keys[middle:], catalog) if middle else {keys[0]: str(error)}
    return {}


def read_hits(
    candidates: Sequence[Candidate],
    catalog: Catalog,
    *,
    scale: str,
    first: int = 1,
    explain: Callable[[Hit, str | None], Explanation] | None = None,
    locate: Callable[[int], tuple[Ints, Scores]] | None = None,
) -> list[Hit]:
    """Candidates, ranked from `first` on, with their text, document and citation from the catalog.

    locate: the winning vectors and shares of a page by its key, where MaxSim found it: the reason has the boxes of most of them,
    and a page is cited by them, without them as a whole.
    """
    units = catalog.units([one.key for one in candidates])
    found = [units[one.key] for one in candidates]
    documents = catalog.documents_by_id({unit.document for unit in found})
    passages = catalog.passages([(unit.document, unit.span) for unit in found])
    reader = CatalogReader(catalog, explain)
    seen = units | catalog.units(_pages_seen(candidates) - units.keys())
    sizes = catalog.page_sizes([(unit.document, unit.page) for unit in seen.values() if unit.page is not None])
    hits = []
    for rank, (candidate, unit, (text, pages)) in enumerate(zip(candidates, found, passages, strict=True), start=first):
        document = documents[unit.document]
        via = candidate.via
        if locate is not None:
            via = tuple(_placed(one, unit.key, seen, sizes, locate) if one.space == PAGE_MULTI else one for one in via)
        if unit.page is None:
            cited = cite(document.source, unit.span, pages)
        else:
            cited = cite_page(document.source, unit.span, unit.page, sizes[unit.document, unit.page])
            boxes = next((one.boxes for one in via if one.boxes), ())
            cited = replace(cited, boxes=boxes) if boxes else cited
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
                citation=cited,
                headings=unit.headings,
                meta=document.meta,
                via=via,
                whole=document.units == 1,
                reader=reader,
            )
        )
    return hits


def _pages_seen(candidates: Sequence[Candidate]) -> set[int]:
    """The keys of the pages by whose pictures chunks were found."""
    return {why.key for one in candidates for why in one.via if why.space == PAGE_MULTI and why.key is not None}


def _placed(
    why: Reason,
    key: int,
    units: Mapping[int, UnitRow],
    sizes: Mapping[tuple[int, int], tuple[float, float]],
    locate: Callable[[int], tuple[Ints, Scores]],
) -> Reason:
    """The reason, by a page's multi-vectors, of the unit with that key: with the boxes of where they look, if they tell."""
    page = units[why.key or key]
    if page.page is None or page.patches is None:
        return why
    boxes = page_evidence(relevance(*locate(page.key), page.patches), page.page, sizes[page.document, page.page])
    return replace(why, boxes=boxes)


def citation(catalog: Catalog, document: DocumentRow, unit: UnitRow) -> Citation:
    """The citation of a unit of a stored document."""
    if unit.page is not None:
        size = catalog.page_sizes([(document.id, unit.page)])[document.id, unit.page]
        return cite_page(document.source, unit.span, unit.page, size)
    return cite(document.source, unit.span, catalog.pages(document.id, unit.span))


def mean_vector(rows: Floats) -> Floats:
    """The direction of the mean of unit rows (n, d): (1, d) float32, unit length."""
    return unit_rows(rows.mean(axis=0, keepdims=True))

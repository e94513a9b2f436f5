"""Read the hits of ranked units: text, citation, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ragkit.core.space import Space
from ragkit.core.types import Hit, Ints, Reason
from ragkit.search.cite import cite, cite_page
from ragkit.search.expand import HitExpander
from ragkit.search.explain import page_evidence
from ragkit.search.explanation import Explanation
from ragkit.search.fuse import Candidate
from ragkit.search.heat import relevance
from ragkit.store.local.reader import Reader
from ragkit.store.values import UnitRow
from ragkit.store.vectors.tiles import Scores


def read_hits(
    candidates: Sequence[Candidate],
    reader: Reader,
    *,
    scale: str,
    first: int = 1,
    explain: Callable[[Hit, str | None], Explanation] | None = None,
    locate: Callable[[int], tuple[Ints, Scores]] | None = None,
) -> list[Hit]:
    """Candidates, ranked from `first` on, with their text, document and citation from the reader.

    locate: the winning vectors and shares of a page by its key, where MaxSim found it: the reason has the boxes of most of them,
    and a page is cited by them, without them as a whole.
    """
    units = reader.units([one.key for one in candidates])
    found = [units[one.key] for one in candidates]
    documents = reader.documents_by_id({unit.document for unit in found})
    passages = reader.passages([(unit.document, unit.span) for unit in found])
    expander = HitExpander(reader.unlocked(), explain)
    seen = units | reader.units(_pages_seen(candidates) - units.keys())
    sizes = reader.page_sizes([(unit.document, unit.page) for unit in seen.values() if unit.page is not None])
    hits = []
    for rank, (candidate, unit, (text, pages)) in enumerate(zip(candidates, found, passages, strict=True), start=first):
        document = documents[unit.document]
        via = candidate.via
        if locate is not None:
            via = tuple(_placed(one, unit.key, seen, sizes, locate) if one.space == Space.PAGE_MULTI else one for one in via)
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
                reader=expander,
            )
        )
    return hits


def _pages_seen(candidates: Sequence[Candidate]) -> set[int]:
    """The keys of the pages by whose pictures chunks were found."""
    return {why.key for one in candidates for why in one.via if why.space == Space.PAGE_MULTI and why.key is not None}


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

"""POST /v1/search: hits with their evidence. GET /v1/indexes: what there is to search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ragkit.apps.serve.answers import RESPONSES, Asker, Json, Serving
from ragkit.apps.serve.inputs import InputItem, fetched, query_of, urls_of
from ragkit.apps.serve.keys import Key
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import narrowed
from ragkit.core.space import MAXSIM_SPACES, Space
from ragkit.core.types import Hit, Hits
from ragkit.index.index import Index
from ragkit.search.hit_json import BoxFields, HitFields, box_fields, hit_fields
from ragkit.search.request import MAXSIM

router = APIRouter(tags=["search"])
Filter = Annotated[dict[str, Any], Field(description="see ragkit.search.filters: Haystack's tree or the Mongo-like shorthand")]
PHRASINGS = 16
EXPLAINED = 20  # hits of an answer whose MaxSim scores are taken apart: each is scored again


class SearchRequest(BaseModel):
    """What `Index.search` takes."""

    query: Annotated[str | InputItem, Field(description="a text; or {image}, {text, image} where the index sees pages")]
    index: str | None = Field(None, description="its name, where the server has several")
    k: int = Field(10, ge=1)
    mode: Literal["hybrid", "text", "dense", "lexical", "multi", "pages"] = "hybrid"
    filters: Filter | None = None
    dims: int | None = Field(None, ge=1)
    min_score: float | None = Field(None, allow_inf_nan=False)
    group_by: Literal["document"] | None = None
    phrasings: list[str] = Field(default_factory=list, max_length=PHRASINGS)
    diversity: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    weights: dict[str, float] = Field(
        default_factory=dict, max_length=10, description="of a space's scores, 1 where not given; pages share it"
    )
    rerank: str | None = Field(None, description="the name of one of the server's rerankers, or maxsim")
    candidates: int = Field(50, ge=1)
    expand: Literal["page", "section"] | None = None
    before: int = Field(0, ge=0, le=100, description="neighbouring units to add before each hit")
    after: int = Field(0, ge=0, le=100)
    explain: bool = Field(False, description="what each space gave to each score, and each token to the first ones by MaxSim")
    exact: bool = Field(False, description="look at every vector: nothing compressed or coarse decides what is looked at")
    degraded: bool = False


class Share(BaseModel):
    space: str
    share: float


class MatchFields(BaseModel):
    """A token of the query and what it matched best: words of the text, or a place on the page."""

    share: float
    query_word: str
    word: str
    spans: list[list[int]]
    boxes: list[BoxFields]


class HeatFields(BaseModel):
    """A MaxSim score as a map of the page: rows of cells over a region in fractions of it. All sums to the score."""

    page: int
    region: list[float]
    cells: list[list[float]]
    elsewhere: float


class FoundHit(HitFields):
    """A hit, taken apart where the request asks for it."""

    explanation: list[Share] | None = Field(None, description="shares that sum to the score")
    matches: list[MatchFields] | None = Field(None, description="the MaxSim score by tokens of the query")
    heat: HeatFields | None = Field(None, description="the MaxSim score by places on the page")


class SearchResponse(BaseModel):
    index: str
    hits: list[FoundHit]
    missing: list[str] = Field(description="what a degraded search had to leave out")


class IndexFields(BaseModel):
    name: str
    documents: int
    units: int | None
    model: str
    commit: int
    spaces: list[str]


class Indexes(BaseModel):
    object: Literal["list"]
    data: list[IndexFields]


@router.post("/v1/search", responses={200: {"model": SearchResponse}, **RESPONSES}, response_class=Json)
async def search(asked: SearchRequest, service: Serving, key: Asker) -> Json:
    """The k best hits, best first, each with document, pages, character span and boxes."""
    name, index = service.index(asked.index, key)
    check_k(asked.k, service.limits.k)
    check_k(asked.candidates, service.limits.k, field="candidates")
    if asked.rerank not in (None, MAXSIM, *service.rerankers):
        raise Problem(400, f"this server has the rerankers {', '.join((*service.rerankers, MAXSIM))}", field="rerank")
    if asked.expand is not None and (asked.before or asked.after):
        raise Problem(400, "expand to a page or section, or by before and after: not both", field="expand")
    filters = narrowed(asked.filters, key, depth=service.limits.filter_depth)
    scorer = service.rerankers.get(asked.rerank or "", asked.rerank)
    files = {} if isinstance(asked.query, str) else await fetched(urls_of([asked.query]), service.fetcher, service.limits)
    with service.spans.within("search", index=name, mode=asked.mode, k=asked.k):
        # Pictures are decoded in there too: so few at a time.
        fields = await service.run(_found, index, asked, files, filters, scorer, service.limits)
    return Json({"index": name, **fields})


def check_k(k: int, most: int, *, field: str = "k") -> None:
    if k > most:
        raise Problem(400, f"{field} is at most {most} here, got {k}", field=field)


def _found(
    index: Index,
    asked: SearchRequest,
    files: dict[str, bytes],
    filters: Mapping[str, Any] | None,
    scorer: Any,
    limits: ServeLimits,
) -> dict[str, Any]:
    hits: Hits = index.search(
        query_of(asked.query, files, limits),
        asked.k,
        mode=asked.mode,
        filters=filters,
        dims=asked.dims,
        min_score=asked.min_score,
        group_by=asked.group_by,
        weights=asked.weights,
        phrasings=[query_of(one, {}, limits) for one in asked.phrasings],
        diversity=asked.diversity,
        rerank=scorer,
        candidates=asked.candidates,
        exact=asked.exact,
        degraded=asked.degraded,
    )
    told, characters = [], 0
    for number, hit in enumerate(hits):
        wide = hit.expand(asked.expand, before=asked.before, after=asked.after)
        characters += len(wide.text)
        if characters > limits.answer_characters:
            raise Problem(
                400, f"the hits have over {limits.answer_characters:,} characters: ask for fewer, or widen them less", field="k"
            )
        told.append(hit_fields(wide) | (_explained(hit, asked, number) if asked.explain else {}))
    return {"hits": told, "missing": list(hits.missing)}


def _explained(hit: Hit, asked: SearchRequest, number: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"explanation": shares(hit)}
    if number >= EXPLAINED or not any(reason.space in MAXSIM_SPACES for reason in hit.via):
        return fields
    try:
        why = hit.explain()
    except ValueError:  # replaced since: what it was found by stays true
        return fields
    fields["matches"] = [
        {
            "share": one.share,
            "query_word": one.query_word,
            "word": one.word,
            "spans": [[span.start, span.end] for span in one.spans],
            "boxes": box_fields(one.boxes),
        }
        for one in why.matches
    ]
    if why.relevance is None and any(reason.space == Space.PAGE_MULTI for reason in hit.via):  # found by its words' MaxSim, too
        why = hit.explain(Space.PAGE_MULTI)
    if why.relevance is not None:
        found = why.relevance
        place = {"page": why.citation.pages[0], "region": list(found.region)}
        fields["heat"] = place | {"cells": found.cells.tolist(), "elsewhere": found.elsewhere}
    return fields


def shares(hit: Hit) -> list[dict[str, Any]]:
    """What each space gave to the score. Phrasings and rerankers score anew: then the score is one share."""
    parts = [{"space": one.space, "share": one.share} for one in hit.via]
    if math.isclose(sum(one.share for one in hit.via), hit.score, rel_tol=1e-9):
        return parts
    return [{"space": "phrasings" if hit.scale == "rrf" else hit.via[-1].space, "share": hit.score}]


@router.get("/v1/indexes", responses={200: {"model": Indexes}, **RESPONSES}, response_class=Json)
async def indexes(service: Serving, key: Asker) -> Json:
    """The indexes that the key may use. With a key that is bound to a filter, the documents that it sees are counted."""
    names = [name for name in service.indexes if key is None or key.index in (None, name)]
    return Json({"object": "list", "data": [await service.run(index_fields, name, service.indexes[name], key) for name in names]})


def index_fields(name: str, index: Index, key: Key | None) -> dict[str, Any]:
    """An index in numbers, as one key sees it."""
    stats = index.stats()
    fields = {"name": name, "documents": stats.documents, "units": stats.units, "model": stats.model, "commit": stats.commit}
    fields["spaces"] = list(index.spaces)
    if key is not None and key.filters is not None:
        rows = list(index.documents(key.filters))
        fields |= {"documents": len(rows), "units": sum(row.units for row in rows)}
    return fields

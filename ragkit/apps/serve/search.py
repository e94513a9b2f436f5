"""POST /v1/search: hits with their evidence. GET /v1/indexes: the indexes that can be searched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ragkit.apps.serve.answers import RESPONSES, Asker, JsonAnswer, Serving
from ragkit.apps.serve.inputs import InputItem, checked_text, fetched, query_of, urls_of
from ragkit.apps.serve.keys import Key
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import Reranker, narrowed
from ragkit.core.space import MAXSIM_SPACES, Space
from ragkit.core.types import Hit, Hits, Json
from ragkit.index.index import Index
from ragkit.search.explanation import Match
from ragkit.search.filters import Filters
from ragkit.search.hit_json import BoxFields, HitFields, box_fields, hit_fields
from ragkit.search.request import MAXSIM

router = APIRouter(tags=["search"])
Filter = Annotated[Json, Field(description="see ragkit.search.filters: Haystack's tree or the Mongo-like shorthand")]
PHRASINGS = 16
EXPLAINED = 20  # first hits whose MaxSim scores are taken apart: each is scored again


class SearchRequest(BaseModel):
    """The query and options of `Index.search`."""

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
    explain: bool = Field(
        False, description="say what each space gave to each score, and what each token gave to the first hits' MaxSim scores"
    )
    exact: bool = Field(False, description="compare every vector exactly, none by its compressed or coarse form alone")
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


@router.post("/v1/search", responses={200: {"model": SearchResponse}, **RESPONSES}, response_class=JsonAnswer)
async def search(request: SearchRequest, service: Serving, key: Asker) -> JsonAnswer:
    """Return the k best hits, best first, each with document, pages, character span and boxes."""
    name, index = service.index(request.index, key)
    check_k(request.k, service.limits.k)
    check_k(request.candidates, service.limits.k, field="candidates")
    if request.rerank not in (None, MAXSIM, *service.rerankers):
        raise Problem(400, f"this server has the rerankers {', '.join((*service.rerankers, MAXSIM))}", field="rerank")
    if request.expand is not None and (request.before or request.after):
        raise Problem(400, "expand to a page or section, or by before and after: not both", field="expand")
    filters = narrowed(request.filters, key, depth=service.limits.filter_depth)
    scorer = service.rerankers.get(request.rerank or "", request.rerank)
    files = {} if isinstance(request.query, str) else await fetched(urls_of([request.query]), service.fetcher, service.limits)
    with service.spans.within("search", index=name, mode=request.mode, k=request.k):
        fields = await service.run(lambda: _search(index, request, files, filters, scorer, service.limits))
    return JsonAnswer({"index": name, **fields})


def check_k(k: int, most: int, *, field: str = "k") -> None:
    """Problem 400 for a number over the server's limit."""
    if k > most:
        raise Problem(400, f"{field} is at most {most} here, got {k}", field=field)


def _search(
    index: Index,
    request: SearchRequest,
    files: Mapping[str, bytes],
    filters: Filters | None,
    scorer: Reranker,
    limits: ServeLimits,
) -> Json:
    """Return the fields of the answer but the index's name. Pictures are decoded here, too: in one of a few threads."""
    query = query_of(request.query, files, limits)
    hits: Hits = index.search(
        query,
        request.k,
        mode=request.mode,
        filters=filters,
        dims=request.dims,
        min_score=request.min_score,
        group_by=request.group_by,
        weights=request.weights,
        phrasings=[checked_text(phrasing, limits) for phrasing in request.phrasings],
        diversity=request.diversity,
        rerank=scorer,
        candidates=request.candidates,
        exact=request.exact,
        degraded=request.degraded,
    )
    rows, characters = [], 0
    for number, hit in enumerate(hits):
        expanded = hit.expand(request.expand, before=request.before, after=request.after)
        characters += len(expanded.text)
        if characters > limits.answer_characters:
            raise Problem(
                400, f"the hits have over {limits.answer_characters:,} characters: ask for fewer, or widen them less", field="k"
            )
        explained = _explained(hit, apart=number < EXPLAINED) if request.explain else {}
        rows.append(hit_fields(expanded) | explained)
    return {"hits": rows, "missing": list(hits.missing)}


def _explained(hit: Hit, *, apart: bool) -> Json:
    """Return the shares of a hit's score; with `apart`, also those of the query's tokens and of places on the page by MaxSim."""
    fields: Json = {"explanation": shares(hit)}
    spaces = {reason.space for reason in hit.via}
    if not apart or not spaces & set(MAXSIM_SPACES):
        return fields
    try:
        explanation = hit.explain()
    except ValueError:  # the document was replaced since; the shares are still right
        return fields
    fields["matches"] = [_match_fields(match) for match in explanation.matches]
    if explanation.relevance is None and Space.PAGE_MULTI in spaces:  # the hit was found by MaxSim over its words, too
        explanation = hit.explain(Space.PAGE_MULTI)
    if explanation.relevance is not None:
        heat = explanation.relevance
        fields["heat"] = {
            "page": explanation.citation.pages[0],
            "region": list(heat.region),
            "cells": heat.cells.tolist(),
            "elsewhere": heat.elsewhere,
        }
    return fields


def _match_fields(match: Match) -> Json:
    return {
        "share": match.share,
        "query_word": match.query_word,
        "word": match.word,
        "spans": [[span.start, span.end] for span in match.spans],
        "boxes": box_fields(match.boxes),
    }


def shares(hit: Hit) -> list[Json]:
    """Return what each space gave to the score. Phrasings and rerankers score again: then the whole score is one share."""
    parts = [{"space": reason.space, "share": reason.share} for reason in hit.via]
    if math.isclose(sum(reason.share for reason in hit.via), hit.score, rel_tol=1e-9):
        return parts
    return [{"space": "phrasings" if hit.scale == "rrf" else hit.via[-1].space, "share": hit.score}]


@router.get("/v1/indexes", responses={200: {"model": Indexes}, **RESPONSES}, response_class=JsonAnswer)
async def indexes(service: Serving, key: Asker) -> JsonAnswer:
    """List the indexes that the key may use. For a key that is bound to a filter, count only the documents that it sees."""
    names = [name for name in service.indexes if key is None or key.index in (None, name)]
    return JsonAnswer(
        {"object": "list", "data": [await service.run(index_fields, name, service.indexes[name], key) for name in names]}
    )


def index_fields(name: str, index: Index, key: Key | None) -> Json:
    """Return the numbers of an index, as a key sees it."""
    stats = index.stats()
    fields = {"name": name, "documents": stats.documents, "units": stats.units, "model": stats.model, "commit": stats.commit}
    fields["spaces"] = list(index.spaces)
    if key is not None and key.filters is not None:
        rows = list(index.documents(key.filters))
        fields |= {"documents": len(rows), "units": sum(row.units for row in rows)}
    return fields

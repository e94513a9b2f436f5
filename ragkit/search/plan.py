"""Settle how an index answers a request: which spaces take part, with which weight, and the vectors of the queries."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from numpy.typing import ArrayLike

from ragkit.core.space import MODES, PAGE_SPACES, Space
from ragkit.core.types import Floats
from ragkit.encode.contract import Encoder, Encoding
from ragkit.encode.external import unit_vectors
from ragkit.search.queries import Query, QueryBatch, QueryVectors, encode_queries
from ragkit.search.request import SearchRequest
from ragkit.search.view import View

NO_PAGES = "this index has no page images. Make one that has: Index.open(path, pages='auto', page_model=...)"
NO_MULTI = "this index keeps no multi-vectors for MaxSim. Make one that does: Index.open(path, multi=True)"


@dataclass(frozen=True, slots=True, eq=False)
class SearchPlan:
    """A request settled for an index: `available` are the spaces that can answer, `queries` the embedded queries."""

    request: SearchRequest
    available: tuple[Space, ...]
    queries: QueryVectors

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces that are searched: those of the mode that can answer and have a weight."""
        return tuple(space for space in MODES[self.request.mode] if space in self.available and self.weight(space) > 0)

    def weight(self, space: Space) -> float:
        """Return what a space counts when spaces are fused. The spaces of pages are filled by one encoder and share one vote."""
        weights = self.request.weights or {}
        if space not in PAGE_SPACES:
            return weights.get(space, 1.0)
        voters = [page for page in PAGE_SPACES if page in self.available and weights.get(page, 1) > 0]
        return weights.get(space, 1 / max(1, len(voters)))

    @property
    def scale(self) -> str:
        """The scale of the scores of the search."""
        if len(self.spaces) == 1:
            return self.spaces[0].scale
        return "zscore" if self.request.rrf is None else "rrf"


def check_spaces(request: SearchRequest, available: Sequence[Space]) -> None:
    """Raise ValueError if no space of the request's mode is available with a weight."""
    mode, spaces = request.mode, MODES[request.mode]
    if request.of_pages and not set(PAGE_SPACES) & set(available):
        raise ValueError(NO_PAGES)
    if spaces == (Space.MULTI,) and Space.MULTI not in available:
        raise ValueError(NO_MULTI)
    if spaces == (Space.DENSE,) and Space.DENSE not in available:
        raise ValueError("this index keeps no dense vectors, since its model makes none; search it with mode='multi'")
    if not SearchPlan(request, tuple(available), QueryVectors(())).spaces:
        problem = "has the weight 0" if set(spaces) & set(available) else "is not in this index"
        raise ValueError(f"every space of mode {mode!r} {problem}, so nothing would be searched")


def make_plan(request: SearchRequest, batch: QueryBatch, view: View, *, vectors: ArrayLike | None = None) -> SearchPlan:
    """Settle a request for an index, and embed the queries, once for all spaces. vectors: the caller's own dense ones.

    ValueError if nothing could answer, FingerprintMismatch if a model is not the one that built the index.
    """
    available = view.spaces
    check_spaces(request, available)
    check_dims(request, view)
    if request.by_maxsim:
        available = _without_multi(request, available)
    if request.rerank is not None and not batch.has_texts:
        raise ValueError("rerank orders hits by the words of a question, and a picture has none: leave rerank out")
    if batch.images is not None:
        available = _restrict_spaces(request, available, batch, view)
    plan = SearchPlan(request, available, QueryVectors(batch.texts))
    plan = replace(plan, queries=_embed(plan, batch, view, vectors))
    return _as_embedded(plan)


def _embed(plan: SearchPlan, batch: QueryBatch, view: View, vectors: ArrayLike | None) -> QueryVectors:
    chunks = pages = Encoding()
    items = list[Query](batch.texts) if batch.has_texts else batch.items
    if items and (plan.request.by_maxsim or Space.DENSE in plan.spaces or Space.MULTI in plan.spaces):
        chunks = _query_vectors(items, view, vectors, multi=plan.request.by_maxsim or Space.MULTI in plan.spaces)
    if items and set(PAGE_SPACES) & set(plan.spaces):
        pages = _page_vectors(batch, view, known=chunks if vectors is None and items == batch.items else None)
    return QueryVectors(batch.texts, chunks, pages)


def check_dims(request: SearchRequest, view: View) -> None:
    """Raise ValueError if the request compares more dimensions than the index has."""
    if request.dims is None:
        return
    stage, pages = view.recipe.pages, view.page_encoder
    width = view.recipe.encode.dims or view.encoder.card.dims
    if stage is not None and pages is not None and stage.dense:
        width = max(width, stage.dims or pages.card.dims)
    if not 1 <= request.dims <= width:
        raise ValueError(f"dims must be between 1 and {width}, the width of this index's vectors, got {request.dims}")


def _without_multi(request: SearchRequest, available: tuple[Space, ...]) -> tuple[Space, ...]:
    """Leave out what MaxSim reranks by, and page images: their scores are on no common scale with those of texts."""
    if Space.MULTI not in available:
        raise ValueError(NO_MULTI)
    if request.mode in ("multi", Space.MULTI):
        raise ValueError(f"mode={request.mode!r} ranks by MaxSim already; leave rerank out")
    if request.of_pages:
        raise ValueError(f"rerank='maxsim' scores texts, and mode={request.mode!r} finds page images: use mode='page.multi'")
    return tuple(space for space in available if space not in (Space.MULTI, *PAGE_SPACES))


def _restrict_spaces(
    request: SearchRequest, available: tuple[Space, ...], batch: QueryBatch, view: View
) -> tuple[Space, ...]:
    """Leave out the spaces that cannot answer queries with pictures; ValueError if none looks at the pictures."""
    pages = {space for space in available if space in PAGE_SPACES and _takes_images(view.page_encoder)}
    answers = batch.has_texts or _takes_images(view.encoder)
    texts = {
        space
        for space in available
        if space not in PAGE_SPACES and (batch.has_texts if space == Space.LEXICAL else answers)
    }
    looking = pages if batch.has_texts else pages | texts
    if not looking:
        raise ValueError(
            "a picture cannot be searched for here: no model of this index takes pictures. "
            "Ask with words, or make an index with pages='auto' and a page_model that takes pictures as queries"
        )
    if not looking & set(SearchPlan(request, available, QueryVectors(())).spaces):
        raise ValueError(
            f"a picture cannot be searched for with mode={request.mode!r}{' and these weights' if request.weights else ''}: "
            f"{' and '.join(sorted(looking))} would look at it. Ask with mode='hybrid' or 'pages', or with words"
        )
    return tuple(space for space in available if space in pages | texts)


def _takes_images(encoder: Encoder | None) -> bool:
    return encoder is not None and "image" in encoder.card.query_modalities


def _query_vectors(items: Sequence[Query], view: View, vectors: ArrayLike | None, *, multi: bool) -> Encoding:
    """Embed queries for the spaces of chunks; with the caller's own dense vectors, only what else is needed."""
    if vectors is None:
        return _encode_texts(items, view)
    rows: Floats = unit_vectors(vectors, view.encoder.card.dims, keep=view.recipe.encode.dims)
    if len(rows) != len(items):
        raise ValueError(f"{len(items)} queries and phrasings need as many vectors, got {len(rows)}")
    return replace(_encode_texts(items, view), dense=rows) if multi else Encoding(dense=rows)


def _encode_texts(items: Sequence[Query], view: View) -> Encoding:
    stage = view.recipe.encode
    encoding = encode_queries(view.encoder, items, task=stage.task, dims=stage.dims)
    if encoding.truncated:
        warnings.warn(
            f"{encoding.truncated} of {len(items)} queries have over {stage.max_tokens} tokens: the rest was not embedded",
            stacklevel=6,
        )
    return encoding


def _page_vectors(batch: QueryBatch, view: View, *, known: Encoding | None) -> Encoding:
    """Embed queries for the spaces of pages. known: what the encoder of texts made of them, reused if it is the same encoder."""
    encoder, stage, texts = view.page_encoder, view.recipe.pages, view.recipe.encode
    assert encoder is not None
    assert stage is not None
    embedded = known is not None and (known.dense is not None or known.multi is not None)
    if known is not None and embedded and encoder is view.encoder and (stage.task, stage.dims) == (texts.task, texts.dims):
        return known
    return encode_queries(encoder, batch.items, task=stage.task, dims=stage.dims)


def _as_embedded(plan: SearchPlan) -> SearchPlan:
    """Drop page.multi if the model made no multi-vector for these queries, as for a text and a picture added up."""
    if Space.PAGE_MULTI not in plan.spaces or plan.queries.pages.multi is not None or not plan.queries.texts:
        return plan
    if plan.spaces == (Space.PAGE_MULTI,):
        raise ValueError("the model that saw the pages makes no multi-vectors of text and picture together: ask with one of them")
    return replace(plan, available=tuple(space for space in plan.available if space != Space.PAGE_MULTI))

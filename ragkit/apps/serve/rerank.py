"""POST /v1/rerank, in the shape of Cohere's and Jina's clients: documents by how well they answer a query.

A reranker is a cross-encoder that the server loaded, or any embedding model of its: then the score is the cosine of the query's
and the document's vectors, or the mean over query tokens of their best cosines where the model has multi-vectors only.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from ragkit.apps.serve.answers import RESPONSES, Json, Serving
from ragkit.apps.serve.batching import Batcher, Kind
from ragkit.apps.serve.inputs import prepare
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import Service, refusals
from ragkit.encode.contract import EncoderCard
from ragkit.encode.tasks import ASYMMETRIC, full_task

router = APIRouter(tags=["rerank"])


class TextDocument(BaseModel):
    text: str


class RerankRequest(BaseModel):
    query: str
    documents: Annotated[list[str | TextDocument], Field(min_length=1)]
    model: str | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = Field(None, description="true unless said otherwise")


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: TextDocument | None = None


class RerankUsage(BaseModel):
    total_tokens: int


class RerankResponse(BaseModel):
    model: str
    results: list[RerankResult]
    usage: RerankUsage


@router.post("/v1/rerank", responses={200: {"model": RerankResponse}, **RESPONSES}, response_class=Json)
async def rerank(asked: RerankRequest, service: Serving) -> Json:
    """The documents, best first; equal scores keep their order."""
    texts = [one if isinstance(one, str) else one.text for one in asked.documents]
    if len(texts) > service.limits.inputs:
        raise Problem(400, f"{len(texts)} documents are over this server's {service.limits.inputs}", field="documents")
    model = asked.model or next(iter([*service.rerankers, *service.models]), "")
    if model in service.rerankers:
        scores, tokens = await service.run(_by_cross_encoder, service.rerankers[model], asked.query, texts), 0
    else:
        scores, tokens = await _by_vectors(service, service.batcher(model), asked.query, texts)
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: asked.top_n]
    results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
    if asked.return_documents is not False:
        results = [one | {"document": {"text": texts[one["index"]]}} for one in results]
    return Json({"model": model, "results": results, "usage": {"total_tokens": tokens}})


def _by_cross_encoder(scorer: Any, query: str, texts: list[str]) -> list[float]:
    given = scorer.predict([(query, text) for text in texts]) if hasattr(scorer, "predict") else scorer(query, texts)
    scores = [float(one) for one in given]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise RuntimeError(f"the reranker gave {len(scores)} scores for {len(texts)} texts, or some that are no numbers")
    return scores


async def _by_vectors(service: Service, batcher: Batcher, query: str, texts: list[str]) -> tuple[list[float], int]:
    encoder, limits = batcher.encoder, service.limits
    with batcher.admitted(), refusals():
        kinds = [Kind(_task(encoder.card, role), truncate=True) for role in ("query", "passage")]
        both = [
            await batcher.tokenised(partial(prepare, part, {}, encoder, task=kind.task, limits=limits, truncate=True))
            for part, kind in zip(([query], texts), kinds, strict=True)
        ]
        found = [await batcher.encode(one.items, one.work, kind=kind) for one, kind in zip(both, kinds, strict=True)]
    tokens = sum(sum(one.tokens) for one in both)
    if found[0].dense is not None and found[1].dense is not None:
        return (found[1].dense @ found[0].dense[0]).tolist(), tokens
    words, items = found[0].multi, found[1].multi
    assert words is not None
    assert items is not None
    best = np.maximum.reduceat(words[0] @ items.values.T, items.offsets[:-1], axis=1)
    return best.mean(axis=0).tolist(), tokens


def _task(card: EncoderCard, side: str) -> str:
    family = card.task or card.tasks[0]
    return full_task(f"{family}.{side}" if family in ASYMMETRIC else family, card, role=None)

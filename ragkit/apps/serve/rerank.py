"""POST /v1/rerank, in the shape of Cohere's and Jina's clients: order documents by how well they answer a query.

A reranker is a cross-encoder that the server loaded, or any of its embedding models. Their score is the cosine of the query's and
the document's vectors, or, for a model with multi-vectors only, the mean over query tokens of their best cosines.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from ragkit.apps.serve.answers import RESPONSES, JsonAnswer, Serving
from ragkit.apps.serve.batching import Batcher, Kind
from ragkit.apps.serve.inputs import prepare
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import Reranker, Service, refusals
from ragkit.core.types import Json
from ragkit.encode.contract import EncoderCard, Encoding
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


@router.post("/v1/rerank", responses={200: {"model": RerankResponse}, **RESPONSES}, response_class=JsonAnswer)
async def rerank(body: RerankRequest, service: Serving) -> JsonAnswer:
    """Return the documents, best first; equal scores keep their order."""
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    if len(texts) > service.limits.inputs:
        raise Problem(400, f"{len(texts)} documents are over this server's {service.limits.inputs}", field="documents")
    model = body.model or next(iter([*service.rerankers, *service.models]), "")
    if model in service.rerankers:
        scores, tokens = await service.run(_by_cross_encoder, service.rerankers[model], body.query, texts), 0
    else:
        scores, tokens = await _by_vectors(service, service.batcher(model), body.query, texts)
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: body.top_n]
    results: list[Json] = [{"index": i, "relevance_score": scores[i]} for i in order]
    if body.return_documents is not False:
        results = [result | {"document": {"text": texts[result["index"]]}} for result in results]
    return JsonAnswer({"model": model, "results": results, "usage": {"total_tokens": tokens}})


def _by_cross_encoder(scorer: Reranker, query: str, texts: list[str]) -> list[float]:
    values = scorer.predict([(query, text) for text in texts]) if hasattr(scorer, "predict") else scorer(query, texts)
    scores = [float(value) for value in values]
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        raise RuntimeError(f"the reranker gave {len(scores)} scores for {len(texts)} texts, or some that are not finite")
    return scores


async def _by_vectors(service: Service, batcher: Batcher, query: str, texts: list[str]) -> tuple[list[float], int]:
    """Return the scores of n texts by an embedding model, and the tokens of all inputs."""
    encoder, limits = batcher.encoder, service.limits
    tokens, encodings = 0, []
    with batcher.admitted(), refusals():
        for role, inputs in (("query", [query]), ("passage", texts)):
            kind = Kind(_task(encoder.card, role), truncate=True)
            prepared = await batcher.tokenised(
                partial(prepare, inputs, {}, encoder, task=kind.task, limits=limits, truncate=True)
            )
            tokens += sum(prepared.tokens)
            encodings.append(await batcher.encode(prepared.items, prepared.work, kind=kind))
    return _similarities(*encodings), tokens


def _similarities(query: Encoding, documents: Encoding) -> list[float]:
    """Return the cosines of one query and n documents; without dense vectors, the mean of each query token's best cosine."""
    if query.dense is not None and documents.dense is not None:
        cosines: list[float] = (documents.dense @ query.dense[0]).tolist()
        return cosines
    assert query.multi is not None
    assert documents.multi is not None
    best = np.maximum.reduceat(query.multi[0] @ documents.multi.values.T, documents.multi.offsets[:-1], axis=1)
    means: list[float] = best.mean(axis=0).tolist()
    return means


def _task(card: EncoderCard, role: str) -> str:
    family = card.task or card.tasks[0]
    return full_task(f"{family}.{role}" if family in ASYMMETRIC else family, card, role=None)

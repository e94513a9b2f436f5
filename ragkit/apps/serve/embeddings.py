"""POST /v1/embeddings, as in Jina's and OpenAI's APIs, for every loaded model; GET /v1/models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ragkit.apps.serve.answers import RESPONSES, JsonAnswer, Serving
from ragkit.apps.serve.batching import Kind
from ragkit.apps.serve.formats import Format, formatted, formatted_rows
from ragkit.apps.serve.inputs import Given, InputItem, Inputs, Prepared, fetched, listed, prepare, urls_of
from ragkit.apps.serve.problems import Problem, dialect_of
from ragkit.apps.serve.service import refusals
from ragkit.core.arrays import truncate_dims
from ragkit.core.types import Floats, Json
from ragkit.encode.contract import Encoder, EncoderCard, Encoding
from ragkit.encode.late import why_not_late
from ragkit.encode.tasks import NO_TASK, full_task

router = APIRouter(tags=["embeddings"])
Formats = Format | list[Format]


class EmbeddingRequest(BaseModel):
    """Jina's and OpenAI's fields together. A field that a model does not use may be left out."""

    model: str = Field(min_length=1)
    input: Inputs = Field(union_mode="left_to_right")
    task: str | None = Field(None, description="retrieval.query, retrieval.passage, text-matching, ...: as the model has it")
    dimensions: int | None = Field(None, ge=1)
    late_chunking: bool | None = Field(None, description="the inputs are consecutive pieces of one document")
    return_multivector: bool | None = None
    return_tokenized_input: bool | None = None
    truncate: bool | None = None
    normalized: bool | None = None
    embedding_type: Formats | None = None
    encoding_type: Formats | None = None
    encoding_format: Formats | None = None
    user: str | None = None

    @property
    def formats(self) -> Formats:
        return self.embedding_type or self.encoding_type or self.encoding_format or "float"


class EmbeddingItem(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str | dict[str, list[float] | str]


class MultiVectorItem(BaseModel):
    object: Literal["embeddings"]
    index: int
    embeddings: list[list[float] | str] | dict[str, list[list[float] | str]]
    tokenized_input: list[str] | None = None


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    image_tokens: int | None = None


class EmbeddingResponse(BaseModel):
    object: Literal["list"]
    model: str
    data: list[EmbeddingItem | MultiVectorItem]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dims: int
    multi_dims: int
    max_tokens: int
    tasks: list[str]
    modalities: list[str]
    licence: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


@router.post("/v1/embeddings", responses={200: {"model": EmbeddingResponse}, **RESPONSES}, response_class=JsonAnswer)
async def embed(request: Request, body: EmbeddingRequest, service: Serving) -> JsonAnswer:
    """Return texts and images as vectors, in the order of the inputs."""
    batcher = service.batcher(body.model)
    encoder, limits = batcher.encoder, service.limits
    inputs = listed(body.input, limits=limits)
    _check(body, encoder.card)
    if "" in inputs and dialect_of(request.headers, body.model_fields_set) == "openai":
        raise Problem(422, "an input is the empty string", field="input")
    with batcher.admitted(), refusals():
        kind = _kind(body, encoder, inputs)
        files = await fetched(urls_of(inputs), service.fetcher, limits)
        truncate = bool(body.truncate)
        prepared = await batcher.tokenised(
            lambda: prepare(inputs, files, encoder, task=kind.task, limits=limits, truncate=truncate or kind.late)
        )
        with service.spans.within("encode", model=encoder.card.name, inputs=len(inputs)):
            encoding = await batcher.encode(prepared.items, prepared.work, kind=kind)
        return await asyncio.to_thread(_answer, body, encoder, prepared, encoding)


def _check(body: EmbeddingRequest, card: EncoderCard) -> None:
    """Refuse what the model cannot give, and fields that exclude each other: Problem 422."""
    if body.return_multivector:
        _check_multivector(body, card)
    elif body.return_tokenized_input:
        raise Problem(422, "return_tokenized_input needs return_multivector", field="return_tokenized_input")
    elif not card.dims:
        raise Problem(422, f"{card.name} has multi-vectors only: ask with return_multivector", field="return_multivector")
    if body.dimensions is not None and body.dimensions > card.dims:
        raise Problem(422, f"dimensions is from 1 to {card.dims} for {card.name}, got {body.dimensions}", field="dimensions")


def _check_multivector(body: EmbeddingRequest, card: EncoderCard) -> None:
    if not card.multi_dims:
        raise Problem(422, f"{card.name} has no multi-vectors", field="return_multivector")
    if body.dimensions is not None:
        raise Problem(422, "dimensions are of dense vectors: leave them out with return_multivector", field="dimensions")
    if body.normalized is False:
        raise Problem(
            422, "the vectors of a multi-vector have unit length: leave normalized out, or say true", field="normalized"
        )
    if body.late_chunking:
        raise Problem(422, "late_chunking makes dense vectors: leave return_multivector out", field="late_chunking")


def default_task(card: EncoderCard) -> str:
    """Return the task of a request that names none: no task for v3, text-matching for v4, as in their APIs; else the passage."""
    task = card.task or next((family for family in (NO_TASK, "text-matching") if family in card.tasks), card.tasks[0])
    return full_task(task, card, role="document")


def _kind(body: EmbeddingRequest, encoder: Encoder, inputs: Sequence[Given]) -> Kind:
    card = encoder.card
    task = default_task(card) if body.task is None else full_task(body.task, card, role=None)
    if not body.late_chunking:
        return Kind(task, bool(body.truncate))
    if reason := why_not_late(encoder):
        raise Problem(400, reason, field="late_chunking")
    if not all(isinstance(item, str) or (isinstance(item, InputItem) and item.picture is None) for item in inputs):
        raise Problem(400, "late_chunking is for texts", field="input")
    return Kind(task, late=True)


def _answer(body: EmbeddingRequest, encoder: Encoder, prepared: Prepared, encoding: Encoding) -> JsonAnswer:
    """Return the formatted answer. Call this on a thread: formatting a large answer would block the event loop."""
    if body.return_multivector:
        data = [_multi_item(body, encoder, prepared, encoding, i) for i in range(len(prepared.items))]
    else:
        rows = _rows(body, encoder, encoding)
        data = [{"object": "embedding", "index": i, "embedding": formatted(row, body.formats)} for i, row in enumerate(rows)]
    total = sum(prepared.tokens)
    usage = {"prompt_tokens": total, "total_tokens": total}
    if prepared.image_tokens:
        usage["image_tokens"] = prepared.image_tokens
    return JsonAnswer({"object": "list", "model": body.model, "data": data, "usage": usage})


def _rows(body: EmbeddingRequest, encoder: Encoder, encoding: Encoding) -> Floats:
    """Return (n, d) unit rows, or, if the request says `normalized: false`, the vectors as the model pooled them."""
    rows = encoding.dense
    assert rows is not None
    if body.normalized is not False:
        return rows if body.dimensions is None else truncate_dims(rows, body.dimensions)
    if encoding.lengths is None:
        raise Problem(
            422, f"{encoder.card.name} gives vectors of unit length: leave normalized out, or say true", field="normalized"
        )
    whole = rows * encoding.lengths[:, None]
    return whole if body.dimensions is None else whole[:, : body.dimensions]


def _multi_item(body: EmbeddingRequest, encoder: Encoder, prepared: Prepared, encoding: Encoding, i: int) -> Json:
    assert encoding.multi is not None
    rows = encoding.multi[i]
    item = {"object": "embeddings", "index": i, "embeddings": formatted_rows(rows, body.formats)}
    text = prepared.texts[i]
    if body.return_tokenized_input and text is not None and prepared.items[i] is text:
        words = [text[start:end] for start, end in encoder.token_spans(text).tolist()]
        before = max(0, len(rows) - len(words))  # vectors of the prompt or of special tokens: no characters of the text
        item["tokenized_input"] = [*[""] * before, *words][: len(rows)]
    return item


@router.get("/v1/models", responses={200: {"model": Models}, **RESPONSES}, response_class=JsonAnswer)
async def models(service: Serving) -> JsonAnswer:
    """List the loaded models."""
    return JsonAnswer({"object": "list", "data": [_model(name, encoder.card) for name, encoder in service.models.items()]})


def _model(name: str, card: EncoderCard) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "ragkit",
        "dims": card.dims,
        "multi_dims": card.multi_dims,
        "max_tokens": card.max_tokens,
        "tasks": list(card.tasks),
        "modalities": list(card.modalities),
        "licence": card.licence,
    }

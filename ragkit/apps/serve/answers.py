"""What routes share: JSON that can always be sent, the key of a request, and the errors that the OpenAPI document names."""

from __future__ import annotations

import json
import math
from typing import Annotated, cast

import numpy as np
import orjson
from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse

from ragkit.apps.serve.keys import Key
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import Service
from ragkit.core.types import Json


class FieldError(BaseModel):
    field: str
    message: str
    type: str
    input: str


class Refusal(BaseModel):
    """Why a request was refused, as Jina's clients read it."""

    detail: str
    code: str
    request_id: str
    errors: list[FieldError] | None = None


class OpenAIErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIRefusal(BaseModel):
    """Why a request was refused, as OpenAI's clients read it; they are known by their headers and fields."""

    error: OpenAIErrorFields


REASONS = {
    400: "The request cannot be answered, or names something that does not exist",
    401: "The key is missing, or is not one of this server's",
    403: "The key does not allow it",
    404: "Nothing has that name",
    408: "The body did not arrive in time",
    409: "Another writer holds the index, or it is not in that state",
    413: "The body is too large",
    422: "The body or a parameter does not fit the schema",
    429: "Too much is waiting; Retry-After says when to come back",
    500: "The server failed",
    503: "Models are being loaded; or the index or the installation needs repair",
    504: "No answer in time",
}
RESPONSES: dict[int | str, Json] = {
    status: {"model": Refusal | OpenAIRefusal, "description": reason} for status, reason in REASONS.items()
}


class JsonAnswer(JSONResponse):
    """An answer in JSON, of metadata and arrays too. float32 is written in the fewest digits that give the same number again."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        try:
            return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:  # metadata may hold lone surrogates and integers beyond 64 bits, which orjson refuses
            plain = _without_nan(content)
            return json.dumps(plain, ensure_ascii=True, separators=(",", ":"), default=np.ndarray.tolist).encode()


def _without_nan(value: object) -> object:
    """Return the value with null for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def _key(request: Request) -> Key | None:
    """Return the key that the gate found. Problem 401 if it found none and the server has keys: None never means all rights."""
    key = cast("Key | None", getattr(request.state, "key", None))
    if key is None and _service(request).keys:
        raise Problem(401, "this server needs a key")
    return key


Serving = Annotated[Service, Depends(_service)]
Asker = Annotated[Key | None, Depends(_key)]

"""What routes share: JSON that can always be sent, who asks, and the errors that the OpenAPI document names."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, cast

import numpy as np
import orjson
from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse

from ragkit.apps.serve.keys import Key
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.service import Service


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
    400: "The request makes no sense here, or names what is not there",
    401: "No key, or not one of this server's",
    403: "The key does not allow it",
    404: "There is none of that name",
    408: "The body did not come",
    409: "Another writer holds the index, or it is not in that state",
    413: "The body is too large",
    422: "The body or a parameter does not fit the schema",
    429: "Too much is waiting; Retry-After says when to come back",
    500: "The server failed",
    503: "Models are being loaded; or the index or the installation needs care",
    504: "No answer in time",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal | OpenAIRefusal, "description": reason} for status, reason in REASONS.items()
}


class Json(JSONResponse):
    """JSON of whatever somebody sent, and of arrays: float32 in as few digits as bring the same number back."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        try:
            return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:  # lone surrogates and numbers beyond 64 bits, of somebody's metadata
            plain = _without_nan(content)
            return json.dumps(plain, ensure_ascii=True, separators=(",", ":"), default=np.ndarray.tolist).encode()


def _without_nan(value: Any) -> Any:
    """NaN and infinities, which JSON has not, as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, (list, tuple)) else value


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


def _key(request: Request) -> Key | None:
    """Whose request it is, as the gate found. Problem 401 where it found nobody and the server has keys: it never means all."""
    key = cast("Key | None", getattr(request.state, "key", None))
    if key is None and _service(request).keys:
        raise Problem(401, "this server needs a key")
    return key


Serving = Annotated[Service, Depends(_service)]
Asker = Annotated[Key | None, Depends(_key)]

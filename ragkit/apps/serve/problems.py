"""Errors as HTTP answers, in the shape that each kind of client reads.

Jina's clients read {"detail", "code", "request_id"}, and {"detail", "errors"} for a body that does not fit its schema; OpenAI's
read {"error": {"message", "type", "param", "code"}}. A client is known by its own headers and by fields that only one of the two
APIs has; every other client gets Jina's shape, which is ragkit's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from ragkit.core.errors import IndexLocked, InputTooLong, MissingExtra, RagkitError, StorageError
from ragkit.core.types import Json, Metadata

OPENAI_FIELDS = frozenset({"encoding_format", "user"})
JINA_FIELDS = frozenset(
    {
        "embedding_type",
        "encoding_type",
        "late_chunking",
        "normalized",
        "return_multivector",
        "return_tokenized_input",
        "task",
        "truncate",
    }
)
SHOWN = 200  # characters of what was sent, repeated in an error
CODES = {
    400: "INPUT_INVALID",
    401: "AUTH_INVALID_API_KEY",
    403: "AUTHZ_FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    409: "CONFLICT",
    413: "INPUT_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "INPUT_INVALID",
    429: "RATE_REQUEST_LIMIT_EXCEEDED",
    503: "SERVICE_UNAVAILABLE",
    504: "SERVICE_TIMEOUT",
}
OPENAI_TYPES = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}


class Problem(Exception):
    """A refusal: `status`, `code` as Jina names it, the message, the field at fault, seconds to wait, errors by field."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        field: str | None = None,
        retry_after: float | None = None,
        errors: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or CODES.get(status, "INTERNAL_ERROR")
        self.field = field
        self.retry_after = retry_after
        self.errors = [dict(error) for error in errors]

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self, dialect: str, request_id: str) -> Json:
        """Return the answer's JSON object."""
        if dialect == "openai":
            kind = OPENAI_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
            code = {"INPUT_MODEL_NOT_FOUND": "model_not_found", "AUTH_INVALID_API_KEY": "invalid_api_key"}.get(self.code)
            return {
                "error": {"message": str(self), "type": kind, "param": self.field, "code": code or self.code.lower()},
            }
        body: Json = {"detail": str(self), "code": self.code, "request_id": request_id}
        return body | ({"errors": self.errors} if self.errors else {})

    def status_for(self, dialect: str) -> int:
        """Return the status in a dialect: OpenAI's API has no 422, and answers 404 for an unknown model."""
        if dialect == "openai":
            return 404 if self.code == "INPUT_MODEL_NOT_FOUND" else 400 if self.status == 422 else self.status
        return self.status


def dialect_of(headers: Mapping[str, str], body: object = None) -> str:
    """Return "openai" or "jina": the error shape that this client reads. body: its fields, or the whole of it."""
    fields = set(body) if isinstance(body, (Mapping, set)) else set()
    if fields & JINA_FIELDS and not fields & OPENAI_FIELDS:
        return "jina"
    sdk = headers.get("user-agent", "").lower().startswith(("openai/", "asyncopenai/")) or "x-stainless-lang" in headers
    return "openai" if sdk or fields & OPENAI_FIELDS else "jina"


def problem_of(error: Exception, *, folders: Mapping[str, str] | None = None) -> Problem:
    """Return the answer to an error from the rest of ragkit. An error that may not be the client's is a 500 without its text.

    folders: the names that replace paths of the server's disk.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, InputTooLong):
        return Problem(400, str(error), code="INPUT_TOO_LONG", field="input")
    if isinstance(error, IndexLocked):
        return Problem(409, "another process writes to the index; try again", code="INDEX_LOCKED", retry_after=5)
    if isinstance(error, (StorageError, MissingExtra)):  # their messages name folders, and what to do there
        return Problem(503, "the index or the installation needs repair; the server's log says more")
    if isinstance(error, (RagkitError, ValueError, TypeError)):
        message = str(error)
        for folder, name in (folders or {}).items():
            message = message.replace(folder, name)
        return Problem(400, message)
    return Problem(500, "the server failed; its log says more", code="INTERNAL_ERROR")


def validation_problem(errors: Sequence[Metadata]) -> Problem:
    """Return pydantic's complaints about a body or a parameter as a 422, with one entry per field and complaint."""
    complaints = [
        {
            "field": _field(error["loc"]),
            "message": str(error["msg"]),
            "type": str(error["type"]),
            "input": _shown(error.get("input")),
        }
        for error in errors
    ]
    distinct = list({(each["field"], each["message"]): each for each in complaints}.values())
    summary = "; ".join(f"{each['field']}: {each['message']}" for each in distinct[:5])
    return Problem(422, summary, field=distinct[0]["field"] if distinct else None, errors=distinct)


def _field(loc: Sequence[object]) -> str:
    """Return the path of a field, without the names that pydantic gives to the alternatives of a union."""
    parts = [str(part) for part in loc if part not in ("body", "query", "path")]
    plain = [
        part for part in parts if re.fullmatch(r"\w+", part) and part not in ("str", "int", "float", "InputItem", "constrained")
    ]
    return ".".join(plain) or "body"


def _shown(value: object) -> str:
    """Return what was sent as a short text: never a whole image, and nothing that JSON cannot hold."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"

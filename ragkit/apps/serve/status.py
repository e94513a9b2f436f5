"""Routes that tell whether the server lives, whether it is ready, and what it counts."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from ragkit.apps.serve.answers import RESPONSES, JsonAnswer, Serving

router = APIRouter(tags=["server"])


class Health(BaseModel):
    status: Literal["ok", "starting", "stopping"]


@router.get("/healthz", responses={200: {"model": Health}, **RESPONSES}, response_class=JsonAnswer)
async def healthz() -> JsonAnswer:
    """Answer as long as the process runs."""
    return JsonAnswer({"status": "ok"})


@router.get("/readyz", responses={200: {"model": Health}, **RESPONSES, 503: {"model": Health}}, response_class=JsonAnswer)
async def readyz(service: Serving) -> JsonAnswer:
    """Answer 200 if the models are loaded; 503 before that, and once the server stops."""
    if service.ready and not service.stopping.is_set():
        return JsonAnswer({"status": "ok"})
    return JsonAnswer({"status": "stopping" if service.stopping.is_set() else "starting"}, status_code=503)


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **RESPONSES},
    response_class=Response,
)
async def metrics(service: Serving) -> Response:
    """Return counters and durations, for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

"""Whether the server lives, whether it is ready, and what it counts."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from ragkit.apps.serve.answers import RESPONSES, Json, Serving

router = APIRouter(tags=["server"])


class Health(BaseModel):
    status: Literal["ok", "starting", "stopping"]


@router.get("/healthz", responses={200: {"model": Health}, **RESPONSES}, response_class=Json)
async def healthz() -> Json:
    """The process answers."""
    return Json({"status": "ok"})


@router.get("/readyz", responses={200: {"model": Health}, **RESPONSES, 503: {"model": Health}}, response_class=Json)
async def readyz(service: Serving) -> Json:
    """Models are loaded, indexes open. 503 before that, and once the server stops."""
    if service.ready and not service.stopping.is_set():
        return Json({"status": "ok"})
    return Json({"status": "stopping" if service.stopping.is_set() else "starting"}, status_code=503)


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **RESPONSES},
    response_class=Response,
)
async def metrics(service: Serving) -> Response:
    """Counters and durations, for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

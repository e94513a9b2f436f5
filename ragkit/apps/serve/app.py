"""The ASGI application: routes behind the gate."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from ragkit import __version__
from ragkit.apps.serve.gate import Gate
from ragkit.apps.serve.service import Service
from ragkit.core.errors import MissingExtra

DESCRIPTION = "Embeddings as Jina's and OpenAI's APIs have them, and search with evidence over indexes on this server's disk."


def create_app(service: Service, *, on_loaded: Callable[[BaseException | None], None] | None = None) -> Gate:
    """An ASGI application for a service that it starts and closes. MissingExtra without fastapi.

    It answers once the models are loaded; with `on_loaded`, at once, and 503 to what needs them, until on_loaded(None), or
    on_loaded(why not). With the package mcp, /mcp serves the indexes' tools; those that write, for keys that may, where the
    service has jobs.
    """
    try:
        from fastapi import FastAPI
    except ImportError:
        raise MissingExtra.of("fastapi", "server", "the HTTP server") from None
    from ragkit.apps.serve import documents, embeddings, rerank, search, status

    tools = _tools(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start())
        if on_loaded is None:
            await starting
        else:
            starting.add_done_callback(lambda task: None if task.cancelled() else on_loaded(task.exception()))
        try:
            async with AsyncExitStack() as stack:
                if tools is not None:
                    await stack.enter_async_context(tools[1]())
                yield
        finally:
            starting.cancel()
            await service.close()

    app = FastAPI(title="ragkit", version=__version__, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for part in (embeddings, search, documents, rerank, status):
        app.include_router(part.router)
    _tell_errors(app)
    if tools is not None:
        app.router.routes.extend(tools[0].routes)
    return Gate(app, service)


def _tools(service: Service) -> tuple[Any, Any] | None:
    """What serves /mcp, and what runs it; None without indexes or without the package."""
    if not service.indexes or importlib.util.find_spec("mcp") is None:
        return None
    from ragkit.apps.serve.mcp import http_app

    return http_app(service, writable=bool(service.jobs))


def _tell_errors(app: Any) -> None:
    """Every refusal in the shape that its client reads."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from ragkit.apps.serve.answers import Json
    from ragkit.apps.serve.problems import Problem, dialect_of, problem_of, validation_problem

    def told(request: Request, problem: Problem, body: Any = None) -> Json:
        dialect = dialect_of(request.headers, body)
        content = problem.body(dialect, request.state.request_id)
        return Json(content, status_code=problem.status_for(dialect), headers=problem.headers)

    async def problem(request: Request, error: Problem) -> Json:
        return told(request, error, await _sent(request))

    async def invalid(request: Request, error: RequestValidationError) -> Json:
        return told(request, validation_problem(error.errors()), error.body)

    async def http(request: Request, error: HTTPException) -> Json:
        return told(request, Problem(error.status_code, str(error.detail)))

    async def failed(request: Request, error: Exception) -> Json:
        return told(request, problem_of(error))

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, failed)


async def _sent(request: Any) -> Any:
    """The body that a route refused, if it is JSON: its fields tell whose client sent it."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        return None
    try:
        return await request.json()
    except Exception:
        return None

"""The ASGI application: routes behind the gate."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from ragkit import __version__
from ragkit.apps.serve.gate import Gate
from ragkit.apps.serve.service import Service
from ragkit.core.errors import MissingExtra

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

    from ragkit.apps.serve.mcp import McpApp

DESCRIPTION = "Embeddings as Jina's and OpenAI's APIs have them, and search with evidence over indexes on this server's disk."


def create_app(service: Service, *, on_loaded: Callable[[BaseException | None], None] | None = None) -> Gate:
    """Return an ASGI application for a service, which it starts and closes. MissingExtra without fastapi.

    Without `on_loaded` it starts answering once the models are loaded. With it, it answers at once, and with 503 to requests that
    need a model, until they are loaded; then it calls on_loaded(None), or on_loaded(error). If the package mcp is installed, /mcp
    serves the indexes' tools; the writing ones if the service has jobs, for keys that may write.
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
                    await stack.enter_async_context(tools.run())
                yield
        finally:
            starting.cancel()
            await service.close()

    app = FastAPI(title="ragkit", version=__version__, description=DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for part in (embeddings, search, documents, rerank, status):
        app.include_router(part.router)
    _add_error_handlers(app)
    if tools is not None:
        app.router.routes.extend(tools.app.routes)
    return Gate(app, service)


def _tools(service: Service) -> McpApp | None:
    """Return the application that serves /mcp; None without indexes or without the package mcp."""
    if not service.indexes or importlib.util.find_spec("mcp") is None:
        return None
    from ragkit.apps.serve.mcp import http_app

    return http_app(service, writable=bool(service.jobs))


def _add_error_handlers(app: FastAPI) -> None:
    """Send every refusal in the shape that its client reads."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from ragkit.apps.serve.answers import JsonAnswer
    from ragkit.apps.serve.problems import Problem, dialect_of, problem_of, validation_problem

    def refusal(request: Request, problem: Problem, body: object = None) -> JsonAnswer:
        dialect = dialect_of(request.headers, body)
        content = problem.body(dialect, request.state.request_id)
        return JsonAnswer(content, status_code=problem.status_for(dialect), headers=problem.headers)

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JsonAnswer:
        return refusal(request, error, await _sent(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JsonAnswer:
        return refusal(request, validation_problem(error.errors()), error.body)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JsonAnswer:
        return refusal(request, Problem(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JsonAnswer:
        return refusal(request, problem_of(error))


async def _sent(request: Request) -> object:
    """Return the body of a request that a route refused, if it is JSON: its fields tell which client sent it."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        return None
    try:
        return await request.json()
    except Exception:
        return None

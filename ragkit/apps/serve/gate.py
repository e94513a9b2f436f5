"""What every HTTP request passes before a route sees it: key, scope, whether models are loaded, size, deadline.

The key is checked from the headers alone, so that the body of a caller without one is never read. A body is read whole, up to its
limit; one that brings files is passed on piece by piece and counted. Then the route has a limited time to begin its answer. It
is cancelled when the caller goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from ragkit.apps.serve.keys import ANYBODY, Key, Scope, key_of
from ragkit.apps.serve.problems import Problem, dialect_of, problem_of

if TYPE_CHECKING:
    from ragkit.apps.serve.service import Service

Message = MutableMapping[str, Any]
Connection = MutableMapping[str, Any]  # ASGI calls it a scope, which is the name of a key's rights here
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Connection, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/healthz", "/readyz"})
ADMIN = frozenset({"/metrics"})
UNLOADED = OPEN | ADMIN | {"/openapi.json"}  # answered while models are loaded, too
LOADING = 5  # seconds after which to ask again while models are loaded
FILES = "/v1/documents/files"  # the body of this request goes to the disk
log = logging.getLogger("ragkit.apps.serve")


def scope_of(method: str, path: str) -> Scope | None:
    """Return the scope that a request needs; None if it is open to all."""
    if path in OPEN:
        return None
    if path in ADMIN:
        return "admin"
    changes = path.startswith("/v1/documents") and method not in ("GET", "HEAD", "OPTIONS")
    return "write" if changes else "read"


class Gate:
    """An ASGI application around another."""

    def __init__(self, app: Application, service: Service) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = uuid.uuid4().hex
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).extend(
                    [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                )
            await send(message)

        with self._service.spans.request(scope["method"], headers) as span:
            try:
                state["key"] = self._authorised(scope["method"], scope["path"], headers)
                self._check_ready(scope["path"])
                await self._pass(scope, receive, send_with_headers, headers)
            except Exception as error:
                if not isinstance(error, Problem):
                    log.exception("request %s failed", request_id)
                if not status:
                    await refuse(send_with_headers, problem_of(error), dialect_of(headers), request_id)
            route = _route_of(scope)
            span(route, status)
            self._service.metrics.request(scope["method"], route, status, time.perf_counter() - started)

    def _check_ready(self, path: str) -> None:
        """Problem 503 while models are loaded or the server stops, for what needs them."""
        if not self._service.ready and path not in UNLOADED:
            state = "is stopping" if self._service.stopping.is_set() else "is loading its models"
            raise Problem(503, f"the server {state}; try again", retry_after=LOADING)

    def _authorised(self, method: str, path: str, headers: Mapping[str, str]) -> Key | None:
        """Return the key of a request; None if it needs none. Problem 401 or 403."""
        needed = scope_of(method, path)
        if not self._service.keys:
            _check_local(headers)
            return ANYBODY
        if needed is None:
            return None
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Problem(401, "this server needs a key: send it as Authorization: Bearer <key>", code="AUTH_MISSING_API_KEY")
        key = key_of(secret.strip(), self._service.keys)
        if key is None:
            raise Problem(401, "this server does not know the key", code="AUTH_INVALID_API_KEY")
        if not key.allows(needed):
            raise Problem(403, f"the key {key.name!r} has the scope {key.scope}, and this needs {needed}")
        return key

    async def _pass(self, scope: Connection, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        limits = self._service.limits
        length = headers.get("content-length", "0")
        uploads = scope["path"] == FILES
        most = limits.upload_bytes if uploads else limits.body_bytes
        if not length.isascii() or not length.isdigit() or int(length[:19]) > most:
            raise _too_large(most)
        body = _Body(receive, most=most, idle=limits.idle_seconds)
        await self._answer(scope, body.streamed() if uploads else await body.read(), send)

    async def _answer(self, scope: Connection, body: _Body, send: Send) -> None:
        """Run the application until it has answered, its time is over, or the caller has gone."""
        began = asyncio.Event()

        async def send_and_note(message: Message) -> None:
            began.set()
            await send(message)

        work = asyncio.ensure_future(self.app(scope, body.receive, send_and_note))
        gone = asyncio.ensure_future(body.gone())
        whole = asyncio.ensure_future(body.whole.wait())
        try:
            await asyncio.wait({work, whole}, return_when=asyncio.FIRST_COMPLETED)  # an answer may come before the whole body
            done, _ = await asyncio.wait({work, gone}, timeout=self._service.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done and began.is_set():
                done, _ = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                work.result()
            elif gone not in done:
                raise Problem(504, f"no answer within {self._service.limits.seconds:g} s")
        finally:
            for task in (work, gone, whole):
                task.cancel()
            await asyncio.gather(work, gone, whole, return_exceptions=True)


class _Body:
    """A request's body: read whole and then handed over, or passed on and counted."""

    def __init__(self, receive: Receive, *, most: int, idle: float) -> None:
        self.whole = asyncio.Event()
        self._receive = receive
        self._most, self._idle = most, idle
        self._content: bytes | None = b""
        self._left = asyncio.Event()
        self._streams = False
        self._size = 0

    async def read(self) -> _Body:
        pieces = []
        while not self.whole.is_set():
            message = await self._next()
            if message["type"] == "http.disconnect":
                self._left.set()
                self.whole.set()
                break
            pieces.append(message.get("body", b""))
        self._content = b"".join(pieces)
        return self

    def streamed(self) -> _Body:
        self._streams = True
        return self

    async def receive(self) -> Message:
        if self._streams and not self.whole.is_set():
            from starlette.exceptions import HTTPException

            try:
                return await self._next()
            except Problem as problem:  # the form parser passes on no other kind of exception
                self.whole.set()
                raise HTTPException(problem.status, str(problem)) from None
        if self._content is not None and not self._streams:
            content, self._content = self._content, None
            return {"type": "http.request", "body": content, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), self._idle)
        except TimeoutError:
            raise Problem(408, f"no part of the request's body arrived for {self._idle:g} s") from None
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _too_large(self._most)
        if not message.get("more_body", False):
            self.whole.set()
        return message

    async def gone(self) -> None:
        """Return when the caller has closed the connection."""
        await self.whole.wait()
        while not self._left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._left.set()


def _too_large(most: int) -> Problem:
    return Problem(413, f"the request's body is over {most:,} bytes, or its Content-Length is not a number")


def _route_of(connection: Connection) -> str:
    """Return the path of the route that answered, with names for its parameters: a label of metrics, never what a caller sent."""
    return getattr(connection.get("route"), "path", None) or ("/mcp" if connection["path"].startswith("/mcp") else "other")


def _check_local(headers: Mapping[str, str]) -> None:
    """Problem 403 unless the request comes from this machine: a server without keys must not answer a page of another site
    through the reader's browser."""
    origin = headers.get("origin", "")
    origin_host = origin.partition("://")[2]
    for name, host in (("host", headers.get("host", "")), ("origin", origin_host)):
        if host and not is_loopback(_without_port(host)):
            raise Problem(
                403,
                f"the {name} {headers[name][:100]!r} is not this machine, and the server has no keys. Make one: ragkit keys add",
            )
    if (origin and not origin_host) or _loaded_by_another_site(headers):
        raise Problem(403, "requests of another site's page are refused")


def _loaded_by_another_site(headers: Mapping[str, str]) -> bool:
    # Images and scripts that a page of another site loads send no origin. A link that the reader follows is the reader's own.
    followed = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return headers.get("sec-fetch-site") == "cross-site" and "origin" not in headers and not followed


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Return whether the name or address is this machine's own."""
    if host.lower().rstrip(".") == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


async def refuse(send: Send, problem: Problem, dialect: str, request_id: str) -> None:
    """Send a problem as the answer."""
    body = json.dumps(problem.body(dialect, request_id)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    if problem.status in (401, 403, 408, 413, 503):
        headers.append((b"connection", b"close"))  # what is left of the body is not read
    await send({"type": "http.response.start", "status": problem.status_for(dialect), "headers": headers})
    await send({"type": "http.response.body", "body": body})

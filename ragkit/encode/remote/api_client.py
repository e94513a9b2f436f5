"""JSON over HTTP to an embeddings service: one POST, tried again where that helps, and errors that say what to do.

Rules: the key is sent to the one address it was given for; it is never shown, and never sent on to where a redirect points. Plain
http is for this machine only. A request is sent again where that may help: after no connection, timeouts, 408, 429 and 5xx. It
waits as long as the service asks (Retry-After), or twice as long each time; meanwhile no other thread sends either.
"""

from __future__ import annotations

import ipaddress
import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from ragkit.core.errors import RemoteError

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
SPENT = frozenset({"insufficient_quota", "AUTHZ_INSUFFICIENT_BALANCE"})  # 429s that no waiting mends
FIRST, LONGEST = 0.5, 30.0  # seconds between tries, doubled each time
PATIENCE = 120.0  # seconds; a service that asks for more is taken at its word, as an error
LARGEST = 1 << 29  # bytes of an answer: 2048 multi-vectors of 400 tokens, in decimals
Json = Any  # a value that was read from JSON, of any form


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **named: object) -> None:
        """Follow no redirect: it is reported as an error, and no key goes elsewhere."""


@dataclass(eq=False)
class ApiClient:
    """Posts to `base_url`. Thread-safe."""

    base_url: str
    key: str = field(repr=False)
    timeout: float = 120.0  # seconds without an answer
    tries: int = 6
    sleep: Callable[[float], None] = time.sleep
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        check_url(self.base_url)
        self.base_url = self.base_url.rstrip("/")
        # Requests that stay on this machine go through no proxy, whatever the environment sets.
        here = [urllib.request.ProxyHandler({})] if self.base_url.startswith("http:") else []
        self._opener = urllib.request.build_opener(_NoRedirects, *here)

    def post(self, path: str, body: Mapping[str, object]) -> Json:
        """Return the JSON answer to `body`. Raises RemoteError."""
        content = json.dumps(body).encode()
        for attempt in range(1, self.tries + 1):
            self._wait_for_turn()
            try:
                return self._send(path, content)
            except _Refused as refusal:
                error, pause = refusal.error, refusal.pause
            if attempt == self.tries or not error.again:
                raise error
            wait = pause if pause is not None else min(LONGEST, FIRST * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            if wait > PATIENCE:
                raise RemoteError(
                    f"{error} It asks to wait {wait:.0f} s, and {PATIENCE:.0f} s are waited at most: run it again later",
                    status=error.status,
                    code=error.code,
                )
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic() + wait)
        raise AssertionError("unreachable")

    def _wait_for_turn(self) -> None:
        with self._lock:
            wait = self._free_at - time.monotonic()
        if wait > 0:
            self.sleep(wait)

    def _send(self, path: str, content: bytes) -> Json:
        """Return the answer to one request. Raises _Refused."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "ragkit"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.base_url}{path}", data=content, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._parsed(response.read(LARGEST + 1))
        except urllib.error.HTTPError as error:
            with error:
                raise _Refused(self._refusal(error), pause=retry_after(error.headers.get("Retry-After"))) from None
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            problem = f"did not answer within {self.timeout:g} s" if _timed_out(reason) else f"cannot be reached ({reason!r})"
            raise _Refused(RemoteError(f"{self.base_url} {problem}.", again=True)) from None

    def _parsed(self, content: bytes) -> Json:
        if len(content) > LARGEST:
            raise _Refused(RemoteError(f"{self.base_url} answered more than {LARGEST:,} bytes. Send fewer inputs at a time"))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):  # a proxy's page, or an answer cut off
            start = content[:80].decode(errors="replace")
            raise _Refused(RemoteError(f"{self.base_url} did not answer JSON: {start!r}.", again=True)) from None

    def _refusal(self, error: urllib.error.HTTPError) -> RemoteError:
        """Return the error that says what the service answered, and what to do."""
        try:
            message, code = _message_and_code(json.loads(error.read(1 << 20)))
        except (ValueError, OSError, HTTPException):
            message, code = "", ""
        if 300 <= error.code < 400:
            message = f"it redirects to {error.headers.get('Location')!r}, and the key is not sent there: use that address"
        advice = {
            401: " Check the key.", 402: " Check the account's balance.", 403: " Check what the key may do.",
            404: " Check the address and the model's name.",
        }.get(error.code, "")  # fmt: skip
        detail = f": {message}" if message else ""
        return RemoteError(
            f"{self.base_url} answered {error.code} {code or error.reason}{detail}.{advice}",
            status=error.code,
            code=code,
            again=error.code in AGAIN and code not in SPENT,
        )


class _Refused(Exception):
    """A request that brought no answer; pause: the seconds that the service asks to wait, or None."""

    def __init__(self, error: RemoteError, *, pause: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause = pause


def _message_and_code(body: Json) -> tuple[str, str]:
    """Return (message, code) of an error in Jina's form, {detail, code, errors}, or OpenAI's, {error: {message, code}}."""
    if not isinstance(body, dict):
        return "", ""
    inner = body.get("error")
    if isinstance(inner, dict):
        return _text_of(inner, "message"), _text_of(inner, "code") or _text_of(inner, "type")
    fields = [f"{error.get('field')}: {error.get('message')}" for error in body.get("errors") or [] if isinstance(error, dict)]
    detail = _text_of(body, "detail") or str(inner or "")
    return "; ".join([detail, *fields] if detail else fields), _text_of(body, "code")


def _text_of(body: Mapping[str, object], name: str) -> str:
    return str(body.get(name) or "")


def _timed_out(reason: object) -> bool:
    return isinstance(reason, TimeoutError | socket.timeout)


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None if it cannot be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def check_url(url: str) -> None:
    """Raise ValueError unless the address is https, or http to this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname and _is_this_machine(parts.hostname):
        return
    raise ValueError(f"{url!r} must be an https address, or http on this machine: keys and texts do not travel in the clear")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

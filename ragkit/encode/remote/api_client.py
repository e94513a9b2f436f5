"""JSON over HTTP to an embeddings service: one POST, tried again where that helps, and errors that say what to do.

Rules: the key is sent to the one address it was given for, never shown, never on to where a redirect points; no plain http
but to this machine. Tried again is what the next try may mend: no connection, timeouts, 408, 429 and 5xx, after what the service
asks for (Retry-After) or twice as long each time. While it asks to wait, no other thread sends either.
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


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **named: Any) -> None:
        """None: the redirect is reported as the error it is, and no key goes elsewhere."""


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
        # What stays on this machine goes through no proxy, whatever is set for the rest.
        here = [urllib.request.ProxyHandler({})] if self.base_url.startswith("http:") else []
        self._opener = urllib.request.build_opener(_NoRedirects, *here)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to `body`. Raises RemoteError."""
        content = json.dumps(body).encode()
        for attempt in range(1, self.tries + 1):
            self._wait_for_turn()
            error, pause = self._try(path, content)
            if error is None:
                return pause
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

    def _try(self, path: str, content: bytes) -> tuple[RemoteError | None, Any]:
        """(None, answer), or (error, seconds the service asks to wait, or None)."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "ragkit"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.base_url}{path}", data=content, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._parsed(response.read(LARGEST + 1))
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error), retry_after(error.headers.get("Retry-After"))
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            what = f"did not answer within {self.timeout:g} s" if _timed_out(reason) else f"cannot be reached ({reason!r})"
            return RemoteError(f"{self.base_url} {what}.", again=True), None

    def _parsed(self, content: bytes) -> tuple[RemoteError | None, Any]:
        if len(content) > LARGEST:
            return RemoteError(f"{self.base_url} answered more than {LARGEST:,} bytes. Send fewer inputs at a time"), None
        try:
            return None, json.loads(content)
        except (ValueError, RecursionError):  # a proxy's page, or an answer cut off
            start = content[:80].decode(errors="replace")
            return RemoteError(f"{self.base_url} answered what is no JSON: {start!r}.", again=True), None

    def _refused(self, error: urllib.error.HTTPError) -> RemoteError:
        try:
            message, code = _explained(json.loads(error.read(1 << 20)))
        except (ValueError, OSError, HTTPException):
            message, code = "", ""
        if 300 <= error.code < 400:
            message = f"it redirects to {error.headers.get('Location')!r}, and the key is not sent there: use that address"
        advice = {
            401: " Check the key.", 402: " Check the account's balance.", 403: " Check what the key may do.",
            404: " Check the address and the model's name.",
        }.get(error.code, "")  # fmt: skip
        said = f": {message}" if message else ""
        return RemoteError(
            f"{self.base_url} answered {error.code} {code or error.reason}{said}.{advice}",
            status=error.code,
            code=code,
            again=error.code in AGAIN and code not in SPENT,
        )


def _explained(body: Any) -> tuple[str, str]:
    """(message, code) of an error in Jina's form, {detail, code, errors}, or OpenAI's, {error: {message, code}}."""
    if not isinstance(body, dict):
        return "", ""
    inner = body.get("error")
    if isinstance(inner, dict):
        return str(inner.get("message") or ""), str(inner.get("code") or inner.get("type") or "")
    more = [f"{one.get('field')}: {one.get('message')}" for one in body.get("errors") or [] if isinstance(one, dict)]
    detail = str(body.get("detail") or inner or "")
    return "; ".join([detail, *more]) if detail else "; ".join(more), str(body.get("code") or "")


def _timed_out(reason: object) -> bool:
    return isinstance(reason, TimeoutError | socket.timeout)


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, a number or a date (RFC 9110, 10.2.3); None for none that can be read."""
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
    """Raise ValueError unless it is https, or http to this machine."""
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

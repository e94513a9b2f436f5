"""Fetch images by URL, in a way that gives nobody access to the server's own network. Off unless a Fetcher is made.

Only https, on port 443, by a plain host name or public address. The name is resolved once, every address it has must be
public, and the connection goes to one of the checked addresses, so that the name cannot mean another host a moment later.
Each redirect is a new URL and is checked again. Size, time and the number of redirects are limited; the answer must be an image.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from ragkit.apps.serve.problems import Problem

REDIRECTS = 3
PIECE = 1 << 16
_HOST = re.compile(r"(?=.{1,253}$)(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+")
_URL = re.compile(r"""[!#-;=?-\[\]_a-z~]{0,2000}""")  # printable ASCII but "<>\\^`{|}, at most 2,000 letters
_INSIDE = (
    ".local",
    ".internal",
    ".localhost",
    ".localdomain",
    ".lan",
    ".home",
    ".corp",
    ".intranet",
    ".home.arpa",
    ".onion",
    ".test",
    ".invalid",
)
# Translations and tunnels into other networks, over which versions of Python differ.
_TUNNELS = [
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/32",
        "::ffff:0:0/96",
        "::/96",
        "fec0::/10",
        "192.88.99.0/24",
    )
]

Resolve = Callable[[str], Sequence[str]]


def resolved(host: str) -> list[str]:
    """Return every address that the system knows for a name."""
    try:
        addresses = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[4][0]) for address in addresses))


def is_public(address: str) -> bool:
    """Return whether an address belongs to a host on the public internet."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if any(ip.version == net.version and ip in net for net in _TUNNELS):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local)


def checked_host(url: str) -> tuple[str, str]:
    """Return (host, path with query) of a URL that may be fetched, as far as that is known before the name is resolved.
    Problem 400 if it may not."""
    if not _URL.fullmatch(url):
        raise _refused("it has characters that a URL cannot have, or over 2,000")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("it is not a valid URL") from None
    if parts.scheme.lower() != "https":
        raise _refused("only https is fetched")
    if "@" in parts.netloc:
        raise _refused("it has a user or a password")
    if port not in (None, 443):
        raise _refused("only port 443 is allowed")
    host = (parts.hostname or "").lower().removesuffix(".")
    if parts.netloc.startswith("[") or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", host):
        if not is_public(host):
            raise _refused("its address is not public")
    elif not _is_public_name(host):
        raise _refused("its host is not the full name of a public host")
    return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _is_public_name(host: str) -> bool:
    """Return whether a host is a full domain name that public hosts may have, and not a number that a resolver may read as an
    address."""
    last = host.rpartition(".")[2]
    numeric = re.fullmatch(r"(0x[0-9a-f]*|\d+)", last) is not None
    return _HOST.fullmatch(host) is not None and not numeric and not host.endswith(_INSIDE)


def _refused(why: str) -> Problem:
    return Problem(400, f"a URL is not fetched: {why}", code="INPUT_URL_REFUSED", field="input")


class _Pinned(http.client.HTTPSConnection):
    """A connection to the address that was checked; the certificate is verified for the name."""

    def __init__(self, host: str, address: str, port: int, *, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, 443, timeout=timeout, context=context)
        self._pinned = address, port
        self._tls = context

    def connect(self) -> None:
        plain = socket.create_connection(self._pinned, self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def hang_up(self) -> None:
        """End it from another thread."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Fetches images within limits. `resolve`, `public`, `port` and `context` are for tests, which have no public host."""

    most_bytes: int = 8_000_000
    seconds: float = 10.0
    resolve: Resolve = resolved
    public: Callable[[str], bool] = is_public
    port: int = 443
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    async def fetch(self, url: str) -> bytes:
        """Return the bytes behind a URL. Problem 400 INPUT_URL_REFUSED."""
        return await asyncio.to_thread(self.get, url)

    def get(self, url: str) -> bytes:
        """`fetch`, in this thread."""
        end = time.monotonic() + self.seconds
        for _ in range(REDIRECTS + 1):
            answer = self._once(url, end)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise _refused(f"it redirects more than {REDIRECTS} times")

    def _once(self, url: str, end: float) -> bytes | str:
        """Return the file, or the URL that the server redirects to."""
        host, path = checked_host(url)
        addresses = [host] if is_public(host) else list(self.resolve(host))
        if not addresses or not all(map(self.public, addresses)):
            raise _refused(
                "its host has no address, or one that is not public"
            )  # not said which: it would tell about the server's network
        connection = _Pinned(host, addresses[0], self.port, timeout=max(0.1, end - time.monotonic()), context=self.context)
        # The connection's timeout is for one read, and there may be many.
        watch = threading.Timer(max(0.1, end - time.monotonic()), connection.hang_up)
        watch.start()
        try:
            connection.request("GET", path, headers={"User-Agent": "ragkit", "Accept": "image/*", "Accept-Encoding": "identity"})
            with connection.getresponse() as answer:
                return self._taken(url, answer, end)
        except (OSError, http.client.HTTPException, ValueError):
            raise _refused("its server did not answer as it should") from None
        finally:
            watch.cancel()
            connection.close()

    def _taken(self, url: str, answer: http.client.HTTPResponse, end: float) -> bytes | str:
        if answer.status in (301, 302, 303, 307, 308):
            return urljoin(url, answer.getheader("Location") or "")
        if answer.status != 200:
            raise _refused(f"its server answered {answer.status}")
        if not (answer.getheader("Content-Type") or "").lower().startswith("image/"):
            raise _refused("what it names is not an image")
        return self._read(answer, end)

    def _read(self, answer: http.client.HTTPResponse, end: float) -> bytes:
        content = bytearray()
        while piece := answer.read1(PIECE):
            content += piece
            if len(content) > self.most_bytes:
                raise _refused(f"what it names is over {self.most_bytes:,} bytes")
            if time.monotonic() > end:
                raise _refused(f"it took over {self.seconds:g} s")
        return bytes(content)

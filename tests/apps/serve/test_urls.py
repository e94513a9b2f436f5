"""Hostile URLs, and what a fetch may do: a table, and a real TLS server on this machine for the rest."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragkit.apps.serve.inputs import fetched
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem
from ragkit.apps.serve.urls import Fetcher, checked_host, is_public

HOSTILE = [
    # other schemes, and none
    "http://example.com/a.png",
    "ftp://example.com/a.png",
    "file:///etc/passwd",
    "gopher://example.com/",
    "dict://example.com:11211/",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "jar:https://example.com!/",
    "//example.com/a.png",
    "example.com/a.png",
    "",
    # this machine
    "https://localhost/",
    "https://localhost./",
    "https://LOCALHOST/",
    "https://a.localhost/",
    "https://127.0.0.1/",
    "https://127.1/",
    "https://127.255.255.254/",
    "https://0.0.0.0/",
    "https://0/",
    "https://[::1]/",
    "https://[::]/",
    "https://[0:0:0:0:0:0:0:1]/",
    # addresses in other spellings
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://127.0.0.1./",
    "https://017700000001/",
    "https://127.0.0.0x1/",
    "https://１２７.0.0.1/",
    "https://①②⑦.⓪.⓪.①/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[fe80::1%25eth0]/",
    # networks that are not public
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/",
    "https://198.18.0.1/",
    "https://192.0.0.1/",
    "https://192.0.2.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    "https://[ff02::1]/",
    "https://[2001:db8::1]/",
    "https://[fec0::1]/",
    # names within
    "https://metadata.google.internal/",
    "https://router.lan/",
    "https://printer.local/",
    "https://intranet/",
    "https://kubernetes/",
    "https://a.home.arpa/",
    "https://x.onion/",
    "https://db.corp/",
    # users, ports and confusions
    "https://user@example.com/",
    "https://user:pass@example.com/",
    "https://example.com@127.0.0.1/",
    "https://example.com:80/",
    "https://example.com:22/",
    "https://example.com:99999/",
    "https://example.com:x/",
    "https://example.com\\@127.0.0.1/",
    "https://example.com\t/",
    "https://exam\nple.com/",
    "https://example.com/ a",
    "https:/example.com/",
    "https:///example.com/",
    "https://[::1/",
    "https://.example.com/",
    "https://example..com/",
    "https://-example.com/",
    "https://exa_mple.com/",
    "https://%31%32%37.0.0.1/",
    "https://example.com%2f@127.0.0.1/",
    "https://example.com\x00.127.0.0.1/",
    "https://" + "a" * 64 + ".com/",
    "https://example.com/" + "a" * 2000,
]


def test_the_table_is_long_enough() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused_without_a_name_looked_up_or_a_byte_sent(url: str) -> None:
    asked: list[str] = []
    fetcher = Fetcher(resolve=lambda host: asked.append(host) or ["127.0.0.1"])
    with pytest.raises(Problem) as refused:
        fetcher.get(url)
    assert refused.value.code == "INPUT_URL_REFUSED"
    assert asked == []


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "https://EXAMPLE.com:443/a?b=c",
        "https://93.184.216.34/",
        "https://xn--bcher-kva.example.org/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/",
    ],
)
def test_an_ordinary_url_is_not(url: str) -> None:
    assert checked_host(url)


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        ["127.0.0.1"],
        ["93.184.216.34", "10.0.0.1"],
        ["::1"],
        ["169.254.169.254"],
        ["::ffff:10.0.0.1"],
        ["fe80::1%eth0"],
        ["not an address"],
    ],
)
def test_a_name_with_any_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    with pytest.raises(Problem, match="no address, or one that is not public"):
        Fetcher(resolve=lambda host: addresses).get("https://example.com/a.png")


class TlsServer(http.server.ThreadingHTTPServer):
    """The handshake belongs to a connection, so that its failure closes that one."""

    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # who does not like the certificate hangs up


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        port = self.server.server_address[1]
        where = {
            "/to-http": "http://example.com/a.png",
            "/to-inside": "https://169.254.169.254/",
            "/to-name": "https://router.lan/",
            "/to-port": f"https://example.com:{port}/a.png",
            "/loop": "/loop",
            "/hop": "/a.png",
            "/nowhere": "",
        }.get(self.path)
        if where is not None:
            self.send_response(302)
            self.send_header("Location", where)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/slow":
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b"X")
            return
        content = b"x" * 5000 if self.path.startswith("/large.png") else b"PNG"
        self.send_response(404 if self.path == "/missing.png" else 200)
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "image/png")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A TLS server for example.com on a free port, and its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=example.com", "-addext", "subjectAltName=DNS:example.com"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    try:
        subprocess.run([*command, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = TlsServer(("127.0.0.1", 0), Site)
    server.context = context
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], folder / "cert.pem"
    server.shutdown()
    server.server_close()


def fetcher_for(site: tuple[int, Path], **settings: Any) -> Fetcher:
    port, certificate = site
    trusted = ssl.create_default_context(cafile=str(certificate))
    public = {"public": lambda address: address == "127.0.0.1" or is_public(address)}
    return Fetcher(**{"resolve": lambda host: ["127.0.0.1"], "port": port, "context": trusted, **public, **settings})


def test_an_image_is_fetched_from_the_address_that_was_judged(site: tuple[int, Path]) -> None:
    assert fetcher_for(site).get("https://example.com/a.png") == b"PNG"
    assert fetcher_for(site).get("https://example.com/hop") == b"PNG"


@pytest.mark.parametrize(
    "path",
    ["/to-http", "/to-inside", "/to-name", "/to-port", "/loop", "/nowhere", "/missing.png", "/page", "/large.png"],
)
def test_each_redirect_is_judged_and_answers_are_limited(site: tuple[int, Path], path: str) -> None:
    with pytest.raises(Problem) as refused:
        fetcher_for(site, most_bytes=1000).get(f"https://example.com{path}")
    assert refused.value.code == "INPUT_URL_REFUSED"


def test_the_images_of_one_request_are_together_no_larger_than_a_body(site: tuple[int, Path]) -> None:
    urls = [f"https://example.com/large.png?{number}" for number in range(3)]
    for most, fits in ((15_000, True), (14_999, False)):
        work = fetched(urls, fetcher_for(site), ServeLimits(body_bytes=most))
        if fits:
            assert [len(one) for one in asyncio.run(work).values()] == [5000] * 3
        else:
            with pytest.raises(Problem) as refused:
                asyncio.run(work)
            assert refused.value.code == "INPUT_TOO_LARGE"


def test_a_certificate_for_another_name_is_refused(site: tuple[int, Path]) -> None:
    with pytest.raises(Problem, match="did not answer as it should"):
        fetcher_for(site).get("https://example.org/a.png")


def test_a_server_that_dribbles_is_left_in_time(site: tuple[int, Path]) -> None:
    began = time.monotonic()
    with pytest.raises(Problem):
        fetcher_for(site, seconds=0.5).get("https://example.com/slow")
    assert time.monotonic() - began < 4  # it would dribble for five

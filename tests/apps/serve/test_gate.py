"""Keys, limits and what happens to bodies, over real sockets where it is about bytes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.apps.serve.app import create_app
from ragkit.apps.serve.keys import Key, add_key, key_from_secret, key_of, read_keys, remove_key
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.run import check_host
from ragkit.apps.serve.service import Service
from ragkit.encode.contract import Encoding
from ragkit.testing import HashEncoder
from tests.apps.serve.conftest import served, testclient
from tests.apps.serve.test_batching import Held
from tests.apps.serve.test_search import keyed

BODY = {"model": "hash", "input": "a"}


def service(**settings: Any) -> Service:
    return Service(models={"hash": HashEncoder(32)}, **settings)


def raw(url: str, request: bytes, *, seconds: float = 5) -> bytes:
    """What the server answers to these bytes, until it closes or says nothing more."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(request)
        answer = b""
        while True:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                return answer
            answer += piece
            if not piece:
                return answer


def test_a_stranger_is_refused_before_the_body_is_read() -> None:
    key, headers = keyed("reader")
    with served(service(keys=[key])) as url:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
        for extra, code in (("", "AUTH_MISSING_API_KEY"), ("Authorization: Bearer no\r\n", "AUTH_INVALID_API_KEY")):
            answer = raw(url, f"{head}{extra}\r\n".encode(), seconds=3)  # the body is never sent
            assert answer.startswith(b"HTTP/1.1 401"), answer
            assert code.encode() in answer
        waits = raw(url, f"{head}Authorization: {headers['Authorization']}\r\n\r\n".encode(), seconds=1)
        assert waits == b""  # who has the key is waited for


@pytest.mark.parametrize(
    ("path", "method", "scope"),
    [
        ("/v1/models", "GET", "read"),
        ("/v1/documents", "GET", "read"),
        ("/v1/documents", "POST", "write"),
        ("/v1/documents/a", "DELETE", "write"),
        ("/metrics", "GET", "admin"),
        ("/openapi.json", "GET", "read"),
    ],
)
def test_each_scope_includes_the_ones_below_and_no_other(
    client_of: Callable[..., Any], path: str, method: str, scope: str
) -> None:
    order = ["read", "write", "admin"]
    made = {name: keyed(name, scope=name) for name in order}
    client = client_of(service(keys=[key for key, _ in made.values()]))
    assert client.request(method, path).status_code == 401
    for name, (_, headers) in made.items():
        refused = client.request(method, path, headers=headers).status_code == 403
        assert refused == (order.index(name) < order.index(scope))


def test_health_is_open_and_says_nothing(client_of: Callable[..., Any]) -> None:
    client = client_of(service(keys=[keyed("reader")[0]]))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def test_without_keys_only_this_machine_is_answered(client_of: Callable[..., Any]) -> None:
    client = client_of(service())
    for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", "localhost.evil"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 403, host
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host
    for origin in ("https://evil.example", "null", "http://localhost.evil"):
        assert client.post("/v1/embeddings", json=BODY, headers={"Origin": origin}).status_code == 403, origin
    assert client.post("/v1/embeddings", json=BODY, headers={"Origin": "http://localhost:3000"}).status_code == 200
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}  # names no origin
    assert client.get("/v1/models", headers=image).status_code == 403
    assert client.get("/v1/models", headers=image | {"Sec-Fetch-Site": "same-site"}).status_code == 200
    assert client.get("/v1/models", headers=image | {"Origin": "http://localhost:3000"}).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/v1/models", headers=link).status_code == 200
    assert client.get("/v1/models", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_a_request_that_no_gate_judged_is_nobodys(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model="hash:32") as index:
        app = create_app(Service({"library": index}, keys=[keyed("reader")[0]])).app

        async def ungated(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("state", {})["request_id"] = "none"
            await app(scope, receive, send)

        with testclient.TestClient(ungated, base_url="http://localhost") as bare:
            assert bare.post("/v1/search", json={"query": "a"}).status_code == 401
            assert bare.get("/v1/documents").status_code == 401
            pytest.importorskip("mcp")
            call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "status", "arguments": {}}}
            told = bare.post("/mcp", json=call, headers={"Accept": "application/json, text/event-stream"}).json()["result"]
            assert told["isError"]
            assert "needs a key" in told["content"][0]["text"]


def test_the_server_listens_elsewhere_only_with_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ValueError, match="there is no key"):
            check_host(host, service())
        check_host(host, service(keys=[keyed("reader")[0]]))
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, service())


def test_keys_are_stored_hashed_shown_once_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = (add_key(path, name=name, scope="write") for name in ("a", "b"))
    stored = path.read_text()
    assert first not in stored
    assert second not in stored
    assert path.stat().st_mode & 0o077 == 0
    keys = read_keys(path)
    assert [key_of(secret, keys).name for secret in (first, second)] == ["a", "b"]
    for wrong in ("", "rk_", first[:-1], first + "x", first.upper(), "\ud800"):
        assert key_of(wrong, keys) is None
    assert first not in repr(keys)
    assert keys[0].sha256 not in repr(keys)
    with pytest.raises(ValueError, match="already"):
        add_key(path, name="a")
    remove_key(path, "a")
    assert [key.name for key in read_keys(path)] == ["b"]
    with pytest.raises(ValueError, match="24"):
        key_from_secret("short")
    with pytest.raises(ValueError, match="fields of passages"):  # a hit can be widened beyond its passage
        Key(name="x", sha256="0" * 64, filters={"$or": [{"lang": "en"}, {"hit.page": 1}]})
    with pytest.raises(ValueError, match="beyond the filter"):
        Key(name="x", sha256="0" * 64, scope="write", filters={"a": 1})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"keys": []}', '{"keys": [{"name": "a"}]}', '{"keys": [{"name": "a", "sha256": "hunter2"}]}']
)
def test_a_bad_file_of_keys_is_an_error_that_repeats_nothing_of_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ValueError, match="key") as error:
        read_keys(tmp_path / "keys.json")
    assert "hunter2" not in str(error.value)


def test_bodies_over_the_limit_are_413_whether_announced_or_not() -> None:
    with served(service(limits=ServeLimits(body_bytes=1000))) as url:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        assert raw(url, f"{head}Content-Length: 2000\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
        chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
        assert raw(url, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 3 * chunk).startswith(b"HTTP/1.1 413")
        fits = json.dumps(BODY).encode()
        assert raw(url, f"{head}Connection: close\r\nContent-Length: {len(fits)}\r\n\r\n".encode() + fits).startswith(
            b"HTTP/1.1 200"
        )


def test_an_answer_does_not_wait_for_a_body_that_nobody_reads() -> None:
    with served(service()) as url:
        head = b"POST /v1/documents/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 99\r\n\r\n"
        assert raw(url, head, seconds=3).startswith(b"HTTP/1.1 422")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with served(service(limits=ServeLimits(idle_seconds=0.2))) as url:
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        assert raw(url, head).startswith(b"HTTP/1.1 408")


def test_the_deadline_is_a_504_and_its_work_is_dropped(client_of: Callable[..., Any]) -> None:
    encoder = Held()
    client = client_of(Service(models={"held": encoder}, limits=ServeLimits(seconds=0.3)))
    late = client.post("/v1/embeddings", json={"model": "held", "input": "a"})
    assert (late.status_code, late.json()["code"]) == (504, "SERVICE_TIMEOUT")
    waiting = client.post("/v1/embeddings", json={"model": "held", "input": "waiting"})
    assert waiting.status_code == 504
    encoder.let_go.set()
    assert client.post("/v1/embeddings", json={"model": "held", "input": "after"}).status_code == 200
    assert [call[1] for call in encoder.calls] == [["a"], ["after"]]


class Counting(HashEncoder):
    """So slow that five times its capacity can be asked of it by a few threads."""

    def __init__(self) -> None:
        super().__init__(32)
        self.inputs = 0

    def encode(self, inputs: Sequence[Any], **options: Any) -> Encoding:
        time.sleep(0.02)
        self.inputs += len(inputs)
        return super().encode(inputs, **options)


def test_five_times_the_capacity_is_shed_with_429_and_nothing_is_lost() -> None:
    import httpx
    import psutil

    encoder, told = Counting(), []
    limits = ServeLimits(waiting_requests=4, batch_tokens=8)
    with served(Service(models={"slow": encoder}, limits=limits)) as url:

        def client(number: int) -> None:
            with httpx.Client(base_url=url, timeout=20) as http:
                for turn in range(5):
                    text = f"client {number} turn {turn}"
                    answer = http.post("/v1/embeddings", json={"model": "slow", "input": text, "encoding_format": "float"})
                    told.append((text, answer.status_code, answer.headers.get("retry-after"), answer.json()))

        client(20)  # whatever is imported on first use
        before = psutil.Process().memory_info().rss
        threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = httpx.post(f"{url}/v1/embeddings", json={"model": "slow", "input": "after"})
        grown = psutil.Process().memory_info().rss - before
    assert len(told) == 105
    assert grown < 64 * 2**20  # twenty clients' own connections and TLS contexts are in it
    assert {status for _, status, _, _ in told} == {200, 429}
    plain = HashEncoder(32)
    for text, status, retry, body in told:
        if status == 429:
            assert int(retry) >= 1
            assert body["error"]["type"] == "rate_limit_error"
        else:
            assert body["data"][0]["embedding"] == pytest.approx(plain.encode_document([text]).dense[0].tolist(), abs=1e-6)
    assert encoder.inputs == sum(status == 200 for _, status, _, _ in told) + 1
    assert after.status_code == 200  # recovered at once


def test_a_client_that_goes_away_is_not_computed_for() -> None:
    encoder = Held()
    with served(Service(models={"held": encoder})) as url:
        import httpx

        first = threading.Thread(
            target=lambda: httpx.post(f"{url}/v1/embeddings", json={"model": "held", "input": "first"}, timeout=20)
        )
        first.start()
        assert encoder.begun.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/embeddings", json={"model": "held", "input": "gone"}, timeout=0.5)
        time.sleep(0.2)
        encoder.let_go.set()
        first.join(20)
        assert httpx.post(f"{url}/v1/embeddings", json={"model": "held", "input": "after"}, timeout=20).status_code == 200
    assert [call[1] for call in encoder.calls] == [["first"], ["after"]]


def test_a_server_told_to_stop_answers_what_it_has_taken() -> None:
    import httpx

    encoder, answers = Held(), []
    with served(Service(models={"held": encoder})) as url:
        client = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/embeddings", json={"model": "held", "input": "a"}, timeout=20))
        )
        client.start()
        assert encoder.begun.wait(10)
        threading.Timer(0.3, encoder.let_go.set).start()  # after the server was told to stop
    client.join(20)
    assert [one.status_code for one in answers] == [200]


def test_no_key_stands_in_logs_or_errors(client_of: Callable[..., Any], caplog: Any, capfd: Any) -> None:
    key, headers = keyed("reader")
    secret = headers["Authorization"].removeprefix("Bearer ")

    class Failing(HashEncoder):
        def encode(self, *inputs: Any, **options: Any) -> Any:
            raise RuntimeError("out of order")

    client = client_of(Service(models={"bad": Failing(8)}, keys=[key]))
    failed = client.post("/v1/embeddings", json={"model": "bad", "input": "a"}, headers=headers)
    assert failed.status_code == 500
    assert "out of order" not in failed.text  # for the log only
    assert "out of order" in caplog.text
    for wrong in (f"Basic {secret}", f"Bearer {secret}x", secret):
        answer = client.get("/v1/models", headers={"Authorization": wrong})
        assert answer.status_code == 401
        assert secret not in answer.text
    assert secret not in caplog.text + "".join(capfd.readouterr())


def test_metrics_count_what_was_asked(client_of: Callable[..., Any]) -> None:
    client = client_of(service())
    for _ in range(3):
        client.post("/v1/embeddings", json={"model": "hash", "input": ["a", "b"]})
    client.get("/secret/path")
    text = client.get("/metrics").text
    assert 'ragkit_requests_total{method="POST",route="/v1/embeddings",status="200"} 3.0' in text
    assert 'ragkit_batch_inputs_sum{model="hash"} 6.0' in text
    assert 'ragkit_waiting{model="hash",unit="requests"} 0.0' in text
    assert "secret" not in text


def test_spans_join_the_callers_trace(client_of: Callable[..., Any]) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = service()
    made.spans._tracer = trace.get_tracer("ragkit.apps.serve", tracer_provider=provider)
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    assert client_of(made).post("/v1/embeddings", json=BODY, headers=headers).status_code == 200
    spans = {one.name: one for one in exporter.get_finished_spans()}
    assert set(spans) == {"POST /v1/embeddings", "encode"}
    assert format(spans["encode"].context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    assert spans["POST /v1/embeddings"].attributes["http.response.status_code"] == 200

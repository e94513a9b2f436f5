"""The commands as their users run them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.apps.serve.limits import ServeLimits
from ragkit.testing import HashEncoder
from tests.apps.cli.running import call
from tests.conftest import records

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")


def test_keys_are_made_listed_and_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    made = json.loads(call("keys", "add", path, "--name", "team", "--filter", '{"team": "a"}', "--json").out)
    assert made["key"].startswith("rk_")
    assert json.loads(call("keys", "list", path, "--json").out) == [{"name": "team", "scope": "read", "filters": {"team": "a"}}]
    assert call("keys", "add", path, "--name", "team").code == 1
    assert call("keys", "remove", path, "--name", "team").code == 0
    assert call("keys", "list", path).code == 1


def test_a_server_that_others_could_reach_needs_a_key(tmp_path: Path) -> None:
    refused = call("serve", "--model", "hash:16", "--host", "0.0.0.0", "--port", "0", RAGKIT_KEY="")
    assert refused.code == 1
    assert "there is no key" in refused.err
    assert call("serve", RAGKIT_KEY="").code == 1


def test_limits_are_set_by_name_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    for limit, told in (("nothing=1", "there is no limit 'nothing'"), ("k=many", "needs a int"), ("k=0", "above 0")):
        refused = call("serve", "--model", "hash:16", "--limit", limit)
        assert refused.code == 1
        assert told in refused.err
    limits = ServeLimits.parse(["k=5", "seconds=1.5"])
    assert (limits.k, limits.seconds, limits.inputs) == (5, 1.5, ServeLimits().inputs)


def test_serve_answers_and_ends_well_when_told_to(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=HashEncoder(64)) as index:
        index.add(records())
    secret = "a-key-from-the-environment"
    arguments = [str(tmp_path / "library"), "--model", "small=hash:16", "--port", "0"]
    server: Any = subprocess.Popen(
        [sys.executable, "-m", "ragkit.apps.cli.main", "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAGKIT_KEY": secret},
    )
    try:
        said = server.stderr.readline()
        url = re.search(r"http://[\d.]+:\d+", said)[0]
        assert secret not in said
        headers = {"Authorization": f"Bearer {secret}"}
        hits = httpx.post(f"{url}/v1/search", json={"query": "fish harbour", "k": 1}, headers=headers).json()["hits"]
        assert hits[0]["document_id"] == "harbour"
        models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
        assert {one["id"] for one in models} == {"small", "hash:64"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.stderr.close()
        server.wait(10)


# A model that is loaded for as long as it takes until the folder holds a file "go", or "broken".
SLOW = """
import sys, time
from pathlib import Path
from ragkit import Index
from ragkit.apps.serve.keys import key_from_secret
from ragkit.apps.serve.run import make_server
from ragkit.apps.serve.service import Service
from ragkit.testing import HashEncoder

folder = Path(sys.argv[1])

def load():
    while not (folder / "go").exists():
        if (folder / "broken").exists():
            raise ValueError("the weights are no weights")
        time.sleep(0.01)
    return {"slow": HashEncoder(16)}

with Index.open(folder / "library") as index:
    make_server(Service({"library": index}, models=load, keys=[key_from_secret("k" * 24)]), port=int(sys.argv[2])).run()
print("ended")
"""


@contextmanager
def slow_server(folder: Path) -> Iterator[tuple[Any, Any]]:
    """The process, and a client of it with the key; it listens."""
    with Index.open(folder / "library", model="hash:64") as index:
        index.add(records())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {'k' * 24}"}) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx.ConnectError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_while_models_load_the_server_listens_and_says_so_to_each_client(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    with slow_server(tmp_path) as (process, client):
        assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"status": "starting"})
        assert client.get("/metrics").status_code == 200
        for method, path in (("POST", "/v1/embeddings"), ("POST", "/v1/search"), ("GET", "/v1/documents"), ("POST", "/mcp")):
            refused = client.request(method, path, json={"model": "slow", "input": "a"} if method == "POST" else None)
            assert refused.status_code == 503, path
            assert int(refused.headers["retry-after"]) >= 1
            assert (refused.json()["code"], refused.json()["detail"]) == (
                "SERVICE_UNAVAILABLE",
                "the server is loading its models; try again",
            )
        assert client.post("/v1/embeddings", headers={"Authorization": "Bearer no"}).status_code == 401
        official = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="k" * 24, max_retries=0)
        with pytest.raises(openai.InternalServerError) as told:
            official.embeddings.create(model="slow", input="a")
        assert told.value.response.json()["error"]["type"] == "server_error"
        (tmp_path / "go").touch()
        deadline = time.monotonic() + 20
        while client.get("/readyz").status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.get("/readyz").json() == {"status": "ok"}
        assert len(official.embeddings.create(model="slow", input="a").data[0].embedding) == 16
        assert client.post("/v1/search", json={"query": "fish harbour", "k": 1}).json()["hits"][0]["document_id"] == "harbour"
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_a_model_that_cannot_be_loaded_ends_the_server_and_says_why(tmp_path: Path) -> None:
    with slow_server(tmp_path) as (process, _):
        (tmp_path / "broken").touch()
        said, complained = process.communicate(timeout=30)
        assert process.returncode == 1
        assert complained.strip().endswith("ValueError: the weights are no weights")
        assert "ended" not in said
    refused = call("serve", "--model", str(tmp_path / "nowhere"), "--port", "0", RAGKIT_KEY="")
    assert refused.code == 1
    assert "nowhere" in refused.err
    assert "Traceback" not in refused.err


def test_a_server_that_is_told_to_stop_does_not_wait_for_a_model(tmp_path: Path) -> None:
    with slow_server(tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        process.wait(15)

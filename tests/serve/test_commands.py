"""The commands as their users run them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.serve.limits import ServeLimits
from ragkit.testing import HashEncoder
from tests.index.conftest import records

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ragkit.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_keys_are_made_listed_and_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    made = json.loads(run("keys", "add", path, "--name", "team", "--filter", '{"team": "a"}', "--json").stdout)
    assert made["key"].startswith("rk_")
    assert json.loads(run("keys", "list", path, "--json").stdout) == [{"name": "team", "scope": "read", "filters": {"team": "a"}}]
    assert run("keys", "add", path, "--name", "team").returncode == 1
    assert run("keys", "remove", path, "--name", "team").returncode == 0
    assert run("keys", "list", path).returncode == 1


def test_a_server_that_others_could_reach_needs_a_key(tmp_path: Path) -> None:
    refused = run("serve", "--model", "hash:16", "--host", "0.0.0.0", "--port", "0", RAGKIT_KEY="")
    assert refused.returncode == 1
    assert "there is no key" in refused.stderr
    assert run("serve", RAGKIT_KEY="").returncode == 1


def test_limits_are_set_by_name_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    for limit, told in (("nothing=1", "there is no limit 'nothing'"), ("k=many", "needs a int"), ("k=0", "above 0")):
        refused = run("serve", "--model", "hash:16", "--limit", limit)
        assert refused.returncode == 1
        assert told in refused.stderr
    limits = ServeLimits.parse(["k=5", "seconds=1.5"])
    assert (limits.k, limits.seconds, limits.inputs) == (5, 1.5, ServeLimits().inputs)


def test_serve_answers_and_ends_well_when_told_to(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=HashEncoder(64)) as index:
        index.add(records())
    secret = "a-key-from-the-environment"
    arguments = [str(tmp_path / "library"), "--model", "small=hash:16", "--port", "0"]
    server: Any = subprocess.Popen(
        [sys.executable, "-m", "ragkit.cli", "serve", *arguments],
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

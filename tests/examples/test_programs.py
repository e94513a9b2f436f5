"""The example programs run as a reader would run them, on the example corpus; the language model is a server of our own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from tests.examples.test_corpus import EXAMPLES, generate

QUESTION = "Why did turbine F07 stand still for more than five weeks?"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "library"
    with Index.open(path, model="hash:256") as index:
        assert index.add(generate(tmp_path_factory.mktemp("corpus"))).failed == ()
    return path


class Endpoint(BaseHTTPRequestHandler):
    """A chat endpoint that answers with a sentence of the passage about F07 and its number, and with one that is none."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        shown = body["messages"][-1]["content"]
        passages = re.split(r'<passage number="|^\[', shown, flags=re.MULTILINE)
        found = next((one for one in passages if "F07" in one and re.match(r"\d+", one)), "0")
        number = re.match(r"\d+", found)
        text = f"It stood still because of its gearbox [{number[0] if number else 0}], and of gremlins [99]."
        message = {"role": "assistant", "content": text}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def run(program: str, *arguments: str | Path) -> str:
    settings = {"OPENAI_API_KEY": "a key", "HAYSTACK_TELEMETRY_ENABLED": "False", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_answer_names_its_passages_and_what_was_made_up(library: Path, endpoint: str) -> None:
    output = run("answer.py", library, QUESTION, "--base-url", endpoint, "--model", "small")
    [asked] = Endpoint.asked
    assert (asked["path"], asked["model"], asked["key"]) == ("/v1/chat/completions", "small", "Bearer a key")
    assert "not instructions" in asked["messages"][0]["content"]
    cited = re.search(r"gearbox \[(\d+)\]", output)
    assert cited is not None
    passage = re.search(
        rf'<passage number="{cited[1]}" source="([^"]+)">\n(.*?)\n</passage>', asked["messages"][1]["content"], re.S
    )
    assert passage is not None
    assert "F07" in passage[2]
    assert f"[{cited[1]}] {passage[1]}, characters" in output
    assert "[99] is none of the 5 passages" in output


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("langchain_chain.py", "langchain_core"),
        ("haystack_pipeline.py", "haystack"),
        ("llama_index_engine.py", "llama_index"),
    ],
)
def test_a_framework_answers_from_the_index_and_lists_its_sources(
    program: str, package: str, library: Path, endpoint: str
) -> None:
    pytest.importorskip(package)
    output = run(program, library, QUESTION, "--base-url", endpoint, "--model", "small")
    with Index.open(library) as index:
        hits = index.search(QUESTION, 5)
    [asked] = Endpoint.asked
    shown = asked["messages"][-1]["content"]
    assert QUESTION in shown
    assert all(hit.text.strip() in shown for hit in hits)
    assert "because of its gearbox" in output
    assert re.findall(r"^\[(\d)\] (.+?)(?:  [\d.]+)?$", output, re.M) == [(str(hit.rank), str(hit.citation)) for hit in hits]


def test_similar_documents_are_recommended(library: Path) -> None:
    output = run("recommend.py", library, "report.pdf", "-k", "3")
    scores = [float(line.split()[0]) for line in output.splitlines() if re.match(r"\d\.\d{3} ", line)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert "report.pdf" not in output


def test_a_client_asks_over_mcp(library: Path) -> None:
    pytest.importorskip("mcp")
    output = run("mcp_client.py", library, QUESTION, "-k", "2")
    with Index.open(library) as index:
        cited = [str(hit.citation) for hit in index.search(QUESTION, 2)]
    assert set(output.splitlines()[0].removeprefix("tools: ").split(", ")) == {
        "search",
        "get_document",
        "get_page_image",
        "status",
    }
    assert [line for line in output.splitlines()[1:] if not line.startswith("    ")] == cited

"""Names: which encoder a name opens, and what happens to a name that opens none."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from ragkit.core.errors import CheckpointError
from ragkit.encode import DEFAULT_MODEL, Encoder, load_encoder, resolve_name
from ragkit.encode.checkpoints.hub import Offer, cached_folder, fetch_model
from ragkit.testing import assert_encoder_contract

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_default_goes_by_four_names(minilm: Encoder) -> None:
    for name in (None, "default", "all-MiniLM-L6-v2", DEFAULT_MODEL):
        assert resolve_name(name) == minilm.card.name == DEFAULT_MODEL
    assert load_encoder(minilm.card.name, revision=minilm.card.revision, dtype="float32").card == minilm.card
    with pytest.raises(CheckpointError, match="was asked for"):
        load_encoder(revision="0" * 64)
    assert minilm.card.licence == "apache-2.0"


def test_importing_it_is_light() -> None:
    program = (
        "import ragkit.encode, sys; "
        "print({'torch', 'transformers', 'tokenizers', 'safetensors', 'huggingface_hub'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "../nowhere", "with space/x"])
def test_a_name_that_means_nothing_says_what_would(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"neither a folder here, nor a registered name|is not on this machine"):
        load_encoder(name)


def test_a_model_that_is_not_here_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"organisation/model is not on this machine.*fetch_model\('organisation/model'"):
        load_encoder("organisation/model")


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for, serving one folder as organisation/tiny."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        files = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*") if p.is_file()}
        if path.startswith("/api/models/organisation/tiny"):
            siblings = [{"rfilename": name, "size": p.stat().st_size} for name, p in files.items()]
            listing = {"id": "organisation/tiny", "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}, "tags": []}
            tree = [{"type": "file", "path": name, "size": p.stat().st_size, "oid": COMMIT} for name, p in files.items()]
            return self._send(json.dumps(tree if "/tree/" in path else listing).encode(), body=body)
        prefix = f"/organisation/tiny/resolve/{COMMIT}/"
        if path.startswith(prefix) and path.removeprefix(prefix) in files:
            return self._send(files[path.removeprefix(prefix)].read_bytes(), body=body)
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, content: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFFFFFF:040x}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Hub]]]:
    """A hub on this machine's loopback, and an empty cache."""
    import huggingface_hub.constants

    folder = tiny(name="published")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_tiny.py").write_text("raise AssertionError")
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.filterwarnings("ignore")
def test_fetching_asks_first_and_brings_nothing_that_could_run(hub: tuple[str, type[Hub]]) -> None:
    endpoint, handler = hub
    offers: list[Offer] = []

    def decline(offer: Offer) -> bool:
        offers.append(offer)
        return False

    with pytest.raises(CheckpointError, match=r"not downloaded.*organisation/tiny.*MB, licence mit"):
        fetch_model("organisation/tiny", agree=decline, endpoint=endpoint)
    assert not any("resolve" in path for path in handler.asked)
    assert (offers[0].licence, offers[0].revision) == ("mit", COMMIT)
    wanted = sum(p.stat().st_size for p in handler.folder.rglob("*") if p.suffix in (".json", ".txt", ".safetensors"))
    assert offers[0].size == wanted

    folder = fetch_model("organisation/tiny", agree=lambda offer: True, endpoint=endpoint)
    assert not [*folder.rglob("*.py"), *folder.rglob("*.bin")]
    asked = len(handler.asked)
    assert cached_folder("organisation/tiny") == cached_folder("organisation/tiny", revision=COMMIT) == folder
    encoder = load_encoder("organisation/tiny", revision=COMMIT)
    assert load_encoder("organisation/tiny").card == encoder.card
    assert (encoder.card.name, encoder.card.revision) == ("organisation/tiny", COMMIT)
    assert np.array_equal(encoder.encode_query(["a"]).dense, load_encoder(handler.folder).encode_query(["a"]).dense)
    assert len(handler.asked) == asked  # opening it asked nobody


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_pickles_is_not_fetched(hub: tuple[str, type[Hub]]) -> None:
    endpoint, handler = hub
    (handler.folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no safetensors"):
        fetch_model("organisation/tiny", agree=lambda offer: True, endpoint=endpoint)
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        fetch_model("organisation/none", agree=lambda offer: True, endpoint=endpoint)


PROMPTS = {"query": "query: ", "document": "passage: "}


@pytest.fixture
def prompted(tiny: Callable[..., Path]) -> Path:
    """A checkpoint that our own code leaves to sentence-transformers: it has prompts."""
    folder = tiny()
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_prompts_goes_through_sentence_transformers_in_its_roles(prompted: Path) -> None:
    encoder = load_encoder(prompted)
    assert type(encoder).__module__ == "ragkit.encode.models.sentence_transformers"
    assert_encoder_contract(encoder)
    (prompted / "config_sentence_transformers.json").unlink()
    plain = load_encoder(prompted)
    texts = ["some text", "", "Zürich"]
    for role, encode in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        expected = plain.encode_query([PROMPTS[role] + text for text in texts]).dense
        assert np.abs(encode(texts).dense - expected).max() < 1e-5
    assert encoder.count_tokens(["some text"])[0] == plain.count_tokens(["passage: some text"])[0]
    assert encoder.card.fingerprint != plain.card.fingerprint


@pytest.mark.filterwarnings("ignore")
def test_what_sentence_transformers_cannot_load_is_a_checkpoint_error(prompted: Path) -> None:
    (prompted / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(CheckpointError, match="cannot load"):
        load_encoder(prompted)
    (prompted / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "SparseEncoder"}))
    with pytest.raises(CheckpointError, match="is a SparseEncoder"):
        load_encoder(prompted)

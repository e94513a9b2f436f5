"""Hosted models against a real server on this machine that speaks the published contracts, its errors included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ragkit import Index
from ragkit.core.errors import EncodeError, FingerprintMismatch, InputTooLong, RemoteError
from ragkit.encode import load_encoder
from ragkit.encode.late import late_chunk_strings, why_not_late
from ragkit.encode.remote import remote
from ragkit.encode.remote.api_client import ApiClient, check_url, retry_after
from ragkit.encode.remote.remote import RemoteEncoder, load_remote
from ragkit.testing import assert_encoder_contract
from tests.encode.embeddings_server import KEY, EmbeddingsServer
from tests.encode.test_images import picture

TEXTS = ["late chunking", "", "Zürich, naïve café 😀", "首都は東京です。", "word " * 20, "lone \ud800 surrogate"]
MODELS = ["jina:jina-embeddings-v3", "jina:jina-embeddings-v4", "jina:jina-clip-v1", "openai:text-embedding-3-small"]
pytestmark = pytest.mark.filterwarnings("ignore:.*trained to be cut to:UserWarning")


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer() as running:
        yield running


def opened(
    server: EmbeddingsServer, name: str = MODELS[0], *, slept: list[float] | None = None, **settings: Any
) -> RemoteEncoder:
    """The encoder of that model at the server's address. slept: where waits go instead of being waited."""
    base, multi = name.removesuffix("+multi"), "+multi" * name.endswith("+multi")
    settings = {"max_tokens": server.max_tokens} | settings
    client = ApiClient if slept is None else partial(ApiClient, sleep=slept.append)
    name = f"{base}@{server.url}{multi}"
    return load_remote(name, api_keys={server.url: server.key}, client=client, **settings)


def model_of(name: str) -> str:
    return name.partition(":")[2].removesuffix("+multi")


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_the_servers_in_their_roles_and_order(name: str, server: EmbeddingsServer) -> None:
    encoder, behind = opened(server, name), server.encoder(model_of(name))
    texts = [text.replace("\ud800", "\ufffd") for text in TEXTS]
    sent = [text or " " for text in texts] if name.startswith("openai") else texts
    document = behind.encode_document(sent).dense
    query = behind.encode_query(sent).dense if "embeddings-v" in name else document  # the others know no roles
    assert np.abs(encoder.encode_query(TEXTS).dense - query).max() < 1e-6
    assert np.abs(encoder.encode_document(TEXTS).dense - document).max() < 1e-6
    assert np.abs(encoder.encode(TEXTS, task="text-matching").dense - document).max() < 1e-6
    assert {headers["Authorization"] for headers, _ in server.requests} == {f"Bearer {KEY}"}
    assert encoder.tokens_used == 3 * behind.count_tokens(sent).sum()


@pytest.mark.parametrize("name", [*MODELS, "jina:jina-embeddings-v4+multi"])
def test_it_keeps_the_contract(name: str, server: EmbeddingsServer) -> None:
    assert_encoder_contract(opened(server, name))  # type: ignore[arg-type]


def test_tasks_are_the_services_own_names(server: EmbeddingsServer) -> None:
    encoder = opened(server, "jina:jina-embeddings-v4")
    encoder.encode_query(["a"])
    encoder.encode_document(["a"], task="code")
    encoder.encode(["a"], task="text-matching")
    opened(server, "jina:jina-embeddings-v3", task="separation").encode_document(["a"])
    opened(server, "jina:jina-clip-v1").encode_query(["a"])
    assert [body.get("task") for body in server.bodies] == [
        "retrieval.query", "code.passage", "text-matching", "separation", None,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="roles never swap"):
        encoder.encode_query(["a"], task="retrieval.passage")


@pytest.mark.parametrize("name", MODELS)
def test_dims_are_asked_for_where_the_service_takes_them(name: str, server: EmbeddingsServer) -> None:
    found = opened(server, name).encode_document(TEXTS[:3], truncate_dim=100).dense
    whole = opened(server, name).encode_document(TEXTS[:3]).dense[:, :100]
    assert np.abs(found - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() < 1e-6
    assert server.bodies[0].get("dimensions") == (None if "clip" in name else 100)


def test_multi_vectors_come_beside_dense_ones(server: EmbeddingsServer) -> None:
    encoder = opened(server, "jina:jina-embeddings-v4+multi")
    found = encoder.encode_query([*TEXTS[:4], picture(20, 20)], truncate_dim=128)
    behind = server.encoder("jina-embeddings-v4").encode_query(TEXTS[:4])
    assert (found.dense.shape, len(found.multi), encoder.card.outputs) == ((5, 128), 5, ("dense", "multi"))
    for own, expected in zip(found.multi, behind.multi, strict=False):
        assert np.abs(own - expected).max() < 1e-6
    assert sorted(body["embedding_type"] for body in server.bodies) == ["base64", "float"]
    with pytest.raises(ValueError, match="only jina:jina-embeddings-v4 has multi-vectors"):
        opened(server, "jina:jina-embeddings-v3+multi")


@pytest.mark.parametrize("name", ["jina:jina-embeddings-v4", "jina:jina-clip-v1"])
def test_images_travel_without_loss_and_mix_with_texts(name: str, server: EmbeddingsServer) -> None:
    images = [picture(30, 20), picture(20, 30, seed=1).convert("CMYK"), picture(9, 9, seed=2).quantize(8)]
    items = [images[0], "a text", images[1], images[2], ""]
    found = opened(server, name).encode_document(items).dense
    behind = server.encoder(model_of(name)).encode_document(["a text", ""]).dense
    expected = [server.image_vector(image.convert("RGB"), found.shape[1]) for image in images]
    assert np.abs(found - np.stack([expected[0], behind[0], *expected[1:], behind[1]])).max() < 1e-6
    assert [set(item) for item in server.bodies[0]["input"]] == [{"image"}, {"text"}, {"image"}, {"image"}, {"text"}]


def test_large_images_become_jpegs_and_bad_ones_are_named(server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = opened(server, "jina:jina-clip-v1")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    monkeypatch.setattr(remote, "LARGEST_IMAGE", 100_000)
    found = encoder.encode_document([noise]).dense[0]
    assert found @ server.image_vector(noise, 768) > 0.95
    monkeypatch.setattr(remote, "LARGEST_IMAGE", 1000)
    with pytest.raises(EncodeError, match=r"input 1: the image of 300 x 300 pixels has over 1,000 bytes"):
        encoder.encode_document(["a", noise])
    with pytest.raises(EncodeError, match=r"input 1: the image has 1 x 65535 pixels"):
        encoder.encode_document(["a", Image.new("L", (1, 65535))])
    with pytest.raises(TypeError, match="input 0 is a text and an image together"):
        encoder.encode_document([("a", noise)])
    with pytest.raises(TypeError, match="this model takes only str"):
        opened(server).encode_document([noise])


def test_late_chunks_are_the_services(server: EmbeddingsServer) -> None:
    pieces = ["the bridge of Bern ", "stands over ", "the river Aare"]
    for name in ("jina:jina-embeddings-v3", "jina:jina-embeddings-v4"):
        encoder = opened(server, name)
        expected = late_chunk_strings(server.encoder(model_of(name)), pieces, truncate_dim=64)
        assert np.abs(encoder.encode_late(pieces, truncate_dim=64) - expected).max() < 1e-6
        assert server.bodies[-1]["late_chunking"] is True
        with pytest.raises(InputTooLong, match="the 40 pieces are too long together"):
            encoder.encode_late(["one two three "] * 40)
        assert "no encode_tokens" in str(why_not_late(encoder))  # type: ignore[arg-type]
    assert encoder.encode_late([]).shape == (0, 2048)
    with pytest.raises(ValueError, match="no late chunking behind its API"):
        opened(server, "jina:jina-clip-v1").encode_late(pieces)


def test_another_model_is_asked_for_its_width(server: EmbeddingsServer) -> None:
    for name, width in (("openai:own", 48), ("jina:jina-other", 40)):
        encoder = opened(server, name)
        assert (encoder.card.dims, encoder.encode_query(["a", "b"]).dense.shape) == (width, (2, width))
        assert encoder.encode_query(["a"], truncate_dim=7).dense.shape == (1, 7)


def test_a_server_without_keys_gets_none() -> None:
    with EmbeddingsServer(key="") as server:
        opened(server, "openai:own").encode_query(["a"])
        assert all("Authorization" not in headers for headers, _ in server.requests)


# Batches


def test_batches_keep_to_items_and_tokens_and_order(server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text number {i} " + "more " * (i % 7) for i in range(300)]
    encoder = opened(server)
    expected = server.encoder("jina-embeddings-v3").encode_document(texts).dense
    for items, tokens in ((7, 10_000), (1000, 50), (1000, 1)):
        monkeypatch.setattr(remote, "ITEMS", items)
        monkeypatch.setattr(remote, "TOKENS", tokens)
        server.requests.clear()
        assert np.abs(encoder.encode_document(texts).dense - expected).max() < 1e-6
        sizes = [len(body["input"]) for body in server.bodies]
        assert sum(sizes) == 300
        assert max(sizes) <= items
        assert all(encoder.count_tokens(body["input"]).sum() <= tokens or len(body["input"]) == 1 for body in server.bodies)
    server.delay = 0.05
    monkeypatch.setattr(remote, "ITEMS", 50)
    monkeypatch.setattr(remote, "TOKENS", 100_000)
    encoder.encode_document(texts)
    assert 1 < server.most_at_once <= remote.AT_ONCE


def test_images_are_sent_in_batches_of_bytes(server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BYTES", 2000)
    images = [picture(30, 30, seed=seed) for seed in range(7)]
    found = opened(server, "jina:jina-clip-v1").encode_document(images).dense
    assert np.abs(found - np.stack([server.image_vector(image, 768) for image in images])).max() < 1e-6
    assert sorted(len(body["input"]) for body in server.bodies) == [1, 2, 2, 2]


# Errors


@pytest.mark.parametrize("name", [MODELS[0], MODELS[3]])
def test_too_long_an_input_is_found_among_many_and_named(name: str, server: EmbeddingsServer) -> None:
    encoder, long = opened(server, name), "one two three " * 40
    with pytest.raises(InputTooLong, match=r"input 37 has about \d+ tokens.*set to take 64"):
        encoder.encode_document(["fits"] * 37 + [long] + ["fits"] * 10)
    texts = ["fits"] * 5 + [long, "fits", long + "and more"]
    cut = encoder.encode_document(texts, truncate=True)
    behind = server.encoder(model_of(name))
    assert cut.truncated == 2
    assert np.abs(cut.dense[0] - behind.encode_document(["fits"]).dense[0]).max() < 1e-6
    assert np.abs(cut.dense[5] - cut.dense[7]).max() < 1e-6
    assert cut.dense[5] @ behind.encode_document([long], truncate=True).dense[0] > 0.9
    assert not any(body.get("truncate") for body in server.bodies[:3])  # asked for where it is needed alone


def test_a_refused_image_is_named(server: EmbeddingsServer) -> None:
    encoder = opened(server, "jina:jina-clip-v1")
    server.script.extend([(400, {}, {"detail": "no image", "code": "INPUT_INVALID_IMAGE"})])
    with pytest.raises(EncodeError, match=r"input 0 was refused: .* answered 400 INPUT_INVALID_IMAGE: no image"):
        encoder.encode_document([picture(9, 9)])


RATE = {"detail": "slow down", "code": "RATE_TOKEN_LIMIT_EXCEEDED"}
DOWN = {"error": {"message": "try later", "type": "server_error", "param": None, "code": None}}


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"Retry-After": "0"}, RATE), (500, {}, DOWN), (503, {}, b"<html>a proxy</html>"), (504, {}, {}), (200, {}, None),
        (200, {}, b"not json"), (408, {}, DOWN), (529, {}, b""),
    ],
    ids=lambda trouble: f"{trouble[0]}{trouble[2] is None}",
)  # fmt: skip
def test_what_the_next_try_may_mend_is_tried_again(trouble: Any, server: EmbeddingsServer) -> None:
    slept: list[float] = []
    server.script.extend([trouble] * 3)
    found = opened(server, slept=slept).encode_query(["a"]).dense
    assert np.abs(found - server.encoder("jina-embeddings-v3").encode_query(["a"]).dense).max() < 1e-6
    assert len(server.requests) == 4
    assert all(wait < 3 for wait in slept)
    server.requests.clear()
    server.script.extend([trouble] * 9)
    with pytest.raises(RemoteError):
        opened(server, slept=slept).encode_query(["a"])
    assert len(server.requests) == 6


def test_waits_double_and_retry_after_is_kept(server: EmbeddingsServer) -> None:
    slept: list[float] = []
    server.script.extend([(500, {}, DOWN)] * 5)
    opened(server, slept=slept).encode_query(["a"])
    assert len(slept) == 5
    assert all(0.5 * 0.49 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(slept))
    slept.clear()
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    server.script.extend([(429, {"Retry-After": "17"}, RATE), (503, {"Retry-After": later}, DOWN)])
    opened(server, slept=slept).encode_query(["a"])
    assert slept[0] == pytest.approx(17, abs=0.5)
    assert slept[1] == pytest.approx(40, abs=20)  # its sleeping is not real, so the first wait is still on the clock
    server.script.append((429, {"Retry-After": "3600"}, RATE))
    with pytest.raises(RemoteError, match=r"asks to wait 3600 s.*run it again later"):
        opened(server, slept=slept).encode_query(["a"])


def test_a_real_wait_is_waited_by_every_thread(server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ITEMS", 1)
    server.script.append((429, {"Retry-After": "1"}, RATE))
    start = time.monotonic()
    opened(server).encode_query(["a"] * 12)
    assert time.monotonic() - start >= 0.95
    assert len(server.requests) == 13


def test_retry_after_is_read_as_the_standard_has_it() -> None:
    assert retry_after("3") == 3
    assert retry_after("-3") == 0
    assert retry_after(None) is None
    assert retry_after("soon") is None
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=10), usegmt=True)
    assert retry_after(past) == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, {"detail": "no key", "code": "AUTH_MISSING_API_KEY"}), "401 AUTH_MISSING_API_KEY: no key. Check the key"),
        ((403, {}, {"detail": "no"}), "403 Forbidden: no. Check what the key may do"),
        ((404, {}, {"error": {"message": "no such model", "code": "model_not_found"}}), "404 model_not_found: no such model"),
        ((429, {}, {"error": {"message": "pay", "code": "insufficient_quota"}}), "429 insufficient_quota: pay"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "it redirects to 'http://127.0.0.1:9/', and the key is not sent there"),
        ((307, {"Location": "http://127.0.0.1:9/"}, b""), "the key is not sent there"),
        ((200, {}, {"data": []}), "0 vectors for 1 inputs"),
        ((200, {}, {"data": [{"index": 1, "embedding": [1.0] * 1024}]}), "numbered them wrongly"),
        ((200, {}, {"data": [{"index": 0, "embedding": [1.0] * 5}]}), r"vectors \[5\] wide, expected \[1024\]"),
        ((200, {}, {"data": [{"index": 0, "embedding": ["a"]}]}), "is not a list of embedding"),
        ((200, {}, {"data": [{"index": 0, "embedding": "!!!"}]}), "is not a list of embedding"),
        ((200, {}, {"data": [{"index": 0, "embedding": [float("nan")] * 1024}]}), "not finite"),
        ((200, {}, []), "is not a list of embedding"),
        ((200, {}, {"error": "x"}), "is not a list of embedding"),
    ],
)  # fmt: skip
def test_what_no_try_will_mend_is_an_error_at_once(answer: Any, message: str, server: EmbeddingsServer) -> None:
    server.script.append(answer)
    with pytest.raises(RemoteError, match=message) as error:
        opened(server).encode_query(["a"])
    assert len(server.requests) == 1
    assert KEY not in str(error.value)


def test_validation_errors_name_the_field(server: EmbeddingsServer) -> None:
    server.script.append((422, {}, {"detail": "invalid", "errors": [{"field": "task", "message": "unknown", "type": "x"}]}))
    with pytest.raises(EncodeError, match=r"input 0 was refused: .*422 Unprocessable.*: invalid; task: unknown"):
        opened(server).encode_query(["a"])


def test_a_server_that_is_not_there_or_does_not_answer(server: EmbeddingsServer) -> None:
    slept: list[float] = []
    client = partial(ApiClient, sleep=slept.append, timeout=0.05, tries=2)
    server.delay = 0.5
    encoder = load_remote(f"{MODELS[0]}@{server.url}", api_keys={server.url: KEY}, client=client)
    with pytest.raises(RemoteError, match=r"did not answer within 0.05 s"):
        encoder.encode_query(["a"])
    gone = load_remote(f"{MODELS[0]}@http://127.0.0.1:9/v1", api_keys={"http://127.0.0.1:9/v1": ""}, client=client)
    with pytest.raises(RemoteError, match=r"cannot be reached.*refused"):
        gone.encode_query(["a"])
    assert len(slept) == 2


# Keys and addresses


def test_nothing_is_sent_where_no_key_was_given(server: EmbeddingsServer) -> None:
    for keys in (None, {}, {"jina": "x"}, {"openai": "x"}, {server.url + "/other": "x"}):
        with pytest.raises(ValueError, match=r"needs your word: pass api_keys=.*OPENAI_BASE_URL"):
            load_encoder(f"openai:own@{server.url}", api_keys=keys)
    with pytest.raises(ValueError, match=r"set JINA_API_KEY$"):
        load_encoder("jina:jina-embeddings-v3", api_keys={"openai": "x"})
    assert not server.requests
    assert "a-secret" not in repr(load_encoder("jina:jina-embeddings-v3", api_keys={"jina": "a-secret"})._client)


def test_keys_do_not_travel_in_the_clear() -> None:
    for url in ("http://example.org/v1", "ftp://127.0.0.1", "file:///etc", "http://127.0.0.1.example.org", "https://", ""):
        with pytest.raises(ValueError, match="must be an https address"):
            check_url(url)
    for url in ("https://example.org/v1", "http://127.0.0.1:80", "http://localhost/v1", "http://[::1]:8080/v1"):
        check_url(url)


@pytest.mark.parametrize("name", ["jina:", "openai:@http://127.0.0.1/v1"])
def test_names_without_a_model_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not jina:<model> or openai:<model>"):
        load_encoder(name, api_keys={"jina": "x", "openai": "x"})


def test_settings_of_local_models_are_refused() -> None:
    for settings in ({"device": "cuda"}, {"dtype": "bfloat16"}, {"max_pixels": 5000}, {"merge_adapters": True}):
        with pytest.raises(ValueError, match="runs elsewhere"):
            load_encoder(MODELS[0], api_keys={"jina": "x"}, **settings)


def test_counts_are_near_real_ones_and_rather_high(minilm: Any) -> None:
    encoder: Any = load_encoder(MODELS[0], api_keys={"jina": "x"})
    text = "Late chunking embeds the whole document first, and pools its token states afterwards. " * 20
    assert 1 <= encoder.count_tokens([text])[0] / minilm.count_tokens([text])[0] < 1.8
    spans = encoder.token_spans("Zürich, 首都 2024\n x")
    assert [("Zürich, 首都 2024\n x")[a:b] for a, b in spans] == ["Z", "ü", "rich", ",", "首", "都", "202", "4", "x"]


# In an index, and at the command line


def test_an_index_of_a_hosted_model_is_built_and_asked_and_notices_another(server: EmbeddingsServer, tmp_path: Path) -> None:
    path, name, keys = tmp_path / "library", f"{MODELS[0]}@{server.url}", {server.url: KEY}
    with Index.open(path, model=name, max_tokens=64, chunk_tokens=40, api_keys=keys) as index:
        report = index.add([{"id": str(i), "text": f"document number {i} about bridges"} for i in range(5)])
        assert len(report.added) == 5
    with Index.open(path, api_keys=keys) as index:
        assert index.search("number 3", k=1, mode="dense")[0].source == "3"
    server.seed = 1  # the service has changed its model without a word
    with Index.open(path, api_keys=keys) as index, pytest.raises(FingerprintMismatch):
        index.search("number 3", mode="dense")
    sent = len(server.requests)
    with Index.open(path) as index, pytest.raises(ValueError, match="needs your word"):
        index.search("number 3", mode="dense")
    assert len(server.requests) == sent


def test_the_command_line_takes_keys_from_the_environment(server: EmbeddingsServer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The bridge of Bern stands over the river Aare.")
    clean = {name: value for name, value in os.environ.items() if "API_KEY" not in name and "BASE_URL" not in name}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; sys.argv = sys.argv[1:]; from ragkit.apps.cli.main import main; main()"
        command = [sys.executable, "-c", code, "ragkit", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean | environment)

    name, library = f"openai:own@{server.url}", str(tmp_path / "library")
    add = ("add", library, str(tmp_path / "a.txt"), "--model", name, "--max-tokens", "64", "--chunk-tokens", "40", "--json")
    refused = run(*add)
    assert refused.returncode == 1
    assert "set OPENAI_API_KEY and OPENAI_BASE_URL" in refused.stderr
    environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url}
    added = run(*add, **environment)
    assert added.returncode == 0, added.stderr
    found = run("search", library, "which river?", "--json", **environment)
    assert [hit["citation"]["source"] for hit in json.loads(found.stdout)] == ["a.txt"], found.stdout
    wrong = run("search", library, "which river?", OPENAI_API_KEY="wrong", OPENAI_BASE_URL=server.url)
    assert (wrong.returncode, "answered 401" in wrong.stderr, "wrong" in wrong.stderr) == (1, True, False)

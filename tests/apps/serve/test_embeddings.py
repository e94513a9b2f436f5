"""/v1/embeddings against the encoder itself, in both dialects, and the official client unchanged."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.service import Service
from ragkit.core.arrays import truncate_dims
from ragkit.core.errors import EncodeError
from ragkit.encode.late import late_chunk_strings
from ragkit.testing import HashEncoder
from tests.apps.serve.conftest import served
from tests.integrations.seeing import SeeingEncoder, picture

TEXTS = ["Otters hold hands while they sleep.", "The bridge was built in 1887.", "Bread needs time."]
ENCODER = HashEncoder(64, multi_dims=16, asymmetric=True)


class Eyes(SeeingEncoder):
    def encode(self, inputs: Any, **options: Any) -> Any:
        return self.encode_document(inputs)


@pytest.fixture
def client(client_of: Callable[..., Any]) -> Any:
    return client_of(Service(models={"hash": ENCODER, "eyes": Eyes()}))


def test_a_pdf_is_refused_with_what_to_send_instead(client: Any) -> None:
    for given in ({"pdf": "JVBERi0="}, [{"pdf": "JVBERi0="}]):
        refused = client.post("/v1/embeddings", json={"model": "eyes", "input": given})
        assert refused.status_code == 422
        assert refused.json()["detail"].startswith("PDFs are not embedded here: send their pages as images")


def rows(answer: Any) -> np.ndarray:
    return np.array([one["embedding"] for one in answer.json()["data"]], dtype=np.float32)


@pytest.mark.parametrize("task", ["retrieval.query", "retrieval.passage", "text-matching"])
def test_vectors_are_the_encoders_own_in_the_role_asked_for(client: Any, task: str) -> None:
    answer = client.post("/v1/embeddings", json={"model": "hash", "input": TEXTS, "task": task})
    assert answer.status_code == 200
    np.testing.assert_allclose(rows(answer), ENCODER.encode(TEXTS, task=task).dense, atol=1e-6)
    assert [one["index"] for one in answer.json()["data"]] == [0, 1, 2]
    tokens = int(ENCODER.count_tokens(TEXTS).sum())
    assert answer.json()["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_the_role_of_a_query_makes_other_vectors(client: Any) -> None:
    query, passage = (
        rows(client.post("/v1/embeddings", json={"model": "hash", "input": TEXTS, "task": f"retrieval.{side}"}))
        for side in ("query", "passage")
    )
    assert np.abs(query - passage).max() > 1e-3


def test_dimensions_are_cut_and_renormalised(client: Any) -> None:
    answer = client.post("/v1/embeddings", json={"model": "hash", "input": TEXTS, "dimensions": 8})
    np.testing.assert_allclose(rows(answer), truncate_dims(ENCODER.encode_document(TEXTS).dense, 8), atol=1e-6)


def test_every_format_holds_the_same_vector(client: Any) -> None:
    formats = ["float", "base64", "binary", "ubinary"]
    [item] = client.post("/v1/embeddings", json={"model": "hash", "input": TEXTS[:1], "embedding_type": formats}).json()["data"]
    found, expected = item["embedding"], ENCODER.encode_document(TEXTS[:1]).dense[0]
    np.testing.assert_allclose(found["float"], expected, atol=1e-6)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found["base64"]), dtype="<f4"), expected)
    bits = "".join("1" if value > 0 else "0" for value in expected.tolist())
    assert found["ubinary"] == [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert found["binary"] == [value - 128 for value in found["ubinary"]]
    for field in ("embedding_type", "encoding_type", "encoding_format"):
        for name in formats:
            [one] = client.post("/v1/embeddings", json={"model": "hash", "input": TEXTS[0], field: name}).json()["data"]
            assert one["embedding"] == found[name]


def test_late_chunks_are_those_of_late_chunk_strings(client: Any) -> None:
    pieces = [f"{text} " for text in TEXTS]
    answer = client.post("/v1/embeddings", json={"model": "hash", "input": pieces, "late_chunking": True})
    np.testing.assert_allclose(rows(answer), late_chunk_strings(ENCODER, pieces), atol=1e-6)
    assert np.abs(rows(answer) - ENCODER.encode_document(pieces).dense).max() > 1e-3
    long = client.post("/v1/embeddings", json={"model": "hash", "input": ["many words " * 200] * 2, "late_chunking": True})
    assert long.status_code == 400
    assert long.json()["code"] == "INPUT_TOO_LONG"


def test_multi_vectors_come_with_the_texts_of_their_tokens(client: Any) -> None:
    body = {"model": "hash", "input": TEXTS, "return_multivector": True, "return_tokenized_input": True}
    data = client.post("/v1/embeddings", json=body).json()["data"]
    expected = ENCODER.encode_document(TEXTS).multi
    for i, item in enumerate(data):
        assert item["object"] == "embeddings"
        np.testing.assert_allclose(item["embeddings"], expected[i], atol=1e-6)
        assert item["tokenized_input"] == [TEXTS[i][a:b] for a, b in ENCODER.token_spans(TEXTS[i])]


def as_png(colour: str) -> str:
    file = io.BytesIO()
    picture(colour).resize((750, 500)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_images_in_every_spelling_are_one_vector_and_cost_their_tiles(client: Any) -> None:
    content = as_png("red")
    spellings = [
        {"image": content},
        {"image": f"data:image/png;base64,{content}"},
        {"bytes": content},
        {"url": f"data:;base64,{content}"},
    ]
    answer = client.post("/v1/embeddings", json={"model": "eyes", "input": ["red", *spellings]})
    found = rows(answer)
    np.testing.assert_allclose(found[1:], np.repeat(found[1:2], 4, axis=0))
    np.testing.assert_allclose(found[1], SeeingEncoder().encode_document([picture("red")]).dense[0], atol=1e-3)
    assert answer.json()["usage"]["image_tokens"] == 4 * 12_000  # 750 x 500: 4 x 3 tiles of 224, a thousand each
    both = client.post("/v1/embeddings", json={"model": "eyes", "input": [{"text": "red", "image": content}]})
    assert both.status_code == 200


def test_images_are_computed_together_whatever_they_cost(client_of: Callable[..., Any]) -> None:
    batches: list[int] = []

    class Counting(Eyes):
        def encode(self, inputs: Any, **options: Any) -> Any:
            batches.append(len(inputs))
            return super().encode(inputs, **options)

    client = client_of(Service(models={"eyes": Counting()}))
    answer = client.post("/v1/embeddings", json={"model": "eyes", "input": [{"image": as_png("red")}] * 40})
    assert answer.json()["usage"]["image_tokens"] == 40 * 12_000
    assert batches == [40]  # by their price every one would be a batch of its own


def test_what_is_no_image_or_is_a_url_is_refused_by_its_number(client: Any) -> None:
    for value in ("https://example.com/a.png", "!!!", base64.b64encode(b"no image").decode(), "data:image/png,abc"):
        answer = client.post("/v1/embeddings", json={"model": "eyes", "input": ["red", {"image": value}]})
        assert answer.status_code == 400, value
        assert "URL" in answer.json()["detail"] or "input 1" in answer.json()["detail"]
    blind = client.post("/v1/embeddings", json={"model": "hash", "input": {"image": as_png("red")}})
    assert "does not see" in blind.json()["detail"]


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "nobody", "input": "a"}, 400, "INPUT_MODEL_NOT_FOUND"),
    ({"model": "hash", "input": []}, 422, "INPUT_INVALID"),
    ({"model": "hash"}, 422, "INPUT_INVALID"),
    ({"model": "hash", "input": "a", "dimensions": 65}, 422, "INPUT_INVALID"),
    ({"model": "hash", "input": "a", "dimensions": 0}, 422, "INPUT_INVALID"),
    ({"model": "hash", "input": "a", "task": "cooking"}, 400, "INPUT_INVALID"),
    ({"model": "hash", "input": "a", "return_multivector": True, "dimensions": 8}, 422, "INPUT_INVALID"),
    ({"model": "hash", "input": "a", "return_tokenized_input": True}, 422, "INPUT_INVALID"),
    ({"model": "eyes", "input": "a", "return_multivector": True}, 422, "INPUT_INVALID"),
    ({"model": "eyes", "input": "a", "normalized": False}, 422, "INPUT_INVALID"),
    ({"model": "hash", "input": "a", "normalized": False, "return_multivector": True}, 422, "INPUT_INVALID"),
    ({"model": "hash", "input": [1, 2, 3]}, 400, "INPUT_INVALID"),
    ({"model": "hash", "input": "many words " * 300}, 400, "INPUT_TOO_LONG"),
    ({"model": "hash", "input": ["a"] * 2049}, 400, "INPUT_INVALID"),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSED)
def test_errors_have_the_shape_of_the_clients_dialect(client: Any, body: dict[str, Any], status: int, code: str) -> None:
    jina = client.post("/v1/embeddings", json=body)
    assert (jina.status_code, jina.json()["code"]) == (status, code)
    assert isinstance(jina.json()["detail"], str)
    assert jina.json()["request_id"] == jina.headers["x-request-id"]
    openai = client.post("/v1/embeddings", json=body, headers={"User-Agent": "OpenAI/Python 3.52.0"})
    if "task" not in body and "normalized" not in body and not any(name.startswith("return_") for name in body):
        assert openai.status_code == (404 if code == "INPUT_MODEL_NOT_FOUND" else 400)
        assert set(openai.json()) == {"error"}
        assert set(openai.json()["error"]) == {"message", "type", "param", "code"}


def test_what_is_not_json_is_refused(client: Any) -> None:
    for content in (
        b"",
        b"{",
        b"\xff",
        b"[1",
        b"[" * 100_000,
        b'{"model": "hash", "input": NaN}',
        b'{"model": "\\ud800", "input": "a"}',
    ):
        answer = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), content[:20]
        assert isinstance(answer.json()["detail"], str)


def test_truncate_embeds_the_beginning(client: Any) -> None:
    text = "many words " * 300
    answer = client.post("/v1/embeddings", json={"model": "hash", "input": text, "truncate": True})
    np.testing.assert_allclose(rows(answer), ENCODER.encode_document([text], truncate=True).dense, atol=1e-6)
    assert answer.json()["usage"]["total_tokens"] == 512


class Picky(HashEncoder):
    """Cannot encode one word."""

    def encode(self, inputs: Any, **options: Any) -> Any:
        for i, text in enumerate(inputs):
            if "poison" in text:
                raise EncodeError(f"input {i} is poison")
        return super().encode(inputs, **options)


def test_a_bad_input_fails_its_own_request_and_is_named_by_its_own_number(client_of: Callable[..., Any]) -> None:
    client = client_of(Service(models={"picky": Picky(64)}, limits=ServeLimits(batch_tokens=8)))
    answer = client.post("/v1/embeddings", json={"model": "picky", "input": ["a b c d", "a b c d", "poison"]})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "input 2 is poison"


def test_the_official_openai_client_works_unchanged() -> None:
    openai = pytest.importorskip("openai")
    with served(Service(models={"hash": ENCODER})) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        expected = ENCODER.encode_document(TEXTS).dense
        for settings in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            answer = client.embeddings.create(model="hash", input=TEXTS, **settings)
            vectors = [
                np.frombuffer(base64.b64decode(one.embedding), dtype="<f4") if isinstance(one.embedding, str) else one.embedding
                for one in answer.data
            ]
            np.testing.assert_allclose(vectors, expected, atol=1e-6)
            assert answer.usage.total_tokens == int(ENCODER.count_tokens(TEXTS).sum())
        short = client.embeddings.create(model="hash", input=TEXTS[0], dimensions=16, extra_body={"task": "retrieval.query"})
        assert len(short.data[0].embedding) == 16
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(model="nobody", input="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="empty string"):
            client.embeddings.create(model="hash", input=[""])
        assert [one.id for one in client.models.list()] == ["hash"]


def test_the_default_model_serves(client_of: Callable[..., Any]) -> None:
    pytest.importorskip("torch")
    from ragkit import load_encoder

    encoder = load_encoder()
    client = client_of(Service(models={encoder.card.name: encoder}))
    answer = client.post("/v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": TEXTS})
    np.testing.assert_allclose(rows(answer), encoder.encode_document(TEXTS).dense, atol=1e-5)

"""jina-embeddings-v3, -v4 and jina-clip-v1 behind /v1/embeddings: all their APIs offer, on tiny checkpoints, against oracles."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ragkit.apps.serve.service import Service
from ragkit.encode import load_encoder
from tests.apps.serve.conftest import application, served
from tests.encode.checkpoints.jina_clip import write_clip_v1
from tests.encode.checkpoints.jina_v3 import write_v3_original
from tests.encode.checkpoints.jina_v4 import write_v4
from tests.encode.oracles.jina_clip import ClipOracle
from tests.encode.oracles.jina_v3 import V3Oracle
from tests.encode.oracles.jina_v4 import Item, V4Oracle
from tests.encode.test_images import picture

torch = pytest.importorskip("torch")

V3, V4, CLIP = "jina-embeddings-v3", "jina-embeddings-v4", "jina-clip-v1"
WRITERS: dict[str, Any] = {V3: write_v3_original, V4: write_v4, CLIP: write_clip_v1}
V3_TASKS = ["retrieval.query", "retrieval.passage", "text-matching", "classification", "separation", None]
V4_TASKS = ["text-matching", "retrieval.query", "retrieval.passage", "code.query", "code.passage", None]
TEXTS = ["a photo of a cat", "word", "  Zürich, naïve café – 😀\n首都は東京です。 "]
PIECES = ["a photo of a cat ", "and a word ", "of Zürich."]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {name: load_encoder(folder, dtype="float32") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def client(models: dict[str, Any]) -> Iterator[Any]:
    with application(Service(models=models)) as client:
        yield client


@pytest.fixture(scope="module")
def v3(folders: dict[str, Path]) -> V3Oracle:
    return V3Oracle(folders[V3])


@pytest.fixture(scope="module")
def v4(folders: dict[str, Path]) -> V4Oracle:
    return V4Oracle(folders[V4])


@pytest.fixture(scope="module")
def clip(folders: dict[str, Path]) -> ClipOracle:
    return ClipOracle(folders[CLIP])


def answer(client: Any, model: str, inputs: Any, **fields: Any) -> dict[str, Any]:
    told = client.post("/v1/embeddings", json={"model": model, "input": inputs, **fields})
    assert told.status_code == 200, told.text
    return dict(told.json())


def rows(told: dict[str, Any]) -> np.ndarray:
    return np.array([one["embedding"] for one in told["data"]], dtype=np.float64)


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


def v4_item(v4: V4Oracle, item: Any, task: str | None) -> Item:
    """What the API's task means: text-matching where none is named; roles are queries' and passages'."""
    family, _, side = (task or "text-matching").partition(".")
    return (
        v4.image(item, task=family) if isinstance(item, Image.Image) else v4.text(item, task=family, prompt_name=side or "query")
    )


@pytest.mark.parametrize("task", V3_TASKS)
def test_v3_answers_every_task_of_its_api_and_none_is_the_base_alone(client: Any, v3: V3Oracle, task: str | None) -> None:
    told = answer(client, V3, TEXTS, task=task)
    assert np.abs(rows(told) - v3.vectors(TEXTS, [task] * 3)).max() < 1e-5
    tokens = sum(len(v3.token_ids(text, task=task)) for text in TEXTS)
    assert told["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize("task", V4_TASKS)
def test_v4_answers_every_task_of_its_api_with_both_kinds_of_vectors(client: Any, v4: V4Oracle, task: str | None) -> None:
    image = picture(60, 90)
    items = [v4_item(v4, one, task) for one in (*TEXTS, image)]
    inputs = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2], {"image": png(image)}]
    told = answer(client, V4, inputs, task=task)
    assert np.abs(rows(told) - np.stack([item.dense() for item in items])).max() < 1e-5
    own = len(items[3].ids)
    total = sum(len(item.ids) for item in items)
    assert told["usage"] == {"prompt_tokens": total, "total_tokens": total, "image_tokens": own}
    many = answer(client, V4, inputs, task=task, return_multivector=True)["data"]
    for found, item in zip(many, items, strict=True):
        assert found["object"] == "embeddings"
        assert np.abs(np.array(found["embeddings"]) - item.multi).max() < 1e-4


def test_v4_takes_a_text_with_an_image_and_names_its_tokens(client: Any, v4: V4Oracle) -> None:
    image = picture(60, 90)
    told = answer(client, V4, {"text": "a bridge", "image": png(image)}, task="retrieval.query")
    assert np.abs(rows(told)[0] - v4.pair("Query: a bridge", image, task="retrieval").dense()).max() < 1e-5
    [item] = answer(client, V4, TEXTS[0], return_multivector=True, return_tokenized_input=True)["data"]
    ids = v4.text_ids(TEXTS[0], task="text-matching")
    assert len(item["tokenized_input"]) == len(item["embeddings"]) == len(ids)
    assert "".join(item["tokenized_input"]).strip() == TEXTS[0]


@pytest.mark.parametrize("task", [None, "retrieval.passage", "classification"])
def test_v3_chunks_late(client: Any, v3: V3Oracle, task: str | None) -> None:
    ends = np.cumsum([len(piece) for piece in PIECES]).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    found = rows(answer(client, V3, PIECES, task=task, late_chunking=True))
    assert np.abs(found - v3.chunk_vectors("".join(PIECES), spans, task=task)).max() < 1e-5


def test_v4_chunks_late(client: Any, v4: V4Oracle) -> None:
    text, before = "".join(PIECES), len("Passage: ")
    item = v4.text(text, task="retrieval", prompt_name="passage")
    last = [end - 1 - before for _, end in v4.tokenizer.encode(f"Passage: {text}").offsets]
    ends = np.cumsum([len(piece) for piece in PIECES]).tolist()
    expected = [
        unit(item.states[[i for i, place in enumerate(last) if start <= place < end]].mean(axis=0))
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    found = rows(answer(client, V4, PIECES, task="retrieval.passage", late_chunking=True))
    assert np.abs(found - np.stack(expected)).max() < 1e-5
    image = client.post("/v1/embeddings", json={"model": V4, "input": [{"image": png(picture(9, 9))}], "late_chunking": True})
    assert (image.status_code, "for texts" in image.json()["detail"]) == (400, True)


def test_clip_takes_texts_and_images_and_counts_tiles(client: Any, clip: ClipOracle) -> None:
    image = picture(750, 500)
    told = answer(client, CLIP, [TEXTS[0], {"image": png(image)}, {"url": f"data:image/png;base64,{png(image)}"}])
    expected = [clip.text_vector(TEXTS[0]), *[clip.image_vector(image)] * 2]
    assert np.abs(rows(told) - np.stack(expected)).max() < 1e-5
    tiles = 2 * 4 * 3 * 1000  # 750 x 500 pixels are 4 x 3 tiles of 224
    total = tiles + len(clip.token_ids(TEXTS[0]))
    assert told["usage"] == {"prompt_tokens": total, "total_tokens": total, "image_tokens": tiles}
    both = client.post("/v1/embeddings", json={"model": CLIP, "input": {"text": "a", "image": png(picture(9, 9))}})
    assert (both.status_code, "text and an image together" in both.json()["detail"]) == (400, True)


def test_vectors_that_are_not_normalised_are_the_models_own_means(
    client: Any, v3: V3Oracle, v4: V4Oracle, clip: ClipOracle
) -> None:
    image = picture(60, 90)
    items = [v4_item(v4, one, None) for one in (TEXTS[0], image)]
    expected = {
        V3: [v3.states(v3.token_ids(TEXTS[0])).mean(axis=0)],
        V4: [item.states[slice(*item.pooled)].mean(axis=0) for item in items],
        CLIP: [clip.text_states(clip.token_ids(TEXTS[0])).mean(axis=0), clip.image_states(clip.pixels(image))[0]],
    }
    for model, vectors in expected.items():
        inputs = [TEXTS[0], {"image": png(image)}][: len(vectors)]
        found = rows(answer(client, model, inputs, normalized=False))
        assert np.abs(found / np.stack(vectors) - 1).max() < 1e-3
        short = rows(answer(client, model, inputs, normalized=False, dimensions=5))
        np.testing.assert_array_equal(short, found[:, :5])
        assert np.abs(np.linalg.norm(rows(answer(client, model, inputs, normalized=True)), axis=1) - 1).max() < 1e-5


def test_late_chunks_that_are_not_normalised_are_means_too(client: Any, v3: V3Oracle) -> None:
    told = v3.token_states("".join(PIECES), task="retrieval.passage")
    last, ends = told.spans[:, 1] - 1, np.cumsum([len(piece) for piece in PIECES]).tolist()
    expected = [
        told.states[~told.special & (last >= start) & (last < end)].mean(axis=0)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    found = rows(answer(client, V3, PIECES, task="retrieval.passage", late_chunking=True, normalized=False))
    assert np.abs(found - np.stack(expected)).max() < 1e-4


@pytest.mark.parametrize("model", [V3, V4, CLIP])
def test_token_ids_are_the_text_that_they_spell(client: Any, models: dict[str, Any], model: str) -> None:
    tokenizer = models[model]._prompts.tokenizer if model == V4 else getattr(models[model], "_texts", models[model])._tokenizer
    text = "a photo of a cat and a word"
    own, around = tokenizer.own(text)[0].tolist(), tokenizer.ids([text])[0].tolist()
    expected = answer(client, model, text)
    for ids in (own, [own], [own, around]):
        told = answer(client, model, ids)
        assert np.abs(rows(told) - rows(expected)).max() < 1e-6
        assert told["usage"]["total_tokens"] == len(told["data"]) * expected["usage"]["total_tokens"]
    letters = [one for letter in "photo" for one in tokenizer.own(letter)[0].tolist()]  # no text is cut into these
    within = tokenizer.own("photograph")[0].tolist()[-1:]
    for wrong in ([tokenizer.vocabulary_size], [-1], [2**70], [own, letters if model == V4 else within]):
        refused = client.post("/v1/embeddings", json={"model": model, "input": wrong})
        assert refused.status_code == 400, wrong
        assert "check_embedding_ctx_length=False" in refused.json()["detail"]


@pytest.mark.parametrize("model", [V3, V4, CLIP])
def test_every_format_and_width_holds_the_same_vector(client: Any, model: str) -> None:
    for fields in ({}, {"dimensions": 5}):
        [item] = answer(client, model, TEXTS[0], embedding_type=["float", "base64", "binary", "ubinary"], **fields)["data"]
        whole = rows(answer(client, model, TEXTS[0]))[0]
        expected = unit(whole[: fields.get("dimensions")])
        assert np.abs(np.array(item["embedding"]["float"]) - expected).max() < 1e-6
        packed = np.frombuffer(base64.b64decode(item["embedding"]["base64"]), "<f4")
        np.testing.assert_array_equal(packed, np.array(item["embedding"]["float"], dtype=np.float32))
        assert item["embedding"]["ubinary"] == np.packbits(expected > 0).tolist()
        assert [value + 128 for value in item["embedding"]["binary"]] == item["embedding"]["ubinary"]


def test_the_official_client_asks_all_three(models: dict[str, Any], clip: ClipOracle) -> None:
    openai = pytest.importorskip("openai")
    image = picture(60, 90)
    with served(Service(models=models)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        for model, extra in ((V3, {"task": "separation"}), (V4, {"task": "code.query"}), (CLIP, {})):
            told = client.embeddings.create(model=model, input=TEXTS, dimensions=8, extra_body=extra)
            assert [len(one.embedding) for one in told.data] == [8, 8, 8]
        told = client.embeddings.create(model=CLIP, input=[{"image": png(image)}])
        assert np.abs(np.array(told.data[0].embedding) - clip.image_vector(image)).max() < 1e-5

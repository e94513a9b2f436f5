"""The adapter: dense models with prompts, multi-vector and CLIP-like ones, against sentence-transformers called directly."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit.core.arrays import unit_rows
from ragkit.core.errors import CheckpointError, EncodeError, InputTooLong
from ragkit.encode import load_encoder
from ragkit.encode.late import late_chunk, why_not_late
from ragkit.testing import assert_encoder_contract
from tests.encode.checkpoints.retrievers import write_clip

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = {"query": "query: ", "document": "passage: ", "separation": "group: "}
Tiny = Callable[..., Path]


@pytest.fixture
def prompted(tiny: Tiny) -> Path:
    """A dense model that our own code leaves to sentence-transformers, since it has prompts."""
    folder = tiny()
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    return folder


@pytest.fixture
def colbert(tiny: Tiny, tmp_path: Path) -> Path:
    """A multi-vector model over the tiny BERT: a projection, and documents without their punctuation."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    torch.manual_seed(0)
    modules = [
        Transformer(str(tiny()), max_seq_length=30),
        Dense(8, 6, bias=False, activation_function=None, module_input_name="token_embeddings"),
        MultiVectorMask(skiplist_words=list(".,!")),
    ]
    model = MultiVectorEncoder(modules=modules, prompts={"query": "q: ", "document": "d: "}, device="cpu")
    model.save_pretrained(str(tmp_path / "colbert"))
    return tmp_path / "colbert"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip")


def picture(seed: int) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def test_prompts_go_by_role_and_task(prompted: Path) -> None:
    encoder = load_encoder(prompted)
    assert_encoder_contract(encoder)
    (prompted / "config_sentence_transformers.json").unlink()
    plain = load_encoder(prompted, dtype="float32")
    texts = ["some text", "", "Zürich"]
    for prompt, made in (
        ("query: ", encoder.encode_query(texts)),
        ("passage: ", encoder.encode_document(texts)),
        ("passage: ", encoder.encode(texts, task="retrieval.passage")),
        ("group: ", encoder.encode_query(texts, task="separation")),
        ("group: ", encoder.encode(texts, task="separation")),
        ("", encoder.encode(texts, task="classification")),
    ):
        assert np.abs(made.dense - plain.encode_query([prompt + text for text in texts]).dense).max() < 1e-5


def test_late_chunking_works_with_any_mean_pooled_model_in_windows_too(prompted: Path) -> None:
    encoder, text = load_encoder(prompted), "One sentence here. Another one there. " * 2
    spans = [(0, 18), (18, 38), (38, len(text))]
    assert encoder.card.pooling == "mean"
    whole = late_chunk(encoder, text, [(0, len(text))], edges="authors")
    assert np.abs(whole - encoder.encode_document([text]).dense).max() < 1e-5
    tokens = encoder.encode_tokens(text)
    own = [tokens.states[~tokens.special & (tokens.spans[:, 1] > a) & (tokens.spans[:, 1] <= b)].mean(axis=0) for a, b in spans]
    assert np.abs(late_chunk(encoder, text, spans) - unit_rows(np.stack(own))).max() < 1e-5
    long = text * 10
    assert late_chunk(encoder, long, [(0, 18), (len(long) - 38, len(long))], window=30).shape == (2, 8)
    (prompted / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    assert "'cls'" in str(why_not_late(load_encoder(prompted)))


def test_a_multi_vector_model_keeps_the_contract(colbert: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    encoder = load_encoder(colbert)
    assert (encoder.card.outputs, encoder.card.multi_dims, encoder.card.dims) == (("multi",), 6, 0)
    assert_encoder_contract(encoder)
    texts = ["Hello, world. Is it?", "", "one two three four"]
    model = MultiVectorEncoder(str(colbert), device="cpu", local_files_only=True)
    for found, expected in (
        (encoder.encode_query(texts).multi, model.encode_query(texts, convert_to_numpy=True)),
        (encoder.encode_document(texts).multi, model.encode_document(texts, convert_to_numpy=True)),
    ):
        assert len(found) == len(expected)
        for i, rows in enumerate(expected):
            assert np.abs(found[i] - unit_rows(rows)).max() < 1e-5
    query, told = "Hello, world twice: world", encoder.query_tokens("Hello, world twice: world").tolist()
    assert len(told) == len(encoder.encode_query([query]).multi[0])
    words = [query[start:end] for start, end in told]
    assert words[:1] == [""]  # [CLS]; of the prompt there are more
    assert [word for word in words if word] == ["Hello", ",", "world", "twice", ":", "world"]
    assert len(encoder.encode_query(texts).multi[0]) == len(encoder.encode_document(texts).multi[0]) + 2  # the skipped , and .
    with pytest.raises(ValueError, match="multi-vectors only, which are not cut"):
        encoder.encode_query(texts, truncate_dim=3)
    with pytest.raises(InputTooLong, match="set to take 30"):
        encoder.encode_query(["word " * 40])


def test_texts_and_images_share_a_space_in_any_mixture(clip: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(clip)
    assert (encoder.card.modalities, encoder.card.dims, encoder.card.max_tokens) == (("text", "image"), 12, 20)
    items = ["a cat", picture(0), "dogs", picture(1), ""]
    mixed = encoder.encode_document(items).dense
    model = SentenceTransformer(str(clip), device="cpu", local_files_only=True)
    for row, item in zip(mixed, items, strict=True):
        assert np.abs(row - unit_rows(model.encode([item]))[0]).max() < 1e-5
    assert np.abs(encoder.encode_query(items).dense - mixed).max() < 1e-6
    assert encoder.encode_query([picture(0)], truncate_dim=5).dense.shape == (1, 5)
    with pytest.raises(TypeError, match="input 1 is text and image, but"):
        encoder.encode_query(["a", ("a", picture(0))])
    with pytest.raises(TypeError, match="input 0 is int"):
        encoder.encode_query([3])
    with pytest.raises(InputTooLong, match="input 1 has"):
        encoder.encode_query([picture(0), "x" * 40])
    assert encoder.encode_query([picture(0), "x" * 40], truncate=True).truncated == 1
    with pytest.raises(EncodeError, match="gives no token states"):
        encoder.encode_tokens("a cat")
    assert why_not_late(encoder) is not None


def test_a_text_that_looks_like_an_image_is_a_text(
    clip: Path, prompted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sentence-transformers opens the path and fetches the address of a string that ends like a picture."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    path = tmp_path / "secret.png"
    picture(0).save(path)
    seen = load_encoder(clip)
    for text in ("http://127.0.0.1:9/x.png", str(path), "data:image/png;base64,AAAA"):
        for encoder in (seen, load_encoder(prompted)):
            assert encoder.encode_document([text], truncate=True).dense.shape[0] == 1
    picture_row = seen.encode_document([picture(0)]).dense[0]
    assert seen.encode_document([str(path)], truncate=True).dense[0] @ picture_row < 0.999


def test_out_of_memory_halves_the_batch(prompted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    encoder: Any = load_encoder(prompted)
    texts = [f"text number {i}" for i in range(9)]
    expected, original, sizes = encoder.encode_document(texts).dense, encoder._model.encode_document, []

    def small_card(inputs: Any, **options: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("the card is full")
        return original(inputs, **options)

    monkeypatch.setattr(encoder._model, "encode_document", small_card)
    assert np.abs(encoder.encode_document(texts).dense - expected).max() < 1e-5
    assert max(sizes) > 2


def test_kinds_that_are_neither_are_refused(prompted: Path) -> None:
    (prompted / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "SparseEncoder"}))
    with pytest.raises(CheckpointError, match="is a SparseEncoder"):
        load_encoder(prompted)


def test_token_ids_lengths_and_counts_are_the_models_own(prompted: Path) -> None:
    encoder: Any = load_encoder(prompted)
    text = "The lake is deep, and cold."
    ids = encoder._model.tokenizer(text)["input_ids"]
    assert encoder.text_of(ids) == encoder.text_of(ids[1:-1])
    assert encoder._model.tokenizer(encoder.text_of(ids))["input_ids"] == ids
    with pytest.raises(ValueError, match="another"):
        encoder.text_of([10**6])
    found = encoder.encode([text], task="retrieval.query")
    plain = encoder._model.encode_query([text])
    np.testing.assert_allclose(found.dense * found.lengths[:, None], plain, atol=1e-5)
    assert encoder.task_tokens([text], "retrieval.query")[0] != encoder.task_tokens([text], "text-matching")[0]

"""jina-clip-v1 against a float64 oracle that was written by others from the facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ragkit.core.errors import CheckpointError, EncodeError, InputTooLong
from ragkit.encode import Encoder, load_encoder
from ragkit.encode.checkpoints.layouts import layout_of
from ragkit.encode.late import late_chunk
from ragkit.encode.models import jina_clip_towers
from ragkit.testing import assert_encoder_contract
from tests.encode.checkpoints.jina_clip import ClipSizes, write_clip_v1
from tests.encode.checkpoints.stored import edit_tensors, read_json, read_tensors, write_json
from tests.encode.checkpoints.traps import pickle_beside, pickles_only, set_json, tokenizer_truncates
from tests.encode.oracles.jina_clip import ClipOracle
from tests.encode.test_images import picture

TEXTS = ["a photo of a cat", "", "word", "  Zürich, naïve café – 😀 “quotes”\n\n首都は東京です。 ", "a page of text " * 90]
SIZES = [(32, 32), (50, 41), (20, 90), (7, 500), (900, 640), (3, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_v1(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> ClipOracle:
    return ClipOracle(folder)


@pytest.fixture(scope="module")
def clip(folder: Path) -> Any:
    return load_encoder(folder, dtype="float32")


def images() -> list[Image.Image]:
    return [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


def assert_close(found: Any, expected: list[Any], tolerance: float = 1e-5) -> None:
    assert np.abs(found - np.stack(expected)).max() < tolerance


@pytest.mark.parametrize(
    "settings", [{}, {"buffers": True}, {"projections": True}, {"auto_map": False}, {"dtype": "F16"}], ids=str
)
def test_texts_and_images_equal_the_oracle(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = write_clip_v1(tmp_path, **settings)
    encoder, oracle = load_encoder(folder, dtype="float32"), ClipOracle(folder)
    assert_close(encoder.encode_query(TEXTS).dense, [oracle.text_vector(text) for text in TEXTS])
    assert_close(encoder.encode_document(images()).dense, [oracle.image_vector(image) for image in images()])


def test_texts_and_images_may_be_mixed_in_any_order(clip: Any, oracle: ClipOracle) -> None:
    inputs: list[Any] = [*TEXTS, *images()]
    expected = [oracle.text_vector(item) if isinstance(item, str) else oracle.image_vector(item) for item in inputs]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(inputs))
        mixed, wanted = [inputs[i] for i in order], [expected[i] for i in order]
        for encode in (clip.encode_query, clip.encode_document, lambda items: clip.encode(items, task="classification")):
            assert_close(encode(mixed).dense, wanted)
    assert_close(clip.encode_query([*inputs], truncate_dim=5).dense, [v[:5] / np.linalg.norm(v[:5]) for v in expected])


def test_it_keeps_the_contract(folder: Path) -> None:
    assert_encoder_contract(load_encoder(folder, dtype="float32", max_tokens=200))


def test_image_batches_and_their_order_change_nothing(clip: Any) -> None:
    many = [picture(40 + i, 60 - i, seed=i) for i in range(37)]
    together = clip.encode_document(many).dense
    assert np.abs(clip.encode_document(many[::-1]).dense[::-1] - together).max() < 1e-5
    for i in (0, 15, 16, 36):
        assert np.abs(clip.encode_document([many[i]]).dense[0] - together[i]).max() < 1e-5


def test_one_text_among_many_images_is_one_text(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, encode = [], clip._texts.encode_document
    monkeypatch.setattr(clip._texts, "encode_document", lambda items, truncate: texts.extend(items) or encode(items))
    clip.encode_document([*images(), "a text", *images()])
    assert texts == ["a text"]


def test_logits_of_texts_for_images_equal_the_oracle(clip: Any, oracle: ClipOracle) -> None:
    found = clip.logit_scale * clip.encode_document(images()[:3]).dense @ clip.encode_query(TEXTS).dense.T
    assert np.abs(found - oracle.logits(images()[:3], TEXTS)).max() < 1e-3


def test_long_texts_do_not_need_all_biases_at_once(folder: Path, oracle: ClipOracle, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, text = load_encoder(folder, dtype="float32"), "the cat sat on a page " * 60
    whole = encoder.encode_query([text]).dense
    monkeypatch.setattr(jina_clip_towers, "BIAS", 6 * 500 * 7)  # seven queries of a text of 500 tokens
    assert np.abs(encoder.encode_query([text]).dense - whole).max() < 1e-6
    assert_close(whole, [oracle.text_vector(text)])


def test_eight_thousand_tokens_are_taken_and_one_more_is_not(tmp_path: Path) -> None:
    sizes = ClipSizes(embed=8, text_layers=1, text_heads=2, text_intermediate=8, vision_layers=1, head_width=4, image=8, patch=4)
    encoder = load_encoder(write_clip_v1(tmp_path, sizes=sizes), dtype="float32")
    assert encoder.card.max_tokens == 8192
    text = "a " * 8190
    assert encoder.count_tokens([text])[0] == 8192
    exact = encoder.encode_document([text]).dense
    with pytest.raises(InputTooLong, match=r"input 2 has 8193 tokens.*8192"):
        encoder.encode_document(["fits", picture(8, 8), text + "a"])
    cut = encoder.encode_document(["fits", picture(8, 8), text + "a"], truncate=True)
    assert cut.truncated == 1
    assert np.abs(cut.dense[2] - exact[0]).max() < 1e-5
    short = load_encoder(tmp_path, dtype="float32", max_tokens=10)
    assert_close(short.encode_query([TEXTS[4]], truncate=True).dense, [ClipOracle(tmp_path).text_vector(TEXTS[4], max_tokens=10)])
    with pytest.raises(ValueError, match="between 3 and 8192"):
        load_encoder(tmp_path, max_tokens=8193)


def test_late_chunks_are_means_of_the_oracles_states(clip: Encoder, oracle: ClipOracle) -> None:
    text = "a photo of a cat, a photo of a dog"
    spans = [(0, 16), (18, len(text))]
    states = oracle.text_states(oracle.token_ids(text))
    own = clip.encode_tokens(text)
    assert np.abs(own.states - states).max() < 1e-4
    places = np.where(own.special, -1, own.spans[:, 1] - 1)
    means = [states[(places >= start) & (places < end)].mean(axis=0) for start, end in spans]
    assert_close(late_chunk(clip, text, spans), [mean / np.linalg.norm(mean) for mean in means])


def test_a_text_and_an_image_together_are_refused_and_so_is_anything_else(clip: Any) -> None:
    with pytest.raises(TypeError, match="input 1 is a text and an image together"):
        clip.encode_document(["a", ("a", picture(9, 9))])
    with pytest.raises(TypeError, match="input 0 is bytes"):
        clip.encode_document([b"a"])
    with pytest.raises(TypeError, match="got one str"):
        clip.encode_document("a")


def test_a_bad_image_is_named_before_anything_is_encoded(clip: Any) -> None:
    with pytest.raises(EncodeError, match=r"input 2: the image has 1 x 65535 pixels"):
        clip.encode_document(["a", picture(9, 9), Image.new("L", (1, 65535))])


def test_half_precision_stays_close_and_is_in_the_fingerprint(clip: Any, folder: Path) -> None:
    inputs = [*TEXTS, *images()]
    expected = clip.encode_document(inputs).dense
    for dtype in ("bfloat16", None):
        encoder = load_encoder(folder, dtype=dtype)
        assert (encoder.encode_document(inputs).dense * expected).sum(axis=1).min() > 0.999
        assert encoder.card.fingerprint != clip.card.fingerprint
    assert load_encoder(folder, revision=clip.card.revision, dtype="float32").card == clip.card


def test_a_batch_of_images_too_large_for_the_memory_is_halved(clip: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is the one thing here that cannot be made to run out for real."""
    encoder: Any = load_encoder(folder, dtype="float32")
    see, seen = encoder._towers.see, []

    def small(pixels: Any) -> Any:
        seen.append(len(pixels))
        return "no memory" if len(pixels) > 3 else see(pixels)

    monkeypatch.setattr(encoder._towers, "see", small)
    many = [picture(32, 32, seed=i) for i in range(9)]
    assert np.abs(encoder.encode_document(many).dense - clip.encode_document(many).dense).max() < 1e-6
    assert seen[0] == 9
    monkeypatch.setattr(encoder._towers, "see", lambda pixels: "no memory")
    with pytest.raises(EncodeError, match="exceeds the memory of cpu: no memory"):
        encoder.encode_document(many)


# Strict loading


def test_it_is_recognised_by_its_files_and_its_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    assert layout_of(folder).module == "jina_clip"
    copy = write_clip_v1(tmp_path)
    pickle_beside(copy)
    tokenizer_truncates(copy)
    assert load_encoder(copy, dtype="float32").card.revision == load_encoder(folder, dtype="float32").card.revision
    names = {"text_model.transformer.roberta.embeddings.word_embeddings.parametrizations.weight.original": np.zeros((2, 2), "f4")}
    edit_tensors(copy / "model.safetensors", remove="text_model.transformer.embeddings.word_embeddings.weight", replace=names)
    with pytest.raises(CheckpointError, match="auto_map"):  # v2's names: another model
        load_encoder(copy)


@pytest.mark.parametrize(
    "name",
    ["logit_scale", "vision_model.blocks.1.attn.q_bias", "text_model.transformer.encoder.layers.0.mlp.gated_layers.weight"],
)
def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(name: str, tmp_path: Path) -> None:
    a, b, c = (write_clip_v1(tmp_path / one) / "model.safetensors" for one in "abc")
    edit_tensors(a, remove=name)
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_encoder(a.parent)
    edit_tensors(b, replace={f"{name}.more": np.zeros(2, dtype=np.float32)})
    with pytest.raises(CheckpointError, match=f"{name}.more is not known"):
        load_encoder(b.parent)
    shape = read_tensors(c)[0][name].shape
    edit_tensors(c, replace={name: np.zeros((3, *shape[1:]), dtype=np.float32)})
    with pytest.raises(CheckpointError, match=rf"{name} has the shape \(3"):
        load_encoder(c.parent)


def test_pickles_alone_are_refused(tmp_path: Path) -> None:
    folder = write_clip_v1(tmp_path)
    pickles_only(folder)
    with pytest.raises(CheckpointError, match=r"auto_map|pickle"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("file", "section", "settings", "message"),
    [
        ("config", "vision_config", {"post_norm": True}, "post_norm is True, but in jina-clip-v1 it is False"),
        ("config", "vision_config", {"pt_hw_seq_len": 16}, "pt_hw_seq_len is 16"),
        ("config", "vision_config", {"head_width": 7}, "impossible sizes"),
        ("config", "vision_config", {"width": None}, "lacks settings"),
        ("config", "text_config", {"pooler_type": "cls_pooler"}, "pooler_type is 'cls_pooler'"),
        ("config", "text_config", {"hf_model_config_kwargs": {"mlp_type": "mlp"}}, "mlp_type is 'mlp'"),
        ("config", "text_config", {"hf_model_config_kwargs": {}}, r"expected \(30528, 768\)|impossible sizes"),
        ("preprocessor_config", None, {"resize_mode": "squash"}, "resize_mode is 'squash'"),
        ("preprocessor_config", None, {"size": 64}, "size is 64"),
        ("preprocessor_config", None, {"mean": [0.5]}, "impossible sizes"),
    ],
)
def test_settings_of_another_model_are_refused(
    file: str, section: str | None, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_clip_v1(tmp_path)
    path = folder / f"{file}.json"
    if section is None:
        set_json(path, **settings)
    else:
        write_json(path, read_json(path) | {section: read_json(path)[section] | settings})
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)


def test_settings_for_other_models_are_refused(folder: Path) -> None:
    for settings in ({"max_pixels": 10000}, {"merge_adapters": True}):
        with pytest.raises(ValueError, match="not for it"):
            load_encoder(folder, **settings)

"""The oracles and the tiny checkpoints against implementations by others: transformers' own classes, safetensors, tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.encode.checkpoints.jina_clip import ClipSizes, write_clip_v1
from tests.encode.checkpoints.jina_v3 import TASKS, V3Sizes, write_v3_hf, write_v3_original
from tests.encode.checkpoints.stored import Array, bfloat16_bits, read_tensors
from tests.encode.oracles.jina_clip import ClipOracle, alibi_slopes
from tests.encode.oracles.jina_v3 import V3Oracle
from tests.encode.peers import bert_with_alibi, timm_eva, transformers_v3

TEXTS = [
    "Late chunking embeds the whole document first.",
    "",
    "word",
    "  Zürich, naïve café – 😀 “quotes”\n\n首都は東京です。 ",
    "retrieval of documents " * 30,
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_close(actual: Array, expected: Array, tolerance: float = 2e-5) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < tolerance


# What is written


def test_bfloat16_rounds_as_torch_rounds() -> None:
    numbers = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    numbers[:4] = [1.00390625, 1.01171875, 0.0, 3e38]  # two ties, one to each side
    expected = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(bfloat16_bits(numbers), expected)


DTYPES = {write_v3_original: "BF16", write_v3_hf: "BF16", write_clip_v1: "F32"}


@pytest.mark.parametrize("write", DTYPES)
def test_a_checkpoint_reads_as_safetensors_reads_it_and_is_the_same_every_time(write, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", seed=1)
    for path in folder.rglob("*.safetensors"):
        tensors, dtypes = read_tensors(path)
        with safe_open(path, "pt") as stored:
            assert set(stored.keys()) == set(tensors)
            for name, array in tensors.items():
                assert dtypes[name] == DTYPES[write]
                assert np.array_equal(stored.get_tensor(name).double().numpy(), array)
    assert files(write(tmp_path / "b", seed=1)) == files(folder)
    assert files(write(tmp_path / "c", seed=2))["model.safetensors"] != files(folder)["model.safetensors"]


# jina-embeddings-v3


@pytest.fixture(scope="module")
def v3_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v3_hf(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def v3_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v3_original(tmp_path_factory.mktemp("original"))


def test_v3_has_the_published_tensor_counts(tmp_path: Path) -> None:
    sizes = V3Sizes(layers=24, hidden=16, heads=2, intermediate=8)
    folder = write_v3_hf(tmp_path, sizes=sizes)
    assert len(read_tensors(folder / "model.safetensors")[0]) == 294
    assert {len(read_tensors(path)[0]) for path in folder.glob("*/adapter_model.safetensors")} == {294}


@pytest.mark.parametrize("task", [None, *TASKS])
def test_v3_equals_transformers(task: str | None, v3_hf: Path) -> None:
    oracle = V3Oracle(v3_hf)
    model = transformers_v3(v3_hf, task)
    for text in TEXTS:
        ids = oracle.token_ids(text, task=task)
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        assert_close(output.last_hidden_state[0].double().numpy(), oracle.states(ids, task))


def test_v3_rows_beside_each_other_do_not_touch(v3_hf: Path) -> None:
    oracle = V3Oracle(v3_hf)
    rows = [oracle.token_ids(text) for text in TEXTS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        states = transformers_v3(v3_hf, None)(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
    for row, padded in zip(rows, states.double().numpy(), strict=True):
        assert_close(padded[: len(row)], oracle.states(row))


@pytest.mark.parametrize("task", [None, *TASKS])
def test_v3_is_the_same_in_both_layouts(task: str | None, v3_hf: Path, v3_original: Path) -> None:
    hf, original = V3Oracle(v3_hf), V3Oracle(v3_original)
    for text in TEXTS[:3]:
        assert hf.token_ids(text, task=task) == original.token_ids(text, task=task)
        assert_close(hf.vector(text, task=task), original.vector(text, task=task), 1e-12)


@pytest.mark.parametrize("names", ["roberta", "split"])
def test_v3_is_the_same_under_the_other_names(names: str, v3_hf: Path, tmp_path: Path) -> None:
    other = V3Oracle(write_v3_hf(tmp_path, names=names))
    for task in (None, "separation"):
        assert_close(other.vector(TEXTS[0], task=task), V3Oracle(v3_hf).vector(TEXTS[0], task=task), 1e-12)


def test_v3_tasks_are_far_from_each_other(v3_original: Path) -> None:
    oracle = V3Oracle(v3_original)
    ids = oracle.token_ids(TEXTS[0])
    states = [oracle.states(ids, task) for task in (None, *TASKS)]
    distances = [np.abs(a - b).max() for n, a in enumerate(states) for b in states[:n]]
    assert min(distances) > 0.5


def test_v3_token_states_are_the_texts_own(v3_original: Path) -> None:
    oracle = V3Oracle(v3_original)
    text = "  the bridge of Bern 首都"
    tokens = oracle.token_states(text, task="retrieval.passage")
    instruction = len(oracle.token_ids("", task="retrieval.passage")) - 2
    assert tokens.special.tolist() == [True] * (1 + instruction) + [False] * (len(tokens.special) - instruction - 2) + [True]
    assert [text[start:end] for start, end in tokens.spans[~tokens.special]][:3] == ["the", "bridge", "of"]
    whole = [(0, len(text))]
    assert_close(oracle.chunk_vectors(text, whole, authors=True)[0], oracle.vector(text, task="retrieval.passage"), 1e-12)
    own = tokens.states[~tokens.special].mean(axis=0)
    assert_close(oracle.chunk_vectors(text, whole)[0], own / np.linalg.norm(own), 1e-12)


def test_v3_truncation_keeps_the_end_and_dims_are_cut_before_the_norm(v3_original: Path) -> None:
    oracle = V3Oracle(v3_original)
    ids = oracle.token_ids(TEXTS[4], task="retrieval.query", max_tokens=12)
    assert (len(ids), ids[0], ids[-1]) == (12, 0, 2)
    assert ids[:11] == oracle.token_ids(TEXTS[4], task="retrieval.query")[:11]
    short = oracle.vector(TEXTS[0], truncate_dim=8)
    whole = oracle.vector(TEXTS[0])
    assert_close(short, whole[:8] / np.linalg.norm(whole[:8]), 1e-12)
    assert abs(oracle.vector(TEXTS[0], truncate_dim=1)[0]) == pytest.approx(1)


# jina-clip-v1


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_v1(tmp_path_factory.mktemp("clip"))


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Soft blots of colour: any resampling or shift shows, and nothing rings."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def test_alibi_slopes_are_the_published_ones() -> None:
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(12)[8:] == [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


@pytest.mark.parametrize("text", TEXTS)
def test_clip_texts_equal_a_bert_with_alibi(text: str, clip: Path) -> None:
    oracle = ClipOracle(clip)
    ids = oracle.token_ids(text)
    assert_close(bert_with_alibi(clip, ids), oracle.text_states(ids))


def test_clip_images_equal_timm(clip: Path) -> None:
    pytest.importorskip("timm")
    oracle = ClipOracle(clip)
    for size in ((32, 32), (50, 41), (20, 90)):
        pixels = oracle.pixels(picture(*size))
        assert_close(timm_eva(clip, pixels), oracle.image_states(pixels))


def test_clip_pixels_are_the_centre_at_the_shortest_side(clip: Path) -> None:
    oracle = ClipOracle(clip)
    image = Image.new("RGB", (96, 32), "red")
    image.paste("blue", (33, 0, 63, 32))
    mean, std = (np.array(oracle.preprocessor[name])[:, None, None] for name in ("mean", "std"))
    colours = oracle.pixels(image) * std + mean
    assert_close(colours[:, :, 1:31], np.broadcast_to(np.array([0.0, 0, 1])[:, None, None], (3, 32, 30)), 1e-12)
    assert oracle.pixels(picture(7, 500)).shape == (3, 32, 32)
    assert_close(oracle.pixels(picture(64, 48).convert("L")), oracle.pixels(picture(64, 48).convert("L").convert("RGB")), 0.01)


def test_clip_buffers_change_nothing_and_projections_do(clip: Path, tmp_path: Path) -> None:
    buffers = ClipOracle(write_clip_v1(tmp_path / "buffers", buffers=True))
    projected = ClipOracle(write_clip_v1(tmp_path / "projections", projections=True))
    plain = ClipOracle(clip)
    image = picture(40, 40)
    assert len(buffers.w) > len(plain.w)
    assert_close(buffers.text_vector("a cat"), plain.text_vector("a cat"), 1e-12)
    assert_close(buffers.image_vector(image), plain.image_vector(image), 1e-12)
    assert np.abs(projected.text_vector("a cat") - plain.text_vector("a cat")).max() > 0.01
    assert np.abs(projected.image_vector(image) - plain.image_vector(image)).max() > 0.01


def test_clip_has_the_published_shapes(tmp_path: Path) -> None:
    sizes = ClipSizes(
        embed=768, text_layers=1, text_heads=12, text_intermediate=3072, vision_layers=1, head_width=64, image=224, patch=16
    )
    tensors, _ = read_tensors(write_clip_v1(tmp_path, sizes=sizes) / "model.safetensors")
    shapes = {name: array.shape for name, array in tensors.items()}
    assert shapes["text_model.transformer.encoder.layers.0.mlp.gated_layers.weight"] == (6144, 768)
    assert shapes["vision_model.blocks.0.mlp.w1.weight"] == (2048, 768)
    assert shapes["vision_model.pos_embed"] == (1, 197, 768)
    assert shapes["logit_scale"] == ()
    assert shapes["text_model.transformer.embeddings.word_embeddings.weight"][0] % 8 == 0

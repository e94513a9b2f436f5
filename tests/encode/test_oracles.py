"""The oracles and the tiny checkpoints against implementations by others: transformers' own classes, safetensors, tokenizers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.encode.checkpoints import traps
from tests.encode.checkpoints.jina_clip import ClipSizes, write_clip_v1
from tests.encode.checkpoints.jina_v3 import TASKS, V3Sizes, write_v3_hf, write_v3_original
from tests.encode.checkpoints.jina_v4 import V4Sizes, write_v4
from tests.encode.checkpoints.stored import Array, bfloat16_bits, edit_tensors, read_tensors
from tests.encode.oracles.jina_clip import ClipOracle, alibi_slopes
from tests.encode.oracles.jina_v3 import V3Oracle
from tests.encode.oracles.jina_v4 import IMAGE_PROMPT, V4Oracle
from tests.encode.peers import bert_with_alibi, qwen_pixel_rows, run_v4, timm_eva, transformers_v3, transformers_v4

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


DTYPES = {write_v3_original: "BF16", write_v3_hf: "BF16", write_clip_v1: "F32", write_v4: "BF16"}


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
    other = files(write(tmp_path / "c", seed=2))
    assert all(other[name] != content for name, content in files(folder).items() if name.endswith(".safetensors"))


def test_traps_change_what_they_say_and_nothing_else(tmp_path: Path) -> None:
    folder = write_v4(tmp_path)
    path = folder / "adapters" / "adapter_model.safetensors"
    tensors, _ = read_tensors(path)
    name = next(iter(tensors))
    edit_tensors(path, remove=name, replace={"extra.weight": np.ones((2, 3), np.float32)})
    edited, dtypes = read_tensors(path)
    assert set(edited) == set(tensors) - {name} | {"extra.weight"}
    assert set(dtypes.values()) == {"BF16"}
    assert all(np.array_equal(edited[key], tensors[key]) for key in set(edited) & set(tensors))
    traps.pickles_only(folder)
    assert not [*folder.rglob("*.safetensors*")]
    assert (folder / "pytorch_model-00001-of-00002.bin").exists()
    with pytest.raises(ZeroDivisionError):
        pickle.loads((folder / "adapters" / "adapter_model.bin").read_bytes())


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


def test_clip_images_equal_what_timm_gave(clip: Path) -> None:
    """timm 1.0.31, by `timm_eva`: it needs torchvision, and is not installed by default."""
    oracle = ClipOracle(clip)
    states = oracle.image_states(oracle.pixels(picture(50, 41)))
    assert_close(states[0, :6], np.array([1.09627, 0.42331, -0.69574, 0.73813, 0.76029, 1.04226]))
    assert_close(states[9, :6], np.array([1.06966, 0.25567, 0.43256, 0.51646, -0.72930, 1.60066]))


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


# jina-embeddings-v4

V4_TASKS = ("retrieval", "text-matching", "code")
SIZES = [(140, 112), (100, 37), (1, 30), (20, 500), (400, 300), (113, 113)]


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v4(tmp_path_factory.mktemp("v4"))


@pytest.fixture(scope="module")
def v4_oracle(v4: Path) -> V4Oracle:
    return V4Oracle(v4)


@pytest.fixture(scope="module", params=V4_TASKS)
def v4_peer(request: pytest.FixtureRequest, v4: Path):
    return request.param, transformers_v4(v4, request.param)


def test_v4_has_the_published_tensor_counts(tmp_path: Path) -> None:
    folder = write_v4(tmp_path, sizes=V4Sizes(layers=36, hidden=16, heads=4, intermediate=8, mrope=(1, 1, 0)))
    adapters, _ = read_tensors(folder / "adapters" / "adapter_model.safetensors")
    assert len(adapters) == 1518
    assert sum("multi_vector_projector" in name for name in adapters) == 6


def test_v4_texts_equal_transformers(v4_peer, v4_oracle: V4Oracle) -> None:
    task, model = v4_peer
    for text in TEXTS:
        item = v4_oracle.text(text, task=task, prompt_name="passage")
        states, multi = run_v4(model, item.ids, [])
        assert_close(states, item.states)
        assert_close(multi, item.multi)


@pytest.mark.parametrize("size", SIZES)
def test_v4_images_equal_transformers(size: tuple[int, int], v4_peer, v4_oracle: V4Oracle) -> None:
    task, model = v4_peer
    image = picture(*size)
    item = v4_oracle.image(image, task=task)
    states, multi = run_v4(model, item.ids, [v4_oracle.pixel_rows(image)])
    assert_close(states, item.states, 5e-5)
    assert_close(multi, item.multi, 5e-5)


def test_v4_a_text_between_images_equals_transformers(v4_peer, v4_oracle: V4Oracle) -> None:
    task, model = v4_peer
    images = [picture(140, 60), picture(56, 112, seed=1)]
    ids, rows = v4_oracle.prompt_ids("<|im_start|>user\n<|image_pad|> a bridge<|image_pad|> of Bern", images)
    item = v4_oracle.item(ids, rows, task, pooled=(0, len(ids)))
    assert_close(run_v4(model, ids, rows)[0], item.states, 5e-5)


def test_v4_without_token_types_transformers_loses_the_positions(v4: Path, v4_oracle: V4Oracle) -> None:
    image = picture(140, 112)
    item = v4_oracle.image(image)
    states, _ = run_v4(transformers_v4(v4, "retrieval"), item.ids, [v4_oracle.pixel_rows(image)], types=False)
    assert np.abs(states - item.states).max() > 0.1


@pytest.mark.parametrize("limits", ["max_pixels", "size", "both"])
def test_v4_pixels_equal_transformers(limits, tmp_path: Path) -> None:
    folder = write_v4(tmp_path, limits=limits)
    oracle = V4Oracle(folder)
    rng = np.random.default_rng(0)
    for image in [picture(*size) for size in SIZES + rng.integers(10, 400, size=(40, 2)).tolist()] + [
        picture(90, 70).convert("L")
    ]:
        rows, grid = qwen_pixel_rows(folder, image)
        own, high, wide = oracle.pixel_rows(image)
        assert (high, wide) == grid
        assert_close(own, rows, 1e-5)
        assert 4 * 28 * 28 <= high * wide * 14 * 14 <= 24 * 28 * 28


def test_v4_limits_hold_per_call_and_slivers_are_refused(v4_oracle: V4Oracle) -> None:
    _, high, wide = v4_oracle.pixel_rows(picture(400, 300), max_pixels=40 * 28 * 28)
    assert 24 * 4 < high * wide <= 40 * 4
    with pytest.raises(ValueError, match="200 times"):
        v4_oracle.resized(201, 1)


def test_v4_prefixes_and_spans(v4_oracle: V4Oracle) -> None:
    def text(**options: str) -> str:
        return v4_oracle.tokenizer.decode(v4_oracle.text_ids("a bridge", **options), skip_special_tokens=False)

    assert text() == text(task="code") == "Query: a bridge"
    assert text(prompt_name="passage") == text(task="code", prompt_name="passage") == "Passage: a bridge"
    assert text(task="text-matching", prompt_name="passage") == "Query: a bridge"
    item = v4_oracle.image(picture(140, 112))
    words = [v4_oracle.tokenizer.id_to_token(token) for token in item.ids]
    assert words.count("<|image_pad|>") == 20
    start, end = item.pooled
    assert (words[start], words[end - 1], end - start) == ("<|vision_start|>", "<|vision_end|>", 22)
    shown = v4_oracle.tokenizer.decode(item.ids, skip_special_tokens=False)
    assert shown == IMAGE_PROMPT.replace("<|image_pad|>", "<|image_pad|>" * 20)
    assert item.multi.shape == (len(item.ids), 16)
    assert np.abs(item.dense(8) - item.dense()[:8] / np.linalg.norm(item.dense()[:8])).max() < 1e-12
    pair = v4_oracle.pair("a bridge", picture(140, 112))
    assert v4_oracle.tokenizer.decode(pair.ids[slice(*pair.pooled)]) == "a bridge"


def test_v4_is_causal_and_tasks_are_far_from_each_other(v4_oracle: V4Oracle) -> None:
    ids = v4_oracle.text_ids(TEXTS[0])
    positions = v4_oracle.positions(ids, [])
    whole = [v4_oracle.states(ids, [], positions, task) for task in V4_TASKS]
    assert_close(v4_oracle.states(ids[:5], [], positions[:, :5], "code"), whole[2][:5], 1e-12)
    distances = [np.abs(a - b).max() for n, a in enumerate(whole) for b in whole[:n]]
    assert min(distances) > 0.5


def test_v4_windows_sections_and_causality_matter(v4: Path) -> None:
    """Else an implementation without them would pass."""
    image = picture(140, 112)
    expected = V4Oracle(v4).image(image)
    for change in (
        ("vision_config", "fullatt_block_indexes", [0, 1, 2, 3]),
        ("text_config", "rope_scaling", {"mrope_section": [8, 0, 0]}),
    ):
        oracle = V4Oracle(v4)
        oracle.config[change[0]][change[1]] = change[2]
        assert np.abs(oracle.image(image).dense() - expected.dense()).max() > 0.01

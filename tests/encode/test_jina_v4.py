"""jina-embeddings-v4 against a float64 oracle and transformers' own class with merged adapters, both written by others."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ragkit import Index
from ragkit.core.errors import CheckpointError, EncodeError, InputTooLong, RecipeMismatch
from ragkit.encode import Encoder, load_encoder
from ragkit.encode.checkpoints.layouts import layout_of
from ragkit.encode.late import late_chunk
from ragkit.encode.models import jina_v4_model
from ragkit.testing import assert_encoder_contract
from tests.encode.checkpoints.jina_v4 import TASKS, V4Sizes, write_v4
from tests.encode.checkpoints.stored import edit_tensors, read_json, read_tensors, write_json
from tests.encode.checkpoints.traps import pickle_beside, pickles_only, set_json, text_only, tokenizer_truncates
from tests.encode.oracles.jina_v4 import Item, V4Oracle
from tests.encode.peers import run_v4, transformers_v4
from tests.encode.test_images import picture

TEXTS = [
    "a photo of a cat",
    "",
    "word",
    "  Zürich, naïve café – 😀 “quotes”\n\n首都は東京です。 ",
    "<|image_pad|> of a page " * 30,
]
SIZES = [(140, 112), (100, 37), (1, 30), (20, 500), (400, 300), (113, 113)]
PREFIXES = {"query": "Query: ", "passage": "Passage: "}
pytestmark = pytest.mark.filterwarnings("ignore:.*trained to be cut to:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v4(tmp_path_factory.mktemp("v4"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> V4Oracle:
    return V4Oracle(folder)


@pytest.fixture(scope="module")
def v4(folder: Path) -> Any:
    return load_encoder(folder, dtype="float32")


def expected_of(oracle: V4Oracle, item: Any, task: str, prompt: str = "passage", max_pixels: int | None = None) -> Item:
    if isinstance(item, str):
        return oracle.text(item, task=task, prompt_name=prompt)
    if isinstance(item, tuple):
        prefix = PREFIXES["query" if task == "text-matching" else prompt]
        return oracle.pair(prefix + item[0], item[1], task=task, max_pixels=max_pixels)
    return oracle.image(item, task=task, max_pixels=max_pixels)


def assert_equal(found: Any, expected: list[Item], truncate_dim: int | None = None) -> None:
    """Dense and multi-vectors, with their exact number of tokens."""
    assert np.abs(found.dense - np.stack([item.dense(truncate_dim) for item in expected])).max() < 1e-5
    assert len(found.multi) == len(expected)
    for own, item in zip(found.multi, expected, strict=True):
        assert own.shape == item.multi.shape
        assert np.abs(own - item.multi).max() < 1e-4


def images() -> list[Image.Image]:
    return [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


def inputs() -> list[Any]:
    return [*TEXTS, *images(), ("a bridge of Bern", picture(90, 60)), ("", picture(60, 90))]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_role_equals_the_oracle(task: str, v4: Any, oracle: V4Oracle) -> None:
    for encode, prompt in ((v4.encode_query, "query"), (v4.encode_document, "passage")):
        assert_equal(encode(inputs(), task=task), [expected_of(oracle, item, task, prompt) for item in inputs()])


def test_both_outputs_come_from_one_forward_pass(v4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = v4._network.forward, []
    monkeypatch.setattr(v4._network, "forward", lambda rows, pixels: calls.append(len(rows)) or forward(rows, pixels))
    found = v4.encode_document(["a", "b", picture(60, 60)])
    assert (calls, found.dense.shape, len(found.multi)) == ([3], (3, 64), 3)


@pytest.mark.parametrize("task", TASKS)
def test_states_equal_those_of_transformers_with_merged_adapters(task: str, folder: Path, v4: Any, oracle: V4Oracle) -> None:
    model = transformers_v4(folder, task)
    for text in TEXTS[:4]:
        tokens = v4.token_ids(text, task=task)
        states, _ = run_v4(model, tokens.ids.tolist(), [])
        assert np.abs(v4.encode_ids([tokens.ids], task=task)[0] - states).max() < 1e-4
    for image in images()[:3]:
        _, multi = run_v4(model, oracle.image(image, task=task).ids, [oracle.pixel_rows(image)])
        assert np.abs(v4.encode_document([image], task=task).multi[0] - multi).max() < 1e-4


def test_texts_images_pairs_and_tasks_are_mixed_in_any_order(v4: Any, oracle: V4Oracle) -> None:
    names = ["retrieval.query", "retrieval.passage", "code.query", "code.passage", "text-matching"]
    rng = np.random.default_rng(0)
    for _ in range(3):
        items = [inputs()[i] for i in rng.permutation(len(inputs()))]
        tasks = [names[i] for i in rng.integers(0, len(names), len(items))]
        parts = [task.partition(".") for task in tasks]
        expected = [expected_of(oracle, item, part[0], part[2] or "query") for item, part in zip(items, parts, strict=True)]
        assert_equal(v4.encode(items, task=tasks), expected)
    with pytest.raises(ValueError, match="1 tasks for 2 inputs"):
        v4.encode(["a", "b"], task=["text-matching"])


def test_budgets_of_batches_change_nothing(folder: Path, v4: Any) -> None:
    whole = v4.encode_document(inputs())
    for tokens, patches in ((1, 1), (60, 100), (300, 50)):
        encoder: Any = load_encoder(folder, dtype="float32")
        encoder._tokens, encoder._patches = tokens, patches
        found = encoder.encode_document(inputs())
        assert np.abs(found.dense - whole.dense).max() < 1e-5
        assert np.abs(found.multi.values - whole.multi.values).max() < 1e-4
        sizes = [len(batch) for batch in encoder._batches(encoder._prepare(
            inputs(), ["retrieval.query"] * len(inputs()), truncate=False, resizing=encoder._settings.resizing
        ))]  # fmt: skip
        assert sum(sizes) == len(inputs())
        assert max(sizes) == 1 or tokens > 1


def test_it_keeps_the_contract(folder: Path) -> None:
    assert_encoder_contract(load_encoder(folder, dtype="float32", max_tokens=200))


@pytest.mark.parametrize("dims", [1, 5, 16, 64])
def test_dims_are_cut_and_renormalised_and_multi_vectors_are_not(dims: int, v4: Any, oracle: V4Oracle) -> None:
    expected = [expected_of(oracle, item, "retrieval") for item in inputs()]
    assert_equal(v4.encode_document(inputs(), truncate_dim=dims), expected, dims)


def test_dims_outside_the_trained_list_are_warned_of(v4: Any) -> None:
    assert v4.card.truncatable_dims == (8, 16, 32, 64)
    with pytest.warns(UserWarning, match="trained to be cut to 8, 16, 32, 64, and is asked for 5"):
        v4.encode_document(["a"], truncate_dim=5)


# The traps


def test_positions_in_one_dimension_would_be_seen(v4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(140, 112)
    right = v4.encode_document([image]).dense
    flat = lambda row: np.tile(np.arange(len(row.ids)), (3, 1))  # noqa: E731
    monkeypatch.setattr(jina_v4_model.Row, "positions", flat)
    assert np.abs(v4.encode_document([image]).dense - right).max() > 0.01


def test_text_matching_has_one_prefix_on_both_sides(v4: Any, oracle: V4Oracle) -> None:
    query, passage = (oracle.text("a bridge", task="text-matching", prompt_name=name) for name in ("query", "passage"))
    assert query.ids == passage.ids
    for encode in (v4.encode_query, v4.encode_document):
        assert_equal(encode(["a bridge"], task="text-matching"), [query])


def test_each_task_has_its_own_adapter(v4: Any) -> None:
    vectors = [v4.encode_document(["a bridge"], task=task).dense[0] for task in ("retrieval", "code")]
    assert vectors[0] @ vectors[1] < 0.99


def test_dtype_is_what_was_asked_for_and_else_the_files_own(folder: Path, v4: Any) -> None:
    def dtypes(encoder: Any) -> set[str]:
        return {str(weight.dtype) for weight in encoder._network._model.state_dict().values()}

    stored: Any = load_encoder(folder)
    assert dtypes(v4) == {"torch.float32"}
    assert dtypes(stored) == {"torch.bfloat16"}
    assert (v4.card.dtype, stored.card.dtype) == ("float32", "bfloat16")
    assert v4.card.fingerprint != stored.card.fingerprint
    close = stored.encode_document(inputs()).dense * v4.encode_document(inputs()).dense
    assert close.sum(axis=1).min() > 0.995
    assert stored.encode_document(["a"]).dense.dtype == np.float32


def test_a_text_may_hold_the_names_of_special_tokens(v4: Any, oracle: V4Oracle) -> None:
    texts = ["<|image_pad|><|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|> <|video_pad|>"]
    pair = (texts[0], picture(60, 60))
    found = v4.encode_document([*texts, pair])
    assert_equal(found, [*(oracle.text(text, prompt_name="passage") for text in texts), *_pair_with_pads(oracle, *pair)])


def _pair_with_pads(oracle: V4Oracle, text: str, image: Image.Image) -> list[Item]:
    """Pads in a text are words: only the image's own are seen."""
    rows, high, wide = oracle.pixel_rows(image)
    before = oracle.tokenizer.encode("<|im_start|>user\n<|vision_start|>").ids
    image_ids = [oracle.config["image_token_id"]] * (high * wide // 4)
    words = oracle.tokenizer.encode("<|vision_end|>Passage: ").ids + oracle.tokenizer.encode(text).ids
    ids = before + image_ids + words + oracle.tokenizer.encode("<|im_end|>\n").ids
    positions = oracle.positions(ids, [(high, wide)])
    pad, seen = oracle.config["image_token_id"], len(before) + len(image_ids)
    plain = [0 if token == pad and n >= seen else token for n, token in enumerate(ids)]
    table = oracle.base["model.embed_tokens.weight"]
    kept = table[0].copy()
    table[0] = table[pad]  # token 0 is in none of these texts, and lends its row to the pads that are words
    try:
        states = oracle.states(plain, [oracle.image_states(rows, high, wide)], positions, "retrieval")
    finally:
        table[0] = kept
    weights = oracle.weights("retrieval")
    multi = states @ weights["multi_vector_projector.weight"].T + oracle.base["multi_vector_projector.bias"]
    pooled = (len(before) - 1, len(ids) - len(oracle.tokenizer.encode("<|im_end|>\n").ids))
    return [Item(ids, positions, states, pooled, multi / np.linalg.norm(multi, axis=1, keepdims=True))]


# Limits


def test_long_texts_are_refused_or_cut_from_the_right(folder: Path, oracle: V4Oracle) -> None:
    encoder, text = load_encoder(folder, dtype="float32", max_tokens=30), "the bridge of Bern " * 20
    count = encoder.count_tokens([text])[0]
    assert count == len(oracle.text_ids(text, prompt_name="passage"))
    with pytest.raises(InputTooLong, match=rf"input 1 has {count} tokens.*30"):
        encoder.encode_document(["a", text])
    cut = encoder.encode_document(["a", text], truncate=True)
    ids = oracle.text_ids(text, prompt_name="passage", max_tokens=30)
    states = oracle.states(ids, [], oracle.positions(ids, []), "retrieval")
    mean = states.mean(axis=0)
    assert cut.truncated == 1
    assert np.abs(cut.dense[1] - mean / np.linalg.norm(mean)).max() < 1e-5
    assert len(cut.multi[1]) == 30
    with pytest.raises(ValueError, match="between 16 and 32768"):
        load_encoder(folder, max_tokens=32769)


def test_an_image_that_does_not_fit_is_an_error_and_a_text_beside_it_is_cut(folder: Path, oracle: V4Oracle) -> None:
    encoder, image = load_encoder(folder, dtype="float32", max_tokens=48), picture(140, 112)
    for item in (picture(400, 300), ("a", picture(400, 300))):
        tiny = load_encoder(folder, dtype="float32", max_tokens=20)
        with pytest.raises(InputTooLong, match=r"input 0 has \d+ tokens, \d+ of them for its image.*Lower max_pixels"):
            tiny.encode_document([item], truncate=True)
    text = "the bridge of Bern over the river Aare " * 5
    with pytest.raises(InputTooLong, match="input 0"):
        encoder.encode_document([(text, image)])
    cut = encoder.encode_document([(text, image), image], truncate=True)
    assert (cut.truncated, len(cut.multi[0])) == (1, 48)
    whole = oracle.pair("Passage: " + text, image)
    frame = len(oracle.tokenizer.encode("<|im_end|>\n").ids)
    mean = whole.states[whole.pooled[0] : 48 - frame].mean(axis=0)  # causal: what was cut changes nothing before it
    assert np.abs(cut.dense[0] - mean / np.linalg.norm(mean)).max() < 1e-5


def test_thirty_two_thousand_tokens(tmp_path: Path) -> None:
    sizes = V4Sizes(hidden=16, layers=1, heads=1, kv_heads=1, intermediate=8, mrope=(2, 3, 3), vision_depth=1, full=(0,))
    encoder = load_encoder(write_v4(tmp_path, sizes=sizes), dtype="float32")
    fixed = int(encoder.count_tokens([""])[0])
    text = " a" * (32768 - fixed)
    text += " a" * int(32768 - encoder.count_tokens([text])[0])
    assert encoder.count_tokens([text])[0] == 32768
    found = encoder.encode_document([text])
    assert len(found.multi[0]) == 32768
    start = V4Oracle(tmp_path).text(text[:1000], prompt_name="passage")
    assert np.abs(found.multi[0][:400] - start.multi[:400]).max() < 1e-4
    with pytest.raises(InputTooLong, match="32769 tokens"):
        encoder.encode_document([text + " a"])


def test_max_pixels_holds_at_loading_and_per_call(folder: Path, v4: Any, oracle: V4Oracle) -> None:
    image, most = picture(800, 600), 8 * 28 * 28
    expected = [oracle.image(image, max_pixels=most), oracle.pair("Passage: a", image, max_pixels=most)]
    small = load_encoder(folder, dtype="float32", max_pixels=most)
    assert_equal(small.encode_document([image, ("a", image)]), expected)
    assert_equal(v4.encode_document([image, ("a", image)], max_pixels=most), expected)
    assert_equal(v4.encode_query([image], max_pixels=60 * 28 * 28), [oracle.image(image, max_pixels=60 * 28 * 28)])
    assert len(v4.encode(["a", image], task="text-matching", max_pixels=most).multi[1]) == len(expected[0].multi)
    assert small.card.preprocessing["max_pixels"] == most
    assert small.card.fingerprint != v4.card.fingerprint
    with pytest.raises(ValueError, match="max_pixels must be at least 3136"):
        v4.encode_document([image], max_pixels=100)


def test_a_page_scan_of_twenty_megapixels_is_resized_as_the_checkpoint_says(v4: Any, oracle: V4Oracle) -> None:
    page = picture(4000, 5000)
    assert_equal(v4.encode_document([page]), [oracle.image(page)])


@pytest.mark.parametrize("limits", ["max_pixels", "size", "both"])
@pytest.mark.parametrize("text_fields", ["both", "nested", "top"])
def test_settings_are_found_wherever_they_stand(limits: Any, text_fields: Any, tmp_path: Path, v4: Any) -> None:
    folder = write_v4(tmp_path, limits=limits, text_fields=text_fields, auto_map=False)
    found = load_encoder(folder, dtype="float32").encode_document(["a bridge", picture(300, 200)])
    assert np.abs(found.dense - v4.encode_document(["a bridge", picture(300, 200)]).dense).max() < 1e-6


def test_hostile_images_are_the_right_pixels_or_an_error(v4: Any, oracle: V4Oracle) -> None:
    image = picture(90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    turned = Image.open(io.BytesIO(file.getvalue()))
    palette, cmyk = image.quantize(16), image.convert("CMYK")
    odd = [turned, palette, cmyk, image.convert("L")]
    expected = [ImageOps.exif_transpose(turned), palette.convert("RGB"), cmyk.convert("RGB"), image.convert("L")]
    assert_equal(v4.encode_document(odd), [oracle.image(one) for one in expected])
    cut = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    for bad, message in (
        (cut, "cannot be decoded"),
        (Image.new("L", (1, 65535)), "no side may be over 200 times the other"),
        (Image.fromarray(np.zeros((30, 30), dtype=np.float32)), "holds floats"),
    ):
        with pytest.raises(EncodeError, match=f"input 2: the image.*{message}"):
            v4.encode_document(["a", image, bad])
        with pytest.raises(EncodeError, match=f"input 1: the image.*{message}"):
            v4.encode_query(["a", ("b", bad)])


def test_other_inputs_are_refused(v4: Any) -> None:
    with pytest.raises(TypeError, match="input 1 is int"):
        v4.encode_document(["a", 5])
    with pytest.raises(TypeError, match="got one str"):
        v4.encode_document("a")
    with pytest.raises(ValueError, match=r"has the tasks retrieval\.query"):
        v4.encode_document(["a"], task="separation")
    empty = v4.encode_document([])
    assert (empty.dense.shape, len(empty.multi), empty.multi.dim) == ((0, 64), 0, 16)


# Tokens


def test_token_states_equal_the_oracle(v4: Any, oracle: V4Oracle) -> None:
    for task in TASKS:
        for text in TEXTS:
            found, expected = v4.encode_tokens(text, task=task), oracle.text(text, task=task, prompt_name="passage")
            assert np.abs(found.states - expected.states).max() < 1e-4
            prefix = "Query: " if task == "text-matching" else "Passage: "
            offsets = np.array(oracle.tokenizer.encode(prefix + text).offsets).reshape(-1, 2) - len(prefix)
            assert np.array_equal(found.special, offsets[:, 1] <= 0)
            assert np.array_equal(found.spans[~found.special], np.maximum(offsets[~found.special], 0))


def test_late_chunks_are_means_of_the_oracles_states(v4: Any, oracle: V4Oracle) -> None:
    text = "the bridge of Bern stands over the river Aare"
    spans = [(0, 18), (18, len(text))]
    tokens, states = v4.encode_tokens(text), oracle.text(text, prompt_name="passage").states
    places = np.where(tokens.special, -1, tokens.spans[:, 1] - 1)
    means = [states[(places >= start) & (places < end)].mean(axis=0) for start, end in spans]
    expected = np.stack([mean / np.linalg.norm(mean) for mean in means])
    assert np.abs(late_chunk(v4, text, spans) - expected).max() < 1e-5


# Memory and threads


def test_weights_stay_in_the_files(tmp_path: Path) -> None:
    """In the stored dtype on the CPU, what loading takes beside the mapped files is a few per cent of them."""

    def own_memory() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    folder = write_v4(tmp_path, sizes=V4Sizes(hidden=256, layers=6, intermediate=4096, heads=4, mrope=(8, 12, 12), rank=32))
    load_encoder(folder)  # what is made once a process
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    before = own_memory()
    encoder: Any = load_encoder(folder)
    assert own_memory() - before < 0.05 * size + (1 << 22)
    assert str(folder / "model-00001-of-00002.safetensors") in Path("/proc/self/maps").read_text()
    assert encoder.encode_query(["a"]).dense.shape == (1, 256)


def test_threads_with_different_tasks_do_not_meet(v4: Any) -> None:
    expected = {task: v4.encode_document(TEXTS, task=task).dense for task in TASKS}
    failures = []

    def work(task: str) -> None:
        found = [v4.encode_document(TEXTS, task=task).dense for _ in range(3)]
        failures.extend(task for dense in found if np.abs(dense - expected[task]).max() > 1e-5)

    threads = [threading.Thread(target=work, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_batch_too_large_for_the_memory_is_halved(folder: Path, v4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is the one thing here that cannot be made to run out for real."""
    encoder: Any = load_encoder(folder, dtype="float32")
    forward, sizes = encoder._network.forward, []

    def small(rows: Any, pixels: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no memory")
        return forward(rows, pixels)

    monkeypatch.setattr(encoder._network, "forward", small)
    items = [*TEXTS[:3], *images()[:4]]
    assert np.abs(encoder.encode_document(items).dense - v4.encode_document(items).dense).max() < 1e-5
    assert max(sizes) > 2

    def never(rows: Any, pixels: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(encoder._network, "forward", never)
    with pytest.raises(EncodeError, match="exceeds the memory of cpu: no memory"):
        encoder.encode_document(items)


def test_an_index_keeps_max_pixels_and_the_task_in_its_recipe(folder: Path, tmp_path: Path) -> None:
    path, settings = tmp_path / "library", {"task": "code", "max_pixels": 8 * 28 * 28}
    with Index.open(path, model=str(folder), chunker="whole", max_tokens=100, dtype="float32", **settings) as index:
        index.add([{"id": "a", "text": "def add(a, b): return a + b"}])
    with Index.open(path) as index:
        assert (index.recipe.encode.max_pixels, index.recipe.encode.task) == (8 * 28 * 28, "code")
        assert index.encoder.card.preprocessing["max_pixels"] == 8 * 28 * 28
        assert len(index.search("the sum of two numbers", mode="dense")) == 1
    with pytest.raises(RecipeMismatch, match="max_pixels: stored 6272, given 7000"):
        Index.open(path, max_pixels=7000)


# Strict loading


def test_it_is_recognised_by_its_files_and_its_code_is_not_run(folder: Path, tmp_path: Path, v4: Any) -> None:
    assert layout_of(folder).module == "jina_v4"
    copy = write_v4(tmp_path)
    pickle_beside(copy)
    tokenizer_truncates(copy)
    found = load_encoder(copy, dtype="float32")
    assert (found.card.revision, found.card.preprocessing) == (v4.card.revision, v4.card.preprocessing)
    assert load_encoder(folder, revision=v4.card.revision, dtype="float32").card == v4.card


BASE = "model-00001-of-00002.safetensors"
ADAPTERS = "adapters/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (BASE, "model.layers.1.mlp.down_proj.weight"),
        (BASE, "model.embed_tokens.weight"),
        ("model-00002-of-00002.safetensors", "visual.merger.mlp.2.bias"),
        (BASE, "multi_vector_projector.bias"),
        (ADAPTERS, "base_model.model.model.language_model.layers.2.self_attn.k_proj.lora_A.code.weight"),
        (ADAPTERS, "base_model.model.multi_vector_projector.lora_B.text-matching.weight"),
    ],
)
def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(file: str, name: str, tmp_path: Path) -> None:
    a, b, c = (write_v4(tmp_path / one) / file for one in "abc")
    if name not in read_tensors(a)[0]:
        pytest.fail(f"{name} is not in {file}")
    edit_tensors(a, remove=name)
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_encoder(tmp_path / "a")
    edit_tensors(b, replace={f"{name}.more": np.zeros(2, dtype=np.float32)})
    with pytest.raises(CheckpointError, match=f"{name}.more is not known"):
        load_encoder(tmp_path / "b")
    shape = read_tensors(c)[0][name].shape
    edit_tensors(c, replace={name: np.zeros((3, *shape[1:]), dtype=np.float32)})
    with pytest.raises(CheckpointError, match=rf"{name} has the shape \(3"):
        load_encoder(tmp_path / "c")


def test_incomplete_damaged_and_unsafe_folders_are_refused(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_encoder(tmp_path / name)

    (write_v4(tmp_path / "shard") / BASE).unlink()
    refused("shard", f"{BASE} is missing")
    path = write_v4(tmp_path / "cut") / BASE
    path.write_bytes(path.read_bytes()[:-10])
    refused("cut", "not a whole safetensors file")
    (write_v4(tmp_path / "adapters") / "adapters" / "adapter_config.json").unlink()
    refused("adapters", "adapter_config.json is missing")
    write_v4(tmp_path / "sister", projector=False)
    refused("sister", "multi_vector_projector.*is missing")
    pickles_only(write_v4(tmp_path / "pickles"))
    refused("pickles", "auto_map|pickle|missing")
    index = write_v4(tmp_path / "outside") / "model.safetensors.index.json"
    names = read_json(index)["weight_map"]
    set_json(index, weight_map={name: "../cut/" + file for name, file in names.items()})
    refused("outside", "does not list this folder's shards")
    text_only(write_v4(tmp_path / "text"))
    refused("text", "lacks settings.*vision_config")


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config", {"task_names": ["retrieval", "poetry"]}, "task_names are .*poetry"),
        ("config", {"single_vector_pool_strategy": "cls"}, "single_vector_pool_strategy is 'cls'"),
        ("config", {"matryoshka_dims": None}, "lacks settings"),
        ("config", {"image_token_id": 5}, "tokenizer.json is not this model's"),
        ("config", {"text_config": {"num_hidden_layers": 4}}, "layers.3.*is missing"),
        ("config", {"text_config": {"use_sliding_window": True}}, "use_sliding_window is True"),
        ("config", {"text_config": {"num_attention_heads": 3}}, "impossible sizes"),
        ("config", {"text_config": {"rope_scaling": {"mrope_section": [1, 1, 1]}}}, "impossible sizes"),
        ("config", {"text_config": {"rope_scaling": {"type": "yarn", "mrope_section": [2, 3, 3]}}}, "rope_type is 'yarn'"),
        ("preprocessor_config", {"resample": 2}, "resample is 2"),
        ("preprocessor_config", {"merge_size": 3}, "preprocessor's merge_size is 3"),
        ("preprocessor_config", {"max_pixels": 5}, "impossible sizes"),
        ("adapters/adapter_config", {"use_dora": True}, "not a plain LoRA"),
        ("adapters/adapter_config", {"r": 8}, r"lora_A.*has the shape \(4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(file: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_v4(tmp_path, text_fields="top") / f"{file}.json"
    write_json(path, read_json(path) | settings)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path)


def test_merged_adapters_are_not_offered(folder: Path) -> None:
    with pytest.raises(ValueError, match="merge_adapters is not for it"):
        load_encoder(folder, merge_adapters=True)


def test_the_card_says_what_it_is(v4: Encoder) -> None:
    card = v4.card
    assert (card.dims, card.multi_dims, card.max_tokens) == (64, 16, 32768)
    assert (card.tasks, card.outputs, card.modalities) == (TASKS, ("dense", "multi"), ("text", "image"))

"""jina-embeddings-v3 in both published layouts, against a float64 oracle and transformers' own class, both written by others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index
from ragkit.core.errors import CheckpointError, InputTooLong
from ragkit.encode import Encoder, load_encoder
from ragkit.encode.checkpoints.layouts import layout_of
from ragkit.encode.late import late_chunk
from ragkit.encode.tasks import NO_TASK
from ragkit.testing import assert_encoder_contract
from tests.encode.checkpoints.jina_v3 import TASKS, V3Sizes, write_v3_hf, write_v3_original
from tests.encode.checkpoints.stored import edit_tensors, read_json, read_tensors, write_json
from tests.encode.checkpoints.traps import pickles_only, tokenizer_truncates
from tests.encode.oracles.jina_v3 import V3Oracle
from tests.encode.test_oracles import transformers_v3

TEXTS = [
    "Late chunking embeds the whole document first.",
    "",
    "word",
    "  Zürich, naïve café – 😀 “quotes”\n\n首都は東京です。 ",
    "retrieval of documents " * 30,
]
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "original": write_v3_original,
    "original without auto_map": lambda folder: write_v3_original(folder, auto_map=False),
    "hf": write_v3_hf,
    "hf with roberta.": lambda folder: write_v3_hf(folder, names="roberta"),
    "hf with split names": lambda folder: write_v3_hf(folder, names="split"),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*trained to be cut to:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v3_original(tmp_path_factory.mktemp("v3"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> V3Oracle:
    return V3Oracle(folder)


@pytest.fixture(scope="module")
def v3(folder: Path) -> Any:
    return load_encoder(folder, dtype="float32")


@pytest.mark.parametrize("merge", [False, True], ids=["row by row", "merged"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_task_in_every_layout_equals_the_oracle(layout: str, merge: bool, tmp_path: Path, oracle: V3Oracle) -> None:
    encoder = load_encoder(LAYOUTS[layout](tmp_path / "v3"), dtype="float32", merge_adapters=merge)
    for task in TASKS:
        expected = oracle.vectors(TEXTS, [task] * len(TEXTS))
        assert np.abs(encoder.encode(TEXTS, task=task).dense - expected).max() < 1e-5


def test_methods_choose_adapter_and_instruction_together(v3: Encoder, oracle: V3Oracle) -> None:
    for task, query, document in (
        (None, "retrieval.query", "retrieval.passage"),
        ("retrieval", "retrieval.query", "retrieval.passage"),
        ("text-matching", "text-matching", "text-matching"),
        ("separation", "separation", "separation"),
    ):
        for encode, role in ((v3.encode_query, query), (v3.encode_document, document)):
            found = encode(TEXTS, task=task).dense
            assert np.abs(found - oracle.vectors(TEXTS, [role] * len(TEXTS))).max() < 1e-5
    with pytest.raises(ValueError, match="roles never swap"):
        v3.encode_query(TEXTS, task="retrieval.passage")
    with pytest.raises(ValueError, match=r"has the tasks retrieval.query, retrieval.passage, text-matching"):
        v3.encode_query(TEXTS, task="code")


@pytest.mark.parametrize("merge", [False, True], ids=["row by row", "merged"])
def test_a_batch_mixes_tasks(merge: bool, folder: Path, oracle: V3Oracle) -> None:
    encoder: Any = load_encoder(folder, dtype="float32", merge_adapters=merge)
    texts = [text for text in TEXTS for _ in TASKS]
    tasks = [*TASKS] * len(TEXTS)
    order = np.random.default_rng(0).permutation(len(texts))
    texts, tasks = [texts[i] for i in order], [tasks[i] for i in order]
    assert np.abs(encoder.encode(texts, task=tasks).dense - oracle.vectors(texts, tasks)).max() < 1e-5
    with pytest.raises(ValueError, match="1 tasks for 25 inputs"):
        encoder.encode(texts, task=["separation"])


@pytest.mark.parametrize("task", [None, *TASKS])
def test_states_equal_those_of_transformers(task: str | None, v3: Any, tmp_path: Path) -> None:
    import torch

    model = transformers_v3(write_v3_hf(tmp_path), task)
    kernels, forward = v3._model.arithmetic(0, few=True)
    rows = [np.array(row, dtype=np.int32) for row in ([0, 5, 6, 7, 2], [0, 2], [0, *range(10, 90), 2])]
    states = np.split(kernels.to_numpy(forward(rows, [task or NO_TASK] * len(rows))), np.cumsum([len(row) for row in rows])[:-1])
    for row, own in zip(rows, states, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(row)[None].long(), attention_mask=torch.ones(1, len(row))).last_hidden_state[0]
        assert np.abs(own - expected.numpy()).max() < 1e-4


def test_it_keeps_the_contract(folder: Path) -> None:
    assert_encoder_contract(load_encoder(folder, dtype="float32", max_tokens=200))


def test_batches_order_and_neighbours_change_nothing(v3: Any) -> None:
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(["alpha", "beta", "Zürich", "documents"], size=rng.integers(0, 200))) for _ in range(60)]
    tasks = [TASKS[i] for i in rng.integers(0, len(TASKS), len(texts))]
    together, order = v3.encode(texts, task=tasks).dense, rng.permutation(len(texts))
    shuffled = v3.encode([texts[i] for i in order], task=[tasks[i] for i in order]).dense
    assert np.abs(together[order] - shuffled).max() < 1e-5
    for i in range(0, len(texts), 7):
        assert np.abs(v3.encode([texts[i]], task=tasks[i]).dense[0] - together[i]).max() < 1e-5


def test_eight_thousand_tokens(tmp_path: Path) -> None:
    folder = write_v3_original(tmp_path, sizes=V3Sizes(hidden=8, heads=1, layers=1, intermediate=8))
    encoder, oracle = load_encoder(folder, dtype="float32"), V3Oracle(folder)
    assert encoder.card.max_tokens == 8192
    fixed = encoder.count_tokens([""])[0]
    room = 8192 - fixed
    text = " ".join(["the"] * room)
    while encoder.count_tokens([text])[0] > 8192:  # "the" may be more than one piece
        text = text[: len(text) // 2]
    text += " a" * (8192 - int(encoder.count_tokens([text])[0]))
    assert encoder.count_tokens([text])[0] == 8192
    exact = encoder.encode_document([text]).dense
    assert np.abs(exact - oracle.vector(text, task="retrieval.passage")).max() < 1e-4
    with pytest.raises(InputTooLong, match="8193 tokens"):
        encoder.encode_document([text + " a"])
    assert load_encoder(folder, max_tokens=8194).card.max_tokens == 8194
    with pytest.raises(ValueError, match="between 3 and 8194"):
        load_encoder(folder, max_tokens=8195)


def test_truncating_keeps_the_instruction_and_the_end(folder: Path, oracle: V3Oracle) -> None:
    short = load_encoder(folder, dtype="float32", max_tokens=40)
    found = short.encode_query([TEXTS[4]], truncate=True)
    assert found.truncated == 1
    assert np.abs(found.dense[0] - oracle.vector(TEXTS[4], task="retrieval.query", max_tokens=40)).max() < 1e-5


@pytest.mark.parametrize("dims", [1, 5, 8, 48])
def test_dims_are_cut_and_renormalised(dims: int, v3: Encoder, oracle: V3Oracle) -> None:
    expected = oracle.vectors(TEXTS, ["retrieval.passage"] * len(TEXTS), truncate_dim=dims)
    assert np.abs(v3.encode_document(TEXTS, truncate_dim=dims).dense - expected).max() < 1e-5


def test_dims_outside_the_trained_list_are_warned_of(v3: Encoder) -> None:
    assert v3.card.truncatable_dims == (8, 16, 32, 48)
    v3.encode_document(["a"], truncate_dim=16)
    with pytest.warns(UserWarning, match="trained to be cut to 8, 16, 32, 48, and is asked for 5"):
        v3.encode_document(["a"], truncate_dim=5)
    with pytest.raises(ValueError, match="between 1 and 48"):
        v3.encode_document(["a"], truncate_dim=0)


def test_late_chunks_equal_the_oracle_in_windows_too(v3: Encoder, oracle: V3Oracle) -> None:
    text = TEXTS[0] + " " + TEXTS[4] + TEXTS[3]
    spans = [(0, 20), (20, 300), (250, len(text))]
    assert np.abs(late_chunk(v3, text, spans) - oracle.chunk_vectors(text, spans)).max() < 1e-5
    authors = late_chunk(v3, text, spans, edges="authors")
    assert np.abs(authors - oracle.chunk_vectors(text, spans, authors=True)).max() < 1e-5
    windows = late_chunk(v3, text, spans, window=100, overlap=20)
    assert np.abs(windows - oracle.chunk_vectors(text, spans, window=100, overlap=20)).max() < 1e-5
    matching = late_chunk(v3, text, spans, task="text-matching")
    assert np.abs(matching - oracle.chunk_vectors(text, spans, task="text-matching")).max() < 1e-5


def test_token_states_equal_the_oracle(v3: Encoder, oracle: V3Oracle) -> None:
    for task in ("retrieval.passage", "separation"):
        for text in TEXTS:
            found, expected = v3.encode_tokens(text, task=task), oracle.token_states(text, task=task)
            assert np.abs(found.states - expected.states).max() < 1e-4
            assert np.array_equal(found.spans, expected.spans)
            assert np.array_equal(found.special, expected.special)


def test_nothing_as_large_as_the_vocabulary_is_made(v3: Any, folder: Path) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple) else (out,)
            sizes.extend(one.numel() for one in made if hasattr(one, "numel"))
            return out

    vocabulary = read_json(folder / "config.json")["vocab_size"]
    for merged in (False, True):
        encoder: Any = load_encoder(folder, dtype="float32", merge_adapters=merged)
        _, forward = encoder._model.arithmetic(0, few=True)
        with Largest():
            forward([np.array([0, 5, 2], dtype=np.int32)] * len(TASKS), TASKS)
    assert len(sizes) > 100
    assert max(sizes) < vocabulary * 48 // 2


def test_half_precision_and_auto_stay_close(v3: Encoder, folder: Path) -> None:
    expected = v3.encode_document(TEXTS).dense
    for dtype in ("bfloat16", "auto", None):
        encoder = load_encoder(folder, dtype=dtype)
        assert (encoder.encode_document(TEXTS).dense * expected).sum(axis=1).min() > 0.999
        assert encoder.card.dtype == (dtype or "auto")
        assert encoder.card.fingerprint != v3.card.fingerprint


def test_the_card_says_what_it_is(v3: Encoder, folder: Path) -> None:
    card = v3.card
    assert (card.dims, card.tasks) == (48, ("retrieval", "text-matching", "separation", "classification", "none"))
    assert load_encoder(folder, revision=card.revision, dtype="float32").card == card
    with pytest.raises(CheckpointError, match="was asked for"):
        load_encoder(folder, revision="0" * 64)
    matching = load_encoder(folder, task="text-matching", dtype="float32")
    assert matching.card.fingerprint != card.fingerprint
    assert np.array_equal(matching.encode_query(["a"]).dense, v3.encode(["a"], task="text-matching").dense)


def test_an_index_keeps_the_task_in_its_recipe(folder: Path, tmp_path: Path, oracle: V3Oracle) -> None:
    path, text = tmp_path / "library", "the bridge of Bern"
    with Index.open(path, model=str(folder), task="text-matching", chunker="whole", max_tokens=100) as index:
        index.add([{"id": "a", "text": text}])
    with Index.open(path) as index:
        assert index.recipe.encode.task == index.encoder.card.task == "text-matching"
        assert index.recipe.encode.dtype == "auto"
        assert index.encoder.encode_query([text]).dense[0] @ oracle.vector(text, task="text-matching") > 0.999
        [hit] = index.search(text, mode="dense")
        assert hit.score > 0.999


# Strict loading


def test_its_layouts_are_recognised_by_files_and_its_code_is_not_run(tmp_path: Path) -> None:
    for name, write in LAYOUTS.items():
        folder = write(tmp_path / name)
        assert layout_of(folder).module == "jina_v3"
        load_encoder(folder)  # custom_st.py raises for whoever runs it


WRONG = "encoder.layers.1.mlp.fc2"


@pytest.mark.parametrize(
    ("write", "name", "missing", "extra"),
    [
        (write_v3_original, f"roberta.{WRONG}.parametrizations.weight.original", "", "roberta.encoder.layers.9.norm1.bias"),
        (write_v3_original, f"roberta.{WRONG}.parametrizations.weight.0.lora_B", "", "roberta.lm_head.weight"),
        (write_v3_hf, f"{WRONG}.bias", "", "classifier.weight"),
        (write_v3_hf, "base_model.model.layers.1.self_attn.k_proj.lora_A.weight", "separation/adapter_", "base_model.extra"),
    ],
)
def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(
    write: Callable[[Path], Path], name: str, missing: str, extra: str, tmp_path: Path
) -> None:
    file = f"{missing}model.safetensors"
    a, b, c = (write(tmp_path / one) for one in "abc")
    edit_tensors(a / file, remove=name)
    with pytest.raises(CheckpointError, match=rf"{file}.*{name} is missing"):
        load_encoder(a)
    edit_tensors(b / file, replace={extra: np.zeros((2, 2), dtype=np.float32)})
    with pytest.raises(CheckpointError, match=f"{extra} is not known"):
        load_encoder(b)
    shape = read_tensors(c / file)[0][name].shape
    edit_tensors(c / file, replace={name: np.zeros((3, *shape[1:]), dtype=np.float32)})
    with pytest.raises(CheckpointError, match=rf"{name} has the shape \(3"):
        load_encoder(c)


def test_a_cut_file_a_missing_adapter_and_pickles_are_refused(tmp_path: Path) -> None:
    cut = write_v3_original(tmp_path / "cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_encoder(cut)
    bare = write_v3_hf(tmp_path / "bare")
    shutil.rmtree(bare / "text_matching")
    with pytest.raises(CheckpointError, match=r"text_matching/adapter_config.json is missing"):
        load_encoder(bare)
    for write, name in ((write_v3_original, "a"), (write_v3_hf, "b")):
        pickled = write(tmp_path / name)
        pickles_only(pickled)
        with pytest.raises(CheckpointError, match=r"pickle|auto_map|is missing"):
            load_encoder(pickled)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_adaptations": [*TASKS[:4], "code"]}, "too many or too few.*code.*text-matching"),
        ({"lora_rank": 0}, "which adapters"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "absolute"}, "this is another model"),
        ({"num_attention_heads": 5}, "impossible sizes"),
        ({"hidden_size": None}, "lacks the sizes"),
        ({"num_hidden_layers": 4}, "encoder.layers.3.mixer.Wqkv.parametrizations.weight.original is missing"),
        ({"vocab_size": 20}, r"word_embeddings.*has the shape \(425, 48\), expected \(20, 48\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_v3_original(tmp_path)
    write_json(folder / "config.json", read_json(folder / "config.json") | settings)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"use_dora": True}, "not a plain LoRA"), ({"r": 0}, "lacks r"), ({"lora_alpha": 7}, "differ in rank or alpha")],
)
def test_adapters_that_are_not_plain_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_v3_hf(tmp_path) / "separation" / "adapter_config.json"
    write_json(path, read_json(path) | settings)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path)


def test_query_key_and_value_may_have_an_a_of_their_own(tmp_path: Path) -> None:
    folder, rng = write_v3_hf(tmp_path), np.random.default_rng(1)
    for task in ("retrieval_query", "separation"):
        name = "base_model.model.layers.0.self_attn.k_proj.lora_A.weight"
        edit_tensors(folder / task / "adapter_model.safetensors", replace={name: rng.normal(size=(4, 48)).astype(np.float32)})
    encoder: Any = load_encoder(folder, dtype="float32")
    merged: Any = load_encoder(folder, dtype="float32", merge_adapters=True)
    model = transformers_v3(folder, "separation")
    import torch

    row = np.array([0, 5, 6, 7, 30, 2], dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(row)[None].long(), attention_mask=torch.ones(1, 6)).last_hidden_state[0].numpy()
    for one in (encoder, merged):
        assert np.abs(one.encode_ids([row], task="separation")[0] - expected).max() < 1e-4
    tasks = [*TASKS, *TASKS]
    texts = [f"text {i}" for i in range(len(tasks))]
    assert np.abs(encoder.encode(texts, task=tasks).dense - merged.encode(texts, task=tasks).dense).max() < 1e-5


def test_a_tokenizer_that_truncates_and_pads_does_neither(folder: Path, tmp_path: Path, v3: Encoder) -> None:
    copy = tmp_path / "v3"
    shutil.copytree(folder, copy)
    tokenizer_truncates(copy)
    assert np.array_equal(load_encoder(copy, dtype="float32").encode_query(TEXTS).dense, v3.encode_query(TEXTS).dense)


# The published weights

PUBLISHED = """
none -3.1011 0.8560 -0.2491 0.9427 1.4015 -1.1527 1.3804 -0.5453 -1.8164
retrieval.query -1.9765 0.7356 -0.4414 0.5823 2.1507 -0.8906 0.0233 -0.2389 -1.5708
retrieval.passage -1.7028 0.5688 -0.8541 0.4696 2.5396 -0.8374 -0.1404 -0.3123 -1.4636
separation -3.0336 1.4392 0.2875 0.7660 0.7054 -1.1701 1.6121 -0.6325 -1.5177
classification -2.7150 0.2485 1.2297 0.6988 0.9804 -1.2831 1.3446 -0.1663 -0.6874
text-matching -1.5888 1.0527 0.1237 -0.0822 1.6507 -1.0371 -0.8815 -0.8082 -0.6564
"""


@pytest.mark.skipif("RAGKIT_JINA_V3" not in os.environ, reason="RAGKIT_JINA_V3 names no folder with the published weights")
def test_the_published_weights_give_the_published_numbers() -> None:
    """From transformers' own slow tests: one text without instruction, last_hidden_state[0, 1, 1:10] under each adapter."""
    encoder: Any = load_encoder(os.environ["RAGKIT_JINA_V3"], dtype="float32", device="cpu")
    [ids] = encoder._tokenizer.ids(["Jina Embeddings V3 is great for semantic search."])
    assert len(ids) == 17
    kernels, forward = encoder._model.arithmetic(0, few=True)
    for line in PUBLISHED.split("\n")[1:-1]:
        task, *numbers = line.split()
        states = kernels.to_numpy(forward([ids], [task]))
        assert np.abs(states[1, 1:10] - np.array(numbers, dtype=np.float64)).max() < 2e-4

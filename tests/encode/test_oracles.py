"""The oracles and the tiny checkpoints against implementations by others: transformers' own classes, safetensors, tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.encode.checkpoints.jina_v3 import TASKS, V3Sizes, write_v3_hf, write_v3_original
from tests.encode.checkpoints.stored import Array, bfloat16_bits, read_json, read_tensors
from tests.encode.oracles.jina_v3 import V3Oracle

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

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


@pytest.mark.parametrize("write", [write_v3_original, write_v3_hf])
def test_a_checkpoint_reads_as_safetensors_reads_it_and_is_the_same_every_time(write, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", seed=1)
    for path in folder.rglob("*.safetensors"):
        tensors, dtypes = read_tensors(path)
        with safe_open(path, "pt") as stored:
            assert set(stored.keys()) == set(tensors)
            for name, array in tensors.items():
                assert dtypes[name] == "BF16"
                assert stored.get_tensor(name).dtype == torch.bfloat16
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


def transformers_v3(folder: Path, task: str | None):
    """transformers' own class in float32; an adapter is added to its weights by the names in the PEFT folder."""
    model = transformers.JinaEmbeddingsV3Model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if task is None:
        return model
    folder = folder / task.replace(".", "_").replace("-", "_")
    settings = read_json(folder / "adapter_config.json")
    tensors, _ = read_tensors(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name, a in tensors.items():
            if "lora_A" not in name and "embedding_A" not in name:
                continue
            b = tensors[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
            product = (b @ a).T if "embedding_A" in name else b @ a
            module = name.removeprefix("base_model.model.").split(".lora_")[0]
            model.get_submodule(module).weight += torch.from_numpy(settings["lora_alpha"] / settings["r"] * product)
    return model


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

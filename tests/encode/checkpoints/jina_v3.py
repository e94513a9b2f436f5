"""jina-embeddings-v3, tiny and random, in its two published layouts: one seed gives the same weights in both.

    write_v3_original(folder, seed=0)   five LoRA banks inside model.safetensors, remote code named in config.json
    write_v3_hf(folder, seed=0)         model.safetensors of the base, five folders of PEFT adapters

The LoRA scale is 3 / 4 and theta 500, not the published 1 / 4 and 20,000: only a loader that reads them is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.encode.checkpoints.stored import Array, random_linear, random_vector, write_json, write_tensors
from tests.encode.checkpoints.tokenizers import write_unigram

TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
INSTRUCTIONS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}
CODE = "jinaai/xlm-roberta-flash-implementation--"


@dataclass(frozen=True, kw_only=True)
class V3Sizes:
    hidden: int = 48
    layers: int = 3
    heads: int = 4
    intermediate: int = 80
    rank: int = 4
    alpha: float = 3
    theta: float = 500.0
    tasks: tuple[str, ...] = TASKS


@dataclass(frozen=True)
class Adapted:
    """One weight with its adapters, T tasks: `weight`, `a` and `b` as the original layout stores them.

    A linear layer: weight (out, in), a (T, r, in), b (T, out, r). A table: weight (rows, h), a (T, rows, r), b (T, r, h).
    """

    weight: Array
    a: Array
    b: Array


def _adapted(rng: np.random.Generator, s: V3Sizes, rows: int, columns: int, *, gain: float = 1.0) -> Adapted:
    """A linear layer; its adapters say as much as its weight."""
    a = [random_linear(rng, s.rank, columns) for _ in s.tasks]
    b = [random_linear(rng, rows, s.rank) for _ in s.tasks]
    return Adapted(random_linear(rng, rows, columns, gain), np.stack(a), np.stack(b))


def _adapted_table(rng: np.random.Generator, s: V3Sizes, rows: int) -> Adapted:
    shapes = (rows, s.hidden), (len(s.tasks), rows, s.rank), (len(s.tasks), s.rank, s.hidden)
    weight, a, b = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return Adapted(weight, a, b / np.float32(np.sqrt(s.rank)))


def _draw(seed: int, s: V3Sizes, vocab: int) -> tuple[dict[str, Adapted], dict[str, Array]]:
    """The adapted weights and the others, by their names in the original layout without its prefix `roberta.`."""
    rng = np.random.default_rng([3, seed])
    h, f = s.hidden, s.intermediate
    adapted = {
        "embeddings.word_embeddings": _adapted_table(rng, s, vocab),
        "embeddings.token_type_embeddings": _adapted_table(rng, s, 1),
        "pooler.dense": _adapted(rng, s, h, h),
    }
    rest = {"pooler.dense.bias": random_vector(rng, h)} | _norm(rng, "emb_ln", h)
    for layer in range(s.layers):
        at = f"encoder.layers.{layer}"
        linears = {"mixer.Wqkv": (3 * h, h), "mixer.out_proj": (h, h), "mlp.fc1": (f, h), "mlp.fc2": (h, f)}
        for name, (rows, columns) in linears.items():
            adapted[f"{at}.{name}"] = _adapted(rng, s, rows, columns, gain=1.3 if name == "mixer.Wqkv" else 1.0)
            rest[f"{at}.{name}.bias"] = random_vector(rng, rows)
        rest |= _norm(rng, f"{at}.norm1", h) | _norm(rng, f"{at}.norm2", h)
    return adapted, rest


def _norm(rng: np.random.Generator, name: str, size: int) -> dict[str, Array]:
    return {f"{name}.weight": random_vector(rng, size, around=1.0), f"{name}.bias": random_vector(rng, size)}


def _common_config(s: V3Sizes, vocab: int) -> dict[str, Any]:
    return {
        "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "classifier_dropout": None, "eos_token_id": 2,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": s.hidden, "initializer_range": 0.02,
        "intermediate_size": s.intermediate, "layer_norm_eps": 1e-05, "max_position_embeddings": 8194,
        "num_attention_heads": s.heads, "num_hidden_layers": s.layers, "pad_token_id": 1, "type_vocab_size": 1,
        "use_cache": True, "vocab_size": vocab,
    }  # fmt: skip


def write_v3_original(
    folder: Path, *, seed: int = 0, sizes: V3Sizes | None = None, dtype: str = "BF16", auto_map: bool = True
) -> Path:
    """Write the layout of jinaai/jina-embeddings-v3 and return the folder.

    auto_map: as published, config.json names remote code, and has no model_type; without it, model_type is xlm-roberta,
    as fine-tuned copies have it.
    """
    s = sizes or V3Sizes()
    vocab = write_unigram(folder)
    adapted, rest = _draw(seed, s, vocab)
    tensors = {f"roberta.{name}": array for name, array in rest.items()}
    for name, part in adapted.items():
        at = f"roberta.{name}.parametrizations.weight"
        tensors |= {f"{at}.original": part.weight, f"{at}.0.lora_A": part.a, f"{at}.0.lora_B": part.b}
    write_tensors(folder / "model.safetensors", tensors, dtype)
    code = {
        "AutoConfig": CODE + "configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": CODE + "modeling_lora.XLMRobertaLoRA",
        "AutoModelForMaskedLM": CODE + "modeling_xlm_roberta.XLMRobertaForMaskedLM",
        "AutoModelForPreTraining": CODE + "modeling_xlm_roberta.XLMRobertaForPreTraining",
    }
    own = {
        "architectures": ["XLMRobertaModel"], "emb_pooler": None, "load_trained_adapters": True,
        "lora_adaptations": list(s.tasks), "lora_alpha": s.alpha, "lora_dropout_p": 0.0, "lora_main_params_trainable": False,
        "lora_rank": s.rank, "matryoshka_dimensions": _matryoshka(s.hidden), "output_past": True,
        "position_embedding_type": "rotary", "rotary_emb_base": s.theta,
        "task_instructions": {task: INSTRUCTIONS.get(task, "") for task in s.tasks}, "torch_dtype": "bfloat16",
        "transformers_version": "4.30.2", "truncate_dim": None, "use_flash_attn": True,
    }  # fmt: skip
    kind: dict[str, Any] = {"auto_map": code} if auto_map else {"model_type": "xlm-roberta"}
    write_json(folder / "config.json", _common_config(s, vocab) | own | kind)
    _write_sentence_transformers(folder, s)
    return folder


def _matryoshka(hidden: int) -> list[int]:
    return [d for d in (8, 16, 32) if d < hidden] + [hidden]


def _write_sentence_transformers(folder: Path, s: V3Sizes) -> None:
    kinds = [("transformer", "", "custom_st.Transformer"), ("pooler", "1_Pooling", "sentence_transformers.models.Pooling")]
    kinds += [("normalizer", "2_Normalize", "sentence_transformers.models.Normalize")]
    modules: list[dict[str, Any]] = [{"idx": i, "name": n, "path": p, "type": kind} for i, (n, p, kind) in enumerate(kinds)]
    modules[0]["kwargs"] = ["task"]
    write_json(folder / "modules.json", modules)
    pooling = dict.fromkeys(("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"), False)
    modes = {f"pooling_mode_{kind}": on for kind, on in (pooling | {"mean_tokens": True}).items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": s.hidden, **modes, "include_prompt": True})
    settings = {
        "__version__": {"sentence_transformers": "3.1.0", "transformers": "4.41.2", "pytorch": "2.3.1+cu121"},
        "prompts": {task: INSTRUCTIONS.get(task, "") for task in s.tasks},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", settings)
    # The published file is code too. Whoever runs this one finds out.
    (folder / "custom_st.py").write_text('raise AssertionError("code of a checkpoint was run")\n')


def write_v3_hf(folder: Path, *, seed: int = 0, sizes: V3Sizes | None = None, dtype: str = "BF16", names: str = "fused") -> Path:
    """Write the layout of jinaai/jina-embeddings-v3-hf and return the folder.

    names: "fused", as published (Wqkv, emb_ln); "roberta", the same under the prefix `roberta.`; "split", the names that
    transformers' own class has in memory (q_proj, k_proj, v_proj, embeddings.LayerNorm).
    """
    s = sizes or V3Sizes()
    vocab = write_unigram(folder)
    adapted, rest = _draw(seed, s, vocab)
    base = rest | {f"{name}.weight": part.weight for name, part in adapted.items()}
    if names == "split":
        base = _split(base)
    elif names == "roberta":
        base = {f"roberta.{name}": array for name, array in base.items()}
    write_tensors(folder / "model.safetensors", base, dtype)
    for task, name in enumerate(s.tasks):
        adapter = folder / name.replace(".", "_").replace("-", "_")
        write_tensors(adapter / "adapter_model.safetensors", _peft(adapted, task), dtype)
        write_json(adapter / "adapter_config.json", _adapter_config(s))
    own = {
        "architectures": ["JinaEmbeddingsV3Model"], "dtype": "bfloat16", "model_type": "jina_embeddings_v3",
        "rope_parameters": {"rope_theta": s.theta, "rope_type": "default"}, "tie_word_embeddings": True,
        "transformers_version": "5.4.0",
    }  # fmt: skip
    write_json(folder / "config.json", _common_config(s, vocab) | own)
    return folder


RENAMED = {
    "emb_ln": "embeddings.LayerNorm", "encoder.layers": "layers", "mixer.out_proj": "self_attn.o_proj",
    "norm1": "post_attention_layernorm", "norm2": "post_mlp_layernorm",
}  # fmt: skip


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _split(base: dict[str, Array]) -> dict[str, Array]:
    split = {}
    for name, array in base.items():
        if "mixer.Wqkv" not in name:
            split[_renamed(name)] = array
            continue
        for letter, block in zip("qkv", np.split(array, 3), strict=True):
            split[_renamed(name).replace("mixer.Wqkv", f"self_attn.{letter}_proj")] = block
    return split


def _peft(adapted: dict[str, Adapted], task: int) -> dict[str, Array]:
    tensors = {}
    for name, part in adapted.items():
        at, a, b = f"base_model.model.{_renamed(name)}", part.a[task], part.b[task]
        if name.startswith("embeddings"):
            tensors |= {f"{at}.lora_embedding_A": a.T, f"{at}.lora_embedding_B": b.T}
        elif name.endswith("Wqkv"):
            for letter, block in zip("qkv", np.split(b, 3), strict=True):
                own = at.replace("mixer.Wqkv", f"self_attn.{letter}_proj")
                tensors |= {f"{own}.lora_A.weight": a, f"{own}.lora_B.weight": block}
        else:
            tensors |= {f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b}
    return tensors


def _adapter_config(s: V3Sizes) -> dict[str, Any]:
    targets = ["dense", "fc1", "fc2", "k_proj", "o_proj", "q_proj", "token_type_embeddings", "v_proj", "word_embeddings"]
    return {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "jinaai/jina-embeddings-v3-hf", "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "lora_alpha": s.alpha, "lora_dropout": 0.0,
        "modules_to_save": None, "peft_type": "LORA", "r": s.rank, "rank_pattern": {}, "target_modules": targets,
        "task_type": None, "use_dora": False, "use_rslora": False,
    }  # fmt: skip

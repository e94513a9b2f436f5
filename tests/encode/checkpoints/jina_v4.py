"""jina-embeddings-v4, tiny and random, in its published layout: write_v4(folder, seed=0).

Two shards with their index under the old Qwen2.5-VL names, three LoRA sets in one folder `adapters/`, tokenizer, preprocessor.
The LoRA scale is 6 / 4, the three M-RoPE sections differ, vision attention has windows of 2 x 2 merged patches but in two
blocks, and images of more than 24 x 28 x 28 pixels are made smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.encode.checkpoints.jina_clip import MEAN, STD
from tests.encode.checkpoints.stored import Array, random_linear, random_vector, write_json, write_tensors
from tests.encode.checkpoints.tokenizers import write_byte_pairs

TASKS = ("retrieval", "text-matching", "code")
TARGETS = (
    r"(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$"
    r"|.*(single_vector_projector|multi_vector_projector).*$)"
)


@dataclass(frozen=True, kw_only=True)
class V4Sizes:
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 96
    mrope: tuple[int, int, int] = (2, 3, 3)  # of the 8 pairs of a head
    theta: float = 100.0  # not the published 1e6: rows and columns of small images turn far enough to be seen
    multi: int = 16
    rank: int = 4
    alpha: float = 6
    vision_hidden: int = 32
    vision_heads: int = 2
    vision_intermediate: int = 44
    vision_depth: int = 4
    full: tuple[int, ...] = (1, 3)
    window: int = 56  # pixels: 2 merged patches of 28
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 24 * 28 * 28


def write_v4(
    folder: Path,
    *,
    seed: int = 0,
    sizes: V4Sizes | None = None,
    dtype: str = "BF16",
    auto_map: bool = True,
    text_fields: Literal["both", "nested", "top"] = "both",
    limits: Literal["max_pixels", "size", "both"] = "max_pixels",
    projector: bool = True,
) -> Path:
    """Write the layout of jinaai/jina-embeddings-v4 and return the folder.

    auto_map: config.json and preprocessor_config.json name remote code, as published. text_fields: where config.json has the
    language model's sizes; published is both at the top and under text_config. limits: how preprocessor_config.json says its
    pixel limits. projector: without it, the tensors of the multi-vector head are missing, as in the merged sister repositories.
    """
    s = sizes or V4Sizes()
    ids = write_byte_pairs(folder)
    vocab = -(-(max(ids.values()) + 10) // 16) * 16  # more rows than tokens, as published: 151936 for 151665
    rng = np.random.default_rng([4, seed])
    text, vision = _text(rng, s, vocab), _vision(rng, s)
    head = {"multi_vector_projector.weight": random_linear(rng, s.multi, s.hidden)}
    head["multi_vector_projector.bias"] = random_vector(rng, s.multi)
    adapters = _adapters(rng, s)
    if not projector:
        head, adapters = {}, {name: array for name, array in adapters.items() if "projector" not in name}
    _write_shards(folder, text | vision | head, dtype)
    write_tensors(folder / "adapters" / "adapter_model.safetensors", adapters, dtype)
    write_json(folder / "adapters" / "adapter_config.json", _adapter_config(s))
    write_json(folder / "config.json", _config(s, vocab, ids, auto_map=auto_map, text_fields=text_fields))
    write_json(folder / "preprocessor_config.json", _preprocessor(s, auto_map=auto_map, limits=limits))
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    write_json(folder / "generation_config.json", {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": eos})
    modules = [{"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer", "kwargs": ["task", "truncate_dim"]}]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    )
    for name in (
        "modeling_jina_embeddings_v4",
        "configuration_jina_embeddings_v4",
        "qwen2_5_vl",
        "custom_lora_module",
        "custom_st",
    ):
        # The published files are code too. Whoever runs one of these finds out.
        (folder / f"{name}.py").write_text('raise AssertionError("code of a checkpoint was run")\n')
    return folder


def _write_shards(folder: Path, tensors: dict[str, Array], dtype: str) -> None:
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    files = {f"model-0000{n}-of-00002.safetensors": half for n, half in enumerate(halves, start=1)}
    for file, half in files.items():
        write_tensors(folder / file, {name: tensors[name] for name in half}, dtype)
    size = sum(array.size for array in tensors.values()) * (4 if dtype == "F32" else 2)
    weight_map = {name: file for file, half in files.items() for name in half}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _text(rng: np.random.Generator, s: V4Sizes, vocab: int) -> dict[str, Array]:
    h = s.hidden
    tensors = {"model.embed_tokens.weight": random_linear(rng, vocab, h, math.sqrt(h))}
    tensors["model.norm.weight"] = random_vector(rng, h, around=1.0)
    for layer in range(s.layers):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.{norm}.weight": random_vector(rng, h, around=1.0) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for name, (rows, columns) in _adapted_linears(s).items():
            tensors[f"{at}.{name}.weight"] = random_linear(rng, rows, columns, 1.3 if name[-6] in "qk" else 1.0)
            if name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                tensors[f"{at}.{name}.bias"] = random_vector(rng, rows)
    return tensors


def _adapted_linears(s: V4Sizes) -> dict[str, tuple[int, int]]:
    """Rows and columns of a language layer's linears."""
    h, f, kv = s.hidden, s.intermediate, s.hidden // s.heads * s.kv_heads
    shapes = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, h)}
    return shapes | {"mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f)}


def _vision(rng: np.random.Generator, s: V4Sizes) -> dict[str, Array]:
    h, f = s.vision_hidden, s.vision_intermediate

    def linear(name: str, rows: int, columns: int, gain: float = 1.0) -> dict[str, Array]:
        return {f"{name}.weight": random_linear(rng, rows, columns, gain), f"{name}.bias": random_vector(rng, rows)}

    tensors = {"visual.patch_embed.proj.weight": random_linear(rng, h, 3 * 2 * 14 * 14).reshape(h, 3, 2, 14, 14)}
    for block in range(s.vision_depth):
        at = f"visual.blocks.{block}"
        tensors |= {f"{at}.{norm}.weight": random_vector(rng, h, around=1.0) for norm in ("norm1", "norm2")}
        tensors |= linear(f"{at}.attn.qkv", 3 * h, h, 2.0) | linear(f"{at}.attn.proj", h, h)
        tensors |= linear(f"{at}.mlp.gate_proj", f, h) | linear(f"{at}.mlp.up_proj", f, h) | linear(f"{at}.mlp.down_proj", h, f)
    tensors["visual.merger.ln_q.weight"] = random_vector(rng, h, around=1.0)
    return tensors | linear("visual.merger.mlp.0", 4 * h, 4 * h) | linear("visual.merger.mlp.2", s.hidden, 4 * h, 1.5)


def _adapters(rng: np.random.Generator, s: V4Sizes) -> dict[str, Array]:
    modules = {
        f"model.language_model.layers.{layer}.{name}": shape
        for layer in range(s.layers)
        for name, shape in _adapted_linears(s).items()
    } | {"multi_vector_projector": (s.multi, s.hidden)}
    tensors = {}
    for task in TASKS:
        for name, (rows, columns) in modules.items():
            at = f"base_model.model.{name}"
            tensors[f"{at}.lora_A.{task}.weight"] = random_linear(rng, s.rank, columns)
            tensors[f"{at}.lora_B.{task}.weight"] = random_linear(rng, rows, s.rank, 0.5)
    return tensors


def _adapter_config(s: V4Sizes) -> dict[str, Any]:
    return {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "jinaai/jina-embeddings-v4", "bias": "none",
        "exclude_modules": ".*visual.*", "fan_in_fan_out": False, "inference_mode": False, "init_lora_weights": "gaussian",
        "lora_alpha": s.alpha, "lora_bias": False, "lora_dropout": 0.1, "modules_to_save": None, "peft_type": "LORA",
        "r": s.rank, "rank_pattern": {}, "target_modules": TARGETS, "task_type": "FEATURE_EXTRACTION", "use_dora": False,
        "use_rslora": False,
    }  # fmt: skip


def _config(s: V4Sizes, vocab: int, ids: dict[str, int], *, auto_map: bool, text_fields: str) -> dict[str, Any]:
    text = {
        "attention_dropout": 0.0, "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "hidden_act": "silu",
        "hidden_size": s.hidden, "initializer_range": 0.02, "intermediate_size": s.intermediate,
        "max_position_embeddings": 128000, "max_window_layers": 70, "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers, "num_key_value_heads": s.kv_heads, "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": list(s.mrope), "rope_type": "default", "type": "default"}, "rope_theta": s.theta,
        "sliding_window": None, "tie_word_embeddings": True, "use_cache": True, "use_sliding_window": False,
        "vocab_size": vocab,
    }  # fmt: skip
    vision = {
        "depth": s.vision_depth, "fullatt_block_indexes": list(s.full), "hidden_act": "silu", "hidden_size": s.vision_hidden,
        "in_channels": 3, "in_chans": 3, "initializer_range": 0.02, "intermediate_size": s.vision_intermediate,
        "model_type": "qwen2_5_vl", "num_heads": s.vision_heads, "out_hidden_size": s.hidden, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2, "tokens_per_second": 2,
        "window_size": s.window,
    }  # fmt: skip
    steps = [d for d in (8, 16, 32) if d < s.hidden]
    own: dict[str, Any] = {
        "architectures": ["JinaEmbeddingsV4Model"], "image_token_id": ids["<|image_pad|>"], "matryoshka_dims": [*steps, s.hidden],
        "model_type": "qwen2_5_vl", "multi_vector_projector_dim": s.multi, "pretrained_peft_model_name_or_path": None,
        "single_vector_pool_strategy": "mean", "task_names": list(TASKS), "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0", "truncate_dim": None, "verbosity": 1, "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision, "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_token_id": ids["<|vision_pad|>"],
    }  # fmt: skip
    if text_fields != "nested":
        own |= text
    if text_fields != "top":
        own["text_config"] = text | {"model_type": "qwen2_5_vl_text"}
    if auto_map:
        at = "_jina_embeddings_v4.JinaEmbeddingsV4"
        own["auto_map"] = {"AutoConfig": f"configuration{at}Config", "AutoModel": f"modeling{at}Model"}
    return own


def _preprocessor(s: V4Sizes, *, auto_map: bool, limits: str) -> dict[str, Any]:
    own: dict[str, Any] = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN,
        "image_processor_type": "Qwen2VLImageProcessor", "image_std": STD, "merge_size": 2, "patch_size": 14,
        "processor_class": "JinaEmbeddingsV4Processor", "resample": 3, "rescale_factor": 0.00392156862745098,
        "temporal_patch_size": 2,
    }  # fmt: skip
    if auto_map:
        own["auto_map"] = {"AutoProcessor": "modeling_jina_embeddings_v4.JinaEmbeddingsV4Processor"}
    if limits != "size":
        own |= {"max_pixels": s.max_pixels, "min_pixels": s.min_pixels}
    if limits != "max_pixels":
        own["size"] = {"longest_edge": s.max_pixels, "shortest_edge": s.min_pixels}
    return own

"""jina-clip-v1, tiny and random, in its published layout: write_clip_v1(folder, seed=0).

As published, the text tower's sizes are not in the checkpoint's config: a loader has them as defaults, and applies
`hf_model_config_kwargs` over them. Here those carry the tiny sizes. Six heads, so that ALiBi's slopes are not a power of two's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.encode.checkpoints.stored import Array, random_linear, random_vector, write_json, write_tensors
from tests.encode.checkpoints.tokenizers import write_wordpiece

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
CODE = "jinaai/jina-clip-implementation--"


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    embed: int = 48
    text_layers: int = 2
    text_heads: int = 6
    text_intermediate: int = 64
    vision_layers: int = 2
    head_width: int = 16
    mlp_ratio: float = 2.6667
    image: int = 32
    patch: int = 8

    @property
    def grid(self) -> int:
        return self.image // self.patch


def write_clip_v1(
    folder: Path,
    *,
    seed: int = 0,
    sizes: ClipSizes | None = None,
    dtype: str = "F32",
    buffers: bool = False,
    projections: bool = False,
    auto_map: bool = True,
) -> Path:
    """Write the layout of jinaai/jina-clip-v1 and return the folder.

    buffers: tensors that some revisions hold and that a loader ignores. projections: add_projections is on, with its two
    tensors (v1 has none). auto_map: config.json and preprocessor_config.json name remote code, as published.
    """
    s = sizes or ClipSizes()
    vocab = -(-(write_wordpiece(folder) + 1) // 8) * 8  # more rows than tokens, as published: 30528 for 30522
    rng = np.random.default_rng([1, seed])
    tensors = {"logit_scale": np.float32(rng.uniform(2, 4)).reshape(())} | _text(rng, s, vocab) | _vision(rng, s)
    if projections:
        tensors["text_projection.weight"] = random_linear(rng, s.embed, s.embed)
        tensors["visual_projection.weight"] = random_linear(rng, s.embed, s.embed)
    if buffers:
        tensors |= _buffers(s)
    write_tensors(folder / "model.safetensors", tensors, dtype)
    write_json(
        folder / "config.json", _config(s, vocab, projections) | (_code("configuration_clip.JinaCLIPConfig") if auto_map else {})
    )
    write_json(folder / "preprocessor_config.json", _preprocessor(s, auto_map))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    write_json(folder / "modules.json", modules)
    # The published file is code too. Whoever runs this one finds out.
    (folder / "custom_st.py").write_text('raise AssertionError("code of a checkpoint was run")\n')
    return folder


def _norm(rng: np.random.Generator, name: str, size: int) -> dict[str, Array]:
    return {f"{name}.weight": random_vector(rng, size, around=1.0), f"{name}.bias": random_vector(rng, size)}


def _linear(rng: np.random.Generator, name: str, rows: int, columns: int, gain: float = 1.0) -> dict[str, Array]:
    return {f"{name}.weight": random_linear(rng, rows, columns, gain), f"{name}.bias": random_vector(rng, rows)}


def _text(rng: np.random.Generator, s: ClipSizes, vocab: int) -> dict[str, Array]:
    h, f = s.embed, s.text_intermediate
    at = "text_model.transformer"
    tensors = {
        f"{at}.embeddings.word_embeddings.weight": random_linear(rng, vocab, h, math.sqrt(h)),
        f"{at}.embeddings.token_type_embeddings.weight": random_linear(rng, 2, h, math.sqrt(h)),
    } | _norm(rng, f"{at}.emb_ln", h)
    for layer in range(s.text_layers):
        own = f"{at}.encoder.layers.{layer}"
        tensors |= _linear(rng, f"{own}.mixer.Wqkv", 3 * h, h, 1.3) | _linear(rng, f"{own}.mixer.out_proj", h, h)
        tensors |= {f"{own}.mlp.gated_layers.weight": random_linear(rng, 2 * f, h)} | _linear(rng, f"{own}.mlp.wo", h, f)
        tensors |= _norm(rng, f"{own}.norm1", h) | _norm(rng, f"{own}.norm2", h)
    return tensors


def _vision(rng: np.random.Generator, s: ClipSizes) -> dict[str, Array]:
    h, f = s.embed, int(s.embed * s.mlp_ratio)
    at = "vision_model"
    tensors = {
        f"{at}.cls_token": rng.normal(size=(1, 1, h)).astype(np.float32),
        f"{at}.pos_embed": (rng.normal(size=(1, 1 + s.grid**2, h)) * 0.5).astype(np.float32),
        f"{at}.patch_embed.proj.weight": random_linear(rng, h, 3 * s.patch**2).reshape(h, 3, s.patch, s.patch),
        f"{at}.patch_embed.proj.bias": random_vector(rng, h),
    } | _norm(rng, f"{at}.norm", h)
    for block in range(s.vision_layers):
        own = f"{at}.blocks.{block}"
        tensors |= {f"{own}.attn.{letter}_proj.weight": random_linear(rng, h, h, 1.3) for letter in "qkv"}
        tensors |= {f"{own}.attn.{letter}_bias": random_vector(rng, h) for letter in "qv"}
        tensors |= _norm(rng, f"{own}.attn.inner_attn_ln", h) | _linear(rng, f"{own}.attn.proj", h, h)
        tensors |= _linear(rng, f"{own}.mlp.w1", f, h) | _linear(rng, f"{own}.mlp.w2", f, h)
        tensors |= _norm(rng, f"{own}.mlp.ffn_ln", f) | _linear(rng, f"{own}.mlp.w3", h, f)
        tensors |= _norm(rng, f"{own}.norm1", h) | _norm(rng, f"{own}.norm2", h)
    return tensors


def _buffers(s: ClipSizes) -> dict[str, Array]:
    """Shapes as a model would save them; numbers that would be seen if they were used."""
    noise = np.random.default_rng(7)
    text, vision = "text_model.transformer", "vision_model"
    shapes: dict[str, tuple[int, ...]] = {f"{vision}.rope.freqs_cos": (s.grid**2, s.head_width)}
    shapes[f"{vision}.rope.freqs_sin"] = (s.grid**2, s.head_width)
    for block in range(s.vision_layers):
        shapes |= {f"{vision}.blocks.{block}.attn.rope.freqs_{part}": (s.grid**2, s.head_width) for part in ("cos", "sin")}
    for layer in range(s.text_layers):
        shapes[f"{text}.encoder.layers.{layer}.mixer.inner_attn.linear_biases"] = (1, s.text_heads, 16, 16)
        shapes[f"{text}.encoder.layers.{layer}.mixer.inner_attn.alibi_slopes"] = (s.text_heads,)
    tensors: dict[str, Array] = {name: noise.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors[f"{text}.embeddings.position_ids"] = np.arange(512, dtype=np.int64)[None]
    return tensors


def _code(config: str) -> dict[str, Any]:
    return {"auto_map": {"AutoConfig": CODE + config, "AutoModel": CODE + "modeling_clip.JinaCLIPModel"}}


def _config(s: ClipSizes, vocab: int, projections: bool) -> dict[str, Any]:
    sizes = {"hidden_size": s.embed, "intermediate_size": s.text_intermediate, "num_attention_heads": s.text_heads}
    sizes |= {"num_hidden_layers": s.text_layers, "vocab_size": vocab}
    text = {
        "embed_dim": s.embed, "hf_model_config_kwargs": {"use_flash_attn": False, **sizes},
        "hf_model_name_or_path": "jinaai/jina-bert-flash-implementation", "model_type": "jina_clip_text",
        "pooler_type": "mean_pooler", "proj_bias": False, "proj_type": None,
    }  # fmt: skip
    vision = {
        "embed_dim": s.embed, "fused_layer_norm": False, "head_width": s.head_width, "image_size": s.image,
        "intp_freq": False, "layers": s.vision_layers, "ls_init_value": None, "mlp_ratio": s.mlp_ratio,
        "model_type": "jina_clip_vision", "naive_swiglu": True, "patch_dropout": 0.1, "patch_size": s.patch,
        "post_norm": False, "proj_type": None, "pt_hw_seq_len": s.grid, "qkv_bias": True, "rope_embeddings": True,
        "subln": True, "width": s.embed, "x_attention": False,
    }  # fmt: skip
    return {
        "add_projections": projections, "architectures": ["JinaCLIPModel"], "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592, "model_type": "jina_clip", "projection_dim": s.embed, "text_config": text,
        "torch_dtype": "float32", "transformers.js_config": {"use_external_data_format": {"model.onnx": True}},
        "transformers_version": None, "vision_config": vision,
    }  # fmt: skip


def _preprocessor(s: ClipSizes, auto_map: bool) -> dict[str, Any]:
    names = {"AutoImageProcessor": "JinaCLIPImageProcessor", "AutoProcessor": "JinaCLIPProcessor"}
    code = {"auto_map": {name: f"{CODE}processing_clip.{target}" for name, target in names.items()}}
    return (code if auto_map else {}) | {
        "fill_color": 0, "image_processor_type": "JinaCLIPImageProcessor", "interpolation": "bicubic", "mean": MEAN,
        "processor_class": "JinaCLIPProcessor", "resize_mode": "shortest", "size": s.image, "std": STD,
    }  # fmt: skip

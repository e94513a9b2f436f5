"""The models by others: transformers' and timm's classes with a tiny checkpoint's weights, adapters merged by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.encode.checkpoints.stored import Array, read_json, read_tensors


def _float32(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def transformers_v3(folder: Path, task: str | None) -> Any:
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


class _Gated(torch.nn.Module):
    """The first half of a bias-free layer, activated, times the second."""

    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(_float32(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated, gate = torch.nn.functional.linear(x, self.weight).chunk(2, dim=-1)
        return torch.nn.functional.gelu(activated) * gate


def bert_with_alibi(folder: Path, ids: list[int]) -> Array:
    """(t, h): jina-clip-v1's text tower by transformers' BERT, with a gated middle, Bloom's slopes and no positions."""
    from transformers.models.bert.modeling_bert import BertModel
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    sizes = read_json(folder / "config.json")["text_config"]["hf_model_config_kwargs"]
    sizes = {name: value for name, value in sizes.items() if name != "use_flash_attn"}
    config = transformers.BertConfig(**sizes, layer_norm_eps=1e-12, attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False).eval()
    stored, _ = read_tensors(folder / "model.safetensors")
    prefix = "text_model.transformer."
    w = {name.removeprefix(prefix): _float32(array) for name, array in stored.items() if name.startswith(prefix)}
    state = {
        "embeddings.word_embeddings.weight": w["embeddings.word_embeddings.weight"],
        "embeddings.token_type_embeddings.weight": w["embeddings.token_type_embeddings.weight"],
        "embeddings.position_embeddings.weight": torch.zeros_like(model.embeddings.position_embeddings.weight),
    }

    def take(mine: str, theirs: str, rows: slice = slice(None)) -> None:
        state.update({f"{mine}.{part}": w[f"{theirs}.{part}"][rows] for part in ("weight", "bias")})

    take("embeddings.LayerNorm", "emb_ln")
    hidden = sizes["hidden_size"]
    for n, layer in enumerate(model.encoder.layer):
        mine, theirs = f"encoder.layer.{n}", f"encoder.layers.{n}"
        for part, name in enumerate(("query", "key", "value")):
            take(f"{mine}.attention.self.{name}", f"{theirs}.mixer.Wqkv", slice(part * hidden, (part + 1) * hidden))
        take(f"{mine}.attention.output.dense", f"{theirs}.mixer.out_proj")
        take(f"{mine}.attention.output.LayerNorm", f"{theirs}.norm1")
        take(f"{mine}.output.dense", f"{theirs}.mlp.wo")
        take(f"{mine}.output.LayerNorm", f"{theirs}.norm2")
        layer.intermediate = _Gated(stored[f"{prefix}{theirs}.mlp.gated_layers.weight"])
        state[f"{mine}.intermediate.weight"] = layer.intermediate.weight
    model.load_state_dict(state)
    t, heads = len(ids), sizes["num_attention_heads"]
    ends = build_alibi_tensor(torch.ones(1, t, dtype=torch.long), heads, torch.float32)  # (heads, 1, t): slope times key's place
    slopes = ends[:, 0, 1] - ends[:, 0, 0] if t > 1 else ends[:, 0, 0]
    places = torch.arange(t)
    bias = -slopes[:, None, None] * (places[:, None] - places[None, :]).abs()
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), attention_mask=bias[None])
    return output.last_hidden_state[0].double().numpy()


def timm_eva(folder: Path, pixels: Array) -> Array:
    """(1 + patches, h): jina-clip-v1's image tower by timm's EVA-02, whose own names for the weights are used."""
    from timm.models.eva import Eva

    c = read_json(folder / "config.json")["vision_config"]
    grid = c["image_size"] // c["patch_size"]
    model = Eva(
        img_size=c["image_size"], patch_size=c["patch_size"], embed_dim=c["width"], depth=c["layers"],
        num_heads=c["width"] // c["head_width"], num_classes=0, global_pool="token", qkv_fused=False, swiglu_mlp=True,
        mlp_ratio=c["mlp_ratio"], scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(grid, grid),
    ).eval()  # fmt: skip
    renamed = {"attn.inner_attn_ln": "attn.norm", "mlp.ffn_ln": "mlp.norm", "mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x"}
    renamed |= {"mlp.w3": "mlp.fc2", "attn.q_bias": "attn.q_proj.bias", "attn.v_bias": "attn.v_proj.bias"}
    state = {}
    for name, array in read_tensors(folder / "model.safetensors")[0].items():
        if name.startswith("vision_model.") and "freqs" not in name:
            new = name.removeprefix("vision_model.")
            for theirs, mine in renamed.items():
                new = new.replace(theirs, mine)
            state[new] = _float32(array)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, (unexpected, missing)
    assert not [name for name in missing if "rope" not in name], missing
    with torch.no_grad():
        return model.forward_features(_float32(pixels)[None])[0].double().numpy()


def transformers_v4(folder: Path, task: str) -> Any:
    """transformers' Qwen2_5_VLModel in float32 with one task's adapter merged; .projector is the multi-vector head."""
    settings = read_json(folder / "config.json")
    settings.pop("auto_map", None)
    config = transformers.Qwen2_5_VLConfig(**settings)
    config._attn_implementation = "eager"
    tensors: dict[str, Array] = {}
    for file in sorted(set(read_json(folder / "model.safetensors.index.json")["weight_map"].values())):
        tensors |= read_tensors(folder / file)[0]
    lora = read_json(folder / "adapters" / "adapter_config.json")
    adapters, _ = read_tensors(folder / "adapters" / "adapter_model.safetensors")
    state = {}
    for name, array in tensors.items():
        new = name.replace("model.", "language_model.", 1) if name.startswith("model.") else name
        at = new.removesuffix(".weight")
        at = f"base_model.model.model.{at}" if at.startswith("language_model.") else f"base_model.model.{at}"
        a, b = (adapters.get(f"{at}.lora_{side}.{task}.weight") for side in "AB")
        state[new] = _float32(array if a is None or b is None else array + lora["lora_alpha"] / lora["r"] * (b @ a))
    head = torch.nn.Linear(settings["hidden_size"], settings["multi_vector_projector_dim"])
    head.load_state_dict({part: state.pop(f"multi_vector_projector.{part}") for part in ("weight", "bias")})
    model = transformers.Qwen2_5_VLModel(config).float().eval()
    model.load_state_dict(state)
    model.projector = head
    return model


def run_v4(model: Any, ids: list[int], images: list[tuple[Array, int, int]], *, types: bool = True) -> tuple[Array, Array]:
    """(t, h) states after the final norm and (t, m) multi-vectors of one item; `types` passes mm_token_type_ids."""
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if images:
        inputs["pixel_values"] = _float32(np.concatenate([rows for rows, _, _ in images]))
        inputs["image_grid_thw"] = torch.tensor([[1, high, wide] for _, high, wide in images])
        if types:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0]
        multi = torch.nn.functional.normalize(model.projector(states), dim=-1)
    return states.double().numpy(), multi.double().numpy()


def qwen_pixel_rows(folder: Path, image: Any) -> tuple[Array, tuple[int, int]]:
    """(n, 1176) rows and the grid, by transformers' image processor on PIL."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ("min_pixels", "max_pixels", "size", "image_mean", "image_std", "resample")
    settings = {name: value for name, value in read_json(folder / "preprocessor_config.json").items() if name in names}
    output = Qwen2VLImageProcessorPil(**settings)(images=[image], return_tensors="np")
    return output["pixel_values"].astype(np.float64), tuple(output["image_grid_thw"][0, 1:].tolist())

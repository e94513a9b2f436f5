"""jina-embeddings-v4 on disk, in its published layout, checked: settings, the base in shards, three adapters in one file.

The base is Qwen2.5-VL under its old tensor names, with one more linear layer, `multi_vector_projector`. `adapters/` holds a
PEFT adapter per task in one file, with the task in each tensor's name; PEFT itself would take them for one adapter. Every tensor
that the settings call for must be there in its shape, and no other. The remote code that config.json names is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ragkit.core.errors import CheckpointError
from ragkit.encode.checkpoints.checkpoint import (
    Config,
    StoredTensors,
    check_names_and_shapes,
    impossible_sizes,
    read_json,
    read_plain_lora,
)
from ragkit.encode.images import Resizing
from ragkit.encode.torch_backend import Tensor

ADAPTED = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
PROJECTOR = "multi_vector_projector"
TASKS = ("retrieval", "text-matching", "code")
MAX_TOKENS = 32768  # documented

# Sizes, by their names in config.json; those of the text stand at its top, under text_config, or at both places.
_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "in_channels", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "window_size", "fullatt_block_indexes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class V4Settings:
    """What config.json, preprocessor_config.json and adapter_config.json say."""

    text: Config  # as transformers' Qwen2_5_VLTextConfig takes it
    vision: Config  # as Qwen2_5_VLVisionConfig takes it
    image_token: int
    vision_start: int
    vision_end: int
    multi_dims: int
    matryoshka: tuple[int, ...]
    tasks: tuple[str, ...]
    rank: int
    scale: float  # LoRA's alpha / rank
    resizing: Resizing
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> V4Settings:
        """Read all three files. Raises CheckpointError for a setting that is missing or another model's."""
        config, pixels = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
        try:
            vision = config["vision_config"]
            text = {**config, **(config.get("text_config") or {})}
            _refuse_others(folder, config, text, vision, pixels)
            rank, alpha = read_plain_lora(folder / "adapters" / "adapter_config.json")
            settings = cls(
                text={name: text[name] for name in _TEXT} | {"rope_parameters": _rope(text)},
                vision={name: vision[name] for name in _VISION},
                image_token=int(config["image_token_id"]),
                vision_start=int(config["vision_start_token_id"]),
                vision_end=int(config["vision_end_token_id"]),
                multi_dims=int(config["multi_vector_projector_dim"]),
                matryoshka=tuple(map(int, config["matryoshka_dims"])),
                tasks=tuple(map(str, config["task_names"])),
                rank=rank,
                scale=alpha / rank,
                resizing=_resizing(vision, pixels),
                mean=tuple(map(float, pixels["image_mean"])),
                std=tuple(map(float, pixels["image_std"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{folder} lacks settings of jina-embeddings-v4 in config.json, preprocessor_config.json or "
                f"adapters/adapter_config.json ({error!r}). Fetch the model again"
            ) from None
        settings._check(folder / "config.json")
        return settings

    def _check(self, path: Path) -> None:
        if set(self.tasks) - set(TASKS) or not self.tasks:
            raise CheckpointError(f"{path}: task_names are {self.tasks}, known are {', '.join(TASKS)}")
        sizes = [*self.text.values(), *self.vision.values()]
        positive = all(isinstance(size, int | float) and size > 0 for size in sizes if not isinstance(size, list | dict))
        if not (positive and self._heads_fit() and self._images_fit()):
            raise impossible_sizes(path, f"{self.text}, {self.vision}")

    def _heads_fit(self) -> bool:
        """Return whether heads divide the widths, and rotary positions fill a head."""
        text, vision = self.text, self.vision
        return bool(
            text["hidden_size"] % text["num_attention_heads"] == 0
            and text["num_attention_heads"] % text["num_key_value_heads"] == 0
            and 2 * sum(text["rope_parameters"]["mrope_section"]) == text["hidden_size"] // text["num_attention_heads"]
            and vision["hidden_size"] % (4 * vision["num_heads"]) == 0
        )

    def _images_fit(self) -> bool:
        """Return whether the vision tower fits the text's width, and the images its windows."""
        text, vision = self.text, self.vision
        return bool(
            vision["out_hidden_size"] == text["hidden_size"]
            and vision["window_size"] % self.resizing.unit == 0
            and 0 < self.resizing.least <= self.resizing.most
            and len(self.mean) == len(self.std) == 3
        )


def _resizing(vision: Config, pixels: Config) -> Resizing:
    size = pixels.get("size") or {}
    return Resizing(
        unit=int(vision["patch_size"]) * int(vision["spatial_merge_size"]),
        least=int(pixels.get("min_pixels") or size["shortest_edge"]),
        most=int(pixels.get("max_pixels") or size["longest_edge"]),
    )


def _rope(text: Config) -> dict[str, object]:
    """Return rotary settings in transformers' names: theta and the sections of time, row and column must both survive."""
    rope = _rope_settings(text)
    theta = float(rope["rope_theta"] if "rope_theta" in rope else text["rope_theta"])
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": [int(part) for part in rope["mrope_section"]]}


def _rope_settings(text: Config) -> Config:
    return {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}


def _refuse_others(folder: Path, config: Config, text: Config, vision: Config, pixels: Config) -> None:
    """Raise CheckpointError for a setting whose value belongs to another model."""
    rope = _rope_settings(text)
    allowed = {
        "single_vector_pool_strategy": (config.get("single_vector_pool_strategy", "mean"), ("mean",)),
        "hidden_act": (text.get("hidden_act", "silu"), ("silu",)),
        "vision_config.hidden_act": (vision.get("hidden_act", "silu"), ("silu",)),
        "use_sliding_window": (bool(text.get("use_sliding_window")), (False,)),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), ("default", "mrope")),
        "resample": (pixels.get("resample", 3), (3,)),
        **{
            f"preprocessor's {name}": (pixels.get(name, vision[own]), (vision[own],))
            for name, own in {
                "patch_size": "patch_size",
                "merge_size": "spatial_merge_size",
                "temporal_patch_size": "temporal_patch_size",
            }.items()
        },
        "rescale_factor": (round(1 / float(pixels.get("rescale_factor", 1 / 255)), 3), (255.0,)),
    }
    for name, (value, values) in allowed.items():
        if value not in values:
            raise CheckpointError(
                f"{folder}: {name} is {value!r}, but in jina-embeddings-v4 it is {values[0]!r}: this is another model, and would "
                "get wrong vectors here"
            )


class V4Tensors:
    """The shards of the base as one, and the adapters. Tensors are mapped, in their stored dtype."""

    def __init__(self, folder: Path, settings: V4Settings) -> None:
        """Open and check the adapters. The base is checked against the module it is to fill, by `check`."""
        self.files = _shards(folder)
        self._shards = [StoredTensors(path) for path in self.files]
        self._adapters = StoredTensors(folder / "adapters" / "adapter_model.safetensors")
        self._where = {name: shard for shard in self._shards for name in shard.shapes}
        self._index = folder / "model.safetensors.index.json"
        self.files = [*self.files, self._adapters.path]
        check_names_and_shapes(self._adapters.path, self._adapters.shapes, _adapter_shapes(settings))

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError unless the base has the expected tensors in their shapes, and no others."""
        stored = {name: shard.shapes[name] for name, shard in self._where.items()}
        check_names_and_shapes(self._index if self._index.exists() else self.files[0], stored, expected)

    @property
    def dtype(self) -> str:
        """The dtype of the base: "bfloat16" as published."""
        name, shard = next(iter(self._where.items()))
        return str(shard.mapped(name).dtype).removeprefix("torch.")

    def base(self, name: str) -> Tensor:
        return self._where[name].mapped(name)

    def low_rank(self, module: str, task: str) -> tuple[Tensor, Tensor]:
        """Return (A (rank, in), B (out, rank)) of a module in Qwen2_5_VLModel's names, or of the projector."""
        a, b = _adapter_names(module, task)
        return self._adapters.mapped(a), self._adapters.mapped(b)


def _shards(folder: Path) -> list[Path]:
    index = read_json(folder / "model.safetensors.index.json", optional=True)
    if not index:
        return [folder / "model.safetensors"]
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) and Path(file).name == file for file in names.values()):
        raise CheckpointError(f"{folder / 'model.safetensors.index.json'} does not list this folder's shards. Fetch it again")
    return [folder / file for file in sorted(set(names.values()))]


def _adapter_names(module: str, task: str) -> tuple[str, str]:
    at = f"base_model.model.{module}" if module == PROJECTOR else f"base_model.model.model.{module}"
    return f"{at}.lora_A.{task}.weight", f"{at}.lora_B.{task}.weight"


def adapted_modules(settings: V4Settings) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear layer that has adapters, in Qwen2_5_VLModel's names, and of the projector."""
    h, f = settings.text["hidden_size"], settings.text["intermediate_size"]
    kv = h // settings.text["num_attention_heads"] * settings.text["num_key_value_heads"]
    own = dict(zip(ADAPTED, ((h, h), (kv, h), (kv, h), (h, h), (f, h), (f, h), (h, f)), strict=True))
    layers = range(settings.text["num_hidden_layers"])
    modules = {f"language_model.layers.{layer}.{name}": shape for layer in layers for name, shape in own.items()}
    return modules | {PROJECTOR: (settings.multi_dims, h)}


def _adapter_shapes(settings: V4Settings) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for module, (out, wide) in adapted_modules(settings).items():
        for task in settings.tasks:
            shapes |= dict(zip(_adapter_names(module, task), ((settings.rank, wide), (out, settings.rank)), strict=True))
    return shapes


def is_v4(folder: Path, config: Config, names: frozenset[str]) -> bool:
    """Return whether a folder has this layout, by its tensors and adapters; its model_type is Qwen2.5-VL's."""
    heads = f"{PROJECTOR}.weight" in names or (folder / "adapters" / "adapter_config.json").is_file()
    return heads and "visual.patch_embed.proj.weight" in names and "model.embed_tokens.weight" in names

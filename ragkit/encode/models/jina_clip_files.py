"""jina-clip-v1 on disk, in its published layout: the sizes and settings of both towers, checked, and the tensors they call for.

Knows nothing of torch. A setting that is not this model's is refused: another model of the same layout would get wrong vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from ragkit.core.errors import CheckpointError
from ragkit.encode.checkpoints.checkpoint import Config, impossible_sizes, read_json

TEXT, VISION = "text_model.transformer", "vision_model"  # prefixes of the tensors' names


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """The text tower's sizes in its config's names. The defaults are jinaai/jina-bert-flash-implementation's."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30528
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    hidden_act: str = "gelu"
    mlp_type: str = "glu"
    use_qk_norm: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its published name."""
        h, f, at = self.hidden_size, self.intermediate_size, f"{TEXT}.embeddings"
        shapes: dict[str, tuple[int, ...]] = {
            f"{at}.word_embeddings.weight": (self.vocab_size, h),
            f"{at}.token_type_embeddings.weight": (self.type_vocab_size, h),
            **_with_bias(f"{TEXT}.emb_ln", h),
        }
        for layer in range(self.num_hidden_layers):
            own = f"{TEXT}.encoder.layers.{layer}"
            shapes |= _with_bias(f"{own}.mixer.Wqkv", 3 * h, h) | _with_bias(f"{own}.mixer.out_proj", h, h)
            shapes |= {f"{own}.mlp.gated_layers.weight": (2 * f, h)} | _with_bias(f"{own}.mlp.wo", h, f)
            shapes |= _with_bias(f"{own}.norm1", h) | _with_bias(f"{own}.norm2", h)
        return shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape:
    """The image tower's sizes, in the names of `vision_config`."""

    width: int
    layers: int
    head_width: int
    image_size: int
    patch_size: int
    mlp_ratio: float

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its published name."""
        h, f = self.width, int(self.width * self.mlp_ratio)
        shapes: dict[str, tuple[int, ...]] = {
            f"{VISION}.cls_token": (1, 1, h),
            f"{VISION}.pos_embed": (1, 1 + self.grid**2, h),
            **_with_bias(f"{VISION}.patch_embed.proj", h, 3, self.patch_size, self.patch_size),
            **_with_bias(f"{VISION}.norm", h),
        }
        for block in range(self.layers):
            own = f"{VISION}.blocks.{block}"
            shapes |= {f"{own}.attn.{letter}_proj.weight": (h, h) for letter in "qkv"}
            shapes |= {f"{own}.attn.{letter}_bias": (h,) for letter in "qv"}
            shapes |= _with_bias(f"{own}.attn.inner_attn_ln", h) | _with_bias(f"{own}.attn.proj", h, h)
            shapes |= _with_bias(f"{own}.mlp.w1", f, h) | _with_bias(f"{own}.mlp.w2", f, h)
            shapes |= _with_bias(f"{own}.mlp.ffn_ln", f) | _with_bias(f"{own}.mlp.w3", h, f)
            shapes |= _with_bias(f"{own}.norm1", h) | _with_bias(f"{own}.norm2", h)
        return shapes


def _with_bias(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def is_buffer(name: str) -> bool:
    """Return whether a tensor is one that some revisions also hold, and that is computed here."""
    return name.endswith((".rope.freqs_cos", ".rope.freqs_sin", ".linear_biases", ".alibi_slopes", ".position_ids"))


# The values that settings of config.json must have where they stand there: another value belongs to another model.
_TEXT_SETTINGS = {"pooler_type": "mean_pooler", "proj_type": None}
_TOWER_SETTINGS = {"hidden_act": "gelu", "mlp_type": "glu", "use_qk_norm": False}
_VISION_SETTINGS = {
    "qkv_bias": True, "subln": True, "naive_swiglu": True, "rope_embeddings": True, "intp_freq": False, "post_norm": False,
    "ls_init_value": None, "x_attention": False, "proj_type": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """Both towers, the width of the common space, and how images are prepared."""

    text: TextShape
    vision: VisionShape
    projection_dim: int
    add_projections: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> ClipShape:
        """Read config.json and preprocessor_config.json. Raises CheckpointError for those of another model."""
        config, pixels = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
        try:
            text = _text_tower(folder, config["text_config"])
            vision = _vision_tower(folder, config["vision_config"])
            _check(folder, pixels, {"size": vision.image_size, "resize_mode": "shortest", "interpolation": "bicubic"})
            shape = cls(
                text=text,
                vision=vision,
                projection_dim=int(config["projection_dim"]),
                add_projections=bool(config.get("add_projections", False)),
                mean=tuple(map(float, pixels["mean"])),
                std=tuple(map(float, pixels["std"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{folder} lacks settings of jina-clip-v1 in config.json or preprocessor_config.json ({error!r}). "
                "Fetch the model again"
            ) from None
        if not shape._fits():
            raise impossible_sizes(folder / "config.json", shape)
        return shape

    def _fits(self) -> bool:
        """Return whether the sizes go together."""
        text, vision = self.text, self.vision
        return (
            min(text.hidden_size, text.num_attention_heads, text.intermediate_size, vision.width, vision.head_width) > 0
            and text.hidden_size % text.num_attention_heads == 0
            and vision.width % vision.head_width == 0
            and vision.head_width % 4 == 0
            and vision.image_size % vision.patch_size == 0
            and len(self.mean) == len(self.std) == 3
            and (self.add_projections or text.hidden_size == vision.width == self.projection_dim)
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its published name."""
        shapes = {"logit_scale": ()} | self.text.tensors() | self.vision.tensors()
        if self.add_projections:
            shapes["text_projection.weight"] = (self.projection_dim, self.text.hidden_size)
            shapes["visual_projection.weight"] = (self.projection_dim, self.vision.width)
        return shapes


def _text_tower(folder: Path, config: Config) -> TextShape:
    tower = {**_TOWER_SETTINGS, **config.get("hf_model_config_kwargs", {})}
    _check(folder, config, _TEXT_SETTINGS)
    _check(folder, tower, _TOWER_SETTINGS)
    kinds: dict[str, Callable[[object], object]] = {field.name: type(field.default) for field in fields(TextShape)}
    sizes: Config = {name: kinds[name](value) for name, value in tower.items() if name in kinds}
    return TextShape(**sizes)


def _vision_tower(folder: Path, config: Config) -> VisionShape:
    _check(folder, config, _VISION_SETTINGS)
    _check(folder, config, {"pt_hw_seq_len": config["image_size"] // config["patch_size"]})
    sizes = {field.name: int(config[field.name]) for field in fields(VisionShape) if field.name != "mlp_ratio"}
    return VisionShape(**sizes, mlp_ratio=float(config["mlp_ratio"]))


def _check(folder: Path, config: Config, expected: Mapping[str, object]) -> None:
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"{folder}: {name} is {config[name]!r}, but in jina-clip-v1 it is {value!r}: this is another model, and would "
                "get wrong vectors here"
            )

"""jina-clip-v1, run by us from its published files (Koukounas et al., arXiv 2405.20204): no code of the checkpoint.

Texts and images in one space of 768 dimensions. The text tower is a post-norm BERT with ALiBi in place of positions and a
gated middle, mean-pooled, on packed rows (see `packed.py`). The image tower is EVA-02 B/16: patches with rotary rows and
columns, a norm inside attention and middle, the class token pooled.

The published checkpoint does not hold the text tower's sizes, they stand in another repository; here they are defaults. Its
own code cuts texts at 512 tokens without a word; the model takes 8,192, and so does this. Images are cut to the centre square,
so the ends of a long page are not seen. Cosines of an image and a text are lower than of two texts: never merge the rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.encode.batching import ahead
from ragkit.encode.bert import read_tokenizer
from ragkit.encode.checkpoint import check_names_and_shapes, licence_of, read_json, read_tensors
from ragkit.encode.contract import EncoderCard, Encoding, Item, Patches, TokenIds, TokenStates
from ragkit.encode.images import (
    Image,
    centre_square,
    check_sides,
    normalised,
    shortest_at,
    square_cut,
    upright_rgb,
    upright_size,
)
from ragkit.encode.kernels import Kernels, Runs, TorchKernels, import_torch, runs_of
from ragkit.encode.layouts import Opening
from ragkit.encode.packed import Forward, PackedEncoder, Placed, Row
from ragkit.encode.precision import checked_dtype, default_device
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_truncate_dim, split_item, too_long
from ragkit.errors import CheckpointError, EncodeError, InputTooLong
from ragkit.ragged import unit_and_lengths
from ragkit.types import Box, Floats, Ints

MAX_TOKENS = 8192  # trained up to here; nothing in the weights depends on it
CPU_TOKENS, GPU_TOKENS = 2048, 65536  # of text, a batch
CPU_IMAGES, GPU_IMAGES = 16, 512  # a batch; 197 tokens each
BIAS = 1 << 24  # numbers of ALiBi made at a time: 64 MB in float32, where 8,192 tokens at once were 3.2 GB
TEXT, VISION = "text_model.transformer", "vision_model"

Tensor = Any  # torch.Tensor
Weights = Mapping[str, Any]


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
        """Every tensor by its published name, with its shape."""
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


def _is_buffer(name: str) -> bool:
    """What some revisions also hold, and is computed here."""
    return name.endswith((".rope.freqs_cos", ".rope.freqs_sin", ".linear_biases", ".alibi_slopes", ".position_ids"))


# Settings of config.json and what they must be: anything else is another model.
_TEXT_AS = {"pooler_type": "mean_pooler", "proj_type": None}
_TOWER_AS = {"hidden_act": "gelu", "mlp_type": "glu", "use_qk_norm": False}
_VISION_AS = {
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
        """From config.json and preprocessor_config.json. CheckpointError for what is not this model."""
        config, pixels = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
        try:
            given, vision = config["text_config"], config["vision_config"]
            tower = {**_TOWER_AS, **given.get("hf_model_config_kwargs", {})}
            for settings, wanted in ((given, _TEXT_AS), (tower, _TOWER_AS), (vision, _VISION_AS)):
                _check(folder, settings, wanted)
            _check(folder, vision, {"pt_hw_seq_len": vision["image_size"] // vision["patch_size"]})
            _check(folder, pixels, {"size": vision["image_size"], "resize_mode": "shortest", "interpolation": "bicubic"})
            kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(TextShape)}
            shape = cls(
                text=TextShape(**{name: kinds[name](value) for name, value in tower.items() if name in kinds}),
                vision=VisionShape(
                    **{field.name: int(vision[field.name]) for field in fields(VisionShape) if field.name != "mlp_ratio"},
                    mlp_ratio=float(vision["mlp_ratio"]),
                ),
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
        shape._check_sizes(folder)
        return shape

    def _check_sizes(self, folder: Path) -> None:
        text, vision = self.text, self.vision
        fits = (
            min(text.hidden_size, text.num_attention_heads, text.intermediate_size, vision.width, vision.head_width) > 0
            and text.hidden_size % text.num_attention_heads == 0
            and vision.width % vision.head_width == 0
            and vision.head_width % 4 == 0
            and vision.image_size % vision.patch_size == 0
            and len(self.mean) == len(self.std) == 3
            and (self.add_projections or text.hidden_size == vision.width == self.projection_dim)
        )
        if not fits:
            raise CheckpointError(f"{folder / 'config.json'} has impossible sizes: {self}. Fetch the model again")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        shapes = {"logit_scale": ()} | self.text.tensors() | self.vision.tensors()
        if self.add_projections:
            shapes["text_projection.weight"] = (self.projection_dim, self.text.hidden_size)
            shapes["visual_projection.weight"] = (self.projection_dim, self.vision.width)
        return shapes


def _check(folder: Path, settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{folder}: {name} is {settings[name]!r}, but in jina-clip-v1 it is {value!r}: this is another model, and would "
                "get wrong vectors here"
            )


def load(opening: Opening) -> ClipEncoder:
    """Check and load a folder of the published layout."""
    torch, shape = import_torch(), ClipShape.read(opening.folder)
    tokenizer = read_tokenizer(opening.folder / "tokenizer.json", shape.text.vocab_size)
    tensors = read_tensors(opening.folder / "model.safetensors")
    expected = shape.tensors()
    buffers = [name for name in tensors.arrays if _is_buffer(name)]
    shapes = {name: array.shape for name, array in tensors.arrays.items()}
    check_names_and_shapes(tensors.path, shapes, expected, ignorable=buffers)
    max_tokens = MAX_TOKENS if opening.max_tokens is None else opening.max_tokens
    if not 3 <= max_tokens <= MAX_TOKENS:
        raise ValueError(f"max_tokens must be between 3 and {MAX_TOKENS}, which this model was trained for, got {max_tokens}")
    dtype, device = checked_dtype(opening.dtype), opening.device or default_device(torch)
    card = EncoderCard(
        name=opening.name,
        revision=opening.revision_of(tensors.sha256),
        licence=licence_of(opening.folder),
        dims=shape.projection_dim,
        tasks=GENERAL,
        modalities=("text", "image"),
        query_modalities=("text", "image"),
        max_tokens=max_tokens,
        pooling="mean",
        dtype=dtype,
        preprocessing={"weights": tensors.sha256, "tokenizer": tokenizer.sha256, "shape": asdict(shape)},
    )
    card = replace(card, task=checked_task(opening.task, card))
    towers = Towers({name: tensors.float32(name) for name in expected}, shape=shape, device=device, dtype=dtype)
    return ClipEncoder(card, towers=towers, texts=PackedEncoder(card, model=towers, tokenizer=tokenizer))


class ClipEncoder:
    """An `Encoder` and a `TokenEncoder` (see `contract.py`). Thread-safe. Texts and images may be mixed in a call.

    `logit_scale`: softmax of logit_scale times cosines is the model's own probability of texts for an image.
    """

    def __init__(self, card: EncoderCard, *, towers: Towers, texts: PackedEncoder) -> None:
        self.card = card
        self.device = towers.device
        self.logit_scale = towers.logit_scale
        self._towers = towers
        self._texts = texts
        self._together = CPU_IMAGES if towers.device == "cpu" else GPU_IMAGES

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """n texts or images -> n unit rows, in order. Raises InputTooLong (unless `truncate`), EncodeError for a bad image."""
        full_task(task, self.card, role="query")
        return self._encode(queries, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """As `encode_query`: this model knows no roles."""
        full_task(task, self.card, role="document")
        return self._encode(documents, truncate_dim=truncate_dim, truncate=truncate)

    def encode(self, inputs: Sequence[Item], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        """As `encode_query`, for any of the general tasks: all are encoded alike."""
        full_task(task, self.card, role=None)
        return self._encode(inputs, truncate_dim=truncate_dim, truncate=truncate)

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        return self._texts.encode_tokens(text, task=task)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        return self._texts.token_ids(text, task=task)

    def encode_ids(self, rows: Sequence[npt.NDArray[Any]], *, task: str | None = None) -> list[Floats]:
        return self._texts.encode_ids(rows, task=task)

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        return self._texts.task_tokens(texts, task)

    def text_of(self, ids: Sequence[int]) -> str:
        return self._texts.text_of(ids)

    def token_spans(self, text: str) -> Ints:
        return self._texts.token_spans(text)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        return self._texts.count_tokens(documents)

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        """(width, height) in pixels with the shorter side as the model has it; of the longer one it sees the middle."""
        return shortest_at(width, height, self._towers.shape.vision.image_size)

    def patches(self, width: int, height: int) -> Patches:
        """The tower's grid over the centre square. One vector stands for all of it: no cell has one of its own."""
        check_sides(width, height)
        vision = self._towers.shape.vision
        size, left, top = square_cut(width, height, vision.image_size)
        right, bottom = left + vision.image_size, top + vision.image_size
        region = Box(left / size[0], top / size[1], right / size[0], bottom / size[1])
        return Patches(region, np.full((vision.grid, vision.grid), -1, dtype=np.int64))

    def _encode(self, inputs: Sequence[Item], *, truncate_dim: int | None, truncate: bool) -> Encoding:
        if isinstance(inputs, str):
            raise TypeError("expected a list of inputs, got one str: wrap it in a list")
        check_truncate_dim(truncate_dim, self.card)
        items = [split_item(i, item) for i, item in enumerate(inputs)]
        for i, (text, image) in enumerate(items):
            if text is not None and image is not None:
                raise TypeError(f"input {i} is a text and an image together, but {self.card.name} takes the one or the other")
        images = {i: image for i, (_, image) in enumerate(items) if image is not None}
        for i, image in images.items():
            upright_size(i, image)  # what cannot be encoded is found before the work begins
        at = [i for i in range(len(items)) if i not in images]
        dense = np.empty((len(items), self.card.dims), dtype=np.float32)
        encoded = self._encode_texts([inputs[i] for i in at], at, truncate=truncate)
        dense[at] = encoded.dense
        self._encode_images(images, dense)
        dense, lengths = unit_and_lengths(dense, truncate_dim)
        if encoded.lengths is not None:
            lengths[at] *= encoded.lengths  # texts come as unit rows
        return Encoding(dense=dense, truncated=encoded.truncated, lengths=lengths)

    def _encode_texts(self, texts: list[str], at: list[int], *, truncate: bool) -> Encoding:
        """Errors name the positions that the texts have among all inputs."""
        try:
            return self._texts.encode_document(texts, truncate=truncate)
        except InputTooLong:
            counts = self._texts.count_tokens(texts)
            first = int(np.argmax(counts > self.card.max_tokens))
            raise too_long(at[first], int(counts[first]), self.card) from None

    def _encode_images(self, images: Mapping[int, Image], dense: Floats) -> None:
        """Write the vectors of the images to their rows; the next batch is decoded while one is computed."""
        order = list(images)
        groups = [order[start : start + self._together] for start in range(0, len(order), self._together)]
        for group, pixels in zip(groups, ahead(partial(self._pixels, images), groups), strict=True):
            self._write(np.array(group), pixels, dense)

    def _pixels(self, images: Mapping[int, Image], group: Sequence[int]) -> Floats:
        """(len(group), 3, side, side)."""
        shape, side = self._towers.shape, self._towers.shape.vision.image_size
        squares = [normalised(centre_square(upright_rgb(i, images[i]), side), shape.mean, shape.std) for i in group]
        return np.stack(squares).transpose(0, 3, 1, 2)

    def _write(self, at: Ints, pixels: Floats, dense: Floats) -> None:
        found = self._towers.see(pixels)
        if not isinstance(found, str):
            dense[at] = found
            return
        if len(at) == 1:
            raise EncodeError(f"an image exceeds the memory of {self.device}: {found}")
        self._together = max(1, len(at) // 2)
        for rows, part in zip(np.array_split(at, 2), np.array_split(pixels, 2), strict=True):
            self._write(rows, part, dense)


class Towers:
    """Both towers on their device: a `PackedModel` for texts, and `see` for images. `weights`: float32, by published name."""

    def __init__(self, weights: Mapping[str, Floats], *, shape: ClipShape, device: str, dtype: str) -> None:
        self.shape = shape
        self.device = device
        self.budget = CPU_TOKENS if device == "cpu" else GPU_TOKENS
        self.logit_scale = float(np.exp(np.float64(weights["logit_scale"])))
        self._weights = {name: array for name, array in weights.items() if name != "logit_scale"}
        self._dtype = dtype
        self._placed = Placed(self._place)

    def arithmetic(self, tokens: int, *, few: bool) -> tuple[Kernels, Forward]:
        kernels, weights = self._placed[self._dtype]
        return kernels, partial(_read, kernels, weights, self.shape)

    def see(self, pixels: Floats) -> Floats | str:
        """(n, 3, side, side) -> (n, d), or what there was no memory for."""
        kernels, weights = self._placed[self._dtype]
        try:
            with kernels.context():
                return kernels.to_numpy(_see(kernels, weights, self.shape, pixels))  # type: ignore[no-any-return]
        except kernels.out_of_memory as error:
            return str(error)

    def _place(self, dtype: str) -> tuple[TorchKernels, Weights]:
        kernels = TorchKernels(self.device, dtype)
        return kernels, kernels.place(self._weights)


def _linear(kernels: TorchKernels, w: Weights, x: Tensor, weight: str, bias: str) -> Tensor:
    """With a bias where there is one of that name."""
    own = w.get(bias)
    own = own if own is None else own.to(kernels.dtype)
    return kernels.torch.nn.functional.linear(x.to(kernels.dtype), w[weight], own)


def _read(kernels: TorchKernels, w: Weights, shape: ClipShape, ids: Sequence[Row], tasks: Sequence[str]) -> Tensor:
    """Token ids of several texts -> the last layer's states, packed (sum of lengths, d)."""
    torch, text, runs = kernels.torch, shape.text, runs_of([len(row) for row in ids])

    def linear(x: Tensor, name: str) -> Tensor:
        return _linear(kernels, w, x, f"{name}.weight", f"{name}.bias")

    def norm_of_sum(x: Tensor, y: Tensor, name: str) -> Tensor:
        return kernels.norm_of_sum(x, y, w[f"{name}.weight"], w[f"{name}.bias"], text.layer_norm_eps)

    words = kernels.gather(w[f"{TEXT}.embeddings.word_embeddings.weight"], np.concatenate(ids))
    x = norm_of_sum(words, w[f"{TEXT}.embeddings.token_type_embeddings.weight"][0], f"{TEXT}.emb_ln")
    for layer in range(text.num_hidden_layers):
        own = f"{TEXT}.encoder.layers.{layer}"
        mixed = _attention(torch, linear(x, f"{own}.mixer.Wqkv"), runs, text.num_attention_heads)
        x = norm_of_sum(linear(mixed, f"{own}.mixer.out_proj"), x, f"{own}.norm1")
        activated, gate = linear(x, f"{own}.mlp.gated_layers").chunk(2, dim=-1)
        x = norm_of_sum(linear(kernels.gelu(activated) * gate, f"{own}.mlp.wo"), x, f"{own}.norm2")
    return linear(x, "text_projection") if shape.add_projections else x  # linear: before or after the mean is the same


def _attention(torch: Any, qkv: Tensor, runs: Runs, heads: int) -> Tensor:
    """Bidirectional attention within each text with ALiBi (Press et al. 2022): qkv (T, 3 * width) -> (T, width).

    The bias of a head depends on the distance alone: row by row it is one line of numbers, moved by one. Queries from the last
    to the first read it as windows into that line, which take no memory; what cannot read windows gets a block at a time.
    """
    width, mixed = qkv.shape[1] // 3, []
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=qkv.device)[:, None]
    for rows, (texts, length) in zip(qkv.split([texts * length for texts, length in runs]), runs, strict=True):
        q, k, v = rows.view(texts, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        line = -slopes * torch.arange(1 - length, length, device=qkv.device).abs()  # (heads, 2 * length - 1)
        bias = line.to(qkv.dtype).unfold(-1, length, 1)  # (heads, length, length): row i belongs to the i-th query from the end
        size, parts = max(1, BIAS // (heads * length)), []
        for asked, own in zip(q.flip(2).split(size, dim=2), bias.split(size, dim=1), strict=True):
            mask = own if qkv.device.type == "cpu" else own.contiguous()
            parts.append(torch.nn.functional.scaled_dot_product_attention(asked, k, v, attn_mask=mask[None]))
        mixed.append(torch.cat(parts, dim=2).flip(2).transpose(1, 2).reshape(len(rows), width))
    return torch.cat(mixed)


@cache
def alibi_slopes(heads: int) -> tuple[float, ...]:
    """2^(-8 (k + 1) / n) for a power of two; else those of the one below, then every second of the one above."""
    below = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (k + 1) / below) for k in range(below)]
    between = [2 ** (-8 * (k + 1) / (2 * below)) for k in range(0, 2 * below, 2)]
    return tuple(slopes + between[: heads - below])


def _see(kernels: TorchKernels, w: Weights, shape: ClipShape, pixels: Floats) -> Tensor:
    """(n, 3, side, side) -> the class tokens' last states, (n, d)."""
    torch, vision, n = kernels.torch, shape.vision, len(pixels)
    functional = torch.nn.functional
    turn = _rotation(torch, vision, kernels.device)

    def linear(x: Tensor, name: str) -> Tensor:
        return _linear(kernels, w, x, f"{name}.weight", f"{name}.bias")

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x.float(), x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def heads(x: Tensor, own: str, letter: str) -> Tensor:
        x = _linear(kernels, w, x, f"{own}.attn.{letter}_proj.weight", f"{own}.attn.{letter}_bias")
        return x.view(n, -1, vision.width // vision.head_width, vision.head_width).transpose(1, 2)

    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(kernels.device, kernels.dtype)
    at, step = f"{VISION}.patch_embed.proj", vision.patch_size
    patches = functional.conv2d(images, w[f"{at}.weight"], w[f"{at}.bias"].to(kernels.dtype), stride=step)
    patches = patches.flatten(2).transpose(1, 2).float()
    x = torch.cat([w[f"{VISION}.cls_token"].float().expand(n, -1, -1), patches], dim=1) + w[f"{VISION}.pos_embed"]
    for block in range(vision.layers):
        own = f"{VISION}.blocks.{block}"
        y = norm(x, f"{own}.norm1")
        q, k, v = turn(heads(y, own, "q")), turn(heads(y, own, "k")), heads(y, own, "v")
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, vision.width)
        x = x + linear(norm(mixed, f"{own}.attn.inner_attn_ln"), f"{own}.attn.proj")
        y = norm(x, f"{own}.norm2")
        inner = functional.silu(linear(y, f"{own}.mlp.w1")) * linear(y, f"{own}.mlp.w2")
        x = x + linear(norm(inner, f"{own}.mlp.ffn_ln"), f"{own}.mlp.w3")
    pooled = norm(x[:, 0], f"{VISION}.norm")
    return linear(pooled, "visual_projection") if shape.add_projections else pooled


def _rotation(torch: Any, vision: VisionShape, device: Any) -> Callable[[Tensor], Tensor]:
    """Turns queries and keys (n, heads, 1 + patches, head width) by the patches' places; the class token has none.

    Neighbouring pairs (2j, 2j + 1): the first half of a head by the row, the second by the column, in frequencies
    10000^(-2j / half).
    """
    half = vision.head_width // 2
    powers = torch.arange(0, half, 2, dtype=torch.float64, device=device) / half
    places = torch.arange(vision.grid, dtype=torch.float64, device=device)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    angles = torch.cat([side.reshape(-1, 1) / 10000.0**powers for side in (rows, columns)], dim=1)  # (patches, head width / 2)
    cos, sin = angles.cos().float(), angles.sin().float()

    def turn(x: Tensor) -> Tensor:
        pairs = x[:, :, 1:].float().unflatten(-1, (-1, 2))
        first, second = pairs.unbind(-1)
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
        return torch.cat([x[:, :, :1], turned.to(x.dtype)], dim=2)

    return turn

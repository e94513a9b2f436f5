"""The forward passes of jina-clip-v1's two towers, for texts on packed rows and for images.

Takes weights that `jina_clip_files.py` has checked, by their published names; knows no tokens, roles or tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np

from ragkit.core.types import Floats
from ragkit.encode.models.jina_clip_files import TEXT, VISION, ClipShape, VisionShape
from ragkit.encode.models.kernels import Kernels, Placed, Runs, TorchKernels, runs_of
from ragkit.encode.models.packed import Forward, Row
from ragkit.encode.torch_backend import Tensor, Torch, Weights

CPU_TOKENS, GPU_TOKENS = 2048, 65536  # of text, a batch
BIAS = 1 << 24  # numbers of ALiBi made at a time: 64 MB in float32, where 8,192 tokens at once were 3.2 GB


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
        """Return the vectors (n, d) of images (n, 3, side, side); or, as a str, why there was no memory."""
        kernels, weights = self._placed[self._dtype]
        try:
            with kernels.context():
                return kernels.to_numpy(_see(kernels, weights, self.shape, pixels))
        except kernels.out_of_memory as error:
            return str(error)

    def _place(self, dtype: str) -> tuple[TorchKernels, Weights]:
        kernels = TorchKernels(self.device, dtype)
        return kernels, kernels.place(self._weights)


def _linear(kernels: TorchKernels, w: Weights, x: Tensor, weight: str, bias: str) -> Tensor:
    """Return x through a linear layer, with a bias if there is one of that name."""
    shift = w.get(bias)
    shift = shift if shift is None else shift.to(kernels.dtype)
    return kernels.torch.nn.functional.linear(x.to(kernels.dtype), w[weight], shift)


def _read(kernels: TorchKernels, w: Weights, shape: ClipShape, ids: Sequence[Row], tasks: Sequence[str]) -> Tensor:
    """Return the last layer's states of several texts' token ids, packed (sum of lengths, d)."""
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


def _attention(torch: Torch, qkv: Tensor, runs: Runs, heads: int) -> Tensor:
    """Attend in both directions within each text with ALiBi (Press et al. 2022): qkv (T, 3 * width) -> (T, width).

    The bias of a head depends on the distance alone: row by row it is one line of numbers, moved by one. Queries from the last
    to the first read it as windows into that line, which take no memory; a GPU, which cannot, gets them a block at a time.
    """
    width, mixed = qkv.shape[1] // 3, []
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=qkv.device)[:, None]
    for rows, (texts, length) in zip(qkv.split([texts * length for texts, length in runs]), runs, strict=True):
        q, k, v = rows.view(texts, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        line = -slopes * torch.arange(1 - length, length, device=qkv.device).abs()  # (heads, 2 * length - 1)
        bias = line.to(qkv.dtype).unfold(-1, length, 1)  # (heads, length, length): row i belongs to the i-th query from the end
        size, parts = max(1, BIAS // (heads * length)), []
        for queries, block in zip(q.flip(2).split(size, dim=2), bias.split(size, dim=1), strict=True):
            mask = block if qkv.device.type == "cpu" else block.contiguous()
            parts.append(torch.nn.functional.scaled_dot_product_attention(queries, k, v, attn_mask=mask[None]))
        mixed.append(torch.cat(parts, dim=2).flip(2).transpose(1, 2).reshape(len(rows), width))
    return torch.cat(mixed)


@cache
def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Return the slope of each of n heads: 2^(-8 (k + 1) / n) for a power of two.

    For another n: the slopes of the power of two below it, then every second slope of the power above.
    """
    below = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (k + 1) / below) for k in range(below)]
    between = [2 ** (-8 * (k + 1) / (2 * below)) for k in range(0, 2 * below, 2)]
    return tuple(slopes + between[: heads - below])


def _see(kernels: TorchKernels, w: Weights, shape: ClipShape, pixels: Floats) -> Tensor:
    """Return the class tokens' last states, (n, d), of images (n, 3, side, side)."""
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


def _rotation(torch: Torch, vision: VisionShape, device: object) -> Callable[[Tensor], Tensor]:
    """Return a function that turns queries and keys (n, heads, 1 + patches, head width) by the patches' places.

    The class token has no place, and stays as it is.

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

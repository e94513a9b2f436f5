"""jina-clip-v1 in float64, read from a folder of the published layout.

oracle = ClipOracle(folder)
oracle.text_vector("a photo of a cat", truncate_dim=32)    (d,) unit vector
oracle.image_vector(image)                                 (d,) unit vector of a PIL image
oracle.pixels(image)                                       (3, s, s): what the image tower sees
oracle.logits(images, texts)                               (i, t): exp(logit_scale) times cosines
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from tests.encode.checkpoints.stored import read_json, read_tensors
from tests.encode.oracles.arithmetic import (
    Array,
    attention,
    frequencies,
    gelu,
    heads_of,
    layer_norm,
    rotate_neighbours,
    shortened,
    silu,
)

# The text tower's sizes are in another repository, jinaai/jina-bert-flash-implementation: these, unless the config changes them.
TEXT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30528,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8 (k + 1) / n) for a power of two; else those of the next smaller one, then every second of the next larger one."""

    def geometric(n: int) -> list[float]:
        return [2 ** (-8 * (k + 1) / n) for k in range(n)]

    smaller = 2 ** int(math.log2(heads))
    return geometric(smaller) + geometric(2 * smaller)[0::2][: heads - smaller]


class ClipOracle:
    def __init__(self, folder: Path) -> None:
        self.config = read_json(folder / "config.json")
        self.text_config = TEXT | self.config["text_config"]["hf_model_config_kwargs"]
        self.vision_config = self.config["vision_config"]
        self.preprocessor = read_json(folder / "preprocessor_config.json")
        self.w, _ = read_tensors(folder / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def text_vector(self, text: str, *, truncate_dim: int | None = None, max_tokens: int | None = None) -> Array:
        """(d,): the mean of all states, [CLS] and [SEP] too, cut to truncate_dim, then at length 1."""
        mean = self.text_states(self.token_ids(text, max_tokens=max_tokens)).mean(axis=0)
        return shortened(self._projected(mean, "text_projection"), truncate_dim)

    def image_vector(self, image: Image.Image, *, truncate_dim: int | None = None) -> Array:
        """(d,): the class token's last state, cut to truncate_dim, then at length 1."""
        return shortened(self._projected(self.image_states(self.pixels(image))[0], "visual_projection"), truncate_dim)

    def logits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Array:
        left = np.stack([self.image_vector(image) for image in images])
        right = np.stack([self.text_vector(text) for text in texts])
        return np.exp(self.w["logit_scale"]) * left @ right.T

    def _projected(self, vector: Array, name: str) -> Array:
        return self.w[f"{name}.weight"] @ vector if self.config["add_projections"] else vector

    # Texts

    def token_ids(self, text: str, *, max_tokens: int | None = None) -> list[int]:
        """[CLS], the text, [SEP]; cut to max_tokens before the [SEP]."""
        ids = self.tokenizer.encode(text).ids
        return ids if max_tokens is None or len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]]

    def text_states(self, ids: Sequence[int]) -> Array:
        """(t, h): the text tower's last layer."""
        at, heads, eps = "text_model.transformer", self.text_config["num_attention_heads"], self.text_config["layer_norm_eps"]
        x = self.w[f"{at}.embeddings.word_embeddings.weight"][list(ids)]
        x = x + self.w[f"{at}.embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, f"{at}.emb_ln", eps)
        places = np.arange(len(ids))
        distance = np.abs(places[:, None] - places[None, :])
        for layer in range(self.text_config["num_hidden_layers"]):
            own = f"{at}.encoder.layers.{layer}"
            q, k, v = (heads_of(part, heads) for part in np.split(self._linear(x, f"{own}.mixer.Wqkv"), 3, axis=1))
            mixed = [attention(q[n], k[n], v[n], -slope * distance) for n, slope in enumerate(alibi_slopes(heads))]
            x = self._norm(x + self._linear(np.concatenate(mixed, axis=1), f"{own}.mixer.out_proj"), f"{own}.norm1", eps)
            activated, gate = np.split(x @ self.w[f"{own}.mlp.gated_layers.weight"].T, 2, axis=1)
            x = self._norm(x + self._linear(gelu(activated) * gate, f"{own}.mlp.wo"), f"{own}.norm2", eps)
        return x

    # Images

    def pixels(self, image: Image.Image) -> Array:
        """(3, s, s): RGB, the shortest side at s by PIL's bicubic, the centre, from 0..1 to mean 0 and deviation 1."""
        s = self.preprocessor["size"]
        image = image.convert("RGB")
        width, height = image.size
        wide, high = (s, int(s * height / width)) if width <= height else (int(s * width / height), s)
        if (wide, high) != (width, height):
            image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = round((wide - s) / 2), round((high - s) / 2)  # halves to even, as torchvision crops
        values = np.asarray(image.crop((left, top, left + s, top + s)), dtype=np.float64) / 255
        mean, std = np.array(self.preprocessor["mean"]), np.array(self.preprocessor["std"])
        return ((values - mean) / std).transpose(2, 0, 1)

    def image_states(self, pixels: Array) -> Array:
        """(1 + patches, h): the image tower's output after its final norm, the class token first."""
        at, c = "vision_model", self.vision_config
        heads = c["width"] // c["head_width"]
        patch, grid = c["patch_size"], c["image_size"] // c["patch_size"]
        kernel = self.w[f"{at}.patch_embed.proj.weight"].reshape(c["width"], -1)
        squares = [
            pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].reshape(-1)
            for row in range(grid)
            for column in range(grid)
        ]
        patches = np.stack(squares) @ kernel.T + self.w[f"{at}.patch_embed.proj.bias"]
        x = np.concatenate([self.w[f"{at}.cls_token"][0], patches]) + self.w[f"{at}.pos_embed"][0]
        turns = frequencies(10000.0, c["head_width"] // 4)
        rows, columns = np.divmod(np.arange(grid * grid), grid)
        angles = np.concatenate([rows[:, None] * turns, columns[:, None] * turns], axis=1)

        def rotated(part: Array) -> Array:
            return np.concatenate([part[:1], rotate_neighbours(part[1:], angles)])  # the class token has no place

        for block in range(c["layers"]):
            own = f"{at}.blocks.{block}"
            y = self._norm(x, f"{own}.norm1", 1e-6)
            q, k, v = (heads_of(y @ self.w[f"{own}.attn.{n}_proj.weight"].T + self._bias(own, n), heads) for n in "qkv")
            mixed = [attention(rotated(q[n]), rotated(k[n]), v[n]) for n in range(heads)]
            normed = self._norm(np.concatenate(mixed, axis=1), f"{own}.attn.inner_attn_ln", 1e-6)
            x = x + self._linear(normed, f"{own}.attn.proj")
            y = self._norm(x, f"{own}.norm2", 1e-6)
            inner = silu(self._linear(y, f"{own}.mlp.w1")) * self._linear(y, f"{own}.mlp.w2")
            x = x + self._linear(self._norm(inner, f"{own}.mlp.ffn_ln", 1e-6), f"{own}.mlp.w3")
        return self._norm(x, f"{at}.norm", 1e-6)

    def _bias(self, block: str, part: str) -> Array | float:
        return 0.0 if part == "k" else self.w[f"{block}.attn.{part}_bias"]

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, x: Array, name: str, eps: float) -> Array:
        return layer_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

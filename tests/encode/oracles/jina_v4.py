"""jina-embeddings-v4 in float64, read from a folder of the published layout.

    oracle = V4Oracle(folder)
    item = oracle.text("a text", task="retrieval", prompt_name="passage")
    item = oracle.image(image, task="retrieval", max_pixels=None)
    item = oracle.pair("a text", image, task="retrieval")          no published rule, see `pair`
    item.states                  (t, h) after the final norm; item.ids (t,)
    item.dense(truncate_dim)     (d,) unit vector: the mean over item.pooled
    item.multi                   (t, m) unit rows, one per token

One item at a time, nothing padded; weights are merged, W + alpha / r * B A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
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
    rms_norm,
    rotate_halves,
    shortened,
    silu,
    unit,
)

PAD = "<|image_pad|>"
TURN = f"<|im_start|>user\n<|vision_start|>{PAD}<|vision_end|>{{text}}<|im_end|>\n"
IMAGE_PROMPT = TURN.format(text="Describe the image.")
PREFIXES = {"query": "Query", "passage": "Passage"}


@dataclass(frozen=True, eq=False)
class Item:
    """One input: `ids` (t,), `positions` (3, t), `states` (t, h), `multi` (t, m); `pooled`, the dense vector's token range."""

    ids: list[int]
    positions: Array
    states: Array
    pooled: tuple[int, int]
    multi: Array

    def dense(self, truncate_dim: int | None = None) -> Array:
        return shortened(self.states[slice(*self.pooled)].mean(axis=0), truncate_dim)


class V4Oracle:
    def __init__(self, folder: Path) -> None:
        self.config = read_json(folder / "config.json")
        self.text_config = self.config.get("text_config") or self.config
        self.vision_config = self.config["vision_config"]
        self.preprocessor = read_json(folder / "preprocessor_config.json")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        index = read_json(folder / "model.safetensors.index.json")["weight_map"]
        self.base: dict[str, Array] = {}
        for file in sorted(set(index.values())):
            self.base |= read_tensors(folder / file)[0]
        assert set(self.base) == set(index)
        settings = read_json(folder / "adapters" / "adapter_config.json")
        self.scale = settings["lora_alpha"] / settings["r"]
        self.adapters, _ = read_tensors(folder / "adapters" / "adapter_model.safetensors")
        self.weights = cache(self._weights)

    # Items

    def text_ids(
        self, text: str, *, task: str = "retrieval", prompt_name: str = "query", max_tokens: int | None = None
    ) -> list[int]:
        """The tokens of "Query: ..." or "Passage: ...", cut from the right. text-matching knows queries only."""
        prefix = PREFIXES["query" if task == "text-matching" else prompt_name]
        return list(self.tokenizer.encode(f"{prefix}: {text}").ids)[:max_tokens]

    def text(self, text: str, *, task: str = "retrieval", prompt_name: str = "query", max_tokens: int | None = None) -> Item:
        """Pooled over every token, prefix included."""
        ids = self.text_ids(text, task=task, prompt_name=prompt_name, max_tokens=max_tokens)
        return self.item(ids, [], task, pooled=(0, len(ids)))

    def image(self, image: Image.Image, *, task: str = "retrieval", max_pixels: int | None = None) -> Item:
        """Pooled from <|vision_start|> through <|vision_end|>; every token in the multi-vector."""
        ids, rows = self.prompt_ids(IMAGE_PROMPT, [image], max_pixels=max_pixels)
        start, end = (ids.index(self.config[f"vision_{side}_token_id"]) for side in ("start", "end"))
        return self.item(ids, rows, task, pooled=(start, end + 1))

    def pair(
        self,
        text: str,
        image: Image.Image,
        *,
        task: str = "retrieval",
        max_pixels: int | None = None,
        prompt: str = TURN,
        pooled: str = "content",
    ) -> Item:
        """A text and an image in one turn. Nothing is published about this: prompt and pooling are the caller's to choose.

        prompt: a template with {text} and one <|image_pad|>. pooled: "content", the turn without `<|im_start|>user\\n` before and
        `<|im_end|>\\n` after it; "vision", as for an image alone, though the image cannot see a text behind it; "all".
        """
        ids, rows = self.prompt_ids(prompt.format(text=text), [image], max_pixels=max_pixels)
        first, last = (self.config[f"vision_{side}_token_id"] for side in ("start", "end"))
        frame = len(self.tokenizer.encode("<|im_start|>user\n").ids), len(self.tokenizer.encode("<|im_end|>\n").ids)
        spans = {
            "content": (frame[0], len(ids) - frame[1]),
            "vision": (ids.index(first), ids.index(last) + 1),
            "all": (0, len(ids)),
        }
        return self.item(ids, rows, task, pooled=spans[pooled])

    def prompt_ids(
        self, prompt: str, images: Sequence[Image.Image], *, max_pixels: int | None = None
    ) -> tuple[list[int], list[tuple[Array, int, int]]]:
        """Token ids of a prompt, its n-th <|image_pad|> repeated for the n-th image, and the images' pixel rows and grids."""
        rows = [self.pixel_rows(image, max_pixels=max_pixels) for image in images]
        parts = prompt.split(PAD)
        text = parts[0] + "".join(PAD * (high * wide // 4) + part for (_, high, wide), part in zip(rows, parts[1:], strict=True))
        return self.tokenizer.encode(text).ids, rows

    def item(self, ids: list[int], images: Sequence[tuple[Array, int, int]], task: str, *, pooled: tuple[int, int]) -> Item:
        """What the model makes of token ids with images (rows, grid height, grid width) at their pads."""
        positions = self.positions(ids, [(high, wide) for _, high, wide in images])
        states = self.states(ids, [self.image_states(*image) for image in images], positions, task)
        weight, bias = self.weights(task).get("multi_vector_projector.weight"), self.base.get("multi_vector_projector.bias")
        multi = unit(states @ weight.T + bias) if weight is not None else np.zeros((len(ids), 0))
        return Item(ids, positions, states, pooled, multi)

    # The language model

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int]]) -> Array:
        """(3, t): time, row and column. A text token counts on in all three; an image holds its start in time, and after
        it all three go on behind the largest."""
        places: list[tuple[int, int, int]] = []
        following = n = 0
        remaining = list(grids)
        while n < len(ids):
            if ids[n] != self.config["image_token_id"] or not remaining:
                places.append((following,) * 3)
                following, n = following + 1, n + 1
                continue
            high, wide = (side // 2 for side in remaining.pop(0))
            places += [(following, following + row, following + column) for row in range(high) for column in range(wide)]
            following, n = following + max(high, wide), n + high * wide
        return np.array(places, dtype=np.int64).reshape(-1, 3).T

    def states(self, ids: Sequence[int], images: Sequence[Array], positions: Array, task: str) -> Array:
        """(t, h) after the final norm."""
        w, c = self.weights(task), self.text_config
        heads, shared, eps = c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]
        x = w["model.embed_tokens.weight"][list(ids)]
        if images:
            x[np.array(ids) == self.config["image_token_id"]] = np.concatenate(images)
        half = c["hidden_size"] // heads // 2
        axes = np.repeat([0, 1, 2], c["rope_scaling"]["mrope_section"])  # which position turns which pair
        angles = positions[axes].T * frequencies(c["rope_theta"], half)
        later = np.where(np.tri(len(ids), dtype=bool), 0.0, -math.inf)
        for layer in range(c["num_hidden_layers"]):
            at = f"model.layers.{layer}"

            def linear(y: Array, name: str, at: str = at) -> Array:
                return y @ w[f"{at}.{name}.weight"].T + w.get(f"{at}.{name}.bias", 0.0)

            y = rms_norm(x, w[f"{at}.input_layernorm.weight"], eps)
            q = heads_of(linear(y, "self_attn.q_proj"), heads)
            k, v = (heads_of(linear(y, f"self_attn.{name}_proj"), shared) for name in "kv")
            k = [rotate_halves(part, angles) for part in k]
            group = heads // shared
            mixed = [attention(rotate_halves(q[n], angles), k[n // group], v[n // group], later) for n in range(heads)]
            x = x + linear(np.concatenate(mixed, axis=1), "self_attn.o_proj")
            y = rms_norm(x, w[f"{at}.post_attention_layernorm.weight"], eps)
            x = x + linear(silu(linear(y, "mlp.gate_proj")) * linear(y, "mlp.up_proj"), "mlp.down_proj")
        return rms_norm(x, w["model.norm.weight"], eps)

    def _weights(self, task: str) -> dict[str, Array]:
        weights = dict(self.base)
        ending = f".lora_A.{task}.weight"
        found = [name for name in self.adapters if name.endswith(ending)]
        assert found, f"no adapter {task}"
        for name in found:
            a, b = self.adapters[name], self.adapters[name.replace(".lora_A.", ".lora_B.")]
            own = name.removeprefix("base_model.model.").removesuffix(ending).replace("language_model.", "") + ".weight"
            weights[own] = weights[own] + self.scale * (b @ a)
        return weights

    # Images

    def resized(self, width: int, height: int, *, max_pixels: int | None = None) -> tuple[int, int]:
        """(width, height) as multiples of 28, their area within the limits. ValueError if one is over 200 times the other."""
        p = self.preprocessor
        least = p.get("min_pixels") or p["size"]["shortest_edge"]
        most = max_pixels or p.get("max_pixels") or p["size"]["longest_edge"]
        unit_side = p["patch_size"] * p["merge_size"]
        if max(width, height) > 200 * min(width, height):
            raise ValueError(f"{width} x {height} pixels: one side is over 200 times the other")
        sides = [round(side / unit_side) * unit_side for side in (width, height)]
        if math.prod(sides) > most:
            shrink = math.sqrt(width * height / most)
            sides = [max(unit_side, math.floor(side / shrink / unit_side) * unit_side) for side in (width, height)]
        elif math.prod(sides) < least:
            grow = math.sqrt(least / (width * height))
            sides = [math.ceil(side * grow / unit_side) * unit_side for side in (width, height)]
        return sides[0], sides[1]

    def pixel_rows(self, image: Image.Image, *, max_pixels: int | None = None) -> tuple[Array, int, int]:
        """(n, 1176) rows of 14 x 14 patches, twice as two frames, 2 x 2 of them together; and the grid's height and width."""
        p = self.preprocessor
        size = self.resized(*image.size, max_pixels=max_pixels)
        image = image.convert("RGB")
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        values = (np.asarray(image, dtype=np.float64) / 255 - np.array(p["image_mean"])) / np.array(p["image_std"])
        side = p["patch_size"]
        wide, high = (length // side for length in size)
        rows = []
        for row, column in self._merge_order(high, wide):
            patch = values[row * side : (row + 1) * side, column * side : (column + 1) * side].transpose(2, 0, 1)
            rows.append(np.stack([patch] * p["temporal_patch_size"], axis=1).reshape(-1))
        return np.stack(rows), high, wide

    @staticmethod
    def _merge_order(high: int, wide: int) -> list[tuple[int, int]]:
        """Row and column of each patch, in the order of the pixel rows."""
        return [
            (top + row, left + column)
            for top in range(0, high, 2)
            for left in range(0, wide, 2)
            for row in range(2)
            for column in range(2)
        ]

    def image_states(self, rows: Array, high: int, wide: int) -> Array:
        """(high * wide / 4, h): what stands at an image's pads."""
        w, c = self.base, self.vision_config
        heads = c["num_heads"]
        x = rows @ w["visual.patch_embed.proj.weight"].reshape(c["hidden_size"], -1).T
        places = np.array(self._merge_order(high, wide))
        turns = frequencies(10000.0, c["hidden_size"] // heads // 4)
        angles = np.concatenate([places[:, :1] * turns, places[:, 1:] * turns], axis=1)
        windows = places // (c["window_size"] // c["patch_size"])
        apart = np.where((windows[:, None] == windows[None]).all(axis=2), 0.0, -math.inf)
        for block in range(c["depth"]):
            at = f"visual.blocks.{block}"

            def linear(y: Array, name: str, at: str = at) -> Array:
                return y @ w[f"{at}.{name}.weight"].T + w[f"{at}.{name}.bias"]

            seen = 0.0 if block in c["fullatt_block_indexes"] else apart
            y = linear(rms_norm(x, w[f"{at}.norm1.weight"], 1e-6), "attn.qkv")
            q, k, v = (heads_of(part, heads) for part in np.split(y, 3, axis=1))
            mixed = [attention(rotate_halves(q[n], angles), rotate_halves(k[n], angles), v[n], seen) for n in range(heads)]
            x = x + linear(np.concatenate(mixed, axis=1), "attn.proj")
            y = rms_norm(x, w[f"{at}.norm2.weight"], 1e-6)
            x = x + linear(silu(linear(y, "mlp.gate_proj")) * linear(y, "mlp.up_proj"), "mlp.down_proj")
        merged = rms_norm(x, w["visual.merger.ln_q.weight"], 1e-6).reshape(len(x) // 4, -1)
        inner = gelu(merged @ w["visual.merger.mlp.0.weight"].T + w["visual.merger.mlp.0.bias"])
        return inner @ w["visual.merger.mlp.2.weight"].T + w["visual.merger.mlp.2.bias"]

"""jina-embeddings-v3 in float64, read from a folder of either published layout.

    oracle = V3Oracle(folder)
    oracle.vector("text", task="retrieval.query", truncate_dim=32)   (d,) unit vector, the task's instruction in front
    oracle.token_states("text", task="retrieval.passage")            states, character spans, special marks
    oracle.states(ids, task=None)                                    (t, h) of given token ids; no task: no adapter

Weights are merged here, W + alpha / r * B A, vocabulary and all: slow, but nothing to get wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tests.encode.checkpoints.stored import read_json, read_tensors
from tests.encode.oracles.arithmetic import (
    Array,
    attention,
    frequencies,
    gelu,
    heads_of,
    layer_norm,
    rotate_halves,
    shortened,
    unit,
)

# The -hf layout holds no task list: these are the published ones, in the order of the original's banks.
TASKS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}


@dataclass(frozen=True, eq=False)
class States:
    """Token by token: `states` (t, h), `spans` (t, 2) characters of the text without its instruction, `special` (t,) bool.

    Special tokens and the instruction's are special, with span (0, 0).
    """

    states: Array
    spans: Array
    special: Array


class V3Oracle:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        stored, _ = read_tensors(folder / "model.safetensors")
        self.stored = {name.removeprefix("roberta."): array for name, array in stored.items()}
        self.original = "emb_ln.weight" in self.stored and any("parametrizations" in name for name in self.stored)
        self.theta = self.config.get("rotary_emb_base") or self.config["rope_parameters"]["rope_theta"]
        if self.original:
            instructions = self.config["task_instructions"]
            self.instructions = {task: instructions[task] for task in self.config["lora_adaptations"]}
        else:
            self.instructions = dict(TASKS)
        self.weights = cache(self._weights)

    # Texts

    def token_ids(self, text: str, *, task: str | None = None, max_tokens: int | None = None) -> list[int]:
        """`<s>`, the task's instruction and the text, `</s>`; cut to max_tokens before the `</s>`."""
        ids = self.tokenizer.encode(self._instruction(task) + text).ids
        return ids if max_tokens is None or len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]]

    def vector(
        self, text: str, *, task: str | None = None, truncate_dim: int | None = None, max_tokens: int | None = None
    ) -> Array:
        """(d,): the mean of all states, specials and instruction too, cut to truncate_dim, then at length 1."""
        states = self.states(self.token_ids(text, task=task, max_tokens=max_tokens), task)
        return shortened(states.mean(axis=0), truncate_dim)

    def vectors(self, texts: Sequence[str], tasks: Sequence[str | None], *, truncate_dim: int | None = None) -> Array:
        """(n, d): each text under its own task."""
        return np.stack([self.vector(x, task=task, truncate_dim=truncate_dim) for x, task in zip(texts, tasks, strict=True)])

    def token_states(self, text: str, *, task: str | None = None) -> States:
        instruction = self._instruction(task)
        encoded = self.tokenizer.encode(instruction + text)
        spans = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2) - len(instruction)
        special = np.array(encoded.special_tokens_mask, dtype=bool) | (spans[:, 1] <= 0)
        spans[special] = 0
        return States(self.states(encoded.ids, task), np.maximum(spans, 0), special)

    def chunk_vectors(
        self,
        text: str,
        spans: Sequence[tuple[int, int]],
        *,
        task: str | None = "retrieval.passage",
        authors: bool = False,
        window: int | None = None,
        overlap: int = 0,
    ) -> Array:
        """Late chunking, (n, h): unit means of the states whose last character is in the span, by the paper's windows.

        authors: the first span also takes what stands before the text (`<s>`, instruction), the last one the `</s>`.
        """
        instruction = self._instruction(task)
        encoded = self.tokenizer.encode(instruction + text)
        states = self.window_states(encoded.ids, task, window, overlap)
        last = [end - 1 - len(instruction) for _, end in encoded.offsets]
        rows = []
        for n, (start, end) in enumerate(spans):
            chosen = [i for i in range(1, len(last) - 1) if start <= last[i] < end]
            if authors and n == 0:
                chosen += [i for i in range(len(last) - 1) if i == 0 or last[i] < 0]
            if authors and n == len(spans) - 1:
                chosen += [len(last) - 1]
            rows.append(unit(states[chosen].mean(axis=0)))
        return np.stack(rows)

    def window_states(self, ids: Sequence[int], task: str | None, window: int | None, overlap: int) -> Array:
        """(t, h) of any length: windows every `window - overlap` tokens; all but the first lose their first `overlap` states."""
        if window is None or len(ids) <= window:
            return self.states(ids, task)
        parts = []
        for start in range(0, len(ids), window - overlap):
            piece = ids[start : start + window]
            if start == 0:
                parts.append(self.states(piece, task))
            elif len(piece) > overlap:
                parts.append(self.states(piece, task)[overlap:])
        return np.concatenate(parts)

    def _instruction(self, task: str | None) -> str:
        return "" if task is None else self.instructions[task]

    # The model

    def states(self, ids: Sequence[int], task: str | None = None) -> Array:
        """(t, h): the last layer's output for one row of token ids, with the task's adapter or none."""
        w, eps = self.weights(task), self.config["layer_norm_eps"]
        heads = self.config["num_attention_heads"]
        x = w["embeddings.word_embeddings.weight"][list(ids)] + w["embeddings.token_type_embeddings.weight"][0]
        x = layer_norm(x, w["emb_ln.weight"], w["emb_ln.bias"], eps)
        half = x.shape[1] // heads // 2
        angles = np.arange(len(ids))[:, None] * frequencies(self.theta, half)
        for layer in range(self.config["num_hidden_layers"]):
            at = f"encoder.layers.{layer}"

            def linear(y: Array, name: str, at: str = at) -> Array:
                return y @ w[f"{at}.{name}.weight"].T + w[f"{at}.{name}.bias"]

            def norm(y: Array, name: str, at: str = at) -> Array:
                return layer_norm(y, w[f"{at}.{name}.weight"], w[f"{at}.{name}.bias"], eps)

            q, k, v = np.split(linear(x, "mixer.Wqkv"), 3, axis=1)
            mixed = [
                attention(rotate_halves(a, angles), rotate_halves(b, angles), c)
                for a, b, c in zip(heads_of(q, heads), heads_of(k, heads), heads_of(v, heads), strict=True)
            ]
            x = norm(x + linear(np.concatenate(mixed, axis=1), "mixer.out_proj"), "norm1")
            x = norm(x + linear(gelu(linear(x, "mlp.fc1")), "mlp.fc2"), "norm2")
        return x

    # The weights, merged, under the names of the original layout without prefix and parametrisation

    def _weights(self, task: str | None) -> dict[str, Array]:
        return self._original_weights(task) if self.original else self._hf_weights(task)

    def _original_weights(self, task: str | None) -> dict[str, Array]:
        scale = self.config["lora_alpha"] / self.config["lora_rank"]
        weights = {}
        for name, array in self.stored.items():
            if name.endswith((".0.lora_A", ".0.lora_B")):
                continue
            at = name.removesuffix(".original")
            if at == name:
                weights[name] = array
                continue
            own = array
            if task is not None:
                bank = self.config["lora_adaptations"].index(task)
                a, b = self.stored[f"{at}.0.lora_A"][bank], self.stored[f"{at}.0.lora_B"][bank]
                own = array + scale * (a @ b if at.startswith("embeddings") else b @ a)
            weights[at.replace(".parametrizations", "")] = own
        return weights

    def _hf_weights(self, task: str | None) -> dict[str, Array]:
        weights = self._fused()
        if task is None:
            return weights
        folder = self.folder / task.replace(".", "_").replace("-", "_")
        settings = read_json(folder / "adapter_config.json")
        scale = settings["lora_alpha"] / settings["r"]
        adapters, _ = read_tensors(folder / "adapter_model.safetensors")
        for name, a in adapters.items():
            at = name.removeprefix("base_model.model.")
            if at.endswith(".lora_embedding_A"):
                at = at.removesuffix(".lora_embedding_A")
                b = adapters[name.replace("embedding_A", "embedding_B")]
                weights[f"{at}.weight"] = weights[f"{at}.weight"] + scale * (b @ a).T
            elif at.endswith(".lora_A.weight"):
                own, rows = self._place(at.removesuffix(".lora_A.weight"))
                b = adapters[name.replace("lora_A", "lora_B")]
                merged = weights[own].copy()
                merged[rows] += scale * (b @ a)
                weights[own] = merged
        return weights

    def _place(self, module: str) -> tuple[str, slice]:
        """Where an adapted module of transformers' names lies in the fused ones: tensor and rows."""
        hidden = self.config["hidden_size"]
        module = f"encoder.{module}" if module.startswith("layers.") else module
        for part, letter in enumerate("qkv"):
            if module.endswith(f"self_attn.{letter}_proj"):
                name = module.replace(f"self_attn.{letter}_proj", "mixer.Wqkv.weight")
                return name, slice(part * hidden, (part + 1) * hidden)
        return module.replace("self_attn.o_proj", "mixer.out_proj") + ".weight", slice(None)

    def _fused(self) -> dict[str, Array]:
        """The base weights of the -hf layout, whichever of its accepted names the file has."""
        weights: dict[str, Array] = {}
        for name, array in self.stored.items():
            new = f"encoder.{name}" if name.startswith("layers.") else name
            for mine, theirs in (
                ("emb_ln", "embeddings.LayerNorm"),
                ("mixer.out_proj", "self_attn.o_proj"),
                ("norm1", "post_attention_layernorm"),
                ("norm2", "post_mlp_layernorm"),
            ):
                new = new.replace(theirs, mine)
            weights[new] = array
        for name in [name for name in weights if ".self_attn.q_proj." in name]:
            parts = [weights.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
            weights[name.replace("self_attn.q_proj", "mixer.Wqkv")] = np.concatenate(parts)
        return weights

"""BERT in float64 numpy, one text at a time, from the paper (Devlin et al. 2019; Vaswani et al. 2017): slow and plain.

It shares no code with ragkit: tokenised by the published tokenizer.json, weights read by safetensors, names from the file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

erf = np.vectorize(math.erf, otypes=[np.float64])


class Oracle:
    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.w = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def states(self, text: str) -> np.ndarray:
        """(t, h): the last layer."""
        c, w = self.config, self.w
        ids = self.tokenizer.encode(text).ids
        x = np.array(
            [
                w["embeddings.word_embeddings.weight"][token]
                + w["embeddings.position_embeddings.weight"][place]
                + w["embeddings.token_type_embeddings.weight"][0]
                for place, token in enumerate(ids)
            ]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        heads = c["num_attention_heads"]
        size = c["hidden_size"] // heads
        for layer in range(c["num_hidden_layers"]):
            at = f"encoder.layer.{layer}"
            q, k, v = (self._linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
            mixed = np.zeros_like(x)
            for head in range(heads):
                columns = slice(head * size, (head + 1) * size)
                scores = np.exp(q[:, columns] @ k[:, columns].T / math.sqrt(size))
                mixed[:, columns] = scores / scores.sum(axis=1, keepdims=True) @ v[:, columns]
            x = self._norm(x + self._linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
            inner = self._linear(x, f"{at}.intermediate.dense")
            inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
            x = self._norm(x + self._linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        return x

    def vector(self, text: str) -> np.ndarray:
        """(h,): the mean over all tokens, [CLS] and [SEP] too, of unit length."""
        mean = self.states(text).mean(axis=0)
        return mean / np.sqrt((mean**2).sum())

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        variance = (centred**2).mean(axis=1, keepdims=True)
        return centred / np.sqrt(variance + self.config["layer_norm_eps"]) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

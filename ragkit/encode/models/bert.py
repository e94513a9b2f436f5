"""BERT with mean pooling, run by ragkit: the default model all-MiniLM-L6-v2 and every checkpoint of its layout.

`load` turns a folder into an encoder. The forward pass (Devlin et al. 2019) works on packed rows, see `packed.py`, in batches
of about 1,000 tokens that stay in the processor's cache.

Rules: weights fit exactly or are refused (`checkpoint.py`); pooling and normalising in float32; a vector does not depend on
what else is in its batch. Queries and documents are encoded alike: these models were trained so.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ragkit.core.errors import CheckpointError
from ragkit.core.types import Floats
from ragkit.encode.checkpoints.checkpoint import (
    Tensors,
    check_names_and_shapes,
    impossible_sizes,
    licence_of,
    read_json,
    read_sizes,
    read_tensors,
)
from ragkit.encode.checkpoints.layouts import Checkpoint
from ragkit.encode.contract import EncoderCard
from ragkit.encode.load_settings import MULTI_SUFFIX
from ragkit.encode.models.kernels import Kernels, NumpyKernels, Placed, TorchKernels, runs_of
from ragkit.encode.models.packed import Forward, PackedEncoder, Row
from ragkit.encode.precision import AUTO, checked_dtype
from ragkit.encode.tasks import GENERAL, checked_task
from ragkit.encode.tokens import Tokenizer
from ragkit.encode.torch_backend import Tensor, Weights

# Names whose weights must be the published file: model.safetensors by sha256.
PUBLISHED = {"sentence-transformers/all-MiniLM-L6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
CPU_TOKENS = 1024  # per batch; 1k to 4k are alike in benchmarks/encode.py --budgets, 512 and 8k slower; small ones share out well
GPU_TOKENS = 65536  # per batch; enough rows to fill the card's matrix units
NUMPY_TOKENS = 512  # the first so many tokens of a process run without torch, whose import takes longer than they do


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes of config.json, in its names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def read(cls, path: Path) -> BertShape:
        """Return the sizes in a config.json. Raises CheckpointError for sizes that are missing or impossible."""
        shape = read_sizes(path, {"layer_norm_eps": 1e-12, **read_json(path)}, cls, model="a BERT model")
        if shape.hidden_size % shape.num_attention_heads:
            raise impossible_sizes(path, shape)
        return shape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that encoding needs, by its published name."""
        h, f = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, h),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, h),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, h),
            **_pair("embeddings.LayerNorm", (h,)),
        }
        for layer in range(self.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
                shapes |= _pair(f"{at}.{part}", (h, h))
            shapes |= _pair(f"{at}.intermediate.dense", (f, h)) | _pair(f"{at}.output.dense", (h, f))
            shapes |= _pair(f"{at}.attention.output.LayerNorm", (h,)) | _pair(f"{at}.output.LayerNorm", (h,))
        return shapes


def _pair(name: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


# Not used for embeddings, and in many published files: the pooler of BERT's own training, and a buffer of 0, 1, 2, ...
_IGNORABLE = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def _prepare(published: Mapping[str, Floats], layers: int) -> dict[str, Floats]:
    """Return the weights as `forward` takes them.

    Query, key and value are one matrix; token type 0, which all tokens have, is added to the positions.
    """
    weights = dict(published)
    types = weights.pop("embeddings.token_type_embeddings.weight")
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"] + types[0]
    for layer in range(layers):
        at = f"encoder.layer.{layer}.attention.self"
        for kind in ("weight", "bias"):
            weights[f"{at}.qkv.{kind}"] = np.concatenate(
                [weights.pop(f"{at}.{part}.{kind}") for part in ("query", "key", "value")]
            )
    return weights


def forward(kernels: Kernels, weights: Weights, shape: BertShape, *, ids: Sequence[Row]) -> Tensor:
    """Return the last layer's states of several texts' token ids, packed (sum of lengths, hidden)."""
    eps, runs = shape.layer_norm_eps, runs_of([len(row) for row in ids])

    def linear(x: Tensor, name: str) -> Tensor:
        return kernels.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm_of_sum(x: Tensor, y: Tensor, name: str) -> Tensor:
        return kernels.norm_of_sum(x, y, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    positions = np.concatenate([np.arange(len(row), dtype=np.int32) for row in ids])
    words = kernels.gather(weights["embeddings.word_embeddings.weight"], np.concatenate(ids))
    places = kernels.gather(weights["embeddings.position_embeddings.weight"], positions)
    x = norm_of_sum(words, places, "embeddings.LayerNorm")
    for layer in range(shape.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        mixed = kernels.attention(linear(x, f"{at}.attention.self.qkv"), runs, shape.num_attention_heads)
        x = norm_of_sum(linear(mixed, f"{at}.attention.output.dense"), x, f"{at}.attention.output.LayerNorm")
        inner = kernels.gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm_of_sum(linear(inner, f"{at}.output.dense"), x, f"{at}.output.LayerNorm")
    return x


def load(checkpoint: Checkpoint) -> PackedEncoder:
    """Check and load a folder that `has_bert_layout` recognises; models named in PUBLISHED by their checksums, too."""
    folder, settings = checkpoint.folder, checkpoint.settings
    shape = BertShape.read(folder / "config.json")
    dtype = checked_dtype(settings.dtype)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_tensors, folder / "model.safetensors", sha256=PUBLISHED.get(checkpoint.name))
        tokenizer = read_tokenizer(folder / "tokenizer.json", shape.vocab_size)
        tensors = reading.result()
    card = EncoderCard(
        name=checkpoint.name + (MULTI_SUFFIX if checkpoint.multi else ""),
        revision=checkpoint.revision_of(tensors.sha256),
        licence=licence_of(folder),
        dims=shape.hidden_size,
        multi_dims=shape.hidden_size if checkpoint.multi else 0,
        tasks=GENERAL,
        max_tokens=_token_limit(folder, shape, settings.max_tokens),
        outputs=("dense", "multi") if checkpoint.multi else ("dense",),
        pooling="mean",
        dtype=dtype,
        preprocessing={"weights": tensors.sha256, "tokenizer": tokenizer.sha256, "shape": asdict(shape)},
    )
    card = replace(card, task=checked_task(settings.task, card))
    weights = _prepare(_read_weights(tensors, shape), shape.num_hidden_layers)
    model = Bert(weights, shape=shape, device=settings.device or "cpu", dtype=dtype)
    return PackedEncoder(card, model=model, tokenizer=tokenizer)


def read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """Return the tokenizer of a model with so many rows in its table. CheckpointError if they do not belong together."""
    tokenizer = Tokenizer(path)
    # Truncating keeps the last token because it is [SEP]; multi-vectors leave out the first and the last.
    if tokenizer.special_count != 2 or len(tokenizer.ids([""])[0]) != 2:
        raise CheckpointError(
            f"{path} does not put one token before a text and one after it, as this model needs. Fetch the model again"
        )
    if tokenizer.vocabulary_size > vocabulary:
        raise CheckpointError(
            f"{path} has {tokenizer.vocabulary_size} tokens, config.json has {vocabulary}: they belong to different models"
        )
    return tokenizer


def _read_weights(tensors: Tensors, shape: BertShape) -> dict[str, Floats]:
    if all(name.startswith("bert.") for name in tensors.arrays):
        tensors = replace(
            tensors,
            arrays={name.removeprefix("bert."): array for name, array in tensors.arrays.items()},
            bfloat16=frozenset(name.removeprefix("bert.") for name in tensors.bfloat16),
        )
    expected = shape.tensors()
    shapes = {name: array.shape for name, array in tensors.arrays.items()}
    check_names_and_shapes(tensors.path, shapes, expected, ignorable=_IGNORABLE)
    return {name: tensors.float32(name) for name in expected}


def _token_limit(folder: Path, shape: BertShape, max_tokens: int | None) -> int:
    positions = shape.max_position_embeddings
    if max_tokens is None:
        settings = read_json(folder / "sentence_bert_config.json", optional=True)
        return min(positions, int(settings.get("max_seq_length") or positions))
    if not 3 <= max_tokens <= positions:
        raise ValueError(f"max_tokens must be between 3 and {positions}, the positions this model has, got {max_tokens}")
    return max_tokens


class Bert:
    """A `PackedModel`. `weights`: as `_prepare` returns them."""

    def __init__(self, weights: Mapping[str, Floats], *, shape: BertShape, device: str, dtype: str) -> None:
        self.device = device
        self.budget = CPU_TOKENS if device == "cpu" else GPU_TOKENS
        self._weights = weights
        self._shape = shape
        self._dtype = dtype
        self._placed = Placed(self._place)
        self._lock = threading.Lock()
        numpy_serves = device == "cpu" and dtype in ("auto", "float32") and "torch" not in sys.modules
        self._numpy_tokens = NUMPY_TOKENS if numpy_serves else 0

    def arithmetic(self, tokens: int, *, few: bool) -> tuple[Kernels, Forward]:
        """Return numpy's kernels for the first few tokens of a process, then torch's; with "auto" short calls are in float32.

        So a query's vector is the same in a fresh process and in an old one.
        """
        if few and self._first(tokens):
            return _NUMPY, partial(_forward_alike, _NUMPY, self._weights, self._shape)
        dtype = "float32" if few and self._dtype == AUTO else self._dtype
        kernels, weights = self._placed[dtype]
        return kernels, partial(_forward_alike, kernels, weights, self._shape)

    def _first(self, tokens: int) -> bool:
        with self._lock:
            self._numpy_tokens = max(0, self._numpy_tokens - tokens)
            return self._numpy_tokens > 0

    def _place(self, dtype: str) -> tuple[TorchKernels, Weights]:
        self._numpy_tokens = 0
        kernels = TorchKernels(self.device, dtype)
        return kernels, kernels.place(self._weights)


_NUMPY = NumpyKernels()


def _forward_alike(kernels: Kernels, weights: Weights, shape: BertShape, ids: Sequence[Row], tasks: Sequence[str]) -> Tensor:
    """Run `forward`: this model encodes for all tasks alike."""
    return forward(kernels, weights, shape, ids=ids)

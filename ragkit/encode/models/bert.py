"""BERT with mean pooling, run by us: the default model all-MiniLM-L6-v2 and every checkpoint of its layout.

In goes a folder, out comes an encoder. The forward pass (Devlin et al. 2019) works on packed rows, see `packed.py`, in batches
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
from typing import Any

import numpy as np

from ragkit.core.errors import CheckpointError
from ragkit.core.types import Floats
from ragkit.encode.checkpoints.checkpoint import Tensors, check_names_and_shapes, licence_of, read_json, read_tensors
from ragkit.encode.checkpoints.layouts import Opening
from ragkit.encode.contract import EncoderCard
from ragkit.encode.models.kernels import Kernels, NumpyKernels, TorchKernels, runs_of
from ragkit.encode.models.packed import Forward, PackedEncoder, Placed, Row
from ragkit.encode.precision import AUTO, checked_dtype
from ragkit.encode.tasks import GENERAL, checked_task
from ragkit.encode.tokens import Tokenizer

# Names whose weights must be the published file: model.safetensors by sha256.
PUBLISHED = {"sentence-transformers/all-MiniLM-L6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
CPU_TOKENS = 1024  # per batch; 1k to 4k are alike in benchmarks/encode.py --budgets, 512 and 8k slower; small ones share out well
GPU_TOKENS = 65536  # per batch; enough rows to fill the card's matrix units
NUMPY_TOKENS = 512  # the first so many tokens of a process run without torch, whose import takes longer than they do
MULTI = "+multi"  # behind a name: token states as multi-vectors beside the dense vector


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
        config = read_json(path)
        try:
            sizes = {name: int(config[name]) for name in cls.__slots__ if name != "layer_norm_eps"}
            shape = cls(**sizes, layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} lacks the sizes of a BERT model ({error!r}). Fetch the model again") from None
        if min(sizes.values()) < 1 or shape.hidden_size % shape.num_attention_heads:
            raise CheckpointError(f"{path} has impossible sizes: {sizes}. Fetch the model again")
        return shape

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that encoding needs, by its published name, with its shape."""
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
    """Weights as `forward` wants them: query, key, value in one matrix; token type 0, which all tokens have, in the positions."""
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


def forward(kernels: Kernels, weights: Mapping[str, Any], shape: BertShape, *, ids: Sequence[Row]) -> Any:
    """Token ids of several texts -> the last layer's states, packed (sum of lengths, hidden)."""
    eps, runs = shape.layer_norm_eps, runs_of([len(row) for row in ids])

    def linear(x: Any, name: str) -> Any:
        return kernels.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm_of_sum(x: Any, y: Any, name: str) -> Any:
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


def load(opening: Opening) -> PackedEncoder:
    """Check and load a folder of the layout that `checkpoint.has_bert_layout` recognises; a name of PUBLISHED by its checksum."""
    folder, shape = opening.folder, BertShape.read(opening.folder / "config.json")
    dtype = checked_dtype(opening.dtype)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_tensors, folder / "model.safetensors", sha256=PUBLISHED.get(opening.name))
        tokenizer = read_tokenizer(folder / "tokenizer.json", shape.vocab_size)
        tensors = reading.result()
    card = EncoderCard(
        name=opening.name + (MULTI if opening.multi else ""),
        revision=opening.revision_of(tensors.sha256),
        licence=licence_of(folder),
        dims=shape.hidden_size,
        multi_dims=shape.hidden_size if opening.multi else 0,
        tasks=GENERAL,
        max_tokens=_token_limit(folder, shape, asked=opening.max_tokens),
        outputs=("dense", "multi") if opening.multi else ("dense",),
        pooling="mean",
        dtype=dtype,
        preprocessing={"weights": tensors.sha256, "tokenizer": tokenizer.sha256, "shape": asdict(shape)},
    )
    card = replace(card, task=checked_task(opening.task, card))
    weights = _prepare(_read_weights(tensors, shape), shape.num_hidden_layers)
    model = Bert(weights, shape=shape, device=opening.device or "cpu", dtype=dtype)
    return PackedEncoder(card, model=model, tokenizer=tokenizer)


def read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model with so many rows in its table. CheckpointError if they do not belong together."""
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


def _token_limit(folder: Path, shape: BertShape, *, asked: int | None) -> int:
    positions = shape.max_position_embeddings
    if asked is None:
        settings = read_json(folder / "sentence_bert_config.json", optional=True)
        return min(positions, int(settings.get("max_seq_length") or positions))
    if not 3 <= asked <= positions:
        raise ValueError(f"max_tokens must be between 3 and {positions}, the positions this model has, got {asked}")
    return asked


class Bert:
    """A `PackedModel`. `weights`: as `_prepare` leaves them."""

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
        """numpy for the first few tokens of a process; then torch, and with "auto" in float32 where there are few anyway.

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

    def _place(self, dtype: str) -> tuple[TorchKernels, Mapping[str, Any]]:
        self._numpy_tokens = 0
        kernels = TorchKernels(self.device, dtype)
        return kernels, kernels.place(self._weights)


_NUMPY = NumpyKernels()


def _forward_alike(
    kernels: Kernels, weights: Mapping[str, Any], shape: BertShape, ids: Sequence[Row], tasks: Sequence[str]
) -> Any:
    """`forward`, whatever the tasks."""
    return forward(kernels, weights, shape, ids=ids)

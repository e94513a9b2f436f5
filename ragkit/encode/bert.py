"""BERT with mean pooling, run by us: the default model all-MiniLM-L6-v2 and every checkpoint of its layout.

In goes a folder, out comes an encoder. The forward pass (Devlin et al. 2019) works on packed rows, see `kernels.py`: texts
sorted by length, batches of about 1,000 tokens that stay in the processor's cache, no padding, tokenised ahead on another thread.

Rules: weights fit exactly or are refused (`checkpoint.py`); pooling and normalising in float32; a vector does not depend on
what else is in its batch. Queries and documents are encoded alike: these models were trained so.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.encode.batching import ahead, batches, side_by_side, slices
from ragkit.encode.checkpoint import Tensors, check_names_and_shapes, licence_of, read_json, read_tensors
from ragkit.encode.contract import EncoderCard, Encoding, Item, TokenIds, TokenStates
from ragkit.encode.kernels import Kernels, NumpyKernels, TorchKernels, runs_of
from ragkit.encode.layouts import Opening
from ragkit.encode.precision import checked_dtype
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_texts, check_truncate_dim, too_long
from ragkit.encode.tokens import Tokenizer
from ragkit.errors import CheckpointError, EncodeError
from ragkit.ragged import MultiVectors, truncate_dims, unit_rows
from ragkit.types import Floats, Ints

# Names whose weights must be the published file: model.safetensors by sha256.
PUBLISHED = {"sentence-transformers/all-MiniLM-L6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
CPU_TOKENS = 1024  # per batch; 1k to 4k are alike in benchmarks/encode.py --budgets, 512 and 8k slower; small ones share out well
GPU_TOKENS = 65536  # per batch; enough rows to fill the card's matrix units
NUMPY_TOKENS = 512  # the first so many tokens of a process run without torch, whose import takes longer than they do
QUERY = 1000  # characters, some 250 tokens: on a busy machine two threads waited for each other five times longer than one worked
FEW = 1 << 13  # characters, some 2 k tokens: so few are one batch or two, not worth threads of their own
SLICE = 1 << 16  # characters, some 16 k tokens, tokenised at a time
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


def forward(kernels: Kernels, weights: Mapping[str, Any], shape: BertShape, *, ids: Sequence[npt.NDArray[np.int32]]) -> Any:
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


def load(opening: Opening) -> BertEncoder:
    """Check and load a folder of the layout that `checkpoint.has_bert_layout` recognises; a name of PUBLISHED by its checksum."""
    folder, shape = opening.folder, BertShape.read(opening.folder / "config.json")
    dtype = checked_dtype(opening.dtype or "float32")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_tensors, folder / "model.safetensors", sha256=PUBLISHED.get(opening.name))
        tokenizer = _read_tokenizer(folder / "tokenizer.json", shape)
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
    return BertEncoder(card, shape=shape, weights=weights, tokenizer=tokenizer, device=opening.device or "cpu")


def _read_tokenizer(path: Path, shape: BertShape) -> Tokenizer:
    tokenizer = Tokenizer(path)
    # Truncating keeps the last token because it is [SEP]; multi-vectors leave out the first and the last.
    if tokenizer.special_count != 2 or len(tokenizer.ids([""])[0]) != 2:
        raise CheckpointError(f"{path} does not put one token before and one after a text, as BERT does. Fetch the model again")
    if tokenizer.vocabulary_size > shape.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocabulary_size} tokens, config.json has {shape.vocab_size}: they belong to different models"
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
    check_names_and_shapes(tensors, expected, ignorable=_IGNORABLE)
    return {name: tensors.float32(name) for name in expected}


def _token_limit(folder: Path, shape: BertShape, *, asked: int | None) -> int:
    positions = shape.max_position_embeddings
    if asked is None:
        settings = read_json(folder / "sentence_bert_config.json", optional=True)
        return min(positions, int(settings.get("max_seq_length") or positions))
    if not 3 <= asked <= positions:
        raise ValueError(f"max_tokens must be between 3 and {positions}, the positions this model has, got {asked}")
    return asked


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """Tokenised texts: where they stand in the caller's list, their ids, and how many were cut."""

    positions: Ints
    ids: list[npt.NDArray[np.int32]]
    cut: int


class BertEncoder:
    """An `Encoder` (see `contract.py`). Thread-safe: what changes after loading is only that torch arrives, under a lock."""

    def __init__(
        self, card: EncoderCard, *, shape: BertShape, weights: Mapping[str, Floats], tokenizer: Tokenizer, device: str
    ) -> None:
        """weights: as `_prepare` leaves them. Use `load_encoder`."""
        self.card = card
        self.device = device
        self._shape = shape
        self._weights = weights
        self._tokenizer = tokenizer
        self._torch: tuple[TorchKernels, Mapping[str, Any]] | None = None
        self._lock = threading.Lock()
        self._numpy_tokens = NUMPY_TOKENS if (device, card.dtype) == ("cpu", "float32") and "torch" not in sys.modules else 0
        self._budget = CPU_TOKENS if device == "cpu" else GPU_TOKENS

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """n texts -> n unit rows, in order. Raises InputTooLong (unless `truncate`), TypeError for what is not a str."""
        full_task(task, self.card, role="query")
        return self._encode(queries, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """As `encode_query`: this model knows no roles. Beside the result, memory does not grow with the list."""
        full_task(task, self.card, role="document")
        return self._encode(documents, truncate_dim=truncate_dim, truncate=truncate)

    def encode(self, inputs: Sequence[Item], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        """As `encode_query`, for any of the general tasks: all are encoded alike."""
        full_task(task, self.card, role=None)
        return self._encode(inputs, truncate_dim=truncate_dim, truncate=truncate)

    def _encode(self, inputs: Sequence[Item], *, truncate_dim: int | None, truncate: bool) -> Encoding:
        check_texts(inputs)
        check_truncate_dim(truncate_dim, self.card)
        dense = np.empty((len(inputs), self.card.dims), dtype=np.float32)
        multi: list[Floats] | None = [np.empty((0, 0), dtype=np.float32)] * len(inputs) if self.card.multi_dims else None
        truncated = 0

        def tasks() -> Iterator[Callable[[], None]]:
            nonlocal truncated
            for part in ahead(partial(self._tokenise, inputs, truncate=truncate), slices(inputs, characters=SLICE)):
                truncated += part.cut
                lengths = np.array([len(row) for row in part.ids], dtype=np.int64)
                for batch in batches(lengths, tokens=self._budget):
                    ids, at = [part.ids[i] for i in batch], part.positions[batch]
                    yield partial(self._encode_batch, ids, at=at, dense=dense, multi=multi)

        self._run(tasks(), characters=sum(map(len, inputs)))
        dense = unit_rows(dense) if truncate_dim is None else truncate_dims(dense, truncate_dim)
        return Encoding(dense=dense, multi=None if multi is None else _pack(multi, self.card.multi_dims), truncated=truncated)

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        """The last layer's states of one text within the limit, before pooling: not of unit length. Raises InputTooLong."""
        full_task(task, self.card, role="document")
        check_texts([text])
        ids, spans, special = self._tokenizer.one(text)
        if len(ids) > self.card.max_tokens:
            raise too_long(0, len(ids), self.card)
        kernels, weights = self._kernels(len(ids))
        with kernels.context():
            states = kernels.to_numpy(forward(kernels, weights, self._shape, ids=[ids]))
        return TokenStates(states, spans, special)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """[CLS], the text's tokens, [SEP]; any length."""
        full_task(task, self.card, role="document")
        check_texts([text])
        ids, spans = self._tokenizer.own(text)
        first, last = self._tokenizer.ids([""])[0]
        special = np.zeros(len(ids) + 2, dtype=np.bool_)
        special[[0, -1]] = True
        return TokenIds(np.concatenate([[first], ids, [last]], dtype=np.int32), np.pad(spans, ((1, 1), (0, 0))), special)

    def encode_ids(self, rows: Sequence[npt.NDArray[Any]], *, task: str | None = None) -> list[Floats]:
        """The last layer's states of each row of ids within the limit; nothing is added to a row."""
        full_task(task, self.card, role="document")
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        for i, length in enumerate(lengths.tolist()):
            if length == 0:
                raise ValueError(f"row {i} has no ids")
            if length > self.card.max_tokens:
                raise too_long(i, length, self.card)
        states: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
        tasks = (partial(self._states_of, rows, batch, states=states) for batch in batches(lengths, tokens=self._budget))
        self._run(tasks, characters=4 * int(lengths.sum()))
        return states

    def token_spans(self, text: str) -> Ints:
        """Character spans of the text's own tokens, (t, 2) int64, ascending; any length, no special tokens."""
        check_texts([text])
        return self._tokenizer.spans(text)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Tokens of each text, [CLS] and [SEP] included, (n,) int64; any length."""
        check_texts(documents)
        return self._tokenizer.counts(documents)

    def _run(self, tasks: Iterator[Callable[[], None]], *, characters: int) -> None:
        """Run the batches: for little, one after the other; for much, on as many threads as torch would use in one operation.

        A batch per thread has no point at which threads wait for each other, as there are several in each operation otherwise.
        """
        if characters > FEW:
            kernels = self._use_torch()[0]
            if kernels.threads > 1:
                side_by_side(tasks, workers=kernels.threads, start=kernels.alone)
                return
        if characters <= QUERY and self._torch is not None and self._torch[0].threads > 1:
            side_by_side(tasks, workers=1, start=self._torch[0].alone)
            return
        for task in tasks:
            task()

    def _tokenise(self, texts: Sequence[str], positions: Ints, *, truncate: bool) -> _Slice:
        ids, cut, limit = self._tokenizer.ids([texts[i] for i in positions]), 0, self.card.max_tokens
        for i, row in enumerate(ids):
            if len(row) <= limit:
                continue
            if not truncate:
                raise too_long(int(positions[i]), len(row), self.card)
            ids[i], cut = np.append(row[: limit - 1], row[-1]), cut + 1  # the last one is [SEP]
        return _Slice(positions, ids, cut)

    def _encode_batch(self, ids: list[npt.NDArray[np.int32]], *, at: Ints, dense: Floats, multi: list[Floats] | None) -> None:
        """Write the means of these texts to rows `at` of dense, and their token states to multi, if wanted."""
        lengths = [len(row) for row in ids]
        kernels, weights = self._kernels(sum(lengths))
        try:
            with kernels.context():
                states = forward(kernels, weights, self._shape, ids=ids)
                dense[at] = kernels.means(states, runs_of(lengths))
                rows = None if multi is None else kernels.to_numpy(states)
        except kernels.out_of_memory as error:
            if len(ids) == 1:
                raise EncodeError(f"a text of {lengths[0]} tokens exceeds the memory of {self.device}: {error}") from None
        else:
            if multi is not None and rows is not None:
                _keep_token_states(rows, lengths, at=at, multi=multi)
            return
        # Here, not in the handler: its traceback holds the tensors that filled the memory.
        self._budget = max(512, self._budget // 2)
        half = len(ids) // 2
        self._encode_batch(ids[:half], at=at[:half], dense=dense, multi=multi)
        self._encode_batch(ids[half:], at=at[half:], dense=dense, multi=multi)

    def _states_of(self, rows: Sequence[npt.NDArray[Any]], batch: Ints, *, states: list[Floats]) -> None:
        """Write the states of the rows at the positions `batch` to those positions of `states`."""
        lengths = [len(rows[i]) for i in batch]
        kernels, weights = self._kernels(sum(lengths))
        try:
            with kernels.context():
                packed = kernels.to_numpy(forward(kernels, weights, self._shape, ids=[rows[i] for i in batch]))
        except kernels.out_of_memory as error:
            if len(batch) == 1:
                raise EncodeError(f"a text of {lengths[0]} tokens exceeds the memory of {self.device}: {error}") from None
        else:
            for i, own in zip(batch.tolist(), np.split(packed, np.cumsum(lengths)[:-1]), strict=True):
                states[i] = own
            return
        self._budget = max(512, self._budget // 2)  # here, not in the handler: see `_encode_batch`
        for half in np.array_split(batch, 2):
            self._states_of(rows, half, states=states)

    def _kernels(self, tokens: int) -> tuple[Kernels, Mapping[str, Any]]:
        """The arithmetic for a batch of that many tokens: numpy for the first few of a process, then torch."""
        with self._lock:
            self._numpy_tokens = max(0, self._numpy_tokens - tokens)
            if self._torch is None and self._numpy_tokens:
                return NumpyKernels(), self._weights
        return self._use_torch()

    def _use_torch(self) -> tuple[TorchKernels, Mapping[str, Any]]:
        with self._lock:
            if self._torch is None:
                kernels = TorchKernels(self.device, self.card.dtype)
                self._torch = kernels, kernels.place(self._weights)
            return self._torch


def _keep_token_states(rows: Floats, lengths: Sequence[int], *, at: Ints, multi: list[Floats]) -> None:
    """Unit states of each text's own tokens; of [CLS] and [SEP] for a text without any, since no multi-vector is empty."""
    for position, states in zip(at.tolist(), np.split(rows, np.cumsum(lengths)[:-1]), strict=True):
        multi[position] = unit_rows(states[1:-1] if len(states) > 2 else states)


def _pack(items: list[Floats], dims: int) -> MultiVectors:
    if not items:
        return MultiVectors(np.empty((0, dims), dtype=np.float32), np.zeros(1, dtype=np.int64))
    return MultiVectors.pack(items)

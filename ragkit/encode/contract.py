"""What an encoder is: the values it returns and the protocol it keeps.

An encoder turns texts (and, where the model sees, images) into vectors in the right role. Roles never swap: queries go
through `encode_query`, what is stored goes through `encode_document`. Order and count of inputs are kept whatever the
batching: as many vectors out as inputs in, or an error. Pooling and normalising happen in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ragkit.core.arrays import MultiVectors
from ragkit.core.errors import EncodeError, RagkitError
from ragkit.core.types import (
    Array,
    Floats,
    Ints,
    Mask,
    Patches,  # re-exported: it is part of the contract
)

Item = Any  # str; a PIL image, or (str, image) together, where the model sees: see `ragkit.encode.texts.split_item`
IdArray = Array  # token ids of one text, (t,), in whatever dtype its encoder keeps them: only the encoder reads them


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """n inputs as vectors: `dense` (n, d) float32 unit rows, `multi` one multi-vector each; None where not offered.

    `truncated` counts the inputs that were cut: the model saw only their beginning. `lengths` (n,) float32 are the lengths of
    the dense vectors before they were made unit rows; None where they are not known.
    """

    dense: Floats | None = None
    multi: MultiVectors | None = None
    truncated: int = 0
    lengths: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TokenStates:
    """One text, token by token: `states` (t, d) float32, `spans` (t, 2) int64 character offsets, `special` (t,) bool.

    Special tokens and those of the instruction are marked special; their spans are (0, 0).
    """

    states: Floats
    spans: Ints
    special: Mask


@dataclass(frozen=True, slots=True, eq=False)
class TokenIds:
    """One text as the model's input, of any length: `ids` (t,), with `spans` and `special` as in `TokenStates`.

    Only the encoder knows what an id means; the array may be sliced. Special tokens and instruction are there once, in their
    places.
    """

    ids: IdArray
    spans: Ints
    special: Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderCard:
    """A description of a model. Everything that changes its vectors is in `fingerprint`."""

    name: str
    revision: str  # of the weights: a commit, or the sha256 of the file
    licence: str
    dims: int  # width of the dense vectors after truncation, or 0
    multi_dims: int = 0  # width of the multi-vectors, or 0
    truncatable_dims: tuple[int, ...] = ()  # trained Matryoshka widths; empty: none were trained
    tasks: tuple[str, ...] = ("retrieval",)  # families, see `ragkit.encode.tasks`; the first is the default
    task: str | None = None  # what calls without a task mean, if it was chosen at loading
    modalities: tuple[str, ...] = ("text",)  # of documents: "text", "image"
    query_modalities: tuple[str, ...] = ("text",)
    max_tokens: int = 512  # special tokens and instruction included
    outputs: tuple[str, ...] = ("dense",)  # "dense", "multi"
    pooling: str = "mean"
    dtype: str = "float32"  # or "bfloat16", "float16", "auto": see `ragkit.encode.precision`
    preprocessing: dict[str, Any] = field(default_factory=dict)  # prompts, lower-casing, pixel limits

    @property
    def fingerprint(self) -> str:
        """The sha256, in hexadecimal, over every field that decides the vectors."""
        fields = asdict(self)
        for offer in ("licence", "tasks", "truncatable_dims"):  # these change no vector
            fields.pop(offer)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Encoder(Protocol):
    """The contract. Inputs over the model's limit raise InputTooLong, unless `truncate=True`: then they are cut and counted.

    `task` names a family for the two methods with a role ("retrieval", "code", or a symmetric one); None is `card.task`, or else
    the first of `card.tasks`. A task that the model does not have is a ValueError that names those it has.

    An encoder whose queries have vectors of an instruction or of marks may also have `query_tokens(query, task=None)`: it returns
    the characters that each vector of the query's multi-vector stands for, (t, 2) int64; (0, 0) for none.
    """

    @property
    def card(self) -> EncoderCard: ...

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding: ...

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding: ...

    def encode(self, inputs: Sequence[Item], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        """Encode for a symmetric task ("text-matching", ...), or by a full name ("retrieval.query", "code.passage", ...)."""
        ...

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        """Return the states in the document role, for late chunking. A model without token states leaves this method out."""
        ...

    def token_spans(self, text: str) -> Ints:
        """Return character offsets of the text's own tokens, (t, 2) int64, ascending.

        Without special tokens and instruction, and without a limit.
        """
        ...

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Return how many tokens the model would see of each text in the document role, (n,) int64.

        Special tokens and instruction are included; there is no limit.
        """
        ...


@runtime_checkable
class TokenEncoder(Protocol):
    """An offer below `encode_tokens`, for texts beyond the encoder's limit: the caller chooses the windows.

    `encode_ids(rows)[i]` equals `encode_tokens(text).states` where rows[i] is the whole of `token_ids(text).ids`.
    """

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds: ...

    def encode_ids(self, rows: Sequence[IdArray], *, task: str | None = None) -> list[Floats]:
        """Return the last states of each row, (len(row), d) float32, positions from 0. Nothing is added to a row.

        No row attends to another. Raises InputTooLong for a row beyond the limit, ValueError for an empty one.
        """
        ...


@runtime_checkable
class TokenReader(Protocol):
    """An offer to callers who pay by the token, or who bring ids of the encoder's own tokenizer."""

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        """Count as `count_tokens` does, for the full name of a task: with the task's own instruction."""
        ...

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text from which the tokenizer makes exactly these ids; special tokens may stand around them.

        Raises ValueError for ids that belong to no text: another tokenizer's ids, or a piece that begins within a word.
        """
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """What an encoder that sees says of images: at which size to render a page for it, and where its vectors look."""

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        """Return (width, height) in pixels at which the model sees an image of these proportions.

        A page that is rendered at this size loses nothing by being enlarged or reduced again. Units of the arguments do not
        matter.
        """
        ...

    def patches(self, width: int, height: int) -> Patches:
        """Return the grid over an image of so many pixels, given alone to `encode_document`."""
        ...


@contextmanager
def as_encode_errors() -> Iterator[None]:
    """Turn whatever an encoder raises within into an EncodeError: encoders are anybody's code, and run out of memory."""
    try:
        yield
    except RagkitError:
        raise
    except Exception as error:
        raise EncodeError(f"the encoder failed: {type(error).__name__}: {error}") from error


def checked(encoding: Encoding, count: int, *, dense: int, multi: bool) -> Encoding:
    """Return what an encoder made of `count` inputs, checked.

    dense: the width that dense vectors must have, 0 if none are required. multi: whether multi-vectors are required. Raises
    EncodeError for vectors that are missing, too few or too many, of another width, or not finite.
    """
    if encoding.dense is not None:
        _check_vectors(encoding.dense, len(encoding.dense), count, "vectors")
    elif dense:
        raise EncodeError("the encoder returned no vectors, which the recipe keeps")
    if encoding.multi is not None:
        _check_vectors(encoding.multi.values, len(encoding.multi), count, "multi-vectors")
    elif multi:
        raise EncodeError("the encoder returned no multi-vectors, which the recipe keeps")
    if encoding.dense is not None and dense and encoding.dense.shape[1] != dense:
        raise EncodeError(f"the encoder returned vectors of {encoding.dense.shape[1]} dims, and its card says {dense}")
    return encoding


def _check_vectors(values: Floats, returned: int, count: int, kind: str) -> None:
    if returned != count:
        raise EncodeError(f"the encoder returned {returned} {kind} for {count} inputs")
    if not np.isfinite(values).all():
        raise EncodeError(f"the encoder returned {kind} with numbers that are not finite")

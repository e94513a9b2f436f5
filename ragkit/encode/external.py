"""Vectors that come with the documents: an encoder that embeds nothing, for an index of vectors made elsewhere.

    index = Index.open("library", model="vectors:768")
    index.add([{"id": "a", "text": "...", "vector": row}])
    index.search("words", vector=query_row)

Nothing tells whether two vectors come from one model, except their width: an index that knows its model is the better one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import EncodeError
from ragkit.core.types import Floats, Ints
from ragkit.encode.contract import EncoderCard, Item, TokenStates

PREFIX = "vectors:"
UNIT = 1e-3  # a row this close to unit length is one that was rounded to float16, and stays as it is
TOKENS = 1 << 30


class ExternalVectors:
    """An `Encoder` whose card has no modalities: every call to embed raises an EncodeError that says what to do."""

    def __init__(self, dims: int) -> None:
        self.card = EncoderCard(
            name=f"{PREFIX}{dims}",
            revision="1",
            licence="",
            dims=dims,
            modalities=(),
            query_modalities=(),
            max_tokens=TOKENS,
            pooling="given",  # stays as it is: the fingerprint of stored indexes holds this word
        )

    @classmethod
    def from_name(cls, name: str) -> ExternalVectors:
        """Return the encoder of "vectors:768". Raises ValueError for a name of another form."""
        if not re.fullmatch(rf"{PREFIX}[1-9]\d{{0,5}}", name):
            raise ValueError(f"{name!r} is not {PREFIX}<dims>, such as {PREFIX}768")
        return cls(int(name.removeprefix(PREFIX)))

    def _refuse(self) -> NoReturn:
        raise EncodeError(
            f"this index keeps vectors of {self.card.dims} dims that were made elsewhere, and cannot embed a text: "
            "pass vector=, or search with mode='lexical'"
        )

    def encode_query(self, queries: Sequence[Item], **options: object) -> NoReturn:
        self._refuse()

    def encode_document(self, documents: Sequence[Item], **options: object) -> NoReturn:
        self._refuse()

    def encode(self, inputs: Sequence[Item], **options: object) -> NoReturn:
        self._refuse()

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        self._refuse()

    def token_spans(self, text: str) -> Ints:
        return np.empty((0, 2), dtype=np.int64)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        return np.zeros(len(documents), dtype=np.int64)


def embeds_text(card: EncoderCard) -> bool:
    """Return whether an encoder makes vectors of texts at all."""
    return "text" in card.modalities


def unit_vectors(vectors: npt.ArrayLike, dims: int, *, keep: int | None = None) -> Floats:
    """Return rows made elsewhere as float32 unit rows, (n, dims); (n, keep) for an index that keeps the first so many dims.

    Rows may come as wide as either. Raises ValueError for another shape, NaN, infinity or zeros.
    """
    rows = np.asarray(vectors, dtype=np.float32)
    widths = (dims,) if keep is None else (dims, keep)
    if rows.ndim != 2 or rows.shape[1] not in widths:
        raise ValueError(f"vectors of this index have {' or '.join(map(str, widths))} dims, got an array of shape {rows.shape}")
    rows = rows[:, :keep]
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ValueError("a vector must be finite and not all zeros: it has no direction otherwise")
    scale = np.where(np.abs(norms - 1) <= UNIT, 1, norms)[:, None]
    return np.asarray(rows / scale, dtype=np.float32)

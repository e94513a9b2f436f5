"""Methods that encoders share: each protocol here gives public methods, made of what a model has to say itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ragkit.core.arrays import MultiVectors
from ragkit.core.types import Floats, Ints
from ragkit.encode.contract import EncoderCard, Encoding, IdArray, Item, TokenIds, TokenStates
from ragkit.encode.tasks import full_task
from ragkit.encode.texts import too_long


class RoleMethods(Protocol):
    """The three ways to encode, for an encoder whose `_encode` takes the full name of one task.

    All three return one vector per input, in order, and raise InputTooLong (unless `truncate`), TypeError for an input of a kind
    that the model does not take, and EncodeError for an image that cannot be encoded.
    """

    card: EncoderCard

    def _encode(self, items: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding: ...

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """Encode in the role of queries."""
        return self._encode(queries, full_task(task, self.card, role="query"), truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """Encode in the role of documents."""
        return self._encode(documents, full_task(task, self.card, role="document"), truncate_dim=truncate_dim, truncate=truncate)

    def encode(self, inputs: Sequence[Item], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        """Encode for a symmetric task, or for a full name."""
        return self._encode(inputs, full_task(task, self.card, role=None), truncate_dim=truncate_dim, truncate=truncate)


class TokenMethods(Protocol):
    """`encode_tokens` and the ways to count, for an encoder with `token_ids`, `encode_ids` and `task_tokens`."""

    card: EncoderCard

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds: ...

    def encode_ids(self, rows: Sequence[IdArray], *, task: str | None = None) -> list[Floats]: ...

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints: ...

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        """Return the states of one text in the document role, as pooling sees them: not of unit length.

        Raises InputTooLong.
        """
        tokens = self.token_ids(text, task=task)
        if len(tokens.ids) > self.card.max_tokens:
            raise too_long(0, len(tokens.ids), self.card)
        [states] = self.encode_ids([tokens.ids], task=task)
        return TokenStates(states, tokens.spans, tokens.special)

    def token_spans(self, text: str) -> Ints:
        """Return the character spans of the text's own tokens, (t, 2) int64, ascending; any length, no special tokens."""
        tokens = self.token_ids(text)
        return tokens.spans[~tokens.special]

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Return the number of tokens of each text as a document, special tokens and instruction included, (n,) int64."""
        return self.task_tokens(documents, full_task(None, self.card, role="document"))


def pack_multi(items: Sequence[Floats], dims: int) -> MultiVectors:
    """Return the multi-vectors of all inputs, (t, dims) each, packed; there may be no inputs."""
    if not items:
        return MultiVectors(np.empty((0, dims), dtype=np.float32), np.zeros(1, dtype=np.int64))
    return MultiVectors.pack(items)

"""Embed the chunks of documents: texts in, vectors and multi-vectors on the items out. No store.

A text that cannot be encoded fails its own document, by `Item.problem`, and takes no neighbour with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ragkit.chunk.headers import headed_texts
from ragkit.core.arrays import MultiVectors
from ragkit.core.errors import RagkitError
from ragkit.core.types import Floats
from ragkit.encode.contract import Encoder, Encoding, as_encode_errors, checked
from ragkit.encode.late import late_chunk_documents, late_chunk_tokens
from ragkit.encode.windows import encode_windows
from ragkit.ingest.item import Item
from ragkit.ingest.report import Report
from ragkit.recipe.create import layouts_of
from ragkit.recipe.recipe import Recipe
from ragkit.store.values import CHUNK
from ragkit.store.vectors.multi_layout import Layout, Stored
from ragkit.store.vectors.pool import pool_tokens

LATE_DOCUMENTS = 16  # documents late-chunked between two reports of progress
SLICE = 64  # units between two reports of progress


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A chunk as it is embedded, and where its vector belongs."""

    item: Item
    position: int
    text: str


class _LateOptions(TypedDict):
    task: str | None
    window: int
    truncate_dim: int | None


@dataclass(frozen=True, slots=True, eq=False)
class TextEmbedder:
    """Embeds chunks by a recipe; `report` counts the units."""

    recipe: Recipe
    encoder: Encoder
    report: Report

    @property
    def layout(self) -> Layout | None:
        """How the chunks' multi-vectors are stored; None where there are none."""
        return layouts_of(self.recipe).get(CHUNK)

    def embed(self, items: Sequence[Item]) -> None:
        """Set the vectors of every item's chunks, or its problem."""
        if not items:
            return
        if self.recipe.encode.late_chunking:
            for start in range(0, len(items), LATE_DOCUMENTS):
                self._embed_late(items[start : start + LATE_DOCUMENTS])
            return
        texts = []
        for item in items:
            item.dense = [None] * len(item.chunks)
            item.multi = [None] * len(item.chunks)
            texts += [_Text(item, position, text) for position, text in enumerate(self._texts(item))]
        self._tell_cost([text.text for text in texts], documents=len(items))
        # Like lengths together, so that a slice pads little; longest first, so that memory peaks at the start.
        texts.sort(key=lambda text: len(text.text), reverse=True)
        for start in range(0, len(texts), SLICE):
            self._embed_slice(texts[start : start + SLICE])

    def _texts(self, item: Item) -> list[str]:
        """Return the chunks' texts as they are embedded."""
        stage, document = self.recipe.encode, item.document
        if not stage.contextual_headers:
            return [chunk.span.of(document.text) for chunk in item.chunks]
        return headed_texts(document, item.chunks, count_tokens=self.encoder.count_tokens, limit=stage.max_tokens)

    def _tell_cost(self, texts: Sequence[str], *, documents: int) -> None:
        """Before the first document is embedded, tell about what the multi-vectors of all will take on disk."""
        layout = self.layout
        if layout is None or self.recipe.multi is None or not self.report.needs_cost(CHUNK):
            return
        tokens = int(np.minimum(self.encoder.count_tokens(texts), self.recipe.encode.max_tokens).sum()) if texts else 0
        self.report.tell_cost(CHUNK, int(tokens * layout.bytes_a_token) // self.recipe.multi.pool, documents=documents)

    def _embed_slice(self, texts: Sequence[_Text]) -> None:
        texts = [text for text in texts if not text.item.problem]
        if not texts:
            return
        try:
            self._set_vectors(texts)
        except RagkitError as error:
            if len(texts) == 1:
                texts[0].item.problem = str(error)
                return
            for text in texts:  # one bad text must not take its neighbours with it
                self._embed_slice([text])

    def _set_vectors(self, texts: Sequence[_Text]) -> None:
        encoding = self._encode([text.text for text in texts])
        multi = None if self.layout is None else self._stored(_multi_vectors(encoding, len(texts)))
        for number, text in enumerate(texts):
            text.item.dense[text.position] = None if encoding.dense is None else encoding.dense[number]
            text.item.multi[text.position] = None if multi is None else multi[number]
        self.report.count_encoded(len(texts), truncated=encoding.truncated)

    def _encode(self, texts: Sequence[str]) -> Encoding:
        """Return one vector for each text, and one multi-vector, from one pass through the model."""
        stage, encoder, multi = self.recipe.encode, self.encoder, self.recipe.multi
        with as_encode_errors():
            if stage.overflow == "window":
                encoding = encode_windows(encoder, texts, max_tokens=stage.max_tokens, task=stage.task, dims=stage.dims)
            else:
                truncate = stage.overflow == "truncate"
                encoding = encoder.encode_document(texts, task=stage.task, truncate_dim=stage.dims, truncate=truncate)
        without_dense = multi is not None and multi.alone
        return checked(encoding, len(texts), dense=0 if without_dense else self._width, multi=self.layout is not None)

    @property
    def _width(self) -> int:
        return self.recipe.encode.dims or self.encoder.card.dims

    def _embed_late(self, items: Sequence[Item]) -> None:
        """Set each chunk's vector from the token states of its document; a document that cannot be encoded fails alone."""
        try:
            rows, multi = self._late_vectors(items)
        except RagkitError as error:
            if len(items) == 1:
                items[0].problem = str(error)
                return
            for item in items:
                self._embed_late([item])
            return
        for number, item in enumerate(items):
            item.dense = list(rows[number])
            if multi is not None:
                item.multi = list(multi[number])
        self.report.count_encoded(sum(map(len, rows)))

    def _late_vectors(self, items: Sequence[Item]) -> tuple[list[Floats], list[list[Stored]] | None]:
        """Return, for each document of n chunks, its vectors (n, d), and its n multi-vectors where these are kept."""
        stage = self.recipe.encode
        documents = [(item.document.text, [chunk.span for chunk in item.chunks]) for item in items]
        options = _LateOptions(task=stage.task, window=stage.max_tokens, truncate_dim=stage.dims)
        multi = None
        with as_encode_errors():
            if self.layout is None:
                rows = late_chunk_documents(self.encoder, documents, **options)
            else:
                both = late_chunk_tokens(self.encoder, documents, **options)
                rows, multi = [dense for dense, _ in both], [self._stored(tokens) for _, tokens in both]
        for vectors in rows:
            checked(Encoding(dense=vectors), len(vectors), dense=self._width, multi=False)
        return rows, multi

    def _stored(self, multi_vectors: Sequence[Floats]) -> list[Stored]:
        """Pool multi-vectors and bring them to the form on disk at once: in float32 they would fill the memory before the
        commit."""
        layout, multi = self.layout, self.recipe.multi
        assert layout is not None
        assert multi is not None
        pooled = (pool_tokens(vectors, multi.pool) if multi.pool > 1 else vectors for vectors in multi_vectors)
        try:
            return [layout.store(MultiVectors.pack([vectors])) for vectors in pooled]
        except ValueError as error:
            raise RagkitError(f"the encoder's multi-vectors cannot be kept: {error}") from error


def _multi_vectors(encoding: Encoding, count: int) -> list[Floats]:
    assert encoding.multi is not None
    return [encoding.multi[number] for number in range(count)]

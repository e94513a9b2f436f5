"""Vectors of texts that are longer than the model's window: cut into windows, encoded apart, averaged.

Works with any `Encoder`; knows nothing of documents, chunks or an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ragkit.core.arrays import MultiVectors, unit_rows
from ragkit.core.types import Span
from ragkit.encode.contract import Encoder, Encoding


def encode_windows(encoder: Encoder, texts: Sequence[str], *, max_tokens: int, task: str | None, dims: int | None) -> Encoding:
    """Encode texts of any length as documents, one vector each.

    Windows of at most `max_tokens` are encoded apart, and their unit vectors averaged, weighted by their tokens. The
    multi-vector of a text is that of its windows, one after the other. dims: the width to cut dense vectors to, or None.
    """
    pieces, owners, weights = [], [], []
    for owner, text in enumerate(texts):
        for span, tokens in windows(encoder, text, max_tokens=max_tokens):
            pieces.append(span.of(text))
            owners.append(owner)
            weights.append(max(tokens, 1))  # a text without a token has a vector, too
    encoding = encoder.encode_document(pieces, task=task, truncate_dim=dims)
    dense, multi = None, None
    if encoding.dense is not None:
        sums = np.zeros((len(texts), encoding.dense.shape[1]), dtype=np.float32)
        np.add.at(sums, owners, encoding.dense * np.array(weights, dtype=np.float32)[:, None])
        dense = unit_rows(sums)
    if encoding.multi is not None:
        last = np.searchsorted(owners, np.arange(len(texts)), side="right")
        multi = MultiVectors(encoding.multi.values, encoding.multi.offsets[np.concatenate([[0], last])])
    return Encoding(dense=dense, multi=multi)


def windows(encoder: Encoder, text: str, *, max_tokens: int) -> Iterator[tuple[Span, int]]:
    """Yield spans of the text that fit the model, each with its number of tokens.

    Cutting may change the tokens at an edge: a window that is over the limit by itself comes as two halves.
    """
    spans = encoder.token_spans(text)
    room = max(1, max_tokens - int(encoder.count_tokens([""])[0]))
    if len(spans) <= room:
        yield Span(0, len(text)), len(spans)
        return
    for first in range(0, len(spans), room):
        last = min(first + room, len(spans))
        span = Span(int(spans[first, 0]), int(spans[last - 1, 1]))
        if encoder.count_tokens([span.of(text)])[0] <= max_tokens or last - first == 1:
            yield span, last - first
            continue
        middle = (first + last) // 2
        for low, high in ((first, middle), (middle, last)):
            yield Span(int(spans[low, 0]), int(spans[high - 1, 1])), high - low

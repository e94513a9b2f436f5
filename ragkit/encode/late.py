"""Late chunking: the model reads the document, and each chunk's vector is the mean of its own token states there.

    late_chunk(encoder, text, [(0, 812), (812, 1604)])  ->  (2, d) float32 unit rows

So a chunk's vector depends on the words around it, too (Günther et al., arXiv 2409.04701). The spans of a text may come in any
order and overlap; there is one vector for each, in that order, or an error. The rules:

Tokens and spans meet by character offsets. A token belongs to every span that holds its last character; a token in a gap to no
span; a token that holds no character counts as the character it stands before. A span without a token is an error that names it.

A document beyond the window is read in windows over its token sequence, each sharing `overlap` tokens with the window before;
from every window but the first their states are dropped, so each token's state comes from one window: the first that has it.
A chunk across a seam is the mean of states from both. The special tokens and the instruction are there once, at the document's
own ends, and positions restart at 0 in each window: this is the paper's procedure. Only span sums outlive a window.

A document never sees another: windows of several documents are run together only as rows that do not attend to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import index

import numpy as np

from ragkit.core.arrays import truncate_dims, unit_and_lengths, unit_rows
from ragkit.core.errors import InputTooLong
from ragkit.core.types import Floats, Ints, Span
from ragkit.encode.contract import Encoder, EncoderCard, Encoding, TokenEncoder
from ragkit.encode.late_pooling import Edges, Pooling, Reading, SpannedText, pool_whole, pool_windows
from ragkit.encode.texts import check_texts, check_truncate_dim

OVERLAP = 512  # tokens, the paper's; no more than a quarter of the window, so that small windows are not all overlap
PROBE = "The river Aare flows through Bern."  # encoded to see how a model pools whose card does not say

Spans = Sequence[Span] | Sequence[tuple[int, int]] | Ints


def late_chunk(
    encoder: Encoder,
    text: str,
    spans: Spans,
    *,
    task: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    edges: Edges = "strict",
    truncate_dim: int | None = None,
) -> Floats:
    """Return one vector per span of the text, (n, d) float32 unit rows, in the order of the spans. See `late_chunk_documents`."""
    [vectors] = late_chunk_documents(
        encoder, [(text, spans)], task=task, window=window, overlap=overlap, edges=edges, truncate_dim=truncate_dim
    )
    return vectors


def late_chunk_documents(
    encoder: Encoder,
    documents: Sequence[tuple[str, Spans]],
    *,
    task: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    edges: Edges = "strict",
    truncate_dim: int | None = None,
) -> list[Floats]:
    """Return (n, d) float32 unit rows for each (text, n spans), in order; d is `truncate_dim` or the model's width.

    task: None for the model's own default for documents, with its instruction. window: tokens the model reads at once, special
    tokens and instruction included; by default, and at most, `encoder.card.max_tokens`. overlap: tokens that a window shares
    with the window before, by default the smaller of 512 and a quarter of the window. edges: "strict" pools a span's own
    tokens only; "authors", as the paper's evaluation code does, gives the special tokens and instruction before the text to the
    first span of the list as well, and those after it to the last.

    Texts of any length if the encoder is a `TokenEncoder`, else within its limit. Memory: the documents' token ids and span sums,
    and the states of `late_pooling.TOGETHER` tokens or one window. Raises ValueError for an encoder that cannot do this (see
    `why_not_late`), a span outside its text and settings out of range; EncodeError for a span without a token; InputTooLong.
    """
    reading = _reading(encoder, task=task, window=window, overlap=overlap, edges=edges)
    return [_means(pooling, truncate_dim) for pooling in _pooled(encoder, documents, reading, truncate_dim)]


def late_chunk_tokens(
    encoder: Encoder,
    documents: Sequence[tuple[str, Spans]],
    *,
    task: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    truncate_dim: int | None = None,
) -> list[tuple[Floats, list[Floats]]]:
    """Return the vectors of `late_chunk_documents`, and beside them each span's multi-vector.

    That is the states of its tokens in the document, (t, d) float32 unit rows. Also raises ValueError for an encoder whose
    multi-vectors are not its token states.
    """
    if (reason := why_not_late_multi(encoder)) is not None:
        raise ValueError(reason)
    reading = _reading(encoder, task=task, window=window, overlap=overlap, keep_states=True)
    return [
        (_means(pooling, truncate_dim), [unit_rows(np.concatenate(states)) for states in pooling.states or ()])
        for pooling in _pooled(encoder, documents, reading, truncate_dim)
    ]


def _means(pooling: Pooling, truncate_dim: int | None) -> Floats:
    return unit_rows(pooling.sums) if truncate_dim is None else truncate_dims(pooling.sums, truncate_dim)


def late_encoding(encoder: Encoder, pieces: Sequence[str], *, task: str | None = None) -> Encoding:
    """Return the vectors of `late_chunk_strings`, with the lengths that the means had."""
    text, spans = _document_of(encoder, pieces)
    [pooling] = _pooled(encoder, [(text, spans)], _reading(encoder, task=task), None)
    dense, lengths = unit_and_lengths(pooling.sums)
    return Encoding(dense=dense, lengths=(lengths / pooling.counts).astype(np.float32))


def _reading(
    encoder: Encoder,
    *,
    task: str | None,
    window: int | None = None,
    overlap: int | None = None,
    edges: Edges = "strict",
    keep_states: bool = False,
) -> Reading:
    """Return how to read documents. Raises ValueError for an encoder that cannot do it, and for settings out of range."""
    reason = why_not_late(encoder)
    if reason is not None:
        raise ValueError(reason)
    if edges not in ("strict", "authors"):
        raise ValueError(f"edges is 'strict' or 'authors', got {edges!r}")
    width, shared = _window(encoder.card, window, overlap)
    return Reading(task=task, window=width, overlap=shared, edges=edges, keep_states=keep_states)


def _pooled(
    encoder: Encoder, documents: Sequence[tuple[str, Spans]], reading: Reading, truncate_dim: int | None
) -> list[Pooling]:
    """Return what the spans of each document pool. truncate_dim is only checked."""
    check_texts([text for text, _ in documents])
    check_truncate_dim(truncate_dim, encoder.card)
    bounded = [SpannedText(number, text, _bounds(spans, text, number)) for number, (text, spans) in enumerate(documents)]
    if isinstance(encoder, TokenEncoder):
        return pool_windows(encoder, bounded, reading)
    return pool_whole(encoder, bounded, reading)


def late_chunk_strings(
    encoder: Encoder,
    pieces: Sequence[str],
    *,
    task: str | None = None,
    edges: Edges = "strict",
    truncate_dim: int | None = None,
) -> Floats:
    """Return one vector for each of consecutive pieces of one document, (n, d) float32 unit rows; they are joined as they are.

    A token across two pieces belongs to the piece that holds its last character. Raises InputTooLong when all together are beyond
    the model's limit, EncodeError for a piece without a token, such as an empty one.
    """
    text, spans = _document_of(encoder, pieces)
    return late_chunk(encoder, text, spans, task=task, edges=edges, truncate_dim=truncate_dim)


def _document_of(encoder: Encoder, pieces: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return the pieces as one text, and the span of each. Raises InputTooLong."""
    check_texts(pieces)
    text = "".join(pieces)
    [tokens] = encoder.count_tokens([text])
    if tokens > encoder.card.max_tokens:
        raise InputTooLong(
            f"the {len(pieces)} pieces have {tokens} tokens together, special ones and instruction included, but "
            f"{encoder.card.name} is set to take {encoder.card.max_tokens}. Send fewer at a time, or use late_chunk, which reads "
            "in windows"
        )
    ends = list(accumulate(map(len, pieces)))
    return text, list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def why_not_late(encoder: Encoder) -> str | None:
    """Return why this encoder cannot embed chunks late, or None if it can: its vectors must be the means of its token states."""
    card = encoder.card
    if "dense" not in card.outputs or card.dims == 0:
        return f"late chunking makes one vector per chunk, but {card.name} returns {', '.join(card.outputs)} only"
    if not callable(getattr(encoder, "encode_tokens", None)):
        return f"late chunking pools token states, which {card.name} does not give: it has no encode_tokens"
    if card.pooling != "mean" and not (card.pooling == "its own" and _pools_by_mean(encoder)):
        return (
            f"late chunking needs a model whose vectors are the means of its token states, but {card.name} pools by "
            f"{card.pooling!r}: from the states of a span its vector would not follow"
        )
    return None


def why_not_late_multi(encoder: Encoder) -> str | None:
    """Return why this encoder's multi-vectors cannot be cut from a document's states, or None: they must be its token states."""
    multi = encoder.encode_document([PROBE]).multi
    if multi is None:
        return f"{encoder.card.name} makes no multi-vectors"
    tokens = encoder.encode_tokens(PROBE)
    states = unit_rows(tokens.states[~tokens.special])
    if states.shape != multi[0].shape or (states * multi[0]).sum(axis=1).min() < 0.999:
        return (
            f"late chunking cuts a chunk's token vectors from its document's token states, but the multi-vectors of "
            f"{encoder.card.name} are something else. Leave out late_chunking or multi"
        )
    return None


def _pools_by_mean(encoder: Encoder) -> bool:
    """Return whether a text's vector is the mean of its states: tried, for an encoder whose card does not say."""
    states, dense = encoder.encode_tokens(PROBE).states, encoder.encode_document([PROBE]).dense
    if dense is None or states.shape[1] != dense.shape[1]:
        return False
    return bool(unit_rows(states.mean(axis=0, keepdims=True))[0] @ dense[0] > 0.9999)


def _window(card: EncoderCard, window: int | None, overlap: int | None) -> tuple[int, int]:
    """Return (window, overlap) in tokens. Raises ValueError for numbers out of range."""
    limit = card.max_tokens
    width = limit if window is None else index(window)
    if not 1 <= width <= limit:
        raise ValueError(
            f"window must be between 1 and {limit}, the tokens {card.name} is set to take, got {width}. "
            "A larger max_tokens is an argument of load_encoder"
        )
    shared = min(OVERLAP, width // 4) if overlap is None else index(overlap)
    if not 0 <= shared < width:
        raise ValueError(f"overlap must be between 0 and {width - 1}, less than the window of {width} tokens, got {shared}")
    return width, shared


def _bounds(spans: Spans, text: str, document: int) -> Ints:
    """Return the spans as (n, 2) int64. TypeError unless they are pairs of whole numbers, ValueError outside the text."""
    bounds = np.empty((len(spans), 2), dtype=np.int64)
    for i, span in enumerate(spans):
        start, end = span
        bounds[i] = index(start), index(end)
    bad = np.flatnonzero((bounds[:, 0] < 0) | (bounds[:, 0] > bounds[:, 1]) | (bounds[:, 1] > len(text)))
    if len(bad):
        start, end = bounds[bad[0]].tolist()
        raise ValueError(f"document {document}: span {bad[0]}, [{start}, {end}), is not within its text, [0, {len(text)})")
    return bounds

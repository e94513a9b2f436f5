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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import index
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import truncate_dims, unit_and_lengths, unit_rows
from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.core.types import Floats, Ints, Mask, Span
from ragkit.encode.contract import Encoder, EncoderCard, Encoding, IdArray, TokenEncoder, TokenIds, TokenStates
from ragkit.encode.texts import check_texts, check_truncate_dim

OVERLAP = 512  # tokens, the paper's; no more than a quarter of the window, so that small windows are not all overlap
TOGETHER = 1 << 14  # tokens whose states are held at a time: 25 MB at 384 dims, and 16 of the CPU's batches
PROBE = "The river Aare flows through Bern."  # encoded to see how a model pools whose card does not say

Edges = Literal["strict", "authors"]
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
    and the states of TOGETHER tokens or one window. Raises ValueError for an encoder that cannot do this (see `why_not_late`), a
    span outside its text and settings out of range; EncodeError for a span without a token; InputTooLong.
    """
    reading = _Reading.of(encoder, task=task, window=window, overlap=overlap, edges=edges)
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
    reading = _Reading.of(encoder, task=task, window=window, overlap=overlap, keep_states=True)
    return [
        (_means(pooling, truncate_dim), [unit_rows(np.concatenate(states)) for states in pooling.states or ()])
        for pooling in _pooled(encoder, documents, reading, truncate_dim)
    ]


def _means(pooling: _Pooling, truncate_dim: int | None) -> Floats:
    return unit_rows(pooling.sums) if truncate_dim is None else truncate_dims(pooling.sums, truncate_dim)


def late_encoding(encoder: Encoder, pieces: Sequence[str], *, task: str | None = None) -> Encoding:
    """Return the vectors of `late_chunk_strings`, with the lengths that the means had."""
    text, spans = _document_of(encoder, pieces)
    [pooling] = _pooled(encoder, [(text, spans)], _Reading.of(encoder, task=task), None)
    dense, lengths = unit_and_lengths(pooling.sums)
    return Encoding(dense=dense, lengths=(lengths / pooling.counts).astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """How documents are read: the task, the window and its overlap in tokens, whose the tokens at the edges are.

    keep_states: keep each token's state beside the sums.
    """

    task: str | None
    window: int
    overlap: int
    edges: Edges
    keep_states: bool

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        *,
        task: str | None,
        window: int | None = None,
        overlap: int | None = None,
        edges: Edges = "strict",
        keep_states: bool = False,
    ) -> _Reading:
        """Raise ValueError for an encoder that cannot do it, and for settings out of range."""
        reason = why_not_late(encoder)
        if reason is not None:
            raise ValueError(reason)
        if edges not in ("strict", "authors"):
            raise ValueError(f"edges is 'strict' or 'authors', got {edges!r}")
        width, shared = _window(encoder.card, window, overlap)
        return cls(task=task, window=width, overlap=shared, edges=edges, keep_states=keep_states)


def _pooled(
    encoder: Encoder, documents: Sequence[tuple[str, Spans]], reading: _Reading, truncate_dim: int | None
) -> list[_Pooling]:
    """Return what the spans of each document pool. truncate_dim is only checked."""
    check_texts([text for text, _ in documents])
    check_truncate_dim(truncate_dim, encoder.card)
    bounded = [_Document(number, text, _bounds(spans, text, number)) for number, (text, spans) in enumerate(documents)]
    if isinstance(encoder, TokenEncoder):
        return _pool_windows(encoder, bounded, reading)
    return _pool_whole(encoder, bounded, reading)


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


def token_windows(tokens: int, *, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first, end): the model reads tokens [start, end), and the states of [first, end) count.

    Windows start every `window - overlap` tokens; the ranges that count follow each other from 0 to `tokens`, without gap or
    overlap.
    """
    start = first = 0
    while first < tokens:
        end = min(start + window, tokens)
        yield start, first, end
        start, first = start + window - overlap, end


@dataclass(frozen=True, slots=True, eq=False)
class _Document:
    """A text, its number among the documents, and the bounds of its spans, (n, 2) int64."""

    number: int
    text: str
    bounds: Ints


@dataclass(frozen=True, slots=True, eq=False)
class _Pooling:
    """The tokens of one document that each span pools, and the sums so far.

    bounds (n, 2): the spans. places (t,): the character a token counts as, -1 for special tokens and the instruction.
    before, after (t,) bool: tokens that the first and the last span also take. sums (n, d) float64, added to in place; counts
    (n,): the tokens in each sum. states: those of each span's tokens in order, if they are kept.
    """

    bounds: Ints
    places: Ints
    before: Mask
    after: Mask
    sums: npt.NDArray[np.float64]
    counts: Ints
    states: list[list[Floats]] | None = None

    @classmethod
    def empty(cls, dims: int, reading: _Reading) -> _Pooling:
        """Return the pooling of a document without spans."""
        no = np.zeros(0, dtype=np.int64)
        return cls(no.reshape(0, 2), no, no > 0, no > 0, np.zeros((0, dims)), no, [] if reading.keep_states else None)

    @classmethod
    def plan(cls, tokens: TokenIds | TokenStates, document: _Document, reading: _Reading, *, dims: int) -> _Pooling:
        """Assign the tokens to the spans. Raises EncodeError for a span without a token, before anything is encoded."""
        text, bounds = document.text, document.bounds
        places = np.minimum(np.maximum(tokens.spans[:, 1] - 1, tokens.spans[:, 0]), len(text) - 1)
        places[tokens.special] = -1
        before = after = np.zeros_like(tokens.special)
        if reading.edges == "authors":
            before, after = _edge_tokens(tokens.special)
        ordered = np.sort(places)
        counts = np.searchsorted(ordered, bounds[:, 1]) - np.searchsorted(ordered, bounds[:, 0])
        counts[:1] += before.sum()
        counts[-1:] += after.sum()
        if len(empty := np.flatnonzero(counts <= 0)):
            start, end = bounds[empty[0]].tolist()
            raise EncodeError(
                f"document {document.number}: span {empty[0]}, [{start}, {end}), {text[start:end][:40]!r}, has no token of its "
                "own: a token belongs to the span that holds its last character. Leave it out, or join it with a neighbour"
            )
        states: list[list[Floats]] | None = [[] for _ in bounds] if reading.keep_states else None
        return cls(bounds, places, before, after, np.zeros((len(bounds), dims), dtype=np.float64), counts, states)

    def touched(self, start: int, end: int) -> Ints:
        """Return the positions of the spans that may have a token among [start, end)."""
        places = self.places[start:end]
        own = places[places >= 0]
        touched = np.zeros(len(self.bounds), dtype=np.bool_)
        if len(own):
            touched = (self.bounds[:, 0] <= own.max()) & (self.bounds[:, 1] > own.min())
        touched[:1] |= self.before[start:end].any()
        touched[-1:] |= self.after[start:end].any()
        return np.flatnonzero(touched)

    def add(self, start: int, states: Floats) -> None:
        """Add the states of the tokens from `start` on to the sums of their spans."""
        end = start + len(states)
        places = self.places[start:end]
        for i in self.touched(start, end).tolist():
            members = (places >= self.bounds[i, 0]) & (places < self.bounds[i, 1])
            if i == 0:
                members |= self.before[start:end]
            if i == len(self.bounds) - 1:
                members |= self.after[start:end]
            self.sums[i] += states[members].sum(axis=0, dtype=np.float64)
            if self.states is not None and members.any():
                self.states[i].append(states[members])


def _edge_tokens(special: Mask) -> tuple[Mask, Mask]:
    """Return which tokens stand before the text's own and which after; all before, if it has none."""
    own = np.flatnonzero(~special)
    first, last = (own[0], own[-1]) if len(own) else (len(special), len(special))
    at = np.arange(len(special))
    return at < first, at > last


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """A row of ids to run. Its first `skipped` states do not count; the next is that of the document's token `first`."""

    pooling: _Pooling
    ids: IdArray
    skipped: int
    first: int


class _WindowEncoder(TokenEncoder, Protocol):
    """An `Encoder` that is a `TokenEncoder`."""

    @property
    def card(self) -> EncoderCard: ...


def _pool_windows(encoder: _WindowEncoder, documents: Sequence[_Document], reading: _Reading) -> list[_Pooling]:
    """Return what each document's spans pool."""
    pooled: list[_Pooling] = []
    dims = encoder.card.dims

    def rows() -> Iterator[_Window]:
        for document in documents:
            if not len(document.bounds):
                pooled.append(_Pooling.empty(dims, reading))
                continue
            tokens = encoder.token_ids(document.text, task=reading.task)
            pooling = _Pooling.plan(tokens, document, reading, dims=dims)
            pooled.append(pooling)
            for start, first, end in token_windows(len(tokens.ids), window=reading.window, overlap=reading.overlap):
                if len(pooling.touched(first, end)):
                    yield _Window(pooling, tokens.ids[start:end], first - start, first)

    for group in _groups(rows()):
        _run(encoder, group, task=reading.task)
    return pooled


def _run(encoder: TokenEncoder, group: Sequence[_Window], *, task: str | None) -> None:
    """Encode the windows and add the states that count to their documents' sums. No state outlives this call."""
    states = encoder.encode_ids([row.ids for row in group], task=task)
    for row, own in zip(group, states, strict=True):
        row.pooling.add(row.first, own[row.skipped :])


def _groups(rows: Iterator[_Window]) -> Iterator[list[_Window]]:
    """Yield rows in order, in groups of at most TOGETHER tokens, or one row that is longer."""
    group: list[_Window] = []
    size = 0
    for row in rows:
        if group and size + len(row.ids) > TOGETHER:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.ids)
    if group:
        yield group


def _pool_whole(encoder: Encoder, documents: Sequence[_Document], reading: _Reading) -> list[_Pooling]:
    """Return what each document's spans pool, for encoders that give the states of a whole text only. Raises InputTooLong."""
    counts = encoder.count_tokens([document.text for document in documents])
    pooled = []
    for document, count in zip(documents, counts, strict=True):
        if count > reading.window:
            raise InputTooLong(
                f"document {document.number} has {count} tokens, special ones and instruction included, the window is "
                f"{reading.window}, and {encoder.card.name} cannot be run in windows: it has no encode_ids. Cut the document"
            )
        tokens = encoder.encode_tokens(document.text, task=reading.task)
        pooling = _Pooling.plan(tokens, document, reading, dims=tokens.states.shape[1])
        pooling.add(0, tokens.states)
        pooled.append(pooling)
    return pooled


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

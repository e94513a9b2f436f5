"""Late chunking: the model reads the document, and each chunk's vector is the mean of its own token states there.

    late_chunk(encoder, text, [(0, 812), (812, 1604)])  ->  (2, d) float32 unit rows

So a chunk's vector knows what the words around it say (Günther et al., arXiv 2409.04701). In go a text and spans of it, in any
order, overlapping or not; out come as many vectors, in that order, or an error. The rules:

Tokens and spans meet by character offsets. A token belongs to every span that holds its last character; one in a gap to none;
a token that holds no character counts as the character it stands before. A span without a token is an error that names it.

A document beyond the window is read in windows over its token sequence, each sharing `overlap` tokens with the one before; from
every window but the first those are thrown away, so each token's state comes from exactly one window: the first that has it.
A chunk across a seam is the mean of states from both. The special tokens and the instruction are there once, at the document's
own ends, and positions restart at 0 in each window: this is the paper's procedure. Only span sums outlive a window.

A document never sees another: windows of several documents are run together only as rows that do not attend to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import index
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import truncate_dims, unit_and_lengths, unit_rows
from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.core.types import Floats, Ints, Span
from ragkit.encode.contract import Encoder, Encoding, TokenEncoder, TokenIds, TokenStates
from ragkit.encode.texts import check_texts, check_truncate_dim

OVERLAP = 512  # tokens, the paper's; no more than a quarter of the window, so that small windows are not all overlap
TOGETHER = 1 << 14  # tokens whose states are held at a time: 25 MB at 384 dims, and 16 of the CPU's batches
PROBE = "The river Aare flows through Bern."  # encoded to see how a model pools that does not say

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
    """One vector per span of the text, (n, d) float32 unit rows, in the order of the spans. See `late_chunk_documents`."""
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
    """(n, d) float32 unit rows for each (text, n spans), in order; d is `truncate_dim` or the model's width.

    task: the model's own default for documents, with its instruction, unless named. window: tokens the model reads at once,
    special ones and instruction included; by default, and at most, `encoder.card.max_tokens`. overlap: tokens of a window that
    it shares with the one before, by default the smaller of 512 and a quarter of the window. edges: "strict" pools a span's own
    tokens only; "authors", as the paper's evaluation code does, gives the special tokens and instruction before the text to the
    first span of the list as well, and those after it to the last.

    Texts of any length if the encoder is a `TokenEncoder`, else within its limit. Memory: the documents' token ids and span sums,
    and the states of TOGETHER tokens or one window. Raises ValueError for an encoder that cannot do this (see `why_not_late`), a
    span outside its text and settings out of range; EncodeError for a span without a token; InputTooLong.
    """
    pooled = _pooled(encoder, documents, task=task, window=window, overlap=overlap, edges=edges, truncate_dim=truncate_dim)
    return [_means(one, truncate_dim) for one in pooled]


def late_chunk_tokens(
    encoder: Encoder,
    documents: Sequence[tuple[str, Spans]],
    *,
    task: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    truncate_dim: int | None = None,
) -> list[tuple[Floats, list[Floats]]]:
    """As `late_chunk_documents`, and beside the vectors each span's multi-vector: its tokens' states in the document, (t, d)
    float32 unit rows. Also raises ValueError for an encoder whose multi-vectors are not its token states."""
    if (reason := why_not_late_multi(encoder)) is not None:
        raise ValueError(reason)
    pooled = _pooled(
        encoder, documents, task=task, window=window, overlap=overlap, edges="strict", truncate_dim=truncate_dim, keep=True
    )
    return [(_means(one, truncate_dim), [unit_rows(np.concatenate(states)) for states in one.states or ()]) for one in pooled]


def _means(pooled: _Pooling, truncate_dim: int | None) -> Floats:
    return unit_rows(pooled.sums) if truncate_dim is None else truncate_dims(pooled.sums, truncate_dim)


def late_encoding(encoder: Encoder, pieces: Sequence[str], *, task: str | None = None) -> Encoding:
    """As `late_chunk_strings`, with the lengths that the means had."""
    text, spans = _document_of(encoder, pieces)
    [pooled] = _pooled(encoder, [(text, spans)], task=task, window=None, overlap=None, edges="strict", truncate_dim=None)
    dense, lengths = unit_and_lengths(pooled.sums)
    return Encoding(dense=dense, lengths=(lengths / pooled.counts).astype(np.float32))


def _pooled(
    encoder: Encoder,
    documents: Sequence[tuple[str, Spans]],
    *,
    task: str | None,
    window: int | None,
    overlap: int | None,
    edges: Edges,
    truncate_dim: int | None,
    keep: bool = False,
) -> list[_Pooling]:
    reason = why_not_late(encoder)
    if reason is not None:
        raise ValueError(reason)
    if edges not in ("strict", "authors"):
        raise ValueError(f"edges is 'strict' or 'authors', got {edges!r}")
    check_texts([text for text, _ in documents])
    check_truncate_dim(truncate_dim, encoder.card)
    width, shared = _window(encoder, window, overlap)
    checked = [_bounds(spans, text, document) for document, (text, spans) in enumerate(documents)]
    if isinstance(encoder, TokenEncoder):
        return _pool_windows(encoder, documents, checked, task=task, window=width, overlap=shared, edges=edges, keep=keep)
    return _pool_whole(encoder, documents, checked, task=task, window=width, edges=edges, keep=keep)


def late_chunk_strings(
    encoder: Encoder,
    pieces: Sequence[str],
    *,
    task: str | None = None,
    edges: Edges = "strict",
    truncate_dim: int | None = None,
) -> Floats:
    """Consecutive pieces of one document, joined exactly as given: one vector each, (n, d) float32 unit rows.

    A token across two pieces belongs to the one that holds its last character. Raises InputTooLong when all together are beyond
    the model's limit, EncodeError for a piece without a token, such as an empty one.
    """
    text, spans = _document_of(encoder, pieces)
    return late_chunk(encoder, text, spans, task=task, edges=edges, truncate_dim=truncate_dim)


def _document_of(encoder: Encoder, pieces: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The pieces as one text, and where each stands in it. Raises InputTooLong."""
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
    """Why this encoder cannot embed chunks late, or None if it can: its vectors must be the means of its token states."""
    card = encoder.card
    if "dense" not in card.outputs or card.dims == 0:
        return f"late chunking makes one vector per chunk, but {card.name} returns {', '.join(card.outputs)} only"
    if not callable(getattr(encoder, "encode_tokens", None)):
        return f"late chunking pools token states, which {card.name} does not give: it has no encode_tokens"
    if card.pooling != "mean" and not (card.pooling == "its own" and _pools_by_mean(encoder)):
        return (
            f"late chunking needs a model whose vectors are the means of its token states, but {card.name} pools by "
            f"{card.pooling!r}: a span of its states says nothing of what its vector would be"
        )
    return None


def why_not_late_multi(encoder: Encoder) -> str | None:
    """Why this encoder's multi-vectors cannot be cut from a document-level pass, or None: they must be its token states."""
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
    """Found out by trying, for an encoder whose card does not say: is a text's vector the mean of its states?"""
    states, dense = encoder.encode_tokens(PROBE).states, encoder.encode_document([PROBE]).dense
    if dense is None or states.shape[1] != dense.shape[1]:
        return False
    return bool(unit_rows(states.mean(axis=0, keepdims=True))[0] @ dense[0] > 0.9999)


def token_windows(tokens: int, *, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start, kept, end): the model reads tokens [start, end), and the states of [kept, end) count.

    Windows start every `window - overlap` tokens; the kept ranges follow each other from 0 to `tokens`, without gap or overlap.
    """
    start = kept = 0
    while kept < tokens:
        end = min(start + window, tokens)
        yield start, kept, end
        start, kept = start + window - overlap, end


@dataclass(frozen=True, slots=True, eq=False)
class _Pooling:
    """Which tokens of one document are whose, and the sums so far.

    bounds (n, 2): the spans. places (t,): the character a token counts as, -1 for special ones and the instruction.
    before, after (t,) bool: tokens that the first and the last span also take. sums (n, d) float64, added to in place, of as many
    tokens as counts (n,) says.
    """

    bounds: Ints
    places: Ints
    before: npt.NDArray[np.bool_]
    after: npt.NDArray[np.bool_]
    sums: npt.NDArray[np.float64]
    counts: Ints
    states: list[list[Floats]] | None = None  # of each span's tokens in order, where they are kept

    @classmethod
    def none(cls, dims: int, *, keep: bool) -> _Pooling:
        """Of a document without spans."""
        no = np.zeros(0, dtype=np.int64)
        return cls(no.reshape(0, 2), no, no > 0, no > 0, np.zeros((0, dims)), no, [] if keep else None)

    @classmethod
    def plan(
        cls,
        tokens: TokenIds | TokenStates,
        bounds: Ints,
        *,
        text: str,
        dims: int,
        edges: Edges,
        document: int,
        keep: bool = False,
    ) -> _Pooling:
        """Raises EncodeError for a span without a token, before anything is encoded."""
        places = np.minimum(np.maximum(tokens.spans[:, 1] - 1, tokens.spans[:, 0]), len(text) - 1)
        places[tokens.special] = -1
        before, after = _edge_tokens(tokens.special) if edges == "authors" else (np.zeros_like(tokens.special),) * 2
        ordered = np.sort(places)
        counts = np.searchsorted(ordered, bounds[:, 1]) - np.searchsorted(ordered, bounds[:, 0])
        counts[:1] += before.sum()
        counts[-1:] += after.sum()
        if len(empty := np.flatnonzero(counts <= 0)):
            start, end = bounds[empty[0]].tolist()
            raise EncodeError(
                f"document {document}: span {empty[0]}, [{start}, {end}), {text[start:end][:40]!r}, has no token of its own: "
                "a token belongs to the span that holds its last character. Leave it out, or join it with a neighbour"
            )
        kept: list[list[Floats]] | None = [[] for _ in bounds] if keep else None
        return cls(bounds, places, before, after, np.zeros((len(bounds), dims), dtype=np.float64), counts, kept)

    def touched(self, start: int, end: int) -> Ints:
        """Positions of the spans that may have a token among [start, end)."""
        places = self.places[start:end]
        own = places[places >= 0]
        found = np.zeros(len(self.bounds), dtype=np.bool_)
        if len(own):
            found = (self.bounds[:, 0] <= own.max()) & (self.bounds[:, 1] > own.min())
        found[:1] |= self.before[start:end].any()
        found[-1:] |= self.after[start:end].any()
        return np.flatnonzero(found)

    def add(self, start: int, states: Floats) -> None:
        """Take the states of the tokens from `start` on into the sums of their spans."""
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


def _edge_tokens(special: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which tokens stand before the text's own and which after; all before, if it has none."""
    own = np.flatnonzero(~special)
    first, last = (own[0], own[-1]) if len(own) else (len(special), len(special))
    at = np.arange(len(special))
    return at < first, at > last


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """A row to run: the document it is of, its ids, and where the states that count begin, in the row and in the document."""

    pooling: _Pooling
    ids: npt.NDArray[Any]
    skipped: int
    kept: int


def _pool_windows(
    encoder: Any,
    documents: Sequence[tuple[str, Spans]],
    bounds: Sequence[Ints],
    *,
    task: str | None,
    window: int,
    overlap: int,
    edges: Edges,
    keep: bool,
) -> list[_Pooling]:
    """What each document's spans pool. encoder: an `Encoder` that is a `TokenEncoder`."""
    pooled: list[_Pooling] = []

    def rows() -> Iterator[_Window]:
        for document, (text, _) in enumerate(documents):
            if not len(bounds[document]):
                pooled.append(_Pooling.none(encoder.card.dims, keep=keep))
                continue
            tokens = encoder.token_ids(text, task=task)
            pooling = _Pooling.plan(
                tokens, bounds[document], text=text, dims=encoder.card.dims, edges=edges, document=document, keep=keep
            )
            pooled.append(pooling)
            for start, kept, end in token_windows(len(tokens.ids), window=window, overlap=overlap):
                if len(pooling.touched(kept, end)):
                    yield _Window(pooling, tokens.ids[start:end], kept - start, kept)

    for group in _groups(rows()):
        _run(encoder, group, task=task)
    return pooled


def _run(encoder: TokenEncoder, group: Sequence[_Window], *, task: str | None) -> None:
    """Encode the windows and take what counts into their documents' sums. The states are gone when this returns."""
    states = encoder.encode_ids([row.ids for row in group], task=task)
    for row, own in zip(group, states, strict=True):
        row.pooling.add(row.kept, own[row.skipped :])


def _groups(rows: Iterator[_Window]) -> Iterator[list[_Window]]:
    """Rows in order, in groups of at most TOGETHER tokens, or one row that is longer."""
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


def _pool_whole(
    encoder: Encoder,
    documents: Sequence[tuple[str, Spans]],
    bounds: Sequence[Ints],
    *,
    task: str | None,
    window: int,
    edges: Edges,
    keep: bool,
) -> list[_Pooling]:
    """As `_pool_windows`, for encoders that give the states of a whole text only."""
    counts = encoder.count_tokens([text for text, _ in documents])
    pooled = []
    for document, (text, _) in enumerate(documents):
        if counts[document] > window:
            raise InputTooLong(
                f"document {document} has {counts[document]} tokens, special ones and instruction included, the window is "
                f"{window}, and {encoder.card.name} cannot be run in windows: it has no encode_ids. Cut the document"
            )
        tokens = encoder.encode_tokens(text, task=task)
        dims = tokens.states.shape[1]
        pooling = _Pooling.plan(tokens, bounds[document], text=text, dims=dims, edges=edges, document=document, keep=keep)
        pooling.add(0, tokens.states)
        pooled.append(pooling)
    return pooled


def _window(encoder: Encoder, window: int | None, overlap: int | None) -> tuple[int, int]:
    limit = encoder.card.max_tokens
    width = limit if window is None else index(window)
    if not 1 <= width <= limit:
        raise ValueError(
            f"window must be between 1 and {limit}, the tokens {encoder.card.name} is set to take, got {width}. "
            "A larger max_tokens is an argument of load_encoder"
        )
    shared = min(OVERLAP, width // 4) if overlap is None else index(overlap)
    if not 0 <= shared < width:
        raise ValueError(f"overlap must be between 0 and {width - 1}, less than the window of {width} tokens, got {shared}")
    return width, shared


def _bounds(spans: Spans, text: str, document: int) -> Ints:
    """(n, 2) int64; raises TypeError for what is not a pair of whole numbers, ValueError for what is not within the text."""
    bounds = np.empty((len(spans), 2), dtype=np.int64)
    for i, span in enumerate(spans):
        start, end = span
        bounds[i] = index(start), index(end)
    bad = np.flatnonzero((bounds[:, 0] < 0) | (bounds[:, 0] > bounds[:, 1]) | (bounds[:, 1] > len(text)))
    if len(bad):
        start, end = bounds[bad[0]].tolist()
        raise ValueError(f"document {document}: span {bad[0]}, [{start}, {end}), is not within its text, [0, {len(text)})")
    return bounds

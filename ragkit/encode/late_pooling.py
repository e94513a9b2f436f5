"""Which tokens of a document each of its spans pools, window by window, and the sums of their states.

The rules stand in `late.py`, which checks what it hands over. Nothing here knows how a model makes token states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.core.types import Floats, Ints, Mask
from ragkit.encode.contract import Encoder, EncoderCard, IdArray, TokenEncoder, TokenIds, TokenStates

TOGETHER = 1 << 14  # tokens whose states are held at a time: 25 MB at 384 dims, and 16 of the CPU's batches

Edges = Literal["strict", "authors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How documents are read: the task, the window and its overlap in tokens, whose the tokens at the edges are.

    keep_states: keep each token's state beside the sums.
    """

    task: str | None
    window: int
    overlap: int
    edges: Edges
    keep_states: bool


@dataclass(frozen=True, slots=True, eq=False)
class SpannedText:
    """A text, its number among the documents, and the bounds of its spans, (n, 2) int64."""

    number: int
    text: str
    bounds: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Pooling:
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
    def empty(cls, dims: int, reading: Reading) -> Pooling:
        """Return the pooling of a document without spans."""
        no = np.zeros(0, dtype=np.int64)
        return cls(no.reshape(0, 2), no, no > 0, no > 0, np.zeros((0, dims)), no, [] if reading.keep_states else None)

    @classmethod
    def plan(cls, tokens: TokenIds | TokenStates, document: SpannedText, reading: Reading, *, dims: int) -> Pooling:
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

    pooling: Pooling
    ids: IdArray
    skipped: int
    first: int


class _WindowEncoder(TokenEncoder, Protocol):
    """An `Encoder` that is a `TokenEncoder`."""

    @property
    def card(self) -> EncoderCard: ...


def pool_windows(encoder: _WindowEncoder, documents: Sequence[SpannedText], reading: Reading) -> list[Pooling]:
    """Return what each document's spans pool."""
    pooled: list[Pooling] = []
    dims = encoder.card.dims

    def rows() -> Iterator[_Window]:
        for document in documents:
            if not len(document.bounds):
                pooled.append(Pooling.empty(dims, reading))
                continue
            tokens = encoder.token_ids(document.text, task=reading.task)
            pooling = Pooling.plan(tokens, document, reading, dims=dims)
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


def pool_whole(encoder: Encoder, documents: Sequence[SpannedText], reading: Reading) -> list[Pooling]:
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
        pooling = Pooling.plan(tokens, document, reading, dims=tokens.states.shape[1])
        pooling.add(0, tokens.states)
        pooled.append(pooling)
    return pooled


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

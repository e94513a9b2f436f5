"""The chunkers by name, and a user's own: they turn a document into chunks, with any object that counts tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import index
from typing import Protocol

import numpy as np

from ragkit.chunk import structure
from ragkit.chunk.pack import Ruler, bisect, measure, pack, pieces_between
from ragkit.chunk.segment import Cuts, extent, sentence_cuts
from ragkit.core.errors import ChunkError
from ragkit.core.types import Chunk, Document, Ints, Span

CHUNKERS = ("sentences", "structure", "page", "whole")
COUNTED = 1024  # texts whose tokens are counted at a time; bounds what a tokenizer holds
SAMPLED = 32  # pieces counted by themselves, to learn how many tokens the model adds to a text

SpanLike = Span | tuple[int, int] | Chunk  # what a user's own chunker may return
Chunker = str | Callable[[Document], Iterable[SpanLike]]
Range = tuple[int, int]


class TokenCounter(Protocol):
    """The part of an encoder that a chunker needs."""

    def token_spans(self, text: str) -> Ints:
        """Return character offsets of the text's own tokens, (t, 2) int64, ascending, without special tokens."""
        ...

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Return how many tokens the model would see of each text, (n,) int64, special tokens and instruction included."""
        ...


def chunk_document(
    document: Document, *, chunker: Chunker = "sentences", tokens: int, overlap: int = 0, encoder_tokens: TokenCounter
) -> list[Chunk]:
    """Cut a document into chunks of at most `tokens` tokens as the model sees them, neighbours sharing up to `overlap`.

    chunker: "sentences" packs whole sentences over the whole text. "structure" stays within the section of one heading,
    keeps tables, table rows, lists and code whole where they fit, and falls back to sentences. "page" gives one chunk per
    page, or several when it is over the budget. "whole" gives one chunk, whatever its size, and ignores both numbers.
    A callable returns spans, ascending, overlapping or not; blanks at their ends are dropped, and so are spans of blanks;
    spans over the budget are cut further, without overlap. If it returns Chunks, their headings are kept.
    Raises ChunkError when a callable breaks these rules, ValueError for a budget that cannot hold a token.
    """
    text, headings = document.text, structure.outline(document)
    own = _own_chunks(document, chunker) if callable(chunker) else None
    if own is None and chunker not in CHUNKERS:
        raise ValueError(f"chunker is one of {', '.join(CHUNKERS)}, or a function from Document to spans; got {chunker!r}")
    start, end = extent(text, 0, len(text))
    if start == end:
        return []
    if chunker == "whole":
        return [Chunk(Span(start, end), headings.at(start))]
    _check(tokens, overlap)

    cuts = structure.with_blocks(text, sentence_cuts(text), document.blocks)
    measured = _measured(text, cuts, tokens, encoder_tokens)
    if own is not None:
        return _fit_own(measured, own)
    if chunker == "structure":
        cuts = structure.keep_whole(text, cuts, document.blocks, measured.ruler, measured.budget)
        measured = replace(measured, cuts=cuts)
    budget, ruler = measured.budget, measured.ruler
    regions = structure.without_repeats(text, _regions(document, chunker), document.blocks)
    ranges = [pack(text, *region, cuts, ruler, budget=budget, overlap=overlap) for region in regions]
    fitted = _fitted(measured, list(chain.from_iterable(ranges)))
    return [Chunk(Span(start, end), headings.at(start)) for start, end in _without_contained(fitted)]


def _without_contained(ranges: list[Range]) -> list[Range]:
    """Return the ranges ascending, without those inside another: a chunk cut again leaves pieces that its neighbours hold."""
    ordered = sorted(ranges, key=lambda bounds: (bounds[0], -bounds[1]))
    furthest = np.maximum.accumulate([0, *(end for _, end in ordered)])
    return [(start, end) for (start, end), reached in zip(ordered, furthest.tolist(), strict=False) if end > reached]


def _check(tokens: int, overlap: int) -> None:
    if not 0 <= overlap < tokens:
        raise ValueError(f"overlap must be 0 or more and less than tokens, got overlap={overlap} and tokens={tokens}")


def _regions(document: Document, chunker: Chunker) -> list[Range]:
    if chunker == "structure":
        return structure.sections(document.text, document.blocks)
    if chunker == "page":
        return structure.pages(document)
    return [(0, len(document.text))]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Measured:
    """A text, where it may be cut, and its tokens.

    tokens: the most a chunk may have. special: tokens that the model adds to a text of one letter. budget: the part of `tokens`
    that is left for a piece, counted within the text.
    """

    text: str
    cuts: Cuts
    ruler: Ruler
    counter: TokenCounter
    tokens: int
    special: int
    budget: int


def _measured(text: str, cuts: Cuts, tokens: int, counter: TokenCounter) -> _Measured:
    special = int(counter.count_tokens(["a"])[0]) - len(counter.token_spans("a"))
    if tokens <= special:
        raise ValueError(f"a budget of {tokens} tokens holds no text: the model itself adds {special} to each")
    ruler = measure(text, cuts, counter.token_spans)
    added = special if len(ruler.ends) <= tokens - special else _added(text, cuts, ruler, tokens, counter)
    budget = tokens - min(max(special, added), tokens - 1)
    return _Measured(text=text, cuts=cuts, ruler=ruler, counter=counter, tokens=tokens, special=special, budget=budget)


def _added(text: str, cuts: Cuts, ruler: Ruler, tokens: int, counter: TokenCounter) -> int:
    """Return how many tokens a piece has by itself beyond those within the text: special ones, instruction, seams."""
    pieces = pieces_between(text, 0, len(text), cuts)
    chosen = np.unique(np.linspace(0, len(pieces) - 1, SAMPLED).astype(np.int64))
    candidates = zip(pieces.starts[chosen].tolist(), pieces.ends[chosen].tolist(), strict=True)
    ranges = [(a, b) for a, b in candidates if b - a < 4 * tokens]
    if not ranges:
        return 0
    differences = counter.count_tokens([text[a:b] for a, b in ranges]) - np.array([ruler.count(a, b) for a, b in ranges])
    # Nearly the largest: an odd piece must not shrink every chunk, and a chunk that is over the budget is cut again.
    return int(np.quantile(differences, 0.9, method="higher"))


def _fitted(measured: _Measured, ranges: list[Range]) -> list[Range]:
    """Return the ranges, counted as the model counts them: those over the budget cut further, those without a token left out.

    A piece by itself can have more tokens than within the text, so the budget is only certain after this step.
    """
    text, ruler = measured.text, measured.ruler
    fitted: list[Range] = []
    for bounds, count in zip(ranges, _counts(measured, ranges).tolist(), strict=True):
        if count <= measured.tokens:
            fitted += [bounds] if count > measured.special else []
            continue
        smaller = max(1, ruler.count(*bounds) - (count - measured.tokens))
        parts = pack(text, *bounds, measured.cuts, ruler, budget=smaller)
        parts = parts if len(parts) > 1 else bisect(text, *bounds)
        # A single part is a single grapheme: there is nothing left to cut.
        fitted += _fitted(measured, parts) if len(parts) > 1 else parts
    return fitted


def _counts(measured: _Measured, ranges: list[Range]) -> Ints:
    batches = [ranges[i : i + COUNTED] for i in range(0, len(ranges), COUNTED)]
    counts = [measured.counter.count_tokens([measured.text[a:b] for a, b in batch]) for batch in batches]
    return np.concatenate(counts) if counts else np.empty(0, np.int64)


def _own_chunks(document: Document, chunker: Callable[[Document], Iterable[SpanLike]]) -> list[Chunk]:
    """Return the chunks of a user's chunker, checked, without blanks at their ends. Raises ChunkError."""
    chunks: list[Chunk] = []
    headings = structure.outline(document)
    previous = (0, 0)
    for number, span in enumerate(chunker(document)):
        start, end = _bounds_of(span, number)
        if not 0 <= start <= end <= len(document.text):
            raise ChunkError(f"span {number} of the chunker is [{start}, {end}), not within the text, [0, {len(document.text)})")
        if (start, end) < previous:
            raise ChunkError(f"span {number} of the chunker is [{start}, {end}), after a span at {previous}: sort them by start")
        previous = (start, end)
        start, end = extent(document.text, start, end)
        if start < end:
            chunks.append(Chunk(Span(start, end), span.headings if isinstance(span, Chunk) else headings.at(start)))
    return chunks


def _bounds_of(span: SpanLike, number: int) -> Range:
    try:
        start, end = span.span if isinstance(span, Chunk) else span
        return index(start), index(end)
    except (TypeError, ValueError):
        raise ChunkError(
            f"span {number} of the chunker is {span!r}: it must be a Span, a Chunk or (start, end) in whole characters"
        ) from None


def _fit_own(measured: _Measured, own: list[Chunk]) -> list[Chunk]:
    """Return a user's chunks: those that fit by the model's own count stay as they are, longer ones are cut."""
    counts = _counts(measured, [(chunk.span.start, chunk.span.end) for chunk in own])
    chunks: list[Chunk] = []
    for chunk, count in zip(own, counts.tolist(), strict=True):
        bounds = (chunk.span.start, chunk.span.end)
        if count > measured.tokens:
            ranges = pack(measured.text, *bounds, measured.cuts, measured.ruler, budget=measured.budget)
            fitted = _fitted(measured, ranges)
        else:
            fitted = [bounds] if count > measured.special else []
        chunks += [Chunk(Span(start, end), chunk.headings) for start, end in fitted]
    return sorted(chunks, key=lambda chunk: chunk.span)

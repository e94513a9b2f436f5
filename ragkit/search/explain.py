"""Why a unit scores as it does: a MaxSim score taken apart by tokens, each mapped to the words of query and document.

    explanation = index.explain("who pays for the pump?", hit.key)
    for match in explanation.matches:
        print(f"{match.share:.3f}", match.query_word, "→", match.word)      # the shares sum to the score exactly

For a page that was found by its image, the vectors are patches: a match has the boxes of its cells in place of words, and
`explanation.relevance` is the page's map for `ragkit.search.heat.heat_png`.

A stored vector is a token, or the mean of several where the recipe pools them. Vectors are matched to characters by the
encoder's own token spans, in order; where their number is another, as with models that add tokens of their own, a match has
no span.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.chunk.headers import headed_texts
from ragkit.core.arrays import unit_rows
from ragkit.core.space import Space
from ragkit.core.types import Box, Chunk, Citation, CitedBox, Floats, Ints, Patches, Span
from ragkit.encode.contract import Encoder, TokenEncoder
from ragkit.recipe.recipe import Recipe
from ragkit.search.cite import citation
from ragkit.search.explanation import Explanation, Match
from ragkit.search.heat import Relevance, evidence_boxes, relevance, vector_boxes
from ragkit.search.lookup import find_unit
from ragkit.search.queries import QueryBatch, QueryVectors
from ragkit.search.view import View
from ragkit.store.values import CHUNK, DocumentRow, UnitRow
from ragkit.store.vectors.pool import token_clusters

# For an image whose encoder does not say which patch a vector stands for: one cell without a vector.
Patchless = Patches(Box(0.0, 0.0, 1.0, 1.0), np.full((1, 1), -1, dtype=np.int64))
Spans = list[tuple[Span, ...]]  # of each vector, the tokens it stands for; none where they are not known


@dataclass(frozen=True, slots=True)
class _Source:
    """The text that a unit's vectors were made of: `header` and then `text`, which is the document's from `start` on.

    `inside` is the unit's own part of `header + text`.
    """

    header: str
    text: str
    start: int
    inside: Span

    @property
    def whole(self) -> str:
        return self.header + self.text

    def place(self, token: Span) -> Span | None:
        """Return where a token of the whole is in the document; None for one of the header."""
        shift = self.start - len(self.header)
        return Span(token.start + shift, token.end + shift) if token.start >= len(self.header) else None


def explain_unit(view: View, batch: QueryBatch, queries: QueryVectors, number: int, key: int) -> Explanation:
    """Take the MaxSim score of a unit for query `number` of a batch apart. ValueError if the unit is gone."""
    unit, row = find_unit(view.path, view.reader, key)
    text, cited = batch.texts[number], citation(view.reader, row, unit)
    multi = (queries.chunks if unit.kind == CHUNK else queries.pages).multi
    assert multi is not None
    vectors = multi[number]
    winners, shares = view.reader.matches(Space.of(unit.kind, "multi"), vectors, key)
    if unit.page is None:
        source = _source(view, unit, row, cited.span)
        return _explain_chunk(view, source, winners, shares, query=text, count=len(vectors), key=key, cited=cited)
    encoder, [box] = view.page_encoder, cited.boxes
    assert encoder is not None
    return explain_page(
        winners,
        shares,
        query=text,
        query_spans=query_spans(encoder, text, count=len(vectors)) if batch.images is None else [],
        patches=unit.patches or Patchless,
        key=key,
        cited=cited,
        page_size=(box.page_width, box.page_height),
    )


def _explain_chunk(
    view: View, source: _Source, winners: Ints, shares: npt.NDArray[Any], *, query: str, count: int, key: int, cited: Citation
) -> Explanation:
    query_words = query_spans(view.encoder, query, count=count)
    unit_words = _unit_spans(view.encoder, view.recipe, source)
    matches = []
    for at, (winner, share) in enumerate(zip(winners.tolist(), shares.tolist(), strict=True)):
        query_span = query_words[at][0] if query_words and query_words[at] else None
        tokens = unit_words[winner] if winner < len(unit_words) else ()
        words = " ".join(dict.fromkeys(_word(source.whole, token) for token in tokens))
        spans = tuple(place for token in tokens if (place := source.place(token)) is not None)
        query_word = "" if query_span is None else _word(query, query_span)
        matches.append(Match(share, query_word, query_span, winner, spans, words))
    return Explanation(key, cited, tuple(matches))


def explain_page(
    winners: Ints,
    shares: Sequence[float] | npt.NDArray[Any],
    *,
    query: str,
    query_spans: Spans,
    patches: Patches,
    key: int,
    cited: Citation,
    page_size: tuple[float, float],
) -> Explanation:
    """Take the MaxSim score of a page image apart, by cells.

        vectors = encoder.encode_query([query]).multi[0]
        winners, shares = reader.matches(Space.PAGE_MULTI, vectors, key)
        patches = the unit's, as its vectors were stored: `encoder.patches(*image.size)`, or what `fewer_patches` made of it
        explain_page(winners, shares, query=query, query_spans=query_spans(encoder, query, count=len(vectors)), patches=patches,
                     key=key, cited=Citation(source, page.span, (page.number,)), page_size=(page.width, page.height))

    winners, shares (q,): see `heat.relevance`. query: "" for a picture, query_spans then empty. cited: of that one page;
    its boxes become those of the evidence. page_size: width and height in points, as displayed.
    """
    [number] = cited.pages

    def on_page(box: Box) -> CitedBox:
        width, height = page_size
        return CitedBox(number, Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height), width, height)

    matches = []
    for at, (winner, share) in enumerate(zip(winners.tolist(), np.asarray(shares).tolist(), strict=True)):
        mine = query_spans[at][0] if query_spans and query_spans[at] else None
        boxes = tuple(on_page(box) for box in vector_boxes(patches, winner))
        matches.append(Match(share, "" if mine is None else _word(query, mine), mine, winner, (), "", boxes))
    parts = relevance(winners, shares, patches)
    return Explanation(key, replace(cited, boxes=page_evidence(parts, number, page_size)), tuple(matches), parts)


def page_evidence(parts: Relevance, number: int, size: tuple[float, float]) -> tuple[CitedBox, ...]:
    """Return the few boxes on page `number`, of that width and height in points, that have most of a score; or none."""
    width, height = size
    return tuple(
        CitedBox(number, Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height), width, height)
        for box, _ in evidence_boxes(parts)
    )


def _source(view: View, unit: UnitRow, row: DocumentRow, span: Span) -> _Source:
    """Return the text that a chunk's vectors were made of."""
    stage, reader = view.recipe.encode, view.reader
    if stage.late_chunking:
        return _Source("", reader.text(row.id, Span(0, row.characters)), 0, span)
    text, header = reader.text(row.id, span), ""
    if stage.contextual_headers:
        chunk, count_tokens = Chunk(span, unit.headings), view.encoder.count_tokens
        [headed] = headed_texts(reader.document(row), [chunk], count_tokens=count_tokens, limit=stage.max_tokens)
        header = headed.removesuffix(text)
    return _Source(header, text, span.start, Span(0, len(header) + len(text)))


def query_spans(encoder: Encoder, query: str, *, count: int) -> Spans:
    """Return what each of the query's `count` vectors stands for in it, nothing for those of an instruction; empty if that is not
    known."""
    reader: Any = encoder
    if hasattr(reader, "query_tokens"):  # optional, see `Encoder`; isinstance does not see it through a cache
        tokens = reader.query_tokens(query).tolist()
        return [(Span(start, end),) if end > start else () for start, end in tokens] if len(tokens) == count else []
    spans: Spans = [(Span(start, end),) for start, end in encoder.token_spans(query).tolist()]
    cut = len(spans) > count and int(encoder.count_tokens([query])[0]) > encoder.card.max_tokens
    return spans[:count] if cut or len(spans) == count else []


def _prompted(encoder: Encoder, text: str, more: int) -> int:
    """Return how many of a text's vectors are of the prompt before it: all `more` than its own tokens, for a model such as
    v4 that puts nothing behind the text."""
    if more <= 0 or not isinstance(encoder, TokenEncoder):
        return 0
    special = encoder.token_ids(text).special
    return more if special[: int(special.sum())].all() else 0


def _unit_spans(encoder: Encoder, recipe: Recipe, source: _Source) -> Spans:
    """Return what each stored vector of a unit stands for, in characters of the source; empty if that is not known."""
    assert recipe.multi is not None
    inside, pool = source.inside, recipe.multi.pool
    spans = [Span(start, end) for start, end in encoder.token_spans(source.whole).tolist()]
    spans = [span for span in spans if inside.start <= max(span.end - 1, span.start) < inside.end]  # as in encode/late.py
    if recipe.encode.late_chunking:
        return [(span,) for span in spans] if pool == 1 else []  # pooled from states in the document, which are gone
    states = _states(encoder, recipe, source.whole)
    if states is None:
        return []
    prompt = _prompted(encoder, source.whole, len(states) - len(spans))
    tokens: Spans = [()] * prompt + [(span,) for span in spans]
    cut = recipe.encode.overflow == "truncate"
    if len(tokens) < len(states) or (len(tokens) > len(states) and not cut):
        return []
    return tokens[: len(states)] if pool == 1 else _clustered(tokens, token_clusters(states, pool))


def _clustered(tokens: Spans, labels: Ints) -> Spans:
    """Return the tokens of each cluster, by the label of each token's vector."""
    return [
        tuple(span for at in np.flatnonzero(labels == label) for span in tokens[at]) for label in range(int(labels.max()) + 1)
    ]


def _states(encoder: Encoder, recipe: Recipe, text: str) -> Floats | None:
    """Make the unit's vectors before pooling again: the same, since encoders are deterministic."""
    stage = recipe.encode
    if stage.overflow == "window":
        from ragkit.encode.windows import encode_windows

        multi = encode_windows(encoder, [text], max_tokens=stage.max_tokens, task=stage.task, dims=stage.dims).multi
    else:
        multi = encoder.encode_document([text], task=stage.task, truncate=True).multi
    return None if multi is None else unit_rows(multi[0])


def _word(text: str, span: Span) -> str:
    """Return the word that a token is in: wordpieces alone say little."""
    before = re.search(r"\w*\Z", text[: span.start]) if span.length and text[span.start : span.start + 1].isalnum() else None
    after = re.match(r"\w*", text[span.end :]) if span.length and text[span.end - 1 : span.end].isalnum() else None
    word = (before.group() if before else "") + span.of(text) + (after.group() if after else "")
    return word.strip()  # byte-level tokens begin with the space before them

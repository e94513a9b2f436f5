"""Why a unit scores as it does: a MaxSim score taken apart by tokens, each mapped to the words of query and document.

    explanation = index.explain("who pays for the pump?", hit.key)
    for match in explanation.matches:
        print(f"{match.share:.3f}", match.query_word, "→", match.word)      # the shares sum to the score exactly

Of a page that was found by its picture, the vectors are patches: a match has the boxes of its cells in place of words, and
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
from ragkit.core.types import Box, Chunk, Citation, CitedBox, Floats, Ints, Patches, Span
from ragkit.encode.contract import Encoder, TokenEncoder
from ragkit.recipe.recipe import Recipe
from ragkit.search.explanation import Explanation, Match
from ragkit.search.heat import Relevance, evidence_boxes, relevance, vector_boxes
from ragkit.store.local.reader import Reader
from ragkit.store.values import DocumentRow
from ragkit.store.vectors.pool import token_clusters

# Of a picture whose encoder does not tell where its vectors look: one cell that none stands for.
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
        """Where a token of the whole stands in the document; None for one of the header."""
        shift = self.start - len(self.header)
        return Span(token.start + shift, token.end + shift) if token.start >= len(self.header) else None


def explain(
    reader: Reader,
    encoder: Encoder,
    recipe: Recipe,
    *,
    query: str,
    vectors: Floats,
    key: int,
    cited: Citation,
    row: DocumentRow,
) -> Explanation:
    """The score of a unit for a query with the multi-vector `vectors` (q, d); `row` is the unit's document."""
    winners, shares = reader.explain_multi(vectors, key)
    own = query_spans(encoder, query, count=len(vectors))
    source = _source(reader, encoder, recipe, key=key, row=row, span=cited.span)
    theirs = _unit_spans(encoder, recipe, source)
    matches = []
    for at, (winner, share) in enumerate(zip(winners.tolist(), shares.tolist(), strict=True)):
        mine = own[at][0] if own and own[at] else None
        found = theirs[winner] if winner < len(theirs) else ()
        words = " ".join(dict.fromkeys(_word(source.whole, one) for one in found))
        spans = tuple(place for one in found if (place := source.place(one)) is not None)
        matches.append(Match(share, "" if mine is None else _word(query, mine), mine, winner, spans, words))
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
    """The score of a page's picture, by cells.

        vectors = encoder.encode_query([query]).multi[0]
        winners, shares = reader.explain_multi(vectors, key)                   # in the space of pages
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
    found = relevance(winners, shares, patches)
    return Explanation(key, replace(cited, boxes=page_evidence(found, number, page_size)), tuple(matches), found)


def page_evidence(found: Relevance, number: int, size: tuple[float, float]) -> tuple[CitedBox, ...]:
    """Where on page `number`, of that width and height in points, most of a score is: few boxes, or none."""
    width, height = size
    return tuple(
        CitedBox(number, Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height), width, height)
        for box, _ in evidence_boxes(found)
    )


def _source(reader: Reader, encoder: Encoder, recipe: Recipe, *, key: int, row: DocumentRow, span: Span) -> _Source:
    stage = recipe.encode
    if stage.late_chunking:
        return _Source("", reader.text(row.id, Span(0, row.characters)), 0, span)
    text, header = reader.text(row.id, span), ""
    if stage.contextual_headers:
        chunk = Chunk(span, reader.units([key])[key].headings)
        [headed] = headed_texts(reader.document(row), [chunk], count_tokens=encoder.count_tokens, limit=stage.max_tokens)
        header = headed.removesuffix(text)
    return _Source(header, text, span.start, Span(0, len(header) + len(text)))


def query_spans(encoder: Encoder, query: str, *, count: int) -> Spans:
    """What each of the query's `count` vectors stands for in it, nothing for those of an instruction; empty where that is not
    known."""
    reader: Any = encoder
    if hasattr(reader, "query_tokens"):  # an offer of some encoders, see `Encoder`
        told = reader.query_tokens(query).tolist()
        return [(Span(start, end),) if end > start else () for start, end in told] if len(told) == count else []
    spans: Spans = [(Span(start, end),) for start, end in encoder.token_spans(query).tolist()]
    cut = len(spans) > count and int(encoder.count_tokens([query])[0]) > encoder.card.max_tokens
    return spans[:count] if cut or len(spans) == count else []


def _prompted(encoder: Encoder, text: str, more: int) -> int:
    """How many of a text's vectors are of the prompt before it: all that are `more` than its own tokens, of a model that puts
    nothing behind it, as v4."""
    if more <= 0 or not isinstance(encoder, TokenEncoder):
        return 0
    special = encoder.token_ids(text).special
    return more if special[: int(special.sum())].all() else 0


def _unit_spans(encoder: Encoder, recipe: Recipe, source: _Source) -> Spans:
    """What each stored vector of a unit stands for, in characters of the source; empty where that is not known."""
    assert recipe.multi is not None
    inside, pool = source.inside, recipe.multi.pool
    spans = [Span(start, end) for start, end in encoder.token_spans(source.whole).tolist()]
    spans = [one for one in spans if inside.start <= max(one.end - 1, one.start) < inside.end]  # as in encode/late.py
    if recipe.encode.late_chunking:
        return [(one,) for one in spans] if pool == 1 else []  # pooled from states in the document, which are gone
    states = _states(encoder, recipe, source.whole)
    cut = recipe.encode.overflow == "truncate"
    if states is None:
        return []
    each: Spans = [()] * _prompted(encoder, source.whole, len(states) - len(spans)) + [(one,) for one in spans]
    if len(each) < len(states) or (len(each) > len(states) and not cut):
        return []
    if pool == 1:
        return each[: len(states)]
    labels = token_clusters(states, pool)
    return [tuple(one for at in np.flatnonzero(labels == label) for one in each[at]) for label in range(int(labels.max()) + 1)]


def _states(encoder: Encoder, recipe: Recipe, text: str) -> Floats | None:
    """The unit's vectors before they were pooled, made again: the same, since encoders are deterministic."""
    stage = recipe.encode
    if stage.overflow == "window":
        from ragkit.encode.windows import encode_windows

        multi = encode_windows(encoder, [text], max_tokens=stage.max_tokens, task=stage.task, dims=stage.dims).multi
    else:
        multi = encoder.encode_document([text], task=stage.task, truncate=True).multi
    return None if multi is None else unit_rows(multi[0])


def _word(text: str, span: Span) -> str:
    """The word that a token lies in: wordpieces alone say little."""
    before = re.search(r"\w*\Z", text[: span.start]) if span.length and text[span.start : span.start + 1].isalnum() else None
    after = re.match(r"\w*", text[span.end :]) if span.length and text[span.end - 1 : span.end].isalnum() else None
    word = (before.group() if before else "") + span.of(text) + (after.group() if after else "")
    return word.strip()  # byte-level tokens begin with the space before them

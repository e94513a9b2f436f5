"""Why a hit was found: what `hit.explain()` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ragkit.core.types import Citation, CitedBox, Span
from ragkit.search.heat import Relevance


@dataclass(frozen=True, slots=True)
class Match:
    """A token of the query and the unit's vector that matched it best.

    query_span: the token in the query; query_word: the word it lies in. token: which of the unit's vectors; spans: what it
    stands for in the document's text, several tokens where they were pooled; word: the words they lie in. share: its part of
    the score. boxes: of a page's picture, the cells that the vector stands for; none where it is one of the prompt's.
    """

    share: float
    query_word: str
    query_span: Span | None
    token: int
    spans: tuple[Span, ...]
    word: str
    boxes: tuple[CitedBox, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """A unit's MaxSim score, taken apart: one match per token of the query, in the query's order.

    Of a page's picture, `relevance` is the same score taken apart by cells, and the citation's boxes are where most of it is.
    """

    key: int
    citation: Citation
    matches: tuple[Match, ...]
    relevance: Relevance | None = None

    @property
    def score(self) -> float:
        """The sum of the shares: exactly the score of `mode="multi"`."""
        return math.fsum(match.share for match in self.matches)

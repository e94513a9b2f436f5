"""Why a hit was found: what `hit.explain()` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ragkit.core.types import Citation, CitedBox, Span
from ragkit.search.heat import Relevance


@dataclass(frozen=True, slots=True)
class Match:
    """A token of the query and the unit's vector that matched it best.

    share: its part of the score. query_span: the token in the query; query_word: the word that contains it. token: the number of
    the unit's vector; spans: the tokens of the document's text that the vector stands for, several if they were pooled; word: the
    words that contain them. boxes: for a page image, the cells that the vector stands for; none for a vector of the prompt.
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
    """A unit's MaxSim score in parts: one match for each token of the query, in the query's order.

    For a page image, `relevance` divides the same score by cells, and the citation's boxes show where most of it is.
    """

    key: int
    citation: Citation
    matches: tuple[Match, ...]
    relevance: Relevance | None = None

    @property
    def score(self) -> float:
        """Return the sum of the shares: exactly the score of `mode="multi"`."""
        return math.fsum(match.share for match in self.matches)

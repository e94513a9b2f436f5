"""How to search an index: one value for all that a question takes beside its words and pictures, checked in one place.

`Index.search`, the command line, HTTP, MCP and the adapters all build a `SearchRequest`. It knows nothing of an index:
`ragkit.search.plan` settles which of the spaces of its mode an index has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias, TypedDict

from ragkit.core.space import MODES, PAGE_SPACES, Space
from ragkit.search.filters import Filters

MAXSIM = "maxsim"
CANDIDATES = 50


class CrossEncoder(Protocol):
    """A model that scores pairs of (query, text), as sentence-transformers has it."""

    def predict(self, pairs: list[tuple[str, str]], *, show_progress_bar: bool) -> Any: ...


Scorer: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]  # a query and n texts: n scores, higher is better
Reranker: TypeAlias = str | CrossEncoder | Scorer


class SearchKeywords(TypedDict, total=False):
    """The keywords of `Index.search`: the fields of `SearchRequest`."""

    mode: str
    filters: Filters | None
    dims: int | None
    min_score: float | None
    group_by: str | None
    weights: Mapping[str, float] | None
    rrf: float | None
    exact: bool
    degraded: bool
    phrasings: Sequence[str]
    rerank: Reranker | None
    diversity: float
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """How to search.

    - k: hits, at most
    - mode: "hybrid" (every space), "text", "pages", "dense", "lexical", "multi", or one space
    - filters: which documents, and which of their passages, may answer; see `ragkit.search.filters`
    - dims: compare only so many dimensions, the first, of the dense vectors
    - min_score: the least score, on the scale of the hits
    - group_by: "document" gives the best hit of each document
    - weights: of spaces, by name, when they are fused; 0 leaves a space out
    - rrf: fuse by reciprocal ranks with this constant instead of by z-scores
    - exact: look at every vector instead of the compressed and the coarse ones
    - degraded: answer from the intact rest of a damaged index, and say what is missing
    - phrasings: the question in other words; all answers are fused
    - rerank: "maxsim", a CrossEncoder, or a function of (query, texts) that returns scores
    - diversity: from 0, the best hits, to 1, the most different ones
    - candidates: how many hits the three steps above look at
    """

    k: int = 10
    mode: str = "hybrid"
    filters: Filters | None = None
    dims: int | None = None
    min_score: float | None = None
    group_by: str | None = None
    weights: Mapping[str, float] | None = field(default=None)
    rrf: float | None = None
    exact: bool = False
    degraded: bool = False
    phrasings: Sequence[str] = ()
    rerank: Reranker | None = None
    diversity: float = 0.0
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_scores()
        self._check_refining()

    @classmethod
    def of(cls, k: int, keywords: Mapping[str, Any]) -> SearchRequest:
        """Build a request from keywords. TypeError names an unknown one."""
        known = [each.name for each in fields(cls)]
        if unknown := [name for name in keywords if name not in known]:
            raise TypeError(f"{unknown[0]!r} is not an option of a search; the options are {', '.join(known)}")
        return cls(k=k, **keywords)

    def _check_kinds(self) -> None:
        check_count(self.k)
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.group_by not in (None, "document"):
            raise ValueError(f"group_by must be 'document' or None, got {self.group_by!r}")

    def _check_scores(self) -> None:
        weights = self.weights or {}
        if unknown := sorted(set(weights) - set(Space)):
            raise ValueError(f"weights are per space ({', '.join(Space)}), got {unknown[0]!r}")
        if not all(0 <= weight < math.inf for weight in weights.values()):
            raise ValueError(f"weights are numbers from 0 on, got {dict(weights)}")
        if self.rrf is not None and not 0 <= self.rrf < math.inf:
            raise ValueError(f"rrf, the constant of reciprocal-rank fusion, is a number from 0 on, got {self.rrf}")
        if self.min_score is not None and math.isnan(self.min_score):
            raise ValueError("min_score is not a number")

    def _check_refining(self) -> None:
        if isinstance(self.phrasings, str) or not all(isinstance(phrasing, str) for phrasing in self.phrasings):
            raise TypeError(f"phrasings is a list of texts, got {self.phrasings!r}")
        known = self.rerank in (None, MAXSIM) if isinstance(self.rerank, (str, type(None))) else callable(self.rerank)
        if not known and not hasattr(self.rerank, "predict"):
            raise TypeError(f"rerank is {MAXSIM!r}, a CrossEncoder or a function of (query, texts), got {self.rerank!r}")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"diversity is between 0 and 1, got {self.diversity}")
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"candidates is a number of hits from 1 on, got {self.candidates!r}")

    @property
    def of_pages(self) -> bool:
        """Whether only page images can answer in this mode."""
        return set(MODES[self.mode]) <= set(PAGE_SPACES)

    @property
    def by_maxsim(self) -> bool:
        return isinstance(self.rerank, str)

    @property
    def refines(self) -> bool:
        """Whether hits are reranked, fused over phrasings or made diverse after the search."""
        return self.rescores or self.diversity > 0

    @property
    def rescores(self) -> bool:
        """Whether the final scores are on another scale than those of the search."""
        return bool(self.phrasings) or self.rerank is not None


def check_count(k: object) -> None:
    """Raise TypeError or ValueError for what is not a number of hits."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k is a number of hits, an int, got {k!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

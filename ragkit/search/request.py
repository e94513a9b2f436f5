"""A question to an index, with its settings, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ragkit.core.space import MODES, PAGE_SPACES, Space

NO_PAGES = "this index has no page images. Make one that has: Index.open(path, pages='auto', page_model=...)"
NO_MULTI = "this index keeps no multi-vectors for MaxSim. Make one that does: Index.open(path, multi=True)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search: what `Index.search` takes beside the query and k; `available` are the spaces that the index has."""

    mode: str = "hybrid"
    available: tuple[Space, ...] = (Space.DENSE, Space.LEXICAL)
    dims: int | None = None
    min_score: float | None = None
    group_by: str | None = None  # "document": at most one hit per document
    weights: Mapping[str, float] = field(default_factory=dict)  # per space; see `weight`
    rrf: float | None = None  # fuse by reciprocal ranks with this constant instead of by z-scores
    exact: bool = False  # nothing compressed and nothing coarse decides what is looked at
    degraded: bool = False  # answer from what is intact, and say what is missing

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if set(MODES[self.mode]) <= set(PAGE_SPACES) and not set(PAGE_SPACES) & set(self.available):
            raise ValueError(NO_PAGES)
        if MODES[self.mode] == (Space.MULTI,) and Space.MULTI not in self.available:
            raise ValueError(NO_MULTI)
        if MODES[self.mode] == (Space.DENSE,) and Space.DENSE not in self.available:
            raise ValueError("this index keeps no dense vectors, since its model makes none; search it with mode='multi'")
        if self.group_by not in (None, "document"):
            raise ValueError(f"group_by must be 'document' or None, got {self.group_by!r}")
        unknown = set(self.weights) - set(Space)
        if unknown:
            raise ValueError(f"weights are per space ({', '.join(Space)}), got {sorted(unknown)[0]!r}")
        if not all(0 <= weight < math.inf for weight in self.weights.values()):
            raise ValueError(f"weights are numbers from 0 on, got {dict(self.weights)}")
        if not self.spaces:
            there = set(MODES[self.mode]) & set(self.available)
            problem = "has the weight 0" if there else "is not in this index"
            raise ValueError(f"every space of mode {self.mode!r} {problem}, so nothing would be searched")
        if self.rrf is not None and not 0 <= self.rrf < math.inf:
            raise ValueError(f"rrf, the constant of reciprocal-rank fusion, is a number from 0 on, got {self.rrf}")
        if self.min_score is not None and math.isnan(self.min_score):
            raise ValueError("min_score is not a number")

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces that take part: those there are, without those weighted with zero."""
        return tuple(space for space in MODES[self.mode] if space in self.available and self.weight(space) > 0)

    def weight(self, space: Space) -> float:
        """What a space counts when spaces are fused. Those of pages are filled by one encoder, and share one vote."""
        if space not in PAGE_SPACES:
            return self.weights.get(space, 1.0)
        voters = [page for page in PAGE_SPACES if page in self.available and self.weights.get(page, 1) > 0]
        return self.weights.get(space, 1 / max(1, len(voters)))

    @property
    def scale(self) -> str:
        """The scale of the scores."""
        if len(self.spaces) == 1:
            return self.spaces[0].scale
        return "zscore" if self.rrf is None else "rrf"


MAXSIM = "maxsim"
CANDIDATES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What is done with hits after the search: what `Index.search` takes for it."""

    phrasings: Sequence[str] = ()  # the same question in other words
    rerank: Any = None  # a Scorer, a sentence_transformers.CrossEncoder, or "maxsim": the index's own multi-vectors
    diversity: float = 0.0  # from 0, the best hits, to 1, the most unlike ones
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        if isinstance(self.phrasings, str) or not all(isinstance(one, str) for one in self.phrasings):
            raise TypeError(f"phrasings is a list of texts, got {self.phrasings!r}")
        known = self.rerank in (None, MAXSIM) if isinstance(self.rerank, (str, type(None))) else callable(self.rerank)
        if not known and not hasattr(self.rerank, "predict"):
            raise TypeError(f"rerank is {MAXSIM!r}, a CrossEncoder or a function of (query, texts), got {self.rerank!r}")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"diversity is between 0 and 1, got {self.diversity}")
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"candidates is a number of hits from 1 on, got {self.candidates!r}")

    @property
    def by_maxsim(self) -> bool:
        return isinstance(self.rerank, str)

    @property
    def active(self) -> bool:
        return bool(self.phrasings) or self.rerank is not None or self.diversity > 0

    @property
    def rescores(self) -> bool:
        """Whether the scores afterwards are on another scale than those of the search."""
        return bool(self.phrasings) or self.rerank is not None

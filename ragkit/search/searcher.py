"""Answer questions to an open index, each from one commit, by the models that made its vectors."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from ragkit.core.space import Space
from ragkit.core.types import Hit, Hits
from ragkit.recipe.create import layouts_of
from ragkit.recipe.models import Models
from ragkit.recipe.recipe import Recipe
from ragkit.search.explain import explain_unit
from ragkit.search.explanation import Explanation
from ragkit.search.lookup import find_unit
from ragkit.search.plan import SearchPlan, make_plan
from ragkit.search.queries import Query, QueryBatch, is_single_query, parse_queries, parse_query
from ragkit.search.request import SearchRequest
from ragkit.search.search import Explainer, answer, find, stream
from ragkit.search.view import View
from ragkit.store.filter import Versions
from ragkit.store.local.store import Store
from ragkit.store.values import PAGE, DocumentRow


class Searcher:
    """A store and its models, searched by any number of threads. It follows the recipe that the newest commit has."""

    def __init__(self, path: Path, store: Store, models: Models) -> None:
        self._path = path
        self._store = store
        self._models = models
        self._followed: Mapping[str, Any] | None = None  # the stored recipe that the models go by
        self._following = threading.Lock()

    def view(self, *, degraded: bool = False) -> View:
        """Return the newest commit. If it changed the recipe, the models go by the new one from here on."""
        reader = self._store.reader(degraded=degraded)
        with self._following:
            if reader.recipe != self._followed:
                recipe = Recipe.model_validate(reader.recipe)
                if recipe != self._models.recipe:
                    self._store.recall, self._store.layouts = recipe.store.recall, layouts_of(recipe)
                    self._models.follow(recipe)
                self._followed = reader.recipe
            return View(self._path, reader, self._models.recipe, self._models)

    def search(self, query: Query, request: SearchRequest, vector: ArrayLike | None) -> Hits:
        """Return the hits of one query."""
        if not is_single_query(query):
            raise TypeError("search takes one query; for a list of queries use search_many")
        if request.phrasings and not isinstance(query, str):
            raise ValueError("phrasings are of one query, a text")
        batch = parse_queries([query, *request.phrasings])
        assert batch is not None  # one query, and phrasings of its form
        return self._answer(batch, request, None if vector is None else cast(ArrayLike, [vector]))[0]

    def search_many(self, queries: Iterable[Query], request: SearchRequest, vectors: ArrayLike | None) -> list[Hits]:
        """Return the hits of each query; those of one form (text, picture, or both) are embedded together."""
        if request.phrasings:
            raise ValueError("phrasings are of one query: search once for each")
        asked: Sequence[Query] = list(queries)
        rows = [None] * len(asked) if vectors is None else list(np.asarray(vectors))
        if len(rows) != len(asked):
            raise ValueError(f"{len(asked)} queries need as many vectors, got {len(rows)}")
        batch = parse_queries(asked)
        if batch is None:
            return [self.search(query, request, row) for query, row in zip(asked, rows, strict=True)]
        return self._answer(batch, request, vectors)

    def stream(self, query: Query, request: SearchRequest) -> Iterator[Hit]:
        """Search at once, and yield the hits as they are read. ValueError for options that need all hits."""
        if request.refines or request.degraded:
            raise ValueError("phrasings, rerank, diversity and degraded need all hits at once: use search")
        batch = parse_query(query)
        view, plan = self._plan(batch, request)
        return stream(view, plan, why=self._explainer(batch, plan))

    def search_within(self, row: DocumentRow, query: Query, request: SearchRequest) -> list[Hit]:
        """Return the hits in one document."""
        batch = parse_query(query)
        view, plan = self._plan(batch, request)
        return find(view, plan, k=request.k, where=Versions(frozenset([row.id])), why=self._explainer(batch, plan))[0]

    def explain(self, query: Query, key: int) -> Explanation:
        """Take the MaxSim score of a unit for a query apart. ValueError for an index without such multi-vectors."""
        view = self.view()
        unit, _ = find_unit(self._path, view.reader, key)
        if unit.kind == PAGE and Space.PAGE_MULTI not in view.spaces:
            raise ValueError(
                "the model that saw the pages of this index keeps no multi-vectors of them, so nothing can be explained"
            )
        batch = parse_query(query)
        view, plan = self._plan(batch, SearchRequest(mode=Space.of(unit.kind, "multi")))
        return explain_unit(view, batch, plan.queries, 0, key)

    def _answer(self, batch: QueryBatch, request: SearchRequest, vectors: ArrayLike | None) -> list[Hits]:
        view, plan = self._plan(batch, request, vectors)
        return answer(view, plan, batch, why=self._explainer(batch, plan))

    def _plan(self, batch: QueryBatch, request: SearchRequest, vectors: ArrayLike | None = None) -> tuple[View, SearchPlan]:
        """Return one commit, and the queries embedded by the models that its vectors are of, should those change meanwhile."""
        while True:
            view = self.view(degraded=request.degraded)
            plan = make_plan(request, batch, view, vectors=vectors)
            if view.recipe is self._models.recipe:
                return view, plan

    def _explainer(self, batch: QueryBatch, plan: SearchPlan) -> Explainer:
        return Explainer(self.view, batch, plan.queries)

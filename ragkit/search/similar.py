"""Find documents like a document, and near duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ragkit.core.arrays import mean_vector
from ragkit.core.space import Space
from ragkit.core.types import Floats, Hit, Reason
from ragkit.encode.contract import Encoding
from ragkit.search.filters import Filters, parse_for_documents
from ragkit.search.fuse import Candidate
from ragkit.search.hits import read_hits
from ragkit.search.lookup import find_document, find_unit
from ragkit.search.plan import SearchPlan, check_dims, check_spaces
from ragkit.search.queries import QueryVectors
from ragkit.search.request import SearchRequest
from ragkit.search.search import find
from ragkit.search.view import View
from ragkit.store.values import CHUNK, PAGE, UnitRow


@dataclass(frozen=True, slots=True, eq=False)
class Duplicate:
    """Two units whose vectors have a cosine of at least the threshold."""

    score: float
    first: Hit
    second: Hit


def similar(view: View, reference: str | int, k: int, *, filters: Filters | None, dims: int | None) -> list[Hit]:
    """Return the documents most like one, each by its best unit; the document itself is left out.

    reference: a source or id, compared by the mean direction of its units, or the key of one unit.
    """
    units = _units_named(view, reference)
    if not units:
        return []
    kind = CHUNK if any(unit.kind == CHUNK for unit in units) else PAGE
    units = [unit for unit in units if unit.kind == kind]
    space, rows = Space.of(kind, "dense"), view.reader.known_rows([unit.key for unit in units])
    if not rows and (kind == PAGE or space in view.spaces):
        raise ValueError(f"{reference!r} has no vector to compare, in {space}")
    request = SearchRequest(k=k, mode=space, dims=dims, group_by="document")
    check_spaces(request, view.spaces)
    check_dims(request, view)
    plan = SearchPlan(request, view.spaces, _as_query(mean_vector(np.stack([rows[key] for key in sorted(rows)])), kind))
    own = units[0].document
    where = None if filters is None else parse_for_documents(filters)
    return find(view, plan, k=k, where=where, accept=lambda unit: unit.document != own)[0]


def _as_query(vector: Floats, kind: str) -> QueryVectors:
    encoding = Encoding(dense=vector)
    return QueryVectors([""], pages=encoding) if kind == PAGE else QueryVectors([""], chunks=encoding)


def _units_named(view: View, reference: str | int) -> Sequence[UnitRow]:
    """Return the units of a document by source or id, or the one of a key. ValueError if there is none."""
    if isinstance(reference, int):
        units = [find_unit(view.path, view.reader, reference)[0]]
    else:
        units = view.reader.units_of(find_document(view.path, view.reader, reference).id)
    return units


def near_duplicates(view: View, threshold: float) -> Iterator[Duplicate]:
    """Yield every pair of units with a cosine of at least `threshold`, exact, by the keys of the pair."""
    for first, second, score in view.reader.near_duplicates(threshold):
        pair = [Candidate(key, score, (Reason(Space.DENSE, 1, score),)) for key in (first, second)]
        yield Duplicate(score, *read_hits(pair, view.reader, scale="cosine"))

"""The filter that a reader of a store takes: a tree of comparisons, and what it means. No I/O.

`ragkit.search.filters` makes it from what users write, and says which operators and fields there are. Semantics follow
Haystack's document-store suite: a missing field is None, equals None and differs from everything else; ordering compares numbers,
or ISO 8601 dates; ordering a missing or unlike value is false.

Four fields, hit.headings, hit.kind, hit.page and hit.page_label, speak of passages. A search is narrowed to documents of which
some passage may match (`bounds`); what it found is then tested whole, each passage with its document (`passage_test`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from ragkit.core.types import Mask, Page, Span
from ragkit.store.values import DocumentRow, UnitRow

Value: TypeAlias = Any  # of a field: JSON, or what the caller of a Python function compares
Operator = str | Callable[[Value, Value], Any]  # a name, or a function of (value, target)

ORDER: dict[str, Callable[[Value, Value], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
UNIT_FIELDS = frozenset({"hit.headings", "hit.kind", "hit.page", "hit.page_label"})
_YEAR_OR_MONTH = re.compile(r"\d{4}(-\d\d)?", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """One field of a document, or of a passage, against a target."""

    operator: Operator
    field: str
    target: Value


@dataclass(frozen=True, slots=True, eq=False)
class Logic:
    """Conditions joined; "not" denies that all of them hold."""

    operator: Literal["and", "or", "not"]
    conditions: tuple[Filter, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Versions:
    """Document versions, by id."""

    ids: frozenset[int]


Filter: TypeAlias = Comparison | Logic | Versions


class Row(Protocol):
    """What a filter reads of a document version."""

    @property
    def id(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def mime(self) -> str: ...
    @property
    def lang(self) -> str: ...
    @property
    def meta(self) -> Mapping[str, Any]: ...


def field_value(row: Row, field: str) -> Value:
    """Return the value a filter compares; None where missing.

    source, id, title and mime are the document's own, and "meta.title" is the metadata's; any other name is looked up in the
    metadata, whole and then along its dots; lang is the metadata's where it has one, else the recognised one, and "meta.lang" the
    metadata's alone.
    """
    name = field.removeprefix("meta.")
    if name == field and name in ("source", "title", "mime"):
        return getattr(row, name)
    if name == field and name in ("id", "document_id"):
        return row.source
    if name in row.meta:
        return row.meta[name]
    if name == "lang" and field == "lang":
        return row.lang or None
    value: Value = row.meta
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def matches(op: Operator, value: Value, target: Value) -> bool:
    """Whether a value, None where missing, satisfies a comparison."""
    if not isinstance(op, str):
        return bool(op(value, target))
    return _ordered(op, value, target) if op in ORDER else PLAIN[op](value, target)


def _ordered(op: str, value: Value, target: Value) -> bool:
    left, right = _orderable(value), _orderable(target)
    if left is None or right is None or isinstance(left, datetime) != isinstance(right, datetime):
        return False
    return ORDER[op](left, right)


def _contains(value: Value, target: Value) -> bool:
    if isinstance(value, str) and isinstance(target, str):
        return target in value
    return isinstance(value, list) and target in value


def _equal(left: Value, right: Value) -> bool:
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(right, datetime):
        right = right.isoformat()
    return bool(left == (list(right) if isinstance(right, tuple) else right))


PLAIN: dict[str, Callable[[Value, Value], bool]] = {
    "==": _equal,
    "!=": lambda value, target: not _equal(value, target),
    "in": lambda value, target: any(_equal(value, candidate) for candidate in target),
    "not in": lambda value, target: not any(_equal(value, candidate) for candidate in target),
    "contains": _contains,
    "exists": lambda value, target: (value is not None) == bool(target),
}


def _orderable(value: Value) -> float | datetime | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return value  # Python compares integers and floats exactly
    return moment_of(value) if isinstance(value, (str, datetime)) else None


def moment_of(value: str | datetime) -> datetime | None:
    """Return the moment of an ISO 8601 date; of a year or a month its beginning; None for any other text."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value + "-01-01"[len(value) - 4 :] if _YEAR_OR_MONTH.fullmatch(value) else value)
        except ValueError:
            return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def fields_of(where: Filter) -> set[str]:
    """Return the fields that a filter compares."""
    if isinstance(where, Logic):
        return set().union(*map(fields_of, where.conditions))
    return {where.field} if isinstance(where, Comparison) else set()


def join(operator: Literal["and", "or", "not"], verdicts: Iterable[bool]) -> bool:
    """Join the verdicts of conditions."""
    if operator == "or":
        return any(verdicts)
    return all(verdicts) != (operator == "not")


def satisfies(where: Filter, row: Row) -> bool:
    """Whether a document matches a filter that does not speak of passages."""
    if isinstance(where, Logic):
        return join(where.operator, (satisfies(condition, row) for condition in where.conditions))
    if isinstance(where, Versions):
        return row.id in where.ids
    return matches(where.operator, field_value(row, where.field), where.target)


def bounds(where: Filter, judge: Callable[[Comparison | Versions], Mask], count: int) -> tuple[Mask, Mask]:
    """Return which of `count` documents match for sure, and which may, (count,) bool each: they differ only where a filter speaks
    of passages. `judge` decides a comparison for all documents."""
    none, every = np.zeros(count, dtype=np.bool_), np.ones(count, dtype=np.bool_)
    if isinstance(where, Logic):
        parts = [bounds(condition, judge, count) for condition in where.conditions]
        if where.operator == "or":
            sure = np.logical_or.reduce([none, *(part[0] for part in parts)])
            return sure, np.logical_or.reduce([none, *(part[1] for part in parts)])
        sure = np.logical_and.reduce([every, *(part[0] for part in parts)])
        may = np.logical_and.reduce([every, *(part[1] for part in parts)])
        return (~may, ~sure) if where.operator == "not" else (sure, may)
    if isinstance(where, Comparison) and where.field in UNIT_FIELDS:
        return none, every
    mask = judge(where)
    return mask, mask


# Passages


class PassageSource(Protocol):
    """What testing passages reads of a commit."""

    def documents_by_id(self, ids: Iterable[int]) -> Mapping[int, DocumentRow]: ...
    def pages(self, document: int, span: Span | None = None) -> Sequence[Page]: ...
    def page(self, document: int, number: int) -> Page: ...


def passage_test(where: Filter | None, source: PassageSource) -> Callable[[UnitRow], bool] | None:
    """Return whether a passage satisfies a filter; None where the filter speaks of documents alone."""
    if where is None or not fields_of(where) & UNIT_FIELDS:
        return None
    rows: dict[int, DocumentRow] = {}

    def satisfied(unit: UnitRow) -> bool:
        if unit.document not in rows:
            rows.update(source.documents_by_id([unit.document]))
        return _holds(where, unit, rows[unit.document], source)

    return satisfied


def _holds(where: Filter, unit: UnitRow, row: DocumentRow, source: PassageSource) -> bool:
    if isinstance(where, Logic):
        return join(where.operator, (_holds(condition, unit, row, source) for condition in where.conditions))
    if isinstance(where, Comparison) and where.field in UNIT_FIELDS:
        return matches(where.operator, _unit_value(unit, where.field, source), where.target)
    return satisfies(where, row)


def _unit_value(unit: UnitRow, field: str, source: PassageSource) -> Value:
    """Return a passage's kind, its headings, outermost first, or the number or label of the page that it begins on, or is the
    image of; None where it has none."""
    if field == "hit.headings":
        return list(unit.headings)
    if field == "hit.kind":
        return unit.kind
    if unit.page is not None:  # a page image, which may have no text to find it by
        return unit.page if field == "hit.page" else source.page(unit.document, unit.page).label
    first = Span(unit.span.start, unit.span.start + 1)
    pages = source.pages(unit.document, first) or source.pages(unit.document, unit.span)
    if not pages:
        return None
    return pages[0].number if field == "hit.page" else pages[0].label

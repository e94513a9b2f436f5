"""Filters: which documents a search may answer from, as an exact set of document versions.

Two spellings, mixed freely:

    {"field": "meta.year", "operator": ">=", "value": 2020}                      Haystack's comparison
    {"operator": "AND", "conditions": [{...}, {...}]}                            Haystack's logic: AND, OR, NOT
    {"lang": "en", "year": {"$gte": 2020}, "$or": [{...}, {...}]}                Mongo-like shorthand

Operators: == != > >= < <= in "not in" contains exists ($eq $ne $gt $gte $lt $lte $in $nin $contains $exists). From Python, the
operator of a comparison may also be a function of (value, target), value None where missing.
Fields are keys of the document's metadata (dots reach into nested objects), and source, id, title, mime, lang of the
document itself; "meta." in front says metadata where both have the name. Four fields more, hit.headings, hit.kind,
hit.page and hit.page_label, speak of passages: `ragkit.search.passage_filters`. Semantics follow Haystack's document-store suite:
a missing field is None, equals None and
differs from everything else; ordering compares numbers, or ISO 8601 dates; ordering a missing or unlike value is false.

Metadata of a document version never changes, so each field that filters use is read once and kept as codes into its
distinct values: evaluating a filter costs one call per distinct value and one numpy lookup per document.
"""

from __future__ import annotations

import operator
import re
import threading
from array import array
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

from ragkit.core.types import Ints, Mask

Filters = Mapping[str, Any]

MONGO = {
    "$eq": "==",
    "$ne": "!=",
    "$gt": ">",
    "$gte": ">=",
    "$lt": "<",
    "$lte": "<=",
    "$in": "in",
    "$nin": "not in",
    "$contains": "contains",
    "$exists": "exists",
}
ORDER: dict[str, Callable[[Any, Any], bool]] = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
UNIT_FIELDS = frozenset({"hit.headings", "hit.kind", "hit.page", "hit.page_label"})  # of passages: `passage_filters`
MAX_DEPTH = 50
_YEAR_OR_MONTH = re.compile(r"\d{4}(-\d\d)?", re.ASCII)


class Row(Protocol):
    """What a filter needs to know of a document version."""

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


def field_value(row: Row, field: str) -> Any:
    """The value a filter compares; None where missing.

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
    value: Any = row.meta
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def parse(filters: Filters, *, depth: int = 0) -> tuple[Any, ...]:
    """The filter as a tree of ("and" | "or" | "not", children) and (operator, field, value); ValueError says what is wrong."""
    if depth > MAX_DEPTH:
        raise ValueError(f"filters are nested more than {MAX_DEPTH} deep")
    if not isinstance(filters, Mapping):
        raise ValueError(f"a filter is a mapping, got {type(filters).__name__}: {filters!r}")
    if "conditions" in filters or (
        "operator" in filters and "field" not in filters and str(filters["operator"]).upper() in ("AND", "OR", "NOT")
    ):
        return _logic(filters, depth)
    if "field" in filters:
        return _comparison(filters)
    for name in filters:
        if not isinstance(name, str):
            raise ValueError(f"the fields of a filter are names, got {name!r}")
    return ("and", [_shorthand(name, value, depth) for name, value in filters.items()])


def _logic(filters: Filters, depth: int) -> tuple[Any, ...]:
    if "operator" not in filters:
        raise ValueError(f"'operator' is missing beside 'conditions' in the filter {dict(filters)!r}")
    if "conditions" not in filters:
        raise ValueError(f"'conditions' are missing beside 'operator' in the filter {dict(filters)!r}")
    name = str(filters["operator"]).lower()
    if name not in ("and", "or", "not"):
        raise ValueError(f"unknown logical operator {filters['operator']!r}: use AND, OR or NOT")
    return (name, [parse(child, depth=depth + 1) for child in filters["conditions"]])


def _comparison(filters: Filters) -> tuple[Any, ...]:
    for key in ("operator", "value"):
        if key not in filters:
            raise ValueError(f"{key!r} is missing in the filter {dict(filters)!r}")
    if callable(filters["operator"]):
        return (filters["operator"], str(filters["field"]), filters["value"])
    return _checked(str(filters["operator"]), str(filters["field"]), filters["value"])


def _shorthand(name: str, value: Any, depth: int) -> tuple[Any, ...]:
    if name in ("$and", "$or"):
        if not isinstance(value, Iterable) or isinstance(value, (str, Mapping)):
            raise ValueError(f"{name} takes a list of filters, got {value!r}")
        return (name[1:], [parse(child, depth=depth + 1) for child in value])
    if name == "$not":
        return ("not", [parse(value, depth=depth + 1)])
    if name.startswith("$"):
        raise ValueError(f"unknown operator {name!r}: use $and, $or, $not, or a field with one of {', '.join(MONGO)}")
    if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
        unknown = [key for key in value if key not in MONGO]
        if unknown:
            raise ValueError(f"unknown operator {unknown[0]!r} for the field {name!r}: use one of {', '.join(MONGO)}")
        return ("and", [_checked(MONGO[key], name, target) for key, target in value.items()])
    return _checked("==", name, value)


def _checked(op: str, field: str, value: Any) -> tuple[Any, ...]:
    if field.startswith("hit.") and field not in UNIT_FIELDS:
        raise ValueError(
            f"unknown field {field!r}: of passages there are {', '.join(sorted(UNIT_FIELDS))}; metadata is 'meta.{field}'"
        )
    if op in ("in", "not in") and (not isinstance(value, Iterable) or isinstance(value, (str, Mapping))):
        raise ValueError(f"{op!r} on {field!r} takes a list of values, got {value!r}")
    if op in ORDER:
        if isinstance(value, (list, tuple, set, Mapping)):
            raise ValueError(f"{op!r} on {field!r} cannot order a {type(value).__name__}: {value!r}")
        if isinstance(value, str) and _date(value) is None:
            raise ValueError(f"{op!r} on {field!r} orders numbers and ISO 8601 dates, got the text {value!r}")
    elif op not in ("==", "!=", "in", "not in", "contains", "exists"):
        raise ValueError(
            f"unknown operator {op!r} for the field {field!r}: use ==, !=, >, >=, <, <=, in, not in, contains, exists"
        )
    return (op, field, list(value) if op in ("in", "not in") else value)


def matches(op: str | Callable[[Any, Any], Any], value: Any, target: Any) -> bool:
    """Whether one value, None where missing, satisfies one comparison."""
    if not isinstance(op, str):
        return bool(op(value, target))
    if op == "exists":
        return (value is not None) == bool(target)
    if op == "in":
        return any(_equal(value, one) for one in target)
    if op == "not in":
        return not any(_equal(value, one) for one in target)
    if op == "==":
        return _equal(value, target)
    if op == "!=":
        return not _equal(value, target)
    if op == "contains":
        return (
            target in value if isinstance(value, str) and isinstance(target, str) else isinstance(value, list) and target in value
        )
    left, right = _orderable(value), _orderable(target)
    return (
        left is not None
        and right is not None
        and isinstance(left, datetime) == isinstance(right, datetime)
        and ORDER[op](left, right)
    )


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(right, datetime):
        right = right.isoformat()
    return bool(left == (list(right) if isinstance(right, tuple) else right))


def _orderable(value: Any) -> float | datetime | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return value  # Python compares integers and floats exactly
    return _date(value) if isinstance(value, (str, datetime)) else None


def _date(value: str | datetime) -> datetime | None:
    """The moment of an ISO 8601 date, of a year and of a month: its beginning."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value + "-01-01"[len(value) - 4 :] if _YEAR_OR_MONTH.fullmatch(value) else value)
        except ValueError:
            return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


class FieldColumns:
    """The fields that filters used, of every document version seen so far, as codes into their distinct values.

    `rows(after)` yields document versions with ids above `after`, ascending; they never change, but may vanish once nobody
    can see them. All columns are of the same ids, in the same order. Thread-safe.
    """

    def __init__(self, rows: Callable[[int], Iterable[Row]]) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._ids = array("q")
        self._columns: dict[str, _Column] = {}

    def allowed(self, filters: Filters, *, passages: bool = False) -> Ints:
        """Ids of the document versions that match, ascending, (n,) int64. Deleted versions may be among them.

        With `passages`, those of which some passage may match: `passage_filters` decides. Without, ValueError for a filter
        that speaks of passages.
        """
        tree = parse(filters)
        unit_fields = fields_of(tree) & UNIT_FIELDS
        if unit_fields and not passages:
            raise ValueError(f"{', '.join(sorted(unit_fields))} speak of passages: they filter searches, not documents")
        with self._lock:
            fields = fields_of(tree) - UNIT_FIELDS
            if not fields <= self._columns.keys():
                # Versions may have vanished since the others were read, so a new column means that all are read again.
                self._columns = {field: _Column(field) for field in fields | self._columns.keys()}
                self._ids = array("q")
            for row in self._rows(self._ids[-1] if self._ids else 0):
                self._ids.append(row.id)
                for column in self._columns.values():
                    column.append(row)
            ids = np.array(self._ids, dtype=np.int64)
            return ids[_bounds(tree, self._columns, len(ids))[1]]


class _Column:
    def __init__(self, field: str) -> None:
        self.field = field
        self.codes = array("q")
        self.values: list[Any] = []
        self._code: dict[str, int] = {}

    def append(self, row: Row) -> None:
        value = field_value(row, self.field)
        name = f"{type(value).__name__}:{value!r}"
        if name not in self._code:
            self._code[name] = len(self.values)
            self.values.append(value)
        self.codes.append(self._code[name])


def fields_of(tree: tuple[Any, ...]) -> set[str]:
    if tree[0] in ("and", "or", "not"):
        return set().union(*(fields_of(child) for child in tree[1]))
    return {tree[1]}


def _bounds(tree: tuple[Any, ...], columns: Mapping[str, _Column], n: int) -> tuple[Mask, Mask]:
    """Which documents match for sure, and which may: they differ only where a filter speaks of passages."""
    none, every = np.zeros(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
    if tree[0] in ("and", "or", "not"):
        parts = [_bounds(child, columns, n) for child in tree[1]]
        if tree[0] == "or":
            sure = np.logical_or.reduce([none, *(part[0] for part in parts)])
            return sure, np.logical_or.reduce([none, *(part[1] for part in parts)])
        sure = np.logical_and.reduce([every, *(part[0] for part in parts)])
        may = np.logical_and.reduce([every, *(part[1] for part in parts)])
        return (~may, ~sure) if tree[0] == "not" else (sure, may)
    op, field, target = tree
    if field in UNIT_FIELDS:
        return none, every
    column = columns[field]
    verdicts = np.fromiter((matches(op, value, target) for value in column.values), dtype=np.bool_, count=len(column.values))
    mask = verdicts[np.array(column.codes, dtype=np.int64)] if n else none
    return mask, mask

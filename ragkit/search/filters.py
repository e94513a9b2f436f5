"""Filters as users write them: which documents, or passages of them, a search may answer from.

Two spellings, mixed freely:

    {"field": "meta.year", "operator": ">=", "value": 2020}                      Haystack's comparison
    {"operator": "AND", "conditions": [{...}, {...}]}                            Haystack's logic: AND, OR, NOT
    {"lang": "en", "year": {"$gte": 2020}, "$or": [{...}, {...}]}                Mongo-like shorthand

Operators: == != > >= < <= in "not in" contains exists ($eq $ne $gt $gte $lt $lte $in $nin $contains $exists). From Python, the
operator of a comparison may also be a function of (value, target), value None where missing.
Fields are keys of the document's metadata (dots reach into nested objects), and source, id, title, mime, lang of the
document itself; "meta." in front says metadata where both have the name. Four fields more, hit.headings, hit.kind,
hit.page and hit.page_label, are those of passages:

    {"hit.headings": {"$contains": "Methods"}, "year": 2024}      passages that stand under the heading, of documents of the year
    {"hit.page": {"$lte": 10}}                                    that begin on one of the first ten pages
    {"hit.kind": "page"}                                          page images, each a hit of its own; or "chunk"
    {"hit.page_label": "iv"}                                      by the printed number, a sheet's name, a minute of subtitles

A page image is on its own page, and under no heading. `ragkit.store.filter` defines what a filter means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from ragkit.store.filter import ORDER, UNIT_FIELDS, Comparison, Filter, Logic, Value, fields_of, moment_of

Filters = Mapping[str, Value]

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
OPERATORS = ("==", "!=", ">", ">=", "<", "<=", "in", "not in", "contains", "exists")
LOGIC: dict[str, Literal["and", "or", "not"]] = {"and": "and", "or": "or", "not": "not"}
MAX_DEPTH = 50


def parse(filters: Filters, *, depth: int = 0) -> Filter:
    """Return the filter as a store takes it; ValueError says what is wrong."""
    if depth > MAX_DEPTH:
        raise ValueError(f"filters are nested more than {MAX_DEPTH} deep")
    if not isinstance(filters, Mapping):
        raise ValueError(f"a filter is a mapping, got {type(filters).__name__}: {filters!r}")
    if _is_logic(filters):
        return _logic(filters, depth)
    if "field" in filters:
        return _comparison(filters)
    for name in filters:
        if not isinstance(name, str):
            raise ValueError(f"the fields of a filter are names, got {name!r}")
    return Logic("and", tuple(_shorthand(name, value, depth) for name, value in filters.items()))


def _is_logic(filters: Filters) -> bool:
    named = "operator" in filters and "field" not in filters and str(filters["operator"]).lower() in LOGIC
    return named or "conditions" in filters


def _logic(filters: Filters, depth: int) -> Filter:
    if "operator" not in filters:
        raise ValueError(f"'operator' is missing beside 'conditions' in the filter {dict(filters)!r}")
    if "conditions" not in filters:
        raise ValueError(f"'conditions' are missing beside 'operator' in the filter {dict(filters)!r}")
    name = str(filters["operator"]).lower()
    if name not in LOGIC:
        raise ValueError(f"unknown logical operator {filters['operator']!r}: use AND, OR or NOT")
    return Logic(LOGIC[name], tuple(parse(child, depth=depth + 1) for child in filters["conditions"]))


def _comparison(filters: Filters) -> Filter:
    for key in ("operator", "value"):
        if key not in filters:
            raise ValueError(f"{key!r} is missing in the filter {dict(filters)!r}")
    if callable(filters["operator"]):
        return Comparison(filters["operator"], str(filters["field"]), filters["value"])
    return _checked(str(filters["operator"]), str(filters["field"]), filters["value"])


def _shorthand(name: str, value: Value, depth: int) -> Filter:
    if name.startswith("$"):
        return _shorthand_logic(name, value, depth)
    if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
        return _shorthand_comparisons(name, value)
    return _checked("==", name, value)


def _shorthand_logic(name: str, value: Value, depth: int) -> Filter:
    if name == "$not":
        return Logic("not", (parse(value, depth=depth + 1),))
    if name not in ("$and", "$or"):
        raise ValueError(f"unknown operator {name!r}: use $and, $or, $not, or a field with one of {', '.join(MONGO)}")
    if not _is_list(value):
        raise ValueError(f"{name} takes a list of filters, got {value!r}")
    return Logic(LOGIC[name[1:]], tuple(parse(child, depth=depth + 1) for child in value))


def _shorthand_comparisons(field: str, targets: Mapping[Value, Value]) -> Filter:
    """Return the filter of a field's operators and their targets, {"$gte": 2020, "$lt": 2024}."""
    if unknown := [key for key in targets if key not in MONGO]:
        raise ValueError(f"unknown operator {unknown[0]!r} for the field {field!r}: use one of {', '.join(MONGO)}")
    return Logic("and", tuple(_checked(MONGO[key], field, target) for key, target in targets.items()))


def _checked(operator: str, field: str, target: Value) -> Filter:
    if field.startswith("hit.") and field not in UNIT_FIELDS:
        raise ValueError(
            f"unknown field {field!r}: the fields of passages are {', '.join(sorted(UNIT_FIELDS))}; metadata is 'meta.{field}'"
        )
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r} for the field {field!r}: use {', '.join(OPERATORS)}")
    if operator in ("in", "not in"):
        if not _is_list(target):
            raise ValueError(f"{operator!r} on {field!r} takes a list of values, got {target!r}")
        return Comparison(operator, field, list(target))
    if operator in ORDER:
        _check_order(operator, field, target)
    return Comparison(operator, field, target)


def _check_order(operator: str, field: str, target: Value) -> None:
    if isinstance(target, (list, tuple, set, Mapping)):
        raise ValueError(f"{operator!r} on {field!r} cannot order a {type(target).__name__}: {target!r}")
    if isinstance(target, str) and moment_of(target) is None:
        raise ValueError(f"{operator!r} on {field!r} orders numbers and ISO 8601 dates, got the text {target!r}")


def _is_list(value: Value) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, Mapping))


def parse_for_documents(filters: Filters) -> Filter:
    """Return a filter of documents; ValueError if it has a field of passages."""
    where = parse(filters)
    if unit_fields := fields_of(where) & UNIT_FIELDS:
        raise ValueError(f"{', '.join(sorted(unit_fields))} are fields of passages: they filter searches, not documents")
    return where

"""Filters as users write them: which documents, or passages of them, a search may answer from.

Two spellings, mixed freely:

    {"field": "meta.year", "operator": ">=", "value": 2020}                      Haystack's comparison
    {"operator": "AND", "conditions": [{...}, {...}]}                            Haystack's logic: AND, OR, NOT
    {"lang": "en", "year": {"$gte": 2020}, "$or": [{...}, {...}]}                Mongo-like shorthand

Operators: == != > >= < <= in "not in" contains exists ($eq $ne $gt $gte $lt $lte $in $nin $contains $exists). From Python, the
operator of a comparison may also be a function of (value, target), value None where missing.
Fields are keys of the document's metadata (dots reach into nested objects), and source, id, title, mime, lang of the
document itself; "meta." in front says metadata where both have the name. Four fields more, hit.headings, hit.kind,
hit.page and hit.page_label, speak of passages:

    {"hit.headings": {"$contains": "Methods"}, "year": 2024}      passages that stand under the heading, of documents of the year
    {"hit.page": {"$lte": 10}}                                    that begin on one of the first ten pages
    {"hit.kind": "page"}                                          page images, each a hit of its own; or "chunk"
    {"hit.page_label": "iv"}                                      by the printed number, a sheet's name, a minute of subtitles

A page image is on its own page, and under no heading. What a filter means is said in `ragkit.store.filter`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ragkit.store.filter import ORDER, UNIT_FIELDS, Comparison, Filter, Logic, fields_of, moment_of

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
LOGIC: dict[str, Literal["and", "or", "not"]] = {"and": "and", "or": "or", "not": "not"}
MAX_DEPTH = 50


def parse(filters: Filters, *, depth: int = 0) -> Filter:
    """Return the filter as a store takes it; ValueError says what is wrong."""
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
    return Logic("and", tuple(_shorthand(name, value, depth) for name, value in filters.items()))


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


def _shorthand(name: str, value: Any, depth: int) -> Filter:
    if name in ("$and", "$or"):
        if not isinstance(value, Iterable) or isinstance(value, (str, Mapping)):
            raise ValueError(f"{name} takes a list of filters, got {value!r}")
        return Logic(LOGIC[name[1:]], tuple(parse(child, depth=depth + 1) for child in value))
    if name == "$not":
        return Logic("not", (parse(value, depth=depth + 1),))
    if name.startswith("$"):
        raise ValueError(f"unknown operator {name!r}: use $and, $or, $not, or a field with one of {', '.join(MONGO)}")
    if isinstance(value, Mapping) and any(str(key).startswith("$") for key in value):
        unknown = [key for key in value if key not in MONGO]
        if unknown:
            raise ValueError(f"unknown operator {unknown[0]!r} for the field {name!r}: use one of {', '.join(MONGO)}")
        return Logic("and", tuple(_checked(MONGO[key], name, target) for key, target in value.items()))
    return _checked("==", name, value)


def _checked(op: str, field: str, value: Any) -> Filter:
    if field.startswith("hit.") and field not in UNIT_FIELDS:
        raise ValueError(
            f"unknown field {field!r}: of passages there are {', '.join(sorted(UNIT_FIELDS))}; metadata is 'meta.{field}'"
        )
    if op in ("in", "not in") and (not isinstance(value, Iterable) or isinstance(value, (str, Mapping))):
        raise ValueError(f"{op!r} on {field!r} takes a list of values, got {value!r}")
    if op in ORDER:
        if isinstance(value, (list, tuple, set, Mapping)):
            raise ValueError(f"{op!r} on {field!r} cannot order a {type(value).__name__}: {value!r}")
        if isinstance(value, str) and moment_of(value) is None:
            raise ValueError(f"{op!r} on {field!r} orders numbers and ISO 8601 dates, got the text {value!r}")
    elif op not in ("==", "!=", "in", "not in", "contains", "exists"):
        raise ValueError(
            f"unknown operator {op!r} for the field {field!r}: use ==, !=, >, >=, <, <=, in, not in, contains, exists"
        )
    return Comparison(op, field, list(value) if op in ("in", "not in") else value)


def parse_for_documents(filters: Filters) -> Filter:
    """Return a filter of documents; ValueError for one that speaks of passages, too."""
    where = parse(filters)
    if unit_fields := fields_of(where) & UNIT_FIELDS:
        raise ValueError(f"{', '.join(sorted(unit_fields))} speak of passages: they filter searches, not documents")
    return where

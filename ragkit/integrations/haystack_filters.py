"""Haystack's filters as ragkit's. haystack.py imports this, after it has checked that Haystack is installed."""

from __future__ import annotations

from haystack import Document
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from ragkit.core.types import Json
from ragkit.search.filters import parse

_OWN_FIELDS = ("content", "blob", "score", "embedding", "sparse_embedding")


def haystack_filter(filters: Json | None) -> Json | None:
    """Return a Haystack filter as ragkit's, compared by Haystack's own rules. FilterError for a malformed one.

    A stored value that Haystack would refuse to order against the filter's does not match here: one odd document must not make
    every filtered search fail.
    """
    if not filters:
        return None
    if "field" in filters:
        return _comparison(filters)
    if filters.get("operator") not in ("AND", "OR", "NOT") or not isinstance(filters.get("conditions"), list):
        raise FilterError(f"a filter has field, operator and value, or operator (AND, OR, NOT) and conditions; got {filters}")
    return {
        "operator": filters["operator"],
        "conditions": [haystack_filter(condition) or {} for condition in filters["conditions"]],
    }


def _comparison(filters: Json) -> Json:
    try:
        parse(filters)
    except ValueError as error:
        raise FilterError(str(error)) from None
    name, operator = filters["field"], filters["operator"]
    if operator in ("in", "not in") and not isinstance(filters["value"], list):
        raise FilterError(f"{operator!r} on {name!r} takes a list, got {filters['value']!r}")
    if name in _OWN_FIELDS:
        raise FilterError(f"{name!r} cannot be filtered: fields are those of the metadata, and id")
    if operator not in ("==", "!=", ">", ">=", "<", "<=", "in", "not in"):
        raise FilterError(f"unknown operator {operator!r}")

    def matches(value: object, target: object) -> bool:
        try:
            condition = {"field": "meta.value", "operator": operator, "value": target}
            return bool(document_matches_filter(condition, Document(id="any", meta={"value": value})))
        except (FilterError, TypeError):
            return False

    field = name if name == "id" else f"meta.{name.removeprefix('meta.')}"
    return {"field": field, "operator": matches, "value": filters["value"]}

"""Filters against a loop over dictionaries written in this file, in both spellings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.search.filters import parse
from ragkit.store.filter import field_value, matches
from ragkit.store.local.columns import FieldColumns


@dataclass(frozen=True)
class Row:
    id: int
    meta: dict[str, Any]
    source: str = "a.txt"
    title: str = "A"
    mime: str = "text/plain"
    lang: str = ""


ROWS = [
    Row(1, {"lang": "en", "year": 2020, "tags": ["a", "b"], "author": {"name": "Ada"}}),
    Row(2, {"lang": "de", "year": 2021.5, "date": "2024-01-31"}, source="b.txt"),
    Row(4, {"lang": "en", "year": "2020", "date": "2024-02-01T10:00:00+02:00"}, title="B"),
    Row(7, {"year": None, "flag": True, "date": "2024-02-01T09:00:00Z"}),
    Row(9, {"year": 1, "flag": 1}),
]


def allowed(filters: dict[str, Any]) -> list[int]:
    return FieldColumns(lambda after: [row for row in ROWS if row.id > after]).matching(parse(filters)).tolist()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [1, 2, 4, 7, 9]),
        ({"lang": "en"}, [1, 4]),
        ({"lang": None}, [7, 9]),
        ({"lang": {"$ne": "en"}}, [2, 7, 9]),
        ({"year": {"$gte": 2020}}, [1, 2]),
        ({"year": {"$gt": 0, "$lt": 2021}}, [1, 9]),
        ({"year": 2020}, [1]),
        ({"flag": True}, [7]),
        ({"flag": 1}, [9]),
        ({"tags": ["a", "b"]}, [1]),
        ({"tags": {"$contains": "a"}}, [1]),
        ({"lang": {"$in": ["de", None]}}, [2, 7, 9]),
        ({"lang": {"$nin": ["de", "en"]}}, [7, 9]),
        ({"lang": {"$exists": False}}, [7, 9]),
        ({"author.name": "Ada"}, [1]),
        ({"meta.author.name": "Ada"}, [1]),
        ({"source": "b.txt"}, [2]),
        ({"title": "B"}, [4]),
        ({"date": {"$gte": "2024-02-01"}}, [4, 7]),
        ({"date": {"$gt": "2024-02-01T08:30:00Z"}}, [7]),
        ({"date": {"$gte": "2024-02"}}, [4, 7]),
        ({"date": {"$gte": "2024"}}, [2, 4, 7]),
        ({"date": {"$lt": "2024-02"}}, [2]),
        ({"$or": [{"lang": "de"}, {"flag": True}]}, [2, 7]),
        ({"$not": {"lang": "en"}}, [2, 7, 9]),
        ({"field": "meta.lang", "operator": "==", "value": "en"}, [1, 4]),
        (
            {
                "operator": "AND",
                "conditions": [{"field": "lang", "operator": "in", "value": ["en"]}, {"year": {"$lte": 2020}}],
            },
            [1],
        ),
        ({"operator": "NOT", "conditions": [{"lang": "en"}, {"year": 2020}]}, [2, 4, 7, 9]),
        ({"year": {"$gt": None}}, []),
    ],
)
def test_a_filter_selects_what_its_definition_says(filters: dict[str, Any], expected: list[int]) -> None:
    assert allowed(filters) == expected


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"operator": "AND"}, "conditions"),
        ({"conditions": []}, "operator"),
        ({"operator": "XOR", "conditions": []}, "XOR"),
        ({"field": "a", "value": 1}, "operator"),
        ({"field": "a", "operator": "=="}, "value"),
        ({"field": "a", "operator": "~", "value": 1}, "~"),
        ({"a": {"$near": 1}}, r"\$near"),
        ({"$nor": []}, r"\$nor"),
        ({1: "x"}, "names"),
        ({"a": {"$in": "text"}}, "list"),
        ({"a": {"$gt": "abc"}}, "ISO 8601"),
        ({"a": {"$gt": [1]}}, "order"),
        ({"$and": {"a": 1}}, "list"),
        ("lang=en", "mapping"),
    ],
)
def test_a_malformed_filter_is_an_error_that_names_the_part(filters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(filters)


def test_deep_nesting_is_refused_not_a_crash() -> None:
    filters: dict[str, Any] = {"a": 1}
    for _ in range(5000):
        filters = {"$not": filters}
    with pytest.raises(ValueError, match="deep"):
        parse(filters)


def test_columns_learn_of_new_documents_and_of_new_fields() -> None:
    rows = ROWS[:2]
    columns = FieldColumns(lambda after: [row for row in rows if row.id > after])
    assert columns.matching(parse({"lang": "en"})).tolist() == [1]
    rows = ROWS
    assert columns.matching(parse({"lang": "en"})).tolist() == [1, 4]
    assert columns.matching(parse({"lang": "en", "year": 2020})).tolist() == [1]
    assert columns.matching(parse({"lang": "en"})).dtype == np.int64


def test_versions_that_vanish_between_two_filters_do_not_shift_the_columns() -> None:
    rows = [Row(n, {"n": n, "parity": n % 2}) for n in range(1, 11)]
    columns = FieldColumns(lambda after: [row for row in rows if row.id > after])
    assert columns.matching(parse({"n": 3})).tolist() == [3]
    rows = [*rows[2:], Row(11, {"n": 1, "parity": 1})]
    assert columns.matching(parse({"parity": 0})).tolist() == [4, 6, 8, 10]
    rows = [*rows[1:], Row(12, {"n": 3, "parity": 1})]
    assert columns.matching(parse({"n": {"$lte": 5}, "parity": 1})).tolist()[-2:] == [11, 12]
    for id in columns.matching(parse({"n": {"$gte": 0}, "parity": 1})).tolist():
        assert id % 2 == 1 or id == 12


def test_large_integers_are_ordered_exactly() -> None:
    rows = [Row(1, {"n": 2**53 + 1}), Row(2, {"n": 2**53})]
    columns = FieldColumns(lambda after: [row for row in rows if row.id > after])
    assert columns.matching(parse({"n": {"$gt": 2**53}})).tolist() == [1]
    assert columns.matching(parse({"n": {"$lt": 10**400}})).tolist() == [1, 2]


def test_the_documents_own_names_win_and_meta_reaches_the_metadata() -> None:
    rows = [Row(1, {"source": "the press", "title": "x"}, source="a.md", lang="de")]
    columns = FieldColumns(lambda after: [row for row in rows if row.id > after])
    assert columns.matching(parse({"source": "a.md"})).tolist() == [1]
    assert columns.matching(parse({"meta.source": "the press"})).tolist() == [1]
    assert columns.matching(parse({"lang": "de"})).tolist() == [1]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["a", "b"]), st.lists(st.sampled_from(["a", "b"]))
)
OPERATORS = st.sampled_from(["==", "!=", ">", ">=", "<", "<="])


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    if depth == 0 or draw(st.booleans()):
        operator = draw(OPERATORS)
        value = draw(VALUES if operator in ("==", "!=") else st.integers(-3, 3))
        return {"field": draw(st.sampled_from("xyz")), "operator": operator, "value": value}
    conditions = draw(st.lists(trees(depth=depth - 1), max_size=3))
    return {"operator": draw(st.sampled_from(["AND", "OR", "NOT"])), "conditions": conditions}


def naive(filters: dict[str, Any], row: Row) -> bool:
    if "conditions" in filters:
        verdicts = [naive(child, row) for child in filters["conditions"]]
        return any(verdicts) if filters["operator"] == "OR" else all(verdicts) != (filters["operator"] == "NOT")
    return matches(filters["operator"], field_value(row, filters["field"]), filters["value"])


@given(filters=trees(), metas=st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES), max_size=8))
def test_columns_agree_with_a_loop_over_rows(filters: dict[str, Any], metas: list[dict[str, Any]]) -> None:
    rows = [Row(id, meta) for id, meta in enumerate(metas, start=1)]
    columns = FieldColumns(lambda after: [row for row in rows if row.id > after])
    assert columns.matching(parse(filters)).tolist() == [row.id for row in rows if naive(filters, row)]

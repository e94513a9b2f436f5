"""Records from Python, their errors, and the hashes."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit.core.types import Block, Document, Page, Span, Words
from ragkit.load import content_hash, file_hash, record
from ragkit.load.records import check


def test_a_record_keeps_its_fields_and_puts_the_rest_into_meta() -> None:
    made = record(
        {"_id": 7, "text": "body", "title": "T", "meta": {"a": [1, (2.5, None)]}, "year": 2020, "day": datetime.date(2020, 1, 2)}
    )
    assert (made.id, made.text, made.title) == ("7", "body", "T")
    assert made.meta == {"a": [1, [2.5, None]], "year": 2020, "day": "2020-01-02"}


@pytest.mark.parametrize(
    ("value", "kind", "match"),
    [
        ({}, ValueError, '"text"'),
        ({"text": 3}, TypeError, '"text".*int'),
        ({"text": "a", "id": 1.5}, TypeError, '"id".*float'),
        ({"text": "a", "title": []}, TypeError, '"title".*list'),
        ({"text": "a", "meta": "b"}, TypeError, '"meta"'),
        ({"text": "a", "meta": {"x": {"y": [0, object()]}}}, TypeError, r'"meta\.x\.y\[1\]"'),
        ({"text": "a", "score": float("nan")}, ValueError, '"score"'),
        ({"text": "a", "n": 2**70}, ValueError, '"n"'),
        ({"text": "a\ud800"}, ValueError, '"text".*surrogate'),
        ({"text": "a", "meta": {1: 2}}, TypeError, '"meta"'),
        ("text", TypeError, "mapping"),
    ],
)
def test_a_bad_record_names_the_field(value: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        record(value)


def test_a_meta_nested_without_end_is_refused() -> None:
    loop: dict[str, Any] = {"text": "a"}
    loop["self"] = loop
    with pytest.raises(ValueError, match="nested deeper"):
        record(loop)


def page(spans: list[tuple[int, int]], **changes: Any) -> Page:
    words = Words(np.array(spans, np.int64).reshape(-1, 2), np.tile(np.array([0, 0, 1, 1], np.float32), (len(spans), 1)))
    return replace(Page(1, 100.0, 100.0, Span(0, 5), words), **changes)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        (Document(text="ab cd", pages=(page([(0, 2), (1, 5)]),)), "ascending"),
        (Document(text="ab cd", pages=(page([(3, 5), (0, 2)]),)), "ascending"),
        (Document(text="ab cd", pages=(page([(0, 0)]),)), "empty"),
        (Document(text="ab cd", pages=(page([(0, 6)]),)), "outside"),
        (Document(text="ab", pages=(page([]),)), "beyond"),
        (Document(text="ab cd", pages=(page([]), page([]))), "out of order"),
        (Document(text="ab cd", pages=(page([], width=float("nan")),)), "size"),
        (Document(text="ab cd", pages=(page([], number=0),)), "from 1"),
        (Document(text="ab cd", pages=(page([]), page([], span=Span(5, 5)))), "page 1 comes after page 1"),
        (Document(text="ab cd", blocks=(Block("nonsense", Span(0, 2)),)), "unknown kind"),
        (Document(text="ab cd", blocks=(Block("code", Span(3, 4)), Block("code", Span(0, 2)))), "out of order"),
        (Document(text="ab cd", blocks=(Block("code", Span(0, 9)),)), "beyond"),
    ],
)
def test_a_document_that_breaks_a_law_is_refused(document: Document, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check(document)


def test_the_content_hash_sees_everything_but_the_id() -> None:
    base = Document(text="ab cd", title="t", meta={"a": 1, "b": 2}, pages=(page([(0, 2)]),), blocks=(Block("code", Span(0, 2)),))
    same = replace(base, id="other", meta={"b": 2, "a": 1})
    assert content_hash(base) == content_hash(same)
    moved = Words(base.pages[0].words.spans, base.pages[0].words.boxes + 1)
    others = [
        replace(base, text="ab ce"),
        replace(base, title="u"),
        replace(base, meta={"a": 1}),
        replace(base, mime="text/html"),
        replace(base, blocks=()),
        replace(base, pages=()),
        replace(base, pages=(replace(base.pages[0], words=moved),)),
    ]
    assert len({content_hash(d) for d in [base, *others]}) == 1 + len(others)


def test_the_file_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 9000)
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()

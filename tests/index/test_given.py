"""An index of vectors made elsewhere: what goes in is compared as it is, and nothing is embedded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Document, Index
from ragkit.core.errors import EncodeError, RecipeMismatch
from ragkit.testing import HashEncoder

DIMS = 12
ROWS = np.random.default_rng(3).normal(size=(8, DIMS)).astype(np.float32) * 5
QUERY = np.random.default_rng(4).normal(size=DIMS)


def records() -> list[dict[str, Any]]:
    return [{"id": f"d{n}", "text": f" number {n} ", "vector": row.tolist(), "meta": {"n": n}} for n, row in enumerate(ROWS)]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "library", model=f"vectors:{DIMS}") as index:
        assert len(index.add(records()).added) == len(ROWS)
        yield index


def test_scores_are_the_cosines_of_what_was_given(index: Index) -> None:
    cosines = ROWS @ QUERY / (np.linalg.norm(ROWS, axis=1) * np.linalg.norm(QUERY))
    hits = index.search("", 8, vector=QUERY, mode="dense")
    assert [hit.document_id for hit in hits] == [f"d{n}" for n in np.argsort(-cosines)]
    np.testing.assert_allclose([hit.score for hit in hits], sorted(cosines, reverse=True), atol=2e-3)
    assert hits[0].text == f" number {hits[0].document_id[1:]} "  # the whole text, blanks included
    batch = index.search_many(["", ""], 3, vectors=[QUERY, ROWS[5]], mode="dense")
    assert [hit.key for hit in batch[0]] == [hit.key for hit in hits[:3]]
    assert batch[1][0].document_id == "d5"


def test_words_and_vector_are_fused(index: Index) -> None:
    found = index.search("3", 8, vector=ROWS[6])
    assert {found[0].document_id, found[1].document_id} == {"d3", "d6"}
    assert {reason.space for reason in found[0].via} == {"chunk.dense", "chunk.lexical"}


def test_fewer_dims_are_a_prefix_of_what_was_given_and_will_be(index: Index) -> None:
    index.rebuild(dims=5)
    index.add([{"id": "later", "text": "later", "vector": ROWS[0] * 2}, {"id": "short", "text": "short", "vector": ROWS[1][:5]}])
    prefix, query = ROWS[:, :5], QUERY[:5]
    cosines = prefix @ query / (np.linalg.norm(prefix, axis=1) * np.linalg.norm(query))
    for given in (QUERY, query):
        scores = {hit.document_id: hit.score for hit in index.search("", 10, vector=given, mode="dense")}
        expected = {f"d{n}": cosine for n, cosine in enumerate(cosines)} | {"later": cosines[0], "short": cosines[1]}
        assert scores == pytest.approx(expected, abs=2e-3)
    with pytest.raises(ValueError, match="12 or 5 dims"):
        index.search("", vector=QUERY[:7], mode="dense")


def test_documents_without_a_vector_are_found_by_words_and_verify_agrees(index: Index) -> None:
    report = index.add([{"id": "bare", "text": "number none"}, {"id": "dumb", "text": "", "vector": ROWS[0]}, *records()[:1]])
    assert {one.source: bool(one.warnings) for one in report.added} == {"bare": True, "dumb": False}
    assert len(report.unchanged) == 1
    assert "bare" not in {hit.document_id for hit in index.search("", 50, vector=QUERY, mode="dense")}
    assert index.search("none", 5, mode="lexical")[0].document_id == "bare"
    dumb = index.search("", 2, vector=ROWS[0], mode="dense", filters={"source": "dumb"})
    assert [(hit.document_id, hit.text) for hit in dumb] == [("dumb", "")]
    index.compact()
    assert index.verify() == []
    assert len(index.search("", 50, vector=QUERY, mode="dense")) == 9
    with pytest.raises(ValueError, match="no vector to compare"):
        index.similar("bare")
    assert len(index.search("none", 5, vector=QUERY, diversity=0.5)) == 5


def test_it_is_reopened_and_changed_by_id(index: Index) -> None:
    before = [hit.score for hit in index.search("", 8, vector=QUERY, mode="dense")]
    index.close()
    with Index.open(index.path) as again:
        assert [hit.score for hit in again.search("", 8, vector=QUERY, mode="dense")] == before
        report = again.add([{**records()[0], "vector": QUERY}])
        assert [one.source for one in report.updated] == ["d0"]
        assert again.search("", 1, vector=QUERY, mode="dense")[0].score == pytest.approx(1, abs=1e-3)
    with pytest.raises(RecipeMismatch):
        Index.open(index.path, model="vectors:13")


def test_stored_documents_can_be_read_and_given_back_unchanged(index: Index) -> None:
    before = list(index.stored())
    assert [one.text for one in before] == [one["text"] for one in records()]
    for one, given in zip(before, ROWS, strict=True):
        assert one.vectors is not None
        np.testing.assert_allclose(one.vectors, [given / np.linalg.norm(given)], atol=1e-3)
        index.add([{"id": one.row.source, "text": one.text, "vector": one.vectors[0], "meta": {"n": -1}}])
    after = list(index.stored({"n": -1}))
    np.testing.assert_array_equal([one.vectors for one in after], [one.vectors for one in before])


def test_stored_documents_are_of_one_commit(index: Index) -> None:
    index.add([{"id": f"more {n}", "text": "x", "vector": ROWS[0]} for n in range(40)])
    reading = index.stored()
    first = next(reading)
    index.delete([f"more {n}" for n in range(40)])
    index.add([{"id": "late", "text": "late", "vector": QUERY}])
    assert len({first.row.id, *(one.row.id for one in reading)}) == 48


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([1.0] * 13, "12 dims"),
        ([0.0] * 12, "not all zeros"),
        ([float("nan")] * 12, "finite"),
        ([[1.0] * 12], "one row"),
        ("abc", "row of numbers"),
    ],
)
def test_a_vector_that_cannot_be_compared_is_a_failed_document(index: Index, vector: Any, reason: str) -> None:
    report = index.add([{"id": "d0", "text": "x", "vector": vector}, {"id": "new", "text": "y", "vector": QUERY}])
    assert [one.source for one in report.added] == ["new"]
    assert reason in report.failed[0].reason
    assert index.document("d0").text == " number 0 "
    if reason != "one row":
        with pytest.raises((ValueError, TypeError)):
            index.search("", vector=vector, mode="dense")


def test_what_needs_a_model_says_so(index: Index, tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="pass vector="):
        index.search("number")
    with pytest.raises(ValueError, match="as many vectors"):
        index.search_many(["a", "b"], vectors=[QUERY])
    with pytest.raises(ValueError, match="vectors:768"):
        Index.open(tmp_path / "other", model="vectors:many")
    with pytest.raises(ValueError, match="whole"):
        Index.open(tmp_path / "other", model="vectors:3", chunker="sentences")


def test_an_index_with_a_model_refuses_vectors_from_elsewhere(tmp_path: Path) -> None:
    encoder = HashEncoder(dims=DIMS)
    with Index.open(tmp_path / "library", model=encoder) as index:
        report = index.add([Document(id="a", text="words", vector=ROWS[0]), {"id": "b", "text": "words"}])
        assert "embeds texts itself" in report.failed[0].reason
        own = encoder.encode_query(["words"]).dense
        assert own is not None
        assert index.search("", 1, vector=own[0], mode="dense")[0].document_id == "b"


def test_filters_list_and_delete_documents(index: Index) -> None:
    assert [row.source for row in index.documents({"n": {"$gte": 6}})] == ["d6", "d7"]
    odd = {"field": "meta.n", "operator": lambda value, target: value is not None and value % 2 == target, "value": 1}
    assert [row.source for row in index.documents(odd)] == ["d1", "d3", "d5", "d7"]
    assert {hit.document_id for hit in index.search("", 8, vector=QUERY, mode="dense", filters=odd)} == {"d1", "d3", "d5", "d7"}
    assert index.delete("d0", filters=odd) == 5
    assert [row.source for row in index.documents()] == ["d2", "d4", "d6"]
    assert index.delete(filters={"n": 99}) == 0

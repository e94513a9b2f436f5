"""Haystack's own test classes for document stores, and what they do not ask."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported
pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.components.embedders import MockDocumentEmbedder, MockTextEmbedder
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as sync_suite
from haystack.testing import document_store_async as async_suite
from haystack.utils.filters import document_matches_filter

from ragkit import Index
from ragkit.integrations.haystack import RagkitDocumentEmbedder, RagkitDocumentStore, RagkitRetriever, RagkitTextEmbedder
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, records
from tests.index.test_retriever import paged


@pytest.fixture
def document_store(tmp_path: Path) -> Iterator[RagkitDocumentStore]:
    store = RagkitDocumentStore(tmp_path / "library", embedding_dim=768)
    yield store
    store.index.close()


def assert_same(received: list[Document], expected: list[Document]) -> None:
    """Equal in everything; embeddings, which are kept as float16 directions, to 1e-3 of their length."""
    assert [_without(one) for one in received] == [_without(one) for one in expected]
    for one, other in zip(received, expected, strict=True):
        assert (one.embedding is None) == (other.embedding is None)
        if one.embedding is not None and other.embedding is not None:
            gap = np.linalg.norm(np.subtract(one.embedding, other.embedding)) / np.linalg.norm(other.embedding)
            assert gap < 1e-3, gap


def _without(document: Document) -> dict[str, Any]:
    fields = document.to_dict(flatten=False)
    assert "_haystack" not in fields["meta"]
    return {**fields, "embedding": None}


class _Same:
    """The one thing that the suites leave to a store that keeps embeddings in less than float64."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        assert_same(received, expected)


class TestStore(
    _Same,
    sync_suite.DocumentStoreBaseExtendedTests,
    sync_suite.CountDocumentsByFilterTest,
    sync_suite.CountUniqueMetadataByFilterTest,
    sync_suite.GetMetadataFieldsInfoTest,
    sync_suite.GetMetadataFieldMinMaxTest,
    sync_suite.GetMetadataFieldUniqueValuesTest,
):
    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[RagkitDocumentStore]:
        store = RagkitDocumentStore(tmp_path / "library", embedding_dim=768)
        yield store
        store.index.close()

    def test_write_documents(self, document_store: RagkitDocumentStore) -> None:
        """Our default, which the suite leaves open: a known id is overwritten."""
        assert document_store.write_documents([Document(id="1", content="first")]) == 1
        assert document_store.write_documents([Document(id="1", content="second")]) == 1
        assert_same(document_store.filter_documents(), [Document(id="1", content="second")])


class TestStoreAsync(
    _Same,
    async_suite.CountDocumentsAsyncTest,
    async_suite.CountDocumentsByFilterAsyncTest,
    async_suite.CountUniqueMetadataByFilterAsyncTest,
    async_suite.DeleteAllAsyncTest,
    async_suite.DeleteByFilterAsyncTest,
    async_suite.DeleteDocumentsAsyncTest,
    async_suite.FilterDocumentsAsyncTest,
    async_suite.GetMetadataFieldMinMaxAsyncTest,
    async_suite.GetMetadataFieldUniqueValuesAsyncTest,
    async_suite.GetMetadataFieldsInfoAsyncTest,
    async_suite.UpdateByFilterAsyncTest,
    async_suite.WriteDocumentsAsyncTest,
):
    @pytest.fixture
    def document_store(self, tmp_path: Path) -> Iterator[RagkitDocumentStore]:
        store = RagkitDocumentStore(tmp_path / "library", embedding_dim=768)
        yield store
        store.index.close()

    async def test_write_documents_async(self, document_store: RagkitDocumentStore) -> None:
        """Our default, which the suite leaves open: a known id is overwritten."""
        await document_store.write_documents_async([Document(id="1", content="first")])
        await document_store.write_documents_async([Document(id="1", content="second")])
        assert_same(await document_store.filter_documents_async(), [Document(id="1", content="second")])


def test_every_class_of_the_suites_is_run() -> None:
    """So that a later Haystack's new classes are not missed."""
    for suite, ours in ((sync_suite, TestStore), (async_suite, TestStoreAsync)):
        theirs = {one for name, one in vars(suite).items() if isinstance(one, type) and name.endswith("Test")}
        assert theirs <= set(ours.__mro__), theirs - set(ours.__mro__)


def test_a_document_comes_back_as_it_was_written(document_store: RagkitDocumentStore) -> None:
    row = np.random.default_rng(1).normal(size=768) * 30
    documents = [
        Document(content="words", meta={"nested": {"a": [1, 2]}, "none": None}, embedding=row.tolist()),
        Document(content=None, blob=ByteStream(b"\x00\xff", {"x": 1}, "image/png"), embedding=(-row).tolist()),
        Document(content="", sparse_embedding=SparseEmbedding([1, 5], [0.5, 0.25]), score=0.5),
    ]
    document_store.write_documents(documents)
    assert_same(document_store.filter_documents(), documents)
    document_store.update_by_filter({"field": "meta.nested.a", "operator": "==", "value": [1, 2]}, {"new": "x"})
    [updated] = document_store.filter_documents({"field": "meta.new", "operator": "==", "value": "x"})
    assert updated.meta == {**documents[0].meta, "new": "x"}
    again = {one.id: one.embedding for one in document_store.filter_documents()}
    np.testing.assert_allclose(again[documents[0].id], row, rtol=0, atol=1e-3 * np.linalg.norm(row))
    [seen] = RagkitRetriever(document_store, top_k=1).run(query_embedding=(-row).tolist())["documents"]
    assert (seen.id, seen.content) == (documents[1].id, None)


OPERATORS = ["==", "!=", ">", ">=", "<", "<=", "in", "not in"]
DATES = ["2024-05-01", "2024-05-01T00:00:00", "2024-05-02T10:00:00+02:00"]
VALUES: list[Any] = [None, 1, 1.0, 2.5, True, "a", "1", *DATES, [1], {"b": 1}]


@pytest.mark.parametrize("operator", OPERATORS)
def test_filters_mean_what_haystack_means(document_store: RagkitDocumentStore, operator: str) -> None:
    """Every pair of values by Haystack's own comparison; where that refuses a stored value, it is no match here.

    What can never be ordered is refused whatever is stored; "1", which Haystack may read as a day of this month, too.
    """
    documents = [Document(content=str(at), meta={"x": value}) for at, value in enumerate(VALUES)] + [Document(content="none")]
    document_store.write_documents(documents)
    for target in VALUES:
        condition = {"field": "meta.x", "operator": operator, "value": [target, 7] if operator.endswith("in") else target}
        if operator[0] in "<>" and target in ("a", "1", [1], {"b": 1}):
            with pytest.raises(FilterError):
                document_store.filter_documents(condition)
            continue
        expected = {one.content for one in documents if _matches(condition, one)}
        assert {one.content for one in document_store.filter_documents(condition)} == expected, condition


def _matches(condition: dict[str, Any], document: Document) -> bool:
    try:
        return bool(document_matches_filter(condition, document))
    except (FilterError, TypeError):
        return False


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": 1},
        {"field": "content", "operator": "==", "value": "x"},
        {"field": "meta.x", "operator": "contains", "value": "x"},
        {"operator": "XOR", "conditions": []},
        {"operator": "AND", "conditions": [{"x": 1}]},
        {"operator": "AND", "conditions": 3},
    ],
)
def test_a_malformed_filter_is_a_filter_error(document_store: RagkitDocumentStore, wrong: dict[str, Any]) -> None:
    for call in (document_store.filter_documents, document_store.delete_by_filter):
        with pytest.raises(FilterError):
            call(wrong)


def test_policies_and_failures(document_store: RagkitDocumentStore) -> None:
    one, two = Document(id="1", content="one"), Document(id="2", content="two")
    document_store.write_documents([one])
    with pytest.raises(DuplicateDocumentError):
        document_store.write_documents([two, one], DuplicatePolicy.FAIL)
    assert document_store.count_documents() == 1  # nothing of it was written
    changed = Document(id="1", content="changed")
    assert document_store.write_documents([changed, two, two], DuplicatePolicy.SKIP) == 1
    assert_same(document_store.filter_documents(), [one, two])
    with pytest.raises(DocumentStoreError, match="768 dims"):
        document_store.write_documents([Document(id="3", content="x", embedding=[1.0, 2.0]), Document(id="4", content="y")])
    assert document_store.count_documents() == 3


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "notes", model=HashEncoder(dims=64), chunk_tokens=16) as index:
        index.add([*records(), paged("book", 3)])
        yield index


def test_a_store_over_an_index_of_files_cites_pages_and_boxes(index: Index, tmp_path: Path) -> None:
    hit = index.search("p2w3", 1, mode="lexical")[0]
    store = RagkitDocumentStore(index.path)
    [found] = RagkitRetriever(store, top_k=1, mode="lexical").run("p2w3")["documents"]
    assert found.content == hit.text
    assert found.id == f"book#{hit.span.start}-{hit.span.end}"
    assert found.meta["citation"]["pages"] == list(hit.pages)
    assert found.meta["citation"]["boxes"][0]["points"] == list(hit.boxes[0].box)
    assert found.score == hit.score
    with pytest.raises(DocumentStoreError, match="embeds texts itself"):
        store.write_documents([Document(content="x", embedding=[0.1] * 64)])
    note = tmp_path / "note.txt"
    note.write_text("A note in a file.")
    index.add(note)
    with pytest.raises(DocumentStoreError, match="read from a file"):
        store.update_by_filter({"field": "id", "operator": "==", "value": "note.txt"}, {"x": 1})


def test_filters_are_replaced_or_merged_and_hits_are_the_searchs(index: Index) -> None:
    store = RagkitDocumentStore(index.path)
    english = {"field": "meta.lang", "operator": "==", "value": "en"}
    first = {"field": "meta.number", "operator": "<", "value": 3}
    merging = RagkitRetriever(store, filters=english, top_k=50, mode="dense", filter_policy=FilterPolicy.MERGE)
    replacing = RagkitRetriever(store, filters=english, top_k=50, mode="dense")
    assert {one.meta["number"] for one in merging.run("fish", filters=first)["documents"]} == {1}
    assert {one.meta["number"] for one in replacing.run("fish", filters=first)["documents"]} == {0, 1, 2}
    expected = [hit.text for hit in index.search("fish", 3, mode="dense", filters={"lang": "en"})]
    assert [one.content for one in asyncio.run(replacing.run_async("fish", top_k=3))["documents"]] == expected
    assert replacing.run("fish", top_k=0) == {"documents": []}
    with pytest.raises(ValueError, match="needs a query"):
        replacing.run()


def test_a_pipeline_is_stored_and_loaded(tmp_path: Path) -> None:
    store = RagkitDocumentStore(tmp_path / "library", embedding_dim=32)
    writing = Pipeline()
    writing.add_component("embedder", RagkitDocumentEmbedder("hash:32", meta_fields_to_embed=["name"]))
    writing.add_component("writer", DocumentWriter(store))
    writing.connect("embedder", "writer")
    writing.run({"embedder": {"documents": [Document(content=text, meta={"name": name}) for name, text in NOTES.items()]}})
    asking = Pipeline()
    asking.add_component("embedder", RagkitTextEmbedder("hash:32"))
    asking.add_component("retriever", RagkitRetriever(store, top_k=2, filter_policy=FilterPolicy.MERGE))
    asking.connect("embedder.embedding", "retriever.query_embedding")
    question = "where do otters sleep?"
    given = {"embedder": {"text": question}, "retriever": {"query": question}}
    found = asking.run(given)["retriever"]["documents"]
    assert found[0].meta["name"] == "otter"
    again = Pipeline.loads(asking.dumps(), allowed_modules=["ragkit.*"])
    assert [one.id for one in again.run(given)["retriever"]["documents"]] == [one.id for one in found]
    assert Pipeline.loads(writing.dumps(), allowed_modules=["ragkit.*"]).get_component("embedder").meta_fields_to_embed == [
        "name"
    ]


def test_somebody_elses_embedders_fill_the_store(tmp_path: Path) -> None:
    store = RagkitDocumentStore(tmp_path / "library", embedding_dim=768)
    documents = [Document(content=text) for text in NOTES.values()]
    embedded = MockDocumentEmbedder(dimension=768).run(documents)["documents"]
    store.write_documents(embedded)
    query = MockTextEmbedder(dimension=768).run("fish")["embedding"]
    rows = np.array([one.embedding for one in embedded])
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    found = RagkitRetriever(store, mode="dense").run(query_embedding=query)["documents"]
    assert [one.id for one in found] == [documents[at].id for at in np.argsort(-cosines)]
    np.testing.assert_allclose([one.score for one in found], sorted(cosines, reverse=True), atol=2e-3)


def test_embedders_are_the_models_in_their_roles() -> None:
    encoder = HashEncoder(dims=32, asymmetric=True)
    document = Document(content="a b", meta={"t": "c"})
    [embedded] = RagkitDocumentEmbedder("hash:32+asymmetric", dims=16, meta_fields_to_embed=["t", "no"]).run([document])[
        "documents"
    ]
    expected = encoder.encode_document(["c\na b"], truncate_dim=16).dense
    assert expected is not None
    assert embedded.embedding == expected[0].tolist()
    assert document.embedding is None
    query = encoder.encode_query(["a b"]).dense
    assert query is not None
    assert RagkitTextEmbedder("hash:32+asymmetric").run("a b")["embedding"] == query[0].tolist()
    with pytest.raises(TypeError):
        RagkitTextEmbedder().run(["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        RagkitDocumentEmbedder().run("a")  # type: ignore[arg-type]

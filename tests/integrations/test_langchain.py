"""LangChain's own standard suites, unmodified, and what they do not ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing.base import DocumentIndex
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite
from langchain_tests.unit_tests import EmbeddingsUnitTests

from ragkit import Index
from ragkit.core.errors import FingerprintMismatch, RagkitError, RecipeMismatch
from ragkit.integrations.langchain import RagkitDocumentIndex, RagkitEmbeddings, RagkitRetriever, RagkitVectorStore
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, records
from tests.index.test_retriever import paged
from tests.integrations.seeing import SeeingEncoder, picture


class TestVectorStore(VectorStoreIntegrationTests):
    """Built with the suite's embeddings."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = RagkitVectorStore(tmp_path / "library", self.get_embeddings())
        yield store
        store.index.close()


class TestVectorStoreOfAModel(VectorStoreIntegrationTests):
    """Built with a model of ragkit's."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = RagkitVectorStore(tmp_path / "library", model="hash:64")
        yield store
        store.index.close()


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _index(self, index: Index) -> None:
        self.small = index

    @property
    def retriever_constructor(self) -> type[RagkitRetriever]:
        return RagkitRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.small, "k": 2}

    @property
    def retriever_query_example(self) -> str:
        return "where do otters sleep?"


class TestDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[DocumentIndex]:
        with Index.open(tmp_path / "library", model="hash:64") as index:
            yield RagkitDocumentIndex(index=index)


class TestAsyncDocumentIndex(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[DocumentIndex]:  # type: ignore[override]
        with Index.open(tmp_path / "library", model="hash:64") as index:
            yield RagkitDocumentIndex(index=index)


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[RagkitEmbeddings]:
        return RagkitEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "hash:64"}


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[RagkitEmbeddings]:
        return RagkitEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "hash:64"}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "notes", model=HashEncoder(dims=64), chunk_tokens=16) as index:
        index.add([*records(), paged("book", 3)])
        yield index


def test_a_document_carries_its_citation(index: Index) -> None:
    hit = index.search("p2w3", 1, mode="lexical")[0]
    [document] = RagkitRetriever(index=index, k=1, mode="lexical").invoke("p2w3")
    evidence = document.metadata["citation"]
    assert document.page_content == hit.text
    assert document.id == f"book#{hit.span.start}-{hit.span.end}"
    assert evidence["pages"] == list(hit.pages)
    assert evidence["span"] == list(hit.span)
    assert evidence["boxes"][0]["points"] == list(hit.boxes[0].box)
    assert evidence["text"] == str(hit.citation)
    assert evidence["score"] == hit.score
    [passage] = RagkitVectorStore(index).get_by_ids([document.id])
    assert passage.page_content == document.page_content
    assert passage.metadata["citation"]["boxes"] == evidence["boxes"]


def test_a_retriever_takes_every_setting_of_a_search(index: Index) -> None:
    settings: dict[str, Any] = {"mode": "dense", "filters": {"lang": "en"}, "rerank": lambda query, texts: map(len, texts)}
    expected = [hit.text for hit in index.search("fish", 3, **settings)]
    rerank = settings.pop("rerank")
    retriever = RagkitRetriever(index=index, k=3, options={"rerank": rerank}, **settings)
    assert [one.page_content for one in retriever.invoke("fish")] == expected
    assert [one.page_content for one in asyncio.run(retriever.ainvoke("fish"))] == expected
    assert [one.page_content for one in retriever.invoke("fish", k=1)] == expected[:1]
    assert len(retriever.batch(["fish", "bread"])) == 2


def test_store_search_filters_scores_and_vectors(index: Index) -> None:
    store = RagkitVectorStore(index, mode="dense")
    found = store.similarity_search_with_score("granite", 3, filter={"lang": "en"})
    hits = index.search("granite", 3, mode="dense", filters={"lang": "en"})
    assert [(one.page_content, score) for one, score in found] == [(hit.text, hit.score) for hit in hits]
    vector = store.embeddings.embed_query("granite")
    by_vector = store.similarity_search_by_vector(vector, 3, filter={"lang": "en"})
    assert [one.page_content for one in by_vector] == [hit.text for hit in hits]
    relevance = store.similarity_search_with_relevance_scores("granite", 50)
    assert all(0 <= score <= 1 for _, score in relevance)
    assert [one.page_content for one in store.as_retriever(search_kwargs={"k": 1}).invoke("granite")] == [
        index.search("granite", 1, mode="dense")[0].text
    ]


@pytest.mark.parametrize("lambda_mult", [0.2, 0.5, 0.8])
def test_marginal_relevance_is_langchains_own(index: Index, lambda_mult: float) -> None:
    store = RagkitVectorStore(index)
    candidates = index.search("the river bridge", 10, mode="dense")
    rows = store.embeddings.embed_documents([hit.text for hit in candidates])
    query = np.array(store.embeddings.embed_query("the river bridge"))
    expected = [candidates[at].text for at in maximal_marginal_relevance(query, rows, lambda_mult=lambda_mult, k=5)]
    found = store.max_marginal_relevance_search("the river bridge", 5, 10, lambda_mult)
    assert [one.page_content for one in found] == expected
    again = store.max_marginal_relevance_search_by_vector(list(query), 5, 10, lambda_mult)
    assert [one.page_content for one in again] == expected


def test_a_store_is_reopened_with_its_embeddings_and_no_others(tmp_path: Path) -> None:
    store = RagkitVectorStore.from_texts(
        ["foo", "bar"], DeterministicFakeEmbedding(size=6), [{"n": 1}, {"n": 2}], ids=["a", "b"], index=tmp_path / "library"
    )
    store.index.close()
    again = RagkitVectorStore(tmp_path / "library", DeterministicFakeEmbedding(size=6))
    assert again.similarity_search("bar", 1)[0].id == "b"
    again.delete()
    assert again.similarity_search("bar") == []
    again.index.close()
    with pytest.raises((FingerprintMismatch, RecipeMismatch)):
        RagkitVectorStore(tmp_path / "library", RagkitEmbeddings("hash:6")).similarity_search("bar")


def test_what_cannot_be_done_is_an_error(index: Index, tmp_path: Path) -> None:
    store = RagkitVectorStore(index)
    passage = store.similarity_search("otters", 1)[0].id
    assert passage is not None
    with pytest.raises(ValueError, match="delete the document"):
        store.delete([passage])
    with pytest.raises(ValueError, match="as many ids"):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(RagkitError, match="JSON"):
        store.add_documents([Document(page_content="x", metadata={"bad": object()})])
    with pytest.raises(ValueError, match="open already"):
        RagkitVectorStore(index, model="hash:64")
    with pytest.raises(ValueError, match="in a folder"):
        RagkitVectorStore.from_texts(["a"], DeterministicFakeEmbedding(size=6))
    assert store.delete(["nothing"])
    assert len(list(index.documents())) == len(NOTES) + 1


def test_embeddings_are_the_models_in_their_roles(tmp_path: Path) -> None:
    encoder = HashEncoder(dims=32, asymmetric=True)
    embeddings = RagkitEmbeddings(encoder, dims=16)
    np.testing.assert_array_equal(embeddings.embed_documents(["a b"]), encoder.encode_document(["a b"], truncate_dim=16).dense)
    np.testing.assert_array_equal([embeddings.embed_query("a b")], encoder.encode_query(["a b"], truncate_dim=16).dense)
    assert embeddings.embed_documents([]) == []
    with pytest.raises(ValueError, match="does not see"):
        embeddings.embed_images([picture("red")])
    picture("red").save(tmp_path / "red.png")
    seeing = SeeingEncoder()
    rows = RagkitEmbeddings(seeing).embed_images([tmp_path / "red.png", (tmp_path / "red.png").read_bytes(), picture("blue")])
    np.testing.assert_array_equal(rows, seeing.encode_document([picture("red"), picture("red"), picture("blue")]).dense)

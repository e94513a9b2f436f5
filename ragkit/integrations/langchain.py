"""LangChain: Embeddings, VectorStore, retriever and DocumentIndex over an Index.

    store = RagkitVectorStore("library")                      # the index's own model; or embedding=OpenAIEmbeddings()
    retriever = RagkitRetriever(index=Index.open("library"), k=5, mode="hybrid", filters={"lang": "en"})

A Document's metadata carries, under "citation", where it stands: source, pages, span, boxes, headings, score. A passage's id is
its document's with the span, "report.pdf#120-480"; a document that is a single passage keeps its own id and, without pages, its
own metadata and nothing else. Asynchronous methods run in threads.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

from ragkit.core.arrays import truncate_dims, unit_rows
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Floats, Hit, Ints, Json
from ragkit.encode.contract import Encoder, EncoderCard, Encoding
from ragkit.index.index import Index
from ragkit.integrations import common
from ragkit.recipe.settings import SettingsKeywords
from ragkit.search.cite import without_hidden
from ragkit.search.filters import Filters
from ragkit.search.hit_json import citation_fields

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.indexing import DeleteResponse, UpsertResponse
    from langchain_core.indexing.base import DocumentIndex
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from pydantic import ConfigDict, Field
except ImportError:
    raise MissingExtra.of("langchain-core", "langchain", "ragkit.integrations.langchain") from None

import numpy as np

_WORD = re.compile(r"\S+")


class RagkitEmbeddings(Embeddings):
    """Any of ragkit's models as LangChain embeddings: documents and queries in their own roles.

    model: as in `load_encoder`, an encoder, or an Index: then its model, task and dims. A text beyond the model's limit is
    InputTooLong, unless truncate=True.
    """

    def __init__(
        self,
        model: Encoder | Index | str | Path | None = None,
        *,
        task: str | None = None,
        dims: int | None = None,
        truncate: bool = False,
        device: str | None = None,
    ) -> None:
        self._embedder = common.Embedder(model, task=task, dims=dims, truncate=truncate, device=device)
        self.encoder = self._embedder.encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one unit vector per text, in the document role."""
        return self._embedder.documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """Return a unit vector in the query role."""
        return self._embedder.query(text)

    def embed_images(self, images: Sequence[common.ImageSource]) -> list[list[float]]:
        """Return one unit vector per image (a path, bytes or a PIL image), in the document role. ValueError if the model does
        not see."""
        return self._embedder.images(images)


class EmbeddingsEncoder:
    """LangChain embeddings as an `Encoder`, so that an index can be built with any of them.

    They are identified by class and model name, and by the vectors of probe texts: an index refuses to be opened with others.
    They get whole texts only; they themselves must refuse texts beyond their limit.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        kind = type(embeddings)
        model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
        name = f"langchain:{kind.__module__}.{kind.__qualname__}" + (f":{model}" if isinstance(model, str) else "")
        dims = len(embeddings.embed_query("dims"))
        self.card = EncoderCard(name=name, revision="", licence="", dims=dims, max_tokens=1 << 30, pooling="unknown")

    def encode_query(
        self, queries: Sequence[str], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        return self._encoding([self.embeddings.embed_query(query) for query in queries], truncate_dim)

    def encode_document(
        self, documents: Sequence[str], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        return self._encoding(self.embeddings.embed_documents(list(documents)) if documents else [], truncate_dim)

    def encode(self, inputs: Sequence[str], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        return self.encode_document(inputs, truncate_dim=truncate_dim)

    def _encoding(self, vectors: Sequence[Sequence[float]], truncate_dim: int | None) -> Encoding:
        rows: Floats = np.array(vectors, dtype=np.float32).reshape(len(vectors), self.card.dims)
        return Encoding(dense=unit_rows(rows) if truncate_dim is None else truncate_dims(rows, truncate_dim))

    def token_spans(self, text: str) -> Ints:
        return np.array([match.span() for match in _WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        return np.array([len(_WORD.findall(text)) for text in documents], dtype=np.int64)


def to_document(hit: Hit, *, always_cite: bool = True) -> Document:
    """Return a hit as a LangChain Document."""
    cited = always_cite or common.needs_citation(hit)
    return Document(id=common.passage_id(hit), page_content=hit.text, metadata=common.metadata(hit) if cited else dict(hit.meta))


def _stored_document(name: str, passage: common.StoredPassage) -> Document:
    cited = {} if passage.citation is None else {common.CITATION: citation_fields(passage.citation)}
    metadata = {**without_hidden(passage.document.row.meta), **cited}
    return Document(id=name, page_content=passage.text, metadata=metadata)


class RagkitVectorStore(VectorStore):
    """An Index as a VectorStore.

    index: an Index, or its folder. embedding: LangChain embeddings to build it with, one vector for each document; without
    them, the index's own model and chunker. mode: "hybrid", "dense" or "lexical", as in `Index.search`, whose other keywords
    every search takes. settings: those of `Index.open`.
    """

    def __init__(
        self,
        index: Index | str | Path,
        embedding: Embeddings | None = None,
        *,
        mode: str = "hybrid",
        **settings: Unpack[SettingsKeywords],
    ) -> None:
        if embedding is not None:
            own = isinstance(embedding, RagkitEmbeddings)
            settings["model"] = embedding.encoder if own else cast("Encoder", EmbeddingsEncoder(embedding))
            settings.setdefault("chunker", None if own else "whole")
        self.index = common.open_index(index, **settings)
        self.mode = mode
        self._embedding = embedding

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings of texts and queries."""
        return self._embedding or RagkitEmbeddings(self.index)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[Json] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those of the same ids; return the ids. RagkitError names the ones that failed."""
        texts = list(texts)
        names = [name or str(uuid.uuid4()) for name in (ids or [None] * len(texts))]
        metas = metadatas or [{} for _ in texts]
        if not len(texts) == len(names) == len(metas):
            raise ValueError(f"{len(texts)} texts need as many ids and metadatas, got {len(names)} and {len(metas)}")
        records = [{"id": name, "text": text, "meta": meta} for name, text, meta in zip(names, texts, metas, strict=True)]
        common.check_added(self.index.add(records, **kwargs))
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id, or all of them; ids that are not there are ignored."""
        if ids is None:
            self.index.delete(filters={})
        else:
            common.delete_by_ids(self.index, ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents and passages of those ids, in the order of the ids; ids that are not there are left out."""
        passages = common.passages_by_ids(self.index, ids)
        return [_stored_document(name, passages[name]) for name in dict.fromkeys(ids) if name in passages]

    def _hits(self, query: str, k: int, filter: Filters | None, **options: object) -> list[Hit]:
        return list(self.index.search(query, k, **common.merged({"mode": self.mode, "filters": filter}, options)))

    def similarity_search(self, query: str, k: int = 4, filter: Filters | None = None, **kwargs: Any) -> list[Document]:
        """Return the k best passages; `filter` as in `ragkit.search.filters`, other keywords as in `Index.search`."""
        return [to_document(hit, always_cite=False) for hit in self._hits(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filters | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the k best passages with their scores: z-scores in mode "hybrid", cosines in "dense", BM25 in "lexical"."""
        return [(to_document(hit, always_cite=False), hit.score) for hit in self._hits(query, k, filter, **kwargs)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: Filters | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the k best passages with their cosines, negative ones as 0: no other score means the same for every query."""
        hits = self._hits(query, k, filter, **{**kwargs, "mode": "dense"})
        return [(to_document(hit, always_cite=False), min(max(hit.score, 0.0), 1.0)) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filters | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k best passages by cosine to a vector of the index's model."""
        return self.similarity_search("", k, filter, **{**kwargs, "vector": embedding, "mode": "dense"})

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Filters | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return k of the `fetch_k` best passages, each relevant and unlike those before it."""
        options = {"mode": "dense", **kwargs, "diversity": 1 - lambda_mult, "candidates": fetch_k}
        return self.similarity_search(query, k, filter, **options)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filters | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the same for a vector of the index's model."""
        return self.max_marginal_relevance_search("", k, fetch_k, lambda_mult, filter, **{**kwargs, "vector": embedding})

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[Json] | None = None,
        *,
        ids: list[str] | None = None,
        index: Index | str | Path | None = None,
        **settings: Unpack[SettingsKeywords],
    ) -> RagkitVectorStore:
        """Return a store in the folder `index`, with these texts in it."""
        if index is None:
            raise ValueError("an index lives in a folder: from_texts(..., index='library')")
        store = cls(index, embedding, **settings)
        store.add_texts(texts, metadatas, ids=ids)
        return store


class RagkitRetriever(BaseRetriever):
    """An Index as a retriever: `invoke`, `ainvoke`, `batch`, with k, mode, filters and every other keyword of `Index.search`
    fixed here or given to `invoke`."""

    index: Index
    k: int = 4
    mode: str = "hybrid"
    filters: Json | None = None
    options: Json = Field(default_factory=dict)

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def _settings(self, changes: common.Keywords) -> Json:
        return common.merged({"k": self.k, "mode": self.mode, "filters": self.filters}, self.options, changes)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun | None = None, **kwargs: Any
    ) -> list[Document]:
        return [to_document(hit) for hit in self.index.search(query, **self._settings(kwargs))]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun | None = None, **kwargs: Any
    ) -> list[Document]:
        return [to_document(hit) for hit in await self.index.asearch(query, **self._settings(kwargs))]


class RagkitDocumentIndex(DocumentIndex, RagkitRetriever):
    """An Index as a DocumentIndex: a retriever that is also written to."""

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Add documents, or replace those of the same ids."""
        names = [item.id or str(uuid.uuid4()) for item in items]
        records = [
            {"id": name, "text": item.page_content, "meta": item.metadata} for name, item in zip(names, items, strict=True)
        ]
        failed = {failure.source for failure in self.index.add(records, **kwargs).failed}
        return {
            "succeeded": [name for name in names if name not in failed],
            "failed": [name for name in names if name in failed],
        }

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Delete documents by id; ids that are not there are ignored. ValueError without ids."""
        if ids is None:
            raise ValueError("delete() needs ids; Index.delete(filters={}) deletes everything")
        deleted = common.delete_by_ids(self.index, ids)
        return {"succeeded": deleted, "num_deleted": len(deleted), "failed": [], "num_failed": 0}

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """Return the documents of those ids, in the order of the ids; ids that are not there are left out."""
        return RagkitVectorStore(self.index).get_by_ids(ids)

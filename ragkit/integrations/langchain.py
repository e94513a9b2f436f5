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
from typing import Any

from ragkit.core.arrays import truncate_dims, unit_rows
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Floats, Hit, Ints
from ragkit.encode.contract import Encoder, EncoderCard, Encoding
from ragkit.index.index import Index
from ragkit.integrations import common
from ragkit.search.cite import without_hidden
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

    model: as in `load_encoder`, an encoder, or an Index, whose model it then is. A text beyond the model's limit is InputTooLong,
    unless truncate=True.
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
        settings = {} if device is None else {"device": device}
        self.encoder = common.encoder_of(model, **settings)
        if isinstance(model, Index):
            task, dims = task or model.recipe.encode.task, dims or model.recipe.encode.dims
        self._options = {"task": task, "truncate_dim": dims, "truncate": truncate}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One unit vector per text, in the document role."""
        rows: list[list[float]] = common.dense(self.encoder, texts, role="document", **self._options).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        """A unit vector in the query role."""
        row: list[float] = common.dense(self.encoder, [text], role="query", **self._options)[0].tolist()
        return row

    def embed_images(self, images: Sequence[Any]) -> list[list[float]]:
        """One unit vector per image (a path, bytes or a PIL image), in the document role. ValueError where the model is blind."""
        seen = common.images(self.encoder, images)
        rows: list[list[float]] = common.dense(self.encoder, seen, role="document", **self._options).tolist()
        return rows


class EmbeddingsEncoder:
    """LangChain embeddings as an `Encoder`, so that an index can be built with any of them.

    What they are is known by class and model name, and by probe texts: an index refuses to be opened with others. They are
    asked for whole texts only; what is beyond their limit is for them to say.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        kind = type(embeddings)
        model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
        name = f"langchain:{kind.__module__}.{kind.__qualname__}" + (f":{model}" if isinstance(model, str) else "")
        dims = len(embeddings.embed_query("dims"))
        self.card = EncoderCard(name=name, revision="", licence="", dims=dims, max_tokens=1 << 30, pooling="unknown")

    def encode_query(
        self, queries: Sequence[Any], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        return self._encoding([self.embeddings.embed_query(query) for query in queries], truncate_dim)

    def encode_document(
        self, documents: Sequence[Any], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        return self._encoding(self.embeddings.embed_documents(list(documents)) if documents else [], truncate_dim)

    def encode(self, inputs: Sequence[Any], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        return self.encode_document(inputs, truncate_dim=truncate_dim)

    def _encoding(self, vectors: Sequence[Sequence[float]], truncate_dim: int | None) -> Encoding:
        rows: Floats = np.array(vectors, dtype=np.float32).reshape(len(vectors), self.card.dims)
        return Encoding(dense=unit_rows(rows) if truncate_dim is None else truncate_dims(rows, truncate_dim))

    def token_spans(self, text: str) -> Ints:
        return np.array([match.span() for match in _WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        return np.array([len(_WORD.findall(text)) for text in documents], dtype=np.int64)


def to_document(hit: Hit, *, always_cite: bool = True) -> Document:
    """A hit as a LangChain Document."""
    cited = always_cite or common.needs_citation(hit)
    return Document(id=common.passage_id(hit), page_content=hit.text, metadata=common.metadata(hit) if cited else dict(hit.meta))


class RagkitVectorStore(VectorStore):
    """An Index as a VectorStore.

    index: an Index, or its folder. embedding: LangChain embeddings to build it with, each document then one vector; without,
    the index's own model, chunking and all. mode: "hybrid", "dense" or "lexical", as in `Index.search`, whose other keywords
    every search takes. settings: of `Index.open`.
    """

    def __init__(
        self, index: Index | str | Path, embedding: Embeddings | None = None, *, mode: str = "hybrid", **settings: Any
    ) -> None:
        if embedding is not None:
            own = isinstance(embedding, RagkitEmbeddings)
            settings["model"] = embedding.encoder if own else EmbeddingsEncoder(embedding)
            settings.setdefault("chunker", None if own else "whole")
        self.index = common.opened(index, **settings)
        self.mode = mode
        self._embedding = embedding

    @property
    def embeddings(self) -> Embeddings:
        """What texts and queries are embedded with."""
        return self._embedding or RagkitEmbeddings(self.index)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those of the same ids; returns the ids. RagkitError names the ones that failed."""
        texts = list(texts)
        names = [one or str(uuid.uuid4()) for one in (ids or [None] * len(texts))]
        metas = metadatas or [{} for _ in texts]
        if not len(texts) == len(names) == len(metas):
            raise ValueError(f"{len(texts)} texts need as many ids and metadatas, got {len(names)} and {len(metas)}")
        records = [{"id": name, "text": text, "meta": meta} for name, text, meta in zip(names, texts, metas, strict=True)]
        common.check_added(self.index.add(records, **kwargs))
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id, or all of them; ids that are not there are no error."""
        if ids is None:
            self.index.delete(filters={})
        else:
            common.delete_by_ids(self.index, ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents and passages of those ids that there are, in the order of the ids."""
        found = common.passages_by_ids(self.index, ids)
        documents = []
        for name in dict.fromkeys(one for one in ids if one in found):
            stored, text, citation = found[name]
            cited = {} if citation is None else {common.CITATION: citation_fields(citation)}
            documents.append(Document(id=name, page_content=text, metadata={**without_hidden(stored.row.meta), **cited}))
        return documents

    def _hits(self, query: str, k: int, filter: Any, **options: Any) -> list[Hit]:
        return list(self.index.search(query, k, **common.merged({"mode": self.mode, "filters": filter}, options)))

    def similarity_search(self, query: str, k: int = 4, filter: Any = None, **kwargs: Any) -> list[Document]:
        """The k best passages; `filter` as in `ragkit.search.filters`, other keywords as in `Index.search`."""
        return [to_document(hit, always_cite=False) for hit in self._hits(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """With their scores, higher is better: z-scores in mode "hybrid", cosines in "dense", BM25 in "lexical"."""
        return [(to_document(hit, always_cite=False), hit.score) for hit in self._hits(query, k, filter, **kwargs)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """By cosine, in 0–1, negative ones as 0: the only scores that mean the same for every query."""
        hits = self._hits(query, k, filter, **{**kwargs, "mode": "dense"})
        return [(to_document(hit, always_cite=False), min(max(hit.score, 0.0), 1.0)) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """The k best by cosine to a vector of the index's model."""
        return self.similarity_search("", k, filter, **{**kwargs, "vector": embedding, "mode": "dense"})

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """k of the `fetch_k` best, each relevant and unlike those before it."""
        options = {"mode": "dense", **kwargs, "diversity": 1 - lambda_mult, "candidates": fetch_k}
        return self.similarity_search(query, k, filter, **options)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """The same, by a vector of the index's model."""
        return self.max_marginal_relevance_search("", k, fetch_k, lambda_mult, filter, **{**kwargs, "vector": embedding})

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        index: Index | str | Path | None = None,
        **settings: Any,
    ) -> RagkitVectorStore:
        """A store in the folder `index` with these texts in it."""
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
    filters: dict[str, Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def _settings(self, changes: dict[str, Any]) -> dict[str, Any]:
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
        names = [one.id or str(uuid.uuid4()) for one in items]
        records = [{"id": name, "text": one.page_content, "meta": one.metadata} for name, one in zip(names, items, strict=True)]
        failed = {one.source for one in self.index.add(records, **kwargs).failed}
        return {"succeeded": [one for one in names if one not in failed], "failed": [one for one in names if one in failed]}

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Delete documents by id; ids that are not there are no failure. ValueError without ids."""
        if ids is None:
            raise ValueError("delete() needs ids; Index.delete(filters={}) deletes everything")
        gone = common.delete_by_ids(self.index, ids)
        return {"succeeded": gone, "num_deleted": len(gone), "failed": [], "num_failed": 0}

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """The documents of those ids that there are, in the order of the ids."""
        return RagkitVectorStore(self.index).get_by_ids(ids)

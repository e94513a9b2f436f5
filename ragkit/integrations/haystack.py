"""Haystack: a DocumentStore, embedders and a retriever over an Index.

    store = RagkitDocumentStore("library")                            # embeds by itself, with the index's model
    store = RagkitDocumentStore("vectors", embedding_dim=768)         # keeps the embeddings that documents bring
    pipeline.add_component("retriever", RagkitRetriever(store, top_k=5))

What the retriever returns carries, in `meta["citation"]`, where it stands: source, pages, span, boxes, headings. Embeddings
are stored as unit vectors in float16 with their length beside, so an embedding read back equals the one written to about 1e-3.
What ragkit has no field for (blob, sparse embedding, score, content that is None) is stored in the metadata under "_haystack".
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeGuard, TypeVar

import numpy as np

from ragkit.core.errors import MissingExtra
from ragkit.core.types import Document as Record
from ragkit.core.types import Hit, Json, Metadata
from ragkit.index.index import Index
from ragkit.integrations import common
from ragkit.search.cite import without_hidden
from ragkit.search.lookup import StoredDocument

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import ByteStream, SparseEmbedding
    from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy

    from ragkit.integrations.haystack_filters import haystack_filter
except ImportError:
    raise MissingExtra.of("haystack-ai", "haystack", "ragkit.integrations.haystack") from None

EXTRA = "_haystack"  # the key in the metadata for what ragkit has no field for
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_KINDS = ((bool, "boolean"), (int, "int"), (float, "float"))


def _in_thread(method: Callable[Parameters, Result]) -> Callable[Parameters, Awaitable[Result]]:
    """Return the asynchronous twin of a method."""

    @functools.wraps(method)
    async def twin(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return await asyncio.to_thread(method, *args, **kwargs)

    return twin


class RagkitDocumentStore:
    """An Index as a DocumentStore, with the extended methods and their asynchronous twins.

    path: an open index, or its folder; the folder is opened on first use, and an index is created if there is none. model: the
    model that embeds what is written; documents then bring no embeddings, and long ones are cut into passages. embedding_dim:
    instead of a model, the width of the embeddings that documents bring; those without one are found by their words. Without
    both, the index keeps its model; a new one gets all-MiniLM-L6-v2. settings: further keywords of `Index.open`.
    """

    def __init__(
        self,
        path: Index | str | Path,
        *,
        model: str | None = None,
        embedding_dim: int | None = None,
        settings: Json | None = None,
    ) -> None:
        if model is not None and embedding_dim is not None:
            raise ValueError("give model= to embed here, or embedding_dim= to keep embeddings from elsewhere, not both")
        if isinstance(path, Index):
            if model is not None or embedding_dim is not None or settings:
                raise ValueError(f"{path!r} is open already: model, embedding_dim and settings cannot be set any more")
            self.index = path  # in place of the property below
        self.path = str(path.path if isinstance(path, Index) else path)
        self.model = model
        self.embedding_dim = embedding_dim
        self.settings = settings or {}

    @functools.cached_property
    def index(self) -> Index:
        """The open index."""
        model = self.model if self.embedding_dim is None else f"vectors:{self.embedding_dim}"
        return Index.open(self.path, model=model, **self.settings)

    def to_dict(self) -> Json:
        """Return the fields from which a stored pipeline is made again."""
        data: Json = default_to_dict(
            self, path=self.path, model=self.model, embedding_dim=self.embedding_dim, settings=self.settings
        )
        return data

    @classmethod
    def from_dict(cls, data: Json) -> RagkitDocumentStore:
        """Return the store of a stored pipeline."""
        store: RagkitDocumentStore = default_from_dict(cls, data)
        return store

    # Documents

    def count_documents(self) -> int:
        """Return the number of documents."""
        return self.index.stats().documents

    def filter_documents(self, filters: Json | None = None) -> list[Document]:
        """Return the documents that match, or all, in the order they were written. FilterError for a malformed filter."""
        return [_document(stored) for stored in self.index.stored(haystack_filter(filters))]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents; return how many were written. Without a policy, documents of known ids are overwritten.

        FAIL writes nothing if an id is known. DocumentStoreError names documents that could not be written; the others were.
        """
        if not _are_documents(documents):
            raise ValueError("write_documents takes a list of Documents")
        if policy == DuplicatePolicy.SKIP:
            return self._write_new(documents)
        by_id = {document.id: document for document in documents}
        if policy == DuplicatePolicy.FAIL:
            self._refuse_known(by_id, repeated=len(by_id) < len(documents))
        self._add(_record(document) for document in by_id.values())
        return len(documents)

    def _write_new(self, documents: list[Document]) -> int:
        """Write the first document of each id that is not known; return how many were written."""
        first: dict[str, Document] = {}
        for document in documents:
            first.setdefault(document.id, document)
        known = common.by_ids(self.index, first)
        new = [document for name, document in first.items() if name not in known]
        self._add(map(_record, new))
        return len(new)

    def _refuse_known(self, documents: Iterable[str], *, repeated: bool) -> None:
        known = next(iter(common.by_ids(self.index, documents)), None)
        if known is not None or repeated:
            name = known or "an id given twice"
            raise DuplicateDocumentError(f"{self.path} has the document {name!r} already; nothing was written")

    def _add(self, records: Iterable[Record]) -> None:
        report = self.index.add(records)
        if report.failed:
            raise DocumentStoreError(f"{report}. The others were written.")

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents by id; ids that are not there are ignored."""
        common.delete_by_ids(self.index, document_ids)

    def delete_all_documents(self) -> None:
        """Delete every document."""
        self.index.delete(filters={})

    def delete_by_filter(self, filters: Json) -> int:
        """Delete the documents that match; return their number."""
        return self.index.delete(filters=haystack_filter(filters) or {})

    def update_by_filter(self, filters: Json, meta: Json) -> int:
        """Merge `meta` into the metadata of the documents that match, by writing them again; return their number."""
        matching = list(self.index.documents(haystack_filter(filters)))
        files = [row.source for row in matching if row.path is not None]
        if files:
            raise DocumentStoreError(f"{files[0]} was read from a file, and its metadata with it: only records can be updated")
        ids = {row.id for row in matching}
        self._add(
            replace(
                self.index.document(stored.row.identity),
                id=stored.row.source,
                meta={**stored.row.meta, **meta},
                vector=None if self._embeds or stored.vectors is None else stored.vectors[0],
            )
            for stored in self.index.stored(haystack_filter(filters))
            if stored.row.id in ids
        )
        return len(matching)

    @property
    def _embeds(self) -> bool:
        return bool(self.index.encoder.card.modalities)

    # Metadata

    def count_documents_by_filter(self, filters: Json) -> int:
        """Return the number of documents that match."""
        return sum(1 for _ in self.index.documents(haystack_filter(filters)))

    def count_unique_metadata_by_filter(self, filters: Json, metadata_fields: list[str]) -> dict[str, int]:
        """Return the number of distinct values of each field among the documents that match."""
        metas = list(self._metas(filters))
        names = [name.removeprefix("meta.") for name in metadata_fields]
        return {name: len(_distinct(meta.get(name) for meta in metas)) for name in names}

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """Return every field of the metadata with its type: boolean, int, float or keyword."""
        kinds = {}
        for meta in self._metas(None):
            for name, value in meta.items():
                if value is not None:
                    kinds[name] = next((kind for type_, kind in _KINDS if isinstance(value, type_)), "keyword")
        return {name: {"type": kind} for name, kind in kinds.items()}

    def get_metadata_field_min_max(self, metadata_field: str) -> Json:
        """Return the least and the greatest value of a field; None for both without values, or if they have no order."""
        name = metadata_field.removeprefix("meta.")
        values = [value for meta in self._metas(None) if isinstance(value := meta.get(name), (int, float, str))]
        try:
            return {"min": min(values), "max": max(values)}
        except (TypeError, ValueError):
            return {"min": None, "max": None}

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: Json | None = None,
    ) -> tuple[list[object], int]:
        """Return one page of a field's distinct values that contain a term in any case, in order; and the number of all."""
        name, term = metadata_field.removeprefix("meta."), (search_term or "").lower()
        distinct = _distinct(meta.get(name) for meta in self._metas(filters))
        matching = [value for value in distinct if term in str(value).lower()]
        values = sorted(matching, key=lambda value: (str(value), type(value).__name__))
        return values[from_ : from_ + size], len(values)

    def _metas(self, filters: Json | None) -> Iterator[Metadata]:
        for row in self.index.documents(haystack_filter(filters)):
            yield {name: value for name, value in row.meta.items() if name != EXTRA}

    count_documents_async = _in_thread(count_documents)
    filter_documents_async = _in_thread(filter_documents)
    write_documents_async = _in_thread(write_documents)
    delete_documents_async = _in_thread(delete_documents)
    delete_all_documents_async = _in_thread(delete_all_documents)
    delete_by_filter_async = _in_thread(delete_by_filter)
    update_by_filter_async = _in_thread(update_by_filter)
    count_documents_by_filter_async = _in_thread(count_documents_by_filter)
    count_unique_metadata_by_filter_async = _in_thread(count_unique_metadata_by_filter)
    get_metadata_fields_info_async = _in_thread(get_metadata_fields_info)
    get_metadata_field_min_max_async = _in_thread(get_metadata_field_min_max)
    get_metadata_field_unique_values_async = _in_thread(get_metadata_field_unique_values)


def _are_documents(value: object) -> TypeGuard[list[Document]]:
    return isinstance(value, list) and all(isinstance(document, Document) for document in value)


def _record(document: Document) -> Record:
    extra: Json = {}
    if document.content is None:
        extra["content"] = None
    if document.score is not None:
        extra["score"] = document.score
    if document.blob is not None:
        blob = document.blob
        extra["blob"] = {"data": base64.b64encode(blob.data).decode(), "meta": blob.meta, "mime_type": blob.mime_type}
    if document.sparse_embedding is not None:
        extra["sparse_embedding"] = document.sparse_embedding.to_dict()
    vector = None
    if document.embedding is not None:
        vector = np.array(document.embedding, dtype=np.float32)
        extra["length"] = float(np.linalg.norm(document.embedding))
    meta = {**document.meta, **({EXTRA: extra} if extra else {})}
    return Record(text=document.content or "", id=document.id, meta=meta, vector=vector)


def _document(stored: StoredDocument) -> Document:
    meta = without_hidden(stored.row.meta)
    extra = meta.pop(EXTRA, {})
    blob, sparse = extra.get("blob"), extra.get("sparse_embedding")
    length = extra.get("length")
    return Document(
        id=stored.row.source,
        content=extra.get("content", stored.text),
        meta=meta,
        score=extra.get("score"),
        embedding=None if length is None or stored.vectors is None else (stored.vectors[0] * length).tolist(),
        blob=None if blob is None else ByteStream(base64.b64decode(blob["data"]), blob["meta"], blob["mime_type"]),
        sparse_embedding=None if sparse is None else SparseEmbedding.from_dict(sparse),
    )


def _passage(hit: Hit) -> Document:
    meta = common.metadata(hit)
    extra = meta.pop(EXTRA, {})
    content = None if "content" in extra and not hit.text else hit.text
    return Document(id=common.passage_id(hit), content=content, meta=meta, score=hit.score)


def _distinct(values: Iterable[object]) -> list[object]:
    """Return each value once, without None; 1, 1.0, "1" and True are four values."""
    distinct = {f"{type(value).__name__}:{json.dumps(value, sort_keys=True)}": value for value in values if value is not None}
    return list(distinct.values())


# Components


@component
class RagkitTextEmbedder:
    """Embeds a query, in the query role, with any of ragkit's models. model: as in `load_encoder`."""

    def __init__(
        self, model: str | None = None, task: str | None = None, dims: int | None = None, truncate: bool = False
    ) -> None:
        self.model = model
        self.task = task
        self.dims = dims
        self.truncate = truncate
        self._embedder: common.Embedder | None = None

    def to_dict(self) -> Json:
        """Return the fields from which a stored pipeline is made again."""
        data: Json = default_to_dict(self, model=self.model, task=self.task, dims=self.dims, truncate=self.truncate)
        return data

    def warm_up(self) -> None:
        """Load the model."""
        self._loaded()

    def _loaded(self) -> common.Embedder:
        if self._embedder is None:
            self._embedder = common.Embedder(self.model, task=self.task, dims=self.dims, truncate=self.truncate)
        return self._embedder

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> Json:
        """Return the text's unit vector as `embedding`."""
        if not isinstance(text, str):
            raise TypeError(
                f"RagkitTextEmbedder takes one text, got {type(text).__name__}; documents go to RagkitDocumentEmbedder"
            )
        return {"embedding": self._loaded().query(text)}


@component
class RagkitDocumentEmbedder:
    """Embeds documents, in the document role, with any of ragkit's models; metadata fields may be put in front of the text."""

    def __init__(
        self,
        model: str | None = None,
        task: str | None = None,
        dims: int | None = None,
        truncate: bool = False,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self._embedder = RagkitTextEmbedder(model, task, dims, truncate)

    def to_dict(self) -> Json:
        """Return the fields from which a stored pipeline is made again."""
        embedder = self._embedder
        data: Json = default_to_dict(
            self,
            model=embedder.model,
            task=embedder.task,
            dims=embedder.dims,
            truncate=embedder.truncate,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )
        return data

    def warm_up(self) -> None:
        """Load the model."""
        self._embedder.warm_up()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> Json:
        """Return copies of the documents, each with its `embedding`, as `documents`."""
        if not _are_documents(documents):
            raise TypeError("RagkitDocumentEmbedder takes a list of Documents; a query goes to RagkitTextEmbedder")
        if not documents:
            return {"documents": []}
        vectors = self._embedder._loaded().documents([self._text(document) for document in documents])
        return {"documents": [replace(each, embedding=vector) for each, vector in zip(documents, vectors, strict=True)]}

    def _text(self, document: Document) -> str:
        fields = [str(document.meta[name]) for name in self.meta_fields_to_embed if document.meta.get(name) is not None]
        return self.embedding_separator.join([*fields, document.content or ""])


@component
class RagkitRetriever:
    """Finds passages in a RagkitDocumentStore, by words and by vector.

    mode: "hybrid", "dense" or "lexical". options: further keywords of `Index.search`, such as rerank or diversity. A store that
    embeds by itself needs the query only; one that keeps embeddings from elsewhere needs query_embedding for "dense", and both
    for "hybrid".
    """

    def __init__(
        self,
        document_store: RagkitDocumentStore,
        filters: Json | None = None,
        top_k: int = 10,
        mode: str = "hybrid",
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
        options: Json | None = None,
    ) -> None:
        if not isinstance(document_store, RagkitDocumentStore):
            raise TypeError(f"document_store must be a RagkitDocumentStore, got {type(document_store).__name__}")
        if top_k < 1:
            raise ValueError(f"top_k must be greater than 0, got {top_k}")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.mode = mode
        self.filter_policy = filter_policy
        self.options = options or {}

    def to_dict(self) -> Json:
        """Return the fields from which a stored pipeline is made again; for that, options must be what JSON can hold."""
        data: Json = default_to_dict(
            self,
            document_store=self.document_store,
            filters=self.filters,
            top_k=self.top_k,
            mode=self.mode,
            filter_policy=self.filter_policy.value,
            options=self.options,
        )
        return data

    @classmethod
    def from_dict(cls, data: Json) -> RagkitRetriever:
        """Return the retriever of a stored pipeline."""
        parameters = dict(data["init_parameters"])
        parameters["filter_policy"] = FilterPolicy.from_str(parameters["filter_policy"])
        retriever: RagkitRetriever = default_from_dict(cls, {**data, "init_parameters": parameters})
        return retriever

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str = "",
        query_embedding: list[float] | None = None,
        filters: Json | None = None,
        top_k: int | None = None,
    ) -> Json:
        """Return the best passages, best first, each with its citation in the metadata, as `documents`."""
        if not query and query_embedding is None:
            raise ValueError("RagkitRetriever needs a query, a query_embedding, or both")
        k = self.top_k if top_k is None else top_k
        if k == 0:
            return {"documents": []}
        chosen = haystack_filter(apply_filter_policy(self.filter_policy, self.filters, filters))
        settings = common.merged({"mode": self.mode, "filters": chosen, "vector": query_embedding}, self.options)
        return {"documents": [_passage(hit) for hit in self.document_store.index.search(query, k, **settings)]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str = "",
        query_embedding: list[float] | None = None,
        filters: Json | None = None,
        top_k: int | None = None,
    ) -> Json:
        """Call `run` in a thread."""
        return await asyncio.to_thread(self.run, query, query_embedding, filters, top_k)

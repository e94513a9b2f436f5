"""Haystack: a DocumentStore, embedders and a retriever over an Index.

    store = RagkitDocumentStore("library")                            # embeds by itself, with the index's model
    store = RagkitDocumentStore("vectors", embedding_dim=768)         # keeps the embeddings that documents bring
    pipeline.add_component("retriever", RagkitRetriever(store, top_k=5))

What the retriever returns carries, in `meta["citation"]`, where it stands: source, pages, span, boxes, headings. Embeddings
are kept as unit vectors in float16 with their length beside, so one read back is the one written to about 1e-3. What else ragkit
has no place for (blob, sparse embedding, score, content that is None) is kept in the metadata under "_haystack", and put back.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.errors import MissingExtra
from ragkit.core.types import Document as Record
from ragkit.core.types import Floats, Hit
from ragkit.index.index import Index
from ragkit.integrations import common
from ragkit.search import filters as ours
from ragkit.search.cite import without_hidden
from ragkit.search.lookup import StoredDocument

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import ByteStream, SparseEmbedding
    from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
    from haystack.errors import FilterError
    from haystack.utils.filters import document_matches_filter
except ImportError:
    raise MissingExtra.of("haystack-ai", "haystack", "ragkit.integrations.haystack") from None

KEPT = "_haystack"  # the key in the metadata for what ragkit has no place for
_OWN_FIELDS = ("content", "blob", "score", "embedding", "sparse_embedding")
_KINDS = ((bool, "boolean"), (int, "int"), (float, "float"))


def _in_thread(method: Callable[..., Any]) -> Callable[..., Any]:
    """The asynchronous twin of a method."""

    @functools.wraps(method)
    async def twin(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return twin


class RagkitDocumentStore:
    """An Index as a DocumentStore, with the extended methods and their asynchronous twins.

    path: an open index, or the folder of one, opened on first use, created where there is none. model: the model that embeds
    what is written, if it is created; documents then bring no embeddings, and long ones are cut into passages. embedding_dim:
    instead of a model, the width of the embeddings that documents bring; those without one are found by their words. Without
    both, what the index was created with, or all-MiniLM-L6-v2. settings: further keywords of `Index.open`.
    """

    def __init__(
        self,
        path: Index | str | Path,
        *,
        model: str | None = None,
        embedding_dim: int | None = None,
        settings: dict[str, Any] | None = None,
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
        """The index itself, open."""
        model = self.model if self.embedding_dim is None else f"vectors:{self.embedding_dim}"
        return Index.open(self.path, model=model, **self.settings)

    def to_dict(self) -> dict[str, Any]:
        """As pipelines are stored."""
        data: dict[str, Any] = default_to_dict(
            self, path=self.path, model=self.model, embedding_dim=self.embedding_dim, settings=self.settings
        )
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RagkitDocumentStore:
        """The store of a stored pipeline."""
        store: RagkitDocumentStore = default_from_dict(cls, data)
        return store

    # Documents

    def count_documents(self) -> int:
        """How many documents there are."""
        return self.index.stats().documents

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, or all, in the order they were written. FilterError for a malformed filter."""
        return [_document(one) for one in self.index.stored(_filters(filters))]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents; how many were. Without a policy, those of known ids are overwritten.

        FAIL writes nothing where an id is known. DocumentStoreError names documents that could not be written; the others were.
        """
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise ValueError("write_documents takes a list of Documents")
        by_id: dict[str, Document] = {}
        for one in documents:
            if one.id not in by_id or policy != DuplicatePolicy.SKIP:
                by_id[one.id] = one
        if policy in (DuplicatePolicy.FAIL, DuplicatePolicy.SKIP):
            known = common.by_ids(self.index, by_id)
            if policy == DuplicatePolicy.FAIL and (known or len(by_id) < len(documents)):
                repeated = next(iter(known), None) or "an id given twice"
                raise DuplicateDocumentError(f"{self.path} has the document {repeated!r} already; nothing was written")
            by_id = {name: one for name, one in by_id.items() if name not in known}
        self._add(_record(one) for one in by_id.values())
        return len(by_id) if policy == DuplicatePolicy.SKIP else len(documents)

    def _add(self, records: Iterable[Record]) -> None:
        report = self.index.add(records)
        if report.failed:
            raise DocumentStoreError(f"{report}. The others were written.")

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents by id; ids that are not there are no error."""
        common.delete_by_ids(self.index, document_ids)

    def delete_all_documents(self) -> None:
        """Delete every document."""
        self.index.delete(filters={})

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that match; how many there were."""
        return self.index.delete(filters=_filters(filters) or {})

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Merge `meta` into the metadata of the documents that match; how many there were. They are written anew."""
        matching = list(self.index.documents(_filters(filters)))
        files = [row.source for row in matching if row.path is not None]
        if files:
            raise DocumentStoreError(f"{files[0]} was read from a file, and its metadata with it: only records can be updated")
        wanted = {row.id for row in matching}
        self._add(
            replace(
                self.index.document(one.row.identity),
                id=one.row.source,
                meta={**one.row.meta, **meta},
                vector=None if self._embeds or one.vectors is None else one.vectors[0],
            )
            for one in self.index.stored(_filters(filters))
            if one.row.id in wanted
        )
        return len(matching)

    @property
    def _embeds(self) -> bool:
        return bool(self.index.encoder.card.modalities)

    # Metadata

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many documents match."""
        return sum(1 for _ in self.index.documents(_filters(filters)))

    def count_unique_metadata_by_filter(self, filters: dict[str, Any], metadata_fields: list[str]) -> dict[str, int]:
        """How many distinct values each field has among the documents that match."""
        metas = list(self._metas(filters))
        names = [name.removeprefix("meta.") for name in metadata_fields]
        return {name: len(_distinct(meta.get(name) for meta in metas)) for name in names}

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """Every field of the metadata with its type: boolean, int, float or keyword."""
        kinds = {}
        for meta in self._metas(None):
            for name, value in meta.items():
                if value is not None:
                    kinds[name] = next((kind for type_, kind in _KINDS if isinstance(value, type_)), "keyword")
        return {name: {"type": kind} for name, kind in kinds.items()}

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The least and the greatest value of a field; None for both where it has none, or values that have no order."""
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
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """A page of a field's distinct values, in order, of those that contain a term in any case; and how many there are."""
        name, term = metadata_field.removeprefix("meta."), (search_term or "").lower()
        found = _distinct(meta.get(name) for meta in self._metas(filters))
        values = sorted((one for one in found if term in str(one).lower()), key=lambda one: (str(one), type(one).__name__))
        return values[from_ : from_ + size], len(values)

    def _metas(self, filters: dict[str, Any] | None) -> Iterator[Mapping[str, Any]]:
        for row in self.index.documents(_filters(filters)):
            yield {name: value for name, value in row.meta.items() if name != KEPT}

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


def _record(document: Document) -> Record:
    kept: dict[str, Any] = {}
    if document.content is None:
        kept["content"] = None
    if document.score is not None:
        kept["score"] = document.score
    if document.blob is not None:
        blob = document.blob
        kept["blob"] = {"data": base64.b64encode(blob.data).decode(), "meta": blob.meta, "mime_type": blob.mime_type}
    if document.sparse_embedding is not None:
        kept["sparse_embedding"] = document.sparse_embedding.to_dict()
    vector = None
    if document.embedding is not None:
        vector = np.array(document.embedding, dtype=np.float32)
        kept["length"] = float(np.linalg.norm(document.embedding))
    meta = {**document.meta, **({KEPT: kept} if kept else {})}
    return Record(text=document.content or "", id=document.id, meta=meta, vector=vector)


def _document(stored: StoredDocument) -> Document:
    meta = without_hidden(stored.row.meta)
    kept = meta.pop(KEPT, {})
    blob, sparse = kept.get("blob"), kept.get("sparse_embedding")
    length = kept.get("length")
    return Document(
        id=stored.row.source,
        content=kept.get("content", stored.text),
        meta=meta,
        score=kept.get("score"),
        embedding=None if length is None or stored.vectors is None else (stored.vectors[0] * length).tolist(),
        blob=None if blob is None else ByteStream(base64.b64decode(blob["data"]), blob["meta"], blob["mime_type"]),
        sparse_embedding=None if sparse is None else SparseEmbedding.from_dict(sparse),
    )


def _passage(hit: Hit) -> Document:
    meta = common.metadata(hit)
    kept = meta.pop(KEPT, {})
    content = None if "content" in kept and not hit.text else hit.text
    return Document(id=common.passage_id(hit), content=content, meta=meta, score=hit.score)


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, None left out; 1, 1.0, "1" and True are four."""
    found = {f"{type(value).__name__}:{json.dumps(value, sort_keys=True)}": value for value in values if value is not None}
    return list(found.values())


def _filters(filters: dict[str, Any] | None) -> dict[str, Any] | None:
    """A Haystack filter as ours, compared by Haystack's own rules. FilterError for a malformed one.

    A stored value that Haystack would refuse to order against the filter's is no match here: one odd document must not make
    every filtered search fail.
    """
    if not filters:
        return None
    if "field" not in filters:
        if filters.get("operator") not in ("AND", "OR", "NOT") or not isinstance(filters.get("conditions"), list):
            raise FilterError(f"a filter has field, operator and value, or operator (AND, OR, NOT) and conditions; got {filters}")
        return {"operator": filters["operator"], "conditions": [_filters(one) or {} for one in filters["conditions"]]}
    try:
        ours.parse(filters)
    except ValueError as error:
        raise FilterError(str(error)) from None
    name, operator = filters["field"], filters["operator"]
    if operator in ("in", "not in") and not isinstance(filters["value"], list):
        raise FilterError(f"{operator!r} on {name!r} takes a list, got {filters['value']!r}")
    if name in _OWN_FIELDS:
        raise FilterError(f"{name!r} cannot be filtered: fields are those of the metadata, and id")
    if operator not in ("==", "!=", ">", ">=", "<", "<=", "in", "not in"):
        raise FilterError(f"unknown operator {operator!r}")

    def matches(value: Any, target: Any) -> bool:
        try:
            condition = {"field": "meta.value", "operator": operator, "value": target}
            return bool(document_matches_filter(condition, Document(id="one", meta={"value": value})))
        except (FilterError, TypeError):
            return False

    field = name if name == "id" else f"meta.{name.removeprefix('meta.')}"
    return {"field": field, "operator": matches, "value": filters["value"]}


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
        self._encoder: Any = None

    def to_dict(self) -> dict[str, Any]:
        """As pipelines are stored."""
        data: dict[str, Any] = default_to_dict(self, model=self.model, task=self.task, dims=self.dims, truncate=self.truncate)
        return data

    def warm_up(self) -> None:
        """Load the model."""
        self._encoder = self._encoder or common.encoder_of(self.model)

    def _rows(self, texts: Sequence[str], role: str) -> Floats:
        self.warm_up()
        options = {"task": self.task, "truncate_dim": self.dims, "truncate": self.truncate}
        return common.dense(self._encoder, texts, role=role, **options)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """`embedding`: the text's unit vector."""
        if not isinstance(text, str):
            raise TypeError(
                f"RagkitTextEmbedder takes one text, got {type(text).__name__}; documents go to RagkitDocumentEmbedder"
            )
        return {"embedding": self._rows([text], "query")[0].tolist()}


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

    def to_dict(self) -> dict[str, Any]:
        """As pipelines are stored."""
        one = self._embedder
        data: dict[str, Any] = default_to_dict(
            self,
            model=one.model,
            task=one.task,
            dims=one.dims,
            truncate=one.truncate,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )
        return data

    def warm_up(self) -> None:
        """Load the model."""
        self._embedder.warm_up()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """`documents`: the same, each with its `embedding`; those given are not changed."""
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise TypeError("RagkitDocumentEmbedder takes a list of Documents; a query goes to RagkitTextEmbedder")
        if not documents:
            return {"documents": []}
        rows = self._embedder._rows([self._text(one) for one in documents], "document")
        return {"documents": [replace(one, embedding=row.tolist()) for one, row in zip(documents, rows, strict=True)]}

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
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        mode: str = "hybrid",
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
        options: dict[str, Any] | None = None,
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

    def to_dict(self) -> dict[str, Any]:
        """As pipelines are stored; options must be what JSON can hold for that."""
        data: dict[str, Any] = default_to_dict(
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
    def from_dict(cls, data: dict[str, Any]) -> RagkitRetriever:
        """The retriever of a stored pipeline."""
        given = dict(data["init_parameters"])
        given["filter_policy"] = FilterPolicy.from_str(given["filter_policy"])
        retriever: RagkitRetriever = default_from_dict(cls, {**data, "init_parameters": given})
        return retriever

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str = "",
        query_embedding: list[float] | None = None,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        """`documents`: the best passages, best first, each with its citation in the metadata."""
        if not query and query_embedding is None:
            raise ValueError("RagkitRetriever needs a query, a query_embedding, or both")
        k = self.top_k if top_k is None else top_k
        if k == 0:
            return {"documents": []}
        chosen = _filters(apply_filter_policy(self.filter_policy, self.filters, filters))
        settings = common.merged({"mode": self.mode, "filters": chosen, "vector": query_embedding}, self.options)
        return {"documents": [_passage(hit) for hit in self.document_store.index.search(query, k, **settings)]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str = "",
        query_embedding: list[float] | None = None,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, query, query_embedding, filters, top_k)

"""LlamaIndex: embeddings, a retriever and a vector store over an Index.

    engine = RetrieverQueryEngine.from_args(RagkitRetriever(Index.open("library"), k=5), llm=...)
    index = VectorStoreIndex.from_vector_store(RagkitVectorStore("vectors"), embed_model=...)

A node's metadata carries, under "citation", where it stands: source, pages, span, boxes, headings, score. It is kept out of what
the model is shown. Asynchronous methods run in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ragkit.core.errors import MissingExtra
from ragkit.core.space import Space
from ragkit.core.types import Hit, Json
from ragkit.encode.contract import Encoder
from ragkit.encode.external import PREFIX
from ragkit.index.index import Index
from ragkit.integrations import common
from ragkit.search.filters import Filters

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.embeddings import MultiModalEmbedding
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import (
        BaseNode,
        ImageType,
        MetadataMode,
        NodeRelationship,
        NodeWithScore,
        QueryBundle,
        RelatedNodeInfo,
        TextNode,
    )
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import build_metadata_filter_fn, metadata_dict_to_node, node_to_metadata_dict
except ImportError:
    raise MissingExtra.of("llama-index-core", "llama-index", "ragkit.integrations.llama_index") from None

Embedding = list[float]
PREFETCH = 4  # candidates of a diverse answer, as a multiple of k


class RagkitEmbedding(BaseEmbedding):
    """Any of ragkit's models: texts and queries in their own roles.

    model: as in `load_encoder`, an encoder, or an Index: then its model, task and dims. A text beyond the model's limit is
    InputTooLong, unless truncate=True.
    """

    _embedder: common.Embedder = PrivateAttr()

    def __init__(
        self,
        model: Encoder | Index | str | Path | None = None,
        *,
        task: str | None = None,
        dims: int | None = None,
        truncate: bool = False,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        embedder = common.Embedder(model, task=task, dims=dims, truncate=truncate, device=device)
        super().__init__(**{"model_name": embedder.card.name, **kwargs})
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        return "RagkitEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embedder.query(query)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embedder.documents([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embedder.documents(texts)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class RagkitMultiModalEmbedding(RagkitEmbedding, MultiModalEmbedding):
    """A model that sees: images (paths, bytes, files, PIL images) in the document role, beside texts and queries."""

    @classmethod
    def class_name(cls) -> str:
        return "RagkitMultiModalEmbedding"

    def get_image_embeddings(self, images: Sequence[common.ImageSource]) -> list[Embedding]:
        """Return one unit vector per image. ValueError if the model does not see."""
        return self._embedder.images(images)

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self.get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return self.get_image_embeddings(img_file_paths)

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return await asyncio.to_thread(self.get_image_embeddings, img_file_paths)


class RagkitRetriever(BaseRetriever):
    """An Index as a retriever. filters: ragkit's, or MetadataFilters; options: every other keyword of `Index.search`."""

    def __init__(
        self,
        index: Index | str | Path,
        k: int = 5,
        *,
        mode: str = "hybrid",
        filters: Filters | MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
        **options: object,
    ) -> None:
        self.index = common.open_index(index)
        chosen = to_filters(filters) if isinstance(filters, MetadataFilters) else filters
        self._settings = common.merged({"k": k, "mode": mode, "filters": chosen}, options)
        super().__init__(callback_manager=callback_manager)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_scored(hit) for hit in self.index.search(query_bundle.query_str, **self._settings)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_scored(hit) for hit in await self.index.asearch(query_bundle.query_str, **self._settings)]


def _scored(hit: Hit) -> NodeWithScore:
    node = TextNode(
        id_=common.passage_id(hit),
        text=hit.text,
        metadata=common.metadata(hit),
        start_char_idx=hit.span.start,
        end_char_idx=hit.span.end,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=hit.document_id)},
        excluded_llm_metadata_keys=[common.CITATION],
        excluded_embed_metadata_keys=[common.CITATION],
    )
    return NodeWithScore(node=node, score=hit.score)


class RagkitVectorStore(BasePydanticVectorStore):
    """An Index of vectors made elsewhere as a vector store: nodes bring their embeddings, and their texts are kept.

    index: an Index of vectors, or its folder. In a folder without an index one is created when the first nodes are added, as wide
    as their embeddings. Query modes: default, sparse and text_search (BM25), hybrid and semantic_hybrid (`alpha` is the weight
    of the vectors), mmr.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    flat_metadata: bool = False

    _path: Path = PrivateAttr()
    _index: Index | None = PrivateAttr()

    def __init__(self, index: Index | str | Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._index = index if isinstance(index, Index) else None
        self._path = index.path if isinstance(index, Index) else Path(index)
        if self._index is None and (self._path / "catalog.db").exists():
            self._index = Index.open(self._path)
        if self._index is not None and not self._index.recipe.encode.model.startswith(PREFIX):
            raise ValueError(f"{self._index!r} embeds texts itself: use RagkitRetriever, or a folder of its own for this store")

    @classmethod
    def class_name(cls) -> str:
        return "RagkitVectorStore"

    @property
    def client(self) -> Index | None:
        """The index, or None before the first nodes."""
        return self._index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes, or replace those of the same ids; return the ids. RagkitError names the ones that failed."""
        if not nodes:
            return []
        if self._index is None:
            self._index = Index.open(self._path, model=f"vectors:{len(nodes[0].get_embedding())}")
        records = [
            {
                "id": node.node_id,
                "text": node.get_content(metadata_mode=MetadataMode.NONE),
                "meta": node_to_metadata_dict(node, remove_text=True),
                "vector": node.get_embedding(),
            }
            for node in nodes
        ]
        common.check_added(self._index.add(records))
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **kwargs: Any) -> None:
        """Delete the nodes of a source document."""
        if self._index is not None:
            self._index.delete(filters={"field": "meta.ref_doc_id", "operator": "==", "value": ref_doc_id})

    def delete_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **kwargs: Any) -> None:
        """Delete the nodes of those ids that match a filter; ids or filter may be left out."""
        if self._index is not None:
            self._index.delete(filters=_narrowed(filters, node_ids=node_ids) or {})

    def clear(self) -> None:
        """Delete all nodes."""
        if self._index is not None:
            self._index.delete(filters={})

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes of those ids that match a filter, in the order of their addition, with embeddings of unit length."""
        if self._index is None:
            return []
        nodes = []
        for stored in self._index.stored(_narrowed(filters, node_ids=node_ids)):
            node = metadata_dict_to_node(dict(stored.row.meta), text=stored.text)
            node.embedding = None if stored.vectors is None else stored.vectors[0].tolist()
            nodes.append(node)
        return nodes

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes that answer a query, best first, with scores and ids. ValueError for the modes that fit a learner."""
        if self._index is None:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        hits = self._index.search(query.query_str or "", **_settings(query, kwargs))
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in hits], similarities=[hit.score for hit in hits], ids=[hit.document_id for hit in hits]
        )

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **kwargs: Any) -> None:
        await asyncio.to_thread(self.delete, ref_doc_id, **kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **kwargs)

    async def aclear(self) -> None:
        await asyncio.to_thread(self.clear)

    async def aget_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await asyncio.to_thread(self.query, query, **kwargs)


def _node(hit: Hit) -> BaseNode:
    node = metadata_dict_to_node(dict(hit.meta), text=hit.text)
    node.metadata[common.CITATION] = common.evidence(hit)
    for keys in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
        if common.CITATION not in keys:
            keys.append(common.CITATION)
    return node


def _settings(query: VectorStoreQuery, options: common.Keywords) -> Json:
    """Return the keywords of `Index.search` for a query. ValueError for the modes that fit a learner."""
    modes, mode, k = VectorStoreQueryMode, query.mode, query.similarity_top_k
    # VectorStoreIndex passes an empty list where it means any node.
    filters = _narrowed(query.filters, node_ids=query.node_ids or None, doc_ids=query.doc_ids or None)
    settings: Json = {"k": k, "filters": filters, "vector": query.query_embedding}
    if mode == modes.DEFAULT:
        return {**settings, "mode": "dense"}
    if mode in (modes.SPARSE, modes.TEXT_SEARCH):
        return {**settings, "k": query.sparse_top_k or k, "mode": "lexical"}
    if mode in (modes.HYBRID, modes.SEMANTIC_HYBRID):
        weights = None if query.alpha is None else {Space.DENSE: query.alpha, Space.LEXICAL: 1 - query.alpha}
        return {**settings, "k": query.hybrid_top_k or k, "mode": "hybrid", "weights": weights}
    if mode == modes.MMR:
        return {**settings, "mode": "dense", **_diversity(query, options)}
    raise ValueError(f"RagkitVectorStore has no query mode {mode.value!r}: it fits no learners")


def _diversity(query: VectorStoreQuery, options: common.Keywords) -> Json:
    """Return the keywords of `Index.search` that maximal marginal relevance adds."""
    threshold = options.get("mmr_threshold", 0.5) if query.mmr_threshold is None else query.mmr_threshold
    factor = options.get("mmr_prefetch_factor", PREFETCH)
    candidates = options.get("mmr_prefetch_k") or int(query.similarity_top_k * factor)
    return {"diversity": 1 - (0.5 if threshold is None else threshold), "candidates": candidates}


def _narrowed(
    filters: MetadataFilters | None, *, node_ids: list[str] | None = None, doc_ids: list[str] | None = None
) -> Json | None:
    """Return ragkit's filter for MetadataFilters among those nodes of those documents; None if nothing is asked for."""
    conditions = [] if filters is None or not filters.filters else [to_filters(filters)]
    for field, names in (("id", node_ids), ("meta.ref_doc_id", doc_ids)):
        if names is not None:
            conditions.append(common.among(field, names))
    return {"operator": "AND", "conditions": conditions} if conditions else None


def to_filters(filters: MetadataFilters) -> Json:
    """Return MetadataFilters, which may be nested, as a filter of ragkit's that compares by LlamaIndex's own function.

    A stored value that this function refuses to compare with the filter's does not match.
    """
    conditions = [
        to_filters(condition)
        if isinstance(condition, MetadataFilters)
        else {"field": f"meta.{condition.key}", "operator": _comparison(condition), "value": condition.value}
        for condition in filters.filters
    ]
    if filters.condition == FilterCondition.NOT:  # none of them matches
        return {"operator": "NOT", "conditions": [{"operator": "OR", "conditions": conditions}]}
    return {"operator": "OR" if filters.condition == FilterCondition.OR else "AND", "conditions": conditions}


def _comparison(condition: MetadataFilter) -> Callable[[object, object], bool]:
    alone = MetadataFilters(filters=[condition])

    def matches(value: object, target: object) -> bool:
        try:
            return bool(build_metadata_filter_fn(lambda _: {condition.key: value}, alone)(""))
        except TypeError:
            return False

    return matches

"""Index: a folder that holds documents, their vectors and their words, and answers questions with citations.

    index = Index.open("library")            # created on first use; remembers its model and recipe
    report = index.add("papers/")            # only what is new or changed
    hits = index.search("what is late chunking?", k=5, filters={"lang": "en"})

Any number of threads and processes search; one at a time writes. A search sees one commit, whole. The encoder is loaded
when it is first needed, and refused when it is not the one that built the index.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import numpy as np

from ragkit.care.stats import Stats
from ragkit.core.arrays import mean_vector
from ragkit.core.errors import NotAnIndex, RecipeMismatch
from ragkit.core.space import MAXSIM_SPACES, MODES, PAGE_SPACES, Space
from ragkit.core.types import AddReport, Citation, Document, Hit, Hits, Ints, Page, Reason, Span
from ragkit.encode.cache import EmbeddingCache
from ragkit.encode.contract import Encoder, Encoding
from ragkit.encode.external import PREFIX, unit_vectors
from ragkit.index.retriever import Retriever
from ragkit.ingest.add import Ingest
from ragkit.ingest.collect import paths_of
from ragkit.ingest.item import AddOptions, Callback, MetadataOf, Target
from ragkit.ingest.prune import pruned_roots
from ragkit.load import IGNORE_FILES, Limits
from ragkit.recipe.create import LOCK_TIMEOUT, create_index, layouts_of, open_catalog, read_recipe
from ragkit.recipe.models import Machine, Models
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.settings import Settings, SettingsKeywords
from ragkit.search.cite import citation, cite, shared
from ragkit.search.filters import FieldColumns, Filters
from ragkit.search.fuse import RRF, Candidate
from ragkit.search.hits import read_hits
from ragkit.search.lookup import LISTED, STREAMED, StoredDocument
from ragkit.search.passage_filters import passage_test
from ragkit.search.queries import Asked, Queries, Query, answerable, asked, encode_queries, is_one
from ragkit.search.request import CANDIDATES, NO_MULTI, Refinement, SearchOptions
from ragkit.search.rerank import refine
from ragkit.search.retrieve import rank, search
from ragkit.search.similar import Duplicate
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.documents import versions
from ragkit.store.local.reader import Reader
from ragkit.store.local.rewrite import compact
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import CHUNK, PAGE, DocumentRow, Failure, UnitRow

if TYPE_CHECKING:
    from ragkit.care.backup import BackupReport
    from ragkit.care.exchange import ExportReport, Written
    from ragkit.care.export_folder import Form
    from ragkit.care.migrate import RebuildReport
    from ragkit.care.repair import RepairReport
    from ragkit.care.status import Status
    from ragkit.care.verify import Finding
    from ragkit.search.explanation import Explanation


class Index:
    """An index on disk. Open one with `Index.open`; it may be shared by threads, and closed with `close()` or `with`."""

    def __init__(
        self, path: Path, catalog: Catalog, recipe: Recipe, *, models: Models, chunker: Callable[..., Any] | None = None
    ) -> None:
        device = models.machine.device
        self.path = path
        self.recipe = recipe
        self._catalog = catalog
        self._store = Store(path, catalog, recall=recipe.store.recall, layouts=layouts_of(recipe))
        self._store.device = device if device is not None and device.startswith("cuda") else None
        self._models = models
        self._chunker = chunker
        self._followed: Mapping[str, Any] | None = None  # the stored recipe that `recipe` was read from
        self._following = threading.Lock()
        self._columns = FieldColumns(lambda after: versions(catalog, after=after))

    # Opening

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        api_keys: Mapping[str, str] | None = None,
        cache: EmbeddingCache | str | Path | None = None,
        create: bool = True,
        **settings: Unpack[SettingsKeywords],
    ) -> Index:
        """Open the index in the folder `path`, or create it there.

        The settings make the index's recipe when it is created; see docs/settings.md. A newcomer needs five:

        - model: the encoder; by default all-MiniLM-L6-v2, which is installed with ragkit
        - chunker: "sentences" (default), "structure", "page", "whole", or a function from Document to spans
        - chunk_tokens: tokens of a chunk, at most; 128 by default
        - multi: True keeps a vector for each token, too, for late interaction
        - pages: "auto" embeds page images, too, with page_model, an encoder of images

        None means the default in a new index and the stored value in an old one. A value that disagrees with the stored recipe
        raises RecipeMismatch, which names the command that changes the index.

        `device` ("cpu", "cuda"), `api_keys` of hosted models (see `ragkit.encode.remote`) and `cache`, a file of embeddings made
        before (see `ragkit.encode.cache`), are this process's choice and not part of the recipe. Raises NotAnIndex for a folder
        that holds something else, or no index when `create` is False.
        """
        path = Path(path).absolute()
        chosen, machine = Settings.of(settings), Machine(device=device, api_keys=api_keys, cache=cache)
        texts, pages, chunker = (settings.get(name) for name in ("model", "page_model", "chunker"))
        encoder = None if isinstance(texts, str) else cast(Encoder | None, texts)
        page_encoder = None if isinstance(pages, str) else cast(Encoder | None, pages)
        catalog = open_catalog(path)
        if catalog is None:
            if not create:
                raise NotAnIndex(f"there is no index at {path}. Make one: ragkit add {path} FILES")
            catalog = create_index(path, chosen, machine, encoder=encoder, page_encoder=page_encoder)
        try:
            recipe = read_recipe(path, catalog, chosen)
        except BaseException:
            catalog.close()
            raise
        models = Models(path, catalog, machine, texts=encoder, pages=page_encoder)
        return cls(path, catalog, recipe, models=models, chunker=chunker if callable(chunker) else None)

    def close(self) -> None:
        """Let go of files and connections. Hits already returned stay valid."""
        self._store.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}, model={self.recipe.encode.model!r})"

    @property
    def encoder(self) -> Encoder:
        """The encoder of texts; loaded and checked on first use. Raises FingerprintMismatch if it did not build the index."""
        return self._models.of_texts(self.recipe)

    @property
    def page_encoder(self) -> Encoder | None:
        """The encoder of page images, loaded and checked on first use; None for an index without page images."""
        return self._models.of_pages(self.recipe)

    # Adding and deleting

    def add(
        self,
        target: Target,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        ignore_files: Sequence[str] = IGNORE_FILES,
        metadata: MetadataOf | None = None,
        limits: Limits | None = None,
        password: str | None = None,
        workers: int = 1,
        prune: bool = False,
        progress: Callback | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> AddReport:
        """Bring documents into the index: a file, a folder, a glob, a list of those, or an iterable of Documents and dicts,
        which is streamed.

        What the index already holds, by content hash, is left alone; what changed replaces its former version in one
        commit. A document that fails leaves its former version in place and is reported. Stopped halfway, the same call
        does the rest. `include` and `exclude` are glob patterns for folders; `ignore_files` are names of files with rules in
        the syntax of .gitignore. `metadata` is called with each file's path and returns fields for its documents, over those
        of the file and of its sidecar ("a.pdf.meta.json"); a change of what is said is an update, without embedding again.
        `limits` bound each document's parsing; `workers` parse in parallel. `prune` then deletes the documents whose files
        are gone, beneath the folders and files named in this call and nowhere else; it refuses where a folder came up empty.
        Raises FileNotFoundError, IndexLocked, FingerprintMismatch; never for one document.
        """
        options = AddOptions(
            include=include,
            exclude=exclude,
            ignore_files=ignore_files,
            metadata=metadata,
            limits=limits or Limits(),
            password=password,
            workers=workers,
            prune=prune,
            progress=progress,
        )
        if prune:
            pruned_roots(paths_of(target))
        paths_of(target)  # a path that does not exist is told before the model is loaded
        self.encoder, self.page_encoder  # noqa: B018 - loaded and checked before the writer's lock is taken
        with self._store.writer(timeout=lock_timeout) as writer:
            return self._ingest(writer, options).run(target)

    def retry(
        self,
        *,
        metadata: MetadataOf | None = None,
        limits: Limits | None = None,
        password: str | None = None,
        workers: int = 1,
        progress: Callback | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> AddReport:
        """Try the files again that failed when they were last added: see `failures()`. The keywords are those of `add`."""
        options = AddOptions(metadata=metadata, limits=limits or Limits(), password=password, workers=workers, progress=progress)
        if not self.failures():
            return AddReport()
        self.encoder, self.page_encoder  # noqa: B018 - loaded and checked before the writer's lock is taken
        with self._store.writer(timeout=lock_timeout) as writer:
            return self._ingest(writer, options).run_failed()

    def _ingest(self, writer: Writer, options: AddOptions) -> Ingest:
        if not writer.mending:
            self._view()  # nobody else changes the recipe while we hold the lock
        return Ingest(
            self._store,
            writer,
            recipe=self.recipe,
            encoder=self.encoder,
            page_encoder=self.page_encoder,
            chunker=self._chunker_or_name(),
            options=options,
        )

    def _chunker_or_name(self) -> str | Callable[..., Any]:
        name = self.recipe.chunk.chunker
        if not name.startswith("callable:"):
            return name
        if self._chunker is None:
            raise RecipeMismatch(
                f"{self.path} was built with the chunker {name.removeprefix('callable:')}; to add documents, pass it again: "
                f"Index.open({str(self.path)!r}, chunker=...)"
            )
        return self._chunker

    def delete(
        self,
        reference: str | Path | Sequence[str | Path] = (),
        *,
        filters: Filters | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> int:
        """Delete documents by source, id or path, or all that were read from one file, and all that match a filter, in one
        commit; returns how many there were.

        ValueError where a name means several documents of several folders.
        """
        references = [str(reference)] if isinstance(reference, (str, Path)) else [str(one) for one in reference]
        with self._store.writer(timeout=lock_timeout) as writer:
            reader = writer.reader()
            ids = {row.id for name in references for row in self._named(name, reader) or reader.find([name], by="file")}
            ids |= set() if filters is None else {row.id for row in self._documents(reader, filters)}
            failures = self._store.reader().failures()
            writer.forgive(failure.identity for failure in failures if {failure.identity, failure.source} & set(references))
            writer.delete(ids)
            del reader  # it would hold back what the commit retires
            writer.commit("delete", recipe_hash=self.recipe.hash)
            if ids:
                self._store.remove_copies()
        return len(ids)

    def compact(self, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        """Rewrite all segments as one, without deleted rows. Searching goes on meanwhile; answers do not change."""
        with self._store.writer(timeout=lock_timeout) as writer:
            compact(writer, recipe_hash=self.recipe.hash)
            self._store.remove_copies()

    def rebuild(
        self,
        *,
        password: str | None = None,
        progress: Callback | None = None,
        lock_timeout: float = LOCK_TIMEOUT,
        **changes: Unpack[SettingsKeywords],
    ) -> RebuildReport:
        """Change the recipe of the index, by the settings of `open`, redoing only what the change reaches.

        Fewer `dims` cut the stored vectors. Another `chunker` or `model` embeds again, from the stored texts, beside the index,
        and takes its place in one commit. Changes of page images keep the vectors of texts and embed the pages again;
        `password` opens encrypted files. Searches go on meanwhile. `model` alone, with the name it has, embeds again if the
        model itself was changed. Raises ValueError for settings that do not fit, and StorageError if a document cannot be
        made by the new recipe: then nothing is changed.
        """
        from ragkit.care.migrate import migrate, plan_migration, reparse_mimes

        chunker = changes.get("chunker")
        with self._store.writer(timeout=lock_timeout) as writer:
            self._view()
            plan = plan_migration(self.recipe, self._models, self._catalog, changes)
            same_chunks = plan.old.chunk == plan.new.chunk and not callable(chunker)
            report = migrate(
                self._store,
                writer,
                plan,
                chunker=chunker if callable(chunker) else self._chunker_or_name() if same_chunks else plan.new.chunk.chunker,
                options=AddOptions(progress=progress, password=password),
                lock_timeout=lock_timeout,
            )
        if report.done == "nothing":
            return report
        self._chunker = chunker if callable(chunker) else self._chunker
        self._view()
        self._models.replace(plan.encoder, plan.page_encoder)
        return replace(report, to_parse=sum(row.mime in reparse_mimes(plan.old, plan.new) for row in self.documents()))

    def _named(self, reference: str, reader: Reader) -> list[DocumentRow]:
        rows = reader.find([reference], by="reference")
        exact = [row for row in rows if row.identity in (reference, f"id:{reference}")]
        if len(exact) == 1:
            return exact
        if len(rows) > 1:
            raise ValueError(f"{reference!r} names several documents; give one of: {', '.join(row.identity for row in rows)}")
        return rows

    # Searching

    @overload
    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        mode: str = "hybrid",
        filters: Filters | None = None,
        dims: int | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        weights: Mapping[str, float] | None = None,
        rrf: float | None = None,
        exact: bool = False,
        degraded: bool = False,
        phrasings: Sequence[str] = (),
        rerank: Any = None,
        diversity: float = 0.0,
        candidates: int = CANDIDATES,
        vector: Any = None,
    ) -> Hits: ...
    @overload
    def search(
        self,
        query: list[Any] | tuple[str, ...],
        k: int = 10,
        *,
        mode: str = "hybrid",
        filters: Filters | None = None,
        dims: int | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        weights: Mapping[str, float] | None = None,
        rrf: float | None = None,
        exact: bool = False,
        degraded: bool = False,
        phrasings: Sequence[str] = (),
        rerank: Any = None,
        diversity: float = 0.0,
        candidates: int = CANDIDATES,
        vector: Any = None,
    ) -> list[Hits]: ...
    def search(
        self,
        query: Query | list[Any] | tuple[str, ...],
        k: int = 10,
        *,
        mode: str = "hybrid",
        filters: Filters | None = None,
        dims: int | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        weights: Mapping[str, float] | None = None,
        rrf: float | None = None,
        exact: bool = False,
        degraded: bool = False,
        phrasings: Sequence[str] = (),
        rerank: Any = None,
        diversity: float = 0.0,
        candidates: int = CANDIDATES,
        vector: Any = None,
    ) -> Hits | list[Hits]:
        """The k best hits for a query, best first; for a list of queries, a list of lists.

        A query is a text, a picture (PIL) or a pair of them (text, picture); pictures are for indexes whose model sees.
        mode: "hybrid" (every space there is), "text", "pages", "dense", "lexical", "multi", or a space. filters: see
        `search.filters`; exact in every space. dims: compare only the first dims of the dense vectors, renormalised; where the
        vectors of chunks or of pages have no more than that, all of theirs.
        min_score: on the scale of the hits' scores. group_by="document": the best hit of each document. weights: per space, for
        fusing. rrf: fuse by reciprocal ranks with this constant instead of by z-scores. exact: scan every vector instead
        of the compressed index and of the coarse ones. vector: the query's own, (d,), or (q, d) for a list, instead of
        embedding it; it must come from the index's model. degraded: answer from what is intact of a damaged index, with what is
        missing in `hits.missing`, instead of raising Damaged.

        Three ways to refine what was found, `candidates` hits deep: phrasings, the same question in other words, all answers
        fused; rerank, "maxsim" (what the other spaces of texts found, by exact MaxSim), a CrossEncoder (see
        `ragkit.encode.models.cross_encoder`) or a function of (query, texts) that returns scores;
        diversity, from 0 to 1: how much a hit counts that is unlike those before it (maximal marginal relevance).
        Raises ValueError for what makes no sense, Damaged, FingerprintMismatch.
        """
        _check_k(k)
        one = is_one(query)
        several: Any = query
        queries: list[Query] = [several] if one else list(several)
        refinement = Refinement(phrasings=phrasings, rerank=rerank, diversity=diversity, candidates=candidates)
        if refinement.phrasings and not isinstance(query, str):
            raise ValueError("phrasings are of one query, a text; with a list of queries, search once for each")
        options = self._options(mode, dims, min_score, group_by, weights, rrf, exact, degraded)
        if refinement.by_maxsim:
            options = _without_multi(options)
        questions = asked([*queries, *refinement.phrasings])
        if questions is None:
            alone: Any = partial(
                self.search, k=k, mode=mode, filters=filters, dims=dims, min_score=min_score, group_by=group_by,
                weights=weights, rrf=rrf, exact=exact, degraded=degraded, rerank=rerank, diversity=diversity,
                candidates=candidates,
            )  # fmt: skip
            rows = [None] * len(queries) if vector is None else list(vector)
            if len(rows) != len(queries):
                raise ValueError(f"{len(queries)} queries need as many vectors, got {len(rows)}")
            return [alone(query, vector=row) for query, row in zip(queries, rows, strict=True)]
        given = [vector] if vector is not None and one else vector
        if refinement.rerank is not None and not questions.spoken:
            raise ValueError("rerank orders hits by the words of a question, and a picture has none: leave rerank out")
        reader, vectors, options = self._asked(questions, options, given=given, multi=refinement.by_maxsim)
        allowed = None if filters is None else self._columns.allowed(filters, passages=True)
        found = search(
            reader,
            wanted=passage_test(filters, reader),
            queries=vectors,
            explain=self._explainer(questions, vectors),
            k=max(k, candidates) if refinement.active else k,
            allowed=allowed,
            options=replace(options, min_score=None) if refinement.rescores else options,
        )
        if refinement.active:
            refined = partial(
                refine,
                k=k,
                refinement=refinement,
                constant=RRF if rrf is None else rrf,
                group_by=group_by,
                min_score=min_score,
                rows=partial(reader.known_rows, kind=PAGE if set(options.spaces) <= set(PAGE_SPACES) else CHUNK),
            )
            answers: list[list[Hits]] = [found] if refinement.phrasings else [[hits] for hits in found]
            scorers = [partial(_maxsim, reader, vectors.chunks, at) for at in range(len(queries))]
            texts = questions.texts[: len(queries)]
            found = [refined(text, hits, maxsim=by) for text, hits, by in zip(texts, answers, scorers, strict=True)]
        return found[0] if one else found

    def _explainer(self, questions: Asked, vectors: Queries) -> Callable[[int, Hit, str | None], Explanation]:
        """Why query number n found a hit, for hits that keep it; of the newest commit, so that no hit holds back purging."""

        def why(number: int, hit: Hit, space: str | None) -> Explanation:
            found = {reason.space: reason for reason in hit.via}
            chosen = next((one for one in MAXSIM_SPACES if one in found and space in (None, one)), None)
            if chosen is None:
                raise ValueError(
                    f"unit {hit.key} was not found by MaxSim{f' in {space}' if space else ''}, but by {', '.join(found)}"
                )
            return self._explained(self._store.reader(), questions, vectors, number, found[chosen].key or hit.key)

        return why

    def _options(
        self,
        mode: str,
        dims: int | None,
        min_score: float | None,
        group_by: str | None,
        weights: Mapping[str, float] | None,
        rrf: float | None,
        exact: bool,
        degraded: bool = False,
    ) -> SearchOptions:
        return SearchOptions(
            mode=mode,
            available=self._available(mode, degraded=degraded),
            dims=self._checked_dims(dims),
            min_score=min_score,
            group_by=group_by,
            weights=weights or {},
            exact=exact,
            degraded=degraded,
            rrf=rrf,
        )

    def stream(
        self,
        query: Query,
        k: int = 1000,
        *,
        mode: str = "hybrid",
        filters: Filters | None = None,
        dims: int | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        weights: Mapping[str, float] | None = None,
        rrf: float | None = None,
        exact: bool = False,
    ) -> Iterator[Hit]:
        """The hits of `search(query, k, ...)` one by one, read from the catalog as they are taken: for a caller who stops when
        it has enough. All are of the commit at the time of the call, which is searched at once."""
        _check_k(k)
        options = self._options(mode, dims, min_score, group_by, weights, rrf, exact)
        questions = _one_asked(query)
        reader, vectors, options = self._asked(questions, options)
        allowed = None if filters is None else self._columns.allowed(filters, passages=True)
        wanted = passage_test(filters, reader)
        [(ranked, _)] = rank(reader, queries=vectors, k=k, allowed=allowed, options=options, wanted=wanted)
        multi = vectors.pages.multi
        reading = partial(
            read_hits,
            reader=reader,
            scale=options.scale,
            explain=partial(self._explainer(questions, vectors), 0),
            locate=None if multi is None else partial(reader.explain_multi, multi[0]),
        )
        return self._stream(reader, ranked, reading)

    def _stream(self, reader: Reader, ranked: Sequence[Candidate], reading: Callable[..., list[Hit]]) -> Iterator[Hit]:
        for start in range(0, len(ranked), STREAMED):
            yield from reading(ranked[start : start + STREAMED], first=start + 1)
        del reader  # held until here, so that nothing it sees was purged before it was read

    # Without blocking an event loop: each call runs in a thread

    async def asearch(self, query: Any, k: int = 10, **options: Any) -> Any:
        """`search` in a thread."""
        search: Any = self.search  # overloads
        return await asyncio.to_thread(search, query, k, **options)

    async def astream(self, query: str, k: int = 1000, **options: Any) -> AsyncIterator[Hit]:
        """`stream`, each step in a thread."""
        hits = await asyncio.to_thread(self.stream, query, k, **options)
        while (hit := await asyncio.to_thread(next, hits, None)) is not None:
            yield hit

    async def asimilar(self, reference: str | int, k: int = 10, **options: Any) -> list[Hit]:
        """`similar` in a thread."""
        return await asyncio.to_thread(self.similar, reference, k, **options)

    async def aadd(self, target: Target, **options: Any) -> AddReport:
        """`add` in a thread. Cancelling the task does not stop the thread; what it commits stays."""
        return await asyncio.to_thread(self.add, target, **options)

    async def adelete(self, reference: str | Path | Sequence[str | Path] = (), **options: Any) -> int:
        """`delete` in a thread."""
        return await asyncio.to_thread(self.delete, reference, **options)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces this index can be searched in: "chunk.dense", "chunk.lexical", "chunk.multi", "page.dense", "page.multi"."""
        multi, pages = self.recipe.multi, self.recipe.pages
        texts = (*(() if multi and multi.alone else (Space.DENSE,)), Space.LEXICAL, *((Space.MULTI,) if multi else ()))
        if pages is None:
            return texts
        return (*texts, *((Space.PAGE_DENSE,) if pages.dense else ()), *((Space.PAGE_MULTI,) if pages.precision else ()))

    def _available(self, mode: str, *, degraded: bool = False) -> tuple[Space, ...]:
        """The spaces, looked up again where none is of the mode: another process may have changed the recipe."""
        if not set(MODES.get(mode, ())) & set(self.spaces):
            self._view(degraded=degraded)
        return self.spaces

    def _query_vectors(self, queries: Sequence[Query], given: Any, *, multi: bool) -> Encoding:
        """The queries embedded, once for all spaces; or the dense rows (q, d) given, and the rest embedded where `multi`."""
        if given is None:
            return self._encode_queries(queries)
        rows = unit_vectors(given, self.encoder.card.dims, keep=self.recipe.encode.dims)
        if len(rows) != len(queries):
            raise ValueError(f"{len(queries)} queries and phrasings need as many vectors, got {len(rows)}")
        return replace(self._encode_queries(queries), dense=rows) if multi else Encoding(dense=rows)

    def _asked(
        self, queries: Asked, options: SearchOptions, *, given: Any = None, multi: bool = False
    ) -> tuple[Reader, Queries, SearchOptions]:
        """One commit, the queries' vectors by the very models that its vectors are of, should those change meanwhile, and the
        options without the spaces that cannot answer such queries."""
        if queries.images is not None:
            options = answerable(options, queries, texts=self.encoder, pages=self.page_encoder)
        multi = multi or Space.MULTI in options.spaces
        while True:
            reader = self._view(degraded=options.degraded)
            recipe = self.recipe
            if not set(options.available) <= set(self.spaces):  # the recipe may have changed since
                options = replace(options, available=tuple(space for space in options.available if space in self.spaces))
            chunks = pages = Encoding()
            items = list(queries.texts) if queries.spoken else queries.items
            if items and (multi or Space.DENSE in options.spaces):
                chunks = self._query_vectors(items, given, multi=multi)
            if items and set(PAGE_SPACES) & set(options.spaces):
                pages = self._encode_page_queries(queries, known=chunks if given is None and items == queries.items else None)
            if self.recipe is recipe:
                vectors = Queries(queries.texts, chunks, pages)
                return reader, vectors, _as_embedded(options, vectors)

    def _encode_page_queries(self, queries: Asked, *, known: Encoding | None) -> Encoding:
        """The queries as the encoder of pages has them; `known` where the texts' encoder, if it is the same, had them already."""
        encoder, stage, texts = self.page_encoder, self.recipe.pages, self.recipe.encode
        assert encoder is not None
        assert stage is not None
        had = known is not None and (known.dense is not None or known.multi is not None)
        if known is not None and had and encoder is self.encoder and (stage.task, stage.dims) == (texts.task, texts.dims):
            return known
        return encode_queries(encoder, queries.items, task=stage.task, dims=stage.dims)

    def _view(self, *, degraded: bool = False) -> Reader:
        """The newest commit; where it changed the recipe, the index goes by the new one from here on."""
        reader = self._store.reader(degraded=degraded)
        with self._following:
            if reader.recipe != self._followed:
                recipe = Recipe.model_validate(reader.recipe)
                if recipe != self.recipe:
                    self.recipe = recipe
                    self._store.recall, self._store.layouts = recipe.store.recall, layouts_of(recipe)
                    self._models.forget()
                self._followed = reader.recipe
        return reader

    def _encode_queries(self, queries: Sequence[Query]) -> Encoding:
        stage = self.recipe.encode
        encoding = encode_queries(self.encoder, queries, task=stage.task, dims=stage.dims)
        if encoding.truncated:
            limit = self.recipe.encode.max_tokens
            warnings.warn(
                f"{encoding.truncated} of {len(queries)} queries have over {limit} tokens: the rest was not embedded",
                stacklevel=3,
            )
        return encoding

    def _checked_dims(self, dims: int | None) -> int | None:
        if dims is None:
            return None
        stage, pages = self.recipe.pages, self.page_encoder
        width = self.recipe.encode.dims or self.encoder.card.dims
        if stage is not None and pages is not None and stage.dense:
            width = max(width, stage.dims or pages.card.dims)
        if not 1 <= dims <= width:
            raise ValueError(f"dims must be between 1 and {width}, the width of this index's vectors, got {dims}")
        return dims

    def search_within(self, row: DocumentRow, query: Query, k: int = 10, *, mode: str = "hybrid") -> list[Hit]:
        """The k best hits in one document, by the row that `documents()` or `find()` gave: names may be shared, rows are not."""
        _check_k(k)
        questions = _one_asked(query)
        reader, vectors, options = self._asked(questions, SearchOptions(mode=mode, available=self._available(mode)))
        allowed, why = np.array([row.id], dtype=np.int64), self._explainer(questions, vectors)
        return search(reader, queries=vectors, k=k, allowed=allowed, options=options, explain=why)[0]

    def similar(self, reference: str | int, k: int = 10, *, filters: Filters | None = None, dims: int | None = None) -> list[Hit]:
        """The documents most like one in the index, each by its best unit; the document itself is left out.

        `reference` is a source or id, compared by the mean direction of its units, or the key of one unit.
        """
        _check_k(k)
        reader = self._store.reader()
        units = self._units_named(reference, reader)
        if not units:
            return []
        kind = CHUNK if any(unit.kind == CHUNK for unit in units) else PAGE
        units = [unit for unit in units if unit.kind == kind]
        space, known = Space.of(kind, "dense"), reader.known_rows([unit.key for unit in units])
        if not known and (kind == PAGE or space in self.spaces):
            raise ValueError(f"{reference!r} has no vector to compare, in {space}")
        options = SearchOptions(mode=space, available=self.spaces, dims=self._checked_dims(dims), group_by="document")
        vector = mean_vector(np.stack([known[key] for key in sorted(known)]))
        mine = units[0].document
        return search(
            reader,
            queries=Queries([""], *([Encoding(), Encoding(dense=vector)] if kind == PAGE else [Encoding(dense=vector)])),
            k=k,
            allowed=None if filters is None else self._columns.allowed(filters),
            options=options,
            wanted=lambda unit: unit.document != mine,
        )[0]

    def _units_named(self, reference: str | int, reader: Reader) -> list[UnitRow]:
        """The units of a document by source or id, or the one of a key; ValueError where the reader sees none."""
        if isinstance(reference, int):
            unit, _ = self._unit(reference, reader)
            return [unit]
        rows = self._named(reference, reader)
        if not rows:
            raise ValueError(f"{self.path} has no document {reference!r}. See: ragkit list {self.path}")
        return reader.units_of(rows[0].id)

    def near_duplicates(self, threshold: float = 0.95) -> Iterator[Duplicate]:
        """Every pair of units with a cosine of at least `threshold`, exact, by the keys of the pair."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        return self._near_duplicates(threshold)

    def _near_duplicates(self, threshold: float) -> Iterator[Duplicate]:
        reader = self._store.reader()
        for first, second, score in reader.near_duplicates(threshold):
            pair = [Candidate(key, score, (Reason(Space.DENSE, 1, score),)) for key in (first, second)]
            yield Duplicate(score, *read_hits(pair, reader, scale="cosine"))

    def as_retriever(self, k: int = 10, **options: Any) -> Retriever:
        """The index with its search settings fixed, for an application to call: mode, filters, rerank, ... as in `search`."""
        _check_k(k)
        given = {name: value for name, value in options.items() if value is not None}
        refining = {one.name for one in fields(Refinement)}
        Refinement(**{name: value for name, value in given.items() if name in refining})
        searching = {name: value for name, value in given.items() if name not in refining and name not in ("filters", "vector")}
        SearchOptions(available=self.spaces, **searching)
        return Retriever(self, k, given)

    def explain(self, query: Query, key: int) -> Explanation:
        """Why MaxSim scores a unit as it does, by the key of a hit: per token of the query, the token of the unit, or the patch
        of the page, that it matched best and its share. The shares sum to the score exactly. ValueError for an index without
        such multi-vectors, or a unit that is gone."""
        questions, (unit, _) = _one_asked(query), self._unit(key, self._store.reader())
        mode = Space.of(unit.kind, "multi")
        available = self._available(mode)
        if unit.kind == PAGE and Space.PAGE_MULTI not in available:
            raise ValueError(
                "the model that saw the pages of this index keeps no multi-vectors of them, so nothing can be explained"
            )
        reader, vectors, _ = self._asked(questions, SearchOptions(mode=mode, available=available))
        return self._explained(reader, questions, vectors, 0, key)

    def _explained(self, reader: Reader, questions: Asked, vectors: Queries, number: int, key: int) -> Explanation:
        from ragkit.search.explain import Patchless, explain, explain_page, query_spans

        unit, row = self._unit(key, reader)
        text, cited = questions.texts[number], citation(reader, row, unit)
        multi = (vectors.chunks if unit.kind == CHUNK else vectors.pages).multi
        assert multi is not None
        if unit.page is None:
            return explain(
                reader,
                self.encoder,
                self.recipe,
                query=text,
                vectors=multi[number],
                key=key,
                cited=cited,
                row=row,
            )
        encoder, [box] = self.page_encoder, cited.boxes
        assert encoder is not None
        winners, shares = reader.explain_multi(multi[number], key)
        return explain_page(
            winners,
            shares,
            query=text,
            query_spans=query_spans(encoder, text, count=len(multi[number])) if questions.images is None else [],
            patches=unit.patches or Patchless,
            key=key,
            cited=cited,
            page_size=(box.page_width, box.page_height),
        )

    # Looking inside

    def documents(self, filters: Filters | None = None) -> Iterator[DocumentRow]:
        """The documents, or those that match a filter, oldest version first, streamed, without their texts."""
        return self._documents(self._store.reader(), filters)

    def _documents(self, reader: Reader, filters: Filters | None) -> Iterator[DocumentRow]:
        if filters is None:
            return reader.documents()
        allowed = self._columns.allowed(filters)
        return self._visible(reader, allowed)

    def _visible(self, reader: Reader, ids: Ints) -> Iterator[DocumentRow]:
        """The document versions of the ids, ascending, that a reader sees."""
        seen = np.setdiff1d(ids, reader.deleted, assume_unique=True)
        for start in range(0, len(seen), LISTED):
            yield from reader.find(seen[start : start + LISTED].tolist(), by="id")

    def stored(self, filters: Filters | None = None) -> Iterator[StoredDocument]:
        """The documents, or those that match a filter, with their texts and vectors, all of one commit, streamed."""
        reader = self._store.reader()  # held, so that nothing it sees is purged before it is read
        rows = self._documents(reader, filters)
        while batch := list(islice(rows, STREAMED)):
            texts = reader.passages([(row.id, Span(0, row.characters)) for row in batch])
            vectors = reader.rows_of(np.array([row.id for row in batch], dtype=np.int64))
            for row, (text, _) in zip(batch, texts, strict=True):
                yield StoredDocument(row, text, vectors.get(row.id))

    def document(self, reference: str) -> Document:
        """A document whole, by source, id or path; ValueError where there is none."""
        reader = self._store.reader()
        rows = self._named(reference, reader)
        if not rows:
            raise ValueError(f"{self.path} has no document {reference!r}. See: ragkit list {self.path}")
        return reader.document(rows[0])

    def unit(self, key: int) -> tuple[DocumentRow, Citation]:
        """The document and citation of a unit by its key, as a hit carries it; ValueError where it is gone."""
        reader = self._store.reader()
        unit, row = self._unit(key, reader)
        return row, citation(reader, row, unit)

    def page_key(self, key: int) -> int | None:
        """The page that a unit is on, by their keys: itself, or the one that has most of a chunk. Of it `explain` says where a
        query matches. None where no multi-vectors were made of that page."""
        reader = self._store.reader()
        unit, row = self._unit(key, reader)
        if Space.PAGE_MULTI not in self.spaces:
            return None
        if unit.kind == PAGE:
            return key
        pages = reader.pages(row.id, unit.span)
        most = max(pages, key=lambda one: (shared(one.span, unit.span), -one.number), default=None)
        return next((one.key for one in reader.units_of(row.id) if most is not None and one.page == most.number), None)

    def _unit(self, key: int, reader: Reader) -> tuple[UnitRow, DocumentRow]:
        unit = reader.known_units([key]).get(key) if -(2**63) <= key < 2**63 else None
        rows = [] if unit is None else reader.find([unit.document], by="id")
        if unit is None or not rows:
            raise ValueError(f"{self.path} has no unit {key}; it may have been deleted or replaced since")
        return unit, rows[0]

    def pages(self, row: DocumentRow) -> list[Page]:
        """The pages of a document, with words and boxes."""
        return self._store.reader().pages(row.id)

    def text(self, row: DocumentRow, span: Span) -> str:
        """A span of a document's text; reads only the part it needs."""
        return self._store.reader().text(row.id, span)

    def cite(self, row: DocumentRow, span: Span) -> Citation:
        """The citation of any span of a document."""
        return cite(row.source, span, self._store.reader().pages(row.id, span))

    def find(self, reference: str) -> list[DocumentRow]:
        """The documents a source, id or path names: none, one, or several where roots share a name."""
        return self._store.reader().find([reference], by="reference")

    def verify(self, *, progress: Callback | None = None) -> list[Finding]:
        """Compare every checksum, and catalog, segments and lexical index with each other. Empty where the index is whole."""
        from ragkit.care.verify import verify

        return verify(self._store, progress=progress)

    def repair(self, *, embed: bool = True, progress: Callback | None = None, lock_timeout: float = LOCK_TIMEOUT) -> RepairReport:
        """Make a damaged index whole from what of it is intact; the report says what was done, and what to add again.

        Documents that lost vectors are embedded again from their stored texts, unless `embed` is False: then they go, and
        are named. Raises Damaged, with the way out, where it cannot be done.
        """
        from ragkit.care.repair import repair

        def again(writer: Writer, rows: Sequence[DocumentRow]) -> AddReport:
            return self._ingest(writer, AddOptions(progress=progress)).run_stored(writer.reader(), rows, replaces=True)

        given = self.recipe.encode.model.startswith(PREFIX)
        how = again if embed and not given else None
        return repair(self._store, embed=how, bare=given, lock_timeout=lock_timeout, progress=progress)

    def export(
        self, target: str | Path, *, documents: Written = "jsonl", vectors: Form = "npy", progress: Callback | None = None
    ) -> ExportReport:
        """Write documents ("jsonl" or "parquet"), units and all vectors ("npy" or "parquet") to the new folder `target`: see
        docs/exchange.md. Raises StorageError where something is there, MissingExtra where pyarrow is not."""
        from ragkit.care.exchange import export

        return export(self._store, Path(target), documents=documents, vectors=vectors, progress=progress)

    @classmethod
    def import_from(
        cls, path: str | Path, folder: str | Path, *, progress: Callback | None = None, lock_timeout: float = LOCK_TIMEOUT
    ) -> AddReport:
        """Bring what `export` wrote to `folder` into the index at `path`, which is made where there is none, with its chunks and
        vectors: no model is loaded. StorageError where the index was built otherwise, Damaged where the folder is not whole."""
        from ragkit.care.exchange import import_documents, prepare_index
        from ragkit.care.export_folder import opened

        with opened(Path(folder)) as parcel:
            prepare_index(Path(path).absolute(), parcel, timeout=lock_timeout)
            with cls.open(path) as index, index._store.writer(timeout=lock_timeout) as writer:
                return import_documents(index._store, writer, parcel, progress=progress)

    def backup(self, target: str | Path, *, progress: Callback | None = None) -> BackupReport:
        """Copy the index, as of its newest commit, to the new folder `target`, while others add and search.

        The copy is an index like any other, checked on the way. Raises StorageError, and Damaged where a checksum fails.
        """
        from ragkit.care.backup import backup

        return backup(self._store, Path(target), progress=progress)

    def failures(self) -> list[Failure]:
        """The documents that failed when they were last added, with their reasons."""
        return self._store.reader().failures()

    def status(self) -> Status:
        """What became of all that was added: documents by kind and language, failures by reason, files gone from the disk."""
        from ragkit.care.status import status

        return status(self.documents(), self.failures(), self.stats())

    def stats(self) -> Stats:
        """Counts, bytes on disk by part, the recipe, and per segment the structure and its measured recall."""
        reader = self._store.reader()
        stored = reader.stats()
        absent = {"multi" if not self.recipe.multi else "", "pages" if not self.recipe.pages else ""}
        parts = {name: size for name, size in stored.bytes_by_part.items() if name not in absent}
        return Stats(
            path=str(self.path),
            commit=reader.commit.number,
            documents=reader.commit.documents,
            units=reader.commit.units,
            segments=stored.segments,
            bytes=sum(parts.values()),
            bytes_by_part=parts,
            model=self.recipe.encode.model,
            recipe=self.recipe.model_dump(),
            dense=stored.dense,
            multi=stored.multi,
            page_dense=stored.page_dense,
            page_multi=stored.page_multi,
            failures=len(reader.failures()),
        )


def _as_embedded(options: SearchOptions, vectors: Queries) -> SearchOptions:
    """Without the multi-vectors of pages where the model made none of a question, as of a text and a picture added up."""
    if Space.PAGE_MULTI not in options.spaces or vectors.pages.multi is not None or not vectors.texts:
        return options
    if options.spaces == (Space.PAGE_MULTI,):
        raise ValueError("the model that saw the pages makes no multi-vectors of text and picture together: ask with one of them")
    return replace(options, available=tuple(space for space in options.available if space != Space.PAGE_MULTI))


def _one_asked(query: Query) -> Asked:
    questions = asked([query])
    assert questions is not None  # one query has one form
    return questions


def _without_multi(options: SearchOptions) -> SearchOptions:
    """For reranking by MaxSim: what the other spaces of texts find. Scores of page images are on no common scale with theirs."""
    if Space.MULTI not in options.available:
        raise ValueError(NO_MULTI)
    if options.mode in ("multi", Space.MULTI):
        raise ValueError(f"mode={options.mode!r} ranks by MaxSim already; leave rerank out")
    if set(options.spaces) <= set(PAGE_SPACES):
        raise ValueError(f"rerank='maxsim' scores texts, and mode={options.mode!r} finds page images: use mode='page.multi'")
    return replace(options, available=tuple(space for space in options.available if space not in (Space.MULTI, *PAGE_SPACES)))


def _maxsim(reader: Reader, vectors: Encoding, at: int, keys: list[int]) -> dict[int, float]:
    """The MaxSim scores of units for the query at a position."""
    assert vectors.multi is not None
    found, scores = reader.multi_scores(vectors.multi[at], np.array(keys, dtype=np.int64))
    return dict(zip(found.tolist(), scores.tolist(), strict=True))


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k is a number of hits, an int, got {k!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

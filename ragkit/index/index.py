"""Index: a folder that holds documents, their vectors and their words, and answers questions with citations.

    index = Index.open("library")            # created on first use; remembers its model and recipe
    report = index.add("papers/")            # only what is new or changed
    hits = index.search("what is late chunking?", k=5, filters={"lang": "en"})

Any number of threads and processes search; one at a time writes. A search sees one commit, whole. The encoder is loaded when it
is first needed, and refused if it did not build the index. The methods here are thin: each calls what does the work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
from numpy.typing import ArrayLike

from ragkit.care.stats import Stats
from ragkit.core.errors import NotAnIndex, RecipeMismatch
from ragkit.core.space import Space
from ragkit.core.types import AddReport, Citation, Document, Hit, Hits, Page, Span
from ragkit.encode.cache import EmbeddingCache
from ragkit.encode.contract import Encoder
from ragkit.encode.external import PREFIX
from ragkit.index.retriever import Retriever
from ragkit.ingest.add import Ingest
from ragkit.ingest.collect import check_paths, paths_of
from ragkit.ingest.item import AddOptions, Callback, MetadataOf, Target
from ragkit.ingest.prepare import LoadedModels
from ragkit.ingest.prune import pruned_roots
from ragkit.load import IGNORE_FILES, Limits
from ragkit.recipe.create import LOCK_TIMEOUT, create_index, layouts_of, open_catalog, read_recipe
from ragkit.recipe.models import Machine, Models
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.settings import Settings, SettingsKeywords
from ragkit.search.cite import citation, cite
from ragkit.search.explain import explain_unit
from ragkit.search.filters import Filters
from ragkit.search.lookup import (
    StoredDocument,
    find_document,
    find_documents,
    find_unit,
    list_documents,
    page_key_of,
    read_documents,
)
from ragkit.search.plan import SearchPlan, check_spaces, make_plan
from ragkit.search.queries import Query, QueryBatch, is_single_query, parse_queries, parse_query
from ragkit.search.request import SearchKeywords, SearchRequest
from ragkit.search.search import Explainer, answer, find, stream
from ragkit.search.similar import Duplicate, near_duplicates, similar
from ragkit.search.view import View, spaces_of
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.filter import Versions
from ragkit.store.local.rewrite import compact
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import PAGE, DocumentRow, Failure

if TYPE_CHECKING:
    from ragkit.care.backup import BackupReport
    from ragkit.care.export import ExportReport
    from ragkit.care.migrate import RebuildReport
    from ragkit.care.repair import RepairReport
    from ragkit.care.status import Status
    from ragkit.care.verify import Finding
    from ragkit.search.explanation import Explanation


class Index:
    """An index on disk. Open one with `Index.open`; it may be shared by threads, and closed with `close()` or `with`."""

    def __init__(
        self, path: Path, catalog: Catalog, *, models: Models, chunker: Callable[..., Any] | None = None
    ) -> None:
        device, recipe = models.machine.device, models.recipe
        self.path = path
        self._catalog = catalog
        self._store = Store(path, catalog, recall=recipe.store.recall, layouts=layouts_of(recipe))
        self._store.device = device if device is not None and device.startswith("cuda") else None
        self._models = models
        self._chunker = chunker
        self._followed: Mapping[str, Any] | None = None  # the stored recipe that `recipe` was read from
        self._following = threading.Lock()

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
        models = Models(path, catalog, recipe, machine, texts=encoder, pages=page_encoder)
        return cls(path, catalog, models=models, chunker=chunker if callable(chunker) else None)

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
    def recipe(self) -> Recipe:
        """The settings that made the index's vectors."""
        return self._models.recipe

    @property
    def encoder(self) -> Encoder:
        """The encoder of texts; loaded and checked on first use. Raises FingerprintMismatch if it did not build the index."""
        return self._models.texts

    @property
    def page_encoder(self) -> Encoder | None:
        """The encoder of page images, loaded and checked on first use; None for an index without page images."""
        return self._models.pages

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
        check_paths(target)  # before the models are loaded
        if prune:
            pruned_roots(paths_of(target))
        self._models.load()  # before the writer's lock is taken
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
        self._models.load()  # before the writer's lock is taken
        with self._store.writer(timeout=lock_timeout) as writer:
            return self._ingest(writer, options).run_failed()

    def _ingest(self, writer: Writer, options: AddOptions) -> Ingest:
        if not writer.mending:
            self._view()  # nobody else changes the recipe while we hold the lock
        models = LoadedModels(self.encoder, self.page_encoder, self._chunker_or_name())
        return Ingest(self._store, writer, self.recipe, models, options=options)

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
            ids = {row.id for name in references for row in find_documents(reader, name) or reader.find([name], by="file")}
            if filters is not None:
                ids |= {row.id for row in list_documents(reader, filters)}
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
            plan = plan_migration(self._models, self._catalog, changes)
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

    # Searching

    def search(self, query: Query, k: int = 10, *, vector: ArrayLike | None = None, **options: Unpack[SearchKeywords]) -> Hits:
        """Return the k best hits for a query, best first. The options are the fields of `ragkit.search.request.SearchRequest`.

        A query is a text, a picture (PIL) or a pair (text, picture); pictures are for indexes whose model takes them. vector: the
        query's own dense vector, (d,), instead of embedding it; it must come from the index's model.

        Raises ValueError for options that do not fit, TypeError for a list of queries (see `search_many`), Damaged,
        FingerprintMismatch.
        """
        if not is_single_query(query):
            raise TypeError("search takes one query; for a list of queries use search_many")
        request = SearchRequest.of(k, options)
        batch = self._batch([query], request)
        assert batch is not None  # one query, and phrasings of its form
        return self._answer(batch, request, None if vector is None else cast(ArrayLike, [vector]))[0]

    def search_many(
        self, queries: Iterable[Query], k: int = 10, *, vectors: ArrayLike | None = None, **options: Unpack[SearchKeywords]
    ) -> list[Hits]:
        """Return the k best hits for each of several queries, as `search` does for one, embedded together. vectors: (q, d)."""
        asked, request = list(queries), SearchRequest.of(k, options)
        if request.phrasings:
            raise ValueError("phrasings are of one query: search once for each")
        rows = [None] * len(asked) if vectors is None else list(np.asarray(vectors))
        if len(rows) != len(asked):
            raise ValueError(f"{len(asked)} queries need as many vectors, got {len(rows)}")
        batch = self._batch(asked, request)
        if batch is None:  # texts and pictures cannot be embedded together
            return [self.search(query, k, vector=row, **options) for query, row in zip(asked, rows, strict=True)]
        return self._answer(batch, request, vectors)

    def stream(self, query: Query, k: int = 1000, **options: Unpack[SearchKeywords]) -> Iterator[Hit]:
        """Yield the hits of `search(query, k, ...)` one by one, read as they are taken, for a caller who stops early.

        All are of the commit at the time of the call, which is searched at once. ValueError for options that need all hits:
        phrasings, rerank, diversity, degraded.
        """
        request = SearchRequest.of(k, options)
        if request.refines or request.degraded:
            raise ValueError("phrasings, rerank, diversity and degraded need all hits at once: use search")
        batch = parse_query(query)
        view, plan = self._plan(batch, request)
        return stream(view, plan, why=self._explainer(batch, plan))

    async def asearch(self, query: Query, k: int = 10, **options: Any) -> Hits:
        """`search` in a thread, so that an event loop goes on meanwhile."""
        return await asyncio.to_thread(self.search, query, k, **options)

    async def aadd(self, target: Target, **options: Any) -> AddReport:
        """`add` in a thread. Cancelling the task does not stop the thread; what it commits stays."""
        return await asyncio.to_thread(self.add, target, **options)

    def search_within(self, row: DocumentRow, query: Query, k: int = 10, *, mode: str = "hybrid") -> list[Hit]:
        """Return the k best hits in one document, by its row from `documents()` or `find()`: names may be shared."""
        batch = parse_query(query)
        view, plan = self._plan(batch, SearchRequest(k=k, mode=mode))
        return find(view, plan, k=k, where=Versions(frozenset([row.id])), why=self._explainer(batch, plan))[0]

    def similar(self, reference: str | int, k: int = 10, *, filters: Filters | None = None, dims: int | None = None) -> list[Hit]:
        """Return the documents most like one in the index, each by its best unit; the document itself is left out.

        `reference` is a source or id, compared by the mean direction of its units, or the key of one unit.
        """
        return similar(self._view(), reference, k, filters=filters, dims=dims)

    def near_duplicates(self, threshold: float = 0.95) -> Iterator[Duplicate]:
        """Yield every pair of units with a cosine of at least `threshold`, exact, by the keys of the pair."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        return near_duplicates(self._view(), threshold)

    def as_retriever(self, k: int = 10, **options: Unpack[SearchKeywords]) -> Retriever:
        """Return the index with its search options fixed, for an application to call."""
        chosen = {name: value for name, value in options.items() if value is not None}
        check_spaces(SearchRequest.of(k, chosen), self.spaces)
        return Retriever(self, k, chosen)

    def explain(self, query: Query, key: int) -> Explanation:
        """Return why MaxSim scores a unit as it does, by the key of a hit: for each token of the query, the token of the unit, or
        the patch of the page, that it matched best, and its share. The shares sum to the score exactly.

        ValueError for an index without such multi-vectors, or a unit that is gone.
        """
        unit, _ = find_unit(self.path, self._store.reader(), key)
        if unit.kind == PAGE and Space.PAGE_MULTI not in self._view().spaces:
            raise ValueError(
                "the model that saw the pages of this index keeps no multi-vectors of them, so nothing can be explained"
            )
        batch = parse_query(query)
        view, plan = self._plan(batch, SearchRequest(mode=Space.of(unit.kind, "multi")))
        return explain_unit(view, batch, plan.queries, 0, key)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces this index can be searched in: "chunk.dense", "chunk.lexical", "chunk.multi", "page.dense", "page.multi"."""
        return spaces_of(self.recipe)

    def _batch(self, queries: Sequence[Query], request: SearchRequest) -> QueryBatch | None:
        """Return the queries and the phrasings as one batch; None for queries of several forms."""
        if request.phrasings and not isinstance(queries[0], str):
            raise ValueError("phrasings are of one query, a text")
        return parse_queries([*queries, *request.phrasings])

    def _answer(self, batch: QueryBatch, request: SearchRequest, vectors: ArrayLike | None) -> list[Hits]:
        view, plan = self._plan(batch, request, vectors)
        return answer(view, plan, batch, why=self._explainer(batch, plan))

    def _plan(self, batch: QueryBatch, request: SearchRequest, vectors: ArrayLike | None = None) -> tuple[View, SearchPlan]:
        """Return one commit, and the queries embedded by the models that its vectors are of, should those change meanwhile."""
        while True:
            view = self._view(degraded=request.degraded)
            plan = make_plan(request, batch, view, vectors=vectors)
            if view.recipe is self.recipe:
                return view, plan

    def _explainer(self, batch: QueryBatch, plan: SearchPlan) -> Explainer:
        return Explainer(self._view, batch, plan.queries)

    def _view(self, *, degraded: bool = False) -> View:
        """Return the newest commit. If it changed the recipe, the index goes by the new one from here on."""
        reader = self._store.reader(degraded=degraded)
        with self._following:
            if reader.recipe != self._followed:
                recipe = Recipe.model_validate(reader.recipe)
                if recipe != self.recipe:
                    self._store.recall, self._store.layouts = recipe.store.recall, layouts_of(recipe)
                    self._models.follow(recipe)
                self._followed = reader.recipe
            return View(self.path, reader, self.recipe, self._models)

    # Looking inside

    def documents(self, filters: Filters | None = None) -> Iterator[DocumentRow]:
        """Yield the documents, or those that match a filter, oldest version first, without their texts."""
        return list_documents(self._view().reader, filters)

    def stored(self, filters: Filters | None = None) -> Iterator[StoredDocument]:
        """Yield the documents, or those that match a filter, with their texts and vectors, all of one commit."""
        return read_documents(self._view(), filters)

    def document(self, reference: str) -> Document:
        """Return a document whole, by source, id or path. ValueError if there is none."""
        reader = self._store.reader()
        return reader.document(find_document(self.path, reader, reference))

    def unit(self, key: int) -> tuple[DocumentRow, Citation]:
        """Return the document and citation of a unit by its key, as a hit carries it. ValueError if it is gone."""
        reader = self._store.reader()
        unit, row = find_unit(self.path, reader, key)
        return row, citation(reader, row, unit)

    def page_key(self, key: int) -> int | None:
        """Return the page that a unit is on, by their keys: itself, or the page that has most of a chunk. `explain` tells where
        on it a query matches. None if the index has no multi-vectors of that page."""
        reader = self._store.reader()
        return page_key_of(reader, *find_unit(self.path, reader, key), self.spaces)

    def pages(self, row: DocumentRow) -> list[Page]:
        """Return the pages of a document, with words and boxes."""
        return self._store.reader().pages(row.id)

    def text(self, row: DocumentRow, span: Span) -> str:
        """Return a span of a document's text; only that part is read."""
        return self._store.reader().text(row.id, span)

    def cite(self, row: DocumentRow, span: Span) -> Citation:
        """Return the citation of a span of a document."""
        return cite(row.source, span, self._store.reader().pages(row.id, span))

    def find(self, reference: str) -> list[DocumentRow]:
        """Return the documents that a source, id or path names: none, one, or several if roots share a name."""
        return self._store.reader().find([reference], by="reference")

    # Keeping it whole

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
        return repair(self._store, embed=how, vectors_optional=given, lock_timeout=lock_timeout, progress=progress)

    def export(self, target: str | Path, *, progress: Callback | None = None) -> ExportReport:
        """Write documents, units and all vectors to the new folder `target`, as JSON lines and NumPy files: see docs/exchange.md.

        Raises StorageError where something is there already.
        """
        from ragkit.care.export import export

        return export(self._store, Path(target), progress=progress)

    @classmethod
    def import_from(
        cls, path: str | Path, folder: str | Path, *, progress: Callback | None = None, lock_timeout: float = LOCK_TIMEOUT
    ) -> AddReport:
        """Bring what `export` wrote to `folder` into the index at `path`, which is made where there is none, with its chunks and
        vectors: no model is loaded. StorageError where the index has another recipe, Damaged where the folder is not whole."""
        from ragkit.care.export_folder import open_export
        from ragkit.care.import_ import import_documents, prepare_index

        exported = open_export(Path(folder))
        prepare_index(Path(path).absolute(), exported, timeout=lock_timeout)
        with cls.open(path) as index, index._store.writer(timeout=lock_timeout) as writer:
            return import_documents(writer, exported, progress=progress)

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

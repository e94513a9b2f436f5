"""Index: a folder that holds documents, their vectors and their words, and answers questions with citations.

    index = Index.open("library")            # created on first use; remembers its model and recipe
    report = index.add("papers/")            # only what is new or changed
    hits = index.search("what is late chunking?", k=5, filters={"lang": "en"})

Any number of threads and processes search; one at a time writes. A search sees one commit, whole. The encoder is loaded when it
is first needed, and refused if it did not build the index. The methods here are thin: each calls what does the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack, cast

from numpy.typing import ArrayLike

from ragkit.care.stats import Stats, count
from ragkit.core.errors import RecipeMismatch
from ragkit.core.space import Space
from ragkit.core.types import AddReport, Citation, Document, Hit, Hits, Page, Span
from ragkit.encode.cache import EmbeddingCache
from ragkit.encode.contract import Encoder
from ragkit.encode.external import PREFIX
from ragkit.index.retriever import Retriever
from ragkit.ingest.add import Ingest
from ragkit.ingest.collect import check_paths, paths_of
from ragkit.ingest.item import AddKeywords, AddOptions, Callback, MetadataOf, Target
from ragkit.ingest.prepare import LoadedModels
from ragkit.ingest.prune import pruned_roots
from ragkit.load import Limits
from ragkit.recipe.create import LOCK_TIMEOUT, layouts_of, open_or_create
from ragkit.recipe.models import Machine, Models
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.settings import Settings, SettingsKeywords
from ragkit.search import lookup
from ragkit.search.cite import citation, cite
from ragkit.search.filters import Filters
from ragkit.search.lookup import StoredDocument
from ragkit.search.plan import check_spaces
from ragkit.search.queries import Query
from ragkit.search.request import SearchKeywords, SearchRequest
from ragkit.search.searcher import Searcher
from ragkit.search.similar import Duplicate, near_duplicates, similar
from ragkit.search.view import spaces_of
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.rewrite import compact
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import DocumentRow, Failure

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
        self._searcher = Searcher(path, self._store, models)

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
        catalog, recipe = open_or_create(path, chosen, machine, encoder=encoder, page_encoder=page_encoder, create=create)
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

    def add(self, target: Target, *, lock_timeout: float = LOCK_TIMEOUT, **options: Unpack[AddKeywords]) -> AddReport:
        """Bring documents into the index: a file, a folder, a glob, a list of those, or an iterable of Documents and dicts,
        which is streamed. Return what became of each.

        What the index already holds, by content hash, is left alone; a changed document replaces its former version in one
        commit. A document that fails leaves its former version in place and is reported. Stopped halfway, the same call does the
        rest.

        - include, exclude: glob patterns for files in folders; ignore_files: names of files with rules as in .gitignore
        - metadata: called with each file's path; returns fields for its documents, over those of the file and of its sidecar
          ("a.pdf.meta.json"). When only these change, nothing is embedded again
        - limits, password, workers: of reading documents, so many in parallel; progress: called with `Progress`
        - prune: then delete the documents whose files are gone, beneath the folders and files of this call and nowhere else;
          refused if a folder came up empty

        Raises FileNotFoundError, IndexLocked, FingerprintMismatch; never for one document.
        """
        chosen = AddOptions.of(options)
        check_paths(target)  # before the models are loaded
        if chosen.prune:
            pruned_roots(paths_of(target))
        self._models.load()  # before the writer's lock is taken
        with self._store.writer(timeout=lock_timeout) as writer:
            return self._ingest(writer, chosen).run(target)

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
            self._searcher.view()  # nobody else changes the recipe while we hold the lock
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
        names = [str(reference)] if isinstance(reference, (str, Path)) else [str(name) for name in reference]
        with self._store.writer(timeout=lock_timeout) as writer:
            view = self._searcher.view()
            find = view.reader.find
            ids = {row.id for name in names for row in lookup.find_documents(view.reader, name) or find([name], by="file")}
            if filters is not None:
                ids |= {row.id for row in lookup.list_documents(view.reader, filters)}
            failures = view.reader.failures()
            writer.forgive(failure.identity for failure in failures if {failure.identity, failure.source} & set(names))
            writer.delete(ids)
            del view, find  # they would hold back what the commit retires
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
            self._searcher.view()
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
        self._searcher.view()
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
        return self._searcher.search(query, SearchRequest.of(k, options), vector)

    def search_many(
        self, queries: Iterable[Query], k: int = 10, *, vectors: ArrayLike | None = None, **options: Unpack[SearchKeywords]
    ) -> list[Hits]:
        """Return the k best hits for each of several queries, as `search` does for one, embedded together. vectors: (q, d)."""
        return self._searcher.search_many(queries, SearchRequest.of(k, options), vectors)

    def stream(self, query: Query, k: int = 1000, **options: Unpack[SearchKeywords]) -> Iterator[Hit]:
        """Yield the hits of `search(query, k, ...)` one by one, read as they are taken, for a caller who stops early.

        All are of the commit at the time of the call, which is searched at once. ValueError for options that need all hits:
        phrasings, rerank, diversity, degraded.
        """
        return self._searcher.stream(query, SearchRequest.of(k, options))

    async def asearch(self, query: Query, k: int = 10, **options: Unpack[SearchKeywords]) -> Hits:
        """`search` in a thread, so that an event loop goes on meanwhile."""
        return await asyncio.to_thread(self.search, query, k, **options)

    async def aadd(self, target: Target, **options: Unpack[AddKeywords]) -> AddReport:
        """`add` in a thread. Cancelling the task does not stop the thread; what it commits stays."""
        return await asyncio.to_thread(self.add, target, **options)

    def search_within(self, row: DocumentRow, query: Query, k: int = 10, *, mode: str = "hybrid") -> list[Hit]:
        """Return the k best hits in one document, by its row from `documents()` or `find()`: names may be shared."""
        return self._searcher.search_within(row, query, SearchRequest(k=k, mode=mode))

    def similar(self, reference: str | int, k: int = 10, *, filters: Filters | None = None, dims: int | None = None) -> list[Hit]:
        """Return the documents most like one in the index, each by its best unit; the document itself is left out.

        `reference` is a source or id, compared by the mean direction of its units, or the key of one unit.
        """
        return similar(self._searcher.view(), reference, k, filters=filters, dims=dims)

    def near_duplicates(self, threshold: float = 0.95) -> Iterator[Duplicate]:
        """Yield every pair of units with a cosine of at least `threshold`, exact, by the keys of the pair."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        return near_duplicates(self._searcher.view(), threshold)

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
        return self._searcher.explain(query, key)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces this index can be searched in: "chunk.dense", "chunk.lexical", "chunk.multi", "page.dense", "page.multi"."""
        return spaces_of(self.recipe)

    # Looking inside

    def documents(self, filters: Filters | None = None) -> Iterator[DocumentRow]:
        """Yield the documents, or those that match a filter, oldest version first, without their texts."""
        return lookup.list_documents(self._searcher.view().reader, filters)

    def stored(self, filters: Filters | None = None) -> Iterator[StoredDocument]:
        """Yield the documents, or those that match a filter, with their texts and vectors, all of one commit."""
        return lookup.read_documents(self._searcher.view(), filters)

    def document(self, reference: str) -> Document:
        """Return a document whole, by source, id or path. ValueError if there is none."""
        reader = self._store.reader()
        return reader.document(lookup.find_document(self.path, reader, reference))

    def unit(self, key: int) -> tuple[DocumentRow, Citation]:
        """Return the document and citation of a unit by its key, as a hit carries it. ValueError if it is gone."""
        reader = self._store.reader()
        unit, row = lookup.find_unit(self.path, reader, key)
        return row, citation(reader, row, unit)

    def page_key(self, key: int) -> int | None:
        """Return the page that a unit is on, by their keys: itself, or the page that has most of a chunk. `explain` tells where
        on it a query matches. None if the index has no multi-vectors of that page."""
        reader = self._store.reader()
        return lookup.page_key_of(reader, *lookup.find_unit(self.path, reader, key), self.spaces)

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
        return count(self.path, self._store.reader(), self.recipe)

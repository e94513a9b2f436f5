"""Sources become units in the index: load → chunk → encode → write → commit, many documents, with progress and a report.

Documents stream: in flight are the parser's few, one pool of texts for the encoder, and what awaits the next commit. A
document is committed whole, together with the deletion of its former version. One that fails leaves the former version
in place and is reported with its reason. Stopping at any point keeps every commit made so far, and running the same
call again does only what is left.

This module says in which order the steps run; the steps are in the modules beside it, and those of `prepare` know no index.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from pathlib import Path

from ragkit.core.errors import LoadError, RagkitError
from ragkit.core.types import AddReport, Document
from ragkit.ingest.collect import SourceReader, as_item, examine, paths_of, read_records, refusal, source_of
from ragkit.ingest.embed import TextEmbedder
from ragkit.ingest.item import AddOptions, Candidate, FileState, Item, Target
from ragkit.ingest.known import FormerIndex, KnownDocuments, embedding_input
from ragkit.ingest.pages import PageEmbedder, page_warnings
from ragkit.ingest.prepare import LoadedModels, page_parser, split
from ragkit.ingest.prune import gone_documents, pruned_roots
from ragkit.ingest.report import Report
from ragkit.ingest.reuse import same_input
from ragkit.ingest.write import CommitQueue, FailureLog
from ragkit.load import Source, discover
from ragkit.recipe.recipe import Recipe
from ragkit.store.local.reader import Reader
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import DocumentRow, Failure, origin_of

POOL = 1024  # units encoded together: enough for batches of like length, few enough for a commit every half minute on a CPU
POOL_CHARACTERS = 4_000_000


class Ingest:
    """One `add`: call one of its `run` methods, once."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        recipe: Recipe,
        models: LoadedModels,
        *,
        options: AddOptions,
        former: FormerIndex | None = None,
    ) -> None:
        """former: the index that is being rebuilt, where one is."""
        self._store = store
        self._writer = writer
        self._recipe = recipe
        self._models = models
        self._options = options
        self._failures = FailureLog(writer)
        self._report = Report(options.progress, record_failure=self._failures.record)
        self._known = KnownDocuments(store.path, writer, recipe, sees_pages=models.page_encoder is not None, former=former)
        self._reader = SourceReader(recipe, options, self._report, office_pages=models.page_encoder is not None)
        self._text_embedder = TextEmbedder(recipe, models.encoder, self._report)
        self._page_embedder: PageEmbedder | None = None  # with its parser, from the first page on
        self._open = ExitStack()
        self._queue = CommitQueue(store, writer, recipe, self._report)
        self._pool: list[Item] = []
        self._pool_units = self._pool_characters = 0
        self._seen: set[str] = set()  # identities of the documents met

    def run(self, target: Target) -> AddReport:
        """Add what a target names: paths and globs, or documents."""
        targets = paths_of(target)
        roots = pruned_roots(targets) if self._options.prune else []
        self._process_all(self._records(target) if targets is None else self._files(targets))
        for root in roots:
            rows = gone_documents(self._writer.reader(), root, seen=self._seen, read_whole=self._reader.read_whole)
            if rows:
                self._queue.prune(rows)
        if self._report.removed:
            self._store.remove_copies()
        return self._report.result()

    def run_failed(self) -> AddReport:
        """Try again the files that failed before. Records from Python cannot be read again, and are skipped."""
        sources = {}
        for failure in self._writer.reader().failures():
            if (source := source_of(failure)) is not None:
                sources[source.path] = source
            else:
                self._report.skip(failure.source, "it was handed in from Python; hand it in again")
        self._report.total = len(sources)
        self._process_all(self._items(self._reader.read(self._new_files(sources.values()))))
        return self._report.result()

    def run_stored(self, source: Reader, rows: Iterable[DocumentRow], *, replaces: bool, total: int = 0) -> AddReport:
        """Chunk and encode again the documents that a reader sees, without parsing them.

        Each becomes a new version of itself in this index where `replaces`, else of the document with its identity here,
        unless that is the same already.
        """
        self._report.total = total or None
        self._process_all(self._stored(source, rows, replaces=replaces))
        return self._report.result()

    def _process_all(self, items: Iterable[Item]) -> None:
        with self._open:
            try:
                for item in items:
                    self._process(item)
            except Exception:  # the caller's iterable broke off: what it gave so far is added
                self._flush()
                raise
            self._flush()

    # Sources

    def _files(self, targets: Sequence[str | Path | Source]) -> Iterator[Item]:
        discovered = [self._discover(target, report_skipped=True) for target in targets]
        threading.Thread(target=self._count, args=(targets,), daemon=True).start()
        sources = (source for sources in discovered for source in sources)
        return self._items(self._reader.read(self._new_files(sources)))

    def _discover(self, target: str | Path | Source, *, report_skipped: bool = False) -> Iterator[Source]:
        options = self._options
        return discover(
            target,
            include=options.include,
            exclude=options.exclude,
            ignore_files=options.ignore_files,
            on_skip=self._report.skip if report_skipped else None,
        )

    def _count(self, targets: Sequence[str | Path | Source]) -> None:
        """Count the documents to come, where files are documents."""
        total = 0
        try:
            for target in targets:
                total += sum(1 for _ in self._discover(target))
        except (OSError, RagkitError):
            return
        self._report.total = total

    def _new_files(self, sources: Iterable[Source]) -> Iterator[tuple[Source, FileState]]:
        """Yield the files that must be parsed, each once.

        Those that the index holds byte for byte, with the user's fields as they are now, are reported as unchanged, and those
        that cannot be read as failed.
        """
        for source in sources:
            identity = str(source.path)
            if identity in self._seen:
                continue
            self._seen.add(identity)
            try:
                state = self._examine(source)
            except LoadError as error:
                self._report.fail(identity, source.name, "", str(error))
                continue
            former = self._known.find(identity) if state.digest else None
            if former is not None and self._known.is_current(former, state.digest, state.user_fields):
                self._report.finish_unchanged(former)
            else:
                yield source, state

    def _examine(self, source: Source) -> FileState:
        if reason := refusal(source, self._options.limits):
            raise LoadError(reason)
        self._failures.clear(str(source.path))
        return examine(source, self._options)

    def _records(self, target: Target) -> Iterator[Item]:
        assert not isinstance(target, (str, Path))  # these are paths
        records = [target] if isinstance(target, (Document, Mapping)) else target
        if isinstance(records, Sized):
            self._report.total = len(records)
        self._failures.clear_unnamed_records()
        return self._items(read_records(records))

    def _items(self, loaded: Iterable[Candidate | Failure]) -> Iterator[Item]:
        """Yield the loaded documents that the index does not hold; report the others, and the failures."""
        for each in loaded:
            if isinstance(each, Failure):
                self._report.fail(each.identity, each.source, each.content_hash, each.reason)
                continue
            if each.is_record:
                self._meet(each.identity)
            former = self._known.find(each.identity)
            user_fields = None if each.state is None else each.state.user_fields
            if each.is_record and former is not None and self._known.is_current(former, each.content_hash, user_fields):
                self._report.finish_unchanged(former)
            else:
                yield as_item(each, former)

    def _meet(self, identity: str) -> None:
        """Note an identity. When it comes twice in one call, the first is committed, so that the later one replaces it."""
        if identity in self._seen:
            self._flush()
        self._seen.add(identity)

    def _stored(self, source: Reader, rows: Iterable[DocumentRow], *, replaces: bool) -> Iterator[Item]:
        for row in rows:
            former: DocumentRow | None = row
            if not replaces:
                self._meet(row.identity)
                former = self._known.find(row.identity)
                if former is not None and self._known.is_current(former, row.content_hash):
                    self._report.finish_unchanged(former)
                    continue
            yield Item(origin_of(row), source.document(row), former, complete=bool(row.recipe_hash))

    # Chunking and encoding

    def _process(self, item: Item) -> None:
        """Chunk a document and put it into the pool, which is encoded when it is full, or the next commit is due."""
        split(item, self._recipe, self._models)
        if item.problem:
            self._report.fail_item(item)
            return
        self._pool.append(item)
        self._pool_units += len(item.chunks) + (len(item.document.pages) if self._models.sees(item) else 0)
        self._pool_characters += len(item.document.text)
        if self._pool_units >= POOL or self._pool_characters >= POOL_CHARACTERS or self._queue.is_late():
            self._encode_pool()

    def _flush(self) -> None:
        """Encode and commit everything that waits."""
        self._encode_pool()
        self._queue.commit()

    def _encode_pool(self) -> None:
        pool, self._pool = self._pool, []
        self._pool_units = self._pool_characters = 0
        if not pool:
            return
        if self._models.embeds:
            self._embed_texts(pool)
        if self._models.page_encoder is None:
            self._queue.put(pool)
        else:
            self._embed_pages(pool)

    def _embed_texts(self, pool: Sequence[Item]) -> None:
        """Set the vectors of the pool: known ones are reused, and each content is embedded once."""
        unknown: list[Item] = []
        copies: list[tuple[Item, Item]] = []
        firsts = {item.origin.content_hash: item for item in self._queue.waiting if item.dense}
        for item, reused in zip(pool, self._known.vectors(pool), strict=True):
            first = firsts.setdefault(item.origin.content_hash, item)
            if reused is not None:
                item.dense, item.multi = list(reused.dense), list(reused.multi)
                item.duplicate_of = "" if reused.row.identity == item.origin.identity else reused.row.source
            elif first is not item and same_input(embedding_input(first), embedding_input(item)):
                copies.append((item, first))
            else:
                unknown.append(item)
        self._text_embedder.embed(unknown)
        for item, first in copies:
            if first.problem:
                self._text_embedder.embed([item])
            else:
                item.dense, item.multi, item.duplicate_of = list(first.dense), list(first.multi), first.origin.source

    def _embed_pages(self, pool: Sequence[Item]) -> None:
        """Set the page vectors of the pool; each document is queued as soon as it is seen, since a page may take a minute."""
        firsts: dict[str, Item] = {}
        for item in pool:
            first = firsts.setdefault(item.origin.content_hash, item)
            if first is not item:
                item.seen, item.complete = first.seen, item.complete and first.complete
                item.warnings += page_warnings(first.warnings) if item.seen is not None else ()
            if item.seen is None and item.document.pages and not item.problem:
                self._see(item)
            self._queue.put([item])

    def _see(self, item: Item) -> None:
        try:
            item.seen = self._known.pages(item)
            if item.seen is None:
                self._pages().embed(item, self._known.file_of(item), had_pages=self._known.had_pages(item))
        except RagkitError as error:
            item.problem = str(error)

    def _pages(self) -> PageEmbedder:
        """Return the embedder of pages. Its parser is started for the first page, and ends with the call."""
        if self._page_embedder is None:
            assert self._models.page_encoder is not None
            parser = self._open.enter_context(page_parser(self._recipe, self._options))
            self._page_embedder = PageEmbedder(
                self._recipe, self._models.page_encoder, self._report, parser, self._store.path
            )  # fmt: skip
        return self._page_embedder

"""Sources become units in the index: load → chunk → encode → write → commit, many documents, with progress and a report.

Documents stream: in flight are the parser's few, one pool of texts for the encoder, and what awaits the next commit. A
document is committed whole, together with the deletion of its former version. One that fails leaves the former version
in place and is reported with its reason. Stopping at any point keeps every commit made so far, and running the same
call again does only what is left.

Every document that goes in comes out in the report exactly once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ragkit.chunk import chunk_document
from ragkit.chunk.headers import headed_texts
from ragkit.core.arrays import MultiVectors, unit_rows
from ragkit.core.errors import LoadError, RagkitError, StorageError, UnsupportedFormat
from ragkit.core.types import AddReport, Chunk, Document, Floats, Outcome, Progress, Span
from ragkit.encode.contract import Encoder, Encoding, as_encode_errors, checked
from ragkit.encode.external import embeds_text, unit_vectors
from ragkit.encode.late import late_chunk_documents, late_chunk_tokens
from ragkit.encode.windows import encode_windows
from ragkit.ingest.collect import by_file, described, paths_of, source_of
from ragkit.ingest.embed import LATE_DOCUMENTS, SLICE
from ragkit.ingest.item import CHANGED, AddOptions, FileState, Item, Target, file_stamp, has_hash, is_container
from ragkit.ingest.known import lacked_office, same_user_fields
from ragkit.ingest.page_images import NOT_SEEN, PageReader
from ragkit.ingest.pages import textless_pages
from ragkit.ingest.prune import pruned_roots
from ragkit.ingest.report import load_warnings, printable
from ragkit.ingest.reuse import Twin, alike, same_content, stored_pages, twins
from ragkit.ingest.write import COMMIT_BYTES, COMMIT_SECONDS, COMMIT_UNITS, as_prepared
from ragkit.load import (
    Parser,
    Source,
    can_render,
    content_hash,
    discover,
    fields,
    file_hash,
    record,
    sidecar,
)
from ragkit.load.language import language_of
from ragkit.recipe.recipe import Recipe
from ragkit.store.local import source_copies
from ragkit.store.local.reader import Reader
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import CHUNK, PAGE, DocumentRow, Failure, Origin, PageVectors, origin_of
from ragkit.store.vectors.multi_layout import Stored
from ragkit.store.vectors.pool import pool_tokens

POOL = 1024  # units encoded together: enough for batches of like length, few enough for a commit every half minute on a CPU
POOL_CHARACTERS = 4_000_000


class Ingest:
    """One `add`: feed it targets, then take the report."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        *,
        recipe: Recipe,
        encoder: Encoder,
        chunker: str | Callable[..., Any],
        options: AddOptions,
        page_encoder: Encoder | None = None,
        former: Store | None = None,
        same_texts: str | None = None,
        same_pages: bool = False,
    ) -> None:
        """page_encoder: of the recipe's stage `pages`, where it has one. former: the index that is being rebuilt; same_texts: its
        recipe's hash, where the vectors of its texts may be taken over; same_pages: those of its pages may, cut to fewer dims."""
        self._store = store
        self._writer = writer
        self._recipe = recipe
        self._encoder = encoder
        self._embeds = embeds_text(encoder.card)
        self._width = recipe.encode.dims or encoder.card.dims
        self._layout = store.layouts.get(CHUNK)
        self._page_encoder = page_encoder
        self._former_store = former
        self._same_texts = same_texts
        self._same_pages = same_pages
        self._pages = self._blank = self._seen_pages = 0
        self._cost_told = self._page_cost_told = False
        self._chunker = chunker
        self._options = options
        self._outcomes: dict[str, list[Outcome]] = {
            name: [] for name in ("added", "updated", "unchanged", "failed", "pruned", "skipped")
        }
        self._truncated = 0
        self._seen: set[str] = set()
        self._pool: list[Item] = []
        self._pool_units = 0
        self._pool_characters = 0
        self._ready: list[Item] = []
        self._committed = time.monotonic()
        self._done = 0
        self._encoded = 0
        self._total: int | None = None
        self._more = 0  # records beyond the first of each file, which nobody counted
        self._failed_before = by_file(one.identity for one in writer.reader().failures())
        self._bad_records = 0
        self._reading: dict[Path, FileState] = {}
        self._broken: set[str] = set()
        self._read_whole: set[str] = set()  # files of many records, each of which was read

    def run(self, target: Target) -> AddReport:
        started = time.monotonic()
        targets = paths_of(target)
        roots = pruned_roots(targets) if self._options.prune else []
        self._take_all(self._from_records(cast(Iterable[Any], target)) if targets is None else self._from_paths(targets))
        self._prune(roots)
        if self._outcomes["updated"] or self._outcomes["pruned"]:
            self._store.remove_copies()
        return self._told(started)

    def run_failed(self) -> AddReport:
        """The files that failed before, once more. Records from Python cannot be asked for again, and are skipped."""
        started = time.monotonic()
        sources = {}
        for failure in self._writer.reader().failures():
            if (source := source_of(failure)) is not None:
                sources[source.path] = source
            else:
                reason = "it was handed in from Python; hand it in again"
                self._outcomes["skipped"].append(Outcome(failure.source, reason=reason))
        self._total = len(sources)
        self._take_all(self._from_sources(sources.values()))
        return self._told(started)

    def _take_all(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                self._take(item)
        except Exception:  # the caller's iterable broke off: what it gave so far is kept
            self._encode_pool()
            self._commit()
            raise
        self._encode_pool()
        self._commit()

    def _told(self, started: float) -> AddReport:
        fields = {name: tuple(outcomes) for name, outcomes in self._outcomes.items()}
        seconds = time.monotonic() - started
        return AddReport(**fields, truncated=self._truncated, pages=self._pages, blank=self._blank, seconds=seconds)

    def run_stored(self, source: Reader, rows: Iterable[DocumentRow], *, replaces: bool, total: int = 0) -> AddReport:
        """Documents that a reader sees, chunked and encoded anew, not parsed: each a new version of itself in this index
        where `replaces`, else of the one that has its identity here, unless that is the same already."""
        started = time.monotonic()
        self._total = total or None
        for row in rows:
            former = row if replaces else self._former(row.identity)
            if replaces or not self._settled(former, row.content_hash):
                self._take(Item(origin_of(row), source.document(row), former, settled=bool(row.recipe_hash)))
        self._encode_pool()
        self._commit()
        return self._told(started)

    def _prune(self, roots: Sequence[Path]) -> None:
        """Delete what lies beneath the roots in the index and not on the disk. What was only not asked for stays."""
        for root in roots:
            beneath = [row for row in self._writer.reader().find([str(root)], by="beneath") if row.identity not in self._seen]
            gone = [row for row in beneath if self._is_gone(row)]
            if gone and not self._seen_beneath(root):
                raise StorageError(
                    f"nothing was pruned: {root} holds no document any more, and the index has {len(gone)} from there. "
                    f"If the disk is not mounted, mount it; if they shall go: ragkit delete INDEX SOURCE..."
                )
            if gone:
                self._writer.delete(row.id for row in gone)
                self._writer.commit("prune", recipe_hash=self._recipe.hash)
                self._outcomes["pruned"] += [Outcome(row.source, units=row.units) for row in gone]

    def _seen_beneath(self, root: Path) -> bool:
        return any(Path(identity).is_relative_to(root) for identity in self._seen)

    def _is_gone(self, row: DocumentRow) -> bool:
        """Whether a document's file is not there, or is, was read in this call, and does not hold its record any more."""
        assert row.path is not None
        try:
            os.lstat(row.path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # nobody can tell
        return row.path in self._read_whole

    # Sources

    def _from_paths(self, targets: Sequence[str | Path | Source]) -> Iterator[Item]:
        found = [self._discover(one, on_skip=self._skip) for one in targets]
        threading.Thread(target=self._count, args=(targets,), daemon=True).start()
        yield from self._from_sources(source for sources in found for source in sources)

    def _discover(self, target: str | Path | Source, *, on_skip: Callable[[Path, str], None] | None = None) -> Iterator[Source]:
        options = self._options
        return discover(
            target, include=options.include, exclude=options.exclude, ignore_files=options.ignore_files, on_skip=on_skip
        )

    def _from_sources(self, sources: Iterable[Source]) -> Iterator[Item]:
        options, load = self._options, self._recipe.load
        changed = (source for source in sources if self._is_new(source))
        sees = self._page_encoder is not None
        with Parser(
            workers=options.workers,
            limits=options.limits,
            pdf_engine=load.pdf_engine,
            ocr=load.ocr,
            password=options.password,
            office_pages=sees,
        ) as parser:
            for source, loaded in parser.parse(changed):
                if is_container(source):
                    self._note_read(source, loaded)
                    yield from self._from_container(source, loaded)
                    continue
                found = self._reading.pop(source.path)
                if not isinstance(loaded, RagkitError) and self._changed(source, found):
                    loaded = LoadError(CHANGED)
                if isinstance(loaded, RagkitError):
                    self._fail(str(source.path), source.name, found.digest, str(loaded))
                else:
                    yield self._item(source, loaded, found, name=source.name, digest=found.digest, former=found.former)

    def _changed(self, source: Source, found: FileState) -> bool:
        """Whether a file is not what it was when its hash was taken: then nobody knows what was read."""
        try:
            return file_stamp(source.path) != found.stamp and not has_hash(source.path, found.digest)
        except OSError:
            return True

    def _note_read(self, source: Source, loaded: Document | LoadError) -> None:
        """Remember whether every record of a file could be read: of one that could not, nobody knows which it was."""
        path = str(source.path)
        if path in self._read_whole or path in self._broken:
            self._more += 1
        if isinstance(loaded, LoadError) and not isinstance(loaded, UnsupportedFormat):
            self._broken.add(path)
        self._read_whole.add(path)
        self._read_whole -= self._broken

    def _from_container(self, source: Source, loaded: Document | LoadError) -> Iterator[Item]:
        """One record of a file that holds many: it has an identity and a hash of its own."""
        if isinstance(loaded, UnsupportedFormat):
            self._skip(source.path, str(loaded))
            return
        if isinstance(loaded, LoadError):
            self._bad_records += 1
            self._fail(f"{source.path}#bad {self._bad_records}", source.name, "", str(loaded))
            return
        found = self._reading[source.path]
        identity = str(source.path) + loaded.id.removeprefix(source.name)
        digest = str(loaded.meta.get("sha256") or content_hash(loaded))
        former = self._former(identity)
        if not self._settled(former, digest, found.given):
            yield self._item(source, loaded, found, name=loaded.id, digest=digest, former=former, identity=identity)

    def _item(
        self,
        source: Source,
        document: Document,
        found: FileState,
        *,
        name: str,
        digest: str,
        former: DocumentRow | None,
        identity: str = "",
    ) -> Item:
        """A document under the name it had before, if it had one: names stay, whichever folder it is added through."""
        document = described(document, found.given, sha256=found.digest)
        origin = Origin(
            identity=identity or str(source.path),
            source=name if former is None else former.source,
            content_hash=digest,
            lang=language_of(document),
            root=str(source.root) if former is None else former.root,
            path=str(source.path),
        )
        return Item(origin, document, former)

    def _former(self, identity: str) -> DocumentRow | None:
        """The live version. An identity met twice in one call is committed first, so that the later one replaces it."""
        if identity in self._seen:
            self._encode_pool()
            self._commit()
        self._seen.add(identity)
        return self._writer.reader().by_identity(identity)

    def _count(self, targets: Sequence[str | Path | Source]) -> None:
        """How many documents there will be, where files are documents."""
        total = 0
        try:
            for target in targets:
                total += sum(1 for _ in self._discover(target))
        except (OSError, RagkitError):
            return
        self._total = total

    def _skip(self, path: Path, reason: str) -> None:
        self._outcomes["skipped"].append(Outcome(printable(str(path)), reason=reason))

    def _is_new(self, source: Source) -> bool:
        """Whether the file must be parsed: it is not, byte for byte, what the index already holds."""
        identity = str(source.path)
        if identity in self._seen:
            return False
        self._seen.add(identity)
        problem = self._refused(source)
        if not problem:
            self._forgive(identity)
            try:
                stamp, given = file_stamp(source.path), self._given(source)
                found = FileState("" if is_container(source) else file_hash(source.path), stamp, given)
            except OSError as error:
                problem = error.strerror or str(error)
            except LoadError as error:
                problem = str(error)
        if problem:
            self._fail(identity, source.name, "", problem)
            return False
        if found.digest:
            found = replace(found, former=self._writer.reader().by_identity(identity))
            if self._settled(found.former, found.digest, given):
                return False
        self._reading[source.path] = found
        return True

    def _given(self, source: Source) -> dict[str, Any]:
        """What the user says of a file: its sidecar, and over it the callback. LoadError says what is wrong with either."""
        beside = sidecar(source.path)
        if self._options.metadata is None:
            return beside
        try:
            return beside | fields(dict(self._options.metadata(source.path) or {}))
        except Exception as error:  # the callback is the user's own, and may raise anything
            raise LoadError(f"the metadata callback failed: {type(error).__name__}: {error}") from error

    def _refused(self, source: Source) -> str:
        """Why the file is not even opened, or nothing."""
        try:
            str(source.path).encode()
            size = source.path.stat().st_size
        except UnicodeEncodeError:
            return "its name is not valid UTF-8; rename it"
        except OSError as error:
            return error.strerror or str(error)
        if not source.path.is_file():
            return "it is not a regular file"
        limit = self._options.limits.file_bytes
        return f"it has {size:,} bytes, over the limit of {limit:,} (Limits.file_bytes)" if size > limit else ""

    def _forgive(self, identity: str) -> None:
        """Forget that a file, or a record in it, failed before: it is judged anew."""
        self._writer.forgive(self._failed_before.get(identity, []))

    def _from_records(self, records: Iterable[Any]) -> Iterator[Item]:
        if isinstance(records, (Document, Mapping)):
            records = [records]
        if isinstance(records, Sized):
            self._total = len(records)
        self._writer.forgive(one for one in self._failed_before if one.startswith("record:"))
        for number, one in enumerate(records):
            if isinstance(one, (str, Path)):
                raise TypeError(f"item {number} is a {type(one).__name__} among documents; add paths and documents apart")
            try:
                document = record(one, vectors=True)
            except (RagkitError, ValueError, TypeError) as error:
                name = str(one.get("id") or "") if isinstance(one, Mapping) else ""
                self._fail(f"id:{name}" if name else f"record:{number}", name or f"record {number}", "", str(error))
                continue
            digest = content_hash(document)
            source = document.id or f"sha256:{digest[:16]}"
            former = self._former(f"id:{source}")
            if not self._settled(former, digest):
                origin = Origin(identity=f"id:{source}", source=source, content_hash=digest, lang=language_of(document))
                yield Item(origin, document, former)

    def _settled(self, former: DocumentRow | None, digest: str, given: Mapping[str, Any] | None = None) -> bool:
        """Whether the index holds this content, made by this recipe, and all that the user says of it; then it is reported as
        unchanged."""
        if former is None or former.content_hash != digest or former.recipe_hash != self._recipe.hash:
            return False
        if given is not None and not same_user_fields(former.meta, given):
            return False
        if self._page_encoder is not None and former.path is not None and lacked_office(former) and can_render(former.path):
            return False
        self._finish("unchanged", Outcome(former.source, units=former.units))
        return True

    # Chunking and encoding

    def _take(self, item: Item) -> None:
        try:
            if self._embeds and item.document.vector is None:
                item.chunks = tuple(self._chunk(item.document))
                self._guard_length(item)
            else:
                self._take_vector(item)
        except Exception as error:  # the chunker may be the user's own, and raise anything
            known = isinstance(error, (RagkitError, ValueError))
            self._fail_item(item, str(error) if known else f"{type(error).__name__}: {error}")
            return
        item.warnings = load_warnings(item.document)
        if self._recipe.load.ocr == "off" and not self._sees(item) and (count := textless_pages(item.document)):
            item.warnings += (f'{count} of {len(item.document.pages)} pages have no text; ocr="auto" (--ocr auto) reads them',)
        if not item.chunks and not self._sees(item):
            item.warnings += ("no text was found in it",)
        elif not self._embeds and not item.dense:
            item.warnings += ("it brings no vector, so it is found by its words alone",)
        self._pool.append(item)
        self._pool_units += len(item.chunks) + (len(item.document.pages) if self._sees(item) else 0)
        self._pool_characters += len(item.document.text)
        if (
            self._pool_units >= POOL
            or self._pool_characters >= POOL_CHARACTERS
            or time.monotonic() - self._committed > COMMIT_SECONDS
        ):
            self._encode_pool()

    def _take_vector(self, item: Item) -> None:
        """One unit, the whole text, with the vector that came along; without one it is found by its words alone."""
        document, card = item.document, self._encoder.card
        if self._embeds:
            raise ValueError(
                f"it brings a vector, but this index embeds texts itself, with {card.name}. Leave the vector out, or keep "
                f"vectors made elsewhere in an index of their own: Index.open(..., model='vectors:<dims>')"
            )
        if document.vector is not None:
            item.dense = list(unit_vectors(document.vector[None], card.dims, keep=self._recipe.encode.dims))
        if item.dense or document.text.strip():
            item.chunks = (Chunk(Span(0, len(document.text))),)

    def _chunk(self, document: Document) -> list[Chunk]:
        stage = self._recipe.chunk
        return chunk_document(
            document, chunker=self._chunker, tokens=stage.tokens, overlap=stage.overlap, encoder_tokens=self._encoder
        )

    def _guard_length(self, item: Item) -> None:
        """Units of the `whole` chunker may be longer than the model takes: an error, unless the recipe says otherwise."""
        stage = self._recipe.encode
        if self._recipe.chunk.chunker != "whole" or stage.overflow != "error" or not item.chunks:
            return
        counts = self._encoder.count_tokens([chunk.span.of(item.document.text) for chunk in item.chunks])
        if counts.max() > stage.max_tokens:
            raise ValueError(
                f"it has {counts.max()} tokens and the model takes {stage.max_tokens}. "
                "Choose another chunker, or overflow='truncate' or 'window'."
            )

    def _encode_pool(self) -> None:
        if not self._pool:
            return
        pool, self._pool = self._pool, []
        self._pool_units = self._pool_characters = 0
        if self._embeds:
            self._encode_items(pool)
        if self._page_encoder is None:
            self._keep(pool)
        else:
            self._see_items(pool)

    def _encode_items(self, pool: Sequence[Item]) -> None:
        """Vectors for the pool: those of twins where there are any, and each content embedded once."""
        unknown: list[Item] = []
        copies: list[tuple[Item, Item]] = []
        met = {item.origin.content_hash: item for item in self._ready if item.dense}
        for item, twin in zip(pool, self._twins(pool), strict=True):
            first = met.setdefault(item.origin.content_hash, item)
            if twin is not None:
                item.dense, item.multi = list(twin.dense), list(twin.multi)
                item.duplicate_of = "" if twin.row.identity == item.origin.identity else twin.row.source
            elif first is not item and alike(first.wanted, item.wanted):
                copies.append((item, first))
            else:
                unknown.append(item)
        self._embed(unknown)
        for item, first in copies:
            if first.failed:
                self._embed([item])
            else:
                item.dense, item.multi, item.duplicate_of = list(first.dense), list(first.multi), first.origin.source

    def _twins(self, pool: Sequence[Item]) -> list[Twin | None]:
        """Documents that have the vectors already: in this index, or in the one that is being rebuilt."""
        multi = self._layout is not None
        known = twins(self._writer.reader(), [item.wanted for item in pool], recipe_hash=self._recipe.hash, multi=multi)
        if self._former_store is None or self._same_texts is None:
            return known
        former = self._former_store.reader()
        before = [replace(item.wanted, former=former.by_identity(item.origin.identity)) for item in pool]
        there = twins(former, before, recipe_hash=self._same_texts, multi=CHUNK in self._former_store.layouts)
        return [now or then for now, then in zip(known, there, strict=True)]

    # Page images

    def _sees(self, item: Item) -> bool:
        """Whether a document's pages are looked at: those of a file of its own that can be rendered."""
        return self._page_encoder is not None and bool(item.document.pages) and item.file is not None and can_render(item.file)

    def _see_items(self, pool: Sequence[Item]) -> None:
        """Vectors for the pages of the pool's documents; each is kept as soon as it is seen, since a page may take a minute."""
        first: dict[str, Item] = {}
        options = self._options
        limits, engine = options.limits, self._recipe.load.pdf_engine
        with Parser(limits=limits, pdf_engine=engine, password=options.password) as parser:
            for item in pool:
                known = first.setdefault(item.origin.content_hash, item)
                if known is not item:
                    item.seen, item.settled = known.seen, item.settled and known.settled
                    item.warnings += tuple(one for one in known.warnings if item.seen is not None and NOT_SEEN in one)
                try:
                    if item.seen is None and item.document.pages and not item.failed:
                        self._see(item, parser)
                except RagkitError as error:
                    self._fail_item(item, str(error))
                self._keep([item])

    def _see(self, item: Item, parser: Parser) -> None:
        stage, encoder = self._recipe.pages, self._page_encoder
        assert stage is not None
        assert encoder is not None
        if (vectors := self._known_pages(item)) is not None:
            item.seen = vectors
            return
        if not self._sees(item):
            if item.file is None and item.origin.path is not None:
                item.warnings += (f"its pages were {NOT_SEEN}, since it lies within another file: add it by itself",)
            return
        path = self._same_file(item)
        if path is None:
            if self._had_pages(item):
                raise LoadError(
                    f"{item.file} has moved or changed, so its pages cannot be seen. Put it back, or add it again; "
                    "keep_sources=True keeps a copy"
                )
            item.settled = False
            item.warnings += (f"its pages were {NOT_SEEN}, since {item.file} has moved or changed: add it again",)
            return
        reader = PageReader(
            parser, encoder, stage, self._store.layouts.get(PAGE), folder=self._store.path, on_pages=self._report_pages
        )
        if not self._page_cost_told:
            self._page_cost_told = True
            here = sum(reader.page_bytes(page) for page in item.document.pages)
            self._report("cost", here, here * max(self._total or 1, 1), "bytes")
        seen = reader.see(path, item.document, name=item.file)
        if not has_hash(path, item.origin.content_hash):
            raise LoadError(CHANGED)
        if len(seen.warnings) == len(item.document.pages) and self._had_pages(item):
            raise LoadError(f"none of its pages can be seen again: {seen.warnings[0]}")  # what was seen before must not be lost
        item.seen, item.settled = seen.vectors, item.settled and not seen.warnings
        item.warnings += seen.warnings
        if not item.chunks and not seen.vectors.pages and not seen.warnings:
            item.warnings += ("nothing was found in it: no text, and no page that is not blank",)
        self._pages += len(seen.vectors.pages)
        self._blank += seen.blank

    def _had_pages(self, item: Item) -> bool:
        """Whether the index that is being rebuilt, if one is, holds page images of the document."""
        if self._former_store is None:
            return False
        former = self._former_store.reader()
        row = former.by_identity(item.origin.identity)
        return row is not None and any(unit.kind == PAGE for unit in former.units_of(row.id))

    def _same_file(self, item: Item) -> Path | None:
        """Where the bytes of a document still are: its file, or the copy that the index keeps."""
        assert item.file is not None
        if has_hash(item.file, item.origin.content_hash):
            return item.file
        return source_copies.kept((self._former_store or self._store).path, item.origin.content_hash)

    def _known_pages(self, item: Item) -> PageVectors | None:
        """The page vectors of a live document of the same bytes and recipe, or of this one in the index that is being rebuilt."""
        digest, pages = item.origin.content_hash, item.document.pages
        reader = self._writer.reader()
        same = same_content(reader, {digest}, recipe_hash=self._recipe.hash).get(digest, [])
        found = next((one for row in same if (one := stored_pages(reader, row, pages)) is not None), None)
        if found is not None or self._former_store is None or not self._same_pages:
            return found
        former = self._former_store.reader()
        row = former.by_identity(item.origin.identity)
        if row is not None and not self._had_pages(item):
            return PageVectors((), (), None, ())  # they were looked at, and none was wanted
        kept = None if row is None else stored_pages(former, row, pages)
        dims = self._recipe.pages.dims if self._recipe.pages is not None else None
        if kept is None or kept.dense is None or dims is None or dims >= kept.dense.shape[1]:
            return kept
        return replace(kept, dense=unit_rows(kept.dense[:, :dims]))

    def _report_pages(self, count: int) -> None:
        self._seen_pages += count
        self._report("pages", self._seen_pages, None, "pages")

    def _embed(self, pool: Sequence[Item]) -> None:
        if self._recipe.encode.late_chunking:
            for start in range(0, len(pool), LATE_DOCUMENTS):
                self._encode_late(pool[start : start + LATE_DOCUMENTS])
            return
        for item in pool:
            item.dense = [None] * len(item.chunks)
            item.multi = [None] * len(item.chunks)
            item.texts = self._texts(item)
        self._tell_cost(pool)
        work = [(item, position) for item in pool for position in range(len(item.chunks))]
        # Like lengths together, so that a slice pads little; longest first, so that memory peaks at the start.
        work.sort(key=lambda pair: len(pair[0].texts[pair[1]]), reverse=True)
        for start in range(0, len(work), SLICE):
            self._encode_slice(work[start : start + SLICE])
        for item in pool:
            item.texts = []

    def _tell_cost(self, pool: Sequence[Item]) -> None:
        """Once, before the first document is embedded: about what the multi-vectors of all will take on disk."""
        if self._layout is None or self._recipe.multi is None or self._cost_told:
            return
        self._cost_told = True
        texts = [text for item in pool for text in item.texts]
        tokens = int(np.minimum(self._encoder.count_tokens(texts), self._recipe.encode.max_tokens).sum()) if texts else 0
        here = int(tokens * self._layout.bytes_a_token) // self._recipe.multi.pool
        documents = max(self._total or 0, len(pool))
        self._report("cost", here, here * documents // len(pool), "bytes")

    def _texts(self, item: Item) -> list[str]:
        """The chunks' texts as they are embedded."""
        stage, document = self._recipe.encode, item.document
        if not stage.contextual_headers:
            return [chunk.span.of(document.text) for chunk in item.chunks]
        return headed_texts(document, item.chunks, count_tokens=self._encoder.count_tokens, limit=stage.max_tokens)

    def _encode_late(self, pool: Sequence[Item]) -> None:
        """Each chunk's vector from the states of its document; a document that cannot be encoded fails alone."""
        stage = self._recipe.encode
        documents = [(item.document.text, [chunk.span for chunk in item.chunks]) for item in pool]
        options: dict[str, Any] = {"task": stage.task, "window": stage.max_tokens, "truncate_dim": stage.dims}
        try:
            with as_encode_errors():
                if self._layout is None:
                    rows = late_chunk_documents(self._encoder, documents, **options)
                else:
                    both = late_chunk_tokens(self._encoder, documents, **options)
                    rows = [dense for dense, _ in both]
                    for item, (_, multi) in zip(pool, both, strict=True):
                        item.multi = [*self._stored(multi)]
            for vectors in rows:
                checked(Encoding(dense=vectors), len(vectors), dense=self._width, multi=False)
        except RagkitError as error:
            if len(pool) > 1:
                for item in pool:
                    self._encode_late([item])
                return
            self._fail_item(pool[0], str(error))
            return
        for item, vectors in zip(pool, rows, strict=True):
            item.dense = list(vectors)
        self._encoded += sum(map(len, rows))
        self._report("encode", self._encoded, None, "units")

    def _keep(self, pool: Sequence[Item]) -> None:
        """Hand what was encoded to the next commit, and commit when it is due."""
        self._ready += [item for item in pool if not item.failed]
        units = sum(item.units for item in self._ready)
        multi = sum(one.values.nbytes for item in self._ready for one in item.multi if one is not None)
        multi += sum(one.values.nbytes for item in self._ready if item.seen for one in item.seen.multi)
        full = max(units, len(self._ready)) >= COMMIT_UNITS or multi >= COMMIT_BYTES
        if full or time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()

    def _encode_slice(self, work: Sequence[tuple[Item, int]]) -> None:
        work = [pair for pair in work if not pair[0].failed]
        if not work:
            return
        try:
            encoding = self._encode([item.texts[at] for item, at in work])
            stored = self._stored_of(encoding, count=len(work))
        except RagkitError as error:
            if len(work) > 1:  # one bad text must not take its neighbours with it
                for pair in work:
                    self._encode_slice([pair])
                return
            self._fail_item(work[0][0], str(error))
            return
        for number, (item, at) in enumerate(work):
            item.dense[at] = None if encoding.dense is None else encoding.dense[number]
            item.multi[at] = None if stored is None else stored[number]
        self._truncated += encoding.truncated
        self._encoded += len(work)
        self._report("encode", self._encoded, None, "units")

    def _encode(self, texts: Sequence[str]) -> Encoding:
        """One vector each, and one multi-vector, in one pass through the model."""
        stage, encoder = self._recipe.encode, self._encoder
        with as_encode_errors():
            if stage.overflow == "window":
                encoding = encode_windows(encoder, texts, max_tokens=stage.max_tokens, task=stage.task, dims=stage.dims)
            else:
                truncate = stage.overflow == "truncate"
                encoding = encoder.encode_document(texts, task=stage.task, truncate_dim=stage.dims, truncate=truncate)
        alone = self._recipe.multi is not None and self._recipe.multi.alone
        return checked(encoding, len(texts), dense=0 if alone else self._width, multi=self._layout is not None)

    def _stored_of(self, encoding: Encoding, *, count: int) -> list[Stored] | None:
        if self._layout is None:
            return None
        assert encoding.multi is not None
        return self._stored([encoding.multi[at] for at in range(count)])

    def _stored(self, rows: Sequence[Floats]) -> list[Stored]:
        """Multi-vectors pooled, and as they lie on disk, at once: in float32 they would fill the memory before the commit."""
        assert self._layout is not None
        assert self._recipe.multi is not None
        pool = self._recipe.multi.pool
        try:
            return [self._layout.store(MultiVectors.pack([pool_tokens(row, pool) if pool > 1 else row])) for row in rows]
        except ValueError as error:
            raise RagkitError(f"the encoder's multi-vectors cannot be kept: {error}") from error

    # Writing

    def _commit(self) -> None:
        ready, self._ready = self._ready, []
        self._committed = time.monotonic()
        if self._recipe.store.keep_sources:
            for item in ready:
                self._keep_source(item)
        for item in ready:
            self._writer.add(as_prepared(item))
        self._writer.commit("add", recipe_hash=self._recipe.hash)
        for item in ready:
            outcome = Outcome(item.origin.source, units=item.units, warnings=item.warnings, duplicate_of=item.duplicate_of)
            self._finish("added" if item.replaces is None else "updated", outcome)
            item.seen = None  # a pool holds its documents longer than their pictures' vectors should take room
        if ready:
            self._report("write", self._done, self._total, "documents")

    def _keep_source(self, item: Item) -> None:
        """A copy of the document's file, before the commit that cites it; of files of their own, which can be shown."""
        if item.file is None:
            return
        try:
            source_copies.keep(self._store.path, item.file, item.origin.content_hash)
        except (OSError, LoadError) as error:
            if source_copies.kept(self._store.path, item.origin.content_hash) is None:  # the file may be gone by now
                item.warnings += (f"no copy of its file was kept: {error}",)

    # The report

    def _fail_item(self, item: Item, reason: str) -> None:
        item.failed = True
        self._fail(item.origin.identity, item.origin.source, item.origin.content_hash, reason)

    def _fail(self, identity: str, source: str, digest: str, reason: str) -> None:
        identity, source, reason = printable(identity), printable(source), printable(reason)
        self._writer.fail(Failure(identity, source, digest, reason))
        self._finish("failed", Outcome(source, reason=reason))

    def _finish(self, kind: str, outcome: Outcome) -> None:
        self._outcomes[kind].append(outcome)
        self._done += 1
        self._report("load", self._done, self._total, "documents", outcome.source)

    def _report(self, stage: str, done: int, total: int | None, unit: str, source: str = "") -> None:
        if self._options.progress is not None:
            total = total if total is None or unit != "documents" else total + self._more
            self._options.progress(Progress(stage, done, total, unit, source))



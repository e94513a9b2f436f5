"""Where an index lives on this machine: segments and lexical generations on disk, the commit that makes them visible, readers.

This is the narrow seam between an index and its storage: see `ragkit.store.protocol`. The catalog alone decides what is
visible. The commit, in order:

    1. reserve keys and document ids in a transaction of their own
    2. write the segment's files to a new folder; sync files, folder and segments/
    3. write the next lexical generation to a new folder; sync it and lexical/
    4. one SQL transaction: insert documents, pages, units, segment and checksums; end the lives of what they replace

Before 4 the new folders are garbage, which only the holder of LOCK removes; after 4 they are live. Folders that a commit
retires go when no reader holds them.
"""

from __future__ import annotations

import shlex
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ragkit.core.errors import Damaged, IndexLocked, StorageError
from ragkit.core.types import Mask
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.commit import create as create_catalog
from ragkit.store.catalog.documents import versions
from ragkit.store.local import source_copies
from ragkit.store.local.columns import FieldColumns
from ragkit.store.local.files import CheckedFolder, FileRecord, sync_file, writing
from ragkit.store.local.garbage import sweep
from ragkit.store.local.locks import Pin, writer_lock
from ragkit.store.local.reader import Reader
from ragkit.store.local.segment import Segment, VectorFormats
from ragkit.store.local.writer import Writer
from ragkit.store.values import Change, Commit, Prepared, SegmentRow
from ragkit.store.vectors.lexical import LexicalReader, write_generation
from ragkit.store.vectors.multi_layout import Layout

# What lies in the folder of an index, also of one whose creation was interrupted.
INDEX_FILES = {"segments", "lexical", "LOCK", "catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal"}
AHEAD = 256  # ids reserved at once for rows that are no units


class Store:
    """The folder of an index. Thread-safe for readers; `writer()` admits one at a time, across processes."""

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        *,
        recall: float,
        layouts: Mapping[str, Layout] | None = None,
        id_source: Catalog | None = None,
    ) -> None:
        """layouts: how multi-vectors are stored, by the kind of units that have any. id_source: the catalog whose counters give
        out ids and keys, where that is another index's: see `ragkit.care.migrate`."""
        self.path = path
        self.layouts = layouts or {}
        self.repair_command = f"ragkit repair {shlex.quote(str(path))}"  # what to do where it is damaged
        self.device: str | None = None  # where torch scans multi-vectors; None for the kernel
        self.catalog = catalog
        self.recall = recall
        self.id_source = id_source or catalog
        self._columns = FieldColumns(lambda after: versions(catalog, after=after))
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._reader: Reader | None = None
        self._state: int | None = None  # of the catalog, when the reader's failures were read
        self._intact: Reader | None = None
        self._recorded: tuple[int, set[str]] = (0, set())  # the folders of which the catalog has records, as of a commit
        self._ahead = (0, 0)  # document ids that were reserved and not given out yet

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], *, lexical: bool = True) -> None:
        """A new, empty index in the existing folder `path`. Cut short, it left no index, and may be called again.

        Without `lexical` it never has a lexical generation, and "" stands for it.
        """
        generation, records = uuid.uuid4().hex if lexical else "", []
        with writing(path):
            for name in ("segments", "lexical"):
                (path / name).mkdir(exist_ok=True)
            if lexical:
                records = write_generation(None, path / "lexical" / generation, add=(), delete_documents=())
            for folder in (path / "lexical", path / "segments", path):
                sync_file(folder)
            create_catalog(path / "catalog.db", settings, lexical=generation, lexical_files=records)
            sync_file(path)

    def close(self) -> None:
        """Let go of files and connections; a later call opens them again."""
        with self._lock:
            self._reader = self._intact = None
        self.catalog.close()

    def setting(self, name: str) -> Any:
        """Return a setting, decoded from JSON; None where it was never set."""
        return self.catalog.setting(name)

    def reader(self, *, degraded: bool = False) -> Reader:
        """Return the newest commit. Cheap when nothing was committed since the last call.

        degraded: without what is damaged, which `missing` names; every byte is read when it is opened. Damaged otherwise.
        """
        return self._intact_reader() if degraded else self._newest_reader()

    def _newest_reader(self) -> Reader:
        with self._lock:
            while True:
                head = self.catalog.head(self._state)
                reader = self._reader
                if reader is None or reader.commit != head.commit:
                    reader = self._open(head.commit)
                if reader is not None:
                    if head.failures is not None:
                        reader = reader.with_failures(head.failures)
                    elif reader is not self._reader:  # it was opened without them
                        self._state = None
                        continue
                    self._reader, self._state = reader, head.state
                    return reader

    def _open(self, commit: Commit) -> Reader | None:
        """Open a commit; None where a newer one overtook it and its folders may be going."""
        known = {segment.row.id: segment for segment in self._reader.segments} if self._reader else {}
        rows = self.catalog.segments(commit.number)
        try:
            segments = [known.get(row.id) or self._open_segment(row) for row in rows]
            deleted = self.catalog.deleted_documents(commit.number)
            lexical = self._open_lexical(commit, self.catalog.files(commit.lexical)) if commit.lexical else None
            recipe = self.catalog.setting("recipe")
            if self.catalog.latest().number != commit.number:
                return None
            fresh = Reader(
                self.catalog,
                self._columns,
                commit,
                segments,
                lexical=lexical,
                deleted=deleted,
                recipe=recipe,
            )
            if lost := fresh.lost:
                raise Damaged(f"{self.catalog.path} is damaged: {lost}. Run: {self.repair_command}")
            return fresh
        except (FileNotFoundError, StorageError) as error:
            if self.catalog.latest().number != commit.number:
                return None
            if isinstance(error, FileNotFoundError):
                raise Damaged(f"{error.filename} is missing. Run: {self.repair_command}") from error
            raise

    def _intact_reader(self) -> Reader:
        with self._lock:
            while True:
                head = self.catalog.head(None)
                if self._intact is None or self._intact.commit != head.commit:
                    fresh = self._open_intact(head.commit)
                    if self.catalog.latest() != head.commit:
                        continue
                    self._intact = fresh
                return self._intact if head.failures is None else self._intact.with_failures(head.failures)

    def _open_intact(self, commit: Commit) -> Reader:
        missing, segments = [], []
        known = {segment.row.id: segment for segment in self._intact.segments} if self._intact else {}
        for row in self.catalog.segments(commit.number):
            try:
                segment = known.get(row.id) or self._open_segment(row)
                segment.verify()
                segments.append(segment)
            except (StorageError, OSError) as error:
                missing.append(f"segment {row.id}, {row.rows} vectors: {error}")
        lexical = None
        try:
            folder = self.path / "lexical" / commit.lexical
            lexical = LexicalReader(CheckedFolder(folder, self.catalog.files(commit.lexical)), pin=Pin(folder))
        except (StorageError, OSError) as error:
            missing.append(f"the lexical index: {error}")
        deleted, doubtful = self.catalog.deleted_or_damaged(commit.number)
        if doubtful:
            missing.append(f"{doubtful} documents: their rows in the catalog are damaged")
        recipe = self.catalog.setting("recipe")
        fresh = Reader(
            self.catalog,
            self._columns,
            commit,
            segments,
            lexical=lexical,
            deleted=deleted,
            recipe=recipe,
        )
        fresh.missing = tuple(missing)
        if not missing and (lost := fresh.lost):
            fresh.missing = (lost,)
        return fresh

    def _open_lexical(self, commit: Commit, records: Sequence[FileRecord]) -> LexicalReader:
        folder = self.path / "lexical" / commit.lexical
        pin = Pin(folder)  # before it is read
        return LexicalReader(CheckedFolder(folder, records, repair_command=self.repair_command), pin=pin)

    def _open_segment(self, row: SegmentRow, sealed: Sequence[FileRecord] | None = None) -> Segment:
        """`sealed`: the records of one that was just written."""
        records = self.catalog.files(row.id) if sealed is None else sealed
        folder = self.path / "segments" / row.id
        return Segment(folder, row, records, repair_command=self.repair_command, device=self.device, sealed=sealed is not None)

    @contextmanager
    def writer(self, *, timeout: float, mending: bool = False) -> Iterator[Writer]:
        """The only writer, until the block ends; IndexLocked where another does not let go in `timeout` seconds.

        `mending`: it works on what is intact, and removes no folder until the damage is gone.
        """
        if not self._writing.acquire(timeout=max(timeout, 0)):
            raise IndexLocked(f"{self.path} is being written to by another thread of this process. Wait for it to finish.")
        try:
            with writer_lock(self.path / "LOCK", timeout=timeout):
                latest = None if mending else self.catalog.latest()
                if latest is not None:
                    self._sweep(latest)
                try:
                    yield Writer(
                        self.path,
                        self.catalog,
                        latest,
                        formats=lambda: VectorFormats(self.recall, self.layouts),
                        reserve=self._reserve,
                        reader=self.reader,
                        on_commit=self._advance,
                    )
                finally:
                    self._settle()
        finally:
            self._writing.release()

    def remove_copies(self) -> None:
        """Remove the copies of files that no live document has."""
        if (self.path / source_copies.FOLDER).is_dir():
            source_copies.remove_unused(self.path, {row.content_hash for row in self.reader().documents()})

    def refresh(self) -> None:
        """Move this process's own reader forward, and remove what no reader holds any more."""
        self._sweep(self.reader().commit)

    def _settle(self) -> None:
        """Empty SQLite's log. A broken frame there ends it, for SQLite, and commits behind it would be gone without a word; so
        what is done does not stay in it. Where the disk refuses, or somebody reads, the next writer does it."""
        with suppress(StorageError):
            self.catalog.settle()

    def _reserve(self, prepared: Sequence[Prepared], units: int) -> tuple[int, int]:
        """Return the first of as many fresh document ids, and of `units` fresh keys.

        For rows under their caller's own keys, ids are reserved AHEAD at a time, which saves small commits a transaction and a
        sync each; those left when the process ends are never given out.
        """
        if any(item.key is None for item in prepared):
            return self.id_source.reserve(documents=len(prepared), units=units)
        first, stop = self._ahead
        if stop - first < len(prepared):
            first, _ = self.id_source.reserve(documents=len(prepared) + AHEAD, units=0)
            stop = first + len(prepared) + AHEAD
        self._ahead = (first + len(prepared), stop)
        return first, 0

    def _current(self, commit: Commit) -> Reader | None:
        """Return the commit's reader, where it is this process's own already."""
        reader = self._reader
        return reader if reader is not None and reader.commit == commit else None

    def _advance(self, change: Change, commit: Commit, live: Sequence[Mask]) -> None:
        """Move this process's own reader to the commit that it just made, and remove what no reader holds any more. live: see
        `Reader.live_without`."""
        number, recorded = self._recorded
        if number == commit.number - 1:
            self._recorded = (commit.number, (recorded | {row.id for row, _ in change.segments} | {commit.lexical}) - {""})
        with self._lock, suppress(OSError, StorageError):  # what cannot be opened here is reported by `reader`
            base = self._reader
            if base is not None and base.commit.number == commit.number - 1 and not change.settings:
                self._reader, self._state = self._after(base, change, commit, live), None
            del base
        self._sweep(self.reader().commit)

    def _after(self, base: Reader, change: Change, commit: Commit, live: Sequence[Mask]) -> Reader:
        fresh = [self._open_segment(row, files) for row, files in sorted(change.segments, key=lambda pair: pair[0].id)]
        lexical = self._open_lexical(commit, change.lexical_files) if commit.lexical else None
        return base.after(change, commit, live=live, fresh=fresh, lexical=lexical)

    def _sweep(self, latest: Commit) -> None:
        """Remove what the latest commit does not see and nobody reads. For the writer alone."""
        number, recorded = self._recorded
        swept = sweep(
            self.path,
            self.catalog,
            latest,
            self._current(latest),
            recorded=recorded if number == latest.number else self.catalog.folders(),
            open_reader=self.reader,
        )
        if swept.purged is not None:
            with self._lock:
                if reader := self._current(latest):
                    self._reader = reader.without(swept.purged)
        self._recorded = (latest.number, swept.recorded)

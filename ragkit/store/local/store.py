"""Where vectors live: segments and lexical generations on disk, the commit that makes them visible, and snapshots.

This is the narrow seam between Index and storage: write a batch, delete documents, search a space within a snapshot and
a filter. The catalog alone decides what is visible. The commit, in order:

    1. reserve keys and document ids in a transaction of their own
    2. write the segment's files to a new folder; sync files, folder and segments/
    3. write the next lexical generation to a new folder; sync it and lexical/
    4. one SQL transaction: insert documents, pages, units, segment and checksums; end the lives of what they replace

Before 4 the new folders are garbage, which only the holder of LOCK removes; after 4 they are live. Folders that a commit
retires go when no snapshot holds them.
"""

from __future__ import annotations

import shlex
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.errors import Damaged, IndexLocked, RagkitError, StorageError
from ragkit.core.types import Ints
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.checksums import leave_sums
from ragkit.store.catalog.commit import create as create_catalog
from ragkit.store.local import source_copies
from ragkit.store.local.files import CheckedFolder, FileRecord, sync_file, writing
from ragkit.store.local.locks import Pin, remove_unused, writer_lock
from ragkit.store.local.reader import Snapshot
from ragkit.store.local.segment import Mask, Segment
from ragkit.store.local.writer import Writer
from ragkit.store.values import Change, Commit, SegmentRow
from ragkit.store.vectors.lexical import LexicalReader, write_generation
from ragkit.store.vectors.multi_layout import Layout

AHEAD = 256  # ids reserved at once for rows that are no units
FORGET = 16  # folders gone before the catalog forgets them, where no text is to be forgotten with them


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
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._intact: Snapshot | None = None
        self._wrote = self._thorough = False  # since it was opened: anything at all; all of it
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
        with self._lock:
            self._snapshot = self._intact = None
        if self._wrote and self.id_source is self.catalog:
            self._leave_sums()
        self.catalog.close()

    def _leave_sums(self) -> None:
        """Leave the checksums of the catalog's own bytes, which `verify` compares. Nothing stands on them, so that who closes
        is not told where they cannot be written: they are of another time then, and say nothing."""
        with suppress(RagkitError, OSError), writer_lock(self.path / "LOCK", timeout=0):
            leave_sums(self.catalog, thorough=self._thorough)
            self._wrote = self._thorough = False

    def snapshot(self) -> Snapshot:
        """The newest commit, opened. Cheap when nothing was committed since the last call."""
        with self._lock:
            while True:
                commit = self.catalog.latest()
                if self._snapshot is not None and self._snapshot.commit == commit:
                    return self._snapshot
                fresh = self._open(commit)
                if fresh is not None:
                    self._snapshot = fresh

    def _open(self, commit: Commit) -> Snapshot | None:
        """The commit's snapshot, or None where a newer commit overtook it and its folders may be going."""
        known = {segment.row.id: segment for segment in self._snapshot.segments} if self._snapshot else {}
        rows = self.catalog.segments(commit.number)
        try:
            pin = Pin(self.path / "lexical" / commit.lexical) if commit.lexical else None
            segments = [known.get(row.id) or self._open_segment(row) for row in rows]
            deleted = self.catalog.deleted_documents(commit.number)
            lexical = self._open_lexical(commit, self.catalog.files(commit.lexical)) if commit.lexical else None
            recipe = self.catalog.setting("recipe")
            if self.catalog.latest().number != commit.number:
                return None
            fresh = Snapshot(commit, segments, lexical=lexical, lexical_pin=pin, deleted=deleted, recipe=recipe)
            if lost := fresh.lost:
                raise Damaged(f"{self.catalog.path} is damaged: {lost}. Run: {self.repair_command}")
            return fresh
        except (FileNotFoundError, StorageError) as error:
            if self.catalog.latest().number != commit.number:
                return None
            if isinstance(error, FileNotFoundError):
                raise Damaged(f"{error.filename} is missing. Run: {self.repair_command}") from error
            raise

    def intact(self) -> Snapshot:
        """The newest commit without what is damaged, which `missing` names. Every byte is read when it is opened."""
        with self._lock:
            while True:
                commit = self.catalog.latest()
                if self._intact is not None and self._intact.commit == commit:
                    return self._intact
                fresh = self._open_intact(commit)
                if self.catalog.latest() == commit:
                    self._intact = fresh

    def _open_intact(self, commit: Commit) -> Snapshot:
        missing, segments = [], []
        known = {segment.row.id: segment for segment in self._intact.segments} if self._intact else {}
        for row in self.catalog.segments(commit.number):
            try:
                segment = known.get(row.id) or self._open_segment(row)
                segment.verify()
                segments.append(segment)
            except (StorageError, OSError) as error:
                missing.append(f"segment {row.id}, {row.rows} vectors: {error}")
        lexical, pin = None, None
        try:
            folder = self.path / "lexical" / commit.lexical
            pin = Pin(folder)
            lexical = LexicalReader(CheckedFolder(folder, self.catalog.files(commit.lexical)))
        except (StorageError, OSError) as error:
            missing.append(f"the lexical index: {error}")
        deleted, doubtful = self.catalog.deleted_or_damaged(commit.number)
        if doubtful:
            missing.append(f"{doubtful} documents: their rows in the catalog are damaged")
        recipe = self.catalog.setting("recipe")
        fresh = Snapshot(commit, segments, lexical=lexical, lexical_pin=pin, deleted=deleted, missing=missing, recipe=recipe)
        if not missing and (lost := fresh.lost):
            fresh.missing = (lost,)
        return fresh

    def _open_lexical(self, commit: Commit, records: Sequence[FileRecord]) -> LexicalReader:
        return LexicalReader(CheckedFolder(self.path / "lexical" / commit.lexical, records, repair_command=self.repair_command))

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
                self._wrote = True
                latest = None if mending else self.catalog.latest()
                if latest is not None:
                    self._remove_unused(latest)
                try:
                    yield Writer(self, latest)
                finally:
                    self._settle()
        finally:
            self._writing.release()

    def remove_copies(self) -> None:
        """Remove the copies of files that no live document has."""
        if (self.path / source_copies.FOLDER).is_dir():
            source_copies.remove_unused(self.path, self.catalog.contents())

    def _settle(self) -> None:
        """Empty SQLite's log. A broken frame there ends it, for SQLite, and commits behind it would be gone without a word; so
        what is done does not stay in it. Where the disk refuses, or somebody reads, the next writer does it."""
        with suppress(StorageError):
            self.catalog.settle()

    def _remove_unused(self, latest: Commit) -> None:
        """Remove folders that the latest commit does not see and nobody reads; then the rows of dead documents.

        Where no text goes with them, the catalog forgets FORGET folders at a time: that takes a transaction.
        """
        opened = self._opened(latest)
        rows = self.catalog.segments(latest.number) if opened is None else [segment.row for segment in opened.segments]
        live = {row.id for row in rows} | ({latest.lexical} - {""})
        with writing(self.path):
            folders = [*(self.path / "segments").iterdir(), *(self.path / "lexical").iterdir()]
        number, recorded = self._recorded
        if number != latest.number:
            recorded = self.catalog.folders()
        kept = set(live)
        if {folder.name for folder in folders} - recorded:
            # A commit that failed at its sync may have left its frames in the write-ahead log, and a crash of the machine
            # would revive them, without their folders. This writes over them.
            self.catalog.reserve(documents=1, units=1)
        for folder in folders:
            with writing(folder):
                if folder.name not in live and folder.is_dir() and not remove_unused(folder):
                    kept.add(folder.name)
        # All that is recorded and not there, so that what a crash kept this from forgetting is forgotten now.
        gone = sorted(recorded - kept)
        if len(gone) >= (1 if latest.lexical else FORGET):
            # Without lexical generations no folder stands for a commit, and a snapshot once opened reads nothing more here.
            before = 0 if latest.lexical else latest.number
            purged = self.catalog.forget(gone, commits_before=before, keep=self._still_in_segments(latest))
            with self._lock:
                if opened := self._opened(latest):
                    self._snapshot = opened.without(purged)
            recorded = recorded.difference(gone)
        self._recorded = (latest.number, recorded)

    def _opened(self, commit: Commit) -> Snapshot | None:
        """The commit's snapshot, where it is this process's own already."""
        snapshot = self._snapshot
        return snapshot if snapshot is not None and snapshot.commit == commit else None

    def _still_in_segments(self, commit: Commit) -> Ints:
        """Deleted document versions of which a live segment still holds rows: their tombstones must stay."""
        opened = self._opened(commit)
        if len(self.catalog.deleted_documents(commit.number) if opened is None else opened.deleted) == 0:
            return np.empty(0, dtype=np.int64)
        snapshot = opened or self.snapshot()
        dead = [np.asarray(segment.documents)[~snapshot.live(at)] for at, segment in enumerate(snapshot.segments)]
        return np.unique(np.concatenate(dead)) if dead else np.empty(0, dtype=np.int64)

    def advance(self, change: Change, commit: Commit, live: Sequence[Mask]) -> None:
        """Move this process's own snapshot to the commit that it just made, and remove what no snapshot holds any more. live: see
        `Snapshot.live_without`."""
        number, recorded = self._recorded
        if number == commit.number - 1:
            self._recorded = (commit.number, (recorded | {row.id for row, _ in change.segments} | {commit.lexical}) - {""})
        with self._lock, suppress(OSError, StorageError):  # what cannot be opened here is told by `snapshot`
            base = self._snapshot
            if base is not None and base.commit.number == commit.number - 1 and not change.settings:
                self._snapshot = self._after(base, change, commit, live)
            del base
        self._remove_unused(self.as_of(commit).commit)

    def as_of(self, commit: Commit) -> Snapshot:
        """The snapshot of a commit that is known to be the newest."""
        return self._opened(commit) or self.snapshot()

    def _after(self, base: Snapshot, change: Change, commit: Commit, live: Sequence[Mask]) -> Snapshot:
        pin = Pin(self.path / "lexical" / commit.lexical) if commit.lexical else None
        fresh = [self._open_segment(row, files) for row, files in sorted(change.segments, key=lambda one: one[0].id)]
        lexical = self._open_lexical(commit, change.lexical_files) if commit.lexical else None
        return base.after(change, commit, live=live, fresh=fresh, lexical=lexical, pin=pin)

    def refresh(self) -> None:
        """Move this process's own snapshot forward, and remove what no snapshot holds any more."""
        self._remove_unused(self.snapshot().commit)

    def reserve_documents(self, count: int) -> int:
        """The first of as many fresh document ids, for rows that are no units. They are reserved AHEAD at a time, which saves
        small commits a transaction and a sync each; those left when the process ends are never given out."""
        first, stop = self._ahead
        if stop - first < count:
            first, _ = self.id_source.reserve(documents=count + AHEAD, units=0)
            stop = first + count + AHEAD
        self._ahead = (first + count, stop)
        return first



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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ragkit import sources
from ragkit.catalog.catalog import (
    CHUNK,
    PAGE,
    VECTOR,
    Catalog,
    Change,
    Commit,
    NewDocument,
    Origin,
    SegmentRow,
    UnitRow,
    origin_of,
)
from ragkit.catalog.sums import leave_sums
from ragkit.checked import CheckedFolder, FileRecord, map_array, seal, sync_file, write_array, writing
from ragkit.encode.given import PREFIX
from ragkit.errors import Damaged, IndexLocked, RagkitError, StorageError
from ragkit.locks import Pin, remove_unused, writer_lock
from ragkit.ragged import top_k, truncate_dims
from ragkit.recipe import Recipe
from ragkit.types import Chunk, Document, Floats, Ints, Page, Patches, Span
from ragkit.vectors.dense import DenseReader, near_duplicates, write_dense
from ragkit.vectors.lexical import LexicalReader, write_generation
from ragkit.vectors.maxsim import Scores
from ragkit.vectors.multi import COARSE, Layout, MultiReader, Stored, write_multi

DENSE = "chunk.dense"
LEXICAL = "chunk.lexical"
MULTI = "chunk.multi"
PAGE_DENSE = "page.dense"
PAGE_MULTI = "page.multi"
SMALL = 1 << 20  # bytes; segments below this are one tier, and are merged into the next commit at once
FANOUT = 4  # segments of one tier, four times as large each, before they are merged into the next
DEAD = 0.5  # share of deleted rows at which a segment is rewritten by the next commit
AHEAD = 256  # ids reserved at once for rows that are no units
FORGET = 16  # folders gone before the catalog forgets them, where no text is to be forgotten with them
ROWS = 4096  # rows copied at a time when segments are merged

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PageVectors:
    """Those pages of a document that were seen: n pages, where the vectors of each look, `dense` (n, d) float32 unit rows or
    None, and the multi-vectors in parts that have n rows together, or none."""

    pages: tuple[Page, ...]
    patches: tuple[Patches | None, ...]
    dense: Floats | None
    multi: tuple[Stored, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A document with its chunks and their vectors, ready to be written. `dense` (n, d) float32 unit rows, n chunks."""

    origin: Origin
    document: Document
    chunks: tuple[Chunk, ...]
    dense: Floats | None
    replaces: int | None  # the id of the version it replaces
    multi: Stored | None = None  # n rows
    key: int | None = None  # the caller's own, for a row that is no chunk; keys of chunks are reserved
    seen: PageVectors | None = None  # its page images
    settled: bool = True  # False: it lacks something, and is made anew when it is next added


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a commit adds to the vectors of one kind of units: keys and document versions (n,) int64, and the rows of each space
    that takes part."""

    kind: str
    keys: Ints
    documents: Ints
    dense: Floats | None
    multi: tuple[Stored, ...]  # in parts, since they may be large, or on disk

    @property
    def bytes(self) -> int:
        """About what they take on disk."""
        return (0 if self.dense is None else 2 * self.dense.size) + sum(part.values.nbytes for part in self.multi)


class Segment:
    """An open segment: `keys` and `documents` (n,) int64, mapped, and a reader per space, all of one `kind` of units. Immutable;
    held by a shared lock."""

    def __init__(
        self,
        folder: Path,
        row: SegmentRow,
        records: Sequence[FileRecord],
        *,
        mend: str,
        device: str | None = None,
        sealed: bool = False,
    ) -> None:
        """mend, sealed: see `CheckedFolder`."""
        self._device = device
        self.pin = Pin(folder)
        self.row = row
        self.kind = kind_of(row)
        self.folder = CheckedFolder(folder, records, mend=mend, sealed=sealed)
        self.keys = self._column("keys.npy")
        self.documents = self._column("documents.npy")
        self._lock = threading.Lock()
        self._dense: DenseReader | None = None
        self._multi: MultiReader | None = None

    @property
    def multi(self) -> MultiReader | None:
        """The multi-vectors, opened on first use."""
        if (space := f"{self.kind}.multi") not in self.row.spaces:
            return None
        with self._lock:
            if self._multi is None:
                self._multi = MultiReader(self.folder, space, self.keys, device=self._device)
            return self._multi

    def bytes_of(self, space: str) -> int:
        """What a space's files take on disk."""
        return sum(record.size for name, record in self.folder.records.items() if name.startswith(f"{space}."))

    @property
    def dense(self) -> DenseReader | None:
        """The dense vectors, opened on first use: a search by words alone must not fail because of them."""
        if (space := f"{self.kind}.dense") not in self.row.spaces:
            return None
        with self._lock:
            if self._dense is None:
                self._dense = DenseReader(self.folder, space)
            return self._dense

    def readable(self) -> bool:
        """Whether every byte that a rewrite reads is as it was written; coarse vectors it makes anew."""
        try:
            for name in self.folder.records:
                if COARSE not in name:
                    self.folder.verify(name)
        except Damaged:
            return False
        return True

    def verify(self) -> None:
        """Compare every byte with its checksum, those seen before excepted; Damaged names the file."""
        for name in self.folder.records:
            self.folder.verify(name)

    def _column(self, name: str) -> Ints:
        path = self.folder.file(name)
        self.folder.verify(name)
        column: Ints = map_array(path)
        return column


def kind_of(row: SegmentRow) -> str:
    """What kind of units a segment holds."""
    return row.spaces[0].partition(".")[0] if row.spaces else CHUNK


@dataclass(frozen=True, slots=True, eq=False)
class Salvaged:
    """Rows saved of a damaged segment: `keys` and `documents` (n,) int64, and their vectors; see `ragkit.repair`."""

    kind: str
    keys: Ints
    documents: Ints
    dense: SavedRows

    @property
    def multi(self) -> None:
        """Damaged segments with multi-vectors are embedded again instead."""
        return None


class SavedRows(Protocol):
    def rows(self, positions: npt.NDArray[np.int64]) -> Floats: ...


class Snapshot:
    """What one search sees: the segments, the lexical generation and the deletions of one commit."""

    def __init__(
        self,
        commit: Commit,
        segments: Sequence[Segment],
        lexical: LexicalReader | None,
        lexical_pin: Pin | None,
        deleted: Ints,
        missing: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
        live: Sequence[Mask] | None = None,
    ) -> None:
        """live: per segment the rows that `deleted` leaves visible, where they are known."""
        self.commit = commit
        self.recipe = recipe  # what made its vectors
        self.segments = tuple(segments)
        self.lexical = lexical  # None where it is damaged, which only `Store.intact` lets pass, and where there never was one
        self.missing = tuple(missing)  # what `Store.intact` left out
        self.deleted = deleted  # document versions, ascending
        self._lexical_pin = lexical_pin
        self._live = [~np.isin(segment.documents, deleted) for segment in segments] if live is None else list(live)

    @property
    def lost(self) -> str:
        """What tells that the catalog has lost the row of a segment: its commit counted other vectors than there are. Nothing
        where all are there, or where units may come without."""
        if self.recipe is not None and self.recipe["encode"]["model"].startswith(PREFIX):
            return ""
        counted = self.commit.documents if self.recipe is None else self.commit.units
        found = sum(int(np.count_nonzero(live)) for live in self._live)
        return "" if found == counted else f"its last commit counted {counted} units, and its segments hold {found}"

    def after(
        self,
        change: Change,
        commit: Commit,
        *,
        live: Sequence[Mask],
        fresh: Sequence[Segment],
        lexical: LexicalReader | None,
        pin: Pin | None,
    ) -> Snapshot:
        """What the next commit sees: this snapshot and what the commit changed, with nothing read from the catalog. live: see
        `live_without`."""
        kept = [pair for pair in zip(self.segments, live, strict=True) if pair[0].row.id not in change.retired_segments]
        kept += [(segment, np.ones(segment.row.rows, dtype=np.bool_)) for segment in fresh]
        segments, masks = [segment for segment, _ in kept], [mask for _, mask in kept]
        deleted = np.union1d(self.deleted, np.array(change.deleted_documents, dtype=np.int64))
        return Snapshot(commit, segments, lexical=lexical, lexical_pin=pin, deleted=deleted, recipe=self.recipe, live=masks)

    def live_without(self, deleted: Sequence[int]) -> list[Mask]:
        """Which rows of each segment are visible once these document versions are deleted, too."""
        if not deleted:
            return self._live
        dead = np.array(deleted, dtype=np.int64)
        return [live & ~np.isin(segment.documents, dead) for segment, live in zip(self.segments, self._live, strict=True)]

    def without(self, purged: Ints) -> Snapshot:
        """The same where these deleted versions, of which no segment holds rows, are gone from the catalog."""
        deleted = np.setdiff1d(self.deleted, purged, assume_unique=True)
        return Snapshot(
            self.commit, self.segments, lexical=self.lexical, lexical_pin=self._lexical_pin, deleted=deleted,
            recipe=self.recipe, live=self._live,
        )  # fmt: skip

    def sees(self, document: int) -> bool:
        """Whether a document version, which the catalog has, was not deleted as of this commit."""
        at = int(np.searchsorted(self.deleted, document))
        return at == len(self.deleted) or int(self.deleted[at]) != document

    def live(self, position: int) -> Mask:
        """Which rows of the segment at a position are visible, (n,) bool."""
        return self._live[position]

    def _of(self, kind: str) -> Iterator[tuple[Segment, Mask]]:
        """The segments of a kind of units, each with its visible rows."""
        return (pair for pair in zip(self.segments, self._live, strict=True) if pair[0].kind == kind)

    def keys(self, kind: str) -> Ints:
        """The keys of all visible units of a kind that have vectors, ascending, (n,) int64."""
        rows = [np.asarray(segment.keys)[live] for segment, live in self._of(kind)]
        return np.sort(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)

    def search_dense(
        self,
        queries: Floats,
        k: int,
        *,
        kind: str = CHUNK,
        allowed: Ints | None = None,
        dims: int | None = None,
        exact: bool = False,
    ) -> list[tuple[Ints, Floats]]:
        """The k best units of a kind per query over all segments: keys and cosines, best first, ties by key.

        queries (q, d) unit rows. `allowed` are the document versions to answer from, ascending; None is all of them.
        """
        found: list[list[tuple[Ints, Floats]]] = [[] for _ in queries]
        for segment, live in self._of(kind):
            if segment.dense is None:
                continue
            mask = live if allowed is None else live & np.isin(segment.documents, allowed)
            positions, scores = segment.dense.search(queries, k, keys=segment.keys, allowed=mask, dims=dims, exact=exact)
            for row, (at, score) in enumerate(zip(positions, scores, strict=True)):
                found[row].append((np.asarray(segment.keys[at], dtype=np.int64), score))
        return [_best(parts, k) for parts in found]

    def search_lexical(self, query: str, k: int, *, allowed: Ints | None = None) -> tuple[Ints, Floats]:
        """The k best units by BM25: keys and scores, best first, ties by key."""
        if self.lexical is None:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        if allowed is not None:
            allowed = np.setdiff1d(allowed, self.deleted, assume_unique=True)
        keys, _, scores = self.lexical.search(query, k, allowed_documents=allowed, excluded_documents=self.deleted)
        return keys, scores

    def search_multi(
        self,
        queries: Sequence[Floats],
        k: int,
        *,
        kind: str = CHUNK,
        allowed: Ints | None = None,
        keys: Ints | None = None,
        without: Ints | None = None,
        threads: int | None = None,
        candidates: int | None = None,
    ) -> list[tuple[Ints, Scores]]:
        """The k best units of a kind per query by MaxSim over all segments: keys and scores, best first, ties by key.

        queries (q, d) each. `allowed` are document versions, ascending, as in `search_dense`; `keys` units to answer from,
        `without` units not to. candidates: score only so many units exactly, those that the coarse vectors rank first, where
        there are coarse vectors and enough units that this saves work; None scores all.
        """
        found: list[list[tuple[Ints, Scores]]] = [[] for _ in queries]
        likely: list[list[tuple[Ints, Scores]]] = [[] for _ in queries]
        masks = []
        for segment, live in self._of(kind):
            mask = live if allowed is None else live & np.isin(segment.documents, allowed)
            mask = mask if keys is None else mask & np.isin(segment.keys, keys)
            masks.append(mask if without is None or len(without) == 0 else mask & ~np.isin(segment.keys, without))
        wanted = 0 if candidates is None else max(candidates, k)
        saves = wanted and sum(int(np.count_nonzero(mask)) for mask in masks) > 2 * wanted
        for (segment, _), mask in zip(self._of(kind), masks, strict=True):
            if segment.multi is not None:
                coarse = segment.multi.coarse if saves else None
                into, reader, depth = (found, segment.multi, k) if coarse is None else (likely, coarse, wanted)
                for parts, part in zip(into, reader.search(queries, depth, allowed=mask, threads=threads), strict=True):
                    parts.append(part)
        for query, parts, ranked in zip(queries, found, likely, strict=True):
            if ranked:
                parts.append(self.multi_scores(query, _best(ranked, wanted)[0]))
        return [_best(parts, k) for parts in found]

    def multi_scores(self, query: Floats, keys: Ints) -> tuple[Ints, Scores]:
        """Those of the keys (n,) that are visible and have multi-vectors, with their MaxSim scores, best first."""
        parts: list[tuple[Ints, Scores]] = []
        for multi, positions in self._multi_positions(keys):
            parts.append((multi.items.keys[positions], multi.scores_of([query], positions)[0]))
        return _best(parts, len(keys))

    def explain_multi(self, query: Floats, key: int) -> tuple[Ints, Scores]:
        """Per query token, the unit's token that matched best and its share, (q,) each; KeyError for a unit not visible."""
        for multi, positions in self._multi_positions(np.array([key], dtype=np.int64)):
            return multi.explain(query, int(positions[0]))
        raise KeyError(key)

    def _multi_positions(self, keys: Ints) -> Iterator[tuple[MultiReader, Ints]]:
        """The segments that hold visible rows of some of the keys, and where."""
        for segment, live in zip(self.segments, self._live, strict=True):
            multi = segment.multi
            positions = np.flatnonzero(np.isin(segment.keys, keys) & live)
            if multi is not None and len(positions):
                yield multi, positions

    def rows(self, keys: Iterable[int]) -> Floats:
        """The stored dense vectors of visible units, (n, d) float32; KeyError for a key that is not visible."""
        wanted = list(keys)
        found = self.known_rows(wanted)
        return np.stack([found[key] for key in wanted])

    def known_rows(self, keys: Iterable[int], *, kind: str | None = None) -> dict[int, Floats]:
        """The stored dense vectors, (d,) float32 each, of those units, of one kind or of all, that are visible and have one."""
        wanted = list(keys)
        found: dict[int, Floats] = {}
        for segment, live in zip(self.segments, self._live, strict=True):
            if segment.dense is not None and kind in (None, segment.kind):
                positions = np.flatnonzero(np.isin(segment.keys, wanted) & live)
                rows = segment.dense.rows(positions)
                found.update(zip(np.asarray(segment.keys)[positions].tolist(), rows, strict=True))
        return found

    def rows_of(self, documents: Ints, *, kind: str = CHUNK) -> dict[int, Floats]:
        """The stored dense vectors, (n, d) float32 in the order of the keys, of visible document versions that have any."""
        parts: dict[int, list[tuple[int, Floats]]] = {}
        for segment, live in self._of(kind):
            if segment.dense is not None:
                at = np.flatnonzero(np.isin(segment.documents, documents) & live)
                owners, keys = np.asarray(segment.documents)[at].tolist(), np.asarray(segment.keys)[at].tolist()
                for owner, key, row in zip(owners, keys, segment.dense.rows(at), strict=True):
                    parts.setdefault(owner, []).append((key, row))
        return {owner: np.stack([row for _, row in sorted(rows, key=lambda one: one[0])]) for owner, rows in parts.items()}

    def dense_rows(self) -> tuple[Ints, npt.NDArray[np.float16]]:
        """Every visible chunk's dense vector: keys (n,) and rows (n, d) float16, in no order; (0, 0) where there are none."""
        keys, rows = [np.empty(0, dtype=np.int64)], []
        for segment, live in self._of(CHUNK):
            if segment.dense is not None and live.any():
                at = np.flatnonzero(live)
                keys.append(np.asarray(segment.keys)[at])
                rows.append(segment.dense.rows(at).astype(np.float16))
        return np.concatenate(keys), np.concatenate(rows) if rows else np.empty((0, 0), dtype=np.float16)

    def multi_of(self, documents: Ints, *, kind: str = CHUNK) -> dict[int, list[Stored]]:
        """The stored multi-vectors, one by one in the order of the keys, of visible document versions that have any."""
        parts: dict[int, list[tuple[int, Stored]]] = {}
        for segment, live in self._of(kind):
            if segment.multi is not None:
                for at in np.flatnonzero(np.isin(segment.documents, documents) & live).tolist():
                    rows = Stored.join(list(segment.multi.stored(np.array([at]))))
                    parts.setdefault(int(segment.documents[at]), []).append((int(segment.keys[at]), rows))
        return {owner: [row for _, row in sorted(rows, key=lambda one: one[0])] for owner, rows in parts.items()}

    def near_duplicates(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Pairs of visible chunks with a cosine of at least `threshold`: key, larger key, cosine."""
        parts = [(segment.dense, segment.keys, live) for segment, live in self._of(CHUNK) if segment.dense]
        return near_duplicates(parts, threshold)

    def dense_stats(self, *, kind: str = CHUNK) -> Iterator[dict[str, Any]]:
        """Per segment of a kind: its rows, how many are live, and how its dense vectors are searched."""
        for segment, live in self._of(kind):
            if segment.dense is not None:
                yield {"segment": segment.row.id, "rows": segment.row.rows, "live": int(live.sum()), **segment.dense.describe()}

    def multi_stats(self, *, kind: str = CHUNK) -> Iterator[dict[str, Any]]:
        """Per segment of a kind: its rows, how many are live, and how its multi-vectors are stored."""
        for segment, live in self._of(kind):
            if segment.multi is not None:
                yield {"segment": segment.row.id, "live": int(live.sum()), **segment.multi.describe()}


def _best(parts: Sequence[tuple[Ints, npt.NDArray[Any]]], k: int) -> tuple[Ints, npt.NDArray[Any]]:
    if not parts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    keys = np.concatenate([part[0] for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    best = top_k(scores, keys, k)
    return keys[best], scores[best]


def layouts_of(recipe: Recipe) -> dict[str, Layout]:
    """How a recipe's multi-vectors are stored, by the kind of units that have any."""
    coarse = recipe.store.coarse
    layouts = {} if recipe.multi is None else {CHUNK: Layout(recipe.multi.dims, recipe.multi.precision, coarse)}
    if recipe.pages is not None and recipe.pages.precision is not None:
        layouts[PAGE] = Layout(recipe.pages.multi_dims, recipe.pages.precision, coarse)
    return layouts


class Store:
    """The folder of an index. Thread-safe for readers; `writer()` admits one at a time, across processes."""

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        *,
        recall: float,
        layouts: Mapping[str, Layout] | None = None,
        numbers: Catalog | None = None,
    ) -> None:
        """layouts: how multi-vectors are stored, by the kind of units that have any. `numbers` is whose counters give out ids and
        keys, where that is another index: see `ragkit.rebuild`."""
        self.path = path
        self.layouts = layouts or {}
        self.mend = f"ragkit repair {shlex.quote(str(path))}"  # what to do where it is damaged
        self.device: str | None = None  # where torch scans multi-vectors; None for the kernel
        self.catalog = catalog
        self.recall = recall
        self.numbers = numbers or catalog
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
            Catalog.create(path / "catalog.db", settings, lexical=generation, lexical_files=records)
            sync_file(path)

    def close(self) -> None:
        with self._lock:
            self._snapshot = self._intact = None
        if self._wrote and self.numbers is self.catalog:
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
                raise Damaged(f"{self.catalog.path} is damaged: {lost}. Run: {self.mend}")
            return fresh
        except (FileNotFoundError, StorageError) as error:
            if self.catalog.latest().number != commit.number:
                return None
            if isinstance(error, FileNotFoundError):
                raise Damaged(f"{error.filename} is missing. Run: {self.mend}") from error
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
        return LexicalReader(CheckedFolder(self.path / "lexical" / commit.lexical, records, mend=self.mend))

    def _open_segment(self, row: SegmentRow, sealed: Sequence[FileRecord] | None = None) -> Segment:
        """`sealed`: the records of one that was just written."""
        records = self.catalog.files(row.id) if sealed is None else sealed
        folder = self.path / "segments" / row.id
        return Segment(folder, row, records, mend=self.mend, device=self.device, sealed=sealed is not None)

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
        if (self.path / sources.FOLDER).is_dir():
            sources.remove_unused(self.path, self.catalog.contents())

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
            first, _ = self.numbers.reserve(documents=count + AHEAD, units=0)
            stop = first + count + AHEAD
        self._ahead = (first + count, stop)
        return first


class Writer:
    """What the holder of LOCK can do. `latest` is the newest commit, since nobody else can make one; None while mending."""

    def __init__(self, store: Store, latest: Commit | None) -> None:
        self._store = store
        self.latest = latest

    @property
    def mending(self) -> bool:
        return self.latest is None

    def commit(
        self,
        kind: str,
        prepared: Sequence[Prepared] = (),
        *,
        delete: Sequence[int] = (),
        recipe_hash: str = "",
        merge: bool = False,
        salvaged: Mapping[str, Segment | Salvaged | None] | None = None,
        fresh_words: bool = False,
        settings: Mapping[str, Any] | None = None,
        dims: int | None = None,
        unmade: Sequence[str] = (),
    ) -> Commit:
        """Make documents and deletions visible, all at once. `delete` are ids of versions; `merge` all segments into one.

        salvaged: damaged segments to retire, by id, each with the rows that were saved of it. fresh_words: make the lexical
        index anew from the catalog, as is done where it is damaged. settings: change them too; dims: cut the rows to as many,
        with `merge`; unmade: see `Change`.
        """
        store = self._store
        snapshot = store.intact() if self.latest is None else store.as_of(self.latest)
        salvaged = salvaged or {}
        documents, fresh = self._reserve(prepared)
        saved = [rows for rows in salvaged.values() if rows is not None]
        deleted = sorted({*delete, *(one.replaces for one in prepared if one.replaces is not None)})
        if merge and dims is not None:
            for segment in snapshot.segments:
                segment.verify()  # one that is damaged must not stay behind as wide as it was
        live = snapshot.live_without(deleted)
        absorbed = {rows.kind: self._absorbed(snapshot, live, fresh=rows, merge=merge) for rows in fresh}
        retired = [segment.row.id for segments in absorbed.values() for segment in segments]
        change = Change(
            number=snapshot.commit.number + 1,
            kind=kind,
            recipe_hash=recipe_hash,
            lexical=uuid.uuid4().hex if snapshot.commit.lexical else "",
            lexical_files=(),
            documents=documents,
            deleted_documents=deleted,
            retired_segments=[*retired, *salvaged],
            settings=settings or {},
            unmade=unmade,
        )
        with writing(store.path):
            # Damage may be in what the snapshot holds to be deleted, so while mending only the catalog's word counts.
            dead = store.catalog.deleted_documents(snapshot.commit.number) if self.mending else snapshot.deleted
            for rows in fresh:
                kept: list[Segment | Salvaged] = [*absorbed[rows.kind], *(one for one in saved if one.kind == rows.kind)]
                if len(rows.keys) or kept:
                    change = self._write_segment(change, kept, rows, dead=np.union1d(dead, deleted), dims=dims)
            if change.lexical:
                change = self._write_lexical(change, snapshot, fresh=fresh_words or snapshot.lexical is None)
        commit = store.catalog.commit(change)
        store._thorough |= merge
        del snapshot, absorbed, saved  # they hold the folders that are about to be removed
        if not self.mending:
            self.latest = commit
            store.advance(change, commit, live)
        return commit

    def _reserve(self, prepared: Sequence[Prepared]) -> tuple[list[NewDocument], list[Rows]]:
        """The documents under fresh ids, their units under fresh keys or the caller's own, and by kind their rows in that
        order."""
        count = sum(len(one.chunks) + len(one.seen.pages if one.seen else ()) for one in prepared)
        if all(one.key is not None for one in prepared):
            document, key = self._store.reserve_documents(len(prepared)), 0
        else:
            document, key = self._store.numbers.reserve(documents=len(prepared), units=count)
        documents = []
        for one in prepared:
            units = _units(one, document, key)
            documents.append(NewDocument(document, one.origin, one.document, units, one.settled))
            document, key = document + 1, key if one.key is not None else key + len(units)
        pairs = list(zip(prepared, documents, strict=True))
        embedded = [(one, new.units) for one, new in pairs if one.dense is not None or one.multi is not None]
        chunks = [unit for _, units in embedded for unit in units if unit.kind != PAGE]
        pages = [unit for new in documents for unit in new.units if unit.kind == PAGE]
        seen = [one.seen for one in prepared if one.seen is not None]
        return documents, [
            _rows(CHUNK, chunks, [one.dense for one in prepared], [one.multi for one in prepared if one.multi is not None]),
            _rows(PAGE, pages, [one.dense for one in seen], [part for one in seen for part in one.multi]),
        ]

    def _absorbed(self, snapshot: Snapshot, live: Sequence[Mask], *, fresh: Rows, merge: bool) -> list[Segment]:
        """The segments of their kind that this commit rewrites together with its own rows."""
        pairs = [pair for pair in zip(snapshot.segments, live, strict=True) if pair[0].kind == fresh.kind]
        segments = [segment for segment, _ in pairs]
        sizes = [segment.row.bytes for segment in segments]
        shares = [1.0 - np.count_nonzero(mask) / len(mask) if len(mask) else 1.0 for _, mask in pairs]
        everything = range(len(sizes))
        chosen = everything if merge else merge_policy(sizes, new=fresh.bytes, dead=shares)
        # What is damaged cannot be rewritten, but with its last document deleted it can be dropped.
        return [segments[position] for position in chosen if shares[position] == 1 or segments[position].readable()]

    def _write_segment(
        self, change: Change, absorbed: Sequence[Segment | Salvaged], fresh: Rows, *, dead: Ints, dims: int | None = None
    ) -> Change:
        store = self._store
        live = [np.flatnonzero(~np.isin(segment.documents, dead)) for segment in absorbed]
        # Nothing of a damaged segment is read once all of it is dead.
        kept = [(segment, positions) for segment, positions in zip(absorbed, live, strict=True) if len(positions)]
        keys = np.concatenate([*(np.asarray(segment.keys)[at] for segment, at in kept), fresh.keys])
        documents = np.concatenate([*(np.asarray(segment.documents)[at] for segment, at in kept), fresh.documents])
        if len(keys) == 0:
            return change
        name = uuid.uuid4().hex
        folder = store.path / "segments" / name
        folder.mkdir()
        write_array(folder / "keys.npy", keys)
        write_array(folder / "documents.npy", documents)
        written = {}
        dense, multi = f"{fresh.kind}.dense", f"{fresh.kind}.multi"
        if fresh.dense is not None or any(segment.dense is not None for segment, _ in kept):
            width = dims if fresh.kind == CHUNK else None
            written[dense] = write_dense(folder, dense, _cut(_dense_blocks(kept, fresh), width), recall=store.recall).rows
        if (layout := store.layouts.get(fresh.kind)) is not None:
            written[multi] = write_multi(folder, multi, layout, _multi_blocks(kept, fresh)).rows
        for space, rows in written.items():
            if rows != len(keys):
                raise StorageError(f"{len(keys)} rows were to be written, but {space} has {rows}; nothing was changed")
        records = seal(folder)
        sync_file(folder.parent)
        row = SegmentRow(name, len(keys), sum(record.size for record in records), tuple(written))
        return replace(change, segments=(*change.segments, (row, records)))

    def _write_lexical(self, change: Change, snapshot: Snapshot, *, fresh: bool) -> Change:
        store = self._store
        folder = store.path / "lexical" / change.lexical
        if fresh:
            everything = chain(self._stored(snapshot, change.deleted_documents), _lexical_rows(change.documents))
            records = write_generation(None, folder, add=everything, delete_documents=())
        else:
            known = {record.name: record for record in store.catalog.files(snapshot.commit.lexical)}
            records = write_generation(
                store.path / "lexical" / snapshot.commit.lexical,
                folder,
                add=_lexical_rows(change.documents),
                delete_documents=change.deleted_documents,
                known=known.get,
            )
        sync_file(folder.parent)
        return replace(change, lexical_files=records)

    def _stored(self, snapshot: Snapshot, deleted: Sequence[int]) -> Iterator[tuple[int, int, str, str | None]]:
        """What the lexical index holds of the documents that the catalog has, less those that go."""
        catalog, gone = self._store.catalog, set(deleted)
        rows = (row for row in catalog.documents(snapshot.commit.number) if row.id not in gone)
        return _lexical_rows(
            NewDocument(row.id, origin_of(row), catalog.document(row), tuple(catalog.units_of(row.id))) for row in rows
        )


def _units(one: Prepared, document: int, key: int) -> tuple[UnitRow, ...]:
    """A document's units, chunks first, under keys from `key` on."""
    if one.key is not None:
        return (UnitRow(one.key, document, VECTOR, Span(0, 0)),)
    chunks = [UnitRow(key + at, document, CHUNK, chunk.span, chunk.headings) for at, chunk in enumerate(one.chunks)]
    if one.seen is None:
        return tuple(chunks)
    pairs = enumerate(zip(one.seen.pages, one.seen.patches, strict=True), start=key + len(chunks))
    pages = [UnitRow(at, document, PAGE, page.span, page=page.number, patches=patches) for at, (page, patches) in pairs]
    return (*chunks, *pages)


def _rows(kind: str, units: Sequence[UnitRow], dense: Sequence[Floats | None], multi: Sequence[Stored]) -> Rows:
    """The rows of units of one kind, in the order of the documents whose vectors are given."""
    rows = [one for one in dense if one is not None and len(one)]
    return Rows(
        kind,
        keys=np.array([unit.key for unit in units], dtype=np.int64),
        documents=np.array([unit.document for unit in units], dtype=np.int64),
        dense=np.concatenate(rows) if rows else None,
        multi=tuple(one for one in multi if len(one)),
    )


def _lexical_rows(documents: Iterable[NewDocument]) -> Iterator[tuple[int, int, str, str | None]]:
    for new in documents:
        for unit in (unit for unit in new.units if unit.kind == CHUNK):
            yield unit.key, unit.document, unit.span.of(new.document.text), new.origin.lang or None


def _dense_blocks(kept: Sequence[tuple[Segment | Salvaged, npt.NDArray[np.intp]]], fresh: Rows) -> Iterator[Floats]:
    for segment, positions in kept:
        if segment.dense is not None:
            for start in range(0, len(positions), ROWS):
                yield segment.dense.rows(positions[start : start + ROWS])
    if fresh.dense is not None:
        yield fresh.dense


def _multi_blocks(kept: Sequence[tuple[Segment | Salvaged, npt.NDArray[np.intp]]], fresh: Rows) -> Iterator[Stored]:
    for segment, positions in kept:
        if segment.multi is not None:
            yield from segment.multi.stored(positions)
    yield from fresh.multi


def _cut(blocks: Iterator[Floats], dims: int | None) -> Iterator[Floats]:
    return blocks if dims is None else (truncate_dims(block, dims) for block in blocks)


def merge_policy(sizes: Sequence[int], *, new: int, dead: Sequence[float]) -> list[int]:
    """Positions of the segments to rewrite together with `new` bytes of fresh rows, ascending.

    A log-structured merge: segments fall into tiers by size, each FANOUT times the one below; everything under SMALL is
    the lowest tier. A tier that would hold FANOUT segments is merged, and what comes of it may fill the next. So n
    additions leave O(log n) segments, and a row is rewritten O(log n) times. Segments mostly dead go too.
    """
    chosen = {position for position, share in enumerate(dead) if share > DEAD}
    total = new + sum(sizes[position] for position in chosen)
    if total == 0:
        return sorted(chosen)
    small = {position for position, size in enumerate(sizes) if size < SMALL} - chosen
    chosen |= small
    total += sum(sizes[position] for position in small)
    while True:
        tier = _tier(total)
        peers = [position for position, size in enumerate(sizes) if position not in chosen and _tier(size) <= tier]
        if len(peers) < FANOUT - 1:
            return sorted(chosen)
        chosen.update(peers)
        total += sum(sizes[position] for position in peers)


def _tier(size: int) -> int:
    tier = 0
    while size >= SMALL:
        size //= FANOUT
        tier += 1
    return tier

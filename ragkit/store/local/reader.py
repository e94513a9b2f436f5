"""Read one commit of a local store: its vectors, words, documents, failures and counts. Nothing else is read beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import top_k
from ragkit.core.space import Space
from ragkit.core.types import Floats, Ints, Mask
from ragkit.encode.external import PREFIX
from ragkit.store.catalog.catalog import Catalog, FailureRows
from ragkit.store.catalog.database import in_batches
from ragkit.store.catalog.documents import CommittedDocuments
from ragkit.store.filter import Filter, passage_test
from ragkit.store.local.columns import FieldColumns
from ragkit.store.local.segment import Segment
from ragkit.store.values import CHUNK, PAGE, Change, Commit, DocumentRow, Failure, StoreStats, UnitRow
from ragkit.store.vectors.lexical import LexicalReader
from ragkit.store.vectors.multi import MultiReader
from ragkit.store.vectors.multi_layout import Stored
from ragkit.store.vectors.near_duplicates import near_duplicates
from ragkit.store.vectors.tiles import Scores

ROWS = 4096  # dense rows read together
LIKELY = 512  # units that MaxSim scores exactly, at least, of those that coarse vectors rank first; and so many times k:
TIMES = 16  # measured in docs/decisions/coarse-vectors.md
SpaceQueries: TypeAlias = Sequence[str] | Floats | Sequence[Floats]
Ranked: TypeAlias = tuple[Ints, npt.NDArray[Any]]  # keys (n,) int64 and scores (n,), best first


class Reader(CommittedDocuments):
    """One commit. Immutable, and safe for any number of threads.

    While it lives, its folders are locked: no writer removes them, nor purges the documents that it sees. An index without
    a lexical generation has nothing to lock for its documents; theirs may be purged, but not their vectors.
    """

    def __init__(
        self,
        catalog: Catalog,
        columns: FieldColumns,
        commit: Commit,
        segments: Sequence[Segment],
        *,
        lexical: LexicalReader | None,
        deleted: Ints,
        recipe: Mapping[str, Any] | None = None,
        live: Sequence[Mask] | None = None,
    ) -> None:
        """live: the visible rows of each segment, where they are known; by default those that `deleted` leaves."""
        super().__init__(catalog, commit.number)
        self._catalog = catalog
        self._columns = columns  # shared by all readers of a store: versions of documents never change
        self.commit = commit
        self.recipe = recipe  # what made its vectors
        self.segments = tuple(segments)
        self.lexical = lexical  # None in an index without documents, and where it is damaged and the reader is degraded
        self.missing: tuple[str, ...] = ()  # what a degraded reader leaves out
        self.deleted = deleted  # document versions, ascending
        self._live = [~np.isin(segment.documents, deleted) for segment in segments] if live is None else list(live)
        self._failures: FailureRows = ()
        self._narrowed: tuple[Filter, Ints] | None = None  # the filter of the last search, and what it came to

    @property
    def lost(self) -> str:
        """Describe a missing segment row, or return "". The commit's unit count must equal the number of live vectors.

        Not where vectors come from outside, since units may come without them there.
        """
        if self.recipe is not None and self.recipe["encode"]["model"].startswith(PREFIX):
            return ""
        counted = self.commit.documents if self.recipe is None else self.commit.units
        rows = sum(int(np.count_nonzero(live)) for live in self._live)
        return "" if rows == counted else f"its last commit counted {counted} units, and its segments hold {rows}"

    def unlocked(self) -> CommittedDocuments:
        """Return the documents of this commit without its locks: they may be purged once no reader sees them."""
        return CommittedDocuments(self._catalog, self.commit.number)

    # The next readers of the same store

    def with_failures(self, failures: FailureRows) -> Reader:
        """Return the same commit with these failures."""
        reader = copy.copy(self)
        reader._failures = failures
        return reader

    def after(
        self,
        change: Change,
        commit: Commit,
        *,
        live: Sequence[Mask],
        fresh: Sequence[Segment],
        lexical: LexicalReader | None,
    ) -> Reader:
        """Return the next commit: this one and what `change` did, reading nothing from the catalog. live: see `live_without`."""
        kept = [pair for pair in zip(self.segments, live, strict=True) if pair[0].row.id not in change.retired_segments]
        kept += [(segment, np.ones(segment.row.rows, dtype=np.bool_)) for segment in fresh]
        segments, masks = [segment for segment, _ in kept], [mask for _, mask in kept]
        deleted = np.union1d(self.deleted, np.array(change.deleted_documents, dtype=np.int64))
        return Reader(
            self._catalog,
            self._columns,
            commit,
            segments,
            lexical=lexical,
            deleted=deleted,
            recipe=self.recipe,
            live=masks,
        )

    def without(self, purged: Ints) -> Reader:
        """Return the same commit once these deleted versions, of which no segment holds rows, are purged from the catalog."""
        reader = copy.copy(self)
        reader.deleted = np.setdiff1d(self.deleted, purged, assume_unique=True)
        return reader

    def live_without(self, deleted: Sequence[int]) -> list[Mask]:
        """Return the visible rows of each segment once these document versions are deleted, too."""
        if not deleted:
            return self._live
        dead = np.array(deleted, dtype=np.int64)
        return [live & ~np.isin(segment.documents, dead) for segment, live in zip(self.segments, self._live, strict=True)]

    def live(self, position: int) -> Mask:
        """Return the visible rows of the segment at a position, (n,) bool."""
        return self._live[position]

    def _of(self, kind: str) -> Iterator[tuple[Segment, Mask]]:
        """Yield the segments of a kind of units, each with its visible rows."""
        return (pair for pair in zip(self.segments, self._live, strict=True) if pair[0].kind == kind)

    def keys(self, kind: str) -> Ints:
        """Return the keys of all visible units of a kind that have vectors, ascending, (n,) int64."""
        rows = [np.asarray(segment.keys)[live] for segment, live in self._of(kind)]
        return np.sort(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)

    # Documents, failures, counts

    def documents(self, where: Filter | None = None) -> Iterator[DocumentRow]:
        """Yield the documents, or those that match a filter, by id, streamed in short reads, without their texts."""
        if where is None:
            return self.every_document()
        return self._by_ids(np.setdiff1d(self._columns.matching(where), self.deleted, assume_unique=True))

    def _by_ids(self, ids: Ints) -> Iterator[DocumentRow]:
        for batch in in_batches(ids.tolist()):
            yield from self.find(batch, by="id")

    def passage_test(self, where: Filter | None) -> Callable[[UnitRow], bool] | None:
        """Return whether a unit that was found satisfies a filter; None where the filter speaks of documents alone."""
        return passage_test(where, self)

    def _allowed(self, where: Filter | None) -> Ints | None:
        """Return the document versions that may match, ascending, those included that this commit does not see; None is all."""
        if where is None:
            return None
        if self._narrowed is None or self._narrowed[0] is not where:
            self._narrowed = where, self._columns.matching(where)
        return self._narrowed[1]

    def failures(self) -> list[Failure]:
        """Return the documents that failed when they were last added, by source."""
        return self._catalog.failures_of(self._failures)

    def stats(self) -> StoreStats:
        """Return bytes on disk by part, and what each segment holds."""
        parts = {
            "catalog": sum(path.stat().st_size for path in self._catalog.path.parent.glob("catalog.db*")),
            "vectors": sum(segment.row.bytes for segment in self.segments),
            "lexical": sum(record.size for record in self._catalog.files(self.commit.lexical)),
            "multi": sum(segment.bytes_of(Space.MULTI) for segment in self.segments),
            "pages": sum(segment.row.bytes for segment in self.segments if segment.kind == PAGE),
        }
        parts["vectors"] -= parts["multi"] + parts["pages"]
        return StoreStats(
            segments=len(self.segments),
            bytes_by_part=parts,
            dense=tuple(self.dense_stats()),
            multi=tuple(self.multi_stats()),
            page_dense=tuple(self.dense_stats(kind=PAGE)),
            page_multi=tuple(self.multi_stats(kind=PAGE)),
        )

    # Vectors and words

    def spaces(self) -> list[Space]:
        """Return the spaces of which there are vectors, sorted."""
        return sorted({space for segment in self.segments for space in segment.row.spaces})

    def scores(self, space: Space, query: Floats, keys: Ints) -> Ranked:
        """Return those of the keys (n,) that are visible and have multi-vectors, with their MaxSim scores, best first."""
        parts: list[Ranked] = []
        for multi, positions in self._multi_positions(space.kind, keys):
            parts.append((multi.items.keys[positions], multi.scores_of([query], positions)[0]))
        return _best(parts, len(keys))

    def matches(self, space: Space, query: Floats, key: int) -> tuple[Ints, Scores]:
        """Return, per query token, the unit's token that matched best and its share, (q,) each; KeyError if it is not visible."""
        for multi, positions in self._multi_positions(space.kind, np.array([key], dtype=np.int64)):
            return multi.explain(query, int(positions[0]))
        raise KeyError(key)

    def rows(self, space: Space, keys: Iterable[int]) -> dict[int, Floats]:
        """Return the stored dense vectors, (d,) float32 each, of those units of a space that are visible and have one."""
        return self.known_rows(keys, kind=space.kind)

    def scan(self, space: Space) -> Iterator[tuple[Ints, object]]:
        """Yield every visible unit of a space once: see `scan_dense` and `scan_multi`."""
        yield from self.scan_dense(space) if space.form == "dense" else self.scan_multi(space)

    def scan_dense(self, space: Space) -> Iterator[tuple[Ints, Floats]]:
        """Yield the visible dense rows of a space in parts, in no order: keys (n,) int64 and rows (n, d) float32."""
        for segment, live in self._of(space.kind):
            if segment.dense is not None:
                positions = np.flatnonzero(live)
                for start in range(0, len(positions), ROWS):
                    part = positions[start : start + ROWS]
                    yield np.asarray(segment.keys)[part], segment.dense.rows(part)

    def scan_multi(self, space: Space) -> Iterator[tuple[Ints, Stored]]:
        """Yield the visible multi-vectors of a space in parts, in no order: keys (n,) int64 and n multi-vectors as stored."""
        for segment, live in self._of(space.kind):
            positions = np.flatnonzero(live)
            done = 0
            for stored in segment.multi.stored(positions) if segment.multi is not None and len(positions) else ():
                yield np.asarray(segment.keys)[positions[done : done + len(stored)]], stored
                done += len(stored)

    def search(
        self,
        space: Space,
        queries: SpaceQueries,
        k: int,
        *,
        where: Filter | None = None,
        dims: int | None = None,
        exact: bool = False,
    ) -> list[Ranked]:
        """Return the k best units of a space per query: keys and scores, best first, ties by key.

        queries: texts for words; unit rows (q, d) for dense vectors; for multi-vectors a (t, d) array each. where: the documents
        to answer from; of a filter that speaks of passages, those of which some passage may match. dims: compare the first dims
        of dense vectors alone. exact: compare every vector, not first the compressed and the coarse ones.
        """
        allowed = self._allowed(where)
        if space.form == "lexical":
            return [self.search_lexical(str(query), k, allowed=allowed) for query in queries]
        if space.form == "dense":
            rows = np.asarray(queries, dtype=np.float32)
            return self.search_dense(rows, k, kind=space.kind, allowed=allowed, dims=dims, exact=exact)
        candidates = None if exact else max(LIKELY, TIMES * k)
        several = [np.asarray(query, dtype=np.float32) for query in queries]
        return self.search_multi(several, k, kind=space.kind, allowed=allowed, candidates=candidates)

    def search_dense(
        self,
        queries: Floats,
        k: int,
        *,
        kind: str = CHUNK,
        allowed: Ints | None = None,
        dims: int | None = None,
        exact: bool = False,
    ) -> list[Ranked]:
        """Return the k best units of a kind per query over all segments: keys and cosines, best first, ties by key.

        queries (q, d) unit rows. allowed: the document versions to answer from, ascending; None is all of them.
        """
        parts: list[list[Ranked]] = [[] for _ in queries]
        for segment, live in self._of(kind):
            if segment.dense is None:
                continue
            mask = live if allowed is None else live & np.isin(segment.documents, allowed)
            positions, scores = segment.dense.search(queries, k, keys=segment.keys, allowed=mask, dims=dims, exact=exact)
            for row, (at, score) in enumerate(zip(positions, scores, strict=True)):
                parts[row].append((np.asarray(segment.keys[at], dtype=np.int64), score))
        return [_best(part, k) for part in parts]

    def search_lexical(self, query: str, k: int, *, allowed: Ints | None = None) -> Ranked:
        """Return the k best units by BM25: keys and scores, best first, ties by key."""
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
    ) -> list[Ranked]:
        """Return the k best units of a kind per query by MaxSim over all segments: keys and scores, best first, ties by key.

        queries (q, d) each. allowed: document versions, ascending, as in `search_dense`; keys: units to answer from; without:
        units not to answer from. candidates: score only so many units exactly, those that the coarse vectors rank first, where
        there are coarse vectors and enough units that this saves work; None scores all.
        """
        readers = list(self._multi_readers(kind, allowed=allowed, keys=keys, without=without))
        depth = 0 if candidates is None else max(candidates, k)
        saves = depth and sum(int(np.count_nonzero(mask)) for _, mask in readers) > 2 * depth
        exact: list[list[Ranked]] = [[] for _ in queries]
        likely: list[list[Ranked]] = [[] for _ in queries]
        for multi, mask in readers:
            coarse = multi.coarse if saves else None
            into, reader, count = (exact, multi, k) if coarse is None else (likely, coarse, depth)
            for parts, part in zip(into, reader.search(queries, count, allowed=mask, threads=threads), strict=True):
                parts.append(part)
        for query, parts, ranked in zip(queries, exact, likely, strict=True):
            if ranked:
                parts.append(self.scores(Space.of(kind, "multi"), query, _best(ranked, depth)[0]))
        return [_best(parts, k) for parts in exact]

    def _multi_readers(
        self, kind: str, *, allowed: Ints | None, keys: Ints | None, without: Ints | None
    ) -> Iterator[tuple[MultiReader, Mask]]:
        """Yield the multi-vectors of each segment of a kind, with its visible rows that may answer, (n,) bool."""
        for segment, live in self._of(kind):
            if segment.multi is None:
                continue
            mask = live if allowed is None else live & np.isin(segment.documents, allowed)
            mask = mask if keys is None else mask & np.isin(segment.keys, keys)
            yield segment.multi, mask if without is None or len(without) == 0 else mask & ~np.isin(segment.keys, without)

    def _multi_positions(self, kind: str, keys: Ints) -> Iterator[tuple[MultiReader, Ints]]:
        """Yield the segments of a kind that hold visible rows of some of the keys, and their positions."""
        for segment, live in self._of(kind):
            positions = np.flatnonzero(np.isin(segment.keys, keys) & live)
            if len(positions) and segment.multi is not None:
                yield segment.multi, positions

    def known_rows(self, keys: Iterable[int], *, kind: str | None = None) -> dict[int, Floats]:
        """Return the stored dense vectors, (d,) float32 each, of the units, of one kind or all, that are visible and have one."""
        keys = list(keys)
        found: dict[int, Floats] = {}
        for segment, live in zip(self.segments, self._live, strict=True):
            if segment.dense is not None and kind in (None, segment.kind):
                positions = np.flatnonzero(np.isin(segment.keys, keys) & live)
                rows = segment.dense.rows(positions)
                found.update(zip(np.asarray(segment.keys)[positions].tolist(), rows, strict=True))
        return found

    def rows_of(self, documents: Ints, *, kind: str = CHUNK) -> dict[int, Floats]:
        """Return the stored dense vectors, (n, d) float32 in the order of the keys, of visible versions that have any."""
        parts: dict[int, list[tuple[int, Floats]]] = {}
        for segment, live in self._of(kind):
            if segment.dense is not None:
                at = np.flatnonzero(np.isin(segment.documents, documents) & live)
                owners, keys = np.asarray(segment.documents)[at].tolist(), np.asarray(segment.keys)[at].tolist()
                for owner, key, row in zip(owners, keys, segment.dense.rows(at), strict=True):
                    parts.setdefault(owner, []).append((key, row))
        return {owner: np.stack([row for _, row in sorted(rows, key=itemgetter(0))]) for owner, rows in parts.items()}

    def multi_of(self, documents: Ints, *, kind: str = CHUNK) -> dict[int, list[Stored]]:
        """Return the stored multi-vectors, one by one in the order of the keys, of visible document versions that have any."""
        parts: dict[int, list[tuple[int, Stored]]] = {}
        for segment, live in self._of(kind):
            if segment.multi is not None:
                for at in np.flatnonzero(np.isin(segment.documents, documents) & live).tolist():
                    rows = Stored.join(list(segment.multi.stored(np.array([at]))))
                    parts.setdefault(int(segment.documents[at]), []).append((int(segment.keys[at]), rows))
        return {owner: [row for _, row in sorted(rows, key=itemgetter(0))] for owner, rows in parts.items()}

    def near_duplicates(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Yield the pairs of visible chunks with a cosine of at least `threshold`: key, larger key, cosine."""
        parts = [(segment.dense, segment.keys, live) for segment, live in self._of(CHUNK) if segment.dense]
        return near_duplicates(parts, threshold)

    def dense_stats(self, *, kind: str = CHUNK) -> Iterator[dict[str, Any]]:
        """Yield, per segment of a kind, its rows, how many are live, and how its dense vectors are searched."""
        for segment, live in self._of(kind):
            if segment.dense is not None:
                yield {"segment": segment.row.id, "rows": segment.row.rows, "live": int(live.sum()), **segment.dense.describe()}

    def multi_stats(self, *, kind: str = CHUNK) -> Iterator[dict[str, Any]]:
        """Yield, per segment of a kind, its rows, how many are live, and how its multi-vectors are stored."""
        for segment, live in self._of(kind):
            if segment.multi is not None:
                yield {"segment": segment.row.id, "live": int(live.sum()), **segment.multi.describe()}


def _best(parts: Sequence[Ranked], k: int) -> Ranked:
    """Return the k best of several rankings, ties by key."""
    if not parts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    keys = np.concatenate([part[0] for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    best = top_k(scores, keys, k)
    return keys[best], scores[best]

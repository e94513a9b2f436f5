"""What a search sees of a local store: one commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import top_k
from ragkit.core.types import Floats, Ints
from ragkit.encode.external import PREFIX
from ragkit.store.local.locks import Pin
from ragkit.store.local.segment import Mask, Segment
from ragkit.store.values import CHUNK, Change, Commit
from ragkit.store.vectors.lexical import LexicalReader
from ragkit.store.vectors.multi import MultiReader
from ragkit.store.vectors.multi_layout import Stored
from ragkit.store.vectors.near_duplicates import near_duplicates
from ragkit.store.vectors.tiles import Scores


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

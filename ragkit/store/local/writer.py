"""Write documents and deletions to a local store, all at once."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import truncate_dims
from ragkit.core.errors import StorageError
from ragkit.core.space import Space
from ragkit.core.types import Floats, Ints, Span
from ragkit.store.local.files import seal, sync_file, write_array, writing
from ragkit.store.local.merge import merge_policy
from ragkit.store.local.reader import Snapshot
from ragkit.store.local.segment import Mask, Salvaged, Segment
from ragkit.store.values import CHUNK, PAGE, VECTOR, Change, Commit, NewDocument, Prepared, SegmentRow, UnitRow, origin_of
from ragkit.store.vectors.dense import write_dense
from ragkit.store.vectors.lexical import write_generation
from ragkit.store.vectors.multi import write_multi
from ragkit.store.vectors.multi_layout import Stored

ROWS = 4096  # rows copied at a time when segments are merged

if TYPE_CHECKING:
    from ragkit.store.local.store import Store


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
        rebuild_lexical: bool = False,
        settings: Mapping[str, Any] | None = None,
        dims: int | None = None,
        reparse_mimes: Sequence[str] = (),
    ) -> Commit:
        """Make documents and deletions visible, all at once. `delete` are ids of versions; `merge` all segments into one.

        salvaged: damaged segments to retire, by id, each with the rows that were saved of it. rebuild_lexical: make the lexical
        index anew from the catalog, as is done where it is damaged. settings: change them too; dims: cut the rows to as many,
        with `merge`; reparse_mimes: see `Change`.
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
            reparse_mimes=reparse_mimes,
        )
        with writing(store.path):
            # Damage may be in what the snapshot holds to be deleted, so while mending only the catalog's word counts.
            dead = store.catalog.deleted_documents(snapshot.commit.number) if self.mending else snapshot.deleted
            for rows in fresh:
                kept: list[Segment | Salvaged] = [*absorbed[rows.kind], *(one for one in saved if one.kind == rows.kind)]
                if len(rows.keys) or kept:
                    change = self._write_segment(change, kept, rows, dead=np.union1d(dead, deleted), dims=dims)
            if change.lexical:
                change = self._write_lexical(change, snapshot, fresh=rebuild_lexical or snapshot.lexical is None)
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
            document, key = self._store.id_source.reserve(documents=len(prepared), units=count)
        documents = []
        for one in prepared:
            units = _units(one, document, key)
            documents.append(NewDocument(document, one.origin, one.document, units, one.complete))
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
        dense, multi = Space.of(fresh.kind, "dense"), Space.of(fresh.kind, "multi")
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

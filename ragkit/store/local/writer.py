"""Write documents and deletions to a local store, staged until a commit makes them visible, all at once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import truncate_dims
from ragkit.core.errors import StorageError
from ragkit.core.space import Space
from ragkit.core.types import Floats, Ints, Mask, Span
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.files import seal, sync_file, write_array, writing
from ragkit.store.local.merge import merge_policy
from ragkit.store.local.reader import Reader
from ragkit.store.local.segment import Salvaged, Segment, VectorFormats
from ragkit.store.values import (
    CHUNK,
    PAGE,
    VECTOR,
    Change,
    Commit,
    Failure,
    NewDocument,
    Prepared,
    SegmentRow,
    UnitRow,
    origin_of,
)
from ragkit.store.vectors.dense import write_dense
from ragkit.store.vectors.lexical import write_generation
from ragkit.store.vectors.multi import write_multi
from ragkit.store.vectors.multi_layout import Stored

ROWS = 4096  # rows copied at a time when segments are merged
Reserve = Callable[[Sequence[Prepared], int], tuple[int, int]]  # (documents, units) -> the first fresh document id and unit key
OnCommit = Callable[[Change, Commit, Sequence[Mask]], None]  # the last: see `Reader.live_without`


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
        """About how much they take on disk."""
        return (0 if self.dense is None else 2 * self.dense.size) + sum(part.values.nbytes for part in self.multi)


@dataclass(slots=True, eq=False)
class Staged:
    """What waits for the next commit."""

    prepared: list[Prepared] = field(default_factory=list)
    deleted: set[int] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    forgiven: dict[str, None] = field(default_factory=dict)  # a set in order

    def deleted_documents(self) -> list[int]:
        """Return the document versions that end with the commit, those that are replaced included, ascending."""
        return sorted(self.deleted.union(new.replaces for new in self.prepared if new.replaces is not None))


@dataclass(frozen=True, slots=True, eq=False)
class Rewriting:
    """What a commit rewrites beside what is staged: see `ragkit.store.local.rewrite`."""

    merge: bool = False  # all segments into one
    dims: int | None = None  # cut the dense rows of chunks to as many, with `merge`
    reparse_mimes: Sequence[str] = ()  # see `Change`
    salvaged: Mapping[str, Segment | Salvaged | None] = field(default_factory=dict)
    rebuild_lexical: bool = False  # from the catalog's texts
    always: bool = False  # commit though nothing else is to be done

    @property
    def saved(self) -> list[Segment | Salvaged]:
        """The rows that were saved of damaged segments."""
        return [rows for rows in self.salvaged.values() if rows is not None]

    def __bool__(self) -> bool:
        return self.always or self.merge


class Writer:
    """What the holder of LOCK can do. `latest` is the newest commit, since nobody else can make one; None while mending."""

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        latest: Commit | None,
        *,
        formats: Callable[[], VectorFormats],
        reserve: Reserve,
        reader: Callable[..., Reader],
        on_commit: OnCommit,
    ) -> None:
        """formats: how vectors are written by the recipe of the moment. reserve: gives out ids. reader: `Store.reader`.
        on_commit: is called after each commit, but not while mending."""
        self._path = path
        self._catalog = catalog
        self.latest = latest
        self._formats = formats
        self._reserve = reserve
        self._open_reader = reader
        self._on_commit = on_commit
        self._staged = Staged()

    @property
    def mending(self) -> bool:
        """Whether this writer repairs a damaged index: it works on what is intact."""
        return self.latest is None

    def reader(self) -> Reader:
        """Return the newest commit, this writer's own included; while mending, what of it is intact."""
        return self._open_reader(degraded=self.mending)

    def add(self, prepared: Prepared) -> None:
        """Stage a document. Its commit clears its failure."""
        self._staged.failures.pop(prepared.origin.identity, None)
        self._staged.prepared.append(prepared)

    def delete(self, documents: Iterable[int]) -> None:
        """Stage the deletion of document versions, by id."""
        self._staged.deleted.update(documents)

    def fail(self, failure: Failure) -> None:
        """Stage a document that could not be added, over an earlier failure of it."""
        self._staged.failures[failure.identity] = failure

    def forgive(self, identities: Iterable[str]) -> None:
        """Stage that documents are judged anew: their failures are forgotten, those staged so far included."""
        for identity in identities:
            self._staged.failures.pop(identity, None)
            self._staged.forgiven[identity] = None

    def commit(self, kind: str, *, recipe_hash: str = "", settings: Mapping[str, Any] | None = None) -> Commit:
        """Make everything staged visible, all at once; return the newest commit. settings: change them in it, too.

        Where only failures are staged, they are recorded and the newest commit stays. If this raises, nothing of it happened,
        and nothing is staged any more.
        """
        return self.write(kind, recipe_hash=recipe_hash, settings=settings)

    def write(
        self,
        kind: str,
        *,
        recipe_hash: str = "",
        settings: Mapping[str, Any] | None = None,
        rewriting: Rewriting = Rewriting(),
    ) -> Commit:
        """Commit what is staged, and rewrite what `rewriting` says."""
        staged, self._staged = self._staged, Staged()
        reader = self.reader()
        if not (staged.prepared or staged.deleted or settings or rewriting):
            if staged.failures or staged.forgiven:
                self._catalog.write_failures(list(staged.failures.values()), forgiven=list(staged.forgiven))
            return reader.commit
        if rewriting.dims is not None:
            for segment in reader.segments:
                segment.verify()  # a damaged one must not stay behind as wide as it was
        documents, fresh = self._numbered(staged.prepared)
        change = Change(
            number=reader.commit.number + 1,
            kind=kind,
            recipe_hash=recipe_hash,
            lexical=uuid.uuid4().hex if reader.commit.lexical else "",
            lexical_files=(),
            documents=documents,
            deleted_documents=staged.deleted_documents(),
            retired_segments=list(rewriting.salvaged),
            settings=settings or {},
            failures=list(staged.failures.values()),
            forgiven=list(staged.forgiven),
            reparse_mimes=rewriting.reparse_mimes,
        )
        live = reader.live_without(change.deleted_documents)
        with writing(self._path):
            for rows in fresh:
                change = self._with_segment(change, reader, live, rows, rewriting)
            if change.lexical:
                rebuild = rewriting.rebuild_lexical or reader.lexical is None
                change = self._with_lexical(change, reader, rebuild=rebuild)
        commit = self._catalog.commit(change)
        del reader  # it holds the folders that are about to be removed
        if not self.mending:
            self.latest = commit
            self._on_commit(change, commit, live)
        return commit

    def _numbered(self, prepared: Sequence[Prepared]) -> tuple[list[NewDocument], list[Rows]]:
        """Return the documents under fresh ids, their units under fresh keys or the caller's own, and by kind their rows in that
        order."""
        count = sum(len(item.chunks) + len(item.seen.pages if item.seen else ()) for item in prepared)
        document, key = self._reserve(prepared, count)
        documents = []
        for item in prepared:
            units = _units(item, document, key)
            documents.append(NewDocument(document, item.origin, item.document, units, item.complete))
            document, key = document + 1, key if item.key is not None else key + len(units)
        return documents, [_chunk_rows(prepared, documents), _page_rows(prepared, documents)]

    def _absorbed(self, reader: Reader, live: Sequence[Mask], *, fresh: Rows, merge: bool) -> list[Segment]:
        """Return the segments of their kind that this commit rewrites together with its own rows."""
        pairs = [pair for pair in zip(reader.segments, live, strict=True) if pair[0].kind == fresh.kind]
        segments = [segment for segment, _ in pairs]
        sizes = [segment.row.bytes for segment in segments]
        shares = [1.0 - np.count_nonzero(mask) / len(mask) if len(mask) else 1.0 for _, mask in pairs]
        chosen = range(len(sizes)) if merge else merge_policy(sizes, new=fresh.bytes, dead=shares)
        # What is damaged cannot be rewritten, but with its last document deleted it can be dropped.
        return [segments[position] for position in chosen if shares[position] == 1 or segments[position].readable()]

    def _with_segment(
        self, change: Change, reader: Reader, live: Sequence[Mask], fresh: Rows, rewriting: Rewriting
    ) -> Change:
        """Write the fresh rows of one kind, and those of the segments that they absorb, as a new segment; return the change."""
        absorbed = self._absorbed(reader, live, fresh=fresh, merge=rewriting.merge)
        change = replace(change, retired_segments=[*change.retired_segments, *(segment.row.id for segment in absorbed)])
        sources: list[Segment | Salvaged] = [*absorbed, *(rows for rows in rewriting.saved if rows.kind == fresh.kind)]
        if len(fresh.keys) == 0 and not sources:
            return change
        # Damage may hide in what the reader takes for deleted, so while mending only the catalog's word counts.
        dead = self._catalog.deleted_documents(reader.commit.number) if self.mending else reader.deleted
        return self._write_segment(
            change, sources, fresh, dead=np.union1d(dead, change.deleted_documents), dims=rewriting.dims
        )

    def _write_segment(
        self, change: Change, sources: Sequence[Segment | Salvaged], fresh: Rows, *, dead: Ints, dims: int | None
    ) -> Change:
        formats = self._formats()
        positions = [np.flatnonzero(~np.isin(segment.documents, dead)) for segment in sources]
        # Nothing of a damaged segment is read once all of it is dead.
        kept = [(segment, live) for segment, live in zip(sources, positions, strict=True) if len(live)]
        keys = np.concatenate([*(np.asarray(segment.keys)[at] for segment, at in kept), fresh.keys])
        documents = np.concatenate([*(np.asarray(segment.documents)[at] for segment, at in kept), fresh.documents])
        if len(keys) == 0:
            return change
        name = uuid.uuid4().hex
        folder = self._path / "segments" / name
        folder.mkdir()
        write_array(folder / "keys.npy", keys)
        write_array(folder / "documents.npy", documents)
        written = {}
        dense, multi = Space.of(fresh.kind, "dense"), Space.of(fresh.kind, "multi")
        if fresh.dense is not None or any(segment.dense is not None for segment, _ in kept):
            width = dims if fresh.kind == CHUNK else None
            written[dense] = write_dense(folder, dense, _cut(_dense_blocks(kept, fresh), width), recall=formats.recall).rows
        if (layout := formats.layouts.get(fresh.kind)) is not None:
            written[multi] = write_multi(folder, multi, layout, _multi_blocks(kept, fresh)).rows
        for space, rows in written.items():
            if rows != len(keys):
                raise StorageError(f"{len(keys)} rows were to be written, but {space} has {rows}; nothing was changed")
        records = seal(folder)
        sync_file(folder.parent)
        row = SegmentRow(name, len(keys), sum(record.size for record in records), tuple(written))
        return replace(change, segments=(*change.segments, (row, records)))

    def _with_lexical(self, change: Change, reader: Reader, *, rebuild: bool) -> Change:
        """Write the next lexical generation, from the last one or from the catalog's texts; return the change with its files."""
        folder = self._path / "lexical" / change.lexical
        if rebuild:
            everything = chain(_stored_documents(reader, change.deleted_documents), change.documents)
            records = write_generation(None, folder, add=_lexical_rows(everything), delete_documents=())
        else:
            known = {record.name: record for record in self._catalog.files(reader.commit.lexical)}
            records = write_generation(
                self._path / "lexical" / reader.commit.lexical,
                folder,
                add=_lexical_rows(change.documents),
                delete_documents=change.deleted_documents,
                known=known.get,
            )
        sync_file(folder.parent)
        return replace(change, lexical_files=records)


def _stored_documents(reader: Reader, deleted: Sequence[int]) -> Iterator[NewDocument]:
    """Yield the documents that the catalog has, less those that go, with their units."""
    gone = set(deleted)
    for row in reader.documents():
        if row.id not in gone:
            yield NewDocument(row.id, origin_of(row), reader.document(row), tuple(reader.units_of(row.id)))


def _units(item: Prepared, document: int, key: int) -> tuple[UnitRow, ...]:
    """Return a document's units, chunks first, under keys from `key` on."""
    if item.key is not None:
        return (UnitRow(item.key, document, VECTOR, Span(0, 0)),)
    chunks = [UnitRow(key + at, document, CHUNK, chunk.span, chunk.headings) for at, chunk in enumerate(item.chunks)]
    if item.seen is None:
        return tuple(chunks)
    pairs = enumerate(zip(item.seen.pages, item.seen.patches, strict=True), start=key + len(chunks))
    pages = [UnitRow(at, document, PAGE, page.span, page=page.number, patches=patches) for at, (page, patches) in pairs]
    return (*chunks, *pages)


def _chunk_rows(prepared: Sequence[Prepared], documents: Sequence[NewDocument]) -> Rows:
    """Return the rows of the chunks that have vectors."""
    pairs = zip(prepared, documents, strict=True)
    embedded = [new.units for item, new in pairs if item.dense is not None or item.multi is not None]
    units = [unit for of_document in embedded for unit in of_document if unit.kind != PAGE]
    return _rows(CHUNK, units, [item.dense for item in prepared], [item.multi for item in prepared if item.multi is not None])


def _page_rows(prepared: Sequence[Prepared], documents: Sequence[NewDocument]) -> Rows:
    """Return the rows of the page images."""
    units = [unit for new in documents for unit in new.units if unit.kind == PAGE]
    seen = [item.seen for item in prepared if item.seen is not None]
    return _rows(PAGE, units, [pages.dense for pages in seen], [part for pages in seen for part in pages.multi])


def _rows(kind: str, units: Sequence[UnitRow], dense: Sequence[Floats | None], multi: Sequence[Stored]) -> Rows:
    """Return the rows of units of one kind, in the order of the documents whose vectors these are."""
    rows = [vectors for vectors in dense if vectors is not None and len(vectors)]
    return Rows(
        kind,
        keys=np.array([unit.key for unit in units], dtype=np.int64),
        documents=np.array([unit.document for unit in units], dtype=np.int64),
        dense=np.concatenate(rows) if rows else None,
        multi=tuple(part for part in multi if len(part)),
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

"""Repair a damaged index from the parts of it that are intact.

Derived parts are made anew: the lexical index from the catalog's texts, compressed FAISS indexes from the rows they stand
for. A document with rows in a damaged block is embedded again from its stored text. A document of which the catalog has
lost something is removed, and named in the report: it must be added again. Damaged segments are moved to quarantine/.

The damaged segments stay where they are, and searches go on refusing, until the last commit replaces them: between two steps
nothing is answered from half of an index. When a repair is interrupted, run it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ragkit.care.verify import PARENTS, damaged_files, stray_files, unrecorded_files, verify, without_remedy
from ragkit.core.errors import Damaged, StorageError
from ragkit.core.space import Space
from ragkit.core.types import AddReport, Floats, Ints
from ragkit.ingest.item import Callback
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.check import damaged_rows
from ragkit.store.catalog.salvage import (
    drop_documents,
    live_units,
    reindex,
    remove_damaged_rows,
    short_of_units,
    tombstone_orphans,
)
from ragkit.store.local import source_copies
from ragkit.store.local.files import CheckedFolder, writing
from ragkit.store.local.rewrite import replace_damaged
from ragkit.store.local.segment import Salvaged, Segment
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import CHUNK, Commit, DocumentRow, Failure, SegmentRow
from ragkit.store.vectors.multi import COARSE
from ragkit.store.vectors.rows import HEADER

QUARANTINE = "quarantine"
VECTORS_LOST = "its vectors were damaged; add it again"
Embed = Callable[[Writer, Sequence[DocumentRow]], AddReport]


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was wrong, what was done, and what is lost. An index without problems has an empty report."""

    problems: tuple[str, ...] = ()
    lexical: bool = False  # whether the lexical index was made anew
    salvaged: int = 0  # vectors copied out of damaged segments
    embedded: tuple[str, ...] = ()  # documents embedded again from their stored texts, with their page images
    warnings: tuple[str, ...] = ()  # what these documents lack now, such as page images of a file that is gone
    lost: tuple[Failure, ...] = ()  # documents to add again
    quarantined: tuple[str, ...] = ()  # the folders that damaged segments were moved to


def repair(
    store: Store,
    *,
    embed: Embed | None,
    vectors_optional: bool = False,
    lock_timeout: float,
    progress: Callback | None = None,
) -> RepairReport:
    """Make the index whole; Damaged, with the way out, where it cannot be done from the index itself.

    `embed` makes new versions of stored documents, with new vectors; without it, documents that lost vectors are lost.
    vectors_optional: documents may have been added without vectors, and are not lost for lacking them.
    """
    with store.writer(timeout=lock_timeout, mending=True) as writer:
        findings = verify(store, progress=progress)
        problems = tuple(finding.problem for finding in findings if not finding.remedy.startswith("none needed"))
        report = RepairReport(problems)
        try:
            if problems:
                report = _rebuild(store, writer, report, embed, vectors_optional=vectors_optional, progress=progress)
        except Damaged as error:
            raise Damaged(f"{without_remedy(error)} {_way_out(store.path)}") from error
        if copies := [_quarantine_copy(store.path, copy) for copy, _ in source_copies.damaged(store.path)]:
            report = replace(report, quarantined=(*report.quarantined, *copies))
    with store.writer(timeout=lock_timeout):
        pass  # the next writer removes what crashes left
    if problems and (left := verify(store)):
        raise Damaged(f"{store.path} is still damaged: {left[0].problem}. Restore it from a backup.")
    return report


def _way_out(path: Path) -> str:
    return (
        "That cannot be repaired from the index itself. Restore it from a backup, or read what is left and import it to a new "
        f"index: ragkit export {path} FOLDER; ragkit import NEW FOLDER"
    )


def _rebuild(
    store: Store,
    writer: Writer,
    report: RepairReport,
    embed: Embed | None,
    *,
    vectors_optional: bool,
    progress: Callback | None,
) -> RepairReport:
    """Repair the catalog, then the segments, then the lexical index. Nothing of it is visible before the last commit."""
    catalog = store.catalog
    _make_parents(store)
    lost = _repair_catalog(catalog)
    commit = catalog.latest()
    strays = _quarantine_strays(store, commit)
    damaged = _damaged_segments(store, progress)
    saved = {row.id: _salvage(store, row) for row in damaged}
    intact = store.reader(degraded=True)
    holders: list[Segment | Salvaged] = [*intact.segments, *(segment for segment in saved.values() if segment is not None)]
    lost += tombstone_orphans(catalog, {id for segment in holders for id in np.unique(segment.documents).tolist()})
    lacking = _lacking_vectors(catalog, commit, holders)
    if vectors_optional:
        lacking &= _documents_in(store, damaged, otherwise=lacking)
    lacking |= short_of_units(catalog)
    documents = intact.find(sorted(lacking), by="id")
    embedded = embed(writer, documents).updated if documents and embed is not None else ()
    deleted = catalog.deleted_documents(catalog.latest().number).tolist()
    lost += drop_documents(catalog, lacking - set(deleted), reason=VECTORS_LOST)
    rebuild_lexical = _needs_lexical(store)
    replace_damaged(writer, salvaged=saved, rebuild_lexical=rebuild_lexical)
    return replace(
        report,
        lexical=rebuild_lexical or intact.lexical is None,
        salvaged=sum(len(segment.keys) for segment in saved.values() if segment is not None),
        embedded=tuple(outcome.source for outcome in embedded),
        warnings=tuple(f"{outcome.source}: {warning}" for outcome in embedded for warning in outcome.warnings),
        lost=tuple(lost),
        quarantined=(*strays, *_quarantine_segments(store, damaged)),
    )


def _make_parents(store: Store) -> None:
    for parent in PARENTS:
        with writing(store.path):
            (store.path / parent).mkdir(exist_ok=True)


def _repair_catalog(catalog: Catalog) -> list[Failure]:
    """Remove damaged rows, with their documents; return these documents."""
    rows = list(damaged_rows(catalog))
    if any(row.key is None for row in rows):
        reindex(catalog)
        rows = list(damaged_rows(catalog))
    return remove_damaged_rows(catalog, rows)


def _lacking_vectors(catalog: Catalog, commit: Commit, holders: Sequence[Segment | Salvaged]) -> set[int]:
    """Return the ids of live documents with a unit that no segment holds."""
    held = np.concatenate([np.asarray(segment.keys) for segment in holders]) if holders else np.empty(0, dtype=np.int64)
    keys, owners = live_units(catalog, commit.number)
    return set(np.unique(owners[~np.isin(keys, held)]).tolist())


def _needs_lexical(store: Store) -> bool:
    """Whether the lexical index cannot be read, or holds other units than the catalog, such as those of lost documents."""
    reader = store.reader(degraded=True)
    lexical, keys = reader.lexical, reader.unit_keys(kind=CHUNK)
    return lexical is None or not np.array_equal(np.sort(lexical.rows()[0]), keys)


def _damaged_segments(store: Store, progress: Callback | None) -> list[SegmentRow]:
    rows = store.catalog.segments(store.catalog.latest().number)
    folders = {row.id: CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id)) for row in rows}
    damaged = {path.parent.name for path, _ in damaged_files(list(folders.values()), progress=progress)}
    return [
        row
        for row in rows
        if row.id in damaged or not folders[row.id].records or any(_forgotten_files(row, folders[row.id]))
    ]


def _forgotten_files(row: SegmentRow, folder: CheckedFolder) -> Iterator[Path]:
    """Yield the segment's own files of which the catalog has lost the record."""
    names = ("keys.", "documents.", *(f"{space}." for space in row.spaces))
    return (path for path in unrecorded_files(folder) if path.name.startswith(names))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The intact rows of a damaged segment: `stored` are all its rows, `intact` the positions of those in whole blocks."""

    stored: npt.NDArray[np.float16]
    intact: npt.NDArray[np.intp]

    def rows(self, positions: npt.NDArray[np.int64]) -> Floats:
        return np.asarray(self.stored[self.intact[positions]], dtype=np.float32)


def _salvage(store: Store, row: SegmentRow) -> Segment | Salvaged | None:
    """Return the rows of a damaged segment that are as they were written, and their keys; None where that cannot be decided.

    It is the whole segment where nothing but its coarse vectors is damaged: these are made anew.
    """
    folder = CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id))
    damaged = [path.name for path, _ in damaged_files([folder])]
    if damaged and all(COARSE in name for name in damaged) and not any(_forgotten_files(row, folder)):
        return Segment(folder.path, row, list(folder.records.values()), repair_command=store.repair_command)
    if row.spaces != (Space.DENSE,):
        return None
    try:
        keys, documents = (_column(folder, name) for name in ("keys.npy", "documents.npy"))
        record = folder.records[f"{Space.DENSE}.npy"]
        start, shape = HEADER, (row.rows, (record.size - HEADER) // (2 * row.rows))
        stored = np.memmap(folder.file(record.name), dtype="<f2", mode="r", offset=start, shape=shape)
    except (StorageError, OSError, ValueError, KeyError):
        return None
    blocks = range(-(-record.size // record.block))
    whole = np.array([_block_is_whole(folder, record.name, number) for number in blocks], dtype=np.bool_)
    width = 2 * shape[1]
    first = start + np.arange(row.rows) * width
    intact = np.flatnonzero(whole[first // record.block] & whole[(first + width - 1) // record.block])
    return Salvaged(CHUNK, keys[intact], documents[intact], _Rows(stored, intact)) if len(intact) else None


def _documents_in(store: Store, rows: Sequence[SegmentRow], *, otherwise: set[int]) -> set[int]:
    """Return the ids of the document versions in damaged segments; `otherwise` where a segment's column of them is damaged."""
    documents: set[int] = set()
    for row in rows:
        folder = CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id))
        try:
            documents |= set(_column(folder, "documents.npy").tolist())
        except (StorageError, OSError, ValueError):
            return otherwise
    return documents


def _column(folder: CheckedFolder, name: str) -> Ints:
    folder.verify(name)
    column: Ints = np.load(folder.file(name), allow_pickle=False)
    return column


def _block_is_whole(folder: CheckedFolder, name: str, number: int) -> bool:
    block = folder.records[name].block
    try:
        folder.verify(name, number * block, (number + 1) * block)
    except Damaged:
        return False
    return True


def _quarantine_strays(store: Store, commit: Commit) -> list[str]:
    """Move unrecorded files to quarantine: another program left them, and they are no part of the index."""
    lexical = CheckedFolder(store.path / "lexical" / commit.lexical, store.catalog.files(commit.lexical))
    strays = [*stray_files(store), *unrecorded_files(lexical)]
    for row in store.catalog.segments(commit.number):
        folder = CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id))
        strays += set(unrecorded_files(folder)).difference(_forgotten_files(row, folder))
    return [_quarantine(store.path, path, f"{path.parent.name}-{path.name}") for path in strays]


def _quarantine_copy(folder: Path, copy: Path) -> str:
    """Move a damaged copy of a source file to quarantine: what was read from it is in the catalog."""
    return _quarantine(folder, copy, f"{source_copies.FOLDER}-{copy.name}")


def _quarantine_segments(store: Store, rows: Sequence[SegmentRow]) -> Iterator[str]:
    """Move the segments that no commit sees any more to quarantine, each with a note of what it was."""
    for row in rows:
        folder = store.path / "segments" / row.id
        if not folder.is_dir():
            continue
        target = _quarantine(store.path, folder, row.id)
        with writing(store.path):
            note = json.dumps({"id": row.id, "rows": row.rows, "spaces": row.spaces})
            (Path(target) / "segment.json").write_text(note + "\n")
        yield target


def _quarantine(index: Path, path: Path, name: str) -> str:
    target = index / QUARANTINE / name
    with writing(target):
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    return str(target)

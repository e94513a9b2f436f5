"""A damaged index made whole again, from what of it is intact.

What is derived is made anew: the lexical index from the catalog's texts, compressed FAISS indexes from the rows they stand
for. Rows whose block is damaged are embedded again from the stored text, with all of their document. A document of which
the catalog has lost something goes, and is named: it must be added again. Damaged segments are moved to quarantine/.

The damaged segments stay where they are, and searches go on refusing, until the last commit replaces them: between two steps
nothing is answered from half of an index. Interrupted, it is run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ragkit.care.verify import PARENTS, damaged_files, loose, strangers, verify
from ragkit.core.errors import Damaged, StorageError
from ragkit.core.space import Space
from ragkit.core.types import AddReport, Floats, Ints, Progress
from ragkit.store.catalog.check import damaged_rows
from ragkit.store.catalog.checksums import NAME, differing
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

QUARANTINE = "quarantine"
HEADER = 128  # bytes before the rows: `ragkit.store.vectors.dense` writes always as many
VECTORS_LOST = "its vectors were damaged; add it again"
Embed = Callable[[Writer, Sequence[DocumentRow]], AddReport]
Callback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was wrong, what was done, and what is lost. An index without problems has an empty report."""

    problems: tuple[str, ...] = ()
    lexical: bool = False  # whether the lexical index was made anew
    salvaged: int = 0  # vectors copied out of damaged segments
    embedded: tuple[str, ...] = ()  # documents embedded again, from their stored texts, and their pages seen again
    warnings: tuple[str, ...] = ()  # what these are kept without: pages of a file that is gone
    lost: tuple[Failure, ...] = ()  # documents to add again
    quarantined: tuple[str, ...] = ()  # the folders that damaged segments were moved to


def repair(
    store: Store, *, embed: Embed | None, bare: bool = False, lock_timeout: float, progress: Callback | None = None
) -> RepairReport:
    """Make the index whole; Damaged, with the way out, where it cannot be done from the index itself.

    `embed` makes new versions of stored documents, with new vectors; without it documents that lost vectors are lost.
    `bare`: documents may be there without vectors, and are not lost for that.
    """
    with store.writer(timeout=lock_timeout, mending=True) as writer:
        findings = verify(store, progress=progress)
        problems = tuple(one.problem for one in findings if not one.remedy.startswith("none needed"))
        try:
            report = RepairReport(problems) if not problems else _mend(store, writer, problems, embed, bare, progress)
        except Damaged as error:
            raise Damaged(f"{str(error).partition(' Run: ')[0]} {_beyond(store.path)}") from error
        if copies := [_quarantine_copy(store.path, copy) for copy, _ in source_copies.damaged(store.path)]:
            report = replace(report, quarantined=(*report.quarantined, *copies))
    with store.writer(timeout=lock_timeout):
        pass  # what crashes left is removed
    if problems and (left := verify(store)):
        raise Damaged(f"{store.path} is still damaged: {left[0].problem}. Restore it from a backup.")
    return report


def _beyond(path: Path) -> str:
    return (
        "That cannot be mended from the index itself. Restore it from a backup, or read what is left and import it to a new "
        f"index: ragkit export {path} FOLDER; ragkit import NEW FOLDER"
    )


def _mend(
    store: Store, writer: Writer, problems: tuple[str, ...], embed: Embed | None, bare: bool, progress: Callback | None
) -> RepairReport:
    catalog = store.catalog
    for parent in PARENTS:
        with writing(store.path):
            (store.path / parent).mkdir(exist_ok=True)
    rows = list(damaged_rows(catalog))
    if any(row.key is None for row in rows):
        reindex(catalog)
        rows = list(damaged_rows(catalog))
    if not rows and differing(catalog):
        catalog.vacuum()  # the rows are whole: the file is written anew from them
        catalog.path.with_name(NAME).unlink(missing_ok=True)
    lost = remove_damaged_rows(catalog, rows)
    commit = catalog.latest()
    strays = _quarantine_strays(store, commit)
    damaged = _damaged_segments(store, progress)
    saved = {row.id: _salvage(store, row) for row in damaged}
    whole = store.reader(degraded=True)
    holders: list[Segment | Salvaged] = [*whole.segments, *(one for one in saved.values() if one is not None)]
    lost += tombstone_orphans(catalog, {id for one in holders for id in np.unique(one.documents).tolist()})
    held = np.concatenate([np.asarray(one.keys) for one in holders]) if holders else np.empty(0, dtype=np.int64)
    keys, owners = live_units(catalog, commit.number)
    lacking = set(np.unique(owners[~np.isin(keys, held)]).tolist())
    if bare:
        lacking &= _documents_in(store, damaged, otherwise=lacking)
    lacking |= short_of_units(catalog)
    documents = whole.find(sorted(lacking), by="id")
    again = embed(writer, documents).updated if documents and embed is not None else ()
    dead = store.catalog.deleted_documents(catalog.latest().number).tolist()
    lost += drop_documents(catalog, lacking - set(dead), reason=VECTORS_LOST)
    rebuild_lexical = _words_differ(store)
    replace_damaged(writer, salvaged=saved, rebuild_lexical=rebuild_lexical)
    return RepairReport(
        problems=problems,
        lexical=rebuild_lexical or whole.lexical is None,
        salvaged=sum(len(one.keys) for one in saved.values() if one is not None),
        embedded=tuple(one.source for one in again),
        warnings=tuple(f"{one.source}: {warning}" for one in again for warning in one.warnings),
        lost=tuple(lost),
        quarantined=(*strays, *(_quarantine(store, row) for row in damaged if (store.path / "segments" / row.id).is_dir())),
    )


def _words_differ(store: Store) -> bool:
    """Whether the lexical index cannot be read, or holds other units than the catalog: those of documents that were lost."""
    reader = store.reader(degraded=True)
    lexical, keys = reader.lexical, reader.unit_keys(kind=CHUNK)
    return lexical is None or not np.array_equal(np.sort(lexical.rows()[0]), keys)


def _damaged_segments(store: Store, progress: Callback | None) -> list[SegmentRow]:
    rows = store.catalog.segments(store.catalog.latest().number)
    folders = {row.id: CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id)) for row in rows}
    bad = {path.parent.name for path, _ in damaged_files(list(folders.values()), progress=progress)}
    return [row for row in rows if row.id in bad or not folders[row.id].records or any(_own(row, folders[row.id]))]


def _own(row: SegmentRow, folder: CheckedFolder) -> Iterator[Path]:
    """The segment's own files that nothing recorded: the catalog has lost that."""
    names = ("keys.", "documents.", *(f"{space}." for space in row.spaces))
    return (path for path in strangers(folder) if path.name.startswith(names))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of a damaged segment, of which only those are asked for whose blocks are whole."""

    stored: npt.NDArray[np.float16]
    at: npt.NDArray[np.intp]

    def rows(self, positions: npt.NDArray[np.int64]) -> Floats:
        return np.asarray(self.stored[self.at[positions]], dtype=np.float32)


def _salvage(store: Store, row: SegmentRow) -> Segment | Salvaged | None:
    """The rows of a damaged segment that are as they were written, their keys too: all, where no more is damaged than its coarse
    vectors. None where nothing can be told."""
    folder = CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id))
    if (bad := damaged_files([folder])) and all(COARSE in path.name for path, _ in bad) and not any(_own(row, folder)):
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
    whole = np.array([_block_is_whole(folder, record.name, at) for at in range(-(-record.size // record.block))], dtype=np.bool_)
    width = 2 * shape[1]
    first = start + np.arange(row.rows) * width
    good = np.flatnonzero(whole[first // record.block] & whole[(first + width - 1) // record.block])
    return Salvaged(CHUNK, keys[good], documents[good], _Rows(stored, good)) if len(good) else None


def _documents_in(store: Store, rows: Sequence[SegmentRow], *, otherwise: set[int]) -> set[int]:
    """The document versions of damaged segments; `otherwise` where one does not tell."""
    found: set[int] = set()
    for row in rows:
        folder = CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id))
        try:
            found |= set(_column(folder, "documents.npy").tolist())
        except (StorageError, OSError, ValueError):
            return otherwise
    return found


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
    """Move files that nothing recorded out of the way: another program left them, and nothing of the index is in them."""
    words = CheckedFolder(store.path / "lexical" / commit.lexical, store.catalog.files(commit.lexical))
    strays = [*loose(store), *strangers(words)]
    for row in store.catalog.segments(commit.number):
        folder = CheckedFolder(store.path / "segments" / row.id, store.catalog.files(row.id))
        strays += set(strangers(folder)).difference(_own(row, folder))
    moved = []
    for path in strays:
        target = store.path / QUARANTINE / f"{path.parent.name}-{path.name}"
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        moved.append(str(target))
    return moved


def _quarantine_copy(folder: Path, copy: Path) -> str:
    """Move a damaged copy of a source file out of the way: what was read from it stands in the catalog."""
    target = folder / QUARANTINE / f"{source_copies.FOLDER}-{copy.name}"
    with writing(target):
        target.parent.mkdir(exist_ok=True)
        copy.replace(target)
    return str(target)


def _quarantine(store: Store, row: SegmentRow) -> str:
    """Move a segment that no commit sees any more out of the way, with a note of what it was."""
    target = store.path / QUARANTINE / row.id
    with writing(target):
        target.parent.mkdir(exist_ok=True)
        (store.path / "segments" / row.id).rename(target)
        (target / "segment.json").write_text(json.dumps({"id": row.id, "rows": row.rows, "spaces": row.spaces}) + "\n")
    return str(Path(target))

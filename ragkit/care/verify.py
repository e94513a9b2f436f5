"""Is the index whole? Every checksum compared, and catalog, segments and lexical generation held against each other.

Nothing is changed. What is wrong comes back as findings, each with the file or row and the way out; an index without
findings holds, bit for bit, what was written.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragkit.core.errors import Damaged, StorageError
from ragkit.core.types import Progress
from ragkit.encode.external import PREFIX
from ragkit.store.catalog.check import damaged_rows, spent_counters
from ragkit.store.catalog.checksums import differing
from ragkit.store.catalog.salvage import incomplete
from ragkit.store.local import source_copies
from ragkit.store.local.files import CheckedFolder
from ragkit.store.local.store import Store
from ragkit.store.values import CHUNK, PAGE
from ragkit.store.vectors.lexical import LOCKS

WORKERS = 4  # reading and hashing release the interpreter's lock; more only queue at the disk
PARENTS = ("segments", "lexical")
PIECE = 64 << 20  # bytes of a file that one of them reads at a time


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written: what, and what to do."""

    problem: str
    remedy: str


def verify(store: Store, *, progress: Callable[[Progress], None] | None = None) -> list[Finding]:
    """Everything that is wrong with an index; an empty list where nothing is."""
    repair = store.repair_command
    try:
        findings = [Finding(row.problem, repair) for row in damaged_rows(store.catalog)]
        commit = store.catalog.latest()
        live = [("segments", row.id) for row in store.catalog.segments(commit.number)]
        live += [("lexical", commit.lexical)] if commit.lexical else []
        findings += _unknown_folders(store)
        folders = [CheckedFolder(store.path / parent / name, store.catalog.files(name)) for parent, name in live]
        strays = [*loose(store), *(path for folder in folders for path in strangers(folder))]
    except Damaged as error:
        return findings or [Finding(str(error).partition(" Run: ")[0], repair)]
    bare = [folder.path for folder in folders if not folder.records]
    findings += [Finding(f"{path}: the catalog has no record of its files", repair) for path in bare]
    findings += [Finding(f"{path}: nothing recorded it", repair) for path in strays]
    findings += [Finding(problem, repair) for _, problem in damaged_files(folders, progress=progress)]
    findings += [Finding(problem, f"rm {shlex.quote(str(copy))}") for copy, problem in source_copies.damaged(store.path)]
    findings = findings or [Finding(problem, repair) for problem in _disagreements(store)]
    return findings or [Finding(problem, repair) for problem in differing(store.catalog)]


def damaged_files(
    folders: Sequence[CheckedFolder], *, progress: Callable[[Progress], None] | None = None
) -> list[tuple[Path, str]]:
    """The files of which a byte is not as it was written: path, and what is wrong. Reads everything, several at a time."""
    pieces = [
        (folder, record.name, start)
        for folder in folders
        for record in folder.records.values()
        for start in range(0, max(record.size, 1), PIECE)
    ]
    total, done = sum(record.size for folder in folders for record in folder.records.values()), 0
    found: dict[Path, str] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for (folder, name, start), problem in zip(pieces, pool.map(_read_piece, pieces), strict=True):
            if problem:
                found.setdefault(folder.path / name, problem)
            done += min(PIECE, folder.records[name].size - start)
            if progress is not None:
                progress(Progress("verify", done, total, "bytes"))
    return list(found.items())


def _read_piece(piece: tuple[CheckedFolder, str, int]) -> str:
    folder, name, start = piece
    try:
        folder.file(name)
        folder.verify(name, start, start + PIECE, again=True)
    except (Damaged, OSError) as error:
        return str(error).partition(" Run: ")[0]
    return ""


def strangers(folder: CheckedFolder) -> list[Path]:
    """What lies in a folder beside the files that were recorded; nothing where no file was."""
    known = {*folder.records, *LOCKS}
    return [path for path in _entries(folder.path) if folder.records and path.name not in known]


def loose(store: Store) -> list[Path]:
    """Files beside the folders of segments and words, where there are none."""
    return [path for parent in PARENTS for path in _entries(store.path / parent) if not path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _unknown_folders(store: Store) -> Iterator[Finding]:
    """Folders that no commit ever made visible: what a crash left. The next writer removes them."""
    known = store.catalog.folders()
    for parent in PARENTS:
        if not (store.path / parent).is_dir():
            yield Finding(f"{store.path / parent} is missing", store.repair_command)
        for folder in _entries(store.path / parent):
            if folder.is_dir() and folder.name not in known:
                yield Finding(f"{folder}: no commit knows it", "none needed: the next `ragkit add` or `delete` removes it")


def _disagreements(store: Store) -> Iterator[str]:
    """Whether catalog, segments and lexical generation hold the same units, and the counters are ahead of all of them."""
    try:
        reader = store.reader()
        units, pages = (reader.unit_keys(kind=kind) for kind in (CHUNK, PAGE))
        keys, seen = (reader.keys(kind) for kind in (CHUNK, PAGE))
        if not reader.commit.lexical:  # a MaxSimIndex: a document is a key
            owners = sorted(int(row.source) for row in reader.documents())
            if owners != keys.tolist() or len(owners) != reader.commit.documents:
                yield f"the catalog has {len(owners)} keys and the segments {len(keys)}, and they are not the same"
            return
        assert reader.lexical is not None  # only a degraded reader goes without
        lexical, versions = reader.lexical.rows()
    except StorageError as error:
        yield str(error).partition(" Run: ")[0]
        return
    bare = store.catalog.setting("recipe")["encode"]["model"].startswith(PREFIX)  # then a unit may come without a vector
    if not (np.isin(keys, units).all() if bare else np.array_equal(keys, units)):
        yield f"the catalog has {len(units)} units and the segments {len(keys)}, and they are not the same"
    if not np.array_equal(seen, pages):
        yield f"the catalog has {len(pages)} pages and the segments {len(seen)}, and they are not the same"
    if not np.array_equal(np.sort(lexical[~np.isin(versions, reader.deleted)]), units):
        yield f"the catalog has {len(units)} units and the lexical generation {len(lexical)}, and they are not the same"
    if len(units) + len(pages) != reader.commit.units:
        yield f"the last commit counted {reader.commit.units} units, the catalog has {len(units) + len(pages)}"
    documents = sum(1 for _ in reader.documents())
    if documents != reader.commit.documents:
        yield f"the last commit counted {reader.commit.documents} documents, the catalog has {documents}"
    for id in incomplete(store.catalog):
        yield f"{store.catalog.path}: text, pages or units of document {id} are gone"
    yield from spent_counters(store.catalog)

"""Check that an index is whole: compare every checksum, and catalog, segments and lexical generation with each other.

Nothing is changed. Everything wrong is returned as findings, each with the file or row and the way out. An index without
findings holds, bit for bit, what was written.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragkit.core.errors import Damaged, StorageError
from ragkit.core.types import Progress
from ragkit.encode.external import PREFIX
from ragkit.ingest.item import Callback
from ragkit.store.catalog.check import damaged_rows, spent_counters
from ragkit.store.catalog.salvage import incomplete
from ragkit.store.local import source_copies
from ragkit.store.local.files import CheckedFolder
from ragkit.store.local.reader import Reader
from ragkit.store.local.store import Store
from ragkit.store.values import CHUNK, PAGE
from ragkit.store.vectors.lexical import LOCKS

WORKERS = 4  # reading and hashing release the interpreter's lock; more only queue at the disk
PARENTS = ("segments", "lexical")
PIECE = 64 << 20  # bytes of a file that a worker reads at a time


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written, and what to do about it."""

    problem: str
    remedy: str


def verify(store: Store, *, progress: Callback | None = None) -> list[Finding]:
    """Return everything that is wrong with an index; an empty list where nothing is."""
    findings: list[Finding] = []
    try:
        findings += _repairable(store, (row.problem for row in damaged_rows(store.catalog)))
        findings += _unknown_folders(store)
        folders = _live_folders(store)
        findings += _repairable(store, _unrecorded(store, folders))
    except Damaged as error:
        return findings or _repairable(store, [without_remedy(error)])
    findings += _repairable(store, (problem for _, problem in damaged_files(folders, progress=progress)))
    findings += [Finding(problem, f"rm {shlex.quote(str(copy))}") for copy, problem in source_copies.damaged(store.path)]
    return findings or _repairable(store, _disagreements(store))


def _repairable(store: Store, problems: Iterable[str]) -> list[Finding]:
    return [Finding(problem, store.repair_command) for problem in problems]


def without_remedy(error: Exception) -> str:
    """Return the message of an error without the command that it ends with: a finding has its own."""
    return str(error).partition(" Run: ")[0]


def _live_folders(store: Store) -> list[CheckedFolder]:
    """Return the folders of the newest commit: its segments and its lexical generation."""
    commit = store.catalog.latest()
    live = [("segments", row.id) for row in store.catalog.segments(commit.number)]
    live += [("lexical", commit.lexical)] if commit.lexical else []
    return [CheckedFolder(store.path / parent / name, store.catalog.files(name)) for parent, name in live]


def _unrecorded(store: Store, folders: Sequence[CheckedFolder]) -> list[str]:
    """Return what the catalog has no record of: all files of a folder, or single files that lie about."""
    stray = [*stray_files(store), *(path for folder in folders for path in unrecorded_files(folder))]
    problems = [f"{folder.path}: the catalog has no record of its files" for folder in folders if not folder.records]
    return problems + [f"{path}: the catalog has no record of it" for path in stray]


def damaged_files(folders: Sequence[CheckedFolder], *, progress: Callback | None = None) -> list[tuple[Path, str]]:
    """Return the files with a byte that is not as it was written, each with what is wrong. Reads everything, in parallel."""
    pieces = [
        (folder, record.name, start)
        for folder in folders
        for record in folder.records.values()
        for start in range(0, max(record.size, 1), PIECE)
    ]
    total, done = sum(record.size for folder in folders for record in folder.records.values()), 0
    problems: dict[Path, str] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for (folder, name, start), problem in zip(pieces, pool.map(_read_piece, pieces), strict=True):
            if problem:
                problems.setdefault(folder.path / name, problem)
            done += min(PIECE, folder.records[name].size - start)
            if progress is not None:
                progress(Progress("verify", done, total, "bytes"))
    return list(problems.items())


def _read_piece(piece: tuple[CheckedFolder, str, int]) -> str:
    folder, name, start = piece
    try:
        folder.file(name)
        folder.verify(name, start, start + PIECE, again=True)
    except (Damaged, OSError) as error:
        return without_remedy(error)
    return ""


def unrecorded_files(folder: CheckedFolder) -> list[Path]:
    """Return the files in a folder that are not in its records; none where it has no records at all."""
    recorded = {*folder.records, *LOCKS}
    return [path for path in _entries(folder.path) if folder.records and path.name not in recorded]


def stray_files(store: Store) -> list[Path]:
    """Return the files that lie directly in segments/ and lexical/, where only folders belong."""
    return [path for parent in PARENTS for path in _entries(store.path / parent) if not path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _unknown_folders(store: Store) -> Iterator[Finding]:
    """Yield folders that no commit ever made visible: a crash left them, and the next writer removes them."""
    known = store.catalog.folders()
    for parent in PARENTS:
        if not (store.path / parent).is_dir():
            yield Finding(f"{store.path / parent} is missing", store.repair_command)
        for folder in _entries(store.path / parent):
            if folder.is_dir() and folder.name not in known:
                yield Finding(f"{folder}: no commit knows it", "none needed: the next `ragkit add` or `delete` removes it")


def _disagreements(store: Store) -> Iterator[str]:
    """Compare the units of catalog, segments and lexical generation, and the counters with all of them."""
    try:
        reader = store.reader()
        if not reader.commit.lexical:  # a MaxSimIndex: a document is a key
            yield from _key_disagreements(reader)
            return
        yield from _unit_disagreements(store, reader)
    except StorageError as error:
        yield without_remedy(error)
        return
    documents = sum(1 for _ in reader.documents())
    if documents != reader.commit.documents:
        yield f"the last commit counted {reader.commit.documents} documents, the catalog has {documents}"
    for id in incomplete(store.catalog):
        yield f"{store.catalog.path}: text, pages or units of document {id} are gone"
    yield from spent_counters(store.catalog)


def _key_disagreements(reader: Reader) -> Iterator[str]:
    keys = reader.keys(CHUNK).tolist()
    owners = sorted(int(row.source) for row in reader.documents())
    if owners != keys or len(owners) != reader.commit.documents:
        yield f"the catalog has {len(owners)} keys and the segments {len(keys)}, and they are not the same"


def _unit_disagreements(store: Store, reader: Reader) -> list[str]:
    commit = reader.commit
    units, pages = (reader.unit_keys(kind=kind) for kind in (CHUNK, PAGE))
    keys, page_keys = (reader.keys(kind) for kind in (CHUNK, PAGE))
    assert reader.lexical is not None  # only a degraded reader goes without
    lexical, versions = reader.lexical.rows()
    external = store.catalog.setting("recipe")["encode"]["model"].startswith(PREFIX)  # then a unit may come without a vector
    problems = []
    if not (np.isin(keys, units).all() if external else np.array_equal(keys, units)):
        problems.append(f"the catalog has {len(units)} units and the segments {len(keys)}, and they are not the same")
    if not np.array_equal(page_keys, pages):
        problems.append(f"the catalog has {len(pages)} pages and the segments {len(page_keys)}, and they are not the same")
    if not np.array_equal(np.sort(lexical[~np.isin(versions, reader.deleted)]), units):
        problems.append(
            f"the catalog has {len(units)} units and the lexical generation {len(lexical)}, and they are not the same"
        )
    if len(units) + len(pages) != commit.units:
        problems.append(f"the last commit counted {commit.units} units, the catalog has {len(units) + len(pages)}")
    return problems

"""Is the index whole? Every checksum compared, and catalog, segments and lexical generation held against each other.

Nothing is changed. What is wrong comes back as findings, each with the file or row and the way out; an index without
findings holds, bit for bit, what was written.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ragkit.checked import CheckedFolder
from ragkit.errors import Damaged, StorageError
from ragkit.store import Store
from ragkit.types import Progress

REBUILD = "add the documents to a new index; the texts in this one can be read with Index.document"
WORKERS = 4  # reading and hashing release the interpreter's lock; more only queue at the disk


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written: what, and what to do."""

    problem: str
    remedy: str


def verify(store: Store, *, progress: Callable[[Progress], None] | None = None) -> list[Finding]:
    """Everything that is wrong with an index; an empty list where nothing is."""
    try:
        commit = store.catalog.latest()
    except Damaged as error:
        return [Finding(str(error), "restore the catalog from a backup, or add the documents to a new index")]
    rows = [
        Finding(problem, "restore the catalog from a backup, or add the documents to a new index")
        for problem in store.catalog.damaged_rows()
    ]
    live = [("segments", row.id) for row in store.catalog.segments(commit.number)] + [("lexical", commit.lexical)]
    findings = [*rows, *_unknown_folders(store)]
    with ThreadPoolExecutor(WORKERS) as pool:
        for done, problems in enumerate(pool.map(lambda one: _files(store, *one), live), start=1):
            findings += problems
            if progress is not None:
                progress(Progress("verify", done, len(live), "folders"))
    if not findings:
        findings += _agreement(store)
    return findings


def _files(store: Store, parent: str, name: str) -> list[Finding]:
    """Every block of every file of a folder."""
    folder = store.path / parent / name
    records = store.catalog.files(name)
    checked, problems = CheckedFolder(folder, records), []
    if not records:
        problems.append(f"{folder}: the catalog has no record of its files")
    for record in records:
        try:
            checked.verify(record.name, again=True)
        except (Damaged, OSError) as error:
            problems.append(str(error).removesuffix(" Run: ragkit verify"))
    remedy = _documents_of(store, name) if problems and parent == "segments" else REBUILD
    extra = {path.name for path in folder.iterdir()} - set(checked.records) if records and folder.is_dir() else set()
    return [
        *(Finding(problem, remedy) for problem in problems),
        *(Finding(f"{folder / one}: nothing recorded it", "remove it") for one in sorted(extra)),
    ]


def _documents_of(store: Store, segment: str) -> str:
    """How to mend a segment: its documents, deleted and added again, as its own column and the catalog tell them."""
    try:
        folder = CheckedFolder(store.path / "segments" / segment, store.catalog.files(segment))
        folder.verify("documents.npy")
        ids = np.unique(np.load(folder.file("documents.npy"), allow_pickle=False)).tolist()
        rows = [row.source for row in store.catalog.documents_by_id(ids).values() if row.deleted is None]
    except (Damaged, OSError, ValueError):
        return REBUILD
    shown = " ".join(shlex.quote(source) for source in rows[:5]) + (f" … ({len(rows)} in all)" if len(rows) > 5 else "")
    return f"delete the documents it holds, and add them again: ragkit delete {store.path} {shown}"


def _unknown_folders(store: Store) -> Iterator[Finding]:
    """Folders that no commit ever made visible: what a crash left. The next writer removes them."""
    known = store.catalog.folders()
    for parent in ("segments", "lexical"):
        for folder in sorted((store.path / parent).iterdir()):
            if folder.name not in known:
                yield Finding(f"{folder}: no commit knows it", "none needed: the next `ragkit add` or `delete` removes it")


def _agreement(store: Store) -> Iterator[Finding]:
    """Whether catalog, segments and lexical generation hold the same units."""
    remedy = REBUILD
    try:
        snapshot = store.snapshot()
    except StorageError as error:
        yield Finding(str(error), remedy)
        return
    units = store.catalog.unit_keys(snapshot.commit.number)
    rows = [np.asarray(segment.keys)[snapshot.live(at)] for at, segment in enumerate(snapshot.segments)]
    keys = np.sort(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)
    if not np.array_equal(keys, units):
        yield Finding(f"the catalog has {len(units)} units and the segments {len(keys)}, and they are not the same", remedy)
    if len(units) != snapshot.commit.units:
        yield Finding(f"the last commit counted {snapshot.commit.units} units, the catalog has {len(units)}", remedy)
    documents = sum(1 for _ in store.catalog.documents(snapshot.commit.number))
    if documents != snapshot.commit.documents:
        yield Finding(f"the last commit counted {snapshot.commit.documents} documents, the catalog has {documents}", remedy)
    if snapshot.lexical.n < len(units):
        yield Finding(f"the lexical generation has {snapshot.lexical.n} of {len(units)} units", remedy)

"""Copy an index, whole and as of one commit, while others add to it and search.

    backup(store, target)       target: a folder that does not exist yet, or an empty one

The copy is an index like any other: open it where it is, or restore it by copying the folder back. It is made in a hidden
folder beside the target and renamed at the end, so a target that exists is complete. Every block is compared with its
checksum on the way: damage is never copied under a backup's name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ragkit.core.errors import StorageError
from ragkit.core.types import Progress
from ragkit.ingest.item import Callback
from ragkit.store.catalog.copy import copy_catalog
from ragkit.store.local import source_copies
from ragkit.store.local.files import CheckedFolder, sync_file, writing
from ragkit.store.local.locks import Pin, remove_unused
from ragkit.store.local.reader import Reader
from ragkit.store.local.store import Store


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What was copied: the commit, and how much it holds."""

    path: str
    commit: int
    documents: int
    units: int
    bytes: int


def backup(store: Store, target: Path, *, progress: Callback | None = None) -> BackupReport:
    """Copy the newest commit to `target`. StorageError where something is there already or cannot be written; Damaged."""
    target = Path(os.path.abspath(target))  # noqa: PTH100 - Path.resolve would follow links
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} exists and is not empty. Name a folder for the backup that is not there yet.")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside(target) as folder:
            reader = _catalog(store, folder)
            size = _folders(store, reader, folder, progress=progress)
            live = {row.content_hash for row in reader.documents()}
            size += source_copies.copy_kept(store.path, folder, live)
            for part in (folder / "segments", folder / "lexical", folder):
                sync_file(part)
            folder.rename(target)
        sync_file(target.parent)
    commit = reader.commit
    return BackupReport(str(target), commit.number, commit.documents, commit.units, size)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target, held by a lock. Folders that a crash left, held by nobody, are removed."""
    prefix = f".{target.name}.backup-"
    for leftover in target.parent.glob(f"{prefix}*"):
        remove_unused(leftover)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    pin = Pin(folder)
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        del pin
        if folder.exists():
            remove_unused(folder)


def _catalog(store: Store, folder: Path) -> Reader:
    """Copy the catalog; return the reader of the very commit that was copied, which keeps every folder that it names."""
    while True:
        reader = store.reader()
        if copy_catalog(store.catalog, folder / "catalog.db", commit=reader.commit.number):
            return reader


def _folders(store: Store, reader: Reader, folder: Path, *, progress: Callback | None) -> int:
    """Copy the reader's folders, checked and synced; return the bytes of the copy, its catalog included."""
    lexical = CheckedFolder(store.path / "lexical" / reader.commit.lexical, store.catalog.files(reader.commit.lexical))
    parts = [("lexical", lexical), *(("segments", segment.folder) for segment in reader.segments)]
    for parent in ("segments", "lexical"):
        (folder / parent).mkdir()
    done = (folder / "catalog.db").stat().st_size
    total = done + sum(record.size for _, part in parts for record in part.records.values())
    for parent, part in parts:
        for count in _copy_folder(part, folder / parent / part.path.name):
            done += count
            if progress is not None:
                progress(Progress("backup", done, total, "bytes"))
    return total


def _copy_folder(part: CheckedFolder, copy: Path) -> Iterator[int]:
    """Copy the recorded files of a folder, checked and synced; yield the bytes of each block as it is copied."""
    copy.mkdir()
    for name in part.records:
        yield from part.copy(name, copy / name)
    sync_file(copy)

"""Copies of source files inside the index, so that a page can be drawn though its file has moved or changed since.

    sources/<sha256 of the file>       the file's bytes, and nothing else

A copy is named by its content: two documents of the same bytes share a copy, and a copy is whole if its bytes have its name. It
is written under another name and renamed once it is on the disk, so a copy under its name was whole once. This module does not
decide which copies are needed: the writer of the index keeps them before it commits, and removes those of no live document.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from ragkit.core.errors import Damaged, LoadError
from ragkit.store.local.files import sync_file, writing

FOLDER = "sources"
_PIECE = 1 << 20  # bytes
_NAME = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = ".keeping-"


def keep(folder: Path, path: Path, digest: str) -> None:
    """Copy a file into an index, unless a copy is there already; `digest` is its sha256 in hexadecimal.

    LoadError if the file cannot be read or has another digest by now; StorageError if the copy cannot be written.
    """
    if not _NAME.fullmatch(digest):
        raise ValueError(f"a sha256 in hexadecimal names a copy, got {digest!r}")
    place = folder / FOLDER
    try:
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            with writing(place):
                had = _has(place / digest, size)
            if had:
                return
            _write(source, place, digest, path)
    except OSError as error:
        raise LoadError(f"{path} cannot be kept: {error.strerror or error}") from error


def _has(copy: Path, size: int) -> bool:
    try:
        return copy.stat().st_size == size
    except FileNotFoundError:
        return False


def _write(source: BinaryIO, place: Path, digest: str, path: Path) -> None:
    with writing(place):
        if not place.is_dir():
            place.mkdir(exist_ok=True)
            sync_file(place.parent)
        handle, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=place)
    actual = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as copy:
            while piece := source.read(_PIECE):
                actual.update(piece)
                with writing(place):
                    copy.write(piece)
            if actual.hexdigest() != digest:
                raise LoadError(f"{path} changed while it was copied")
            with writing(place):
                copy.flush()
                os.fsync(copy.fileno())
        with writing(place):
            Path(name).rename(place / digest)
            sync_file(place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def kept(folder: Path, digest: str) -> Path | None:
    """Return the copy of the file with that sha256, once its bytes were compared with its name; None where there is none.

    Damaged where they differ.
    """
    copy = folder / FOLDER / digest
    if not _NAME.fullmatch(digest) or not copy.is_file():
        return None
    with copy.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise Damaged(
            f"{copy} is not what was kept: its bytes have the sha256 {actual[:12]}… and not its name. "
            f"Run: rm {shlex.quote(str(copy))}, and add the document's file again if you have it."
        )
    return copy


def damaged(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the damaged copies, and what is wrong with each. Reads all copies."""
    place = folder / FOLDER
    for copy in sorted(place.iterdir()) if place.is_dir() else ():
        try:
            kept(folder, copy.name)
        except (Damaged, OSError) as error:
            yield copy, str(error).partition(" Run: ")[0]


def remove_unused(folder: Path, live: Collection[str]) -> int:
    """Remove the copies whose sha256 is not in `live`, and unfinished copies of a crash; return the bytes that this freed.

    Only the writer of the index may call this, while it writes.
    """
    place, live, freed = folder / FOLDER, frozenset(live), 0
    if not place.is_dir():
        return 0
    with writing(place):
        for copy in sorted(place.iterdir()):
            if (_NAME.fullmatch(copy.name) and copy.name not in live) or copy.name.startswith(_UNFINISHED):
                freed += copy.stat().st_size
                copy.unlink()
        sync_file(place)
    return freed


def copy_kept(folder: Path, target: Path, live: Collection[str]) -> int:
    """Copy the source files that an index keeps for `live` to another index's folder; return their bytes. Damaged if one is.

    A copy that a writer removes meanwhile, because its document was deleted, is left out.
    """
    done = 0
    for digest in sorted(live):
        copy = folder / FOLDER / digest
        if not _NAME.fullmatch(digest) or not copy.is_file():
            continue
        try:
            keep(target, copy, digest)
        except LoadError:
            if kept(folder, digest) is None:  # raises Damaged where it is there
                continue
            raise
        done += (target / FOLDER / digest).stat().st_size
    return done

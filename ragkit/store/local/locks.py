"""Locks between processes: one writer, any number of readers. flock only; on file systems without it, nothing is promised.

LOCK is held exclusively by the writer. A reader holds a shared lock on every folder it uses; a folder is
removed only by a process that can lock it exclusively.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ragkit.core.errors import IndexLocked, StorageError

DOOMED = ".removed"  # suffix of a folder that is being removed
POLL = 0.05  # seconds between two tries for the writer's lock


class Pin:
    """Holds a shared lock on a folder as long as this object lives."""

    def __init__(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY)
        weakref.finalize(self, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH)


def remove_unused(folder: Path) -> bool:
    """Remove a folder unless a reader, in this process or another, holds it; return whether it is gone.

    It is renamed while locked, so that a late reader finds no folder rather than half of one.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        doomed = folder if folder.name.endswith(DOOMED) else folder.with_name(folder.name + DOOMED)
        folder.rename(doomed)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    shutil.rmtree(doomed)
    return True


@contextmanager
def writer_lock(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the writer's lock. IndexLocked, after `timeout` seconds, names the process that holds it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(
            f"cannot write to {path.parent}: {error.strerror}. Check that the folder exists and that you may write to it."
        ) from error
    try:
        _acquire(handle, path, time.monotonic() + timeout)
        with suppress(OSError):  # the holder's name is for others' messages; the lock itself needs no disk
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode(), 0)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
                raise IndexLocked(
                    f"{path.parent} is being written to by another process ({holder}). Wait for it to finish, or stop it, "
                    "and run the same command again. Searching goes on meanwhile."
                ) from None
        time.sleep(POLL)

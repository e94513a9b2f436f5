"""What a disk may hold when the power is lost: the calls that were made, done again, less what was never synced.

The model is POSIX's, without what file systems add of their own accord: written bytes are certain once their file was synced
after the writing; a name that was made, linked, renamed or removed is certain once its folder was synced after that. Anything
else may be there or not, each for itself; a write may be there in part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.care.tracer import Call

NAMES = {"mkdir": "mkdir", "mkdirat": "mkdir", "rmdir": "rmdir", "unlink": "unlink", "unlinkat": "unlink", "link": "link"}
NAMES |= {"linkat": "link", "rename": "rename", "renameat": "rename", "renameat2": "rename", "open": "open"}


def power_lost(calls: Sequence[Call], *, keep: Callable[[], bool]) -> None:
    """Do the calls on the files there are, which are as they were before the first; `keep` says whether an uncertain one
    is among those that reached the disk."""
    sure = certain(calls)
    for at, call in enumerate(calls):
        if sure[at] or keep():
            _do(call, whole=sure[at] or keep())
    # The memory that SQLite's processes share is not on the disk: whoever opens the index first makes it anew.
    for call in calls:
        if call.path.endswith("-shm"):
            Path(call.path).unlink(missing_ok=True)


def certain(calls: Sequence[Call]) -> list[bool]:
    """For each call, whether a later sync of its file, or of the folder of its name, made it certain."""
    synced: set[str] = set()
    found = []
    for call in reversed(calls):
        if call.name in ("fsync", "fdatasync"):
            synced.add(call.path)
            found.append(True)
        elif call.name == "open" and call.new:
            found.append(str(Path(call.path).parent) in synced)
        elif NAMES.get(call.name, "open") != "open":
            found.append(str(Path(call.path).parent) in synced)
            if call.name.startswith("rename") and call.other in synced:
                synced.add(call.path)
            if call.name.startswith("rename") and call.path in synced:
                synced.add(call.other)  # what was synced under the new name was written under the old one
        else:
            found.append(call.path in synced)
    return found[::-1]


def _do(call: Call, *, whole: bool) -> None:
    path = Path(call.path)
    name = NAMES.get(call.name, call.name)
    try:
        if name == "mkdir":
            path.mkdir(exist_ok=True)
        elif name == "rmdir":
            path.rmdir()
        elif name == "unlink":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif name == "link":
            os.link(call.other, path)
        elif name == "rename":
            Path(call.other).rename(path)
        elif name == "open":
            if call.size < 0 or not path.exists():
                path.write_bytes(b"") if call.new or path.exists() else None
        elif name in ("ftruncate", "truncate"):
            os.truncate(path, call.size)
        elif name in ("write", "pwrite64"):
            body = call.data if whole else call.data[: len(call.data) // 2]
            with path.open("r+b") as file:
                file.seek(call.offset)
                file.write(body)
    except OSError:
        pass  # it stood on something that was lost

"""The bytes of catalog.db at rest, each under a checksum.

Every row has a sum of its own, but SQLite's free space has no rows: a flipped bit there changes nothing that is ever read, and
nothing but the bytes themselves can tell of it. So who wrote and closes leaves `catalog.sums`: xxh3-64 of each BLOCK of the
file, and the state it was in. Only `verify` reads it.

It is no second manifest. The state is a random number that every transaction replaces, in a row of the catalog: where the two
are not the same, the sums are of another time and say nothing. So they are written without any order to the commit, may be
lost, and are never needed.

    catalog.sums     (2 + n,) uint64, little-endian: xxh3-64 of all that follows; the state; the sums of n blocks
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import xxhash

from ragkit.core.errors import StorageError
from ragkit.store.catalog.database import Database
from ragkit.store.local.files import sync_file

BLOCK = 1 << 16  # bytes
IN_MEMORY = 1 << 24  # bytes of a catalog that is had from SQLite in one piece
QUICK = 1 << 28  # bytes of a catalog that is read whenever a writer closes; larger ones when all was rewritten
NAME = "catalog.sums"
# SQLite's locks are POSIX's: a process that closes any descriptor of the file lets go of all of its locks on it. So where the
# file is too large to be had from SQLite itself, another process reads it.
READER = """
import sys, xxhash
with open(sys.argv[1], "rb", buffering=0) as file:
    while piece := file.read(int(sys.argv[2])):
        sys.stdout.buffer.write(xxhash.xxh3_64_intdigest(piece).to_bytes(8, "little"))
"""


def leave_sums(catalog: Database, *, thorough: bool = False) -> None:
    """Write the sums of a catalog whose writer's lock the caller holds, unless they are there. None of one above QUICK, unless
    `thorough`, nor of one above IN_MEMORY while a reader keeps the log from being emptied. Raises StorageError, OSError."""
    stored = _stored(catalog.path.with_name(NAME))
    state = catalog.state()
    if state is None or stored[:1] == [state]:
        return
    size = catalog.path.stat().st_size
    if (size > QUICK and not thorough) or (size > IN_MEMORY and not catalog.settle()):
        return
    if (taken := _taken(catalog)) is not None:
        write_sums(catalog.path.with_name(NAME), *taken)


def write_sums(target: Path, state: int, sums: list[int]) -> None:
    """Write `catalog.sums`, whole or not at all."""
    body = np.array([state, *sums], dtype="<u8").tobytes()
    fresh = target.with_name(f"{NAME}.new")
    fresh.write_bytes(xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") + body)
    sync_file(fresh)
    fresh.replace(target)


def differing(catalog: Database) -> list[str]:
    """The blocks of catalog.db, or the sums themselves, that are not as they were left; nothing where the sums are of another
    time. Raises StorageError."""
    path = catalog.path.with_name(NAME)
    if not path.exists():
        return []
    if not (stored := _stored(path)):
        return [f"{path}: it does not match its own checksum"]
    if catalog.state() != stored[0] or (taken := _taken(catalog)) is None or taken[0] != stored[0]:
        return []
    found = taken[1]
    if len(found) != len(stored) - 1:
        return [f"{catalog.path}: it has {len(found)} blocks of {BLOCK:,} bytes, and {len(stored) - 1} were left"]
    bad = [at for at, (one, other) in enumerate(zip(found, stored[1:], strict=True)) if one != other]
    return [f"{catalog.path}: block {at} (bytes {at * BLOCK}…) is not as it was left, though every row is" for at in bad]


def block_sums(image: bytes) -> list[int]:
    """xxh3-64 of each BLOCK of a catalog's bytes."""
    view = memoryview(image)
    return [xxhash.xxh3_64_intdigest(view[at : at + BLOCK]) for at in range(0, len(image), BLOCK)]


def file_sums(path: Path) -> list[int]:
    """The same of a file that no connection of this process has open."""
    sums = []
    with path.open("rb", buffering=0) as file:
        while piece := file.read(BLOCK):
            sums.append(xxhash.xxh3_64_intdigest(piece))
    return sums


def _taken(catalog: Database) -> tuple[int, list[int]] | None:
    """State and sums of the catalog as it is now; None where that cannot be told, because somebody writes."""
    if catalog.path.stat().st_size <= IN_MEMORY:
        state, image = catalog.image()
        return None if state is None else (state, block_sums(image))
    state = catalog.state()
    command = [sys.executable, "-I", "-c", READER, str(catalog.path), str(BLOCK)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise StorageError(f"{catalog.path} cannot be read: {done.stderr.decode(errors='replace').strip()[-200:]}")
    sums: list[int] = np.frombuffer(done.stdout, dtype="<u8").tolist()
    return None if state is None or catalog.state() != state else (state, sums)


def _stored(path: Path) -> list[int]:
    """State and sums; nothing where there are none, or they are damaged."""
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return []
    if len(body) < 16 or len(body) % 8 or xxhash.xxh3_64_intdigest(body[8:]) != int.from_bytes(body[:8], "little"):
        return []
    stored: list[int] = np.frombuffer(body[8:], dtype="<u8").tolist()
    return stored

"""Files that are written once, synced, and never used without comparing their checksum.

`seal(folder)` syncs every file and the folder and returns what the catalog keeps: name, size and one xxh3 sum per block.
`CheckedFolder` verifies blocks on first touch: a block that does not match is Damaged, never an answer.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from ragkit.core.errors import Damaged, StorageError

BLOCK = 1 << 20  # bytes; a flipped bit costs one block's reading, and a million-row file keeps under a thousand sums

WAYS_OUT = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or raise the quota",
    errno.EROFS: "Mount the disk for writing",
    errno.EACCES: "Check the permission to write there",
    errno.EPERM: "Check the permission to write there",
    errno.EIO: "Check the disk: it failed to read or write",
    errno.ESTALE: "Mount the file system again",
    errno.ENOTCONN: "Mount the file system again",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A sealed file: its name within the folder, size in bytes, block size, and xxh3-64 of each block, little-endian."""

    name: str
    size: int
    block: int
    sums: bytes


def _sealed(path: Path) -> FileRecord:
    """Sync a file, read it, and return its record."""
    size, sums = 0, bytearray()
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        while piece := file.read(BLOCK):
            size += len(piece)
            sums += xxhash.xxh3_64_intdigest(piece).to_bytes(8, "little")
    return FileRecord(path.name, size, BLOCK, bytes(sums))


def map_array(path: Path) -> np.ndarray:
    """Map an .npy file of format 1.0 read-only. np.load takes five times as long, and opens the file three times."""
    with path.open("rb", buffering=0) as file:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(shape, dtype, buffer=mapped, offset=start, order="F" if fortran else "C")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an ordinary .npy file. Not by np.save, which writes through C's buffers: if the disk is full when they are flushed,
    it raises nothing, and a short file would be sealed under a good checksum."""
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(array).data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError raised while `path` is written into a StorageError that names the way out."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}. What was committed before is whole and can be searched. "
            f"{WAYS_OUT.get(error.errno or 0, 'Check the disk')}, and run the same command again."
        ) from error


def sync_file(path: Path) -> None:
    """Bring a file's or a folder's bytes to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(
    folder: Path, *, known: Callable[[str], FileRecord | None] = lambda name: None, ignore: Collection[str] = ()
) -> list[FileRecord]:
    """Sync every file of `folder` and the folder itself; return their records, by name, without those to `ignore`.

    `known(name)` may return the record of a file that was sealed before and cannot have changed; that file is not read again.
    """
    records = []
    for path in sorted(folder.iterdir()):
        if path.name in ignore:
            continue
        if record := known(path.name):
            records.append(record)
            continue
        records.append(_sealed(path))
    sync_file(folder)
    return records


class CheckedFolder:
    """An immutable folder and its records. Thread-safe: at worst a block is verified twice.

    sealed: this process has just read the whole folder for these records, so nothing is verified again.
    """

    def __init__(
        self, path: Path, records: Sequence[FileRecord], *, repair_command: str = "ragkit repair", sealed: bool = False
    ) -> None:
        self.path = path
        self.records = {record.name: record for record in records}
        self._repair_command = repair_command
        self._seen: dict[str, np.ndarray] = {}
        if sealed:
            self._seen = {record.name: np.ones(-(-record.size // record.block), dtype=np.bool_) for record in records}
        self._lock = threading.Lock()

    def file(self, name: str) -> Path:
        """Return the path of a recorded file; Damaged unless it has the recorded size. Its bytes are not verified yet."""
        path = self.path / name
        record = self.records.get(name)
        if record is None:
            raise self._damaged(path, "it is not recorded in the catalog")
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise self._damaged(path, "it is missing") from None
        if size != record.size:
            raise self._damaged(path, f"it has {size} bytes, the catalog recorded {record.size}")
        return path

    def verify(self, name: str, start: int = 0, stop: int | None = None, *, again: bool = False) -> None:
        """Compare the blocks that hold bytes [start, stop) with their sums; each block once per process, unless `again`."""
        record = self.records.get(name)
        if record is None:
            raise self._damaged(self.path / name, "it is not recorded in the catalog")
        blocks = -(-record.size // record.block)
        stop = record.size if stop is None else min(stop, record.size)
        first, last = start // record.block, -(-stop // record.block)
        with self._lock:
            seen = self._seen.setdefault(name, np.zeros(blocks, dtype=np.bool_))
        todo = np.arange(first, last) if again else first + np.flatnonzero(~seen[first:last])
        if len(todo) == 0:
            return
        with self.file(name).open("rb", buffering=0) as file:
            for number in todo.tolist():
                file.seek(number * record.block)
                piece = file.read(min(record.block, record.size - number * record.block))
                if xxhash.xxh3_64_intdigest(piece).to_bytes(8, "little") != record.sums[8 * number : 8 * number + 8]:
                    raise self._damaged(
                        self.path / name, f"block {number} (bytes {number * record.block}…) does not match its checksum"
                    )
        seen[todo] = True

    def copy(self, name: str, target: Path) -> Iterator[int]:
        """Copy a file to a new one and sync that; yield the length of each block, which is written once it matched its sum."""
        record = self.records[name]
        with self.file(name).open("rb", buffering=0) as file, target.open("xb") as copy:
            for number in range(-(-record.size // record.block)):
                piece = file.read(min(record.block, record.size - number * record.block))
                if xxhash.xxh3_64_intdigest(piece).to_bytes(8, "little") != record.sums[8 * number : 8 * number + 8]:
                    raise self._damaged(self.path / name, f"block {number} does not match its checksum")
                copy.write(piece)
                yield len(piece)
            copy.flush()
            os.fsync(copy.fileno())

    def _damaged(self, path: Path, what: str) -> Damaged:
        return Damaged(f"{path} is damaged: {what}. Run: {self._repair_command}")

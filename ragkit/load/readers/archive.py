"""Archives (zip, tar, tar.gz, tar.bz2, tar.xz) are folders: each file in them is a Document, known as "papers.zip#a/b.pdf".

Nothing is unpacked to disk, so no name can lead anywhere; names are still made relative and plain. Bytes are counted
while they are unpacked, never as the archive declares them, over all that one file holds, archives in archives included.
Links, devices and hidden files are left out; a second file of the same name gets a number, so that both are found.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from io import BufferedIOBase, RawIOBase
from pathlib import Path, PurePosixPath
from typing import IO

from ragkit.core.errors import EncryptedDocument, LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load.builder import one_line
from ragkit.load.limits import Budget, Options
from ragkit.load.member import EmbeddedFile, begins, inside, load_embedded, unique
from ragkit.load.normalize import iso

Member = tuple[EmbeddedFile, str]  # a file and its date

_PIECE = 1 << 18  # bytes unpacked at a time
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, ValueError)


def _gunzip(packed: IO[bytes]) -> BufferedIOBase:
    return gzip.GzipFile(fileobj=packed, mode="rb")


_OPENERS: dict[str, Callable[[IO[bytes]], BufferedIOBase]] = {
    ".gz": _gunzip,
    ".tgz": _gunzip,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


def load(path: Path, options: Options) -> Iterator[Document | LoadError]:
    """Yield the Documents of all files in an archive; for a file that cannot be read, an error that names it."""
    begun = 0

    def on_part(name: str) -> bool:
        nonlocal begun
        begun += 1
        return options.on_part(name)

    deeper = replace(inside(options), on_part=on_part)
    read = _zip if path.suffix.lower() == ".zip" else _tar
    count = 0
    for member in read(path, deeper):
        count += 1
        if isinstance(member, LoadError):
            yield member
        else:
            yield from load_embedded(member[0], deeper, modified=member[1])
    if not (count or begun):
        raise LoadError("the archive holds no file")


def _zip(path: Path, options: Options) -> Iterator[Member | LoadError]:
    taken: set[str] = set()
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            infos = archive.infolist()
        except _BROKEN as error:
            raise LoadError(f"not a zip archive, or damaged: {error}") from None
        for info in infos:
            name = plain_name(_zip_name(info))
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if not name or info.is_dir() or is_link:
                continue
            name = unique(name, taken, suffix=PurePosixPath(name).suffix)
            if begins(name, options):
                yield _zip_member(archive, info, name, options)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, options: Options) -> Member | LoadError:
    """Return a file and its date, or why it cannot be read. Raise LimitExceeded where the whole archive unpacks to too much."""
    budget = options.budget
    assert budget is not None
    try:
        password = options.password.encode() if options.password else None
        with archive.open(info, pwd=password) as member:
            data = _counted(member, name, options, budget)
        return EmbeddedFile(name, data), _zip_date(info)
    except RuntimeError as error:  # zipfile raises it for a missing or wrong password
        wrong = "the password does not open it" if options.password else "it needs a password"
        return EncryptedDocument(f"{name}: it is encrypted; {wrong}" if info.flag_bits & 1 else f"{name}: {error}")
    except _BROKEN as error:
        return LoadError(f"{name}: damaged in the archive: {error}")
    except LoadError as error:
        if budget.spent:
            raise
        return error


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; one that is UTF-8 without saying so, as macOS writes them, is not read as cp437."""
    try:
        return info.filename if info.flag_bits & 0x800 else info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _zip_date(info: zipfile.ZipInfo) -> str:
    try:
        return datetime(*info.date_time, tzinfo=UTC).isoformat(timespec="seconds") if info.date_time[0] > 1980 else ""
    except ValueError:
        return ""


def _tar(path: Path, options: Options) -> Iterator[Member | LoadError]:
    opener = _OPENERS.get(path.suffix.lower())
    with path.open("rb") as packed:
        try:
            stream = _Counted(opener(packed), options.budget) if opener else _Counted(packed, None)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                # What a packed archive unpacks to is counted by its stream, else it is counted member by member.
                yield from _tar_members(archive, options, None if opener else options.budget)
            if any(stream.last):  # tarfile takes any end of the file for the end of the archive
                yield LoadError("the archive is cut short, or goes on after its end mark: files may be missing")
        except _BROKEN as error:
            raise LoadError(f"not a tar archive, or damaged: {error}") from None


def _tar_members(archive: tarfile.TarFile, options: Options, budget: Budget | None) -> Iterator[Member | LoadError]:
    taken: set[str] = set()
    for info in archive:
        name = plain_name(info.name)
        if not name or not info.isreg():
            continue
        name = unique(name, taken, suffix=PurePosixPath(name).suffix)
        if begins(name, options) and (member := archive.extractfile(info)) is not None:
            yield _tar_member(member, name, info.mtime, options, budget)


def _tar_member(member: IO[bytes], name: str, time: float, options: Options, budget: Budget | None) -> Member | LoadError:
    """Return a file and its date, or an error where it is too large. Raise LimitExceeded where the whole archive is."""
    assert options.budget is not None
    try:
        return EmbeddedFile(name, _counted(member, name, options, budget)), iso(time)
    except LimitExceeded as error:
        if options.budget.spent:
            raise
        return error


class _Counted(RawIOBase):
    """A stream that takes from a budget what is read from it: what tarfile skips is unpacked too."""

    def __init__(self, inner: IO[bytes] | BufferedIOBase, budget: Budget | None) -> None:
        self._inner, self._budget = inner, budget
        self.last = b""  # the last block read; of a whole archive it is empty

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        if self._budget is not None:
            self._budget.take(len(data))
        self.last = (self.last + data)[-tarfile.BLOCKSIZE :] if len(data) < tarfile.BLOCKSIZE else data[-tarfile.BLOCKSIZE :]
        return data


def _counted(member: IO[bytes], name: str, options: Options, budget: Budget | None) -> bytes:
    """Return a member's bytes. Raise LimitExceeded where they are too many for one file, or for all files together."""
    pieces, size = [], 0
    while piece := member.read(_PIECE):
        size += len(piece)
        if budget is not None:
            budget.take(len(piece))
        if size > options.limits.file_bytes:
            raise LimitExceeded(f"{name}: more than {options.limits.file_bytes} bytes (Limits.file_bytes)")
        pieces.append(piece)
    return b"".join(pieces)


def plain_name(name: str) -> str:
    """Return a member's name as a relative path without "." and ".."; "" for a hidden file and for one without a name."""
    parts = [part for part in one_line(name).replace("\\", "/").replace("#", "_").split("/") if part not in ("", ".", "..")]
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":  # a drive
        parts = parts[1:]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return "" if hidden else "/".join(parts)[:1000]

"""Archives (zip, tar, tar.gz, tar.bz2, tar.xz) are folders: each file in them is a Document, known as "papers.zip#a/b.pdf".

Nothing is unpacked to disk, so no name can lead anywhere; names are still made relative and plain. Bytes are counted
while they are unpacked, never as the archive declares them, over all that one file holds, archives in archives included.
Links, devices and hidden files are left out; a name that was there before gets a number, so that both are found.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ragkit.core.errors import EncryptedDocument, LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load.builder import one_line
from ragkit.load.limits import Budget, Options
from ragkit.load.member import EmbeddedFile, begins, inside, load_embedded, unique
from ragkit.load.normalize import iso

_PIECE = 1 << 18  # bytes unpacked at a time
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, ValueError)
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def load(path: Path, options: Options) -> Iterator[Document | LoadError]:
    """The Documents of all files in an archive; one that cannot be read is yielded as an error that names it."""
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


Member = tuple[EmbeddedFile, str]  # a file and its date


def _zip(path: Path, options: Options) -> Iterator[Member | LoadError]:
    budget = options.budget
    assert budget is not None
    taken: set[str] = set()
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            infos = archive.infolist()
        except _BROKEN as error:
            raise LoadError(f"it is no zip archive, or it is damaged: {error}") from None
        for info in infos:
            name = plain_name(_zip_name(info))
            mode = info.external_attr >> 16
            if not name or info.is_dir() or mode & 0o170000 == 0o120000:
                continue
            name = unique(name, taken, suffix=PurePosixPath(name).suffix)
            if not begins(name, options):
                continue
            try:
                password = options.password.encode() if options.password else None
                with archive.open(info, pwd=password) as member:
                    data = _counted(member, name, options, budget)
                yield EmbeddedFile(name, data), _zip_date(info)
            except RuntimeError as error:  # zipfile's word for a missing or wrong password
                wrong = "the password does not open it" if options.password else "it needs a password"
                yield EncryptedDocument(f"{name}: it is encrypted; {wrong}" if info.flag_bits & 1 else f"{name}: {error}")
            except _BROKEN as error:
                yield LoadError(f"{name}: damaged in the archive: {error}")
            except LoadError as error:
                if budget.spent:
                    raise
                yield error


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A name that is UTF-8 without saying so, as macOS writes them, is read as such, and not as cp437."""
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
    budget = options.budget
    assert budget is not None
    opener = _OPENERS.get(path.suffix.lower())
    taken: set[str] = set()
    with path.open("rb") as packed:
        try:
            unpacked: Any = opener(packed) if opener else packed
            stream = _Counted(unpacked, budget if opener else None)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for info in archive:
                    name = plain_name(info.name)
                    if not name or not info.isreg():
                        continue
                    name = unique(name, taken, suffix=PurePosixPath(name).suffix)
                    if not begins(name, options):
                        continue
                    member = archive.extractfile(info)
                    if member is None:
                        continue
                    try:
                        data = _counted(member, name, options, None if opener else budget)
                    except LimitExceeded as error:
                        if budget.spent:
                            raise
                        yield error
                        continue
                    yield EmbeddedFile(name, data), iso(info.mtime)
            if any(stream.last):  # tarfile takes any end for the end
                yield LoadError("the archive is cut short, or goes on after its end mark: files may be missing")
        except _BROKEN as error:
            raise LoadError(f"it is no tar archive, or it is damaged: {error}") from None


class _Counted(RawIOBase):
    """A stream that takes from a budget what is read from it: what a tar archive skips is unpacked too."""

    def __init__(self, inner: BinaryIO, budget: Budget | None) -> None:
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


def _counted(member: Any, name: str, options: Options, budget: Budget | None) -> bytes:
    """A member's bytes. LimitExceeded where they are too many for one file, or for all."""
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
    """A member's name as a relative path without "." and ".."; "" for what is hidden or has none."""
    parts = [part for part in one_line(name).replace("\\", "/").replace("#", "_").split("/") if part not in ("", ".", "..")]
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":  # a drive
        parts = parts[1:]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return "" if hidden else "/".join(parts)[:1000]

"""The values of an `add`: how to add, a file being read, and a document on its way into the index. No store, no models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ragkit.core.types import Chunk, Document, Floats, Metadata, Progress
from ragkit.load import IGNORE_FILES, Limits, Source, file_hash, format_of
from ragkit.store.values import DocumentRow, Origin, PageVectors
from ragkit.store.vectors.multi_layout import Stored

USER_FIELDS = "given"  # the metadata field that keeps the user's own fields of a file, so that a change of them is seen
CHANGED = "it changed while it was read; add it again"
Target = str | Path | Iterable[object]
Callback = Callable[[Progress], None]
MetadataOf = Callable[[Path], Metadata | None]


@dataclass(slots=True, eq=False)
class Item:
    """A document on its way: where it came from, what it replaces, its chunks and, once encoded, their vectors."""

    origin: Origin
    document: Document
    replaces: DocumentRow | None = None
    stamp: tuple[int, ...] | None = None  # of its file when that was hashed; None where it was not read in this call
    chunks: tuple[Chunk, ...] = ()
    dense: list[Floats | None] = field(default_factory=list)  # a vector for each chunk, or none at all
    multi: list[Stored | None] = field(default_factory=list)  # a multi-vector for each chunk, or none at all
    seen: PageVectors | None = None
    complete: bool = True  # False: it lacks something, such as a page that could not be seen, and the next `add` tries again
    problem: str = ""  # why it cannot be added
    warnings: tuple[str, ...] = ()
    duplicate_of: str = ""

    @property
    def units(self) -> int:
        return len(self.chunks) + len(self.seen.pages if self.seen else ())

    @property
    def file(self) -> Path | None:
        """The file that is this document and nothing else; None for records and for what lies within a file."""
        path = self.origin.path
        return Path(path) if path is not None and path == self.origin.identity else None


@dataclass(frozen=True, slots=True, eq=False)
class FileState:
    """A file that is being read: its hash, its stamp when that was taken, and the fields that the user gives its documents.

    digest: sha256 in hexadecimal; "" for a file of many records, each of which has a hash of its own.
    """

    digest: str
    stamp: tuple[int, ...]
    user_fields: Metadata


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A loaded document that the index may hold already. `name` is what users know it by, unless it has a name in the index.

    source, state: the file that it is, or that it lies in as one of many records; None for a record from Python.
    """

    identity: str
    name: str
    content_hash: str
    document: Document
    source: Source | None = None
    state: FileState | None = None

    @property
    def is_record(self) -> bool:
        """Whether it comes from Python, or from a file of many records: then its hash is its own, not that of a file."""
        return self.state is None or not self.state.digest


class AddKeywords(TypedDict, total=False):
    """The keywords of `Index.add`: the fields of `AddOptions`."""

    include: Sequence[str]
    exclude: Sequence[str]
    ignore_files: Sequence[str]
    metadata: MetadataOf | None
    limits: Limits | None
    password: str | None
    workers: int
    prune: bool
    progress: Callback | None


@dataclass(frozen=True, slots=True)
class AddOptions:
    """How to add, beyond the recipe: what `Index.add` takes."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    ignore_files: Sequence[str] = IGNORE_FILES
    metadata: MetadataOf | None = None
    limits: Limits = field(default_factory=Limits)
    password: str | None = None
    workers: int = 1
    prune: bool = False
    progress: Callback | None = None

    @classmethod
    def of(cls, keywords: AddKeywords) -> AddOptions:
        """Build the options from keywords. TypeError names an unknown one."""
        if unknown := [name for name in keywords if name not in AddKeywords.__annotations__]:
            raise TypeError(f"{unknown[0]!r} is not an option of add; the options are {', '.join(AddKeywords.__annotations__)}")
        values: dict[str, Any] = {**keywords, "limits": keywords.get("limits") or Limits()}
        return cls(**values)


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return a file's size, times and inode: they differ after nearly every change, and cost no reading."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def has_hash(path: Path, digest: str) -> bool:
    """Whether a file is there and can be read, and its bytes have that hash."""
    try:
        return file_hash(path) == digest
    except OSError:
        return False


def is_unchanged(path: Path, digest: str, stamp: tuple[int, ...] | None) -> bool:
    """Whether a file still has the bytes of that hash. It is hashed again only where its stamp is another, or is not known."""
    try:
        return (stamp is not None and file_stamp(path) == stamp) or file_hash(path) == digest
    except OSError:
        return False


def absolute_path(target: str | Path | Source) -> Path:
    if isinstance(target, Source):
        return target.path
    return Path(os.path.abspath(os.path.expanduser(target)))  # noqa: PTH100, PTH111 - as `discover` does


def is_container(source: Source) -> bool:
    """Whether a file holds many documents, each with an identity and a hash of its own."""
    kind = format_of(source.path)
    return kind is not None and kind.container

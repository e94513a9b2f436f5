"""A document on its way into the index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragkit.core.types import Chunk, Document, Floats, Progress
from ragkit.ingest.reuse import Wanted
from ragkit.load import IGNORE_FILES, Limits, Source, file_hash, format_of
from ragkit.store.values import DocumentRow, Origin, PageVectors
from ragkit.store.vectors.multi_layout import Stored

CHANGED = "it changed while it was read; add it again"
Target = str | Path | Iterable[Any]
Callback = Callable[[Progress], None]
MetadataOf = Callable[[Path], Mapping[str, Any] | None]


@dataclass(slots=True, eq=False)
class Item:
    """A document on its way: where it came from, what it replaces, its chunks and, once encoded, their vectors."""

    origin: Origin
    document: Document
    replaces: DocumentRow | None
    chunks: tuple[Chunk, ...] = ()
    texts: list[str] = field(default_factory=list)  # of the chunks, as they are embedded; late chunking has no use for them
    dense: list[Floats | None] = field(default_factory=list)
    multi: list[Stored | None] = field(default_factory=list)
    seen: PageVectors | None = None
    settled: bool = True  # False: it lacks something, as a page that could not be seen, and the next `add` tries again
    failed: bool = False
    warnings: tuple[str, ...] = ()
    duplicate_of: str = ""

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.document, self.chunks, self.origin.content_hash, self.replaces)

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
    """A file that is being read: what it was when its hash was taken, and what the user says of it."""

    digest: str
    stamp: tuple[int, ...]
    given: Mapping[str, Any]
    former: DocumentRow | None = None


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


def file_stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does, nearly always: its size, times and inode."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def has_hash(path: Path, digest: str) -> bool:
    """Whether a file is there and can be read, and its bytes have that hash."""
    try:
        return file_hash(path) == digest
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

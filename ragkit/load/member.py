"""A file within a file: a member of an archive, an attachment of a message. It is never written to disk.

`EmbeddedFile` has what loaders use of `pathlib.Path`, so each of them reads embedded files as it reads files. The loader of a
container calls `load_embedded` for each: it finds the loader, keeps the limits on nesting and size, and adds the metadata that
the Documents of files have.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import BinaryIO

from ragkit.core.errors import EncryptedDocument, LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Document
from ragkit.load.formats import Format, format_of
from ragkit.load.limits import Budget, Options
from ragkit.load.normalize import add_common_metadata


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """Bytes with a name, read where a file would be."""

    name: str
    data: bytes

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def read_bytes(self) -> bytes:
        return self.data

    def open(self, mode: str = "rb") -> BinaryIO:
        return BytesIO(self.data)

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=len(self.data))


def inside(options: Options) -> Options:
    """Return the options for what is in a container: one level deeper, on one budget with all the rest of the file."""
    if options.depth >= options.limits.nesting:
        raise LimitExceeded(f"files within files more than {options.limits.nesting} deep (Limits.nesting)")
    budget = options.budget or Budget(options.limits.inflated_bytes)
    return replace(options, depth=options.depth + 1, budget=budget)


def begins(name: str, options: Options) -> bool:
    """Say that an embedded file begins. Returns False where it is to be left out. Files deeper within belong to theirs, and are
    not announced."""
    return options.depth > 1 or options.on_part(name)


def unique(name: str, taken: set[str], *, suffix: str = "") -> str:
    """Return the name, with a number before its suffix where it is taken, and add it to those taken."""
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name.removesuffix(suffix)} ({count}){suffix}"
    taken.add(free)
    return free


def load_embedded(file: EmbeddedFile, options: Options, *, modified: str = "") -> Iterator[Document | LoadError]:
    """Yield the Documents of an embedded file, each with an id that begins with the file's name.

    Failures are yielded, not raised: UnsupportedFormat for an empty file and a kind of file that nothing reads, LoadError and
    its other kinds for one that should have been read.

    `options` are those of `inside`; `modified` is the file's date in ISO form. `meta["sha256"]` is the hash of its bytes.
    """
    kind = format_of(file.name)
    if kind is None:
        yield UnsupportedFormat(f"{file.name}: no loader takes this kind of file")
        return
    if not file.data:
        yield UnsupportedFormat(f"{file.name}: it is empty")
        return
    digest = hashlib.sha256(file.data).hexdigest()
    try:
        for result in importlib.import_module(kind.module).load(file, options):
            if isinstance(result, Document) and not kind.container:  # a container's loader completes its Documents itself
                result = _complete(result, kind, file, options, digest=digest, modified=modified)
            if isinstance(result, Document):
                yield replace(result, id=f"{file.name}#{result.id}" if result.id else file.name)
            else:
                yield named(result, file.name)
    except MemoryError:
        raise
    except Exception as error:  # what a parser raises on a broken file is that file's failure
        if isinstance(error, LimitExceeded) and options.budget is not None and options.budget.spent:
            raise  # the whole file is over its limit, not only the embedded one
        yield _failure(error, file.name)


def _failure(error: Exception, name: str) -> LoadError:
    """Return the LoadError that says what an exception means for an embedded file."""
    if isinstance(error, UnsupportedFormat):  # its loader lacks an extra, say: not the same as a kind that nothing reads
        return LoadError(f"{name}: {error}")
    if isinstance(error, LoadError):
        return named(error, name)
    return LoadError(f"{name}: {type(error).__name__}: {error}")


def _complete(
    document: Document, kind: Format, file: EmbeddedFile, options: Options, *, digest: str, modified: str
) -> Document | LoadError:
    """Return the Document with the metadata that all files have, and the hash of its bytes."""
    completed = add_common_metadata(document, kind, size=len(file.data), modified=modified, limits=options.limits)
    if isinstance(completed, LoadError):
        return completed
    return replace(completed, meta={**completed.meta, "sha256": digest})


def named(error: LoadError, name: str) -> LoadError:
    """Return the same failure, with the embedded file's name in front."""
    kind = type(error) if type(error) in (EncryptedDocument, LimitExceeded, UnsupportedFormat) else LoadError
    return kind(f"{name}: {error}")

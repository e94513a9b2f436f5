"""A file within a file: a member of an archive, an attachment of a message. It is never written to disk.

`EmbeddedFile` has what loaders use of `pathlib.Path`, so each of them reads parts as it reads files. `load_embedded` is what a
container's loader calls for each: it finds the loader, keeps the limits on nesting and size, and finishes the Documents as
those of files are finished.
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
from ragkit.load.formats import format_of
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
    """The options for what is in a container: one level deeper, on one budget with all the rest of the file."""
    if options.depth >= options.limits.nesting:
        raise LimitExceeded(f"files within files more than {options.limits.nesting} deep (Limits.nesting)")
    budget = options.budget or Budget(options.limits.inflated_bytes)
    return replace(options, depth=options.depth + 1, budget=budget)


def begins(name: str, options: Options) -> bool:
    """Says that a part of the file itself begins; False where it is to be left out. What is deeper belongs to its part."""
    return options.depth > 1 or options.on_part(name)


def unique(name: str, taken: set[str], *, suffix: str = "") -> str:
    """The name, with a number before its suffix where it is taken; it is taken from now on."""
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name.removesuffix(suffix)} ({count}){suffix}"
    taken.add(found)
    return found


def load_embedded(part: EmbeddedFile, options: Options, *, modified: str = "") -> Iterator[Document | LoadError]:
    """The Documents of a part, each with an id that begins with the part's name; what fails is yielded, never raised:
    UnsupportedFormat for an empty file and a kind of file that nothing reads, LoadError and its other kinds for one that should
    have been read.

    `options` are those of `inside`; `modified` is the part's date in ISO form. `meta["sha256"]` is the hash of its bytes.
    """
    kind = format_of(part.name)
    if kind is None:
        yield UnsupportedFormat(f"{part.name}: no loader takes this kind of file")
        return
    if not part.data:
        yield UnsupportedFormat(f"{part.name}: it is empty")
        return
    loader = importlib.import_module(kind.module)
    digest = hashlib.sha256(part.data).hexdigest()
    try:
        for result in loader.load(part, options):
            if isinstance(result, Document):
                done = result if kind.container else _finish(result, part, options, digest=digest, modified=modified)
                if isinstance(done, Document):
                    yield replace(done, id=f"{part.name}#{result.id}" if result.id else part.name)
                    continue
                result = done
            yield named(result, part.name)
    except LimitExceeded as error:
        if options.budget is not None and options.budget.spent:
            raise  # the whole file is over its limit, not this part
        yield named(error, part.name)
    except UnsupportedFormat as error:  # its loader lacks an extra, say: not the same as a kind that nothing reads
        yield LoadError(f"{part.name}: {error}")
    except LoadError as error:
        yield named(error, part.name)
    except MemoryError:
        raise
    except Exception as error:  # what a parser raises on a broken part is that part's failure
        yield LoadError(f"{part.name}: {type(error).__name__}: {error}")


def _finish(document: Document, part: EmbeddedFile, options: Options, *, digest: str, modified: str) -> Document | LoadError:
    kind = format_of(part.name)
    assert kind is not None
    done = add_common_metadata(document, kind, size=len(part.data), modified=modified, limits=options.limits)
    return done if isinstance(done, LoadError) else replace(done, meta={**done.meta, "sha256": digest})


def named(error: LoadError, name: str) -> LoadError:
    """The same failure, with the part's name in front."""
    kind = type(error) if type(error) in (EncryptedDocument, LimitExceeded, UnsupportedFormat) else LoadError
    return kind(f"{name}: {error}")

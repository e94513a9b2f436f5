"""Values that cross the seam between an index and its store: documents, units, commits, failures. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ragkit.core.space import Space
from ragkit.core.types import Chunk, Document, Floats, Page, Patches, Span
from ragkit.store.local.files import FileRecord
from ragkit.store.vectors.multi_layout import Stored


@dataclass(frozen=True, slots=True, eq=False)
class PageVectors:
    """The n pages of a document that were embedded as images: the patches that their vectors stand for, where they are known;
    `dense` (n, d) float32 unit rows or None; and multi-vectors in parts that have n rows together, or no part."""

    pages: tuple[Page, ...]
    patches: tuple[Patches | None, ...]
    dense: Floats | None
    multi: tuple[Stored, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A document with its chunks and their vectors, ready to be written. `dense` (n, d) float32 unit rows, n chunks."""

    origin: Origin
    document: Document
    chunks: tuple[Chunk, ...]
    dense: Floats | None
    replaces: int | None  # the id of the version it replaces
    multi: Stored | None = None  # n rows
    key: int | None = None  # the caller's own, for a document that is one vector; keys of chunks are reserved
    seen: PageVectors | None = None  # its page images
    complete: bool = True  # False: it lacks something, and is made anew when it is next added


CHUNK, PAGE = "chunk", "page"  # kinds of units
VECTOR = "vector"  # kind of a unit that is only vectors under its user's key: it has no row in `units`


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit: its number, the lexical generation that belongs to it, and the live totals."""

    number: int
    lexical: str
    documents: int
    units: int


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment of vectors: its folder's name, rows (dead ones included), bytes, and the spaces it holds."""

    id: str
    rows: int
    bytes: int
    spaces: tuple[Space, ...]

    @property
    def kind(self) -> str:
        """The kind of the units whose vectors it holds."""
        return self.spaces[0].kind if self.spaces else CHUNK


@dataclass(frozen=True, slots=True, eq=False)
class UnitRow:
    """A unit: a chunk, or a page image with its page's number and patches. `span` of a page is that of its text."""

    key: int
    document: int
    kind: str
    span: Span
    headings: tuple[str, ...] = ()
    page: int | None = None
    patches: Patches | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DocumentRow:
    """A version of a document, without its text. `document_id` is the name users know it by."""

    id: int
    identity: str
    root: str | None
    path: str | None
    source: str
    content_hash: str
    recipe_hash: str
    title: str
    mime: str
    lang: str
    meta: Mapping[str, Any]
    characters: int
    units: int
    added: int
    deleted: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a document comes from, its names, and the hash that shows a change."""

    identity: str
    source: str
    content_hash: str
    lang: str
    root: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NewDocument:
    """A document ready to be committed, under a reserved id, with its units under reserved keys."""

    id: int
    origin: Origin
    document: Document
    units: tuple[UnitRow, ...]
    complete: bool = True  # False: it lacks something, and is made anew when it is next added


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Everything one commit does. It happens whole or not at all."""

    number: int
    kind: str
    recipe_hash: str
    lexical: str
    lexical_files: Sequence[FileRecord]
    documents: Sequence[NewDocument] = ()
    deleted_documents: Sequence[int] = ()
    segments: Sequence[tuple[SegmentRow, Sequence[FileRecord]]] = ()
    retired_segments: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # that change with it; with a recipe, all documents get its hash
    failures: Sequence[Failure] = ()  # documents that could not be added
    forgiven: Sequence[str] = ()  # identities whose failures are forgotten
    reparse_mimes: Sequence[str] = ()  # media types that the new recipe would parse otherwise: their documents get no hash


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a commit takes on disk: segments, bytes by part, and per segment of each space how its vectors are stored."""

    segments: int
    bytes_by_part: Mapping[str, int]  # "catalog", "vectors", "lexical", "multi", "pages"
    dense: tuple[Mapping[str, Any], ...]
    multi: tuple[Mapping[str, Any], ...]
    page_dense: tuple[Mapping[str, Any], ...]
    page_multi: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that could not be added, and why; kept until it is added or deleted."""

    identity: str
    source: str
    content_hash: str
    reason: str


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """A row that is not as it was written, by table and primary key; without a key, the table or the whole file."""

    table: str
    key: tuple[Any, ...] | None
    problem: str


def origin_of(row: DocumentRow) -> Origin:
    """Where a stored document came from."""
    return Origin(
        identity=row.identity, source=row.source, content_hash=row.content_hash, lang=row.lang, root=row.root, path=row.path
    )

"""The values that all parts exchange: frozen, without I/O. This module knows no other part of ragkit.

Offsets are character offsets (Python code points) into `Document.text`; spans are half-open. Boxes are in points
(1/72 inch) on the page **as displayed**: after rotation and crop, origin at the top left, y downwards.
Pages count from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]  # of any dtype
Json = dict[str, Any]  # a JSON object
Metadata = Mapping[str, Any]  # fields of a document under their names; their values are what JSON can hold


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open character range: `document.text[span.start:span.end]`."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a span needs 0 <= start <= end, got [{self.start}, {self.end})")

    @property
    def length(self) -> int:
        """Characters. Not `len()`: a span iterates over its two ends, and tuple() would first make room for `len` of them."""
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter((self.start, self.end))

    def overlaps(self, other: Span) -> bool:
        return self.start < other.end and other.start < self.end

    def of(self, text: str) -> str:
        return text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on a page as displayed, in points; x0 <= x1 to the right, y0 <= y1 downwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)

    def __iter__(self) -> Iterator[float]:
        return iter((self.x0, self.y0, self.x1, self.y1))

    def union(self, other: Box) -> Box:
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """Where the vectors of an image look: a grid of cells over a part of it.

    `region` is what the grid covers, in fractions of the image as given: 0-1 where the model sees all of it, inside where it
    crops, beyond where it pads. tokens (rows, columns) int64: the number of the vector that stands for a cell, -1 for none.
    Several cells may share a vector; vectors of words and marks around the image stand for no cell.
    """

    region: Box
    tokens: Ints

    def box(self, row: int, column: int) -> Box:
        """Return the rectangle of a cell, in fractions of the image as given."""
        rows, columns = self.tokens.shape
        width, height = (self.region.x1 - self.region.x0) / columns, (self.region.y1 - self.region.y0) / rows
        x0, y0 = self.region.x0 + column * width, self.region.y0 + row * height
        return Box(x0, y0, x0 + width, y0 + height)


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The words of a page: `spans` (w, 2) int64 offsets into the document's text, ascending and disjoint;
    `boxes` (w, 4) float32 x0, y0, x1, y1 in points on the page as displayed."""

    spans: Ints
    boxes: Floats

    def __post_init__(self) -> None:
        if self.spans.shape != (len(self.spans), 2) or self.boxes.shape != (len(self.spans), 4):
            raise ValueError(f"words need spans (w, 2) and boxes (w, 4), got {self.spans.shape} and {self.boxes.shape}")

    def __len__(self) -> int:
        return len(self.spans)


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One page: its number from 1, displayed size in points, the span of its text, its words with boxes.

    Page spans are ascending and disjoint; characters between two pages (a separator) belong to none.
    """

    number: int
    width: float
    height: float
    span: Span
    words: Words
    label: str | None = None  # the printed page number ("iv"), where the file carries one
    rotation: int = 0  # degrees clockwise that the file asks viewers to turn the page; already applied to the boxes


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of structure a loader saw: what it is, where, and how deep.

    kind: heading, paragraph, list, table, row, code, quote, caption, header, footer, footnote, annotation.
    level: 1-6 for headings, nesting depth for the others, from 0. A table's rows lie inside the table's span;
    a table row with `level` 1 is a header row; a page's header or footer with `level` 1 says nothing that an earlier
    page's does not (a page number, a running title), and is in no chunk. Blocks are ordered by start; a table comes
    before its rows.
    """

    kind: str
    span: Span
    level: int = 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Document:
    """One source file or record: what a loader makes, a chunker reads and a user may hand in.

    `Document(text="...", id="...", title="...", meta={...})` is a record from Python; loaders fill in pages, boxes
    and blocks. An empty `id` is replaced by one made from the content when the document is added.
    `vector` (d,) was made elsewhere, for an index of such vectors (model="vectors:<d>"); a document read back from an index comes
    without it.
    """

    text: str
    id: str = ""
    title: str = ""
    meta: Metadata = field(default_factory=dict)
    pages: tuple[Page, ...] = ()
    blocks: tuple[Block, ...] = ()
    mime: str = "text/plain"
    vector: Floats | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span chosen by a chunker, with the headings it stands under, outermost first."""

    span: Span
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CitedBox:
    """A piece of evidence on a page: the box in points, and the page's displayed size in points."""

    page: int
    box: Box
    page_width: float
    page_height: float

    @property
    def relative(self) -> Box:
        """The box in fractions of the page: 0-1 from the top left."""
        w, h = self.page_width, self.page_height
        return Box(self.box.x0 / w, self.box.y0 / h, self.box.x1 / w, self.box.y1 / h)


@dataclass(frozen=True, slots=True)
class Citation:
    """Where the evidence stands: source, pages (from 1), character span, boxes. `str()` is "report.pdf, p. 3"."""

    source: str
    span: Span
    pages: tuple[int, ...] = ()
    boxes: tuple[CitedBox, ...] = ()

    def __str__(self) -> str:
        if not self.pages:
            return self.source
        if len(self.pages) == 1:
            return f"{self.source}, p. {self.pages[0]}"
        return f"{self.source}, pp. {self.pages[0]}–{self.pages[-1]}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a hit was found: the space, its rank there (from 1), and its score there on the space's own scale.

    `key` is the page's where a chunk was found through the image of the page it stands on. `share` is what this adds to the hit's
    score: shares sum to it, unless the hit was scored anew by reranking or over several phrasings. `boxes` say where on the page
    most of the score is; only the space "page.multi" has them, and only if the encoder tells where its vectors look.
    """

    space: str
    rank: int
    score: float
    key: int | None = None
    share: float = 0.0
    boxes: tuple[CitedBox, ...] = ()


class HitReader(Protocol):
    """What a hit reads more of its document with: see `ragkit.search.expand`."""

    def neighbours(self, hit: Hit, *, before: int, after: int) -> Hit: ...
    def page(self, hit: Hit) -> Hit: ...
    def section(self, hit: Hit) -> Hit: ...
    def explain(self, hit: Hit, space: str | None) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One answer. Higher scores are better; `scale` is "cosine", "bm25", "maxsim", "zscore", "rrf" or "rerank"."""

    rank: int
    score: float
    scale: str
    key: int
    kind: str  # "chunk" or "page"
    text: str
    document_id: str
    title: str
    citation: Citation
    headings: tuple[str, ...]
    meta: Metadata
    via: tuple[Reason, ...]
    whole: bool = False  # the document has no other units
    reader: HitReader | None = field(default=None, repr=False)

    def expand(self, to: str | None = None, *, before: int = 0, after: int = 0) -> Hit:
        """Return the same hit with more of its document around it, cited anew; rank, score and key stay.

        before, after: numbers of neighbouring units. to="page": the whole pages it stands on; to="section": its section, the
        heading and subsections included. ValueError: the document was replaced since, or the arguments do not go together.
        """
        around = before >= 0 and after >= 0 if to is None else (before, after) == (0, 0)
        if to not in (None, "page", "section") or not around:
            raise ValueError(f"expand takes before and after from 0 on, or 'page' or 'section', got {to!r}, {before}, {after}")
        if self.reader is None:
            raise ValueError("this hit does not know its index any more: expand it in the process that searched")
        if to == "page":
            return self.reader.page(self)
        if to == "section":
            return self.reader.section(self)
        return self.reader.neighbours(self, before=before, after=after) if before or after else self

    def explain(self, space: str | None = None) -> Any:
        """Return why MaxSim found it: an `Explanation`, whose shares sum to its score in that space.

        space: "chunk.multi" or "page.multi"; None is the first of them that found it. For a chunk found by its page's picture,
        "page.multi" explains the page, with its patches. ValueError: MaxSim did not find it there, or its query is not known.
        """
        if self.reader is None:
            raise ValueError("this hit does not know its index any more: use Index.explain(query, key)")
        return self.reader.explain(self, space)

    @property
    def source(self) -> str:
        return self.citation.source

    @property
    def pages(self) -> tuple[int, ...]:
        return self.citation.pages

    @property
    def span(self) -> Span:
        return self.citation.span

    @property
    def boxes(self) -> tuple[CitedBox, ...]:
        return self.citation.boxes

    @property
    def image_boxes(self) -> tuple[CitedBox, ...]:
        """Boxes of the page regions that matched the query. A page is cited with them; a passage keeps the boxes of its words."""
        return tuple(dict.fromkeys(box for reason in self.via for box in reason.boxes))


class Hits(list[Hit]):
    """Hits, best first. `missing` names what a search with `degraded=True` had to leave out; it is empty for an intact index."""

    __slots__ = ("missing",)

    def __init__(self, hits: Iterable[Hit] = (), *, missing: Iterable[str] = ()) -> None:
        super().__init__(hits)
        self.missing = tuple(missing)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one document in an `add`: `reason` says why it failed, `warnings` what it lacks, and `duplicate_of` which
    document of the same content its vectors were taken from."""

    source: str
    reason: str = ""
    units: int = 0
    warnings: tuple[str, ...] = ()
    duplicate_of: str = ""


@dataclass(frozen=True, slots=True)
class AddReport:
    """What one `add` did; every document stands in it once. `str()` is one line for a log."""

    added: tuple[Outcome, ...] = ()
    updated: tuple[Outcome, ...] = ()
    unchanged: tuple[Outcome, ...] = ()
    failed: tuple[Outcome, ...] = ()
    pruned: tuple[Outcome, ...] = ()  # deleted, with prune=True, because the file or record is gone
    skipped: tuple[Outcome, ...] = ()  # left out: files without a loader, folders that cannot be read
    truncated: int = 0  # units of which the encoder saw only the beginning (overflow="truncate")
    pages: int = 0  # page images embedded
    blank: int = 0  # pages left out because next to nothing is on them
    seconds: float = 0.0

    @property
    def counts(self) -> str:
        line = f"added {len(self.added)}, updated {len(self.updated)}, unchanged {len(self.unchanged)}, failed {len(self.failed)}"
        if self.pruned:
            line += f", pruned {len(self.pruned)}"
        if self.skipped:
            line += f", skipped {len(self.skipped)}"
        if duplicates := sum(bool(outcome.duplicate_of) for outcome in (*self.added, *self.updated)):
            line += f", duplicates {duplicates}"
        if self.pages or self.blank:
            line += f", pages {self.pages}" + (f" ({self.blank} blank left out)" if self.blank else "")
        if self.truncated:
            line += f", truncated {self.truncated} units"
        return line

    def __str__(self) -> str:
        if not self.failed:
            return self.counts
        shown = "; ".join(f"{outcome.source}: {outcome.reason}" for outcome in self.failed[:3])
        return f"{self.counts} ({shown}{'; …' if len(self.failed) > 3 else ''})"


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a long job, for a callback. `total` is None while it is not known yet."""

    # "cost" comes before a build with multi-vectors: done is the bytes that those of the first documents take, total about all.
    stage: str  # "load", "cost", "encode", "write"; "verify", "backup", "repair", …
    done: int
    total: int | None
    unit: str  # "documents", "units", ...
    source: str = ""

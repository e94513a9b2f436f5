"""The cited page as a picture, with the evidence boxed.

The page is rendered from the document's source file, in the parser's sandbox, and only while the file still is, byte for
byte, what was indexed: boxes drawn on another version of a page would be false evidence.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from ragkit.catalog.catalog import DocumentRow
from ragkit.errors import MissingExtra, StorageError
from ragkit.index import Index
from ragkit.load import Limits, Parser, file_hash, format_of
from ragkit.types import Citation, Span

COLOUR = (235, 140, 0)
OUTLINE = 2  # pixels


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A document and the passages of it to show."""

    row: DocumentRow
    citations: tuple[Citation, ...]
    texts: tuple[str, ...]

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(page for citation in self.citations for page in citation.pages))

    def boxes_on(self, page: int) -> int:
        return sum(box.page == page for citation in self.citations for box in citation.boxes)


def evidence(index: Index, reference: str, *, query: str | None = None, k: int = 1) -> Evidence:
    """What to show for the key of a hit, or for a document by source or id: its best passages for a query, or its beginning."""
    if reference.isdecimal() and not index.find(reference):
        row, citation = index.unit(int(reference))
        return Evidence(row, (citation,), (index.text(row, citation.span),))
    rows = index.find(reference)
    if len(rows) != 1:
        found = "several documents: " + ", ".join(row.identity for row in rows) if rows else "nothing"
        raise ValueError(f"{reference!r} names {found} in {index.path}. See: ragkit list {index.path}")
    row = rows[0]
    if query is None:
        start = index.cite(row, Span(0, min(row.characters, 1)))
        return Evidence(row, (start,), (index.text(row, Span(0, min(row.characters, 300))),))
    hits = index.search_within(row, query, k)
    return Evidence(row, tuple(hit.citation for hit in hits), tuple(hit.text for hit in hits))


def can_draw(row: DocumentRow) -> bool:
    """Whether a document's pages can be drawn: those of a PDF that is a file of its own. Slides, sheets and files within files
    are cited with their pages, and shown as text."""
    kind = None if row.path is None else format_of(row.path)
    return kind is None or kind.loader == "pdf"


def page_png(index: Index, found: Evidence, *, page: int, dpi: int = 110, password: str | None = None) -> bytes:
    """A page of the document as PNG, with the boxes of its citations drawn on it."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra.of("Pillow", "pdf", "drawing the evidence") from error
    path = None if found.row.path is None else Path(found.row.path)
    if path is None:
        raise StorageError(f"{found.row.source} is a record, not a file: there is no page to draw")
    if not path.exists():
        raise StorageError(f"{path} is not there any more, so its page cannot be drawn. Its text is still in the index.")
    if file_hash(path) != found.row.content_hash:
        raise StorageError(
            f"{path} has changed since it was indexed, so the boxes may be off. Run: ragkit add {index.path} {path}"
        )
    with Parser(limits=Limits(), pdf_engine=index.recipe.load.pdf_engine, password=password) as parser:
        png = parser.render(path, page, dpi=dpi)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for box in (box for citation in found.citations for box in citation.boxes if box.page == page):
        corners = [
            box.relative.x0 * image.width,
            box.relative.y0 * image.height,
            box.relative.x1 * image.width,
            box.relative.y1 * image.height,
        ]
        draw.rectangle(
            [corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1],
            outline=(*COLOUR, 255),
            fill=(*COLOUR, 60),
            width=OUTLINE,
        )
    buffer = io.BytesIO()
    Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()

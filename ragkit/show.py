"""The cited page as a picture, with the evidence boxed.

The page is rendered from the document's source file, in the parser's sandbox, and only while the file still is, byte for
byte, what was indexed: boxes drawn on another version of a page would be false evidence. Where it has moved or changed, the
copy is rendered that the index keeps of it, if it keeps any.
"""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass
from pathlib import Path

from ragkit import sources
from ragkit.catalog.catalog import DocumentRow
from ragkit.errors import MissingExtra, StorageError
from ragkit.heat import Relevance, heat_map
from ragkit.index import Index
from ragkit.load import Limits, Parser, can_render, file_hash, office
from ragkit.types import Citation, Span

COLOUR = (235, 140, 0)
OUTLINE = 2  # pixels


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A document and the passages of it to show."""

    row: DocumentRow
    citations: tuple[Citation, ...]
    texts: tuple[str, ...]
    relevance: Relevance | None = None  # of a page that was found by its picture, where in it
    seen: int | None = None  # the number of that page

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(page for citation in self.citations for page in citation.pages))

    def boxes_on(self, page: int) -> int:
        return sum(box.page == page for citation in self.citations for box in citation.boxes)


def evidence(index: Index, reference: str, *, query: str | None = None, k: int = 1) -> Evidence:
    """What to show for the key of a hit, or for a document by source or id: its best passages for a query, or its beginning."""
    if reference.isdecimal() and not index.find(reference):
        row, citation = index.unit(int(reference))
        text = index.text(row, citation.span)
        if query is None or not index.sees(int(reference)):
            return Evidence(row, (citation,), (text,))
        why = index.explain(query, int(reference))
        return Evidence(row, (why.citation,), (text,), why.relevance, why.citation.pages[0])
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
    """Whether a document's pages can be drawn: those of a file of its own that has pages. Sheets and files within files are
    cited with their pages, and shown as text."""
    return row.path is None or can_render(row.path)


def page_png(index: Index, found: Evidence, *, page: int, dpi: int = 110, password: str | None = None) -> bytes:
    """A page of the document as PNG, with the boxes of its citations drawn on it, over a heat map where it was found by its
    picture."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra.of("Pillow", "pdf", "drawing the evidence") from error
    path, name = _file(index, found.row)
    with Parser(limits=Limits(), pdf_engine=index.recipe.load.pdf_engine, password=password) as parser:
        png = parser.render(path, page, dpi=dpi, count=len(index.pages(found.row)) or None, name=name)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if found.relevance is not None and found.seen == page:
        image = heat_map(image, found.relevance)
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
            fill=None if found.relevance is not None else (*COLOUR, 60),
            width=OUTLINE,
        )
    buffer = io.BytesIO()
    Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _file(index: Index, row: DocumentRow) -> tuple[Path, str]:
    """The file as it was indexed, where it was or kept in the index, and its name. StorageError where there is neither."""
    if row.path is None:
        raise StorageError(f"{row.source} is a record, not a file: there is no page to draw")
    path = Path(row.path)
    if not can_draw(row):
        missing = f": {office.missing()}" if office.convertible(path) else ", or lie in another file"
        raise StorageError(f"{row.source} has no pages that can be drawn{missing}")
    there = path.is_file()
    if there and file_hash(path) == row.content_hash:
        return path, path.name
    copy = sources.kept(index.path, row.content_hash)
    if copy is not None:
        return copy, path.name
    if there:
        raise StorageError(
            f"{path} has changed since it was indexed, so the boxes may be off, and the index keeps no copy of it "
            f"(keep_sources). Run: ragkit add {shlex.quote(str(index.path))} {shlex.quote(str(path))}"
        )
    raise StorageError(
        f"{path} is not there any more, and the index keeps no copy of it (keep_sources), so its page cannot be drawn. "
        "Its text is still in the index."
    )

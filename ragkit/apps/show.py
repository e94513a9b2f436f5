"""Draw the cited page as a picture, with the evidence boxed.

The page is rendered in the parser's sandbox, from the document's source file, and only while the file is byte for byte what was
indexed: boxes drawn on another version of a page would be false evidence. If the file has moved or changed, the copy that the
index keeps of it is rendered, if there is one.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragkit.core.errors import MissingExtra, StorageError
from ragkit.core.space import Space
from ragkit.core.types import Box, Citation, Span
from ragkit.index.index import Index
from ragkit.load import Limits, Parser, can_render, file_hash, office
from ragkit.search.explanation import Explanation
from ragkit.search.heat import Relevance, heat_map
from ragkit.search.queries import Query
from ragkit.store.local import source_copies
from ragkit.store.values import DocumentRow

if TYPE_CHECKING:
    from PIL.Image import Image

COLOUR = (235, 140, 0)
OUTLINE = 2  # pixels
WHOLE = 0.95  # share of the page from which on a box is only framed: colour on everything marks nothing
Mark = Literal["all", "boxes", "heat", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A document and its passages to show."""

    row: DocumentRow
    citations: tuple[Citation, ...]
    texts: tuple[str, ...]
    heat: Mapping[int, Relevance] = field(default_factory=dict)  # by page number, for pages that the query found by their image

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(page for citation in self.citations for page in citation.pages))

    def boxes_on(self, page: int) -> int:
        return sum(box.page == page for citation in self.citations for box in citation.boxes)


def evidence(index: Index, reference: str, *, query: Query | None = None, k: int = 1) -> Evidence:
    """Return what to show for the key of a hit, or for a document by source or id: its best passages, or its beginning.

    query: a text, a picture, or both, as `Index.search` takes it. With a query, a page that was found by its image comes with a
    heat map of it; so does the page of a passage by its key. ValueError for a reference that names nothing or several documents,
    and for a query that the index cannot answer.
    """
    if reference.isdecimal() and not index.find(reference):
        return _of_unit(index, int(reference), query)
    row = _document(index, reference)
    if query is None:
        return _beginning(index, row)
    hits = index.search_within(row, query, k)
    heat = _heat(hit.explain(Space.PAGE_MULTI) for hit in hits if any(reason.space == Space.PAGE_MULTI for reason in hit.via))
    return Evidence(row, tuple(hit.citation for hit in hits), tuple(hit.text for hit in hits), heat)


def _document(index: Index, reference: str) -> DocumentRow:
    rows = index.find(reference)
    if len(rows) != 1:
        names = "several documents: " + ", ".join(row.identity for row in rows) if rows else "nothing"
        raise ValueError(f"{reference!r} names {names} in {index.path}. See: ragkit list {index.path}")
    return rows[0]


def _beginning(index: Index, row: DocumentRow) -> Evidence:
    """Return the first characters of a document; the first page if it has no text, as a scan."""
    start = index.cite(row, Span(0, min(row.characters, 1)))
    if not start.pages:
        start = replace(start, pages=tuple(page.number for page in index.pages(row)[:1]))
    return Evidence(row, (start,), (index.text(row, Span(0, min(row.characters, 300))),))


def _of_unit(index: Index, key: int, query: Query | None) -> Evidence:
    row, citation = index.unit(key)
    text = index.text(row, citation.span)
    page = None if query is None else index.page_key(key)
    if query is None or page is None:
        return Evidence(row, (citation,), (text,))
    explanation = index.explain(query, page)
    return Evidence(row, (explanation.citation if page == key else citation,), (text,), _heat([explanation]))


def _heat(explanations: Iterable[Explanation]) -> dict[int, Relevance]:
    """Return the heat maps by the numbers of their pages."""
    return {
        explanation.citation.pages[0]: explanation.relevance for explanation in explanations if explanation.relevance is not None
    }


def can_draw(row: DocumentRow) -> bool:
    """Return whether a document's pages can be drawn: it must be a file of its own, of a format with pages. Sheets and files
    within files are cited with their pages, and shown as text."""
    return row.path is None or can_render(row.path)


def page_png(
    index: Index, shown: Evidence, *, page: int, dpi: int = 110, password: str | None = None, mark: Mark = "all"
) -> bytes:
    """Return a page of the document as PNG, with the boxes of its citations over the heat map, if it was found by its image.

    mark: both of them, only one, or none. ValueError for mark="heat" if the page has no heat map.
    """
    if mark == "heat" and page not in shown.heat:
        raise ValueError(
            f"nothing found page {page} of {shown.row.source} by its image, so there is no heat map. Ask with a question, of an "
            "index with page images that keep multi-vectors"
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra.of("Pillow", "pdf", "drawing the evidence") from error
    path, name = _file(index, shown.row)
    with Parser(limits=Limits(), pdf_engine=index.recipe.load.pdf_engine, password=password) as parser:
        png = parser.render(path, page, dpi=dpi, count=len(index.pages(shown.row)) or None, name=name)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    heated = page in shown.heat and mark in ("all", "heat")
    if heated:
        image = heat_map(image, shown.heat[page])
    if mark in ("all", "boxes"):
        boxes = [box.relative for citation in shown.citations for box in citation.boxes if box.page == page]
        image = _with_boxes(image, boxes, filled=not heated)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _with_boxes(image: Image, boxes: Sequence[Box], *, filled: bool) -> Image:
    """Return the image with boxes, in fractions of it, drawn on it: framed, and filled unless they cover the whole page."""
    from PIL import Image as Images
    from PIL import ImageDraw

    layer = Images.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for box in boxes:
        x0, y0, x1, y1 = box.x0 * image.width, box.y0 * image.height, box.x1 * image.width, box.y1 * image.height
        draw.rectangle(
            [x0 - 1, y0 - 1, x1 + 1, y1 + 1],
            outline=(*COLOUR, 255),
            fill=(*COLOUR, 60) if filled and box.area <= WHOLE else None,
            width=OUTLINE,
        )
    return Images.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _file(index: Index, row: DocumentRow) -> tuple[Path, str]:
    """Return the file as it was indexed, or the index's copy of it, and its name. StorageError if there is neither."""
    if row.path is None:
        raise StorageError(f"{row.source} is a record, not a file: there is no page to draw")
    path = Path(row.path)
    if not can_draw(row):
        missing = f": {office.missing()}" if office.convertible(path) else ", or lie in another file"
        raise StorageError(f"{row.source} has no pages that can be drawn{missing}")
    exists = path.is_file()
    if exists and file_hash(path) == row.content_hash:
        return path, path.name
    copy = source_copies.kept(index.path, row.content_hash)
    if copy is not None:
        return copy, path.name
    if exists:
        raise StorageError(
            f"{path} has changed since it was indexed, so the boxes may be off, and the index keeps no copy of it "
            f"(keep_sources). Run: ragkit add {shlex.quote(str(index.path))} {shlex.quote(str(path))}"
        )
    raise StorageError(
        f"{path} does not exist any more, and the index keeps no copy of it (keep_sources), so its page cannot be drawn. "
        "Its text is still in the index."
    )

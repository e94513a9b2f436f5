"""The cited page as a picture, with the evidence boxed.

The page is rendered from the document's source file, in the parser's sandbox, and only while the file still is, byte for
byte, what was indexed: boxes drawn on another version of a page would be false evidence. Where it has moved or changed, the
copy is rendered that the index keeps of it, if it keeps any.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ragkit.core.errors import MissingExtra, StorageError
from ragkit.core.space import Space
from ragkit.core.types import Citation, Span
from ragkit.index.index import Index
from ragkit.load import Limits, Parser, can_render, file_hash, office
from ragkit.search.explanation import Explanation
from ragkit.search.heat import Relevance, heat_map
from ragkit.search.queries import Query
from ragkit.store.local import source_copies
from ragkit.store.values import DocumentRow

COLOUR = (235, 140, 0)
OUTLINE = 2  # pixels
WHOLE = 0.95  # of the page: what is larger is framed, since colour on everything marks nothing
Mark = Literal["all", "boxes", "heat", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A document and the passages of it to show."""

    row: DocumentRow
    citations: tuple[Citation, ...]
    texts: tuple[str, ...]
    heat: Mapping[int, Relevance] = field(default_factory=dict)  # by page, where the query found it by its picture

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(page for citation in self.citations for page in citation.pages))

    def boxes_on(self, page: int) -> int:
        return sum(box.page == page for citation in self.citations for box in citation.boxes)


def evidence(index: Index, reference: str, *, query: Query | None = None, k: int = 1) -> Evidence:
    """What to show for the key of a hit, or for a document by source or id: its best passages for a query, or its beginning.

    query: a text, a picture, or both, as `Index.search` takes it. With one, a page that was found by its picture comes with where
    on it; so does the page of a passage by its key. ValueError for a reference that names nothing or several documents, and for a
    query that the index cannot answer.
    """
    if reference.isdecimal() and not index.find(reference):
        return _of_unit(index, int(reference), query)
    rows = index.find(reference)
    if len(rows) != 1:
        found = "several documents: " + ", ".join(row.identity for row in rows) if rows else "nothing"
        raise ValueError(f"{reference!r} names {found} in {index.path}. See: ragkit list {index.path}")
    row = rows[0]
    if query is None:
        start = index.cite(row, Span(0, min(row.characters, 1)))
        if not start.pages:  # no text, as of a scan: its beginning is its first page
            start = replace(start, pages=tuple(one.number for one in index.pages(row)[:1]))
        return Evidence(row, (start,), (index.text(row, Span(0, min(row.characters, 300))),))
    hits = index.search_within(row, query, k)
    heat = _heat(hit.explain(Space.PAGE_MULTI) for hit in hits if any(reason.space == Space.PAGE_MULTI for reason in hit.via))
    return Evidence(row, tuple(hit.citation for hit in hits), tuple(hit.text for hit in hits), heat)


def _of_unit(index: Index, key: int, query: Query | None) -> Evidence:
    row, citation = index.unit(key)
    text = index.text(row, citation.span)
    page = None if query is None else index.page_key(key)
    if query is None or page is None:
        return Evidence(row, (citation,), (text,))
    why = index.explain(query, page)
    return Evidence(row, (why.citation if page == key else citation,), (text,), _heat([why]))


def _heat(explanations: Iterable[Explanation]) -> dict[int, Relevance]:
    """Maps by the numbers of their pages."""
    return {why.citation.pages[0]: why.relevance for why in explanations if why.relevance is not None}


def can_draw(row: DocumentRow) -> bool:
    """Whether a document's pages can be drawn: those of a file of its own that has pages. Sheets and files within files are
    cited with their pages, and shown as text."""
    return row.path is None or can_render(row.path)


def page_png(
    index: Index, found: Evidence, *, page: int, dpi: int = 110, password: str | None = None, mark: Mark = "all"
) -> bytes:
    """A page of the document as PNG, with the boxes of its citations drawn on it, over a heat map where it was found by its
    picture; with one of both alone, or with nothing. ValueError for a heat map where there is none."""
    if mark == "heat" and page not in found.heat:
        raise ValueError(
            f"nothing found page {page} of {found.row.source} by its picture, so there is no map of it. Ask with a question, of "
            "an index with page images that keep multi-vectors"
        )
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra.of("Pillow", "pdf", "drawing the evidence") from error
    path, name = _file(index, found.row)
    with Parser(limits=Limits(), pdf_engine=index.recipe.load.pdf_engine, password=password) as parser:
        png = parser.render(path, page, dpi=dpi, count=len(index.pages(found.row)) or None, name=name)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    warm = page in found.heat and mark in ("all", "heat")
    if warm:
        image = heat_map(image, found.heat[page])
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    boxes = [box for citation in found.citations for box in citation.boxes if box.page == page]
    for box in boxes if mark in ("all", "boxes") else ():
        corners = [
            box.relative.x0 * image.width,
            box.relative.y0 * image.height,
            box.relative.x1 * image.width,
            box.relative.y1 * image.height,
        ]
        draw.rectangle(
            [corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1],
            outline=(*COLOUR, 255),
            fill=None if warm or box.relative.area > WHOLE else (*COLOUR, 60),
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
    copy = source_copies.kept(index.path, row.content_hash)
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

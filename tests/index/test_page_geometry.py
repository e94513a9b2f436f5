"""From a mark in a PDF's own coordinates to the box that cites it: rotated, cropped, odd pages, drawn by both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pymupdf
import pytest
from reportlab.pdfgen.canvas import Canvas

from ragkit.core.types import Box, Citation, Span
from ragkit.load import Parser, RenderedPage, WantedPage
from ragkit.load.discover import Source
from ragkit.search.explain import explain_page
from ragkit.testing import HashEncoder

SIZE = (433.0, 611.0)
MARK = (250.0, 380.0, 330.0, 470.0)  # x0, y0, x1, y1 from the bottom left, as PDF has it
CROPS = [(0.0, 0.0, *SIZE), (101.0, 203.0, 411.0, 577.0), (240.0, 60.0, 345.0, 600.0)]
TURNS = [0, 90, 180, 270]


def displayed(crop: tuple[float, ...], turn: int) -> tuple[tuple[float, float], Box]:
    """(width, height) of a page as a viewer shows it, and the mark on it, from the top left."""
    x0, y0, x1, y1 = crop
    width, height = x1 - x0, y1 - y0
    left, right, top, bottom = MARK[0] - x0, MARK[2] - x0, y1 - MARK[3], y1 - MARK[1]
    if turn == 90:
        return (height, width), Box(height - bottom, left, height - top, right)
    if turn == 180:
        return (width, height), Box(width - right, height - bottom, width - left, height - top)
    if turn == 270:
        return (height, width), Box(top, width - right, bottom, width - left)
    return (width, height), Box(left, top, right, bottom)


@pytest.mark.parametrize("engine", ["pymupdf", "pypdfium2"])
def test_a_mark_is_cited_where_it_is_shown(engine: str, tmp_path: Path) -> None:
    encoder = HashEncoder(64, multi_dims=64, images=True)
    cases = [(crop, turn) for crop in CROPS for turn in TURNS]
    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=SIZE)
    for crop, _ in cases:
        canvas.setCropBox(crop)
        canvas.setFillColorRGB(1, 0, 0)
        canvas.rect(MARK[0], MARK[1], MARK[2] - MARK[0], MARK[3] - MARK[1], stroke=0, fill=1)
        canvas.showPage()
    canvas.save()
    with pymupdf.open(tmp_path / "a.pdf") as straight:
        for page, (_, turn) in zip(straight, cases, strict=True):
            page.set_rotation(turn)
        straight.save(tmp_path / "turned.pdf")
    [asked] = encoder.encode_query(["red"]).multi
    with Parser(pdf_engine=engine) as parser:
        [(_, document)] = parser.parse([Source(tmp_path / "turned.pdf", tmp_path, "turned.pdf")])
        wanted = [WantedPage(page.number, *encoder.image_size(page.width, page.height)) for page in document.pages]
        drawn = list(parser.render_pages(tmp_path / "turned.pdf", wanted))
    for (crop, turn), page, one in zip(cases, document.pages, drawn, strict=True):
        assert isinstance(one, RenderedPage)
        size, mark = displayed(crop, turn)
        assert (page.width, page.height) == pytest.approx(size, abs=0.51)
        [seen] = encoder.encode_document([one.image]).multi
        similar = asked @ seen.T
        patches = encoder.patches(one.image.width, one.image.height)
        cells = np.argwhere(np.isin(patches.tokens, np.flatnonzero(similar[0] > 0.99)))
        boxes = [patches.box(*cell) for cell in cells.tolist()]
        union = Box(*np.min([tuple(box)[:2] for box in boxes], axis=0), *np.max([tuple(box)[2:] for box in boxes], axis=0))
        cell = patches.box(0, 0)
        for edge, other, side, step in zip(union, mark, 2 * size, 2 * (cell.x1, cell.y1), strict=True):
            assert abs(edge - other / side) <= 1.05 * step, f"crop {crop}, turned by {turn}: {union} of {mark} on {size}"
        found = explain_page(
            similar.argmax(axis=1), similar.max(axis=1), query="red", query_spans=[], patches=patches, key=1,
            cited=Citation("a.pdf", Span(0, 0), (page.number,)), page_size=(page.width, page.height),
        )  # fmt: skip
        [cited] = found.citation.boxes
        x, y = (cited.box.x0 + cited.box.x1) / 2, (cited.box.y0 + cited.box.y1) / 2
        assert mark.x0 < x < mark.x1
        assert mark.y0 < y < mark.y1

"""Pages without text are read by Tesseract, with boxes where the words are; and only when it is asked for."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from ragkit import Index
from ragkit.core.errors import MissingExtra, RecipeMismatch
from ragkit.load import Limits, Parser, ocr
from ragkit.load.limits import Options
from ragkit.load.pdf.pdf import load
from ragkit.load.records import check
from ragkit.testing import HashEncoder
from tests.load.conftest import source
from tests.load.pages import Text, draw, places
from tests.load.test_pdf import words_of

needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None or "eng" not in ocr.installed(), reason="Tesseract is not installed"
)
Scan = Callable[..., Path]
LINES = [
    Text("Quarterly revenue report", 60, 520, 20),
    Text("Revenue grew by twelve percent in the northern market", 40, 480, 12),
    Text("while costs stayed flat over the whole of the year.", 40, 464, 12),
]


def pictured(drawn: Path, dpi: int = 200) -> list[bytes]:
    """The pages of a PDF as PNG files, by an engine that is not under test where there is a choice."""
    import pypdfium2

    pages = []
    for page in pypdfium2.PdfDocument(drawn):
        buffer = io.BytesIO()
        page.render(scale=dpi / 72).to_pil().convert("L").save(buffer, "PNG", dpi=(dpi, dpi))
        pages.append(buffer.getvalue())
    return pages


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """A PDF whose pages are pictures of lines of text; empty pages stay so, and `beside` is a page with text at the end."""
    pytest.importorskip("pypdfium2")

    def make(*pages: list[Text], beside: list[Text] | None = None, rotate: int = 0) -> Path:
        from reportlab.lib.utils import ImageReader
        from reportlab.pdfgen.canvas import Canvas

        path = tmp_path / "scan.pdf"
        # reportlab swaps the sides of a page turned by a quarter.
        canvas = Canvas(str(path), pagesize=(600, 400) if rotate else (400, 600))
        for lines, png in zip(pages, pictured(draw(tmp_path / "drawn.pdf", list(pages))), strict=True):
            if rotate:
                canvas.setPageRotation(rotate)
            if lines:
                canvas.drawImage(ImageReader(io.BytesIO(png)), 0, 0, 400, 600)
            canvas.showPage()
        for line in beside or ():
            canvas.setFont(line.font, line.size)
            canvas.drawString(line.x, line.y, line.text)
        canvas.save()
        return path

    return make


@needs_tesseract
def test_a_scanned_page_has_its_words_where_they_are_seen(engine: str, scan: Scan) -> None:
    (document,) = load(scan(LINES, beside=[Text("Printed.", 50, 500)]), Options(pdf_engine=engine, ocr="eng"))
    check(document)
    assert document.text.split() == [word for line in LINES for word in line.text.split()] + ["Printed."]
    assert document.meta["ocr_pages"] == [1]
    drawn = [place for line in LINES for place in places(line)]
    for (_, box), (_, x0, _, x1, y1) in zip(words_of(document), drawn, strict=True):
        assert box[0] == pytest.approx(x0, abs=2.5)
        assert box[2] == pytest.approx(x1, abs=2.5)
        assert box[1] < y1 - 2 < box[3] + 2


@needs_tesseract
def test_a_page_that_viewers_turn_is_read_as_it_is_shown(engine: str, scan: Scan) -> None:
    (document,) = load(scan(LINES, rotate=90), Options(pdf_engine=engine, ocr="eng"))
    (page,) = document.pages
    assert (page.width, page.height, page.rotation) == (600, 400, 90)
    assert "Revenue" in document.text
    x0, y0, x1, y1 = dict(words_of(document))["Revenue"]
    assert y1 - y0 > x1 - x0, "the letters lie on their side"
    assert (x0 + x1) / 2 == pytest.approx(484, abs=4), "its baseline is 480 points from what was the lower edge"


@needs_tesseract
def test_without_being_asked_for_nothing_is_recognised_and_the_report_says_so(scan: Scan, tmp_path: Path) -> None:
    path = scan(LINES, beside=[Text("Printed.", 50, 500)])
    with Index.open(tmp_path / "index", model=HashEncoder(dims=16)) as index:
        report = index.add(path)
    (outcome,) = report.added
    assert outcome.warnings == ('1 of 2 pages have no text; ocr="auto" (--ocr auto) reads them',)


@needs_tesseract
def test_what_was_recognised_is_found_and_cited_with_boxes(scan: Scan, tmp_path: Path) -> None:
    path = scan(LINES)
    (tmp_path / "photo.png").write_bytes(pictured(draw(tmp_path / "drawn.pdf", [[Text("Wednesday excursion", 60, 300, 24)]]))[0])
    with Index.open(tmp_path / "index", model=HashEncoder(dims=16), ocr="eng") as index:
        report = index.add([path, tmp_path / "photo.png"])
        assert [outcome.warnings for outcome in report.added] == [(), ()]
        (hit,) = index.search("northern market", k=1, mode="lexical")
        assert (hit.source, hit.pages, hit.meta["ocr_pages"]) == ("scan.pdf", (1,), [1])
        assert any(box.box.y0 < 600 - 482 < box.box.y1 for box in hit.boxes)
        (hit,) = index.search("excursion", k=1, mode="lexical")
        assert (hit.source, hit.pages) == ("photo.png", (1,))
        (box,) = hit.boxes
        assert box.box.y0 < 600 - 310 < box.box.y1
    with pytest.raises(RecipeMismatch, match=r"ocr: stored 'eng', given 'off'"):
        Index.open(tmp_path / "index", ocr="off")


@needs_tesseract
def test_another_setting_reads_scans_and_images_anew(scan: Scan, tmp_path: Path) -> None:
    path = scan(LINES)
    with Index.open(tmp_path / "index", model=HashEncoder(dims=16)) as index:
        index.add(path)
        assert not index.search("northern", mode="lexical")
        assert index.rebuild(ocr="eng").to_parse == 1
        assert len(index.add(path).updated) == 1
        assert index.search("northern", mode="lexical")[0].source == "scan.pdf"


@needs_tesseract
def test_empty_sheets_have_no_words_and_are_not_told(engine: str, scan: Scan) -> None:
    (document,) = load(scan([], LINES), Options(pdf_engine=engine, ocr="eng"))
    assert document.meta["ocr_pages"] == [2]
    assert document.pages[0].span.length == 0


@needs_tesseract
def test_a_page_that_takes_too_long_is_told_and_the_others_are_kept(scan: Scan) -> None:
    path = scan(LINES, beside=[Text("Printed.", 50, 500)])
    (document,) = load(path, Options(ocr="eng", limits=Limits(page_seconds=0.05)))  # without the parent's clock
    assert document.text.split() == ["Printed."]
    (reason,) = document.meta["unread"]
    assert reason.startswith("page 1: recognising its text took longer than")


@needs_tesseract
def test_the_time_of_a_document_ends_recognition_and_what_there_is_is_kept(scan: Scan) -> None:
    path = scan(LINES, LINES, beside=[Text("Printed.", 50, 500)])
    (document,) = load(path, Options(ocr="eng", limits=Limits(seconds=1e-6)))
    assert document.text.split() == ["Printed."]
    assert [reason[:7] for reason in document.meta["unread"]] == ["page 1:", "page 2:"]
    assert "Limits.seconds" in document.meta["unread"][0]


@needs_tesseract
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux")
def test_tesseract_ends_with_the_parser_process(scan: Scan, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3000, 3000), np.uint8)
    from PIL import Image

    Image.fromarray(noise).save(tmp_path / "noise.png", dpi=(300, 300))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Parser(limits=Limits(page_seconds=60), ocr="eng") as parser:
        results = parser.parse([source(tmp_path / "noise.png")])
        import threading

        thread = threading.Thread(target=lambda: list(results))
        thread.start()
        found = None
        end = time.monotonic() + 30
        while found is None and time.monotonic() < end:
            new = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
            found = next((one for one in new if one.name() == "tesseract"), None)
            time.sleep(0.01)
        assert found is not None, "Tesseract was not started"
        os.kill(parser.children()[0], signal.SIGKILL)
        psutil.wait_procs([found], timeout=10)
        assert not found.is_running() or found.status() == psutil.STATUS_ZOMBIE
        thread.join()


def test_a_setting_that_is_none_and_a_missing_program_are_told_before_a_document_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="ocr"):
        Index.open(tmp_path / "index", model=HashEncoder(dims=16), ocr="--help")
    with pytest.raises(ValueError, match="ocr must be"):
        Parser(ocr="eng; rm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match="apt install tesseract-ocr"):
        Parser(ocr="eng")
    assert Parser(ocr="off")


@needs_tesseract
def test_a_language_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"no data for tlh, only for .*eng"):
        Parser(ocr="eng+tlh")

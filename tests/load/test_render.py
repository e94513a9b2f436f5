"""Pages as pictures: of the size wanted, with everything where it is on the page, whatever a page does to its renderer."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image

from ragkit.core.errors import LimitExceeded, LoadError, UnsupportedFormat
from ragkit.load import Limits, Parser, RenderedPage, WantedPage, can_render, is_blank
from ragkit.load.limits import Options
from ragkit.load.pdf.pdf import load
from ragkit.load.render import Pixels, drawn, size_at
from ragkit.load.sandbox import parser as sandbox
from ragkit.load.sandbox import wire
from tests.load.marks import COLOURS, Sheet, assert_in_place
from tests.load.pages import Text, draw
from tests.load.rawpdf import bomb, pdf, show, simple, stream

CROP = (40.5, 100.25, 380.0, 560.0)
BEYOND = (-30.0, 90.0, 500.0, 570.0)  # reaches beyond the page
ODD = (-113.5, 211.25, 224.75, 701.0)  # a media box that begins elsewhere
SHEETS = [
    *(Sheet(rotate=rotate, crop=crop) for rotate in (0, 90, 180, 270) for crop in (None, CROP, BEYOND)),
    *(Sheet(media=ODD, rotate=rotate, unit=2.5) for rotate in (0, 90)),
    Sheet(media=(0, 0, 14400, 9000), rotate=270),
    Sheet(media=(0, 0, 3, 4)),
]

Draw = Callable[..., Pixels]


@pytest.fixture
def drawing(engine: str, tmp_path: Path) -> Draw:
    """Draws a page of the bytes of a PDF in this process, with the engine under test."""

    def draw_one(content: bytes, width: int, height: int, *, page: int = 1) -> Pixels:
        path = tmp_path / "drawn.pdf"
        path.write_bytes(content)
        (result,) = drawn(path, [WantedPage(page, width, height)], Options(pdf_engine=engine))
        assert not isinstance(result, LoadError), result
        assert (result.shape, result.dtype) == ((height, width, 3), np.uint8)
        return result.copy()

    return draw_one


@pytest.mark.parametrize("sheet", SHEETS, ids=str)
def test_a_mark_on_the_page_is_at_its_place_in_the_picture(drawing: Draw, sheet: Sheet) -> None:
    x0, y0, x1, y1 = sheet.shown
    width, height = (x1 - x0, y1 - y0) if sheet.rotate in (0, 180) else (y1 - y0, x1 - x0)
    scale = (300_000 / (width * height)) ** 0.5
    for across, down in ((round(width * scale), round(height * scale)), (448, 616)):  # as it is, and stretched
        assert_in_place(drawing(sheet.file(), across, down), sheet.places())


@pytest.mark.parametrize("sheet", [Sheet(rotate=90, crop=CROP), Sheet(media=ODD, unit=2.5)], ids=str)
def test_places_are_those_of_the_document_too(engine: str, tmp_path: Path, sheet: Sheet) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(sheet.file())
    (document,) = load(path, Options(pdf_engine=engine))
    page = document.pages[0]
    (picture,) = drawn(path, [WantedPage(1, round(page.width), round(page.height))], Options(pdf_engine=engine))
    assert not isinstance(picture, LoadError)
    assert_in_place(picture, sheet.places())


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2), (333, 7), (1023, 1025)])
def test_a_picture_has_exactly_the_pixels_wanted(drawing: Draw, size: tuple[int, int]) -> None:
    drawing(Sheet(rotate=90, crop=CROP).file(), *size)


@pytest.mark.parametrize("crop", [b"[10 10 10 300]", b"[700 700 800 800]"])
def test_a_page_that_shows_nothing_is_a_white_sheet(drawing: Draw, crop: bytes) -> None:
    content = pdf(simple([b""], page=b"/CropBox " + crop))
    assert drawing(content, 40, 50).min() == 255


def test_colours_are_those_of_print_and_of_glass(drawing: Draw) -> None:
    see_through = b"/ExtGState << /G << /ca 0.5 >> >>"
    content = b"0 1 1 0 k 0 0 200 600 re f /G gs 0 0 0 rg 200 0 200 300 re f"
    picture = drawing(pdf(simple([content], resources=see_through)), 200, 300).astype(int)
    red, grey, white = picture[150, 50], picture[225, 150], picture[75, 150]
    assert red[0] > 200 > 80 > red[1:].max()
    assert np.abs(grey - 128).max() < 12
    assert (white == 255).all()


def test_annotations_and_fields_are_drawn(drawing: Draw) -> None:
    box = b"/BBox [0 0 100 100] /Type /XObject /Subtype /Form"
    more = {
        50: b"<< /Type /Annot /Subtype /Square /Rect [50 400 150 500] /F 4 /AP << /N 60 0 R >> >>",
        51: b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (x) /Rect [250 400 350 500] /F 4 /AP << /N 61 0 R >> >>",
        60: stream(b"1 0 0 rg 0 0 100 100 re f", box),
        61: stream(b"0 0 1 rg 0 0 100 100 re f", box),
    }
    objects = simple([b""], page=b"/Annots [50 0 R 51 0 R]", more=more)
    objects[1] = b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [51 0 R] >> >>"
    picture = drawing(pdf(objects), 400, 600)
    assert picture[150, 100].tolist() == [255, 0, 0]
    assert picture[150, 300].tolist() == [0, 0, 255]


def picture_file(path: Path, *, orientation: int = 1) -> tuple[Path, npt.NDArray[np.uint8]]:
    """A picture with marks, kept on disk as a camera held that way would, and as a viewer shows it."""
    seen = np.full((300, 200, 3), 255, np.uint8)
    for colour, (u, v) in zip(COLOURS, Sheet().places(), strict=True):
        x, y = round(u * 200), round(v * 300)
        seen[y - 5 : y + 5, x - 5 : x + 5] = colour
    # What the file holds, by the definition of the tag: which side the first row and the first column are of.
    kept = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: seen.transpose(1, 0, 2)[::-1],
        7: seen.transpose(1, 0, 2)[::-1, ::-1],
        8: seen.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(kept)).save(path, exif=exif)
    return path, seen


def image_page(path: Path, number: int, width: int, height: int) -> Pixels:
    (result,) = drawn(path, [WantedPage(number, width, height)], Options())
    assert not isinstance(result, LoadError), result
    return result


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_upright_with_its_marks_in_place(tmp_path: Path, orientation: int) -> None:
    path, seen = picture_file(tmp_path / "a.png", orientation=orientation)
    np.testing.assert_array_equal(image_page(path, 1, 200, 300), seen)
    places = [(round(u * 200) / 200, round(v * 300) / 300) for u, v in Sheet().places()]
    assert_in_place(image_page(path, 1, 141, 157), places)


def test_each_frame_of_a_tiff_is_a_page(tmp_path: Path) -> None:
    frames = [Image.new("L", (30, 40), shade) for shade in (10, 120, 240)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    wanted = [WantedPage(number, 15, 20) for number in (3, 1, 2, 2)]
    found = list(drawn(tmp_path / "a.tiff", wanted, Options()))
    assert [int(one.mean()) for one in found if not isinstance(one, LoadError)] == [240, 10, 120, 120]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert image_page(tmp_path / "a.png", 1, 4, 4).min() == 255


def test_a_reduced_picture_is_what_pillow_makes_of_it(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    expected = np.asarray(noise.resize((31, 41), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(image_page(tmp_path / "a.png", 1, 31, 41), expected)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.jpg"])
def test_half_a_picture_is_a_page_lost(parsers: Callable[[str], Parser], tmp_path: Path, name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    noise.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (result,) = parsers("pypdfium2").render_pages(tmp_path / name, [WantedPage(1, 20, 20)])
    assert isinstance(result, LoadError), result
    assert "damaged" in str(result)


def test_what_can_be_rendered_is_known_by_its_name() -> None:
    assert can_render("a.pdf")
    assert can_render(Path("b/A.TIFF"))
    assert not can_render("a.txt")
    assert not can_render("a.xlsx")
    assert not can_render("noname")


def test_wanted_pages_have_a_number_and_a_size() -> None:
    for wrong in ((0, 10, 10), (1, 0, 10), (1, 10, -1)):
        with pytest.raises(ValueError, match="count from 1"):
            WantedPage(*wrong)


@pytest.mark.parametrize("size", [(612.0, 792.0), (0.0, 0.0), (14400.0, 0.01), (3.0, 14400.0)])
def test_a_resolution_gives_a_size_within_the_ceiling(size: tuple[float, float]) -> None:
    for dpi in (1, 72, 600):
        width, height = size_at(size, dpi=dpi, max_pixels=50_000)
        assert width >= 1
        assert height >= 1
        assert width * height <= 50_000
    with pytest.raises(ValueError, match="dpi"):
        size_at(size, dpi=0, max_pixels=50_000)
    assert size_at((612, 792), dpi=144, max_pixels=10**7) == (1224, 1584)


# In the sandbox


@pytest.fixture(scope="module")
def parsers() -> Iterator[Callable[[str], Parser]]:
    """A Parser for each engine, with a child that has imported it, for all tests that need no limits of their own."""
    with contextlib.ExitStack() as opened:
        made: dict[str, Parser] = {}

        def parser_of(engine: str) -> Parser:
            if engine not in made:
                made[engine] = opened.enter_context(Parser(pdf_engine=engine))
            return made[engine]

        yield parser_of


@pytest.fixture
def parser(parsers: Callable[[str], Parser], engine: str) -> Parser:
    return parsers(engine)


def lines(count: int) -> list[list[Text]]:
    return [[Text(f"page {number}", 50, 500, 40)] for number in range(1, count + 1)]


def wanted(numbers: Sequence[int], width: int = 60, height: int = 90) -> list[WantedPage]:
    return [WantedPage(number, width, height) for number in numbers]


def told(results: Iterator[RenderedPage | LoadError]) -> list[int | str]:
    return [one.number if isinstance(one, RenderedPage) else str(one) for one in results]


def test_there_is_one_result_for_each_page_wanted_in_that_order(parser: Parser, engine: str, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.pdf", lines(4))
    asked = [WantedPage(4, 30, 40), WantedPage(2, 50, 20), WantedPage(9, 5, 5), WantedPage(2, 31, 41)]
    found = list(parser.render_pages(path, asked))
    assert told(iter(found)) == [4, 2, "there is no page 9: the document has 4", 2]
    for want, one in zip(asked, found, strict=True):
        if isinstance(one, RenderedPage):
            assert (one.image.size, one.image.mode) == ((want.width, want.height), "RGB")
            (direct,) = drawn(path, [want], Options(pdf_engine=engine))
            np.testing.assert_array_equal(np.asarray(one.image), direct)
    assert list(parser.render_pages(path, [])) == []


def test_a_file_without_pages_is_a_reason_for_each_page(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.pdf").write_bytes(b"not a PDF")
    with Parser(pdf_engine="pypdfium2", limits=Limits(pixels=100)) as parser:
        for name, kind, reason in (
            ("a.txt", UnsupportedFormat, "no pages to render"),
            ("b.pdf", LoadError, "not a readable PDF"),
            ("gone.pdf", LoadError, "No such file"),
        ):
            found = list(parser.render_pages(tmp_path / name, wanted([1, 2])))
            assert [type(one) for one in found] == [kind, kind]
            assert all(reason in str(one) for one in found)
        path = draw(tmp_path / "c.pdf", lines(1))
        large, small = parser.render_pages(path, [WantedPage(1, 11, 10), WantedPage(1, 10, 10)])
        assert isinstance(large, LimitExceeded)
        assert "11 x 10 pixels, more than 100 (Limits.pixels)" in str(large)
        assert isinstance(small, RenderedPage)


def test_a_page_that_takes_too_long_costs_that_page(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(bomb([show(b"one"), show(b"two"), show(b"three")], at=1))
    with Parser(pdf_engine=engine, limits=Limits(page_cpu_seconds=0.5)) as parser:
        found = told(parser.render_pages(path, wanted([1, 2, 3])))
    assert found == [1, "page 2 took longer than 0.5 s of processor time (Limits.page_cpu_seconds)", 3]


def test_time_lost_with_pages_is_bounded_for_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(bomb([show(b"page") + b"/X0 Do"] * 6, at=-1))
    with Parser(pdf_engine="pypdfium2", limits=Limits(page_seconds=0.5, seconds=1.6)) as parser:
        found = told(parser.render_pages(path, wanted(range(1, 7))))
    if found == ["took longer than 1.6 s (Limits.seconds)"] * 6:
        pytest.skip("this machine is so busy that opening the file takes as long")
    slow = ["took longer" in str(one) for one in found]
    assert slow == sorted(slow, reverse=True)
    assert 1 <= sum(slow) <= 4  # each takes 0.5 s or more
    assert set(found[sum(slow) :]) == {"not rendered: pages before it took 1.6 s (Limits.seconds) and were lost"}


def test_a_child_that_dies_costs_the_page_it_was_at(parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_AHEAD", 1)
    path = draw(tmp_path / "a.pdf", lines(12))
    results = parser.render_pages(path, wanted(range(1, 13), 400, 600))
    found = [next(results)]
    os.kill(parser.children()[0], signal.SIGKILL)
    found += results
    lost = [number for number, one in enumerate(found, 1) if isinstance(one, LoadError)]
    assert len(found) == 12
    assert len(lost) <= 1
    assert all(f"killed by SIGKILL, on page {number}" in str(found[number - 1]) for number in lost)
    assert [one.number for one in found if isinstance(one, RenderedPage)] == [n for n in range(1, 13) if n not in lost]


def test_pages_are_drawn_only_a_few_ahead(parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = 3 * 400 * 600
    monkeypatch.setattr(sandbox, "_AHEAD", 3 * picture)
    path = draw(tmp_path / "a.pdf", lines(30))
    assert told(parser.render_pages(path, wanted([1]))) == [1]
    child = psutil.Process(parser.children()[0])
    if not hasattr(child, "io_counters"):
        pytest.skip("this system does not tell what a process wrote")
    earlier = child.io_counters().write_chars
    results = parser.render_pages(path, wanted(range(1, 31), 400, 600))
    next(results)
    before, now = -1.0, 0.0
    while now > before:  # until it rests
        time.sleep(0.3)
        before, now = now, sum(child.cpu_times()[:2])
    written = child.io_counters().write_chars - earlier
    assert written < 7 * picture  # taken, waiting, in the thread's hands, and on the way
    assert len(list(results)) == 29


def test_leaving_early_leaves_nothing_behind(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.pdf", lines(20))
    with Parser(pdf_engine="pypdfium2") as parser:
        results = parser.render_pages(path, wanted(range(1, 21), 800, 1200))
        assert isinstance(next(results), RenderedPage)
        results.close()  # type: ignore[attr-defined]
        assert told(parser.render_pages(path, wanted([2]))) == [2]
        assert len(parser.children()) == 1
    with pytest.raises(ValueError, match="closed"):
        parser.render_pages(path, wanted([1]))


def test_a_long_document_is_opened_anew_now_and_then(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ragkit.load import render

    opened = []
    monkeypatch.setattr(
        render, "open_pages", lambda *given, kept=render.open_pages, **how: opened.append(1) or kept(*given, **how)
    )
    path = draw(tmp_path / "a.pdf", lines(3))
    assert len(list(drawn(path, wanted([1, 2, 3] * 67), Options(pdf_engine=engine)))) == 201
    assert len(opened) == 3


def test_whatever_an_engine_raises_on_a_page_costs_that_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ragkit.load import render
    from ragkit.load.pdf.pdfium import Pdf

    class Failing(Pdf):
        def draw(self, index: int, width: int, height: int) -> Pixels:
            if index == 1:
                raise TypeError("an argument of a kind nobody thought of")
            if index == 2:
                raise MemoryError
            return super().draw(index, width, height)

    monkeypatch.setattr(render, "open_pages", lambda path, options, name: Failing(path, None))
    path = draw(tmp_path / "a.pdf", lines(4))
    first, second, third, last = drawn(path, wanted([1, 2, 3, 4]), Options())
    assert not isinstance(first, LoadError)
    assert "page 2 cannot be drawn: TypeError: an argument" in str(second)
    assert isinstance(third, LimitExceeded)
    assert not isinstance(last, LoadError)


def test_a_picture_that_was_not_asked_for_is_refused() -> None:
    pixels = np.zeros((3, 2, 3), np.uint8)
    parts = wire.pack_picture(5, pixels, blank=True)
    data = b"".join(parts)
    head, _ = wire.sizes(data[: wire.PREFIX.size], limits=Limits())
    header = wire.header_of(data[wire.PREFIX.size : wire.PREFIX.size + head])
    payload = memoryview(data)[wire.PREFIX.size + head :]
    page = wire.unpack_picture(header, payload, WantedPage(5, 2, 3))
    assert (page.number, page.image.size, page.blank) == (5, (2, 3), True)
    for wrong in (WantedPage(4, 2, 3), WantedPage(5, 3, 2)):
        with pytest.raises(wire.BrokenFrame):
            wire.unpack_picture(header, payload, wrong)
    for short in (payload[:-1], memoryview(b"")):
        with pytest.raises(wire.BrokenFrame):
            wire.unpack_picture(header, short, WantedPage(5, 2, 3))


# Blank pages


def scanned(*, ink: Callable[[npt.NDArray[np.float64]], None] | None = None, paper: float = 244, seed: int = 0) -> Pixels:
    """A page as a scanner gives it: grain, light that falls off to one side, dust, and a shadow along an edge."""
    random = np.random.default_rng(seed)
    page = np.full((1100, 800), float(paper))
    page -= np.linspace(0, 12, 800)
    if ink:
        ink(page)
    page += random.normal(0, 8, page.shape)
    for y, x in random.integers(20, 780, (40, 2)):
        page[y : y + 2, x : x + 2] -= 120
    page[:, :6] -= 150
    return np.repeat(page.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def word(page: npt.NDArray[np.float64]) -> None:
    page[:] = np.minimum(page, np.asarray(typed("intentionally")))


def typed(text: str) -> Image.Image:
    """White, with a text in the size of a page's body."""
    import pymupdf

    with pymupdf.open() as document:
        page = document.new_page(width=800 * 0.65, height=1100 * 0.65)
        page.insert_text((200, 300), text, fontsize=11)
        pixels = page.get_pixmap(matrix=pymupdf.Matrix(1 / 0.65, 1 / 0.65), colorspace=pymupdf.csGRAY)
        return Image.frombytes("L", (pixels.width, pixels.height), pixels.samples).resize((800, 1100))


def test_scanned_paper_is_blank_and_a_word_on_it_is_not() -> None:
    for seed in range(3):
        assert is_blank(scanned(seed=seed))
        assert is_blank(scanned(paper=180, seed=seed))
    assert not is_blank(scanned(ink=word))


def test_a_page_number_alone_is_next_to_nothing() -> None:
    for size in ((800, 1100), (300, 412), (1600, 2200)):
        number, name = (typed(text).convert("RGB").resize(size, Image.Resampling.BICUBIC) for text in ("123", "Contents"))
        assert is_blank(number)
        assert not is_blank(name)


@pytest.mark.parametrize("size", [(392, 560), (644, 924), (1190, 1684), (2380, 3368)])
def test_a_drawing_in_hairlines_is_not_blank_and_a_rule_is(
    parser: Parser, engine: str, tmp_path: Path, size: tuple[int, int]
) -> None:
    import pymupdf

    with pymupdf.open() as document:
        for drawn in (True, False):
            lines = document.new_page(width=595, height=842).new_shape()
            lines.draw_line((60, 700), (540, 700))
            if drawn:
                lines.draw_circle((300, 300), 120)
                lines.draw_rect((100, 100, 500, 600))
            lines.finish(width=0.1)
            lines.commit()
        document.save(tmp_path / "a.pdf")
    found = list(parser.render_pages(tmp_path / "a.pdf", wanted([1, 2], *size)))
    told = [one.blank for one in found if isinstance(one, RenderedPage)]
    assert told[0] is False
    if engine == "pymupdf":  # PDFium draws every line a pixel wide
        assert told[1] is True


@pytest.mark.parametrize("size", [(1, 1), (9, 5), (40, 3000), (1000, 1000)])
def test_one_colour_is_blank_whatever_it_is_and_two_are_not(size: tuple[int, int]) -> None:
    for colour in ("white", "black", "#204080"):
        assert is_blank(Image.new("RGB", size, colour))
    picture = Image.new("RGB", size, "white")
    picture.paste((255, 255, 150), (0, 0, size[0], size[1] // 2))
    if min(size) > 1:
        assert not is_blank(picture)


def test_blank_pages_are_told_with_their_pictures(parser: Parser, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.pdf", [[Text("words enough to be seen", 50, 500, 30)], []])
    found = list(parser.render_pages(path, wanted([1, 2], 400, 600)))
    assert [one.blank for one in found if isinstance(one, RenderedPage)] == [False, True]

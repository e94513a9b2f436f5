"""PDFs: words in reading order with their boxes, on both engines, against pages drawn at known places."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfgen.canvas import Canvas

from ragkit.core.errors import EncryptedDocument, LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load import Limits
from ragkit.load.limits import Options
from ragkit.load.pdf.pdf import PAGE_BREAK, iso_date
from ragkit.load.render import page_png
from tests.load.pages import HEIGHT, WIDTH, Text, draw, embedded, places, shown
from tests.load.rawpdf import pdf, show, simple

Read = Callable[..., Document]
Crop = tuple[float, float, float, float] | None
CROP = (40.0, 100.0, 380.0, 560.0)
BEYOND = (-30.0, 90.0, 500.0, 570.0)  # a crop box that reaches beyond the page
LINES = [
    Text("Quarterly revenue report", 60, 520, 18),
    Text("Revenue grew by twelve percent in the north", 60, 480),
    Text("while costs stayed flat over the year.", 60, 466),
    Text("Signed in spring", 200, 130, 9),
]


def words_of(document: Document, page: int = 0) -> list[tuple[str, list[float]]]:
    words = document.pages[page].words
    return [(document.text[s:e], box) for (s, e), box in zip(words.spans.tolist(), words.boxes.tolist(), strict=True)]


def iou(a: list[float], b: list[float]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0.0) * max(down, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def assert_on_the_spot(found: list[float], drawn: tuple[float, float, float, float], *, upright: bool) -> None:
    """Along the line the ends agree closely; across it the box holds the letters, and is no taller than a line.

    How far a box reaches above and below the letters is each font's own affair, so only its bounds are a law.
    """
    x0, y0, x1, y1 = found if upright else (found[1], found[0], found[3], found[2])
    dx0, dy0, dx1, dy1 = drawn if upright else (drawn[1], drawn[0], drawn[3], drawn[2])
    overlap = min(x1, dx1) - max(x0, dx0)
    assert overlap / (max(x1, dx1) - min(x0, dx0)) >= 0.9, (found, drawn)
    size = (dy1 - dy0) / 0.7
    assert y0 <= dy0 + 0.06 * size, (found, drawn)
    assert y1 >= dy1 - 0.06 * size, (found, drawn)
    assert y1 - y0 <= 1.6 * size, (found, drawn)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, CROP, BEYOND])
def test_boxes_are_where_words_are_seen(read: Read, tmp_path: Path, rotate: int, crop: Crop) -> None:
    document = read(draw(tmp_path / "a.pdf", [LINES], rotate=rotate, crop=crop))
    drawn = [place for line in LINES for place in places(line, rotate=rotate, crop=crop)]
    found = dict(words_of(document))
    assert set(found) == {word for word, *_ in drawn}
    for word, *box in drawn:
        if sum(word == other for other, *_ in drawn) == 1:
            assert_on_the_spot(found[word], tuple(box), upright=rotate in (0, 180))
    x0, y0, x1, y1 = shown(crop)
    size = (x1 - x0, y1 - y0) if rotate in (0, 180) else (y1 - y0, x1 - x0)
    page = document.pages[0]
    assert (page.width, page.height) == pytest.approx(size, abs=0.01)
    assert page.rotation == rotate


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize(("crop", "scale"), [(None, 1.0), (CROP, 1.0), (BEYOND, 1.0), (None, 0.4), (CROP, 1.7)])
def test_a_words_box_is_its_advance_by_its_fonts_ascent_and_descent(
    read: Read, tmp_path: Path, rotate: int, crop: Crop, scale: float
) -> None:
    lines = [replace(line, font=embedded(), x=line.x / scale, y=line.y / scale) for line in LINES]
    # The line at y = 130 and the last words of long lines may be cut by the crop box; what is whole is compared.
    document = read(draw(tmp_path / "a.pdf", [lines], rotate=rotate, crop=crop, scale=scale))
    face = pdfmetrics.getFont("Vera").face
    extent = face.descent / 1000, face.ascent / 1000
    drawn = [one for line in lines for one in places(line, rotate=rotate, crop=crop, scale=scale, extent=extent)]
    page = document.pages[0]
    whole = [one for one in drawn if one[1] >= 0 and one[2] >= 0 and one[3] <= page.width and one[4] <= page.height]
    assert len(whole) >= 10
    found = words_of(document)
    for word, *box in whole:
        assert max(iou(other, box) for text, other in found if text == word) >= 0.9, word


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, CROP, BEYOND])
def test_a_rendered_page_has_its_ink_in_the_boxes(read: Read, engine: str, tmp_path: Path, rotate: int, crop: Crop) -> None:
    from PIL import Image

    path = draw(tmp_path / "a.pdf", [LINES], rotate=rotate, crop=crop)
    page = read(path).pages[0]
    image = np.asarray(Image.open(io.BytesIO(page_png(path, 1, Options(pdf_engine=engine), dpi=144))).convert("L"))
    assert image.shape[::-1] == pytest.approx((page.width * 2, page.height * 2), abs=1)
    ink = image < 128
    inside = np.zeros_like(ink)
    for x0, y0, x1, y1 in (page.words.boxes * 2).round().astype(int):
        assert ink[y0:y1, x0:x1].mean() > 0.05, "a box without ink"
        inside[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = True
    assert ink.sum() > 500
    assert not (ink & ~inside).any(), "ink outside all boxes"


def test_render_page_keeps_to_max_pixels(engine: str, tmp_path: Path) -> None:
    from PIL import Image

    path = draw(tmp_path / "a.pdf", [LINES])
    image = Image.open(io.BytesIO(page_png(path, 1, Options(pdf_engine=engine), dpi=300, max_pixels=50_000)))
    assert 45_000 < image.width * image.height <= 50_000
    with pytest.raises(LoadError, match="no page 2"):
        page_png(path, 2, Options(pdf_engine=engine))


def test_text_outside_the_crop_box_is_left_out(read: Read, tmp_path: Path) -> None:
    lines = [Text("inside", 100, 300), Text("above", 100, 580), Text("leftmost", 0, 300), Text("below", 100, 20)]
    document = read(draw(tmp_path / "a.pdf", [lines], crop=CROP))
    assert [word for word, _ in words_of(document)][-1] == "inside"
    assert not {"above", "below", "leftmost"} & set(document.text.split())


def test_boxes_stay_on_the_page(read: Read, tmp_path: Path) -> None:
    document = read(draw(tmp_path / "a.pdf", [[Text("straddling the left edge", 20, 300)]], crop=CROP))
    boxes = document.pages[0].words.boxes
    assert len(boxes)
    assert boxes.min() >= 0
    assert (boxes[:, [0, 2]] <= document.pages[0].width).all()


def test_every_span_is_exactly_its_word(read: Read, tmp_path: Path) -> None:
    document = read(draw(tmp_path / "a.pdf", [LINES, [], LINES]))
    for page in document.pages:
        for start, end in page.words.spans.tolist():
            word = document.text[start:end]
            assert word
            assert not any(c.isspace() for c in word)
            assert page.span.start <= start < end <= page.span.end
    assert [document.text[p.span.start : p.span.end].split() for p in document.pages] == [
        [w for line in LINES for w in line.text.split()] if i != 1 else [] for i in range(3)
    ]


def test_pages_are_parted_by_what_belongs_to_none(read: Read, tmp_path: Path) -> None:
    document = read(draw(tmp_path / "a.pdf", [LINES, [], LINES]))
    first, empty, last = document.pages
    assert document.text[first.span.end : empty.span.start] == PAGE_BREAK
    assert empty.span.length == len(empty.words) == 0
    assert last.span.end == len(document.text)
    assert [page.number for page in document.pages] == [1, 2, 3]


LEFT = [f"left column line {i} runs its whole width" for i in range(12)]
RIGHT = [f"right column line {i} runs its width too" for i in range(12)]


def two_columns(*, interleaved: bool, top: float = 480.0) -> list[Text]:
    left = [Text(line, 30, top - 13 * i, 9) for i, line in enumerate(LEFT)]
    right = [Text(line, 215, top - 13 * i, 9) for i, line in enumerate(RIGHT)]
    return [line for pair in zip(left, right, strict=True) for line in pair] if interleaved else left + right


@pytest.mark.parametrize("interleaved", [False, True])
def test_two_columns_are_read_one_after_the_other(read: Read, tmp_path: Path, interleaved: bool) -> None:
    title = Text("A title that spans the width of both columns", 30, 540, 16)
    foot = Text("A footnote that spans the width of both columns of this page, set small", 30, 60, 8)
    document = read(draw(tmp_path / "a.pdf", [[foot, *two_columns(interleaved=interleaved), title]]))
    expected = [title.text, *LEFT, *RIGHT, foot.text]
    assert [line for line in document.text.split("\n") if line] == expected


def test_three_columns_are_read_one_after_the_other(read: Read, tmp_path: Path) -> None:
    texts = [[f"column {c} has the line {i} in it" for i in range(8)] for c in range(3)]
    lines = [Text(texts[c][i], 20 + 126 * c, 480 - 10 * i, 8) for i in range(8) for c in range(3)]
    document = read(draw(tmp_path / "a.pdf", [lines]))
    assert [line for line in document.text.split("\n") if line] == [line for column in texts for line in column]


ROWS = [
    ("Region", "2022", "2023", "Change"),
    ("North", "1,204", "1,350", "12.1%"),
    ("South", "980", "1,001", "2.1%"),
    ("East", "455", "430", "-5.5%"),
    ("West", "77", "91", "18.2%"),
]


def table(top: float, *, by_column: bool = False) -> list[Text]:
    cells = [(r, c) for r in range(len(ROWS)) for c in range(4)]
    order = sorted(cells, key=lambda rc: (rc[1], rc[0])) if by_column else cells
    return [Text(ROWS[r][c], 40 + 90 * c, top - 16 * r, 10) for r, c in order]


@pytest.mark.parametrize("by_column", [False, True])
def test_a_table_is_read_row_by_row(read: Read, tmp_path: Path, by_column: bool) -> None:
    document = read(draw(tmp_path / "a.pdf", [table(400, by_column=by_column)]))
    assert [line for line in document.text.split("\n") if line] == [" ".join(row) for row in ROWS]


def test_terms_beside_their_descriptions_stay_rows(read: Read, tmp_path: Path) -> None:
    rows = [(f"Term {i}", f"what the term number {i} means, in a line of words") for i in range(8)]
    lines = [Text(row[c], (40, 130)[c], 500 - 14 * i, 9) for i, row in enumerate(rows) for c in range(2)]
    document = read(draw(tmp_path / "a.pdf", [lines]))
    assert [line for line in document.text.split("\n") if line] == [" ".join(row) for row in rows]


def test_a_wide_table_above_two_columns_stays_whole(read: Read, tmp_path: Path) -> None:
    document = read(draw(tmp_path / "a.pdf", [table(560) + two_columns(interleaved=False, top=440)]))
    assert [line for line in document.text.split("\n") if line] == [" ".join(row) for row in ROWS] + LEFT + RIGHT


def test_turned_text_keeps_its_words_together(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path), pagesize=(WIDTH, HEIGHT))
    canvas.setFont("Helvetica", 10)
    canvas.saveState()
    canvas.translate(20, 380)  # beside the lines, not below them
    canvas.rotate(90)
    canvas.drawString(0, 0, "a note along the margin")
    canvas.restoreState()
    for i in range(10):
        canvas.drawString(60, 500 - 14 * i, f"line {i} of the text that stands upright")
    canvas.save()
    document = read(path)
    assert document.text.endswith("\n\na note along the margin")
    assert document.text.index("line 9") - document.text.index("line 0") == 9 * len("line 0 of the text that stands upright\n")
    for word, (x0, y0, x1, y1) in words_of(document)[-5:]:
        assert x0 < 25, word
        assert x1 < 25, word
        assert (y1 - y0) > (x1 - x0) or word == "a"


def test_paragraphs_and_headings_are_blocks(read: Read, tmp_path: Path) -> None:
    body = "some words of ordinary running text here"
    lines = [Text("The main title", 40, 550, 22), Text("First part", 40, 510, 15)]
    lines += [Text(body, 40, 490 - 13 * i) for i in range(3)] + [Text(body, 40, 430 - 13 * i) for i in range(3)]
    lines += [Text("Second part", 40, 370, 15)] + [Text(body, 40, 350 - 13 * i) for i in range(3)]
    document = read(draw(tmp_path / "a.pdf", [lines]))
    paragraph = "\n".join([body] * 3)
    assert [(b.kind, b.level, b.span.of(document.text)) for b in document.blocks] == [
        ("heading", 1, "The main title"),
        ("heading", 2, "First part"),
        ("paragraph", 0, paragraph),
        ("paragraph", 0, paragraph),
        ("heading", 2, "Second part"),
        ("paragraph", 0, paragraph),
    ]
    assert document.title == "The main title"


def test_metadata_and_page_labels_are_read(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path), pagesize=A4)
    canvas.setTitle("Überblick")
    canvas.setAuthor("Ada Lovelace")
    canvas.setSubject("Engines")
    canvas.setKeywords(["mill", "store"])
    canvas.addPageLabel(0, style="ROMAN_LOWER")
    canvas.addPageLabel(2, style="ARABIC", start=1)
    for i in range(4):
        canvas.drawString(100, 100, f"page {i}")
        canvas.showPage()
    canvas.save()
    document = read(path)
    assert document.title == "Überblick"
    assert document.meta["author"] == "Ada Lovelace"
    assert (document.meta["subject"], document.meta["keywords"]) == ("Engines", "mill, store")
    assert document.meta["created"][:4].isdigit()
    assert document.meta["pages"] == 4
    assert [page.label for page in document.pages] == ["i", "ii", "1", "2"]


def test_pages_without_labels_have_none(read: Read, tmp_path: Path) -> None:
    assert [page.label for page in read(draw(tmp_path / "a.pdf", [LINES])).pages] == [None]


@pytest.mark.parametrize("password", [None, "wrong"])
def test_an_encrypted_file_needs_its_password(read: Read, tmp_path: Path, password: str | None) -> None:
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path), encrypt=StandardEncryption("secret", canPrint=0))
    canvas.drawString(100, 100, "hush")
    canvas.save()
    with pytest.raises(EncryptedDocument, match="password"):
        read(path, password=password)
    assert read(path, password="secret").text == "hush"


def test_another_kind_of_file_named_pdf_is_refused(read: Read, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("<html><body><p>a page of a login</p></body></html>")
    with pytest.raises(LoadError, match=r"not a (readable )?PDF: "):
        read(tmp_path / "a.pdf")


def test_limits_on_pages_and_characters_hold(read: Read, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.pdf", [LINES] * 3)
    with pytest.raises(LimitExceeded, match="3 pages"):
        read(path, limits=Limits(pages=2))
    with pytest.raises(LimitExceeded, match="by page 2"):
        read(path, limits=Limits(characters=150))


def test_a_page_that_cannot_be_read_costs_that_page_only(read: Read, tmp_path: Path) -> None:
    objects = simple([show(b"one"), show(b"two"), b"q " * 100_000 + show(b"three"), show(b"four")])
    del objects[12]  # page 2: PDFium finds none; page 3: MuPDF gives up
    (tmp_path / "a.pdf").write_bytes(pdf(objects))
    document = read(tmp_path / "a.pdf")
    assert len(document.pages) == 4
    assert {"one", "four"} <= set(document.text.split())
    (reason,) = document.meta["unread"]
    assert reason.startswith(("page 2: cannot be read", "page 3: cannot be read"))


def test_a_document_without_a_readable_page_fails(read: Read, engine: str, tmp_path: Path) -> None:
    objects = simple([b"q " * 100_000 + show(b"one")])
    if engine == "pypdfium2":
        del objects[10]
    (tmp_path / "a.pdf").write_bytes(pdf(objects))
    with pytest.raises(LoadError, match="no page can be read"):
        read(tmp_path / "a.pdf")


@pytest.mark.parametrize("size", [0, 5, 300, -200])
def test_cut_off_files_are_load_errors_or_documents(read: Read, tmp_path: Path, size: int) -> None:
    whole = draw(tmp_path / "a.pdf", [LINES]).read_bytes()
    (tmp_path / "b.pdf").write_bytes(whole[:size])
    if size == -200:  # only the cross-references are lost: engines may mend that
        with contextlib.suppress(LoadError):
            assert read(tmp_path / "b.pdf").text.startswith("Quarterly revenue report")
        return
    with pytest.raises(LoadError, match=r"\w"):
        read(tmp_path / "b.pdf")


@pytest.mark.parametrize(
    ("written", "iso"),
    [
        ("D:20240131120000+01'00'", "2024-01-31T12:00:00+01:00"),
        ("D:20240131120000Z", "2024-01-31T12:00:00+00:00"),
        ("D:20240131120000", "2024-01-31T12:00:00"),
        ("D:20240131", "2024-01-31"),
        ("D:2024", "2024"),
        ("20240131120000-08'30", "2024-01-31T12:00:00-08:30"),
        ("D:20249931", ""),
        ("yesterday", ""),
        ("", ""),
    ],
)
def test_pdf_dates_become_iso_dates(written: str, iso: str) -> None:
    assert iso_date(written) == iso


def test_two_engines_read_the_same_words(shared: Path) -> None:
    """Real papers: the engines' words agree as multisets, and those found once have the same box."""
    from collections import Counter

    pytest.importorskip("pymupdf")
    pytest.importorskip("pypdfium2")
    from ragkit.load.limits import Options
    from ragkit.load.pdf.pdf import load

    path = shared / "pdf-page-questions" / "pdfs" / "2023.acl-long.386.pdf"
    one, two = (next(load(path, Options(pdf_engine=engine))) for engine in ("pymupdf", "pypdfium2"))
    agree = total = close = unique = 0
    for number in range(6):
        mine, theirs = words_of(one, number), words_of(two, number)
        counts, others = Counter(w for w, _ in mine), Counter(w for w, _ in theirs)
        agree, total = agree + (counts & others).total(), total + max(counts.total(), others.total())
        boxes, other_boxes = dict(mine), dict(theirs)
        for word in boxes:
            if counts[word] == others[word] == 1:
                unique += 1
                (a0, b0, a1, b1), (c0, d0, c1, d1) = boxes[word], other_boxes[word]
                union = max(a1, c1) - min(a0, c0)
                close += (min(a1, c1) - max(a0, c0)) / union > 0.9 and min(b1, d1) > max(b0, d0)
    assert agree / total > 0.97
    assert close / unique > 0.97

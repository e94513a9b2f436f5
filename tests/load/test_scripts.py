"""Scripts without spaces, vertical writing, ligatures, hyphens: the text as it is typed, boxes where it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from ragkit.core.types import Document
from ragkit.load.limits import Options
from ragkit.load.pdf.pdf import load
from ragkit.load.pdf.scripts import mend, pieces
from tests.load.pages import Text, draw
from tests.load.rawpdf import pdf, show, simple, stream
from tests.load.test_pdf import words_of

Read = Callable[..., Document]
SIZE = 12.0


def iou(a: list[float], b: tuple[float, float, float, float]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def chinese(path: Path, columns: list[tuple[str, float, float]], *, vertical: bool) -> Path:
    """A page of strings, each from x, y (PDF coordinates); vertical ones begin there, centred on x."""
    font = UnicodeCIDFont("STSong-Light", isVertical=vertical)
    font.fontName = font.name = f"{font.fontName}-{'V' if vertical else 'H'}"
    pdfmetrics.registerFont(font)
    canvas = Canvas(str(path), pagesize=(400, 600))
    canvas.setFont(font.fontName, SIZE)
    for text, x, y in columns:
        canvas.drawString(x, y, text)
    canvas.save()
    return path


def test_each_letter_of_chinese_has_a_box_where_it_stands(read: Read, tmp_path: Path) -> None:
    text = "中文没有空格所以每个字有自己的位置"
    document = read(chinese(tmp_path / "a.pdf", [(text, 50, 500)], vertical=False))
    assert document.text == text
    words = words_of(document)
    assert [word for word, _ in words] == list(text)
    for at, (_, (x0, y0, x1, y1)) in enumerate(words):
        assert (x0, x1) == pytest.approx((50 + SIZE * at, 50 + SIZE * (at + 1)), abs=0.6)
        assert y0 < 600 - 500 - 0.6 * SIZE
        assert y1 > 600 - 500 - 0.1 * SIZE


def test_a_line_end_in_chinese_is_no_space(read: Read, tmp_path: Path) -> None:
    lines = ["第一行的文字写到这里就要换行", "第二行接着写下去直到段落末尾"]
    document = read(chinese(tmp_path / "a.pdf", [(line, 50, 500 - 14 * i) for i, line in enumerate(lines)], vertical=False))
    assert document.text == "".join(lines)


def vertical(tmp_path: Path, columns: list[tuple[str, float, float]]) -> Document:
    """With PyMuPDF: PDFium knows no vertical writing in fonts that the file does not hold, and reads nothing there."""
    pytest.importorskip("pymupdf")
    (document,) = load(chinese(tmp_path / "a.pdf", columns, vertical=True), Options(pdf_engine="pymupdf"))
    return document


def test_vertical_writing_is_boxed_where_the_letters_stand(tmp_path: Path) -> None:
    text = "直排文字从上到下"
    document = vertical(tmp_path, [(text, 300, 550)])
    assert document.text == text
    # The default vertical origin (ISO 32000-2, 9.7.4.3): the letter hangs from the point, its middle below it.
    drawn = [(300 - SIZE / 2, 50 + SIZE * i, 300 + SIZE / 2, 50 + SIZE * (i + 1)) for i in range(len(text))]
    assert min(iou(box, place) for (_, box), place in zip(words_of(document), drawn, strict=True)) >= 0.9


def test_columns_of_vertical_writing_are_one_paragraph(tmp_path: Path) -> None:
    document = vertical(tmp_path, [("第一列的文字写到下面", 300, 550), ("第二列接着写下去", 280, 550)])
    assert document.text == "第一列的文字写到下面第二列接着写下去"


def test_a_word_parted_at_a_lines_end_is_one_word_with_two_boxes(read: Read, tmp_path: Path) -> None:
    lines = [
        "It is about the hyphen-",
        "ation of words, and a well-known",
        "case where the well-",
        "known hyphen stays, as in GPT-",
        "4.",
    ]
    document = read(draw(tmp_path / "a.pdf", [[Text(line, 50, 500 - 14 * i) for i, line in enumerate(lines)]]))
    assert " ".join(document.text.split()) == (
        "It is about the hyphenation of words, and a well-known case where the well-known hyphen stays, as in GPT-4."
    )
    words = words_of(document)
    at = [word for word, _ in words].index("hyphen")
    assert words[at + 1][0] == "ation"
    assert words[at + 1][1][1] > words[at][1][3] - 6  # on the line below
    assert words[at + 1][1][0] == pytest.approx(50, abs=1)


def test_nothing_runs_on_over_a_pages_end(read: Read, tmp_path: Path) -> None:
    document = read(draw(tmp_path / "a.pdf", [[Text("It is about the hyphen-", 50, 300)], [Text("ation of words", 50, 300)]]))
    assert document.text.split() == ["It", "is", "about", "the", "hyphen-", "ation", "of", "words"]
    assert [block.span for block in document.blocks] == [page.span for page in document.pages]


def test_a_dash_is_no_hyphen(read: Read, tmp_path: Path) -> None:
    lines = ["The first line ends with a dash -", "and the second goes on to 3-", "(three) without."]
    document = read(draw(tmp_path / "a.pdf", [[Text(line, 50, 500 - 14 * i) for i, line in enumerate(lines)]]))
    assert document.text == "\n".join(lines)


@pytest.mark.parametrize(
    ("shaped", "typed"),
    [("ﬁnd", "find"), ("oﬃce", "office"), ("ﻼ", "لا"), ("ﺳﻼﻡ", "سلام"), ("שׁ", "שׁ"), ("plain", "plain"), ("½", "½")],
)
def test_letters_shaped_for_print_become_letters_as_typed(shaped: str, typed: str) -> None:
    assert mend([shaped]) == [typed]


@given(st.lists(st.text(min_size=1, max_size=12).filter(lambda word: not any(c.isspace() for c in word)), max_size=8))
def test_mended_words_are_as_many_and_never_empty_or_blank(words: list[str]) -> None:
    mended = mend(words)
    assert len(mended) == len(words)
    assert all(word and not any(c.isspace() for c in word) for word in mended)


@given(st.text(alphabet="ab中文กำ้か゛e\u0301ﬁ", min_size=1, max_size=12))
def test_pieces_cover_a_word_and_part_no_letter_from_its_marks(word: str) -> None:
    import unicodedata

    parts = pieces(word)
    assert "".join(word[a:b] for a, b in parts) == word
    assert all(a < b for a, b in parts)
    assert not any(unicodedata.category(word[a])[0] == "M" for a, _ in parts if a)
    for a, b in parts:
        assert sum("\u4e00" <= c <= "\u9fff" for c in word[a:b]) <= 1


LAM_ALEF = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def
1 begincodespacerange <00> <FF> endcodespacerange
5 beginbfchar <41> <0645> <42> <06440627> <43> <0633> <44> <06440623> <45> <0627> endbfchar
endcmap CMapName currentdict /CMap defineresource pop end end"""


def test_the_two_letters_of_one_lam_alef_glyph_are_in_the_order_they_are_read(read: Read, tmp_path: Path) -> None:
    # Glyphs from left to right, as they are drawn: meem, lam-alef, seen; lam-alef with hamza, seen; seen, alef.
    objects = simple([show(b"ABC", y=400) + show(b"DC", y=300) + show(b"CE", y=200)])
    objects[3] = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 70 0 R >>"
    objects[70] = stream(LAM_ALEF)
    (tmp_path / "a.pdf").write_bytes(pdf(objects))
    assert read(tmp_path / "a.pdf").text.split() == ["\u0633\u0644\u0627\u0645", "\u0633\u0644\u0623", "\u0627\u0633"]

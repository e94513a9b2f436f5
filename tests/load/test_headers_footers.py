"""Running headers and footers: known by their repetition, kept apart in blocks, and never the body's own lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from ragkit.chunk import chunk_document
from ragkit.core.types import Document
from tests.chunk.counters import PieceCounter
from tests.load.pages import Text, draw

Read = Callable[..., Document]
TOPICS = ["wind", "water", "waves", "steam", "solar", "tides", "coal"]


def body(number: int, *, top: float = 540) -> list[Text]:
    topic = TOPICS[number % len(TOPICS)]
    return [Text(f"what line {i} of the text has to say of {topic}", 50, top - 14 * i) for i in range(30)]


def headers_and_footers(document: Document) -> list[tuple[str, int, int, str]]:
    """Kind, level, page and text of each running header and footer."""
    return [
        (b.kind, b.level, next(p.number for p in document.pages if b.span.start < p.span.end), b.span.of(document.text))
        for b in document.blocks
        if b.kind in ("header", "footer")
    ]


def test_running_titles_and_page_numbers_are_known_by_their_repetition(read: Read, tmp_path: Path) -> None:
    pages = [
        [
            Text("Annual Report 2024", 50, 575, 8),
            *body(n),
            Text("Confidential", 50, 20, 8),
            Text(f"Page {n + 1} of 6", 300, 20, 8),
        ]
        for n in range(6)
    ]
    document = read(draw(tmp_path / "a.pdf", pages))
    assert headers_and_footers(document) == [
        ("header", 0, 1, "Annual Report 2024"),
        ("footer", 0, 1, "Confidential"),
        ("footer", 1, 1, "Page 1 of 6"),
        *(
            entry
            for n in range(2, 7)
            for entry in [("header", 1, n, "Annual Report 2024"), ("footer", 1, n, f"Confidential Page {n} of 6")]
        ),
    ]


def test_no_chunk_mixes_a_page_with_the_furniture_of_the_next(read: Read, tmp_path: Path) -> None:
    pages = [[Text("Annual Report", 50, 575, 8), *body(n), Text(str(n + 1), 200, 20, 8)] for n in range(5)]
    document = read(draw(tmp_path / "a.pdf", pages))
    chunks = chunk_document(document, tokens=90, encoder_tokens=PieceCounter())
    texts = [chunk.span.of(document.text) for chunk in chunks]
    assert sum("Annual Report" in text for text in texts) == 1
    for text in texts:
        assert sum(topic in text for topic in TOPICS) == 1
    assert " ".join(texts).split() == [
        "Annual",
        "Report",
        *(word for n in range(5) for line in body(n) for word in line.text.split()),
    ]


def test_even_and_odd_pages_have_headers_of_their_own(read: Read, tmp_path: Path) -> None:
    pages = [[Text("The Book" if n % 2 else "Chapter One", 50 + 200 * (n % 2), 575, 8), *body(n)] for n in range(8)]
    found = headers_and_footers(read(draw(tmp_path / "a.pdf", pages)))
    assert [(level, text) for _, level, _, text in found] == [
        (int(n > 1), "The Book" if n % 2 else "Chapter One") for n in range(8)
    ]


def test_a_footer_is_known_on_pages_of_another_height(read: Read, tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "a.pdf"))
    for n, size in enumerate([(400, 600), (600, 400), (400, 600)]):
        canvas.setPageSize(size)
        canvas.drawString(50, 20, f"Annual Report {n + 1}")
        canvas.drawString(50, 250, f"the body of page {n + 1} says {TOPICS[n]}")
        canvas.showPage()
    canvas.save()
    found = headers_and_footers(read(tmp_path / "a.pdf"))
    assert [(kind, page, text) for kind, _, page, text in found] == [("footer", n, f"Annual Report {n}") for n in (1, 2, 3)]


def test_roman_numbers_and_sampled_pages_count_as_numbers(read: Read, tmp_path: Path) -> None:
    pages = [[*body(n), Text(number, 200, 20, 8)] for n, number in enumerate(["ii", "iv", "xi", "19", "44"])]
    assert [text for *_, text in headers_and_footers(read(draw(tmp_path / "a.pdf", pages)))] == ["ii", "iv", "xi", "19", "44"]


def test_a_note_along_the_margin_of_every_page_is_a_footer(read: Read, tmp_path: Path) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=(400, 600))
    for n in range(4):
        canvas.saveState()
        canvas.translate(385, 150)
        canvas.rotate(90)
        canvas.setFont("Helvetica", 7)
        canvas.drawString(0, 0, "Downloaded from the library by a guest")
        canvas.restoreState()
        for line in body(n):
            canvas.setFont("Helvetica", 11)
            canvas.drawString(line.x, line.y, line.text)
        canvas.showPage()
    canvas.save()
    found = headers_and_footers(read(tmp_path / "a.pdf"))
    assert [(kind, level, page) for kind, level, page, _ in found] == [("footer", int(n > 0), n + 1) for n in range(4)]


@pytest.mark.parametrize(
    "line",
    [
        Text("Results", 50, 560, 20),  # a slide's title: larger than the text
        Text("the first line of each page says the same", 50, 400),  # in the body's midst
    ],
)
def test_what_repeats_in_the_body_stays_in_it(read: Read, tmp_path: Path, line: Text) -> None:
    pages = [[line, *body(n, top=380)] for n in range(6)]
    assert headers_and_footers(read(draw(tmp_path / "a.pdf", pages))) == []


def test_the_head_of_a_table_that_goes_on_is_no_header(read: Read, tmp_path: Path) -> None:
    """The first cell repeats, the one beside it does not; and a line above both is the body's."""
    rows = [[Text("Region", 50, 575), Text(f"sold in {TOPICS[n]}", 150, 575), *body(n)] for n in range(6)]
    assert headers_and_footers(read(draw(tmp_path / "a.pdf", rows))) == []
    rows = [[Text(f"About {TOPICS[n]}", 50, 585), Text("Region", 50, 570), *body(n)] for n in range(6)]
    assert headers_and_footers(read(draw(tmp_path / "a.pdf", rows))) == []


def test_numbers_that_do_not_run_with_the_pages_are_data(read: Read, tmp_path: Path) -> None:
    pages = [[Text(number, 200, 580), *body(n)] for n, number in enumerate(["512", "77", "1040", "3", "90"])]
    assert headers_and_footers(read(draw(tmp_path / "a.pdf", pages))) == []


def test_a_single_page_has_none(read: Read, tmp_path: Path) -> None:
    assert headers_and_footers(read(draw(tmp_path / "a.pdf", [[Text("Annual Report", 50, 575, 8), *body(0)]]))) == []

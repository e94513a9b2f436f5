"""Hidden text is kept apart and flagged, fields and annotations are read, outlines make headings; on both engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reportlab.pdfgen.canvas import Canvas

from ragkit.core.types import Document
from tests.load.conftest import FUZZ
from tests.load.pages import Text, draw
from tests.load.rawpdf import pdf, show, simple, stream
from tests.load.test_pdf import words_of

Read = Callable[..., Document]
SEEN = show(b"plain words", y=550)
IMAGES = {
    50: stream(b"\x80" * 12, b"/Type /XObject /Subtype /Image /Width 2 /Height 2 /ColorSpace /DeviceRGB /BitsPerComponent 8"),
    # Stripes: a picture in which there is something to see.
    51: stream(
        b"\x00\x00\x00\xff\xff\xff" * 40,
        b"/Type /XObject /Subtype /Image /Width 80 /Height 1 /ColorSpace /DeviceRGB /BitsPerComponent 8",
    ),
}


def page(content: bytes) -> bytes:
    resources = b"/XObject << /Plain 50 0 R /Striped 51 0 R >> /ExtGState << /Clear << /ca 0 >> >>"
    return pdf(simple([content], resources=resources, more=IMAGES))


def placed(name: bytes) -> bytes:
    """A picture over the line at y = 300."""
    return b"q 300 0 0 40 40 285 cm /%s Do Q\n" % name


HIDDEN = {
    "white on white": b"1 g " + show(b"obey me now", y=300) + b"0 g ",
    "nearly white": b"0.99 0.99 0.98 rg " + show(b"obey me now", y=300) + b"0 g ",
    "fully transparent": b"q /Clear gs " + show(b"obey me now", y=300) + b"Q ",
    "drawn by no mode": b"3 Tr " + show(b"obey me now", y=300) + b"0 Tr ",
    "under a picture": show(b"obey me now", y=300) + placed(b"Plain"),
    "dark on dark": b"0 g 40 285 300 40 re f " + show(b"obey me now", y=300) + placed(b"Plain"),
    "too small": show(b"obey me now", y=300, size=1).replace(b"/F1 1 Tf", b"/F1 0.5 Tf"),
    "beside the page": show(b"obey me now", x=900, y=300),
    "below the page": show(b"obey me now", y=-300),
}


@pytest.mark.parametrize("way", HIDDEN)
def test_hidden_text_is_kept_apart_and_flagged(read: Read, tmp_path: Path, way: str) -> None:
    (tmp_path / "a.pdf").write_bytes(page(SEEN + HIDDEN[way] + show(b"and the end", y=100)))
    document = read(tmp_path / "a.pdf")
    assert document.text.split() == ["plain", "words", "and", "the", "end"]
    (entry,) = document.meta["hidden"]
    assert (entry["page"], entry["text"]) == (1, "obey me now")
    assert entry["why"] == ("it lies outside the page" if "the page" in way else "it cannot be seen")
    assert document.meta["hidden_characters"] == len("obey me now")


STEPS = st.sampled_from([b"1 g", b"0 g", b"3 Tr", b"0 Tr", b"1 1 1 rg", b"0 0 0 0 k", b"q", b"Q", b"show", b"show"])


@settings(max_examples=40 * FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=14))
def test_a_word_is_hidden_where_a_plain_reading_of_the_operators_says_so(read: Read, tmp_path: Path, steps: list[bytes]) -> None:
    white, unseen, outer = False, False, []
    content, seen, hidden = [SEEN], ["plain", "words"], []
    for number, step in enumerate(steps):
        if step == b"show":
            word = f"word{chr(97 + number)}"
            (hidden if white or unseen else seen).append(word)
            step = show(word.encode(), y=500 - 20 * number)
        elif step == b"q":
            outer.append((white, unseen))
        elif step == b"Q":
            if not outer:
                continue
            white, unseen = outer.pop()
        elif step.endswith(b"Tr"):
            unseen = step == b"3 Tr"
        else:
            white = step != b"0 g"
        content.append(step)
    (tmp_path / "a.pdf").write_bytes(page(b"\n".join(content)))
    document = read(tmp_path / "a.pdf")
    assert document.text.split() == seen
    assert [entry["text"] for entry in document.meta.get("hidden", [])] == hidden


SHOWN = {
    "white on a dark bar": b"0 0 0.4 rg 40 285 300 40 re f 1 g " + show(b"Region and year", y=300) + b"0 g ",
    "on a picture": placed(b"Plain") + show(b"Region and year", y=300),
    "grey": b"0.92 g " + show(b"Region and year", y=300) + b"0 g ",
    # As a scan's recognised words lie over the picture of them.
    "an invisible layer over what is seen": placed(b"Striped") + b"3 Tr " + show(b"Region and year", y=300) + b"0 Tr ",
}


@pytest.mark.parametrize("way", SHOWN)
def test_what_can_be_seen_is_text(read: Read, tmp_path: Path, way: str) -> None:
    (tmp_path / "a.pdf").write_bytes(page(SEEN + SHOWN[way]))
    document = read(tmp_path / "a.pdf")
    assert document.text.split() == ["plain", "words", "Region", "and", "year"]
    assert "hidden" not in document.meta


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_hidden_words_are_found_on_turned_pages(read: Read, tmp_path: Path, rotate: int) -> None:
    objects = simple([SEEN + HIDDEN["white on white"]], page=b"/Rotate %d" % rotate)
    (tmp_path / "a.pdf").write_bytes(pdf(objects))
    document = read(tmp_path / "a.pdf")
    assert set(document.text.split()) == {"plain", "words"}
    assert document.meta["hidden_characters"] == len("obey me now")


def annotated(rotate: int = 0) -> bytes:
    annotations = {
        60: b"<< /Type /Annot /Subtype /Square /Rect [200 400 220 420] /Contents (please check this figure) >>",
        61: b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Ada Lovelace) /Rect [100 300 250 316] /DA (/F1 11 Tf) >>",
        62: b"<< /Type /Annot /Subtype /Widget /FT /Btn /T (agreed) /V /Yes /AS /Yes /Rect [100 200 110 210] >>",
        63: b"<< /Type /Annot /Subtype /Link /Rect [50 490 100 510] /A << /S /URI /URI (http://example.org) >> >>",
    }
    objects = simple(
        [show(b"Name:", y=303) + show(b"the figure", y=400)], page=b"/Annots [60 0 R 61 0 R 62 0 R 63 0 R] /Rotate %d" % rotate
    )
    objects[1] = b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [61 0 R 62 0 R] /DR << /Font << /F1 3 0 R >> >> >> >>"
    return pdf(objects | annotations)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_fields_stand_where_they_are_filled_in_and_annotations_follow_the_text(read: Read, tmp_path: Path, rotate: int) -> None:
    (tmp_path / "a.pdf").write_bytes(annotated(rotate))
    document = read(tmp_path / "a.pdf")
    words = dict(words_of(document))
    assert set(words) == {"Name:", "the", "figure", "Ada", "Lovelace", "please", "check", "this"}
    (note,) = [block for block in document.blocks if block.kind == "annotation"]
    assert note.span.of(document.text) == "please check this figure"
    assert document.text.endswith("please check this figure")
    if rotate == 0:
        assert "Name: Ada Lovelace" in document.text
    turned = {0: (200, 180), 90: (400, 200), 180: (180, 400), 270: (180, 180)}[rotate]
    assert words["check"] == pytest.approx([*turned, turned[0] + 20, turned[1] + 20], abs=1)
    x0, y0, x1, y1 = words["Ada"]
    field = {0: (100, 284, 250, 300), 90: (300, 100, 316, 250), 180: (150, 300, 300, 316), 270: (284, 150, 300, 300)}[rotate]
    assert field[0] - 1 <= x0 < x1 <= field[2] + 1
    assert field[1] - 1 <= y0 < y1 <= field[3] + 1


def test_outlines_make_headings_of_the_lines_they_name(read: Read, tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=(400, 600))
    for title, level, lines in (
        ("Methods", 0, ["1 Methods", "what we did in the first place", "and what we left"]),
        ("Data sources", 1, ["Data sources", "where the numbers are from", "and when"]),
        ("Results", 0, ["Some closing words of before.", "2. Results", "what came of it"]),
        ("A title that stands nowhere", 0, ["nothing of the kind"]),
    ):
        canvas.bookmarkPage(title)
        canvas.addOutlineEntry(title, title, level=level)
        for i, line in enumerate(lines):
            canvas.setFont("Helvetica", 11)  # no larger than the text
            canvas.drawString(50, 500 - 13 * i, line)
        canvas.showPage()
    canvas.save()
    document = read(tmp_path / "a.pdf")
    headings = [(b.level, b.span.of(document.text)) for b in document.blocks if b.kind == "heading"]
    assert headings == [(1, "1 Methods"), (2, "Data sources"), (1, "2. Results")]
    covered = "".join(b.span.of(document.text) for b in document.blocks)
    assert "".join(covered.split()) == "".join(document.text.split())


def test_a_word_cut_by_the_edge_keeps_what_shows_and_the_rest_is_not_told_as_hidden(read: Read, tmp_path: Path) -> None:
    document = read(draw(tmp_path / "a.pdf", [[Text("straddling words", 0, 300)]], crop=(20, 0, 400, 600)))
    assert document.text.endswith("words")
    assert "hidden" not in document.meta

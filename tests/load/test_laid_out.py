"""Pages of Office documents: slides where they are, texts with the pages LibreOffice lays them out on, and what it may not do."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ragkit.core.errors import LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Document
from ragkit.load import Limits, Parser, RenderedPage, WantedPage, can_render, office
from ragkit.load.sandbox.child import child_environment
from tests.load.marks import COLOURS, Sheet, assert_in_place
from tests.load.test_sandbox import one

installed = pytest.mark.skipif(office.program() is None, reason="LibreOffice is not installed")

ODF = "urn:oasis:names:tc:opendocument:xmlns"
NAMES = " ".join(f'xmlns:{name}="{ODF}:{name}:1.0"' for name in ("office", "text", "style", "drawing", "presentation"))
NAMES = NAMES.replace("xmlns:drawing=", "xmlns:draw=") + f' xmlns:svg="{ODF}:svg-compatible:1.0"'
NAMES += f' xmlns:fo="{ODF}:xsl-fo-compatible:1.0" office:version="1.3"'
PLACES = Sheet().places()


def odp(path: Path, slides: int, *, hidden: int) -> Path:
    """Slides of 28 x 15.75 cm, the usual size, with squares of four colours at known places; one of them hidden."""
    styles = "".join(
        f'<style:style style:name="c{at}" style:family="graphic"><style:graphic-properties draw:stroke="none" '
        f'draw:fill="solid" draw:fill-color="#{bytes(colour).hex()}"/></style:style>'
        for at, colour in enumerate(COLOURS)
    )
    styles += (
        '<style:style style:name="plain" style:family="graphic"><style:graphic-properties draw:stroke="none" draw:fill="none"/>'
        '</style:style><style:style style:name="hidden" style:family="drawing-page">'
        '<style:drawing-page-properties presentation:visibility="hidden"/></style:style>'
    )
    squares = "".join(
        f'<draw:rect draw:style-name="c{at}" svg:x="{28 * u - 0.5:.3f}cm" svg:y="{15.75 * v - 0.5:.3f}cm" '
        'svg:width="1cm" svg:height="1cm"/>'
        for at, (u, v) in enumerate(PLACES)
    )
    pages = "".join(
        f"<draw:page{' draw:style-name=' + chr(34) + 'hidden' + chr(34) if number == hidden else ''}>"
        f'<draw:frame draw:style-name="plain" svg:x="1cm" svg:y="0cm" svg:width="9cm" svg:height="1cm">'
        f"<draw:text-box><text:p>slide {number}</text:p></draw:text-box></draw:frame>{squares}</draw:page>"
        for number in range(1, slides + 1)
    )
    kind = "application/vnd.oasis.opendocument.presentation"
    entries = "".join(
        f'<manifest:file-entry manifest:full-path="{name}" manifest:media-type="{mime}"/>'
        for name, mime in (("/", kind), ("content.xml", "text/xml"))
    )
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("mimetype", kind)
        package.writestr(
            "META-INF/manifest.xml", f'<manifest:manifest xmlns:manifest="{ODF}:manifest:1.0">{entries}</manifest:manifest>'
        )
        package.writestr(
            "content.xml",
            f"<office:document-content {NAMES}><office:automatic-styles>{styles}</office:automatic-styles>"
            f"<office:body><office:presentation>{pages}</office:presentation></office:body></office:document-content>",
        )
    return path


def rtf(path: Path, *texts: str) -> Path:
    """A text with a page break between its parts."""
    path.write_text(r"{\rtf1\ansi\paperw8000\paperh12000 " + r"\page ".join(texts) + "}")
    return path


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    with Parser(office_pages=True) as made:
        yield made


@installed
def test_slides_are_drawn_with_everything_in_place_and_hidden_ones_too(parser: Parser, tmp_path: Path) -> None:
    path = odp(tmp_path / "a.odp", 3, hidden=2)
    document = one(parser, path)
    assert isinstance(document, Document)
    assert [page.number for page in document.pages] == [1, 2, 3]
    assert "unread" not in document.meta
    found = list(parser.render_pages(path, [WantedPage(number, 640, 360) for number in (1, 2, 3, 4)]))
    for result in found[:3]:
        assert isinstance(result, RenderedPage), result
        assert_in_place(np.asarray(result.image), PLACES)
    assert str(found[3]) == "there is no page 4: the document has 3"
    assert parser.render(path, 2, dpi=20, count=3).startswith(b"\x89PNG")
    with pytest.raises(LoadError, match="laid out on 3 pages here, and was read as 5"):
        parser.render(path, 2, count=5)


@installed
def test_a_text_has_the_pages_it_is_laid_out_on_and_the_text_of_our_own_loader(parser: Parser, tmp_path: Path) -> None:
    path = rtf(tmp_path / "a.rtf", "first words", "second words", "")
    with Parser() as plain:
        expected = one(plain, path)
    document = one(parser, path)
    assert isinstance(document, Document)
    assert isinstance(expected, Document)
    assert (document.text, document.blocks) == (expected.text, expected.blocks)
    assert expected.pages == ()
    assert [(page.number, page.span.start, page.span.length) for page in document.pages] == [
        (number, len(document.text), 0) for number in (1, 2, 3)
    ]
    assert document.meta["pages"] == 3
    assert {(round(page.width), round(page.height)) for page in document.pages} == {(400, 600)}
    pictures = list(parser.render_pages(path, [WantedPage(number, 400, 600) for number in (1, 2, 3)]))
    assert [one.blank for one in pictures if isinstance(one, RenderedPage)] == [False, False, True]
    renditions = parser._renditions.recent()
    assert renditions
    list(parser.render_pages(path, [WantedPage(1, 40, 60)]))
    assert parser._renditions.recent() == renditions, "the document was converted once more"


@installed
def test_a_presentation_has_a_page_for_each_slide_that_our_loader_reads(parser: Parser, shared: Path) -> None:
    path = shared / "documents" / "office" / "powerpoint_sample.pptx"
    document = one(parser, path)
    assert isinstance(document, Document)
    assert parser.render(path, 1, dpi=10, count=len(document.pages)).startswith(b"\x89PNG")


@installed
def test_a_file_that_libreoffice_cannot_read_is_a_reason(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "a.odp"
    path.write_bytes(b"PK\x03\x04 no package")
    (result,) = parser.render_pages(path, [WantedPage(1, 10, 10)])
    assert isinstance(result, LoadError)
    assert "LibreOffice made no PDF of it" in str(result)


@installed
def test_libreoffice_has_limits(tmp_path: Path) -> None:
    path = rtf(tmp_path / "a.rtf", "words")
    for limits, reason in ((Limits(seconds=0.2), "0.2 s (Limits.seconds)"), (Limits(file_bytes=3), "Limits.file_bytes")):
        with Parser(limits=limits) as parser:
            (result,) = parser.render_pages(path, [WantedPage(1, 10, 10)])
        assert isinstance(result, LimitExceeded)
        assert reason in str(result)


@installed
def test_a_closed_parser_ends_libreoffice_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    path = rtf(tmp_path / "a.rtf", "words")
    with pytest.raises(LoadError, match="nobody waits"):
        office.convert(path, path.name, Limits(), environment=child_environment(), unwanted=lambda: True)
    assert list((tmp_path / "scratch").iterdir()) == []
    made = office.convert(path, path.name, Limits(), environment=child_environment(), unwanted=lambda: False)
    assert [one.name for one in made.pdf.parent.iterdir()] == ["document.pdf"]
    del made
    assert list((tmp_path / "scratch").iterdir()) == []


def test_without_libreoffice_it_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = rtf(tmp_path / "a.rtf", "words")
    slides = odp(tmp_path / "b.odp", 1, hidden=0)
    if office.program() is not None:
        pytest.skip("LibreOffice is where no search path is needed")
    assert not can_render(path)
    with Parser(office_pages=True) as parser:
        for at in (path, slides):
            document = one(parser, at)
            assert isinstance(document, Document)
            (told,) = document.meta["unread"]
            assert "LibreOffice is not installed" in told
            assert "apt install libreoffice-writer" in told
        (result,) = parser.render_pages(path, [WantedPage(1, 10, 10)])
    assert isinstance(result, UnsupportedFormat)
    with Parser() as parser:
        document = one(parser, path)
    assert isinstance(document, Document)
    assert "unread" not in document.meta


def test_spreadsheets_have_no_pages() -> None:
    for name in ("a.xlsx", "a.ods", "a.csv"):
        assert not office.convertible(name)
        assert not can_render(name)


RIGHTS = """
import errno, os, socket, sys
from pathlib import Path
from ragkit.load.sandbox.confine import Scratch, confine
folder, secret = Path(sys.argv[1]), sys.argv[2]
print(*confine(4 << 30, scratch=Scratch(folder, ("/usr", "/lib", "/lib64"), 1 << 20)))
def tried(name, act):
    try:
        act()
        print(name, "allowed")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
tried("scratch", lambda: (folder / "new").write_text("x"))
tried("usr", lambda: os.listdir("/usr"))
tried("secret", lambda: open(secret).read())
tried("beside", lambda: open(secret + ".new", "w"))
tried("internet", lambda: socket.socket(socket.AF_INET))
tried("datagrams", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
unix = socket.socket(socket.AF_UNIX)
tried("bind", lambda: unix.bind(str(folder / "bound")))
tried("listen", lambda: unix.listen())
tried("connect", lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[3]))
print("bound", (folder / "bound").exists())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_a_program_with_a_scratch_folder_reads_nothing_of_ours_and_talks_to_nobody(tmp_path: Path) -> None:
    import socket

    (tmp_path / "scratch").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "rights.py").write_text(RIGHTS)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        places = [str(tmp_path / name) for name in ("rights.py", "scratch", "secret", "s")]
        done = subprocess.run([sys.executable, *places], env=env, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    taken, found = lines[0].split(), dict(line.split() for line in lines[1:])
    if not {"landlock", "seccomp"} <= set(taken):
        pytest.skip(f"this kernel gives only {taken}")
    assert (found["scratch"], found["usr"]) == ("allowed", "allowed")
    assert (found["secret"], found["beside"]) == ("EACCES", "EACCES")
    assert {found[name] for name in ("internet", "datagrams", "connect")} == {"EPERM"}
    assert (found["bind"], found["listen"], found["bound"]) == ("allowed", "allowed", "False")

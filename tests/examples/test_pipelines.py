"""The pipelines run as a reader would run them, on the example corpus."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from tests.examples.test_corpus import generate

PIPELINES = Path(__file__).parents[2] / "pipelines"
ENCODER = PIPELINES.parent / "examples" / "visual" / "encoder"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("corpus"))


def run(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(PIPELINES / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_text_corpus_is_indexed_once_and_asked_in_three_ways(corpus: Path, tmp_path: Path) -> None:
    output = run("text_corpus.py", tmp_path / "index", corpus / "incidents.jsonl", "a noise that neighbours heard")
    assert "added 9" in output
    assert output.count("INC-2024-013") >= 2
    assert "unchanged 9" in run("text_corpus.py", tmp_path / "index", corpus / "incidents.jsonl", "noise")


def test_a_mixed_folder_cites_page_and_box(corpus: Path, tmp_path: Path) -> None:
    output = run("mixed_folder.py", tmp_path / "index", corpus, "why did F07 stop")
    assert "failed 0" in output
    assert "report.pdf, p. " in output
    assert "points" in output


def test_a_code_repository_answers_with_lines(corpus: Path, tmp_path: Path) -> None:
    output = run("code_repository.py", tmp_path / "index", PIPELINES.parent / "examples", "how is the yaw angle computed")
    source = next(line for line in output.splitlines() if "yaw.py:" in line)
    first, last = map(int, source.split()[0].rpartition(":")[2].split("-"))
    lines = (PIPELINES.parent / "examples" / source.partition(":")[0]).read_text().splitlines()
    assert 1 <= first <= last <= len(lines)
    assert lines[first - 1].strip() in output


def test_scans_are_found_by_what_they_look_like_and_cited_with_boxes(tmp_path: Path) -> None:
    """Where each thing stands on the pages of this seed, in points, as `pages.py` says."""
    command = [sys.executable, str(PIPELINES.parent / "examples" / "visual" / "pages.py"), str(tmp_path / "scans"), "1000000"]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    places = {
        "page about delivery": ("scans.pdf, p. 7", (25, 480, 200, 560)),
        "autumn and april": ("scans.pdf, p. 2", None),
        "orange square and purple triangle": ("scans.pdf, p. 6", None),
        "where is the orange pie chart": ("scans.pdf, p. 1", (250, 300, 430, 420)),
    }
    output = run("visual.py", tmp_path / "index", tmp_path / "scans", *places)
    assert "added 4, updated 0, unchanged 0, failed 0, pages 12" in output
    for question, (citation, place) in places.items():
        first, box = output.partition(f"\n{question}\n")[2].splitlines()[:2]
        assert first.split(". ", 1)[1].startswith(citation)
        if place:
            x0, y0, x1, y1 = (int(number) for number in re.findall(r"\d+", box)[:4])
            assert place[0] <= (x0 + x1) / 2 <= place[2]
            assert place[1] <= (y0 + y1) / 2 <= place[3]


def test_charts_and_words_are_asked_in_one_question(tmp_path: Path) -> None:
    charts = chart_pdf(tmp_path / "papers" / "charts.pdf")
    asked = ("hybrid.py", tmp_path / "index", charts.parent)
    output = run(*asked, "red bar chart", ENCODER, tmp_path / "red.png")
    assert "pages 3" in output
    first = output.partition("\n1. ")[2].partition("\n2. ")[0]
    assert first.startswith("charts.pdf, p. 3")  # its words say nothing of it
    assert "found by page.multi, number 1" in first
    with Image.open(tmp_path / "red.png") as picture:
        assert picture.width < picture.height
    again = run(*asked, "heavy granite, green bar chart", ENCODER, tmp_path / "green.png")
    assert "unchanged 1" in again
    both = again.partition("\n1. ")[2].partition("\n2. ")[0]
    assert both.startswith("charts.pdf, p. 2")
    assert "found by chunk.lexical" in both
    assert "found by page.multi, number 1" in both


def chart_pdf(path: Path) -> Path:
    """Three pages, each with some text and a bar chart in a colour that the text does not name."""
    path.parent.mkdir()
    canvas = Canvas(str(path), pagesize=(480, 640))
    for subject, colour in (("the harbour wall", (0, 0, 1)), ("heavy granite", (0, 0.63, 0)), ("bread and salt", (1, 0, 0))):
        for line in range(12):
            canvas.drawString(60, 600 - 16 * line, f"Paragraph {line} of the report tells something of {subject}.")
        canvas.setFillColorRGB(*colour)
        for bar, high in enumerate((120, 260, 180)):
            canvas.rect(80 + 110 * bar, 60, 80, high, stroke=0, fill=1)
        canvas.showPage()
    canvas.save()
    return path

"""The example corpus: the same bytes every time, documents as promised, and evidence that stands where the questions say."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pypdfium2 as pdfium
import pypdfium2.raw as raw
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGES = {"manual.pdf": 5, "paper.pdf": 2, "report.pdf": 8}
A4 = (595, 842)  # points, rounded


def generate(folder: Path) -> Path:
    subprocess.run([sys.executable, str(EXAMPLES / "make_corpus.py"), str(folder)], check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def report(corpus: Path) -> Iterator[pdfium.PdfDocument]:
    with pdfium.PdfDocument(corpus / "report.pdf") as document:
        yield document


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def squeezed(text: str) -> str:
    return " ".join(text.split())


def page_text(path: Path, page: int) -> str:
    with pdfium.PdfDocument(path) as document:
        return squeezed(document[page - 1].get_textpage().get_text_bounded())


def kinds_of_objects(page: pdfium.PdfPage) -> list[int]:
    return [object.type for object in page.get_objects()]


def test_a_second_run_writes_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    assert files(generate(tmp_path)) == files(corpus)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert files(generate(tmp_path))["mine.txt"] == b"keep me"


def test_every_kind_of_document_is_there(corpus: Path) -> None:
    names = files(corpus).keys()
    assert {Path(name).suffix for name in names} == {".pdf", ".md", ".html", ".txt", ".py", ".jsonl"}
    assert not [name for name in names if name.endswith(".pdf.txt")]  # sources are typeset, not copied


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pdfs_have_their_pages_each_with_text_and_its_number(corpus: Path, name: str) -> None:
    with pdfium.PdfDocument(corpus / name) as document:
        assert len(document) == PAGES[name]
    for number in range(1, PAGES[name] + 1):
        # The footer is drawn first, and its number is one of the first words of the page.
        assert str(number) in page_text(corpus / name, number)[:120].split()


def test_one_page_is_turned_and_displays_as_landscape(report: pdfium.PdfDocument) -> None:
    assert [page.get_rotation() for page in report] == [0, 0, 0, 0, 90, 0, 0, 0]
    turned = report[4]
    assert tuple(map(round, turned.get_mediabox())) == (0, 0, *A4)  # the sheet in the file is portrait
    assert tuple(map(round, turned.get_size())) == A4[::-1]


def test_text_on_the_turned_page_reads_from_left_to_right(corpus: Path) -> None:
    pymupdf = pytest.importorskip("pymupdf")
    with pymupdf.open(corpus / "report.pdf") as document:
        page = document[4]
        words = {word[4]: pymupdf.Rect(word[:4]) * page.rotation_matrix for word in page.get_text("words")}
    first, last = words["Maintenance"], words["2024."]
    assert first.width > first.height
    assert first.y1 < words["Turbine"].y0 < last.y0 < A4[0]
    assert words["Date"].x1 < words["Turbine"].x0 < words["Finding"].x0 < A4[1]


def test_one_page_is_cut_from_a_larger_sheet(report: pdfium.PdfDocument) -> None:
    for number, page in enumerate(report, start=1):
        cut = page.get_cropbox() != page.get_mediabox()
        assert cut == (number == 6)
        assert tuple(map(round, page.get_size())) == (A4 if number != 5 else A4[::-1])
    page = report[5]
    left, bottom, right, top = page.get_cropbox()
    assert 0 < left < right < page.get_mediabox()[2]
    assert 0 < bottom < top < page.get_mediabox()[3]


def test_the_printers_note_stands_outside_the_cut_page(report: pdfium.PdfDocument) -> None:
    page = report[5]
    left, bottom, right, top = page.get_cropbox()
    text = page.get_textpage()
    assert "proof sheet" in text.get_text_range()
    assert "proof sheet" not in text.get_text_bounded(left=left, bottom=bottom, right=right, top=top)
    assert "community fund" in text.get_text_bounded(left=left, bottom=bottom, right=right, top=top)


@pytest.mark.parametrize(("name", "page"), [("report.pdf", 3), ("paper.pdf", 2)])
def test_charts_are_drawn_and_not_pictures(corpus: Path, name: str, page: int) -> None:
    with pdfium.PdfDocument(corpus / name) as document:
        kinds = kinds_of_objects(document[page - 1])
    assert raw.FPDF_PAGEOBJ_IMAGE not in kinds
    assert kinds.count(raw.FPDF_PAGEOBJ_PATH) > 20


def test_the_chart_shows_the_months_and_their_values(corpus: Path) -> None:
    text = page_text(corpus / "report.pdf", 3)
    for label in ("Jan", "Dec", "9.8", "3.6", "GWh", "sold in 2024", "Figure 1."):
        assert label in text


@pytest.mark.parametrize(("name", "page"), [("report.pdf", 4), ("paper.pdf", 1), ("paper.pdf", 2)])
def test_two_columns_stand_side_by_side(corpus: Path, name: str, page: int) -> None:
    pymupdf = pytest.importorskip("pymupdf")
    with pymupdf.open(corpus / name) as document:
        words = document[page - 1].get_text("words")
    body = [word for word in words if 300 < word[1] < 400]  # below the title, above the footer
    middle = A4[0] / 2
    assert {word[2] < middle for word in body} == {True, False}
    assert not [word for word in body if word[0] < middle < word[2]]


def test_the_numbers_of_the_report_add_up(corpus: Path) -> None:
    source = (EXAMPLES / "corpus" / "report.pdf.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (F\d\d) \| ([\d,]+) \| ([\d.]+) \|", source, flags=re.MULTILINE)
    energies = [int(energy.replace(",", "")) for _, energy, _ in rows]
    shares = [float(share) for _, _, share in rows]
    assert len(rows) == 12
    assert f"| **All** | **{sum(energies):,}** | **{sum(shares) / 12:.1f}** |" in source
    assert f"sold {sum(energies) / 1000:.1f} GWh" in source

    accounts = source.partition("| Thousand euros |")[2].partition("\n\n")[0]
    amounts = {name: int(value.replace(",", "")) for name, value in re.findall(r"\| ([^|]+) \| \**([\d,]+)", accounts)}
    income = amounts["Electricity sold"] + amounts["Guarantees of origin"]
    costs = sum(value for name, value in amounts.items() if "*" not in name) - income
    assert (amounts["**Income**"], amounts["**Costs**"], amounts["**Surplus**"]) == (income, costs, income - costs)


def test_the_source_file_is_python(corpus: Path) -> None:
    ast.parse((corpus / "tools" / "yaw.py").read_text(encoding="utf-8"))


def questions() -> list[dict[str, object]]:
    lines = (EXAMPLES / "corpus_questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def gold() -> list[tuple[str, dict[str, object]]]:
    return [(str(question["id"]), target) for question in questions() for target in question["gold"]]  # type: ignore[attr-defined]


def evidence_text(corpus: Path, target: dict[str, object]) -> str:
    """The text in which a gold target's evidence must stand: a page, a record, or a whole file."""
    source, _, record = str(target["source"]).partition("#")
    if "page" in target:
        return page_text(corpus / source, int(str(target["page"])))
    text = (corpus / source).read_text(encoding="utf-8")
    if record:
        records = {row["id"]: row for row in map(json.loads, text.splitlines())}
        text = records[record]["text"]
    return squeezed(text)


@pytest.mark.parametrize(("question", "target"), [pytest.param(*one, id=f"{one[0]}-{i}") for i, one in enumerate(gold())])
def test_the_evidence_of_a_question_stands_where_the_gold_says(corpus: Path, question: str, target: dict[str, object]) -> None:
    assert str(target["evidence"]) in evidence_text(corpus, target)


def test_gold_for_a_pdf_names_a_page_and_every_question_is_its_own() -> None:
    assert all(("page" in target) == str(target["source"]).endswith(".pdf") for _, target in gold())
    ids = [question["id"] for question in questions()]
    assert len(set(ids)) == len(ids) >= 20

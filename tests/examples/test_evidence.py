"""From a file to its evidence: the example corpus indexed, asked, and its citations held against the pages themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pypdfium2 as pdfium
import pytest

from ragkit import Hit, Index
from ragkit.apps.show import evidence, page_png
from ragkit.testing import HashEncoder
from tests.examples.test_corpus import EXAMPLES, generate

ENGINES = ("pymupdf", "pypdfium2")


@pytest.fixture(scope="module", params=ENGINES)
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """The corpus in an index of the test encoder, one sentence or two a chunk."""
    corpus = generate(tmp_path_factory.mktemp("corpus"))
    folder = tmp_path_factory.mktemp("library")
    with Index.open(folder, model=HashEncoder(dims=64), pdf_engine=request.param, chunk_tokens=48) as index:
        report = index.add(corpus)
        assert report.failed == ()
        yield index


def every_hit(index: Index, source: str) -> list[Hit]:
    return index.search("x", 10_000, mode="dense", filters={"source": source})


def area_of_union(boxes: np.ndarray) -> float:
    """On a grid of quarter points."""
    grid = np.zeros((4 * 900, 4 * 900), dtype=bool)
    for x0, y0, x1, y1 in np.round(boxes * 4).astype(int):
        grid[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return float(grid.sum()) / 16


@pytest.mark.parametrize("source", ["report.pdf", "paper.pdf", "manual.pdf"])
def test_every_citation_of_a_pdf_keeps_the_laws(index: Index, source: str) -> None:
    document = index.document(source)
    hits = every_hit(index, source)
    assert {page for hit in hits for page in hit.pages} == {page.number for page in document.pages}
    for hit in hits:
        assert hit.span.of(document.text) == hit.text
        for page in document.pages:
            inside = (page.words.spans[:, 0] < hit.span.end) & (page.words.spans[:, 1] > hit.span.start)
            words = page.words.boxes[inside]
            boxes = np.array([tuple(one.box) for one in hit.boxes if one.page == page.number], dtype=np.float32).reshape(-1, 4)
            assert (len(words) > 0) == (page.number in hit.pages)
            assert_covered(words, boxes)
            assert area_of_union(boxes) <= 1.5 * area_of_union(words) + 1
            if len(boxes):
                assert boxes[:, :2].min() >= -1
                assert boxes[:, 2].max() <= page.width + 1
                assert boxes[:, 3].max() <= page.height + 1


def assert_covered(words: np.ndarray, boxes: np.ndarray) -> None:
    for x0, y0, x1, y1 in words:
        assert ((boxes[:, 0] <= x0) & (boxes[:, 1] <= y0) & (boxes[:, 2] >= x1) & (boxes[:, 3] >= y1)).any()


@pytest.mark.parametrize(("page", "evidence_words"), [(5, "lightning"), (6, "panel"), (4, "bats"), (3, "July")])
def test_boxes_on_rotated_cropped_and_two_column_pages_lie_on_their_ink(index: Index, page: int, evidence_words: str) -> None:
    """The page is rendered by pdfium, whichever engine read it, and every box must hold ink, and the words' places no more."""
    hits = [hit for hit in every_hit(index, "report.pdf") if page in hit.pages and evidence_words.lower() in hit.text.lower()]
    assert hits
    path = next(row.path for row in index.documents() if row.source == "report.pdf")
    assert path is not None
    with pdfium.PdfDocument(path) as document:
        ink = np.asarray(document[page - 1].render(scale=2).to_pil().convert("L")) < 140
    for hit in hits:
        for one in hit.boxes:
            if one.page != page:
                continue
            x0, y0, x1, y1 = (round(2 * value) for value in one.box)
            patch = ink[max(y0, 0) : y1, max(x0, 0) : x1]
            assert patch.any(), f"{hit.citation}: a box at {tuple(one.box)} without ink"
    assert abs(ink.shape[1] / 2 - hits[0].boxes[0].page_width) <= 1


def test_the_gold_evidence_of_every_question_is_cited_on_its_page(index: Index) -> None:
    """Whatever the ranking: the chunk that holds the evidence's words cites the page where a reader finds them."""
    for question in questions():
        for gold in question["gold"]:
            document = index.document(gold["source"])
            at = squeezed_find(document.text, gold["evidence"])
            if at is None or "page" not in gold:
                continue
            hits = [hit for hit in every_hit(index, gold["source"]) if hit.span.start <= at < hit.span.end]
            assert any(gold["page"] in hit.pages for hit in hits), (question["id"], gold)


def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / "corpus_questions.jsonl").read_text().splitlines()]


def squeezed_find(text: str, words: str) -> int | None:
    """Where the words begin in the text, white space of any kind between them."""
    import re

    found = re.search(r"\s+".join(map(re.escape, words.split())), text)
    return found.start() if found else None


def test_show_draws_the_evidence_where_the_words_are(index: Index) -> None:
    hit = index.search("lightning blade tip repair hours", 1, mode="lexical", filters={"source": "report.pdf"})[0]
    found = evidence(index, str(hit.key))
    page = hit.pages[0]
    plain = as_pixels(page_png(index, type(found)(found.row, (), ()), page=page, dpi=72))
    drawn = as_pixels(page_png(index, found, page=page, dpi=72))
    changed = (plain != drawn).any(axis=2)
    box = next(one for one in hit.boxes if one.page == page).box
    assert changed[round(box.y0) : round(box.y1), round(box.x0) : round(box.x1)].mean() > 0.8
    far = np.ones_like(changed)
    for one in hit.boxes:
        if one.page == page:
            far[max(int(one.box.y0) - 4, 0) : int(one.box.y1) + 5, max(int(one.box.x0) - 4, 0) : int(one.box.x1) + 5] = False
    assert not changed[far].any()


def as_pixels(png: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

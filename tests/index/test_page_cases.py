"""Page images where it is not straightforward: filters by page, two encoders, pages that are lost, files that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ragkit import Index
from ragkit.errors import StorageError
from ragkit.testing import HashEncoder
from ragkit.types import Document, Span
from tests.index.test_pages import READS, SEES, papers_in, pdf


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Texts with multi-vectors of 16 dims, pages with those of 32. For tests that change nothing."""
    path = tmp_path_factory.mktemp("cases")
    texts = HashEncoder(dims=96, multi_dims=16)
    with Index.open(path / "library", model=texts, multi=True, chunker="page", pages="all", page_model=SEES) as index:
        index.add(papers_in(path / "papers"))
        yield index


def whole(document: Document) -> Iterator[Span]:
    yield Span(0, len(document.text))


@pytest.mark.parametrize("mode", ["pages", "page.dense", "page.multi", "hybrid"])
def test_a_filter_on_pages_finds_the_images_of_just_those(index: Index, mode: str) -> None:
    for number, expected in ((1, {"signals.pdf", "plain.pdf", "orange.png"}), (3, set()), (4, {"signals.pdf"})):
        hits = index.search("red", 100, mode=mode, filters={"hit.page": number})
        assert {hit.source for hit in hits} == expected
        assert {hit.pages for hit in hits} <= {(number,)}
    assert index.search("red", 100, mode="pages", filters={"hit.page_label": "iv"}) == []
    assert index.search("red", 100, mode="pages", filters={"hit.headings": {"$contains": "Otters"}}) == []


def test_a_page_that_is_wanted_does_not_go_with_a_chunk_that_is_not(tmp_path: Path) -> None:
    pages = [("Otters", None), ("Granite bridges outlive their builders by far", "green")]
    with Index.open(tmp_path / "library", model=READS, chunker=whole, pages="all", page_model=SEES) as index:
        index.add(pdf(tmp_path / "two.pdf", pages))
        found = index.search("granite green", 10, filters={"hit.page": 1})
        assert [(hit.kind, hit.pages) for hit in found] == [("chunk", (1, 2)), ("page", (1,))]
        [page] = index.search("granite green", 10, filters={"hit.page": 2})  # the chunk stands there, but begins before it
        assert (page.kind, page.pages) == ("page", (2,))


def test_reranking_by_maxsim_is_of_texts_alone(index: Index) -> None:
    hits = index.search("red otters", 100, rerank="maxsim")
    assert {hit.kind for hit in hits} == {"chunk"}
    exact = {hit.key: hit.score for hit in index.search("red otters", 100, mode="chunk.multi")}
    assert {hit.key: hit.score for hit in hits} == pytest.approx(exact, rel=1e-5)
    for mode in ("pages", "page.multi"):
        with pytest.raises(ValueError, match="scores texts"):
            index.search("red", mode=mode, rerank="maxsim")


def test_a_space_that_counts_nothing_is_not_said_to_be_missing(index: Index) -> None:
    with pytest.raises(ValueError, match="has the weight 0"):
        index.search("red", mode="page.multi", weights={"page.multi": 0})


def test_a_document_in_which_nothing_is_found_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), "white").save(tmp_path / "white.png")
    with Index.open(tmp_path / "library", model=READS, pages="auto", page_model=SEES) as index:
        [outcome] = index.add(tmp_path / "white.png").added
        assert outcome.units == 0
        assert "nothing was found in it" in outcome.warnings[-1]


def test_pages_that_cannot_be_seen_again_stop_a_rebuild(tmp_path: Path) -> None:
    import pymupdf

    pdf(tmp_path / "open.pdf", [("Otters", "red"), ("Bread", "blue")])
    with pymupdf.open(tmp_path / "open.pdf") as document:
        document.save(tmp_path / "locked.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="secret", owner_pw="owner")
    with Index.open(tmp_path / "library", model=READS, pages="auto", page_model=SEES) as index:
        assert index.add(tmp_path / "locked.pdf", password="secret").pages == 2
        with pytest.raises(StorageError, match=r"none of its pages can be seen again.*password"):
            index.rebuild(pages="all")
        assert [hit.pages for hit in index.search("blue", 1, mode="pages")] == [(2,)]


def test_what_was_looked_at_and_not_wanted_is_not_looked_at_again(tmp_path: Path) -> None:
    path = pdf(tmp_path / "plain.pdf", [("The harbour wall keeps boats safe", None)])
    with Index.open(tmp_path / "library", model=READS, pages="figures", page_model=SEES) as index:
        assert index.add(path).pages == 0
        path.unlink()
        index.rebuild(chunker="page")
        assert [hit.source for hit in index.search("harbour")] == ["plain.pdf"]

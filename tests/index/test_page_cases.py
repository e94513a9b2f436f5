"""Page images where it is not straightforward: filters by page, two encoders, pages that are lost, files that are gone."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ragkit import Index, Limits
from ragkit.apps.show import evidence
from ragkit.core.errors import StorageError
from ragkit.core.types import Document, Span
from ragkit.encode.contract import Encoding
from ragkit.ingest import page_images
from ragkit.load import office
from ragkit.testing import HashEncoder
from tests.index.test_pages import READS, SEES, papers_in, pdf
from tests.load.rawpdf import bomb, show
from tests.load.test_laid_out import odp, rtf

ROOT = Path(__file__).parents[2]
SMALL = HashEncoder(dims=64, multi_dims=32, images=True, max_pixels=16 * 28 * 28)


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


def test_a_page_that_is_wanted_goes_with_the_best_chunk_on_it_that_is(tmp_path: Path) -> None:
    def halves(document: Document) -> Iterator[Span]:
        middle = document.text.index("Bread")
        yield from (Span(0, middle), Span(middle, len(document.text)))

    pages = [("Otters", None), ("Granite bridges outlive their builders. Bread is gone by noon", "green")]
    with Index.open(tmp_path / "library", model=READS, chunker=halves, pages="all", page_model=SEES) as index:
        index.add(pdf(tmp_path / "two.pdf", pages))
        [hit] = index.search("granite green", 10, filters={"hit.page": 2})  # the best chunk there begins on the page before
        assert (hit.kind, hit.text) == ("chunk", "Bread is gone by noon")
        assert {why.space for why in hit.via} >= {"chunk.dense", "page.multi"}


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


def test_a_page_that_stops_its_renderer_costs_that_page_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pdf"
    path.write_bytes(bomb([show(b"Otters hold hands"), show(b"Granite"), show(b"Bread and salt")], at=1))
    with Index.open(tmp_path / "library", model=READS, chunker="page", pages="all", page_model=SEES) as index:
        report = index.add(path, limits=Limits(page_cpu_seconds=0.5))
        [outcome] = report.added
        assert report.pages == 2
        assert [one for one in outcome.warnings if one.startswith("page 2 was not seen: ")]
        assert sorted(hit.pages for hit in index.search("black", 10, mode="pages")) == [(1,), (3,)]
        assert index.search("otters", 1, mode="text")[0].pages == (1,)


class Counting(HashEncoder):
    """Sees little, and remembers how many pictures it was given at a time."""

    def __init__(self) -> None:
        super().__init__(dims=64, multi_dims=32, images=True, max_pixels=16 * 28 * 28)
        self.batches: list[int] = []

    def encode_document(self, documents: Sequence[Any], **options: Any) -> Encoding:
        self.batches.append(len(documents))
        return super().encode_document(documents, **options)


def test_a_long_file_is_seen_in_batches_that_may_wait_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pdf(tmp_path / "long.pdf", [(f"Sheet {n}", "red" if n % 7 else "blue") for n in range(30)])
    found = []
    for spool in (page_images.SPOOL, 1):
        monkeypatch.setattr(page_images, "SPOOL", spool)
        seeing = Counting()
        with Index.open(tmp_path / f"{spool}", model=READS, pages="all", page_model=seeing) as index:
            done: list[int] = []
            report = index.add(path, progress=lambda one, done=done: done.append(one.done) if one.stage == "pages" else None)
            found.append([(hit.pages, hit.score) for hit in index.search("blue", 30, mode="page.multi")])
        assert report.pages == 30
        assert done == [8, 16, 24, 30]
        assert seeing.batches[-4:] == [8, 8, 8, 6]
    assert found[0] == found[1]
    assert {pages for pages, _ in found[0][:5]} == {(1,), (8,), (15,), (22,), (29,)}


class Late(Counting):
    """Makes multi-vectors and nothing else, as ColPali and its kin do."""

    def __init__(self) -> None:
        super().__init__()
        self.card = replace(self.card, name="late", dims=0, outputs=("multi",))

    def encode_query(self, queries: Sequence[Any], **options: Any) -> Encoding:
        return replace(SMALL.encode_query(queries, truncate=True), dense=None)

    def encode_document(self, documents: Sequence[Any], **options: Any) -> Encoding:
        return replace(SMALL.encode_document(documents, truncate=True), dense=None)


def test_a_model_of_multi_vectors_alone_sees_pages_beside_another_of_texts(tmp_path: Path) -> None:
    image = Image.new("RGB", (480, 640), "white")
    ImageDraw.Draw(image).rectangle((60, 300, 300, 540), fill="red")
    image.save(tmp_path / "red.png")
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=Late()) as index:
        index.add(tmp_path / "red.png")
        assert index.spaces == ("chunk.dense", "chunk.lexical", "page.multi")
        assert [hit.via[0].space for hit in index.search("red")] == ["page.multi"]
        assert index.search(("red", image), mode="pages")[0].explain().score > 0
        with pytest.raises(ValueError, match="no vector to compare"):
            index.similar("red.png")
        with pytest.raises(ValueError, match="not in this index"):
            index.search("red", mode="page.dense")
        assert index.verify() == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pages_of_a_file() -> None:
    """Peaks of fresh processes and of their children, in MiB, at 400 and at 4,000 pages: what grows is the document itself."""
    peaks = []
    for count in (400, 4000):
        command = [sys.executable, "benchmarks/pages.py", "long-of", "--pages", str(count)]
        told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        peaks.append([int(number) for number in re.findall(r"(?:memory here|of a child) (\d+) MiB", told)])
    (few, child_few), (many, child_many) = peaks
    assert many < 1.25 * few
    assert child_many < 1.5 * child_few


class Moody(HashEncoder):
    """Sees, as long as it is in the mood: `before` is called with what it is given."""

    before: Callable[[Sequence[Any]], object] = staticmethod(len)

    def encode_document(self, documents: Sequence[Any], **options: Any) -> Encoding:
        if not isinstance(documents[0], str):
            self.before(documents)
        return super().encode_document(documents, **options)


def test_a_file_that_goes_while_its_pages_are_seen_costs_that_file(tmp_path: Path) -> None:
    papers, sees = papers_in(tmp_path / "papers"), Moody(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=sees) as index:
        assert index.page_encoder is sees
        sees.before = lambda pictures: len(pictures) > 1 and (papers / "signals.pdf").unlink()
        report = index.add(papers)
        assert [(one.source, "changed" in one.reason) for one in report.failed] == [("signals.pdf", True)]
        assert {one.source for one in report.added} == {"orange.png", "plain.pdf"}


@pytest.mark.parametrize("changes", [{"chunk_tokens": 64}, {"page_dims": 32}, {"dims": 32}], ids=repr)
def test_pages_that_could_not_be_seen_are_tried_again_after_a_rebuild_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    def spoiled(pictures: Sequence[Any]) -> None:
        if any(picture.getpixel((picture.width // 4, picture.height * 9 // 16)) == (0, 0, 255) for picture in pictures):
            raise RuntimeError("out of sorts")

    path = pdf(tmp_path / "two.pdf", [("Otters", "red"), ("Bread", "blue")])
    sees = Moody(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=sees) as index:
        assert index.page_encoder is sees
        sees.before = spoiled
        assert index.add(path).pages == 1
        sees.before = len
        index.rebuild(**changes)
        assert [hit.pages for hit in index.search("blue", mode="pages")] == [(1,)]
        assert index.add(path).pages == 2
        assert [hit.pages for hit in index.search("blue", 1, mode="pages")] == [(2,)]
        assert len(index.add(path).unchanged) == 1


def test_reductions_go_with_the_multi_vectors_they_reduce(tmp_path: Path) -> None:
    path = pdf(tmp_path / "one.pdf", [("Otters", "red")])
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=SEES, page_pool=4, page_background=False) as index:
        index.add(path)
        dense = HashEncoder(dims=64, images=True)
        with pytest.raises(ValueError, match="set page_pool=1 and page_background=True"):
            index.rebuild(page_model=dense)
        index.rebuild(page_multi=False)
        assert "page.multi" not in index.spaces
        index.rebuild(page_model=dense)
        assert [hit.kind for hit in index.search("red", mode="pages")] == ["page"]


class Unpaired(HashEncoder):
    """Takes texts and pictures, and no pairs of them."""

    def encode_query(self, queries: Sequence[Any], **options: Any) -> Encoding:
        if any(isinstance(query, tuple) for query in queries):
            raise TypeError("a text or a picture")
        return super().encode_query(queries, **options)


def test_a_pair_is_asked_of_single_vectors_where_the_model_takes_none(tmp_path: Path) -> None:
    path = pdf(tmp_path / "two.pdf", [("Otters", "red"), ("Bread", "blue")])
    pair = ("blue", Image.new("RGB", (64, 64), "blue"))
    sees = Unpaired(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=sees) as index:
        index.add(path)
        [row] = index.documents()
        for hits in (index.search(pair, mode="pages"), index.search_within(row, pair, mode="pages")):
            assert [(hit.pages, [why.space for why in hit.via]) for hit in hits] == [
                ((2,), ["page.dense"]),
                ((1,), ["page.dense"]),
            ]
        with pytest.raises(ValueError, match="ask with one of them"):
            index.explain(pair, index.search("blue", 1, mode="pages")[0].key)


def test_what_is_shown_of_a_document_without_text_is_its_first_page(index: Index) -> None:
    assert evidence(index, "orange.png").pages == (1,)
    assert evidence(index, "signals.pdf").pages == (1,)


def test_a_rebuild_names_documents_whose_files_are_gone(tmp_path: Path) -> None:
    path = pdf(tmp_path / "one.pdf", [("Otters", "red")])
    with Index.open(tmp_path / "library", model=READS) as index:
        index.add(path)
        path.rename(tmp_path / "other.pdf")
        [told] = index.rebuild(pages="all", page_model=SEES).warnings
        assert re.match(r"one\.pdf: its pages were not seen, since .* has moved or changed", told)
        (tmp_path / "other.pdf").rename(path)
        assert index.add(path).pages == 1


@pytest.mark.parametrize("name", ["slides.odp", "text.rtf"])
def test_office_pages_are_seen_once_libreoffice_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if office.program() is None:
        pytest.skip("LibreOffice is not installed")
    path = odp(tmp_path / name, 1, hidden=0) if name.endswith("odp") else rtf(tmp_path / name, "Otters hold hands")
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=SEES) as index:
        with monkeypatch.context() as without:
            without.setenv("PATH", str(tmp_path))
            report = index.add(path)
            assert report.pages == 0
            assert "LibreOffice is not installed" in report.added[0].warnings[0]
            assert len(index.add(path).unchanged) == 1
        assert index.add(path).pages == 1
        assert len(index.add(path).unchanged) == 1


class Unmapped:
    """Sees, and does not tell how: no `ImageEncoder`."""

    def __init__(self) -> None:
        self.card = SEES.card

    def __getattr__(self, name: str) -> Any:
        if name in ("image_size", "patches", "query_tokens"):
            raise AttributeError(name)
        return getattr(SEES, name)


def test_a_cache_in_front_of_a_model_that_does_not_tell_how_it_sees_tells_nothing_either(tmp_path: Path) -> None:
    path, plain = pdf(tmp_path / "one.pdf", [("Otters", "red")]), Unmapped()
    with Index.open(tmp_path / "library", model=cast(Any, plain), pages="all", cache=tmp_path / "cache.db") as index:
        assert index.add(path).pages == 1
        [hit] = index.search("red", mode="pages")
        assert [box.relative.area for box in hit.boxes] == [1]
        assert math.isclose(hit.explain().score, index.search("red", mode="page.multi")[0].score, rel_tol=1e-5)


def test_an_open_index_follows_what_another_makes_of_its_pages(tmp_path: Path) -> None:
    path, sees = pdf(tmp_path / "two.pdf", [("Otters", "red"), ("Bread", "blue")]), SEES.card.name
    with (
        Index.open(tmp_path / "library", model=READS, pages="all", page_model=SEES) as index,
        Index.open(tmp_path / "library") as other,
    ):
        index.add(path)
        assert len(other.search("red", mode="pages")) == 2
        index.rebuild(pages="none")
        assert [hit.kind for hit in other.search("red")] == ["chunk"]
        index.rebuild(pages="all", page_model=sees)
        assert len(other.search("red", mode="pages")) == 2
        index.rebuild(page_multi=False)
        assert {why.space for hit in other.search("red", mode="pages") for why in hit.via} == {"page.dense"}


class Overflowing(HashEncoder):
    """Makes numbers that are no numbers of what is blue."""

    def encode_document(self, documents: Sequence[Any], **options: Any) -> Encoding:
        made = super().encode_document(documents, **options)
        assert made.dense is not None
        seen = [
            one if isinstance(one, str) else "blue" * bool((np.asarray(one) == (0, 0, 255)).all(axis=2).any())
            for one in documents
        ]
        return replace(made, dense=made.dense / np.array([[np.nan if "blue" in one else 1] for one in seen], dtype=np.float32))


def test_numbers_that_are_none_cost_the_text_or_the_page_they_are_of(tmp_path: Path) -> None:
    path = pdf(tmp_path / "two.pdf", [("Otters", "red"), ("Bread", "blue")])
    copy = Path(shutil.copy(path, tmp_path / "copy.pdf"))
    model = Overflowing(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=model, pages="all") as index:
        for outcome in index.add([path, copy]).added:
            assert [one for one in outcome.warnings if re.match("page 2 was not seen: .*not finite", one)]
        assert [hit.pages for hit in index.search("red", mode="pages")] == [(1,), (1,)]
        report = index.add([{"id": "sky", "text": "blue sky"}, {"id": "rose", "text": "red rose"}])
        assert [one.source for one in report.added] == ["rose"]
        assert [one.reason for one in report.failed] == ["the encoder returned vectors with numbers that are not finite"]
        assert index.verify() == []


def test_hits_of_one_kind_are_asked_for_by_a_filter(index: Index) -> None:
    for kind in ("chunk", "page"):
        hits = index.search("red otters", 100, filters={"hit.kind": kind})
        assert {hit.kind for hit in hits} == {kind}
        assert len(hits) == {"chunk": 4, "page": 5}[kind]
    with pytest.raises(ValueError, match=r"unknown field 'hit\.sort'.*hit\.kind"):
        index.search("red", filters={"hit.sort": "page"})

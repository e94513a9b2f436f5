"""Page images in an index: seen beside the text, ranked with it, cited with boxes, under the same commit."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from reportlab.pdfgen.canvas import Canvas

from ragkit import Index
from ragkit.apps.cli.main import app
from ragkit.apps.show import evidence
from ragkit.core.errors import EncodeError, FingerprintMismatch, RecipeMismatch, StorageError
from ragkit.core.types import Citation, Hit, Reason, Span
from ragkit.search import retrieve
from ragkit.search.hit_json import box_fields, hit_fields
from ragkit.search.rerank import fuse_answers
from ragkit.store.local import reader
from ragkit.store.vectors.multi import MultiReader
from ragkit.testing import HashEncoder

WIDTH, HEIGHT = 480.0, 640.0
SEES = HashEncoder(dims=64, multi_dims=32, images=True)
READS = HashEncoder(dims=64)
COLOURS = {"red": (1, 0, 0), "green": (0, 0.5, 0), "blue": (0, 0, 1)}


def pdf(path: Path, pages: list[tuple[str, str | None]]) -> Path:
    """A PDF of pages with a line of text each, and a large square of a colour below it, 120 points wide, at (60, 300) from the
    top left."""
    canvas = Canvas(str(path), pagesize=(WIDTH, HEIGHT))
    for text, colour in pages:
        canvas.setFont("Helvetica", 12)
        canvas.drawString(60, HEIGHT - 60, text)
        if colour:
            canvas.setFillColorRGB(*COLOURS[colour])
            canvas.rect(60, HEIGHT - 420, 120, 120, stroke=0, fill=1)
        canvas.showPage()
    canvas.save()
    return path


SIGNALS = [("Otters hold hands", "red"), ("Granite bridges", "green"), ("", None), ("Bread and salt", "blue")]


def papers_in(papers: Path) -> Path:
    """Two PDFs and a picture."""
    papers.mkdir()
    pdf(papers / "signals.pdf", SIGNALS)
    pdf(papers / "plain.pdf", [("The harbour wall keeps boats safe", None)])
    image = Image.new("RGB", (480, 640), "white")
    ImageDraw.Draw(image).rectangle((240, 400, 400, 560), fill=(255, 165, 0))
    image.save(papers / "orange.png")
    return papers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return papers_in(tmp_path / "papers")


@contextmanager
def built(folder: Path, path: Path) -> Iterator[Index]:
    with Index.open(path, model=READS, chunker="page", pages="all", page_model=SEES) as index:
        report = index.add(folder)
        assert not report.failed
        assert (report.pages, report.blank) == (5, 1)
        yield index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """For tests that change nothing: drawing pages in child processes takes its time."""
    path = tmp_path_factory.mktemp("pages")
    with built(papers_in(path / "papers"), path / "library") as index:
        yield index


@pytest.fixture
def changing(folder: Path, tmp_path: Path) -> Iterator[Index]:
    with built(folder, tmp_path / "library") as index:
        yield index


def pages_of(hits: Any) -> list[tuple[str, int]]:
    return [(hit.source, hit.pages[0]) for hit in hits]


@pytest.mark.parametrize(("colour", "page"), [("red", 1), ("green", 2), ("blue", 4)])
@pytest.mark.parametrize("mode", ["pages", "page.dense", "page.multi"])
def test_a_page_is_found_by_what_is_drawn_on_it(index: Index, colour: str, page: int, mode: str) -> None:
    [hit] = index.search(colour, 1, mode=mode)
    assert (hit.kind, hit.source, hit.pages) == ("page", "signals.pdf", (page,))
    assert str(hit.citation) == f"signals.pdf, p. {page}"


def test_a_picture_is_a_page(index: Index) -> None:
    [hit] = index.search("orange", 1, mode="pages")
    assert (hit.source, hit.pages, hit.text) == ("orange.png", (1,), "")


def test_a_visual_hit_is_cited_by_where_it_is_on_the_page(index: Index) -> None:
    [hit] = index.search("green", 1, mode="page.multi")
    [box] = hit.boxes
    assert (box.page, box.page_width, box.page_height) == (2, WIDTH, HEIGHT)
    left, top, right, bottom = box.box
    assert 60 <= (left + right) / 2 <= 180
    assert 300 <= (top + bottom) / 2 <= 420
    assert box.box.area <= 120 * 120


def test_the_shares_of_an_explanation_sum_to_the_score_of_the_page(index: Index) -> None:
    [hit] = index.search("red otters", 1, mode="page.multi")
    for found in (hit.explain(), index.explain("red otters", hit.key)):
        assert math.isclose(found.score, hit.score, rel_tol=1e-6)
        assert found.relevance is not None
        assert math.isclose(found.relevance.score, hit.score, rel_tol=1e-6)
        assert found.citation.pages == hit.pages


@pytest.mark.parametrize("settings", [{"page_pool": 4}, {"page_background": False}, {"page_pool": 9, "page_background": False}])
def test_fewer_vectors_of_a_page_find_and_explain_it_still(settings: dict[str, Any], index: Index, tmp_path: Path) -> None:
    pdf(tmp_path / "signals.pdf", SIGNALS)
    with Index.open(tmp_path / "library", model=READS, chunker="page", pages="all", page_model=SEES, **settings) as small:
        small.add(tmp_path / "signals.pdf")
        [hit] = small.search("green", 1, mode="page.multi")
        assert hit.pages == (2,)
        explanation = hit.explain()
        assert math.isclose(explanation.score, hit.score, rel_tol=1e-6)
        assert explanation.relevance is not None
        assert math.isclose(explanation.relevance.score, hit.score, rel_tol=1e-6)
        most = small._store.reader().units([hit.key])[hit.key].patches.tokens.max()
        [whole] = index.search("green", 1, mode="page.multi")
        assert most < index._store.reader().units([whole.key])[whole.key].patches.tokens.max() / 3
        [box] = hit.boxes
        left, top, right, bottom = box.box
        assert 32 <= left < right <= 208  # the square is from 60 to 180, and a cell 28 wide
        assert 272 <= top < bottom <= 448


def test_a_page_found_by_its_text_and_by_its_image_is_one_hit_with_both_reasons(index: Index) -> None:
    hits = index.search("otters red", 10)
    best = hits[0]
    assert best.kind == "chunk"
    assert best.text == "Otters hold hands"
    spaces = {reason.space: reason for reason in best.via}
    assert {"chunk.dense", "chunk.lexical", "page.dense", "page.multi"} <= set(spaces)
    assert spaces["page.multi"].key not in (None, best.key)
    assert spaces["chunk.lexical"].key is None
    assert pages_of(hits).count(("signals.pdf", 1)) == 1
    assert math.isclose(best.score, sum(one.share for one in best.via))
    # By ranks it is plain to see that all four count, and pages half.
    [same] = index.search("otters red", 1, rrf=15)
    weight = {"page.dense": 0.5, "page.multi": 0.5}
    assert math.isclose(same.score, sum(weight.get(one.space, 1.0) / (15 + one.rank) for one in best.via))
    explained = best.explain()  # of the page, since its text has no multi-vectors
    assert explained.key == spaces["page.multi"].key


def test_a_passage_found_by_its_picture_too_says_where_on_the_page(index: Index) -> None:
    best = index.search("otters red", 1)[0]
    [page] = index.search("otters red", 1, mode="page.multi")
    reasons = {reason.space: reason for reason in best.via}
    assert reasons["page.multi"].boxes == best.image_boxes == page.image_boxes == page.boxes != ()
    assert all(not why.boxes for space, why in reasons.items() if space != "page.multi")
    assert set(best.boxes).isdisjoint(best.image_boxes)  # cited by its words' boxes, as ever
    assert hit_fields(best)["via"][best.via.index(reasons["page.multi"])]["boxes"] == box_fields(page.boxes)
    assert next(index.stream("otters red")).image_boxes == best.image_boxes


def test_a_page_with_a_passage_that_maxsim_found_too_is_explained_in_both_spaces(folder: Path, tmp_path: Path) -> None:
    reads = HashEncoder(dims=64, multi_dims=32)
    with Index.open(tmp_path / "both", model=reads, multi=True, chunker="page", pages="all", page_model=SEES) as both:
        both.add(folder)
        best = both.search("otters red", 1)[0]
        reasons = {reason.space: reason for reason in best.via}
        words, seen = best.explain("chunk.multi"), best.explain("page.multi")
        assert (best.explain().key, words.relevance) == (best.key, None)
        assert math.isclose(words.score, reasons["chunk.multi"].score, rel_tol=1e-6)
        assert (seen.key, seen.citation.boxes) == (reasons["page.multi"].key, best.image_boxes)
        assert seen.relevance is not None
        assert math.isclose(seen.relevance.score, reasons["page.multi"].score, rel_tol=1e-6)
        with pytest.raises(ValueError, match=r"not found by MaxSim in page\.multi"):
            both.search("otters", 1, mode="text")[0].explain("page.multi")


@pytest.mark.parametrize("query", ["red", Image.new("RGB", (64, 64), "red"), ("red", Image.new("RGB", (64, 64), "red"))])
def test_what_is_shown_by_the_key_of_a_passage_has_the_map_of_its_page(index: Index, query: Any) -> None:
    passage, page = index.search("otters red", 1)[0], index.search("red", 1, mode="page.multi")[0]
    assert passage.key != page.key
    shown = evidence(index, str(passage.key), query=query)
    assert shown.citations == (index.unit(passage.key)[1],)
    np.testing.assert_array_equal(shown.heat[1].cells, index.explain(query, page.key).relevance.cells)
    named = evidence(index, "signals.pdf", query=query)
    np.testing.assert_array_equal(named.heat[1].cells, shown.heat[1].cells)
    assert evidence(index, str(passage.key)).heat == {}
    [unseen] = [hit for hit in index.search("harbour", 5, mode="text") if hit.source == "plain.pdf"]
    assert list(evidence(index, str(unseen.key), query=query).heat) == [1]  # seen, whether or not it was found so


def test_every_page_and_chunk_is_found_once(index: Index) -> None:
    hits = index.search("harbour bread otters granite red green blue", 100)
    keys = [hit.key for hit in hits]
    assert len(keys) == len(set(keys))
    places = sorted(pages_of(hits))
    assert places == [("orange.png", 1), ("plain.pdf", 1), ("signals.pdf", 1), ("signals.pdf", 2), ("signals.pdf", 4)]


@pytest.mark.parametrize("mode", ["pages", "page.multi", "page.dense", "hybrid"])
def test_filters_are_exact_for_pages_too(index: Index, mode: str) -> None:
    for source, count in (("signals.pdf", 3), ("orange.png", 1), ("plain.pdf", 1)):
        hits = index.search("blue", 100, mode=mode, filters={"source": source})
        assert {hit.source for hit in hits} == {source}
        assert len(hits) == count


def test_a_picture_is_a_query(index: Index) -> None:
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).rectangle((0, 0, 64, 64), fill=(0, 0, 255))
    [hit] = index.search(picture, 1)
    assert (hit.source, hit.pages) == ("signals.pdf", (4,))
    assert {reason.space for reason in hit.via} <= {"page.dense", "page.multi"}
    mixed = index.search_many(["red", picture, ("bread", picture)], 1, mode="hybrid")
    assert [pages_of(hits)[0] for hits in mixed] == [("signals.pdf", 1), ("signals.pdf", 4), ("signals.pdf", 4)]
    with pytest.raises(TypeError, match="a query is a text, a picture"):
        index.search_many([3], 1)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"this is \(picture, text\)"):
        index.search((picture, "bread"), 1)  # type: ignore[arg-type]
    assert [len(hits) for hits in index.search_many([picture, "bread"], 1)] == [1, 1]


def test_a_picture_that_nothing_would_look_at_is_refused_with_the_reason(index: Index, tmp_path: Path) -> None:
    picture = Image.new("RGB", (96, 96), "blue")
    none = {"page.dense": 0, "page.multi": 0}
    for query in (picture, ("granite bridges", picture)):
        for options, told in (
            ({"mode": "lexical"}, "mode='lexical': page.dense and page.multi would look at it"),
            ({"mode": "text"}, "mode='text': page.dense and page.multi would look at it"),
            ({"weights": none}, "mode='hybrid' and these weights"),
        ):
            with pytest.raises(ValueError, match=told):
                index.search(query, 1, **options)
    with Index.open(tmp_path / "blind", model=READS) as blind:
        blind.add([{"id": "a", "text": "Granite bridges"}])
        for query in (picture, ("granite bridges", picture)):
            with pytest.raises(ValueError, match="no model of this index takes pictures"):
                blind.search(query, 1)


def test_queries_of_several_forms_each_take_their_own_vector(index: Index) -> None:
    picture = Image.new("RGB", (96, 96), "blue")
    rows = READS.encode_query(["bread", "granite"]).dense
    assert rows is not None
    weights = {"page.dense": 0.001, "page.multi": 0.001}
    one, other = index.search_many(["otters", ("otters", picture)], 1, vectors=rows, weights=weights)
    assert [reason.score for reason in one[0].via if reason.space == "chunk.dense"] == [
        hit.score for hit in index.search("otters", 100, mode="dense", vector=rows[0]) if hit.key == one[0].key
    ]
    assert [reason.score for reason in other[0].via if reason.space == "chunk.dense"] == [
        hit.score for hit in index.search("otters", 100, mode="dense", vector=rows[1]) if hit.key == other[0].key
    ]
    with pytest.raises(ValueError, match="2 queries need as many vectors, got 1"):
        index.search_many(["otters", ("otters", picture)], 1, vectors=rows[:1])


@pytest.mark.parametrize("mode", ["page.dense", "dense"])
def test_fewer_dims_are_compared_in_pages_too(index: Index, mode: str) -> None:
    encoder = SEES if mode == "page.dense" else READS
    query = encoder.encode_query(["red"]).dense
    assert query is not None
    short = query[0, :8] / np.linalg.norm(query[0, :8])
    snapshot = index._store.reader()
    hits = index.search("red", 100, mode=mode, dims=8)
    assert len(hits) > 2
    for hit in hits:
        row = snapshot.known_rows([hit.key], kind="page" if mode == "page.dense" else "chunk")[hit.key][:8]
        assert hit.score == pytest.approx(float(short @ row / np.linalg.norm(row)), abs=2e-3)
    with pytest.raises(ValueError, match="dims must be between 1 and 64"):
        index.search("red", 1, mode=mode, dims=65)


def test_scores_and_ranks_are_those_of_the_definition(index: Index) -> None:
    vectors = SEES.encode_query(["green"]).multi
    assert vectors is not None
    hits = index.search("green", 100, mode="page.multi")
    again = {hit.key: hit.score for hit in hits}
    for hit in hits:
        shares = index.explain("green", hit.key)
        assert math.isclose(shares.score, again[hit.key], rel_tol=1e-6)
    assert [hit.score for hit in hits] == sorted(again.values(), reverse=True)


def test_adding_again_sees_nothing_again_and_copies_are_seen_once(
    changing: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counting(changing.page_encoder, monkeypatch)
    assert len(changing.add(folder).unchanged) == 3
    (folder / "copy.pdf").write_bytes((folder / "signals.pdf").read_bytes())
    report = changing.add(folder)
    assert len(report.added) == 1
    assert calls == []
    hits = changing.search("green", 2, mode="pages")
    assert {hit.source for hit in hits} == {"signals.pdf", "copy.pdf"}
    assert hits[0].boxes[0].box == hits[1].boxes[0].box


def test_a_changed_file_takes_its_former_pages_with_it(changing: Index, folder: Path) -> None:
    pdf(folder / "signals.pdf", [("Otters hold hands", "green")])
    assert len(changing.add(folder).updated) == 1
    assert pages_of(changing.search("red", 10, mode="pages", filters={"source": "signals.pdf"})) == [("signals.pdf", 1)]
    changing.compact()
    assert pages_of(changing.search("green", 1, mode="pages")) == [("signals.pdf", 1)]
    assert changing.verify() == []
    changing.delete("signals.pdf")
    assert {hit.source for hit in changing.search("green", 10, mode="pages")} == {"plain.pdf", "orange.png"}
    assert changing.verify() == []


def test_compacting_changes_no_score(changing: Index, folder: Path) -> None:
    pdf(folder / "more.pdf", [("More", "red")])
    changing.add(folder)
    modes = ("page.multi", "page.dense")
    before = {mode: [(hit.key, hit.score) for hit in changing.search("red", 10, mode=mode)] for mode in modes}
    changing.compact()
    for mode, found in before.items():
        assert [(hit.key, hit.score) for hit in changing.search("red", 10, mode=mode)] == found


def test_only_pages_with_figures_are_seen_where_only_those_are_wanted(folder: Path, tmp_path: Path) -> None:
    counts = {}
    for which in ("figures", "auto"):
        with Index.open(tmp_path / which, model=READS, pages=which, page_model=SEES) as index:
            counts[which] = index.add(folder).pages
    assert counts == {"figures": 4, "auto": 5}  # the text of plain.pdf is short, so "auto" looks at it


def test_one_encoder_may_do_both(folder: Path, tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=SEES, multi=True, pages="all") as index:
        index.add(folder)
        assert index.page_encoder is index.encoder
        assert index.spaces == ("chunk.dense", "chunk.lexical", "chunk.multi", "page.dense", "page.multi")
        assert pages_of(index.search("otters red", 1)) == [("signals.pdf", 1)]
        assert index.search("otters", 1, mode="chunk.multi")[0].kind == "chunk"


def test_the_encoder_of_the_pages_has_a_fingerprint_of_its_own(index: Index) -> None:
    other = HashEncoder(dims=64, multi_dims=32, images=True, seed=7)
    with pytest.raises(RecipeMismatch, match="page_model"):
        Index.open(index.path, page_model=other)

    impostor = HashEncoder(dims=64, multi_dims=32, images=True, seed=7)
    impostor.card = SEES.card
    with Index.open(index.path, page_model=impostor) as opened, pytest.raises(FingerprintMismatch, match="probe picture"):
        opened.search("red", mode="pages")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pages": "all"}, "needs an encoder of images"),
        ({"pages": "some", "page_model": SEES}, "pages is 'auto'"),
        ({"page_model": SEES}, "set pages="),
        ({"pages": "all", "page_model": HashEncoder(images=True), "page_multi": True}, "none"),
        ({"pages": "all", "page_model": SEES, "page_dims": 65}, "page_dims must be between"),
        ({"pages": "all", "page_model": HashEncoder(images=True), "page_pool": 2}, "fewer"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Index.open(tmp_path / "library", model=READS, **settings)
    assert not (tmp_path / "library" / "catalog.db").exists()


def test_an_index_without_page_images_says_how_to_have_them(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=READS) as index:
        index.add([{"id": "a", "text": "otters"}])
        with pytest.raises(ValueError, match="no page images"):
            index.search("red", mode="pages")
        assert index.stats().recipe["pages"] is None


def test_pages_may_come_later_and_go_again(folder: Path, tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=READS) as index:
        index.add(folder)
        index.rebuild(pages="all", page_model=SEES)
        assert pages_of(index.search("red", 1, mode="pages")) == [("signals.pdf", 1)]
        assert index.verify() == []
        keys = [hit.key for hit in index.search("red", 10, mode="pages")]
        (folder / "signals.pdf").unlink()  # what was seen is kept: nothing about pages changes
        index.rebuild(chunker="page")
        assert pages_of(index.search("red", 1, mode="pages")) == [("signals.pdf", 1)]
        assert len(index.search("red", 10, mode="pages")) == len(keys)
        assert index.verify() == []
        index.rebuild(pages="none")
        with pytest.raises(ValueError, match="no page images"):
            index.search("red", mode="pages")
        assert index.verify() == []


def counting(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures, or texts that speak of these documents, the encoder was given, per call from here on; probes aside."""
    calls: list[int] = []
    original = encoder.encode_document

    def counted(items: Any, **options: Any) -> Any:
        words = ("Otters", "Granite", "Bread", "harbour")
        known = [one for one in items if (any(map(one.__contains__, words)) if isinstance(one, str) else one.size != (224, 224))]
        calls.extend([len(known)] if known else [])
        return original(items, **options)

    monkeypatch.setattr(encoder, "encode_document", counted)
    return calls


@pytest.mark.parametrize("multi", [False, True])
def test_a_change_of_pages_embeds_no_text_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multi: bool
) -> None:
    reads, sees = HashEncoder(dims=64, multi_dims=16), HashEncoder(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=reads, multi=multi) as index:
        index.add(folder)
        index.add([{"id": "note", "text": "Granite is hard."}])
        before = {mode: index.search("granite otters", 10, mode=mode) for mode in ("dense", *(("multi",) if multi else ()))}
        texts, pages = counting(reads, monkeypatch), counting(sees, monkeypatch)
        for changes in ({"pages": "all", "page_model": sees}, {"page_pool": 2}, {"pages": "none"}):
            report = index.rebuild(**changes)
            assert report.done == "embedded"
            for mode, hits in before.items():
                assert [(hit.text, hit.score) for hit in index.search("granite otters", 10, mode=mode)] == [
                    (hit.text, hit.score) for hit in hits
                ]
        assert texts == []
        assert sum(pages) == 10  # five pages, twice
        index.rebuild(chunker="page")
        assert sum(texts) >= 5
        assert index.verify() == []


def test_pages_are_found_by_coarse_vectors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LIKELY", 2)
    monkeypatch.setattr(reader, "TIMES", 0)
    monkeypatch.setattr(retrieve, "DEPTH", 1)
    sees = HashEncoder(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=sees, coarse=4) as index:
        index.add(folder)
        [segment] = index.stats().page_multi
        assert segment["rows"] == 5
        assert 0 < segment["coarse"] < segment["tokens"] / 3
        scored: list[int] = []
        real = MultiReader.scores_of

        def scores_of(self: MultiReader, queries: Any, positions: Any) -> Any:
            scored.append(len(positions))
            return real(self, queries, positions)

        monkeypatch.setattr(MultiReader, "scores_of", scores_of)
        exact = index.search("red", 5, mode="page.multi", exact=True)
        assert scored == []
        [hit] = index.search("red", 1, mode="page.multi")
        assert scored == [2]
        assert (hit.key, hit.score) == (exact[0].key, exact[0].score)
        assert hit.explain().score == hit.score
        index.rebuild(page_pool=2)
        assert index.stats().page_multi[0]["coarse"] > 0
        index.rebuild(page_multi=False)
        assert (index.recipe.store.coarse, index.stats().page_multi) == (0, ())


def test_fewer_dims_of_pages_are_cut_and_more_are_seen_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sees = HashEncoder(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=READS, chunker="page", pages="all", page_model=sees) as index:
        index.add(folder)
        wide = {
            hit.key: row
            for hit in index.search("red", 10, mode="page.dense")
            for row in index._store.reader().known_rows([hit.key], kind="page").values()
        }
        tokens = [(hit.pages, hit.score) for hit in index.search("red", 10, mode="page.multi")]
        pages = counting(sees, monkeypatch)
        index.rebuild(page_dims=16)
        assert pages == []
        assert index.recipe.pages is not None
        assert index.recipe.pages.dims == 16
        found = index.search("red", 10, mode="page.dense")
        assert pages_of(found[:1]) == [("signals.pdf", 1)]
        narrow = index._store.reader().known_rows([hit.key for hit in found], kind="page")
        cut = sorted((row[:16] / np.linalg.norm(row[:16])).round(2).tolist() for row in wide.values())
        np.testing.assert_allclose(sorted(row.round(2).tolist() for row in narrow.values()), cut, atol=0.011)
        assert [(hit.pages, hit.score) for hit in index.search("red", 10, mode="page.multi")] == tokens
        index.rebuild(page_dims=32)
        assert sum(pages) == 5
        assert index.verify() == []


def test_the_pages_of_an_encrypted_file_are_seen_with_its_password(tmp_path: Path) -> None:
    fitz = pytest.importorskip("pymupdf")
    path = pdf(tmp_path / "open.pdf", SIGNALS)
    with fitz.open(path) as plain:
        plain.save(tmp_path / "closed.pdf", encryption=fitz.PDF_ENCRYPT_AES_256, user_pw="otter", owner_pw="otter")
    with Index.open(tmp_path / "library", model=READS) as index:
        assert not index.add(tmp_path / "closed.pdf", password="otter").failed
        [told, *_] = index.rebuild(pages="all", page_model=SEES, password="beaver").warnings
        assert "password" in told
        assert "beaver" not in told
        assert not index.rebuild(page_pool=2, password="otter").warnings
        assert pages_of(index.search("red", 1, mode="pages")) == [("closed.pdf", 1)]
        stored = b"".join(file.read_bytes() for file in (tmp_path / "library").rglob("*") if file.is_file())
        assert b"otter" not in stored.replace(b"Otters", b"")


def test_a_page_that_cannot_be_drawn_costs_that_page(folder: Path, tmp_path: Path) -> None:
    narrow = Image.new("RGB", (4, 2000), "white")
    ImageDraw.Draw(narrow).rectangle((0, 0, 4, 1000), fill="red")
    narrow.save(folder / "strip.png")
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=SEES) as index:
        report = index.add(folder)
        assert not report.failed
        assert {hit.source for hit in index.search("red", 10, mode="pages")} >= {"signals.pdf"}


def test_records_have_no_pages_and_are_no_worse_for_it(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=SEES) as index:
        report = index.add([{"id": "a", "text": "otters hold hands"}])
        assert report.pages == 0
        assert [hit.document_id for hit in index.search("otters", 5)] == ["a"]
        assert index.search("red", 5, mode="pages") == []


def test_similar_pages_and_wider_hits(index: Index) -> None:
    [hit] = index.search("red", 1, mode="pages")
    wide = hit.expand(after=1)
    assert wide.pages == (1, 2)
    assert "Granite" in wide.text
    alike = index.similar("orange.png", 2)
    assert {one.kind for one in alike} == {"page"}


def test_stats_tell_of_pages(index: Index) -> None:
    stats = index.stats()
    assert stats.units == 4 + 5  # chunks and pages
    assert sum(one["live"] for one in stats.page_multi) == 5
    assert stats.bytes_by_part["pages"] > 0


def test_figures_are_ink_that_is_no_word() -> None:
    from ragkit.core.types import Page, Span, Words
    from ragkit.ingest.page_images import figure_share

    boxes = np.array([[50, 50, 250, 70]], dtype=np.float32)
    page = Page(1, 300, 400, Span(0, 4), Words(np.array([[0, 4]]), boxes))
    image = Image.new("RGB", (600, 800), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((100, 100, 500, 140), fill="black")
    assert figure_share(image, page) == 0
    draw.rectangle((100, 300, 400, 600), fill="gray")
    assert figure_share(image, page) == pytest.approx(300 * 300 / (600 * 800), rel=0.1)  # whole squares of eight pixels


def test_pages_are_shown_and_seen_from_the_kept_copy(folder: Path, tmp_path: Path) -> None:
    from ragkit.apps.show import page_png

    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=SEES, keep_sources=True) as index:
        index.add(folder)
        copies = tmp_path / "library" / "sources"
        assert len(list(copies.iterdir())) == 3
        [hit] = index.search("green", 1, mode="page.multi")
        (folder / "signals.pdf").unlink()
        found = evidence(index, str(hit.key), query="green")
        assert found.citations[0].boxes == hit.boxes
        image = Image.open(io.BytesIO(page_png(index, found, page=2, dpi=72)))
        assert image.size == (480, 640)
        other = HashEncoder(dims=64, multi_dims=32, images=True, seed=7)
        index.rebuild(page_model=other)  # rendered again, from the copy
        assert pages_of(index.search("green", 1, mode="pages")) == [("signals.pdf", 2)]
        index.delete("signals.pdf")
        assert len(list(copies.iterdir())) == 2
        (folder / "plain.pdf").unlink()
        index.rebuild(page_model=SEES)
        assert index.verify() == []


def test_without_the_file_or_a_copy_another_page_model_is_refused(changing: Index, folder: Path) -> None:
    (folder / "signals.pdf").unlink()
    with pytest.raises(StorageError, match="was not changed") as refused:
        changing.rebuild(page_model=HashEncoder(dims=64, multi_dims=32, images=True, seed=7))
    assert "signals.pdf" in str(refused.value)
    assert pages_of(changing.search("green", 1, mode="pages")) == [("signals.pdf", 2)]


def test_the_command_line_sees_pages(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            app([*words])
        assert ended.value.code in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    library, png = str(tmp_path / "library"), tmp_path / "evidence.png"
    sees = ("--pages", "all", "--page-model", SEES.card.name, "--keep-sources")
    added = run("add", library, str(folder), "--model", "hash:64", *sees)
    assert "pages 5 (1 blank left out)" in added
    assert "signals.pdf, p. 4" in run("search", library, "blue", "--mode", "pages", "-k", "1")
    assert "orange.png, p. 1" in run("search", library, "--image", str(folder / "orange.png"), "-k", "1")
    [hit] = json.loads(run("search", library, "red", "--mode", "page.multi", "-k", "1", "--json"))
    assert hit["kind"] == "page"
    assert "maxsim" in run("explain", library, str(hit["key"]), "red")
    assert "1 boxes" in run("show", library, str(hit["key"]), "--query", "red", "-o", str(png))
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    assert "signals.pdf, p. 2" in run("show", library, "signals.pdf", "--image", str(tmp_path / "green.png"), "-o", str(png))
    with Image.open(png) as image:
        assert image.size == (733, 978)  # 110 dots an inch
    with pytest.raises(RecipeMismatch) as refused:
        Index.open(library, page_background=False)
    assert "made again" in run(*str(refused.value).partition("ragkit ")[2].split())  # the command that the message names
    assert "signals.pdf, p. 4" in run("search", library, "blue", "--mode", "pages", "-k", "1")


@pytest.mark.parametrize("error", [EncodeError("out of sorts"), RuntimeError("out of sorts")], ids=repr)
def test_pages_that_could_not_be_seen_are_tried_again(tmp_path: Path, error: Exception) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    pdf(folder / "a.pdf", [("Otters", "red")])
    seen = HashEncoder(dims=64, multi_dims=32, images=True)
    original, broken = seen.encode_document, True

    def moody(items: Any, **options: Any) -> Any:
        if broken and not isinstance(items[0], str):
            raise error
        return original(items, **options)

    with Index.open(tmp_path / "library", model=READS, pages="all", page_model=seen) as index:
        assert index.page_encoder is seen
        seen.encode_document = moody  # type: ignore[method-assign]
        [outcome] = index.add(folder).added
        assert any(re.search("page 1 was not seen: .*out of sorts", warning) for warning in outcome.warnings)
        assert index.search("otters", 1)[0].kind == "chunk"  # the text is there meanwhile
        broken = False
        assert index.add(folder).pages == 1
        assert len(index.add(folder).unchanged) == 1
        assert pages_of(index.search("red", 1, mode="pages")) == [("a.pdf", 1)]


def test_copies_go_with_the_versions_they_are_of(folder: Path, tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=READS) as index:
        index.add(folder)
        report = index.rebuild(keep_sources=True)
        assert (report.done, report.warnings) == ("settings", ())
        copies = tmp_path / "library" / "sources"
        assert len(list(copies.iterdir())) == 3  # of what was there already
        pdf(folder / "signals.pdf", [("Otters", "green")])
        index.add(folder)
        assert len(list(copies.iterdir())) == 3
        (folder / "plain.pdf").unlink()
        index.add(folder, prune=True)
        assert len(list(copies.iterdir())) == 2
        assert index.verify() == []


def test_streamed_page_hits_are_cited_and_explained_as_searched_ones(index: Index) -> None:
    [hit] = index.search("green", 1, mode="page.multi")
    streamed = next(index.stream("green", mode="page.multi"))
    assert streamed.boxes == hit.boxes
    assert streamed.explain().score == hit.explain().score


def test_phrasings_fuse_a_page_with_the_chunk_it_was_found_as() -> None:
    def found(key: int, rank: int, *, page: int | None) -> Hit:
        via = (Reason("page.multi", rank, 1.0, page),)
        cited = Citation("a.pdf", Span(0, 1), (1,))
        kind = "page" if key == 7 else "chunk"
        return Hit(rank, 1.0, "rrf", key, kind, "", "a.pdf", "", cited, (), {}, via)

    answers = [[found(3, 1, page=7)], [found(7, 2, page=None)]]
    [hit] = fuse_answers(answers, constant=15)
    assert (hit.key, hit.kind) == (3, "chunk")
    assert math.isclose(hit.score, 1 / 16 + 1 / 17)


def test_a_picture_is_not_reranked_by_words_it_does_not_have(index: Index) -> None:
    with pytest.raises(ValueError, match="leave rerank out"):
        index.search(Image.new("RGB", (64, 64), "red"), 1, rerank=lambda query, texts: [1.0] * len(texts))

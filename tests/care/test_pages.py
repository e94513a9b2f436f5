"""Page images keep the promises of texts: verified, repaired, backed up, exported and pruned, whole after any interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from ragkit import Index
from ragkit.core.errors import Damaged, RecipeMismatch, StorageError
from ragkit.store.local import source_copies
from ragkit.testing import HashEncoder
from tests.care.damage import flip, in_catalog
from tests.care.test_flips import catalog_flips, sealed_flips
from tests.index.test_pages import READS, SEES, pdf

QUERIES = ("red", "otters green", "harbour wall")
PAGES = ("pages", "page.dense", "page.multi")
SPACES = ("dense", "lexical", "page.dense", "page.multi")  # fused modes depend on how ties break, which is by keys
MODES = ("hybrid", "dense", "lexical", *PAGES)
SETTINGS: dict[str, Any] = {"model": READS, "pages": "all", "page_model": SEES}
Told = dict[tuple[str, str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """An index of five page images, closed, and what it answers: made once, and copied by those who change it."""
    where = tmp_path_factory.mktemp("made")
    (where / "papers").mkdir()
    fill(where / "papers")
    with Index.open(where / "library", **SETTINGS) as index:
        index.add(where / "papers")
        return where / "library", told(index)


@pytest.fixture
def library(made: tuple[Path, Told], tmp_path: Path) -> Iterator[Index]:
    shutil.copytree(made[0], tmp_path / "library")
    with Index.open(tmp_path / "library", **SETTINGS) as index:
        yield index


@pytest.fixture
def expected(made: tuple[Path, Told]) -> Told:
    return made[1]


def fill(papers: Path) -> None:
    """Three documents with five pages that are not blank."""
    pages = [("Otters hold hands", "red"), ("Granite bridges", "green"), ("", None), ("Bread and salt", "blue")]
    pdf(papers / "signals.pdf", pages)
    pdf(papers / "plain.pdf", [("The harbour wall keeps boats safe", None)])
    image = Image.new("RGB", (480, 640), "white")
    ImageDraw.Draw(image).rectangle((240, 400, 400, 560), fill=(255, 165, 0))
    image.save(papers / "orange.png")


def told(index: Index, modes: tuple[str, ...] = MODES) -> Told:
    """All that the index answers, where on the page it is, and the scores to the fifth digit; not in order, since ties break by
    keys, which may be given out anew."""
    return {
        (mode, query): sorted(
            (-round(hit.score, 5), hit.source, hit.kind, hit.pages, hit.text, tuple(tuple(box.box) for box in hit.boxes))
            for hit in index.search(query, 100, mode=mode)
        )
        for mode in modes
        for query in QUERIES
    }


def _of(answers: Told, modes: tuple[str, ...]) -> Told:
    return {key: hits for key, hits in answers.items() if key[0] in modes}


def page_segment(index: Index) -> Path:
    [row] = [row for row in index._catalog.segments(index.stats().commit) if "page.dense" in row.spaces]
    return index.path / "segments" / row.id


def page_rows(path: Path) -> list[tuple[Any, ...]]:
    catalog = sqlite3.connect(path / "catalog.db")
    try:
        return catalog.execute("SELECT document, number FROM page_units ORDER BY key").fetchall()
    finally:
        catalog.close()


def test_every_byte_of_page_vectors_and_page_units_is_under_a_checksum(library: Index) -> None:
    assert library.verify() == []
    names = {one.name for one in page_segment(library).iterdir()}
    library.close()
    assert {"page.dense.npy", "page.multi.npy", "page.multi.offsets.npy", "page.multi.json", "keys.npy"} <= names
    assert set(sealed_flips(library.path, step=401)) == {"found"}
    counts = catalog_flips(library.path, step=3001)
    assert set(counts) <= {"found", "harmless"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE page_units SET number = number + 1 WHERE key = (SELECT min(key) FROM page_units)",
        "DELETE FROM page_units WHERE key = (SELECT min(key) FROM page_units)",
    ],
)
def test_a_page_unit_that_is_damaged_or_gone_is_found_and_seen_again(library: Index, expected: Told, statement: str) -> None:
    library.close()
    in_catalog(library.path, statement)
    with Index.open(library.path, **SETTINGS) as index:
        assert index.verify()
        with pytest.raises(Damaged, match="ragkit repair"):
            index.search("red", 100, mode="pages")
        rest = index.search("red", 100, mode="pages", degraded=True)
        assert rest.missing
        assert len(rest) < 5
        report = index.repair()
        assert len(report.embedded) == 1
        assert report.lost == ()
        assert index.verify() == []
        assert told(index, SPACES) == _of(expected, SPACES)


@pytest.mark.parametrize("filters", [None, {"hit.page": {"$gte": 1}}], ids=repr)
@pytest.mark.parametrize("kind", ["chunk", "page"])
def test_a_damaged_passage_or_page_takes_none_of_the_others_with_it(library: Index, kind: str, filters: Any) -> None:
    whole = library.search("harbour wall", 100)
    first = next(hit for hit in whole if hit.source == "plain.pdf")
    [page] = {why.key for why in first.via if why.key is not None}
    library.close()
    in_catalog(library.path, f"UPDATE units SET start = start + 1 WHERE key = {first.key if kind == 'chunk' else page}")
    with Index.open(library.path, **SETTINGS) as index:
        rest = index.search("harbour wall", 100, degraded=True, filters=filters)
        assert [missing.partition(":")[0] for missing in rest.missing] == [f"unit {first.key if kind == 'chunk' else page}"]
        left = page if kind == "chunk" else first.key
        assert {hit.key for hit in rest} == {hit.key for hit in whole} - {first.key} | {left}


@pytest.mark.parametrize("name", ["page.multi.offsets.npy", "keys.npy"])
def test_a_damaged_page_segment_is_an_error_and_is_seen_again(library: Index, expected: Told, name: str) -> None:
    path = page_segment(library)
    library.close()
    flip(path / name, -1)
    with Index.open(library.path, **SETTINGS) as index:
        with pytest.raises(Damaged, match=rf"{name}.*ragkit repair"):
            told(index, PAGES)
        assert index.search("harbour", 5, mode="lexical", degraded=True)
        report = index.repair()
        assert sorted(report.embedded) == ["orange.png", "plain.pdf", "signals.pdf"]
        assert report.lost == ()
        assert [Path(one).name for one in report.quarantined] == [path.name]
        assert index.verify() == []
        assert told(index, SPACES) == _of(expected, SPACES)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Index, Path]]:
    """An index, and its files to change."""
    (tmp_path / "papers").mkdir()
    fill(tmp_path / "papers")
    with Index.open(tmp_path / "own", **SETTINGS) as index:
        index.add(tmp_path / "papers")
        yield index, tmp_path / "papers"


def test_pages_whose_file_is_gone_are_lost_by_name_and_their_text_stays(own: tuple[Index, Path]) -> None:
    library, folder = own
    words = told(library, ("lexical", "dense"))
    path = page_segment(library)
    library.close()
    flip(path / "page.multi.npy", -1)
    (folder / "signals.pdf").unlink()
    with Index.open(library.path, **SETTINGS) as index:
        report = index.repair()
        assert index.verify() == []
        [warning] = report.warnings
        assert "signals.pdf" in warning
        assert "add it again" in warning
        assert {hit.source for hit in index.search("red", 100, mode="pages")} == {"plain.pdf", "orange.png"}
        assert told(index, ("lexical", "dense")) == words


@pytest.mark.slow
def test_pages_whose_file_is_gone_are_seen_again_from_the_copy_that_was_kept(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    fill(tmp_path / "papers")
    with Index.open(tmp_path / "library", **SETTINGS, keep_sources=True) as index:
        index.add(tmp_path / "papers")
        expected, path = told(index, SPACES), page_segment(index)
    flip(path / "page.multi.npy", -1)
    shutil.rmtree(tmp_path / "papers")
    with Index.open(tmp_path / "library", **SETTINGS) as index:
        report = index.repair()
        assert (len(report.embedded), report.warnings, report.lost) == (3, (), ())
        assert told(index, SPACES) == expected
        index.backup(tmp_path / "backup")
    with Index.open(tmp_path / "backup", **SETTINGS) as copy:
        assert copy.verify() == []
        assert len(list((copy.path / "sources").iterdir())) == 3


def test_a_damaged_copy_of_a_file_is_found_and_put_aside(library: Index, expected: Told, made: tuple[Path, Told]) -> None:
    file = made[0].parent / "papers" / "signals.pdf"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    source_copies.keep(library.path, file, digest)
    assert library.verify() == []
    flip(library.path / "sources" / digest, 100)
    assert [digest in one.problem for one in library.verify()] == [True]
    report = library.repair()
    assert [digest in one for one in report.quarantined] == [True]
    assert (report.lost, report.embedded) == ((), ())
    assert library.verify() == []
    assert told(library) == expected


def test_a_backup_has_its_pages(library: Index, expected: Told, tmp_path: Path) -> None:
    library.backup(tmp_path / "backup")
    with Index.open(tmp_path / "backup", **SETTINGS) as copy:
        assert copy.verify() == []
        assert told(copy) == expected
    path = page_segment(library)
    flip(path / "page.multi.npy", -1)
    with Index.open(library.path) as damaged, pytest.raises(Damaged, match=r"page\.multi\.npy"):
        damaged.backup(tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_pages_are_exported_and_imported_bit_for_bit(library: Index, expected: Told, tmp_path: Path) -> None:
    report = library.export(tmp_path / "parcel")
    assert report.vectors == library.stats().units
    imported = Index.import_from(tmp_path / "new", tmp_path / "parcel")
    assert sum(one.units for one in imported.added) == library.stats().units
    with Index.open(tmp_path / "new", **SETTINGS) as index:
        assert told(index) == expected
        assert index.verify() == []
        assert len(page_rows(index.path)) == 5
        [hit] = index.search("green", 1, mode="page.multi")
        assert hit.explain().score == pytest.approx(hit.score, rel=1e-6)
    assert len(Index.import_from(tmp_path / "new", tmp_path / "parcel").unchanged) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: {**page, "page": 9}, "line"),
        (lambda page: {**page, "patches": {**page["patches"], "tokens": [[1000]]}}, "line"),
        (lambda page: {**page, "patches": {**page["patches"], "region": [0, 1]}}, "line"),
        (lambda page: {**page, "key": 12345}, "lacks vectors"),
    ],
)
def test_page_units_that_cannot_be_are_refused(library: Index, tmp_path: Path, change: Any, message: str) -> None:
    parcel = tmp_path / "parcel"
    library.export(parcel)
    documents = [json.loads(line) for line in (parcel / "documents.jsonl").read_text().splitlines()]
    for one in documents:
        one["page_units"] = [change(page) for page in one["page_units"]][:1]
    (parcel / "documents.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    manifest = json.loads((parcel / "manifest.json").read_text())
    manifest["files"]["documents.jsonl"] = hashlib.sha256((parcel / "documents.jsonl").read_bytes()).hexdigest()
    (parcel / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match=message):
        Index.import_from(tmp_path / "new", parcel)


def test_an_import_into_an_index_that_sees_with_another_model_is_refused(library: Index, tmp_path: Path) -> None:
    library.export(tmp_path / "parcel")
    other = HashEncoder(dims=64, multi_dims=32, images=True, seed=5)
    Index.open(tmp_path / "other", model=READS, pages="all", page_model=other).close()
    Index.open(tmp_path / "words", model=READS).close()
    for name in ("other", "words"):
        with pytest.raises(StorageError, match="another recipe"):
            Index.import_from(tmp_path / name, tmp_path / "parcel")


def test_what_is_pruned_or_deleted_leaves_no_page_behind(own: tuple[Index, Path]) -> None:
    library, folder = own
    assert len(page_rows(library.path)) == 5
    (folder / "signals.pdf").unlink()
    library.add(folder, prune=True)
    library.delete("orange.png")
    library.compact()
    assert {hit.source for hit in library.search("red", 100, mode="pages")} == {"plain.pdf"}
    assert len(page_rows(library.path)) == 1, "rows of dead pages are purged"
    assert library.verify() == []


@pytest.mark.slow
def test_a_change_of_the_page_model_answers_as_an_index_built_so(own: tuple[Index, Path], tmp_path: Path) -> None:
    library, folder = own
    other = HashEncoder(dims=48, multi_dims=32, images=True, seed=5)
    assert library.rebuild(page_model=other).done == "embedded"
    with Index.open(tmp_path / "fresh", model=READS, pages="all", page_model=other) as fresh:
        fresh.add(folder)
        assert told(library) == told(fresh)
    assert library.verify() == []
    with pytest.raises(RecipeMismatch, match="page_model"):
        Index.open(library.path, page_model=SEES)


def test_an_index_of_texts_has_no_table_of_pages(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=READS) as index:
        index.add([{"id": "a", "text": "Words alone."}])
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        page_rows(tmp_path / "library")

"""Loading and encoding as a pure step: it makes what `add` stores, also in another process, and failures are values."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Document, Index
from ragkit.core.types import Chunk
from ragkit.ingest.item import AddOptions, Item
from ragkit.ingest.prepare import LoadedModels, load_items, prepare, prepare_batch
from ragkit.load import Limits, Source, discover
from ragkit.recipe.recipe import Recipe
from ragkit.store.values import Failure, Prepared
from ragkit.testing import HashEncoder
from tests.index.test_pages import pdf

SETTINGS: list[dict[str, Any]] = [{}, {"multi": "int8"}, {"contextual_headers": True}, {"late_chunking": True}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "files"
    root.mkdir()
    (root / "otters.md").write_text("# Otters\n\nOtters hold hands while they sleep.\n\n# Ducks\n\nDucks do not.\n")
    (root / "otters.md.meta.json").write_text('{"title": "Rivers", "year": 2020}')
    (root / "plain.txt").write_text("The tower was built in 1889. " * 40)
    pdf(root / "page.pdf", [("A page about towers", "red")])
    return root


def models_of(index: Index) -> LoadedModels:
    return LoadedModels(index.encoder, index.page_encoder)


def assert_stored(index: Index, prepared: Prepared) -> None:
    """What was prepared is what `add` stored: the document under its origin, its units, and their vectors, bit for bit."""
    reader = index._store.reader()
    row = reader.by_identity(prepared.origin.identity)
    assert row is not None
    origin = prepared.origin
    assert (row.source, row.root, row.path, row.content_hash, row.lang) == (
        origin.source, origin.root, origin.path, origin.content_hash, origin.lang,
    )  # fmt: skip
    stored = reader.document(row)
    assert (stored.text, stored.title, dict(stored.meta)) == (
        prepared.document.text, prepared.document.title, dict(prepared.document.meta),
    )  # fmt: skip
    chunks = [Chunk(unit.span, unit.headings) for unit in reader.units_of(row.id) if unit.kind == "chunk"]
    assert chunks == list(prepared.chunks)
    ids = np.array([row.id], dtype=np.int64)
    assert prepared.dense is not None
    np.testing.assert_array_equal(reader.rows_of(ids)[row.id], prepared.dense.astype(np.float16).astype(np.float32))
    multi = reader.multi_of(ids)
    assert (prepared.multi is None) == (row.id not in multi)
    if prepared.multi is not None:
        np.testing.assert_array_equal(np.concatenate([part.values for part in multi[row.id]]), prepared.multi.values)
    if prepared.seen is not None:
        pages = reader.rows_of(ids, kind="page").get(row.id)
        assert pages is not None
        assert prepared.seen.dense is not None
        np.testing.assert_array_equal(pages, prepared.seen.dense.astype(np.float16).astype(np.float32))


def assert_same(first: Prepared | Failure, second: Prepared | Failure) -> None:
    assert isinstance(first, Prepared)
    assert isinstance(second, Prepared)
    assert (first.origin, first.chunks, first.complete) == (second.origin, second.chunks, second.complete)
    assert first.document.text == second.document.text
    np.testing.assert_array_equal(first.dense, second.dense)
    assert (first.multi is None) == (second.multi is None)
    if first.multi is not None and second.multi is not None:
        np.testing.assert_array_equal(first.multi.values, second.multi.values)


@pytest.mark.parametrize("settings", SETTINGS, ids=["dense", "multi", "headers", "late"])
def test_what_is_prepared_is_what_add_stores(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    encoder = HashEncoder(multi_dims=16) if "multi" in settings else HashEncoder()
    with Index.open(tmp_path / "index", model=encoder, **settings) as index:
        index.add(folder)
        results = [prepare(source, index.recipe, models_of(index)) for source in discover(folder)]
        assert len(results) == 3
        for result in results:
            assert isinstance(result, Prepared)
            assert_stored(index, result)


def test_page_images_are_prepared_as_add_stores_them(folder: Path, tmp_path: Path) -> None:
    with Index.open(tmp_path / "index", model=HashEncoder(dims=64, multi_dims=32, images=True), pages="all") as index:
        index.add(folder / "page.pdf")
        result = prepare(next(discover(folder / "page.pdf")), index.recipe, models_of(index))
        assert isinstance(result, Prepared)
        assert result.seen is not None
        assert len(result.seen.pages) == 1
        assert_stored(index, result)


def test_another_process_prepares_the_same(folder: Path, tmp_path: Path) -> None:
    with Index.open(tmp_path / "index", model=HashEncoder(multi_dims=16), multi="int8") as index:
        recipe, models = index.recipe, models_of(index)
    sources = list(discover(folder))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for source, there in zip(sources, pool.map(prepare, sources, [recipe] * 3, [models] * 3), strict=True):
            assert_same(prepare(source, recipe, models), there)


def test_a_batch_gives_what_each_document_gives_alone_in_its_order(folder: Path, tmp_path: Path) -> None:
    with Index.open(tmp_path / "index", model=HashEncoder()) as index:
        recipe, models = index.recipe, models_of(index)
    sources = list(discover(folder))
    items = [item for source in sources for item in load_items(source, recipe, models)]
    for source, result in zip(sources, prepare_batch(items, recipe, models), strict=True):
        assert_same(prepare(source, recipe, models), result)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    with Index.open(tmp_path / "index", model=HashEncoder()) as index:
        return index.recipe


@pytest.mark.parametrize(
    ("name", "content", "options", "reason"),
    [
        ("bad.pdf", b"%PDF-1.4 and nothing more", {}, ""),
        ("large.txt", b"x" * 2000, {"limits": Limits(file_bytes=1000)}, "over the limit of 1,000"),
        ("a.txt", b"text", {"metadata": lambda path: 1 / 0}, "metadata callback failed: ZeroDivisionError"),
    ],
    ids=["broken", "too large", "metadata"],
)
def test_a_file_that_cannot_be_loaded_is_a_failure(
    tmp_path: Path, recipe: Recipe, name: str, content: bytes, options: dict[str, Any], reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = prepare(next(discover(path)), recipe, LoadedModels(HashEncoder()), options=AddOptions(**options))
    assert isinstance(result, Failure)
    assert (result.identity, result.source) == (str(path), name)
    assert result.reason
    assert reason in result.reason


def test_a_missing_file_is_a_failure(tmp_path: Path, recipe: Recipe) -> None:
    result = prepare(Source(tmp_path / "a.txt", tmp_path, "a.txt"), recipe, LoadedModels(HashEncoder()))
    assert isinstance(result, Failure)
    assert "No such file" in result.reason


def test_a_failing_document_leaves_its_batch_alone(recipe: Recipe) -> None:
    class Refusing(HashEncoder):
        def encode_document(self, items: Any, **options: Any) -> Any:
            if any("poison" in text for text in items):
                raise ValueError("it will not")
            return super().encode_document(items, **options)

    models = LoadedModels(Refusing())
    documents = [Document(text="otters"), Document(text="poison"), {"id": 7, "nothing": "here"}, Document(text="ducks")]
    items = [item for document in documents for item in load_items(document, recipe, models)]
    first, second, third, last = prepare_batch(items, recipe, models)
    assert isinstance(first, Prepared)
    assert isinstance(last, Prepared)
    assert isinstance(second, Failure)
    assert "it will not" in second.reason
    assert isinstance(third, Failure)


def test_a_file_of_many_records_gives_an_item_for_each(tmp_path: Path, recipe: Recipe) -> None:
    models = LoadedModels(HashEncoder())
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "a", "text": "otters"}\nno json\n{"id": "b", "text": "ducks"}\n')
    source = next(discover(path))
    items = list(load_items(source, recipe, models))
    assert [isinstance(item, Item) for item in items] == [True, False, True]
    results = prepare_batch(items, recipe, models)
    assert [result.origin.source if isinstance(result, Prepared) else "" for result in results] == [
        "records.jsonl#a", "", "records.jsonl#b",
    ]  # fmt: skip
    whole = prepare(source, recipe, models)
    assert isinstance(whole, Failure)
    assert "3 documents" in whole.reason

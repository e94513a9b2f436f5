"""What is exported can be read by anybody, and imported elsewhere it answers the same, without a model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index, MaxSimIndex
from ragkit.core.arrays import unit_rows
from ragkit.core.errors import Damaged, StorageError
from ragkit.testing import HashEncoder
from tests.care.damage import answers, flip
from tests.care.golden.make import SETTINGS, records
from tests.conftest import NOTES
from tests.conftest import records as notes
from tests.index.test_pages import pdf

WITH_TOKENS = {"model": HashEncoder(dims=32, multi_dims=18), "chunk_tokens": 16}


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """An index of documents of every shape, and its export in parcel/."""
    with Index.open(tmp_path / "rich", **SETTINGS) as index:
        index.add(records())
        index.delete("bread")
        report = index.export(tmp_path / "parcel")
        assert (report.documents, report.vectors) == (5, index.stats().units)
    return tmp_path / "rich"


def test_imported_into_a_new_index_it_answers_the_same(rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Index.open(rich) as index:
        expected = answers(index)
        documents = {row.source: (index.document(row.source), dict(row.meta), row.lang) for row in index.documents()}
        index.export(tmp_path / "form")
    with monkeypatch.context() as patch:
        patch.setattr("ragkit.recipe.models.load_encoder", None)  # no model is there
        report = Index.import_from(tmp_path / "new", tmp_path / "form")
    assert len(report.added) == 5
    with Index.open(tmp_path / "new") as index:
        _assert_same_answers(answers(index), expected)
        for name, (document, meta, lang) in documents.items():
            row = index.find(name)[0]
            assert (dict(row.meta), row.lang) == (meta, lang)
            _assert_same_document(index.document(name), document)
        assert index.verify() == []
        assert len(index.add([one for one in records() if not isinstance(one, dict) or one["id"] != "bread"]).unchanged) == 5
    assert len(Index.import_from(tmp_path / "new", tmp_path / "form").unchanged) == 5


def _assert_same_answers(found: Any, expected: Any) -> None:
    """The same hits in every mode, and the same scores where they do not depend on deleted documents' words."""
    assert {key: [hit[:3] for hit in hits] for key, hits in found.items()} == {
        key: [hit[:3] for hit in hits] for key, hits in expected.items()
    }
    for mode in ("dense", "multi"):
        assert {key: hits for key, hits in found.items() if key[0] == mode} == {
            key: hits for key, hits in expected.items() if key[0] == mode
        }


@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
def test_multi_vectors_come_back_bit_for_bit(tmp_path: Path, precision: str) -> None:
    with Index.open(tmp_path / "library", **WITH_TOKENS, multi=precision) as index:
        index.add(notes())
        index.delete("bridge")
        expected, stored = answers(index), _stored(index)
        report = index.export(tmp_path / "parcel")
        assert report.tokens == sum(len(codes) for codes in stored.values()) > 50
    Index.import_from(tmp_path / "new", tmp_path / "parcel")
    with Index.open(tmp_path / "new") as index:
        _assert_same_answers(answers(index), expected)
        found = _stored(index)
        assert found.keys() == stored.keys()
        for name, codes in stored.items():
            np.testing.assert_array_equal(found[name], codes)
        assert index.verify() == []


def _stored(index: Index) -> dict[tuple[str, int], Any]:
    """The token vectors of every unit as they lie on disk, by document and the unit's place in it."""
    snapshot = index._store.reader()
    found = {}
    for row in index.documents():
        for at, one in enumerate(snapshot.multi_of(np.array([row.id]))[row.id]):
            found[row.source, at] = one.values
    return found


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"model": HashEncoder(dims=32), "late_chunking": True, "dims": 16, "chunk_tokens": 16}, notes()),
        ({"model": "vectors:2"}, [{"id": "a", "text": "One.", "vector": [1, 0]}, {"id": "b", "text": "Bare words."}]),
        ({"model": "hash:8"}, []),
    ],
    ids=["late chunking", "given vectors", "nothing"],
)
def test_every_kind_of_index_comes_back(tmp_path: Path, settings: Any, added: Any) -> None:
    with Index.open(tmp_path / "library", **settings) as index:
        if added:
            index.add(added)
        expected = _rows(index)
        index.export(tmp_path / "parcel")
    report = Index.import_from(tmp_path / "new", tmp_path / "parcel")
    assert len(report.added) == len(expected) == len(added)
    with Index.open(tmp_path / "new") as index:
        found = _rows(index)
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            np.testing.assert_array_equal(found[name], rows)
        assert {hit.document_id for hit in index.search("words fish granite", 9, mode="lexical")} <= expected.keys()
        assert index.verify() == []


def _rows(index: Index) -> dict[str, Any]:
    """The dense vectors of every document, by its name; None for one that has none."""
    rows = index._store.reader().rows_of(np.array([row.id for row in index.documents()], dtype=np.int64))
    return {row.source: rows.get(row.id) for row in index.documents()}


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_an_index_of_vectors_alone_keeps_its_keys(tmp_path: Path, precision: Any) -> None:
    rng = np.random.default_rng(4)
    items = {key: unit_rows(rng.normal(size=(int(rng.integers(1, 9)), 10))) for key in (5, -7, 900, 1 << 60)}
    query = unit_rows(rng.normal(size=(4, 10)))
    with MaxSimIndex.open(tmp_path / "vectors", dim=10, precision=precision) as index:
        index.add(list(items), list(items.values()))
        index.commit()
        index.delete([900])
        index.commit()
        expected = index.search(query)
        report = index.export(tmp_path / "parcel")
        assert (report.documents, report.vectors, report.tokens) == (3, 0, sum(len(items[key]) for key in (5, -7, 1 << 60)))
    for _ in range(2):  # again: the same keys are replaced
        assert MaxSimIndex.import_from(tmp_path / "new", tmp_path / "parcel") == 3
        with MaxSimIndex.open(tmp_path / "new") as index:
            for found, one in zip(index.search(query), expected, strict=True):
                np.testing.assert_array_equal(found, one)
            assert index.verify() == []
    with pytest.raises(StorageError, match=r"MaxSimIndex\.import_from"):
        Index.import_from(tmp_path / "documents", tmp_path / "parcel")
    with Index.open(tmp_path / "words", model="hash:8") as words:
        words.export(tmp_path / "words-parcel")
    with pytest.raises(StorageError, match=r"Index\.import_from"):
        MaxSimIndex.import_from(tmp_path / "other", tmp_path / "words-parcel")


def _assert_same_document(found: Any, expected: Any) -> None:
    assert (found.text, found.title, found.blocks, found.mime) == (expected.text, expected.title, expected.blocks, expected.mime)
    assert len(found.pages) == len(expected.pages)
    for page, wanted in zip(found.pages, expected.pages, strict=True):
        names = ("number", "width", "height", "span", "label", "rotation")
        assert [getattr(page, name) for name in names] == [getattr(wanted, name) for name in names]
        np.testing.assert_array_equal(page.words.spans, wanted.words.spans)
        np.testing.assert_array_equal(page.words.boxes, wanted.words.boxes)


def test_numpy_and_json_alone_can_read_it(rich: Path, tmp_path: Path) -> None:
    keys, rows = np.load(tmp_path / "parcel" / "chunk.dense.keys.npy"), np.load(tmp_path / "parcel" / "chunk.dense.npy")
    lines = [json.loads(line) for line in (tmp_path / "parcel" / "documents.jsonl").read_text().splitlines()]
    where = {key: at for at, key in enumerate(keys.tolist())}
    with Index.open(rich) as index:
        hits = index.search("granite", 50, mode="dense")
        query = index.encoder.encode_query(["granite"]).dense
        assert query is not None
        for hit in hits:
            [document] = [line for line in lines if line["id"] == hit.document_id]
            [(_, start, end, _)] = [unit for unit in document["units"] if unit[0] == hit.key]
            assert document["text"][start:end] == hit.text
            assert float(rows[where[hit.key]].astype(np.float32) @ query[0]) == pytest.approx(hit.score, abs=1e-4)
    assert len(rows) == sum(len(line["units"]) for line in lines)


def test_the_documents_alone_can_be_added_to_an_index_of_another_recipe(rich: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"ragkit add .*documents.jsonl"), Index.open(tmp_path / "other", model="hash:16"):
        Index.import_from(tmp_path / "other", tmp_path / "parcel")
    with Index.open(tmp_path / "other", model="hash:16") as other:
        report = other.add(tmp_path / "parcel" / "documents.jsonl")
        assert (len(report.added), report.failed) == (5, ())


def test_what_is_to_be_made_anew_is_so_after_an_import(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    pdf(tmp_path / "files" / "tower.pdf", [("A red tower", "red")])
    (tmp_path / "files" / "note.txt").write_text("A note about towers.")
    with Index.open(tmp_path / "library", model="hash:32") as index:
        index.add(tmp_path / "files")
        index.rebuild(pdf_engine="pypdfium2")
        index.export(tmp_path / "parcel")
    assert json.loads((tmp_path / "parcel" / "manifest.json").read_text())["made_anew"] == [str(tmp_path / "files" / "tower.pdf")]
    assert len(Index.import_from(tmp_path / "other", tmp_path / "parcel").added) == 2
    assert len(Index.import_from(tmp_path / "other", tmp_path / "parcel").unchanged) == 2
    with Index.open(tmp_path / "other") as other:
        report = other.add(tmp_path / "files")
        assert [one.source for one in report.updated] == ["tower.pdf"]
        assert [one.source for one in report.unchanged] == ["note.txt"]
        assert len(other.add(tmp_path / "files").unchanged) == 2
        other.export(tmp_path / "whole")
    assert "made_anew" not in json.loads((tmp_path / "whole" / "manifest.json").read_text())
    manifest = tmp_path / "parcel" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "made_anew": [3]}))
    with pytest.raises(Damaged, match="made_anew"):
        Index.import_from(tmp_path / "third", tmp_path / "parcel")


def test_an_import_changes_and_keeps_what_is_there(index: Index, tmp_path: Path) -> None:
    index.export(tmp_path / "parcel")
    index.add([{"id": "bread", "text": "Changed since."}, {"id": "more", "text": "Added since."}])
    report = Index.import_from(index.path, tmp_path / "parcel")
    assert [one.source for one in report.updated] == ["bread"]
    assert index.document("bread").text == NOTES["bread"]
    assert index.stats().documents == 6
    assert index.verify() == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with token vectors, exported once."""
    where = tmp_path_factory.mktemp("exported")
    with Index.open(where / "library", **WITH_TOKENS, multi=True) as index:
        index.add(notes())
        index.export(where / "parcel")
    return where / "parcel"


@pytest.fixture
def parcel(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "parcel"))


def test_a_damaged_export_is_refused_whichever_file_it_is(parcel: Path, tmp_path: Path) -> None:
    files = [one for one in sorted(parcel.iterdir()) if one.name != "manifest.json"]
    assert len(files) == 7
    for file in files:
        flip(file, -3)
        with pytest.raises(Damaged, match=file.name):
            Index.import_from(tmp_path / "new", parcel)
        flip(file, -3)
    assert not (tmp_path / "new").exists()


def _sealed_anew(parcel: Path, **changes: Any) -> None:
    """The manifest made to fit what the files were changed to, as whoever writes such a folder on purpose would."""
    manifest = json.loads((parcel / "manifest.json").read_text())
    manifest["files"] = {name: hashlib.sha256((parcel / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (parcel / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("units", [[1, 0, 99999, []]]), ("units", [[77, 0, 3, []]]), ("text", 5), ("pages", [{}]), ("origin", {}), ("id", None)],
)
def test_an_export_that_says_the_impossible_is_refused_by_line(index: Index, tmp_path: Path, field: str, value: Any) -> None:
    parcel = tmp_path / "parcel"
    index.export(parcel)
    lines = (parcel / "documents.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), field: value})
    (parcel / "documents.jsonl").write_text("\n".join(lines) + "\n")
    _sealed_anew(parcel)
    with pytest.raises(Damaged, match="77 to 77" if value == [[77, 0, 3, []]] else "line 3"):
        Index.import_from(tmp_path / "new", parcel)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("chunk.multi.npy", lambda values: values[:-1]),
        ("chunk.multi.npy", lambda values: values.astype(np.float32)),
        ("chunk.multi.npy", lambda values: values * 0),
        ("chunk.multi.npy", lambda values: values | 254),
        ("chunk.multi.offsets.npy", lambda offsets: offsets[::-1].copy()),
        ("chunk.multi.offsets.npy", lambda offsets: offsets[:-1]),
        ("chunk.multi.keys.npy", lambda keys: keys * 0),
        ("chunk.multi.keys.npy", lambda keys: keys + 1000),
        ("chunk.dense.npy", lambda rows: rows * np.float16(2)),
        ("chunk.dense.npy", lambda rows: rows[:, :0]),
        ("chunk.dense.keys.npy", lambda keys: keys[:-1]),
    ],
)
def test_vectors_that_no_index_stores_are_refused(parcel: Path, tmp_path: Path, name: str, change: Any) -> None:
    np.save(parcel / name, change(np.load(parcel / name)))
    _sealed_anew(parcel)
    with pytest.raises(Damaged, match=parcel.name):
        Index.import_from(tmp_path / "new", parcel)


def test_another_quantiser_than_the_recipes_is_refused(parcel: Path, tmp_path: Path) -> None:
    told = json.loads((parcel / "chunk.multi.json").read_text())
    (parcel / "chunk.multi.json").write_text(json.dumps({**told, "step": told["step"] * 2}))
    _sealed_anew(parcel)
    with pytest.raises(Damaged, match=r"chunk\.multi"):
        Index.import_from(tmp_path / "new", parcel)


def test_an_export_of_the_first_version_is_read(index: Index, tmp_path: Path) -> None:
    parcel = tmp_path / "parcel"
    index.export(parcel)
    expected = answers(index)
    (parcel / "chunk.dense.keys.npy").rename(parcel / "keys.npy")
    manifest = json.loads((parcel / "manifest.json").read_text())
    files = {name.replace("chunk.dense.keys", "keys"): digest for name, digest in manifest["files"].items()}
    (parcel / "manifest.json").write_text(json.dumps({**manifest, "ragkit": 1, "spaces": ["chunk.dense"], "files": files}))
    Index.import_from(tmp_path / "new", parcel)
    with Index.open(tmp_path / "new") as found:
        _assert_same_answers(answers(found), expected)


def test_an_import_that_was_cut_short_is_completed_by_another(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.export(tmp_path / "parcel")
    monkeypatch.setattr("ragkit.care.import_.BATCH", 1)

    def stop(step: Any) -> None:
        if step.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.import_from(tmp_path / "new", tmp_path / "parcel", progress=stop)
    report = Index.import_from(tmp_path / "new", tmp_path / "parcel")
    assert (len(report.unchanged), len(report.added)) == (3, 2)
    with Index.open(tmp_path / "new") as found:
        assert found.verify() == []
        assert found.stats().documents == 5


def test_something_else_is_refused(index: Index, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    with pytest.raises(StorageError, match="ragkit export"):
        Index.import_from(tmp_path / "new", tmp_path / "else")
    with pytest.raises(StorageError, match="not there yet"):
        index.export(index.path)

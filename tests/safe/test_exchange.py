"""What is exported can be read by anybody, and imported elsewhere it answers the same, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index
from ragkit.errors import Damaged, StorageError
from tests.index.conftest import NOTES
from tests.safe.damage import answers, flip
from tests.safe.golden.make import SETTINGS, records


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
    with monkeypatch.context() as patch:
        patch.setattr("ragkit.opening.load_encoder", None)  # no model is there
        report = Index.import_from(tmp_path / "new", tmp_path / "parcel")
    assert len(report.added) == 5
    with Index.open(tmp_path / "new") as index:
        found = answers(index)
        assert {key: [hit[:3] for hit in hits] for key, hits in found.items()} == {
            key: [hit[:3] for hit in hits] for key, hits in expected.items()
        }
        assert {key: hits for key, hits in found.items() if key[0] == "dense"} == {
            key: hits for key, hits in expected.items() if key[0] == "dense"
        }
        for name, (document, meta, lang) in documents.items():
            row = index.find(name)[0]
            assert (dict(row.meta), row.lang) == (meta, lang)
            _assert_same_document(index.document(name), document)
        assert index.verify() == []
        assert len(index.add([one for one in records() if not isinstance(one, dict) or one["id"] != "bread"]).unchanged) == 5
    assert len(Index.import_from(tmp_path / "new", tmp_path / "parcel").unchanged) == 5


def _assert_same_document(found: Any, expected: Any) -> None:
    assert (found.text, found.title, found.blocks, found.mime) == (expected.text, expected.title, expected.blocks, expected.mime)
    assert len(found.pages) == len(expected.pages)
    for page, wanted in zip(found.pages, expected.pages, strict=True):
        names = ("number", "width", "height", "span", "label", "rotation")
        assert [getattr(page, name) for name in names] == [getattr(wanted, name) for name in names]
        np.testing.assert_array_equal(page.words.spans, wanted.words.spans)
        np.testing.assert_array_equal(page.words.boxes, wanted.words.boxes)


def test_numpy_and_json_alone_can_read_it(rich: Path, tmp_path: Path) -> None:
    keys, rows = np.load(tmp_path / "parcel" / "keys.npy"), np.load(tmp_path / "parcel" / "chunk.dense.npy")
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


def test_an_import_changes_and_keeps_what_is_there(index: Index, tmp_path: Path) -> None:
    index.export(tmp_path / "parcel")
    index.add([{"id": "bread", "text": "Changed since."}, {"id": "more", "text": "Added since."}])
    report = Index.import_from(index.path, tmp_path / "parcel")
    assert [one.source for one in report.updated] == ["bread"]
    assert index.document("bread").text == NOTES["bread"]
    assert index.stats().documents == 6
    assert index.verify() == []


@pytest.mark.parametrize("name", ["documents.jsonl", "keys.npy", "chunk.dense.npy"])
def test_a_damaged_export_is_refused(index: Index, tmp_path: Path, name: str) -> None:
    index.export(tmp_path / "parcel")
    flip(tmp_path / "parcel" / name, -3)
    with pytest.raises(Damaged, match=name):
        Index.import_from(tmp_path / "new", tmp_path / "parcel")


@pytest.mark.parametrize(
    ("field", "value"),
    [("units", [[1, 0, 99999, []]]), ("units", [[77, 0, 3, []]]), ("text", 5), ("pages", [{}]), ("origin", {}), ("id", None)],
)
def test_an_export_that_says_the_impossible_is_refused_by_line(index: Index, tmp_path: Path, field: str, value: Any) -> None:
    import hashlib

    parcel = tmp_path / "parcel"
    index.export(parcel)
    lines = (parcel / "documents.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), field: value})
    (parcel / "documents.jsonl").write_text("\n".join(lines) + "\n")
    manifest = json.loads((parcel / "manifest.json").read_text())
    manifest["files"]["documents.jsonl"] = hashlib.sha256((parcel / "documents.jsonl").read_bytes()).hexdigest()
    (parcel / "manifest.json").write_text(json.dumps(manifest))
    if (field, value) == ("units", [[77, 0, 3, []]]):
        return  # a unit without a vector is found by its words alone
    with pytest.raises(Damaged, match="line 3"):
        Index.import_from(tmp_path / "new", parcel)


def test_something_else_is_refused(index: Index, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    with pytest.raises(StorageError, match="ragkit export"):
        Index.import_from(tmp_path / "new", tmp_path / "else")
    with pytest.raises(StorageError, match="not there yet"):
        index.export(index.path)

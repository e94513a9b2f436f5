"""An index written by every version of the format so far is read, word for word, and written to; a newer one is refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index, MaxSimIndex
from ragkit.core.arrays import unit_rows
from ragkit.core.errors import FormatTooNew
from ragkit.store.catalog import schema
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.database import store_settings
from ragkit.testing import HashEncoder
from tests.care.golden import make

FORMATS = range(1, schema.FORMAT + 1)


def unpacked(tmp_path: Path, number: int) -> tuple[Path, dict[str, Any]]:
    with tarfile.open(make.HERE / f"format-{number}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected: dict[str, Any] = json.loads((make.HERE / f"format-{number}.json").read_text())
    return tmp_path / "golden", expected


@pytest.mark.parametrize("number", FORMATS)
def test_an_index_of_every_format_so_far_is_read_as_it_was_written(tmp_path: Path, number: int) -> None:
    path, expected = unpacked(tmp_path, number)
    with Index.open(path) as index:
        assert index.verify() == [], "the format changed: raise FORMAT, and write what migrates the one before"
        assert [[row.source, row.title, dict(row.meta), row.units] for row in index.documents()] == expected["documents"]
        assert make.answers(index) == expected["answers"]


@pytest.mark.parametrize("number", FORMATS)
def test_an_index_of_every_format_so_far_goes_on(tmp_path: Path, number: int) -> None:
    path, _ = unpacked(tmp_path, number)

    class Counting(HashEncoder):
        embedded = 0

        def encode_document(self, documents: Any, **options: Any) -> Any:
            self.embedded += len(documents)
            return super().encode_document(documents, **options)

    encoder = Counting(dims=32)
    with Index.open(path, **{**make.SETTINGS, "model": encoder}) as index:
        assert index.encoder is encoder
        probes = encoder.embedded
        report = index.add([one for one in make.records() if not isinstance(one, dict) or one["id"] != "bread"])
        assert (len(report.unchanged), encoder.embedded) == (5, probes), "a recipe's hash changed: everything is embedded again"
        index.add([{"id": "new", "text": "New words of a later version."}])
        index.compact()
        assert index.search("later version", 1)[0].document_id == "new"
        assert index.verify() == []


def test_token_vectors_from_before_codes_had_weights_are_read_and_given_some_when_they_are_merged(tmp_path: Path) -> None:
    with tarfile.open(make.HERE / "unweighed.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((make.HERE / "unweighed.json").read_text())
    rng = np.random.default_rng(8)
    items = {key: unit_rows(rng.normal(size=(int(size), 24))) for key, size in enumerate(rng.integers(1, 9, 12))}
    with MaxSimIndex.open(tmp_path / "golden") as index:
        assert index.verify() == []
        keys, scores = index.search(items[5], k=20)
        assert keys.tolist() == expected["keys"]
        np.testing.assert_allclose(scores, expected["scores"], atol=0.02)  # the query has steps of its own now
        assert index.explain(items[5], 5).score == scores[0]
        assert [one["step"] for one in index.stats()] == [0.0079345703125]
        index.add([3], [items[3]])
        index.compact()
        assert [one["step"] for one in index.stats()] == [2.0**-14]
        again = dict(zip(*map(list, index.search(items[5], k=20)), strict=True))
        exact = {key: float((items[5] @ rows.T).max(axis=1).sum()) for key, rows in items.items()}
        assert again.keys() == exact.keys()
        assert max(abs(again[key] - score) for key, score in zip(keys.tolist(), scores, strict=True)) < 0.03
        assert max(abs(again[key] - exact[key]) for key in exact) < 0.05
        assert index.verify() == []


def test_a_newer_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path, _ = unpacked(tmp_path, schema.FORMAT)
    catalog = Catalog(path / "catalog.db")
    with catalog.writing() as connection:
        store_settings(connection, {"format": schema.FORMAT + 1})
    catalog.close()
    with pytest.raises(FormatTooNew, match=rf"has format {schema.FORMAT + 1}.*pip install -U ragkit"):
        Index.open(path)

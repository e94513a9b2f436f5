"""The example that turns an export into Parquet and back: nothing is lost, and pyarrow alone can read the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index, MaxSimIndex
from ragkit.core.arrays import unit_rows
from ragkit.core.errors import StorageError
from ragkit.testing import HashEncoder
from tests.care.golden.make import SETTINGS, records
from tests.conftest import records as notes
from tests.examples.test_corpus import EXAMPLES
from tests.index.test_pages import pdf

pytest.importorskip("pyarrow")
WITH_TOKENS: dict[str, Any] = {"model": HashEncoder(dims=32, multi_dims=18), "chunk_tokens": 16}


def convert(direction: str, folder: Path, target: Path) -> None:
    subprocess.run([sys.executable, str(EXAMPLES / "export_parquet.py"), direction, str(folder), str(target)], check=True)


def assert_same_export(first: Path, second: Path) -> None:
    """The same arrays and documents in two export folders, and files of the same names."""
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.glob("*.npy"):
        np.testing.assert_array_equal(np.load(path), np.load(second / path.name))
    if (first / "documents.jsonl").exists():
        lines = [[json.loads(line) for line in (each / "documents.jsonl").read_text().splitlines()] for each in (first, second)]
        assert lines[0] == lines[1]


@pytest.mark.parametrize("multi", [None, "int8", "float16", "float32"])
def test_an_export_comes_back_from_parquet_whole(tmp_path: Path, multi: str | None) -> None:
    settings = SETTINGS if multi is None else {**WITH_TOKENS, "multi": multi}
    with Index.open(tmp_path / "library", **settings) as index:
        index.add(records() if multi is None else notes())
        index.export(tmp_path / "exported")
        documents = index.stats().documents
    convert("to-parquet", tmp_path / "exported", tmp_path / "tables")
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".parquet", ".json"}
    convert("from-parquet", tmp_path / "tables", tmp_path / "again")
    assert_same_export(tmp_path / "exported", tmp_path / "again")
    assert len(Index.import_from(tmp_path / "new", tmp_path / "again").added) == documents


def test_pages_and_their_images_come_back(tmp_path: Path) -> None:
    pdf(tmp_path / "tower.pdf", [("A red tower", "red"), ("A blue door", "blue")])
    model = HashEncoder(dims=64, multi_dims=32, images=True)
    with Index.open(tmp_path / "library", model=model, pages="all") as index:
        index.add(tmp_path / "tower.pdf")
        index.export(tmp_path / "exported")
    convert("to-parquet", tmp_path / "exported", tmp_path / "tables")
    convert("from-parquet", tmp_path / "tables", tmp_path / "again")
    assert_same_export(tmp_path / "exported", tmp_path / "again")


def test_an_index_of_vectors_alone_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    items = {key: unit_rows(rng.normal(size=(int(rng.integers(1, 9)), 10))) for key in (5, -7, 1 << 60)}
    with MaxSimIndex.open(tmp_path / "vectors", dim=10, precision="float32") as index:
        index.add(list(items), list(items.values()))
        index.commit()
        index.export(tmp_path / "exported")
    convert("to-parquet", tmp_path / "exported", tmp_path / "tables")
    convert("from-parquet", tmp_path / "tables", tmp_path / "again")
    assert_same_export(tmp_path / "exported", tmp_path / "again")
    assert MaxSimIndex.import_from(tmp_path / "new", tmp_path / "again") == 3


def test_pyarrow_alone_can_read_it(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with Index.open(tmp_path / "library", **WITH_TOKENS, multi="float16") as index:
        index.add(notes())
        index.export(tmp_path / "exported")
        convert("to-parquet", tmp_path / "exported", tmp_path / "tables")
        tables = {file.stem: parquet.read_table(file).to_pylist() for file in (tmp_path / "tables").glob("*.parquet")}
        documents = {row["id"]: row for row in tables["documents"]}
        dense, multi = (
            {row["key"]: np.array(row[column], dtype=np.float32) for row in tables[space]}
            for space, column in (("chunk.dense", "vector"), ("chunk.multi", "vectors"))
        )
        encoding = index.encoder.encode_query(["granite"])
        assert encoding.dense is not None
        assert encoding.multi is not None
        for hit in index.search("granite", 50, mode="dense"):
            document = documents[hit.document_id]
            [unit] = [unit for unit in document["units"] if unit["key"] == hit.key]
            assert document["text"][unit["start"] : unit["end"]] == hit.text
            assert float(dense[hit.key] @ encoding.dense[0]) == pytest.approx(hit.score, abs=1e-4)
        for hit in index.search("granite", 50, mode="multi"):
            score = float((encoding.multi[0] @ multi[hit.key].T).max(axis=1).sum())
            assert score == pytest.approx(hit.score, abs=2e-3)


def test_an_export_of_parquet_is_refused_with_the_way_out(tmp_path: Path) -> None:
    manifest = {"ragkit": 2, "files": {}, "spaces": {"chunk.dense": {"form": "parquet"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match=r"export_parquet\.py"):
        Index.import_from(tmp_path / "new", tmp_path)

"""Every byte of every file of a small index, flipped: found, or without any effect. Sampled here; `make flip` tries each."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.catalog.catalog import Catalog
from ragkit.catalog.mend import incomplete
from ragkit.checked import CheckedFolder
from ragkit.errors import RagkitError
from ragkit.verify import damaged_files
from tests.safe.damage import answers

SAMPLE = 97


@pytest.fixture
def closed(index: Index) -> Path:
    """An index of six documents, one of them deleted, with all of its catalog in one file."""
    index.add([{"id": "long", "text": " ".join(f"Sentence {n} of a longer text." for n in range(60)), "title": "Long"}])
    index.delete("bread")
    index.close()
    catalog = sqlite3.connect(index.path / "catalog.db")
    catalog.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    catalog.execute("VACUUM")
    catalog.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    catalog.close()
    return index.path


def sealed_flips(path: Path, *, step: int) -> Counter[str]:
    """Each `step`-th byte of each sealed file, one bit of it: found by the verifier's own reading, or missed."""
    catalog = Catalog(path / "catalog.db")
    commit = catalog.latest()
    names = [("segments", row.id) for row in catalog.segments(commit.number)] + [("lexical", commit.lexical)]
    folders = [CheckedFolder(path / parent / name, catalog.files(name)) for parent, name in names]
    catalog.close()
    counts: Counter[str] = Counter()
    draw = random.Random(3)
    for folder in folders:
        for name in folder.records:
            file = folder.path / name
            whole = file.read_bytes()
            one = CheckedFolder(folder.path, [folder.records[name]])
            for at in range(draw.randrange(step), len(whole), step):
                file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
                counts["found" if [path for path, _ in damaged_files([one])] == [file] else "missed"] += 1
            file.write_bytes(whole)
    return counts


def catalog_flips(path: Path, *, step: int) -> Counter[str]:
    """Each `step`-th byte of catalog.db: found; or harmless, since every row of every table is read as before; or missed."""
    file = path / "catalog.db"
    whole = file.read_bytes()
    expected = _rows(file)
    counts: Counter[str] = Counter()
    draw = random.Random(5)
    for at in range(draw.randrange(step), len(whole), step):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        if _problems(file):
            counts["found"] += 1
        else:
            counts["harmless" if _rows(file) == expected else f"missed at {at}"] += 1
        for left in ("catalog.db-wal", "catalog.db-shm"):
            (path / left).unlink(missing_ok=True)
    file.write_bytes(whole)
    return counts


def _problems(file: Path) -> list[Any]:
    try:
        catalog = Catalog(file)
        try:
            catalog.check_format()
            found: list[Any] = list(catalog.damaged_rows())
            return found or [*incomplete(catalog), *catalog.spent_counters()]
        finally:
            catalog.close()
    except RagkitError as error:
        return [error]


def _rows(file: Path) -> Any:
    """All that the catalog says, read by SQLite alone."""
    catalog = sqlite3.connect(file)
    try:
        tables = [name for (name,) in catalog.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [(table, catalog.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()) for table in tables]
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        catalog.close()


def assert_found(counts: Counter[str]) -> None:
    missed = sum(number for name, number in counts.items() if name.startswith("missed"))
    assert missed <= 0.001 * (counts["found"] + missed), counts


def test_a_flipped_byte_of_vectors_or_words_is_found(closed: Path) -> None:
    counts = sealed_flips(closed, step=SAMPLE)
    assert counts["found"] > 100
    assert_found(counts)
    with Index.open(closed) as index:
        assert index.verify() == []


def test_a_flipped_byte_of_the_catalog_is_found_or_changes_nothing(closed: Path) -> None:
    counts = catalog_flips(closed, step=7 * SAMPLE)
    assert counts["found"] > 8
    assert_found(counts)


@pytest.mark.slow
def test_every_flipped_byte_is_found_or_changes_nothing(closed: Path) -> None:
    sealed = sealed_flips(closed, step=1)
    print(f"segments and words: {dict(sealed)}")
    assert_found(sealed)
    catalog = catalog_flips(closed, step=1)
    print(f"catalog: {dict(catalog)}")
    assert_found(catalog)


@pytest.mark.slow
def test_two_thousand_flipped_bytes_give_the_same_answers_or_an_error(closed: Path) -> None:
    with Index.open(closed) as index:
        expected = answers(index)
    files = [one for one in closed.rglob("*") if one.is_file() and one.name != "LOCK" and not one.name.endswith(("-wal", "-shm"))]
    draw = random.Random(17)
    counts: Counter[str] = Counter()
    for _ in range(2000):
        file = draw.choices(files, [one.stat().st_size for one in files])[0]
        whole = file.read_bytes()
        at = draw.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        try:
            with Index.open(closed) as index:
                counts["the same" if answers(index) == expected else f"wrong: {file.name} at {at}"] += 1
        except RagkitError:
            counts["an error"] += 1
        for left in ("catalog.db-wal", "catalog.db-shm"):
            (closed / left).unlink(missing_ok=True)
        file.write_bytes(whole)
    print(dict(counts))
    assert set(counts) == {"the same", "an error"}

"""Every byte of every file of a small index, flipped: found, or without any effect. Sampled here; `make flip` tries each."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.care.verify import damaged_files
from ragkit.core.errors import Damaged, RagkitError
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.check import damaged_rows, spent_counters
from ragkit.store.catalog.salvage import incomplete
from ragkit.store.local.files import CheckedFolder
from tests.care.damage import answers, flip, in_catalog

SAMPLE = 97


@pytest.fixture
def closed(index: Index) -> Path:
    """An index of six documents, one of them deleted, at rest."""
    index.add([{"id": "long", "text": " ".join(f"Sentence {n} of a longer text." for n in range(60)), "title": "Long"}])
    index.delete("bread")
    index.close()
    assert {one.name for one in index.path.iterdir()} == {"LOCK", "catalog.db", "lexical", "segments"}
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
    whole, expected = file.read_bytes(), _rows(file)
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
            found: list[Any] = list(damaged_rows(catalog))
            return found or [*incomplete(catalog), *spent_counters(catalog)]
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
    counts = catalog_flips(closed, step=9 * SAMPLE)
    assert counts["found"] > 5
    assert counts["harmless"] > 5
    assert_found(counts)


def test_a_flip_in_free_space_changes_no_answer(closed: Path) -> None:
    file = closed / "catalog.db"
    with Index.open(closed) as index:
        expected = answers(index)
    flip(file, _free_byte(file))
    with Index.open(closed) as index:
        assert answers(index) == expected
        assert index.verify() == []
        index.add([{"id": "after", "text": "Added after a flip."}])
        index.compact()
        assert index.verify() == []
        index.delete("after")
        assert answers(index) == expected


def test_the_checksums_that_an_earlier_ragkit_left_are_ignored(closed: Path) -> None:
    (closed / "catalog.sums").write_bytes(bytes(24))
    with Index.open(closed) as index:
        assert index.verify() == []
        index.add([{"id": "later", "text": "Added later."}])
        assert index.verify() == []


def _free_byte(file: Path) -> int:
    """A byte of a table's page that no cell and no pointer to one covers: just before the cells begin."""
    body = file.read_bytes()
    size = int.from_bytes(body[16:18], "big")
    for start in range(size, len(body), size):
        cells, content = (int.from_bytes(body[start + at : start + at + 2], "big") for at in (3, 5))
        if body[start] == 13 and content > 8 + 2 * cells + 64:
            return start + content - 32
    raise AssertionError("no page has free space")


def test_what_is_done_does_not_stay_in_the_log(index: Index) -> None:
    """SQLite takes the frames before a broken one for all there were; what is not in the log cannot be lost there."""
    log = index.path / "catalog.db-wal"
    script = (
        "import os, sys\nfrom ragkit import Index\nindex = Index.open(sys.argv[1])\n"
        "index.add([{'id': 'new', 'text': 'Said to be done.'}])\nindex.delete('bread')\nos._exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, index.path], check=False).returncode == 3  # it closed nothing
    assert log.stat().st_size == 0
    with index._catalog.reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM documents").fetchall()  # somebody reads an older state
        index.delete("quarry")
        assert log.stat().st_size > 0
    index.delete("harbour")
    assert log.stat().st_size == 0
    assert {row.source for row in index.documents()} == {"otter", "bridge", "new"}
    assert index.verify() == []


@pytest.mark.slow
def test_every_flipped_byte_of_vectors_and_words_is_found(closed: Path) -> None:
    counts = sealed_flips(closed, step=1)
    print(f"segments and words: {dict(counts)}")
    assert set(counts) == {"found"}


@pytest.mark.slow
def test_many_flipped_bytes_of_the_catalog_are_found_or_change_nothing(closed: Path) -> None:
    counts = catalog_flips(closed, step=13)  # each costs a check of all rows: every byte would take an hour
    print(f"every thirteenth: {dict(counts)}")
    assert_found(counts)


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


@pytest.mark.parametrize("change", ["SET deleted = 0", "SET deleted = 1", "SET added = 99"])
def test_a_flip_hides_no_segment(closed: Path, change: str) -> None:
    in_catalog(closed, f"UPDATE segments {change}")
    with Index.open(closed) as index:
        with pytest.raises(Damaged, match=r"of segments does not match its checksum.*ragkit repair"):
            index.search("granite", mode="dense")
        index.repair()
        assert index.search("granite", mode="dense")


def test_a_flip_hides_no_document(closed: Path) -> None:
    in_catalog(closed, "UPDATE documents SET added = 99 WHERE source = 'quarry'")
    with Index.open(closed) as index:
        out = closed.parent / "out"
        for ask in (lambda: list(index.documents()), lambda: index.export(out), lambda: index.rebuild(chunk_tokens=8)):
            with pytest.raises(Damaged, match="of documents does not match its checksum"):
                ask()


def test_a_segment_whose_row_is_gone_is_damage_and_no_answer(closed: Path) -> None:
    with Index.open(closed) as index:
        expected = answers(index)
    _lose_last(closed / "catalog.db", "segments")
    with Index.open(closed) as index:
        with pytest.raises(Damaged, match=r"its segments hold 0.*ragkit repair"):
            index.search("granite", mode="dense")
        rest = index.search("granite", degraded=True)
        assert "its segments hold 0" in rest.missing[0]
        assert answers(index, degraded=True)["lexical", "fish"] == expected["lexical", "fish"]


def _lose_last(file: Path, table: str) -> None:
    """Flip the bit of a page's number of cells that hides the last of them."""
    with closing(sqlite3.connect(file)) as catalog:
        ((page,),) = catalog.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))
        ((size,),) = catalog.execute("PRAGMA page_size")
    flip(file, (page - 1) * size + 4)


def test_a_damaged_index_of_the_settings_is_made_anew(closed: Path) -> None:
    with Index.open(closed) as index:
        expected = answers(index)
    _lose_last(closed / "catalog.db", "sqlite_autoindex_settings_1")
    with Index.open(closed) as index:
        assert answers(index) == expected
        assert index.verify()
        assert index.repair().lost == ()
        assert index.verify() == []
        assert answers(index) == expected


def test_a_document_whose_row_is_gone_is_damage_and_no_answer(closed: Path) -> None:
    with closing(sqlite3.connect(closed / "catalog.db")) as catalog, catalog:
        assert catalog.execute("DELETE FROM documents WHERE source = 'long'").rowcount == 1
    with Index.open(closed) as index, pytest.raises(Damaged, match="no unit"):
        index.search("sentence of a longer text")

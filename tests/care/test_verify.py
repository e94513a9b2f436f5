"""Damage is found: a flipped byte anywhere is a finding, and never a silently different answer or a crash."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.core.errors import RagkitError
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, record
from tests.index.test_index import answers

FLIPS = 60


def test_an_index_that_was_written_is_whole(index: Index) -> None:
    index.add([record("bread", "Changed."), {"id": "new", "text": "A new one."}])
    index.delete("otter")
    assert index.verify() == []


def files_of(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_file() and one.name not in ("LOCK", "catalog.db-shm"))


def test_a_flipped_byte_in_a_segment_or_generation_is_found(index: Index, tmp_path: Path) -> None:
    index.close()
    draw = random.Random(7)
    targets = [one for one in files_of(index.path) if one.parent.parent.name in ("segments", "lexical")]
    for file in targets:
        whole = file.read_bytes()
        at = draw.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        with Index.open(index.path) as damaged:
            assert any(file.name in finding.problem for finding in damaged.verify()), file
        file.write_bytes(whole)


def test_a_flipped_byte_anywhere_gives_the_same_answers_or_an_error(index: Index, tmp_path: Path) -> None:
    expected = answers(index)
    index.close()
    sqlite3.connect(index.path / "catalog.db").execute("PRAGMA wal_checkpoint(TRUNCATE)")
    draw = random.Random(11)
    caught = 0
    for flip in range(FLIPS):
        copy = tmp_path / f"flip{flip}"
        shutil.copytree(index.path, copy)
        files = [one for one in files_of(copy) if one.stat().st_size]
        # The catalog is most of the bytes, and the only file without checksums of its own: it gets most of the flips.
        file = copy / "catalog.db" if flip % 4 else draw.choice(files)
        whole = bytearray(file.read_bytes())
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(whole)
        try:
            with Index.open(copy, model=HashEncoder(dims=64)) as damaged:
                found: Any = answers(damaged)
        except RagkitError:
            caught += 1
        else:
            assert found == expected, f"flip {flip} in {file.name} changed an answer in silence"
        shutil.rmtree(copy)
    assert caught > 0


def test_a_missing_file_and_an_unknown_folder_are_found(index: Index) -> None:
    index.close()
    next((index.path / "segments").glob("*/keys.npy")).unlink()
    (index.path / "segments" / "left-by-a-crash").mkdir()
    with Index.open(index.path) as damaged:
        problems = " ".join(finding.problem for finding in damaged.verify())
    assert "keys.npy" in problems
    assert "left-by-a-crash" in problems


def test_what_a_crash_left_is_removed_by_the_next_writer(index: Index) -> None:
    left = index.path / "segments" / "left-by-a-crash"
    left.mkdir()
    index.add([{"id": "x", "text": NOTES["bread"]}])
    assert not left.exists()


def test_a_row_that_disagrees_with_its_checksum_is_found(index: Index) -> None:
    index.close()
    with sqlite3.connect(index.path / "catalog.db") as catalog:
        catalog.execute("UPDATE units SET end = end - 1 WHERE key = 3")
    with Index.open(index.path) as damaged:
        assert any("units" in finding.problem and "key=3" in finding.problem for finding in damaged.verify())
        with pytest.raises(RagkitError, match="damaged"):
            damaged.search("fish", 100, mode="dense")

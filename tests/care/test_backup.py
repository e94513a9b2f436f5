"""A backup is the index as of one commit, whole, whatever happens meanwhile; restoring is copying it back."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from ragkit import Index
from ragkit.core.errors import Damaged, StorageError
from tests.care.damage import answers, flip, only
from tests.conftest import record


def test_a_backup_answers_the_same_and_is_whole(index: Index, tmp_path: Path) -> None:
    index.delete("bread")
    report = index.backup(tmp_path / "copies" / "today")
    assert (report.commit, report.documents, report.units) == (index.stats().commit, 4, index.stats().units)
    with Index.open(tmp_path / "copies" / "today") as copy:
        assert copy.verify() == []
        assert answers(copy) == answers(index)
    assert report.bytes >= sum(path.stat().st_size for path in (tmp_path / "copies" / "today").rglob("*.npy"))


def test_restoring_is_copying_the_folder_back(index: Index, tmp_path: Path) -> None:
    before = answers(index)
    index.backup(tmp_path / "backup")
    index.delete(["otter", "bread"])
    index.close()
    shutil.rmtree(index.path)
    shutil.copytree(tmp_path / "backup", index.path)
    with Index.open(index.path) as restored:
        assert answers(restored) == before
        restored.add([record("otter", "Changed after restoring.")])
        assert restored.verify() == []


def test_a_backup_is_independent_of_its_source(index: Index, tmp_path: Path) -> None:
    index.backup(tmp_path / "backup")
    with Index.open(tmp_path / "backup") as copy:
        expected = answers(copy)
        copy.add([{"id": "only here", "text": "Words in the copy."}])
        copy.delete("only here")
    assert "only here" not in {row.source for row in index.documents()}
    index.close()
    shutil.rmtree(index.path)
    with Index.open(tmp_path / "backup") as copy:
        assert {key: hits for key, hits in answers(copy).items() if key[0] == "dense"} == {
            key: hits for key, hits in expected.items() if key[0] == "dense"
        }


def test_backups_made_while_documents_are_added_are_each_of_one_commit(index: Index, tmp_path: Path) -> None:
    stop, errors = threading.Event(), []

    def write() -> None:
        try:
            version = 0
            while not stop.is_set():
                version += 1
                text = " ".join(f"Version {version} sentence {n} of the text." for n in range(8))
                index.add([{"id": "versioned", "text": text}, {"id": f"extra {version}", "text": f"Version {version}."}])
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(6):
        while index.stats().commit < 2 + 2 * number and writer.is_alive():
            time.sleep(0.01)
        index.backup(tmp_path / f"backup{number}")
    stop.set()
    writer.join()
    assert errors == []
    commits = set()
    for number in range(6):
        with Index.open(tmp_path / f"backup{number}") as copy:
            assert copy.verify() == []
            commits.add(copy.stats().commit)
            versions = {hit.text.split()[1] for hit in copy.search("Version", 50, mode="dense", filters={"source": "versioned"})}
            extras = [int(row.source.split()[1]) for row in copy.documents() if row.source.startswith("extra")]
            assert versions == ({str(max(extras))} if extras else set())
            assert sorted(extras) == list(range(1, len(extras) + 1))
    assert len(commits) > 1, "nothing was added meanwhile"


def test_nothing_that_exists_is_overwritten(index: Index, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("precious")
    with pytest.raises(StorageError, match="not there yet"):
        index.backup(tmp_path / "mine")
    index.backup(tmp_path / "backup")
    with pytest.raises(StorageError, match="not there yet"):
        index.backup(tmp_path / "backup")
    assert (tmp_path / "mine" / "letter").read_text() == "precious"


def test_damage_is_not_copied_under_a_backups_name(index: Index, tmp_path: Path) -> None:
    index.close()
    flip(only((index.path / "segments").glob("*/chunk.dense.npy")), -5)
    with (
        Index.open(index.path) as damaged,
        pytest.raises(Damaged, match=r"chunk.dense.npy.*ragkit repair"),
    ):
        damaged.backup(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    assert not list(tmp_path.glob(".backup*"))


def test_what_a_killed_backup_left_is_removed_by_the_next(index: Index, tmp_path: Path) -> None:
    left = tmp_path / ".backup.backup-killed"
    left.mkdir()
    (left / "catalog.db").write_bytes(b"half")
    index.backup(tmp_path / "backup")
    assert not left.exists()

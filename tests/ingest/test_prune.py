"""Pruning deletes what is gone from the folders named in the call, and nothing else: not what a filter left out, not what
could not be read, not a whole disk that is not mounted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragkit import Index
from ragkit.core.errors import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/one.txt", "a/two.txt", "b/three.txt", "b/deep/four.txt", "ab/five.txt"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"The text of {name}.")
    return tmp_path / "files"


@pytest.fixture
def library(tmp_path: Path, folder: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "library", model="hash") as index:
        index.add(folder)
        index.add([{"id": "record", "text": "Not from a file."}])
        yield index


def names(index: Index) -> set[str]:
    return {row.source for row in index.documents()}


def test_without_prune_nothing_goes(library: Index, folder: Path) -> None:
    (folder / "a/one.txt").unlink()
    report = library.add(folder)
    assert report.pruned == ()
    assert "a/one.txt" in names(library)


def test_what_is_gone_beneath_the_named_roots_goes(library: Index, folder: Path) -> None:
    for name in ("a/one.txt", "b/three.txt", "ab/five.txt"):
        (folder / name).unlink()
    report = library.add(folder / "a", prune=True)
    assert [one.source for one in report.pruned] == ["a/one.txt"]
    assert names(library) == {"a/two.txt", "b/three.txt", "b/deep/four.txt", "ab/five.txt", "record"}
    assert "pruned 1" in str(report)
    (folder / "ab/six.txt").write_text("Six.")
    library.add([folder / "b", folder / "ab"], prune=True)
    assert names(library) == {"a/two.txt", "b/deep/four.txt", "six.txt", "record"}
    assert library.verify() == []


def test_a_folder_gone_beneath_the_root_goes_with_its_files(library: Index, folder: Path) -> None:
    shutil.rmtree(folder / "b")
    library.add(folder, prune=True)
    assert names(library) == {"a/one.txt", "a/two.txt", "ab/five.txt", "record"}


def test_what_a_filter_leaves_out_stays(library: Index, folder: Path) -> None:
    (folder / "a/one.txt").unlink()
    report = library.add(folder, prune=True, exclude=["two.txt", "deep/**"])
    assert [one.source for one in report.pruned] == ["a/one.txt"]
    assert {"a/two.txt", "b/deep/four.txt"} <= names(library)


def test_a_file_that_fails_now_keeps_its_former_version(library: Index, folder: Path) -> None:
    (folder / "a/one.txt").write_bytes(b"%PDF-1.7 not text")
    (folder / "a/one.txt").rename(folder / "a/one.pdf")
    (folder / "a/two.txt").unlink()
    (folder / "a/two.txt").mkdir()
    report = library.add(folder, prune=True)
    assert [one.source for one in report.failed] == ["a/one.pdf"]
    assert [one.source for one in report.pruned] == ["a/one.txt"]
    assert "a/two.txt" in names(library)  # something is there, though not a file


def test_an_empty_root_is_taken_for_a_disk_that_is_not_mounted(library: Index, folder: Path) -> None:
    before = names(library)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(StorageError, match="mounted"):
        library.add(folder, prune=True)
    assert names(library) == before


def test_records_that_left_their_file_go_unless_one_of_it_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    lines = [json.dumps({"id": f"n{n}", "text": f"Note {n}."}) for n in range(4)]
    path.write_text("\n".join(lines))
    with Index.open(tmp_path / "library", model="hash") as index:
        index.add(path)
        path.write_text("\n".join([*lines[:2], "{broken"]))
        assert index.add(path, prune=True).pruned == ()
        path.write_text("\n".join(lines[:2]))
        assert {one.source for one in index.add(path, prune=True).pruned} == {"notes.jsonl#n2", "notes.jsonl#n3"}
        assert names(index) == {"notes.jsonl#n0", "notes.jsonl#n1"}


def test_prune_is_refused_for_what_has_no_root(library: Index, folder: Path) -> None:
    with pytest.raises(ValueError, match="files and folders"):
        library.add([{"id": "x", "text": "y"}], prune=True)
    with pytest.raises(ValueError, match="include="):
        library.add(str(folder / "**" / "*.txt"), prune=True)

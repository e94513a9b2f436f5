"""What surrounds an index fails: a disk that is full, a folder that may only be read, one that is gone, a child that dies,
another writer. Each is told clearly, the index stays whole, and the same command completes the job."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ragkit import Index
from ragkit.core.errors import IndexLocked, StorageError
from ragkit.store.catalog.catalog import Catalog
from tests.apps.cli.running import run, run_json
from tests.care.damage import answers
from tests.conftest import NOTES, record


def _mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of three megabytes."""
    disk = tmp_path / "disk"
    if not _mounted(disk, "3m"):
        pytest.skip("only root may mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    with Index.open(small_disk / "library", model="hash:64") as index:
        index.add([record(name) for name in NOTES])
        before = answers(index)
        filler = small_disk / "filler"
        failed = 0
        for free in range(0, 400_000, 29_000):  # full at one place of the commit after the other
            filler.write_bytes(b"")
            left = shutil.disk_usage(small_disk).free
            with filler.open("wb") as file:
                file.write(bytes(max(0, left - free)))
            if not (message := _refusal(index)):
                break
            failed += 1
            assert "full" in message or "space" in message
            assert answers(index) == before
            with Index.open(small_disk / "library") as reader:
                assert answers(reader) == before
        assert failed > 2
        filler.unlink()
        index.add([{"id": "big", "text": "It fits now."}])
        index.delete("big")
        assert {key: hits for key, hits in answers(index).items() if key[0] == "dense"} == {
            key: hits for key, hits in before.items() if key[0] == "dense"
        }
        assert index.verify() == []


def _refusal(index: Index) -> str:
    """Add a large document; what is said where that fails."""
    try:
        index.add([{"id": "big", "text": " ".join(f"word{n * n}" for n in range(3000))}])
    except StorageError as error:
        return str(error)
    return ""


def test_a_full_disk_stops_a_backup_and_leaves_nothing_of_it(small_disk: Path, index: Index) -> None:
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(shutil.disk_usage(small_disk).free - 90_000))
    with pytest.raises(StorageError, match=r"[Ff]ree|full"):
        index.backup(small_disk / "copy")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    (small_disk / "filler").unlink()
    index.backup(small_disk / "copy")


def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not _mounted(disk, "8m"):
        pytest.skip("only root may mount")
    try:
        with Index.open(disk / "library", model="hash:64") as index:
            index.add([record(name) for name in NOTES])
            before = answers(index)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with Index.open(disk / "library") as index:
            assert answers(index) == before
            assert index.verify() == []
            for change in (lambda: index.add([record("bread", "Changed.")]), lambda: index.delete("bread"), index.compact):
                with pytest.raises(StorageError, match="cannot write"):
                    change()
            index.backup(tmp_path / "backup")
        with Index.open(tmp_path / "backup") as copy:
            assert answers(copy) == before
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with Index.open(disk / "library", model="hash:64") as index:
        index.add([record(name) for name in NOTES])
    disk.rename(tmp_path / "elsewhere")
    disk.mkdir()  # the empty place where it was mounted
    assert "no index" in run("search", disk / "library", "otters", code=1, process=True)
    shutil.rmtree(disk)
    (tmp_path / "elsewhere").rename(disk)
    assert run_json("search", disk / "library", "otters", process=True)


def test_a_disk_that_goes_away_while_it_is_open(index: Index, tmp_path: Path) -> None:
    index.search("fish")
    away = tmp_path / "away"
    index.path.rename(away)
    with pytest.raises(StorageError):
        index.add([record("bread", "Changed.")])
    away.rename(index.path)
    index.add([record("bread", "Changed.")])
    assert index.verify() == []


def test_whatever_a_catalog_is_asked_for_its_disk_that_is_gone_is_told(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "gone" / "catalog.db")
    for ask in (catalog.latest, catalog.state, catalog.settle):
        with pytest.raises(StorageError, match="folder read-only or gone"):
            ask()


def test_a_mount_that_is_lost_while_the_index_is_open(tmp_path: Path) -> None:
    """What is open goes on to see the disk, and names lead to the empty place beneath it."""
    real, disk = tmp_path / "real", tmp_path / "disk"
    with Index.open(real / "library", model="hash:64") as index:
        index.add([record(name) for name in NOTES])
        before = answers(index)
    disk.mkdir()
    mount = ["mount", "--bind", str(real), str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    try:
        with Index.open(disk / "library") as index:
            index.search("fish")
            subprocess.run(["umount", "-l", str(disk)], check=True)
            for change in (lambda: index.add([record("bread", "Changed.")]), lambda: index.delete("bread"), index.compact):
                with pytest.raises(StorageError, match=r"cannot write to .*Check that the folder exists"):
                    change()
            with pytest.raises(StorageError):
                index.backup(tmp_path / "backup")
            assert "no index" in run("search", disk / "library", "otters", code=1, process=True)
            assert list(disk.iterdir()) == []
            subprocess.run(mount, check=True)
            assert answers(index) == before
            index.add([record("bread", "Changed.")])
            assert index.verify() == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    with Index.open(real / "library") as index:
        assert index.document("bread").text == "Changed."
        assert index.verify() == []


def test_a_parser_that_is_killed_fails_its_document_alone(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(3):
        (folder / f"n{n}.txt").write_text(f"Note {n}.")
    killed = []

    def kill(step: object) -> None:
        if not killed:
            children = subprocess.run(
                ["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False
            ).stdout.split()
            killed.extend(children)
            for child in children:
                os.kill(int(child), signal.SIGKILL)

    with Index.open(tmp_path / "library", model="hash") as index:
        index.add(folder, progress=kill)
        report = index.add(folder)
        assert len(report.added) + len(report.updated) + len(report.unchanged) == 3
        assert index.stats().documents == 3
        assert index.verify() == []


def test_another_writer_is_named_and_waited_for(index: Index) -> None:
    script = (
        "import sys, time\nfrom ragkit import Index\n"
        f"with Index.open({str(index.path)!r}) as index, index._store.writer(timeout=0):\n"
        "    print('holds', flush=True)\n    time.sleep(float(sys.argv[1]))\n"
    )
    with _holding(script, "60") as holder:
        with pytest.raises(IndexLocked, match=str(holder.pid)):
            index.add([record("bread", "Changed.")], lock_timeout=0.1)
        assert index.search("bread")
        holder.kill()
        holder.wait()
        index.add([record("bread", "Changed.")], lock_timeout=5)  # the kernel lets go of a dead process's lock
    with _holding(script, "1"):
        started = time.monotonic()
        index.add([record("bread", "Changed again.")], lock_timeout=60)
        assert time.monotonic() - started > 0.2


@contextmanager
def _holding(script: str, seconds: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the writer's lock."""
    with subprocess.Popen([sys.executable, "-c", script, seconds], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        yield holder

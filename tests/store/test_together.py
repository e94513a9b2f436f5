"""One writes while many read; several contend to write; compaction meanwhile: nothing torn, lost, twice, or locked out."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ragkit import Index

ROOT = Path(__file__).parents[2]
READER = """
import json, sys, time
from ragkit import Index
path, seconds = sys.argv[1], float(sys.argv[2])
count, last = 0, 0
with Index.open(path) as index:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for mode in ("dense", "lexical", "hybrid"):
            hits = index.search("version sentence", 100, mode=mode, filters={"source": "versioned"})
            versions = {hit.text.split()[1] for hit in hits}
            assert len(versions) == 1 and len(hits) == 6, (mode, versions, len(hits))
            assert len({hit.key for hit in hits}) == 6
            now = int(versions.pop())
            assert now >= last, (now, last)
            last = now
            count += 1
print(json.dumps({"searches": count, "last": last}))
"""
WRITER = """
import sys
from ragkit import Index
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Index.open(path) as index:
    for n in range(count):
        index.add([{"id": f"{name}-{n}", "text": f"Document {n} of writer {name}."}], lock_timeout=300)
        if n % 3 == 2:
            assert index.delete(f"{name}-{n}", lock_timeout=300) == 1
"""


def text_of(version: int) -> str:
    return "\n\n".join(f"Version {version} sentence {n} of a text that is replaced, whole, again and again." for n in range(6))


def _library(path: Path) -> Index:
    index = Index.open(path, model="hash:32", chunk_tokens=24)
    index.add([{"id": "versioned", "text": text_of(0)}, *({"id": f"other{n}", "text": f"Other words {n}."} for n in range(20))])
    assert index.stats().units == 26
    return index


def _together(path: Path, *, seconds: float, threads: int, processes: int) -> dict[str, int]:
    """Searches by threads and by processes while one process replaces, deletes, adds and compacts; how many of each."""
    index = _library(path)
    errors: list[BaseException] = []
    counts = {"searches": 0, "versions": 0}
    stop = threading.Event()

    def read() -> None:
        last = 0
        try:
            while not stop.is_set():
                for mode in ("dense", "lexical", "hybrid"):
                    hits = index.search("version sentence", 100, mode=mode, filters={"source": "versioned"})
                    versions = {hit.text.split()[1] for hit in hits}
                    assert (len(versions), len(hits)) == (1, 6), (mode, versions, len(hits))
                    assert int(min(versions)) >= last
                    last = int(min(versions))
                    counts["searches"] += 1
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(threads)]
    command = [sys.executable, "-c", READER, str(path), str(seconds)]
    others = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(processes)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not errors:
        counts["versions"] += 1
        version = counts["versions"]
        index.add([{"id": "versioned", "text": text_of(version)}, {"id": f"extra{version}", "text": f"Extra {version}."}])
        if version % 3 == 0:
            index.delete(f"extra{version - 1}")
        if version % 5 == 0:
            index.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    for other in others:
        output, error = other.communicate(timeout=300)
        assert other.returncode == 0, error.decode()
        counts["searches"] += json.loads(output)["searches"]
    assert index.verify() == []
    assert index.stats().documents == 21 + counts["versions"] - counts["versions"] // 3
    index.close()
    return counts


def test_readers_beside_a_writer_see_one_version_each_and_never_an_older_one(tmp_path: Path) -> None:
    counts = _together(tmp_path / "library", seconds=4, threads=2, processes=1)
    assert counts["versions"] > 2
    assert counts["searches"] > 10


@pytest.mark.slow
def test_eight_readers_beside_a_writer_for_minutes(tmp_path: Path) -> None:
    print(_together(tmp_path / "library", seconds=120, threads=4, processes=4))


def _contend(path: Path, *, writers: int, count: int) -> None:
    _library(path).close()
    command = [sys.executable, "-c", WRITER, str(path)]
    running = [
        subprocess.Popen([*command, f"w{n}", str(count)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(writers)
    ]
    for one in running:
        _, error = one.communicate(timeout=600)
        assert one.returncode == 0, error.decode()
    with Index.open(path) as index:
        expected = {f"w{n}-{d}" for n in range(writers) for d in range(count) if d % 3 != 2}
        assert {row.source for row in index.documents() if row.source.startswith("w")} == expected
        assert index.verify() == []
        keys = [hit.key for hit in index.search("document writer", 1000, mode="dense")]
        assert len(keys) == len(set(keys)) == index.stats().units


def test_writers_that_contend_wait_for_each_other_and_lose_nothing(tmp_path: Path) -> None:
    _contend(tmp_path / "library", writers=3, count=4)


@pytest.mark.slow
def test_four_writers_contend_for_long_and_lose_nothing(tmp_path: Path) -> None:
    _contend(tmp_path / "library", writers=4, count=60)

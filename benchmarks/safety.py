"""What safety costs: durable additions, verifying, compacting, backing up, and searching while documents are added.

    python benchmarks/safety.py [--folder FOLDER] [--documents 10000]

FOLDER is on the disk to measure (a temporary folder if left out); the same additions on a disk in memory (/dev/shm) show
what syncing costs. Wall-clock times, since waiting for the disk is what is measured: medians, and ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ragkit import Index

DIMS = 1024
SINGLE = 30
BATCH = 2000
WRITER = """
import sys
from ragkit import Index
with Index.open(sys.argv[1]) as index:
    print("ready", flush=True)
    n = 0
    while True:
        index.add([{"id": f"added {n % 400}", "text": f"Document {n} was added while others searched, as number {n * n}."}])
        n += 1
"""


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def notes(start: int, count: int) -> list[dict[str, str]]:
    texts = ((n, f"Note {n} says {n * n} of things like {n % 7} and {n % 11}.") for n in range(start, start + count))
    return [{"id": f"d{n}", "text": text} for n, text in texts]


def adding(folder: Path) -> tuple[float, float]:
    """Seconds of a single addition (median), and of one of BATCH documents."""
    path = Path(tempfile.mkdtemp(prefix="ragkit-safety-", dir=folder))
    try:
        with Index.open(path / "library", model="hash:64") as index:
            index.add(notes(0, BATCH))
            single = [timed(lambda n=n: index.add(notes(BATCH + n, 1))) for n in range(SINGLE)]
            return median(single), timed(lambda: index.add(notes(2 * BATCH, BATCH)))
    finally:
        shutil.rmtree(path)


def durability(folder: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        print("durability: no /dev/shm here to compare with")
        return
    rounds = [(adding(folder), adding(memory)) for _ in range(3)]
    for at, name in ((0, "one document"), (1, f"{BATCH} documents")):
        disk, shm = (median(one[side][at] for one in rounds) for side in (0, 1))
        print(f"add {name}: {1000 * disk:.1f} ms on the disk, {1000 * shm:.1f} ms in memory, ratio {disk / shm:.2f}")


def upkeep(folder: Path, documents: int) -> None:
    """Verify, back up and compact an index of given vectors."""
    rng = np.random.default_rng(0)
    path = Path(tempfile.mkdtemp(prefix="ragkit-safety-", dir=folder))
    try:
        with Index.open(path / "library", model=f"vectors:{DIMS}", recall=1.0) as index:
            for start in range(0, documents, BATCH):
                rows = rng.normal(size=(BATCH, DIMS)).astype(np.float32)
                index.add({**note, "vector": row} for note, row in zip(notes(start, BATCH), rows, strict=True))
            size = index.stats().bytes
            sealed = sum(one.stat().st_size for one in (path / "library" / "segments").rglob("*") if one.is_file())
            seconds = timed(lambda: _nothing(index.verify()))
            print(f"index: {documents} documents, {size / 1e6:.0f} MB, of which {sealed / 1e6:.0f} MB vectors")
            print(f"verify, all of it: {seconds:.2f} s, {size / seconds / 1e9:.2f} GB/s")
            from ragkit.care.verify import damaged_files
            from ragkit.store.local.files import CheckedFolder

            snapshot = index._store.reader()
            folders = [CheckedFolder(segment.folder.path, list(segment.folder.records.values())) for segment in snapshot.segments]
            seconds = min(timed(lambda: _nothing(damaged_files(folders))) for _ in range(3))
            print(f"verify, the vectors: {seconds:.3f} s, {sealed / seconds / 1e9:.2f} GB/s from the page cache")
            seconds = timed(lambda: index.backup(path / "backup"))
            print(f"backup: {seconds:.2f} s, {size / seconds / 1e6:.0f} MB/s, checked and synced")
            index.delete([f"d{n}" for n in range(0, documents, 10)])
            seconds = timed(index.compact)
            print(f"compact, with a tenth deleted: {seconds:.2f} s, {sealed / seconds / 1e6:.0f} MB/s")
    finally:
        shutil.rmtree(path)


def _nothing(found: list[Any]) -> None:
    if found:
        raise SystemExit(f"the benchmark's own index is damaged: {found[0]}")


def searching(folder: Path) -> None:
    """Latency of hybrid searches in one process, alone and while another process adds one document after the other."""
    path = Path(tempfile.mkdtemp(prefix="ragkit-safety-", dir=folder))
    try:
        with Index.open(path / "library", model="hash:64") as index:
            index.add(notes(0, 5000))
            for at in range(50):
                index.search(f"things like {at}")
            alone = _latencies(index, 600)
            command = [sys.executable, "-c", WRITER, str(path / "library")]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                first = index.stats().commit
                beside = _latencies(index, 600)
                commits = index.stats().commit - first
                writer.kill()
            for name, times in (("alone", alone), (f"while {commits} commits were made", beside)):
                shown = ", ".join(f"p{q} {1000 * np.percentile(times, q):.1f} ms" for q in (50, 95, 99))
                print(f"search {name}: {shown}")
    finally:
        shutil.rmtree(path)


def _latencies(index: Index, count: int) -> list[float]:
    return [timed(lambda n=n: index.search(f"note {n} says things", 10)) for n in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--documents", type=int, default=10_000)
    options = parser.parse_args()
    print(json.dumps({"folder": str(options.folder), "documents": options.documents}))
    durability(options.folder)
    upkeep(options.folder, options.documents)
    searching(options.folder)


if __name__ == "__main__":
    main()

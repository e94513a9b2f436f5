"""Many small files: how fast they are added, how far memory grows, when the time left is known.

    python benchmarks/folders.py [--files 100000]

Files of some 400 characters, a thousand to a folder, with the test encoder, so that what is measured is everything but a model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil

from ragkit import Index
from ragkit.core.types import Progress
from ragkit.testing import HashEncoder

WORDS = "otter river lake bridge stone water bird duck goose heron reed bank mud fish trout pike".split()  # noqa: SIM905


def write(folder: Path, files: int) -> None:
    for n in range(files):
        here = folder / f"{n // 1000:03}"
        if n % 1000 == 0:
            here.mkdir(parents=True)
        (here / f"{n:06}.txt").write_text(f"Note {n}. " + " ".join(WORDS[(n * 7 + k * k) % 16] for k in range(60)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--files", type=int, default=2000)
    files = arguments.parse_args().files
    process = psutil.Process()
    seen: list[tuple[int, int | None, float, float]] = []

    def watch(step: Progress) -> None:
        if step.unit == "documents" and step.done % max(files // 10, 1) == 0:
            seen.append((step.done, step.total, process.memory_info().rss / 1e6, time.monotonic() - started))

    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch) / "files", files)
        with Index.open(Path(scratch) / "library", model=HashEncoder(dims=32)) as index:
            for title in ("added", "added again"):
                started, before = time.monotonic(), time.process_time()
                report = index.add(Path(scratch) / "files", progress=watch)
                wall, cpu = time.monotonic() - started, time.process_time() - before
                print(f"{title}: {report.counts}; {wall:.1f} s, of this process {cpu:.1f} s CPU, {files / wall:.0f} files/s")
    print("| done | of | memory, MB | s |\n|---|---|---|---|")
    for done, total, memory, seconds in seen:
        print(f"| {done} | {total} | {memory:.0f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()

"""MaxSimIndex on disk: what opening, changing and searching cost, and that threads change no bit.

    python benchmarks/maxsim_index.py same     # the index and its answers, made and asked with 1 and 2 threads
    python benchmarks/maxsim_index.py open     # a process of its own: milliseconds, and resident memory beyond the pages touched
    python benchmarks/maxsim_index.py commit   # one key added, one deleted, each with its commit; their syncs, where strace is
    python benchmarks/maxsim_index.py threads  # milliseconds a query, 1 and 2 threads, 1 to 64 queries at once

Each begins with an index of `--items` items of 240 tokens of 128 dims (5,183: SciFact's size, 1.24 million tokens), int8, in
`--folder`, a new one on a RAM disk unless said. `same` and `open` are right on a busy machine; the others need a quiet one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIMS, TOKENS, K = 128, 240, 10
FEW = 5000  # keys in the index of which `commit` tells


def rows(seed: int, size: int = TOKENS) -> Any:
    found = np.random.default_rng(seed).standard_normal((size, DIMS), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def build(folder: Path, items: int) -> None:
    from ragkit import MaxSimIndex

    with MaxSimIndex.open(folder, dim=DIMS) as index:
        for start in range(0, items, 1000):
            keys = range(start, min(start + 1000, items))
            index.add(keys, [rows(key) for key in keys])
        index.commit()


def in_child(*arguments: object, threads: int = 1) -> Any:
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))}
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- the same bits ----------------------------------------------------------------------------------------------------


def same(scratch: Path, items: int) -> None:
    found = [in_child("digest", "--folder", scratch / str(threads), "--items", items, threads=threads) for threads in (1, 2)]
    for name in found[0]:
        print(f"{name:10} {'the same' if found[0][name] == found[1][name] else 'DIFFERENT'}  {found[0][name]}")
    assert found[0] == found[1]


def digest(folder: Path, items: int) -> dict[str, str]:
    """Of the vectors on disk, by file, and of 20 answers, one by one and at once; with as many threads as OMP_NUM_THREADS."""
    from ragkit import MaxSimIndex

    threads = int(os.environ["OMP_NUM_THREADS"])
    build(folder, items)
    found = {}
    for name in ("chunk.multi.npy", "chunk.multi.offsets.npy", "keys.npy"):
        files = sorted((path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in folder.rglob(name))
        found[name.removeprefix("chunk.multi.")] = "".join(one for _, one in files)[:32]
    with MaxSimIndex.open(folder) as index:
        queries = [rows(-1 - at + 2**40, 32) for at in range(20)]
        for name, answers in {
            "one by one": [index.search(query, 100, threads=threads) for query in queries],
            "at once": index.search(queries, 100, threads=threads),
        }.items():
            found[name] = hashlib.sha256(b"".join(keys.tobytes() + scores.tobytes() for keys, scores in answers)).hexdigest()[:32]
    return found


# --- opening ----------------------------------------------------------------------------------------------------------


def opening(scratch: Path, items: int) -> None:
    build(scratch / "index", items)
    runs = [in_child("look", "--folder", scratch / "index") for _ in range(5)]
    print(f"{items} items, {items * TOKENS} tokens; the least and the most of 5 processes")
    for name in runs[0]:
        print(f"  {name:52} {min(run[name] for run in runs):8.2f} {max(run[name] for run in runs):8.2f}")


def resident() -> tuple[float, float]:
    """Megabytes of this process in memory that are its own, and those that are pages of the index."""
    own = mapped = 0
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-", line):
            ours = line.endswith(".npy")
        elif line.startswith("Rss:"):
            size = int(line.split()[1])
            own, mapped = own + (0 if ours else size), mapped + (size if ours else 0)
    return own / 1024, mapped / 1024


def look(folder: Path) -> dict[str, float]:
    from ragkit import MaxSimIndex
    from ragkit.store.vectors.compiled import kernels

    kernels()
    with tempfile.TemporaryDirectory() as other:  # whatever is imported on first use is no cost of this index
        build(Path(other) / "small", 10)
        with MaxSimIndex.open(Path(other) / "small") as small:
            small.search(rows(0, 32))
    query, found = rows(2**40, 32), {}
    before, _ = resident()
    start, cpu = time.perf_counter(), time.process_time()
    index = MaxSimIndex.open(folder)
    size = len(index)
    found["opened and counted, ms"] = 1e3 * (time.perf_counter() - start)
    found["the same, CPU ms"] = 1e3 * (time.process_time() - cpu)
    found["memory of its own, MB"] = resident()[0] - before
    start = time.perf_counter()
    index.search(query, K, allowed=range(0, size, max(1, size // 5)))
    found["first search, of five items, ms"] = 1e3 * (time.perf_counter() - start)
    own, mapped = resident()
    found["memory of its own then, MB"], found["pages of the index then, MB"] = own - before, mapped
    index.search(query, K)
    own, mapped = resident()
    found["memory of its own after a search of all, MB"], found["pages of the index then, of all, MB"] = own - before, mapped
    index.close()
    return found


# --- changing ---------------------------------------------------------------------------------------------------------


def committing(scratch: Path, items: int) -> None:
    from ragkit import MaxSimIndex

    build(scratch / "index", min(items, FEW))
    fresh = [rows(at) for at in range(60)]
    with MaxSimIndex.open(scratch / "index") as index:
        steps: dict[str, Callable[[int], object]] = {
            "add": lambda at: index.add([10**6 + at], [fresh[at % 60]]),
            "commit, added": lambda at: index.commit(),
            "delete": lambda at: index.delete([10**6 + at]),
            "commit, deleted": lambda at: index.commit(),
        }
        names = list(steps)
        for pair in (names[:2], names[2:]):
            spent: dict[str, list[float]] = {name: [] for name in pair}
            for at in range(120):
                for name in pair:
                    start = time.process_time()
                    steps[name](at)
                    spent[name].append(1e3 * (time.process_time() - start))
            for name, taken in spent.items():
                print(f"  {name:16} {np.median(taken):6.2f} CPU ms, least {min(taken):6.2f}")
    for name in ("add", "delete") if shutil.which("strace") else ():
        print(f"  {name} and commit: {syncs(scratch / 'index', name)} syncs")


def syncs(folder: Path, change: str) -> int:
    """fsync and fdatasync calls of one change and its commit, of a process that had made one before."""
    with tempfile.NamedTemporaryFile(suffix=".strace") as log:
        command = ["strace", "-f", "-e", "trace=fsync,fdatasync,access", "-o", log.name, sys.executable, __file__, "change"]
        subprocess.run([*command, "--folder", str(folder), "--change", change], check=True, stdout=subprocess.DEVNULL)
        counted = Path(log.name).read_text().split("/begin", 1)[1].split("/end", 1)[0]
    return len(re.findall(r"f(?:data)?sync\(", counted))


def change(folder: Path, kind: str) -> None:
    from ragkit import MaxSimIndex

    with MaxSimIndex.open(folder) as index:
        index.add([10**7, 10**7 + 1], [rows(1), rows(2)])
        index.commit()
        os.access("/begin", os.F_OK)
        if kind == "add":
            index.add([10**7 + 2], [rows(3)])
        else:
            index.delete([10**7])
        index.commit()
        os.access("/end", os.F_OK)


# --- searching --------------------------------------------------------------------------------------------------------


def threading(scratch: Path, items: int) -> None:
    from ragkit import MaxSimIndex

    build(scratch / "index", items)
    queries = [rows(2**40 + at, 32) for at in range(64)]
    with MaxSimIndex.open(scratch / "index") as index:
        index.search(queries[:2])
        print(f"{items * TOKENS} tokens, queries of 32: milliseconds a query, the least of 7")
        print(f"  {'at once':>8} {'1 thread':>10} {'2 threads':>10} {'ratio':>6}")
        for size in (1, 2, 4, 16, 64):
            least = {1: np.inf, 2: np.inf}
            for _ in range(7):
                for threads in least:
                    start = time.perf_counter()
                    index.search(queries[:size], K, threads=threads)
                    least[threads] = min(least[threads], 1e3 * (time.perf_counter() - start) / size)
            print(f"  {size:8} {least[1]:10.2f} {least[2]:10.2f} {least[1] / least[2]:6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["same", "open", "commit", "threads", "digest", "look", "change"])
    parser.add_argument("--items", type=int, default=5183)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--change", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "digest":
        print(json.dumps(digest(arguments.folder, arguments.items)))
    elif arguments.what == "look":
        print(json.dumps(look(arguments.folder)))
    elif arguments.what == "change":
        change(arguments.folder, arguments.change)
    else:
        measured = {"same": same, "open": opening, "commit": committing, "threads": threading}
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            measured[arguments.what](Path(scratch), arguments.items)


if __name__ == "__main__":
    main()

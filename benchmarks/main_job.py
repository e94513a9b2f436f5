"""The main job measured: quality on judged collections, where the time of `add` goes, memory, bytes, latencies.

    python benchmarks/main_job.py beir  FOLDER [--documents N] [--chunker whole]      # a BEIR folder
    python benchmarks/main_job.py pages FOLDER                                        # questions.jsonl and pdfs/
    python benchmarks/main_job.py memory FOLDER                                       # peak memory at 1×, 2×, 4× a corpus

Every figure is measured in this run, on this machine; times compare only within a run.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ragkit import Index
from ragkit.apps.evaluate import compare, evaluate, read_beir, read_pages, table
from ragkit.apps.evaluate.judged import Judged
from ragkit.encode import load_encoder

MODES = ("hybrid", "dense", "lexical")


class Timed:
    """An encoder that counts the seconds spent in it, on the wall and on the processor."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.wall = self.cpu = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_document(self, *args: Any, **options: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return self._encoder.encode_document(*args, **options)
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu


def build(folder: Path, documents: Any, **settings: Any) -> Index:
    encoder = Timed(load_encoder())
    index = Index.open(folder, model=encoder, **settings)
    encoder.wall = encoder.cpu = 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    report = index.add(documents)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stats = index.stats()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"add: {report}")
    shares = f"{encoder.wall / wall:.1%} of the time, {encoder.cpu / cpu:.1%} of the CPU time"
    print(f"  {wall:.1f} s, {cpu:.1f} CPU s; in the encoder {shares}")
    print(f"  {stats.units} units, {stats.units / wall:.1f} units/s; peak memory {peak:.0f} MiB")
    size = stats.bytes / max(stats.documents, 1)
    print(f"  {size:,.0f} bytes a document: " + ", ".join(f"{name} {part:,}" for name, part in stats.bytes_by_part.items()))
    for segment in stats.dense:
        print(f"  segment {segment}")
    return index


def judge(index: Index, judged: Judged, *, measure: str) -> None:
    runs = [evaluate(index, judged, mode=mode) for mode in MODES]
    print(table(runs))
    queries = list(judged.queries.values())[:100]
    for mode in MODES:
        times = []
        for query in queries:
            started = time.perf_counter()
            index.search(query, 10, mode=mode)
            times.append(1000 * (time.perf_counter() - started))
        p50, p95 = statistics.median(times), sorted(times)[int(0.95 * len(times))]
        print(f"search, k=10, one at a time, query encoding and citations included: {mode} p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    best = max(runs[1:], key=lambda run: run.measures[measure])
    for run in runs[1:]:
        print(f"hybrid - {run.mode}{' (the better)' if run is best else ''}: {compare(runs[0], run, measure=measure)}")


def fusion(index: Index, judged: Judged, *, measure: str) -> None:
    """The fused ranking by the constant of reciprocal ranks."""
    for constant in (1, 5, 10, 15, 20, 30, 60, 120):
        run = evaluate(index, judged, mode="hybrid", measures=(measure,), rrf=float(constant), k=10)
        print(f"{judged.name}: constant {constant}: {measure} {run.measures[measure]:.4f}")


def _repeated(documents: Iterable[dict[str, str]], times: int) -> Iterator[dict[str, str]]:
    for copy in range(times):
        for record in documents:
            yield {**record, "id": f"{copy}-{record['id']}", "text": f"{copy} {record['text']}"}


def memory(folder: str) -> None:
    """Peak memory of a fresh process per corpus size, with the test encoder, so that what is measured is ours."""
    for times in (1, 2, 4):
        subprocess.run([sys.executable, __file__, "memory-of", folder, str(times)], check=True)


def memory_of(folder: str, times: int) -> None:
    from ragkit.testing import HashEncoder

    documents = read_beir(folder).documents
    assert not isinstance(documents, Path)
    with tempfile.TemporaryDirectory() as scratch, Index.open(Path(scratch) / "index", model=HashEncoder(dims=384)) as index:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report = index.add(_repeated(documents, times))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        units = index.stats().units
        print(f"{len(report.added)} documents, {units} units: peak {peak:.0f} MiB, {peak - before:.0f} over the start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("beir", "pages", "memory", "memory-of"))
    parser.add_argument("rest", nargs="+")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--chunker", default="whole")
    arguments = parser.parse_args()
    if arguments.what == "memory":
        return memory(arguments.rest[0])
    if arguments.what == "memory-of":
        return memory_of(arguments.rest[0], int(arguments.rest[1]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.rest[0])
        if arguments.what == "beir":
            judged = read_beir(folder)
            documents = itertools.islice(judged.documents, arguments.documents) if arguments.documents else judged.documents
            settings = {"chunker": arguments.chunker, **({"overflow": "truncate"} if arguments.chunker == "whole" else {})}
            index = build(Path(scratch) / "index", documents, **settings)
            judge(index, judged, measure="nDCG@10")
            fusion(index, judged, measure="nDCG@10")
        else:
            judged = read_pages(folder)
            index = build(Path(scratch) / "index", judged.documents, chunker="sentences")
            judge(index, judged, measure="RR@10")
            fusion(index, judged, measure="RR@10")
    return None


if __name__ == "__main__":
    main()

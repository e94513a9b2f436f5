"""What the server costs on top of the model: embeddings by 1, 8 and 64 clients, searches, and the start.

    python benchmarks/serve.py [--texts 512] [--clients 1 8 64]
    python benchmarks/serve.py --turns 24        # full batches only, the server and the encoder in one process and in turns

The server is a process of its own, `ragkit serve`, with one thread for arithmetic, and so is the loop it is compared with: the
encoder called with the same requests, one after the other. Ratios of processor time change little with other work on the machine.
Requests per second and latencies are of wall time: their ratios to the encoder, called just before, say more than they do.
sentence-transformers is called as a naive server would: once for every request.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from ragkit import Index, load_encoder

WORDS = tuple(
    f"{part}{end}" for part in ("wind", "turb", "bat", "gear", "pow", "vill") for end in ("", "ing", "er", "s", "age", "ed")
)
TOGETHER = 64  # texts of a full request


def texts_of(count: int) -> list[str]:
    """Texts of 20 to 80 words, the same in every run."""
    dice = random.Random(7)
    return [" ".join(dice.choices(WORDS, k=dice.randint(20, 80))) for _ in range(count)]


@contextmanager
def server(*arguments: str) -> Any:
    """(address, process, seconds from its start to its first answer) of a `ragkit serve`."""
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "ragkit.apps.cli.main", "serve", *arguments, "--port", "0", "--limit", "seconds=3600"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        found = None
        while found is None:
            found = re.search(r"http://[\d.]+:\d+", child.stderr.readline())
        address = found[0]
        yield address, psutil.Process(child.pid), lambda: time.perf_counter() - started
    finally:
        child.terminate()
        child.wait(60)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def asked(work: Callable[[httpx.Client, Any], None], jobs: Sequence[Any], clients: int, url: str) -> tuple[float, list[float]]:
    """(seconds for all jobs by so many clients, seconds of each)."""
    connections = [httpx.Client(base_url=url, timeout=600) for _ in range(clients)]
    latencies: list[float] = []

    def run(number: int) -> None:
        for job in jobs[number::clients]:
            began = time.perf_counter()
            work(connections[number], job)
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(run, range(clients)))
    for one in connections:
        one.close()
    return time.perf_counter() - began, sorted(latencies)


def embed(client: httpx.Client, texts: Any) -> None:
    body = {"model": "all-MiniLM-L6-v2", "input": texts, "embedding_type": "base64"}
    while (answer := client.post("/v1/embeddings", json=body)).status_code == 429:
        time.sleep(0.2)
    answer.raise_for_status()


def percentile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] * 1000


@dataclass(frozen=True, slots=True)
class Called:
    """Something called once for each of the jobs: processor seconds, wall seconds, and those of each call, ascending."""

    cpu: float
    wall: float
    each: list[float]


def called(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Called:
    work(jobs[0])
    used, began, each = time.process_time(), time.perf_counter(), []
    for job in jobs:
        at = time.perf_counter()
        work(job)
        each.append(time.perf_counter() - at)
    return Called(time.process_time() - used, time.perf_counter() - began, sorted(each))


def raw(encoder: Any, jobs: Sequence[Any]) -> Called:
    """The encoder by itself."""
    return called(lambda texts: encoder.encode_document([texts] if isinstance(texts, str) else texts), jobs)


def naive(jobs: Sequence[Any]) -> Called:
    """sentence-transformers by itself."""
    from sentence_transformers import SentenceTransformer

    from ragkit.encode import default_model_folder

    model = SentenceTransformer(str(default_model_folder()), device="cpu")
    return called(lambda texts: model.encode([texts] if isinstance(texts, str) else texts, show_progress_bar=False), jobs)


def embeddings(texts: list[str], clients: Sequence[int]) -> None:
    full = [texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER)]
    encoder = load_encoder()
    loop, theirs = raw(encoder, full), {1: naive(texts), TOGETHER: naive(full)}
    print(f"{len(texts)} texts; processor seconds: the encoder in lists of {TOGETHER} {loop.cpu:.2f}; sentence-transformers")
    print(f"in lists of {TOGETHER} {theirs[TOGETHER].cpu:.2f}, one by one {theirs[1].cpu:.2f}")
    print("The server, as ratios to the encoder asked for the same one after the other just before (sentence-transformers: st):")
    print("clients  texts  processor  /st  requests/s  p50  p99       requests/s  p50 ms  p99 ms")
    with server("--model", "default") as (url, process, since):
        with httpx.Client(base_url=url) as client:
            while True:
                try:
                    embed(client, "first")
                    break
                except httpx.TransportError:
                    time.sleep(0.02)
        print(f"cold start to the first vector: {since():.2f} s of wall time")
        asked(embed, [texts[:TOGETHER]] * 2, 1, url)
        for jobs, size in ((texts, 1), (full, TOGETHER)):
            for count in clients:
                alone, before = raw(encoder, jobs), cpu(process)
                seconds, latencies = asked(embed, jobs, min(count, len(jobs)), url)
                used, p50, p99 = cpu(process) - before, percentile(latencies, 0.5), percentile(latencies, 0.99)
                print(
                    f"{count:7}  {size:5}  {used / alone.cpu:9.2f}  {used / theirs[size].cpu:3.2f}  {alone.wall / seconds:10.2f}"
                    f"  {p50 / percentile(alone.each, 0.5):3.1f}  {p99 / percentile(alone.each, 0.99):3.1f}"
                    f"  {len(jobs) / seconds:15.1f}  {p50:6.1f}  {p99:6.1f}",
                    flush=True,
                )


def in_turns(texts: Sequence[str], turns: int) -> None:
    """Requests of full batches through the whole application, and the encoder alone, in turns: what noise leaves of the ratio."""
    from starlette.testclient import TestClient

    from ragkit.apps.serve.app import create_app
    from ragkit.apps.serve.service import Service

    encoder = load_encoder("default")
    jobs = [texts[at : at + TOGETHER] for at in range(0, len(texts), TOGETHER)]
    with TestClient(create_app(Service(models={"default": encoder})), base_url="http://localhost") as client:

        def spent(work: Callable[[Any], Any]) -> float:
            started = time.process_time()
            for job in jobs:
                work(job)
            return time.process_time() - started

        def served(job: Any) -> None:
            client.post("/v1/embeddings", json={"model": "default", "input": job}).raise_for_status()

        spent(encoder.encode_document), spent(served)
        rows = [(spent(encoder.encode_document), spent(served)) for _ in range(turns)]
    least = min(b for _, b in rows) / min(a for a, _ in rows)
    middle = statistics.median(b / a for a, b in rows)
    print(f"{len(jobs)} requests of {TOGETHER} texts, {turns} turns; processor time of server and client beside the encoder's:")
    print(f"  least beside least {least:.3f}, median of the ratios {middle:.3f}")


def searches(texts: list[str], clients: Sequence[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library"
        with Index.open(path) as index:
            index.add([{"id": str(i), "text": text} for i, text in enumerate(texts)])
            queries = [" ".join(text.split()[:6]) for text in texts[:200]]
            index.search(queries[0])
            before = time.process_time()
            for query in queries:
                index.search(query, 10)
            alone = time.process_time() - before
        with server(str(path)) as (url, process, _), httpx.Client(base_url=url) as client:
            while True:
                try:
                    client.get("/readyz").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.05)

            def search(client: httpx.Client, query: str) -> None:
                client.post("/v1/search", json={"query": query, "k": 10}).raise_for_status()

            asked(search, queries[:10], 1, url)
            print(
                f"searches, {len(texts)} documents, k = 10, hybrid; Index.search in a loop: {alone / len(queries) * 1000:.1f} ms"
            )
            for count in clients:
                before = cpu(process)
                seconds, latencies = asked(search, queries, count, url)
                used = cpu(process) - before
                print(
                    f"{count:7} clients  processor / loop {used / alone:5.2f}  {len(queries) / seconds:7.1f} requests/s"
                    f"  p50 {percentile(latencies, 0.5):6.1f} ms  p99 {percentile(latencies, 0.99):6.1f} ms"
                    f"  mean {statistics.mean(latencies) * 1000:6.1f} ms"
                )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--texts", type=int, default=512)
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    options.add_argument("--turns", type=int, default=0)
    given = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the server
    if given.turns:
        in_turns(texts_of(4 * TOGETHER), given.turns)
        return
    texts = texts_of(given.texts)
    embeddings(texts, given.clients)
    searches(texts, given.clients)


if __name__ == "__main__":
    main()

"""Recall against time: MaxSimIndex and other late-interaction engines on the same tokens, each in its own environment.

    python benchmarks/maxsim_curves.py values.npy offsets.npy queries.npy query_offsets.npy \
        --items 1000 --queries 100 --python fast-plaid=PEERS/bin/python ragkit torch muvera fast-plaid

Ragged unit rows, float16 or float32, as for benchmarks/maxsim.py; `--items` takes the first so many. An engine builds its
index in a process of its own, then answers with each of its settings, one query at a time on one thread. What is printed: CPU
seconds to build, bytes a token on disk, and per setting CPU milliseconds a query (the median) and recall@10 of exact float32.
Then one item is added and one deleted, each until a search has answered, with the CPU time that takes beyond the search's (the
medians of five).

An engine without --python runs in this environment. The answers of all are read by keys alone: the number of an item.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS"), "1"
)
K = 10
CHANGES = 5
Search = Callable[[Any], Any]  # a query (q, d) float32 to the keys of the best K
Settings = Iterator[tuple[str, Search]]


# --- the engines ------------------------------------------------------------------------------------------------------


class Ragkit:
    """MaxSimIndex: every token, in each precision."""

    precision = "int8"

    def build(self, items: list[Any], folder: Path) -> None:
        with self._open(folder, dim=items[0].shape[1], precision=self.precision) as index:
            index.add(range(len(items)), items)
            index.commit()

    def open(self, folder: Path) -> Settings:
        self.index = self._open(folder)
        yield self.precision, lambda query: self.index.search(query, K, threads=1)[0]

    def add(self, key: int, item: Any) -> None:
        self.index.add([key], [item])
        self.index.commit()

    def delete(self, key: int) -> None:
        self.index.delete([key])
        self.index.commit()

    @staticmethod
    def _open(folder: Path, **settings: Any) -> Any:
        from ragkit import MaxSimIndex

        return MaxSimIndex.open(folder, **settings)


class RagkitFloat16(Ragkit):
    precision = "float16"


class RagkitCoarse(Ragkit):
    """MaxSimIndex with coarse vectors: candidates by those, then exact."""

    def build(self, items: list[Any], folder: Path) -> None:
        with self._open(folder, dim=items[0].shape[1], coarse=self.factor) as index:
            index.add(range(len(items)), items)
            index.commit()

    def open(self, folder: Path) -> Settings:
        self.index = self._open(folder)
        for most in (32, 64, 128, 256, 512, 1024):
            yield f"{most} candidates", lambda query, most=most: self.index.search(query, K, candidates=most, threads=1)[0]

    factor = 4


class RagkitCoarser(RagkitCoarse):
    factor = 8


class Torch:
    """A matrix product and the maximum of each item, nothing else: what a dozen lines of torch do."""

    dtypes = ("float32", "bfloat16")

    def build(self, items: list[Any], folder: Path) -> None:
        folder.mkdir()
        np.save(folder / "values.npy", np.concatenate(items).astype(np.float16))
        np.save(folder / "offsets.npy", np.cumsum([0, *map(len, items)]))

    def open(self, folder: Path) -> Settings:
        import torch

        torch.set_num_threads(1)
        self.offsets = np.load(folder / "offsets.npy")
        for name in self.dtypes:
            tokens = torch.from_numpy(np.load(folder / "values.npy")).to(getattr(torch, name))
            yield name, lambda query, tokens=tokens: self._search(query, tokens)

    def _search(self, query: Any, tokens: Any) -> Any:
        import torch

        rows, scores, offsets = torch.from_numpy(query).to(tokens.dtype), [], self.offsets
        for start in range(0, len(offsets) - 1, 32):
            cut = offsets[start : start + 33]
            products = (rows @ tokens[cut[0] : cut[-1]].T).float().numpy()
            scores.append(np.maximum.reduceat(products, cut[:-1] - cut[0], axis=1).sum(axis=0))
        return np.argsort(-np.concatenate(scores), kind="stable")[:K]


class MaxsimCpu(Torch):
    """maxsim-cpu: float32 in memory."""

    def open(self, folder: Path) -> Settings:
        import maxsim_cpu

        values, offsets = np.load(folder / "values.npy").astype(np.float32), np.load(folder / "offsets.npy")
        items = [np.ascontiguousarray(values[at:to]) for at, to in pairwise(offsets)]

        def search(query: Any) -> Any:
            return np.argsort(-np.asarray(maxsim_cpu.maxsim_scores_variable(query, items)), kind="stable")[:K]

        yield "float32", search


class Muvera:
    """MUVERA's fixed-dimensional encodings (Dhulipala et al., arXiv 2405.19504), scanned by FAISS in 8 bits, then reranked by
    our int8 kernel. Random planes cut space into cells; each keeps the sum (of a query) or mean (of an item), projected."""

    repeats, planes, projected = 20, 4, 16

    def build(self, items: list[Any], folder: Path) -> None:
        import faiss

        Ragkit().build(items, folder)
        self._draw(items[0].shape[1])
        rows = np.stack([self._encoded(item, is_query=False) for item in items])
        index = faiss.index_factory(rows.shape[1], "SQ8", faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
        faiss.write_index(index, str(folder / "encodings.faiss"))

    def open(self, folder: Path) -> Settings:
        import faiss

        from ragkit import MaxSimIndex
        from ragkit.core.space import Space

        faiss.omp_set_num_threads(1)
        index = MaxSimIndex.open(folder)
        self._draw(index.layout.dims)
        encodings = faiss.read_index(str(folder / "encodings.faiss"))
        snapshot = index._store.reader()
        for candidates in (64, 256, 1024):

            def search(query: Any, candidates: int = candidates) -> Any:
                _, found = encodings.search(self._encoded(query, is_query=True)[None], candidates)
                return snapshot.scores(Space.MULTI, query, found[0])[0][:K]

            yield f"{candidates} reranked", search

    def _draw(self, dims: int) -> None:
        rng = np.random.default_rng(0)
        self.normals = rng.standard_normal((self.repeats, dims, self.planes)).astype(np.float32)
        signs = rng.integers(0, 2, (self.repeats, dims, self.projected)) * 2 - 1
        self.projections = (signs / np.sqrt(self.projected)).astype(np.float32)

    def _encoded(self, rows: Any, *, is_query: bool) -> Any:
        cells = 1 << self.planes
        out = np.zeros((self.repeats, cells, self.projected), np.float32)
        for repeat in range(self.repeats):
            cell = ((rows @ self.normals[repeat]) > 0) @ (1 << np.arange(self.planes))
            np.add.at(out[repeat], cell, rows @ self.projections[repeat])
            if not is_query:
                counts = np.bincount(cell, minlength=cells)
                filled = counts > 0
                out[repeat, filled] /= counts[filled, None]
                for empty in np.flatnonzero(~filled):  # takes the token whose cell differs in the fewest planes
                    nearest = np.bitwise_count(cell ^ empty).argmin()
                    out[repeat, empty] = rows[nearest] @ self.projections[repeat]
        return out.reshape(-1)


class FastPlaid:
    """fast-plaid, 4 bits: clusters probed and items scored in full, from its defaults upwards."""

    def build(self, items: list[Any], folder: Path) -> None:
        self._open(folder).create(documents_embeddings=self._tensors(items), nbits=4)

    def open(self, folder: Path) -> Settings:
        self.index = self._open(folder)
        for probes, full in ((8, 4096), (32, 8192)):
            yield f"{probes} probes, {full} in full", lambda query, probes=probes, full=full: self._search(query, probes, full)

    def _search(self, query: Any, probes: int, full: int) -> Any:
        [query] = self._tensors([query])
        found = self.index.search(query[None], top_k=K, n_ivf_probe=probes, n_full_scores=full, show_progress=False)
        return np.array([key for key, _ in found[0]])

    def add(self, key: int, item: Any) -> None:
        self.index.update(documents_embeddings=self._tensors([item]))

    def delete(self, key: int) -> None:
        self.index.delete([key])

    @staticmethod
    def _tensors(items: list[Any]) -> list[Any]:
        import torch

        return [torch.from_numpy(np.ascontiguousarray(item)) for item in items]

    @staticmethod
    def _open(folder: Path) -> Any:
        from fast_plaid import search

        return search.FastPlaid(index=str(folder), device="cpu")


class XtrWarp(FastPlaid):
    """xtr-warp-rs, 4 bits: its defaults, and more clusters probed."""

    def build(self, items: list[Any], folder: Path) -> None:
        from xtr_warp import XTRWarp

        XTRWarp(str(folder)).create(self._tensors(items), device="cpu", nbits=4, show_progress=False)

    def open(self, folder: Path) -> Settings:
        from xtr_warp import XTRWarp

        self.index = XTRWarp(str(folder))
        self.index.load("cpu")
        for name, options in {"default": {}, "64 probes": {"nprobe": 64}, "256 probes": {"nprobe": 256}}.items():
            yield name, lambda query, options=options: self._with(query, options)

    def _with(self, query: Any, options: dict[str, int]) -> Any:
        [query] = self._tensors([query])
        found = self.index.search(query[None], top_k=K, num_threads=1, show_progress=False, **options)
        return np.array([key for key, _ in found[0]])

    def add(self, key: int, item: Any) -> None:
        self.index.add(self._tensors([item]), reload=True)


class LanceDB:
    """LanceDB: no index, which is exact, or its IVF_PQ with refining."""

    refined: tuple[tuple[int, int], ...] = ()

    def build(self, items: list[Any], folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        dims = items[0].shape[1]
        flat = pa.array(np.concatenate(items).astype(np.float16).reshape(-1))
        bounds = pa.array(np.cumsum([0, *map(len, items)]).astype(np.int32))
        vectors = pa.ListArray.from_arrays(bounds, pa.FixedSizeListArray.from_arrays(flat, dims))
        table = lancedb.connect(str(folder)).create_table("t", pa.table({"id": pa.array(np.arange(len(items))), "v": vectors}))
        if self.refined:
            table.create_index("v", config=lancedb.index.IvfPq(distance_type="cosine"))

    def open(self, folder: Path) -> Settings:
        import lancedb

        self.table = lancedb.connect(str(folder)).open_table("t")
        for probes, factor in self.refined:
            yield f"{probes} probes, refined {factor}", lambda query, of=(probes, factor): self._search(query, of)
        if not self.refined:
            yield "exact", lambda query: self._search(query, None)

    def _search(self, query: Any, refined: tuple[int, int] | None) -> Any:
        search = self.table.search(query, vector_column_name="v").distance_type("cosine").limit(K).select(["id", "_distance"])
        if refined:
            search = search.nprobes(refined[0]).refine_factor(refined[1])
        return search.to_arrow()["id"].to_numpy()

    def add(self, key: int, item: Any) -> None:
        self.table.add([{"id": key, "v": list(item.astype(np.float16))}])

    def delete(self, key: int) -> None:
        self.table.delete(f"id = {key}")


class LanceDBIndexed(LanceDB):
    refined = ((20, 10), (50, 50))


class QdrantEdge:
    """Qdrant Edge, MaxSim over float32, its own choice of index."""

    def build(self, items: list[Any], folder: Path) -> None:
        import qdrant_edge as q

        folder.mkdir()
        how = q.MultiVectorConfig(comparator=q.MultiVectorComparator.MaxSim)
        params = q.EdgeVectorParams(size=items[0].shape[1], distance=q.Distance.Dot, multivector_config=how)
        shard = q.EdgeShard.create(str(folder), q.EdgeConfig(vectors={"v": params}))
        for start in range(0, len(items), 200):
            points = [q.Point(id=at, vector={"v": items[at].tolist()}) for at in range(start, min(start + 200, len(items)))]
            shard.update(q.UpdateOperation.upsert_points(points))
        shard.optimize()
        shard.close()

    def open(self, folder: Path) -> Settings:
        import qdrant_edge as q

        self.shard = q.EdgeShard.load(str(folder))

        def search(query: Any) -> Any:
            nearest = q.Query.Nearest(query.tolist(), using="v")
            return np.array([point.id for point in self.shard.query(q.QueryRequest(query=nearest, limit=K, prefetches=[]))])

        yield "default", search

    def add(self, key: int, item: Any) -> None:
        import qdrant_edge as q

        self.shard.update(q.UpdateOperation.upsert_points([q.Point(id=key, vector={"v": item.tolist()})]))

    def delete(self, key: int) -> None:
        import qdrant_edge as q

        self.shard.update(q.UpdateOperation.delete_points([key]))


ENGINES: dict[str, Any] = {
    "ragkit": Ragkit,
    "ragkit-float16": RagkitFloat16,
    "ragkit-coarse": RagkitCoarse,
    "ragkit-coarser": RagkitCoarser,
    "torch": Torch,
    "maxsim-cpu": MaxsimCpu,
    "muvera": Muvera,
    "fast-plaid": FastPlaid,
    "xtr-warp": XtrWarp,
    "lancedb": LanceDB,
    "lancedb-indexed": LanceDBIndexed,
    "qdrant-edge": QdrantEdge,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def load(files: list[str], *, items: int, queries: int) -> tuple[list[Any], list[Any]]:
    values, offsets, rows, bounds = (np.load(file, mmap_mode="r") for file in files)
    count = min(items or len(offsets) - 1, len(offsets) - 1)
    some = np.linspace(0, len(bounds) - 2, min(queries, len(bounds) - 1)).astype(int)
    kept = [np.asarray(values[offsets[at] : offsets[at + 1]], dtype=np.float32) for at in range(count)]
    return kept, [np.asarray(rows[bounds[at] : bounds[at + 1]], dtype=np.float32) for at in some]


def truth(items: list[Any], queries: list[Any]) -> Any:
    """The exact first K of each query, (queries, K)."""
    from ragkit.store.vectors.maxsim import scan
    from ragkit.store.vectors.tiles import Items

    offsets = np.cumsum([0, *map(len, items)], dtype=np.int64)
    stored = Items(np.concatenate(items), offsets, np.arange(len(items)))
    return np.stack([scan([query], stored, k=K)[0][0] for query in queries])


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, and what came of it."""
    start = time.process_time()
    answer = call()
    return time.process_time() - start, answer


def measure(name: str, items: list[Any], queries: list[Any], exact: Any, folder: Path) -> Iterator[dict[str, Any]]:
    build, _ = spent(lambda: ENGINES[name]().build(items, folder))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    yield {"build_cpu_s": round(build, 2), "bytes_per_token": round(size / sum(map(len, items)), 1)}
    engine = ENGINES[name]()
    for setting, search in engine.open(folder):
        search(queries[0])
        taken, recalls = [], []
        for query, best in zip(queries, exact, strict=True):
            cpu, found = spent(partial(search, query))
            taken.append(cpu * 1e3)
            recalls.append(len(np.intersect1d(found, best)) / K)
        yield {"setting": setting, "cpu_ms": round(float(np.median(taken)), 2), "recall@10": round(float(np.mean(recalls)), 4)}
    if hasattr(engine, "add"):
        search(queries[0])
        steps: dict[str, list[float]] = {"add": [], "delete": [], "search": []}
        for at in range(CHANGES):
            steps["add"].append(spent(lambda at=at: (engine.add(len(items) + at, items[at]), search(queries[0])))[0])
            steps["delete"].append(spent(lambda at=at: (engine.delete(at), search(queries[0])))[0])
            steps["search"].append(spent(lambda: search(queries[0]))[0])
        middle = {name: float(np.median(taken)) * 1e3 for name, taken in steps.items()}
        yield {f"{name}_one_cpu_ms": round(middle[name] - middle["search"], 2) for name in ("add", "delete")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=4, metavar="FILE.npy")
    parser.add_argument("engines", nargs="+", choices=sorted(ENGINES))
    parser.add_argument("--items", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--exact", help=argparse.SUPPRESS)  # in an engine's process: the file of the exact answers
    arguments = parser.parse_args()
    items, queries = load(arguments.files, items=arguments.items, queries=arguments.queries)
    if arguments.exact:
        with tempfile.TemporaryDirectory() as scratch:
            for line in measure(arguments.engines[0], items, queries, np.load(arguments.exact), Path(scratch) / "index"):
                print(json.dumps(line), flush=True)
        return
    print(f"{len(items)} items, {sum(map(len, items))} tokens of {items[0].shape[1]} dims, {len(queries)} queries", flush=True)
    interpreters = dict(one.split("=", 1) for one in arguments.python)
    with tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / "exact.npy"
        np.save(exact, truth(items, queries))
        for name in arguments.engines:
            python = interpreters.get(name, sys.executable)
            rest = ["--items", str(len(items)), "--queries", str(len(queries)), "--exact", str(exact)]
            command = [python, __file__, *arguments.files, name, *rest]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **ONE_THREAD})
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    print(f"{name:16} {line}", flush=True)
            if done.returncode:
                print(f"{name:16} ended with {done.returncode}", flush=True)


if __name__ == "__main__":
    main()

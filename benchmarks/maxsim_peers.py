"""A differential test: the same corpora, queries and filters through MaxSimIndex and through other engines; the same top ten.

    python benchmarks/maxsim_peers.py --python PEERS/bin/python lancedb qdrant-client qdrant-edge

PEERS is a virtual environment with numpy, lancedb, pylance, qdrant-client and qdrant-edge-py: this script runs itself there.
Random ragged corpora of unit rows, float32; a filter that has nothing to do with the query lets one key in seven through. An
engine agrees when it returns the same scores, to its own rounding, in the same order, up to keys whose scores are closer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

K = 10
SEVENTH = 7
TOLERANCE = {"lancedb": 2e-3, "qdrant-client": 1e-3, "qdrant-edge": 1e-3}  # of a score of up to 8; LanceDB keeps distances


def corpus(seed: int, *, count: int, dims: int) -> tuple[list[Any], list[Any]]:
    """Items of 1 to 30 rows, some of them twice, and queries of 8."""
    rng = np.random.default_rng(seed)

    def rows(size: int) -> Any:
        found = rng.normal(size=(size, dims)).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    items = [rows(int(size)) for size in rng.integers(1, 31, count)]
    return items + items[:5], [rows(8) for _ in range(5)]


def lancedb(items: list[Any], queries: list[Any], folder: Path) -> list[Any]:
    import lancedb
    import pyarrow as pa

    dims = items[0].shape[1]
    schema = pa.schema([("id", pa.int64()), ("seventh", pa.bool_()), ("v", pa.list_(pa.list_(pa.float32(), dims)))])
    rows = [
        {"id": at, "seventh": at % SEVENTH == 0, "v": [list(map(float, row)) for row in item]} for at, item in enumerate(items)
    ]
    table = lancedb.connect(str(folder)).create_table("t", pa.Table.from_pylist(rows, schema=schema))
    found = []
    for query in queries:
        for filtered in (False, True):
            search = table.search(query, vector_column_name="v").distance_type("cosine").limit(K).select(["id", "_distance"])
            answer = (search.where("seventh", prefilter=True) if filtered else search).to_arrow()
            # Its distance is the sum over query rows of 1 - cosine.
            scores = [len(query) - one for one in answer["_distance"].to_pylist()]
            found.append([answer["id"].to_pylist(), scores])
    return found


def qdrant_client(items: list[Any], queries: list[Any], folder: Path) -> list[Any]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    how = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    params = models.VectorParams(size=items[0].shape[1], distance=models.Distance.DOT, multivector_config=how)
    client.create_collection("t", vectors_config=params)
    points = [models.PointStruct(id=at, vector=item.tolist(), payload={"s": at % SEVENTH}) for at, item in enumerate(items)]
    client.upsert("t", points)
    only = models.Filter(must=[models.FieldCondition(key="s", match=models.MatchValue(value=0))])
    found = []
    for query in queries:
        for chosen in (None, only):
            points = client.query_points("t", query=query.tolist(), limit=K, query_filter=chosen).points
            found.append([[one.id for one in points], [one.score for one in points]])
    return found


def qdrant_edge(items: list[Any], queries: list[Any], folder: Path) -> list[Any]:
    import qdrant_edge as q

    how = q.MultiVectorConfig(comparator=q.MultiVectorComparator.MaxSim)
    params = q.EdgeVectorParams(size=items[0].shape[1], distance=q.Distance.Dot, multivector_config=how)
    folder.mkdir(exist_ok=True)
    shard = q.EdgeShard.create(str(folder), q.EdgeConfig(vectors={"v": params}))
    points = [q.Point(id=at, vector={"v": item.tolist()}, payload={"s": at % SEVENTH}) for at, item in enumerate(items)]
    shard.update(q.UpdateOperation.upsert_points(points))
    only = q.Filter(must=[q.FieldCondition(key="s", match=q.MatchValue(value=0))])
    found = []
    for query in queries:
        for chosen in (None, only):
            nearest = q.Query.Nearest(query.tolist(), using="v")
            answer = shard.query(q.QueryRequest(query=nearest, limit=K, prefetches=[], filter=chosen))
            found.append([[one.id for one in answer], [one.score for one in answer]])
    return found


PEERS = {"lancedb": lancedb, "qdrant-client": qdrant_client, "qdrant-edge": qdrant_edge}


def ours(items: list[Any], queries: list[Any], folder: Path) -> list[Any]:
    from ragkit import MaxSimIndex

    found = []
    with MaxSimIndex.open(folder, dim=items[0].shape[1], precision="float32") as index:
        index.add(range(len(items)), items)
        index.commit()
        for query in queries:
            for allowed in (None, range(0, len(items), SEVENTH)):
                keys, scores = index.search(query, K, allowed=allowed)
                found.append([keys.tolist(), scores.tolist()])
    return found


def assert_agree(mine: list[Any], theirs: list[Any], *, tolerance: float) -> None:
    """Scores to the tolerance, rank by rank; keys wherever no other score of the ten is as near."""
    for number, ((keys, scores), (other_keys, other_scores)) in enumerate(zip(mine, theirs, strict=True)):
        assert len(keys) == len(other_keys), f"search {number}: {len(keys)} and {len(other_keys)} hits"
        gaps = np.abs(np.array(scores) - np.array(other_scores))
        assert gaps.max() <= tolerance, f"search {number}: scores differ by {gaps.max():.2e}"
        for at, key in enumerate(keys[:-1]):
            near = np.abs(np.array(scores) - scores[at]) <= 2 * tolerance
            assert key in {other_keys[one] for one in np.flatnonzero(near)} or near[-1], f"search {number}, rank {at + 1}: {key}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="+", choices=sorted(PEERS))
    parser.add_argument("--python", help="the interpreter of the environment that has the peers")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    shapes = {0: (200, 128), 1: (77, 32), 2: (12, 96)}
    if arguments.seed is not None:  # in the peers' environment: one peer, one corpus
        count, dims = shapes[arguments.seed]
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(PEERS[arguments.peers[0]](*corpus(arguments.seed, count=count, dims=dims), Path(scratch) / "peer")))
        return
    for seed, (count, dims) in shapes.items():
        with tempfile.TemporaryDirectory() as scratch:
            mine = ours(*corpus(seed, count=count, dims=dims), Path(scratch) / "ours")
        for peer in arguments.peers:
            command = [arguments.python or sys.executable, __file__, peer, "--seed", str(seed)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            assert_agree(mine, json.loads(done.stdout.splitlines()[-1]), tolerance=TOLERANCE[peer])
            print(f"{peer}: {len(mine)} searches over {count + 5} items of {dims} dims agree", flush=True)


if __name__ == "__main__":
    main()

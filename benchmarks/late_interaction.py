"""Late interaction measured for quality: dense, lexical, multi, hybrids of two and three, and reranked by MaxSim.

    python benchmarks/late_interaction.py beir  FOLDER      # a BEIR folder
    python benchmarks/late_interaction.py pages FOLDER      # questions.jsonl and pdfs/

The default model and its token states in int8. nDCG@10 with a bootstrap interval over the queries, and success@1, for each
ranking; for the hybrids also by constant of reciprocal ranks and by weights. Embedding takes minutes, the rest seconds.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragkit import Index
from ragkit.apps.evaluate import read_beir, read_pages
from ragkit.apps.evaluate.judged import Judged

DEPTH = 100
SAMPLES = 2000
Run = Callable[[Any, str], Sequence[Any]]


def ndcg(ranked: Sequence[str], judged: dict[str, int], k: int = 10) -> float:
    gains = [judged.get(name, 0) / math.log2(at + 2) for at, name in enumerate(ranked[:k])]
    ideal = [gain / math.log2(at + 2) for at, gain in enumerate(sorted(judged.values(), reverse=True)[:k])]
    return sum(gains) / sum(ideal) if ideal else 0.0


def names(hits: Sequence[Any], level: str) -> list[str]:
    """Documents, or first pages, in order, each once."""
    found = (hit.document_id if level == "document" else f"{hit.document_id}#{hit.pages[0] if hit.pages else 0}" for hit in hits)
    return list(dict.fromkeys(found))


def runs() -> dict[str, dict[str, Any]]:
    two = {"weights": {"chunk.multi": 0}}
    chosen: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in ("dense", "lexical", "multi")}
    chosen |= {"hybrid of two": two, "hybrid of three": {}, "reranked by MaxSim": {"rerank": "maxsim"}}
    for constant in (1, 5, 15, 60):
        chosen[f"two, constant {constant}"] = {**two, "rrf": float(constant)}
        chosen[f"three, constant {constant}"] = {"rrf": float(constant)}
    for dense, lexical, multi in ((1, 2, 1), (0.5, 1, 1)):
        weights = {"chunk.dense": dense, "chunk.lexical": lexical, "chunk.multi": multi}
        chosen[f"three, weights {dense}, {lexical}, {multi}"] = {"weights": weights}
    return chosen


def measure(index: Index, judged: Judged) -> None:
    rng = np.random.default_rng(0)
    for name, options in runs().items():
        answers = {query: names(index.search(text, DEPTH, **options), judged.level) for query, text in judged.queries.items()}
        values = np.array([ndcg(ranked, dict(judged.qrels[query])) for query, ranked in answers.items()])
        first = np.mean([judged.qrels[query].get(ranked[0], 0) > 0 if ranked else False for query, ranked in answers.items()])
        means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(SAMPLES)]
        low, high = np.quantile(means, [0.025, 0.975])
        print(f"{name:28} nDCG@10 {values.mean():.4f} [{low:.4f}, {high:.4f}]   success@1 {first:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("beir", "pages"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunk-tokens", type=int, default=256)
    arguments = parser.parse_args()
    judged = read_beir(arguments.folder) if arguments.what == "beir" else read_pages(arguments.folder)
    whole = {"chunker": "whole", "overflow": "truncate"} if arguments.what == "beir" else {"chunk_tokens": arguments.chunk_tokens}
    with tempfile.TemporaryDirectory() as scratch, Index.open(Path(scratch) / "index", multi=True, **whole) as index:
        print(index.add(judged.documents), index.stats().bytes_by_part)
        measure(index, judged)


if __name__ == "__main__":
    main()

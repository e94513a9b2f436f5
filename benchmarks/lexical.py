"""BM25: nDCG@10 and time per query on a BEIR folder, and what one more commit costs on 100 k chunks.

    python benchmarks/lexical.py [folder] [language]      the default is ../shared/data/scifact-train, "en"

For the cost of a commit, set TMPDIR to a RAM disk to see it without syncs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ragkit.store.local.files import CheckedFolder
from ragkit.store.vectors.lexical import LexicalReader, write_generation

SCIFACT = Path(__file__).parent.parent.parent / "shared/data/scifact-train"


def quality(folder: Path, language: str, scratch: Path) -> None:
    import ir_measures

    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").open()]
    judged = [line.split("\t") for path in sorted((folder / "qrels").glob("*.tsv")) for line in path.open()]
    qrels = [ir_measures.Qrel(query, document, int(grade)) for query, document, grade in judged if grade.strip().isdigit()]
    rows = ((key, key, f"{one.get('title', '')} {one['text']}", language) for key, one in enumerate(corpus))
    start = time.perf_counter()
    records = write_generation(None, scratch / "quality", add=rows, delete_documents=())
    built = time.perf_counter() - start
    reader = LexicalReader(CheckedFolder(scratch / "quality", records))
    run, taken = [], []
    for query in queries:
        start = time.perf_counter()
        keys, _, scores = reader.search(query["text"], 100)
        taken.append((time.perf_counter() - start) * 1e3)
        pairs = zip(keys.tolist(), scores.tolist(), strict=True)
        run += [ir_measures.ScoredDoc(query["_id"], corpus[key]["_id"], score) for key, score in pairs]
    measures = [ir_measures.parse_measure(name) for name in ("nDCG@10", "R@10", "R@100", "RR@10")]
    found = ir_measures.calc_aggregate(measures, qrels, run)
    size = sum(record.size for record in records) / 1e6
    print(f"{folder.name}: {len(corpus)} documents in {built:.1f} s, {size:.1f} MB, {len(queries)} queries, k = 100")
    print("  " + ", ".join(f"{measure} {found[measure]:.4f}" for measure in measures))
    print(f"  {np.percentile(taken, 50):.2f} ms p50, {np.percentile(taken, 95):.2f} ms p95")


def growth(scratch: Path, *, chunks: int = 100_000, commits: int = 200) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(30_000)])
    ranks = rng.zipf(1.2, size=(chunks, 50)) % len(words)
    rows = ((key, key // 10, " ".join(words[ranks[key]]), "en") for key in range(chunks))
    start = time.perf_counter()
    records = write_generation(None, scratch / "0", add=rows, delete_documents=())
    print(f"\n{chunks} chunks of 50 words: first generation {time.perf_counter() - start:.1f} s")
    taken = []
    for number in range(1, commits + 1):
        known = {record.name: record for record in records}
        add = [(chunks + number, chunks + number, " ".join(words[ranks[number]]), "en")]
        start = time.perf_counter()
        previous, folder = scratch / str(number - 1), scratch / str(number)
        records = write_generation(previous, folder, add=add, delete_documents=[number], known=known.get)
        taken.append((time.perf_counter() - start) * 1e3)
    start = time.perf_counter()
    reader = LexicalReader(CheckedFolder(scratch / str(commits), records))
    opened = (time.perf_counter() - start) * 1e3
    print(f"  one more chunk and a deletion: {np.percentile(taken, 50):.1f} ms p50, {np.percentile(taken, 95):.1f} ms p95")
    print(f"  after {commits} commits: {reader.segments} segments, {len(records)} files; opened, verified, in {opened:.0f} ms")
    for name, allowed in (("all", None), ("1 % allowed", 100), ("10 % allowed", 10), ("half allowed", 2)):
        filters = None if allowed is None else np.arange(0, chunks // 10, allowed)
        taken = []
        for row in ranks[:300]:
            start = time.perf_counter()
            reader.search(" ".join(words[row[:8]]), 10, allowed_documents=filters)
            taken.append((time.perf_counter() - start) * 1e3)
        print(f"  search, {name:12} {np.percentile(taken, 50):6.2f} ms p50 {np.percentile(taken, 95):6.2f} ms p95")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SCIFACT
    with tempfile.TemporaryDirectory() as scratch:
        if folder.exists():
            quality(folder, sys.argv[2] if len(sys.argv) > 2 else "en", Path(scratch))
        else:
            print(f"{folder} is not here: quality is not measured")
        growth(Path(scratch))


if __name__ == "__main__":
    main()

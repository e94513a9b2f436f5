"""How fast the default model encodes on this machine, beside sentence-transformers' default, in one run on the same texts.

    python benchmarks/encode.py [--texts 400] [--rounds 5] [--threads 0] [--dtype auto] [--budgets] [--json]

Texts, with the lengths they really have: scientific abstracts and one-sentence claims (../shared/data/scifact-train), the
paragraphs of wiki articles (../shared/data/chunking-spans), and all three mixed, as a folder of documents would bring them;
without those folders, sentences this script makes up. Both see at most 256 tokens of each. The two take turns, round by round;
the table has the median over rounds of tokens per second of processor time and of wall time, and the ratio within rounds,
since other work on the machine changes both alike. Last: seconds from a cold process to its first query's vector.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[2] / "shared/data"
SYLLABLES = [
    "ba",
    "co",
    "di",
    "fen",
    "gul",
    "har",
    "iso",
    "jen",
    "kor",
    "lum",
    "mi",
    "nor",
    "os",
    "pra",
    "qui",
    "ret",
    "sol",
    "tan",
    "ur",
    "vek",
]


def read_texts(count: int) -> dict[str, list[str]]:
    """Up to `count` texts of each kind; every n-th of a collection, so that lengths are spread as they are there."""
    if not DATA.exists():
        rng = random.Random(0)
        return {"made-up sentences": [_made_up(rng) for _ in range(count)]}
    abstracts, claims = (
        [f"{row.get('title', '')} {row['text']}".strip() for row in map(json.loads, path.read_text("utf-8").splitlines())]
        for path in (DATA / "scifact-train/corpus.jsonl", DATA / "scifact-train/queries.jsonl")
    )
    lines = (DATA / "chunking-spans/wikitexts.md").read_text(encoding="utf-8").splitlines()
    kinds = {"abstracts": abstracts, "paragraphs": [line for line in lines if line.strip()], "claims": claims}
    texts = {kind: all_of[:: max(1, len(all_of) // count)][:count] for kind, all_of in kinds.items()}
    texts["mixed"] = [text for all_of in texts.values() for text in all_of[:: len(texts)]]
    return texts


def _made_up(rng: random.Random) -> str:
    words = ("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(int(rng.gauss(150, 60))))
    return " ".join(words) or "none"


def timed(encode: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """(processor seconds, wall seconds, rows)."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = encode()
    return time.process_time() - cpu, time.perf_counter() - wall, rows


def throughput(texts: list[str], *, rounds: int, dtype: str) -> dict[str, object]:
    """Both encoders on all texts, turn by turn: medians per contender, the ratios, and the smallest cosine between them."""
    from sentence_transformers import SentenceTransformer

    from ragkit.encode import default_model_folder, load_encoder

    ours = load_encoder(dtype=dtype)
    theirs = SentenceTransformer(str(default_model_folder()), device="cpu", local_files_only=True)
    tokens = int(np.minimum(ours.count_tokens(texts), ours.card.max_tokens).sum())
    contenders: dict[str, Callable[[], np.ndarray]] = {
        "ragkit": lambda: ours.encode_document(texts, truncate=True).dense,
        "sentence-transformers": lambda: theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False),
    }
    for encode in contenders.values():
        encode()  # warm: memory, threads, caches
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    rows: dict[str, np.ndarray] = {}
    for round_number in range(rounds):
        for name in list(contenders)[:: 1 if round_number % 2 else -1]:
            cpu, wall, rows[name] = timed(contenders[name])
            seconds[name].append((cpu, wall))
    result: dict[str, object] = {"texts": len(texts), "tokens": tokens, "rounds": rounds}
    for name, pairs in seconds.items():
        cpus, walls = zip(*pairs, strict=True)
        result[name] = {
            "tokens_per_cpu_second": tokens / statistics.median(cpus),
            "tokens_per_second": tokens / statistics.median(walls),
        }
    for kind, column in (("cpu", 0), ("wall", 1)):
        ratios = [b[column] / a[column] for a, b in zip(seconds["ragkit"], seconds["sentence-transformers"], strict=True)]
        result[f"ratio_{kind}"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    result["cosine_min"] = float((rows["ragkit"] * rows["sentence-transformers"]).sum(axis=1).min())
    return result


def budgets(texts: list[str], *, rounds: int) -> dict[str, float]:
    """Tokens per processor second by batch budget: the measurement behind `ragkit.encode.models.bert.CPU_TOKENS`."""
    from ragkit.encode import load_encoder

    encoder = load_encoder()
    tokens = int(np.minimum(encoder.count_tokens(texts), encoder.card.max_tokens).sum())
    seconds: dict[int, list[float]] = {size: [] for size in (512, 1024, 2048, 4096, 8192, 16384)}
    for _ in range(rounds):
        for size, spent in seconds.items():
            encoder._budget = size
            spent.append(timed(lambda: encoder.encode_document(texts, truncate=True).dense)[0])
    return {str(size): tokens / min(spent) for size, spent in seconds.items()}


def cold_start(*, runs: int) -> dict[str, tuple[float, float]]:
    """Median (wall, processor) seconds from starting Python to the first query's vector: ours, ours with torch, and theirs."""
    query = ".encode_query(['what is late chunking?'])"
    programs = {
        "ragkit": f"from ragkit.encode import load_encoder; load_encoder(){query}",
        "ragkit, torch imported": f"import torch; from ragkit.encode import load_encoder; load_encoder(){query}",
        "sentence-transformers": "from ragkit.encode import default_model_folder as f; "
        f"from sentence_transformers import SentenceTransformer as S; S(str(f()), local_files_only=True){query}",
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            seconds[name].append((time.perf_counter() - start, cpu))
    return {
        name: (statistics.median(w for w, _ in pairs), statistics.median(c for _, c in pairs)) for name, pairs in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch, for both; 0: its own default")
    parser.add_argument("--dtype", default="auto", help="of ours; theirs computes in float32")
    parser.add_argument("--budgets", action="store_true", help="also compare batch budgets")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    texts = read_texts(arguments.texts)
    cold = cold_start(runs=3)
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "dtype": arguments.dtype}
    result["kinds"] = {kind: throughput(some, rounds=arguments.rounds, dtype=arguments.dtype) for kind, some in texts.items()}
    result["cold_start_seconds"] = cold
    if arguments.budgets:
        result["tokens_per_cpu_second_by_budget"] = budgets(next(iter(texts.values())), rounds=arguments.rounds)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['threads']} thread(s), torch {result['torch']}, ours in {result['dtype']}; tokens per processor second"]
    lines.append(
        f"{'':20}{'texts':>7}{'tokens each':>13}{'sentence-tr.':>14}{'ragkit':>9}{'ratio':>8}{'wall':>7}{'cosine >=':>12}"
    )
    for kind, found in result["kinds"].items():
        theirs, ours = (found[name]["tokens_per_cpu_second"] for name in ("sentence-transformers", "ragkit"))
        lines.append(
            f"{kind:20}{found['texts']:>7}{found['tokens'] / found['texts']:>13.1f}{theirs:>14,.0f}{ours:>9,.0f}"
            f"{found['ratio_cpu']['median']:>8.2f}{found['ratio_wall']['median']:>7.2f}{found['cosine_min']:>12.6f}"
        )
    lines += [f"cold start, {name}: {wall:.1f} s, {cpu:.1f} CPU s" for name, (wall, cpu) in result["cold_start_seconds"].items()]
    for size, speed in result.get("tokens_per_cpu_second_by_budget", {}).items():
        lines.append(f"batches of {size} tokens: {speed:,.0f} tokens / CPU s")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

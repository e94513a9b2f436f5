"""How fast the default model encodes on this machine, beside sentence-transformers' default, in one run on the same texts.

    python benchmarks/encode.py [--texts 400] [--rounds 5] [--threads 0] [--budgets] [--json]

Texts: the abstracts of ../shared/data/scifact-train where that folder exists, else sentences this script makes up with the
same spread of lengths. Both see at most 256 tokens of each. The two take turns, round by round; the table has the median
over rounds of tokens per second of processor time and of wall time, and the ratio within rounds, since other work on the
machine changes both alike. Last: seconds from a cold process to its first query's vector.
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

import numpy as np

CORPUS = Path(__file__).resolve().parents[2] / "shared/data/scifact-train/corpus.jsonl"
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


def read_texts(count: int) -> tuple[list[str], str]:
    """`count` texts and where they come from; every n-th of the corpus, so that lengths are spread as they are there."""
    if CORPUS.exists():
        lines = CORPUS.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:: max(1, len(lines) // count)][:count]]
        return [f"{row.get('title', '')} {row['text']}".strip() for row in rows], "SciFact abstracts"
    rng = random.Random(0)
    return [_made_up(rng) for _ in range(count)], "made-up sentences"


def _made_up(rng: random.Random) -> str:
    words = ("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(int(rng.gauss(150, 60))))
    return " ".join(words) or "none"


def timed(encode: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """(processor seconds, wall seconds, rows)."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = encode()
    return time.process_time() - cpu, time.perf_counter() - wall, rows


def throughput(texts: list[str], *, rounds: int) -> dict[str, object]:
    """Both encoders on all texts, turn by turn: medians per contender, the ratios, and the smallest cosine between them."""
    from sentence_transformers import SentenceTransformer

    from ragkit.encode import default_model_folder, load_encoder

    ours = load_encoder()
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
    result: dict[str, object] = {"tokens": tokens, "rounds": rounds}
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
    """Tokens per processor second by batch budget: the measurement behind `ragkit.encode.bert.CPU_TOKENS`."""
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
    parser.add_argument("--budgets", action="store_true", help="also compare batch budgets")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    texts, source = read_texts(arguments.texts)
    cold = cold_start(runs=3)
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result: dict[str, object] = {
        "texts": len(texts),
        "source": source,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    result |= throughput(texts, rounds=arguments.rounds)
    result["cold_start_seconds"] = cold
    if arguments.budgets:
        result["tokens_per_cpu_second_by_budget"] = budgets(texts, rounds=arguments.rounds)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


def table(result: dict[str, object]) -> str:
    where = f"{result['threads']} thread(s), torch {result['torch']}"
    lines = [f"{result['texts']} {result['source']}, {result['tokens']} tokens, {where}"]
    lines.append(f"{'':24}{'tokens / CPU s':>16}{'tokens / s':>14}")
    for name in ("sentence-transformers", "ragkit"):
        rates = result[name]
        assert isinstance(rates, dict)
        lines.append(f"{name:24}{rates['tokens_per_cpu_second']:16,.0f}{rates['tokens_per_second']:14,.0f}")
    for kind in ("cpu", "wall"):
        ratio = result[f"ratio_{kind}"]
        assert isinstance(ratio, dict)
        lines.append(f"ratio by {kind:4} {ratio['median']:.2f} (rounds: {ratio['min']:.2f} to {ratio['max']:.2f})")
    lines.append(f"smallest cosine between the two: {result['cosine_min']:.7f}")
    cold, sizes = result["cold_start_seconds"], result.get("tokens_per_cpu_second_by_budget", {})
    assert isinstance(cold, dict) and isinstance(sizes, dict)  # noqa: PT018
    lines += [f"cold start to first query vector, {name}: {wall:.2f} s, {cpu:.2f} CPU s" for name, (wall, cpu) in cold.items()]
    lines += [f"budget of {size:>6} tokens: {rate:,.0f} tokens / CPU s" for size, rate in sizes.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

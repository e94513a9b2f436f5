"""Does late chunking find more, and what does it cost? Chunks ranked by the default model against gold character spans.

    python benchmarks/late.py [--data chunking-spans de zh] [--budgets 64 128 256] [--overlaps 16 64] [--rounds 3] [--json]

Data: ../shared/data/chunking-spans, and the articles of ../shared/data/xquad-de-zh. The same chunks (ragkit's sentence chunker)
get vectors in several ways, and every question ranks all chunks of its collection by cosine:

    naive        each chunk by itself
    late N       late chunking in windows of N tokens (256 is the model's own setting, 512 all the positions it has)
    headers      naive, with the path of headings in front of the chunk when embedding (only the wiki articles have headings)
    a+b          the mean of the two unit vectors

For k = 1, 3, 5, 10, in characters (Smith and Troynikov 2024): recall, the share of the gold spans that the k chunks hold;
precision, the share of the k chunks that is gold; IoU, both over their union. A difference to naive is the mean over questions
with the 95 % interval of the paired bootstrap. Cost: processor seconds in one thread, taking turns, of naive and late on the
same documents and chunks, and the tokens each of them ran.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.apps.evaluate.bootstrap import bootstrap_means
from ragkit.chunk import chunk_document
from ragkit.core.arrays import unit_rows
from ragkit.core.types import Block, Chunk, Document, Span
from ragkit.encode import load_encoder
from ragkit.encode.late import OVERLAP, late_chunk_documents
from ragkit.encode.late_pooling import token_windows

DATA = Path(__file__).resolve().parents[2] / "shared/data"
KS = (1, 3, 5, 10)
WINDOWS = (256, 512)
TIMED = 50_000  # characters, about, whose cost is measured
HEADING = re.compile(r"^ ((?:= )+)(\S.*?) \1$", re.M)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Documents, and questions with the spans that answer them: (text, number of the document, spans)."""

    name: str
    documents: list[Document]
    questions: list[tuple[str, int, list[Span]]]


def read_judged(name: str) -> Judged:
    return read_chunking_spans() if name == "chunking-spans" else read_articles(name)


def read_chunking_spans() -> Judged:
    folder = DATA / "chunking-spans"
    names = sorted(path.stem for path in folder.glob("*.md") if path.stem != "README")
    documents = []
    for name in names:
        with (folder / f"{name}.md").open(encoding="utf-8", newline="") as file:
            text = file.read()
        headings = tuple(Block("heading", Span(*m.span(2)), level=len(m[1]) // 2) for m in HEADING.finditer(text))
        documents.append(Document(text=text, id=name, blocks=headings))
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [(row["question"], names.index(row["corpus"]), [Span(*span) for span in row["spans"]]) for row in rows]
    return Judged("chunking-spans", documents, questions)


def read_articles(language: str) -> Judged:
    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (DATA / "xquad-de-zh" / language / name).read_text(encoding="utf-8").splitlines()]

    documents = [Document(text=row["text"], id=row["_id"]) for row in rows("articles.jsonl")]
    at = {document.id: number for number, document in enumerate(documents)}
    asked = {row["_id"]: row["text"] for row in rows("queries.jsonl")}
    gold = [row for row in rows("article_spans.jsonl") if row["query"] in asked]
    questions = [(asked[row["query"]], at[row["doc"]], [Span(row["start"], row["end"])]) for row in gold]
    return Judged(f"xquad {language} articles", documents, questions)


def measures(judged: Judged, owners: np.ndarray, spans: list[Span], ranked: np.ndarray) -> dict[str, np.ndarray]:
    """{"recall@1": (questions,), ...}: ranked (questions, 10) positions of chunks, best first."""
    marks = [np.zeros(len(document.text), dtype=np.int8) for document in judged.documents]
    found: dict[str, list[float]] = {f"{what}@{k}": [] for k in KS for what in ("recall", "precision", "iou")}
    for (_, number, gold), order in zip(judged.questions, ranked, strict=True):
        mark = marks[number]
        mark[:] = 0
        for span in gold:
            mark[span.start : span.end] = 1
        wanted = int(mark.sum())
        held = retrieved = 0
        for rank, chunk in enumerate(order, 1):
            span = spans[chunk]
            retrieved += span.length
            if owners[chunk] == number:
                held += int(mark[span.start : span.end].sum())  # chunks do not overlap: each gold character counts once
            if rank in KS:
                found[f"recall@{rank}"].append(held / wanted)
                found[f"precision@{rank}"].append(held / retrieved)
                found[f"iou@{rank}"].append(held / (wanted + retrieved - held))
    return {name: np.array(values) for name, values in found.items()}


def headed(document: Document, chunk: Chunk) -> str:
    text = chunk.span.of(document.text)
    return f"{' > '.join(chunk.headings)}\n{text}" if chunk.headings else text


def vectors(
    encoder: Any, documents: Sequence[Document], chunks: Sequence[Sequence[Chunk]], *, overlaps: Sequence[int]
) -> dict[str, np.ndarray]:
    """Rows for all chunks in order, by the way they were made."""
    pairs = [(document, chunk) for document, own in zip(documents, chunks, strict=True) for chunk in own]
    given = [(document.text, [chunk.span for chunk in own]) for document, own in zip(documents, chunks, strict=True)]

    def late(window: int, overlap: int | None = None) -> np.ndarray:
        return np.concatenate(late_chunk_documents(encoder, given, window=window, overlap=overlap))

    made = {"naive": encoder.encode_document([chunk.span.of(document.text) for document, chunk in pairs]).dense}
    for window in WINDOWS:
        made[f"late {window}"] = late(window)
        made |= {f"late {window} overlap {overlap}": late(window, overlap) for overlap in overlaps}
    under = [i for i, (_, chunk) in enumerate(pairs) if chunk.headings]
    if under:
        made["headers"] = made["naive"].copy()
        made["headers"][under] = encoder.encode_document([headed(*pairs[i]) for i in under], truncate=True).dense
    for alone in ("naive", "headers") if under else ("naive",):
        made |= {f"{alone}+late {window}": unit_rows(made[alone] + made[f"late {window}"]) for window in WINDOWS}
    return made


def quality(judged: Judged, encoder: Any, *, budgets: Sequence[int], overlaps: Sequence[int]) -> dict[int, dict[str, Any]]:
    """By budget. The chunks of all budgets are embedded together: spans may overlap, so the windows are run once for all."""
    cut = [[chunk_document(d, tokens=tokens, encoder_tokens=encoder) for tokens in budgets] for d in judged.documents]
    together = [[chunk for own in of_budgets for chunk in own] for of_budgets in cut]
    rows = vectors(encoder, judged.documents, together, overlaps=overlaps)
    of_budget = np.concatenate([np.repeat(budgets, [len(own) for own in of_budgets]) for of_budgets in cut])
    owners = np.repeat(np.arange(len(cut)), [len(own) for own in together])
    spans = [chunk.span for own in together for chunk in own]
    questions = encoder.encode_query([question for question, _, _ in judged.questions]).dense
    return {
        tokens: compared(judged, questions, rows, owners, spans, chosen=np.flatnonzero(of_budget == tokens)) for tokens in budgets
    }


def compared(
    judged: Judged,
    questions: np.ndarray,
    rows: dict[str, np.ndarray],
    owners: np.ndarray,
    spans: list[Span],
    *,
    chosen: np.ndarray,
) -> dict[str, Any]:
    """Each way's measures over the chosen chunks, and its differences to naive."""
    ways: dict[str, Any] = {}
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, own in rows.items():
        ranked = chosen[np.argsort(-(questions @ own[chosen].T), axis=1, kind="stable")[:, : max(KS)]]
        values[name] = measures(judged, owners, spans, ranked)
        ways[name] = {measure: float(each.mean()) for measure, each in values[name].items()}
        if name != "naive":
            gaps = {measure: interval(each - values["naive"][measure]) for measure, each in values[name].items()}
            ways[name]["difference"] = gaps
    return {"chunks": len(chosen), "questions": len(questions), "ways": ways}


def interval(differences: np.ndarray) -> list[float]:
    """[mean, low, high]: the middle 95 % of bootstrapped means."""
    means = bootstrap_means(differences, resamples=10_000, seed=0)
    return [float(differences.mean()), *np.quantile(means, (0.025, 0.975)).tolist()]


def first_of(documents: Sequence[Document]) -> list[Document]:
    """The first few, of about TIMED characters together; at least one."""
    ends = np.cumsum([len(document.text) for document in documents])
    return list(documents[: max(1, int(np.searchsorted(ends, TIMED, side="right")))])


def cost(documents: Sequence[Document], encoder: Any, *, tokens: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of each way, and what it ran: medians over rounds, in which the ways take turns."""
    chunks = [chunk_document(document, tokens=tokens, encoder_tokens=encoder) for document in documents]
    given = [(document.text, [chunk.span for chunk in own]) for document, own in zip(documents, chunks, strict=True)]
    texts = [span.of(text) for text, spans in given for span in spans]
    lengths = encoder.count_tokens([text for text, _ in given])

    def windowed(window: int) -> int:
        cut = [token_windows(n, window=window, overlap=min(OVERLAP, window // 4)) for n in lengths.tolist()]
        return sum(end - start for windows in cut for start, _, end in windows)

    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "naive": (int(encoder.count_tokens(texts).sum()), lambda: encoder.encode_document(texts))
    }
    for window in WINDOWS:
        ways[f"late {window}"] = windowed(window), partial(late_chunk_documents, encoder, given, window=window)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            start = time.process_time()
            ways[name][1]()
            seconds[name].append(time.process_time() - start)
    naive = seconds["naive"]
    return {
        name: {
            "tokens": ways[name][0],
            "cpu_seconds": statistics.median(spent),
            "ratio": statistics.median(a / b for a, b in zip(spent, naive, strict=True)),
            "tokens_ratio": ways[name][0] / ways["naive"][0],
        }
        for name, spent in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["chunking-spans"], choices=["chunking-spans", "de", "zh"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--overlaps", type=int, nargs="*", default=[], help="also late chunking with these overlaps")
    parser.add_argument("--rounds", type=int, default=3, help="of the cost; 0 leaves it out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    encoder = load_encoder(max_tokens=512)
    results: dict[str, Any] = {}
    for name in arguments.data:
        judged = read_judged(name)
        for tokens, found in quality(judged, encoder, budgets=arguments.budgets, overlaps=arguments.overlaps).items():
            title = f"{judged.name}, chunks of {tokens} tokens"
            results[title] = found
            if not arguments.json:
                print(table(title, found), flush=True)
        if arguments.rounds:
            tokens = max(arguments.budgets)
            title = f"{judged.name}, cost with chunks of {tokens} tokens"
            results[title] = cost(first_of(judged.documents), encoder, tokens=tokens, rounds=arguments.rounds)
            if not arguments.json:
                print(title, cost_table(results[title]), sep="\n", flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))


def table(title: str, found: dict[str, Any]) -> str:
    lines = [f"{title}: {found['chunks']} chunks, {found['questions']} questions"]
    for what in ("recall", "precision", "iou"):
        lines.append(f"  {what:24}" + "".join(f"{f'k={k}':>30}" for k in KS))
        for name, way in found["ways"].items():
            cells = [f"{way[f'{what}@{k}']:.3f}" for k in KS]
            if "difference" in way:
                gaps = [way["difference"][f"{what}@{k}"] for k in KS]
                cells = [
                    f"{cell} {gap:+.3f} [{low:+.3f}, {high:+.3f}]" for cell, (gap, low, high) in zip(cells, gaps, strict=True)
                ]
            lines.append(f"    {name:22}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def cost_table(found: dict[str, Any]) -> str:
    return "\n".join(
        f"  {name:9} {way['cpu_seconds']:7.2f} CPU s, {way['ratio']:.2f} x naive, "
        f"for {way['tokens']} tokens, {way['tokens_ratio']:.2f} x naive"
        for name, way in found.items()
    )


if __name__ == "__main__":
    main()

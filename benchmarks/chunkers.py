"""Our chunkers beside other people's: which chunks let the default model find the gold characters, at equal retrieved length?

    pip install semchunk chonkie langchain-text-splitters       # the peers; those that are not installed are left out
    python benchmarks/chunkers.py [--data chunking-spans de] [--budgets 64 128 256] [--json]

Data and vectors as in benchmarks/late.py (naive embedding). Every chunker gets the same budget in the model's own tokens.
Each question ranks all chunks of its collection by cosine, and reads down the list until it has read `length` characters, the
last chunk cut off there: so long chunks and many chunks have no advantage. Recall is the share of the gold characters that
were read; in brackets the 95 % interval of its difference to ragkit's default, sentences (paired bootstrap over questions).

Offsets: the share of chunks whose text is the document's text at the offsets given. MB/s: UTF-8 bytes of all documents a
processor second, one thread, counting tokens included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from late import Judged, interval, read_judged

from ragkit.chunk import chunk_document
from ragkit.core.types import Document, Span
from ragkit.encode import default_model_folder, load_encoder

LENGTHS = (500, 1000, 2000, 5000)  # characters read
OURS = "ragkit sentences"

Cut = tuple[Span, str]  # the offsets a chunker gives, and the text it gives
Chunker = Callable[[Document], list[Cut]]


def chunkers(encoder: Any, tokens: int) -> dict[str, Chunker]:
    """By name. Peers count a text's own tokens, so that theirs and the special ones are within the budget too."""
    own = tokens - int(encoder.count_tokens([""])[0])

    def ours(name: str) -> Chunker:
        def cut(document: Document) -> list[Cut]:
            found = chunk_document(document, chunker=name, tokens=tokens, encoder_tokens=encoder)
            return [(chunk.span, chunk.span.of(document.text)) for chunk in found]

        return cut

    def fixed(document: Document) -> list[Cut]:
        starts = [*encoder.token_spans(document.text)[::own, 0].tolist(), len(document.text)]
        return [(Span(a, b), document.text[a:b]) for a, b in pairwise(starts)]

    return {OURS: ours("sentences"), "ragkit structure": ours("structure"), "fixed size": fixed} | _peers(own)


def _peers(tokens: int) -> dict[str, Chunker]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(default_model_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    found: dict[str, Chunker] = {}
    try:
        import semchunk

        splitter = semchunk.chunkerify(count, tokens)

        def by_semchunk(document: Document) -> list[Cut]:
            texts, offsets = splitter(document.text, offsets=True)
            return [(Span(*pair), text) for pair, text in zip(offsets, texts, strict=True)]

        found["semchunk"] = by_semchunk
    except ImportError:
        pass
    try:
        from chonkie import RecursiveChunker, SentenceChunker

        def by_chonkie(chunker: Any) -> Chunker:
            return lambda document: [(Span(c.start_index, c.end_index), c.text) for c in chunker.chunk(document.text)]

        found["chonkie sentence"] = by_chonkie(SentenceChunker(tokenizer=tokenizer, chunk_size=tokens, chunk_overlap=0))
        found["chonkie recursive"] = by_chonkie(RecursiveChunker(tokenizer=tokenizer, chunk_size=tokens))
    except ImportError:
        pass
    try:
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        recursive = RecursiveCharacterTextSplitter(
            chunk_size=tokens, chunk_overlap=0, length_function=count, add_start_index=True
        )

        def by_langchain(document: Document) -> list[Cut]:
            rows = [(c.metadata["start_index"], c.page_content) for c in recursive.create_documents([document.text])]
            return [(Span(max(at, 0), max(at, 0) + len(text)), text) for at, text in rows]

        found["langchain recursive"] = by_langchain
    except ImportError:
        pass
    return found


def compared(judged: Judged, encoder: Any, *, tokens: int) -> dict[str, Any]:
    questions = encoder.encode_query([question for question, _, _ in judged.questions]).dense
    size = sum(len(document.text.encode()) for document in judged.documents)
    ways: dict[str, Any] = {}
    values: dict[str, dict[int, np.ndarray]] = {}
    for name, chunker in chunkers(encoder, tokens).items():
        started = time.process_time()
        cut = [chunker(document) for document in judged.documents]
        seconds = time.process_time() - started
        owners = np.repeat(np.arange(len(cut)), [len(own) for own in cut])
        spans = [span for own in cut for span, _ in own]
        texts = [text for own in cut for _, text in own]
        exact = [
            span.of(document.text) == text for document, own in zip(judged.documents, cut, strict=True) for span, text in own
        ]
        rows = encoder.encode_document(texts, truncate=True).dense
        values[name] = read_down(judged, questions @ rows.T, owners, spans)
        counts = encoder.count_tokens(texts)
        ways[name] = {
            "chunks": len(spans),
            "over_budget": int((counts > tokens).sum()),
            "mean_fill": float(counts.mean() / tokens),
            "exact_offsets": float(np.mean(exact)),
            "mb_per_cpu_second": size / 1e6 / seconds,
            "recall": {length: float(own.mean()) for length, own in values[name].items()},
            "difference": {length: interval(own - values[OURS][length]) for length, own in values[name].items()},
        }
    return {"questions": len(judged.questions), "ways": ways}


def read_down(judged: Judged, scores: np.ndarray, owners: np.ndarray, spans: Sequence[Span]) -> dict[int, np.ndarray]:
    """{length: recall (questions,)}: scores (questions, chunks)."""
    found: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for (_, number, gold), row in zip(judged.questions, scores, strict=True):
        mark = np.zeros(len(judged.documents[number].text), dtype=np.bool_)
        for span in gold:
            mark[span.start : span.end] = True
        seen, read = np.zeros_like(mark), 0
        pending = list(LENGTHS)
        for at in np.argsort(-row, kind="stable"):
            start, end = spans[at]
            while pending and read + end - start >= pending[0]:  # this chunk reaches the length: cut it off there
                part = seen.copy()
                if owners[at] == number:
                    part[start : start + pending[0] - read] = True
                found[pending.pop(0)].append(float((part & mark).sum() / mark.sum()))
            if not pending:
                break
            if owners[at] == number:
                seen[start:end] = True
            read += end - start
        for length in pending:
            found[length].append(float((seen & mark).sum() / mark.sum()))
    return {length: np.array(own) for length, own in found.items()}


def table(title: str, found: dict[str, Any]) -> str:
    head = f"{'':22}{'chunks':>8}{'over':>6}{'fill':>6}{'exact':>7}{'MB/s':>7}" + "".join(f"{f'{n:,} read':>26}" for n in LENGTHS)
    lines = [f"{title}: {found['questions']} questions", head]
    for name, way in found["ways"].items():
        cells = [f"{way['recall'][n]:.3f} [{way['difference'][n][1]:+.3f}, {way['difference'][n][2]:+.3f}]" for n in LENGTHS]
        lines.append(
            f"{name:22}{way['chunks']:8}{way['over_budget']:6}{way['mean_fill']:6.2f}{way['exact_offsets']:7.3f}"
            f"{way['mb_per_cpu_second']:7.2f}" + "".join(f"{cell:>26}" for cell in cells)
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["chunking-spans"], choices=["chunking-spans", "de", "zh"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    encoder = load_encoder(max_tokens=512)
    results = {}
    for name in arguments.data:
        judged = read_judged(name)
        for tokens in arguments.budgets:
            title = f"{judged.name}, budget {tokens} tokens"
            results[title] = compared(judged, encoder, tokens=tokens)
            if not arguments.json:
                print(table(title, results[title]), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

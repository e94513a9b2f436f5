"""How much of a file's text arrives, in which order, and its tables: against 30 reference texts, beside other tools.

    python benchmarks/fidelity.py [--data ../shared/data/documents] [--peers PYTHON] [--json]

PYTHON is an interpreter that has markitdown, pymupdf4llm and pypdfium2; docling is run too where it has it. Without one,
ragkit alone is measured. The references are the expected outputs of docling and markitdown, reviewed by their makers, in
Markdown: a yardstick, not the truth. Both sides are stripped of markup and squeezed before they are compared.

- error: Levenshtein distance to the reference over its length, in characters. 0 is best; over 1 is possible.
- order: of the words that occur once in both, the share that stands in one rising sequence. 1 is best.
- cells: of the cells of the reference's tables, the share found in order on one line of the text. 1 is best.
- ms: CPU time of one conversion, median of several, imports and models loaded before.
"""

from __future__ import annotations

import argparse
import html
import importlib
import json
import re
import statistics
import subprocess
import sys
import time
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "documents"
PEERS = ("markitdown", "pymupdf4llm", "pypdfium2", "docling")
REPEATS = 3
CELL_ROW = re.compile(r"^\s*\|.*\|?\s*$")
RULE_ROW = re.compile(r"^[\s|:+=-]*$")


def plain(text: str) -> str:
    """Text without Markdown's markup, on lines, squeezed."""
    text = re.sub(r"<!--.*?-->", " ", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]\n]*)\]\([^)\n]*\)", r"\1", text)
    text = unicodedata.normalize("NFKC", html.unescape(text))
    lines = []
    for line in text.replace("\f", "\n").splitlines():
        if RULE_ROW.fullmatch(line) or line.lstrip().startswith("```"):
            continue
        line = re.sub(r"^\s*(#{1,6}|[-*+•]|>)\s+", "", line)
        line = re.sub(r"\\([\\`*_{}\[\]()#+.!|<>~-])", r"\1", re.sub(r"(\*\*|__|~~|`)", "", line))
        lines.append(" ".join(line.replace("|", " ").split()))
    return "\n".join(filter(None, lines))


def distance(first: str, second: str) -> int:
    """Levenshtein's distance, by Myers' bit vectors (1999) in Hyyrö's form: a column is one long integer."""
    if not first or not second:
        return len(first) + len(second)
    places: dict[str, int] = {}
    for at, character in enumerate(first):
        places[character] = places.get(character, 0) | (1 << at)
    full, last, score = (1 << len(first)) - 1, 1 << (len(first) - 1), len(first)
    rising, falling = full, 0
    for character in second:
        match = places.get(character, 0)
        diagonal = (((match & rising) + rising) ^ rising) | match | falling
        up, down = falling | ~(diagonal | rising), rising & diagonal
        score += 1 if up & last else -1 if down & last else 0
        up, down = (up << 1) | 1, down << 1
        rising, falling = (down | ~(diagonal | up)) & full, up & diagonal & full
    return score


def order(expected: str, found: str) -> float | None:
    """The longest rising run through the words that occur once in both texts, as a share of them."""
    first, second = expected.split(), found.split()
    once = {w for w, n in Counter(first).items() if n == 1} & {w for w, n in Counter(second).items() if n == 1}
    places = {word: at for at, word in enumerate(second)}
    tails: list[int] = []
    ranks = [places[word] for word in first if word in once]
    for rank in ranks:
        at = bisect_left(tails, rank)
        tails[at : at + 1] = [rank]
    return len(tails) / len(ranks) if len(ranks) >= 5 else None


def table_rows(markdown: str) -> Iterator[list[str]]:
    """The rows of the tables of a reference, each the plain texts of its cells that are not empty."""
    for line in markdown.splitlines():
        if CELL_ROW.fullmatch(line) and not RULE_ROW.fullmatch(line):
            cells = [plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if row := [cell for cell in cells if cell]:
                yield row


def cells(expected: str, found: str) -> float | None:
    """The share of table cells that stand, in the order of their row, on one line."""
    rows = list(table_rows(expected))
    lines = found.splitlines()
    total = sum(map(len, rows))
    if total < 4:
        return None
    return sum(max((_in_order(row, line) for line in lines), default=0) for row in rows) / total


def _in_order(row: list[str], line: str) -> int:
    count, at = 0, 0
    for cell in row:
        place = line.find(cell, at)
        if place >= 0:
            count, at = count + 1, place + len(cell)
    return count


def ragkit_tool() -> Callable[[Path], str]:
    from ragkit.load import format_of
    from ragkit.load.limits import Options

    def convert(path: Path) -> str:
        kind = format_of(path)
        assert kind is not None
        loader = importlib.import_module(kind.module)
        return "\n".join(document.text for document in loader.load(path, Options()))

    return convert


def peer_tool(name: str) -> Callable[[Path], str]:
    """A converter of another tool; raises ImportError where it is not installed."""
    module = importlib.import_module(name)
    if name == "markitdown":
        converter = module.MarkItDown()
        return lambda path: str(converter.convert(str(path)).text_content)
    if name == "pymupdf4llm":
        return lambda path: str(module.to_markdown(str(path), show_progress=False))
    if name == "pypdfium2":

        def pages(path: Path) -> str:
            pdf = module.PdfDocument(path)
            return "\n".join(page.get_textpage().get_text_range() for page in pdf)

        return pages
    convert = importlib.import_module("docling.document_converter").DocumentConverter()
    return lambda path: str(convert.convert(path).document.export_to_markdown())


PDF_ONLY = {"pymupdf4llm", "pypdfium2"}


def measure(convert: Callable[[Path], str], path: Path) -> tuple[str, float]:
    """The text, and the CPU milliseconds of making it."""
    text, times = convert(path), []
    for _ in range(REPEATS):
        start = time.process_time()
        convert(path)
        times.append((time.process_time() - start) * 1000)
    return text, statistics.median(times)


def run(tool: str, files: list[Path]) -> Iterator[dict[str, object]]:
    """What one tool makes of each file."""
    convert = ragkit_tool() if tool == "ragkit" else peer_tool(tool)
    for path in files:
        if tool in PDF_ONLY and path.suffix != ".pdf":
            continue
        try:
            text, ms = measure(convert, path)
        except Exception as error:  # a tool that fails on a file has that file's text missing, and the table says so
            yield {"file": path.name, "failed": f"{type(error).__name__}: {error}"}
            continue
        expected = (path.parents[1] / "text" / f"{path.name}.md").read_text(encoding="utf-8")
        wanted, got = plain(expected), plain(text)
        yield {
            "file": path.name,
            "error": distance(wanted.replace("\n", " "), got.replace("\n", " ")) / max(len(wanted), 1),
            "order": order(wanted, got),
            "cells": cells(expected, got),
            "ms": ms,
            "bytes": path.stat().st_size,
        }


def table(results: dict[str, list[dict[str, object]]]) -> Iterator[str]:
    """A row per format and tool: medians of the error, means of order and cells."""
    yield "| format | files | tool | error, median | error, worst | order | cells | ms, median | failed |"
    yield "|---|---|---|---|---|---|---|---|---|"
    suffixes = sorted({Path(str(one["file"])).suffix for rows in results.values() for one in rows})
    for suffix in suffixes:
        for tool, rows in results.items():
            mine = [one for one in rows if Path(str(one["file"])).suffix == suffix]
            good = [one for one in mine if "failed" not in one]
            if not mine:
                continue

            def values(name: str, good: list[dict[str, object]] = good) -> list[float]:
                return [float(str(one[name])) for one in good if one.get(name) is not None]

            def mean(name: str, values: Callable[[str], list[float]] = values) -> str:
                return f"{statistics.mean(values(name)):.3f}" if values(name) else "–"

            if not good:
                yield f"| {suffix} | {len(mine)} | {tool} | – | – | – | – | – | {len(mine)} |"
                continue
            error, ms = statistics.median(values("error")), statistics.median(values("ms"))
            yield (
                f"| {suffix} | {len(mine)} | {tool} | {error:.3f} | {max(values('error')):.3f} | {mean('order')} "
                f"| {mean('cells')} | {ms:.1f} | {len(mine) - len(good)} |"
            )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=DATA)
    arguments.add_argument("--peers", help="a Python that has the other tools")
    arguments.add_argument("--tool", help=argparse.SUPPRESS)
    arguments.add_argument("--json", action="store_true", help="each file's numbers")
    given = arguments.parse_args()
    if not given.data.is_dir():
        print(f"no documents at {given.data}")
        return
    texts = given.data / "text"
    files = sorted(p for folder in ("pdf", "office", "web") for p in (given.data / folder).iterdir())
    files = [path for path in files if (texts / f"{path.name}.md").exists()]
    if given.tool:
        for one in run(given.tool, files):
            print("RESULT " + json.dumps(one))
        return
    results = {"ragkit": list(run("ragkit", files))}
    for tool in PEERS if given.peers else ():
        command = [given.peers, "-W", "ignore", __file__, "--data", str(given.data), "--tool", tool]
        out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        rows = [json.loads(line.removeprefix("RESULT ")) for line in out.splitlines() if line.startswith("RESULT ")]
        if rows:
            results[tool] = rows
        else:
            print(f"{tool}: not installed there", file=sys.stderr)
    print(json.dumps(results, indent=1) if given.json else "\n".join(table(results)))


if __name__ == "__main__":
    main()

"""PDF measured: speed against the bare engines in the same run, and the text against reference texts.

    python benchmarks/pdf.py speed FILE...        # processor time of extraction, ours over the engine's own word list
    python benchmarks/pdf.py fidelity FOLDER      # FOLDER/pdf/*.pdf beside FOLDER/text/*.pdf.md

Speed is processor time of one thread, the least of some rounds that take turns. Fidelity: the character error rate after
Markdown's marks and all blanks are dropped, which punishes what is read in another order; and the F1 of the words as a bag,
which does not.
"""

from __future__ import annotations

import argparse
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ragkit.load.limits import Options
from ragkit.load.pdf.pdf import load

ROUNDS = 3
_MARKS = re.compile(r"<!--.*?-->|!\[[^\]]*\]\([^)]*\)|<[^>]+>|[#*_`|\\>~]|^\s*-\s|:?-{3,}:?", re.MULTILINE | re.DOTALL)


def bare_pymupdf(path: Path) -> int:
    import pymupdf

    with pymupdf.open(path) as document:
        return len([page.get_text("words") for page in document])


def bare_pypdfium2(path: Path) -> int:
    """The text and a rectangle for each of its lines: PDFium has no words."""
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    for page in document:
        text = page.get_textpage()
        text.get_text_range()
        [text.get_rect(i) for i in range(text.count_rects())]
    return len(document)


def ours(path: Path, engine: str) -> int:
    (document,) = load(path, Options(pdf_engine=engine))
    return len(document.pages)


def speed(paths: Sequence[Path]) -> None:
    ways: dict[str, Callable[[Path], int]] = {}
    for engine, bare in (("pymupdf", bare_pymupdf), ("pypdfium2", bare_pypdfium2)):
        if find_spec(engine):
            ways[engine] = bare
            ways[f"ragkit, {engine}"] = lambda path, engine=engine: ours(path, engine)
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.process_time()
            pages = sum(way(path) for path in paths)
            least[name] = min(least[name], time.process_time() - began)
    for name, seconds in least.items():
        ratio = f", {seconds / least[name.split(', ')[1]]:.2f} of the bare engine's time" if "," in name else ""
        print(f"{name}: {pages / seconds:.0f} pages/s{ratio}")


def plain(text: str) -> str:
    return unicodedata.normalize("NFKC", _MARKS.sub(" ", text)).replace("\u00ad", "")


def distance(one: str, other: str) -> int:
    """Levenshtein's, a row at a time."""
    if not one or not other:
        return max(len(one), len(other))
    codes = np.array([ord(c) for c in other])
    steps = np.arange(len(other) + 1)
    row = steps.copy()
    for number, char in enumerate(one, start=1):
        best = np.minimum(row[:-1] + (codes != ord(char)), row[1:] + 1)
        row = np.minimum.accumulate(np.concatenate(([number], best)) - steps) + steps
    return int(row[-1])


def scores(text: str, reference: str) -> tuple[float, float]:
    """Character error rate and the F1 of the words."""
    a, b = plain(text), plain(reference)
    x, y = "".join(a.split()), "".join(b.split())
    words, wanted = Counter(a.split()), Counter(b.split())
    shared = (words & wanted).total()
    return distance(x, y) / max(len(y), 1), 2 * shared / max(words.total() + wanted.total(), 1)


def readers() -> dict[str, Callable[[Path], str]]:
    found: dict[str, Callable[[Path], str]] = {}
    for engine in ("pymupdf", "pypdfium2"):
        if find_spec(engine):
            found[f"ragkit, {engine}"] = lambda path, engine=engine: next(load(path, Options(pdf_engine=engine))).text
    if find_spec("pypdfium2"):
        import pypdfium2

        found["pypdfium2"] = lambda path: "\n".join(p.get_textpage().get_text_range() for p in pypdfium2.PdfDocument(path))
    if find_spec("pymupdf4llm"):
        import pymupdf4llm

        found["pymupdf4llm"] = lambda path: str(pymupdf4llm.to_markdown(str(path)))
    return found


def fidelity(folder: Path) -> None:
    ways = readers()
    print("| file | " + " | ".join(ways) + " |\n|---|" + "---|" * len(ways))
    sums: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for reference in sorted((folder / "text").glob("*.pdf.md")):
        path = folder / "pdf" / reference.name.removesuffix(".md")
        cells = []
        for name, way in ways.items():
            result = scores(way(path), reference.read_text(encoding="utf-8"))
            sums[name].append(result)
            cells.append(f"{result[0]:.3f} / {result[1]:.3f}")
        print(f"| {path.name} | " + " | ".join(cells) + " |", flush=True)
    means = [np.mean(rows, axis=0) for rows in sums.values()]
    print("| mean | " + " | ".join(f"{cer:.3f} / {f1:.3f}" for cer, f1 in means) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "fidelity"))
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.paths)
    else:
        fidelity(arguments.paths[0])


if __name__ == "__main__":
    main()

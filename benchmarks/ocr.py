"""OCR measured: pages of known text, made pictures, and read back through ragkit and Tesseract.

    python benchmarks/ocr.py [--pages 3] [--language eng]

The text is the example corpus' own, set in three fonts on A4, drawn, and rendered to grey pictures as a scanner would give them:
at 300, 200, 150 and 100 dots an inch, clean; and at 200, grainy, turned by a degree, and as a JPEG of quality 20. Each becomes a
PDF of pictures, which `ragkit.load.pdf.pdf` reads.

- error: Levenshtein's distance to the text that was drawn over its length, blanks squeezed.
- words: the share of the drawn words that come back letter by letter, each in its place: the middle of its box within the word,
  on its line.
- seconds: processor time a page, ours and Tesseract's.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fidelity import distance
from PIL import Image, ImageFilter
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfgen.canvas import Canvas

from ragkit.load.limits import Limits, Options
from ragkit.load.pdf.pdf import load

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpus"
FONTS = ("Helvetica", "Times-Roman", "Courier")
SIZE, LEADING, MARGIN = 11, 14, 60
WIDTH = 78  # characters of a line, at most


@dataclass(frozen=True)
class Drawn:
    """A word and its place: x0, x1 and the baseline, in points from the top left."""

    text: str
    x0: float
    x1: float
    y: float


def lines_of_corpus() -> list[str]:
    import textwrap

    text = " ".join(
        " ".join(path.read_text(encoding="utf-8").split()) for path in sorted(CORPUS.rglob("*")) if path.suffix in (".md", ".txt")
    )
    plain = text.encode("latin-1", errors="ignore").decode("latin-1")
    return textwrap.wrap(plain, WIDTH, break_on_hyphens=False)


def draw(path: Path, pages: int) -> list[list[Drawn]]:
    """A PDF of so many pages, and the words of each."""
    lines, rows = lines_of_corpus(), int((A4[1] - 2 * MARGIN) / LEADING)
    canvas, found = Canvas(str(path), pagesize=A4), []
    for page in range(pages):
        font, words = FONTS[page % len(FONTS)], []
        canvas.setFont(font, SIZE if font != "Courier" else 9)
        size = SIZE if font != "Courier" else 9
        for row in range(rows):
            line = lines[(page * rows + row) % len(lines)]
            y = A4[1] - MARGIN - LEADING * row
            canvas.drawString(MARGIN, y, line)
            at = float(MARGIN)
            for word in line.split(" "):
                wide = pdfmetrics.stringWidth(word, font, size)
                words.append(Drawn(word, at, at + wide, A4[1] - y))
                at += wide + pdfmetrics.stringWidth(" ", font, size)
        canvas.showPage()
        found.append(words)
    canvas.save()
    return found


def grainy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 28, (image.height, image.width))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))


def turned(image: Image.Image) -> Image.Image:
    return image.rotate(1, resample=Image.Resampling.BICUBIC, fillcolor=255)


def squashed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("L")


def same(image: Image.Image) -> Image.Image:
    return image


WAYS: dict[str, tuple[int, Callable[[Image.Image], Image.Image]]] = {
    "300 dpi": (300, same),
    "200 dpi": (200, same),
    "150 dpi": (150, same),
    "100 dpi": (100, same),
    "200 dpi, grainy": (200, grainy),
    "200 dpi, turned by 1 degree": (200, turned),
    "200 dpi, JPEG of quality 20": (200, squashed),
}


def scanned(drawn: Path, path: Path, dpi: int, change: Callable[[Image.Image], Image.Image]) -> None:
    import pypdfium2

    canvas = Canvas(str(path), pagesize=A4)
    for page in pypdfium2.PdfDocument(drawn):
        canvas.drawImage(ImageReader(change(page.render(scale=dpi / 72).to_pil().convert("L"))), 0, 0, *A4)
        canvas.showPage()
    canvas.save()


def in_place(word: Drawn, text: str, spans: list[list[int]], boxes: list[list[float]]) -> bool:
    return any(
        text[start:end] == word.text and y0 - 2 < word.y - 3 < y1 + 2 and word.x0 - 1 < (x0 + x1) / 2 < word.x1 + 1
        for (start, end), (x0, y0, x1, y1) in zip(spans, boxes, strict=True)
    )


def cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pages", type=int, default=3)
    arguments.add_argument("--language", default="eng")
    given = arguments.parse_args()
    print("| scan | error | words in their place | seconds a page |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        drawn, scan = Path(folder, "drawn.pdf"), Path(folder, "scan.pdf")
        pages = draw(drawn, given.pages)
        for name, (dpi, change) in WAYS.items():
            scanned(drawn, scan, dpi, change)
            began = cpu()
            (document,) = load(scan, Options(ocr=given.language, limits=Limits(seconds=3600, page_seconds=600)))
            seconds = (cpu() - began) / given.pages
            wrong = length = right = count = 0
            for page, words in zip(document.pages, pages, strict=True):
                wanted = " ".join(word.text for word in words)
                wrong += distance(wanted, " ".join(page.span.of(document.text).split()))
                length += len(wanted)
                # The boxes of a turned page are where its words went, not where they were drawn.
                spans, boxes = page.words.spans.tolist(), page.words.boxes.tolist()
                right += sum(in_place(word, document.text, spans, boxes) for word in words)
                count += len(words)
            placed = "–" if change is turned else f"{right / count:.3f}"
            print(f"| {name} | {wrong / length:.4f} | {placed} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()

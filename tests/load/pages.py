"""PDF pages drawn by reportlab with words at known places: the oracle of the PDF tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT = 400.0, 600.0
Drawn = tuple[str, float, float, float, float]  # word; x0, y0, x1, y1 as displayed: from its baseline to its ascender


@dataclass(frozen=True)
class Text:
    """A line of text: x and baseline y in PDF coordinates (y upwards)."""

    text: str
    x: float
    y: float
    size: float = 11.0
    font: str = "Helvetica"


def embedded() -> str:
    """A font that the file holds, with its ascent and descent: reportlab brings it."""
    pdfmetrics.registerFont(TTFont("Vera", "Vera.ttf"))
    return "Vera"


def draw(
    path: Path,
    pages: list[list[Text]],
    *,
    rotate: int = 0,
    crop: tuple[float, float, float, float] | None = None,
    scale: float = 1.0,
) -> Path:
    """A PDF with those lines, its pages turned and cropped, and what is drawn on them scaled. crop: x0, y0, x1, y1 in PDF
    coordinates."""
    # reportlab swaps the sides of a page turned by a quarter: it is given them swapped, so that they come out right.
    canvas = Canvas(str(path), pagesize=(WIDTH, HEIGHT) if rotate in (0, 180) else (HEIGHT, WIDTH))
    for lines in pages:
        if rotate:
            canvas.setPageRotation(rotate)
        if crop:
            canvas.setCropBox(crop)
        if scale != 1:
            canvas.scale(scale, scale)
        for line in lines:
            canvas.setFont(line.font, line.size)
            canvas.drawString(line.x, line.y, line.text)
        canvas.showPage()
    canvas.save()
    return path


def shown(crop: tuple[float, float, float, float] | None) -> tuple[float, float, float, float]:
    """What is seen of a page: its crop box, as far as it lies on the page."""
    x0, y0, x1, y1 = crop or (0.0, 0.0, WIDTH, HEIGHT)
    return max(x0, 0.0), max(y0, 0.0), min(x1, WIDTH), min(y1, HEIGHT)


def places(
    line: Text,
    *,
    rotate: int = 0,
    crop: tuple[float, float, float, float] | None = None,
    scale: float = 1.0,
    extent: tuple[float, float] = (0.0, 0.7),
) -> list[Drawn]:
    """Where each word of a line is seen: widths by the font's own metrics, heights in `extent`, in ems above the baseline, which
    is from there to cap height unless given."""
    x0, y0, x1, y1 = shown(crop)
    found = []
    at = line.x
    for word in line.text.split(" "):
        end = at + pdfmetrics.stringWidth(word, line.font, line.size)
        low, high = (line.y + part * line.size for part in extent)
        left, bottom, right, top = (side * scale for side in (at, low, end, high))
        # Written from the definition of /Rotate (clockwise) and of displayed points (y downwards from the top left).
        corners = {
            0: lambda x, y: (x - x0, y1 - y),
            90: lambda x, y: (y - y0, x - x0),
            180: lambda x, y: (x1 - x, y - y0),
            270: lambda x, y: (y1 - y, x1 - x),
        }[rotate]
        (ax, ay), (bx, by) = corners(left, bottom), corners(right, top)
        found.append((word, min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)))
        at = end + pdfmetrics.stringWidth(" ", line.font, line.size)
    return found

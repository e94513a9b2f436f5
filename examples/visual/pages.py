"""Synthetic pages with known things at known places, and queries about them: what `train.py` trains on.

    python examples/visual/pages.py FOLDER [SEED]     # 12 pages: 9 in scans.pdf, 3 as PNGs; prints queries and their answers

A page holds printed words, charts, tables and shapes, between lines of grey that stand for small print. `Page` and `Query`
are values: everything on a page is known before a pixel is drawn, so whether a query is true of a page, and where, is
computed and not judged. The same on every run: a page is its seed. Units are pixels at scale 1, where a cell of the encoder's
grid is 28 x 28. Words are set in Pillow's own typeface, in three sizes, and begin on a grid of 7 units, as a typesetter's do.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CELL = 28  # units; what one vector of a jina-embeddings-v4-shaped encoder looks at
GRID = 7  # units; where words begin
SIZES = (20, 24, 28)  # units, of the type
COLUMNS, ROWS = 8, 11  # cells of a page

WORDS = (
    "anchor", "apple", "april", "archive", "august", "autumn", "battery", "bicycle", "blade", "bridge", "budget", "cable",
    "camera", "candle", "carbon", "castle", "climate", "coffee", "contract", "copper", "customer", "delivery", "desert",
    "doctor", "dragon", "eagle", "energy", "engine", "export", "factory", "farmer", "filter", "forest", "garden", "guitar",
    "hammer", "harbour", "health", "history", "hospital", "hotel", "income", "insurance", "island", "january", "journal",
    "kitchen", "ladder", "lemon", "library", "machine", "magnet", "market", "medicine", "mirror", "mountain", "museum",
    "network", "october", "office", "oxygen", "paper", "pepper", "planet", "profit", "pump", "rabbit", "railway", "river",
    "rocket", "safety", "salary", "school", "sensor", "storage", "summer", "tariff", "timber", "traffic", "tunnel", "turbine",
    "umbrella", "valley", "violin", "water", "weather", "window", "winter", "zebra",
)  # fmt: skip
COLOURS = {
    "red": (205, 40, 45), "green": (40, 150, 70), "blue": (40, 85, 205), "orange": (240, 145, 25), "purple": (135, 60, 165),
    "black": (25, 25, 30),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star")
CHARTS = ("bar chart", "line chart", "pie chart")
KINDS = (*CHARTS, "table", *SHAPES)
BEFORE = ("", "", "", "a", "the", "find a", "find the", "page with a", "where is the", "show the")
BEFORE_WORD = ("", "", "", "the word", "page about", "word", "find", "where is")
BETWEEN = ("and", "and a", "with", "with a")

INK, GREY, PALE = (30, 30, 34), (125, 128, 132), (205, 208, 212)


@dataclass(frozen=True, slots=True)
class Element:
    """One thing on a page. box: x0, y0, x1, y1 in units, around what is drawn. A table and a word have no colour."""

    kind: str  # one of KINDS, or "word"
    box: tuple[float, float, float, float]
    colour: str = ""
    word: str = ""
    printed: str = ""  # the word as it stands there
    size: int = 0  # of the type, in units
    across: str = ""  # "left", "right" or neither
    down: str = ""  # "top", "bottom" or neither


@dataclass(frozen=True, slots=True)
class Page:
    """width and height in units."""

    seed: int
    width: int
    height: int
    elements: tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of one thing; "" asks nothing."""

    kind: str = ""
    colour: str = ""
    word: str = ""
    across: str = ""
    down: str = ""

    def fits(self, element: Element) -> bool:
        return all(
            not asked or asked == found
            for asked, found in (
                (self.kind, element.kind),
                (self.colour, element.colour),
                (self.word, element.word),
                (self.across, element.across),
                (self.down, element.down),
            )
        )


@dataclass(frozen=True, slots=True)
class Query:
    """words, and for each what it and those before it ask of one thing: None for words that ask nothing.

    things: what the query as a whole asks for, one or two things.
    """

    words: tuple[str, ...]
    asked: tuple[Wanted | None, ...]
    things: tuple[Wanted, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def true_of(self, page: Page) -> bool:
        return all(any(thing.fits(element) for element in page.elements) for thing in self.things)

    def boxes(self, page: Page) -> list[tuple[float, float, float, float]]:
        """Of all that it asks for, in units."""
        return [element.box for element in page.elements if any(thing.fits(element) for thing in self.things)]


# --- what stands on a page -----------------------------------------------------------------------------------------------


def make_page(seed: int, *, columns: int = COLUMNS, rows: int = ROWS, figures: float = 0.75, gap: float = 1.0) -> Page:
    """A page of columns x rows cells; at least one thing stands on it. Fewer figures and smaller gaps: more words."""
    rng = np.random.default_rng([17, seed, columns, rows])
    width, height = columns * CELL, rows * CELL
    elements: list[Element] = []
    y = rng.uniform(4, 22)
    while y < height - 40 or not elements:
        room = height - y - 4
        drawn = room >= 60 and rng.random() < (figures if elements or columns < 7 else figures / 2)
        tall = min(room, rng.uniform(58, 58 + 6 * rows)) if drawn else 36.0
        slots = 1 + int(columns >= 7 and rng.random() < 0.6)
        for slot in range(slots):
            x0, x1 = width * slot / slots + 6, width * (slot + 1) / slots - 6
            if drawn and rng.random() < 0.85:
                elements.append(_figure(rng, x0, y, x1, y + tall))
            elif drawn or rng.random() < 0.9:
                elements.append(_word(rng, x0, y, x1, y + tall))
        y += tall + rng.uniform(5, 12 + rows) * gap
    return Page(seed, width, height, tuple(_placed(element, width, height) for element in elements))


def _placed(element: Element, width: int, height: int) -> Element:
    """With its place in words: none near the middle."""
    x, y = (element.box[0] + element.box[2]) / 2 / width, (element.box[1] + element.box[3]) / 2 / height
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    return replace(element, across=across, down="top" if y < 0.38 else "bottom" if y > 0.62 else "")


def _figure(rng: np.random.Generator, x0: float, y0: float, x1: float, y1: float) -> Element:
    kind = str(rng.choice(KINDS))
    high = y1 - y0
    wide = min(x1 - x0, high * rng.uniform(0.9, 1.8))
    if kind in SHAPES or kind == "pie chart":
        wide = high = min(x1 - x0, high) * rng.uniform(0.7, 1)
    x, y = x0 + rng.random() * (x1 - x0 - wide), y0 + rng.random() * (y1 - y0 - high)
    colour = "" if kind == "table" else str(rng.choice(list(COLOURS)))
    return Element(kind, (x, y, x + wide, y + high), colour=colour)


def _word(rng: np.random.Generator, x0: float, y0: float, x1: float, y1: float) -> Element:
    word = str(rng.choice(WORDS))
    printed = word.title() if rng.random() < 0.6 else word
    size = int(rng.choice([size for size in SIZES if font(size).getlength(printed) <= x1 - x0] or SIZES[:1]))
    left, top, right, bottom = font(size).getbbox(printed, anchor="lt")
    x, y = (
        GRID * math.ceil((low + rng.random() * max(0, high - low - extent)) / GRID)
        for low, high, extent in ((x0, x1, right + GRID), (y0, y1, bottom + GRID))
    )
    return Element("word", (x + left, y + top, x + right, y + bottom), word=word, printed=printed, size=size)


@lru_cache
def font(size: int) -> Any:
    return ImageFont.load_default(size)


def letters(element: Element) -> list[tuple[str, float]]:
    """The letters of a printed word, in lower case, each with the x of its middle in units."""
    own = font(element.size)
    ends = [own.getlength(element.printed[: n + 1]) for n in range(len(element.printed))]
    middles = [(start + end) / 2 for start, end in zip([0.0, *ends], ends, strict=False)]
    return [(letter.lower(), element.box[0] + middle) for letter, middle in zip(element.printed, middles, strict=True)]


def covered(box: Sequence[float], page: Page) -> npt.NDArray[np.bool_]:
    """(rows, columns): the cells of which a box covers a third, or as much as of any. None of it depends on a model."""
    shares = []
    for low, high, side in ((box[1], box[3], page.height), (box[0], box[2], page.width)):
        edges = np.arange(0, side, CELL)
        shares.append(np.clip(np.minimum(high, edges + CELL) - np.maximum(low, edges), 0, None) / CELL)
    share = np.outer(*shares)
    return share >= min(1 / 3, share.max())


# --- what is asked -------------------------------------------------------------------------------------------------------


def make_query(rng: np.random.Generator, page: Page, *, things: int | None = None, places: bool = True) -> Query:
    """A query that is true of the page, about one of its things, or two; places: some say where they stand."""
    count = min(len(page.elements), things or 1 + int(rng.random() < 0.4))
    chosen = [page.elements[i] for i in rng.choice(len(page.elements), size=count, replace=False)]
    words: list[str] = []
    asked: list[Wanted | None] = []
    wanted = []
    for n, element in enumerate(chosen):
        opening = BETWEEN if n else BEFORE_WORD if element.word else BEFORE
        fill = str(rng.choice(opening)).split()
        words += fill
        asked += [None] * len(fill)
        phrase = _phrase(rng, element, places=places)
        words += [word for word, _ in phrase]
        asked += [thing for _, thing in phrase]
        wanted.append(phrase[-1][1])
    return Query(tuple(words), tuple(asked), tuple(wanted))


def _phrase(rng: np.random.Generator, element: Element, *, places: bool) -> list[tuple[str, Wanted]]:
    """Words about one thing, each with what is asked up to there."""
    wanted = Wanted()
    phrase = []
    with_place = places and rng.random() < (0.1 if element.word else 0.25)
    steps = [("word", element.word, element.word)] if element.word else []
    if not element.word:
        if element.colour and rng.random() < 0.8:
            steps.append(("colour", element.colour, element.colour))
        steps.append(("kind", element.kind, element.kind))
    if with_place:
        steps += [(axis, value, value) for axis, value in (("down", element.down), ("across", element.across)) if value]
    for axis, value, text in steps:
        wanted = replace(wanted, **{axis: value})
        phrase += [(word, wanted) for word in text.split()]
    return phrase


# --- pixels --------------------------------------------------------------------------------------------------------------


def draw_page(page: Page, *, scale: float = 2.0) -> Image.Image:
    """RGB, scale times the page's units."""
    rng = np.random.default_rng([18, page.seed, page.width, page.height])
    paper = tuple(int(255 - tint) for tint in rng.uniform(0, 14) * rng.uniform(0, 1, size=3))
    image = Image.new("RGB", (round(page.width * scale), round(page.height * scale)), paper)
    pen = ImageDraw.Draw(image)
    _small_print(pen, rng, page, scale)
    for element in page.elements:
        box = tuple(side * scale for side in element.box)
        pen.rectangle((box[0] - 3 * scale, box[1] - 3 * scale, box[2] + 3 * scale, box[3] + 3 * scale), fill=paper)
        if element.word:
            shade = tuple(int(part + rng.uniform(0, 40)) for part in INK)
            bold = {"stroke_width": round(scale * 0.5), "stroke_fill": shade}
            pen.text(box[:2], element.printed, font=font(round(element.size * scale)), fill=shade, anchor="lt", **bold)
        else:
            colour = _varied(rng, COLOURS.get(element.colour, GREY))
            _DRAWN[element.kind](pen, rng, box, colour, scale)
    return image


def _varied(rng: np.random.Generator, colour: tuple[int, int, int], by: float = 16) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(part + rng.uniform(-by, by), 0, 255)) for part in colour)
    return red, green, blue


def _tint(colour: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    """Towards white by amount, 0-1."""
    red, green, blue = (int(part + (255 - part) * amount) for part in colour)
    return red, green, blue


def _small_print(pen: Any, rng: np.random.Generator, page: Page, scale: float) -> None:
    """Grey lines over some of the page, as illegible as a page's text is at this size."""
    for _ in range(int(rng.integers(0, 4))):
        x0, wide = rng.uniform(4, page.width * 0.6), rng.uniform(40, page.width * 0.5)
        y0 = rng.uniform(4, page.height - 20)
        for line in range(int(rng.integers(2, 6))):
            end = min(x0 + wide * rng.uniform(0.7, 1), page.width - 4)
            y = (y0 + 6 * line) * scale
            pen.line((x0 * scale, y, end * scale, y), fill=PALE, width=max(1, round(2.2 * scale)))


def _axes(pen: Any, box: Sequence[float], scale: float) -> None:
    x0, y0, x1, y1 = box
    pen.line((x0, y0, x0, y1), fill=GREY, width=max(1, round(1.2 * scale)))
    pen.line((x0, y1, x1, y1), fill=GREY, width=max(1, round(1.2 * scale)))


def _bars(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    x0, y0, x1, y1 = box
    count = int(rng.integers(3, 7))
    step = (x1 - x0 - 3 * scale) / count
    for n in range(count):
        left = x0 + 3 * scale + n * step
        pen.rectangle((left, y1 - (y1 - y0) * rng.uniform(0.15, 1), left + step * 0.7, y1), fill=colour)
    _axes(pen, box, scale)


def _line(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    x0, y0, x1, y1 = box
    count = int(rng.integers(4, 9))
    _axes(pen, box, scale)
    for n in range(1, 4):
        y = y1 - (y1 - y0) * n / 4
        pen.line((x0, y, x1, y), fill=PALE, width=max(1, round(0.7 * scale)))
    for _ in range(int(rng.integers(1, 3))):
        points = [(x0 + (x1 - x0) * n / (count - 1), y1 - (y1 - y0) * rng.uniform(0.05, 1)) for n in range(count)]
        pen.line(points, fill=colour, width=max(1, round(rng.uniform(2, 3.2) * scale)), joint="curve")


def _pie(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    shares = rng.dirichlet(np.full(int(rng.integers(3, 6)), 3.0))
    start = rng.uniform(0, 360)
    for n, share in enumerate(shares):
        end = start + 360 * share
        pen.pieslice(box, start, end, fill=_tint(colour, 0.62 * n / len(shares)), outline="white", width=max(1, round(scale)))
        start = end


def _table(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    x0, y0, x1, y1 = box
    rows, columns = max(3, round((y1 - y0) / scale / rng.uniform(10, 16))), int(rng.integers(2, 5))
    high, wide = (y1 - y0) / rows, (x1 - x0) / columns
    pen.rectangle((x0, y0, x1, y0 + high), fill=PALE)
    thin = max(1, round(0.8 * scale))
    for row in range(rows):
        for column in range(columns):
            left, middle = x0 + column * wide + 3 * scale, y0 + (row + 0.5) * high
            length = (wide - 6 * scale) * rng.uniform(0.3, 0.9)
            pen.line((left, middle, left + length, middle), fill=GREY, width=max(1, round(2 * scale)))
    for row in range(rows + 1):
        pen.line((x0, y0 + row * high, x1, y0 + row * high), fill=INK, width=thin)
    for column in range(columns + 1):
        pen.line((x0 + column * wide, y0, x0 + column * wide, y1), fill=INK, width=thin)


def _circle(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    pen.ellipse(box, fill=colour)


def _square(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    pen.rectangle(box, fill=colour)


def _triangle(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    x0, y0, x1, y1 = box
    pen.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill=colour)


def _star(pen: Any, rng: np.random.Generator, box: Sequence[float], colour: tuple[int, int, int], scale: float) -> None:
    x, y, radius = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2
    turns = [math.pi * (n / 5 - 0.5) for n in range(10)]
    reach = [radius * (0.42 if n % 2 else 1) for n in range(10)]
    pen.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(turns, reach, strict=True)], fill=colour)


_DRAWN: dict[str, Callable[..., None]] = {
    "bar chart": _bars, "line chart": _line, "pie chart": _pie, "table": _table,
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star,
}  # fmt: skip


# --- files ---------------------------------------------------------------------------------------------------------------


def write_pdf(path: Path, pages: Sequence[Page], *, scale: float = 3.0) -> None:
    """As a scanner would: a picture a page, no text. A unit is two points."""
    images = [draw_page(page, scale=scale) for page in pages]
    images[0].save(path, save_all=True, append_images=images[1:], resolution=36 * scale)


def write_pngs(folder: Path, pages: Sequence[Page], *, scale: float = 2.0) -> None:
    for n, page in enumerate(pages, start=1):
        draw_page(page, scale=scale).save(folder / f"photo-{n}.png")


def queries_of(pages: Sequence[Page], *, seed: int, each: int = 2) -> Iterator[tuple[int, Query]]:
    """(position of the page it was made for, query), `each` a page."""
    rng = np.random.default_rng([19, seed])
    for n, page in enumerate(pages):
        for _ in range(each):
            yield n, make_query(rng, page)


def main(folder: str, seed: str = "1000000") -> None:
    out, pages = Path(folder), [make_page(int(seed) + n) for n in range(12)]
    out.mkdir(parents=True, exist_ok=True)
    write_pdf(out / "scans.pdf", pages[:9])
    write_pngs(out, pages[9:])
    names = [*(f"scans.pdf, p. {n}" for n in range(1, 10)), *(f"photo-{n}.png" for n in range(1, 4))]
    for _, query in queries_of(pages, seed=int(seed), each=1):
        print(f"{query.text:40}", "; ".join(name for name, page in zip(names, pages, strict=True) if query.true_of(page)))


if __name__ == "__main__":
    main(*sys.argv[1:3])

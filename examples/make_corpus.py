"""Write the example corpus: what a small wind farm keeps in its shared folder.

    python examples/make_corpus.py FOLDER

Fennmoor Wind Co-operative, its people and its numbers are invented, and every word was written for ragkit. The sources
stand in `examples/corpus/`: `NAME.pdf.txt` is typeset into `NAME.pdf`, every other file is copied as it is. The PDFs have
headings, tables, two columns, a page turned by /Rotate, a page cut by /CropBox, and charts drawn as vectors. The same
bytes on every run. The questions in `corpus_questions.jsonl` name the pages that answer them; a test holds them to it.

A typeset source begins with `key: value` lines; then come blocks, parted by blank lines:

    = title    ~ subtitle    # heading    ## heading    ^ caption    - bullet    * reference    | a | table row |
    {page NAME} a new page from a template    {column} the next frame    {chart NAME} a drawing    {widths 70 95} of a table

Needs reportlab. What else is in FOLDER is left alone.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from reportlab.graphics.charts.barcharts import VerticalBarChart
from reportlab.graphics.shapes import Circle, Drawing, Line, PolyLine, Rect, String
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.platypus import (
    BaseDocTemplate,
    Frame,
    FrameBreak,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
)

SOURCES = Path(__file__).parent / "corpus"
TYPESET = ".pdf.txt"

WIDTH, HEIGHT = A4
MARGIN = 62.0  # points
GUTTER = 20.0  # between two columns
OPENING = 190.0  # what a paper keeps above its columns for title and abstract
BLEED = 42.0  # what the printer's sheet has around the page that /CropBox keeps
INK, TEAL, AMBER = (HexColor(colour) for colour in ("#1d2529", "#14505c", "#d9900a"))
WHITE, PALE, RULE, GREY = (HexColor(colour) for colour in ("#ffffff", "#e9f0f1", "#d5dcde", "#6b787d"))

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SOLD = (9.8, 8.9, 7.6, 5.9, 4.7, 4.1, 3.6, 4.3, 5.8, 7.4, 6.2, 9.1)  # GWh in 2024
MEAN = (9.2, 8.3, 7.9, 6.1, 4.9, 4.2, 4.0, 4.4, 5.9, 7.5, 8.4, 9.0)  # GWh, mean of the ten years before
FOUND = {"band ratio": (0, 61, 81, 91, 95, 97), "loudness only": (0, 22, 38, 51, 59, 66)}  # per cent, at 0-5 false alarms

Style = Mapping[str, ParagraphStyle]


# --- looks ------------------------------------------------------------------------------------------------------------


def report_look() -> Style:
    plain, bold, slanted = "Helvetica", "Helvetica-Bold", "Helvetica-Oblique"
    return {
        "=": ParagraphStyle("title", fontName=bold, fontSize=27, leading=32, textColor=TEAL, spaceAfter=8),
        "~": ParagraphStyle("subtitle", fontName=plain, fontSize=13, leading=18, textColor=GREY, spaceAfter=22),
        "#": ParagraphStyle(
            "h1", fontName=bold, fontSize=18, leading=23, textColor=TEAL, spaceBefore=12, spaceAfter=9, keepWithNext=1
        ),
        "##": ParagraphStyle(
            "h2", fontName=bold, fontSize=12.5, leading=16, textColor=TEAL, spaceBefore=9, spaceAfter=4, keepWithNext=1
        ),
        "^": ParagraphStyle("caption", fontName=slanted, fontSize=8.5, leading=12, textColor=GREY, spaceBefore=5, spaceAfter=12),
        "-": ParagraphStyle("bullet", fontName=plain, fontSize=11, leading=15.5, textColor=INK, leftIndent=14, bulletIndent=3),
        "": ParagraphStyle("text", fontName=plain, fontSize=11, leading=15.5, textColor=INK, alignment=TA_JUSTIFY, spaceAfter=7),
        "|": ParagraphStyle("cell", fontName=plain, fontSize=9.2, leading=12, textColor=INK),
        "||": ParagraphStyle("head", fontName=bold, fontSize=9.2, leading=12, textColor=WHITE),
    }


def paper_look() -> Style:
    plain, bold, slanted = "Times-Roman", "Times-Bold", "Times-Italic"
    return {
        "=": ParagraphStyle("title", fontName=bold, fontSize=19, leading=23, alignment=TA_CENTER, spaceAfter=8),
        "~": ParagraphStyle("authors", fontName=slanted, fontSize=11, leading=15, alignment=TA_CENTER, spaceAfter=12),
        "##": ParagraphStyle("h2", fontName=bold, fontSize=12.5, leading=14, spaceBefore=8, spaceAfter=4, keepWithNext=1),
        "^": ParagraphStyle("caption", fontName=slanted, fontSize=9.4, leading=12, textColor=GREY, spaceBefore=4, spaceAfter=10),
        "*": ParagraphStyle(
            "reference", fontName=plain, fontSize=9.4, leading=12, leftIndent=14, firstLineIndent=-14, spaceAfter=3
        ),
        "": ParagraphStyle("text", fontName=plain, fontSize=11, leading=14, alignment=TA_JUSTIFY, spaceAfter=6),
        "|": ParagraphStyle("cell", fontName=plain, fontSize=9.4, leading=12),
        "||": ParagraphStyle("head", fontName=bold, fontSize=9.4, leading=12, textColor=WHITE),
    }


LOOKS = {"Helvetica": report_look, "Times": paper_look}


# --- from a source to flowables ---------------------------------------------------------------------------------------


def inline(text: str) -> str:
    """One line, with **bold** and *slanted* in reportlab's own tags."""
    text = escape(" ".join(text.split()), quote=False)
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text))


def flowables(source: str, look: Style) -> Iterator[Any]:
    """What reportlab sets, block by block."""
    for block in source.strip().split("\n\n"):
        if block.startswith("{widths"):
            yield table(block, look)
        elif block.startswith("{"):
            yield from directive(*block.strip("{}").split())
        else:
            yield from paragraphs(block, look)


def directive(verb: str, name: str = "") -> list[Any]:
    if verb == "page":
        return [NextPageTemplate(name), PageBreak()]
    if verb == "next":
        return [NextPageTemplate(name)]
    if verb == "column":
        return [FrameBreak()]
    if verb == "chart":
        return [CHARTS[name]()]
    raise ValueError(f"a source asks for {{{verb} {name}}}; there are page, next, column, chart and widths")


def paragraphs(block: str, look: Style) -> list[Any]:
    """A block of text, or one paragraph for each bullet or reference in it."""
    mark, _, text = block.partition(" ")
    if mark not in look or not text:
        return [Paragraph(inline(block), look[""])]
    if mark not in "-*":
        return [Paragraph(inline(text), look[mark])]
    bullet = "•" if mark == "-" else None
    items = [
        Paragraph(inline(item), look[mark], bulletText=bullet)
        for item in re.split(rf"^{re.escape(mark)} ", block, flags=re.M)[1:]
    ]
    return [*items, Spacer(1, 6)]


def table(block: str, look: Style) -> Table:
    """A grid whose first row is its header, repeated where a page cuts it; cells wrap."""
    widths, *lines = block.splitlines()
    rows = [[inline(cell) for cell in line.strip("| ").split(" | ")] for line in lines]
    cells = [[Paragraph(cell, look["|" if i else "||"]) for cell in row] for i, row in enumerate(rows)]
    return Table(
        [row + [""] * (len(cells[0]) - len(row)) for row in cells],
        colWidths=[float(width) for width in widths.strip("{}").split()[1:]],
        repeatRows=1,
        hAlign="LEFT",
        style=[
            ("BACKGROUND", (0, 0), (-1, 0), TEAL),
            ("ROWBACKGROUNDS", (0, 1), (-1, -1), [WHITE, PALE]),
            ("LINEBELOW", (0, -1), (-1, -1), 0.8, TEAL),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("TOPPADDING", (0, 0), (-1, -1), 3),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
        ],
    )


# --- charts: lines, rectangles and text, no image ---------------------------------------------------------------------


def label(x: float, y: float, text: str, **settings: Any) -> String:
    return String(x, y, text, **{"fontName": "Helvetica", "fontSize": 8, "fillColor": INK, **settings})


def energy_chart() -> Drawing:
    """Bars for the year's months beside those of the mean year, each month of 2024 with its value."""
    drawing = Drawing(WIDTH - 2 * MARGIN, 235)
    bars = VerticalBarChart()
    bars.x, bars.y, bars.width, bars.height = 30, 30, drawing.width - 40, 165
    bars.data, bars.groupSpacing = [SOLD, MEAN], 6
    bars.bars[0].fillColor, bars.bars[1].fillColor, bars.bars.strokeColor = TEAL, AMBER, None
    bars.categoryAxis.categoryNames = list(MONTHS)
    bars.valueAxis.valueMin, bars.valueAxis.valueMax, bars.valueAxis.valueStep = 0, 12, 2
    bars.valueAxis.visibleGrid, bars.valueAxis.gridStrokeColor = 1, RULE
    for axis in (bars.categoryAxis, bars.valueAxis):
        axis.labels.fontName, axis.labels.fontSize, axis.strokeColor = "Helvetica", 8, GREY
    drawing.add(bars)
    for month, value in enumerate(SOLD):
        x = bars.x + (month + 0.33) * bars.width / len(MONTHS)
        drawing.add(label(x, bars.y + bars.height * value / 12 + 3, f"{value:.1f}", fontSize=7, textAnchor="middle"))
    for x, colour, text in ((170, TEAL, "sold in 2024"), (270, AMBER, "mean of 2014 to 2023")):
        drawing.add(Rect(x, 212, 9, 9, fillColor=colour, strokeColor=None))
        drawing.add(label(x + 14, 213, text))
    drawing.add(label(2, 208, "GWh", fillColor=GREY))
    return drawing


def detection_chart() -> Drawing:
    """Events found against false alarms, for two ways of listening."""
    drawing = Drawing(225, 165)
    left, bottom, width, height = 34, 30, 180, 120
    for tick in range(6):
        x, y = left + width * tick / 5, bottom + height * tick / 5
        drawing.add(Line(left, y, left + width, y, strokeColor=RULE, strokeWidth=0.5))
        drawing.add(label(left - 4, y - 3, f"{20 * tick}", fontName="Times-Roman", textAnchor="end"))
        drawing.add(label(x, bottom - 11, f"{tick}", fontName="Times-Roman", textAnchor="middle"))
    for (name, rates), colour in zip(FOUND.items(), (TEAL, AMBER), strict=True):
        points = [(left + width * alarms / 5, bottom + height * rate / 100) for alarms, rate in enumerate(rates)]
        drawing.add(PolyLine([number for point in points for number in point], strokeColor=colour, strokeWidth=1.4))
        for x, y in points:
            drawing.add(Circle(x, y, 1.9, fillColor=colour, strokeColor=None))
        drawing.add(label(points[3][0] - 8, points[3][1] - 15, name, fontName="Times-Italic", fillColor=colour))
    drawing.add(label(left + width / 2, 6, "false alarms per winter", fontName="Times-Roman", textAnchor="middle"))
    drawing.add(label(4, 157, "events found (%)", fontName="Times-Roman"))
    return drawing


CHARTS: dict[str, Callable[[], Drawing]] = {"energy": energy_chart, "detection": detection_chart}


# --- pages ------------------------------------------------------------------------------------------------------------


def turned(canvas: Any) -> None:
    """A landscape page on a portrait sheet: drawn a quarter turn to the left, and /Rotate turns it back."""
    canvas.transform(0, 1, -1, 0, WIDTH, 0)  # displayed (x, y) is stored at (WIDTH - y, x)


def cut(canvas: Any) -> None:
    """A page on the printer's larger sheet: /CropBox keeps the page, and the marks around it are not shown."""
    canvas.setCropBox((BLEED, BLEED, BLEED + WIDTH, BLEED + HEIGHT))
    canvas.setFont("Courier", 7)
    canvas.drawString(BLEED + 12, 14, "Lindgarth Print - proof sheet 6 - trim along the marks - not for release")
    canvas.setLineWidth(0.4)
    for x in (BLEED, BLEED + WIDTH):
        for y in (4, HEIGHT + BLEED + 10):
            canvas.line(x, y, x, y + BLEED - 14)
    for y in (BLEED, BLEED + HEIGHT):
        for x in (4, WIDTH + BLEED + 10):
            canvas.line(x, y, x + BLEED - 14, y)
    canvas.translate(BLEED, BLEED)


def on_page(footer: str, *, width: float = WIDTH, prepare: Callable[[Any], None] | None = None) -> Callable[[Any, Any], None]:
    """What is drawn before the text: first `prepare`, then a rule and a footer in the page's own coordinates."""

    def draw(canvas: Any, document: Any) -> None:
        canvas.setCropBox(None)  # reportlab would keep the last page's
        if prepare:
            prepare(canvas)
        canvas.setFont("Helvetica", 8)
        canvas.setFillColor(GREY)
        canvas.drawString(MARGIN, 34, footer)
        canvas.drawRightString(width - MARGIN, 34, str(document.page))
        canvas.setStrokeColor(TEAL)
        canvas.setLineWidth(0.6)
        canvas.line(MARGIN, 46, width - MARGIN, 46)

    return draw


def frame(x: float, y: float, width: float, height: float) -> Frame:
    return Frame(x, y, width, height, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0)


def frames(count: int, *, width: float = WIDTH, height: float = HEIGHT, top: float = 0) -> list[Frame]:
    """`count` columns inside the margins, below a frame of full width and `top` points if `top` is not 0."""
    each = (width - 2 * MARGIN - (count - 1) * GUTTER) / count
    banner = [frame(MARGIN, height - MARGIN - top, width - 2 * MARGIN, top)] if top else []
    return banner + [frame(MARGIN + i * (each + GUTTER), 58, each, height - 58 - MARGIN - top) for i in range(count)]


def templates(footer: str) -> dict[str, PageTemplate]:
    """The pages that a source can ask for by name."""
    sheet = (WIDTH + 2 * BLEED, HEIGHT + 2 * BLEED)
    landscape = {"width": HEIGHT, "height": WIDTH}
    made = {
        "single": PageTemplate("single", frames(1), on_page(footer)),
        "double": PageTemplate("double", frames(2, top=40), on_page(footer)),
        "opening": PageTemplate("opening", frames(2, top=OPENING), on_page(footer)),
        "paper": PageTemplate("paper", frames(2), on_page(footer)),
        # reportlab swaps the sides of a page with this rotation: the sheet in the file is portrait.
        "turned": PageTemplate(
            "turned", frames(1, **landscape), on_page(footer, width=HEIGHT, prepare=turned), pagesize=(HEIGHT, WIDTH)
        ),
        "cut": PageTemplate("cut", frames(1), on_page(footer, prepare=cut), pagesize=sheet),
    }
    made["turned"].rotation = 90
    return made


def typeset(source: str, path: Path) -> None:
    """Write the PDF that a source describes. Its bytes depend on the source alone."""
    head, _, body = source.partition("\n\n")
    settings = dict(line.split(": ", 1) for line in head.splitlines())
    pages = templates(settings["footer"])
    first = pages.pop(settings["page"])  # reportlab begins with the first of its list
    BaseDocTemplate(
        str(path),
        pagesize=A4,
        pageTemplates=[first, *pages.values()],
        title=settings["title"],
        author=settings["author"],
        invariant=1,  # no time stamp, no random identifier
    ).build(list(flowables(body, LOOKS[settings["face"]]())))


# --- the corpus -------------------------------------------------------------------------------------------------------


def make_corpus(folder: Path) -> list[Path]:
    """Write every document below `folder`, which is created; return their paths relative to it, in order."""
    written = []
    for source in sorted(path for path in SOURCES.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        name = source.relative_to(SOURCES)
        target = folder / str(name).removesuffix(".txt") if source.name.endswith(TYPESET) else folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.name.endswith(TYPESET):
            typeset(source.read_text(encoding="utf-8"), target)
        else:
            shutil.copyfile(source, target)
        written.append(target.relative_to(folder))
    return written


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python examples/make_corpus.py FOLDER", file=sys.stderr)
        return 2
    written = make_corpus(Path(arguments[0]))
    print(f"wrote {len(written)} documents to {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A PDF becomes a Document, by one of two engines behind one interface; its pages are rendered by the same two.

An engine gives words, as texts and boxes, in its own order. Reading order, lines, paragraphs and headings are found here
and in `layout`, the same way for both. The text is made of the words: a space between words, a newline between lines, a
blank line between paragraphs, a form feed between pages that belongs to no page. Hyphens at line ends stay as they are.
A page without text is a page with an empty span.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ragkit.errors import LimitExceeded, LoadError, MissingExtra, UnsupportedFormat
from ragkit.load import layout
from ragkit.load.limits import Limits, Options
from ragkit.types import Block, Document, Floats, Ints, Page, Span, Words

ENGINES = ("pymupdf", "pypdfium2")
PAGE_BREAK = "\n\f\n"
_SEPARATORS = {layout.SAME: " ", layout.LINE: "\n", layout.BLOCK: "\n\n", layout.COLUMN: "\n\n"}
_HEADING_RATIO = 1.13  # a heading's letters against the body's
_HEADING_CHARACTERS = 200
_TITLE_CHARACTERS = 6  # shorter large print is a number or an initial
_PLACEHOLDERS = {"untitled", "anonymous", "(anonymous)", "(untitled)", "unspecified", "(unspecified)", "unknown", "none", ""}
_RTL = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")
_BROKEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ENDS = re.compile(r"[.!?:;。！？…][\"'”’)\]]*$")


@dataclass(frozen=True, slots=True, eq=False)
class PageWords:
    """What an engine says of one page: the words' texts, boxes (w, 4) float32 in points as displayed, and the number
    of the engine's line each stands on, (w,) int64; the page's displayed size in points, rotation in degrees, label."""

    texts: list[str]
    boxes: Floats
    lines: Ints
    width: float
    height: float
    rotation: int
    label: str | None = None

    @classmethod
    def blank(cls, width: float, height: float, rotation: int, label: str | None = None) -> PageWords:
        return cls([], np.empty((0, 4), np.float32), np.empty(0, np.int64), width, height, rotation, label)


class Engine(Protocol):
    """An open PDF. Pages count from 0 here, as in both engines; `render` gives width, height and RGB bytes."""

    def close(self) -> None: ...
    def count(self) -> int: ...
    def metadata(self) -> dict[str, str]: ...
    def page(self, index: int) -> PageWords: ...
    def render(self, index: int, scale: float) -> tuple[int, int, bytes]: ...


def open_pdf(path: Path, *, engine: str = "auto", password: str | None = None) -> Engine:
    """An open PDF, by the engine named, or with "auto" by the first of ENGINES that is installed."""
    if engine == "auto":
        engine = next((name for name in ENGINES if find_spec(name)), "")
        if not engine:
            raise UnsupportedFormat(str(MissingExtra.of("pymupdf or pypdfium2", "pdf", "reading PDF files")))
    if engine == "pymupdf":
        from ragkit.load import pdf_pymupdf

        return pdf_pymupdf.Pdf(path, password)
    if engine == "pypdfium2":
        from ragkit.load import pdf_pypdfium2

        return pdf_pypdfium2.Pdf(path, password)
    raise ValueError(f'pdf_engine must be "auto", "pymupdf" or "pypdfium2", got {engine!r}')


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of a PDF. Raises EncryptedDocument, LimitExceeded, LoadError, UnsupportedFormat."""
    pdf = open_pdf(path, engine=options.pdf_engine, password=options.password)
    try:
        yield _document(pdf, options)
    finally:
        pdf.close()


def render_page(
    path: str | Path,
    page_number: int,
    *,
    dpi: float | None = None,
    max_pixels: int | None = None,
    engine: str = "auto",
    password: str | None = None,
) -> bytes:
    """A page, counted from 1, as PNG bytes, as displayed: a box in points times width in pixels / width in points is its
    place in the picture. `dpi` is 150 unless given; with `max_pixels` the picture is scaled down to hold no more."""
    pdf = open_pdf(Path(path), engine=engine, password=password)
    try:
        if not 1 <= page_number <= pdf.count():
            raise LoadError(f"there is no page {page_number}: the document has {pdf.count()}")
        words = pdf.page(page_number - 1)
        scale = (150.0 if dpi is None else dpi) / 72
        if not 0 < scale < 100:
            raise ValueError(f"dpi must be above 0 and below 7200, got {dpi}")
        ceiling = Limits().pixels if max_pixels is None else max_pixels
        if words.width * scale * words.height * scale > ceiling:
            # A little under, since engines round each side up to whole pixels.
            scale = max((ceiling / (words.width * words.height)) ** 0.5 - 1.0 / max(words.width, words.height), 1e-3)
        return _png(*pdf.render(page_number - 1, scale))
    finally:
        pdf.close()


def _png(width: int, height: int, rgb: bytes) -> bytes:
    """RGB bytes as a PNG file (ISO/IEC 15948): signature, header, one compressed stream of unfiltered rows, end."""
    rows = np.frombuffer(rgb, dtype=np.uint8).reshape(height, width * 3)
    unfiltered = np.concatenate((np.zeros((height, 1), np.uint8), rows), axis=1)

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(unfiltered.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", body) + part(b"IEND", b"")


@dataclass(slots=True, eq=False)
class _ReadPage:
    """A page with its text: word spans (w, 2) count from the page's beginning; blocks are runs of words."""

    page: PageWords
    text: str
    spans: Ints
    boxes: Floats
    block_starts: Ints  # (b,) positions of words
    block_heights: Floats  # (b,) height of the letters, points


def _document(pdf: Engine, options: Options) -> Document:
    count = pdf.count()
    if not count:
        raise LoadError("the PDF has no pages")
    if count > options.limits.pages:
        raise LimitExceeded(f"the PDF has {count} pages, more than the limit of {options.limits.pages} (Limits.pages)")
    read, characters = [], 0
    for index in range(count):
        options.on_page(index + 1)
        page = _read(_sized(pdf.page(index)))
        characters += len(page.text) + len(PAGE_BREAK)
        if characters > options.limits.characters:
            raise LimitExceeded(f"more than {options.limits.characters} characters by page {index + 1} (Limits.characters)")
        read.append(page)
    found = pdf.metadata()
    text, pages = _joined(read)
    blocks = _blocks(read, pages)
    title = found["title"].strip()
    meta: dict[str, Any] = {"pages": count}
    if found["author"].strip().lower() not in _PLACEHOLDERS:
        meta["author"] = found["author"].strip()
    for name in ("created", "modified"):
        if date := iso_date(found[name]):
            meta[name] = date
    if title.lower() in _PLACEHOLDERS:
        title = _first_title(text, pages, blocks)
    return Document(text=text, title=title, meta=meta, pages=pages, blocks=blocks)


def _sized(page: PageWords) -> PageWords:
    """A page whose crop box shows nothing has no size, and viewers show an empty sheet: so it is an empty Letter page."""
    return page if page.width > 0 and page.height > 0 else PageWords.blank(612, 792, page.rotation, page.label)


def _read(page: PageWords) -> _ReadPage:
    if not page.texts:
        empty = np.empty(0, np.int64)
        return _ReadPage(page, "", np.empty((0, 2), np.int64), page.boxes, empty, np.empty(0, np.float32))
    joined = " ".join(page.texts)
    rtl = not joined.isascii() and _RTL.search(joined) is not None
    if not joined.isprintable() and _BROKEN.search(joined):
        page = replace(page, texts=[_BROKEN.sub("\ufffd", word) for word in page.texts])
    mostly_rtl = rtl and 2 * len(_RTL.findall(joined)) > len(joined) - joined.count(" ")
    lengths = np.fromiter(map(len, page.texts), dtype=np.int64, count=len(page.texts))
    plan = layout.read(page.boxes, page.lines, lengths, rtl=mostly_rtl)
    texts = [page.texts[i] for i in plan.order.tolist()]
    boxes = page.boxes[plan.order]
    breaks = plan.breaks
    _heal_columns(texts, breaks)
    separators = [" "] * len(texts)
    changes = np.flatnonzero(breaks)
    for at, kind in zip(changes.tolist(), breaks[changes].tolist(), strict=True):
        separators[at] = _SEPARATORS[kind]
    separators[0] = ""
    if rtl:
        _glue(texts, separators, boxes, page.lines[plan.order])
    lengths = lengths[plan.order]
    between = np.fromiter(map(len, separators), dtype=np.int64, count=len(texts))
    ends = np.cumsum(lengths + between)
    starts = np.flatnonzero(breaks >= layout.BLOCK)
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, np.array([page.width, page.height] * 2, dtype=np.float32), out=boxes)
    text = "".join(chain.from_iterable(zip(separators, texts, strict=True)))
    return _ReadPage(page, text, np.stack((ends - lengths, ends), axis=1), boxes, starts, plan.heights[starts])


def _heal_columns(texts: Sequence[str], breaks: Any) -> None:
    """A sentence that runs on into the next column stays one paragraph: the break becomes that of a line."""
    for at in np.flatnonzero(breaks == layout.COLUMN).tolist():
        if at and texts[at][:1].islower() and not _ENDS.search(texts[at - 1]):
            breaks[at] = layout.LINE


def _glue(texts: Sequence[str], separators: list[str], boxes: Floats, lines: Ints) -> None:
    """Engines cut words where the script turns round, as in "(שלום)": what touches is written without a space."""
    touching = np.maximum(boxes[1:, 0] - boxes[:-1, 2], boxes[:-1, 0] - boxes[1:, 2]) < 0.05 * (boxes[1:, 3] - boxes[1:, 1])
    for at in np.flatnonzero(touching & (lines[1:] == lines[:-1])).tolist():
        if separators[at + 1] == " " and (_RTL.search(texts[at]) is None) != (_RTL.search(texts[at + 1]) is None):
            separators[at + 1] = ""


def _joined(read: Sequence[_ReadPage]) -> tuple[str, tuple[Page, ...]]:
    pages, at = [], 0
    for number, part in enumerate(read, start=1):
        span = Span(at, at + len(part.text))
        words = Words(part.spans + at, part.boxes)
        page = part.page
        pages.append(Page(number, page.width, page.height, span, words, page.label, page.rotation))
        at = span.end + len(PAGE_BREAK)
    return PAGE_BREAK.join(part.text for part in read), tuple(pages)


def _blocks(read: Sequence[_ReadPage], pages: Sequence[Page]) -> tuple[Block, ...]:
    """Paragraphs, and headings: short blocks in letters clearly larger than the body's; the larger, the higher."""
    spans, heights = [], []
    for part, page in zip(read, pages, strict=True):
        if not len(part.block_starts):
            continue
        last = np.append(part.block_starts[1:], len(part.spans)) - 1
        spans.append(np.stack((page.words.spans[part.block_starts, 0], page.words.spans[last, 1]), axis=1))
        heights.append(part.block_heights)
    if not spans:
        return ()
    span, height = np.concatenate(spans), np.concatenate(heights)
    length = span[:, 1] - span[:, 0]
    body = _weighted_median(height, length)
    heading = (height >= _HEADING_RATIO * body) & (length <= _HEADING_CHARACTERS)
    sizes: list[float] = []
    for size in np.unique(np.round(height[heading] * 2))[::-1] / 2:
        if not sizes or sizes[-1] / size > 1.06:  # sizes closer than that are one, seen through two fonts
            sizes.append(float(size))
    blocks = []
    for (start, end), tall, is_heading in zip(span.tolist(), height.tolist(), heading.tolist(), strict=True):
        level = min(sum(size > tall * 1.06 for size in sizes) + 1, 6) if is_heading else 0
        blocks.append(Block("heading" if is_heading else "paragraph", Span(start, end), level))
    return tuple(blocks)


def _weighted_median(values: Any, weights: Any) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _first_title(text: str, pages: Sequence[Page], blocks: Sequence[Block]) -> str:
    """The first of the largest headings of page one, on one line."""
    first = [b for b in blocks if b.kind == "heading" and pages and b.span.end <= pages[0].span.end]
    if not first:
        return ""
    highest = min(block.level for block in first)
    title = " ".join(next(b for b in first if b.level == highest).span.of(text).split())
    return title if len(title) >= _TITLE_CHARACTERS else ""


_DATE = re.compile(r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:([Z+-])(\d\d)?'?(\d\d)?)?")


def iso_date(date: str) -> str:
    """A PDF date, "D:20240131120000+01'00'" (ISO 32000-2, 7.9.4), as "2024-01-31T12:00:00+01:00"; "" for what is none."""
    match = _DATE.match(date.strip())
    if not match:
        return ""
    year, month, day, hour, minute, second, sign, zone_hour, zone_minute = match.groups()
    if not (1 <= int(month or 1) <= 12 and 1 <= int(day or 1) <= 31):
        return ""
    iso = "-".join(part for part in (year, month, day) if part)
    if not (day and hour):
        return iso
    iso += f"T{hour}:{minute or '00'}:{second or '00'}"
    if sign == "Z" or (sign and not zone_hour):
        return iso + "+00:00"
    return iso + (f"{sign}{zone_hour}:{zone_minute or '00'}" if sign else "")

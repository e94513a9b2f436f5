"""A PDF becomes a Document, by one of two engines behind one interface; its pages are rendered by the same two.

An engine gives words, as texts and boxes, in its own order. Reading order, lines, paragraphs, headings, running headers and
footers are found in `text`, `layout` and `headers_footers`, the same way for both. A page without text is a page with an empty
span; so is a page that cannot be read, and `meta["unread"]` then says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from ragkit.core.errors import LimitExceeded, LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Block, Document, Json, Page
from ragkit.load import ocr
from ragkit.load.limits import Options
from ragkit.load.pdf import hidden_text
from ragkit.load.pdf.outline import Entry, with_outline
from ragkit.load.pdf.text import PAGE_BREAK, PageWords, Region, assemble
from ragkit.load.render import Pixels

ENGINES = {"pymupdf": "ragkit.load.pdf.pymupdf", "pypdfium2": "ragkit.load.pdf.pdfium"}  # package: our module over it
_TITLE_CHARACTERS = 6  # shorter large print is a number or an initial
_PLACEHOLDERS = {"untitled", "anonymous", "(anonymous)", "(untitled)", "unspecified", "(unspecified)", "unknown", "none", ""}


class Engine(Protocol):
    """An open PDF. Pages count from 0 here, as in both engines; `size` is in points as displayed; `render` returns width,
    height and RGB bytes of a page's picture, or of a region of it; `draw` stretches the page to so many pixels."""

    def close(self) -> None: ...
    def count(self) -> int: ...
    def metadata(self) -> dict[str, str]: ...
    def size(self, index: int) -> tuple[float, float]: ...
    def draw(self, index: int, width: int, height: int) -> Pixels: ...
    def page(self, index: int) -> PageWords: ...
    def outline(self) -> list[Entry]: ...
    def render(self, index: int, scale: float, region: Region | None = None) -> tuple[int, int, bytes]: ...


def open_pdf(path: Path, *, engine: str = "auto", password: str | None = None) -> Engine:
    """Open a PDF with the named engine, or with "auto" by the first of ENGINES that is installed."""
    if engine == "auto":
        engine = next((name for name in ENGINES if find_spec(name)), "")
        if not engine:
            raise UnsupportedFormat(str(MissingExtra.of("pymupdf or pypdfium2", "pdf", "reading PDF files")))
    if engine == "pymupdf":
        from ragkit.load.pdf import pymupdf

        return pymupdf.Pdf(path, password)
    if engine == "pypdfium2":
        from ragkit.load.pdf import pdfium

        return pdfium.Pdf(path, password)
    raise ValueError(f'pdf_engine must be "auto", "pymupdf" or "pypdfium2", got {engine!r}')


def prepare(engine: str) -> None:
    """Import the engine, so that its first document does not wait for it. A missing engine is reported when a PDF is opened."""
    name = next((name for name in ENGINES if find_spec(name)), "") if engine == "auto" else engine
    if name in ENGINES and find_spec(name):
        import_module(name)
        import_module(ENGINES[name])


def open_pages(path: Path, options: Options) -> Engine:
    """Open a PDF whose pages are to be drawn. Raises what `load` does."""
    return open_pdf(path, engine=options.pdf_engine, password=options.password)


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a PDF. Raises EncryptedDocument, LimitExceeded, LoadError, UnsupportedFormat."""
    pdf = open_pdf(path, engine=options.pdf_engine, password=options.password)
    try:
        yield _document(pdf, options)
    finally:
        pdf.close()


def _document(pdf: Engine, options: Options) -> Document:
    count = pdf.count()
    if not count:
        raise LoadError("the PDF has no pages")
    if count > options.limits.pages:
        raise LimitExceeded(f"the PDF has {count} pages, more than the limit of {options.limits.pages} (Limits.pages)")
    reader = None if options.ocr == ocr.OFF else ocr.Reader(options.ocr, options.limits)
    words, unread = _pages(pdf, count, options, reader)
    text, pages, blocks = assemble([hidden_text.with_annotations(page) for page in words], on_page=options.on_page)
    blocks = with_outline(text, pages, blocks, pdf.outline())
    meta: Json = {"pages": count} | hidden_text.hidden(words)
    if reader is not None and reader.pages:
        meta["ocr_pages"] = reader.pages
    if unread:
        meta["unread"] = [why if why.startswith("page ") else f"page {number}: {why}" for number, why in unread.items()]
    properties = pdf.metadata()
    title = properties["title"].strip()
    if title.lower() in _PLACEHOLDERS:
        title = _first_title(text, pages, blocks)
    return Document(text=text, title=title, meta=meta | _stated(properties), pages=pages, blocks=blocks)


def _stated(properties: dict[str, str]) -> dict[str, str]:
    """Return the author, subject, keywords and dates that the file states of itself, without placeholders."""
    texts = {name: properties[name].strip() for name in ("author", "subject", "keywords")}
    dates = {name: iso_date(properties[name]) for name in ("created", "modified")}
    return {name: value for name, value in (texts | dates).items() if value.lower() not in _PLACEHOLDERS}


def _pages(pdf: Engine, count: int, options: Options, reader: ocr.Reader | None) -> tuple[list[PageWords], dict[int, str]]:
    """Return the words of each page, and by number the reasons why pages cannot be read. LoadError where none can be."""
    pages: list[PageWords] = []
    unread: dict[int, str] = {}
    characters = 0
    for number in range(1, count + 1):
        if reason := options.skip.get(number):
            unread[number] = reason
            pages.append(PageWords.blank())
            continue
        options.on_page(number)
        try:
            page = hidden_text.without_hidden(pdf.page(number - 1), partial(pdf.render, number - 1))
            if reader is not None and not page.texts:
                page = _recognised(pdf, page, number, reader)
        except LimitExceeded:
            raise
        except LoadError as error:
            unread[number] = str(error)
            page = PageWords.blank()
        characters += sum(map(len, page.texts)) + len(page.texts) + len(PAGE_BREAK)
        if characters > options.limits.characters:
            raise LimitExceeded(f"more than {options.limits.characters} characters by page {number} (Limits.characters)")
        pages.append(page)
    if len(unread) == count:
        raise LoadError(f"no page can be read; page 1: {unread[1]}")
    return pages, unread


def _recognised(pdf: Engine, page: PageWords, number: int, reader: ocr.Reader) -> PageWords:
    """Return a page with the words that Tesseract reads in its picture."""
    words = reader.read(pdf, number - 1)
    return replace(words, rotation=page.rotation, label=page.label, annotations=page.annotations)


def _first_title(text: str, pages: Sequence[Page], blocks: Sequence[Block]) -> str:
    """Return the first of the largest headings of page one, on one line."""
    headings = [block for block in blocks if block.kind == "heading" and pages and block.span.end <= pages[0].span.end]
    if not headings:
        return ""
    first = min(headings, key=lambda block: block.level)
    title = " ".join(first.span.of(text).split())
    return title if len(title) >= _TITLE_CHARACTERS else ""


_DATE = re.compile(r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:([Z+-])(\d\d)?'?(\d\d)?)?")


def iso_date(pdf_date: str) -> str:
    """Return a PDF date, "D:20240131120000+01'00'" (ISO 32000-2, 7.9.4), as "2024-01-31T12:00:00+01:00"; "" for anything else."""
    match = _DATE.match(pdf_date.strip())
    if not match:
        return ""
    year, month, day, hour, minute, second, sign, zone_hour, zone_minute = match.groups()
    if not (1 <= int(month or 1) <= 12 and 1 <= int(day or 1) <= 31):
        return ""
    date = "-".join(filter(None, (year, month, day)))
    if not (day and hour):
        return date
    return f"{date}T{hour}:{minute or '00'}:{second or '00'}{_zone(sign, zone_hour, zone_minute)}"


def _zone(sign: str | None, hour: str | None, minute: str | None) -> str:
    if not sign:
        return ""
    return "+00:00" if sign == "Z" or not hour else f"{sign}{hour}:{minute or '00'}"

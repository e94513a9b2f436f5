"""OpenDocument texts and presentations (odt, odp): headings, paragraphs, lists, tables, notes, and a page per slide.

A text's pages are those its program laid out and marked (`text:soft-page-break`); without marks it has none. Changes that
are tracked are left out as deleted, and comments too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragkit.core.errors import EncryptedDocument, LoadError
from ragkit.core.types import Document, Json
from ragkit.load.builder import REPEATED, DocumentBuilder, numeral, one_line, squeezed
from ragkit.load.limits import Options
from ragkit.load.readers.zip_xml import (
    ENCRYPTED,
    Element,
    Package,
    attribute,
    child,
    children,
    descendants,
    has_descendant,
    local,
)

_PAGE = "\ue000"  # a page break within a text, until it is written
_A4 = (595.3, 841.9)
_SLIDE = (793.7, 446.5)
_UNITS = {"cm": 72 / 2.54, "mm": 72 / 25.4, "in": 72.0, "pt": 1.0, "px": 0.75}
_NUMBERS = {"1": "decimal", "a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
_ROLES = {"title", "subtitle", "caption", "illustration", "figure", "quotations", "preformatted_20_text"}
_REPEATED = 1000  # times a repeated column or row is written, at most; empty ones are repeated by the million
_INHERITED = 12  # styles that come from one another, at most
_BLANKS = {"tab": "\t", "line-break": "\n", "soft-page-break": _PAGE}
_SHAPES = ("frame", "custom-shape", "rect")
_UNREAD = ("annotation", "annotation-end", "tracked-changes", "change", "bookmark")

_Covers = dict[int, tuple[int, str]]  # by column: the row that a merged cell ends before, and its text

_META = {
    "title": "title",
    "creator": "author",
    "initial-creator": "author",
    "creation-date": "created",
    "date": "modified",
    "language": "lang",
    "subject": "subject",
    "description": "description",
    "keyword": "keywords",
}


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of an .odt or .odp file."""
    package = Package(path.read_bytes(), options)
    root = package.xml("content.xml") if "content.xml" in package else None
    body = child(root, "body")
    if body is None or not len(body):
        raise LoadError("the package holds no OpenDocument")
    meta = properties(package)
    title = meta.pop("title", "")
    sheets = [root, package.xml("styles.xml")] if "styles.xml" in package else [root]
    reader = _Reader(DocumentBuilder(options.limits), _Styles.of(sheets))
    content = body[-1] if local(body[0]) not in ("text", "presentation", "drawing", "spreadsheet") else body[0]
    if local(content) in ("presentation", "drawing"):
        _read_slides(reader, content, _page_size(package, _SLIDE), options)
    else:
        if has_descendant(content, "soft-page-break"):
            reader.size = _page_size(package, _A4)
            reader.builder.page_from(0, *reader.size)
        reader.read(content)
    yield reader.builder.document(title=title or reader.title, meta=meta)


def _read_slides(reader: _Reader, content: Element, size: tuple[float, float], options: Options) -> None:
    for number, page in enumerate(children(content, "page"), start=1):
        options.on_page(number)
        reader.builder.page(*size, label=attribute(page, "name") or None)
        reader.slide(page)


def properties(package: Package) -> Json:
    """Return title, author, dates and language of an OpenDocument package. Raise EncryptedDocument where it is encrypted."""
    if "META-INF/manifest.xml" in package and has_descendant(package.xml("META-INF/manifest.xml"), "encryption-data"):
        raise EncryptedDocument(ENCRYPTED)
    meta: Json = {}
    if "meta.xml" in package:
        for element in package.xml("meta.xml").iter():
            if (name := _META.get(local(element))) and (value := (element.text or "").strip()):
                meta.setdefault(name, value)
    return meta


def _page_size(package: Package, default: tuple[float, float]) -> tuple[float, float]:
    """Return the page size of the first master page, in points."""
    if "styles.xml" not in package:
        return default
    root = package.xml("styles.xml")
    master = next(descendants(root, "master-page"), None)
    layout = "" if master is None else attribute(master, "page-layout-name")
    for element in descendants(root, "page-layout"):
        inner = child(element, "page-layout-properties")
        if inner is not None and attribute(element, "name") == layout:
            width, height = (_points(attribute(inner, name)) for name in ("page-width", "page-height"))
            if width > 0 and height > 0:
                return width, height
    return default


def _points(length: str) -> float:
    try:
        return float(length[:-2]) * _UNITS.get(length[-2:], 0.0)
    except ValueError:
        return 0.0


@dataclass(frozen=True, slots=True)
class _Styles:
    """What styles say of a paragraph's role and of a list's numbers."""

    parents: dict[str, str]  # of paragraph styles, by name
    numbers: dict[tuple[str, int], tuple[str, str, str, int]]  # list style and level from 1: prefix, format, suffix, start

    @classmethod
    def of(cls, roots: Sequence[Element]) -> _Styles:
        styles = cls({}, {})
        for root in roots:
            for style in descendants(root, "style"):
                styles.parents.setdefault(attribute(style, "name"), attribute(style, "parent-style-name"))
            for style in descendants(root, "list-style"):
                styles._add_list(style)
        return styles

    def _add_list(self, style: Element) -> None:
        for level in children(style, "list-level-style-number"):
            number = _integer(attribute(level, "level"), 1)
            form = _NUMBERS.get(attribute(level, "num-format"), "")
            start = _integer(attribute(level, "start-value"), 1)
            row = (attribute(level, "num-prefix"), form, attribute(level, "num-suffix"), start)
            self.numbers[attribute(style, "name"), number] = row

    def role(self, style: str) -> str:
        """Return the named style that a paragraph's own style comes from, in lower case."""
        for _ in range(_INHERITED):
            if style.lower() in _ROLES or not self.parents.get(style):
                break
            style = self.parents[style]
        return style.lower()


class _Reader:
    """Reads a text or the slides of a presentation into a builder."""

    def __init__(self, builder: DocumentBuilder, styles: _Styles) -> None:
        self.builder = builder
        self._styles = styles
        self._counts: dict[str, dict[int, int]] = {}  # by list style: the last number of each level
        self.title = ""
        self.size = _A4
        self._notes: list[Element] = []  # met in a paragraph, which they follow
        self._boxes: list[Element] = []  # frames and shapes met in a paragraph, which they follow
        self._spare = REPEATED  # characters that covered cells may still repeat

    def slide(self, page: Element) -> None:
        titles = [frame for frame in page if attribute(frame, "class") == "title"]
        for title in titles:
            self.builder.heading(self._flat(title), 1)
        for frame in page:
            if frame not in titles and local(frame) not in ("notes", "forms"):
                self._frame(frame)
        notes = child(page, "notes")
        for frame in () if notes is None else notes:
            if attribute(frame, "class") == "notes":
                self.builder.paragraph(self._flat(frame), "footnote")

    def read(self, parent: Element) -> None:
        for element in parent:
            name = local(element)
            if name == "h":
                self._block(element, heading=_integer(attribute(element, "outline-level"), 1))
            elif name == "soft-page-break":
                self.builder.page_from(self.builder.size, *self.size)
            elif name in ("section", "index-body", "table-of-content", "illustration-index", "bibliography", "text-box", "g"):
                self.read(element)
            else:
                self._read_element(element)

    def _read_element(self, element: Element) -> None:
        """Read what may stand in a text as well as in a frame: a paragraph, a list, a table, a frame."""
        name = local(element)
        if name == "p":
            self._block(element)
        elif name == "list":
            self._list(element, 0)
        elif name == "table":
            self._table(element)
        elif name in _SHAPES:
            self._frame(element)

    def _block(self, element: Element, *, heading: int = 0) -> None:
        text = self._line(element)
        plain = text.replace(_PAGE, "")
        style = self._styles.role(attribute(element, "style-name"))
        if style == "title":
            self.title = self.title or one_line(plain)
            heading = heading or 1
        before = self.builder.size
        span = self.builder.heading(plain, heading) if heading else self.builder.paragraph(plain, _kind(style))
        self._pages(text, before if span is None else span.start)
        self._follow()

    def _pages(self, text: str, start: int) -> None:
        """Begin the pages whose breaks stand in a text, which was written from `start` on without them."""
        parts = text.split(_PAGE)
        for number in range(1, len(parts)):
            self.builder.page_from(start + len(squeezed("".join(parts[:number]))), *self.size)

    def _follow(self) -> None:
        """Write what belongs to the paragraph just written: its notes, and the frames anchored in it."""
        notes, self._notes = self._notes, []
        for note in notes:
            mark, body = child(note, "note-citation"), child(note, "note-body")
            self.builder.paragraph(f"[{'' if mark is None else _all_text(mark).strip()}] {self._flat(body)}", "footnote")
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            self._frame(box)

    def _frame(self, frame: Element) -> None:
        """Read what a frame or a shape holds, then the longer of its title and its description, as its caption."""
        texts = []
        for element in frame:
            name = local(element)
            if name in ("text-box", "g"):
                self.read(element)
            elif name in ("title", "desc"):
                texts.append(_all_text(element))
            else:
                self._read_element(element)
        if texts:
            self.builder.paragraph(max(texts, key=len), "caption")

    def _list(self, element: Element, depth: int, style: str = "") -> None:
        style = attribute(element, "style-name") or style
        goes_on = attribute(element, "continue-numbering") == "true" or attribute(element, "continue-list")
        if not goes_on:
            self._counts.setdefault(style, {}).pop(depth, None)
        for item in element:
            if local(item) == "list-item":
                self._item(item, depth, style, self._label(style, depth) if _has_text(item) else "")
            elif local(item) == "list-header":
                self._item(item, depth, style, "")
        if depth == 0:
            self.builder.end_lists()

    def _item(self, item: Element, depth: int, style: str, label: str) -> None:
        """Read an item of a list; its label stands before its first paragraph."""
        for element in item:
            name = local(element)
            if name == "list":
                self._list(element, depth + 1, style)
            elif name == "h":
                self._block(element, heading=_integer(attribute(element, "outline-level"), 1))
            elif name == "p":
                self._item_paragraph(element, depth, label)
                label = ""

    def _item_paragraph(self, paragraph: Element, depth: int, label: str) -> None:
        text = label + self._line(paragraph)
        before = self.builder.size
        span = self.builder.item(text.replace(_PAGE, ""), depth)
        self._pages(text, before if span is None else span.start)
        if self._notes or self._boxes:
            self._follow()

    def _label(self, style: str, depth: int) -> str:
        """Return the next number of a list at a depth, as "2. "; "" where it has bullets."""
        prefix, form, suffix, start = self._styles.numbers.get((style, depth + 1), ("", "", "", 1))
        if not form:
            return ""
        counts = self._counts.setdefault(style, {})
        counts[depth] = counts[depth] + 1 if depth in counts else start
        return f"{prefix}{numeral(counts[depth], form)}{suffix} "

    def _table(self, table: Element) -> None:
        headers, rows = 0, []
        covers: _Covers = {}
        for number, (row, is_header) in enumerate(_rows(table)):
            cells: list[str] = []
            for cell in row:
                if local(cell) == "covered-table-cell":
                    cells += self._covered(cell, len(cells), covers, number)
                elif local(cell) == "table-cell":
                    cells += self._cell(cell, len(cells), covers, number)
            while cells and not cells[-1]:
                cells.pop()
            times = min(max(_integer(attribute(row, "number-rows-repeated"), 1), 1), _REPEATED if cells else 1)
            headers += times if is_header else 0
            rows += [cells] * times
        width = max(map(len, rows), default=0)
        self.builder.table(([*cells, *[""] * (width - len(cells))] for cells in rows), headers=headers)
        self._follow()

    def _covered(self, cell: Element, column: int, covers: _Covers, row: int) -> Iterator[str]:
        """Yield the text of the merged cell above or before a covered one, as often as the covered one is repeated."""
        for number in range(column, column + _times(cell)):
            end, text = covers.get(number, (0, ""))
            self._spare -= len(text)
            yield text if end > row and self._spare > 0 else ""

    def _cell(self, cell: Element, column: int, covers: _Covers, row: int) -> list[str]:
        """Return a cell's text as often as the cell is repeated; where it is merged, note the columns that it covers."""
        text = one_line(self._flat(cell))
        columns, rows = (_integer(attribute(cell, f"number-{name}-spanned"), 1) for name in ("columns", "rows"))
        if text and (columns > 1 or rows > 1):
            covers |= {column + across: (row + rows, text) for across in range(min(columns, _REPEATED))}
        return [text] * _times(cell)

    def _flat(self, element: Element | None) -> str:
        """Return all paragraphs below an element, a line each."""
        if element is None:
            return ""
        paragraphs = [inner for inner in element.iter() if local(inner) in ("p", "h")]
        outer = [inner for inner in paragraphs if not any(above in paragraphs for above in inner.iterancestors())]
        return "\n".join(filter(str.strip, (self._line(paragraph).replace(_PAGE, "") for paragraph in outer)))

    def _line(self, element: Element) -> str:
        pieces: list[str] = []
        self._inline(element, pieces)
        return "".join(pieces)

    def _inline(self, parent: Element, pieces: list[str]) -> None:
        pieces.append((parent.text or "").replace(_PAGE, ""))
        for element in parent:
            name = local(element)
            if name in _BLANKS:
                pieces.append(_BLANKS[name])
            elif name == "s":
                pieces.append(" " * min(_integer(attribute(element, "c"), 1), _REPEATED))
            elif name == "note":
                self._notes.append(element)
                mark = child(element, "note-citation")
                pieces.append("" if mark is None else f"[{_all_text(mark).strip()}]")
            elif name in _SHAPES:
                self._boxes.append(element)
            elif name not in _UNREAD:
                self._inline(element, pieces)
            pieces.append((element.tail or "").replace(_PAGE, ""))


def _all_text(element: Element) -> str:
    return "".join(element.itertext())


def _times(cell: Element) -> int:
    """Return how often a cell is repeated."""
    return min(max(_integer(attribute(cell, "number-columns-repeated"), 1), 1), _REPEATED)


def _has_text(item: Element) -> bool:
    """Whether a list item has words of its own: one that only holds a deeper list has no number."""
    return any(local(element) in ("p", "h") and _all_text(element).strip() for element in item)


def _rows(table: Element, is_header: bool = False) -> Iterator[tuple[Element, bool]]:
    """Yield the rows of a table, and whether each is a header row."""
    for element in table:
        name = local(element)
        if name == "table-row":
            yield element, is_header
        elif name in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(element, is_header or name == "table-header-rows")


def _kind(style: str) -> str:
    if "preformatted" in style:
        return "code"
    if style.startswith("quot"):
        return "quote"
    return "caption" if style in ("caption", "illustration", "figure") else "paragraph"


def _integer(text: str, default: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else default

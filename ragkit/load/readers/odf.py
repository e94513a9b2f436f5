"""OpenDocument texts and presentations (odt, odp): headings, paragraphs, lists, tables, notes, and a page per slide.

A text's pages are those its program laid out and marked (`text:soft-page-break`); without marks it has none. Changes that
are tracked are left out as deleted, and comments too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragkit.core.errors import EncryptedDocument, LoadError
from ragkit.core.types import Document
from ragkit.load.builder import REPEATED, DocumentBuilder, numeral, one_line, squeezed
from ragkit.load.limits import Options
from ragkit.load.readers.zip_xml import Package, attribute, child, children, descendants, local

_PAGE = "\ue000"  # a page break within a text, until it is written
_A4 = (595.3, 841.9)
_SLIDE = (793.7, 446.5)
_UNITS = {"cm": 72 / 2.54, "mm": 72 / 25.4, "in": 72.0, "pt": 1.0, "px": 0.75}
_NUMBERS = {"1": "decimal", "a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
_ROLES = {"title", "subtitle", "caption", "illustration", "figure", "quotations", "preformatted_20_text"}
_REPEATED = 1000  # times a repeated column or row is written, at most; empty ones are repeated by the million
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
    """The one Document of an .odt or .odp file."""
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
        size = _page_size(package, _SLIDE)
        for number, page in enumerate(children(content, "page"), start=1):
            options.on_page(number)
            reader.builder.page(*size, label=attribute(page, "name") or None)
            reader.slide(page)
    else:
        if any(True for _ in descendants(content, "soft-page-break")):
            reader.size = _page_size(package, _A4)
            reader.builder.page_from(0, *reader.size)
        reader.read(content)
    yield reader.builder.document(title=title or reader.title, meta=meta)


def properties(package: Package) -> dict[str, Any]:
    """Title, author, dates and language of an OpenDocument package. EncryptedDocument where its parts are encrypted."""
    if "META-INF/manifest.xml" in package:
        manifest = package.xml("META-INF/manifest.xml")
        if any(True for _ in descendants(manifest, "encryption-data")):
            raise EncryptedDocument("it is encrypted; save it without a password")
    found: dict[str, Any] = {}
    if "meta.xml" in package:
        for one in package.xml("meta.xml").iter():
            if (name := _META.get(local(one))) and (value := (one.text or "").strip()):
                found.setdefault(name, value)
    return found


def _page_size(package: Package, default: tuple[float, float]) -> tuple[float, float]:
    """The page size of the first master page, in points."""
    if "styles.xml" not in package:
        return default
    root = package.xml("styles.xml")
    master = next(descendants(root, "master-page"), None)
    layout = "" if master is None else attribute(master, "page-layout-name")
    for one in descendants(root, "page-layout"):
        inner = child(one, "page-layout-properties")
        if inner is not None and attribute(one, "name") == layout:
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
    def of(cls, roots: Sequence[Any]) -> _Styles:
        found = cls({}, {})
        for root in roots:
            for one in descendants(root, "style"):
                found.parents.setdefault(attribute(one, "name"), attribute(one, "parent-style-name"))
            for style in descendants(root, "list-style"):
                for level in children(style, "list-level-style-number"):
                    number = _integer(attribute(level, "level"), 1)
                    form = _NUMBERS.get(attribute(level, "num-format"), "")
                    start = _integer(attribute(level, "start-value"), 1)
                    row = (attribute(level, "num-prefix"), form, attribute(level, "num-suffix"), start)
                    found.numbers[attribute(style, "name"), number] = row
        return found

    def role(self, style: str) -> str:
        """The named style that a paragraph's own style comes from, in lower case."""
        for _ in range(12):
            if style.lower() in _ROLES or not self.parents.get(style):
                break
            style = self.parents[style]
        return style.lower()


class _Reader:
    def __init__(self, builder: DocumentBuilder, styles: _Styles) -> None:
        self.builder = builder
        self._styles = styles
        self._counts: dict[str, dict[int, int]] = {}  # by list style: the last number of each level
        self.title = ""
        self.size = _A4
        self._notes: list[Any] = []
        self._boxes: list[Any] = []
        self._spare = REPEATED

    def slide(self, page: Any) -> None:
        frames = list(page)
        titles = [one for one in frames if attribute(one, "class") == "title"]
        for one in titles:
            self.builder.heading(self._flat(one), 1)
        for one in frames:
            if one not in titles and local(one) not in ("notes", "forms"):
                self._frame(one, listed=attribute(one, "class") == "outline")
        notes = child(page, "notes")
        for one in () if notes is None else notes:
            if attribute(one, "class") == "notes":
                self.builder.paragraph(self._flat(one), "footnote")

    def read(self, parent: Any, depth: int = 0) -> None:
        for one in parent:
            name = local(one)
            if name == "h":
                self._block(one, heading=_integer(attribute(one, "outline-level"), 1))
            elif name == "p":
                self._block(one)
            elif name == "list":
                self._list(one, depth)
            elif name == "table":
                self._table(one)
            elif name == "soft-page-break":
                self.builder.page_from(self.builder.size, *self.size)
            elif name in ("section", "index-body", "table-of-content", "illustration-index", "bibliography", "text-box", "g"):
                self.read(one, depth)
            elif name in ("frame", "custom-shape", "rect"):
                self._frame(one)

    def _block(self, element: Any, *, heading: int = 0, kind: str = "paragraph") -> None:
        text = self._line(element)
        plain = text.replace(_PAGE, "")
        style = self._styles.role(attribute(element, "style-name"))
        if style == "title":
            self.title = self.title or one_line(plain)
            heading = heading or 1
        before = self.builder.size
        span = self.builder.heading(plain, heading) if heading else self.builder.paragraph(plain, _kind(style, kind))
        self._pages(text, before if span is None else span.start)
        self._follow()

    def _pages(self, text: str, start: int) -> None:
        parts = text.split(_PAGE)
        for number in range(1, len(parts)):
            self.builder.page_from(start + len(squeezed("".join(parts[:number]))), *self.size)

    def _follow(self) -> None:
        """What belongs to the paragraph just written: its notes, and the frames anchored in it."""
        notes, self._notes = self._notes, []
        for note in notes:
            mark, body = child(note, "note-citation"), child(note, "note-body")
            sign = "" if mark is None else "".join(mark.itertext()).strip()
            self.builder.paragraph(f"[{sign}] {self._flat(body)}", "footnote")
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            self._frame(box)

    def _frame(self, frame: Any, *, listed: bool = False) -> None:
        texts = []
        for one in frame:
            name = local(one)
            if name in ("text-box", "g"):
                self.read(one)
            elif name == "p":
                self._block(one)
            elif name == "list":
                self._list(one, 0)
            elif name == "table":
                self._table(one)
            elif name in ("frame", "custom-shape", "rect"):
                self._frame(one)
            elif name in ("title", "desc"):
                texts.append("".join(one.itertext()))
        if texts:
            self.builder.paragraph(max(texts, key=len), "caption")

    def _list(self, element: Any, depth: int, style: str = "") -> None:
        style = attribute(element, "style-name") or style
        goes_on = attribute(element, "continue-numbering") == "true" or attribute(element, "continue-list")
        if not goes_on:
            self._counts.setdefault(style, {}).pop(depth, None)
        for item in element:
            if local(item) not in ("list-item", "list-header"):
                continue
            label = self._label(style, depth) if local(item) == "list-item" and _has_text(item) else ""
            for one in item:
                name = local(one)
                if name == "list":
                    self._list(one, depth + 1, style)
                elif name == "h":
                    self._block(one, heading=_integer(attribute(one, "outline-level"), 1))
                elif name == "p":
                    self._item(one, depth, label)
                    label = ""
        if depth == 0:
            self.builder.end_lists()

    def _item(self, paragraph: Any, depth: int, label: str) -> None:
        text = label + self._line(paragraph)
        before = self.builder.size
        span = self.builder.item(text.replace(_PAGE, ""), depth)
        self._pages(text, before if span is None else span.start)
        if self._notes or self._boxes:
            self._follow()

    def _label(self, style: str, depth: int) -> str:
        """The next number of a list at a depth, as "2. "; "" where it has bullets."""
        prefix, form, suffix, start = self._styles.numbers.get((style, depth + 1), ("", "", "", 1))
        if not form:
            return ""
        counts = self._counts.setdefault(style, {})
        counts[depth] = counts[depth] + 1 if depth in counts else start
        return f"{prefix}{numeral(counts[depth], form)}{suffix} "

    def _table(self, table: Any) -> None:
        headers, rows = 0, []
        covers: dict[int, tuple[int, str]] = {}  # by column: the row that a merged cell ends before, and its text
        for number, (row, is_header) in enumerate(_rows(table)):
            cells: list[str] = []
            for cell in row:
                self._cell(cell, cells, covers, number)
            while cells and not cells[-1]:
                cells.pop()
            times = min(max(_integer(attribute(row, "number-rows-repeated"), 1), 1), _REPEATED if cells else 1)
            headers += times if is_header else 0
            rows += [cells] * times
        width = max(map(len, rows), default=0)
        self.builder.table(([*cells, *[""] * (width - len(cells))] for cells in rows), headers=headers)
        self._follow()

    def _cell(self, cell: Any, cells: list[str], covers: dict[int, tuple[int, str]], row: int) -> None:
        """Writes a cell as often as it is repeated; one that is covered has the text of the merged cell above or before it."""
        times = min(max(_integer(attribute(cell, "number-columns-repeated"), 1), 1), _REPEATED)
        if local(cell) == "covered-table-cell":
            for _ in range(times):
                end, text = covers.get(len(cells), (0, ""))
                self._spare -= len(text)
                cells.append(text if end > row and self._spare > 0 else "")
        elif local(cell) == "table-cell":
            text = one_line(self._flat(cell))
            wide, high = (_integer(attribute(cell, f"number-{name}-spanned"), 1) for name in ("columns", "rows"))
            if text and (wide > 1 or high > 1):
                covers |= {len(cells) + across: (row + high, text) for across in range(min(wide, _REPEATED))}
            cells += [text] * times

    def _flat(self, element: Any) -> str:
        """All paragraphs below an element, a line each."""
        if element is None:
            return ""
        found = [one for one in element.iter() if local(one) in ("p", "h")]
        inner = [one for one in found if not any(local(up) in ("p", "h") for up in one.iterancestors() if up in found)]
        return "\n".join(filter(str.strip, (self._line(one).replace(_PAGE, "") for one in inner)))

    def _line(self, element: Any) -> str:
        pieces: list[str] = []
        self._inline(element, pieces)
        return "".join(pieces)

    def _inline(self, element: Any, pieces: list[str]) -> None:
        pieces.append((element.text or "").replace(_PAGE, ""))
        for one in element:
            name = local(one)
            if name == "s":
                pieces.append(" " * min(_integer(attribute(one, "c"), 1), _REPEATED))
            elif name == "tab":
                pieces.append("\t")
            elif name == "line-break":
                pieces.append("\n")
            elif name == "soft-page-break":
                pieces.append(_PAGE)
            elif name == "note":
                self._notes.append(one)
                mark = child(one, "note-citation")
                pieces.append("" if mark is None else f"[{''.join(mark.itertext()).strip()}]")
            elif name in ("frame", "custom-shape", "rect"):
                self._boxes.append(one)
            elif name not in ("annotation", "annotation-end", "tracked-changes", "change", "bookmark"):
                self._inline(one, pieces)
            pieces.append((one.tail or "").replace(_PAGE, ""))


def _has_text(item: Any) -> bool:
    """Whether a list item has words of its own: one that only holds a deeper list has no number."""
    return any(local(one) in ("p", "h") and "".join(one.itertext()).strip() for one in item)


def _rows(table: Any, is_header: bool = False) -> Iterator[tuple[Any, bool]]:
    for one in table:
        name = local(one)
        if name == "table-row":
            yield one, is_header
        elif name in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(one, is_header or name == "table-header-rows")


def _kind(style: str, kind: str) -> str:
    if "preformatted" in style:
        return "code"
    if style.startswith("quot"):
        return "quote"
    return "caption" if style in ("caption", "illustration", "figure") else kind


def _integer(text: str, default: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else default

"""Word documents (Office Open XML): paragraphs, headings with their numbers, lists, tables, notes, text boxes, formulas.

What a reader of the final text sees: tracked insertions are in, deletions, comments and hidden runs are not. A note stands after
the paragraph that refers to it. A merged cell's text stands in each of its columns and rows, so that a row says all it says.
Pages are those that Word saw when it last laid the document out and wrote down where they begin
(`w:lastRenderedPageBreak`); a file without such marks has no pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ragkit.core.types import Document, Json, Span
from ragkit.load.builder import DocumentBuilder, numeral, one_line, squeezed
from ragkit.load.limits import Options
from ragkit.load.readers.omml import formula
from ragkit.load.readers.zip_xml import (
    Element,
    Package,
    attribute,
    child,
    children,
    core_properties,
    descendants,
    has_descendant,
    local,
    main_part,
)

_PAGE = "\ue000"  # stands for a page break until the text is written; of private use, and dropped from the text itself
_HEADING = re.compile(r"heading (\d)")
_SIGNS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "‑", "lastRenderedPageBreak": _PAGE}
_LEFT_OUT = {"del", "moveFrom", "instrText", "delText", "rPr", "pPr", "Fallback", "sectPr", "rt"}
_TWIPS = 20  # in a point
_COLUMNS = 64  # that a cell covers, or that a row leaves out before its first cell, at most
_STYLES = 12  # based on one another, at most
_LETTER = (612.0, 792.0)


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a .docx file."""
    package = Package(path.read_bytes(), options)
    main = main_part(package, "word/document.xml", "Word document")
    body = child(package.xml(main), "body")
    meta: Json = core_properties(package)
    title = meta.pop("title", "")
    reader = _Reader(package, main, DocumentBuilder(options.limits))
    if body is not None:
        reader.read(body)
    yield reader.builder.document(title=title or reader.title, meta=meta)


@dataclass(frozen=True, slots=True)
class _Style:
    name: str
    based_on: str
    outline: int | None  # from 0; 9 is body text
    numbering: tuple[str, int] | None  # numId, level


@dataclass(slots=True, eq=False)
class _Numbering:
    """Makes the labels of numbered paragraphs, with counters per abstract list, as Word counts them."""

    lists: dict[str, str]  # numId to abstractNumId
    starts: dict[tuple[str, int], int]  # numId, level to an overriding start
    levels: dict[tuple[str, int], tuple[int, str, str]]  # abstractNumId, level to start, format, text
    counts: dict[str, dict[int, int]] = field(default_factory=dict)
    restarted: set[tuple[str, int]] = field(default_factory=set)

    def label(self, list_id: str, level: int) -> str | None:
        """Return the next label of a list at a level: "" for a bullet, None where there is no such list."""
        abstract = self.lists.get(list_id)
        if abstract is None or (abstract, level) not in self.levels:
            return None
        start, form, text = self.levels[abstract, level]
        counts = self.counts.setdefault(abstract, {})
        if (list_id, level) in self.starts and (list_id, level) not in self.restarted:
            self.restarted.add((list_id, level))
            counts[level] = self.starts[list_id, level]
        else:
            counts[level] = counts[level] + 1 if level in counts else start
        for deeper in [counted for counted in counts if counted > level]:
            del counts[deeper]
        if form in ("bullet", "none"):
            return ""

        def count(match: re.Match[str]) -> str:
            named = int(match[1]) - 1
            first, kind, _ = self.levels.get((abstract, named), (1, "decimal", ""))
            return numeral(counts.setdefault(named, first), kind)

        return re.sub(r"%([1-9])", count, text)


class _Reader:
    """Reads the body of one document into a builder."""

    def __init__(self, package: Package, main: str, builder: DocumentBuilder) -> None:
        self.builder = builder
        self.title = ""
        self._package = package
        self._main = main
        self._styles = self._read_styles()
        self._numbering = self._read_numbering()
        self._notes = {kind: self._read_notes(kind) for kind in ("footnote", "endnote")}
        self._noted: list[tuple[str, str]] = []  # kind and id of the notes referred to since the last block
        self._boxes: list[Element] = []  # text boxes met in a paragraph, which follow it
        self._size = _LETTER

    def read(self, body: Element) -> None:
        if has_descendant(body, "lastRenderedPageBreak"):
            self._size = _page_size(body)
            self.builder.page_from(0, *self._size)
        for text in self._margins("header"):
            self.builder.paragraph(text, "header")
        self._read_blocks(body)
        for text in self._margins("footer"):
            self.builder.paragraph(text, "footer")

    def _part(self, kind: str) -> Element:
        """Return the root of the part of a kind, or () where the package has none."""
        parts = self._package.related(self._main, kind)
        return self._package.xml(parts[0]) if parts else ()

    def _read_styles(self) -> dict[str, _Style]:
        styles = {}
        for style in children(self._part("styles"), "style"):
            outline = child(style, "pPr", "outlineLvl")
            styles[attribute(style, "styleId")] = _Style(
                name=_value(child(style, "name")).lower(),
                based_on=_value(child(style, "basedOn")),
                outline=None if outline is None else _integer(_value(outline), 9),
                numbering=_numbering_of(child(style, "pPr")),
            )
        return styles

    def _read_numbering(self) -> _Numbering:
        root = self._part("numbering")
        numbering = _Numbering({}, {}, {})
        for abstract in children(root, "abstractNum"):
            for level in children(abstract, "lvl"):
                numbering.levels[attribute(abstract, "abstractNumId"), _integer(attribute(level, "ilvl"), 0)] = (
                    _integer(_value(child(level, "start")), 1),
                    _value(child(level, "numFmt")) or "decimal",
                    _value(child(level, "lvlText")),
                )
        for listed in children(root, "num"):
            list_id = attribute(listed, "numId")
            numbering.lists[list_id] = _value(child(listed, "abstractNumId"))
            for override in children(listed, "lvlOverride"):
                if (start := child(override, "startOverride")) is not None:
                    numbering.starts[list_id, _integer(attribute(override, "ilvl"), 0)] = _integer(_value(start), 1)
        return numbering

    def _read_notes(self, kind: str) -> dict[str, Element]:
        return {attribute(note, "id"): note for note in children(self._part(kind + "s"), kind) if not attribute(note, "type")}

    def _margins(self, kind: str) -> list[str]:
        """Return the distinct texts of the headers, or of the footers."""
        texts = []
        for part in self._package.related(self._main, kind):
            root = self._package.xml(part)
            lines = (self._paragraph_text(element) for element in descendants(root, "p"))
            texts.append("\n".join(line.replace(_PAGE, "") for line in lines if line.strip()))
        self._boxes.clear()
        return [text for text in dict.fromkeys(texts) if re.search(r"[^\W\d_]", text)]

    def _read_blocks(self, parent: Element) -> None:
        for element in parent:
            name = local(element)
            if name == "p":
                self._paragraph(element)
            elif name == "tbl":
                self._table(element)
            elif name in ("sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag", "AlternateContent", "Choice"):
                self._read_blocks(element)

    def _paragraph(self, element: Element) -> None:
        properties = child(element, "pPr")
        style_id = _value(child(properties, "pStyle"))
        level = self._heading_level(properties, style_id)
        numbered = self._numbered(properties, style_id)
        text = self._paragraph_text(element)
        plain = text.replace(_PAGE, "")
        label = self._numbering.label(*numbered) if numbered and plain.strip() else None
        text = self._pages_before(text)
        if label:
            text, plain = f"{label} {text}", f"{label} {plain}"
        if level < 0:
            self.title = self.title or one_line(plain)
        if level:
            span = self.builder.heading(plain, max(level, 1))
        elif label is not None and numbered:
            span = self.builder.item(plain, numbered[1])
        else:
            span = self.builder.paragraph(plain, self._kind(style_id))
        if span is not None:
            self._pages_within(text, span)
        self._follow()

    def _begin_pages(self, count: int) -> None:
        """Begin pages with what is written next; all but the last of several are empty."""
        for _ in range(count):
            self.builder.page_from(self.builder.size, *self._size)

    def _pages_before(self, text: str) -> str:
        """Begin the pages whose breaks stand before a paragraph's first word; return the text from there on."""
        lead = re.match(rf"[\s{_PAGE}]*", text)
        assert lead is not None
        self._begin_pages(lead[0].count(_PAGE))
        return text[lead.end() :]

    def _pages_within(self, text: str, span: Span) -> None:
        """Begin the pages whose breaks stand within a paragraph, which was written at `span` without them."""
        for match in re.finditer(_PAGE, text):
            before = squeezed(text[: match.start()].replace(_PAGE, ""))
            self.builder.page_from(span.start + len(before), *self._size)

    def _follow(self) -> None:
        """Write what belongs to the paragraph just written: its notes, and the text boxes anchored in it."""
        noted, self._noted = self._noted, []
        for kind, number in noted:
            if (note := self._notes[kind].get(number)) is not None:
                lines = [self._paragraph_text(element).replace(_PAGE, "") for element in descendants(note, "p")]
                self.builder.paragraph(f"[{number}] " + "\n".join(filter(str.strip, lines)).strip(), "footnote")
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            self._read_blocks(box)

    def _heading_level(self, properties: Element | None, style_id: str) -> int:
        """Return 1-9 for headings, -1 for the document's title, 0 for all others."""
        outline = child(properties, "outlineLvl")
        if outline is not None and _integer(_value(outline), 9) < 9:
            return _integer(_value(outline), 0) + 1
        for style in self._chain(style_id):
            if style.name == "title":
                return -1
            if match := _HEADING.fullmatch(style.name):
                return int(match[1])
            if style.outline is not None:
                return style.outline + 1 if style.outline < 9 else 0
        return 0

    def _numbered(self, properties: Element | None, style_id: str) -> tuple[str, int] | None:
        """Return the list and the level by which a paragraph is numbered, its own or its style's; None where it is not."""
        own = _numbering_of(properties)
        if own is not None:
            return None if own[0] == "0" else own
        return next((style.numbering for style in self._chain(style_id) if style.numbering), None)

    def _chain(self, style_id: str) -> Iterator[_Style]:
        """Yield a style and those it is based on, the nearest first."""
        for _ in range(_STYLES):
            style = self._styles.get(style_id)
            if style is None:
                return
            yield style
            style_id = style.based_on

    def _kind(self, style_id: str) -> str:
        for style in self._chain(style_id):
            if style.name == "caption":
                return "caption"
            if style.name in ("quote", "intense quote", "block text", "quotations"):
                return "quote"
            if style.name in ("html preformatted", "preformatted text", "plain text", "macro text") or "code" in style.name:
                return "code"
        return "paragraph"

    def _paragraph_text(self, element: Element) -> str:
        pieces: list[str] = []
        self._inline(element, pieces)
        return "".join(pieces)

    def _inline(self, parent: Element, pieces: list[str]) -> None:
        for element in parent:
            name = local(element)
            if name in _SIGNS:
                pieces.append(_SIGNS[name])
            elif name in _TEXTS:
                pieces.append(_TEXTS[name](element))
            elif name in ("footnoteReference", "endnoteReference"):
                number = attribute(element, "id")
                self._noted.append((name.removesuffix("Reference"), number))
                pieces.append(f"[{number}]")
            elif name == "txbxContent":
                self._boxes.append(element)
            elif name == "AlternateContent":  # the same content twice, for new and for old readers
                self._inline(element[:1], pieces)
            elif name not in _LEFT_OUT and not _is_hidden(element):
                self._inline(element, pieces)

    def _table(self, table: Element) -> None:
        rows = _rows(table, "tr")
        if len(rows) == 1 and len(cells := _rows(rows[0], "tc")) == 1:  # a frame, not a table
            self._read_blocks(cells[0])
            return
        look = child(table, "tblPr", "tblLook")
        first = look is not None and (attribute(look, "firstRow") == "1" or _integer(_value(look), 0, 16) & 0x20)
        headers = sum(1 for row in rows if child(row, "trPr", "tblHeader") is not None)
        self.builder.table(self._table_rows(rows), headers=headers or int(bool(first) and len(rows) > 1))
        self._follow()

    def _table_rows(self, rows: list[Element]) -> Iterator[list[str]]:
        """Yield the cells of each row. Page breaks within a row begin pages before it where it opens with one, else after it."""
        above: list[str] = []
        for row in rows:
            cells = self._row(row, above)
            breaks = sum(text.count(_PAGE) for text in dict.fromkeys(cells))
            opens = "".join(cells).lstrip().startswith(_PAGE)
            self._begin_pages(breaks if opens else 0)
            above = [text.replace(_PAGE, "") for text in cells]
            yield above
            self._begin_pages(0 if opens else breaks)

    def _row(self, row: Element, above: list[str]) -> list[str]:
        """Return the texts of a row's columns; a cell that is merged with the one above has that one's text."""
        before = child(row, "trPr", "gridBefore")
        cells = [""] * min(_integer(_value(before), 0), _COLUMNS)
        for cell in _rows(row, "tc"):
            properties = child(cell, "tcPr")
            width = min(max(_integer(_value(child(properties, "gridSpan")), 1), 1), _COLUMNS)
            merged = child(properties, "vMerge")
            if merged is not None and _value(merged) != "restart":
                text = above[len(cells)] if len(cells) < len(above) else ""
            else:
                text = self._cell(cell)
            cells += [text] * width
        return cells

    def _cell(self, cell: Element) -> str:
        """Return a cell's text on one line, what is nested in it included."""
        pieces = []
        for element in cell.iter():
            if local(element) == "p" and not _within(element, cell, "txbxContent"):
                text = self._paragraph_text(element)
                numbered = self._numbered(child(element, "pPr"), _value(child(element, "pPr", "pStyle")))
                label = self._numbering.label(*numbered) if numbered and text.strip() else None
                pieces.append(f"{label} {text}" if label else text)
        return " ".join(pieces)


def _is_hidden(run: Element) -> bool:
    hidden = child(run, "rPr", "vanish")
    return hidden is not None and _value(hidden) not in ("0", "false", "off")


def _rows(parent: Element, name: str) -> list[Element]:
    """Return the rows of a table, or the cells of a row, those in content controls included."""
    rows = []
    for element in parent:
        if local(element) == name:
            rows.append(element)
        elif local(element) in ("sdt", "sdtContent", "ins", "customXml"):
            rows += _rows(element, name)
    return rows


def _within(element: Element, ancestor: Element, name: str) -> bool:
    """Whether an element of a name, or one for old readers, stands between an element and its ancestor."""
    while (element := element.getparent()) is not None and element is not ancestor:
        if local(element) in (name, "Fallback"):
            return True
    return False


def _value(element: Element | None) -> str:
    return "" if element is None else attribute(element, "val")


def _integer(text: str, default: int, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        return default


def _numbering_of(properties: Element | None) -> tuple[str, int] | None:
    numbering = child(properties, "numPr")
    if numbering is None or child(numbering, "numId") is None:
        return None
    return _value(child(numbering, "numId")), _integer(_value(child(numbering, "ilvl")), 0)


def _text(element: Element) -> str:
    return (element.text or "").replace(_PAGE, "")


def _symbol(element: Element) -> str:
    """Return a character of a symbol font; "" where it is in the private use area, where it has a meaning in that font only."""
    code = _integer(attribute(element, "char"), 0, 16)
    return chr(code) if 0x20 <= code < 0xD800 else ""


def _alternative(element: Element) -> str:
    """Return the alternative text of a picture, as its author wrote it."""
    text = attribute(element, "descr") or attribute(element, "title")
    text = text.replace("Description automatically generated", "").strip()
    return f" {text} " if text else ""


def _page_size(body: Element) -> tuple[float, float]:
    size = next(descendants(body, "pgSz"), None)
    width, height = (_integer(attribute(size, name), 0) / _TWIPS if size is not None else 0 for name in ("w", "h"))
    return (width, height) if width > 0 and height > 0 else _LETTER


_TEXTS = {"t": _text, "sym": _symbol, "oMath": formula, "oMathPara": formula, "docPr": _alternative}

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
from typing import Any

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.load.builder import DocumentBuilder, numeral, one_line, squeezed
from ragkit.load.limits import Options
from ragkit.load.readers.omml import formula
from ragkit.load.readers.zip_xml import Package, attribute, child, children, core_properties, descendants, local

_PAGE = "\ue000"  # stands for a page break until the text is written; of private use, and dropped from the text itself
_HEADING = re.compile(r"heading (\d)")
_LEFT_OUT = {"del", "moveFrom", "instrText", "delText", "rPr", "pPr", "Fallback", "sectPr", "rt"}
_TWIPS = 20  # in a point
_LETTER = (612.0, 792.0)


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of a .docx file."""
    package = Package(path.read_bytes(), options)
    main = package.related("", "officeDocument") or [name for name in ("word/document.xml",) if name in package]
    if not main:
        raise LoadError("the package holds no Word document")
    root = package.xml(main[0])
    body = child(root, "body")
    meta: dict[str, Any] = core_properties(package)
    title = meta.pop("title", "")
    reader = _Reader(package, main[0], DocumentBuilder(options.limits))
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
    """The labels of numbered paragraphs: counters per abstract list, as Word counts them."""

    lists: dict[str, str]  # numId to abstractNumId
    starts: dict[tuple[str, int], int]  # numId, level to an overriding start
    levels: dict[tuple[str, int], tuple[int, str, str]]  # abstractNumId, level to start, format, text
    counts: dict[str, dict[int, int]] = field(default_factory=dict)
    restarted: set[tuple[str, int]] = field(default_factory=set)

    def label(self, list_id: str, level: int) -> str | None:
        """The next label of a list at a level: "" for a bullet, None where there is no such list."""
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
        for deeper in [one for one in counts if one > level]:
            del counts[deeper]
        if form in ("bullet", "none"):
            return ""

        def count(match: re.Match[str]) -> str:
            wanted = int(match[1]) - 1
            first, kind, _ = self.levels.get((abstract, wanted), (1, "decimal", ""))
            return numeral(counts.setdefault(wanted, first), kind)

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
        self._boxes: list[Any] = []  # text boxes met in a paragraph, which follow it
        self._size = _LETTER

    def read(self, body: Any) -> None:
        if any(True for _ in descendants(body, "lastRenderedPageBreak")):
            self._size = _page_size(body)
            self.builder.page_from(0, *self._size)
        for text in self._margins("header"):
            self.builder.paragraph(text, "header")
        self._read_blocks(body)
        for text in self._margins("footer"):
            self.builder.paragraph(text, "footer")

    def _part(self, kind: str) -> Any:
        parts = self._package.related(self._main, kind)
        return self._package.xml(parts[0]) if parts else ()

    def _read_styles(self) -> dict[str, _Style]:
        styles = {}
        for one in children(self._part("styles"), "style"):
            outline = child(one, "pPr", "outlineLvl")
            styles[attribute(one, "styleId")] = _Style(
                name=_value(child(one, "name")).lower(),
                based_on=_value(child(one, "basedOn")),
                outline=None if outline is None else _integer(_value(outline), 9),
                numbering=_numbering_of(child(one, "pPr")),
            )
        return styles

    def _read_numbering(self) -> _Numbering:
        root = self._part("numbering")
        found = _Numbering({}, {}, {})
        for abstract in children(root, "abstractNum"):
            for level in children(abstract, "lvl"):
                found.levels[attribute(abstract, "abstractNumId"), _integer(attribute(level, "ilvl"), 0)] = (
                    _integer(_value(child(level, "start")), 1),
                    _value(child(level, "numFmt")) or "decimal",
                    _value(child(level, "lvlText")),
                )
        for one in children(root, "num"):
            list_id = attribute(one, "numId")
            found.lists[list_id] = _value(child(one, "abstractNumId"))
            for override in children(one, "lvlOverride"):
                if (start := child(override, "startOverride")) is not None:
                    found.starts[list_id, _integer(attribute(override, "ilvl"), 0)] = _integer(_value(start), 1)
        return found

    def _read_notes(self, kind: str) -> dict[str, Any]:
        return {attribute(one, "id"): one for one in children(self._part(kind + "s"), kind) if not attribute(one, "type")}

    def _margins(self, kind: str) -> list[str]:
        """The distinct texts of the headers, or of the footers."""
        texts = []
        for part in self._package.related(self._main, kind):
            root = self._package.xml(part)
            lines = (self._paragraph_text(one) for one in descendants(root, "p"))
            texts.append("\n".join(line.replace(_PAGE, "") for line in lines if line.strip()))
        self._boxes.clear()
        return [text for text in dict.fromkeys(texts) if re.search(r"[^\W\d_]", text)]

    def _read_blocks(self, parent: Any) -> None:
        for one in parent:
            name = local(one)
            if name == "p":
                self._paragraph(one)
            elif name == "tbl":
                self._table(one)
            elif name in ("sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag", "AlternateContent", "Choice"):
                self._read_blocks(one)

    def _paragraph(self, element: Any) -> None:
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
        if level:
            if level < 0:
                self.title = self.title or one_line(plain)
            span = self.builder.heading(plain, max(level, 1))
        elif label is not None and numbered:
            span = self.builder.item(plain, numbered[1])
        else:
            span = self.builder.paragraph(plain, self._kind(style_id))
        if span is not None:
            for match in re.finditer(_PAGE, text):
                before = squeezed(text[: match.start()].replace(_PAGE, ""))
                self.builder.page_from(span.start + len(before), *self._size)
        self._follow()

    def _pages_before(self, text: str) -> str:
        """Begins the pages whose breaks stand before a paragraph's first word; returns the text from there on."""
        lead = re.match(rf"[\s{_PAGE}]*", text)
        assert lead is not None
        for _ in range(lead[0].count(_PAGE)):
            self.builder.page_from(self.builder.size, *self._size)
        return text[lead.end() :]

    def _follow(self) -> None:
        """What belongs to the paragraph just written: its notes, and the text boxes anchored in it."""
        noted, self._noted = self._noted, []
        for kind, number in noted:
            if (note := self._notes[kind].get(number)) is not None:
                lines = [self._paragraph_text(one).replace(_PAGE, "") for one in descendants(note, "p")]
                self.builder.paragraph(f"[{number}] " + "\n".join(filter(str.strip, lines)).strip(), "footnote")
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            self._read_blocks(box)

    def _heading_level(self, properties: Any, style_id: str) -> int:
        """1-9 for headings, -1 for the document's title, 0 for all others."""
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

    def _numbered(self, properties: Any, style_id: str) -> tuple[str, int] | None:
        own = _numbering_of(properties)
        if own is not None:
            return None if own[0] == "0" else own
        return next((style.numbering for style in self._chain(style_id) if style.numbering), None)

    def _chain(self, style_id: str) -> Iterator[_Style]:
        """A style and those it is based on."""
        for _ in range(12):
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

    def _paragraph_text(self, element: Any) -> str:
        pieces: list[str] = []
        self._inline(element, pieces)
        return "".join(pieces)

    def _inline(self, element: Any, pieces: list[str]) -> None:
        for one in element:
            name = local(one)
            if name == "t":
                pieces.append((one.text or "").replace(_PAGE, ""))
            elif name in ("tab", "ptab"):
                pieces.append("\t")
            elif name in ("br", "cr"):
                pieces.append("\n")
            elif name == "noBreakHyphen":
                pieces.append("‑")
            elif name == "lastRenderedPageBreak":
                pieces.append(_PAGE)
            elif name == "sym":
                pieces.append(_symbol(one))
            elif name in ("footnoteReference", "endnoteReference"):
                kind = name.removesuffix("Reference")
                self._noted.append((kind, attribute(one, "id")))
                pieces.append(f"[{attribute(one, 'id')}]")
            elif name in ("oMath", "oMathPara"):
                pieces.append(formula(one))
            elif name == "docPr":
                pieces.append(_alternative(one))
            elif name == "txbxContent":
                self._boxes.append(one)
            elif name == "AlternateContent":  # the same thing told twice, for new and for old readers
                self._inline(one[:1], pieces)
            elif name not in _LEFT_OUT and not _is_hidden(one):
                self._inline(one, pieces)

    def _table(self, table: Any) -> None:
        rows = _rows(table, "tr")
        if len(rows) == 1 and len(cells := _rows(rows[0], "tc")) == 1:  # a frame, not a table
            self._read_blocks(cells[0])
            return
        look = child(table, "tblPr", "tblLook")
        first = look is not None and (attribute(look, "firstRow") == "1" or _integer(_value(look), 0, 16) & 0x20)
        headers = sum(1 for row in rows if child(row, "trPr", "tblHeader") is not None)
        self.builder.table(self._table_rows(rows), headers=headers or int(bool(first) and len(rows) > 1))
        self._follow()

    def _table_rows(self, rows: list[Any]) -> Iterator[list[str]]:
        above: list[str] = []
        for row in rows:
            cells: list[str] = []
            before = child(row, "trPr", "gridBefore")
            cells += [""] * min(_integer(_value(before), 0), 64) if before is not None else []
            for cell in _rows(row, "tc"):
                properties = child(cell, "tcPr")
                width = min(max(_integer(_value(child(properties, "gridSpan")), 1), 1), 64)
                merged = child(properties, "vMerge")
                if merged is not None and _value(merged) != "restart":
                    text = above[len(cells)] if len(cells) < len(above) else ""
                else:
                    text = self._cell(cell)
                cells += [text] * width
            breaks = sum(text.count(_PAGE) for text in dict.fromkeys(cells))
            opens = breaks and "".join(cells).lstrip().startswith(_PAGE)
            for _ in range(breaks if opens else 0):
                self.builder.page_from(self.builder.size, *self._size)
            cells = [text.replace(_PAGE, "") for text in cells]
            yield cells
            for _ in range(0 if opens else breaks):
                self.builder.page_from(self.builder.size, *self._size)
            above = cells

    def _cell(self, cell: Any) -> str:
        """A cell's text on one line, what is nested in it included."""
        pieces = []
        for one in cell.iter():
            if local(one) == "p" and not _within(one, cell, "txbxContent"):
                text = self._paragraph_text(one)
                numbered = self._numbered(child(one, "pPr"), _value(child(one, "pPr", "pStyle")))
                label = self._numbering.label(*numbered) if numbered and text.strip() else None
                pieces.append(f"{label} {text}" if label else text)
        return " ".join(pieces)


def _is_hidden(run: Any) -> bool:
    hidden = child(run, "rPr", "vanish")
    return hidden is not None and _value(hidden) not in ("0", "false", "off")


def _rows(parent: Any, name: str) -> list[Any]:
    """The rows of a table, or the cells of a row, those in content controls included."""
    found = []
    for one in parent:
        if local(one) == name:
            found.append(one)
        elif local(one) in ("sdt", "sdtContent", "ins", "customXml"):
            found += _rows(one, name)
    return found


def _within(element: Any, ancestor: Any, name: str) -> bool:
    while (element := element.getparent()) is not None and element is not ancestor:
        if local(element) in (name, "Fallback"):
            return True
    return False


def _value(element: Any) -> str:
    return "" if element is None else attribute(element, "val")


def _integer(text: str, default: int, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        return default


def _numbering_of(properties: Any) -> tuple[str, int] | None:
    numbering = child(properties, "numPr")
    if numbering is None or child(numbering, "numId") is None:
        return None
    return _value(child(numbering, "numId")), _integer(_value(child(numbering, "ilvl")), 0)


def _symbol(element: Any) -> str:
    """A character of a symbol font; those fonts sit in the private use area and say nothing outside of it."""
    code = _integer(attribute(element, "char"), 0, 16)
    return chr(code) if 0x20 <= code < 0xD800 else ""


def _alternative(element: Any) -> str:
    """The alternative text of a picture, as its author wrote it."""
    text = attribute(element, "descr") or attribute(element, "title")
    text = text.replace("Description automatically generated", "").strip()
    return f" {text} " if text else ""


def _page_size(body: Any) -> tuple[float, float]:
    size = next(descendants(body, "pgSz"), None)
    width, height = (_integer(attribute(size, name), 0) / _TWIPS if size is not None else 0 for name in ("w", "h"))
    return (width, height) if width > 0 and height > 0 else _LETTER

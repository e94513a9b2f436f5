"""Presentations (Office Open XML): a page per slide, its title as a heading, then its shapes from top to bottom.

Text, lists, tables, the numbers behind charts, the words of diagrams, alternative texts of pictures, and the speaker's
notes, which stand last, as a footnote. Slides count as shown in the editor, hidden ones included.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ragkit.core.types import Document, Json
from ragkit.load.builder import DocumentBuilder, one_line, squeezed
from ragkit.load.limits import Options
from ragkit.load.readers.zip_xml import (
    Element,
    Package,
    attribute,
    child,
    children,
    core_properties,
    descendants,
    local,
    main_part,
)

_EMU = 12700  # in a point
_SIZE = (720.0, 540.0)
_UNSAID = {"sldNum", "dt", "hdr", "sldImg"}  # placeholders whose text does not belong to what the slide says

_Key = tuple[str, str]  # what a placeholder of a slide and that of its layout have in common: "idx" or "type", and its value
_Place = tuple[int, int]  # distances from the top and from the left, in EMU


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a .pptx file."""
    package = Package(path.read_bytes(), options)
    main = main_part(package, "ppt/presentation.xml", "presentation")
    root = package.xml(main)
    meta: Json = core_properties(package)
    title = meta.pop("title", "")
    builder = DocumentBuilder(options.limits)
    relations = package.relations(main)
    size = _size(child(root, "sldSz"))
    for number, slide in enumerate(children(child(root, "sldIdLst"), "sldId"), start=1):
        options.on_page(number)
        builder.page(*size)
        part = relations.get(_relation(slide), ("", ""))[1]
        if part in package:
            _Slide(package, part, builder).read()
    yield builder.document(title="" if title == "PowerPoint Presentation" else title, meta=meta)


def _relation(element: Element, name: str = "id") -> str:
    """Return the value of r:id; an attribute "id" without a namespace is something else."""
    return next((str(value) for key, value in element.attrib.items() if key.endswith(f"}}{name}")), "")


def _size(element: Element | None) -> tuple[float, float]:
    try:
        width, height = (int(attribute(element, name)) / _EMU for name in ("cx", "cy"))
    except (ValueError, AttributeError):
        return _SIZE
    return (width, height) if width > 0 and height > 0 else _SIZE


class _Slide:
    """Reads one slide into a builder."""

    def __init__(self, package: Package, part: str, builder: DocumentBuilder) -> None:
        self._package = package
        self._relations = package.relations(part)
        self._builder = builder
        self._root = package.xml(part)

    def read(self) -> None:
        shapes = sorted(_shapes(child(self._root, "cSld", "spTree")), key=self._place)
        titles = [shape for shape in shapes if _placeholder(shape) in ("title", "ctrTitle")]
        for title in titles:
            self._builder.heading(_text(child(title, "txBody")), 1)
        for shape in shapes:
            if shape not in titles:
                self._shape(shape)
        for kind, part in self._relations.values():
            if kind == "notesSlide" and part in self._package:
                self._notes(self._package.xml(part))

    def _place(self, shape: Element) -> _Place:
        """Return where a shape is; a placeholder may leave that to the slide's layout."""
        own = _offset(shape)
        if own is None and (key := _placeholder_key(shape)):
            own = self._layout.get(key)
        return own or (0, 0)

    @cached_property
    def _layout(self) -> dict[_Key, _Place]:
        """The places of the layout's placeholders."""
        parts = [part for kind, part in self._relations.values() if kind == "slideLayout" and part in self._package]
        places: dict[_Key, _Place] = {}
        for shape in _shapes(child(self._package.xml(parts[0]), "cSld", "spTree")) if parts else ():
            key, place = _placeholder_key(shape), _offset(shape)
            if key and place:
                places[key] = place
        return places

    def _shape(self, shape: Element) -> None:
        role = _placeholder(shape)
        if role in _UNSAID:
            return
        body = child(shape, "txBody")
        if body is not None:
            if role == "ftr":
                self._builder.paragraph(_text(body), "footer")
            else:
                self._paragraphs(body, listed=role in ("body", "obj"))
        elif local(shape) == "graphicFrame":
            self._graphic(shape)
        elif text := _alternative(shape):
            self._builder.paragraph(text, "caption")

    def _paragraphs(self, body: Element, *, listed: bool) -> None:
        """Write paragraphs: as items of lists where they have a bullet or a number, their own or a content placeholder's."""
        paragraphs = [(paragraph, squeezed(_line(paragraph))) for paragraph in children(body, "p")]
        paragraphs = [(paragraph, text) for paragraph, text in paragraphs if text]
        listed = listed and len(paragraphs) > 1
        number = 0
        for paragraph, text in paragraphs:
            properties = child(paragraph, "pPr")
            marks = set() if properties is None else set(map(local, properties))
            number = number + 1 if "buAutoNum" in marks else 0
            if number:
                self._builder.item(f"{number}. {text}", _level(properties))
            elif marks & {"buChar", "buBlip"} or (listed and "buNone" not in marks):
                self._builder.item(text, _level(properties))
            else:
                self._builder.paragraph(text)
        self._builder.end_lists()

    def _graphic(self, frame: Element) -> None:
        data = child(frame, "graphic", "graphicData")
        table = child(data, "tbl")
        if table is not None:
            self._table(table)
            return
        for element in () if data is None else data:
            self._drawing(element)
        if text := _alternative(frame):
            self._builder.paragraph(text, "caption")

    def _drawing(self, element: Element) -> None:
        """Write a chart as a table, and a diagram's words as a list; what draws them stands in a part of its own."""
        name = local(element)
        part = self._relations.get(_relation(element, "dm" if name == "relIds" else "id"), ("", ""))[1]
        if part not in self._package:
            return
        if name == "chart":
            _chart(self._package.xml(part), self._builder)
        elif name == "relIds":
            for point in descendants(self._package.xml(part), "t"):
                self._builder.item(_text(point))

    def _table(self, table: Element) -> None:
        rows: list[list[str]] = []
        for row in children(table, "tr"):
            rows.append(_row(row, rows[-1] if rows else []))
        properties = child(table, "tblPr")
        first = properties is not None and attribute(properties, "firstRow") == "1" and len(rows) > 1
        self._builder.table(rows, headers=int(first))

    def _notes(self, root: Element) -> None:
        for shape in _shapes(child(root, "cSld", "spTree")):
            if _placeholder(shape) not in _UNSAID | {"ftr"} and child(shape, "txBody") is not None:
                self._builder.paragraph(_text(child(shape, "txBody")), "footnote")


def _level(properties: Element | None) -> int:
    """Return how deep a paragraph is in lists, from 0."""
    level = "0" if properties is None else attribute(properties, "lvl", "0")
    return int(level) if level.isdecimal() else 0


def _row(row: Element, above: list[str]) -> list[str]:
    """Return the texts of a row; a merged cell has the text of the cell before it or above it."""
    cells: list[str] = []
    for cell in children(row, "tc"):
        text = one_line(_text(child(cell, "txBody")))
        if attribute(cell, "hMerge") == "1" and cells:
            text = cells[-1]
        elif attribute(cell, "vMerge") == "1" and len(cells) < len(above):
            text = above[len(cells)]
        cells.append(text)
    return cells


def _shapes(tree: Element | None) -> Iterator[Element]:
    """Yield shapes, pictures and frames in drawing order, groups opened; of alternatives for old readers the first."""
    for element in () if tree is None else tree:
        name = local(element)
        if name in ("sp", "pic", "graphicFrame", "cxnSp"):
            yield element
        elif name in ("grpSp", "Choice"):
            yield from _shapes(element)
        elif name == "AlternateContent":
            yield from _shapes(element[:1])


def _offset(shape: Element) -> _Place | None:
    """Return where a shape is, None where it does not say so; within a group, in the group's own measure."""
    transform = child(shape, "xfrm")
    offset = child(transform if transform is not None else child(shape, "spPr", "xfrm"), "off")
    try:
        return None if offset is None else (int(attribute(offset, "y")), int(attribute(offset, "x")))
    except ValueError:
        return None


def _placeholder_key(shape: Element) -> _Key | None:
    """Return what a placeholder of a slide and that of its layout have in common; None for a free shape."""
    placeholder = _placeholder_element(shape)
    if placeholder is None:
        return None
    index = attribute(placeholder, "idx")
    return ("idx", index) if index else ("type", attribute(placeholder, "type", "obj"))


def _placeholder(shape: Element) -> str:
    """Return the role of a placeholder: title, ctrTitle, subTitle, body, obj, ftr, dt, sldNum …; "" for a free shape."""
    placeholder = _placeholder_element(shape)
    return "" if placeholder is None else attribute(placeholder, "type", "obj")


def _placeholder_element(shape: Element) -> Element | None:
    for properties in shape:
        if local(properties).startswith("nv") and (placeholder := child(properties, "nvPr", "ph")) is not None:
            return placeholder
    return None


def _alternative(shape: Element) -> str:
    """Return the alternative text, unless it is a file name that a program put there."""
    properties = next(descendants(shape, "cNvPr"), None)
    text = "" if properties is None else one_line(attribute(properties, "descr") or attribute(properties, "title"))
    return "" if "." in text[-5:] and " " not in text else text


def _text(body: Element | None) -> str:
    """Return all text below an element, a line per paragraph."""
    if body is None:
        return ""
    paragraphs = children(body, "p")
    return "\n".join(map(_line, paragraphs)) if paragraphs else "".join(body.itertext())


def _line(paragraph: Element) -> str:
    pieces = []
    for element in paragraph.iter():
        name = local(element)
        if name == "t":
            pieces.append(element.text or "")
        elif name == "br":
            pieces.append("\n")
    return "".join(pieces)


def _chart(root: Element, builder: DocumentBuilder) -> None:
    """Write a chart as the table behind it: a row per category, a column per series, from the values the file caches."""
    chart = child(root, "chart")
    title = child(chart, "title")
    caption = "" if title is None else one_line(" ".join(_texts(title, "t")))
    names, columns = [], []
    categories: dict[int, str] = {}
    for series in () if chart is None else descendants(chart, "ser"):
        names.append(" ".join(_points(child(series, "tx")).values()))
        categories = categories or _points(child(series, "cat")) or _points(child(series, "xVal"))
        columns.append(_points(child(series, "val")) or _points(child(series, "yVal")))
    numbers = sorted(set(categories).union(*columns))
    rows = [[categories.get(number, ""), *(column.get(number, "") for column in columns)] for number in numbers]
    builder.table([["", *names], *rows] if rows else [], headers=1, caption=caption)


def _points(element: Element | None) -> dict[int, str]:
    """Return the cached points of a series: their index to their value."""
    if element is None:
        return {}
    points: dict[int, str] = {}
    for point in descendants(element, "pt"):
        index = attribute(point, "idx")
        if index.isdecimal() and int(index) not in points:
            points[int(index)] = one_line("".join(_texts(point, "v")))
    return points or dict(enumerate(map(one_line, _texts(element, "v"))))


def _texts(element: Element, name: str) -> Iterator[str]:
    """Yield the texts of all elements of a name below an element."""
    return (inner.text or "" for inner in descendants(element, name))

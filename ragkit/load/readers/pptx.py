"""Presentations (Office Open XML): a page per slide, its title as a heading, then its shapes from top to bottom.

Text, lists, tables, the numbers behind charts, the words of diagrams, alternative texts of pictures, and the speaker's
notes, which stand last, as a footnote. Slides count as shown in the editor, hidden ones included.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.load.builder import DocumentBuilder, one_line, squeezed
from ragkit.load.limits import Options
from ragkit.load.readers.zip_xml import Package, attribute, child, children, core_properties, descendants, local

_EMU = 12700  # in a point
_SIZE = (720.0, 540.0)
_UNSAID = {"sldNum", "dt", "hdr", "sldImg"}  # placeholders whose text is no part of what is said


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of a .pptx file."""
    package = Package(path.read_bytes(), options)
    main = package.related("", "officeDocument") or [name for name in ("ppt/presentation.xml",) if name in package]
    if not main:
        raise LoadError("the package holds no presentation")
    root = package.xml(main[0])
    meta: dict[str, Any] = core_properties(package)
    title = meta.pop("title", "")
    builder = DocumentBuilder(options.limits)
    relations = package.relations(main[0])
    size = _size(child(root, "sldSz"))
    for number, slide in enumerate(children(child(root, "sldIdLst"), "sldId"), start=1):
        options.on_page(number)
        builder.page(*size)
        part = relations.get(_relation(slide), ("", ""))[1]
        if part in package:
            _Slide(package, part, builder).read()
    yield builder.document(title="" if title == "PowerPoint Presentation" else title, meta=meta)


def _relation(element: Any, name: str = "id") -> str:
    """The value of r:id: its plain namesake, where there is one, is something else."""
    return next((str(value) for key, value in element.attrib.items() if key.endswith(f"}}{name}")), "")


def _size(element: Any) -> tuple[float, float]:
    try:
        width, height = (int(attribute(element, name)) / _EMU for name in ("cx", "cy"))
    except (ValueError, AttributeError):
        return _SIZE
    return (width, height) if width > 0 and height > 0 else _SIZE


class _Slide:
    def __init__(self, package: Package, part: str, builder: DocumentBuilder) -> None:
        self._package = package
        self._relations = package.relations(part)
        self._builder = builder
        self._root = package.xml(part)

    def read(self) -> None:
        shapes = sorted(_shapes(child(self._root, "cSld", "spTree")), key=self._place)
        titles = [one for one in shapes if _placeholder(one) in ("title", "ctrTitle")]
        for one in titles:
            self._builder.heading(_text(child(one, "txBody")), 1)
        for one in shapes:
            if one not in titles:
                self._shape(one)
        for kind, part in self._relations.values():
            if kind == "notesSlide" and part in self._package:
                self._notes(self._package.xml(part))

    def _place(self, shape: Any) -> tuple[int, int]:
        """Where a shape is, from the top and from the left; a placeholder may leave that to the slide's layout."""
        own = _offset(shape)
        if own is None and (key := _placeholder_key(shape)):
            own = self._layout.get(key)
        return own or (0, 0)

    @cached_property
    def _layout(self) -> dict[tuple[str, str], tuple[int, int]]:
        """The places of the layout's placeholders, by index and by kind."""
        parts = [part for kind, part in self._relations.values() if kind == "slideLayout" and part in self._package]
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for shape in _shapes(child(self._package.xml(parts[0]), "cSld", "spTree")) if parts else ():
            key, place = _placeholder_key(shape), _offset(shape)
            if key and place:
                found[key] = place
        return found

    def _shape(self, shape: Any) -> None:
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

    def _paragraphs(self, body: Any, *, listed: bool) -> None:
        """Paragraphs; those with a bullet or a number, their own or a content placeholder's, as items of lists."""
        found = [(one, squeezed(_line(one))) for one in children(body, "p")]
        found = [(one, text) for one, text in found if text]
        count = 0
        for one, text in found:
            properties = child(one, "pPr")
            names = set() if properties is None else set(map(local, properties))
            level = attribute(properties, "lvl", "0") if properties is not None else "0"
            numbered = "buAutoNum" in names
            count = count + 1 if numbered else 0
            if (listed and len(found) > 1 and "buNone" not in names) or names & {"buChar", "buBlip"} or numbered:
                self._builder.item(f"{count}. {text}" if numbered else text, int(level) if level.isdecimal() else 0)
            else:
                self._builder.paragraph(text)
        self._builder.end_lists()

    def _graphic(self, frame: Any) -> None:
        data = child(frame, "graphic", "graphicData")
        table = child(data, "tbl")
        if table is not None:
            self._table(table)
            return
        for one in () if data is None else data:
            name = local(one)
            part = self._relations.get(_relation(one, "dm" if name == "relIds" else "id"), ("", ""))[1]
            if name == "chart" and part in self._package:
                _chart(self._package.xml(part), self._builder)
            elif name == "relIds" and part in self._package:
                for point in descendants(self._package.xml(part), "t"):
                    self._builder.item(_text(point))
        if text := _alternative(frame):
            self._builder.paragraph(text, "caption")

    def _table(self, table: Any) -> None:
        rows: list[list[str]] = []
        for row in children(table, "tr"):
            cells: list[str] = []
            for cell in children(row, "tc"):
                text = one_line(_text(child(cell, "txBody")))
                if attribute(cell, "hMerge") == "1" and cells:
                    text = cells[-1]
                elif attribute(cell, "vMerge") == "1" and rows and len(cells) < len(rows[-1]):
                    text = rows[-1][len(cells)]
                cells.append(text)
            rows.append(cells)
        properties = child(table, "tblPr")
        first = properties is not None and attribute(properties, "firstRow") == "1" and len(rows) > 1
        self._builder.table(rows, headers=int(first))

    def _notes(self, root: Any) -> None:
        for shape in _shapes(child(root, "cSld", "spTree")):
            if _placeholder(shape) not in _UNSAID | {"ftr"} and child(shape, "txBody") is not None:
                self._builder.paragraph(_text(child(shape, "txBody")), "footnote")


def _shapes(tree: Any) -> Iterator[Any]:
    """Shapes, pictures and frames in drawing order, groups opened; of alternatives for old readers the first."""
    for one in () if tree is None else tree:
        name = local(one)
        if name in ("sp", "pic", "graphicFrame", "cxnSp"):
            yield one
        elif name in ("grpSp", "Choice"):
            yield from _shapes(one)
        elif name == "AlternateContent":
            yield from _shapes(one[:1])


def _offset(shape: Any) -> tuple[int, int] | None:
    """The distances of a shape from the top and from the left, in EMU; within a group, of the group's own measure."""
    place = child(shape, "xfrm")
    found = child(place if place is not None else child(shape, "spPr", "xfrm"), "off")
    try:
        return None if found is None else (int(attribute(found, "y")), int(attribute(found, "x")))
    except ValueError:
        return None


def _placeholder_key(shape: Any) -> tuple[str, str] | None:
    """What a placeholder of a slide and that of its layout have in common."""
    for properties in shape:
        if local(properties).startswith("nv") and (found := child(properties, "nvPr", "ph")) is not None:
            index = attribute(found, "idx")
            return ("idx", index) if index else ("type", attribute(found, "type", "obj"))
    return None


def _placeholder(shape: Any) -> str:
    """The role of a placeholder: title, ctrTitle, subTitle, body, obj, ftr, dt, sldNum …; "" for a free shape."""
    for properties in shape:
        if local(properties).startswith("nv") and (found := child(properties, "nvPr", "ph")) is not None:
            return attribute(found, "type", "obj")
    return ""


def _alternative(shape: Any) -> str:
    """The alternative text, unless it is a file name that a program put there."""
    found = next(descendants(shape, "cNvPr"), None)
    text = "" if found is None else one_line(attribute(found, "descr") or attribute(found, "title"))
    return "" if "." in text[-5:] and " " not in text else text


def _text(body: Any) -> str:
    """All text below an element, a line per paragraph."""
    if body is None:
        return ""
    paragraphs = children(body, "p")
    return "\n".join(map(_line, paragraphs)) if paragraphs else "".join(body.itertext())


def _line(paragraph: Any) -> str:
    pieces = []
    for one in paragraph.iter():
        name = local(one)
        if name == "t":
            pieces.append(one.text or "")
        elif name == "br":
            pieces.append("\n")
    return "".join(pieces)


def _chart(root: Any, builder: DocumentBuilder) -> None:
    """A chart as the table behind it: a row per category, a column per series, from the values the file caches."""
    chart = child(root, "chart")
    title = child(chart, "title")
    caption = "" if title is None else one_line(" ".join(one.text or "" for one in descendants(title, "t")))
    names, columns = [], []
    categories: dict[int, str] = {}
    for series in descendants(chart, "ser") if chart is not None else ():
        names.append(" ".join(_points(child(series, "tx")).values()))
        categories = categories or _points(child(series, "cat")) or _points(child(series, "xVal"))
        columns.append(_points(child(series, "val")) or _points(child(series, "yVal")))
    numbers = sorted(set(categories).union(*columns))
    rows = [["", *names], *([categories.get(at, ""), *(one.get(at, "") for one in columns)] for at in numbers)]
    builder.table(rows if numbers else [], headers=1, caption=caption)


def _points(element: Any) -> dict[int, str]:
    """The cached points of a series: their index to their value."""
    found: dict[int, str] = {}
    for point in descendants(element, "pt") if element is not None else ():
        index = attribute(point, "idx")
        if index.isdecimal() and int(index) not in found:
            found[int(index)] = one_line("".join(one.text or "" for one in descendants(point, "v")))
    if element is not None and not found:
        found = {at: one_line(one.text or "") for at, one in enumerate(descendants(element, "v"))}
    return found

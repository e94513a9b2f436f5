"""What docling made of a file becomes a Document: its reading order, headings, lists, tables, captions, code, pages and boxes.

docling (MIT) parses by layout models and is run by its users; nothing of it is imported here. In goes the JSON it exports, as a
file `*.docling.json` or from Python:

    index.add([from_docling(DocumentConverter().convert("a.pdf").document, id="a.pdf")])

docling says where paragraphs and cells stand, not words, so a box is of a paragraph, of its part on a page, or of a cell: as
`Words`, one for each. A merged cell's text stands in each column and row. What it calls furniture are headers and footers. Forms
and key-value regions are read as far as their texts stand in the body.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Block, Document, Json, Page, Span, Words
from ragkit.load.builder import CELL, PAGE_BREAK, clean, one_line
from ragkit.load.limits import Limits, Options
from ragkit.load.member import EmbeddedFile
from ragkit.load.records import check

_KINDS = {
    "title": "heading",
    "section_header": "heading",
    "caption": "caption",
    "footnote": "footnote",
    "code": "code",
    "page_header": "header",
    "page_footer": "footer",
    "list_item": "list",
}
_CELLS = 1_000_000  # of one table, merged ones counted in each place they cover

Box = tuple[float, float, float, float]
Node = Mapping[str, Any]  # an object of the JSON that docling exports


@dataclass(frozen=True, slots=True)
class _Place:
    """Where characters of an item stand: on which page, in which box, from the top left."""

    start: int
    end: int
    page: int
    box: Box


@dataclass(frozen=True, slots=True)
class _Item:
    kind: str
    level: int
    text: str
    places: tuple[_Place, ...] = ()
    rows: tuple[tuple[int, int, int], ...] = ()  # of a table: start and end of its lines, and 1 where they are header rows


def load(path: Path | EmbeddedFile, options: Options) -> Iterator[Document]:
    """Yield the one Document of a file that docling exported."""
    try:
        exported = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LoadError(f"not JSON: {error}") from None
    yield from_docling(exported, limits=options.limits, on_page=options.on_page)


def from_docling(
    converted: object, *, id: str = "", limits: Limits | None = None, on_page: Callable[[int], None] | None = None
) -> Document:
    """Return the Document of a DoclingDocument, or of what its `export_to_dict` gives. Raise LoadError for anything else."""
    exported = converted.export_to_dict() if hasattr(converted, "export_to_dict") else converted
    if not isinstance(exported, Mapping) or exported.get("schema_name") != "DoclingDocument":
        raise LoadError('not a DoclingDocument: its JSON has no "schema_name": "DoclingDocument"')
    limits = limits or Limits()
    try:
        sizes = {int(number): _size(page) for number, page in exported.get("pages", {}).items()}
        if len(sizes) > limits.pages:
            raise LimitExceeded(f"{len(sizes)} pages, more than the limit of {limits.pages} (Limits.pages)")
        assembly = _Assembly(dict(sorted(sizes.items())))
        for item in list(_Reader(exported, sizes, limits).items()):
            assembly.add(item)
        return check(replace(assembly.document(exported), id=id))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise LoadError(f"not a DoclingDocument as docling writes it: {type(error).__name__}: {error}") from None


def _size(page: Node) -> tuple[float, float]:
    return float(page["size"]["width"]), float(page["size"]["height"])


@dataclass(slots=True)
class _Reader:
    """Walks the body in reading order, and reads each item once, however often it is referred to."""

    exported: Node
    sizes: Mapping[int, tuple[float, float]]
    limits: Limits
    seen: set[str] = field(default_factory=set)
    characters: int = 0

    def items(self) -> Iterator[_Item]:
        waiting = [self._children(self.exported["body"])]
        while waiting:
            reference = next(waiting[-1], None)
            if reference is None:
                waiting.pop()
            elif reference not in self.seen:
                self.seen.add(reference)
                node = self._node(reference)
                if node.get("label") == "inline":
                    yield from self._counted([self._inline(node)])
                    continue
                yield from self._counted(self._of(node))
                waiting.append(self._children(node))

    def _counted(self, items: list[_Item]) -> Iterator[_Item]:
        """Yield the items that have text. Raise LimitExceeded once there is too much of it."""
        for item in items:
            self.characters += len(item.text) + 2
            if self.characters > self.limits.characters:
                raise LimitExceeded(f"more than {self.limits.characters} characters (Limits.characters)")
            if item.text:
                yield item

    def _children(self, node: Node) -> Iterator[str]:
        return iter([str(child["$ref"]) for child in node.get("children", ())])

    def _node(self, reference: str) -> Node:
        """Return the node that a reference like "#/texts/3" names."""
        _, name, *number = reference.split("/")
        nodes = self.exported[name]
        return nodes[int(number[0])] if number else nodes  # type: ignore[no-any-return]

    def _of(self, node: Node) -> list[_Item]:
        """Return the items that a node makes by itself, its captions before it."""
        label = node.get("label", "")
        if "data" in node and "table_cells" in node["data"]:
            return [*self._captions(node), self._table(node)]
        if label in ("picture", "chart"):
            text = _description(node)
            return [*self._captions(node), _Item("paragraph", 0, text, self._places(node, len(text)))]
        if "text" not in node:
            return []
        text = clean(str(node["text"])).rstrip()
        text = text if label == "code" else text.replace("\n", " ")
        kind = _KINDS.get(label, "paragraph")
        level = 1 if label == "title" else min(int(node.get("level", 1)) + 1, 6) if kind == "heading" else 0
        return [_Item(kind, level, text, self._places(node, len(text)))]

    def _captions(self, node: Node) -> list[_Item]:
        items = []
        for reference in (str(caption["$ref"]) for caption in node.get("captions", ())):
            if reference not in self.seen:
                self.seen.add(reference)
                items += self._of(self._node(reference))
        return items

    def _inline(self, node: Node) -> _Item:
        """Return the one paragraph whose pieces are set in several ways."""
        text, places = "", []
        for reference in self._children(node):
            self.seen.add(reference)
            for piece in self._of(self._node(reference)):
                text += " " if text and piece.text else ""
                places += [replace(at, start=at.start + len(text), end=at.end + len(text)) for at in piece.places]
                text += piece.text
        return _Item("paragraph", 0, text, tuple(places))

    def _places(self, node: Node, length: int) -> tuple[_Place, ...]:
        """Return a place for each stretch of the text; the last one reaches to the text's end."""
        stretches = [stretch for stretch in node.get("prov", ()) if int(stretch["page_no"]) in self.sizes]
        starts = [min(max(int(stretch["charspan"][0]), 0), length) if at else 0 for at, stretch in enumerate(stretches)]
        places: list[_Place] = []
        for stretch, start, end in zip(stretches, starts, [*starts[1:], length], strict=False):
            if start < end and start >= (places[-1].end if places else 0):
                page = int(stretch["page_no"])
                places.append(_Place(start, end, page, self._box(stretch["bbox"], page)))
        return tuple(places)

    def _box(self, box: Node, page: int) -> Box:
        width, height = self.sizes[page]
        left, right = sorted((float(box["l"]), float(box["r"])))
        edges = float(box["t"]), float(box["b"])
        top, bottom = sorted(height - edge for edge in edges) if box.get("coord_origin") == "BOTTOMLEFT" else sorted(edges)
        return (
            min(max(left, 0.0), width),
            min(max(top, 0.0), height),
            min(max(right, 0.0), width),
            min(max(bottom, 0.0), height),
        )

    def _table(self, node: Node) -> _Item:
        """Return a table with its rows as lines, and a place for each cell that has a box; a row without any has the table's."""
        whole = next(iter(self._places(node, 1)), None)
        text, rows = "", []
        places: list[_Place] = []
        for cells in self._grid(node["data"]):
            words = [one_line(str(cell.get("text", ""))) if cell else "" for cell in cells]
            if not any(words):
                continue
            text += "\n" if text else ""
            start = len(text)
            text = (text + CELL.join(words)).rstrip()
            if whole is not None:
                row_places = list(self._cell_places(cells, words, start, whole.page))
                places += row_places or [replace(whole, start=start, end=len(text))]
            rows.append((start, len(text), int(all(cell.get("column_header") for cell in cells if cell))))
        return _Item("table", 0, text, tuple(places), tuple(rows))

    def _cell_places(self, cells: list[Node], words: list[str], start: int, page: int) -> Iterator[_Place]:
        for cell, text in zip(cells, words, strict=True):
            if text and cell and cell.get("bbox"):
                yield _Place(start, start + len(text), page, self._box(cell["bbox"], page))
            start += len(text) + len(CELL)

    def _grid(self, data: Node) -> list[list[Node]]:
        """Return the cells in rows and columns, a merged one in each place that it covers, {} where there is none."""
        high, wide = int(data["num_rows"]), int(data["num_cols"])
        if high * wide > _CELLS:
            raise LimitExceeded(f"a table of {high} rows and {wide} columns, more than {_CELLS} cells")
        grid: list[list[Node]] = [[{} for _ in range(max(wide, 0))] for _ in range(max(high, 0))]
        left = _CELLS
        for cell in data["table_cells"]:
            down = range(max(int(cell["start_row_offset_idx"]), 0), min(int(cell["end_row_offset_idx"]), high))
            across = range(max(int(cell["start_col_offset_idx"]), 0), min(int(cell["end_col_offset_idx"]), wide))
            left -= len(down) * len(across)
            if left < 0:
                raise LimitExceeded(f"a table whose cells cover more than {_CELLS} places")
            for row, column in product(down, across):
                grid[row][column] = cell
        return grid


def _description(node: Node) -> str:
    """Return what a picture's annotations and metadata say of it."""
    texts = [note.get("text", "") for note in node.get("annotations", ()) if note.get("kind") == "description"]
    texts.append(((node.get("meta") or {}).get("description") or {}).get("text", ""))
    return one_line(" ".join(dict.fromkeys(filter(None, texts))))


class _Assembly:
    """The text so far with its blocks, and what stands on which page."""

    def __init__(self, sizes: Mapping[int, tuple[float, float]]) -> None:
        self._sizes = sizes
        self._parts: list[str] = []
        self._size = 0
        self._blocks: list[Block] = []
        self._page = 0
        self._begins: dict[int, int] = {}  # where the pages begin, by number
        self._ends: dict[int, int] = {}
        self._words: dict[int, list[tuple[int, int, Box]]] = {number: [] for number in sizes}
        self._repeated: set[str] = set()  # texts of headers and footers
        self._before: _Item | None = None

    def add(self, item: _Item) -> None:
        first = item.places[0].page if item.places else self._page
        turns = first > self._page and bool(self._sizes)
        joins = self._before is not None and self._before.kind == item.kind == "list" and not turns
        gap = self._gap(turns=turns, joins=joins)
        start = self._size + len(gap)
        if turns:
            self._begin_page(first, start, end=self._size)
        self._parts += (gap, item.text)
        self._size = start + len(item.text)
        self._add_words(item, start)
        if joins:
            self._blocks[-1] = replace(self._blocks[-1], span=Span(self._blocks[-1].span.start, self._size))
        else:
            self._blocks.append(Block(item.kind, Span(start, self._size), self._level(item)))
        self._blocks += [Block("row", Span(start + low, start + high), header) for low, high, header in item.rows]
        self._before = item

    def _gap(self, *, turns: bool, joins: bool) -> str:
        if self._before is None:
            return ""
        if turns and self._page:
            return PAGE_BREAK
        return "\n" if joins else "\n\n"

    def _begin_page(self, page: int, start: int, *, end: int) -> None:
        """Begin a page at a character; the one before it ends at another."""
        self._ends[self._page] = end
        self._page = page
        self._begins[page] = start

    def _add_words(self, item: _Item, start: int) -> None:
        for place in item.places:
            if place.page > self._page:  # the item runs on: the next page begins within it
                self._begin_page(place.page, start + place.start, end=start + place.start)
            if place.page == self._page:
                self._words[self._page].append((start + place.start, start + place.end, place.box))

    def _level(self, item: _Item) -> int:
        """Return an item's level; that of headers and footers is 1 where they are repeated, or a page number."""
        if item.kind not in ("header", "footer"):
            return item.level
        level = int(item.text in self._repeated or item.text.strip().isdigit())
        self._repeated.add(item.text)
        return level

    def document(self, exported: Node) -> Document:
        """Return the Document of all items, called after its first heading."""
        self._ends[self._page] = self._size
        text = "".join(self._parts)
        heading = next((block for block in self._blocks if block.kind == "heading"), None)
        origin = exported.get("origin") or {}
        meta: Json = {"pages": len(self._sizes)} if self._sizes else {}
        meta |= {"origin": str(origin["filename"])} if origin.get("filename") else {}
        title = heading.span.of(text) if heading else ""
        return Document(text=text, title=title, meta=meta, blocks=tuple(self._blocks), pages=tuple(self._pages()))

    def _pages(self) -> Iterator[Page]:
        at = 0
        for number, (width, height) in self._sizes.items():
            start = self._begins.get(number, at)
            at = max(self._ends.get(number, start), start)
            spans = np.array([row[:2] for row in self._words[number]], np.int64).reshape(-1, 2)
            boxes = np.array([row[2] for row in self._words[number]], np.float32).reshape(-1, 4)
            yield Page(number, width, height, Span(start, at), Words(spans, boxes))

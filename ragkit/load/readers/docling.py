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
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Block, Document, Page, Span, Words
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
    rows: tuple[tuple[int, int, int], ...] = ()  # of a table: start and end of its lines, and whether they are header rows


def load(path: Path | EmbeddedFile, options: Options) -> Iterator[Document]:
    """The one Document of a file that docling exported."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LoadError(f"it is no JSON: {error}") from None
    yield from_docling(found, limits=options.limits, on_page=options.on_page)


def from_docling(
    converted: Any, *, id: str = "", limits: Limits | None = None, on_page: Callable[[int], None] | None = None
) -> Document:
    """A Document of a DoclingDocument, or of what its `export_to_dict` gives. LoadError for what is neither."""
    exported = converted.export_to_dict() if hasattr(converted, "export_to_dict") else converted
    if not isinstance(exported, Mapping) or exported.get("schema_name") != "DoclingDocument":
        raise LoadError("it is no DoclingDocument: its JSON has no schema_name that says so")
    limits = limits or Limits()
    try:
        sizes = {int(number): _size(page) for number, page in exported.get("pages", {}).items()}
        if len(sizes) > limits.pages:
            raise LimitExceeded(f"{len(sizes)} pages, more than the limit of {limits.pages} (Limits.pages)")
        items = list(_Reader(exported, sizes, limits).items())
        document = _document(items, dict(sorted(sizes.items())), exported)
        return check(replace(document, id=id))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise LoadError(f"it is no DoclingDocument as docling writes it: {type(error).__name__}: {error}") from None


def _size(page: Mapping[str, Any]) -> tuple[float, float]:
    return float(page["size"]["width"]), float(page["size"]["height"])


@dataclass(slots=True)
class _Reader:
    """Walks the body in reading order; each item once, however often it is referred to."""

    exported: Mapping[str, Any]
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
                    yield from self._kept([self._inline(node)])
                    continue
                yield from self._kept(self._of(node))
                waiting.append(self._children(node))

    def _kept(self, items: list[_Item]) -> Iterator[_Item]:
        for item in items:
            self.characters += len(item.text) + 2
            if self.characters > self.limits.characters:
                raise LimitExceeded(f"more than {self.limits.characters} characters (Limits.characters)")
            if item.text:
                yield item

    def _children(self, node: Mapping[str, Any]) -> Iterator[str]:
        return iter([str(child["$ref"]) for child in node.get("children", ())])

    def _node(self, reference: str) -> Mapping[str, Any]:
        """The item that a reference like "#/texts/3" names."""
        _, name, *number = reference.split("/")
        found = self.exported[name]
        return found[int(number[0])] if number else found  # type: ignore[no-any-return]

    def _of(self, node: Mapping[str, Any]) -> list[_Item]:
        """The items that a node makes by itself, captions before what they are of."""
        label = node.get("label", "")
        if "data" in node and "table_cells" in node["data"]:
            return [*self._captions(node), self._table(node)]
        if label in ("picture", "chart"):
            said = [note.get("text", "") for note in node.get("annotations", ()) if note.get("kind") == "description"]
            said.append(((node.get("meta") or {}).get("description") or {}).get("text", ""))
            text = one_line(" ".join(dict.fromkeys(filter(None, said))))
            return [*self._captions(node), _Item("paragraph", 0, text, self._places(node, len(text)))]
        if "text" not in node:
            return []
        text = clean(str(node["text"])).rstrip()
        text = text if label == "code" else text.replace("\n", " ")
        kind = _KINDS.get(label, "paragraph")
        level = 1 if label == "title" else min(int(node.get("level", 1)) + 1, 6) if kind == "heading" else 0
        return [_Item(kind, level, text, self._places(node, len(text)))]

    def _captions(self, node: Mapping[str, Any]) -> list[_Item]:
        found = []
        for reference in (str(caption["$ref"]) for caption in node.get("captions", ())):
            if reference not in self.seen:
                self.seen.add(reference)
                found += self._of(self._node(reference))
        return found

    def _inline(self, node: Mapping[str, Any]) -> _Item:
        """Pieces of one paragraph, set in several ways."""
        text, places = "", []
        for reference in self._children(node):
            self.seen.add(reference)
            for piece in self._of(self._node(reference)):
                text += " " if text and piece.text else ""
                places += [replace(at, start=at.start + len(text), end=at.end + len(text)) for at in piece.places]
                text += piece.text
        return _Item("paragraph", 0, text, tuple(places))

    def _places(self, node: Mapping[str, Any], length: int) -> tuple[_Place, ...]:
        """One place for each stretch of the text; the last one reaches to its end."""
        said = [one for one in node.get("prov", ()) if int(one["page_no"]) in self.sizes]
        starts = [min(max(int(one["charspan"][0]), 0), length) if at else 0 for at, one in enumerate(said)]
        found: list[_Place] = []
        for at, (one, start) in enumerate(zip(said, starts, strict=True)):
            end = starts[at + 1] if at + 1 < len(said) else length
            if start < end and start >= (found[-1].end if found else 0):
                page = int(one["page_no"])
                found.append(_Place(start, end, page, self._box(one["bbox"], page)))
        return tuple(found)

    def _box(self, box: Mapping[str, Any], page: int) -> Box:
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

    def _table(self, node: Mapping[str, Any]) -> _Item:
        """Rows as lines; a place for each cell that has a box, else one for each row: the table's."""
        filled = self._grid(node["data"])
        whole = self._places(node, 1)
        text, places, rows = "", [], []
        for line in filled:
            texts = [one_line(str(cell.get("text", ""))) if cell else "" for cell in line]
            if not any(texts):
                continue
            text += "\n" if text else ""
            start, boxed = len(text), False
            for number, (cell, words) in enumerate(zip(line, texts, strict=True)):
                text += CELL if number else ""
                if whole and words and cell and cell.get("bbox"):
                    box = self._box(cell["bbox"], whole[0].page)
                    places.append(_Place(len(text), len(text) + len(words), whole[0].page, box))
                    boxed = True
                text += words
            text = text.rstrip()
            if whole and not boxed:
                places.append(replace(whole[0], start=start, end=len(text)))
            rows.append((start, len(text), int(all(cell.get("column_header") for cell in line if cell))))
        return _Item("table", 0, text, tuple(places), tuple(rows))

    def _grid(self, data: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
        high, wide = int(data["num_rows"]), int(data["num_cols"])
        if high * wide > _CELLS:
            raise LimitExceeded(f"a table of {high} rows and {wide} columns, more than {_CELLS} cells")
        grid: list[list[Mapping[str, Any]]] = [[{} for _ in range(max(wide, 0))] for _ in range(max(high, 0))]
        left = _CELLS
        for cell in data["table_cells"]:
            down = range(max(int(cell["start_row_offset_idx"]), 0), min(int(cell["end_row_offset_idx"]), high))
            across = range(max(int(cell["start_col_offset_idx"]), 0), min(int(cell["end_col_offset_idx"]), wide))
            left -= len(down) * len(across)
            if left < 0:
                raise LimitExceeded(f"a table whose cells cover more than {_CELLS} places")
            for row in down:
                for column in across:
                    grid[row][column] = cell
        return grid


def _document(items: list[_Item], sizes: Mapping[int, tuple[float, float]], exported: Mapping[str, Any]) -> Document:
    parts: list[str] = []
    size = 0
    blocks: list[Block] = []
    begins: dict[int, int] = {}  # where the pages begin, by number
    ends: dict[int, int] = {}
    words: dict[int, list[tuple[int, int, Box]]] = {number: [] for number in sizes}
    page = 0
    repeated: set[str] = set()
    before: _Item | None = None
    for item in items:
        first = item.places[0].page if item.places else page
        turns = first > page and bool(sizes)
        joins = before is not None and before.kind == item.kind == "list" and not turns
        gap = "" if before is None else PAGE_BREAK if turns and page else "\n" if joins else "\n\n"
        if turns:
            ends[page] = size
            page = first
            begins[page] = size + len(gap)
        parts += (gap, item.text)
        start = size + len(gap)
        size = start + len(item.text)
        for place in item.places:
            if place.page > page:  # it runs on: the next page begins within it
                ends[page], page = start + place.start, place.page
                begins[page] = start + place.start
            if place.page == page:
                words[page].append((start + place.start, start + place.end, place.box))
        if joins:
            blocks[-1] = replace(blocks[-1], span=Span(blocks[-1].span.start, size))
        else:
            level = item.level
            if item.kind in ("header", "footer"):
                level = int(item.text in repeated or item.text.strip().isdigit())
                repeated.add(item.text)
            blocks.append(Block(item.kind, Span(start, size), level))
        blocks += [Block("row", Span(start + low, start + high), header) for low, high, header in item.rows]
        before = item
    ends[page] = size
    text = "".join(parts)
    first_heading = next((block for block in blocks if block.kind == "heading"), None)
    origin = exported.get("origin") or {}
    meta: dict[str, Any] = {"pages": len(sizes)} if sizes else {}
    meta |= {"origin": str(origin["filename"])} if origin.get("filename") else {}
    title = first_heading.span.of(text) if first_heading else ""
    return Document(text=text, title=title, meta=meta, blocks=tuple(blocks), pages=tuple(_pages(sizes, begins, ends, words)))


def _pages(
    sizes: Mapping[int, tuple[float, float]],
    begins: Mapping[int, int],
    ends: Mapping[int, int],
    words: Mapping[int, list[tuple[int, int, Box]]],
) -> Iterator[Page]:
    at = 0
    for number, (width, height) in sizes.items():
        start = begins.get(number, at)
        at = max(ends.get(number, start), start)
        spans = np.array([row[:2] for row in words[number]], np.int64).reshape(-1, 2)
        boxes = np.array([row[2] for row in words[number]], np.float32).reshape(-1, 4)
        yield Page(number, width, height, Span(start, at), Words(spans, boxes))

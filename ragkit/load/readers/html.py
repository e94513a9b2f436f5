"""HTML: the text a reader sees, without scripts, styles and navigation, with its headings, lists, tables, code and alt texts.

Parsed by Lexbor (selectolax) as browsers do. The tree is walked with a list of our own, so depth costs no stack. Cells of
a table row are joined by " | ", one that covers several columns or rows stands in each; list items are lines of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ragkit.core.types import Block, Document, Json, Span
from ragkit.load.builder import REPEATED, SOFT_HYPHEN
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.records import DEEPEST

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

_HIDDEN = {
    *("script", "style", "noscript", "template", "head", "nav", "svg", "annotation", "iframe", "object", "embed", "canvas"),
    *("annotation-xml", "audio", "video", "select", "button", "input", "textarea", "dialog"),
}
_SPOKEN = {"img": "alt", "math": "alttext"}  # elements whose text stands in an attribute
_ROLES = {"navigation", "search", "banner", "contentinfo", "menu", "menubar", "toolbar", "dialog"}
_BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt"),
    *("fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html"),
    *("legend", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead"),
    *("tr", "ul"),
}
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_XML = re.compile(rb"""^\s*<\?xml[^>]+encoding\s*=\s*["']([A-Za-z0-9_.:-]+)""")
_XHTML = re.compile(r"""\A\s*<\?xml|xmlns\s*=\s*["']http://www\.w3\.org/1999/xhtml""")
_VOID = "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
_CLOSED = re.compile(rf"""<(?!(?:{_VOID})[\s/])([A-Za-z][\w:-]*)((?:\s+[\w:.-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*/>""")
_SPACE = re.compile(r"[ \t\r\n\f]+")
_CELL = " | "
_NESTED = 50  # tables deep to which those that lay out are told from others
_COLUMNS, _ROWS = 1000, 65534  # that one cell covers, at most (HTML, 4.9.11)
_TIGHT = {"br", "li", "tr", "dt", "dd", "td", "th", "thead", "tbody", "tfoot"}  # one line end around them, not a blank line
_SIMPLE = {"blockquote": "quote", "figcaption": "caption", "caption": "caption"}
_MAIN = 200  # characters that what a page calls its main part must have, to be taken for it
_META = {
    "author": "author",
    "description": "description",
    "keywords": "keywords",
    "dc.creator": "author",
    "dc.date": "created",
    "article:published_time": "created",
    "date": "created",
    "article:modified_time": "modified",
    "last-modified": "modified",
}


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of an HTML file."""
    data = path.read_bytes()
    head = data[:4096]
    named = [match[1].decode("ascii") for pattern in (_CHARSET, _XML) if (match := pattern.search(head))]
    # What browsers do with these labels (WHATWG Encoding): the Windows code page, which holds more.
    declared = ["cp1252" if name.lower() in ("iso-8859-1", "latin1", "ascii", "us-ascii") else name for name in named]
    yield parse(text_of(data, declared=declared))


def parse(source: str) -> Document:
    """Return HTML source as a Document: text, title, blocks, and from the head `lang`, `author`, `description`, dates."""
    from selectolax.lexbor import LexborHTMLParser

    if _XHTML.search(source[:2000]):  # XML closes elements as HTML does not: after <title/> all would be the title
        source = _CLOSED.sub(r"<\1\2></\1>", source)
    tree = LexborHTMLParser(source.replace("\0", "\ufffd"))
    if tree.root is None:
        return Document(text="")
    page = _Page()
    _walk(_main(tree) or tree.body or tree.root, page)
    text, blocks = page.finish()
    heading = next((block.span.of(text) for block in blocks if block.kind == "heading" and block.level == 1), "")
    return Document(text=text, title=_title(tree) or heading, meta=_meta(tree), blocks=blocks)


def _main(tree: LexborHTMLParser) -> LexborNode | None:
    """Return what the page says is its main part: the rest is boilerplate then."""
    mains = tree.css("main, [role=main]")
    return mains[0] if len(mains) == 1 and len((mains[0].text() or "").strip()) > _MAIN else None


def _title(tree: LexborHTMLParser) -> str:
    title = tree.css_first("title")
    return "" if title is None else _squeezed(title.text() or "")


def _squeezed(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _meta(tree: LexborHTMLParser) -> Json:
    meta: Json = {}
    html = tree.css_first("html")
    if html is not None and html.attributes.get("lang"):
        meta["lang"] = html.attributes["lang"]
    for node in tree.css("meta"):
        fields = node.attributes
        name = (fields.get("name") or fields.get("property") or "").lower()
        content = _squeezed(fields.get("content") or "")
        if name in _META and content:
            meta.setdefault(_META[name], content)
    return meta


@dataclass(slots=True)
class _OpenBlock:
    """A block whose text is being written."""

    kind: str
    level: int
    start: int = -1  # until a word comes
    end: int = -1  # until it is closed


@dataclass(slots=True)
class _Page:
    """The text so far, and the blocks. Line ends are owed until the next word comes, so the text ends without blank lines."""

    parts: list[str] = field(default_factory=list)
    size: int = 0
    words_end: int = 0  # where the last word ends
    owed: int = 0  # newlines before the next word
    space: bool = False  # a space before the next word
    joint: str = ""  # what stands between two cells
    blocks: list[_OpenBlock] = field(default_factory=list)
    open: list[_OpenBlock] = field(default_factory=list)  # outermost first
    lists: int = 0
    numbers: list[int | None] = field(
        default_factory=list
    )  # of the lists that are open: the last item's, None where they have none
    label: str = ""  # the number before an item's first word
    tables: list[bool] = field(default_factory=list)  # of the tables that are open: whether it only lays the page out
    cells: int = 0  # depth of table cells: blocks within a cell are joined by spaces, so that a row stays a line
    preformatted: int = 0
    row: int = 0  # of the table under way, and the column of its next cell
    column: int = 0
    cell: tuple[int, int, int, float] = (0, 0, 1, 1)  # the open cell: its first part, letters of its joint, columns, rows
    above: dict[int, tuple[float, str]] = field(default_factory=dict)  # by column: a cell's text, and the row it ends before
    spare: int = REPEATED

    @property
    def in_layout(self) -> bool:
        """Whether the innermost table only lays the page out, and no cell of another one is open."""
        return not self.cells and bool(self.tables) and self.tables[-1]

    def break_line(self, lines: int) -> None:
        if self.cells:
            self.space = True
        else:
            self.owed = max(self.owed, lines)

    def write(self, text: str) -> None:
        """Write text that has no white space around it."""
        text, self.label = self.label + text, ""
        lead = self._lead()
        self.parts.append(lead)
        self.size += len(lead)
        joint = self.joint
        self.owed, self.space, self.joint = 0, False, ""
        for block in self.open:
            if block.start < 0:
                block.start = self.size
        self.append(joint + text)

    def _lead(self) -> str:
        """Return what stands between the last word and the next one."""
        if not self.size:
            return ""
        if self.owed:
            return "\n" * self.owed
        return " " if self.space and not self.joint else ""

    def append(self, text: str) -> None:
        """Write text right after the last piece."""
        self.parts.append(text)
        if length := len(text.rstrip()):
            self.words_end = self.size + length
        self.size += len(text)

    def words(self, text: str) -> None:
        """Write text with its white space squeezed."""
        squeezed = _squeezed(text)
        if not squeezed:
            self.space = self.space or bool(text)
            return
        self.space = self.space or text[0] in " \t\r\n\f"
        self.write(squeezed)
        self.space = text[-1] in " \t\r\n\f"

    def begin_table(self) -> None:
        self.row = 0
        self.above.clear()

    def begin_row(self) -> None:
        self.row, self.column, self.joint = self.row + 1, 0, ""

    def end_row(self) -> None:
        self.repeat_above()
        self.end()
        self.joint = ""

    def begin_cell(self, columns: int, rows: float) -> None:
        """Open a cell that covers so many columns and rows; `rows` is infinite where it reaches to the table's end."""
        self.repeat_above()
        self.joint = self.joint + _CELL if self.column else ""
        self.cell = len(self.parts), len(self.joint), columns, rows
        self.cells += 1

    def end_cell(self) -> None:
        self.cells -= 1
        self.space = False
        first, joint, columns, rows = self.cell
        text = "".join(self.parts[first + 1 :])[joint:] if len(self.parts) > first else ""  # the first part is what leads to it
        for number in range(columns):
            self.spare -= len(text) + len(_CELL) if columns > 1 or rows > 1 else 0
            if self.spare < 0:
                self.column += columns - number
                return
            if rows > 1:
                self.above[self.column] = self.row + rows, text
            if number:
                self._repeat(text)
            self.column += 1

    def repeat_above(self) -> None:
        """Write again the cells of the rows above that reach down to the next columns."""
        while self.above.get(self.column, (0, ""))[0] > self.row:
            text = self.above[self.column][1]
            self.spare -= len(text) + len(_CELL)
            if self.spare < 0:
                self.above.clear()
                return
            self._repeat(text)
            self.column += 1

    def _repeat(self, text: str) -> None:
        self.joint = self.joint + _CELL if self.column else ""
        if text:
            self.write(text)
            self.space = False

    def begin(self, kind: str, level: int) -> None:
        block = _OpenBlock(kind, level)
        self.blocks.append(block)
        self.open.append(block)

    def end(self) -> None:
        self.open.pop().end = self.words_end  # the white space after it may yet be taken back

    def end_code(self) -> None:
        self._trim()
        self.end()
        self.preformatted -= 1

    def _trim(self) -> None:
        """Take back the white space at the end."""
        while self.parts and (rest := self.parts[-1].rstrip()) != self.parts[-1]:
            self.size -= len(self.parts[-1]) - len(rest)
            self.parts[-1] = rest
            if not rest:
                self.parts.pop()

    def end_list(self) -> None:
        self.end()
        self.lists -= 1
        self.numbers.pop()

    def end_item(self) -> None:
        self.label = ""

    def end_table(self) -> None:
        self.end()
        self.tables.pop()

    def end_layout(self) -> None:
        self.tables.pop()

    def finish(self) -> tuple[str, tuple[Block, ...]]:
        """Return the text, and the blocks that have words, ordered by start, outer ones first."""
        blocks = [block for block in self.blocks if 0 <= block.start < block.end]
        blocks.sort(key=lambda block: block.start)  # stable: an outer block was begun first
        return "".join(self.parts), tuple(
            Block(block.kind, Span(block.start, block.end), min(block.level, DEEPEST)) for block in blocks
        )


def _walk(root: LexborNode, page: _Page) -> None:
    """Go through the tree depth first. The stack holds nodes to enter, and what is to be closed after a node's children."""
    stack: list[LexborNode | str] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            _leave(item, page)
        elif (closing := _visit(item, page)) is not None:
            stack.append(closing)
            stack.extend(reversed(list(_children(item))))


def _visit(node: LexborNode, page: _Page) -> str | None:
    """Write a node's own text, or open it; return what `_leave` must close, or None where its children are not read."""
    tag = node.tag
    if tag == "-text":
        _text((node.text_content or "").replace(SOFT_HYPHEN, ""), page)
        return None
    if tag is None or tag.startswith(("-", "_", "!")) or _skipped(node, tag):  # None: <?php ... ?>
        return None
    if tag in _SPOKEN and (spoken := node.attributes.get(_SPOKEN[tag])):
        page.words(f" {spoken} ")
        return None
    return _enter(node, tag, page)


def _children(node: LexborNode) -> Iterator[LexborNode]:
    child = node.first_child
    while child is not None:
        yield child
        child = child.next


def _text(text: str, page: _Page) -> None:
    if not page.preformatted:
        page.words(text)
        return
    body = text.replace("\r\n", "\n")
    if page.size and not page.parts[-1].endswith("\n") and not page.owed and not page.space:
        page.append(body)  # goes on where the last piece of the same <pre> stopped
    elif body.strip():
        page.write(body.lstrip("\n"))


def _skipped(node: LexborNode, tag: str) -> bool:
    if tag in _HIDDEN:
        return True
    fields = node.attributes
    if not fields:
        return False
    style = (fields.get("style") or "").replace(" ", "").lower()
    hidden = "hidden" in fields or fields.get("aria-hidden") == "true" or "display:none" in style or "visibility:hidden" in style
    return hidden or (fields.get("role") or "").lower() in _ROLES


def _enter(node: LexborNode, tag: str, page: _Page) -> str:
    """Open what the element is; return what `_leave` must close."""
    if page.in_layout and tag in ("tr", "td", "th"):
        page.break_line(2)
        return "lines"
    lines = _break_before(node, tag, page)
    if tag in _OPENERS and not page.cells:
        return _OPENERS[tag](node, page)
    if not lines or tag == "br":
        return ""
    return "line" if lines == 1 or page.cells else "lines"  # within a cell everything is the row's text


def _break_before(node: LexborNode, tag: str, page: _Page) -> int:
    """Break the line before a block, a <br>, and the first cell of a row; return by how many lines."""
    follows = tag in ("td", "th") and not page.cells and _has_cell_before(node)
    if follows or (tag not in _BLOCKS and tag != "br"):
        return 0
    lines = 1 if tag in _TIGHT or page.lists else 2
    page.break_line(lines)
    return lines


def _open_heading(node: LexborNode, page: _Page) -> str:
    page.begin("heading", int((node.tag or "")[1]))
    return "block"


def _open_paragraph(_node: LexborNode, page: _Page) -> str:
    page.begin("paragraph", page.lists)
    return "block"


def _open_simple(node: LexborNode, page: _Page) -> str:
    page.begin(_SIMPLE[node.tag or ""], 0)
    return "block"


def _open_list(node: LexborNode, page: _Page) -> str:
    page.begin("list", page.lists)
    page.lists += 1
    page.numbers.append(_integer(node, "start", 1) - 1 if node.tag == "ol" else None)
    return "list"


def _open_item(node: LexborNode, page: _Page) -> str:
    last = page.numbers[-1] if page.numbers else None
    if last is None:
        return "line"
    page.numbers[-1] = _integer(node, "value", last + 1)
    page.label = f"{page.numbers[-1]}. "
    return "item"


def _open_table(node: LexborNode, page: _Page) -> str:
    page.tables.append(_is_layout(node, len(page.tables)))
    if page.tables[-1]:
        return "layout"
    page.begin("table", 0)
    page.begin_table()
    return "table"


def _open_row(node: LexborNode, page: _Page) -> str:
    page.begin("row", int(_is_header(node)))
    page.begin_row()
    return "row"


def _open_cell(node: LexborNode, page: _Page) -> str:
    page.begin_cell(max(_spanned(node, "colspan", _COLUMNS), 1), _spanned(node, "rowspan", _ROWS) or math.inf)
    return "cell"


def _open_code(_node: LexborNode, page: _Page) -> str:
    page.begin("code", 0)
    page.preformatted += 1
    return "code"


_OPENERS: dict[str, Callable[[LexborNode, _Page], str]] = {
    **dict.fromkeys(_HEADINGS, _open_heading),
    **dict.fromkeys(("p", "dt", "dd"), _open_paragraph),
    **dict.fromkeys(_SIMPLE, _open_simple),
    **dict.fromkeys(("ul", "ol", "dl"), _open_list),
    **dict.fromkeys(("td", "th"), _open_cell),
    "li": _open_item,
    "table": _open_table,
    "tr": _open_row,
    "pre": _open_code,
}

_CLOSERS: dict[str, Callable[[_Page], None]] = {
    "block": _Page.end,
    "code": _Page.end_code,
    "list": _Page.end_list,
    "item": _Page.end_item,
    "table": _Page.end_table,
    "layout": _Page.end_layout,
    "row": _Page.end_row,
}


def _leave(what: str, page: _Page) -> None:
    """Close what `_enter` opened."""
    if what == "cell":
        page.end_cell()
        return
    if what in _CLOSERS:
        _CLOSERS[what](page)
    if what:
        tight = what in ("line", "item", "row") or (what in ("block", "list", "table") and page.lists)
        page.break_line(1 if tight else 2)


def _is_layout(table: LexborNode, depth: int) -> bool:
    """Whether a table only lays the page out, as those of newsletters do: it says so, or is one column that holds more than
    lines of text. Its cells are then read as the blocks they hold."""
    if (table.attributes.get("role") or "") in ("presentation", "none"):
        return True
    rows = _rows(table)
    if not rows or depth > _NESTED:
        return False
    for row in rows:
        cells = [cell.tag for cell in row.iter()]
        if len(cells) > 1 or "th" in cells:
            return False
    return rows[0].css_first("h1, h2, h3, h4, h5, h6, p, ul, ol, table, pre, blockquote") is not None


def _rows(table: LexborNode) -> list[LexborNode]:
    """Return the rows that stand in a table or in its bodies."""
    rows: list[LexborNode] = []
    for part in table.iter():
        if part.tag == "tr":
            rows.append(part)
        elif part.tag == "tbody":
            rows += [row for row in part.iter() if row.tag == "tr"]
    return rows


def _is_header(row: LexborNode) -> bool:
    """Whether a row stands in the table's head, or has header cells only."""
    parent = row.parent
    if parent is not None and parent.tag == "thead":
        return True
    cells = [child.tag for child in row.iter()]
    return bool(cells) and all(tag == "th" for tag in cells)


def _spanned(cell: LexborNode, name: str, most: int) -> int:
    """Return how many columns or rows a cell covers, 1 unless it says so; 0 rows are all that follow (HTML, 4.9.11)."""
    return min(_integer(cell, name, 1), most)


def _integer(node: LexborNode, name: str, default: int) -> int:
    value = (node.attributes.get(name) or "").strip()
    return int(value) if value.isdecimal() and len(value) < 10 else default


def _has_cell_before(cell: LexborNode) -> bool:
    before = cell.prev
    while before is not None:
        if before.tag in ("td", "th"):
            return True
        before = before.prev
    return False

"""HTML: the text a reader sees, without scripts, styles and navigation, with its headings, lists, tables, code and alt texts.

Parsed by Lexbor (selectolax) as browsers do. The tree is walked with a list of our own, so depth costs no stack. Cells of
a table row are joined by " | ", one that covers several columns or rows stands in each; list items are lines of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragkit.core.types import Block, Document, Span
from ragkit.load.builder import REPEATED, SOFT_HYPHEN
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.records import DEEPEST

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


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of an HTML file."""
    data = path.read_bytes()
    head = data[:4096]
    named = [match[1].decode("ascii") for pattern in (_CHARSET, _XML) if (match := pattern.search(head))]
    # What browsers do with these labels (WHATWG Encoding): the Windows code page, which holds more.
    declared = ["cp1252" if name.lower() in ("iso-8859-1", "latin1", "ascii", "us-ascii") else name for name in named]
    yield parse(text_of(data, declared=declared))


def parse(source: str) -> Document:
    """HTML source as a Document: text, title, blocks, and from the head `lang`, `author`, `description`, dates."""
    from selectolax.lexbor import LexborHTMLParser

    if _XHTML.search(source[:2000]):  # XML closes elements as HTML does not: after <title/> all would be the title
        source = _CLOSED.sub(r"<\1\2></\1>", source)
    tree = LexborHTMLParser(source.replace("\0", "\ufffd"))
    root = tree.root
    if root is None:
        return Document(text="")
    page = _Page()
    # Where a page says what its main part is, the rest is boilerplate.
    mains = tree.css("main, [role=main]")
    _walk(mains[0] if len(mains) == 1 and len((mains[0].text() or "").strip()) > 200 else tree.body or root, page)
    text, blocks = page.finish()
    title = tree.css_first("title")
    name = _squeezed(title.text() or "") if title is not None else ""
    first = next((block for block in blocks if block.kind == "heading" and block.level == 1), None)
    return Document(text=text, title=name or (first.span.of(text) if first else ""), meta=_meta(tree), blocks=blocks)


def _squeezed(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _meta(tree: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    html = tree.css_first("html")
    if html is not None and html.attributes.get("lang"):
        meta["lang"] = html.attributes["lang"]
    wanted = {
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
    for node in tree.css("meta"):
        fields = node.attributes
        name = (fields.get("name") or fields.get("property") or "").lower()
        content = _squeezed(fields.get("content") or "")
        if name in wanted and content:
            meta.setdefault(wanted[name], content)
    return meta


@dataclass(slots=True)
class _Page:
    """The text so far, and the blocks. Line breaks are owed until the next word comes, so no blank ends are written."""

    parts: list[str] = field(default_factory=list)
    size: int = 0
    told: int = 0  # where the last word ends
    owed: int = 0  # newlines before the next word
    space: bool = False  # a space before the next word
    joint: str = ""  # what stands between two cells
    blocks: list[list[Any]] = field(default_factory=list)  # kind, level, start, end; start -1 until a word comes
    open: list[list[Any]] = field(default_factory=list)
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

    def break_line(self, lines: int) -> None:
        if self.cells:
            self.space = True
        else:
            self.owed = max(self.owed, lines)

    def write(self, text: str) -> None:
        """Text without white space around it."""
        text, self.label = self.label + text, ""
        lead = "" if not self.size else "\n" * self.owed if self.owed else "" if self.joint else " " * self.space
        self.parts.append(lead)
        self.size += len(lead)
        joint = self.joint
        self.owed, self.space, self.joint = 0, False, ""
        for block in self.open:
            if block[2] < 0:
                block[2] = self.size
        self.append(joint + text)

    def append(self, text: str) -> None:
        self.parts.append(text)
        if kept := len(text.rstrip()):
            self.told = self.size + kept
        self.size += len(text)

    def words(self, text: str) -> None:
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

    def begin_cell(self, columns: int, rows: float) -> None:
        """`rows` is infinite for a cell that reaches to the table's end."""
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
        """The cells of the rows above that reach down to the next columns."""
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
        block = [kind, level, -1, -1]
        self.blocks.append(block)
        self.open.append(block)

    def trim(self) -> None:
        """Takes back white space at the end."""
        while self.parts and (kept := self.parts[-1].rstrip()) != self.parts[-1]:
            self.size -= len(self.parts[-1]) - len(kept)
            self.parts[-1] = kept
            if not kept:
                self.parts.pop()

    def end(self) -> None:
        self.open.pop()[3] = self.told  # the blanks after it may yet be taken back

    def finish(self) -> tuple[str, tuple[Block, ...]]:
        kept = [b for b in self.blocks if 0 <= b[2] < b[3]]
        kept.sort(key=lambda b: b[2])  # stable: an outer block was begun first
        return "".join(self.parts), tuple(Block(kind, Span(start, end), min(level, DEEPEST)) for kind, level, start, end in kept)


def _walk(root: Any, page: _Page) -> None:
    """Depth first. The list holds nodes to enter, and what is to be closed once the children of one are done."""
    stack: list[Any] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            _leave(item, page)
            continue
        tag = item.tag
        if tag == "-text":
            _text((item.text_content or "").replace(SOFT_HYPHEN, ""), page)
            continue
        if tag is None or tag.startswith(("-", "_", "!")) or _skipped(item, tag):  # None: <?php ... ?>
            continue
        if tag in _SPOKEN and (spoken := item.attributes.get(_SPOKEN[tag])):
            page.words(f" {spoken} ")
            continue
        stack.append(_enter(item, tag, page))
        children = []
        child = item.first_child
        while child is not None:
            children.append(child)
            child = child.next
        stack.extend(reversed(children))


def _text(text: str, page: _Page) -> None:
    if not page.preformatted:
        page.words(text)
        return
    body = text.replace("\r\n", "\n")
    if page.size and not page.parts[-1].endswith("\n") and not page.owed and not page.space:
        page.append(body)  # goes on where the last piece of the same <pre> stopped
    elif body.strip():
        page.write(body.lstrip("\n"))


def _skipped(node: Any, tag: str) -> bool:
    if tag in _HIDDEN:
        return True
    fields = node.attributes
    if not fields:
        return False
    style = (fields.get("style") or "").replace(" ", "").lower()
    hidden = "hidden" in fields or fields.get("aria-hidden") == "true" or "display:none" in style or "visibility:hidden" in style
    return hidden or (fields.get("role") or "").lower() in _ROLES


def _enter(node: Any, tag: str, page: _Page) -> str:
    """Opens what the element is; returns what `_leave` must close."""
    lines = 0
    if tag in ("tr", "td", "th") and not page.cells and page.tables and page.tables[-1]:
        page.break_line(2)
        return "lines"
    follows = tag in ("td", "th") and not page.cells and _has_cell_before(node)
    if not follows and (tag in _BLOCKS or tag == "br"):
        lines = 1 if tag in _TIGHT or page.lists else 2
        page.break_line(lines)
    if page.cells:
        return "line" if lines and tag != "br" else ""  # within a cell everything is the row's text
    if tag in _HEADINGS:
        page.begin("heading", int(tag[1]))
    elif tag in ("p", "dt", "dd"):
        page.begin("paragraph", page.lists)
    elif tag in ("ul", "ol", "dl"):
        page.begin("list", page.lists)
        page.lists += 1
        page.numbers.append(_integer(node, "start", 1) - 1 if tag == "ol" else None)
        return "list"
    elif tag == "li" and page.numbers and page.numbers[-1] is not None:
        page.numbers[-1] = _integer(node, "value", page.numbers[-1] + 1)
        page.label = f"{page.numbers[-1]}. "
        return "item"
    elif tag == "table":
        page.tables.append(_is_layout(node, len(page.tables)))
        if page.tables[-1]:
            return "layout"
        page.begin("table", 0)
        page.begin_table()
        return "table"
    elif tag in _SIMPLE:
        page.begin(_SIMPLE[tag], 0)
    elif tag == "pre":
        page.begin("code", 0)
        page.preformatted += 1
        return "pre"
    elif tag == "tr":
        page.begin("row", int(_is_header(node)))
        page.begin_row()
        return "row"
    elif tag in ("td", "th"):
        page.begin_cell(max(_spanned(node, "colspan", _COLUMNS), 1), _spanned(node, "rowspan", _ROWS) or math.inf)
        return "cell"
    else:
        return ("line" if lines == 1 else "lines") if lines and tag != "br" else ""
    return "block"


def _leave(what: str, page: _Page) -> None:
    if what == "pre":
        page.trim()
    if what == "row":
        page.repeat_above()
    if what in ("block", "list", "pre", "row", "table"):
        page.end()
    if what in ("table", "layout"):
        page.tables.pop()
    elif what == "item":
        page.label = ""
    if what == "list":
        page.lists -= 1
        page.numbers.pop()
    elif what == "pre":
        page.preformatted -= 1
    elif what == "cell":
        page.end_cell()
        return
    elif what == "row":
        page.joint = ""
    if what:
        page.break_line(1 if what in ("line", "item", "row") or (what in ("block", "list", "table") and page.lists) else 2)


def _is_layout(table: Any, depth: int) -> bool:
    """Whether a table only lays the page out, as those of newsletters do: it says so, or is one column that holds more than
    lines of text. Its cells are then read as the blocks they hold."""
    if (table.attributes.get("role") or "") in ("presentation", "none"):
        return True
    parts = [part for part in table.iter() if part.tag in ("tbody", "tr")]
    rows = [row for part in parts for row in ([part] if part.tag == "tr" else part.iter()) if row.tag == "tr"]
    if not rows or depth > _NESTED or any(len(cells := [c.tag for c in row.iter()]) > 1 or "th" in cells for row in rows):
        return False
    return rows[0].css_first("h1, h2, h3, h4, h5, h6, p, ul, ol, table, pre, blockquote") is not None


def _is_header(row: Any) -> bool:
    """Whether a row stands in the table's head, or has header cells only."""
    parent = row.parent
    if parent is not None and parent.tag == "thead":
        return True
    cells = [child.tag for child in row.iter()]
    return bool(cells) and all(tag == "th" for tag in cells)


def _spanned(cell: Any, name: str, most: int) -> int:
    """How many columns or rows a cell covers: 1 unless it says so; 0 rows are all that follow (HTML, 4.9.11)."""
    return min(_integer(cell, name, 1), most)


def _integer(node: Any, name: str, default: int) -> int:
    said = (node.attributes.get(name) or "").strip()
    return int(said) if said.isdecimal() and len(said) < 10 else default


def _has_cell_before(cell: Any) -> bool:
    before = cell.prev
    while before is not None:
        if before.tag in ("td", "th"):
            return True
        before = before.prev
    return False

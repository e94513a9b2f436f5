"""HTML: the text a reader sees, without scripts, styles and navigation, with its headings, lists, tables, code and alt texts.

Parsed by Lexbor (selectolax) as browsers do. The tree is walked with a stack of its own, so deep trees do not exhaust Python's.
Cells of a table row are joined by " | ", and a cell that covers several columns or rows stands in each; list items are lines of
their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ragkit.core.types import Document, Json
from ragkit.load.builder import SOFT_HYPHEN
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers.html_text import HtmlText, squeeze_spaces

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
_NESTED = 50  # depth of tables down to which those that only lay the page out are recognised
_COLUMNS, _ROWS = 1000, 65534  # that one cell covers, at most (HTML, 4.9.11)
_TIGHT = {"br", "li", "tr", "dt", "dd", "td", "th", "thead", "tbody", "tfoot"}  # one line end around them, not a blank line
_SIMPLE = {"blockquote": "quote", "figcaption": "caption", "caption": "caption"}
_MAIN = 200  # characters above which what a page calls its main part is taken for it
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
    page = HtmlText()
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
    return "" if title is None else squeeze_spaces(title.text() or "")


def _meta(tree: LexborHTMLParser) -> Json:
    meta: Json = {}
    html = tree.css_first("html")
    if html is not None and html.attributes.get("lang"):
        meta["lang"] = html.attributes["lang"]
    for node in tree.css("meta"):
        fields = node.attributes
        name = (fields.get("name") or fields.get("property") or "").lower()
        content = squeeze_spaces(fields.get("content") or "")
        if name in _META and content:
            meta.setdefault(_META[name], content)
    return meta


def _walk(root: LexborNode, page: HtmlText) -> None:
    """Go through the tree depth first. The stack holds nodes to enter, and what is to be closed after a node's children."""
    stack: list[LexborNode | str] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            _leave(item, page)
        elif (closing := _visit(item, page)) is not None:
            stack.append(closing)
            stack.extend(reversed(list(_children(item))))


def _visit(node: LexborNode, page: HtmlText) -> str | None:
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


def _text(text: str, page: HtmlText) -> None:
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


def _enter(node: LexborNode, tag: str, page: HtmlText) -> str:
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


def _break_before(node: LexborNode, tag: str, page: HtmlText) -> int:
    """Break the line before a block, a <br>, and the first cell of a row; return by how many lines."""
    follows = tag in ("td", "th") and not page.cells and _has_cell_before(node)
    if follows or (tag not in _BLOCKS and tag != "br"):
        return 0
    lines = 1 if tag in _TIGHT or page.lists else 2
    page.break_line(lines)
    return lines


def _open_heading(node: LexborNode, page: HtmlText) -> str:
    page.begin("heading", int((node.tag or "")[1]))
    return "block"


def _open_paragraph(_node: LexborNode, page: HtmlText) -> str:
    page.begin("paragraph", page.lists)
    return "block"


def _open_simple(node: LexborNode, page: HtmlText) -> str:
    page.begin(_SIMPLE[node.tag or ""], 0)
    return "block"


def _open_list(node: LexborNode, page: HtmlText) -> str:
    page.begin("list", page.lists)
    page.lists += 1
    page.numbers.append(_integer(node, "start", 1) - 1 if node.tag == "ol" else None)
    return "list"


def _open_item(node: LexborNode, page: HtmlText) -> str:
    last = page.numbers[-1] if page.numbers else None
    if last is None:
        return "line"
    page.numbers[-1] = _integer(node, "value", last + 1)
    page.label = f"{page.numbers[-1]}. "
    return "item"


def _open_table(node: LexborNode, page: HtmlText) -> str:
    page.tables.append(_is_layout(node, len(page.tables)))
    if page.tables[-1]:
        return "layout"
    page.begin("table", 0)
    page.begin_table()
    return "table"


def _open_row(node: LexborNode, page: HtmlText) -> str:
    page.begin("row", int(_is_header(node)))
    page.begin_row()
    return "row"


def _open_cell(node: LexborNode, page: HtmlText) -> str:
    page.begin_cell(max(_spanned(node, "colspan", _COLUMNS), 1), _spanned(node, "rowspan", _ROWS) or math.inf)
    return "cell"


def _open_code(_node: LexborNode, page: HtmlText) -> str:
    page.begin("code", 0)
    page.preformatted += 1
    return "code"


_OPENERS: dict[str, Callable[[LexborNode, HtmlText], str]] = {
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

_CLOSERS: dict[str, Callable[[HtmlText], None]] = {
    "block": HtmlText.end,
    "code": HtmlText.end_code,
    "list": HtmlText.end_list,
    "item": HtmlText.end_item,
    "table": HtmlText.end_table,
    "layout": HtmlText.end_layout,
    "row": HtmlText.end_row,
}


def _leave(what: str, page: HtmlText) -> None:
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

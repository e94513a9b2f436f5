"""A Document is written from top to bottom: loaders of structured files say what comes next, spans and pages follow.

The text is what a reader sees, without markup. A blank line stands between blocks, a line end between list items and table
rows, " | " between cells, and between pages a form feed that belongs to no page. White space within a line is squeezed. A
table's row stands on one line: a line end in a cell becomes a space. A document over `Limits.characters` or `Limits.pages`
raises LimitExceeded at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from ragkit.core.errors import LimitExceeded
from ragkit.core.types import Block, Document, Metadata, Page, Span, Words
from ragkit.load.limits import Limits

CELL = " | "
PAGE_BREAK = "\n\f\n"
SOFT_HYPHEN = "\xad"
REPEATED = 500_000  # characters of a file's table cells that are written again for the columns and rows they cover
_SPACE = re.compile(r"[^\S\n\xa0\u202f]+")
_LINES = re.compile(r" ?\n ?")
_ROMAN = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl")),
    *((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)
_UNSTORABLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]")


def clean(text: str) -> str:
    """Return text without soft hyphens, which part words that a reader sees whole; control characters and lone surrogates become
    U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text.replace(SOFT_HYPHEN, "")) if not text.isprintable() else text


def squeezed(text: str) -> str:
    """Return text with one space for each run of white space within a line, and none around lines."""
    return _LINES.sub("\n", _SPACE.sub(" ", clean(text))).strip(" \n")


def one_line(text: str) -> str:
    """Return text with one space for each run of white space, line ends included."""
    return " ".join(clean(text).split())


def numeral(number: int, form: str) -> str:
    """Return a number in one of the formats of lists: decimal, lowerLetter, upperLetter, lowerRoman, upperRoman."""
    if form.endswith("Letter"):
        letter = chr(ord("a") + (number - 1) % 26) * min((number - 1) // 26 + 1, 20) if number > 0 else ""
        return letter.upper() if form.startswith("upper") else letter
    if form.endswith("Roman") and 0 < number < 4000:
        result = ""
        for value, sign in _ROMAN:
            result += sign * (number // value)
            number %= value
        return result.upper() if form.startswith("upper") else result
    return f"{number:02}" if form == "decimalZero" else str(number)


class DocumentBuilder:
    """Builds one Document, from its beginning to its end. Empty texts write nothing. Raises LimitExceeded."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts: list[str] = []
        self._size = 0
        self._gap = ""
        self._top = 0  # where the text of the page under way begins: no gap is owed there
        self._blocks: list[tuple[str, int, int, int]] = []  # kind, start, end, level
        self._lists: list[int] = []  # positions in _blocks of the lists that are open, outermost first
        self._pages: list[tuple[int, float, float, str | None]] = []  # start, width, height, label
        self._ends: list[int] = []  # where the pages before the last one end
        self._numbers: list[int] = []

    @property
    def size(self) -> int:
        """The characters so far, without the gap that is owed to the next block."""
        return self._size

    @property
    def pages(self) -> int:
        return len(self._pages)

    def _write(self, text: str) -> Span:
        """Write the gap that is owed, then the text. Returns the text's span."""
        start = self._size + len(self._gap)
        if start + len(text) > self._limits.characters:
            raise LimitExceeded(f"more than {self._limits.characters} characters (Limits.characters)")
        self._parts += (self._gap, text)
        self._size = start + len(text)
        self._gap = ""
        return Span(start, self._size)

    def _owe_gap(self) -> None:
        """Let a blank line stand before the next text, unless it begins its page."""
        if self._size > self._top:
            self._gap = self._gap or "\n\n"

    def block(self, kind: str, text: str, level: int = 0) -> Span | None:
        """Write a block of its own, with `text` as it is. Returns its span, None for an empty one."""
        self.end_lists()
        if not text.strip():
            return None
        self._owe_gap()
        span = self._write(text)
        self._blocks.append((kind, span.start, span.end, level))
        self._gap = "\n\n"
        return span

    def heading(self, text: str, level: int) -> Span | None:
        return self.block("heading", one_line(text), min(max(level, 1), 6))

    def paragraph(self, text: str, kind: str = "paragraph") -> Span | None:
        return self._code(clean(text).rstrip()) if kind == "code" else self.block(kind, squeezed(text))

    def _code(self, text: str) -> Span | None:
        """Write a line of code with its indentation; lines that follow each other are one block."""
        last = self._blocks[-1] if self._blocks else None
        if not text or self._lists or last is None or last[0] != "code" or last[2] != self._size or self._top == self._size:
            return self.block("code", text)
        self._gap = "\n"
        span = self._write(text)
        self._blocks[-1] = ("code", last[1], span.end, last[3])
        self._gap = "\n\n"
        return span

    def item(self, text: str, depth: int = 0) -> Span | None:
        """Write an item of a list that is `depth` lists deep, on lines of its own. Items that follow each other share a list."""
        text = squeezed(text)
        if not text:
            return None
        depth = min(max(depth, 0), 20)
        while len(self._lists) > depth + 1:
            self._close_list()
        if self._lists:
            self._gap = "\n"
        else:
            self._owe_gap()
        while len(self._lists) < depth + 1:
            start = self._size + len(self._gap)
            self._lists.append(len(self._blocks))
            self._blocks.append(("list", start, start, len(self._lists) - 1))
        span = self._write(text)
        self._blocks.append(("paragraph", span.start, span.end, depth + 1))
        return span

    def _close_list(self) -> None:
        at = self._lists.pop()
        kind, start, _, level = self._blocks[at]
        self._blocks[at] = (kind, start, self._size, level)

    def end_lists(self) -> None:
        if self._lists:
            self._gap = "\n\n"
        while self._lists:
            self._close_list()

    def table(self, rows: Iterable[Sequence[str]], *, headers: int = 0, caption: str = "") -> None:
        """Write a table: each row a line, its cells apart by " | "; the first `headers` rows are header rows."""
        self.end_lists()
        if caption:
            self.paragraph(caption, "caption")
        at = len(self._blocks)
        for row in rows:
            line = CELL.join(map(one_line, row))
            if not line.replace("|", "").strip():
                continue
            line = line.rstrip()
            if len(self._blocks) == at:
                self._owe_gap()
                self._blocks.append(("table", self._size + len(self._gap), 0, 0))
            else:
                self._gap = "\n"
            span = self._write(line)
            self._blocks.append(("row", span.start, span.end, int(len(self._blocks) - at <= headers)))
        if len(self._blocks) > at:
            self._blocks[at] = ("table", self._blocks[at][1], self._size, 0)
            self._gap = "\n\n"

    def page(self, width: float, height: float, label: str | None = None, *, number: int | None = None) -> None:
        """Begin a page; sizes in points. It has the next number unless another is given. The first page also holds what was
        written before it."""
        self.end_lists()
        if self._pages:
            self._ends.append(self._size)
            # One break between two pages, also where the first of them is empty.
            self._gap = ""
            self._write(PAGE_BREAK)
            start = self._top = self._size
        else:
            start = 0
        self._page(start, width, height, label, number)

    def page_from(self, start: int, width: float, height: float) -> None:
        """Begin a page at a character that was written already, since a paragraph runs on from one page to the next."""
        if self._pages:
            self._ends.append(max(start, self._pages[-1][0]))
        self._page(max(start, self._pages[-1][0]) if self._pages else 0, width, height, None, None)

    def _page(self, start: int, width: float, height: float, label: str | None, number: int | None) -> None:
        if len(self._pages) >= self._limits.pages:
            raise LimitExceeded(f"more than {self._limits.pages} pages (Limits.pages)")
        self._pages.append((start, width, height, one_line(label) if label else None))
        last = self._numbers[-1] if self._numbers else 0
        self._numbers.append(last + 1 if number is None else max(number, last + 1))

    def include(self, document: Document) -> None:
        """Write another document's text and blocks, as they are."""
        self.end_lists()
        if not document.text.strip():
            return
        self._owe_gap()
        start = self._write(document.text).start
        self._blocks += [(block.kind, block.span.start + start, block.span.end + start, block.level) for block in document.blocks]
        self._gap = "\n\n"

    def document(self, *, title: str = "", meta: Metadata | None = None) -> Document:
        """Return the Document. Without a `title` it takes the first heading, if that is of level 1 or 2."""
        self.end_lists()
        text = "".join(self._parts)
        blocks = tuple(Block(kind, Span(start, end), level) for kind, start, end, level in self._blocks)
        empty = Words(np.empty((0, 2), np.int64), np.empty((0, 4), np.float32))
        pages = tuple(
            Page(number, width, height, Span(start, end), empty, label)
            for (start, width, height, label), end, number in zip(
                self._pages, [*self._ends, self._size] if self._pages else [], self._numbers, strict=True
            )
        )
        fields = {name: value for name, value in (meta or {}).items() if value not in ("", None, [], {})}
        if pages:
            fields.setdefault("pages", len(pages))
        return Document(text=text, title=one_line(title) or _first_heading(text, blocks), meta=fields, pages=pages, blocks=blocks)


def _first_heading(text: str, blocks: Sequence[Block]) -> str:
    first = next((block for block in blocks if block.kind == "heading"), None)
    return "" if first is None or first.level > 2 else one_line(first.span.of(text))

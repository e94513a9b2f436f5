"""The text of an HTML page as it is written, word by word: line breaks, numbers of lists, cells of tables, and the blocks.

It knows nothing of elements: `html` says what begins and ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ragkit.core.types import Block, Span
from ragkit.load.builder import CELL, REPEATED
from ragkit.load.records import DEEPEST

_SPACE = re.compile(r"[ \t\r\n\f]+")


def squeeze_spaces(text: str) -> str:
    """Return text with its white space, as HTML defines it, squeezed, and none around it."""
    return _SPACE.sub(" ", text).strip()


@dataclass(slots=True)
class _OpenBlock:
    """A block whose text is being written."""

    kind: str
    level: int
    start: int = -1  # until a word comes
    end: int = -1  # until it is closed


@dataclass(slots=True)
class HtmlText:
    """The text of a page so far, and its blocks. Line ends are owed until the next word comes, so blank lines end no text."""

    parts: list[str] = field(default_factory=list)
    size: int = 0
    words_end: int = 0  # where the last word ends
    owed: int = 0  # newlines before the next word
    space: bool = False  # a space before the next word
    joint: str = ""  # what stands between two cells
    blocks: list[_OpenBlock] = field(default_factory=list)
    open: list[_OpenBlock] = field(default_factory=list)  # outermost first
    lists: int = 0
    numbers: list[int | None] = field(default_factory=list)  # of the open lists: the last item's, None where there are none
    label: str = ""  # the number before an item's first word
    tables: list[bool] = field(default_factory=list)  # of the open tables: whether each only lays the page out
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
        words = squeeze_spaces(text)
        if not words:
            self.space = self.space or bool(text)
            return
        self.space = self.space or text[0] in " \t\r\n\f"
        self.write(words)
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
        self.joint = self.joint + CELL if self.column else ""
        self.cell = len(self.parts), len(self.joint), columns, rows
        self.cells += 1

    def end_cell(self) -> None:
        self.cells -= 1
        self.space = False
        first, joint, columns, rows = self.cell
        text = "".join(self.parts[first + 1 :])[joint:] if len(self.parts) > first else ""  # the first part only leads to it
        for number in range(columns):
            self.spare -= len(text) + len(CELL) if columns > 1 or rows > 1 else 0
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
            self.spare -= len(text) + len(CELL)
            if self.spare < 0:
                self.above.clear()
                return
            self._repeat(text)
            self.column += 1

    def _repeat(self, text: str) -> None:
        self.joint = self.joint + CELL if self.column else ""
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

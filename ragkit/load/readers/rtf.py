"""Rich Text Format: its text by striprtf, a paragraph to a line, table rows; title, author and dates from its head.

Striprtf keeps neither headings nor footnotes. So signs that no text has (Unicode's noncharacters) are written into the source
before it reads it: where a paragraph has a heading's style or outline level, and around a footnote. They are looked for in its
result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count, groupby
from pathlib import Path

from ragkit.core.errors import LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Document, Json
from ragkit.load.builder import DocumentBuilder
from ragkit.load.limits import Options

_INFO = {"title": "title", "author": "author", "subject": "subject", "keywords": "keywords"}
_FIELD = re.compile(r"\{\\(title|author|subject|keywords) ([^{}]*)\}")
_SYMBOLS = re.compile("[\uf000-\uf0ff]")  # of symbol fonts: bullets and ticks
_PAGE = re.compile(r"\\ansicpg\d+")
_STYLE = re.compile(r"\{\\s(\d+)(?!\d)[^{}]*?heading (\d);\}", re.IGNORECASE)
_LEVEL = re.compile(r"\\(?:s(\d+)|outlinelevel([0-8]))(?=[\\ {}\r\n])")
_BRACES = re.compile(r"\\[\\{}]|\{(?:\\\*)?\\footnote(?![a-z])|[{}]")
_BEGIN, _END, _HEADING = 0xFDD0, 0xFDD1, 0xFDD2  # the last is level 1, and eight more follow
_SIGNS = re.compile("[\ufdd0-\ufdda]")
_HEADINGS = re.compile("[\ufdd2-\ufdda]")
_NOTED = re.compile("\ufdd0([^\ufdd0\ufdd1]*)\ufdd1")
_MARK = re.compile(r"\ufdd0\[(\d+)\]")
_DATE = re.compile(r"\{\\(creatim|revtim)\\yr(\d+)\\mo(\d+)\\dy(\d+)(?:\\hr(\d+)\\min(\d+))?")


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of an .rtf file."""
    try:
        from striprtf.striprtf import rtf_to_text
    except ImportError:
        raise UnsupportedFormat(str(MissingExtra.of("striprtf", "office", "reading RTF"))) from None
    source = path.read_bytes().decode("latin-1")  # RTF is ASCII; bytes beyond it are written as escapes
    if not source.lstrip().startswith("{\\rtf"):
        raise LoadError("not an RTF file: it does not begin with {\\rtf")
    text = rtf_to_text(_marked(source), errors="replace").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    builder = DocumentBuilder(options.limits)
    _write(builder, _SYMBOLS.sub("", text))
    meta = _meta(source[:65536], rtf_to_text)
    yield builder.document(title=meta.pop("title", ""), meta=meta)


def _marked(source: str) -> str:
    """Return the source with signs before headings and around footnotes, which are taken out of the group that hides them."""
    levels = {number: int(level) for number, level in _STYLE.findall(source)}

    def heading(match: re.Match[str]) -> str:
        level = int(match[2]) + 1 if match[2] else levels.get(match[1], 0)
        return f"{match[0]}{_sign(_HEADING + min(level, 9) - 1)}" if level else match[0]

    pieces: list[str] = []
    at, depth, outside = 0, 0, -1  # outside: the depth around the footnote under way
    for brace in _BRACES.finditer(source):
        if brace[0].endswith("footnote") and outside < 0:
            pieces += [source[at : brace.start()], "{", _sign(_BEGIN)]
            at, outside = brace.end(), depth
        depth += {"{": 1, "}": -1, "\\": 0}[brace[0][0]]
        if depth == outside:
            pieces += [source[at : brace.start()], _sign(_END)]
            at, outside = brace.start(), -1
    return _LEVEL.sub(heading, "".join([*pieces, source[at:]]))


def _sign(code: int) -> str:
    return f"{{\\uc0\\u{code - 0x10000} }}"


def _write(builder: DocumentBuilder, text: str) -> None:
    notes = [note.strip() for note in _NOTED.findall(text)]
    numbers = count(1)
    text = _NOTED.sub(lambda _: f"{chr(_BEGIN)}[{next(numbers)}]", text)

    def follow(line: str) -> None:
        for match in _MARK.finditer(line):
            builder.paragraph(f"[{match[1]}] {notes[int(match[1]) - 1]}", "footnote")

    for is_row, lines in groupby(text.split("\n"), key=lambda line: line.endswith("|")):
        if is_row:
            rows = list(lines)
            builder.table([_SIGNS.sub("", row).removesuffix("|").split("|") for row in rows])
            follow("".join(rows))
            continue
        for line in lines:
            if sign := _HEADINGS.search(line):
                builder.heading(_SIGNS.sub("", line), ord(sign[0]) - _HEADING + 1)
            else:
                builder.paragraph(_SIGNS.sub("", line))
            follow(line)


def _meta(head: str, plain: Callable[..., str]) -> Json:
    """Return title, author and dates; `plain` is striprtf's function that makes text of RTF."""
    meta: Json = {}
    page = _PAGE.search(head)
    for match in _FIELD.finditer(head):
        value = plain(f"{{\\rtf1\\ansi{page[0] if page else ''} {match[2]}}}", errors="replace").strip()
        if value.strip("?\ufffd "):  # what the code page cannot hold is written as question marks
            meta.setdefault(_INFO[match[1]], value)
    for match in _DATE.finditer(head):
        kind, year, month, day, hour, minute = match.groups()
        date = f"{int(year):04}-{int(month):02}-{int(day):02}" + (f"T{int(hour):02}:{int(minute):02}:00" if hour else "")
        if 0 < int(month) <= 12 and 0 < int(day) <= 31:
            meta["created" if kind == "creatim" else "modified"] = date
    return meta

"""Rich Text Format: its text by striprtf, a paragraph to a line, table rows as rows; title, author and dates from its head."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ragkit.errors import LoadError, MissingExtra, UnsupportedFormat
from ragkit.load.draft import Draft
from ragkit.load.limits import Options
from ragkit.types import Document

_INFO = {"title": "title", "author": "author", "subject": "subject", "keywords": "keywords"}
_FIELD = re.compile(r"\{\\(title|author|subject|keywords) ([^{}]*)\}")
_SYMBOLS = re.compile("[\uf000-\uf0ff]")  # of symbol fonts: bullets and ticks
_PAGE = re.compile(r"\\ansicpg\d+")
_DATE = re.compile(r"\{\\(creatim|revtim)\\yr(\d+)\\mo(\d+)\\dy(\d+)(?:\\hr(\d+)\\min(\d+))?")


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of an .rtf file."""
    try:
        from striprtf.striprtf import rtf_to_text
    except ImportError:
        raise UnsupportedFormat(str(MissingExtra.of("striprtf", "office", "reading RTF"))) from None
    source = path.read_bytes().decode("latin-1")  # RTF is ASCII; bytes beyond it are told by their own escapes
    if not source.lstrip().startswith("{\\rtf"):
        raise LoadError("it is no RTF: it does not begin with {\\rtf")
    text = _SYMBOLS.sub("", rtf_to_text(source, errors="replace"))
    draft = Draft(options.limits)
    for is_row, lines in groupby(text.split("\n"), key=lambda line: line.endswith("|")):
        if is_row:
            draft.table([line.removesuffix("|").split("|") for line in lines])
        else:
            for line in lines:
                draft.paragraph(line)
    meta = _meta(source[:65536], rtf_to_text)
    yield draft.document(title=meta.pop("title", ""), meta=meta)


def _meta(head: str, plain: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    page = _PAGE.search(head)
    for match in _FIELD.finditer(head):
        value = plain(f"{{\\rtf1\\ansi{page[0] if page else ''} {match[2]}}}", errors="replace").strip()
        if value.strip("?\ufffd "):  # what the code page cannot hold is written as question marks
            found.setdefault(_INFO[match[1]], value)
    for match in _DATE.finditer(head):
        kind, year, month, day, hour, minute = match.groups()
        date = f"{int(year):04}-{int(month):02}-{int(day):02}" + (f"T{int(hour):02}:{int(minute):02}:00" if hour else "")
        if 0 < int(month) <= 12 and 0 < int(day) <= 31:
            found["created" if kind == "creatim" else "modified"] = date
    return found

"""Tables as text (CSV, TSV): the delimiter is found, each record is a row, the first is the header where it is all words.

Quotes are resolved and a line end within a cell is a space, so a row is a line of cells apart by " | ".
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from io import StringIO
from itertools import chain, islice
from pathlib import Path

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.load.builder import DocumentBuilder, clean
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers.sheet import has_header

_DELIMITERS = "\t;|,"  # of two that cut equally well the first: beside semicolons, commas stand within cells
_SAMPLE = 50  # records looked at
_EXCEL_LINE = re.compile(r"sep=([^\w \r\n\"])\r?\n", re.IGNORECASE)  # a first line that Excel writes and reads


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a table."""
    text = clean(text_of(path.read_bytes()))
    stated = _EXCEL_LINE.match(text)
    delimiter = stated[1] if stated else "\t" if path.suffix.lower() in (".tsv", ".tab") else _delimiter(text)
    csv.field_size_limit(min(options.limits.characters, sys.maxsize))
    lines = csv.reader(StringIO(text[stated.end() :] if stated else text, newline=""), delimiter=delimiter)
    builder = DocumentBuilder(options.limits)
    try:
        first = list(islice(lines, _SAMPLE))
        builder.table(chain(first, lines), headers=int(has_header([row for row in first if any(row)])))
    except csv.Error as error:
        raise LoadError(f"line {lines.line_num}: {error}") from None
    yield builder.document(meta={"rows": lines.line_num})


def _delimiter(text: str) -> str:
    """Return the delimiter that cuts most of the first records into as many columns, and into many."""

    def quality(delimiter: str) -> tuple[bool, bool, int]:
        try:
            rows = [row for row in islice(csv.reader(StringIO(text[:65536], newline=""), delimiter=delimiter), _SAMPLE) if row]
        except csv.Error:
            return False, False, 0
        widths = sorted(len(row) for row in (rows[:-1] if len(rows) > 2 else rows))  # the last may be cut short
        if not widths:
            return False, False, 0
        middle = widths[(len(widths) - 1) // 2]  # a title or a remark above the table is not its width
        return middle > 1, max(map(widths.count, set(widths))) >= 0.8 * len(widths), middle

    return max(_DELIMITERS, key=quality)

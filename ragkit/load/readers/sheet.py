"""Spreadsheets (xlsx, xlsm, xlsb, xls, ods), read by calamine: a page per sheet, labelled and headed with its name.

What lies together, without an empty row in between, is a table; its first row is the header where it is all words.
Formulas are their last computed values. A merged cell's text stands in each cell it covers.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from ragkit.core.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Document, Json
from ragkit.load.builder import DocumentBuilder, one_line
from ragkit.load.limits import Options
from ragkit.load.readers.odf import properties
from ragkit.load.readers.zip_xml import ENCRYPTED, ENCRYPTED_PACKAGE, Package, core_properties

_SIZE = (612.0, 792.0)  # points; a sheet has no size of its own, and citations need none
_YEAR = re.compile(r"(?:19|20)\d\d")
_MERGED = 100_000  # cells filled from merged ones, at most

Sheet = Any  # python_calamine.CalamineSheet: naming the type would import calamine, which not every installation has


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a spreadsheet."""
    try:
        import python_calamine as calamine
    except ImportError:
        raise UnsupportedFormat(str(MissingExtra.of("python-calamine", "office", "reading spreadsheets"))) from None
    data = path.read_bytes()
    meta: Json = {}
    if data.startswith(b"PK"):
        package = Package(data, options)
        package.measure()  # the parser in Rust inflates without counting
        meta = properties(package) if "content.xml" in package else core_properties(package)
    elif ENCRYPTED_PACKAGE in data:
        raise EncryptedDocument(ENCRYPTED)
    title = meta.pop("title", "")
    builder = DocumentBuilder(options.limits)
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(BytesIO(data))
        for number, name in enumerate(workbook.sheet_names, start=1):
            options.on_page(number)
            builder.page(*_SIZE, label=name)
            builder.heading(name, 1)
            sheet = workbook.get_sheet_by_index(number - 1)
            _write(builder, _cells(sheet))
    except calamine.PasswordError:
        raise EncryptedDocument(ENCRYPTED) from None
    except calamine.CalamineError as error:
        raise LoadError(f"not a spreadsheet, or damaged: {error}") from None
    yield builder.document(title=title or Path(path.name).stem, meta=meta)


def _cells(sheet: Sheet) -> list[list[str]]:
    """Return the cells' texts; those that a merged cell covers have its text."""
    rows = [[shown(value) for value in row] for row in sheet.to_python()]
    for row, column, text in islice(_covered(sheet, rows), _MERGED):
        rows[row][column] = rows[row][column] or text
    return rows


def _covered(sheet: Sheet, rows: list[list[str]]) -> Iterator[tuple[int, int, str]]:
    """Yield row, column and text of each cell that a merged one covers, that one itself included."""
    first_row, first_column = sheet.start or (0, 0)
    for (top, left), (bottom, right) in sheet.merged_cell_ranges or ():
        if top < first_row or left < first_column:
            continue  # it begins before the first cell with a value, and so has none
        for row in range(top - first_row, min(bottom - first_row + 1, len(rows))):
            for column in range(left - first_column, min(right - first_column + 1, len(rows[row]))):
                yield row, column, rows[top - first_row][left - first_column]


def shown(value: object) -> str:
    """Return a cell's value as people write it: whole numbers without a fraction, dates in ISO form."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ").removesuffix(" 00:00:00")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return one_line(str(value))


def _write(builder: DocumentBuilder, rows: Sequence[Sequence[str]]) -> None:
    together: list[Sequence[str]] = []
    for row in [*rows, ()]:
        if any(row):
            together.append(row)
        elif together:
            _write_table(builder, _without_empty_columns(together))
            together = []


def _without_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the rows without the columns that are empty in all of them; shorter rows are filled up."""
    filled = list(zip_longest(*rows, fillvalue=""))
    return [list(row) for row in zip(*(column for column in filled if any(column)), strict=True)]


def _write_table(builder: DocumentBuilder, rows: list[list[str]]) -> None:
    """Write a table; rows of one cell above it are titles, and a single cell is a line of text."""
    columns = len(rows[0])
    while columns > 1 and len(rows) > 1 and len(cells := [cell for cell in rows[0] if cell]) == 1:
        builder.paragraph(cells[0])
        rows = rows[1:]
    if columns == 1 and len(rows) == 1:
        builder.paragraph(rows[0][0])
    else:
        builder.table(rows, headers=int(has_header(rows)))


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: words, or years above other values, no two alike, and rows after it."""
    if len(rows) < 2:
        return False
    names = [cell for cell in rows[0] if cell]
    below = [*rows[1], *[""] * len(rows[0])]
    return (
        len(names) >= max(1, len(rows[0]) - 1)
        and len(set(names)) == len(names)
        and not _YEAR.fullmatch(rows[0][0])
        and all(_names(name, under) for name, under in zip(rows[0], below, strict=False) if name)
    )


def _names(name: str, under: str) -> bool:
    words = any(c.isalpha() for c in name) and len(name) < 200
    return words or (_YEAR.fullmatch(name) is not None and not _YEAR.fullmatch(under))

"""Jupyter notebooks: Markdown cells as they are written, code cells as code, and what the cells printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ragkit.core.errors import LoadError
from ragkit.core.types import Document, Json
from ragkit.load.builder import DocumentBuilder, clean
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers import html
from ragkit.load.readers.markdown import blocks_of

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of an .ipynb file, of notebook format 3 or 4."""
    try:
        notebook = json.loads(text_of(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"not JSON: {error}") from None
    if not isinstance(notebook, dict):
        raise LoadError("not a notebook: a JSON object was expected")
    builder = DocumentBuilder(options.limits)
    for cell in _cells(notebook):
        _write_cell(builder, cell)
    about = _dict(notebook.get("metadata"))
    authors = [str(author.get("name", "")) for author in _dicts(about.get("authors"))]
    programming = _dict(about.get("kernelspec")).get("language") or _dict(about.get("language_info")).get("name")
    meta = {"author": ", ".join(filter(None, authors)), "language": str(programming or "")}
    yield builder.document(title=str(about.get("title") or ""), meta=meta)


def _cells(notebook: Json) -> list[Json]:
    """Return the cells: format 4 has them in one list, format 3 in worksheets."""
    cells = notebook.get("cells")
    if isinstance(cells, list) and cells:
        return _dicts(cells)
    return [cell for sheet in _dicts(notebook.get("worksheets")) for cell in _dicts(sheet.get("cells"))]


def _dicts(value: object) -> list[Json]:
    return [element for element in value if isinstance(element, dict)] if isinstance(value, list) else []


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _joined(value: object) -> str:
    """Return a text, which notebooks keep whole or in lines; "" for anything else."""
    if isinstance(value, list):
        return "".join(map(str, value))
    return value if isinstance(value, str) else ""


def _write_cell(builder: DocumentBuilder, cell: Json) -> None:
    kind, source = cell.get("cell_type"), clean(_joined(cell.get("source", cell.get("input")))).strip("\n")
    if kind == "markdown":
        builder.include(Document(text=source, blocks=tuple(blocks_of(source))))
    elif kind == "heading":
        builder.heading(source, int(cell["level"]) if isinstance(cell.get("level"), int) else 1)
    elif kind == "code":
        builder.block("code", source)
        for output in _dicts(cell.get("outputs")):
            _write_output(builder, output)
    else:
        builder.paragraph(source)


def _write_output(builder: DocumentBuilder, output: Json) -> None:
    """Write what a cell printed or showed: its HTML where it has one, else its plain text. Pictures are left out."""
    data = _dict(output.get("data", output))
    if page := _joined(data.get("text/html")):
        builder.include(html.parse(page))
        return
    text = _joined(output.get("text")) or _joined(data.get("text/markdown")) or _joined(data.get("text/plain"))
    if output.get("output_type") in ("error", "pyerr"):
        text = f"{output.get('ename', '')}: {output.get('evalue', '')}"
    builder.block("code", clean(_COLOURS.sub("", text)).strip("\n"))

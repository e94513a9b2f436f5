"""Jupyter notebooks: Markdown cells as they are written, code cells as code, and what the cells printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.load.builder import DocumentBuilder, clean
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.readers import html
from ragkit.load.readers.markdown import blocks_of

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of an .ipynb file, of notebook format 3 or 4."""
    try:
        notebook = json.loads(text_of(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise LoadError(f"it is no JSON: {error}") from None
    if not isinstance(notebook, dict):
        raise LoadError("it is no notebook: a JSON object was expected")
    sheets = [one for one in _list(notebook.get("worksheets")) if isinstance(one, dict)]
    cells = _list(notebook.get("cells")) or [cell for sheet in sheets for cell in _list(sheet.get("cells"))]
    builder = DocumentBuilder(options.limits)
    for cell in cells:
        if isinstance(cell, dict):
            _cell(builder, cell)
    about = _dict(notebook.get("metadata"))
    authors = [str(one.get("name", "")) for one in _list(about.get("authors")) if isinstance(one, dict)]
    programming = _dict(about.get("kernelspec")).get("language") or _dict(about.get("language_info")).get("name")
    meta = {"author": ", ".join(filter(None, authors)), "language": str(programming or "")}
    yield builder.document(title=str(about.get("title") or ""), meta=meta)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _joined(value: Any) -> str:
    """Notebooks keep texts whole or in lines."""
    return "".join(map(str, value)) if isinstance(value, list) else value if isinstance(value, str) else ""


def _cell(builder: DocumentBuilder, cell: dict[str, Any]) -> None:
    kind, source = cell.get("cell_type"), clean(_joined(cell.get("source", cell.get("input")))).strip("\n")
    if kind == "markdown":
        builder.include(Document(text=source, blocks=tuple(blocks_of(source))))
    elif kind == "heading":
        builder.heading(source, int(cell["level"]) if isinstance(cell.get("level"), int) else 1)
    elif kind == "code":
        builder.block("code", source)
        for output in _list(cell.get("outputs")):
            _output(builder, _dict(output))
    else:
        builder.paragraph(source)


def _output(builder: DocumentBuilder, output: dict[str, Any]) -> None:
    """What a cell printed or showed: a table where it is HTML, else its plain text; pictures say nothing here."""
    data = _dict(output.get("data", output))
    if page := _joined(data.get("text/html")):
        builder.include(html.parse(page))
        return
    text = _joined(output.get("text")) or _joined(data.get("text/markdown")) or _joined(data.get("text/plain"))
    if output.get("output_type") in ("error", "pyerr"):
        text = f"{output.get('ename', '')}: {output.get('evalue', '')}"
    builder.block("code", clean(_COLOURS.sub("", text)).strip("\n"))

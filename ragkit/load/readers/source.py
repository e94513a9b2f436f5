"""Source code: the text as it is; its language by extension; blocks at top-level definitions.

Python is read with its own grammar. For other languages a block begins at a line without indentation that follows a
blank line, which is how nearly all of them set top-level definitions apart.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from ragkit.core.types import Block, Document, Span
from ragkit.load.decode import text_of
from ragkit.load.formats import format_of
from ragkit.load.limits import Options

_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_TOP = re.compile(r"(?:\A|(?<=\n))(?=[^\s)}\]])")


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a source file; `meta["language"]` is its programming language."""
    data = path.read_bytes()
    named = [match[1].decode("ascii", "replace") for line in data.split(b"\n", 2)[:2] if (match := _CODING.match(line))]
    text = text_of(data, declared=named)
    kind = format_of(path.name)
    language = kind.language if kind else ""
    blocks = _python(text) if language == "python" else _stanzas(text)
    yield Document(text=text, meta={"language": language} if language else {}, blocks=tuple(blocks))


def _python(text: str) -> Iterator[Block]:
    """Yield a block for each top-level definition, with its decorators and the comments above it, and for what is between."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a "\\d" in somebody's source is not our warning
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield from _stanzas(text)
        return
    starts = _line_starts(text)
    lines = re.split(r"\r\n|\r|\n", text)
    cuts = {0}
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        while first > 0 and lines[first - 1].startswith("#"):
            first -= 1
        cuts |= {starts[first], starts[node.end_lineno or node.lineno]}
    yield from stretches(text, sorted(cuts))


def _line_starts(text: str) -> list[int]:
    """Return where each line of Python begins, and the end: Python ends lines at \\n, \\r\\n and \\r only, and so must we."""
    return [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text)), len(text)]


def _stanzas(text: str) -> Iterator[Block]:
    cuts = {0}
    for match in _TOP.finditer(text):
        before = text.rfind("\n", 0, max(match.start() - 1, 0))
        if not text[before + 1 : match.start()].strip():
            cuts.add(match.start())
    yield from stretches(text, sorted(cuts))


def stretches(text: str, cuts: list[int]) -> Iterator[Block]:
    """Yield the stretches between cuts that are not blank, without the blank lines around them."""
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        piece = text[start:end]
        if not piece.strip():
            continue
        lead = len(piece) - len(piece.lstrip("\r\n \t\f")) if not piece[:1].strip() else 0
        lead = piece.rfind("\n", 0, lead) + 1  # the indentation of the first line stays
        yield Block("code", Span(start + lead, start + len(piece.rstrip())))

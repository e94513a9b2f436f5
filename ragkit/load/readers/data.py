"""Structured data (JSON, YAML). JSON is written out as "name: value" lines, so that every value stands beside its name.

YAML reads well as it is: its text is the file's own, with a block per entry of the top level, and is never interpreted,
so that nothing in it can unfold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Block, Document, Span
from ragkit.load.builder import clean
from ragkit.load.decode import text_of
from ragkit.load.limits import Limits, Options
from ragkit.load.readers.source import stretches

_ENTRY = re.compile(r"^(?=[^\s#])(?!---|\.\.\.)", re.MULTILINE)
_INDENT = "  "
_TITLES = ("title", "name")


class _Pairs(list[tuple[str, object]]):
    """The names and values of a JSON object as they are written: names may come twice."""


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a .json, .yaml or .yml file."""
    text = text_of(path.read_bytes())
    if path.suffix.lower() != ".json":
        cuts = sorted({0, *(match.start() for match in _ENTRY.finditer(text))})
        yield Document(text=text, blocks=tuple(stretches(text, cuts)), meta={"language": "yaml"})
        return
    try:
        value = _parsed(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"not JSON: {error}" if isinstance(error, ValueError) else "it is nested too deeply") from None
    yield _written(value, options.limits)


def _parsed(text: str) -> object:
    """Return the value of a JSON text; where each line is a value, as in logs and exports, the list of these."""
    try:
        value: object = json.loads(text, object_pairs_hook=_Pairs)
        return value
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        with suppress(ValueError):
            if len(lines) > 1:
                return [json.loads(line, object_pairs_hook=_Pairs) for line in lines]
        raise


def _written(value: object, limits: Limits) -> Document:
    """Return the Document of a JSON value: its lines, with a block for each entry of the top level."""
    lines: list[str] = []
    starts, size, last = [], 0, -1
    for depth, line, entry in _lines(value):
        if entry != last:
            starts.append(size)
            last = entry
        lines.append(_INDENT * depth + clean(line))
        size += len(lines[-1]) + 1
        if size > limits.characters:
            raise LimitExceeded(f"more than {limits.characters} characters (Limits.characters)")
    text = "\n".join(lines)
    blocks = tuple(
        Block("code", Span(start, end - 1)) for start, end in zip(starts, [*starts[1:], len(text) + 1], strict=True) if text
    )
    named = dict(value) if isinstance(value, _Pairs) else {}
    title = next((value for value in map(named.get, _TITLES) if isinstance(value, str)), "")
    return Document(text=text, title=" ".join(clean(title).split()), meta={"language": "json"}, blocks=blocks)


def _lines(value: object) -> Iterator[tuple[int, str, int]]:
    """Yield depth, line, and the number of the top level's entry, in order. A stack of its own keeps depth off Python's."""
    if not isinstance(value, list) or not value:
        yield 0, _scalar(value), 0
        return
    waiting = [(0, mark, inner) for mark, inner in reversed(_entries(value))]
    entry = -1
    while waiting:
        depth, mark, inner = waiting.pop()
        entry += depth == 0
        if not isinstance(inner, list) or not inner:
            yield depth, mark + _scalar(inner), entry
            continue
        yield depth, mark.rstrip(), entry
        waiting += [(depth + 1, deeper, each) for deeper, each in reversed(_entries(inner))]


def _entries(value: list[object]) -> list[tuple[str, object]]:
    """Return what stands before each value of an object or a list, and the value."""
    if isinstance(value, _Pairs):
        return [(f"{name}: ", inner) for name, inner in value]
    return [("- ", inner) for inner in value]


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return " ".join(value.split("\n")) if "\n" in value else value
    if isinstance(value, _Pairs):
        return "{}"
    return json.dumps(value)

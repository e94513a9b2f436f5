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
from typing import Any

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Block, Document, Span
from ragkit.load.builder import clean
from ragkit.load.decode import text_of
from ragkit.load.limits import Limits, Options
from ragkit.load.readers.source import stretches

_ENTRY = re.compile(r"^(?=[^\s#])(?!---|\.\.\.)", re.MULTILINE)
_INDENT = "  "
_TITLES = ("title", "name")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written: names may come twice."""


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of a .json, .yaml or .yml file."""
    text = text_of(path.read_bytes())
    if path.suffix.lower() != ".json":
        cuts = sorted({0, *(match.start() for match in _ENTRY.finditer(text))})
        yield Document(text=text, blocks=tuple(stretches(text, cuts)), meta={"language": "yaml"})
        return
    try:
        value = _parsed(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"it is no JSON: {error}" if isinstance(error, ValueError) else "it is nested too deeply") from None
    yield _written(value, options.limits)


def _parsed(text: str) -> Any:
    """The value of a JSON text; of one with a value on each line, as logs and exports have them, the list of these."""
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        with suppress(ValueError):
            if len(lines) > 1:
                return [json.loads(line, object_pairs_hook=_Pairs) for line in lines]
        raise


def _written(value: Any, limits: Limits) -> Document:
    """The lines of a JSON value, with a block for each entry of the top level."""
    lines: list[str] = []
    starts, size, seen = [], 0, -1
    for depth, line, number in _lines(value):
        if number != seen:
            starts.append(size)
            seen = number
        lines.append(_INDENT * depth + clean(line))
        size += len(lines[-1]) + 1
        if size > limits.characters:
            raise LimitExceeded(f"more than {limits.characters} characters (Limits.characters)")
    text = "\n".join(lines)
    blocks = tuple(
        Block("code", Span(start, end - 1)) for start, end in zip(starts, [*starts[1:], len(text) + 1], strict=True) if text
    )
    named = dict(value) if isinstance(value, _Pairs) else {}
    title = next((named[name] for name in _TITLES if isinstance(named.get(name), str)), "")
    return Document(text=text, title=" ".join(clean(title).split()), meta={"language": "json"}, blocks=blocks)


def _lines(value: Any) -> Iterator[tuple[int, str, int]]:
    """Depth, line, and the number of the top level's entry, in order; with a list of our own, so depth costs no stack."""
    entry = 0
    todo: list[tuple[int, str, Any]] = [(0, "", value)]
    first = True
    while todo:
        depth, lead, one = todo.pop()
        if depth == 0 and not first:
            entry += 1
        inner = [] if not isinstance(one, list) else one if isinstance(one, _Pairs) else [("-", each) for each in one]
        if inner:
            below = depth if first else depth + 1
            if lead:
                yield depth, lead.rstrip(), entry
            marks = [f"{name}: " if isinstance(one, _Pairs) else "- " for name, _ in inner]
            todo += [(below, mark, each) for mark, (_, each) in zip(reversed(marks), reversed(inner), strict=True)]
        else:
            yield depth, lead + _scalar(one), entry
        first = False


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split("\n")) if "\n" in value else value
    if isinstance(value, _Pairs):
        return "{}"
    return json.dumps(value)

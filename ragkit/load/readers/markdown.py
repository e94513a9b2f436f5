"""Markdown (CommonMark with tables): the text is the source itself, so that offsets are the file's.

Blocks come from markdown-it's own parse. Front matter, YAML or TOML, goes to the meta, the title is its or the first heading's.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ragkit.core.types import Block, Document, Span
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.records import record
from ragkit.load.sidecar import plain_yaml

_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
_TOML = re.compile(r"\A\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
_LINE_END = re.compile(r"\r\n|\n|\r")  # the line ends markdown-it knows
_KINDS = {
    "heading_open": "heading",
    "paragraph_open": "paragraph",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "blockquote_open": "quote",
    "table_open": "table",
    "tr_open": "row",
    "fence": "code",
    "code_block": "code",
}
_OWN = {"title": "title", "author": "author", "authors": "author", "lang": "lang", "language": "lang", "date": "created"}


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of a Markdown file."""
    text = text_of(path.read_bytes())
    front = _FRONT.match(text) or _TOML.match(text)
    meta = _front_matter(front[1], _plain_toml if text.startswith("+") else plain_yaml) if front else {}
    blocks = tuple(blocks_of(text, start=front.end() if front else 0))
    title = meta.pop("title", None)
    yield Document(text=text, title=str(title) if title else _title(text, blocks), meta=meta, blocks=blocks)


def blocks_of(text: str, *, start: int = 0) -> Iterator[Block]:
    """The blocks of Markdown from `start` (the beginning of a line) on, ordered by start, outer ones first."""
    body = text[start:]
    # markdown-it replaces NUL, which keeps lengths, and line ends, which do not: so positions are taken by line.
    lines = [0, *(match.end() for match in _LINE_END.finditer(body))]
    if lines[-1] != len(body) or len(lines) == 1:
        lines.append(len(body))
    depth = before = 0
    for token in _parser().parse(body):
        if token.type.endswith("list_close") or token.type == "blockquote_close":
            depth -= 1
        kind = _KINDS.get(token.type)
        if kind and token.map and not token.hidden:
            first, end = (lines[min(number, len(lines) - 1)] for number in token.map)
            span = _trimmed(body, first, end, keep_indent=token.type == "code_block")
            level = {"heading": int(token.tag[1]) if kind == "heading" else 0, "row": 0}.get(kind, depth)
            if kind == "row":
                level = int(_is_header(body, first, end))
            if span.length:
                before = max(before, span.start)  # code that begins on the line of its list's mark has no indent of its own
                yield Block(kind, Span(start + before, start + span.end), level)
        if token.type.endswith("list_open") or token.type == "blockquote_open":
            depth += 1


@lru_cache(maxsize=1)
def _parser() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")


def _is_header(body: str, first: int, end: int) -> bool:
    """Whether the line after a row is the delimiter row."""
    after = body[end : end + 2000].split("\n", 1)[0]
    return re.fullmatch(r"[\s>]*\|?[\s:|-]*-[\s:|-]*\r?", after) is not None


def _trimmed(body: str, first: int, end: int, *, keep_indent: bool) -> Span:
    piece = body[first:end]
    stripped = piece.strip()
    if not stripped:
        return Span(first, first)
    left = piece.index(stripped)
    if keep_indent:  # an indented code block begins with its first line's indentation
        return Span(first + piece.rfind("\n", 0, left) + 1, first + left + len(stripped))
    return Span(first + left, first + left + len(stripped))


def _plain_toml(source: str) -> Any:
    """TOML as JSON can hold it: dates are strings."""
    return json.loads(json.dumps(tomllib.loads(source.replace("\r\n", "\n")), default=str))


def _front_matter(source: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The fields of front matter, as JSON can hold them; none where it is not a mapping or does not parse."""
    try:
        found = parse(source)
        if not isinstance(found, dict):
            return {}
        fields = {_OWN.get(str(key), str(key)): _joined(value) if key in _OWN else value for key, value in found.items()}
        return dict(record({"text": "", "meta": fields}).meta)
    except (ValueError, TypeError, RecursionError):
        return {}


def _joined(value: Any) -> Any:
    """Several authors become one string."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _title(text: str, blocks: Sequence[Block]) -> str:
    heading = next((b for b in blocks if b.kind == "heading" and b.level == 1), None)
    if heading is None:
        return ""
    line = heading.span.of(text).strip().splitlines()[0]
    return re.sub(r"^#+\s*|\s*#+\s*$|[*_`]", "", line).strip()

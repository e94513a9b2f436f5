"""Markdown (CommonMark with tables): the text is the source itself, so that offsets are the file's.

Blocks come from markdown-it's own parse. Front matter, YAML or TOML, goes to the meta. The title is that of the front
matter, else the first heading of level 1.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ragkit.core.types import Block, Document, Json, Span
from ragkit.load.decode import text_of
from ragkit.load.limits import Options
from ragkit.load.records import record
from ragkit.load.sidecar import plain_yaml

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

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
_OPENING = {"bullet_list_open", "ordered_list_open", "blockquote_open"}
_CLOSING = {"bullet_list_close", "ordered_list_close", "blockquote_close"}
_OWN = {"title": "title", "author": "author", "authors": "author", "lang": "lang", "language": "lang", "date": "created"}


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a Markdown file."""
    text = text_of(path.read_bytes())
    front = _FRONT.match(text) or _TOML.match(text)
    meta = _front_matter(front[1], _plain_toml if text.startswith("+") else plain_yaml) if front else {}
    blocks = tuple(blocks_of(text, start=front.end() if front else 0))
    title = meta.pop("title", None)
    yield Document(text=text, title=str(title) if title else _title(text, blocks), meta=meta, blocks=blocks)


def blocks_of(text: str, *, start: int = 0) -> Iterator[Block]:
    """Yield the blocks of Markdown from `start` (the beginning of a line) on, ordered by start, outer ones first."""
    body = text[start:]
    lines = _line_starts(body)
    depth = before = 0
    for token in _parser().parse(body):
        if token.type in _CLOSING:
            depth -= 1
        kind = _KINDS.get(token.type)
        if kind and token.map and not token.hidden:
            first, end = (lines[min(number, len(lines) - 1)] for number in token.map)
            span = _trimmed(body, first, end, keep_indent=token.type == "code_block")
            if span.length:
                before = max(before, span.start)  # code that begins on the line of its list's mark has no indent of its own
                yield Block(kind, Span(start + before, start + span.end), _level(kind, token.tag, body[end : end + 2000], depth))
        if token.type in _OPENING:
            depth += 1


def _line_starts(body: str) -> list[int]:
    """Return where each line begins, and the end. markdown-it replaces NUL, which keeps lengths, and line ends, which does not:
    so positions are taken by line."""
    lines = [0, *(match.end() for match in _LINE_END.finditer(body))]
    if lines[-1] != len(body) or len(lines) == 1:
        lines.append(len(body))
    return lines


def _level(kind: str, tag: str, after: str, depth: int) -> int:
    """Return the level of a heading; 1 for a header row of a table, which the delimiter row follows; else the depth in lists."""
    if kind == "heading":
        return int(tag[1])
    return int(_is_delimiter(after)) if kind == "row" else depth


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")


def _is_delimiter(text: str) -> bool:
    """Whether a text begins with the delimiter row of a table."""
    line = text.split("\n", 1)[0]
    return re.fullmatch(r"[\s>]*\|?[\s:|-]*-[\s:|-]*\r?", line) is not None


def _trimmed(body: str, first: int, end: int, *, keep_indent: bool) -> Span:
    piece = body[first:end]
    stripped = piece.strip()
    if not stripped:
        return Span(first, first)
    left = piece.index(stripped)
    if keep_indent:  # an indented code block begins with its first line's indentation
        return Span(first + piece.rfind("\n", 0, left) + 1, first + left + len(stripped))
    return Span(first + left, first + left + len(stripped))


def _plain_toml(source: str) -> object:
    """Return TOML as JSON can hold it: dates are strings."""
    return json.loads(json.dumps(tomllib.loads(source.replace("\r\n", "\n")), default=str))


def _front_matter(source: str, parse: Callable[[str], object]) -> Json:
    """Return the fields of front matter, as JSON can hold them; none where it is not a mapping or does not parse."""
    try:
        values = parse(source)
        if not isinstance(values, dict):
            return {}
        fields = {_OWN.get(str(key), str(key)): _joined(value) if key in _OWN else value for key, value in values.items()}
        return dict(record({"text": "", "meta": fields}).meta)
    except (ValueError, TypeError, RecursionError):
        return {}


def _joined(value: object) -> object:
    """Make one string of several authors."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _title(text: str, blocks: Sequence[Block]) -> str:
    heading = next((b for b in blocks if b.kind == "heading" and b.level == 1), None)
    if heading is None:
        return ""
    line = heading.span.of(text).strip().splitlines()[0]
    return re.sub(r"^#+\s*|\s*#+\s*$|[*_`]", "", line).strip()

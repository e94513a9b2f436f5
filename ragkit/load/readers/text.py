"""Plain text: the file's own characters, so that offsets are the file's; paragraphs lie between blank lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ragkit.core.types import Block, Document, Span
from ragkit.load.decode import text_of
from ragkit.load.limits import Options

_PARAGRAPH = re.compile(r"\S[^\n]*(?:\n(?=[^\n]*\S)[^\n]*)*")


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a text file."""
    text = text_of(path.read_bytes())
    yield Document(text=text, blocks=tuple(paragraphs(text)))


def paragraphs(text: str) -> Iterator[Block]:
    """Yield the stretches of lines that are not blank, without the white space around them."""
    for match in _PARAGRAPH.finditer(text):
        yield Block("paragraph", Span(match.start(), match.start() + len(match[0].rstrip())))

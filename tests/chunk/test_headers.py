"""Contextual headers: what stands in front of a chunk when it is embedded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragkit.chunk.headers import headed_texts
from ragkit.core.types import Chunk, Document, Ints, Span

TEXT = "Otters hold hands. They sleep on water."
CHUNKS = [Chunk(Span(0, 18), ("Animals", "Swimmers")), Chunk(Span(19, 39), ())]


def words(texts: Sequence[str]) -> Ints:
    """A word is a token."""
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def headed(document: Document, chunks: Sequence[Chunk] = CHUNKS, limit: int = 100) -> list[str]:
    return headed_texts(document, chunks, count_tokens=words, limit=limit)


def test_title_and_headings_stand_in_front_outermost_first() -> None:
    found = headed(Document(text=TEXT, title="Rivers\n of  Europe"))
    assert found == ["Rivers of Europe › Animals › Swimmers\nOtters hold hands.", "Rivers of Europe\nThey sleep on water."]


def test_a_header_gives_way_to_the_text_from_the_outside() -> None:
    document = Document(text=TEXT, title="Rivers of Europe")
    assert headed(document, limit=7) == ["Animals › Swimmers\nOtters hold hands.", "Rivers of Europe\nThey sleep on water."]
    assert headed(document, limit=4) == ["Swimmers\nOtters hold hands.", "They sleep on water."]
    assert headed(document, limit=1) == ["Otters hold hands.", "They sleep on water."]


def test_what_the_chunk_begins_with_is_not_said_twice() -> None:
    text = "## Otters\n\nOtters hold hands."
    assert headed(Document(text=text), [Chunk(Span(0, len(text)), ("Animals", "Otters"))]) == [f"Animals\n{text}"]
    assert headed(Document(text="Title and all.", title="Title"), [Chunk(Span(0, 14))]) == ["Title and all."]
    assert headed(Document(text=TEXT, title="Animals"), CHUNKS[:1]) == ["Animals › Swimmers\nOtters hold hands."]


def test_a_document_without_title_and_headings_is_embedded_as_it_is() -> None:
    assert headed(Document(text=TEXT), CHUNKS[1:]) == ["They sleep on water."]
    assert headed(Document(text=TEXT), []) == []

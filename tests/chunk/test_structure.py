"""What blocks and pages do to chunks: sections, whole tables and code, heading paths, pages."""

from itertools import pairwise

import numpy as np
import pytest

from ragkit.chunk import chunk_document
from ragkit.core.types import Block, Chunk, Document, Page, Span, Words

from .counters import PieceCounter

PROSE = "Some words are here. More words stand there. "


def built(*parts: tuple[str, str, int]) -> Document:
    """A document of (kind, text, level) parts with a blank line between; a table's rows become blocks too."""
    text, blocks = "", list[Block]()
    for kind, content, level in parts:
        start = len(text)
        text += content + "\n\n"
        blocks.append(Block(kind, Span(start, start + len(content)), level))
        at = start
        for row in content.split("\n") if kind == "table" else []:
            blocks.append(Block("row", Span(at, at + len(row))))
            at += len(row) + 1
    return Document(text=text, blocks=tuple(blocks))


def texts(document: Document, **options: object) -> list[tuple[str, tuple[str, ...]]]:
    chunks = chunk_document(document, encoder_tokens=PieceCounter(width=20), **options)  # type: ignore[arg-type]
    return [(c.span.of(document.text), c.headings) for c in chunks]


def test_sections_do_not_mix_and_a_heading_stays_with_what_it_announces() -> None:
    two = ("heading", "## Two", 2), ("paragraph", PROSE, 0)
    document = built(("heading", "# Book", 1), ("heading", "## One", 2), ("paragraph", PROSE, 0), *two)
    found = texts(document, chunker="structure", tokens=200)
    assert found == [
        (f"# Book\n\n## One\n\n{PROSE.strip()}", ("Book",)),
        (f"## Two\n\n{PROSE.strip()}", ("Book", "Two")),
    ]


def test_headings_are_those_in_force_where_a_chunk_begins() -> None:
    prose = ("paragraph", PROSE * 4, 0)
    document = built(("heading", "A", 1), ("heading", "B", 3), prose, ("heading", "C", 2), prose)
    paths = [headings for _, headings in texts(document, chunker="structure", tokens=24)]
    assert paths[0] == ("A",)
    assert set(paths[1:-1]) <= {("A", "B"), ("A", "C")}
    assert paths[-1] == ("A", "C")
    assert texts(document, chunker="whole", tokens=24)[0][1] == ("A",)


@pytest.mark.parametrize("kind", ["code", "table", "list"])
@pytest.mark.parametrize("before", range(1, 8))
def test_what_fits_is_kept_whole_however_much_room_the_chunk_before_has(kind: str, before: int) -> None:
    whole = "\n\n".join(f"row {i} of this. And more" for i in range(4)) if kind != "table" else "\n".join(["a b. C d e f"] * 4)
    document = built(("paragraph", PROSE * before, 0), (kind, whole, 0), ("paragraph", PROSE * 3, 0))
    found = texts(document, chunker="structure", tokens=34)
    assert sum(whole in text for text, _ in found) == 1


def test_a_table_over_the_budget_is_cut_between_rows() -> None:
    rows = [f"cell {i}. Next | other {i}, and | last {i}" for i in range(30)]
    found = texts(built(("table", "\n".join(rows), 0)), chunker="structure", tokens=50)
    assert len(found) > 3
    assert [line for text, _ in found for line in text.split("\n")] == rows


def test_sentences_may_cross_headings_but_rather_begin_with_one() -> None:
    document = built(("paragraph", PROSE * 2, 0), ("heading", "Title", 1), ("paragraph", PROSE * 4, 0))
    found = texts(document, tokens=30)
    assert any(text.startswith("Title") and len(text) > len("Title") for text, _ in found)


def test_a_page_is_a_chunk_and_a_long_page_is_several() -> None:
    parts = ["First page. Short.", PROSE * 5, "Third page."]
    text, spans = "", list[Span]()
    for part in parts:
        spans.append(Span(len(text), len(text) + len(part)))
        text += part + "\f"
    none = Words(np.empty((0, 2), np.int64), np.empty((0, 4), np.float32))
    pages = tuple(Page(i + 1, 9.0, 9.0, span, none) for i, span in enumerate(spans))
    found = [text for text, _ in texts(Document(text=text, pages=pages), chunker="page", tokens=30, overlap=8)]
    assert (found[0], found[-1]) == (parts[0], parts[2])
    assert len(found) > 3
    assert all(text in parts[1] for text in found[1:-1])


def test_overlap_is_made_of_whole_sentences_where_one_fits() -> None:
    text = " ".join(f"Sentence number {i} ends." for i in range(30))
    chunks = chunk_document(Document(text=text), tokens=22, overlap=6, encoder_tokens=PieceCounter(width=20))
    assert len(chunks) > 5
    for chunk in chunks:
        assert chunk.span.of(text).startswith("Sentence")
    shared = [left.span.end - right.span.start for left, right in pairwise(chunks)]
    assert min(shared) > 20


def fill_of(chunks: list[Chunk], text: str, counter: PieceCounter, tokens: int) -> list[float]:
    return [float(n) / tokens for n in counter.count_tokens([c.span.of(text) for c in chunks])]


def test_chunks_are_full_and_the_last_one_is_not_a_scrap() -> None:
    counter = PieceCounter()
    text = " ".join(f"This is sentence number {i} of a long run." for i in range(113))
    fills = fill_of(chunk_document(Document(text=text), tokens=100, encoder_tokens=counter), text, counter, 100)
    assert np.mean(fills) > 0.8
    assert min(fills) > 0.6


@pytest.mark.parametrize("unit", ["word. ", "x", "字", "a\n", "e\u0301"])
def test_a_text_is_tokenised_once_and_monotonous_texts_fill_their_chunks(unit: str) -> None:
    class Calls(PieceCounter):
        characters = 0

        def token_spans(self, text: str) -> np.ndarray:  # type: ignore[type-arg]
            self.characters += len(text)
            return super().token_spans(text)

    counter = Calls()
    text = unit * 12_000
    chunks = chunk_document(Document(text=text), tokens=66, encoder_tokens=counter)
    assert counter.characters == len(text) + 1  # the text once, and the letter that shows the special tokens
    assert len(chunks) <= 2 * len(counter.token_spans(text)) / 64 + 1

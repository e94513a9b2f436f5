"""The laws of chunking, on random texts of many scripts, random structure and every chunker."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.chunk import chunk_document
from ragkit.chunk.segment import can_cut
from ragkit.core.errors import ChunkError
from ragkit.core.types import Block, Chunk, Document, Page, Span, Words

from .counters import PieceCounter, SeamCounter

regex = pytest.importorskip("regex", reason="the independent oracle for graphemes")

WORDS = [
    "the", "cat", "sat", "Dr.", "e.g.", "U.S.", "3.", "3.14", "Smith", "unbelievably", "a" * 30, "end.", "what?", '"no!"',
    "wait…",
    "然后", "他说。", "「好！」", "ประเทศไทย", "นํ้า", "नमस्ते।", "क्षत्रिय", "한국어", "\u1100\u1161\u11a8",
    "🇩🇪🇫🇷🇯🇵", "👩‍👩‍👧‍👦", "👍🏽",
    "e\u0301t\u0302\u0323e", "مرحبا؟", "-", "|", "x;", "y,", "(z)", "[12]", "\u200b", "\u00ad",
]  # fmt: skip
GAPS = [" ", " ", " ", " ", "\n", "\n\n", "\r\n", "\t", "", "\n- ", "\n1. ", "  ", "\u3000", "\u2028", "\n# ", "\n \n"]


@st.composite
def texts(draw: st.DrawFn, max_words: int = 60) -> str:
    parts = draw(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), max_size=max_words))
    return "".join(word + gap for word, gap in parts)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    text = draw(texts())
    edges = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    kinds = st.sampled_from(["heading", "paragraph", "list", "table", "row", "code", "quote", "caption", "header", "footer"])
    blocks = tuple(Block(draw(kinds), Span(a, b), draw(st.integers(0, 3))) for a, b in pairwise(edges))
    pages = [a for a in edges if can_cut(text, a)]
    empty = Words(np.empty((0, 2), np.int64), np.empty((0, 4), np.float32))
    numbered = tuple(
        Page(n + 1, 100.0, 100.0, Span(a, b), empty) for n, (a, b) in enumerate(zip(pages[::2], pages[1::2], strict=False))
    )
    return Document(text=text, blocks=blocks, pages=numbered)


def grapheme_edges(text: str) -> set[int]:
    return {0} | {m.end() for m in regex.finditer(r"\X", text)}


def assert_lawful(document: Document, chunks: Sequence[Chunk], counter: PieceCounter, tokens: int) -> None:
    text = document.text
    edges = grapheme_edges(text)
    spans = [c.span for c in chunks]
    assert spans == sorted(spans)
    assert len(set(spans)) == len(spans)
    covered = np.zeros(len(text), bool)
    for span in spans:
        piece = text[span.start : span.end]
        assert piece
        assert piece == piece.strip()
        if counter.count_tokens([piece])[0] > tokens:
            assert len(regex.findall(r"\X", piece)) == 1, piece
        # A cut never stands within a grapheme; blanks at the ends are dropped even where a mark would hold on to them.
        assert span.start in edges or text[span.start - 1].isspace()
        assert span.end in edges or text[span.end].isspace()
        covered[span.start : span.end] = True
    repeats = np.zeros(len(text), bool)
    for block in document.blocks:
        if block.kind in ("header", "footer") and block.level:
            repeats[block.span.start : block.span.end] = True
    for start, end in counter.token_spans(text).tolist():
        assert (covered | repeats)[start:end].all(), text[start:end]
    covered |= repeats
    lost = [c for c, seen in zip(text, covered, strict=True) if not seen and not c.isspace()]
    assert set(lost) <= {"\u200b", "\u00ad"}  # which no token holds


class Visible(PieceCounter):
    """As real tokenizers do, sees neither zero-width spaces nor soft hyphens."""

    def token_spans(self, text: str) -> np.ndarray:
        spans = super().token_spans(text)
        return spans[[text[a:b] not in ("\u200b", "\u00ad") for a, b in spans.tolist()]].reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> np.ndarray:
        return np.array([self._specials + len(self.token_spans(d)) for d in documents], dtype=np.int64)


@settings(max_examples=200, deadline=None)
@given(documents(), st.sampled_from(["sentences", "structure", "page"]), st.integers(3, 40), st.data())
def test_every_chunker_keeps_the_laws(document: Document, chunker: str, tokens: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tokens - 1))
    counter = Visible()
    chunks = chunk_document(document, chunker=chunker, tokens=tokens, overlap=overlap, encoder_tokens=counter)
    assert_lawful(document, chunks, counter, tokens)


@settings(max_examples=70, deadline=None)
@given(documents(), st.sampled_from(["sentences", "structure", "page"]), st.integers(8, 40))
def test_no_chunk_holds_a_running_header_that_repeats_an_earlier_one(document: Document, chunker: str, tokens: int) -> None:
    chunks = chunk_document(document, chunker=chunker, tokens=tokens, encoder_tokens=PieceCounter())
    edges = grapheme_edges(document.text)
    for block in document.blocks:
        if block.kind in ("header", "footer") and block.level and block.span.length and {*block.span} <= edges:
            assert not any(chunk.span.overlaps(block.span) for chunk in chunks)


@settings(max_examples=70, deadline=None)
@given(texts(), st.integers(4, 40), st.data())
def test_neighbours_share_at_most_the_overlap(text: str, tokens: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tokens - 1))
    counter = PieceCounter()
    chunks = chunk_document(Document(text=text), tokens=tokens, overlap=overlap, encoder_tokens=counter)
    ends = counter.token_spans(text)[:, 1]
    for left, right in pairwise(chunks):
        assert left.span.end < right.span.end
        shared = (ends > right.span.start) & (ends <= left.span.end)
        assert shared.sum() <= overlap
    for left, right in zip(chunks, chunks[2:], strict=False):
        assert overlap > 0 or left.span.end <= right.span.start


@settings(max_examples=70, deadline=None)
@given(texts(), st.integers(3, 20))
def test_the_budget_holds_where_a_piece_has_more_tokens_than_within_the_text(text: str, tokens: int) -> None:
    text = text.replace("the", "ABCDEFGH").replace("cat", "ABLE")
    counter = SeamCounter()
    assert_lawful(
        Document(text=text), chunk_document(Document(text=text), tokens=tokens, encoder_tokens=counter), counter, tokens
    )


@settings(max_examples=200, deadline=None)
@given(st.one_of(texts(), st.text(max_size=60)))
def test_no_cut_is_ever_offered_inside_a_grapheme(text: str) -> None:
    offered = {at for at in range(len(text) + 1) if can_cut(text, at)}
    assert offered <= grapheme_edges(text)


@settings(max_examples=60, deadline=None)
@given(documents())
def test_whole_is_one_chunk_from_the_first_to_the_last_visible_character(document: Document) -> None:
    chunks = chunk_document(document, chunker="whole", tokens=3, encoder_tokens=PieceCounter())
    assert [c.span.of(document.text) for c in chunks] == ([document.text.strip()] if document.text.strip() else [])


@settings(max_examples=70, deadline=None)
@given(texts(), st.integers(3, 30), st.data())
def test_a_users_spans_come_back_within_the_budget(text: str, tokens: int, data: st.DataObject) -> None:
    edge = st.sampled_from(sorted(grapheme_edges(text)))
    pairs = sorted(data.draw(st.lists(st.tuples(edge, edge).map(lambda pair: (min(pair), max(pair))), max_size=6)))
    counter = PieceCounter()
    chunks = chunk_document(Document(text=text), chunker=lambda _: pairs, tokens=tokens, encoder_tokens=counter)
    assert [c.span for c in chunks] == sorted(c.span for c in chunks)
    wanted, got = np.zeros(len(text), bool), np.zeros(len(text), bool)
    for start, end in pairs:
        wanted[start:end] = True
    for chunk in chunks:
        piece = chunk.span.of(text)
        assert counter.count_tokens([piece])[0] <= tokens or len(regex.findall(r"\X", piece)) == 1
        got[chunk.span.start : chunk.span.end] = True
    visible = np.array([not c.isspace() for c in text], dtype=bool)
    assert not (got & ~wanted).any()
    assert not (wanted & ~got & visible).any()


def test_a_users_spans_that_fit_stay_as_they_are() -> None:
    text = "One two.  Three four.\n\nFive."
    spans = [Span(0, 10), (4, 21), Chunk(Span(23, 28), ("Mine",)), (28, 28)]
    chunks = chunk_document(Document(text=text), chunker=lambda _: spans, tokens=50, encoder_tokens=PieceCounter())
    assert chunks == [Chunk(Span(0, 8)), Chunk(Span(4, 21)), Chunk(Span(23, 28), ("Mine",))]


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(0, 99)], r"span 0 .*\[0, 99\).*\[0, 20\)"),
        ([(-1, 4)], r"span 0 .*\[-1, 4\)"),
        ([(5, 4)], r"span 0 .*\[5, 4\)"),
        ([(4, 8), (0, 3)], r"span 1 .*\[0, 3\).*\(4, 8\)"),
        ([(0.0, 3)], r"span 0 .*\(0.0, 3\)"),
        (["ab"], r"span 0 .*'ab'"),
        ([7], r"span 0 .* is 7"),
    ],
)
def test_a_chunker_that_breaks_the_rules_is_named_by_its_span(spans: list[object], said: str) -> None:
    with pytest.raises(ChunkError, match=said):
        chunk_document(Document(text="x" * 20), chunker=lambda _: spans, tokens=9, encoder_tokens=PieceCounter())  # type: ignore[arg-type,return-value]


def test_numbers_that_cannot_work_are_refused() -> None:
    document = Document(text="Some text.")
    with pytest.raises(ValueError, match="overlap"):
        chunk_document(document, tokens=8, overlap=8, encoder_tokens=PieceCounter())
    with pytest.raises(ValueError, match="adds 2"):
        chunk_document(document, tokens=2, encoder_tokens=PieceCounter())
    with pytest.raises(ValueError, match="sentences, structure, page, whole"):
        chunk_document(document, chunker="clever", tokens=8, encoder_tokens=PieceCounter())


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b"])
def test_a_text_without_anything_to_see_has_no_chunks(text: str) -> None:
    assert chunk_document(Document(text=text), tokens=8, encoder_tokens=Visible()) == []

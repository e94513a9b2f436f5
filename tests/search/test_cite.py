"""Citations: boxes cover the cited words and little else, on every page the span touches."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ragkit.core.types import Box, Page, Span, Words
from ragkit.search.cite import cite, join_boxes


def page_of(
    lines: list[list[str]], *, number: int = 1, start: int = 0, height: float = 10.0, gap: float = 3.0
) -> tuple[Page, str]:
    """A page of words set in a fixed-width font of 6 points, one line below the other, and its text."""
    spans, boxes, text = [], [], ""
    for row, words in enumerate(lines):
        x = 50.0
        for word in words:
            spans.append((start + len(text), start + len(text) + len(word)))
            boxes.append((x, 50 + row * (height + gap), x + 6 * len(word), 50 + row * (height + gap) + height))
            text += word + " "
            x += 6 * (len(word) + 1)
    arrays = np.array(spans, dtype=np.int64).reshape(-1, 2), np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Page(number, 612, 792, Span(start, start + len(text)), Words(*arrays)), text


def union_area(boxes: np.ndarray) -> float:
    """Area of the union of boxes (n, 4), by counting cells of a half-point grid."""
    grid = np.zeros((1600, 1600), dtype=bool)
    for x0, y0, x1, y1 in np.round(boxes * 2).astype(int):
        grid[max(y0, 0) : y1, max(x0, 0) : x1] = True
    return float(grid.sum()) / 4


def test_a_line_becomes_one_box_and_two_lines_two() -> None:
    page, text = page_of([["one", "two", "three"], ["four", "five"]])
    citation = cite("a.pdf", Span(0, len(text)), [page])
    assert citation.pages == (1,)
    assert [tuple(one.box) for one in citation.boxes] == [(50, 50, 50 + 6 * 13, 60), (50, 63, 50 + 6 * 9, 73)]
    assert citation.boxes[0].relative == Box(50 / 612, 50 / 792, 128 / 612, 60 / 792)
    assert str(citation) == "a.pdf, p. 1"


def test_a_span_inside_a_line_cites_its_words_only() -> None:
    page, text = page_of([["one", "two", "three", "four"]])
    start = text.index("wo")
    citation = cite("a.pdf", Span(start, text.index("ree")), [page])
    assert [tuple(one.box) for one in citation.boxes] == [(74, 50, 128, 60)]


def test_a_span_across_pages_names_each_and_boxes_each() -> None:
    first, text = page_of([["end", "of", "page"]])
    second, more = page_of([["begin", "again"]], number=2, start=len(text) + 2)
    citation = cite("a.pdf", Span(4, len(text) + 2 + len(more)), [first, second])
    assert citation.pages == (1, 2)
    assert {one.page for one in citation.boxes} == {1, 2}
    assert str(citation) == "a.pdf, pp. 1–2"


def test_a_page_without_cited_words_is_not_cited() -> None:
    first, text = page_of([["end"]])
    second, _ = page_of([["begin"]], number=2, start=len(text))
    assert cite("a.pdf", Span(0, 3), [first, second]).pages == (1,)


def test_columns_are_never_joined() -> None:
    words = np.array([[50, 50, 80, 60], [400, 50, 430, 60]], dtype=np.float32)
    assert len(join_boxes(words)) == 2


def test_words_of_a_vertical_line_are_joined() -> None:
    words = np.array([[50, 50, 60, 90], [50, 93, 60, 130]], dtype=np.float32)
    assert [tuple(box) for box in join_boxes(words)] == [(50, 50, 60, 130)]


def test_a_text_without_pages_cites_its_source() -> None:
    citation = cite("notes.md", Span(3, 9), [])
    assert (str(citation), citation.pages, citation.boxes) == ("notes.md", (), ())


@given(
    st.lists(
        st.tuples(st.integers(0, 600), st.integers(0, 700), st.integers(1, 90), st.integers(1, 30)).map(
            lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
        ),
        max_size=25,
    )
)
def test_boxes_cover_every_word_with_at_most_half_as_much_again(words: list[tuple[int, int, int, int]]) -> None:
    array = np.array(words, dtype=np.float32).reshape(-1, 4)
    joined = np.array([tuple(box) for box in join_boxes(array)], dtype=np.float32).reshape(-1, 4)
    for x0, y0, x1, y1 in words:
        covering = (joined[:, 0] <= x0) & (joined[:, 1] <= y0) & (joined[:, 2] >= x1) & (joined[:, 3] >= y1)
        assert covering.any()
    assert union_area(joined) <= 1.5 * union_area(array)

"""Our own code at the boundary, on whatever an engine or a child may say: never a crash, never an unlawful document."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.core.errors import LimitExceeded
from ragkit.core.types import Document
from ragkit.load import Limits
from ragkit.load.pdf.hidden_text import with_annotations
from ragkit.load.pdf.text import Annotation, PageWords, assemble
from ragkit.load.records import check
from ragkit.load.sandbox import wire
from tests.load.conftest import FUZZ

WORDS = st.text(alphabet="abc-\u00ad1.中文かאبﬁลำ\u0301\x07", min_size=1, max_size=6)
SIDES = st.floats(-50, 700, width=32) | st.sampled_from([0.0, 100.0, 1e30, -1e30])


@st.composite
def pages(draw: st.DrawFn) -> PageWords:
    texts = draw(st.lists(WORDS, max_size=25))
    corners = np.array(
        draw(st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=len(texts), max_size=len(texts))), np.float32
    )
    corners = corners.reshape(-1, 4)
    boxes = np.concatenate((np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])), axis=1)
    lines = np.sort(np.array(draw(st.lists(st.integers(0, 9), min_size=len(texts), max_size=len(texts))), np.int64))
    notes = draw(
        st.lists(
            st.builds(Annotation, st.sampled_from(["field", "annotation"]), WORDS, st.just((1.0, 2.0, 30.0, 40.0))), max_size=2
        )
    )
    glued = draw(st.none() | st.just(np.ones(len(texts), bool)))
    side = st.sampled_from([0.0, 1.0, 400.0, 200_000.0])
    return PageWords(texts, boxes, lines, draw(side), draw(side), 0, draw(st.none() | WORDS), glued, tuple(notes))


@settings(max_examples=150 * FUZZ, deadline=None)
@given(st.lists(pages(), min_size=1, max_size=4))
def test_any_words_at_any_places_make_a_lawful_document(drawn: list[PageWords]) -> None:
    text, made, blocks = assemble([with_annotations(page) for page in drawn], on_page=lambda _: None)
    document = check(Document(text=text, pages=made, blocks=blocks))
    assert len(document.pages) == len(drawn)
    shown = [page for page in drawn if page.width > 0 and page.height > 0]
    assert sum(len(page.words) for page in document.pages) == sum(
        len(page.texts) + sum(len(annotation.text.split()) for annotation in page.annotations) for page in shown
    )


@settings(max_examples=300 * FUZZ, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_any_bytes_from_a_child_are_refused_or_lawful(data: bytes, payload: bytes) -> None:
    with contextlib.suppress(wire.BrokenFrame, LimitExceeded):
        wire.sizes(data.ljust(wire.PREFIX.size, b"\0")[: wire.PREFIX.size], limits=Limits())
    with contextlib.suppress(wire.BrokenFrame, LimitExceeded):
        check(wire.unpack_document(wire.header_of(data), memoryview(payload), limits=Limits()))

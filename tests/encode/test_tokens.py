"""Token offsets are exact for texts of any length, and counting agrees with encoding."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from ragkit.encode import tokens as module
from ragkit.encode.batching import ahead, batches, side_by_side, slices
from ragkit.encode.tokens import Tokenizer

AWKWARD = st.text(st.sampled_from(list("ab\u0130\u00e9e\u0301 \t\n\r\x1c\x00\u2028\u3000首都-,.😀[]ﬁΣ\ufffd")), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer(model_folder / "tokenizer.json")


@pytest.fixture(scope="module")
def backend(model_folder: Path) -> Backend:
    backend = Backend.from_file(str(model_folder / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    return backend


@settings(max_examples=200, deadline=None)
@given(text=AWKWARD)
def test_pieces_give_the_tokens_of_the_whole(tokenizer: Tokenizer, backend: Backend, text: str) -> None:
    whole = backend.encode(text, add_special_tokens=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 4)
        spans, counts = tokenizer.own(text)[1], tokenizer.counts([text, "", text])
    assert spans.tolist() == [list(span) for span in whole.offsets]
    assert counts.tolist() == [len(whole) + 2, 2, len(whole) + 2]


@settings(max_examples=100, deadline=None)
@given(text=AWKWARD | st.text(max_size=80))
def test_spans_are_ascending_and_within_the_text(tokenizer: Tokenizer, text: str) -> None:
    spans = tokenizer.own(text)[1]
    assert (np.diff(spans, axis=0) >= 0).all()
    assert (spans[:, 0] <= spans[:, 1]).all()
    assert len(spans) == 0 or (spans.min() >= 0 and spans.max() <= len(text))
    [ids] = tokenizer.ids([text])
    assert np.array_equal(ids[1:-1], tokenizer.own(text)[0])


def test_spans_point_at_their_words(tokenizer: Tokenizer) -> None:
    text = "Émile saw 東京, twice 😀 yes"
    assert [text[a:b] for a, b in tokenizer.own(text)[1]] == ["Émile", "saw", "東", "京", ",", "twice", "😀", "yes"]


def test_a_lone_surrogate_moves_no_offset(tokenizer: Tokenizer) -> None:
    text = "ab \ud800 cd"
    assert [text[a:b] for a, b in tokenizer.own(text)[1]] == ["ab", "cd"]


def test_a_megabyte_is_tokenised_piece_by_piece(tokenizer: Tokenizer) -> None:
    text = "lorem ipsum\ndolor " * 60_000
    spans = tokenizer.own(text)[1]
    assert len(spans) == tokenizer.counts([text])[0] - 2
    assert text[slice(*spans[-1])] in "dolor"
    assert (np.diff(spans[:, 0]) > 0).all()


@given(lengths=st.lists(st.integers(1, 600), max_size=80), budget=st.integers(1, 900))
def test_batches_hold_each_item_once_within_the_budget(lengths: list[int], budget: int) -> None:
    made = list(batches(np.array(lengths, dtype=np.int64), tokens=budget))
    flat = [int(i) for batch in made for i in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= budget for batch in made)


@given(texts=st.lists(st.text(max_size=30), max_size=60), characters=st.integers(1, 100))
def test_slices_hold_each_text_once_longest_first(texts: list[str], characters: int) -> None:
    flat = [int(i) for part in slices(texts, characters=characters) for i in part]
    assert sorted(flat) == list(range(len(texts)))
    assert [len(texts[i]) for i in flat] == sorted(map(len, texts), reverse=True)


def test_ahead_keeps_order_works_one_ahead_and_passes_errors_on() -> None:
    started: list[int] = []

    def work(i: int) -> int:
        started.append(i)
        if i == 5:
            raise RuntimeError("five")
        return i * i

    results: list[int] = []
    with pytest.raises(RuntimeError, match="five"):
        results.extend(ahead(work, range(9)))
    assert results == [0, 1, 4, 9, 16]
    assert max(started) <= 6
    assert list(ahead(work, [])) == []


def test_side_by_side_runs_every_task_once_on_several_threads() -> None:
    done: list[int] = []
    threads: set[int] = set()
    begun: list[int] = []
    both = threading.Barrier(2)

    def task(i: int) -> None:
        if i < 2:
            both.wait(timeout=10)  # passes only if two run at once
        threads.add(threading.get_ident())
        done.append(i)

    side_by_side((partial(task, i) for i in range(50)), workers=2, start=lambda: begun.append(1))
    assert sorted(done) == list(range(50))
    assert len(begun) == len(threads) == 2


def test_side_by_side_raises_the_first_error_and_drops_what_had_not_begun() -> None:
    done: list[int] = []

    def task(i: int) -> None:
        if i == 0:
            raise RuntimeError("zero")
        time.sleep(0.1)
        done.append(i)

    with pytest.raises(RuntimeError, match="zero"):
        side_by_side((partial(task, i) for i in range(1000)), workers=2, start=lambda: None)
    assert len(done) <= 3  # of the seven that were waiting when the error came to light


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(list("abc dé.,-'“首都")), max_size=40))
def test_ids_are_spelled_as_a_text_of_the_same_ids_or_refused(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.own(text)[0].tolist()
    spelled = tokenizer.text_of(ids)
    assert tokenizer.own(spelled)[0].tolist() == ids
    assert tokenizer.text_of(tokenizer.ids([text])[0].tolist()) == spelled


def test_ids_of_no_text_are_refused(tokenizer: Tokenizer) -> None:
    within = tokenizer.own("photovoltaic")[0].tolist()[-1:]
    for ids in (within, [-1], [tokenizer.vocabulary_size], [2**70]):
        with pytest.raises(ValueError, match="another"):
            tokenizer.text_of(ids)

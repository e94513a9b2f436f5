"""Late chunking's laws: alignment against a loop over characters, windows against an oracle of the paper's procedure."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from ragkit.core.arrays import truncate_dims, unit_rows
from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.encode import Encoder, EncoderCard, Encoding, TokenStates, late_pooling, load_encoder
from ragkit.encode import late as late_module
from ragkit.encode.contract import TokenEncoder, TokenIds
from ragkit.encode.late import (
    late_chunk,
    late_chunk_documents,
    late_chunk_strings,
    why_not_late,
)
from ragkit.encode.late_pooling import token_windows
from ragkit.testing import HashEncoder
from tests.encode.conftest import TEXTS
from tests.encode.oracle import Oracle

HASH = HashEncoder(128)
LONG = " ".join(f"The {word} of Bern was built in {1800 + i}." for i, word in enumerate(["bridge", "tower", "station"] * 12))
HARD = [
    "首都は東京です。北京是中国的首都。",
    "👩‍👩‍👧 family 😀😀 flag 🇨🇭 end",
    "e\u0301te\u0301 no\u0308el Zu\u0308rich A\u030angstro\u0308m",
    "שלום עולם، مرحبا بالعالم! mixed עברית text",
    "นี่คือข้อความภาษาไทย and ไทย",
    "a\x00b \t\n c\u2028d   trailing   ",
    "unbelievableness " * 3 + "x" * 120,
]


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans that end after each full stop: the blanks between them belong to the following one."""
    ends = [i + 1 for i, letter in enumerate(text) if letter == "."]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def expected_vectors(tokens: TokenStates, text: str, spans: Sequence[tuple[int, int]]) -> list[np.ndarray | None]:
    """Token by token and span by span, from the rule's words; None for a span without a token."""
    vectors: list[np.ndarray | None] = []
    for start, end in spans:
        rows = []
        for state, (a, b), special in zip(tokens.states, tokens.spans.tolist(), tokens.special, strict=True):
            character = b - 1 if b > a else min(a, len(text) - 1)
            if not special and character in range(start, end):
                rows.append(state.astype(np.float64))
        mean = np.mean(rows, axis=0) if rows else None
        vectors.append(None if mean is None else mean / np.linalg.norm(mean))
    return vectors


def assert_aligned(encoder: Any, text: str, spans: Sequence[tuple[int, int]], **options: Any) -> None:
    expected = expected_vectors(encoder.encode_tokens(text), text, spans)
    missing = [i for i, vector in enumerate(expected) if vector is None]
    if missing:
        with pytest.raises(EncodeError, match=rf"span {missing[0]}, .*no token of its own"):
            late_chunk(encoder, text, spans, **options)
    held = [i for i in range(len(spans)) if i not in missing]
    vectors = late_chunk(encoder, text, [spans[i] for i in held], **options)
    assert vectors.shape == (len(held), encoder.card.dims)
    assert vectors.dtype == np.float32
    for vector, i in zip(vectors, held, strict=True):
        assert np.abs(vector - expected[i]).max() < 1e-5


class TableEncoder:
    """A `TokenEncoder` over any tokenizer: a token's state is its row in a random table, plus some of its row's mean.

    It has an instruction, as jina-embeddings-v3 has, and one token around the text on either side, or none, as v4.
    """

    def __init__(self, backend: Tokenizer, *, dims: int = 16, specials: bool = True, max_tokens: int = 4096) -> None:
        self.card = EncoderCard(name="table", revision="1", licence="", dims=dims, max_tokens=max_tokens)
        self._backend = backend
        self._table = np.random.default_rng(0).normal(size=(backend.get_vocab_size() + 2, dims)).astype(np.float32)
        self._first, self._last = [[backend.get_vocab_size()], [backend.get_vocab_size() + 1]] if specials else [[], []]
        self._instruction = backend.encode("Represent: ", add_special_tokens=False).ids
        self.rows_seen: list[int] = []

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        made = self._backend.encode(text, add_special_tokens=False)
        before, after = [*self._first, *self._instruction], self._last
        ids = np.array([*before, *made.ids, *after], dtype=np.int64)
        spans = np.array(made.offsets, dtype=np.int64).reshape(-1, 2)
        special = np.array([True] * len(before) + [False] * len(made.ids) + [True] * len(after))
        return TokenIds(ids, np.pad(spans, ((len(before), len(after)), (0, 0))), special)

    def encode_ids(self, rows: Sequence[np.ndarray], *, task: str | None = None) -> list[np.ndarray]:
        self.rows_seen += map(len, rows)
        return [self._table[row] + np.float32(0.5) * self._table[row].mean(axis=0) for row in rows]

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        tokens = self.token_ids(text)
        return TokenStates(self.encode_ids([tokens.ids])[0], tokens.spans, tokens.special)

    def encode_document(
        self, documents: Sequence[Any], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        means = [self.encode_tokens(text).states.mean(axis=0) for text in documents]
        return Encoding(dense=unit_rows(np.stack(means)))

    encode_query = encode_document

    def token_spans(self, text: str) -> np.ndarray:
        tokens = self.token_ids(text)
        return tokens.spans[~tokens.special]

    def count_tokens(self, documents: Sequence[str]) -> np.ndarray:
        return np.array([len(self.token_ids(text).ids) for text in documents], dtype=np.int64)


def trained(kind: str) -> Tokenizer:
    """A small tokenizer of that kind, trained here on the texts of these tests."""
    corpus = [*TEXTS, *HARD, LONG]
    if kind.startswith("byte-level BPE"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind.endswith("trimmed"):  # as RoBERTa's: a token of blanks has an empty span
            backend.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(corpus, trainer)
    return backend


@pytest.fixture(scope="module")
def table_encoders() -> dict[str, TableEncoder]:
    return {
        "byte-level BPE": TableEncoder(trained("byte-level BPE"), specials=False),
        "byte-level BPE, trimmed": TableEncoder(trained("byte-level BPE, trimmed")),
        "Unigram": TableEncoder(trained("Unigram")),
    }


@pytest.fixture
def small(tiny: Callable[..., Path]) -> Encoder:
    """A BERT of 8 dims and 40 positions, so that a paragraph is a long document."""
    return load_encoder(tiny(), dtype="float32")


# Alignment


def test_a_span_is_pooled_from_the_tokens_whose_last_character_it_holds(minilm: Encoder) -> None:
    for text in [*TEXTS, *HARD]:
        cuts = [0, len(text) // 3, len(text) // 2, len(text)]
        assert_aligned(minilm, text, [*pairwise(cuts), (0, len(text)), (len(text) // 4, len(text))])


@pytest.mark.parametrize("kind", ["byte-level BPE", "byte-level BPE, trimmed", "Unigram"])
def test_alignment_holds_for_other_tokenizers(kind: str, table_encoders: dict[str, TableEncoder]) -> None:
    for text in HARD:
        assert_aligned(table_encoders[kind], text, [(i, i + 3) for i in range(0, len(text) - 2, 2)])
        for edges in ("strict", "authors"):
            assert late_chunk(table_encoders[kind], text, [(0, len(text))], edges=edges).shape == (1, 16)
    spans = np.concatenate([table_encoders[kind].token_spans(text) for text in HARD])
    assert (spans[:, 0] == spans[:, 1]).any() == kind.endswith("trimmed"), "tokens without a character are in the test"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_spans_of_any_text_come_back_in_order(data: st.DataObject) -> None:
    letters = st.sampled_from([*"abc  \n.,", "é", "e\u0301", "首", "都", "😀", "👩‍👧", "ש", "م", "\u200b", "\x00", "\ud800"])
    text = "".join(data.draw(st.lists(letters, max_size=40)))
    at = st.integers(0, len(text))
    spans = data.draw(st.lists(st.tuples(at, at).map(lambda pair: (min(pair), max(pair))), max_size=12))
    assert_aligned(HASH, text, spans)


def test_a_token_in_a_gap_belongs_to_no_span() -> None:
    text = "alpha beta gamma"
    with_gap = late_chunk(HASH, text, [(0, 5), (11, 16)])
    assert np.allclose(with_gap, late_chunk(HASH, text, [(0, 5), (5, 10), (11, 16)])[[0, 2]], atol=1e-6)


def test_pooling_is_linear(minilm: Encoder) -> None:
    """The length-weighted mean of adjacent spans is the merged span's mean, before normalising."""
    text = TEXTS[0]
    spans = minilm.encode_tokens(text).spans
    for cut in (10, 30, 47):
        halves, whole = [(0, cut), (cut, len(text))], [(0, len(text))]
        reading = late_module._reading(minilm, task=None, window=256, overlap=64)
        apart, merged = late_module._pooled(minilm, [(text, halves), (text, whole)], reading, None)
        assert np.abs(apart.sums.sum(axis=0) - merged.sums[0]).max() < 1e-4
        assert 0 < (spans[1:-1, 1] <= cut).sum() < len(spans) - 2


def test_every_span_gives_one_row_whatever_their_order() -> None:
    spans = sentences(LONG)
    vectors = late_chunk(HASH, LONG, spans, window=50)
    turned = late_chunk(HASH, LONG, spans[::-1], window=50)
    assert np.allclose(vectors, turned[::-1], atol=1e-6)
    assert np.allclose(late_chunk(HASH, LONG, spans * 2, window=50), np.tile(vectors, (2, 1)), atol=1e-6)
    assert late_chunk(HASH, LONG, []).shape == (0, 128)
    assert late_chunk(HASH, LONG, [], truncate_dim=7).shape == (0, 7)
    assert late_chunk_documents(HASH, []) == []


# The authors' edge rule


def test_by_the_authors_rule_one_span_over_everything_is_the_plain_embedding(
    minilm: Encoder, table_encoders: dict[str, TableEncoder]
) -> None:
    encoders: list[Any] = [minilm, HASH, *table_encoders.values()]
    for encoder in encoders:
        texts = [text for text in [*TEXTS, *HARD[:-1]] if text.strip() or encoder in (minilm, HASH)]
        for text in texts:
            [late] = late_chunk(encoder, text, [(0, len(text))], edges="authors")
            assert np.abs(late - encoder.encode_document([text]).dense[0]).max() < 1e-5, (encoder.card.name, text)


def test_the_authors_rule_changes_the_first_and_the_last_span_only(table_encoders: dict[str, TableEncoder]) -> None:
    encoder = table_encoders["Unigram"]
    spans = sentences(LONG)
    strict, authors = (late_chunk(encoder, LONG, spans, edges=edges) for edges in ("strict", "authors"))
    assert np.allclose(strict[1:-1], authors[1:-1], atol=1e-6)
    tokens = encoder.encode_tokens(LONG)
    own = np.flatnonzero(~tokens.special)
    assert own[0] > 1, "the instruction stands before the text"
    for row, extra, span in ((0, tokens.states[: own[0]], spans[0]), (-1, tokens.states[own[-1] + 1 :], spans[-1])):
        inside = (tokens.spans[:, 1] - 1 >= span[0]) & (tokens.spans[:, 1] - 1 < span[1]) & ~tokens.special
        with_extra = unit_rows(np.concatenate([extra, tokens.states[inside]]).mean(axis=0, keepdims=True))[0]
        assert np.abs(authors[row] - with_extra).max() < 1e-5
        assert np.abs(strict[row] - with_extra).max() > 1e-3


# Windows


def paper_states(oracle: Oracle, text: str, *, window: int, overlap: int) -> np.ndarray:
    """Long late chunking as the paper's appendix has it: (t, h) float64 states of the sequence with its specials, joined."""
    ids = oracle.tokenizer.encode(text).ids
    oracle_of_ids = Oracle.__new__(Oracle)
    oracle_of_ids.config, oracle_of_ids.w = oracle.config, oracle.w
    oracle_of_ids.tokenizer = SimpleNamespace(encode=lambda row: SimpleNamespace(ids=row))  # type: ignore[assignment]
    if len(ids) <= window:
        return oracle_of_ids.states(ids)
    joined = [oracle_of_ids.states(ids[:window])]
    for start in range(window - overlap, len(ids), window - overlap):
        if len(ids) - start > overlap:
            joined += [oracle_of_ids.states(ids[start : start + window])[overlap:]]
    return np.concatenate(joined)


@pytest.mark.parametrize(("window", "overlap"), [(40, 10), (40, 0), (17, 5), (9, 8), (5, 2), (1, 0)])
def test_windows_are_the_papers(small: Encoder, tiny: Callable[..., Path], window: int, overlap: int) -> None:
    text = LONG[:430]
    oracle = Oracle(tiny(name="oracle"))
    tokens = oracle.tokenizer.encode(text)
    states = paper_states(oracle, text, window=window, overlap=overlap)
    assert len(states) == len(tokens.ids) > 80
    special = np.array(tokens.special_tokens_mask, dtype=bool)
    joined = TokenStates(states, np.array(tokens.offsets, dtype=np.int64), special)
    spans = [*sentences(text), (0, len(text)), (100, 330)]
    expected = np.stack(expected_vectors(joined, text, spans))
    vectors = late_chunk(small, text, spans, window=window, overlap=overlap)
    assert np.abs(vectors - expected).max() < 1e-5
    [everything] = late_chunk(small, text, [(0, len(text))], window=window, overlap=overlap, edges="authors")
    assert np.abs(everything - states.mean(axis=0) / np.linalg.norm(states.mean(axis=0))).max() < 1e-5


def test_a_window_as_long_as_the_document_changes_nothing(minilm: Encoder) -> None:
    text = " ".join([*TEXTS[3:6], LONG[:300]])
    spans = [(0, 60), (40, 200), (200, len(text))]
    [length] = minilm.count_tokens([text])
    expected = np.stack(expected_vectors(minilm.encode_tokens(text), text, spans))
    for window in (int(length), int(length) + 1, None):
        assert np.abs(late_chunk(minilm, text, spans, window=window) - expected).max() < 1e-5
    assert np.abs(late_chunk(minilm, text, spans, window=int(length) - 1) - expected).max() > 1e-4


def test_a_chunk_across_a_seam_pools_each_token_from_the_first_window_that_has_it() -> None:
    text = "one two three four five six seven eight nine ten"
    tokens = HASH.token_ids(text)  # twelve, with the special ones
    first, second = HASH.encode_ids([tokens.ids[:7], tokens.ids[5:12]])
    straddling = (text.index("five"), text.index("nine") - 1)  # five six | seven eight: tokens 5, 6 and 7, 8
    expected = unit_rows(np.concatenate([first[5:7], second[2:4]]).mean(axis=0, keepdims=True))
    assert np.abs(late_chunk(HASH, text, [straddling], window=7, overlap=2) - expected).max() < 1e-6


@given(tokens=st.integers(0, 300), window=st.integers(1, 60), data=st.data())
def test_windows_keep_every_token_once_in_order(tokens: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    found = list(token_windows(tokens, window=window, overlap=overlap))
    assert [token for _, kept, end in found for token in range(kept, end)] == list(range(tokens))
    assert all(end - start <= window for start, _, end in found)
    assert [kept - start for start, kept, _ in found[1:]] == [overlap] * (len(found) - 1)


def test_memory_is_bounded_by_the_window(table_encoders: dict[str, TableEncoder]) -> None:
    wide = TableEncoder(trained("Unigram"), dims=512, max_tokens=2048)
    text = LONG * 90
    [tokens] = wide.count_tokens([text])
    spans = sentences(text)
    tracemalloc.start()
    try:
        vectors = late_chunk(wide, text, spans)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    all_states = int(tokens) * 512 * 4
    assert vectors.shape == (len(spans), 512)
    assert all_states > 150e6
    assert peak < all_states / 2, f"{peak / 1e6:.0f} MB at the peak, {all_states / 1e6:.0f} MB of states"


def test_windows_that_no_span_touches_are_not_run(table_encoders: dict[str, TableEncoder]) -> None:
    encoder = table_encoders["Unigram"]
    spans = sentences(LONG)
    everything = late_chunk(encoder, LONG, spans, window=50, overlap=10)
    encoder.rows_seen.clear()
    some = late_chunk(encoder, LONG, spans[:2], window=50, overlap=10)
    assert len(encoder.rows_seen) < len(LONG) / 400
    assert np.allclose(some, everything[:2], atol=1e-6)


# Several documents


@pytest.mark.parametrize("window", [None, 64])
def test_documents_together_equal_one_at_a_time(minilm: Encoder, window: int | None) -> None:
    texts = [LONG, *(text for text in TEXTS if text.strip()), LONG[:200], LONG[100:900]]
    documents = [(text, [(0, len(text)), (len(text) // 2, len(text))]) for text in texts]
    together = late_chunk_documents(minilm, documents, window=window)
    assert [rows.shape for rows in together] == [(2, 384)] * len(documents)
    turned = late_chunk_documents(minilm, documents[::-1], window=window)[::-1]
    for (text, spans), rows, other in zip(documents, together, turned, strict=True):
        assert np.abs(rows - late_chunk(minilm, text, spans, window=window)).max() < 1e-5
        assert np.abs(rows - other).max() < 1e-5


def test_groups_of_windows_are_put_together_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [(LONG, sentences(LONG)), ("", []), ("one two", [(0, 3), (4, 7)]), (LONG[:300], sentences(LONG[:300]))]
    expected = late_chunk_documents(HASH, documents, window=40)
    for together in (1, 50, 100):
        monkeypatch.setattr(late_pooling, "TOGETHER", together)
        for rows, other in zip(late_chunk_documents(HASH, documents, window=40), expected, strict=True):
            assert rows.shape == other.shape
            assert np.allclose(rows, other, atol=1e-6)


def test_an_error_names_the_document_and_the_span() -> None:
    with pytest.raises(EncodeError, match=r"document 1: span 2, \[3, 4\), ' ', has no token"):
        late_chunk_documents(HASH, [("one", [(0, 3)]), ("one two", [(0, 3), (4, 7), (3, 4)])])
    with pytest.raises(ValueError, match=r"document 0: span 1, \[2, 9\), is not within its text, \[0, 3\)"):
        late_chunk(HASH, "one", [(0, 3), (2, 9)])
    with pytest.raises(ValueError, match="is not within"):
        late_chunk(HASH, "one", [(2, 1)])


# Pieces, dimensions, settings, refusals


def test_pieces_are_joined_as_given() -> None:
    pieces = ["First one. ", "Second", " one.", "第三"]
    ends = np.cumsum([len(piece) for piece in pieces])
    spans = np.stack([np.array([0, *ends[:-1]]), ends], axis=1)
    assert np.array_equal(late_chunk_strings(HASH, pieces), late_chunk(HASH, "".join(pieces), spans))
    assert late_chunk_strings(HASH, []).shape == (0, 128)
    with pytest.raises(EncodeError, match="span 1, "):
        late_chunk_strings(HASH, ["one ", "", "two"])
    with pytest.raises(EncodeError, match="span 0, "):  # one token over two pieces belongs to the second
        late_chunk_strings(HASH, ["unit", "ed"])
    with pytest.raises(InputTooLong, match=r"2 pieces have 602 tokens together.*set to take 512"):
        late_chunk_strings(HASH, ["one " * 300, "two " * 300])
    with pytest.raises(TypeError, match="one str"):
        late_chunk_strings(HASH, "text")


def test_a_late_chunk_knows_its_document(minilm: Encoder) -> None:
    """Naive and late differ, and a pronoun comes nearer to what it stands for."""
    text = "Berlin is the capital of Germany. It has 3.8 million inhabitants."
    late = late_chunk(minilm, text, sentences(text))[1]
    naive = minilm.encode_document([text[34:]]).dense[0]
    berlin = minilm.encode_query(["Berlin"]).dense[0]
    assert late @ berlin > naive @ berlin + 0.1


def test_truncated_dims_are_the_first_ones_renormalised() -> None:
    spans = sentences(LONG)
    full = late_chunk(HASH, LONG, spans)
    assert np.allclose(late_chunk(HASH, LONG, spans, truncate_dim=32), truncate_dims(full, 32), atol=1e-6)
    assert np.allclose(np.linalg.norm(full, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="truncate_dim must be between 1 and 128"):
        late_chunk(HASH, LONG, spans, truncate_dim=129)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 513}, "window must be between 1 and 512"),
        ({"window": 0}, "window must be between"),
        ({"window": 20, "overlap": 20}, "overlap must be between 0 and 19"),
        ({"overlap": -1}, "overlap must be between"),
        ({"edges": "loose"}, "'strict' or 'authors'"),
        ({"task": "poetry"}, "has the tasks"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        late_chunk(HASH, "text", [(0, 4)], **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "cls"}, "pools by 'cls'"),
        ({"pooling": "last token"}, "pools by 'last token'"),
        ({"outputs": ("multi",), "dims": 0, "multi_dims": 8}, "returns multi only"),
    ],
)
def test_encoders_that_do_not_pool_by_the_mean_are_refused_with_the_reason(change: dict[str, Any], message: str) -> None:
    encoder = HashEncoder()
    encoder.card = replace(encoder.card, **change)
    assert message in str(why_not_late(encoder))
    with pytest.raises(ValueError, match=message):
        late_chunk(encoder, "text", [(0, 4)])
    with pytest.raises(ValueError, match=message):
        late_chunk_strings(encoder, ["text"])


def test_an_encoder_without_token_states_is_refused() -> None:
    remote: Any = SimpleNamespace(card=HASH.card, encode_document=HASH.encode_document)
    assert "has no encode_tokens" in str(why_not_late(remote))


@pytest.mark.filterwarnings("ignore")
def test_a_sentence_transformers_model_is_taken_if_it_pools_by_the_mean(tiny: Callable[..., Path]) -> None:
    """It has prompts, so our own code leaves it to sentence-transformers."""
    for mode, taken in (("mean", True), ("cls", False)):
        folder = tiny(name=mode)
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"document": "passage: "}}))
        pooling = {"word_embedding_dimension": 8, f"pooling_mode_{mode}_token{'s' * taken}": True}
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling | {"pooling_mode_mean_tokens": taken}))
        encoder = load_encoder(folder, dtype="float32")
        text = "Zürich has lakes. It has trams."
        if not taken:
            assert "means of its token states" in str(why_not_late(encoder))
            continue
        assert why_not_late(encoder) is None
        assert_aligned(encoder, text, sentences(text))
        [whole] = late_chunk(encoder, text, [(0, len(text))], edges="authors")
        assert np.abs(whole - encoder.encode_document([text]).dense[0]).max() < 1e-5
        assert late_chunk(encoder, text, []).shape == (0, 8)
        if not isinstance(encoder, TokenEncoder):
            with pytest.raises(InputTooLong, match="cannot be run in windows"):
                late_chunk(encoder, LONG, sentences(LONG))


# The seam below encode_tokens


@pytest.mark.parametrize("name", ["minilm", "hash"])
def test_ids_and_states_apart_equal_encode_tokens(name: str, minilm: Encoder) -> None:
    encoder: Any = minilm if name == "minilm" else HASH
    assert isinstance(encoder, TokenEncoder)
    texts = [*TEXTS, *HARD]
    made = [encoder.token_ids(text) for text in texts]
    for text, tokens, states in zip(texts, made, encoder.encode_ids([tokens.ids for tokens in made]), strict=True):
        expected = encoder.encode_tokens(text)
        assert np.array_equal(tokens.spans, expected.spans)
        assert np.array_equal(tokens.special, expected.special)
        assert np.abs(states - expected.states).max() < 1e-5
    assert encoder.encode_ids([]) == []
    with pytest.raises(ValueError, match="row 1 has no ids"):
        encoder.encode_ids([made[0].ids, made[0].ids[:0]])
    with pytest.raises(InputTooLong, match=f"set to take {encoder.card.max_tokens}"):
        encoder.encode_ids([np.tile(made[0].ids, 40)])


def test_ids_of_a_long_text_are_those_of_one_go(minilm: Any, model_folder: Path) -> None:
    text = (LONG + " Zürich 首都 naïve\t\n") * 100
    backend = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    backend.no_truncation()
    whole = backend.encode(text)
    tokens = minilm.token_ids(text)
    assert len(text) > 100_000
    assert tokens.ids.tolist() == whole.ids
    assert tokens.spans.tolist() == [list(span) for span in whole.offsets]
    assert tokens.special.tolist() == [bool(one) for one in whole.special_tokens_mask]


def test_states_do_not_depend_on_the_other_rows(minilm: Any) -> None:
    rows = [minilm.token_ids(text).ids for text in (LONG[:400], "word", LONG[400:800], "two words")]
    for own, row in zip(minilm.encode_ids(rows), rows, strict=True):
        assert np.abs(own - minilm.encode_ids([row])[0]).max() < 1e-5

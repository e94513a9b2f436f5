"""Late interaction in an index: a vector per token beside the dense ones, under the same commit, filters and keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ragkit import Document, Index, load_encoder
from ragkit.apps.cli.main import app
from ragkit.core.arrays import MultiVectors
from ragkit.core.errors import Damaged, RecipeMismatch
from ragkit.core.space import Space
from ragkit.encode.contract import Encoding
from ragkit.search import retrieve
from ragkit.store.local import reader, writer
from ragkit.store.vectors.maxsim import error_bound
from ragkit.store.vectors.multi import MultiReader
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, record, records

ENCODER = HashEncoder(dims=64, multi_dims=32)
QUERIES = ["otters that sleep", "granite bridge", "fish", "how to bake bread", "1887", "nothing of the kind"]
PRECISIONS = ("int8", "float16", "float32")


@pytest.fixture(params=PRECISIONS)
def multi_index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "library", model=ENCODER, multi=request.param, chunk_tokens=16) as index:
        index.add(records())
        yield index


def naive(query: Any, item: Any) -> float:
    """The definition, in float64."""
    return float((query.astype(np.float64) @ item.astype(np.float64).T).max(axis=1).sum())


def exact_scores(index: Index, query: str, encoder: Any = ENCODER) -> dict[int, float]:
    """Every chunk's MaxSim score, from its text encoded again."""
    vectors = encoder.encode_query([query]).multi[0]
    hits = index.search("the", 100, mode="dense") if "chunk.dense" in index.spaces else index.search(query, 100, mode="multi")
    return {hit.key: naive(vectors, encoder.encode_document([hit.text]).multi[0]) for hit in hits}


def tolerance(index: Index, query: str) -> float:
    """How far scores may be from those of the float vectors, as the index itself states it."""
    assert index.recipe.multi is not None
    if index.recipe.multi.precision != "int8":
        return 1e-5 if index.recipe.multi.precision == "float32" else 1e-2
    vectors = ENCODER.encode_query([query]).multi
    assert vectors is not None
    [segment] = index._store.reader().segments
    assert segment.multi is not None
    assert segment.multi.items.quantiser is not None
    return error_bound(vectors[0], segment.multi.items.quantiser, segment.multi.loss)


def pairs(hits: Any) -> list[tuple[str, str, float]]:
    return [(hit.document_id, hit.text, hit.score) for hit in hits]


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_the_maxsim_of_the_texts(multi_index: Index, query: str) -> None:
    exact = exact_scores(multi_index, query)
    hits = multi_index.search(query, 100, mode="multi")
    assert {hit.key for hit in hits} == set(exact)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.scale == "maxsim"
        assert abs(hit.score - exact[hit.key]) <= tolerance(multi_index, query)


def test_multi_is_a_member_of_hybrid_and_a_space_of_its_own(multi_index: Index) -> None:
    hit = multi_index.search("otters hold hands while they sleep", 1)[0]
    assert hit.document_id == "otter"
    assert {reason.space for reason in hit.via} == {"chunk.dense", "chunk.lexical", "chunk.multi"}
    without = multi_index.search("otters hold hands while they sleep", 5, weights={"chunk.multi": 0})
    assert {reason.space for hit in without for reason in hit.via} == {"chunk.dense", "chunk.lexical"}
    [one], [two] = multi_index.search_many(["the quarry closed", "bread"], 1, mode="multi")
    assert (one.document_id, two.document_id) == ("quarry", "bread")


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_reranked_hits_have_the_scores_and_order_of_maxsim(multi_index: Index, mode: str) -> None:
    for query in QUERIES:
        among = {hit.key for hit in multi_index.search(query, 100, mode=mode, weights={"chunk.multi": 0})}
        exact = [hit for hit in multi_index.search(query, 100, mode="multi") if hit.key in among]
        hits = multi_index.search(query, 3, mode=mode, rerank="maxsim")
        assert pairs(hits) == pairs(exact[:3])
        assert all(hit.scale == "maxsim" for hit in hits)
        for hit in hits:
            assert [reason.space for reason in hit.via][-1] == "chunk.multi"
            assert len(hit.via) >= 2


def test_a_hit_says_why_maxsim_found_it_or_that_it_did_not(multi_index: Index) -> None:
    [hit] = multi_index.search("otters that sleep", 1, mode="dense", rerank="maxsim")
    assert hit.explain().score == hit.score
    [hit] = multi_index.search("otters that sleep", 1, mode="dense")
    with pytest.raises(ValueError, match=r"was not found by MaxSim, but by chunk\.dense"):
        hit.explain()
    [hit] = multi_index.search("otters", 1, mode="lexical")
    with pytest.raises(ValueError, match=r"was not found by MaxSim in chunk\.multi, but by chunk\.lexical"):
        hit.explain("chunk.multi")


def test_filters_are_exact_and_batches_change_nothing(multi_index: Index) -> None:
    everything = {query: multi_index.search(query, 100, mode="multi") for query in QUERIES}
    for query, filters in product(QUERIES, [{"lang": "en"}, {"number": {"$gte": 3}}, {"number": 9}]):
        hits = multi_index.search(query, 3, mode="multi", filters=filters)
        allowed = {hit.document_id for hit in multi_index.search("the", 100, mode="dense", filters=filters)}
        assert pairs(hits) == pairs([hit for hit in everything[query] if hit.document_id in allowed])[:3]
    together = multi_index.search_many(QUERIES, 100, mode="multi")
    assert [pairs(hits) for hits in together] == [pairs(everything[query]) for query in QUERIES]


def test_deletes_replacements_and_merging_change_no_survivors_score(multi_index: Index) -> None:
    before = {query: pairs(multi_index.search(query, 100, mode="multi")) for query in QUERIES}
    for at in range(10):
        multi_index.add([record(f"extra{at}", f"Extra number {at}. Salt and fish, and a bridge of bread.")])
    multi_index.delete([f"extra{at}" for at in range(0, 10, 2)])
    multi_index.add([record("bread", "Rice needs only water.")])
    commits = multi_index.stats().segments
    multi_index.delete([f"extra{at}" for at in range(1, 10, 2)])
    for step in range(2):
        for query in QUERIES:
            found = pairs(multi_index.search(query, 100, mode="multi"))
            kept = [hit for hit in before[query] if hit[0] != "bread"]
            assert [hit for hit in found if hit[0] != "bread"] == kept
            assert [hit[1] for hit in found if hit[0] == "bread"] == ["Rice needs only water."]
        if step == 0:
            multi_index.compact()
            assert multi_index.stats().segments == 1 <= commits


def test_reopened_it_answers_the_same_and_knows_what_it_keeps(multi_index: Index) -> None:
    before = [pairs(multi_index.search(query, 10, mode="multi")) for query in QUERIES]
    precision = multi_index.recipe.multi.precision if multi_index.recipe.multi else ""
    multi_index.close()
    for given in ({}, {"multi": True}, {"multi": precision}):
        with Index.open(multi_index.path, model=ENCODER, **given) as again:
            assert [pairs(again.search(query, 10, mode="multi")) for query in QUERIES] == before
            assert again.verify() == []
            [segment] = again.stats().multi
            assert segment["precision"] == precision
            assert again.stats().bytes_by_part["multi"] > segment["tokens"] * 32
    for given in ({"multi": False}, {"multi": "float16" if precision != "float16" else "int8"}, {"pool": 3}):
        with pytest.raises(RecipeMismatch, match="stored"):
            Index.open(multi_index.path, **given)


def test_multi_vectors_are_never_kept_unasked(index: Index, tmp_path: Path) -> None:
    assert index.spaces == ("chunk.dense", "chunk.lexical")
    assert "multi" not in index.stats().bytes_by_part
    for options in ({"mode": "multi"}, {"rerank": "maxsim"}):
        with pytest.raises(ValueError, match="multi=True"):
            index.search("fish", **options)
    with pytest.raises(ValueError, match="multi=True"):
        index.explain("fish", 1)
    with Index.open(tmp_path / "other", model=ENCODER) as able:
        assert able.spaces == ("chunk.dense", "chunk.lexical")
    with pytest.raises(ValueError, match="has none"):
        Index.open(tmp_path / "no", model=HashEncoder(dims=64), multi=True)
    for wrong in ({"multi": "int4"}, {"pool": 2}, {"multi": True, "pool": 0}):
        with pytest.raises(ValueError, match=r"int4|pool"):
            Index.open(tmp_path / "no", model=ENCODER, **wrong)
    assert not (tmp_path / "no" / "catalog.db").exists()


def test_a_flipped_bit_in_the_token_vectors_is_an_error(multi_index: Index) -> None:
    multi_index.close()
    for name in ("chunk.multi.npy", "chunk.multi.offsets.npy", "chunk.multi.json"):
        [path] = multi_index.path.glob(f"segments/*/{name}")
        body = bytearray(path.read_bytes())
        body[-3] ^= 4
        path.write_bytes(body)
        with Index.open(multi_index.path, model=ENCODER) as again:
            with pytest.raises(Damaged, match=name):
                again.search("fish", mode="multi")
            assert again.search("fish", mode="lexical")
            assert any(name in finding.problem for finding in again.verify())
        body[-3] ^= 4
        path.write_bytes(body)


# --- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES)
def test_shares_sum_to_the_score_exactly_and_name_words(multi_index: Index, query: str) -> None:
    for hit in multi_index.search(query, 3, mode="multi"):
        explanation = multi_index.explain(query, hit.key)
        assert explanation.score == hit.score == sum(match.share for match in reversed(explanation.matches))
        assert [match.query_word for match in explanation.matches] == query.split()
        text = multi_index.document(hit.document_id).text
        for match in explanation.matches:
            [span] = match.spans
            assert hit.span.start <= span.start < span.end <= hit.span.end
            assert span.of(text) == match.word
            if match.query_word in re.findall(r"\w+", hit.text.casefold()):
                assert match.word.casefold() == match.query_word


def test_an_explanation_of_what_is_not_there_is_refused(multi_index: Index) -> None:
    with pytest.raises(ValueError, match="no unit 999"):
        multi_index.explain("fish", 999)


# --- pooling ----------------------------------------------------------------------------------------------------------


def test_pooling_keeps_as_many_vectors_as_the_factor_says(tmp_path: Path) -> None:
    with (
        Index.open(tmp_path / "all", model=ENCODER, multi=True) as full,
        Index.open(tmp_path / "half", model=ENCODER, multi=True, pool=2) as half,
    ):
        for index in (full, half):
            index.add(records())
        tokens = [sum(segment["tokens"] for segment in index.stats().multi) for index in (full, half)]
        assert tokens[1] == sum(int(n) // 2 for n in ENCODER.count_tokens(list(NOTES.values())) - 2)
        assert tokens[0] >= 2 * tokens[1]
        hit = half.search("otters hold hands while they sleep", 1, mode="multi")[0]
        assert hit.document_id == "otter"
        explanation = half.explain("otters hold hands", hit.key)
        assert explanation.score == half.search("otters hold hands", 1, mode="multi")[0].score
        text = half.document("otter").text
        for match in explanation.matches:
            assert match.query_word.casefold() in [span.of(text).casefold() for span in match.spans]


# --- encoders ---------------------------------------------------------------------------------------------------------


class OnlyMulti:
    """A ColBERT-like encoder: no dense vectors."""

    def __init__(self) -> None:
        from dataclasses import replace

        self._encoder = HashEncoder(dims=64, multi_dims=32)
        self.card = replace(self._encoder.card, name="only-multi", dims=0, outputs=("multi",))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_query(self, queries: Any, **options: Any) -> Encoding:
        return Encoding(multi=self._encoder.encode_query(queries, **options).multi)

    def encode_document(self, documents: Any, **options: Any) -> Encoding:
        return Encoding(multi=self._encoder.encode_document(documents, **options).multi)


def test_an_encoder_without_dense_vectors_serves_multi_and_hybrid(tmp_path: Path) -> None:
    encoder: Any = OnlyMulti()
    with pytest.raises(ValueError, match="multi=True"):
        Index.open(tmp_path / "no", model=encoder)
    with Index.open(tmp_path / "yes", model=encoder, multi=True) as index:
        assert len(index.add(records()).added) == 5
        assert index.spaces == ("chunk.lexical", "chunk.multi")
        for mode in ("hybrid", "multi"):
            assert index.search("the quarry closed in 1961", 1, mode=mode)[0].document_id == "quarry"
        assert index.search("granite", 1, mode="lexical", rerank="maxsim")[0].scale == "maxsim"
        assert exact_scores(index, "granite bridge", encoder)
        for call in (lambda: index.search("granite", mode="dense"), lambda: index.similar("bread")):
            with pytest.raises(ValueError, match="no dense vectors"):
                call()
        index.compact()
        assert index.verify() == []


def test_long_units_in_windows_keep_the_tokens_of_all_windows(tmp_path: Path) -> None:
    encoder = HashEncoder(dims=64, multi_dims=32, max_tokens=8)
    with Index.open(tmp_path / "long", model=encoder, multi="float32", chunker="whole", overflow="window") as index:
        index.add(records())
        tokens = sum(len(encoder.token_spans(text)) for text in NOTES.values())
        assert sum(segment["tokens"] for segment in index.stats().multi) == tokens
        for name, text in NOTES.items():
            words = encoder.token_spans(text)
            last = text[words[-2, 0] : words[-2, 1]]
            hit = index.search(last, 1, mode="multi")[0]
            assert abs(hit.score - 1) < 1e-5, (name, last)


@pytest.fixture(scope="module")
def minilm() -> Any:
    return load_encoder("all-MiniLM-L6-v2+multi")


def test_the_default_models_token_states(tmp_path: Path, minilm: Any) -> None:
    with Index.open(tmp_path / "library", multi="float16") as index:
        assert index.recipe.encode.model.endswith("+multi")
        index.add(records())
        exact = exact_scores(index, "Which animals hold hands?", minilm)
        hits = index.search("Which animals hold hands?", 100, mode="multi")
        assert hits[0].document_id == "otter"
        for hit in hits:
            assert abs(hit.score - exact[hit.key]) < 0.02
        explanation = index.explain("Which animals hold hands?", hits[0].key)
        assert explanation.score == pytest.approx(hits[0].score, abs=1e-4)
        assert {match.word for match in explanation.matches} >= {"hold", "hands"}
    for given in ({}, {"model": "all-MiniLM-L6-v2"}, {"model": "all-MiniLM-L6-v2+multi"}, {"multi": "float16"}):
        Index.open(tmp_path / "library", **given).close()


def test_late_chunks_keep_the_token_states_of_their_document(tmp_path: Path, minilm: Any) -> None:
    text = " ".join(NOTES.values())
    with Index.open(
        tmp_path / "late", model=minilm, multi="float32", late_chunking=True, chunk_tokens=16, max_tokens=256
    ) as index:
        index.add([Document(text=text, id="all")])
        states = minilm.encode_tokens(text)
        rows = states.states / np.linalg.norm(states.states, axis=1, keepdims=True)
        query = "Where was the granite from?"
        vectors = minilm.encode_query([query]).multi[0]
        hits = index.search(query, 100, mode="multi")
        assert len(hits) > 3
        for hit in hits:
            ends = states.spans[:, 1] - 1
            mine = ~states.special & (ends >= hit.span.start) & (ends < hit.span.end)
            assert abs(hit.score - naive(vectors, rows[mine])) < 1e-3
            explanation = index.explain(query, hit.key)
            assert explanation.score == pytest.approx(hit.score, abs=1e-5)  # a first query may be encoded without torch
            for match in explanation.matches:
                [span] = match.spans
                assert np.array([span.start, span.end]).tolist() == states.spans[mine][match.token].tolist()
    with pytest.raises(ValueError, match="something else"):
        Index.open(tmp_path / "hash", model=ENCODER, multi=True, late_chunking=True)


def test_a_unit_whose_multi_vectors_are_missing_is_not_half_kept(tmp_path: Path) -> None:
    class Forgetful(OnlyMulti):
        def encode_document(self, documents: Any, **options: Any) -> Encoding:
            encoding = super().encode_document(documents, **options)
            if any("granite" in text.casefold() for text in documents):
                return Encoding(multi=MultiVectors(encoding.multi.values * np.float32(np.nan), encoding.multi.offsets))
            return encoding

    encoder: Any = Forgetful()
    with Index.open(tmp_path / "library", model=encoder, multi=True) as index:
        report = index.add(records())
        assert {one.source for one in report.failed} == {"bridge", "quarry"}
        assert all("not finite" in one.reason for one in report.failed)
        assert {hit.document_id for hit in index.search("granite", 10, mode="multi")} == {"otter", "bread", "harbour"}
        assert Space.MULTI in index.spaces


def test_an_index_takes_multi_vectors_later_and_gives_them_up_again(index: Index) -> None:
    texts = [hit.text for hit in index.search("fish", 10, mode="dense")]
    assert index.rebuild(model=ENCODER, multi="float16", pool=2).done == "embedded"
    assert index.spaces == ("chunk.dense", "chunk.lexical", "chunk.multi")
    assert len(index.search("fish", 100, mode="multi")) == index.stats().units
    assert index.rebuild(pool=1).done == "embedded"
    assert index.recipe.multi is not None
    assert (index.recipe.multi.precision, index.recipe.multi.pool) == ("float16", 1)
    assert index.verify() == []
    assert index.rebuild(multi=False).done == "embedded"
    assert index.spaces == ("chunk.dense", "chunk.lexical")
    assert "multi" not in index.stats().bytes_by_part
    assert [hit.text for hit in index.search("fish", 10, mode="dense")] == texts


def test_repair_embeds_again_what_lost_its_token_vectors(multi_index: Index) -> None:
    before = {query: pairs(multi_index.search(query, 100, mode="multi")) for query in QUERIES}
    [path] = multi_index.path.glob("segments/*/chunk.multi.npy")
    body = bytearray(path.read_bytes())
    body[-3] ^= 4
    path.write_bytes(body)
    multi_index.close()
    with Index.open(multi_index.path, model=ENCODER) as again:
        assert len(again.repair().embedded) == 5
        assert again.verify() == []
        for query in QUERIES:
            assert sorted(pairs(again.search(query, 100, mode="multi"))) == sorted(before[query])


def test_headers_are_explained_as_the_words_in_front(tmp_path: Path) -> None:
    with Index.open(tmp_path / "headed", model=ENCODER, multi=True, contextual_headers=True, chunk_tokens=16) as index:
        index.add([record("quarry")])
        hits = index.search("quarry closed", 10, mode="multi")
        text = index.document("quarry").text
        for hit in hits:
            explanation = index.explain("quarry closed", hit.key)
            assert explanation.score == hit.score
            for match in explanation.matches:
                assert [span.of(text) for span in match.spans] == ([match.word] if match.spans else [])
        [first] = index.explain("Quarry", hits[-1].key).matches
        assert (first.word, first.spans) == ("Quarry", ())  # it stands in the title alone


def test_rerank_by_maxsim_is_refused_where_it_makes_no_sense(multi_index: Index) -> None:
    with pytest.raises(ValueError, match="already"):
        multi_index.search("fish", mode="multi", rerank="maxsim")
    with pytest.raises(TypeError, match="maxsim"):
        multi_index.search("fish", rerank="colbert")
    hits = multi_index.search("granite", 2, rerank="maxsim", phrasings=["bridge"], min_score=0.5)
    assert hits
    assert all(hit.score >= 0.5 for hit in hits)


def test_copies_take_the_token_vectors_of_their_twin(multi_index: Index) -> None:
    def tokens() -> int:
        return sum(segment["tokens"] for segment in multi_index.stats().multi)

    before = tokens()
    report = multi_index.add([{**records()[0], "id": "copy"}, {**record("bread"), "id": "fresh", "title": "Another"}])
    assert [one.duplicate_of for one in report.added] == ["otter", ""]
    assert tokens() > before
    for query in QUERIES:
        scores = {(hit.document_id, hit.text): hit.score for hit in multi_index.search(query, 100, mode="multi")}
        assert [scores["copy", text] for (name, text) in scores if name == "otter"] == [
            score for (name, _), score in scores.items() if name == "otter"
        ]
    assert multi_index.verify() == []


def test_another_model_keeps_the_token_vectors_or_says_that_it_cannot(multi_index: Index) -> None:
    with pytest.raises(ValueError, match="multi=False"):
        multi_index.rebuild(model="hash:48")
    assert multi_index.rebuild(model="hash:48+multi16").done == "embedded"
    [segment] = multi_index.stats().multi
    assert segment["dims"] == 16
    assert multi_index.rebuild(model="hash:48", multi=False).done == "embedded"
    assert multi_index.spaces == ("chunk.dense", "chunk.lexical")


# --- coarse vectors ---------------------------------------------------------------------------------------------------


@pytest.fixture
def coarse_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Ninety chunks, of which a search scores eight exactly."""
    monkeypatch.setattr(reader, "LIKELY", 8)
    monkeypatch.setattr(reader, "TIMES", 0)
    monkeypatch.setattr(retrieve, "DEPTH", 4)
    with Index.open(tmp_path / "coarse", model=ENCODER, multi=True, chunk_tokens=16, coarse=2) as index:
        index.add(records())
        for at in range(3):
            index.add([record(f"note{n}", f"Note {n}: {word}s are counted, {n} of them.") for n, word in FILLING[at::3]])
        yield index


FILLING = [*enumerate(["barrel", "lantern", "anchor", "saddle", "kettle", "ladder", "needle", "violin"] * 10)]


def test_a_search_by_coarse_vectors_gives_exact_scores(coarse_index: Index) -> None:
    for query, wanted in (("otters hold hands while they sleep", "otter"), ("the quarry closed in 1961", "quarry")):
        exact = {hit.key: hit.score for hit in coarse_index.search(query, 100, mode="multi", exact=True)}
        hits = coarse_index.search(query, 3, mode="multi")
        assert hits[0].document_id == wanted
        assert [hit.score for hit in hits] == [exact[hit.key] for hit in hits]
        assert hits[0].explain().score == hits[0].score
    allowed = coarse_index.search("the quarry closed", 3, mode="multi", filters={"lang": "de"})
    assert {hit.meta["lang"] for hit in allowed} == {"de"}
    assert len(coarse_index.search("the", 60, mode="multi")) == 60
    assert {reason.space for reason in coarse_index.search("otters sleep", 1)[0].via} >= {"chunk.multi"}


def test_a_search_by_coarse_vectors_does_not_look_at_all(coarse_index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = MultiReader.scores_of

    def scores_of(self: MultiReader, queries: Any, positions: Any) -> Any:
        looked.append(len(positions))
        return real(self, queries, positions)

    monkeypatch.setattr(MultiReader, "scores_of", scores_of)
    coarse_index.search("otters", 3, mode="multi")
    assert sum(looked) == 8
    looked.clear()
    coarse_index.search("otters", 3, mode="multi", exact=True)
    assert looked == []


@pytest.mark.parametrize("exact", [False, True])
def test_the_command_line_looks_at_all_when_asked_to(coarse_index: Index, monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    monkeypatch.setattr(reader, "TIMES", 2)
    candidates: list[int | None] = []
    real = reader.Reader.search_multi

    def search_multi(self: reader.Reader, *given: Any, **settings: Any) -> Any:
        candidates.append(settings["candidates"])
        return real(self, *given, **settings)

    monkeypatch.setattr(reader.Reader, "search_multi", search_multi)
    asked = ["search", str(coarse_index.path), "otters", "--mode", "multi", "--json", *(["--exact"] if exact else [])]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.output)) == 5
    assert candidates == [None if exact else 2 * 5]


def test_coarse_vectors_come_and_go_without_embedding(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=ENCODER, multi=True, chunk_tokens=16) as index:
        index.add(records())
        before = {query: pairs(index.search(query, 100, mode="multi")) for query in QUERIES}
        size = index.stats().bytes_by_part["multi"]
        assert index.rebuild(coarse=4).done == "rows"
        assert index.stats().multi[0]["coarse"] > 0
        assert index.stats().bytes_by_part["multi"] > size
        assert {query: pairs(index.search(query, 100, mode="multi")) for query in QUERIES} == before
        index.add([record("new", "Also thinned, since the index says so.")])
        assert all(segment["coarse"] for segment in index.stats().multi)
        assert index.verify() == []
    with pytest.raises(RecipeMismatch, match="coarse: stored 4, given 0"):
        Index.open(tmp_path / "library", coarse=0)
    with Index.open(tmp_path / "library", model=ENCODER) as index:
        assert index.rebuild(coarse=0).done == "rows"
        assert [segment["coarse"] for segment in index.stats().multi] == [0]
        with pytest.raises(ValueError, match="add multi=True"):
            index.rebuild(coarse=4, multi=False)
        index.rebuild(coarse=4)
        assert index.rebuild(multi=False).done == "embedded"  # and coarse goes with what it stood for
        assert index.recipe.store.coarse == 0
        assert len(index.search("otters", 3)) == 3
    with pytest.raises(ValueError, match="add multi=True"):
        Index.open(tmp_path / "other", model=ENCODER, coarse=4)
    with pytest.raises(ValueError, match=r"^coarse must be 0, or at least 2 vectors that one stands for, got 1$"):
        Index.open(tmp_path / "other", model=ENCODER, multi=True, coarse=1)
    assert not (tmp_path / "other" / "catalog.db").exists()


def test_another_process_goes_by_the_coarse_vectors_that_one_brought(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model=ENCODER, multi=True, chunk_tokens=16) as other:
        other.add(records())
        with Index.open(tmp_path / "library") as index:
            index.rebuild(coarse=4)
        other.add([record("new", "Also thinned, since the index says so now.")])
        assert all(segment["coarse"] for segment in other.stats().multi)


def test_segments_without_coarse_vectors_are_scored_exactly(coarse_index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that were damaged while the others were rewritten, or that a former version wrote."""
    kept = coarse_index._store.layouts
    coarse_index._store.layouts = {kind: replace(layout, coarse=0) for kind, layout in kept.items()}
    coarse_index.compact()
    coarse_index._store.layouts = kept
    monkeypatch.setattr(writer, "merge_policy", lambda *_, **__: [])
    coarse_index.add([record("last", "The last of them are otters that sleep.")])
    assert [bool(segment["coarse"]) for segment in coarse_index.stats().multi] in ([True, False], [False, True])
    exact = pairs(coarse_index.search("otters hold hands", 5, mode="multi", exact=True))
    assert pairs(coarse_index.search("otters hold hands", 5, mode="multi")) == exact

"""The laws of an index: what goes in can be found, cited, replaced and deleted, and nothing else changes meanwhile."""

from __future__ import annotations

import math
import statistics
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Document, Index
from ragkit.core.errors import Damaged, FingerprintMismatch, IndexLocked, NotAnIndex, RecipeMismatch
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, record, records

MODES = ("hybrid", "dense", "lexical")
QUERIES = ["otters that sleep", "granite bridge", "fish", "how to bake bread", "1887", "nothing of the kind"]


def answers(index: Index, **options: Any) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    """Every query in every mode, with what identifies a hit and its score."""
    return {
        (mode, query): [
            (hit.document_id, tuple(hit.span), hit.text, round(hit.score, 5))
            for hit in index.search(query, 20, mode=mode, **options)
        ]
        for mode in MODES
        for query in QUERIES
    }


def test_what_was_added_is_found_in_every_mode(index: Index) -> None:
    for mode in MODES:
        hit = index.search("otters hold hands while they sleep", 1, mode=mode)[0]
        assert (hit.document_id, hit.rank) == ("otter", 1)
        assert hit.text in NOTES["otter"]
        assert hit.span.of(NOTES["otter"]) == hit.text
        assert hit.meta["number"] == 0
        assert hit.via[0].rank == 1
    assert index.search("otters hold hands", 1, mode="dense")[0].scale == "cosine"
    assert index.search("otters hold hands", 1, mode="lexical")[0].scale == "bm25"


def test_saved_and_reopened_it_answers_the_same(index: Index) -> None:
    before = answers(index)
    index.close()
    with Index.open(index.path, model=HashEncoder(dims=64)) as again:
        assert answers(again) == before
    with Index.open(index.path) as by_name:  # the recipe knows the model
        assert answers(by_name) == before


def test_adding_twice_is_adding_once(index: Index) -> None:
    before, commit = answers(index), index.stats().commit
    report = index.add(records())
    assert (len(report.added), len(report.updated), len(report.unchanged), len(report.failed)) == (0, 0, 5, 0)
    assert answers(index) == before
    assert index.stats().commit == commit


def test_a_changed_document_replaces_its_former_version(index: Index) -> None:
    report = index.add([record("bread", "Cake needs sugar and eggs.")])
    assert [one.source for one in report.updated] == ["bread"]
    assert index.document("bread").text == "Cake needs sugar and eggs."
    for mode in MODES:
        texts = [hit.text for hit in index.search("bread flour water salt cake", 50, mode=mode)]
        assert "Cake needs sugar and eggs." in texts
        assert not any("flour" in text for text in texts)
    assert index.stats().documents == 5


def test_a_document_that_shrinks_leaves_no_chunk_behind(index: Index) -> None:
    index.add([record("otter", " ".join(f"Sentence number {n} about otters." for n in range(40)))])
    assert index.stats().units > 10
    index.add([record("otter", "One line.")])
    assert [hit.text for hit in index.search("otters", 50, mode="dense") if hit.document_id == "otter"] == ["One line."]
    assert index.stats().units == sum(row.units for row in index.documents())


def test_deleting_one_document_keeps_the_others_scores(index: Index) -> None:
    before = answers(index)
    assert index.delete("otter") == 1
    after = answers(index)
    for (mode, query), hits in before.items():
        survivors = [hit for hit in hits if hit[0] != "otter"]
        if mode == "dense":
            assert after[mode, query] == survivors
        elif mode == "lexical":  # BM25 has statistics over all documents: only order and visibility are promised
            assert {hit[:3] for hit in after[mode, query]} == {hit[:3] for hit in survivors}
    assert index.delete("otter") == 0


def test_keys_are_never_given_out_twice(index: Index) -> None:
    seen = {hit.key for hit in index.search("fish", 50, mode="dense")}
    index.delete(list(NOTES))
    assert index.search("fish", 50) == []
    index.add(records())
    assert not seen & {hit.key for hit in index.search("fish", 50, mode="dense")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("filters", [{"lang": "en"}, {"number": {"$gte": 3}}, {"lang": "fr"}, {"source": "bread"}])
def test_a_filtered_search_is_the_search_of_the_subset(index: Index, mode: str, filters: dict[str, Any]) -> None:
    matching = {row.source for row in index.documents() if _matches(dict(row.meta) | {"source": row.source}, filters)}
    for query in QUERIES:
        everything = [hit.key for hit in index.search(query, 100, mode=mode) if hit.document_id in matching]
        for k in (1, 3, 100):
            hits = index.search(query, k, mode=mode, filters=filters)
            assert len(hits) == min(k, len(everything))
            if mode != "hybrid":  # ranks within the subset are not ranks within the whole
                assert [hit.key for hit in hits] == everything[:k]


def _matches(meta: dict[str, Any], filters: dict[str, Any]) -> bool:
    [(name, wanted)] = filters.items()
    return bool(meta.get(name, -1) >= wanted["$gte"]) if isinstance(wanted, dict) else meta.get(name) == wanted


def test_dense_scores_are_the_cosines_of_the_encoders_vectors(index: Index) -> None:
    encoder = HashEncoder(dims=64)
    hits = index.search("granite bridge", 50, mode="dense")
    rows = encoder.encode_document([hit.text for hit in hits]).dense
    query = encoder.encode_query(["granite bridge"]).dense
    assert rows is not None
    assert query is not None
    np.testing.assert_allclose([hit.score for hit in hits], rows @ query[0], atol=1e-3)  # rows are kept in float16
    assert len(hits) == index.stats().units


def test_query_time_dims_equal_slicing_and_renormalising(index: Index) -> None:
    encoder = HashEncoder(dims=64)
    for dims in (1, 7, 32, 64):
        hits = index.search("granite bridge", 50, mode="dense", dims=dims)
        rows = encoder.encode_document([hit.text for hit in hits], truncate_dim=dims).dense
        query = encoder.encode_query(["granite bridge"], truncate_dim=dims).dense
        assert rows is not None
        assert query is not None
        np.testing.assert_allclose([hit.score for hit in hits], rows @ query[0], atol=2e-3)


def test_ties_break_by_key(tmp_path: Path) -> None:
    with Index.open(tmp_path / "ties", model=HashEncoder(dims=64)) as index:
        index.add([{"id": f"doc{n}", "text": "the same words"} for n in range(30)])
        for mode in MODES:
            for k in (1, 5, 30):
                keys = [hit.key for hit in index.search("same words", k, mode=mode)]
                assert keys == list(range(1, k + 1))


def test_hybrid_is_the_sum_of_how_far_scores_stand_out(index: Index) -> None:
    weights = {"chunk.dense": 2.0, "chunk.lexical": 0.5}
    found = {space: index.search("granite river", 100, mode=space) for space in weights}
    count = max(map(len, found.values()))
    expected: dict[int, float] = {}
    for space, hits in found.items():
        scores = [hit.score for hit in hits]
        usual = scores + [0.0] * (count - len(scores))  # only of words: what has none of them is not found
        mean, deviation = statistics.fmean(usual), statistics.pstdev(usual)
        for hit in hits:
            share = math.log1p(math.exp(4 * ((hit.score - mean) / deviation - 1))) / 4
            expected[hit.key] = expected.get(hit.key, 0.0) + weights[space] * share
    assert len(found["chunk.lexical"]) < count
    hits = index.search("granite river", 100, weights=weights)
    assert {hit.scale for hit in hits} == {"zscore"}
    assert [hit.key for hit in hits] == sorted(expected, key=lambda key: (-expected[key], key))
    assert [hit.score for hit in hits] == pytest.approx([expected[hit.key] for hit in hits], rel=1e-6)
    assert [math.fsum(why.share for why in hit.via) for hit in hits] == pytest.approx([hit.score for hit in hits])


@pytest.mark.parametrize("options", [{}, {"rrf": 15.0}, {"group_by": "document"}])
def test_fewer_hits_are_the_first_of_more(index: Index, options: dict[str, Any]) -> None:
    index.add([record("otter", " ".join(f"Fish number {n} is a fish. " for n in range(400)))])
    more = index.search("granite fish river", 50, **options)
    for k in (1, 2, 7, 49):
        fewer = index.search("granite fish river", k, **options)
        assert [(hit.key, hit.score) for hit in fewer] == [(hit.key, hit.score) for hit in more][:k]


def test_hybrid_can_fuse_by_reciprocal_ranks(index: Index) -> None:
    constant, weights = 15.0, {"chunk.dense": 2.0, "chunk.lexical": 0.5}
    expected: dict[int, float] = {}
    for space, mode in (("chunk.dense", "dense"), ("chunk.lexical", "lexical")):
        for hit in index.search("granite river", 100, mode=mode):
            expected[hit.key] = expected.get(hit.key, 0.0) + weights[space] / (constant + hit.rank)
    hits = index.search("granite river", 100, weights=weights, rrf=constant)
    assert [hit.key for hit in hits] == sorted(expected, key=lambda key: (-expected[key], key))
    assert [hit.score for hit in hits] == pytest.approx([expected[hit.key] for hit in hits])
    assert {hit.scale for hit in hits} == {"rrf"}


def test_a_space_weighted_zero_takes_no_part(index: Index) -> None:
    only = index.search("granite river", 10, weights={"chunk.lexical": 0})
    assert [hit.key for hit in only] == [hit.key for hit in index.search("granite river", 10, mode="dense")]


def test_grouping_gives_each_document_once_and_k_of_them(index: Index) -> None:
    index.add([record("otter", " ".join(f"Fish number {n} is a fish. " for n in range(200)))])
    for mode in ("dense", "hybrid"):
        sources = [hit.source for hit in index.search("fish", 5, mode=mode, group_by="document")]
        assert sorted(sources) == sorted(NOTES)


def test_min_score_cuts_and_never_pads(index: Index) -> None:
    hits = index.search("fish", 50, mode="dense")
    cut = hits[3].score
    assert [hit.key for hit in index.search("fish", 50, mode="dense", min_score=cut)] == [h.key for h in hits if h.score >= cut]
    assert index.search("fish", 50, mode="dense", min_score=2.0) == []


def test_a_list_of_queries_gives_a_list_of_lists(index: Index) -> None:
    for mode in MODES:
        together = index.search_many(QUERIES, 4, mode=mode)
        apart = [index.search(query, 4, mode=mode) for query in QUERIES]
        assert [[(h.key, pytest.approx(h.score, abs=1e-5)) for h in hits] for hits in apart] == [
            [(h.key, h.score) for h in hits] for hits in together
        ]
    assert index.search_many([], 4) == []


def test_similar_leaves_the_document_itself_out(index: Index) -> None:
    hits = index.similar("bridge", 10)
    assert "bridge" not in [hit.document_id for hit in hits]
    assert len(hits) == 4
    assert hits[0].document_id == "quarry"
    key = index.search("granite", 1)[0].key
    assert len(index.similar(key, 2)) == 2
    with pytest.raises(ValueError, match="no document"):
        index.similar("unheard of")


def test_near_duplicates_are_the_pairs_of_a_double_loop(index: Index) -> None:
    index.add([record("otter", NOTES["bread"]), {"id": "again", "text": NOTES["bread"] + " Yes."}])
    hits = {hit.key: hit for hit in index.search("x", 100, mode="dense")}
    rows = HashEncoder(dims=64).encode_document([hit.text for hit in hits.values()]).dense
    assert rows is not None
    keys = list(hits)
    expected = {
        (min(a, b), max(a, b)) for i, a in enumerate(keys) for j, b in enumerate(keys) if i < j and rows[i] @ rows[j] >= 0.9
    }
    found = {(pair.first.key, pair.second.key) for pair in index.near_duplicates(0.9)}
    assert found == expected
    assert expected


def test_the_retriever_keeps_its_settings(index: Index) -> None:
    retriever = index.as_retriever(k=2, mode="lexical", filters={"lang": "en"})
    assert [h.key for h in retriever("granite fish")] == [
        h.key for h in index.search("granite fish", 2, mode="lexical", filters={"lang": "en"})
    ]
    assert len(retriever.search("granite fish", k=1)) == 1
    with pytest.raises(ValueError, match="mode"):
        index.as_retriever(mode="telepathic")


def test_nonsense_is_refused_by_name(index: Index) -> None:
    with pytest.raises(ValueError, match="k must be"):
        index.search("x", 0)
    with pytest.raises(ValueError, match="mode must be one of"):
        index.search("x", mode="telepathic")
    with pytest.raises(ValueError, match="dims must be between 1 and 64"):
        index.search("x", dims=65)
    with pytest.raises(TypeError, match="a query is a text"):
        index.search_many([1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="for a list of queries use search_many"):
        index.search(["x"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'modus' is not an option of a search; the options are k, mode"):
        index.search("x", modus="dense")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="paths and documents apart"):
        index.add([{"id": "x", "text": "y"}, "b.txt"])
    with pytest.raises(TypeError, match="not bytes"):
        index.add(b"words")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="k is a number of hits"):
        index.search("x", 2.5)  # type: ignore[call-overload]
    with pytest.raises(FileNotFoundError):
        index.add("no/such/folder")


def test_empty_and_odd_queries_answer(index: Index) -> None:
    for query in ("", " ", "C++ (x", "a:b", "*", '"', "\x00", "é" * 5000):
        for mode in MODES:
            index.search(query, 3, mode=mode)


def test_a_query_longer_than_the_model_takes_is_searched_with_a_warning(index: Index) -> None:
    with pytest.warns(UserWarning, match="1 of 1 queries have over 512 tokens"):
        assert index.search("fish " * 600, 1, mode="dense")
    assert index.search("fish " * 600, 1, mode="lexical")


def test_a_bad_record_is_reported_and_the_rest_is_added(index: Index) -> None:
    report = index.add([{"id": "good", "text": "Good words."}, {"id": "bad"}, 17, {"id": "also", "text": "More words."}])
    assert [one.source for one in report.added] == ["good", "also"]
    assert [one.source for one in report.failed] == ["bad", "record 2"]
    assert "text" in report.failed[0].reason
    assert [one.source for one in index.failures()] == ["bad", "record 2"]
    index.add([{"id": "bad", "text": "Now it has words."}])
    assert index.failures() == []  # a record without an id is known by its place in one call only


def test_the_same_id_twice_in_one_call_is_an_update(index: Index) -> None:
    report = index.add([{"id": "twice", "text": "First."}, {"id": "twice", "text": "Second."}])
    assert (len(report.added), len(report.updated)) == (1, 1)
    assert index.document("twice").text == "Second."


def test_records_without_an_id_get_one_from_their_content(index: Index) -> None:
    first = index.add([Document(text="Anonymous words.")])
    assert first.added[0].source.startswith("sha256:")
    assert len(index.add([Document(text="Anonymous words.")]).unchanged) == 1


def test_an_iterator_streams(index: Index) -> None:
    report = index.add({"id": f"n{n}", "text": f"Note {n}."} for n in range(50))
    assert len(report.added) == 50


def test_documents_come_back_as_they_went_in(index: Index) -> None:
    document = index.document("otter")
    assert (document.text, document.title, document.meta["lang"]) == (NOTES["otter"], "Otter", "de")
    assert {row.source for row in index.documents()} == set(NOTES)


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_tokens": 32},
        {"chunker": "whole"},
        {"dims": 8},
        {"overflow": "truncate"},
        {"model": "default"},
        {"recall": 0.5},
        {"coarse": 2},
    ],
)
def test_settings_that_disagree_are_refused(index: Index, settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeMismatch, match=next(iter(settings))):
        Index.open(index.path, **settings)
    Index.open(index.path, chunk_tokens=16).close()


def test_another_encoder_of_the_same_width_is_refused(index: Index) -> None:
    class Impostor(HashEncoder):
        """Calls itself the same, embeds differently."""

        def encode_document(self, documents: Any, **options: Any) -> Any:
            return super().encode_document([text[::-1] for text in documents], **options)

    with Index.open(index.path, model=Impostor(dims=64)) as other, pytest.raises(FingerprintMismatch, match="probe"):
        other.search("fish")
    with pytest.raises((FingerprintMismatch, RecipeMismatch)), Index.open(index.path, model=HashEncoder(dims=32)) as other:
        other.search("fish")


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(NotAnIndex, match="holds no index"):
        Index.open(tmp_path, model=HashEncoder())
    with pytest.raises(NotAnIndex, match="a file"):
        Index.open(tmp_path / "mine.txt", model=HashEncoder())
    with pytest.raises(NotAnIndex, match="ragkit add"):
        Index.open(tmp_path / "new", create=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_writer_is_told_who_writes(index: Index) -> None:
    with Index.open(index.path) as other, index._store.writer(timeout=0), pytest.raises(IndexLocked, match="being written to"):
        other.add([{"id": "x", "text": "y"}], lock_timeout=0.1)


def test_a_reader_keeps_its_snapshot_while_a_writer_replaces_everything(index: Index) -> None:
    with Index.open(index.path) as reader:
        snapshot = reader._store.reader()
        before = [keys.tolist() for keys, _ in snapshot.search_dense(_query("fish"), 50)]
        lexical = snapshot.search_lexical("fish", 50)[0].tolist()
        rows = snapshot.find(list(NOTES), by="reference")
        texts = [snapshot.document(row).text for row in rows]
        units = [unit for row in rows for unit in snapshot.units_of(row.id)]
        passages = [snapshot.passages([(unit.document, unit.span)])[0][0] for unit in units]
        index.add([record(name, "Entirely different words.") for name in NOTES])
        index.add([record(name, "Different again.") for name in NOTES])
        assert [keys.tolist() for keys, _ in snapshot.search_dense(_query("fish"), 50)] == before
        assert snapshot.search_lexical("fish", 50)[0].tolist() == lexical
        assert [asdict(row) for row in snapshot.find(list(NOTES), by="reference")] == [asdict(row) for row in rows]
        assert [snapshot.document(row).text for row in rows] == texts
        assert [snapshot.passages([(unit.document, unit.span)])[0][0] for unit in units] == passages
        assert list(map(asdict, snapshot.units([unit.key for unit in units]).values())) == list(map(asdict, units))
        assert (len(list(snapshot.documents())), snapshot.failures()) == (snapshot.commit.documents, [])
        assert {hit.text for hit in reader.search("fish", 50, mode="dense")} == {"Different again."}


def _query(text: str) -> Any:
    return HashEncoder(dims=64).encode_query([text]).dense


def test_folders_that_nobody_reads_are_removed(index: Index) -> None:
    for round in range(6):
        index.add([record("bread", f"Round {round} of words.")])
    assert len(list((index.path / "segments").iterdir())) == index.stats().segments
    assert len(list((index.path / "lexical").iterdir())) == 1


def test_a_thousand_single_adds_leave_few_segments(tmp_path: Path) -> None:
    with Index.open(tmp_path / "many", model=HashEncoder(dims=16)) as index:
        for n in range(60):
            index.add([{"id": f"d{n}", "text": f"Note {n} says {n * n}."}])
        assert index.stats().segments <= 3
        assert index.stats().documents == 60
        assert len(index.search("note", 100, mode="dense")) == 60


def test_searching_from_threads_while_adding_is_never_torn(index: Index) -> None:
    errors: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                hits = index.search("Version", 50, mode="dense", filters={"source": "versioned"})
                versions = {hit.text.split()[1] for hit in hits}
                assert len(versions) <= 1, versions
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(12):
        index.add([{"id": "versioned", "text": " ".join(f"Version {version} sentence {n} of the text." for n in range(10))}])
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_flipped_bit_is_an_error_that_names_file_and_command(index: Index) -> None:
    index.close()
    rows = next((index.path / "segments").glob("*/chunk.dense*.npy"))
    body = bytearray(rows.read_bytes())
    body[-3] ^= 1
    rows.write_bytes(body)
    with Index.open(index.path) as damaged, pytest.raises(Damaged, match=rf"{rows.name}.*ragkit repair"):
        damaged.search("fish", mode="dense")


def test_an_index_without_documents_answers_nothing(tmp_path: Path) -> None:
    with Index.open(tmp_path / "empty", model=HashEncoder()) as index:
        for mode in MODES:
            assert index.search("anything", mode=mode) == []
        assert index.stats().documents == 0
        assert index.delete("x") == 0


def test_overflow_of_whole_documents_is_an_error_a_count_or_windows(tmp_path: Path) -> None:
    long = {"id": "long", "text": " ".join(f"word{n}" for n in range(300))}
    short = {"id": "short", "text": "Few words."}
    settings: dict[str, Any] = {"model": HashEncoder(dims=64, max_tokens=64), "chunker": "whole"}
    with Index.open(tmp_path / "error", **settings) as index:
        report = index.add([long, short])
        assert [one.source for one in report.added] == ["short"]
        assert "the model takes 64" in report.failed[0].reason
    with Index.open(tmp_path / "truncate", overflow="truncate", **settings) as index:
        assert (len((report := index.add([long, short])).added), report.truncated) == (2, 1)
    with Index.open(tmp_path / "window", overflow="window", **settings) as index:
        assert len(index.add([long, short]).added) == 2
        assert index.search("word299 word298 word297", 1, mode="dense")[0].document_id == "long"


def test_progress_counts_every_document(tmp_path: Path) -> None:
    steps: list[Any] = []
    with Index.open(tmp_path / "library", model=HashEncoder()) as index:
        index.add(records(), progress=steps.append)
    loads = [step for step in steps if step.stage == "load"]
    assert [step.done for step in loads] == [1, 2, 3, 4, 5]
    assert loads[-1].total == 5
    assert max(step.done for step in steps if step.stage == "encode") == 5

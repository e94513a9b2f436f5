"""Evaluating: rankings from hits, measures against hand computation, the bootstrap against a direct loop."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit.apps.evaluate import (
    Evaluation,
    Judged,
    compare,
    evaluate,
    read_beir,
    read_pages,
    read_run,
    score_run,
    table,
    to_json,
    write_run,
)
from ragkit.apps.evaluate.bootstrap import bootstrap_means
from ragkit.core.errors import LoadError
from ragkit.core.types import Citation, Hit, Progress, Span

pytest.importorskip("ir_measures")


def hit(document: str, *, score: float, pages: tuple[int, ...] = (), source: str = "") -> Hit:
    return Hit(
        rank=1, score=score, scale="bm25", key=1, kind="chunk", text="", document_id=document, title="", headings=(), meta={},
        via=(), citation=Citation(source or document, Span(0, 1), pages),
    )  # fmt: skip


class Shelf:
    """Answers known queries from lists of hits, honouring k and group_by; remembers how it was asked."""

    def __init__(self, answers: dict[str, list[Hit]]) -> None:
        self.answers, self.asked = answers, list[dict[str, Any]]()

    def search_many(self, query: Sequence[str], k: int = 10, **options: Any) -> list[list[Hit]]:
        self.asked.append({"queries": list(query), "k": k, **options})
        found = [self.answers.get(q, []) for q in query]
        if options.get("group_by") == "document":
            found = [list({h.document_id: h for h in reversed(hits)}.values())[::-1] for hits in found]
            found = [sorted(hits, key=lambda h: -h.score) for hits in found]
        return [hits[:k] for hits in found]


def judged(qrels: dict[str, dict[str, int]], level: str = "document") -> Judged:
    return Judged(name="small", documents=[], queries={q: f"text of {q}" for q in qrels}, qrels=qrels, level=level)


def dcg(grades: Sequence[float]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def test_ndcg_is_what_the_formula_gives_and_a_query_without_hits_counts_as_zero() -> None:
    qrels = {"q1": {"a": 2, "b": 1, "x": 0}, "q2": {"c": 1}}
    shelf = Shelf({"text of q1": [hit("x", score=9), hit("a", score=8), hit("a", score=7), hit("b", score=6)]})
    result = evaluate(shelf, judged(qrels), k=10, mode="lexical", measures=("nDCG@10", "RR@10", "Success@1", "hit@2", "R@100"))
    wanted = dcg([0, 2, 1]) / dcg([2, 1])
    assert result.per_query["nDCG@10"] == {"q1": pytest.approx(wanted), "q2": 0.0}
    assert result.measures == pytest.approx({"nDCG@10": wanted / 2, "RR@10": 0.25, "Success@1": 0.0, "hit@2": 0.5, "R@100": 0.5})
    assert list(result.run["q1"].items()) == [("x", 9), ("a", 8), ("b", 6)]
    assert result.queries == 2
    assert result.latency is None
    assert shelf.asked == [{"queries": ["text of q1", "text of q2"], "k": 10, "group_by": "document", "mode": "lexical"}]


def test_ties_keep_the_order_of_the_search() -> None:
    qrels = {"q": {"zz": 1}, "p": {"aa": 1}}
    run = {"q": {"aa": 1.0, "zz": 1.0}, "p": {"aa": 1.0, "zz": 1.0}}
    found = score_run(run, qrels, measures=["RR@10", "nDCG@10"])[1]
    assert found["RR@10"] == {"q": 0.5, "p": 1.0}
    assert found["nDCG@10"] == pytest.approx({"q": 1 / math.log2(3), "p": 1.0})


def test_a_query_that_the_run_lacks_counts_as_zero_and_one_without_judgments_not_at_all() -> None:
    means, values = score_run({"q": {"a": 1.0}, "new": {"a": 1.0}}, {"q": {"a": 1}, "gone": {"a": 1}}, measures=["hit@1"])
    assert (means, values) == ({"hit@1": 0.5}, {"hit@1": {"q": 1.0, "gone": 0.0}})


def test_pages_rank_by_their_first_hit_and_a_hit_counts_for_each_of_its_pages() -> None:
    hits = [hit("d1", score=5, pages=(2, 3)), hit("d1", score=4, pages=(3,)), hit("d2", score=3, pages=(1,)), hit("d3", score=2)]
    result = evaluate(Shelf({"text of q": hits}), judged({"q": {"d2#1": 1}}, "page"), k=10)
    assert result.run == {"q": {"d1#2": 5, "d1#3": 5, "d2#1": 3}}
    assert result.measures == pytest.approx({"hit@1": 0, "hit@5": 1, "RR@10": 1 / 3, "nDCG@10": 1 / math.log2(4)})


def test_more_units_are_asked_for_until_there_are_k_pages() -> None:
    crowd = [hit("d", score=100 - i, pages=(1,)) for i in range(50)] + [hit("d", score=1, pages=(2,))]
    shelf = Shelf({"text of q": crowd, "text of p": crowd[:1]})
    result = evaluate(shelf, judged({"q": {"d#2": 1}, "p": {"d#1": 1}}, "page"), k=2, measures=("hit@2",))
    assert list(result.run["q"]) == ["d#1", "d#2"]
    assert list(result.run["p"]) == ["d#1"]
    assert [a["queries"] for a in shelf.asked[1:]] == [["text of q"]] * (len(shelf.asked) - 1)
    assert all(b["k"] == 2 * a["k"] for a, b in pairwise(shelf.asked))


def test_a_file_is_found_under_the_name_the_judgments_use() -> None:
    shelf = Shelf({"text of q": [hit("pdfs/a.pdf", score=2, pages=(4,)), hit("77", source="other/b.pdf", score=1, pages=(1,))]})
    result = evaluate(shelf, judged({"q": {"a.pdf#4": 1, "b.pdf#2": 1}}, "page"), k=5)
    assert list(result.run["q"]) == ["a.pdf#4", "b.pdf#1"]


def test_one_query_at_a_time_gives_latencies_and_progress_counts_all() -> None:
    seen: list[Progress] = []
    result = evaluate(Shelf({}), judged({"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1}}), batch=1, progress=seen.append)
    assert result.latency is not None
    assert 0 <= result.latency["p50"] <= result.latency["p95"]
    assert [(p.done, p.total) for p in seen] == [(1, 3), (2, 3), (3, 3)]


def test_an_unknown_measure_fails_before_the_search() -> None:
    shelf = Shelf({})
    with pytest.raises(ValueError, match="'wit@3'"):
        evaluate(shelf, judged({"a": {"x": 1}}), measures=("wit@3",))
    assert shelf.asked == []


def evaluation(values: dict[str, float]) -> Evaluation:
    found = evaluate(Shelf({}), judged({q: {"x": 1} for q in values}), measures=("RR@10",))
    return replace(found, per_query={"RR@10": values})


def test_the_bootstrap_equals_a_direct_loop() -> None:
    values = np.random.default_rng(1).normal(size=37)
    draw = np.random.default_rng(5)
    direct = [np.mean([values[i] for i in draw.integers(0, 37, 37)]) for _ in range(500)]
    np.testing.assert_allclose(bootstrap_means(values, resamples=500, seed=5), direct, atol=1e-12)


def test_the_bootstrap_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=37)
    whole = bootstrap_means(values, resamples=100, seed=5)
    monkeypatch.setattr("ragkit.apps.evaluate.bootstrap.BLOCK", 40)
    np.testing.assert_allclose(bootstrap_means(values, resamples=100, seed=5), whole)


def test_a_difference_is_paired_and_a_missing_query_counts_as_zero() -> None:
    a, b = evaluation({"q1": 1.0, "q2": 0.5}), evaluation({"q2": 0.5, "q3": 0.25})
    gap = compare(a, b, measure="RR@10", seed=3)
    assert gap.mean == pytest.approx((1.0 + 0.0 - 0.25) / 3)
    assert gap.queries == 3
    assert gap.low <= gap.mean <= gap.high
    assert compare(b, a, measure="RR@10", seed=3).low == pytest.approx(-gap.high)
    same = compare(a, a, measure="RR@10")
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"nDCG@3 was not measured .*RR@10"):
        compare(a, b, measure="nDCG@3")


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw, inside = np.random.default_rng(0), 0
    for trial in range(200):
        sample = draw.normal(0.1, 1.0, 80)
        low, high = np.quantile(bootstrap_means(sample, resamples=400, seed=trial), (0.025, 0.975))
        inside += low <= 0.1 <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_a_run_survives_its_file_and_ties_keep_their_order(tmp_path: Path) -> None:
    run = {"q1": {"b": 3.5, "a": 0.1}, "q2": {"z": 1.0, "a": 1.0, "m": 1.0}}
    write_run(tmp_path / "run", run, tag="t")
    again = read_run(tmp_path / "run")
    assert again["q1"] == run["q1"]
    assert [list(found) for found in again.values()] == [["b", "a"], ["z", "a", "m"]]
    with pytest.raises(ValueError, match="'two words'"):
        write_run(tmp_path / "run", {"q": {"two words": 1.0}})


def test_the_table_and_the_json_say_the_same() -> None:
    shelf = Shelf({"text of q": [hit("a", score=1)]})
    result = evaluate(shelf, judged({"q": {"a": 1}}), mode="dense", measures=("RR@10", "R@5"), batch=1)
    head, row = table([result]).splitlines()
    assert head.split() == ["data", "mode", "queries", "RR@10", "R@5", "p50", "ms", "p95", "ms"]
    assert row.split()[:5] == ["small", "dense", "1", "1.0000", "1.0000"]
    plain = json.loads(to_json([result], [compare(result, result, measure="R@5")], per_query=True))
    assert plain["evaluations"][0]["per_query"]["RR@10"] == {"q": 1.0}
    assert plain["differences"][0]["measure"] == "R@5"


# --- files -----------------------------------------------------------------------------------------------------------


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "A title", "text": "Its text.", "meta": {}}\n\n{"_id": 2, "title": "", "text": "Only text."}\n'
    )
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "one?"}\n{"_id": "q9", "text": "not judged"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\t2\t0\n")
    return folder


def test_a_beir_folder_is_read_as_beir_reads_it_and_can_be_read_twice(tmp_path: Path) -> None:
    found = read_beir(beir(tmp_path))
    wanted = [{"id": "d1", "title": "A title", "text": "A title Its text."}, {"id": "2", "title": "", "text": "Only text."}]
    assert list(found.documents) == wanted  # type: ignore[arg-type]
    assert list(found.documents) == wanted  # type: ignore[arg-type]
    assert found.queries == {"q1": "one?"}
    assert found.qrels == {"q1": {"d1": 1, "2": 0}}


@pytest.mark.parametrize("text", ["q1 0 d1 1\nq1 0 2 0\n", "q1\td1\t1\nq1\t2\t0\n", "\ufeffquery doc grade\nq1 d1 1\nq1 2 0\n"])
def test_judgments_come_with_three_or_four_columns_with_or_without_a_header(tmp_path: Path, text: str) -> None:
    (beir(tmp_path) / "qrels" / "test.tsv").write_text(text)
    assert read_beir(tmp_path).qrels == {"q1": {"d1": 1, "2": 0}}


def change(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change("qrels/test.tsv", "q1\td1\t1\nq1\td2\n"), r"test\.tsv, line 2: "),
        (change("qrels/test.tsv", "q1\td1\t1\nq1\td2\t0.5\n"), r"test\.tsv, line 2: "),
        (change("qrels/test.tsv", "q1 d1 1\nq1 d1 0\n"), r"test\.tsv, line 2: .*another grade"),
        (change("qrels/test.tsv", "query\tdoc\tscore\n"), r"test\.tsv holds no judgments"),
        (change("qrels/test.tsv", "q1\td1\t1\nq7\td1\t1\n"), r"1 judged queries have no text, the first is 'q7'"),
        (change("queries.jsonl", '{"_id": "q1", "text": "one?"}\n{"_id": \n'), r"queries\.jsonl, line 2: not JSON"),
        (change("queries.jsonl", '\n{"text": "one?"}\n'), r"queries\.jsonl, line 2: an _id"),
        (change("corpus.jsonl", '{"_id": "d1", "text": "x"}\n["d2"]\n'), r"corpus\.jsonl, line 2: each line is one JSON object"),
        (change("corpus.jsonl", '{"_id": "d1", "text": 7}\n'), r"corpus\.jsonl, line 1: a document needs a text"),
        (lambda folder: (folder / "corpus.jsonl").unlink(), r"corpus\.jsonl: no such file"),
        (lambda folder: (folder / "qrels/test.tsv").unlink(), r"qrels holds nothing; say which"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(beir(tmp_path))
    with pytest.raises(LoadError, match=said):
        list(read_beir(tmp_path).documents)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q Q0 d 1 2.0\n", "line 1: a run has six"),
        ("q Q0 d 1 2.0 t\nq Q0 d 2 1.0 t\n", "line 2: q lists d twice"),
        ("q Q0 d 1 x t", "line 1: the score is 'x'"),
    ],
)
def test_a_malformed_run_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(LoadError, match=said):
        read_run(tmp_path / "run")


def test_gold_pages_are_counted_from_one(tmp_path: Path) -> None:
    (tmp_path / "pdfs").mkdir()
    row = {"_id": "p0", "question": "Where?", "gold": [{"doc": "a.pdf", "page": 0}, {"doc": "a.pdf", "page": 6}]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    found = read_pages(tmp_path)
    assert (found.documents, found.level) == (tmp_path / "pdfs", "page")
    assert found.queries == {"p0": "Where?"}
    assert found.qrels == {"p0": {"a.pdf#1": 1, "a.pdf#7": 1}}


def test_a_question_without_gold_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"_id": "p0", "question": "Where?", "gold": [{"doc": "a.pdf", "page": -1}]}\n')
    with pytest.raises(LoadError, match=r"questions\.jsonl, line 1: gold"):
        read_pages(tmp_path)


SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")
def test_the_shared_sets_are_read_whole() -> None:
    scifact, pages = read_beir(SHARED / "scifact-train"), read_pages(SHARED / "pdf-page-questions")
    assert (len(scifact.queries), sum(1 for _ in scifact.documents)) == (809, 5183)  # type: ignore[union-attr,misc]
    assert len(pages.queries) == 31

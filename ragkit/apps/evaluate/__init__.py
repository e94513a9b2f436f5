"""Measure how well an index answers questions whose answers are known: judged questions in, measures with intervals out.

    judged = read_beir("scifact")                      # or read_pages("pdf-page-questions")
    index.add(judged.documents)
    hybrid, lexical = (evaluate(index, judged, mode=mode) for mode in ("hybrid", "lexical"))
    print(table([hybrid, lexical]), compare(hybrid, lexical, measure="nDCG@10"))

Measures have the names of ir_measures; `hit@k` is Success@k. A query without an answer counts as zero.
"""

from ragkit.apps.evaluate.bootstrap import Difference, compare
from ragkit.apps.evaluate.judged import Judged, Records, read_beir, read_pages
from ragkit.apps.evaluate.measure import Evaluation, Searchable, evaluate, score_run
from ragkit.apps.evaluate.report import table, to_json
from ragkit.apps.evaluate.trec import read_qrels, read_run, write_run

__all__ = [
    "Difference",
    "Evaluation",
    "Judged",
    "Records",
    "Searchable",
    "compare",
    "evaluate",
    "read_beir",
    "read_pages",
    "read_qrels",
    "read_run",
    "score_run",
    "table",
    "to_json",
    "write_run",
]

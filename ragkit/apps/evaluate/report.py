"""Evaluations as JSON, for machines, and as a table, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ragkit.apps.evaluate.bootstrap import Difference
from ragkit.apps.evaluate.measure import Evaluation
from ragkit.core.types import Json


def to_json(evaluations: Sequence[Evaluation], differences: Sequence[Difference] = (), *, per_query: bool = False) -> str:
    """Return one JSON object, {"evaluations": [...], "differences": [...]}; per_query: with the values of each query."""
    runs = [_plain(evaluation, per_query=per_query) for evaluation in evaluations]
    gaps = [{name: getattr(d, name) for name in ("measure", "mean", "low", "high", "p", "queries")} for d in differences]
    return json.dumps({"evaluations": runs, "differences": gaps}, ensure_ascii=False, indent=2)


def _plain(evaluation: Evaluation, *, per_query: bool) -> Json:
    names = ("name", "mode", "level", "k", "queries", "seconds")
    plain: Json = {name: getattr(evaluation, name) for name in names}
    plain["measures"] = dict(evaluation.measures)
    plain["latency_ms"] = dict(evaluation.latency) if evaluation.latency else None
    if per_query:
        plain["per_query"] = {measure: dict(values) for measure, values in evaluation.per_query.items()}
    return plain


def table(evaluations: Sequence[Evaluation]) -> str:
    """Return a text table: a row per evaluation, a column per measure, and latencies if they were taken."""
    measures = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.measures))
    percentiles = ["p50", "p95"] if any(evaluation.latency for evaluation in evaluations) else []
    rows = [["data", "mode", "queries", *measures, *(f"{percentile} ms" for percentile in percentiles)]]
    for evaluation in evaluations:
        names = [evaluation.name, evaluation.mode, str(evaluation.queries)]
        values = [_cell(evaluation.measures, name, digits=4) for name in measures]
        times = [_cell(evaluation.latency or {}, name, digits=1) for name in percentiles]
        rows.append([*names, *values, *times])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _cell(values: Mapping[str, float], name: str, *, digits: int) -> str:
    return f"{values[name]:.{digits}f}" if name in values else "-"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Join the cells of a row: names to the left, numbers to the right."""
    cells = [cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()

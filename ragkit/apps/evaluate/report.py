"""Evaluations as JSON, for machines, and as a table, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ragkit.apps.evaluate.bootstrap import Difference
from ragkit.apps.evaluate.measure import Evaluation


def to_json(evaluations: Sequence[Evaluation], differences: Sequence[Difference] = (), *, per_query: bool = False) -> str:
    """One JSON object: {"evaluations": [...], "differences": [...]}; with the values of each query when asked."""
    runs = [_plain(evaluation, per_query=per_query) for evaluation in evaluations]
    gaps = [{name: getattr(d, name) for name in ("measure", "mean", "low", "high", "p", "queries")} for d in differences]
    return json.dumps({"evaluations": runs, "differences": gaps}, ensure_ascii=False, indent=2)


def _plain(evaluation: Evaluation, *, per_query: bool) -> dict[str, Any]:
    names = ("name", "mode", "level", "k", "queries", "seconds")
    plain: dict[str, Any] = {name: getattr(evaluation, name) for name in names}
    plain["measures"] = dict(evaluation.measures)
    plain["latency_ms"] = dict(evaluation.latency) if evaluation.latency else None
    if per_query:
        plain["per_query"] = {measure: dict(values) for measure, values in evaluation.per_query.items()}
    return plain


def table(evaluations: Sequence[Evaluation]) -> str:
    """A row per evaluation, a column per measure; with latencies where they were taken."""
    measures = list(dict.fromkeys(name for e in evaluations for name in e.measures))
    timed = any(e.latency for e in evaluations)
    rows = [["data", "mode", "queries", *measures, *(["p50 ms", "p95 ms"] if timed else [])]]
    for e in evaluations:
        values = [f"{e.measures[m]:.4f}" if m in e.measures else "-" for m in measures]
        times = [f"{e.latency[p]:.1f}" if e.latency else "-" for p in ("p50", "p95")] if timed else []
        rows.append([e.name, e.mode, str(e.queries), *values, *times])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    cells = [cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()

"""Search for every judged query, and measure the rankings with ir_measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from ragkit.apps.evaluate.judged import Judged, page_id
from ragkit.apps.evaluate.trec import Run
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Hit, Json, Progress

MEASURES = {
    "document": ("nDCG@10", "R@100", "RR@10", "Success@1", "Success@5"),
    "page": ("hit@1", "hit@5", "RR@10", "nDCG@10"),
}
UNITS_PER_PAGE = 3  # times as many units as pages are asked for at first; doubled until there are enough pages


Measure = Any  # ir_measures.Measure: the package is an extra, and has no types


class Searchable(Protocol):
    """The part of an index that an evaluation needs."""

    @property
    def search_many(self) -> Callable[..., Any]: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evaluation:
    """The measures of one mode of searching.

    measures: means over all judged queries, by name. per_query: {measure: {query: value}}. run: {query: {target: score}},
    best first. seconds: the time of all searches. latency: {"p50", "p95"} in milliseconds, if queries were searched one by one.
    """

    name: str
    mode: str
    level: str
    k: int
    measures: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    run: Run
    seconds: float = 0.0
    latency: Mapping[str, float] | None = None

    @property
    def queries(self) -> int:
        return len(next(iter(self.per_query.values()), ()))


def evaluate(
    index: Searchable,
    judged: Judged,
    *,
    k: int = 100,
    mode: str = "hybrid",
    measures: Sequence[str] | None = None,
    batch: int = 64,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Search for all judged queries, rank their targets, and measure.

    k: targets ranked per query: documents by their best unit, or pages, where a hit counts for each page it stands on.
    batch: queries per call of `search`; 1 measures latencies. options go to `search` (weights, dims, filters, ...).
    """
    if k < 1 or batch < 1:
        raise ValueError(f"k and batch must be at least 1, got {k} and {batch}")
    names = tuple(measures or MEASURES[judged.level])
    _parsed(names)  # so that a wrong name fails before the searches, not after them
    rank = _rank_pages if judged.level == "page" else _rank_documents
    resolve = _resolver(judged)
    ids, times = list(judged.queries), []
    run: Run = {}
    for at in range(0, len(ids), batch):
        slice_ = ids[at : at + batch]
        started = time.perf_counter()
        rankings = rank(index, [judged.queries[query] for query in slice_], k, resolve, {"mode": mode, **options})
        times.append(time.perf_counter() - started)
        run.update(zip(slice_, rankings, strict=True))
        if progress:
            progress(Progress("search", at + len(slice_), len(ids), "queries"))
    means, per_query = score_run(run, judged.qrels, measures=names)
    return Evaluation(
        name=judged.name, mode=mode, level=judged.level, k=k, measures=means, per_query=per_query, run=run,
        seconds=sum(times), latency=_percentiles(times) if batch == 1 else None,
    )  # fmt: skip


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Return the median and the 95th percentile in milliseconds; None without values."""
    return {f"p{p}": 1000 * float(np.percentile(seconds, p)) for p in (50, 95)} if seconds else None


def score_run(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], *, measures: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return means by measure, and {measure: {query: value}}, over all judged queries: one that the run lacks counts as zero.

    The order of a query's targets is the ranking; scores are not compared, so that ties stay as the search broke them.
    """
    import ir_measures

    parsed = _parsed(tuple(measures))
    ranked = {query: _descending(targets) for query, targets in run.items() if query in qrels}
    per_query = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    names: dict[Measure, list[str]] = {}
    for name, measure in parsed.items():
        names.setdefault(measure, []).append(name)
    for value in ir_measures.iter_calc(list(names), {q: dict(g) for q, g in qrels.items()}, ranked):
        for name in names[value.measure]:
            per_query[name][value.query_id] = float(value.value)
    means = {name: float(np.mean(list(values.values()))) if values else 0.0 for name, values in per_query.items()}
    return means, per_query


def _descending(targets: Mapping[str, float]) -> dict[str, float]:
    """Return scores that rank the targets in their order."""
    return {target: float(len(targets) - rank) for rank, target in enumerate(targets)}


def _parsed(names: tuple[str, ...]) -> dict[str, Measure]:
    """Return the measures of ir_measures by the names that were given."""
    try:
        import ir_measures
    except ModuleNotFoundError:
        raise MissingExtra.of("ir_measures", "eval", "Measuring rankings") from None
    parsed = {}
    for name in names:
        try:
            parsed[name] = ir_measures.parse_measure(name.replace("hit@", "Success@").replace("MRR", "RR"))
        except (NameError, ValueError, SyntaxError):
            raise ValueError(f"ir_measures has no measure {name!r}; it has for example nDCG@10, R@100, RR@10, hit@5") from None
    return parsed


def _resolver(judged: Judged) -> Callable[[Hit], str]:
    """Return a function from a hit to its document's name in the judgments: its id, its source, or the end of its path."""
    targets = {target for grades in judged.qrels.values() for target in grades}
    known = {target.rpartition("#")[0] for target in targets} if judged.level == "page" else targets

    def resolve(hit: Hit) -> str:
        if hit.document_id in known:
            return hit.document_id
        parts = hit.source.split("/")
        return next((end for i in range(len(parts)) if (end := "/".join(parts[i:])) in known), hit.document_id)

    return resolve


def _rank_documents(
    index: Searchable, queries: list[str], k: int, resolve: Callable[[Hit], str], options: Json
) -> list[dict[str, float]]:
    answers = index.search_many(queries, k=k, group_by="document", **options)
    return [_first_of_each([(resolve(hit), hit.score) for hit in hits], k) for hits in answers]


def _rank_pages(
    index: Searchable, queries: list[str], k: int, resolve: Callable[[Hit], str], options: Json
) -> list[dict[str, float]]:
    """Rank pages. Several units stand on one page, so more are searched for until there are k pages, or no more units."""
    rankings: list[dict[str, float]] = [{} for _ in queries]
    open_, units = list(range(len(queries))), k * UNITS_PER_PAGE
    while open_:
        answers = index.search_many([queries[i] for i in open_], k=units, **options)
        for i, hits in zip(open_, answers, strict=True):
            rankings[i] = _first_of_each([(page_id(resolve(hit), page), hit.score) for hit in hits for page in _by_share(hit)], k)
        open_ = [i for i, hits in zip(open_, answers, strict=True) if len(rankings[i]) < k and len(hits) >= units]
        units *= 2
    return rankings


def _by_share(hit: Hit) -> list[int]:
    """Return the pages on which a hit stands, the one with the largest area of its boxes first."""
    area = dict.fromkeys(hit.pages, 0.0)
    for box in hit.boxes:
        area[box.page] = area.get(box.page, 0.0) + box.box.area
    return sorted(area, key=lambda page: (-area[page], page))


def _first_of_each(pairs: list[tuple[str, float]], k: int) -> dict[str, float]:
    """Return the first k different targets, each with its first score."""
    first: dict[str, float] = {}
    for target, score in pairs:
        first.setdefault(target, score)
    return dict(islice(first.items(), k))

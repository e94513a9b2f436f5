"""Tell whether one run is better than another, by the paired bootstrap over queries (Sakai 2006, Efron & Tibshirani 1993)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ragkit.apps.evaluate.measure import Evaluation

BLOCK = 1 << 20  # numbers drawn at a time; bounds memory at 8 MB, whatever the number of queries


@dataclass(frozen=True, slots=True)
class Difference:
    """a minus b: the mean over queries, and the bounds of its 95 % interval. p: of the two-sided test for no difference."""

    measure: str
    mean: float
    low: float
    high: float
    p: float
    queries: int

    def __str__(self) -> str:
        return f"{self.measure} {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}] p={self.p:.3f} over {self.queries} queries"


def compare(a: Evaluation, b: Evaluation, *, measure: str, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Return the difference a - b in one measure. Queries are paired; a query that one side lacks counts as zero there.

    The interval holds the middle 95 % of the means of `resamples` draws of the queries with replacement.
    """
    for side in (a, b):
        if measure not in side.per_query:
            raise ValueError(f"{measure} was not measured on {side.name} ({side.mode}), only {', '.join(side.per_query)}")
    first, second = a.per_query[measure], b.per_query[measure]
    queries = sorted(first.keys() | second.keys())
    if not queries:
        raise ValueError("there are no queries to compare")
    differences = np.array([first.get(q, 0.0) - second.get(q, 0.0) for q in queries])
    means = bootstrap_means(differences, resamples=resamples, seed=seed)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    beyond = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * beyond / (resamples + 1))
    return Difference(measure, float(differences.mean()), low, high, p, len(queries))


def bootstrap_means(values: npt.NDArray[np.float64], *, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the means of `resamples` draws of values (n,) with replacement: (resamples,) float64."""
    draw = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(values))
    blocks = [
        values[draw.integers(0, len(values), (min(rows, resamples - at), len(values)))].mean(axis=1)
        for at in range(0, resamples, rows)
    ]
    return np.concatenate(blocks)

"""The order of work for many texts of uneven length: slices to tokenise, batches to run, the next slice made meanwhile.

Only positions travel here. Code that runs a batch writes its results back to those positions, so order is kept by construction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ragkit.core.types import Ints

Work = TypeVar("Work")
Done = TypeVar("Done")


def slices(texts: Sequence[str], *, characters: int) -> list[Ints]:
    """Return the positions of all texts, longest first, cut into slices of about that many characters (at least one text each).

    Longest first: a text that does not fit, in memory or in the model, shows at once; and texts of one length come together.
    """
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    ends = np.cumsum(sizes[order] + 1)  # empty texts cost something too
    slice_of = (ends - 1) // characters
    return [part for part in np.split(order, np.flatnonzero(np.diff(slice_of)) + 1) if len(part)]


def batches(lengths: Ints, *, tokens: int) -> Iterator[Ints]:
    """Yield positions ordered by length, longest first, in batches of at most `tokens` in sum (or one item that is longer)."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        total = np.cumsum(lengths[order[start:]])
        count = max(1, int(np.searchsorted(total, tokens, side="right")))
        yield order[start : start + count]
        start += count


def ahead(work: Callable[[Work], Done], items: Iterable[Work]) -> Iterator[Done]:
    """Yield as `map(work, items)` does; another thread works on the next item while the caller uses this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="ragkit-ahead") as pool:
        pending: Future[Done] | None = None
        for item in items:
            following = pool.submit(work, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def side_by_side(tasks: Iterable[Callable[[], None]], *, workers: int, start: Callable[[], None]) -> None:
    """Run every task, on that many threads, each begun with `start()`; no more than two tasks per thread wait to be run.

    The first error is raised once the tasks that had begun are done; tasks that had not begun are dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ragkit-encode", initializer=start)
    waiting: deque[Future[None]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > 3 * workers:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

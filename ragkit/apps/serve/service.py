"""What a server has: open indexes, loaded models with their queues, rerankers, keys, limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from ragkit.apps.serve.batching import Batcher
from ragkit.apps.serve.keys import ANYBODY, Key
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.metrics import Metrics, Spans
from ragkit.apps.serve.problems import Problem, problem_of
from ragkit.encode.contract import Encoder

if TYPE_CHECKING:
    from ragkit.apps.serve.jobs import Jobs
    from ragkit.apps.serve.urls import Fetcher
    from ragkit.index.index import Index

Done = TypeVar("Done")


class Service:
    """State of one server; `start` and `close` are its lifespan, within one event loop.

    indexes: by the name that requests give. models: beside the indexes' own, by the name that requests give. rerankers: what
    `Index.search(rerank=)` takes, by name. Models and rerankers may be given as a function that loads them: `start` calls it.
    fetcher: what fetches images by URL, None for not at all. jobs: how documents are added, by index; an index without is only
    read. `ready` tells whether all is loaded.
    """

    def __init__(
        self,
        indexes: Mapping[str, Index] | None = None,
        *,
        models: Mapping[str, Encoder] | Callable[[], Mapping[str, Encoder]] | None = None,
        rerankers: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        keys: Sequence[Key] = (),
        limits: ServeLimits | None = None,
        fetcher: Fetcher | None = None,
        jobs: Mapping[str, Jobs] | None = None,
    ) -> None:
        self.indexes = dict(indexes or {})
        self.rerankers: dict[str, Any] = {}
        self.keys = tuple(keys)
        self.limits = limits or ServeLimits()
        self.fetcher = fetcher
        self.jobs = dict(jobs or {})
        self.metrics = Metrics()
        self.spans = Spans()
        self.ready = False
        self.stopping = asyncio.Event()
        self._given = models or {}, rerankers or {}
        self._models: dict[str, Encoder] = {}
        self._batchers: dict[str, Batcher] = {}
        self._searching = 0
        self._threads = ThreadPoolExecutor(self.limits.searches, thread_name_prefix="ragkit-search")

    async def start(self) -> None:
        """Load the models, those of the indexes too, and let the queues run."""
        self._models, self.rerankers = await asyncio.wrap_future(_on_daemon(self._loaded))
        for name, encoder in self._models.items():
            batcher = Batcher(encoder, limits=self.limits, on_batch=self.metrics.batch(name))
            batcher.start()
            self._batchers[name] = batcher
            self.metrics.watch(name, batcher)
        for jobs in self.jobs.values():
            jobs.start()
        self.ready = True

    def _loaded(self) -> tuple[dict[str, Encoder], dict[str, Any]]:
        """Models and rerankers, by name."""
        models, rerankers = (dict(given() if callable(given) else given) for given in self._given)
        for index in self.indexes.values():
            for encoder in (index.encoder, index.page_encoder):
                if encoder is not None and encoder.card.dims and not encoder.card.name.startswith("vectors:"):
                    models.setdefault(encoder.card.name, encoder)
        return models, rerankers

    async def close(self) -> None:
        self.ready = False
        self.stopping.set()
        for jobs in self.jobs.values():
            await asyncio.to_thread(jobs.close)
        for batcher in self._batchers.values():
            await batcher.close()
        await asyncio.to_thread(self._threads.shutdown)

    @property
    def models(self) -> dict[str, Encoder]:
        return dict(self._models)

    def batcher(self, name: str) -> Batcher:
        """The queue of a model, by its name or by the last part of it. Problem INPUT_MODEL_NOT_FOUND."""
        found = self._batchers.get(name)
        if found is None:
            short = [one for one in self._batchers if PurePath(one).name.lower() == PurePath(name).name.lower()]
            found = self._batchers[short[0]] if len(short) == 1 else None
        if found is None:
            raise Problem(
                400,
                f"this server has no model {name[:100]!r}; it has {', '.join(self._batchers) or 'none'}",
                code="INPUT_MODEL_NOT_FOUND",
                field="model",
            )
        return found

    def index(self, name: str | None, key: Key | None) -> tuple[str, Index]:
        """The index that a request names, or the only one its key may use. Problem 400, 403 or 404."""
        key = key or ANYBODY
        if key.index is not None and name not in (None, key.index):
            raise Problem(403, f"the key {key.name!r} is bound to the index {key.index!r}", field="index")
        wanted = name if name is not None else key.index
        if wanted is None and len(self.indexes) == 1:
            wanted = next(iter(self.indexes))
        if wanted is None:
            raise Problem(400, f"name one of the indexes: {', '.join(self.indexes) or 'this server has none'}", field="index")
        if wanted not in self.indexes:
            raise Problem(404, f"this server has no index {wanted[:100]!r}", field="index")
        return wanted, self.indexes[wanted]

    async def run(self, work: Callable[..., Done], *arguments: Any, **options: Any) -> Done:
        """Work on an index, on one of a few threads. Problem 429 where too much waits; ragkit's errors become Problems."""
        if self._searching >= self.limits.waiting_requests:
            raise Problem(429, f"{self._searching} requests are waiting for an index", retry_after=1)
        self._searching += 1
        try:
            call = partial(work, *arguments, **options)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except Problem:
            raise
        except Exception as error:
            problem = problem_of(error, folders={str(index.path): name for name, index in self.indexes.items()})
            if problem.status >= 500:
                raise
            raise problem from error
        finally:
            self._searching -= 1


def _on_daemon(work: Callable[[], Done]) -> Future[Done]:
    """Work on a thread that the end of the process does not wait for: a model may take minutes to load."""
    future: Future[Done] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            outcome = partial(future.set_exception, error)
        else:
            outcome = partial(future.set_result, result)
        if future.set_running_or_notify_cancel():
            outcome()

    threading.Thread(target=run, name="ragkit-load", daemon=True).start()
    return future


def narrowed(filters: Mapping[str, Any] | None, key: Key | None, *, depth: int) -> Mapping[str, Any] | None:
    """The filter of a request within the one its key is bound to. Problem 400 for one that is nested too deep."""
    if filters is not None and _depth(filters) > depth:
        raise Problem(400, f"the filter is nested more than {depth} deep", field="filters")
    bound = key.filters if key is not None else None
    if bound is None or filters is None:
        return bound if filters is None else filters
    return {"operator": "AND", "conditions": [bound, filters]}


def _depth(value: Any) -> int:
    """Levels of logic: lists and objects count, two for each."""
    level, deepest = [value], 0
    while level:
        deepest += 1
        level = [
            below
            for one in level
            if isinstance(one, (Mapping, list))
            for below in (one.values() if isinstance(one, Mapping) else one)
            if isinstance(below, (Mapping, list))
        ]
    return (deepest + 1) // 2


@contextmanager
def refusals() -> Any:
    """ragkit's own errors, raised within, as Problems."""
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        problem = problem_of(error)
        if problem.status >= 500:
            raise
        raise problem from error

"""The state of a server: open indexes, loaded models with their queues, rerankers, keys, limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ragkit.search.filters import Filters

if TYPE_CHECKING:
    from ragkit.apps.serve.jobs import Jobs
    from ragkit.apps.serve.urls import Fetcher
    from ragkit.index.index import Index

Done = TypeVar("Done")
Reranker = Any  # what `Index.search(rerank=)` takes: a ragkit.search.rerank.Scorer, or a sentence_transformers.CrossEncoder


class Service:
    """The state of one server; `start` and `close` are its lifespan, within one event loop.

    indexes, models, rerankers: by the names that requests give; the models come in addition to those of the indexes. Models and
    rerankers may be a function that loads them: `start` calls it. fetcher: fetches images by URL; without one none is fetched.
    jobs: how documents are added, by index; an index without is only read. `ready`: whether everything is loaded.
    """

    def __init__(
        self,
        indexes: Mapping[str, Index] | None = None,
        *,
        models: Mapping[str, Encoder] | Callable[[], Mapping[str, Encoder]] | None = None,
        rerankers: Mapping[str, Reranker] | Callable[[], Mapping[str, Reranker]] | None = None,
        keys: Sequence[Key] = (),
        limits: ServeLimits | None = None,
        fetcher: Fetcher | None = None,
        jobs: Mapping[str, Jobs] | None = None,
    ) -> None:
        self.indexes = dict(indexes or {})
        self.rerankers: dict[str, Reranker] = {}
        self.keys = tuple(keys)
        self.limits = limits or ServeLimits()
        self.fetcher = fetcher
        self.jobs = dict(jobs or {})
        self.metrics = Metrics()
        self.spans = Spans()
        self.ready = False
        self.stopping = asyncio.Event()
        self._sources = models or {}, rerankers or {}  # or functions that load them
        self._models: dict[str, Encoder] = {}
        self._batchers: dict[str, Batcher] = {}
        self._searching = 0
        self._threads = ThreadPoolExecutor(self.limits.searches, thread_name_prefix="ragkit-search")

    async def start(self) -> None:
        """Load the models, those of the indexes too, and start the queues."""
        self._models, self.rerankers = await asyncio.wrap_future(_on_daemon(self._loaded))
        for name, encoder in self._models.items():
            batcher = Batcher(encoder, limits=self.limits, on_batch=self.metrics.batch(name))
            batcher.start()
            self._batchers[name] = batcher
            self.metrics.watch(name, batcher)
        for jobs in self.jobs.values():
            jobs.start()
        self.ready = True

    def _loaded(self) -> tuple[dict[str, Encoder], dict[str, Reranker]]:
        """Load the models, those of the indexes too, and the rerankers; return both by name."""
        models, rerankers = (dict(source() if callable(source) else source) for source in self._sources)
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
        """Return the queue of a model, by its name or the last part of it. Problem INPUT_MODEL_NOT_FOUND."""
        last = PurePath(name).name.lower()
        names = [name] if name in self._batchers else [each for each in self._batchers if PurePath(each).name.lower() == last]
        if len(names) != 1:
            raise Problem(
                400,
                f"this server has no model {name[:100]!r}; it has {', '.join(self._batchers) or 'none'}",
                code="INPUT_MODEL_NOT_FOUND",
                field="model",
            )
        return self._batchers[names[0]]

    def index(self, name: str | None, key: Key | None) -> tuple[str, Index]:
        """Return the index that a request names, or the only one that its key may use. Problem 400, 403 or 404."""
        key = key or ANYBODY
        if key.index is not None and name not in (None, key.index):
            raise Problem(403, f"the key {key.name!r} is bound to the index {key.index!r}", field="index")
        chosen = name if name is not None else key.index
        if chosen is None and len(self.indexes) == 1:
            chosen = next(iter(self.indexes))
        if chosen is None:
            raise Problem(400, f"name one of the indexes: {', '.join(self.indexes) or 'this server has none'}", field="index")
        if chosen not in self.indexes:
            raise Problem(404, f"this server has no index {chosen[:100]!r}", field="index")
        return chosen, self.indexes[chosen]

    async def run(self, work: Callable[..., Done], *arguments: object, **options: object) -> Done:
        """Run work on an index in one of a few threads. Problem 429 if too much waits; ragkit's errors become Problems."""
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
    """Run work on a thread that the end of the process does not wait for: a model may take minutes to load."""
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


def narrowed(filters: Filters | None, key: Key | None, *, depth: int) -> Filters | None:
    """Return a request's filter together with its key's; None without both. Problem 400 for one that is nested too deep."""
    if filters is not None and _depth(filters) > depth:
        raise Problem(400, f"the filter is nested more than {depth} deep", field="filters")
    bound = key.filters if key is not None else None
    if bound is None or filters is None:
        return bound if filters is None else filters
    return {"operator": "AND", "conditions": [bound, filters]}


def _depth(filters: Filters) -> int:
    """Return the levels of logic in a filter: each is an object and a list."""
    level: list[object] = [filters]
    depth = 0
    while level:  # no recursion: a request may nest deeper than the interpreter's stack
        depth += 1
        level = [child for node in level for child in _children(node) if isinstance(child, (Mapping, list))]
    return (depth + 1) // 2


def _children(node: object) -> Iterable[object]:
    return node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()


@contextmanager
def refusals() -> Iterator[None]:
    """Turn ragkit's own errors, raised within, into Problems."""
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        problem = problem_of(error)
        if problem.status >= 500:
            raise
        raise problem from error

"""Results that one thread makes and another takes, and the threads that make them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.load.render import RenderedPage

Result = Document | LoadError
Picture = RenderedPage | LoadError
_R = TypeVar("_R")
WAITING = 64  # results of one source that wait to be taken


class Task(Generic[_R]):
    """The results of one request, which its thread puts in and the caller takes out; at most `room` wait in between."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._results: deque[_R] = deque()
        self._ended = self._dropped = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, result: _R) -> bool:
        """Wait until there is room, and put the result in. Return False where nobody wants any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._dropped or len(self._results) < self._room)
            self._results.append(result)
            self._changed.notify_all()
            return not self._dropped

    def fill(self, make: Callable[[], Iterator[_R]]) -> None:
        """Make results and put them in, until there are none or nobody wants them.

        Whatever `make` raises is raised by `results`: whoever takes the results would wait for ever otherwise.
        """
        failure: BaseException | None = None
        try:
            for result in make():
                if not self.put(result):
                    return
        except BaseException as error:
            failure = error
        finally:
            with self._changed:
                self._ended, self._failure = True, failure
                self._changed.notify_all()

    def drop(self) -> None:
        """Say that nobody takes any more results."""
        with self._changed:
            self._dropped = True
            self._changed.notify_all()

    @property
    def dropped(self) -> bool:
        return self._dropped

    def results(self) -> Iterator[_R]:
        """Yield the results as they come. Raises what making them raised."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or bool(self._results))
                if not self._results:
                    if self._failure:
                        raise self._failure
                    return
                result = self._results.popleft()
                self._changed.notify_all()
            yield result


class TaskThreads:
    """At most `most` threads that fill tasks, in the order in which the tasks come. Used by one thread."""

    def __init__(self, most: int, *, name: str) -> None:
        self._most, self._name = most, name
        self._threads: list[threading.Thread] = []
        self._ready: deque[Callable[[], None] | None] = deque()  # None ends a thread
        self._changed = threading.Condition()

    def fill(self, task: Task[_R], make: Callable[[], Iterator[_R]]) -> None:
        """Have the next free thread make the task's results."""
        with self._changed:
            self._ready.append(partial(task.fill, make))
            self._changed.notify()
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._work, name=self._name, daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """Forget the tasks that no thread has begun, and wait for the threads to end."""
        with self._changed:
            self._ready.clear()
            self._ready.extend([None] * len(self._threads))
            self._changed.notify_all()
        for thread in self._threads:
            join_thread(thread)

    def _work(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready))
            return self._ready.popleft()


def join_thread(thread: threading.Thread) -> None:
    """Wait for a thread's end; one whose start a signal cut short ends by itself."""
    with contextlib.suppress(RuntimeError):
        thread.join()

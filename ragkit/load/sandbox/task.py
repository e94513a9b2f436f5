"""One parse in progress: results that wait to be taken."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
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
        """Waits until there is room. False: nobody wants any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._dropped or len(self._results) < self._room)
            self._results.append(result)
            self._changed.notify_all()
            return not self._dropped

    def fill(self, make: Callable[[], Iterator[_R]]) -> None:
        """Makes results and puts them in, until there are none or nobody wants them; whatever is raised, is raised to who takes
        them, who would wait for ever otherwise."""
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
        with self._changed:
            self._dropped = True
            self._changed.notify_all()

    @property
    def dropped(self) -> bool:
        return self._dropped

    def results(self) -> Iterator[_R]:
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


def join_thread(thread: threading.Thread) -> None:
    """Wait for its end; one whose start a signal cut short ends by itself."""
    with contextlib.suppress(RuntimeError):
        thread.join()

"""The child processes of one Parser, and a request to one of them with its answers.

A child serves one request at a time. One that dies, lies or runs out of time is put away, never asked again. Nothing here knows
what a request is about.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.load.limits import Limits
from ragkit.load.sandbox import wire
from ragkit.load.sandbox.child import Child, ChildDied
from ragkit.load.sandbox.clock import Clock, OutOfTime


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One frame of a child that is meant for whoever asked."""

    header: wire.Header
    payload: memoryview

    @property
    def kind(self) -> str:
        return str(self.header["kind"])


@dataclass(frozen=True, slots=True, eq=False)
class ChildFailure:
    """Why and where a child failed: the page and the embedded file that it was at, 0 for none.

    `seconds` on the wall since the last result. `whole`: the time of the whole document is up, not only that of the page.
    """

    error: LoadError
    page: int
    part: int
    part_name: str
    seconds: float
    whole: bool


class ChildPool:
    """Children that start when they are needed and are used again. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End all children. A request under way fails."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for child in idle:
            child.close()
        for child in busy:
            os.kill(child.pid, signal.SIGKILL)  # the thread that leads the child closes it

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the children alive."""
        with self._lock:
            return tuple(child.pid for child in (*self._busy, *self._idle) if child.alive())

    def converse(
        self, request: wire.Header, clock: Clock, *, dropped: Callable[[], bool] = lambda: False
    ) -> Iterator[Answer | ChildFailure]:
        """Yield the answers to a request up to its end. Where the child fails, the ChildFailure comes last.

        `dropped` is asked after each answer that was taken: True ends the child, since nobody wants the rest.
        """
        child: Child | None = None
        part, part_name = 0, ""
        try:
            child = self._borrow()
            clock.follow(child)
            child.send(request)
            while (answer := Answer(*child.receive(clock.left))).kind != "end":
                if answer.kind == "begin":
                    clock.begin()
                    if request["kind"] == "render":
                        clock.turn(request["page"])
                elif answer.kind == "page":
                    clock.turn(int(answer.header["page"]))
                elif answer.kind == "part":
                    clock.restart(child)
                    part, part_name = int(answer.header["part"]), wire.printable(str(answer.header["name"]))
                else:
                    yield answer
                    if dropped():
                        return  # the child is in the middle of something nobody wants: it is put away below
                    clock.restart(child)
            child.served += 1
            self._give_back(child)
            child = None
        except (ChildDied, wire.BrokenFrame, LimitExceeded) as error:
            seconds = clock.spent()
            if child is not None:
                clock.pause()
            whole = isinstance(error, OutOfTime) and error.whole
            yield ChildFailure(_load_error(error, clock.page), clock.page, part, part_name, seconds, whole)
        finally:
            if child is not None:
                self._put_away(child)

    def _borrow(self) -> Child:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and not child.alive():  # died while idle: no document's fault
            child.close()
            child = None
        child = child or Child(self._limits)
        with self._lock:
            self._busy.add(child)
            closed = self._closed
        if closed:
            self._put_away(child)
            raise ChildDied("the Parser was closed")
        return child

    def _give_back(self, child: Child) -> None:
        with self._lock:
            self._busy.discard(child)
            reuse = not self._closed and child.served < self._limits.documents_per_child
            if reuse:
                self._idle.append(child)
        if not reuse:
            child.close()

    def _put_away(self, child: Child) -> None:
        child.close()
        with self._lock:
            self._busy.discard(child)


def _load_error(error: Exception, page: int) -> LoadError:
    """Return what a caller is told of a child's failure: a LimitExceeded, or a LoadError that names the page."""
    if isinstance(error, LimitExceeded):
        return LimitExceeded(str(error)) if isinstance(error, OutOfTime) else error
    return LoadError(str(error) + (f", on page {page}" if page else ""))

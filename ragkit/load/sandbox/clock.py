"""The clocks of a parse, held by the parent."""

from __future__ import annotations

import time

from ragkit.core.errors import LimitExceeded
from ragkit.load.limits import Limits
from ragkit.load.sandbox.child import START_SECONDS, Child


class Clock:
    """Wall and processor time of a document and of the page it is at, against the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.restart()

    def restart(self, child: Child | None = None) -> None:
        """Begin a new document."""
        self.page = 0
        self._preparing = False
        self._began = time.monotonic()
        self._spent = 0.0  # processor time, in children before this one
        self._from = child.cpu() if child else 0.0

    def follow(self, child: Child) -> None:
        """Go on with the document in this child."""
        self._child, self.page = child, 0
        self._from = self._seen = child.cpu()
        self._followed, self._preparing = time.monotonic(), True

    def begin(self) -> None:
        """Leave out the time until now, in which the child imported what it needs: no document pays for it.

        Only the first call for a child and a request does so.
        """
        if self._preparing:
            self._preparing = False
            self._began += time.monotonic() - self._followed
            self._from = self._seen = self._child.cpu()

    def pause(self) -> None:
        """Remember the processor time of the child so far: the document goes on in another."""
        self._spent += max(self._seen - self._from, 0.0)

    def turn(self, page: int) -> None:
        """Begin a page, or with 0 none."""
        self.page, self._page_began, self._page_from = page, time.monotonic(), self._child.cpu()

    def spent(self) -> float:
        """Return the seconds on the wall since the document, or the rest of it after the last result, began."""
        return time.monotonic() - self._began

    def left(self) -> float:
        """Return the seconds until the next limit could be reached. Raises OutOfTime at the first that was."""
        now, limits = time.monotonic(), self._limits
        if self._preparing and now - self._followed < START_SECONDS:
            return START_SECONDS - (now - self._followed)
        cpu = self._seen = self._child.cpu()
        bounds = [
            (limits.seconds, now - self._began, "s", "seconds"),
            (limits.cpu_seconds, self._spent + cpu - self._from, "s of processor time", "cpu_seconds"),
        ]
        if self.page:
            bounds += [
                (limits.page_seconds, now - self._page_began, "s", "page_seconds"),
                (limits.page_cpu_seconds, cpu - self._page_from, "s of processor time", "page_cpu_seconds"),
            ]
        for bound, used, unit, name in bounds:
            if used >= bound:
                whole = not name.startswith("page")
                what = "" if whole else f"page {self.page} "
                raise OutOfTime(f"{what}took longer than {bound:g} {unit} (Limits.{name})", whole=whole)
        # Processor time may pass faster than the clock on the wall, by as many threads as the child has.
        return max(min((bound - used) / (4 if "cpu" in name else 1) for bound, used, _, name in bounds), 0.01)


class OutOfTime(LimitExceeded):
    """A limit of time was reached. `whole`: by the document, not only by the page."""

    def __init__(self, message: str, *, whole: bool) -> None:
        super().__init__(message)
        self.whole = whole

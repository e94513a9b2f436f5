"""The progress bar of the command line. Nothing heavy is imported before a bar is drawn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ragkit.apps.cli.options import say

if TYPE_CHECKING:
    from ragkit.core.types import Progress as Step

LARGE = 10_000_000  # bytes of token vectors from which on their cost is said


@contextmanager
def progress_bar(title: str, *, quiet: bool, adding: bool = False) -> Iterator[Callable[[Step], None] | None]:
    """Yield a callback that draws one bar on standard error; None if quiet.

    adding: the bar counts documents, and units, units per second and page images stand beside it. Otherwise it shows the share
    that is done of whatever stage is under way. If standard error is no terminal, only the cost of a large build is said.
    """
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _say_cost
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %{task.fields[counts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(title, total=None, counts="")
        counts = _Counts()

        def draw(step: Step) -> None:
            if step.stage == "cost":
                _say_cost(step)
            elif not adding:
                bar.update(job, description=f"{title}: {step.stage}", completed=step.done, total=step.total)
            elif step.stage in ("encode", "pages"):
                counts.note(step)
                bar.update(job, counts=counts.text)
            else:
                counts.note(step)
                bar.update(job, completed=step.done, total=step.total, counts=counts.text)

        yield draw


class _Counts:
    """What an addition has done so far, for the text beside its bar."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._documents = self._units = self._pages = 0

    def note(self, step: Step) -> None:
        """Take over the count of a step: units in stage "encode", page images in "pages", else documents."""
        if step.stage == "encode":
            self._units = step.done
        elif step.stage == "pages":
            self._pages = step.done
        else:
            self._documents = step.done

    @property
    def text(self) -> str:
        """Return for example " · 3 documents · 120 units · 40.0 units/s · 2 pages"."""
        rate = self._units / max(time.monotonic() - self._started, 1e-6)
        pages = f" · {self._pages} pages" if self._pages else ""
        return f" · {self._documents} documents · {self._units} units · {rate:.1f} units/s{pages}"


def _say_cost(step: Step) -> None:
    """Say how much a large build with multi-vectors will take; ignore every other step."""
    size = max(step.total or 0, step.done)
    if step.stage == "cost" and size >= LARGE:
        say(f"late interaction: about {size / 1e6:,.0f} MB of token vectors")

"""What the commands share: opening an index, saying things, drawing progress. Nothing heavy is imported before it is used."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ragkit.index import Index
    from ragkit.types import Progress

    Progress_ = Progress

FAILED, PARTLY, INTERRUPTED = 1, 3, 130
LARGE = 10_000_000  # bytes

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(message: str) -> None:
    print(message, file=sys.stderr)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def api_keys() -> dict[str, str]:
    """What the environment says of hosted models: JINA_API_KEY, OPENAI_API_KEY, and an address with OPENAI_BASE_URL.

    The key goes to that address then, and nowhere else; a server without keys needs the address alone.
    """
    keys = {name: os.environ[f"{name.upper()}_API_KEY"] for name in ("jina", "openai") if f"{name.upper()}_API_KEY" in os.environ}
    for name in ("jina", "openai"):
        if address := os.environ.get(f"{name.upper()}_BASE_URL"):
            keys[address] = keys.pop(name, "")
    return keys


@contextmanager
def opened(path: Path, **settings: Any) -> Iterator[Index]:
    """An index, closed at the end; Ctrl-C and SIGTERM become the exit code for interrupted."""
    try:
        from ragkit.index import Index

        with Index.open(path, api_keys=api_keys(), **settings) as index:
            yield index
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def bar(title: str, *, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A callback that draws one bar on standard error, whatever it counts; None where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        job = drawn.add_task(title, total=None)

        def callback(step: Progress_) -> None:
            if step.stage == "cost":
                tell_cost(step)
                return
            drawn.update(job, description=f"{title}: {step.stage}", completed=step.done, total=step.total)

        yield callback


def tell_cost(step: Progress_) -> None:
    """Say what a large build with multi-vectors will take."""
    size = max(step.total or 0, step.done)
    if size >= LARGE:
        say(f"late interaction: about {size / 1e6:,.0f} MB of token vectors")

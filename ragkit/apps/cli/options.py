"""What the commands share: opening an index, saying things, drawing progress. Nothing heavy is imported before it is used."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ragkit.recipe.settings import Row, SettingsKeywords, table

if TYPE_CHECKING:
    from ragkit.core.types import Progress

if TYPE_CHECKING:
    from ragkit.core.types import Progress
    from ragkit.index.index import Index

    Progress_ = Progress

FAILED, PARTLY, INTERRUPTED = 1, 3, 130
LARGE = 10_000_000  # bytes
PANEL = "Settings of the index (docs/settings.md)"

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for each setting of the recipe, before its own; it takes them as **settings."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    arguments = [parameter for parameter in own if parameter.kind is not parameter.KEYWORD_ONLY]
    options = [
        inspect.Parameter(row.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(row))
        for row in table().values()
    ]
    command.__signature__ = signature.replace(parameters=[*arguments, *options, *own[len(arguments) :]])  # type: ignore[attr-defined]
    return command


def _annotation(row: Row) -> Any:
    choices = f" Choices: {', '.join(row.choices)}." if row.choices else ""
    default = "" if row.kind is bool else f" Default: {row.default.replace('`', '')}."
    return Annotated[row.kind | None, typer.Option(row.option, help=f"{row.help}{choices}{default}", rich_help_panel=PANEL)]


def keywords(settings: Mapping[str, Any]) -> SettingsKeywords:
    """Return the options of a command as keywords of Index.open: "off" is False for vectors that are not kept."""
    rows = table()
    chosen = {name: False if value == "off" and rows[name].takes_off else value for name, value in settings.items()}
    return cast("SettingsKeywords", chosen)


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
def open_index(path: Path, **settings: Any) -> Iterator[Index]:
    """An index, closed at the end; Ctrl-C and SIGTERM become the exit code for interrupted."""
    try:
        from ragkit.index.index import Index

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


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Index documents, ask, and check the evidence.",
)


@contextmanager
def add_progress(*, quiet: bool) -> Iterator[Any]:
    """A callback that draws documents, units per second and the time left on standard error; None where nobody looks."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents · {task.fields[units]} units · {task.fields[rate]:.1f} units/s{task.fields[pages]} ·"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task("adding", total=None, units=0, rate=0.0, pages="")

        def callback(step: Progress_) -> None:
            if step.stage == "cost":
                tell_cost(step)
            elif step.stage == "pages":
                bar.update(job, pages=f" · {step.done} pages")
            elif step.stage == "encode":
                bar.update(job, units=step.done, rate=step.done / (time.monotonic() - started))
            else:
                bar.update(job, completed=step.done, total=step.total)

        yield callback


def parse_filters(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--filter is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"--filter is a JSON object, got {text}")
    return value

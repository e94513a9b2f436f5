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
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ragkit.core.types import Progress

if TYPE_CHECKING:
    from ragkit.core.types import Progress
    from ragkit.index.index import Index

    Progress_ = Progress

FAILED, PARTLY, INTERRUPTED = 1, 3, 130
LARGE = 10_000_000  # bytes

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _option(kind: Any, *names: str, about: str) -> Any:
    return Annotated[kind | None, typer.Option(*names, help=about)]


# Of the commands that make or change a recipe, by the keywords of Index.open.
RECIPE: Mapping[str, Any] = {
    "model": _option(str, about="The encoder; of a new index the bundled all-MiniLM-L6-v2, if left out."),
    "task": _option(str, about="The encoder's task, where it has several."),
    "dims": _option(int, about="Keep the first DIMS of each vector."),
    "max_tokens": _option(int, about="Tokens the encoder takes, at most."),
    "max_pixels": _option(int, about="Pixels of an image that the encoder sees, at most."),
    "overflow": _option(str, about="What to do with longer units: error, truncate or window."),
    "dtype": _option(str, about="float32, bfloat16, …"),
    "late_chunking": _option(bool, "--late-chunking/--no-late-chunking", about="Each chunk's vector from its document's states."),
    "contextual_headers": _option(
        bool, "--contextual-headers/--no-contextual-headers", about="Embed a chunk behind its title and headings."
    ),
    "chunker": _option(str, about="sentences, structure, page or whole."),
    "chunk_tokens": _option(int, about="Tokens per chunk, at most."),
    "chunk_overlap": _option(int, about="Tokens shared by neighbouring chunks."),
    "multi": _option(str, about="A vector per token, too, for late interaction: int8, float16, float32 or off."),
    "pool": _option(int, about="Tokens by this factor fewer, with --multi."),
    "pages": _option(str, about="Embed pages as pictures, too: auto, figures, all or none."),
    "page_model": _option(str, about="The encoder that sees them, where it is another."),
    "page_dims": _option(int, about="Keep the first DIMS of each page's vector."),
    "page_multi": _option(str, about="A page's vectors per patch: int8, float16, float32 or off."),
    "page_pixels": _option(int, about="Pixels of a page that the encoder sees, at most."),
    "page_pool": _option(int, about="A page's patches by this factor fewer."),
    "page_background": _option(
        bool, "--page-background/--no-page-background", about="Without it, a page's patches that are alike are one."
    ),
    "coarse": _option(int, about="One vector more for so many of --multi's, so that searches are faster: 4, say."),
    "keep_sources": _option(
        bool, "--keep-sources/--no-keep-sources", about="Keep a copy of every file, to show its pages when it is gone."
    ),
    "pdf_engine": _option(str, about="auto, pymupdf or pypdfium2."),
    "ocr": _option(str, about="Read pages without text: off, auto, or languages as eng+deu."),
    "recall": _option(float, about="The share of the best ten that a compressed search must find."),
}


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of RECIPE, which it takes as **settings, before its own."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    arguments = [one for one in own if one.kind is not one.KEYWORD_ONLY]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in RECIPE.items()
    ]
    command.__signature__ = signature.replace(parameters=[*arguments, *options, *own[len(arguments) :]])  # type: ignore[attr-defined]
    return command


def keywords(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of RECIPE as the keywords of Index.open."""
    return {name: False if value == "off" and name in ("multi", "page_multi") else value for name, value in settings.items()}


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

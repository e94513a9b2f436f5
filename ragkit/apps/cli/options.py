"""What the commands share: options, opening an index, printing. Nothing heavy is imported before it is used."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack, cast

import typer

from ragkit.recipe.settings import Row, SettingsKeywords, table

if TYPE_CHECKING:
    from ragkit.index.index import Index

FAILED, PARTLY, INTERRUPTED = 1, 3, 130  # exit codes
PANEL = "Settings of the index (docs/settings.md)"

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …")]
Password = Annotated[str | None, typer.Option(envvar="RAGKIT_PASSWORD", help="For encrypted documents.")]


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
    """Print a message on standard error: standard output is for answers."""
    print(message, file=sys.stderr)


def print_json(value: object) -> None:
    """Print one JSON value on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def api_keys() -> dict[str, str]:
    """Return the API keys of hosted models from JINA_API_KEY and OPENAI_API_KEY, by "jina", "openai" or an address.

    With JINA_BASE_URL or OPENAI_BASE_URL the key goes to that address and nowhere else; a server without keys needs only the
    address.
    """
    keys = {name: os.environ[f"{name.upper()}_API_KEY"] for name in ("jina", "openai") if f"{name.upper()}_API_KEY" in os.environ}
    for name in ("jina", "openai"):
        if address := os.environ.get(f"{name.upper()}_BASE_URL"):
            keys[address] = keys.pop(name, "")
    return keys


@contextmanager
def interruptible() -> Iterator[None]:
    """End the command with the exit code for interrupted on Ctrl-C and SIGTERM."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def open_index(
    path: Path,
    *,
    create: bool = True,
    device: str | None = None,
    cache: Path | None = None,
    **settings: Unpack[SettingsKeywords],
) -> Iterator[Index]:
    """Yield an open index, and close it at the end; Ctrl-C and SIGTERM become the exit code for interrupted."""
    with interruptible():
        from ragkit.index.index import Index

        with Index.open(path, device=device, api_keys=api_keys(), cache=cache, create=create, **settings) as index:
            yield index


def parse_filters(text: str | None) -> Mapping[str, Any] | None:
    """Return the filter that --filter gives as JSON; None without one. ValueError if it is not a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--filter is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"--filter is a JSON object, got {text}")
    return value

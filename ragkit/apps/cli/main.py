"""The command line: `ragkit add | search | show | delete | list | stats | verify | compact | backup | …`.

Answers go to standard output, progress and messages to standard error; `--json` prints one JSON value. Exit codes: 0 done,
1 an error, 2 wrong usage, 3 done but some documents failed or something was missing, 130 interrupted (what was committed
stays; run it again).
Commands are plain functions in add.py, search.py, maintenance.py and serve.py; this file alone registers them. Nothing heavy is
imported before a command needs it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import typer

from ragkit.apps.cli import add, maintenance, search, serve
from ragkit.apps.cli.options import FAILED, INTERRUPTED, say
from ragkit.core.errors import RagkitError

COMMANDS: tuple[Callable[..., None], ...] = (
    add.add,
    add.retry,
    add.status,
    add.delete,
    add.list_,
    search.search,
    search.explain,
    search.show,
    search.eval_,
    maintenance.stats,
    maintenance.doctor,
    maintenance.verify,
    maintenance.repair,
    maintenance.compact,
    maintenance.backup,
    maintenance.migrate,
    maintenance.export,
    maintenance.import_,
    maintenance.selfcheck,
    serve.serve,
    serve.mcp,
)
KEY_COMMANDS: dict[str, Callable[..., None]] = {"add": serve.add_key, "list": serve.list_keys, "remove": serve.remove_key}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Index documents, ask, and check the evidence.",
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)
keys_app = typer.Typer(no_args_is_help=True, help="Keys of `ragkit serve`: make, list, remove.")
for name, key_command in KEY_COMMANDS.items():
    keys_app.command(name)(key_command)
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Run the command line, with every expected error as one clear line."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("interrupted: what was committed is in the index; run the same command again for the rest")
        raise
    except (RagkitError, ValueError, TypeError, OSError) as error:
        say(f"error: {error}")
        sys.exit(FAILED)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

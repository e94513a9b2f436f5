"""The command line: `ragkit add | search | show | delete | list | stats | verify | compact | backup | …`.

Answers go to standard output, progress and messages to standard error; `--json` prints one JSON value. Exit codes: 0 done,
1 an error, 2 wrong usage, 3 done but some documents failed or something was missing, 130 interrupted (what was committed
stays; run it again).
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ragkit.apps.cli import add, search  # noqa: F401 - their commands join `app`
from ragkit.apps.cli import maintenance as care
from ragkit.apps.cli import serve as serving
from ragkit.apps.cli.options import FAILED, INTERRUPTED, app, say
from ragkit.core.errors import RagkitError

if TYPE_CHECKING:
    from ragkit.core.types import Progress


for command in (*care.COMMANDS, *serving.COMMANDS):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(serving.keys_app, name="keys")


def main() -> None:
    """Run the command line, with every expected error as one clear line."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("interrupted: what was committed is in the index; run the same command again for the rest")
        raise
    except (RagkitError, ValueError, TypeError, OSError) as error:
        say(f"error: {error}")
        sys.exit(FAILED)


def _terminate(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


if TYPE_CHECKING:
    Progress_ = Progress


if __name__ == "__main__":
    main()

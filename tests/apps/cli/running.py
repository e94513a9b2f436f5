"""`ragkit ...` as a user meets it, in this process or in one of its own: exit codes, JSON, messages."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ragkit.apps.cli.main import main


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Ended:
    """Run the command line's `main` in this process: as fast as a function call, with the same exit codes and streams."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _restored_signals(),
        mock.patch.object(sys, "argv", ["ragkit", *map(str, arguments)]),
        mock.patch.dict(os.environ, environment),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = _exit_code()
    return Ended(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Ended:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "ragkit.apps.cli.main", *map(str, arguments)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def _exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextlib.contextmanager
def _restored_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(*arguments: str | Path, cwd: Path | None = None, code: int = 0, process: bool = False) -> str:
    """Standard output of `ragkit ...`, which must end with this exit code; the two streams together where it fails."""
    ended = (start if process else call)(*arguments, cwd=cwd)
    assert ended.code == code, f"{arguments} ended with {ended.code}\n{ended.out}\n{ended.err}"
    return ended.out if code == 0 else ended.out + ended.err


def run_json(*arguments: str | Path, code: int = 0, process: bool = False) -> Any:
    return json.loads(run(*arguments, "--json", code=code, process=process))

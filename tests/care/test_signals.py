"""Ctrl-C and SIGTERM, in the midst of every command that reads or writes an index for long: told as an interruption, the index
whole, and the same command, run again, completes the job."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ragkit import Index
from ragkit.apps.cli.options import INTERRUPTED
from ragkit.core.errors import StorageError
from tests.care.damage import Answers, answers

SIGNALS = (signal.SIGINT, signal.SIGTERM)
QUERIES = ("word7 of note 3", "note 39")
COMMANDS = {
    "compact": ("compact", "library"),
    "verify": ("verify", "library"),
    "repair": ("repair", "library"),
    "backup": ("backup", "library", "copy"),
    "export": ("export", "library", "out"),
    "import": ("import", "other", "exported"),
    "migrate": ("migrate", "library", "--chunker", "whole", "--overflow", "truncate"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of some segments, and what was exported of it."""
    path = tmp_path_factory.mktemp("signals")
    with Index.open(path / "library", model="hash:64") as index:
        for part in range(3):
            numbers = range(part, 1500, 3)
            index.add([{"id": f"d{n}", "text": " ".join(f"Word{n * k % 97} of note {n}." for k in range(12))} for n in numbers])
        index.export(path / "exported")
    return path


def command(words: tuple[str, ...], folder: Path) -> list[str]:
    named = {"library", "copy", "out", "other", "exported"}
    return [sys.executable, "-m", "ragkit.apps.cli.main", *(str(folder / word) if word in named else word for word in words)]


def stopped(words: list[str], after: float, how: signal.Signals) -> tuple[int, str]:
    """How a command ends that is sent a signal after so many seconds, and what it says."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        try:
            child.wait(after)
        except subprocess.TimeoutExpired:
            child.send_signal(how)
        _, said = child.communicate(timeout=60)
        return child.returncode, said


def test_a_signal_in_the_midst_of_a_command_leaves_everything_whole(folder: Path, tmp_path: Path) -> None:
    # Where the machine was busy while a start was timed, the steps are long and may pass it by: then they are taken shorter.
    assert any(interrupted(folder, tmp_path / str(step), "migrate", step=step) for step in (1.0, 0.3, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_anywhere_in_a_command_leaves_everything_whole(folder: Path, tmp_path: Path, name: str) -> None:
    assert interrupted(folder, tmp_path, name, step=0.1) or name == "verify"  # which is through before a signal comes


def wound(path: Path) -> None:
    """Take away the words of all documents and the vectors of some."""
    shutil.rmtree(next((path / "lexical").iterdir()))
    sorted((path / "segments").glob("*/chunk.dense.npy"))[0].unlink()


def assert_whole(path: Path, before: Answers | None) -> None:
    with Index.open(path) as index:
        assert [one for one in index.verify() if not one.remedy.startswith("none needed")] == []  # what no commit knows
        if before is not None:
            assert answers(index, QUERIES) == before


def refused_or_equal(path: Path, before: Answers) -> bool:
    """After a repair that was stopped: nothing is answered, and the way out is named, or all is as it was."""
    with Index.open(path) as index:
        try:
            return answers(index, QUERIES) == before
        except StorageError as error:
            return "repair" in str(error)


def interrupted(folder: Path, path: Path, name: str, *, step: float) -> int:
    """How often a command was interrupted that is stopped later by `step` of the time that a start takes, until it is through."""
    shutil.copytree(folder, path, dirs_exist_ok=True)
    with Index.open(path / "library") as index:
        before = answers(index, QUERIES)
    if name == "repair":
        wound(path / "library")
    started = time.monotonic()
    stopped(command(("stats", "library"), path), 60, signal.SIGINT)
    start = time.monotonic() - started
    count = turn = 0
    while True:
        code, said = stopped(command(COMMANDS[name], path), start * (0.8 + step * turn), SIGNALS[turn % 2])
        if name != "repair" or code == 0:
            assert_whole(path / "library", None if name == "migrate" and code == 0 else before)  # migrated, the chunks are others
        else:
            assert refused_or_equal(path / "library", before), (turn, said)
        if code == 0 or (count and "exists and is not empty" in said):  # stopped once all was written
            break
        assert code in (INTERRUPTED, -signal.SIGTERM, -signal.SIGINT), (turn, code, said)  # the last two before it is at work
        if code == INTERRUPTED:
            assert "interrupted" in said
            count += 1
        turn += 1
    if name in ("backup", "import"):
        with Index.open(path / ("copy" if name == "backup" else "other")) as index:
            assert index.verify() == []
            assert answers(index, QUERIES) == before
    return count

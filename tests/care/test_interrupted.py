"""Stopped or failed anywhere, an index is as before or as after: the proofs of `prove`, sampled; `make crash` runs them whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.care.operations import OPERATIONS


def prove(*arguments: object, timeout: int = 7200) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.care.prove", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts: dict[str, Any] = json.loads(done.stdout)
    if "skipped" in counts:
        pytest.skip(counts["skipped"])
    return counts


STEPS = {"add": 89, "replace": 89, "delete": 43, "compact": 43, "cut": 43, "rebuild": 173, "backup": 43, "vectors": 23}


@pytest.mark.parametrize(("operation", "step"), STEPS.items())
def test_killed_at_a_change_it_is_as_before_or_as_after(operation: str, step: int) -> None:
    assert prove("kill", operation, step // 2, step)["killed"] >= 2


def test_every_operation_but_that_on_pages_which_parses_files_is_sampled_here() -> None:
    assert STEPS.keys() == OPERATIONS.keys() - {"pages"}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_change_it_is_as_before_or_as_after(operation: str) -> None:
    counts = prove("kill", operation, 1, 1)
    print(counts)
    assert counts["killed"] >= counts["changes"] - 20  # threads make the number of changes vary a little


@pytest.mark.parametrize(("operation", "step"), [("add", 97), ("backup", 67), ("vectors", 29)])
def test_a_disk_that_fails_at_a_change_harms_nothing(operation: str, step: int) -> None:
    counts = prove("fail", operation, step // 2, step)
    assert counts["told"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_fails_at_any_change_harms_nothing(operation: str) -> None:
    print(prove("fail", operation, 1, 1))


@pytest.mark.parametrize(("operation", "step"), [("replace", 53), ("vectors", 29)])
def test_a_lost_power_leaves_it_as_before_or_as_after(operation: str, step: int) -> None:
    assert prove("replay", operation, step, 2)["states"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_lost_power_anywhere_leaves_it_as_before_or_as_after(operation: str) -> None:
    print(prove("replay", operation, 1, 4))


@pytest.mark.parametrize("operation", ["add", "rebuild"])
def test_data_and_folders_are_synced_before_the_commit(operation: str) -> None:
    assert prove("durable", operation)["of data"] > 20


def test_killed_at_random_nothing_that_was_done_is_lost() -> None:
    counts = prove("random", 8)
    assert counts["killed"] + counts["finished"] == 8
    assert counts["changes"] > 0


@pytest.mark.slow
def test_killed_a_thousand_times_at_random_nothing_that_was_done_is_lost() -> None:
    counts = prove("random", 1000)
    print(counts)
    assert counts["killed"] > 700

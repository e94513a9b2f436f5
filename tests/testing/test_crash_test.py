"""The reader's own proof finds nothing where nothing is wrong, and something where a promise is broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ragkit import Index
from ragkit.testing import crash_test
from tests.apps.cli.running import run_json


def test_killed_processes_lose_nothing(tmp_path: Path) -> None:
    report = run_json("selfcheck", "--crash", "5", "--folder", tmp_path, process=True)
    assert report["killed"] + report["finished"] == 5
    assert report["changes"] > 0
    assert report["problems"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_change_that_is_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = crash_test._killed

    def forgetful(context: object, path: Path, plan: list[crash_test.Step], *, wait: int, after: float) -> tuple[int, bool]:
        """A disk that says it wrote: what the process did is gone."""
        shutil.copytree(path, path.with_name("before"))
        done, killed = kept(context, path, plan, wait=crash_test.STEPS, after=0)
        assert done == crash_test.STEPS
        shutil.rmtree(path)
        path.with_name("before").rename(path)
        return done, killed

    monkeypatch.setattr(crash_test, "_killed", forgetful)
    report = crash_test.crash(tmp_path, 3)
    assert len(report.problems) == 1
    assert "neither what was done" in report.problems[0]
    with Index.open(Path(report.folder) / "library") as index:  # left there to be looked at
        assert index.stats().documents == 1

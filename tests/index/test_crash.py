"""Killed at any system call that writes, an index opens as before or as after: hits in every mode, nothing between.

strace stops the process with SIGKILL at the N-th write, sync, rename, link or unlink of any library in it. The default run
samples N; `make crash` tries every one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from tests.index import crash_child

CALLS = "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,link,linkat,mkdir,ftruncate"
MODES = ("hybrid", "dense", "lexical")
QUERIES = ("tower", "whales and cards", "salt bread", "painted green", "painted red")

Answers = dict[tuple[str, str], list[tuple[Any, ...]]]


def answers(path: Path) -> Answers:
    with Index.open(path, model=crash_child.ENCODER) as index:
        return {
            (mode, query): [
                (hit.source, tuple(hit.span), hit.text, round(hit.score, 5)) for hit in index.search(query, 50, mode=mode)
            ]
            for mode in MODES
            for query in QUERIES
        }


def killed_at(path: Path, operation: str, *, call: int) -> bool:
    """Run the operation; whether strace killed it at its `call`-th write."""
    command = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={CALLS}",
        "-e",
        f"inject={CALLS}:signal=SIGKILL:when={call}",
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    child = [sys.executable, "-m", "tests.index.crash_child", str(path), operation]
    done = subprocess.run(
        command + child, env=environment, capture_output=True, timeout=120, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode in (0, -9, 137), done.stderr.decode()
    return done.returncode != 0


def assert_before_or_after(base: Path, scratch: Path, operation: str, *, calls: range) -> int:
    """Kill the operation at each of `calls`; returns how many runs were killed."""
    before = answers(base)
    finished = scratch / "finished"
    shutil.copytree(base, finished)
    crash_child.operate(finished, operation)
    after = answers(finished)
    assert before != after
    killed = 0
    for call in calls:
        path = scratch / f"call{call}"
        shutil.copytree(base, path)
        if not killed_at(path, operation, call=call):
            assert answers(path) == after
            break
        killed += 1
        found = answers(path)
        assert found in (before, after), f"killed at write {call}: the index is neither as before nor as after"
        crash_child.operate(path, operation)
        assert answers(path) == after, f"killed at write {call}: running again did not complete the job"
        shutil.rmtree(path)
    return killed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    path = tmp_path_factory.mktemp("crash") / "base"
    crash_child.prepare(path)
    return path


@pytest.mark.parametrize("operation", ["add", "delete"])
def test_killed_at_a_write_it_opens_as_before_or_after(base: Path, tmp_path: Path, operation: str) -> None:
    assert assert_before_or_after(base, tmp_path, operation, calls=range(2, 400, 7)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["add", "delete"])
def test_killed_at_every_write_it_opens_as_before_or_after(base: Path, tmp_path: Path, operation: str) -> None:
    killed = assert_before_or_after(base, tmp_path, operation, calls=range(1, 10_000))
    print(f"{operation}: killed at each of {killed} writes")
    assert killed > 30


def test_data_and_folders_are_synced_before_the_commit(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "traced"
    shutil.copytree(base, path)
    log = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", "trace=write,pwrite64,fsync,fdatasync,rename,renameat2,linkat"]
    child = [sys.executable, "-m", "tests.index.crash_child", str(path), "add"]
    subprocess.run(command + child, check=True, capture_output=True, cwd=Path(__file__).parents[2], timeout=120)
    lines = [line for line in log.read_text().splitlines() if str(path) in line]
    # The commit is the last write to the write-ahead log that carries documents: the last sync of it after the folders'.
    segment_writes = [at for at, line in enumerate(lines) if "/segments/" in line and "write" in line.split("(")[0]]
    syncs = {
        name: [at for at, line in enumerate(lines) if "sync(" in line and name in line] for name in ("/segments/", "/lexical/")
    }
    commits = [at for at, line in enumerate(lines) if "sync(" in line and "catalog.db-wal" in line]
    assert segment_writes
    assert syncs["/segments/"]
    assert max(segment_writes) < max(syncs["/segments/"]) < commits[-1]
    assert max(syncs["/lexical/"]) < commits[-1]
    for parent in ("segments", "lexical"):
        assert any("sync(" in line and f"/{parent}>" in line for line in lines), f"{parent}/ itself was never synced"

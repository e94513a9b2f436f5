"""The proofs by interruption, each a loop over the places where an operation can be stopped. Run by tests and `make crash`:

    python -m tests.care.prove kill   OPERATION FIRST STEP     killed at its N-th change, N = FIRST, FIRST + STEP, …
    python -m tests.care.prove fail   OPERATION FIRST STEP     its N-th change fails: disk full, disk broken; once, for ever
    python -m tests.care.prove replay OPERATION STEP SEEDS     power lost after N changes: what was not synced may be gone
    python -m tests.care.prove durable OPERATION               what a commit stands on is synced before it
    python -m tests.care.prove random COUNT                    killed at any moment, again and again, one index throughout

Prints a JSON object of counts. A process of its own, since it forks: nothing here may start a thread.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ragkit import Index
from ragkit.core.errors import RagkitError
from tests.care import operations as o
from tests.care import tracer
from tests.care.disk import certain, power_lost

NOWHERE = [Path("/nowhere")]
VERIFY_EVERY = 5


def fork(work: Callable[[], Any]) -> Any:
    """The result of `work` in a process of its own."""
    done = tracer.run(work, folders=NOWHERE)
    assert done.status == 0, f"ended with {done.status}"
    return done.result


@contextmanager
def prepared(operation: str) -> Iterator[tuple[Path, Path, o.Ends]]:
    scratch = Path(tempfile.mkdtemp(prefix="ragkit-prove-"))
    try:
        base = scratch / "base" / "library"
        base.parent.mkdir()
        fork(lambda: o.prepare(base, operation))
        yield scratch, base, o.ends(base, scratch, operation, fork=fork)
    finally:
        shutil.rmtree(scratch)


def copy(base: Path, path: Path) -> None:
    """Make `path` what `base` is, alone in its folder."""
    shutil.rmtree(path.parent, ignore_errors=True)
    shutil.copytree(base, path)


def assert_before_or_after(path: Path, operation: str, ends: o.Ends, *, where: str, done: bool = False, thorough: bool) -> None:
    """The index is in one of its two states, and doing the operation again brings it to the second."""
    problem = fork(lambda: _neither_before_nor_after(path, operation, ends, done=done, thorough=thorough))
    assert not problem, f"{operation}, {where}: {problem}"


def _neither_before_nor_after(path: Path, operation: str, ends: o.Ends, *, done: bool, thorough: bool) -> str:
    """What is wrong, or nothing. Each step opens the index anew."""
    found = o.told(path)
    if found != ends.after and (found != ends.before or done):
        return "neither as before nor as after"
    if problem := _wrong_backup(path, ends):
        return problem
    if found == ends.after and ends.before != ends.after and not thorough:
        return ""  # it is done; each fifth time it is done again none the less
    if message := o.operate(path, operation):
        return f"running it again failed: {message}"
    if o.told(path) != ends.after:
        return "running it again did not complete the job"
    if problem := _wrong_backup(path, ends):
        return problem
    return "; ".join(o.whole(path)) if thorough else ""


def _wrong_backup(path: Path, ends: o.Ends) -> str:
    copy = o.backup_of(path)
    if not copy.exists():
        return ""
    return "the copy is another" if o.told(copy) != ends.after else "; ".join(o.whole(copy))


def kill(operation: str, first: int, step: int) -> dict[str, Any]:
    killed = 0
    with prepared(operation) as (scratch, base, ends):
        at, path = first, scratch / "run" / "library"
        while True:
            copy(base, path)
            run = tracer.run(lambda: o.operate(path, operation), folders=[scratch / "run"], at=at)
            if run.status == 0:
                assert run.result == ""
                return {"operation": operation, "killed": killed, "changes": run.count}
            assert run.status == -signal.SIGKILL, run.status
            killed += 1
            where = f"killed at {at}: {run.last}"
            assert_before_or_after(path, operation, ends, where=where, thorough=killed % VERIFY_EVERY == 1)
            at += step


def fail(operation: str, first: int, step: int) -> dict[str, Any]:
    counts: dict[str, Any] = {"operation": operation, "failed": 0, "told": 0, "unharmed": 0}
    with prepared(operation) as (scratch, base, ends):
        path = scratch / "run" / "library"
        for code in (errno.ENOSPC, errno.EIO):
            for forever in (False, True):
                for at in count(first, step):
                    copy(base, path)
                    message = _failed(operation, path, ends, at=at, code=code, forever=forever, number=counts["failed"])
                    if message is None:
                        break
                    counts["failed"] += 1
                    counts["told" if message else "unharmed"] += 1
    return counts


def _failed(operation: str, path: Path, ends: o.Ends, *, at: int, code: int, forever: bool, number: int) -> str | None:
    """The message of an operation whose `at`-th change failed, empty where that did no harm; None where it had not so many."""

    def once() -> tuple[str, str]:
        return _twice(path, operation, ends)

    def always() -> tuple[str, str]:
        return o.operate(path, operation), ""

    run = tracer.run(always if forever else once, folders=[path.parent], at=at, code=code, forever=forever)
    where = f"{errno.errorcode[code]} {'from' if forever else 'at'} {at}: {run.last}"
    assert run.status == 0, f"{operation}, {where}: it died with {run.status}"
    if run.count < at:
        return None
    message, problem = run.result
    assert not problem, f"{operation}, {where}: {problem}"
    assert_before_or_after(path, operation, ends, where=where, done=not message, thorough=number % VERIFY_EVERY == 0)
    return str(message)


def _twice(path: Path, operation: str, ends: o.Ends) -> tuple[str, str]:
    """Do it, with a fault somewhere, and once more without, in one process: the message, and what is wrong if anything is."""
    message = ""
    try:
        with o.opened(path) as index:
            try:
                o.OPERATIONS[operation](index)
            except RagkitError as error:
                message = str(error)
            if o.asked(index) not in (ends.before, ends.after):
                return message, "neither as before nor as after, in the same process"
            if message and not (operation == "backup" and o.backup_of(path).exists()):
                o.OPERATIONS[operation](index)
            if o.asked(index) != ends.after:
                return message, "doing it again in the same process did not complete the job"
    except RagkitError as error:
        return message or str(error), "" if not message else f"doing it again failed: {error}"
    return message, ""


def replay(operation: str, step: int, seeds: int) -> dict[str, Any]:
    with prepared(operation) as (scratch, base, ends):
        path = scratch / "run" / "library"
        copy(base, path)
        run = tracer.run(lambda: o.operate(path, operation), folders=[scratch / "run"], record=True)
        states = 0
        for upto in (*range(0, len(run.calls), step), len(run.calls)):
            for seed in range(seeds):
                copy(base, path)
                power_lost(run.calls[:upto], keep=_luck(seed, upto))
                states += 1
                where = f"power lost after {upto} changes, seed {seed}"
                done = upto == len(run.calls)  # the call had returned: it is as after, whatever the disk forgot
                assert_before_or_after(path, operation, ends, where=where, done=done, thorough=states % VERIFY_EVERY == 1)
        return {"operation": operation, "changes": len(run.calls), "states": states}


def durable(operation: str) -> dict[str, Any]:
    """Whether all that a commit stands on was synced before it: every call on its folders, by the time it can be seen."""
    with prepared(operation) as (scratch, base, ends):
        path = scratch / "run" / "library"
        copy(base, path)
        calls = tracer.run(lambda: o.operate(path, operation), folders=[scratch / "run"], record=True).calls
        syncs = [at + 1 for at, call in enumerate(calls) if "sync" in call.name and call.path.endswith("-wal")]
        for upto in syncs:
            copy(base, path)
            power_lost(calls[:upto], keep=lambda: False)
            if fork(lambda: o.told(path)) == ends.after:
                break
        else:
            raise AssertionError(f"{operation}: no sync of the catalog made it durable")
        sure = certain(calls[:upto])
        data = [at for at, call in enumerate(calls[:upto]) if "/segments/" in call.path or "/lexical/" in call.path]
        open_ones = [calls[at].path for at in data if not sure[at] and Path(calls[at].path).exists()]
        assert open_ones == [], f"{operation}: not synced when the commit was: {open_ones}"
        return {"operation": operation, "changes": upto, "of data": len(data)}


def _luck(seed: int, count: int) -> Callable[[], bool]:
    """Whether what is uncertain reached the disk: with the seed 0 none of it, otherwise half. (All of it did where a process
    was killed: that is `kill`.)"""
    draw = random.Random(seed * 100_003 + count)
    return lambda: seed > 0 and draw.random() < 0.5


def kill_at_random(rounds: int) -> dict[str, Any]:
    """One index, written to by one process after another, each killed at some moment: all that was told to be done is there,
    and of the rest at most what was being done."""
    scratch = Path(tempfile.mkdtemp(prefix="ragkit-prove-"))
    path = scratch / "library"
    fork(lambda: o.prepare(path))
    expected, killed, finished, verified, acknowledged = {"changed": "", "kept": "", "gone": "", "second": ""}, 0, 0, 0, 0
    for round in range(rounds):
        draw = random.Random(round)
        plan = [(f"d{draw.randrange(12)}", f"round{round} word{step}", draw.random() < 0.3) for step in range(6)]
        pid, acks = _writer(path, plan)
        with os.fdopen(acks, "rb", buffering=0) as pipe:
            done = sum(len(pipe.read(1)) for _ in range(draw.randrange(len(plan))))  # so many are waited for
            time.sleep(draw.random() * 0.1)
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            done += len(pipe.read(len(plan)))
        killed += os.WIFSIGNALED(status)
        finished += not os.WIFSIGNALED(status)
        acknowledged += done
        states = [_after(expected, plan[:upto]) for upto in (done, min(done + 1, len(plan)))]
        found = fork(lambda: _documents(path))
        assert found in states, f"round {round}: {done} of {len(plan)} were done, and the index holds {found}"
        expected = found
        if round % 25 == 24:
            verified += 1
            assert fork(lambda: o.whole(path)) == []
    shutil.rmtree(scratch)
    return {"killed": killed, "finished": finished, "changes": acknowledged, "verified": verified}


def _writer(path: Path, plan: list[tuple[str, str, bool]]) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    with Index.open(path, create=False) as index:
        for name, text, gone in plan:
            if gone:
                index.delete(name)
            else:
                index.add([{"id": name, "text": text}])
            os.write(writer, b".")
    os._exit(0)


def _after(expected: dict[str, str], plan: list[tuple[str, str, bool]]) -> dict[str, str]:
    found = dict(expected)
    for name, text, gone in plan:
        if gone:
            found.pop(name, None)
        else:
            found[name] = text
    return found


def _documents(path: Path) -> dict[str, str]:
    """The documents and texts, as every mode of search tells them too."""
    with Index.open(path, create=False) as index:
        first = {"changed", "kept", "gone", "second"}
        found = {row.source: "" if row.source in first else index.document(row.source).text for row in index.documents()}
        rounds = {name: text for name, text in found.items() if text}
        dense = {hit.document_id: hit.text for hit in index.search("word0", 100, mode="dense") if hit.document_id in rounds}
        assert dense == rounds, (dense, rounds)
        for name, text in rounds.items():
            assert name in {hit.document_id for hit in index.search(text, 100, mode="lexical")}, name
        return found


def main(arguments: list[str]) -> dict[str, Any]:
    if reason := tracer.supported():
        return {"skipped": reason}
    which, rest = arguments[0], arguments[1:]
    if which == "random":
        return kill_at_random(int(rest[0]))
    if which == "durable":
        return durable(rest[0])
    return {"kill": kill, "fail": fail, "replay": replay}[which](rest[0], int(rest[1]), int(rest[2]))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))

"""The promise of atomic changes, tried on the reader's own machine and disk: `ragkit selfcheck --crash 200`.

A process changes a small index (adds, replaces, deletes, compacts) and says after each change that it is done; it is killed
with SIGKILL at a random moment, and the index must hold every change that was said to be done, and of the one under way
all or nothing: in the catalog, among the vectors and among the words. Then the next process goes on with the same index.

What this cannot show is a loss of power, where the disk itself forgets; see docs/guarantees.md.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragkit.core.errors import RagkitError
from ragkit.core.types import Progress
from ragkit.index.index import Index

STEPS = 8  # changes that a process is given; it is killed before it has made them all, or after
LONGEST = 0.1  # seconds that it lives on, at most, after the change that was waited for: about as long as one takes
VERIFIED = 10  # every how many rounds all checksums are compared
DONE, READY = b".", b"r"

Step = tuple[str, str]  # the name of a document and its new text; empty to delete it
Holdings = dict[str, str]


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What came of it. `problems` is empty where every promise was kept."""

    folder: str
    killed: int
    finished: int  # processes that were done before they were killed
    changes: int  # that were said to be done, and were all found
    verified: int
    seconds: float
    problems: tuple[str, ...]


def crash(folder: Path, count: int, *, seed: int = 0, progress: Callable[[Progress], None] | None = None) -> CrashReport:
    """Kill `count` processes that write to an index in a new folder beneath `folder`; stops at the first broken promise."""
    started, draw = time.monotonic(), random.Random(seed)
    scratch = Path(tempfile.mkdtemp(prefix="ragkit-selfcheck-", dir=folder))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ragkit.testing.crash_test", "ragkit.encode.models.hash", "tantivy"])
    killed = finished = changes = verified = 0
    problems: list[str] = []
    try:
        path = scratch / "library"
        with Index.open(path, model="hash:32") as index:
            index.add([{"id": "first", "text": "The first document."}])
        held: Holdings = {"first": "The first document."}
        for round in range(count):
            plan = [_step(draw, round, at) for at in range(STEPS)]
            done, was_killed = _killed(context, path, plan, wait=draw.randrange(STEPS), after=draw.random() * LONGEST)
            killed, finished, changes = killed + was_killed, finished + (not was_killed), changes + done
            problem, held = _examined(path, held, plan, done)
            if not problem and round % VERIFIED == VERIFIED - 1:
                problem, verified = _verified(path), verified + 1
            if problem:
                problems.append(f"round {round}, killed after {done} of {STEPS} changes: {problem}")
                break
            if progress is not None:
                progress(Progress("crash", round + 1, count, "processes"))
    finally:
        if not problems:
            shutil.rmtree(scratch)
    where = str(scratch if problems else folder)
    return CrashReport(where, killed, finished, changes, verified, time.monotonic() - started, tuple(problems))


def _step(draw: random.Random, round: int, at: int) -> Step:
    name = f"document {draw.randrange(10)}"
    return name, "" if draw.random() < 0.25 else f"Round {round} wrote step{at} of {name}, at {draw.randrange(1000)}."


def _killed(context: Any, path: Path, plan: list[Step], *, wait: int, after: float) -> tuple[int, bool]:
    """How many changes a process said were done before it was killed, `after` seconds after `wait` of them; if it was."""
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_write, args=(str(path), plan, writer))
    process.start()
    writer.close()
    heard = 0
    with contextlib.suppress(EOFError):
        reader.recv_bytes()  # it is about to begin
        while heard < wait:
            reader.recv_bytes()
            heard += 1
        time.sleep(after)
    process.kill()
    process.join()
    with contextlib.suppress(EOFError, OSError):
        while reader.poll():
            reader.recv_bytes()
            heard += 1
    reader.close()
    return heard, process.exitcode != 0


def _write(path: str, plan: list[Step], pipe: Any) -> None:
    with Index.open(path) as index:
        pipe.send_bytes(READY)
        for at, (name, text) in enumerate(plan):
            if text:
                index.add([{"id": name, "text": text}], lock_timeout=60)
            else:
                index.delete(name, lock_timeout=60)
            pipe.send_bytes(DONE)
            if at % 4 == 3:
                index.compact(lock_timeout=60)


def _examined(path: Path, held: Holdings, plan: list[Step], done: int) -> tuple[str, Holdings]:
    """What is wrong with the index, if anything is, and what it holds."""
    try:
        found = holdings(path)
    except RagkitError as error:
        return str(error), held
    for upto in (done, done + 1):
        expected = dict(held)
        for name, text in plan[:upto]:
            if text:
                expected[name] = text
            else:
                expected.pop(name, None)
        if found == expected:
            return "", found
    return f"it holds {found}, which is neither what was done nor that and one more change", found


def holdings(path: Path) -> Holdings:
    """The documents and texts of an index, as the catalog, the vectors and the words all tell them; RagkitError: they differ."""
    with Index.open(path) as index:
        told = {row.source: index.document(row.source).text for row in index.documents()}
        near = {hit.document_id: hit.text for hit in index.search("document", 1000, mode="dense")}
        words = {hit.document_id: hit.text for hit in index.search("document", 1000, mode="lexical")}
    if not told == near == words:
        raise RagkitError(f"the catalog tells {told}, the vectors {near}, the words {words}")
    return told


def _verified(path: Path) -> str:
    with Index.open(path) as index:
        findings = [one for one in index.verify() if not one.remedy.startswith("none needed")]
    return findings[0].problem if findings else ""

"""Test on the reader's own machine and disk that changes are atomic: `ragkit selfcheck --crash 200`.

A process changes a small index (adds, replaces, deletes, compacts) and reports each change when it is done. It is killed with
SIGKILL at a random moment. Then the index must hold every change that was reported, and the one under way wholly or not at all:
in the catalog, among the vectors and among the words. The next process goes on with the same index.

This cannot show a loss of power, after which the disk itself may have lost writes; see docs/guarantees.md.
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
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from ragkit.core.errors import RagkitError
from ragkit.core.types import Progress
from ragkit.index.index import Index

STEPS = 8  # changes that a process is to make; it may be killed before it has made them all, or after
LONGEST = 0.1  # seconds from the last change that is waited for to the kill, at most: about as long as a change takes
VERIFIED = 10  # rounds from one comparison of all checksums to the next
DONE, READY = b".", b"r"

Step = tuple[str, str]  # the name of a document and its new text; empty to delete it
Holdings = dict[str, str]


@dataclass(frozen=True, slots=True)
class CrashReport:
    """The counts of a test. `problems` is empty if every promise was kept."""

    folder: str
    killed: int
    finished: int  # processes that ended before they were killed
    changes: int  # that were reported as done, and were all found
    verified: int
    seconds: float
    problems: tuple[str, ...]


def crash(folder: Path, count: int, *, seed: int = 0, progress: Callable[[Progress], None] | None = None) -> CrashReport:
    """Kill `count` processes that write to an index in a new folder beneath `folder`; stop at the first broken promise."""
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


def _killed(context: ForkServerContext, path: Path, plan: list[Step], *, wait: int, after: float) -> tuple[int, bool]:
    """Kill a process `after` seconds after it has reported `wait` changes; return how many it reported, and whether it was killed
    before its end."""
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_write, args=(str(path), plan, writer))
    process.start()
    writer.close()
    heard = 0
    with contextlib.suppress(EOFError):
        reader.recv_bytes()  # READY
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


def _write(path: str, plan: list[Step], pipe: Connection) -> None:
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
    """Return what is wrong with the index, or "", and what it holds."""
    try:
        actual = holdings(path)
    except RagkitError as error:
        return str(error), held
    for upto in (done, done + 1):
        expected = dict(held)
        for name, text in plan[:upto]:
            if text:
                expected[name] = text
            else:
                expected.pop(name, None)
        if actual == expected:
            return "", actual
    return f"it holds {actual}, which is neither what was done nor that and one more change", actual


def holdings(path: Path) -> Holdings:
    """Return the documents and texts of an index. RagkitError if the catalog, the vectors and the words do not agree on them."""
    with Index.open(path) as index:
        catalog = {row.source: index.document(row.source).text for row in index.documents()}
        vectors = {hit.document_id: hit.text for hit in index.search("document", 1000, mode="dense")}
        words = {hit.document_id: hit.text for hit in index.search("document", 1000, mode="lexical")}
    if not catalog == vectors == words:
        raise RagkitError(f"the catalog has {catalog}, the vectors {vectors}, the words {words}")
    return catalog


def _verified(path: Path) -> str:
    with Index.open(path) as index:
        findings = [finding for finding in index.verify() if not finding.remedy.startswith("none needed")]
    return findings[0].problem if findings else ""

"""Sum up what became of all that was added: documents by kind and language, failures with reasons, files gone from the disk."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragkit.care.stats import Stats
from ragkit.store.values import DocumentRow, Failure

SHOWN = 50  # failures, and files, that are listed by name
# Names and numbers. Failures that differ in nothing else are of one kind.
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A document that could not be added when that was last tried, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """What became of all that was added.

    mimes, languages: how many documents have each. reasons: how many failures have each, names and numbers left out. partly:
    sources of documents with pages that could not be read. gone: sources whose file no longer exists.
    """

    documents: int
    units: int
    commit: int
    mimes: Mapping[str, int]
    languages: Mapping[str, int]
    failures: tuple[FailedFile, ...]
    reasons: Mapping[str, int]
    partly: tuple[str, ...]
    gone: tuple[str, ...]


def status(documents: Iterable[DocumentRow], failures: Iterable[Failure], stats: Stats) -> Status:
    """Sum up an index from its documents, failures and counts. The disk is asked once for each file."""
    mimes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    partly, gone, exists = [], [], dict[str, bool]()
    for row in documents:
        mimes[row.mime] += 1
        languages[row.lang or "?"] += 1
        if row.meta.get("unread"):
            partly.append(row.source)
        if row.path is not None:
            if row.path not in exists:
                exists[row.path] = os.path.lexists(row.path)
            if not exists[row.path]:
                gone.append(row.source)
    failed = tuple(FailedFile(failure.source, failure.reason) for failure in failures)
    return Status(
        documents=stats.documents,
        units=stats.units,
        commit=stats.commit,
        mimes=dict(mimes.most_common()),
        languages=dict(languages.most_common()),
        failures=failed,
        reasons=dict(Counter(_VARIABLE.sub("…", failure.reason) for failure in failed).most_common()),
        partly=tuple(partly),
        gone=tuple(gone),
    )


def lines(status: Status, index: Path) -> Iterator[str]:
    """Yield the status as lines for a terminal."""
    yield f"{index}: {status.documents} documents, {status.units} units, commit {status.commit}"
    if status.mimes:
        yield _count_line("kinds", status.mimes)
    if status.languages:
        yield _count_line("languages", status.languages)
    if status.failures:
        yield from _failure_lines(status, index)
    if status.partly:
        yield from _listed(f"partly     {len(status.partly)} documents have pages that could not be read", status.partly)
    if status.gone:
        title = f"gone       {len(status.gone)} documents without files; to delete them, run: ragkit add --prune {index} FOLDER"
        yield from _listed(title, status.gone)
    if not (status.failures or status.partly or status.gone):
        yield "nothing failed, and every file is where it was"


def _listed(title: str, sources: Sequence[str]) -> Iterator[str]:
    yield title
    yield from (f"  {source}" for source in sources[:SHOWN])


def _count_line(title: str, counts: Mapping[str, int]) -> str:
    return f"{title:10} " + ", ".join(f"{name} {count}" for name, count in counts.items())


def _failure_lines(status: Status, index: Path) -> Iterator[str]:
    yield f"failed     {len(status.failures)}; to try again, run: ragkit retry {index}"
    if len(status.failures) > SHOWN:
        yield from (f"  {count:6}  {reason}" for reason, count in status.reasons.items())
        yield f"  the first {SHOWN}; --json lists them all"
    yield from (f"  {failed.source}: {failed.reason}" for failed in status.failures[:SHOWN])

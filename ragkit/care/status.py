"""What became of all that was added: documents by kind and language, failures with their reasons, files gone from the disk."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ragkit.care.stats import Stats
from ragkit.store.values import DocumentRow, Failure

SHOWN = 50  # failures, and files, named one by one
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:[.,]\d+)*")  # what differs between two failures of one kind


@dataclass(frozen=True, slots=True)
class FailedFile:
    """A document that could not be added when that was last tried, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """`mimes` and `languages` count documents; `partly` are those of which pages could not be read; `gone` the sources whose
    file is not there any more; `reasons` count failures alike but for names and numbers."""

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
    """Sum up an index: its documents, failures and counts. Asks the disk once for each file."""
    mimes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    partly, gone, there = [], [], dict[str, bool]()
    for row in documents:
        mimes[row.mime] += 1
        languages[row.lang or "?"] += 1
        if row.meta.get("unread"):
            partly.append(row.source)
        if row.path is not None:
            if row.path not in there:
                there[row.path] = os.path.lexists(row.path)
            if not there[row.path]:
                gone.append(row.source)
    failed = tuple(FailedFile(failure.source, failure.reason) for failure in failures)
    return Status(
        documents=stats.documents,
        units=stats.units,
        commit=stats.commit,
        mimes=dict(mimes.most_common()),
        languages=dict(languages.most_common()),
        failures=failed,
        reasons=dict(Counter(_OWN.sub("…", failure.reason) for failure in failed).most_common()),
        partly=tuple(partly),
        gone=tuple(gone),
    )


def lines(found: Status, index: Path) -> Iterator[str]:
    """The status as text for a terminal."""
    yield f"{index}: {found.documents} documents, {found.units} units, commit {found.commit}"
    for title, counts in (("kinds", found.mimes), ("languages", found.languages)):
        if counts:
            yield f"{title:10} " + ", ".join(f"{name} {count}" for name, count in counts.items())
    if found.failures:
        yield f"failed     {len(found.failures)}; try again: ragkit retry {index}"
        if len(found.failures) > SHOWN:
            yield from (f"  {count:6}  {reason}" for reason, count in found.reasons.items())
            yield f"  the first {SHOWN}; --json lists them all"
        yield from (f"  {one.source}: {one.reason}" for one in found.failures[:SHOWN])
    if found.partly:
        yield f"partly     {len(found.partly)} documents have pages that could not be read"
        yield from (f"  {source}" for source in found.partly[:SHOWN])
    if found.gone:
        yield f"gone       {len(found.gone)} documents whose files are not there; delete them: ragkit add --prune {index} FOLDER"
        yield from (f"  {source}" for source in found.gone[:SHOWN])
    if not (found.failures or found.partly or found.gone):
        yield "nothing failed, and every file is where it was"

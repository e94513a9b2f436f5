"""Count and report what becomes of each document, and tell the progress of it. No store.

Every document that goes in comes out in the report exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ragkit.core.types import AddReport, Document, Outcome, Progress
from ragkit.ingest.item import Callback, Item
from ragkit.store.values import DocumentRow, Failure

KINDS = ("added", "updated", "unchanged", "failed", "pruned", "skipped")


class Report:
    """The outcomes and counts of one call. `total` is the number of documents to come, once it is known."""

    def __init__(
        self, progress: Callback | None = None, *, record_failure: Callable[[Failure], None] = lambda failure: None
    ) -> None:
        """record_failure: is called with each document that failed, to keep it in the index."""
        self.total: int | None = None
        self.extra_records = 0  # records beyond the first of each file, which `total` does not count
        self._progress = progress
        self._record_failure = record_failure
        self._outcomes: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
        self._done = self._encoded = self._truncated = self._rendered = self._pages = self._blank = 0
        self._costs: set[str] = set()
        self._started = time.monotonic()

    def finish(self, kind: str, outcome: Outcome) -> None:
        """Count a document as done, under one of KINDS."""
        self._outcomes[kind].append(outcome)
        self._done += 1
        self._tell("load", self._done, self.total, "documents", outcome.source)

    def finish_unchanged(self, row: DocumentRow) -> None:
        self.finish("unchanged", Outcome(row.source, units=row.units))

    def finish_written(self, item: Item) -> None:
        outcome = Outcome(item.origin.source, units=item.units, warnings=item.warnings, duplicate_of=item.duplicate_of)
        self.finish("added" if item.replaces is None else "updated", outcome)

    def fail(self, identity: str, source: str, digest: str, reason: str) -> None:
        """Count a document as failed and record the failure in the index, so that it can be listed and tried again."""
        failure = Failure(printable(identity), printable(source), digest, printable(reason))
        self._record_failure(failure)
        self.finish("failed", Outcome(failure.source, reason=failure.reason))

    def fail_item(self, item: Item) -> None:
        self.fail(item.origin.identity, item.origin.source, item.origin.content_hash, item.problem)

    def skip(self, path: Path | str, reason: str) -> None:
        """Note a file that no loader reads. It counts as no document."""
        self._outcomes["skipped"].append(Outcome(printable(str(path)), reason=reason))

    def prune(self, row: DocumentRow) -> None:
        self._outcomes["pruned"].append(Outcome(row.source, units=row.units))

    def count_encoded(self, units: int, *, truncated: int = 0) -> None:
        self._encoded += units
        self._truncated += truncated
        self._tell("encode", self._encoded, None, "units")

    def count_rendered(self, pages: int) -> None:
        self._rendered += pages
        self._tell("pages", self._rendered, None, "pages")

    def count_pages(self, seen: int, *, blank: int) -> None:
        self._pages += seen
        self._blank += blank

    def needs_cost(self, kind: str) -> bool:
        """Whether the cost of a kind of units has not been told yet: it is estimated once, from the first documents."""
        return kind not in self._costs

    def tell_cost(self, kind: str, size: int, *, documents: int) -> None:
        """Tell the bytes that the multi-vectors of `documents` documents take, and about how many all will take."""
        self._costs.add(kind)
        self._tell("cost", size, size * max(self.total or 0, documents) // documents, "bytes")

    def tell_written(self) -> None:
        self._tell("write", self._done, self.total, "documents")

    @property
    def removed(self) -> bool:
        """Whether some document was replaced or pruned, so that something of it may be deleted from the disk."""
        return bool(self._outcomes["updated"] or self._outcomes["pruned"])

    def result(self) -> AddReport:
        outcomes = {kind: tuple(self._outcomes[kind]) for kind in KINDS}
        seconds = time.monotonic() - self._started
        return AddReport(**outcomes, truncated=self._truncated, pages=self._pages, blank=self._blank, seconds=seconds)

    def _tell(self, stage: str, done: int, total: int | None, unit: str, source: str = "") -> None:
        if self._progress is not None:
            total = total if total is None or unit != "documents" else total + self.extra_records
            self._progress(Progress(stage, done, total, unit, source))


def load_warnings(document: Document) -> tuple[str, ...]:
    """Return what a loader had to leave out of a document."""
    unread = document.meta.get("unread")
    warnings = [str(part) for part in unread] if isinstance(unread, list) else []
    if hidden := document.meta.get("hidden_characters"):
        warnings.append(f"{hidden} hidden characters were left out")
    return tuple(warnings)


def printable(text: str) -> str:
    """Return the text, with what is not valid Unicode (a file name's stray bytes) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()

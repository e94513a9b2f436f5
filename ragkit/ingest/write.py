"""Commit prepared documents, many at a time. A document is committed whole, with the deletion of its former version."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from ragkit.core.errors import LoadError
from ragkit.ingest.item import Item
from ragkit.ingest.prepare import as_prepared
from ragkit.ingest.report import Report
from ragkit.recipe.recipe import Recipe
from ragkit.store.local import source_copies
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import DocumentRow, Failure

COMMIT_UNITS = 8192
COMMIT_SECONDS = 30.0
COMMIT_BYTES = 1 << 28  # of multi-vectors


class FailureLog:
    """The failures that the index keeps: staged when a document fails, forgiven when it is tried again."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._by_name = by_file(failure.identity for failure in writer.reader().failures())

    def record(self, failure: Failure) -> None:
        self._writer.fail(failure)

    def clear(self, identity: str) -> None:
        """Forget that a file, or a record in it, failed before: it is tried again."""
        self._writer.forgive(self._by_name.get(identity, []))

    def clear_unnamed_records(self) -> None:
        """Forget the failed records from Python that had no id: nobody can say which of them is tried again."""
        self._writer.forgive(name for name in self._by_name if name.startswith("record:"))


def by_file(identities: Iterable[str]) -> dict[str, list[str]]:
    """Group identities under themselves and under the file they may lie in: "a#b" under "a#b" and under "a"."""
    groups: dict[str, list[str]] = {}
    for identity in identities:
        for name in (identity, *(identity[:at] for at, character in enumerate(identity) if character == "#")):
            groups.setdefault(name, []).append(identity)
    return groups


class CommitQueue:
    """Items that wait for the next commit, which comes when they are many, or large, or 30 seconds after the last."""

    def __init__(self, store: Store, writer: Writer, recipe: Recipe, report: Report) -> None:
        self._store = store
        self._writer = writer
        self._recipe = recipe
        self._report = report
        self._committed = time.monotonic()
        self.waiting: list[Item] = []

    def put(self, items: Sequence[Item]) -> None:
        """Take encoded items; those that failed are reported as such. Commits when that is due."""
        for item in items:
            if item.problem:
                self._report.fail_item(item)
            else:
                self.waiting.append(item)
        units = sum(item.units for item in self.waiting)
        full = max(units, len(self.waiting)) >= COMMIT_UNITS or sum(map(_multi_bytes, self.waiting)) >= COMMIT_BYTES
        if full or self.is_late():
            self.commit()

    def is_late(self) -> bool:
        """Whether the last commit is long enough ago that what is there should be committed."""
        return time.monotonic() - self._committed > COMMIT_SECONDS

    def commit(self) -> None:
        items, self.waiting = self.waiting, []
        self._committed = time.monotonic()
        if self._recipe.store.keep_sources:
            for item in items:
                self._keep_source(item)
        for item in items:
            self._writer.add(as_prepared(item))
        self._writer.commit("add", recipe_hash=self._recipe.hash)  # of failures alone, where no document waits
        for item in items:
            self._report.finish_written(item)
            item.seen = None  # a pool holds its documents for longer than the vectors of their pages should take up memory
        if items:
            self._report.tell_written()

    def prune(self, rows: Sequence[DocumentRow]) -> None:
        """Delete documents whose files are gone, in one commit."""
        self._writer.delete(row.id for row in rows)
        self._writer.commit("prune", recipe_hash=self._recipe.hash)
        for row in rows:
            self._report.prune(row)

    def _keep_source(self, item: Item) -> None:
        """Copy the document's file into the index, before the commit that cites it. Only files of their own can be shown."""
        if item.file is None:
            return
        try:
            source_copies.keep(self._store.path, item.file, item.origin.content_hash)
        except (OSError, LoadError) as error:
            if source_copies.kept(self._store.path, item.origin.content_hash) is None:  # the file may be gone by now
                item.warnings += (f"no copy of its file was kept: {error}",)


def _multi_bytes(item: Item) -> int:
    """Return the bytes of an item's multi-vectors."""
    pages = item.seen.multi if item.seen else ()
    return sum(part.values.nbytes for part in (*item.multi, *pages) if part is not None)

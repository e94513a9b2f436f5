"""The results of one source: its file is read by a child, and again without what ended that child.

A page of a PDF, or a file within a file, that kills its child or takes too long is left out, and another child reads the file
anew. Limits.lost_pages says how often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load import office
from ragkit.load.discover import Source
from ragkit.load.formats import format_of
from ragkit.load.limits import Limits
from ragkit.load.sandbox import wire
from ragkit.load.sandbox.clock import Clock
from ragkit.load.sandbox.pool import Answer, ChildFailure, ChildPool
from ragkit.load.sandbox.renditions import Renditions
from ragkit.load.sandbox.task import Result, Task


@dataclass(slots=True)
class _LeftOut:
    """What the next child does not read of a source, because it ended the children before.

    `pages` by number, with the reason; `after`: files within the file are read from the next one on.
    """

    most: int
    pages: dict[int, str] = field(default_factory=dict)
    after: int = 0
    parts: int = 0

    def add_part(self, failure: ChildFailure) -> bool:
        """Leave out the embedded file that a child failed at. Return whether there is one, and it may be left out."""
        if failure.part <= self.after or self.parts >= self.most:
            return False
        self.after = failure.part
        self.parts += 1
        return True

    def add_page(self, failure: ChildFailure) -> bool:
        """Leave out the page that a child failed at. Return whether there is one, and it may be left out."""
        if not failure.page or failure.whole or failure.page in self.pages or len(self.pages) >= self.most:
            return False
        self.pages[failure.page] = str(failure.error)
        return True


class SourceReader:
    """Reads sources in the children of a pool. Without `renditions`, Office texts get no pages from LibreOffice. Thread-safe."""

    def __init__(
        self,
        pool: ChildPool,
        limits: Limits,
        renditions: Renditions | None,
        *,
        pdf_engine: str,
        ocr: str,
        password: str | None,
    ) -> None:
        self._pool, self._limits, self._renditions = pool, limits, renditions
        self._request: wire.Header = {"kind": "load", "pdf_engine": pdf_engine, "ocr": ocr, "password": password}

    def results(self, source: Source, task: Task[Result]) -> Iterator[Result]:
        """Yield all results of one source, read by a child that serves only this source meanwhile."""
        try:
            str(source.path).encode()
        except UnicodeEncodeError:
            yield LoadError("its name is not valid UTF-8; rename it")
            return
        rendition, unread = self._laid_out(source, task)  # held here: the PDF goes with the last one who holds it
        pages = {"laid_out": None if rendition is None else str(rendition.pdf), "unread": unread}
        request = self._request | pages | {"path": str(source.path)}
        left_out, clock = _LeftOut(self._limits.lost_pages), Clock(self._limits)
        while True:
            failure: ChildFailure | None = None
            again = {**request, "skip": left_out.pages, "after": left_out.after}
            for answer in self._pool.converse(again, clock, dropped=lambda: task.dropped):
                if isinstance(answer, ChildFailure):
                    failure = answer
                elif answer.kind == "error":
                    yield wire.unpack_error(answer.header)
                elif answer.kind == "document":
                    document = self._document(answer, source)
                    yield document
                    if isinstance(document, LoadError):
                        return  # what else this child says is not to be trusted: leaving puts it away
            if failure is None:
                return
            if left_out.add_part(failure):
                clock.restart()
                yield type(failure.error)(f"{failure.part_name}: {failure.error}")
            elif not _can_skip_pages(source) or not left_out.add_page(failure):
                yield failure.error
                return

    def _laid_out(self, source: Source, task: Task[Result]) -> tuple[office.Rendition | None, str]:
        """Return the PDF with the pages of an Office text, or None and why it has none."""
        if self._renditions is None:
            return None, ""
        return self._renditions.to_lay_out(source.path, unwanted=lambda: task.dropped)

    def _document(self, answer: Answer, source: Source) -> Document | LoadError:
        """Return the Document of an answer, named after its source; or a LoadError where the answer is not to be trusted."""
        try:
            document = wire.unpack_document(answer.header, answer.payload, limits=self._limits)
        except LimitExceeded as error:
            return error
        except wire.BrokenFrame as error:
            return LoadError(str(error))
        return replace(document, id=f"{source.name}#{document.id}" if document.id else source.name)


def _can_skip_pages(source: Source) -> bool:
    """Return whether the source's loader can leave pages out."""
    kind = format_of(source.path)
    return kind is not None and kind.loader == "pdf"

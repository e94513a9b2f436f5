"""Documents are read in child processes: a child's death, hang or hunger is a failed document with a reason.

`Parser` hands sources to children in order and gives results back in order, pulling sources only as results are taken.
Each child is led by a thread of the parent, which keeps the clocks: only time spent waiting for the child counts, so a
caller may take as long as it likes between two results.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.load import office
from ragkit.load.discover import Source
from ragkit.load.formats import format_of
from ragkit.load.limits import Limits
from ragkit.load.render import RenderedPage, WantedPage
from ragkit.load.sandbox import wire
from ragkit.load.sandbox.child import Child, ChildDied, child_environment
from ragkit.load.sandbox.clock import Clock, OutOfTime
from ragkit.load.sandbox.task import WAITING, Picture, Result, Task, join_thread

_RENDITIONS = 4  # PDFs of Office documents that are kept for their next pages
_AHEAD = 64 << 20  # bytes of pictures that wait to be taken, unless one picture has more


def _has_pages(source: Source) -> bool:
    """Whether its loader can leave pages out."""
    kind = format_of(source.path)
    return kind is not None and kind.loader == "pdf"


class Parser:
    """Reads documents in child processes. A context manager; one may be used from several threads.

    `workers` children parse at a time. `pdf_engine` is "pymupdf", "pypdfium2" or "auto"; `password` is tried on
    encrypted files. Children start when first needed and end with the context.

    `office_pages`: Word, OpenDocument and RTF texts get the pages that LibreOffice lays them out on, empty ones unless the file
    notes as many itself; their text stays that of our own loaders. What cannot be had is told in `meta["unread"]`.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        limits: Limits | None = None,
        pdf_engine: str = "auto",
        ocr: str = "off",
        password: str | None = None,
        office_pages: bool = False,
    ) -> None:
        if workers < 1:
            raise ValueError(f"a Parser needs at least one worker, got {workers}")
        if pdf_engine not in ("auto", "pymupdf", "pypdfium2"):
            raise ValueError(f'pdf_engine must be "auto", "pymupdf" or "pypdfium2", got {pdf_engine!r}')
        self.limits = limits or Limits()
        if ocr != "off":
            from ragkit.load.ocr import check

            check(ocr)  # here, and not by each document: without Tesseract no page would be read, and every file be kept without
        self._workers, self._pdf_engine, self._ocr, self._password = workers, pdf_engine, ocr, password
        self._office_pages = office_pages
        self._renditions: dict[tuple[object, ...], office.Rendition] = {}  # the last of Office documents, the oldest first
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Parser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all children. Iterators that are under way end with an error."""
        with self._lock:
            self._closed = True
            children, self._idle = [*self._idle, *self._busy], []
            self._renditions.clear()
        for child in children:
            child.close() if child not in self._busy else os.kill(child.pid, signal.SIGKILL)

    def children(self) -> tuple[int, ...]:
        """Process ids of the children alive, for monitoring."""
        with self._lock:
            return tuple(child.pid for child in (*self._busy, *self._idle) if child.alive())

    def parse(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Result]]:
        """Each source's Documents, or the LoadError it ended in, in the order of the sources.

        Sources are taken from the iterable in the caller's thread, and only a few ahead of the results taken. A
        source gives at least one result, unless it is an empty JSONL file; a JSONL file gives one per line. Document
        ids are the source's name, and for records "name#id".
        """
        if self._closed:
            raise ValueError("this Parser is closed")
        return self._parse(iter(sources))

    def _parse(self, sources: Iterator[Source]) -> Iterator[tuple[Source, Result]]:
        waiting: deque[tuple[Source, Task[Result]]] = deque()
        ready: deque[tuple[Source, Task[Result]] | None] = deque()
        more = threading.Condition()

        def lead() -> None:
            while True:
                with more:
                    more.wait_for(lambda: bool(ready))
                    work = ready.popleft()
                if work is None:
                    return
                source, task = work
                task.fill(partial(self._results, source, task))

        threads: list[threading.Thread] = []
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) < 2 * self._workers:
                    source = next(sources, None)
                    if source is None:
                        exhausted = True
                        break
                    waiting.append((source, Task(WAITING)))
                    with more:
                        ready.append(waiting[-1])
                        more.notify()
                    if len(threads) < self._workers:
                        threads.append(threading.Thread(target=lead, name="ragkit-parser", daemon=True))
                        threads[-1].start()
                if not waiting:
                    return
                source, task = waiting[0]
                for result in task.results():
                    yield source, result
                waiting.popleft()
        finally:
            for _, task in waiting:
                task.drop()
            with more:
                ready.clear()
                ready.extend([None] * len(threads))
                more.notify_all()
            for thread in threads:
                join_thread(thread)

    def _results(self, source: Source, task: Task[Result]) -> Iterator[Result]:
        """All of one source, on a child of its own for the time."""
        try:
            str(source.path).encode()
        except UnicodeEncodeError:
            yield LoadError("its name is not valid UTF-8; rename it")
            return
        skip: dict[int, str] = {}
        after, lost_parts = 0, 0
        clock = Clock(self.limits)
        rendition, unread = self._laid_out(source.path, task)
        while True:
            request = {
                "kind": "load",
                "path": str(source.path),
                "laid_out": None if rendition is None else str(rendition.pdf),
                "unread": unread,
                "pdf_engine": self._pdf_engine,
                "ocr": self._ocr,
                "password": self._password,
                "skip": skip,
                "after": after,
            }
            lost, reason = 0, ""
            for header, payload in self._conversation(request, task, clock):
                if header["kind"] == "document":
                    try:
                        document = wire.unpack_document(header, payload, limits=self.limits)
                    except (wire.BrokenFrame, LimitExceeded) as error:
                        yield error if isinstance(error, LimitExceeded) else LoadError(str(error))
                        return  # what else this child says is not to be trusted: leaving puts it away
                    name = source.name
                    yield replace(document, id=f"{name}#{document.id}" if document.id else name)
                elif header["kind"] == "error":
                    yield wire.unpack_error(header)
                elif header["kind"] == "failed":
                    end, lost = header["error"], header["page"]
                    reason = str(end)
                    whole = isinstance(end, OutOfTime) and end.whole
                    if header["part"] > after and lost_parts < self.limits.lost_pages:
                        after, lost_parts = header["part"], lost_parts + 1
                        lost = after
                        clock.restart()
                        yield (LimitExceeded if isinstance(end, OutOfTime) else type(end))(f"{header['name']}: {reason}")
                        continue  # the file again, from what comes after the part that ended its child
                    if not lost or whole or lost in skip or len(skip) >= self.limits.lost_pages or not _has_pages(source):
                        yield LimitExceeded(reason) if isinstance(end, OutOfTime) else end
                        return
            if not lost:
                return
            if not after:  # parts have pages of their own numbers
                skip[lost] = reason  # the document again, without the page that ended its child

    def _laid_out(self, path: Path, task: Task[Any]) -> tuple[office.Rendition | None, str]:
        """The pages of an Office text, where they are asked for, or why there are none."""
        if not self._office_pages or not office.convertible(path):
            return None, ""
        try:
            if office.has_slides(path):
                return None, "" if office.program() else str(office.missing())
            return self._rendition(path, path.name, lambda: task.dropped), ""
        except (LoadError, OSError) as error:
            return None, str(error)

    def _rendition_of(self, path: Path, name: str, unwanted: Callable[[], bool]) -> office.Rendition | None:
        """The PDF whose pages are drawn in place of the file's, for an Office document. Raises LoadError."""
        if not office.convertible(name):
            return None
        try:
            return self._rendition(path, name, unwanted)
        except OSError as error:
            raise LoadError(f"cannot be read: {error.strerror or error}") from None

    def _rendition(self, path: Path, name: str, unwanted: Callable[[], bool]) -> office.Rendition:
        """The document as a PDF, made anew unless it is one of the last and unchanged since."""
        found = path.stat()
        key = (Path(name).suffix.lower(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        with self._lock:
            kept = self._renditions.pop(key, None)
        made = kept or office.convert(
            path, name, self.limits, environment=child_environment(), unwanted=lambda: self._closed or unwanted()
        )
        with self._lock:
            self._renditions[key] = made
            while len(self._renditions) > _RENDITIONS:
                del self._renditions[next(iter(self._renditions))]
        return made

    def render(
        self,
        path: str | Path,
        page_number: int,
        *,
        dpi: float | None = None,
        max_pixels: int | None = None,
        count: int | None = None,
        name: str | Path | None = None,
    ) -> bytes:
        """A page of a file, counted from 1, as PNG bytes, rendered in a child. `name` is the file's own, where it is kept under
        another. Raises LoadError or one of its kinds, also where the file is not drawn on `count` pages."""
        if self._closed:
            raise ValueError("this Parser is closed")
        drawn = Path(path).absolute()
        rendition = self._rendition_of(drawn, str(name or drawn), lambda: False)
        request = {
            "kind": "render",
            "path": str(rendition.pdf if rendition else drawn),
            "name": rendition.pdf.name if rendition else str(name or drawn),
            "page": page_number,
            "count": count,
            "dpi": dpi,
            "max_pixels": self.limits.pixels if max_pixels is None else min(max_pixels, self.limits.pixels),
            "pdf_engine": self._pdf_engine,
            "password": self._password,
        }
        image: bytes | None = None
        for header, payload in self._conversation(request, None, Clock(self.limits)):
            if header["kind"] == "image":
                image = bytes(payload)
            elif header["kind"] == "error":
                raise wire.unpack_error(header)
            elif header["kind"] == "failed":
                raise LimitExceeded(str(header["error"])) if isinstance(header["error"], OutOfTime) else header["error"]
        if image is None or not image.startswith(b"\x89PNG\r\n\x1a\n"):
            raise LoadError("the parser process sent no picture")
        return image

    def render_pages(
        self, path: str | Path, wanted: Sequence[WantedPage], *, name: str | Path | None = None
    ) -> Iterator[RenderedPage | LoadError]:
        """The pages wanted of a file, in that order: for each its picture, or the LoadError that says why there is none.
        `name` is the file's own, where it is kept under another.

        Pages are rendered ahead of those taken, by one child, as far as 64 MiB of pictures go. A page that ends its child is lost
        and rendering goes on with the next, in another child, until pages so lost have taken Limits.seconds together: the
        rest of the file is lost then.
        """
        if self._closed:
            raise ValueError("this Parser is closed")
        return self._render_pages(Path(path).absolute(), tuple(wanted), str(name or path))

    def _render_pages(self, path: Path, wanted: Sequence[WantedPage], name: str) -> Iterator[Picture]:
        largest = max((3 * page.width * page.height for page in wanted), default=1)
        task: Task[Picture] = Task(max(1, min(WAITING, _AHEAD // largest)))
        thread = threading.Thread(
            target=task.fill, args=(partial(self._pictures, path, wanted, name, task),), name="ragkit-renderer", daemon=True
        )
        try:
            thread.start()
            yield from task.results()
        finally:
            task.drop()
            join_thread(thread)

    def _pictures(self, path: Path, wanted: Sequence[WantedPage], name: str, task: Task[Picture]) -> Iterator[Picture]:
        left, lost = deque(wanted), 0.0
        try:
            rendition = self._rendition_of(path, name, lambda: task.dropped) if wanted else None
        except LoadError as error:
            yield from (error for _ in wanted)
            return
        while left:
            before, end = len(left), LoadError("the parser process sent no picture")
            request = {
                "kind": "draw",
                "path": str(rendition.pdf if rendition else path),
                "name": rendition.pdf.name if rendition else name,
                "wanted": [astuple(page) for page in left],
                "pdf_engine": self._pdf_engine,
                "password": self._password,
            }
            clock = Clock(self.limits)
            for header, payload in self._conversation(request, task, clock):
                if header["kind"] == "picture" and left:
                    try:
                        picture = wire.unpack_picture(header, payload, left[0])
                    except wire.BrokenFrame as error:
                        end, before = LoadError(str(error)), len(left)
                        break  # what else this child says is not to be trusted: leaving puts it away
                    left.popleft()
                    yield picture
                elif header["kind"] == "undrawn" and left:
                    left.popleft()
                    yield wire.unpack_error(header)
                elif header["kind"] == "error":
                    end, before = wire.unpack_error(header), len(left)
                elif header["kind"] == "failed":
                    end = LimitExceeded(str(header["error"])) if isinstance(header["error"], OutOfTime) else header["error"]
                    if left and header["page"] == left[0].number:
                        lost += clock.spent()
                        left.popleft()
                        yield end
                    if lost >= self.limits.seconds:
                        most = f"{self.limits.seconds:g} s (Limits.seconds)"
                        end, before = LimitExceeded(f"not rendered: pages before it took {most} and were lost"), len(left)
            if len(left) == before:  # not a page further: no other child would get there
                yield from (end for _ in left)
                return

    def _conversation(
        self, request: dict[str, Any], task: Task[Any] | None, clock: Clock
    ) -> Iterator[tuple[dict[str, Any], memoryview]]:
        """A request's answers up to its end. A child that fails is put away, and a frame "failed" with the error, the page and
        the part it was at is last."""
        child = None
        part, name = 0, ""
        try:
            child = self._borrow()
            clock.follow(child)
            child.send(request)
            while True:
                header, payload = child.receive(clock.left)
                if header["kind"] == "end":
                    break
                if header["kind"] == "begin":
                    clock.begin()
                    if request["kind"] == "render":
                        clock.turn(request["page"])
                    continue
                if header["kind"] == "page":
                    clock.turn(int(header["page"]))
                    continue
                if header["kind"] == "part":
                    clock.restart(child)
                    part, name = int(header["part"]), wire.printable(str(header["name"]))
                    continue
                yield header, payload
                if task is not None and task.dropped:
                    return  # the child is in the middle of something nobody wants: it is put away below
                clock.restart(child)
            child.served += 1
            self._give_back(child)
            child = None
        except (ChildDied, wire.BrokenFrame, LimitExceeded) as error:
            own = (
                error
                if isinstance(error, LimitExceeded)
                else LoadError(str(error) + (f", on page {clock.page}" if clock.page else ""))
            )
            if child is not None:
                clock.pause()
            yield {"kind": "failed", "error": own, "page": clock.page, "part": part, "name": name}, memoryview(b"")
        finally:
            if child is not None:
                self._put_away(child)

    def _borrow(self) -> Child:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is not None and not child.alive():  # died while idle: no document's fault
            child.close()
            child = None
        child = child or Child(self.limits)
        with self._lock:
            self._busy.add(child)
            closed = self._closed
        if closed:
            self._put_away(child)
            raise ChildDied("the Parser was closed")
        return child

    def _give_back(self, child: Child) -> None:
        with self._lock:
            self._busy.discard(child)
            keep = not self._closed and child.served < self.limits.documents_per_child
            if keep:
                self._idle.append(child)
        if not keep:
            child.close()

    def _put_away(self, child: Child) -> None:
        child.close()
        with self._lock:
            self._busy.discard(child)

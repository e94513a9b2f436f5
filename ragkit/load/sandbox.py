"""Documents are read in child processes: a child's death, hang or hunger is a failed document with a reason.

`Parser` hands sources to children in order and gives results back in order, pulling sources only as results are taken.
Each child is led by a thread of the parent, which keeps the clocks: only time spent waiting for the child counts, so a
caller may take as long as it likes between two results.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from ragkit.errors import LimitExceeded, LoadError
from ragkit.load import office, wire
from ragkit.load.discover import Source
from ragkit.load.formats import format_of
from ragkit.load.limits import Limits, cpu_of
from ragkit.load.render import RenderedPage, WantedPage
from ragkit.types import Document

Result = Document | LoadError
Picture = RenderedPage | LoadError
_R = TypeVar("_R")

_RENDITIONS = 4  # PDFs of Office documents that are kept for their next pages
_START_SECONDS = 120.0  # for a child to start; a cold disk under load is slow, and it is no document's fault
_STDERR = 4000  # bytes of a child's last words
_WAITING = 64  # results of one source that wait to be taken
_AHEAD = 64 << 20  # bytes of pictures that wait to be taken, unless one picture has more
_KEPT = {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "SYSTEMROOT"} | {
    "TESSDATA_PREFIX"  # where Tesseract's languages are
}


class _ChildDied(Exception):
    """The child ended, or said what no child of ours says; the message is the reason."""


class Child:
    """One child process. Used by one thread at a time; `close` may be called from any."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last_words = b""
        self.served = 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "ragkit.load.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            bufsize=0,
            close_fds=True,
        )
        process: Any = self._process  # all three are pipes, which its type does not know
        self._requests, self._answers, self._errors = process.stdin, process.stdout, process.stderr
        self._selector = selectors.DefaultSelector()
        for file in (self._answers, self._errors):
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ)
        try:
            self.send({"kind": "limits", "limits": asdict(limits)})
            began = time.monotonic()
            header, _ = self.receive(lambda: began + _START_SECONDS - time.monotonic())
            if header["kind"] != "ready":
                raise _ChildDied("the parser process did not start")
            self.confined = tuple(header["confined"])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, request: dict[str, Any]) -> None:
        try:
            for part in wire.frame(request):
                self._requests.write(part)
        except OSError:
            raise _ChildDied(self._epitaph()) from None

    def cpu(self) -> float:
        """Processor seconds the child has used so far; 0 where the system does not tell."""
        return cpu_of(self.pid)

    def receive(self, left: Callable[[], float]) -> tuple[dict[str, Any], memoryview]:
        """The next frame. `left` tells how many seconds may pass until it is asked again; it may raise, and where it
        gives none this raises TimeoutError. Also raises _ChildDied and LimitExceeded."""
        head, body = wire.sizes(bytes(self._take(wire.PREFIX.size, left)), limits=self._limits)
        header = wire.header_of(self._take(head, left))
        return header, memoryview(self._take(body, left))

    def _take(self, size: int, left: Callable[[], float]) -> bytearray:
        buffer = bytearray(size)
        view, got = memoryview(buffer), 0
        while got < size:
            count = self._answers.readinto(view[got:])
            if count == 0:
                raise _ChildDied(self._epitaph())
            if count is None:
                self._wait(left())
            else:
                got += count
        return buffer

    def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._errors:
                self._listen()

    def _listen(self) -> None:
        """Takes what the child wrote to stderr, so that it never waits for us there; keeps the last of it."""
        with contextlib.suppress(BlockingIOError):
            piece = os.read(self._errors.fileno(), 65536)
            self._last_words = (self._last_words + piece)[-_STDERR:]
            if not piece:
                self._selector.unregister(self._errors)

    def _epitaph(self) -> str:
        """How the child ended."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the parser process closed its output"
        with contextlib.suppress(OSError, KeyError, ValueError):
            while self._errors in self._selector.get_map():
                before = self._last_words
                self._listen()
                if self._last_words == before:
                    break
        lines = wire.printable(self._last_words.decode(errors="replace").replace("\n", " / "))[-300:]
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return f"the parser process {how}" + (f": {lines}" if lines else "")

    def close(self) -> None:
        """Ends the child at once; it holds nothing worth saving."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for file in (self._requests, self._answers, self._errors):
            with contextlib.suppress(OSError):
                file.close()


def _has_pages(source: Source) -> bool:
    """Whether its loader can leave pages out."""
    kind = format_of(source.path)
    return kind is not None and kind.loader == "pdf"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment() -> dict[str, str]:
    """What a child needs to find its libraries, and nothing else: no keys, no tokens, no settings of the caller."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    here = str(Path(__file__).resolve().parents[2])
    if here not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (here, kept.get("PYTHONPATH", ""))))
    # One thread each: there is a child per worker, and every thread costs address space.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | threads | {"PYTHONIOENCODING": "utf-8", "PYTHONNOUSERSITE": os.environ.get("PYTHONNOUSERSITE", "")}


class _Clock:
    """Wall and processor time of a document and of the page it is at, against the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.restart()

    def restart(self, child: Child | None = None) -> None:
        """A new document begins."""
        self.page = 0
        self._preparing = False
        self._began = time.monotonic()
        self._spent = 0.0  # processor time, in children before this one
        self._from = child.cpu() if child else 0.0

    def follow(self, child: Child) -> None:
        """The document goes on, in this child."""
        self._child, self.page = child, 0
        self._from = self._seen = child.cpu()
        self._followed, self._preparing = time.monotonic(), True

    def begin(self) -> None:
        """The child has imported what it needs, for which no document pays. Once for each child and request."""
        if self._preparing:
            self._preparing = False
            self._began += time.monotonic() - self._followed
            self._from = self._seen = self._child.cpu()

    def pause(self) -> None:
        """The document goes on in another child than the one so far."""
        self._spent += max(self._seen - self._from, 0.0)

    def turn(self, page: int) -> None:
        self.page, self._page_began, self._page_from = page, time.monotonic(), self._child.cpu()

    def spent(self) -> float:
        """Seconds on the wall since the document, or the rest of it after the last result, began."""
        return time.monotonic() - self._began

    def left(self) -> float:
        """Seconds until the next limit could be reached. Raises LimitExceeded at the first that was."""
        now, limits = time.monotonic(), self._limits
        if self._preparing and now - self._followed < _START_SECONDS:
            return _START_SECONDS - (now - self._followed)
        cpu = self._seen = self._child.cpu()
        bounds = [
            (limits.seconds, now - self._began, "s", "seconds"),
            (limits.cpu_seconds, self._spent + cpu - self._from, "s of processor time", "cpu_seconds"),
        ]
        if self.page:
            bounds += [
                (limits.page_seconds, now - self._page_began, "s", "page_seconds"),
                (limits.page_cpu_seconds, cpu - self._page_from, "s of processor time", "page_cpu_seconds"),
            ]
        for bound, used, unit, name in bounds:
            if used >= bound:
                whole = not name.startswith("page")
                what = "" if whole else f"page {self.page} "
                raise _OutOfTime(f"{what}took longer than {bound:g} {unit} (Limits.{name})", whole=whole)
        # Processor time may pass faster than the clock on the wall, by as many threads as the child has.
        return max(min((bound - used) / (4 if "cpu" in name else 1) for bound, used, _, name in bounds), 0.01)


class _OutOfTime(LimitExceeded):
    """`whole`: the document is, not only the page."""

    def __init__(self, message: str, *, whole: bool) -> None:
        super().__init__(message)
        self.whole = whole


class _Task(Generic[_R]):
    """The results of one request, which its thread puts in and the caller takes out; at most `room` wait in between."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._results: deque[_R] = deque()
        self._ended = self._dropped = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, result: _R) -> bool:
        """Waits until there is room. False: nobody wants any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._dropped or len(self._results) < self._room)
            self._results.append(result)
            self._changed.notify_all()
            return not self._dropped

    def fill(self, make: Callable[[], Iterator[_R]]) -> None:
        """Makes results and puts them in, until there are none or nobody wants them; whatever is raised, is raised to who takes
        them, who would wait for ever otherwise."""
        failure: BaseException | None = None
        try:
            for result in make():
                if not self.put(result):
                    return
        except BaseException as error:
            failure = error
        finally:
            with self._changed:
                self._ended, self._failure = True, failure
                self._changed.notify_all()

    def drop(self) -> None:
        with self._changed:
            self._dropped = True
            self._changed.notify_all()

    @property
    def dropped(self) -> bool:
        return self._dropped

    def results(self) -> Iterator[_R]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or bool(self._results))
                if not self._results:
                    if self._failure:
                        raise self._failure
                    return
                result = self._results.popleft()
                self._changed.notify_all()
            yield result


def _join(thread: threading.Thread) -> None:
    """Wait for its end; one whose start a signal cut short ends by itself."""
    with contextlib.suppress(RuntimeError):
        thread.join()


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
        waiting: deque[tuple[Source, _Task[Result]]] = deque()
        ready: deque[tuple[Source, _Task[Result]] | None] = deque()
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
                    waiting.append((source, _Task(_WAITING)))
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
                _join(thread)

    def _results(self, source: Source, task: _Task[Result]) -> Iterator[Result]:
        """All of one source, on a child of its own for the time."""
        try:
            str(source.path).encode()
        except UnicodeEncodeError:
            yield LoadError("its name is not valid UTF-8; rename it")
            return
        skip: dict[int, str] = {}
        after, lost_parts = 0, 0
        clock = _Clock(self.limits)
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
                    whole = isinstance(end, _OutOfTime) and end.whole
                    if header["part"] > after and lost_parts < self.limits.lost_pages:
                        after, lost_parts = header["part"], lost_parts + 1
                        lost = after
                        clock.restart()
                        yield (LimitExceeded if isinstance(end, _OutOfTime) else type(end))(f"{header['name']}: {reason}")
                        continue  # the file again, from what comes after the part that ended its child
                    if not lost or whole or lost in skip or len(skip) >= self.limits.lost_pages or not _has_pages(source):
                        yield LimitExceeded(reason) if isinstance(end, _OutOfTime) else end
                        return
            if not lost:
                return
            if not after:  # parts have pages of their own numbers
                skip[lost] = reason  # the document again, without the page that ended its child

    def _laid_out(self, path: Path, task: _Task[Any]) -> tuple[office.Rendition | None, str]:
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
            path, name, self.limits, environment=_environment(), unwanted=lambda: self._closed or unwanted()
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
        for header, payload in self._conversation(request, None, _Clock(self.limits)):
            if header["kind"] == "image":
                image = bytes(payload)
            elif header["kind"] == "error":
                raise wire.unpack_error(header)
            elif header["kind"] == "failed":
                raise LimitExceeded(str(header["error"])) if isinstance(header["error"], _OutOfTime) else header["error"]
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
        task: _Task[Picture] = _Task(max(1, min(_WAITING, _AHEAD // largest)))
        thread = threading.Thread(
            target=task.fill, args=(partial(self._pictures, path, wanted, name, task),), name="ragkit-renderer", daemon=True
        )
        try:
            thread.start()
            yield from task.results()
        finally:
            task.drop()
            _join(thread)

    def _pictures(self, path: Path, wanted: Sequence[WantedPage], name: str, task: _Task[Picture]) -> Iterator[Picture]:
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
            clock = _Clock(self.limits)
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
                    end = LimitExceeded(str(header["error"])) if isinstance(header["error"], _OutOfTime) else header["error"]
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
        self, request: dict[str, Any], task: _Task[Any] | None, clock: _Clock
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
        except (_ChildDied, wire.BrokenFrame, LimitExceeded) as error:
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
            raise _ChildDied("the Parser was closed")
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

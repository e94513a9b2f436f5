"""Documents are read in child processes: a child's death, hang or hunger is a failed document with a reason.

`Parser` hands sources to children in order and gives results back in order, pulling sources only as results are taken.
Each child is led by a thread of the parent, which keeps the clocks: only time spent waiting for the child counts, so a
caller may take as long as it likes between two results.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType

from ragkit.core.errors import LoadError
from ragkit.load.discover import Source
from ragkit.load.limits import Limits
from ragkit.load.render import RenderedPage, WantedPage
from ragkit.load.sandbox.pool import ChildPool
from ragkit.load.sandbox.renderer import Renderer
from ragkit.load.sandbox.renditions import Renditions
from ragkit.load.sandbox.source_reader import SourceReader
from ragkit.load.sandbox.task import WAITING, Picture, Result, Task, TaskThreads, join_thread

_AHEAD = 64 << 20  # bytes of pictures that wait to be taken, unless one picture has more


class Parser:
    """Reads documents in child processes. A context manager; one may be used from several threads.

    `workers` children parse at a time. `pdf_engine` is "pymupdf", "pypdfium2" or "auto"; `password` is tried on
    encrypted files. Children start when first needed and end with the context.

    `office_pages`: Word, OpenDocument and RTF texts get the pages that LibreOffice lays them out on. These are empty unless the
    file itself notes as many pages; the text stays that of our own loaders. `meta["unread"]` says why pages are missing.
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
        if ocr != "off":
            from ragkit.load.ocr import check

            check(ocr)  # now, and not for each document: without Tesseract every file would be read without its pages' text
        self.limits = limits or Limits()
        self._workers = workers
        self._pool = pool = ChildPool(self.limits)
        self._renditions = Renditions(self.limits, closed=lambda: pool.closed)
        self._reader = SourceReader(
            pool,
            self.limits,
            self._renditions if office_pages else None,
            pdf_engine=pdf_engine,
            ocr=ocr,
            password=password,
        )
        self._renderer = Renderer(pool, self.limits, self._renditions, pdf_engine=pdf_engine, password=password)

    def __enter__(self) -> Parser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all children. Iterators that are under way end with an error."""
        self._pool.close()
        self._renditions.clear()

    def children(self) -> tuple[int, ...]:
        """Return the process ids of the children alive, for monitoring."""
        return self._pool.pids()

    def parse(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Result]]:
        """Yield each source's Documents, or the LoadError it ended in, in the order of the sources.

        Sources are taken from the iterable in the caller's thread, and only a few ahead of the results taken. A
        source gives at least one result, unless it is an empty JSONL file; a JSONL file gives one per line. Document
        ids are the source's name, and for records "name#id".
        """
        self._require_open()
        return self._parse(iter(sources))

    def _parse(self, sources: Iterator[Source]) -> Iterator[tuple[Source, Result]]:
        waiting: deque[tuple[Source, Task[Result]]] = deque()
        threads = TaskThreads(self._workers, name="ragkit-parser")
        try:
            while True:
                for source in islice(sources, 2 * self._workers - len(waiting)):
                    task: Task[Result] = Task(WAITING)
                    waiting.append((source, task))
                    threads.fill(task, partial(self._results, source, task))
                if not waiting:
                    return
                source, task = waiting[0]
                for result in task.results():
                    yield source, result
                waiting.popleft()
        finally:
            for _, task in waiting:
                task.drop()
            threads.close()

    def _results(self, source: Source, task: Task[Result]) -> Iterator[Result]:
        return self._reader.results(source, task)

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
        """Return a page of a file, counted from 1, as PNG bytes, rendered in a child.

        `name` is the file's own name, where it is kept under another. Raises LoadError or one of its kinds, also where the file
        is not drawn on `count` pages.
        """
        self._require_open()
        file = Path(path).absolute()
        return self._renderer.png(file, page_number, dpi=dpi, max_pixels=max_pixels, count=count, name=str(name or file))

    def render_pages(
        self, path: str | Path, wanted: Sequence[WantedPage], *, name: str | Path | None = None
    ) -> Iterator[RenderedPage | LoadError]:
        """Yield the wanted pages of a file, in that order: for each its picture, or the LoadError that says why there is none.
        `name` is the file's own name, where it is kept under another.

        Pages are rendered ahead of those taken, by one child, as far as 64 MiB of pictures go. A page that ends its child is lost
        and rendering goes on with the next, in another child, until pages so lost have taken Limits.seconds together: the
        rest of the file is lost then.
        """
        self._require_open()
        return self._render_pages(Path(path).absolute(), tuple(wanted), str(name or path))

    def _render_pages(self, path: Path, wanted: Sequence[WantedPage], name: str) -> Iterator[Picture]:
        largest = max((3 * page.width * page.height for page in wanted), default=1)
        task: Task[Picture] = Task(max(1, min(WAITING, _AHEAD // largest)))
        draw = partial(self._renderer.pictures, path, wanted, name, task)
        thread = threading.Thread(target=task.fill, args=(draw,), name="ragkit-renderer", daemon=True)
        try:
            thread.start()
            yield from task.results()
        finally:
            task.drop()
            join_thread(thread)

    def _require_open(self) -> None:
        if self._pool.closed:
            raise ValueError("this Parser is closed")

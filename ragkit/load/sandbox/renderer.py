"""Pictures of pages, drawn in child processes; of Office documents those of their PDF.

A page that ends its child is lost, and another child draws the pages after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.load import office
from ragkit.load.limits import Limits
from ragkit.load.render import WantedPage
from ragkit.load.sandbox import wire
from ragkit.load.sandbox.clock import Clock
from ragkit.load.sandbox.pool import Answer, ChildFailure, ChildPool
from ragkit.load.sandbox.renditions import Renditions
from ragkit.load.sandbox.task import Picture, Task


class Renderer:
    """Draws pages in the children of a pool. Thread-safe."""

    def __init__(self, pool: ChildPool, limits: Limits, renditions: Renditions, *, pdf_engine: str, password: str | None) -> None:
        self._pool, self._limits, self._renditions = pool, limits, renditions
        self._pdf_engine, self._password = pdf_engine, password

    def png(
        self, path: Path, page_number: int, *, dpi: float | None, max_pixels: int | None, count: int | None, name: str
    ) -> bytes:
        """Return a page as PNG bytes. Raises LoadError or one of its kinds."""
        rendition = self._renditions.to_draw(path, name)  # held here: the PDF goes with the last one who holds it
        request = self._request("render", path, name, rendition) | {
            "page": page_number,
            "count": count,
            "dpi": dpi,
            "max_pixels": self._limits.pixels if max_pixels is None else min(max_pixels, self._limits.pixels),
        }
        image = b""
        for answer in self._pool.converse(request, Clock(self._limits)):
            if isinstance(answer, ChildFailure):
                raise answer.error
            if answer.kind == "error":
                raise wire.unpack_error(answer.header)
            if answer.kind == "image":
                image = bytes(answer.payload)
        if not image.startswith(b"\x89PNG\r\n\x1a\n"):
            raise LoadError("the parser process sent no picture")
        return image

    def pictures(self, path: Path, wanted: Sequence[WantedPage], name: str, task: Task[Picture]) -> Iterator[Picture]:
        """Yield the picture of each wanted page, in order, or the LoadError that says why there is none."""
        if not wanted:
            return
        try:
            rendition = self._renditions.to_draw(path, name, unwanted=lambda: task.dropped)
        except LoadError as error:
            yield from (error for _ in wanted)
            return
        request = self._request("draw", path, name, rendition)
        left, lost_seconds = deque(wanted), 0.0
        while left:
            before = len(left)
            stop = yield from self._draw(request | {"wanted": [astuple(page) for page in left]}, left, task)
            if isinstance(stop, ChildFailure):
                reason = stop.error
                if left and stop.page == left[0].number:
                    lost_seconds += stop.seconds
                    left.popleft()
                    yield reason
            else:
                reason = stop or LoadError("the parser process sent no picture")
            if lost_seconds >= self._limits.seconds:
                most = f"{self._limits.seconds:g} s (Limits.seconds)"
                reason = LimitExceeded(f"not rendered: pages before it took {most} and were lost")
            elif not isinstance(stop, LoadError) and len(left) < before:
                continue  # another child gets further
            yield from (reason for _ in left)
            return

    def _draw(
        self, request: wire.Header, left: deque[WantedPage], task: Task[Picture]
    ) -> Generator[Picture, None, ChildFailure | LoadError | None]:
        """Yield what one child draws of the pages `left`, each taken off first.

        Returns how it ended: None where the child did all it could, ChildFailure where it failed at a page, LoadError where no
        other child would get further.
        """
        stop: ChildFailure | LoadError | None = None
        for answer in self._pool.converse(request, Clock(self._limits), dropped=lambda: task.dropped):
            if isinstance(answer, ChildFailure):
                stop = answer
            elif answer.kind == "error":
                stop = wire.unpack_error(answer.header)
            elif answer.kind in ("picture", "undrawn") and left:
                try:
                    picture = _picture(answer, left[0])
                except wire.BrokenFrame as error:
                    return LoadError(str(error))  # what else this child says is not to be trusted: leaving puts it away
                left.popleft()
                yield picture
        return stop

    def _request(self, kind: str, path: Path, name: str, rendition: office.Rendition | None) -> wire.Header:
        """Return what a child is told about the file to draw, which is the rendition where there is one."""
        return {
            "kind": kind,
            "path": str(rendition.pdf if rendition else path),
            "name": rendition.pdf.name if rendition else name,
            "pdf_engine": self._pdf_engine,
            "password": self._password,
        }


def _picture(answer: Answer, page: WantedPage) -> Picture:
    """Return the picture of a page, or why it has none. Raises BrokenFrame."""
    if answer.kind == "undrawn":
        return wire.unpack_error(answer.header)
    return wire.unpack_picture(answer.header, answer.payload, page)

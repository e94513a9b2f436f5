"""PDFs of Office documents, made by LibreOffice, for as long as their next pages may be asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ragkit.core.errors import LoadError
from ragkit.load import office
from ragkit.load.limits import Limits
from ragkit.load.sandbox.child import child_environment

_MOST = 4  # PDFs of the last documents; one more, and the oldest goes


class Renditions:
    """The PDFs of the last few Office documents. `closed` is asked while LibreOffice works: True ends it. Thread-safe."""

    def __init__(self, limits: Limits, *, closed: Callable[[], bool]) -> None:
        self._limits = limits
        self._closed = closed
        self._recent: dict[tuple[object, ...], office.Rendition] = {}  # the oldest first
        self._lock = threading.Lock()

    def recent(self) -> list[office.Rendition]:
        """Return the PDFs that are at hand, the oldest first."""
        with self._lock:
            return list(self._recent.values())

    def clear(self) -> None:
        with self._lock:
            self._recent.clear()

    def to_draw(self, path: Path, name: str, *, unwanted: Callable[[], bool] = lambda: False) -> office.Rendition | None:
        """Return the PDF whose pages are drawn in place of the file's; None for a file that is no Office document.

        `name` is the file's own name, where it is kept under another. `unwanted` is asked while LibreOffice works: True ends it.
        Raises LoadError.
        """
        if not office.convertible(name):
            return None
        try:
            return self._rendition(path, name, unwanted)
        except OSError as error:
            raise LoadError(f"cannot be read: {error.strerror or error}") from None

    def to_lay_out(self, path: Path, *, unwanted: Callable[[], bool]) -> tuple[office.Rendition | None, str]:
        """Return the PDF with the pages of an Office text, or None and the reason why it has none.

        The reason is empty for files whose pages are not LibreOffice's: slides, and all that are no Office documents.
        """
        if not office.convertible(path):
            return None, ""
        try:
            if office.has_slides(path):
                return None, "" if office.program() else str(office.missing())
            return self._rendition(path, path.name, unwanted), ""
        except (LoadError, OSError) as error:
            return None, str(error)

    def _rendition(self, path: Path, name: str, unwanted: Callable[[], bool]) -> office.Rendition:
        """Return the document as a PDF, made anew unless it is one of the last and has not changed since."""
        status = path.stat()
        key = (Path(name).suffix.lower(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            rendition = self._recent.pop(key, None)
        if rendition is None:
            rendition = office.convert(
                path, name, self._limits, environment=child_environment(), unwanted=lambda: self._closed() or unwanted()
            )
        with self._lock:
            self._recent[key] = rendition
            while len(self._recent) > _MOST:
                del self._recent[next(iter(self._recent))]
        return rendition

"""Pages as pictures, of exactly as many pixels as were asked for.

A file and the numbers of its wanted pages go in. For each page, in order, its pixels come out, or the reason why there are none.
Users call `Parser.render_pages`, whose child calls `drawn`.

A page is drawn as it is displayed (cropped, rotated, with its annotations, on white) and stretched to fill the picture: a
place in the picture divided by the picture's size is the place on the page divided by the page's. Nothing here knows models.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import LimitExceeded, LoadError, UnsupportedFormat
from ragkit.load import office
from ragkit.load.formats import format_of
from ragkit.load.limits import Limits, Options

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

DRAWN = ("pdf", "image")  # loaders whose modules have `open_pages`
REOPENED = 100  # pages after which a file is opened anew: MuPDF keeps what it has read of a document

# What counts as blank. A cell is about a letter of a text set in 11 points; its mean hides the noise of a scan and most of a
# speck of dust. Fewer cells than _FEWEST may differ: a page number of three digits, or a punched hole.
_CELLS = 128  # along the side of a square as large as the picture
_APART = 24  # of 255: how far the mean of a cell must be from the paper's colour
_FEWEST = 10  # cells apart that make a page not blank
_MARGIN = 0.02  # of each side, which is not looked at: scanners leave shadows there
# Paper without grain, as programs draw it: a hairline is pale in the mean of its cell, but stands there on purpose. So many cells
# are more than dust, a page number and one rule across the page.
_CLEAN = 0.9  # of the cells are exactly of the paper's colour
_LINES = 0.01  # of the cells have something on them, one of 255 levels in the mean


@dataclass(frozen=True, slots=True)
class WantedPage:
    """A page, counted from 1, and the size of its picture in pixels."""

    number: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.number < 1 or self.width < 1 or self.height < 1:
            raise ValueError(
                f"pages count from 1 and pictures have pixels, got page {self.number} of {self.width} x {self.height}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class RenderedPage:
    """A page's picture, RGB, of the wanted size. `blank`: next to nothing is on it, see `is_blank`."""

    number: int
    image: Image
    blank: bool


class Drawable(Protocol):
    """An open file with pages. They count from 0 here; `size` is in points as displayed; `draw` gives (height, width, 3)."""

    def close(self) -> None: ...
    def count(self) -> int: ...
    def size(self, index: int) -> tuple[float, float]: ...
    def draw(self, index: int, width: int, height: int) -> Pixels: ...


class Canvas:
    """Room for one picture, drawn on again for each page: fresh memory for every one costs as much as drawing a plain page."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def of(self, width: int, height: int) -> Pixels:
        """Return the room, (height, width, 3), not cleared."""
        size = width * height * 3
        if self._room.size < size:
            self._room = np.empty(size, np.uint8)
        return self._room[:size].reshape(height, width, 3)


def can_render(path: str | Path) -> bool:
    """Return whether the pages of a file can be drawn, by its name; those of Office documents where LibreOffice is installed."""
    kind = format_of(path)
    if kind is not None and kind.loader in DRAWN:
        return True
    return office.convertible(path) and office.program() is not None


def is_blank(image: Image | Pixels) -> bool:
    """Return whether a picture is of nearly one colour. Noise of a scan, dust, a page number and shadows at edges do not count.

    RGB, as a PIL image or (height, width, 3) uint8. It is cut into cells, about 128 x 128 of them, and blank where fewer than 10
    cells have a mean that differs by 24 of 255 in any colour from the median of all; and where the paper has no grain, fewer than
    1 % by one. The outer 2 % are not looked at.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    across, down = int(width * _MARGIN), int(height * _MARGIN)
    pixels = pixels[down : height - down, across : width - across]
    cell = max(1, round((height * width) ** 0.5 / _CELLS))
    cell = min(cell, *pixels.shape[:2])
    rows, columns = pixels.shape[0] // cell, pixels.shape[1] // cell
    # Sums in two steps, of whole rows first, then one colour after the other: numpy is slow on runs of a few pixels.
    lines = pixels[: rows * cell, : columns * cell].reshape(rows, cell, -1).sum(axis=1, dtype=np.uint32)
    sums = np.add.reduceat(lines.reshape(rows, columns * cell, 3), np.arange(columns) * cell, axis=1)
    colours = np.ascontiguousarray(sums.reshape(-1, 3).T, dtype=np.int64)
    middle = np.partition(colours, colours.shape[1] // 2, axis=1)[:, colours.shape[1] // 2, None]
    apart = np.abs(colours - middle).max(axis=0)
    drawn_lines = (apart == 0).mean() >= _CLEAN and (apart >= cell**2).mean() >= _LINES
    return bool((apart >= _APART * cell**2).sum() < _FEWEST and not drawn_lines)


def prepare(name: str | Path, engine: str) -> None:
    """Import what draws a file of such a name. Raises UnsupportedFormat for one without pages."""
    _module(name).prepare(engine)


def open_pages(path: Path, options: Options, *, name: str | Path | None = None) -> Drawable:
    """Return the file's pages, opened by the loader of its kind; `name` is the file's own, where it is kept under another.

    Raises what that loader raises, and UnsupportedFormat for a file without pages.
    """
    return _module(name or path).open_pages(path, options)


class _Drawer(Protocol):
    """What is used here of a loader's module that draws pages."""

    def prepare(self, engine: str) -> None: ...
    def open_pages(self, path: Path, options: Options) -> Drawable: ...


def _module(name: str | Path) -> _Drawer:
    kind = format_of(name)
    if kind is None or kind.loader not in DRAWN:
        raise UnsupportedFormat(f"{Path(name).suffix or Path(name).name} has no pages to render")
    return cast("_Drawer", import_module(kind.module))


def drawn(
    path: Path, wanted: Sequence[WantedPage], options: Options, *, name: str | Path | None = None
) -> Iterator[Pixels | LoadError]:
    """Yield the pixels of each wanted page, (height, width, 3), or why it has none. Raises where the file cannot be opened.

    Each array may be drawn on again when the next is asked for. `options.on_page` is called before each page.
    """
    pages: Drawable | None = None
    try:
        for position, page in enumerate(wanted):
            if pages is not None and position % REOPENED == 0:
                pages.close()
                pages = None
            pages = pages or open_pages(path, options, name=name)
            options.on_page(page.number)
            yield _drawn(pages, page, options.limits)
    finally:
        if pages is not None:
            pages.close()


def _drawn(pages: Drawable, page: WantedPage, limits: Limits) -> Pixels | LoadError:
    """Return the pixels of a page, or why it has none."""
    if page.number > pages.count():
        return LoadError(f"there is no page {page.number}: the document has {pages.count()}")
    if page.width * page.height > limits.pixels:
        return LimitExceeded(f"{page.width} x {page.height} pixels, more than {limits.pixels} (Limits.pixels)")
    try:
        return pages.draw(page.number - 1, page.width, page.height)
    except LoadError as error:
        return error
    except MemoryError:
        return LimitExceeded(f"page {page.number}: more memory than {limits.memory} bytes (Limits.memory)")
    except Exception as error:  # the boundary: what an engine raises on a broken page is that page's failure
        return LoadError(f"page {page.number} cannot be drawn: {type(error).__name__}: {error}")


def page_sizes(path: Path, options: Options) -> list[tuple[float, float]]:
    """Return the size of each page in points. Raises what opening the file does, and LimitExceeded for more than Limits.pages."""
    pages = open_pages(path, options)
    try:
        count, most = pages.count(), options.limits.pages
        if count > most:
            raise LimitExceeded(f"{count} pages, more than the limit of {most} (Limits.pages)")
        return [shown(*pages.size(index)) for index in range(count)]
    finally:
        pages.close()


def page_png(
    path: Path,
    number: int,
    options: Options,
    *,
    dpi: float | None = None,
    max_pixels: int | None = None,
    count: int | None = None,
    name: str | Path | None = None,
) -> bytes:
    """Return a page, counted from 1, as PNG bytes. `dpi` is 150 by default. The picture is scaled down to hold no more than
    `max_pixels`, by default Limits.pixels. LoadError where the file has no such page, or not `count` pages."""
    pages = open_pages(path, options, name=name)
    try:
        if count is not None and pages.count() != count:
            raise LoadError(
                f"it is laid out on {pages.count()} pages here, but was read as {count}: page numbers no longer match"
            )
        if not 1 <= number <= pages.count():
            raise LoadError(f"there is no page {number}: the document has {pages.count()}")
        most = min(max_pixels or options.limits.pixels, options.limits.pixels)
        width, height = size_at(pages.size(number - 1), dpi=150.0 if dpi is None else dpi, max_pixels=most)
        return _png(pages.draw(number - 1, width, height))
    finally:
        pages.close()


def size_at(size: tuple[float, float], *, dpi: float, max_pixels: int) -> tuple[int, int]:
    """Return (width, height) in pixels of a page whose size is in points, at a resolution; fewer if over `max_pixels`."""
    if not 0 < dpi < 7200:
        raise ValueError(f"dpi must be above 0 and below 7200, got {dpi}")
    width, height = shown(*size)
    scale = min(dpi / 72, (max_pixels / (width * height)) ** 0.5)
    across = min(max(1, round(width * scale)), max_pixels)
    return across, max(1, min(round(height * scale), max_pixels // across))


def shown(width: float, height: float) -> tuple[float, float]:
    """Return a page's size, or that of a Letter sheet: where a crop box shows nothing, viewers show an empty sheet."""
    return (width, height) if width > 0 and height > 0 else (612, 792)


def _png(pixels: Pixels) -> bytes:
    """Return RGB pixels as a PNG file (ISO/IEC 15948): signature, header, one compressed stream of unfiltered rows, end."""
    height, width = pixels.shape[:2]
    unfiltered = np.concatenate((np.zeros((height, 1), np.uint8), pixels.reshape(height, width * 3)), axis=1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(unfiltered.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")

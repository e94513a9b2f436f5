"""Images: a page of the picture's size, a page per frame of a TIFF, and no text, unless Tesseract is asked to read it.

For a Document without text only the header is read; `open_pages` decodes, to draw. Sizes are in points, by the resolution
that the file states, else 96 pixels to an inch.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ragkit.core import images as pictures
from ragkit.core.errors import LimitExceeded, LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Document, Json
from ragkit.load import ocr
from ragkit.load.builder import DocumentBuilder
from ragkit.load.limits import Limits, Options
from ragkit.load.pdf.text import PageWords, assemble
from ragkit.load.render import Pixels

_DPI = 96.0
_EXIF = {0x010E: "description", 0x013B: "author", 0x0132: "created"}
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of an image file: pages without text, or where `options.ocr` asks for it with recognised text."""
    builder = DocumentBuilder(options.limits)
    frames = open_pages(path, options)
    try:
        if options.ocr != ocr.OFF:
            yield _recognised(frames, options)
            return
        for index in range(frames.count()):
            options.on_page(index + 1)
            builder.page(*frames.size(index))
        yield builder.document(meta=frames.meta())
    finally:
        frames.close()


def _recognised(frames: Frames, options: Options) -> Document:
    reader = ocr.Reader(options.ocr, options.limits)
    pages, unread = [], []
    if frames.count() > options.limits.pages:
        raise LimitExceeded(f"more than {options.limits.pages} pages (Limits.pages)")
    for index in range(frames.count()):
        options.on_page(index + 1)
        try:
            page = reader.read(frames, index)
        except LimitExceeded:
            raise
        except LoadError as error:
            unread.append(f"page {index + 1}: {error}")
            page = PageWords.blank(*frames.size(index))
        pages.append(page)
    if len(unread) == len(pages):
        raise LoadError(f"no page can be read; {unread[0]}")
    text, made, blocks = assemble(pages, on_page=options.on_page)
    meta = frames.meta() | {"pages": len(pages)}
    meta |= ({"ocr_pages": reader.pages} if reader.pages else {}) | ({"unread": unread} if unread else {})
    return Document(text=text, title="", meta=meta, pages=made, blocks=blocks)


def open_pages(path: Path, options: Options) -> Frames:
    """Open an image file, to draw its pages. Raise LoadError, or UnsupportedFormat without Pillow."""
    prepare()
    return Frames(path, options.limits)


def prepare(_engine: str = "") -> None:
    """Import Pillow. Raise UnsupportedFormat without it."""
    try:
        from PIL import Image
    except ImportError:
        raise UnsupportedFormat(str(MissingExtra.of("Pillow", "office", "reading images"))) from None
    Image.MAX_IMAGE_PIXELS = None  # Limits.pixels is checked instead, with an error and not a warning


class Frames:
    """An open image file: its pages are the frames of a TIFF, else there is one."""

    def __init__(self, path: Path, limits: Limits) -> None:
        from PIL import Image

        self._limits = limits
        self._file = path.open("rb")
        try:
            with _damage():
                self._image: pictures.Image = Image.open(self._file, formats=_FORMATS)
                self._frames = int(getattr(self._image, "n_frames", 1)) if self._image.format == "TIFF" else 1
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._image.close()
        self._file.close()

    def count(self) -> int:
        return self._frames

    def meta(self) -> Json:
        with _damage():
            self._image.seek(0)
            return _meta(self._image)

    def size(self, index: int) -> tuple[float, float]:
        """Return width and height in points, as a viewer shows it. Raise LimitExceeded for more pixels than Limits.pixels."""
        with _damage():
            image = self._at(index)
            dpi = _resolution(image)
            width, height = image.size[::-1] if pictures.turned(image) else image.size
        return width * 72 / dpi, height * 72 / dpi

    def draw(self, index: int, width: int, height: int) -> Pixels:
        """Return a page upright, on white, in RGB, and brought to so many pixels by bicubic averaging: (height, width, 3)."""
        with _damage():
            picture = pictures.upright(self._at(index))
        return np.asarray(pictures.resized(picture, (width, height)))

    def _at(self, index: int) -> pictures.Image:
        self._image.seek(index)
        width, height = self._image.size
        if width * height > self._limits.pixels:
            raise LimitExceeded(f"{width} x {height} pixels, more than {self._limits.pixels} (Limits.pixels)")
        return self._image


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise what Pillow raises of a broken file as a LoadError."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        raise LoadError("not an image of a supported kind, or damaged") from None
    except pictures.NoWhite as error:
        raise LoadError(str(error)) from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise LoadError(f"the image is damaged: {error}") from None


def _resolution(image: pictures.Image) -> float:
    try:
        dpi = float(image.info.get("dpi", (_DPI,))[0])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return _DPI
    return dpi if 20 <= dpi <= 4800 else _DPI


def _meta(image: pictures.Image) -> Json:
    meta: Json = {"width": image.width, "height": image.height}
    for tag, name in _EXIF.items():
        value = image.getexif().get(tag)
        if isinstance(value, str) and (value := value.strip("\0 ")):
            meta[name] = value
    if "created" in meta:  # "2024:01:31 12:00:00"
        date, _, time = meta["created"].partition(" ")
        meta["created"] = date.replace(":", "-") + (f"T{time}" if time else "")
    return meta

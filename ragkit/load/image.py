"""Images: a page of the picture's size, a page per frame of a TIFF, and no text, until something reads the picture.

Only the header is read. Sizes are in points, by the resolution that the file states, else 96 pixels to an inch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragkit.errors import LimitExceeded, LoadError, MissingExtra, UnsupportedFormat
from ragkit.load.draft import Draft
from ragkit.load.limits import Options
from ragkit.types import Document

_DPI = 96.0
_EXIF = {0x010E: "description", 0x013B: "author", 0x0132: "created"}
_ORIENTATION = 0x0112
_TURNED = {5, 6, 7, 8}  # orientations that swap width and height
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def load(path: Path, options: Options) -> Iterator[Document]:
    """The one Document of an image file: pages without text."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UnsupportedFormat(str(MissingExtra.of("Pillow", "office", "reading images"))) from None
    draft = Draft(options.limits)
    Image.MAX_IMAGE_PIXELS = None  # the limit below is ours, and an error instead of a warning
    try:
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            meta = _meta(image)
            for number in range(_frames(image)):
                options.on_page(number + 1)
                image.seek(number)
                width, height = image.size
                if width * height > options.limits.pixels:
                    raise LimitExceeded(f"{width} x {height} pixels, more than {options.limits.pixels} (Limits.pixels)")
                dpi = _resolution(image)
                if image.getexif().get(_ORIENTATION) in _TURNED:
                    width, height = height, width
                draft.page(width * 72 / dpi, height * 72 / dpi)
    except UnidentifiedImageError:
        raise LoadError("it is no image of a known kind, or it is damaged") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise LoadError(f"the image is damaged: {error}") from None
    yield draft.document(meta=meta)


def _frames(image: Any) -> int:
    """Pages of a TIFF; an animation is one picture."""
    return int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1


def _resolution(image: Any) -> float:
    try:
        dpi = float(image.info.get("dpi", (_DPI,))[0])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return _DPI
    return dpi if 20 <= dpi <= 4800 else _DPI


def _meta(image: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"width": image.width, "height": image.height}
    for tag, name in _EXIF.items():
        value = image.getexif().get(tag)
        if isinstance(value, str) and (value := value.strip("\0 ")):
            found[name] = value
    if "created" in found:  # "2024:01:31 12:00:00"
        date, _, time = found["created"].partition(" ")
        found["created"] = date.replace(":", "-") + (f"T{time}" if time else "")
    return found

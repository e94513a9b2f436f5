"""Pictures as a viewer shows them: what is drawn of an image file is also what an encoder is given.

The orientation that a camera noted is applied, transparency lies on white, 16-bit grey is scaled and not clipped. Functions take
PIL images of any mode, decoded or still on disk, and return upright RGB images. The caller imports Pillow.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ragkit.core.types import Array

_ORIENTATION = 0x0112  # the tag's number in EXIF
_TURNED = (5, 6, 7, 8)  # orientations in which width and height change places
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")

Image = Any  # PIL.Image.Image: naming the type would import Pillow


class NoWhite(ValueError):
    """The image's numbers have no defined white, so nobody can say what it looks like."""


def turned(image: Image) -> bool:
    """Whether a viewer shows the image with width and height exchanged, because of its EXIF orientation."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1)) in _TURNED
    except Exception:  # damaged EXIF: as if there were none; the pixels are judged on their own
        return False


def upright(image: Image) -> Image:
    """Decode the image and return it turned as a viewer shows it, in RGB.

    NoWhite, or whatever decoders raise for damage: OSError, SyntaxError, struct.error, ...
    """
    from PIL import ImageOps

    image.load()
    with suppress(ValueError, KeyError, TypeError):  # EXIF that cannot be written back is no reason to refuse the pixels
        image = ImageOps.exif_transpose(image)
    return _rgb(image)


def _rgb(image: Image) -> Image:
    from PIL import Image as Images

    if image.mode in (*_GREY16, "I"):
        return Images.fromarray(_grey8(np.asarray(image), wide=image.mode == "I")).convert("RGB")
    if image.mode == "F":
        raise NoWhite("the image holds floats, and which of them is white is not known. Convert it to L or RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        page = Images.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        image = page
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey8(values: Array, *, wide: bool) -> Array:
    """Scale grey values to uint8; `wide` ones have 32 bits, of which 16 or 8 may be used."""
    if wide and not (values.min() >= 0 and values.max() <= 0xFFFF):
        raise NoWhite(
            f"the image has 32-bit values from {values.min()} to {values.max()}, and which of them is white is not known. "
            "Convert it to L, RGB or I;16"
        )
    step = 1 if wide and values.max() <= 0xFF else 257  # 65,535 / 257 = 255
    return np.round(values / step).astype(np.uint8)


def resized(image: Image, size: tuple[int, int]) -> Image:
    """Return an RGB image of exactly (width, height), bicubic and antialiased."""
    from PIL import Image as Images

    return image if image.size == size else image.resize(size, Images.Resampling.BICUBIC)

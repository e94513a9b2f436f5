"""Images as a model takes them: upright RGB, resized, normalised, cut into patches. PIL and numpy; no torchvision.

In go PIL images of any mode, opened or still on disk; out come float32 pixels, or an EncodeError that names the input. The
rules are those of `ragkit.core.images`: what a viewer shows is what is encoded. Only the first frame of an animation counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import EncodeError
from ragkit.core.images import Image, NoWhite, resized, turned, upright
from ragkit.core.types import Floats

MOST_PIXELS = 1 << 27  # of one image, 134 million: 400 MB as RGB; a page of A3 scanned at 600 dpi has 70 million
SETTLING = 16  # steps; 6 are the most that 200,000 random budgets and proportions took
MOST_ASPECT = 200  # longer side to shorter; Qwen2-VL's own limit, and what keeps a strip of 1 x 65,535 from becoming gigabytes


def upright_size(index: int, image: Image) -> tuple[int, int]:
    """Return (width, height) as a viewer shows the image, without decoding. EncodeError for sizes that no model takes."""
    width, height = image.size
    if turned(image):
        width, height = height, width
    if width < 1 or height < 1:
        raise EncodeError(f"input {index}: the image has {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise EncodeError(
            f"input {index}: the image has {width} x {height} pixels, and more than {MOST_PIXELS:,} are not decoded. "
            "Make it smaller before encoding it"
        )
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise EncodeError(
            f"input {index}: the image has {width} x {height} pixels, and no side may be over {MOST_ASPECT} times the other. "
            "Cut it into parts"
        )
    return width, height


def upright_rgb(index: int, image: Image) -> Image:
    """Return the image decoded, turned upright, in RGB. EncodeError for one that is damaged or has no defined white."""
    upright_size(index, image)
    try:
        return upright(image)
    except NoWhite as error:
        raise EncodeError(f"input {index}: {error}") from None
    except Exception as error:  # decoders raise whatever the damage makes of them: OSError, SyntaxError, struct.error, ...
        raise EncodeError(f"input {index}: the image cannot be decoded ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """Qwen2-VL's rule: both sides multiples of `unit`, the area within [least, most] pixels, the shape kept as near as may be."""

    unit: int
    least: int
    most: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after resizing."""
        sides = [round(side / self.unit) * self.unit for side in (width, height)]
        if math.prod(sides) > self.most:
            shrink = math.sqrt(width * height / self.most)
            sides = [max(self.unit, math.floor(side / shrink / self.unit) * self.unit) for side in (width, height)]
        elif math.prod(sides) < self.least:
            grow = math.sqrt(self.least / (width * height))
            sides = [math.ceil(side * grow / self.unit) * self.unit for side in (width, height)]
        return sides[0], sides[1]

    def largest(self, width: float, height: float) -> tuple[int, int]:
        """Return the largest (width, height) at which an image of these proportions is seen: `size` leaves it as it is.

        Units of the arguments do not matter. This holds for a rule with room for several times `least`; under a narrower rule
        there is no such size, and the result is near one.
        """
        check_sides(width, height)
        scale = math.sqrt(self.most / (width * height))
        sides = [max(self.unit, math.floor(side * scale / self.unit) * self.unit) for side in (width, height)]
        for _ in range(SETTLING):  # a strip is one unit wide, and its length comes down in steps
            size, sides = (sides[0], sides[1]), list(self.size(sides[0], sides[1]))
            if size == tuple(sides):
                break
        return sides[0], sides[1]


def shortest_at(width: float, height: float, side: int) -> tuple[int, int]:
    """Return (width, height) with the shorter one `side` long, for an image of these proportions."""
    check_sides(width, height)
    longest = round(side * max(width, height) / min(width, height))
    return (side, longest) if width <= height else (longest, side)


def check_sides(width: float, height: float) -> None:
    """Raise ValueError unless both are finite and positive."""
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"an image has a width and a height above 0, got {width} x {height}")


def centre_square(image: Image, side: int) -> Image:
    """Bring the shortest side to `side` and cut out the middle: the ends of a long page are gone."""
    size, left, top = square_cut(image.width, image.height, side)
    return resized(image, size).crop((left, top, left + side, top + side))


def square_cut(width: int, height: int, side: int) -> tuple[tuple[int, int], int, int]:
    """Return ((width, height) after resizing, left, top of the square): what `centre_square` does with an image of that size."""
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = (round((length - side) / 2) for length in size)  # halves to even, as the published preprocessing has it
    return size, left, top


def normalised(image: Image, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Return (height, width, 3) float32: 0..255 brought to 0..1, then to mean 0 and deviation 1 by colour."""
    pixels = np.asarray(image, dtype=np.float32)
    deviation = np.asarray(std, dtype=np.float64)
    scale, shift = 1 / (255 * deviation), -np.asarray(mean, dtype=np.float64) / deviation
    return np.asarray(pixels * scale.astype(np.float32) + shift.astype(np.float32))


def patch_rows(pixels: npt.NDArray[np.float32], *, patch: int, frames: int, merge: int) -> Floats:
    """Turn (height, width, 3) into one row a patch, (patches, 3 * frames * patch * patch): colour, frame, row, column.

    An image is `frames` equal frames. merge x merge neighbours stand together, as the model joins them later.
    """
    height, width, colours = pixels.shape
    high, wide = height // (patch * merge), width // (patch * merge)
    blocks = pixels.reshape(high, merge, patch, wide, merge, patch, colours).transpose(0, 3, 1, 4, 6, 2, 5)
    repeated = np.repeat(blocks[:, :, :, :, :, None], frames, axis=5)
    return repeated.reshape(high * wide * merge * merge, colours * frames * patch * patch)

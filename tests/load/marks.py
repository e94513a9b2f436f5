"""PDF pages with squares of pure colours at known points: the oracle for where things are in a rendered page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.load.rawpdf import pdf, simple

Box = tuple[float, float, float, float]
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))


@dataclass(frozen=True)
class Sheet:
    """A page: its media box and crop box in PDF coordinates (y upwards), its rotation, its UserUnit."""

    media: Box = (0, 0, 400, 600)
    crop: Box | None = None
    rotate: int = 0
    unit: float = 1.0

    @property
    def shown(self) -> Box:
        """What is seen: the crop box, as far as it lies on the page."""
        x0, y0, x1, y1 = self.crop or self.media
        a, b, c, d = self.media
        return max(x0, a), max(y0, b), min(x1, c), min(y1, d)

    def marks(self) -> list[tuple[float, float]]:
        """Four points on what is seen, in PDF coordinates; no symmetry of the page maps one to another."""
        x0, y0, x1, y1 = self.shown
        return [(x0 + u * (x1 - x0), y0 + v * (y1 - y0)) for u, v in ((0.12, 0.2), (0.83, 0.31), (0.4, 0.88), (0.66, 0.6))]

    def places(self) -> list[tuple[float, float]]:
        """Where they are seen, as shares of the page's width and height from the top left.

        Written from the definition of /Rotate (clockwise) and of a page as displayed (y downwards).
        """
        x0, y0, x1, y1 = self.shown
        shares = [((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for x, y in self.marks()]
        turn = {
            0: lambda u, v: (u, 1 - v),
            90: lambda u, v: (v, u),
            180: lambda u, v: (1 - u, v),
            270: lambda u, v: (1 - v, 1 - u),
        }[self.rotate]
        return [turn(u, v) for u, v in shares]

    def content(self) -> bytes:
        """A square of a thirtieth of the shorter side around each mark."""
        x0, y0, x1, y1 = self.shown
        side = min(x1 - x0, y1 - y0) / 30
        squares = zip(COLOURS, self.marks(), strict=True)
        return b"".join(
            b"%d %d %d rg %.4f %.4f %.4f %.4f re f\n" % (*(c // 255 for c in colour), x - side / 2, y - side / 2, side, side)
            for colour, (x, y) in squares
        )

    def file(self) -> bytes:
        boxes = b"/MediaBox [%g %g %g %g]" % self.media
        if self.crop:
            boxes += b" /CropBox [%g %g %g %g]" % self.crop
        page = b"%s /Rotate %d %s" % (boxes, self.rotate, b"/UserUnit %g" % self.unit if self.unit != 1 else b"")
        objects = simple([self.content()], page=b"")
        objects[10] = objects[10].replace(b"/MediaBox [0 0 400 600]", page)
        return pdf(objects)


def found(pixels: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> tuple[float, float]:
    """The middle of what has that colour, as shares of width and height; edges count by how much of it they have."""
    height, width = pixels.shape[:2]
    apart = np.abs(pixels.astype(np.int16) - np.array(colour, np.int16)).max(axis=2)
    weight = np.where(apart < 128, 255 - apart, 0)
    across, down = weight.sum(axis=0), weight.sum(axis=1)
    total = across.sum()
    assert total > 0, f"nothing is {colour}"
    return (
        float(across @ (np.arange(width) + 0.5) / total / width),
        float(down @ (np.arange(height) + 0.5) / total / height),
    )


def assert_in_place(pixels: npt.NDArray[np.uint8], places: list[tuple[float, float]]) -> None:
    """Each mark is within a pixel of its place, or within half a percent of the side where that is more."""
    height, width = pixels.shape[:2]
    for colour, (u, v) in zip(COLOURS, places, strict=True):
        x, y = found(pixels, colour)
        assert abs(x - u) * width <= max(1.0, 0.005 * width), (colour, (x, y), (u, v))
        assert abs(y - v) * height <= max(1.0, 0.005 * height), (colour, (x, y), (u, v))

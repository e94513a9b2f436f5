"""Show where on a page a MaxSim score comes from: what each cell added to it, as a map, as an image, and as a few boxes.

The input is the winners and shares of a score (`ragkit.store.vectors.maxsim.explain`) and the `Patches` of the image that they
are of. The output is parts that sum to the score, a heat map drawn over the page, and boxes in fractions of the page. Three
rules: shares of vectors that stand for no cell (words and marks of a prompt) are kept apart and never spread over the page;
smoothing moves relevance but neither adds nor loses any; a box is the bounds of winning cells and nothing else. The image shows
the whole page, so fractions of the image are fractions of the page. Uses NumPy, and PIL for drawing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ragkit.core.images import Image
from ragkit.core.types import Array, Box, Floats, Ints, Patches

Map = npt.NDArray[np.float64]  # (rows, columns), one number for each cell
Rectangle = tuple[int, int, int, int]  # of cells: first row, first column, row after the last, column after the last

# Chosen by benchmarks/visual.py boxes, on pages with known marks (docs/measurements.md).
SIGMA = 1.0  # cells: how far relevance is smoothed
THRESHOLD = 0.25  # of the map's highest value: neighbouring cells above it are put into one box
MOST_BOXES = 4
LEAST = 0.2  # of the relevance on the page: a box after the first must hold this much
# Always darker from left to right, so that more is darker for every eye; never so dark that black print cannot be read on it.
COLOURS = ((255, 244, 178), (254, 201, 92), (250, 146, 52), (228, 84, 42), (190, 32, 52))
OPACITY = 0.75  # of the darkest colour


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """A score as a map: `cells` (rows, columns) float64 over `region` of the image, and `elsewhere` the shares of vectors that
    stand for no cell. All parts sum to the score."""

    cells: Map
    elsewhere: float
    region: Box

    @property
    def score(self) -> float:
        """Return the sum of all parts."""
        return float(self.cells.sum()) + self.elsewhere


def relevance(winners: Ints, shares: Sequence[float] | Array, patches: Patches) -> Relevance:
    """Return the share of each cell: that of its vector, divided equally if several cells have one vector.

    winners (q,): the vector that matched each query token best; shares (q,): its part of the score. Raises ValueError if the
    sizes differ.
    """
    weights = np.asarray(shares, dtype=np.float64)
    if np.shape(winners) != weights.shape or weights.ndim != 1:
        raise ValueError(f"a share for each winner is needed, got {np.shape(winners)} winners and {weights.shape} shares")
    tokens = patches.tokens
    vectors = max(int(tokens.max(initial=-1)), int(np.max(winners, initial=-1))) + 1
    by_vector = np.bincount(winners, weights=weights, minlength=vectors) if vectors else np.zeros(0)
    cells_of = np.bincount(tokens[tokens >= 0], minlength=vectors)
    each = np.divide(by_vector, cells_of, out=np.zeros(vectors), where=cells_of > 0)
    cells = np.where(tokens >= 0, each[np.maximum(tokens, 0)] if vectors else 0.0, 0.0)
    return Relevance(cells, float(by_vector[cells_of == 0].sum()), patches.region)


def similarity_maps(query: Floats, vectors: Floats, patches: Patches) -> Floats:
    """Return the cosine of every query token and every cell, (q, rows, columns) float32; NaN for cells without a vector.

    query (q, d) and vectors (t, d) unit rows: the multi-vectors of query and image.
    """
    cosines = (query @ vectors.T)[:, np.maximum(patches.tokens, 0)]
    return np.asarray(np.where(patches.tokens >= 0, cosines, np.nan), dtype=np.float32)


def smoothed(cells: Map, *, sigma: float = SIGMA) -> Map:
    """Spread each cell's relevance over its neighbours by a Gaussian, sigma in cells, reflected at the edges.

    The sum stays the same. A sigma of 0 changes nothing.
    """
    if sigma <= 0:
        return cells
    rows, columns = _gaussian(cells.shape[0], sigma), _gaussian(cells.shape[1], sigma)
    return np.asarray(rows @ cells @ columns.T, dtype=np.float64)


def _gaussian(length: int, sigma: float) -> Map:
    """Return which part of cell j reaches cell i, (length, length). Columns sum to one."""
    reach = 3 * int(np.ceil(sigma)) + 1
    spread = np.zeros((length, length))
    for step in range(-reach, reach + 1):
        at = (np.arange(length) + step) % (2 * length)  # a line and its mirror image, repeated
        np.add.at(spread, (np.minimum(at, 2 * length - 1 - at), np.arange(length)), np.exp(-0.5 * (step / sigma) ** 2))
    spread /= spread.sum(axis=0)
    return spread


def evidence_boxes(parts: Relevance) -> list[tuple[Box, float]]:
    """Return where on the page the score comes from: up to MOST_BOXES boxes in fractions of the page, with the relevance inside.

    Winning cells that are connected on the smoothed map (above THRESHOLD of its highest value) form one box, the bounds of
    those cells; boxes that overlap are joined. The box with the most relevance comes first, then others that hold at least LEAST
    of the whole. Negative shares count as none. Boxes are clipped to the page.
    """
    cells = np.maximum(parts.cells, 0)
    total = float(cells.sum())
    if total <= 0:
        return []
    weighed = [(rectangle, _inside(cells, rectangle)) for rectangle in _join(_winning_rectangles(cells))]
    weighed.sort(key=lambda pair: (-pair[1], pair[0]))
    boxes = [(_on_page(parts, rectangle), mass) for rectangle, mass in weighed]
    boxes = [(box, mass) for box, mass in boxes if box.area > 0]
    return [(box, mass) for at, (box, mass) in enumerate(boxes[:MOST_BOXES]) if at == 0 or mass >= LEAST * total]


def _winning_rectangles(cells: Map) -> list[Rectangle]:
    """Return the bounds of the winning cells of each connected part of the smoothed map."""
    high = smoothed(cells)
    labels = _components(high >= THRESHOLD * high.max())
    bounds: list[Rectangle] = []
    for label in range(1, int(labels.max()) + 1):
        at = np.argwhere((labels == label) & (cells > 0))
        if len(at):
            bounds.append((*at.min(axis=0).tolist(), *(at.max(axis=0) + 1).tolist()))
    return bounds


def _components(mask: npt.NDArray[np.bool_]) -> Ints:
    """Label the connected parts of a mask from 1, in the order of their first cells; 0 outside. Corners connect."""
    labels, count = np.zeros(mask.shape, dtype=np.int64), 0
    for start in np.argwhere(mask).tolist():
        if labels[tuple(start)]:
            continue
        count += 1
        labels[tuple(start)] = count
        waiting = [start]
        while waiting:
            row, column = waiting.pop()
            around = np.s_[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            new = np.argwhere(mask[around] & (labels[around] == 0))
            new += np.array([around[0].start, around[1].start])
            labels[new[:, 0], new[:, 1]] = count
            waiting += new.tolist()
    return labels


def _join(bounds: list[Rectangle]) -> list[Rectangle]:
    """Join rectangles that overlap, until none do."""
    rest = list(bounds)
    done: list[Rectangle] = []
    while rest:
        first = rest.pop()
        other = next((rectangle for rectangle in (*rest, *done) if _overlap(first, rectangle)), None)
        if other is None:
            done.append(first)
            continue
        (rest if other in rest else done).remove(other)
        rest.append((min(first[0], other[0]), min(first[1], other[1]), max(first[2], other[2]), max(first[3], other[3])))
    return done


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return max(first[0], second[0]) < min(first[2], second[2]) and max(first[1], second[1]) < min(first[3], second[3])


def _inside(cells: Map, rectangle: Rectangle) -> float:
    top, left, bottom, right = rectangle
    return float(cells[top:bottom, left:right].sum())


def _on_page(parts: Relevance, rectangle: Rectangle) -> Box:
    grid = Patches(parts.region, np.empty(parts.cells.shape, dtype=np.int64))
    top, left, bottom, right = rectangle
    return _clipped(grid.box(top, left).union(grid.box(bottom - 1, right - 1)))


def _clipped(box: Box) -> Box:
    return Box(*(min(max(side, 0.0), 1.0) for side in box))


def vector_boxes(patches: Patches, vector: int) -> list[Box]:
    """Return the cells that a vector stands for as few boxes that cover them exactly, in fractions of the page, clipped to it."""
    if vector < 0:
        return []
    clipped = [
        _clipped(patches.box(top, left).union(patches.box(bottom - 1, right - 1)))
        for top, left, bottom, right in _rectangles(patches.tokens == vector)
    ]
    return sorted((box for box in clipped if box.area > 0), key=lambda box: (box.y0, box.x0))


def _rectangles(mask: npt.NDArray[np.bool_]) -> list[Rectangle]:
    """Return rectangles that cover a mask exactly: runs of cells in a row, joined while the next row has the same run."""
    growing: dict[tuple[int, int], int] = {}  # the first row of a run (first column, column after the last)
    rectangles = []
    for row in range(len(mask) + 1):
        runs = _runs(mask[row]) if row < len(mask) else set()
        for left, right in growing.keys() - runs:
            rectangles.append((growing.pop((left, right)), left, row, right))
        for run in runs:
            growing.setdefault(run, row)
    return rectangles


def _runs(row: npt.NDArray[np.bool_]) -> set[tuple[int, int]]:
    """Return the runs of True, each (first column, column after the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return set(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def heat_map(image: Image, parts: Relevance) -> Image:
    """Return the page's image in RGB with the smoothed relevance drawn over it: more is darker; without any the page stays as it
    is.

    Print shows through. Negative relevance counts as none.
    """
    from PIL import Image as Images

    page = np.asarray(image.convert("RGB"), dtype=np.float32)
    heat = _at_pixels(smoothed(np.maximum(parts.cells, 0)), parts.region, height=page.shape[0], width=page.shape[1])
    highest = float(heat.max(initial=0))
    heat = heat / highest if highest > 0 else heat
    steps = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(heat, steps, channel) for channel in zip(*COLOURS, strict=True)], axis=-1)
    opacity = (OPACITY * np.sqrt(heat))[..., None]
    # Multiplied, as a marker pen does: white takes the colour and black print stays black.
    drawn = page * (1 - opacity + opacity * colour / 255)
    return Images.fromarray(np.round(drawn).astype(np.uint8))


def heat_png(image: Image, parts: Relevance) -> bytes:
    """Return `heat_map` as the bytes of a PNG."""
    file = io.BytesIO()
    heat_map(image, parts).save(file, "PNG")
    return file.getvalue()


def _at_pixels(cells: Map, region: Box, *, height: int, width: int) -> Map:
    """Return the map for every pixel of the image, (height, width): bilinear between the centres of cells, 0 outside the
    region."""
    rows = _interpolation(cells.shape[0], (region.y0, region.y1), height)
    columns = _interpolation(cells.shape[1], (region.x0, region.x1), width)
    return np.asarray(rows @ cells @ columns.T, dtype=np.float64)


def _interpolation(cells: int, region: tuple[float, float], pixels: int) -> Map:
    """Return the weight of each cell of a line for each pixel, (pixels, cells). The cells cover `region` of the line."""
    start, end = region
    at = ((np.arange(pixels) + 0.5) / pixels - start) / (end - start) * cells  # in cells from the region's edge
    between = np.clip(at - 0.5, 0, cells - 1)
    low = np.minimum(between.astype(np.int64), max(0, cells - 2))
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), low] = 1 - (between - low)
    weights[np.arange(pixels), np.minimum(low + 1, cells - 1)] += between - low
    weights[(at < 0) | (at > cells)] = 0
    return weights

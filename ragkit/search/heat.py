"""Winning patches as evidence on a page: what each cell gave to the score, as a map, as a picture, and as a few boxes.

In go the winners and shares of a MaxSim score (`ragkit.store.vectors.maxsim.explain`) and the `Patches` of the picture they were
found in; out come parts that sum to the score, a heat map drawn over the page, and boxes in fractions of the page. Rules: what
falls on vectors that look nowhere (words and marks of a prompt) is kept apart, never spread over the page; smoothing moves
relevance and neither adds nor loses any; a box is the bounds of winning cells and nothing else. A page's picture is all of the
page, so fractions of the picture are fractions of the page. Numpy, and PIL where something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.images import Image
from ragkit.core.types import Box, Floats, Ints, Patches

Map = npt.NDArray[np.float64]  # (rows, columns), a number a cell

# Chosen by benchmarks/visual.py boxes, on pages with known marks (docs/measurements.md).
SIGMA = 1.0  # cells: how far relevance is smoothed
THRESHOLD = 0.25  # of the map's highest value: what lies above it hangs together
MOST_BOXES = 4
LEAST = 0.2  # of the relevance on the page: what a box after the first must hold
# Light to dark without a step back, so that more is darker for every eye; never so dark that black print is lost in it.
COLOURS = ((255, 244, 178), (254, 201, 92), (250, 146, 52), (228, 84, 42), (190, 32, 52))
OPACITY = 0.75  # of the darkest


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """A score as a map: `cells` (rows, columns) float64 over `region` of the picture, `elsewhere` what fell on vectors that
    stand for no cell. All parts sum to the score."""

    cells: Map
    elsewhere: float
    region: Box

    @property
    def score(self) -> float:
        return float(self.cells.sum()) + self.elsewhere


def relevance(winners: Ints, shares: Sequence[float] | npt.NDArray[Any], patches: Patches) -> Relevance:
    """The share of each cell: those of its vector, in equal parts where cells have one together.

    winners (q,): the vector that matched each query token best; shares (q,): its part of the score. ValueError for sizes that
    differ.
    """
    given = np.asarray(shares, dtype=np.float64)
    if np.shape(winners) != given.shape or given.ndim != 1:
        raise ValueError(f"a share for each winner is needed, got {np.shape(winners)} winners and {given.shape} shares")
    tokens = patches.tokens
    vectors = max(int(tokens.max(initial=-1)), int(np.max(winners, initial=-1))) + 1
    by_vector = np.bincount(winners, weights=given, minlength=vectors) if vectors else np.zeros(0)
    cells_of = np.bincount(tokens[tokens >= 0], minlength=vectors)
    each = np.divide(by_vector, cells_of, out=np.zeros(vectors), where=cells_of > 0)
    cells = np.where(tokens >= 0, each[np.maximum(tokens, 0)] if vectors else 0.0, 0.0)
    return Relevance(cells, float(by_vector[cells_of == 0].sum()), patches.region)


def similarity_maps(query: Floats, vectors: Floats, patches: Patches) -> Floats:
    """Cosine of every query token and every cell, (q, rows, columns); NaN for cells without a vector.

    query (q, d) and vectors (t, d) unit rows: the multi-vectors of query and picture.
    """
    found = (query @ vectors.T)[:, np.maximum(patches.tokens, 0)]
    return np.asarray(np.where(patches.tokens >= 0, found, np.nan), dtype=np.float32)


def smoothed(cells: Map, *, sigma: float = SIGMA) -> Map:
    """Each cell's relevance spread over its neighbours by a Gaussian, sigma in cells; at the edges it is reflected.

    The sum stays. 0 changes nothing.
    """
    if sigma <= 0:
        return cells
    rows, columns = _spreading(cells.shape[0], sigma), _spreading(cells.shape[1], sigma)
    return np.asarray(rows @ cells @ columns.T, dtype=np.float64)


def _spreading(length: int, sigma: float) -> Map:
    """(length, length): what of cell j reaches cell i. Columns sum to one."""
    reach = 3 * int(np.ceil(sigma)) + 1
    spread = np.zeros((length, length))
    for step in range(-reach, reach + 1):
        at = (np.arange(length) + step) % (2 * length)  # a line and its mirror, over and over
        np.add.at(spread, (np.minimum(at, 2 * length - 1 - at), np.arange(length)), np.exp(-0.5 * (step / sigma) ** 2))
    spread /= spread.sum(axis=0)
    return spread


def evidence_boxes(found: Relevance) -> list[tuple[Box, float]]:
    """Where on the page the score comes from: up to MOST_BOXES boxes in fractions of the page, with the relevance inside.

    Winning cells that hang together on the smoothed map (above THRESHOLD of its highest value) are one box, the bounds of
    their cells; boxes that overlap are joined. The one with the most comes first, then others with at least LEAST of it all.
    What a score lost (negative shares) shows nowhere. Clipped to the page.
    """
    cells = np.maximum(found.cells, 0)
    total = float(cells.sum())
    if total <= 0:
        return []
    high = smoothed(cells)
    labels = _components(high >= THRESHOLD * high.max())
    bounds = []
    for label in range(1, int(labels.max()) + 1):
        at = np.argwhere((labels == label) & (cells > 0))
        if len(at):
            bounds.append((*at.min(axis=0).tolist(), *(at.max(axis=0) + 1).tolist()))
    weighed = [(rectangle, _inside(cells, rectangle)) for rectangle in _joined(bounds)]
    weighed.sort(key=lambda pair: (-pair[1], pair[0]))
    boxes = [(_on_page(found, rectangle), mass) for rectangle, mass in weighed]
    boxes = [(box, mass) for box, mass in boxes if box.area > 0]
    return [(box, mass) for at, (box, mass) in enumerate(boxes[:MOST_BOXES]) if at == 0 or mass >= LEAST * total]


Rectangle = tuple[int, int, int, int]  # first row, first column, and those behind the last


def _components(mask: npt.NDArray[np.bool_]) -> Ints:
    """Which of the connected parts a cell belongs to, from 1, by their first cells; 0 outside. Corners connect."""
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


def _joined(bounds: list[Rectangle]) -> list[Rectangle]:
    """Rectangles that overlap as one, until none do."""
    rest = list(bounds)
    done: list[Rectangle] = []
    while rest:
        one = rest.pop()
        meets = next((other for other in (*rest, *done) if _overlap(one, other)), None)
        if meets is None:
            done.append(one)
            continue
        (rest if meets in rest else done).remove(meets)
        rest.append((min(one[0], meets[0]), min(one[1], meets[1]), max(one[2], meets[2]), max(one[3], meets[3])))
    return done


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def _inside(cells: Map, rectangle: Rectangle) -> float:
    top, left, bottom, right = rectangle
    return float(cells[top:bottom, left:right].sum())


def _on_page(found: Relevance, rectangle: Rectangle) -> Box:
    grid = Patches(found.region, np.empty(found.cells.shape, dtype=np.int64))
    top, left, bottom, right = rectangle
    return _clipped(grid.box(top, left).union(grid.box(bottom - 1, right - 1)))


def _clipped(box: Box) -> Box:
    return Box(*(min(max(side, 0.0), 1.0) for side in box))


def vector_boxes(patches: Patches, vector: int) -> list[Box]:
    """The cells that a vector stands for, as few boxes that cover them exactly, in fractions of the page, clipped to it."""
    if vector < 0:
        return []
    runs: dict[tuple[int, int], list[int]] = {}  # (first column, behind the last): [first row, behind the last], while it grows
    boxes = []
    rows = patches.tokens == vector
    for row in [*range(len(rows)), None]:
        now = set() if row is None else _runs(rows[row])
        for ended in runs.keys() - now:
            top, bottom = runs.pop(ended)
            boxes.append(patches.box(top, ended[0]).union(patches.box(bottom - 1, ended[1] - 1)))
        for run in now:
            assert row is not None
            runs.setdefault(run, [row, row])[1] = row + 1
    clipped = [_clipped(box) for box in boxes]
    return sorted((box for box in clipped if box.area > 0), key=lambda box: (box.y0, box.x0))


def _runs(row: npt.NDArray[np.bool_]) -> set[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return set(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def heat_map(image: Image, found: Relevance) -> Image:
    """The page's picture in RGB with the smoothed relevance over it: more is darker, none leaves the page as it is.

    What is printed shows through. Negative relevance is none.
    """
    from PIL import Image as Images

    page = np.asarray(image.convert("RGB"), dtype=np.float32)
    heat = _at_pixels(smoothed(np.maximum(found.cells, 0)), found.region, height=page.shape[0], width=page.shape[1])
    highest = float(heat.max(initial=0))
    heat = heat / highest if highest > 0 else heat
    steps = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(heat, steps, channel) for channel in zip(*COLOURS, strict=True)], axis=-1)
    opacity = (OPACITY * np.sqrt(heat))[..., None]
    # Multiplied, as a marker pen does: white takes the colour and black print stays black.
    drawn = page * (1 - opacity + opacity * colour / 255)
    return Images.fromarray(np.round(drawn).astype(np.uint8))


def heat_png(image: Image, found: Relevance) -> bytes:
    """`heat_map` as the bytes of a PNG."""
    file = io.BytesIO()
    heat_map(image, found).save(file, "PNG")
    return file.getvalue()


def _at_pixels(cells: Map, region: Box, *, height: int, width: int) -> Map:
    """(height, width): the map over the whole picture, bilinear between the middles of cells, 0 outside the region."""
    rows = _blending(cells.shape[0], (region.y0, region.y1), height)
    columns = _blending(cells.shape[1], (region.x0, region.x1), width)
    return np.asarray(rows @ cells @ columns.T, dtype=np.float64)


def _blending(cells: int, covered: tuple[float, float], pixels: int) -> Map:
    """(pixels, cells): what each cell of a line gives to each pixel."""
    start, end = covered
    at = ((np.arange(pixels) + 0.5) / pixels - start) / (end - start) * cells  # in cells from the region's edge
    between = np.clip(at - 0.5, 0, cells - 1)
    low = np.minimum(between.astype(np.int64), max(0, cells - 2))
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), low] = 1 - (between - low)
    weights[np.arange(pixels), np.minimum(low + 1, cells - 1)] += between - low
    weights[(at < 0) | (at > cells)] = 0
    return weights

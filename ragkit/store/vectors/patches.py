"""Fewer vectors for a picture: patches that look alike as one, patches of bare paper as one, padding as none.

It takes the multi-vector of a picture and its `Patches`, and gives fewer vectors and the patches that say which cell is in which:
an explanation stays exact, over cells that then share a vector. Vectors of words and marks around the picture stay as they are,
in their order. Off by default; what it costs in quality is in docs/measurements.md.
"""

from __future__ import annotations

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.core.images import Image
from ragkit.core.types import Floats, Ints, Mask, Patches
from ragkit.store.vectors.pool import clusters_of

ALIKE = 0.98  # cosine from which two patches count as the same; see docs/measurements.md
PLAIN = 12  # of 255: how far the colours of a cell of bare paper lie apart; a scan's grain and a JPEG's edges are within
BUCKET = 32  # of 255: bare cells of one of these steps in every colour are of the same paper


def fewer_patches(
    vectors: Floats, patches: Patches, *, pool: int = 1, background: bool = True, image: Image | None = None
) -> tuple[Floats, Patches]:
    """Return the vectors of a picture (t, d) unit rows, made fewer, and where they look now.

    pool: patches are clustered until there is one for every `pool` of those that came in, each the unit mean of its members (as
    `pool_tokens`). background=False: before that, and counted in, patches whose vectors are nearly equal (ALIKE) become one,
    those of cells outside the picture are dropped, and with `image` those of cells in one colour become one for each paper.
    pool=1 and background=True change nothing. ValueError: a pool below 1, or patches that name vectors that are not there.
    """
    if pool < 1:
        raise ValueError(f"pool must be at least 1, got {pool}")
    if patches.tokens.max(initial=-1) >= len(vectors):
        raise ValueError(f"patches name vector {patches.tokens.max()}, but there are {len(vectors)}")
    most = max(1, len(_looking(patches)) // pool)
    if not background:
        bare = None if image is None else bare_cells(image, patches)
        vectors, patches = _merged(vectors, patches, _without_copies(vectors, patches, bare))
    looking = _looking(patches)
    if len(looking) <= most:
        return vectors, patches
    labels = np.arange(len(vectors))
    clusters = clusters_of(unit_rows(vectors[looking]), most)
    _, first = np.unique(clusters, return_index=True)
    labels[looking] = looking[first][clusters]
    return _merged(vectors, patches, labels)


def _looking(patches: Patches) -> Ints:
    """Return the numbers of the vectors that stand for a cell, ascending."""
    return np.unique(patches.tokens[patches.tokens >= 0])


def _merged(vectors: Floats, patches: Patches, labels: Ints) -> tuple[Floats, Patches]:
    """Return one vector for those of one label, their unit mean, where the first of them was; and the patches over these.

    labels (t,): the number of the first vector of the group; -1 drops a vector, from the cells too.
    """
    labelled = labels >= 0
    firsts, inverse = np.unique(labels[labelled], return_inverse=True)
    places = np.full(len(labels), -1, dtype=np.int64)
    places[labelled] = inverse
    sums = np.zeros((len(firsts), vectors.shape[1]), dtype=np.float64)
    np.add.at(sums, inverse, vectors[labelled])
    members = np.bincount(inverse, minlength=len(firsts))
    means = unit_rows(sums)
    alone = labelled & (members[places] == 1)  # kept bit for bit, which a division by a length of 1 + 1e-7 would not do
    means[places[alone]] = vectors[alone]
    tokens = np.where(patches.tokens >= 0, places[np.maximum(patches.tokens, 0)], -1)
    return means, Patches(patches.region, np.asarray(tokens, dtype=np.int64))


def _without_copies(vectors: Floats, patches: Patches, bare: Ints | None) -> Ints:
    """Return for every vector the number of the first that it is like, -1 for those that look at padding alone, (t,) int64."""
    labels = np.arange(len(vectors))
    looking = _looking(patches)
    if bare is not None:
        for paper in np.unique(bare[bare >= 0]):
            # A vector that also looks at print is not bare.
            here, elsewhere = (np.unique(patches.tokens[mask & (patches.tokens >= 0)]) for mask in (bare == paper, bare != paper))
            only = np.setdiff1d(here, elsewhere)
            labels[only] = only.min(initial=len(vectors))
    outside = ~_on_picture(patches)
    lost = np.setdiff1d(patches.tokens[outside], patches.tokens[~outside])
    rest = looking[(labels[looking] == looking) & ~np.isin(looking, lost)]
    units = unit_rows(vectors[rest])
    free = np.ones(len(rest), dtype=np.bool_)
    for at in range(len(rest)):  # the first of those that are free takes all that are like it
        if free[at]:
            like = free & (units @ units[at] >= ALIKE)
            labels[np.isin(labels, rest[like])] = rest[at]
            free &= ~like
            free[at] = False
    labels[lost[lost >= 0]] = -1
    return labels


def _on_picture(patches: Patches) -> Mask:
    """Return which cells lie on the picture, at least in part, (rows, columns) bool."""
    rows, columns = patches.tokens.shape
    boxes = [[patches.box(row, column) for column in range(columns)] for row in range(rows)]
    return np.array([[box.x0 < 1 and box.y0 < 1 and box.x1 > 0 and box.y1 > 0 for box in line] for line in boxes])


def bare_cells(image: Image, patches: Patches) -> Ints:
    """Return the colour of the paper that a cell of one colour shows, as a number; -1 for cells with anything on them, (rows,
    columns) int64."""
    pixels = np.asarray(image.convert("RGB"))
    papers = np.full(patches.tokens.shape, -1, dtype=np.int64)
    height, width = pixels.shape[:2]
    for row, column in np.ndindex(*papers.shape):
        box = patches.box(row, column)
        top, bottom = (min(max(round(y * height), 0), height) for y in (box.y0, box.y1))
        left, right = (min(max(round(x * width), 0), width) for x in (box.x0, box.x1))
        cell = pixels[top:bottom, left:right].reshape(-1, 3)
        if len(cell) and (np.ptp(cell, axis=0) <= PLAIN).all():
            red, green, blue = (np.median(cell, axis=0) // BUCKET).astype(int).tolist()
            papers[row, column] = (red * 256 + green) * 256 + blue
    return papers

"""Words with boxes become reading order, lines and paragraphs: numpy only, the same for every PDF engine.

Words go in as an engine emits them: boxes in points as displayed, and the number of the engine's line that each word stands
on. The same words come out in reading order, with the places where lines and paragraphs begin. Many pages are read at once,
since for a page's few hundred words a call of numpy costs more than its work; they do not influence each other.

The idea: lines are cut at wide gaps into segments. A vertical gutter that few segments cross, with running text on both
sides, makes columns; the segments that do cross it (titles, wide figures) cut the page into bands, each read column by
column. Everything else, tables included, is read row by row. Turned text keeps the engine's order and comes after the rest;
running headers (`ragkit.load.pdf.headers_footers` finds them) come first of all, and annotations and running footers last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ragkit.core.types import Array, Floats, Ints, Mask

Bytes = npt.NDArray[np.int8]

_GAP = 1.0  # line heights; a wider space within a line may be a gutter or the space between two cells
_SOLID_WIDTH = 7.0  # line heights; a segment this wide is running text rather than a cell
_SOLID_SHARE = 0.5  # of the ink of a side of a gutter that must be running text
_COLUMN_WIDTH = 10.0  # line heights; no side of a gutter is narrower
_COLUMN_ROWS = 3  # lines of running text on each side that make columns
_PARAGRAPH_GAP = 0.35  # line heights beyond the page's usual leading
_TURNED_PITCH = 2.5  # line heights from one turned line of a paragraph to the next
_SIZE_CHANGE = 1.12  # ratio of line heights that starts a new paragraph

SAME, LINE, BLOCK, COLUMN = 0, 1, 2, 3  # what lies before a word: nothing new, a new line, paragraph, column
BODY, HEADER, FOOTER, NOTE = 0, 1, 2, 3  # what a segment is


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """`order` (w,) int64: positions of the words in reading order, page by page; the others in that order: `breaks` (w,)
    int8: SAME, LINE, BLOCK or COLUMN before the word; `heights` (w,) float32: the height of the line the word stands on;
    `segments` (w,) int64: the segment it belongs to."""

    order: Ints
    breaks: Bytes
    heights: Floats
    segments: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Pieces of lines: `first` and `end` (s,) positions of words; boxes as four (s,) columns; `turned` (s,) bool."""

    first: Ints
    end: Ints
    x0: Array
    y0: Array
    x1: Array
    y1: Array
    heights: Array
    turned: Mask


def read(s: Segments, boxes: Floats, starts: Sequence[int], roles: Bytes, *, rtl: Sequence[bool]) -> Layout:
    """Return the reading order of pages.

    boxes (w, 4) of the words the segments were made of; starts (p + 1,): where each page's segments begin; roles (s,)
    BODY, HEADER, FOOTER or NOTE; rtl (p,): whether a page's rows run from right to left.
    """
    groups: list[Rows] = []
    owners: list[int] = []
    has_roles = roles.any()
    for page, (start, end) in enumerate(pairwise(starts)):
        if start == end:
            continue
        region = np.arange(start, end)
        role = roles[start:end] if has_roles else None
        if role is not None and role.any():
            header, body, footer, notes = (region[role == each] for each in (HEADER, BODY, FOOTER, NOTE))
            own = _apart(s, header, rtl=rtl[page]) + _page(s, body, rtl=rtl[page])
            own += ([_row_each(notes)] if len(notes) else []) + _apart(s, footer, rtl=rtl[page])
        else:
            own = _page(s, region, rtl=rtl[page])
        groups += own
        owners += [page] * len(own)
    if not groups:
        none = np.empty(0, np.int64)
        return Layout(none, np.empty(0, np.int8), np.empty(0, np.float32), none)
    return _assemble(s, groups, np.array(owners), boxes)


def _page(s: Segments, region: Ints, *, rtl: bool) -> list[Rows]:
    """Return the groups of a page's body, turned text last."""
    if not len(region):
        return []
    turned = s.turned[region]
    if not turned.any():
        return _ordered(s, region, depth=3, rtl=rtl)
    if 2 * turned.sum() > len(region):
        return [_row_each(region)]  # a turned page: the engine's order
    return [*_ordered(s, region[~turned], depth=3, rtl=rtl), _row_each(region[turned])]


def _apart(s: Segments, region: Ints, *, rtl: bool) -> list[Rows]:
    """Return the rows of headers or footers, and turned ones after them."""
    turned = s.turned[region]
    upright = [_rows(s, region[~turned], rtl=rtl)] if not turned.all() else []
    return [*upright, _row_each(region[turned])] if turned.any() else upright


def segments(boxes: Floats, lines: Ints, lengths: Ints) -> Segments:
    """Return the segments of pages, in the order of the words.

    boxes (w, 4) float32; lines (w,) the number of each word's line, another for neighbouring lines, page breaks included;
    lengths (w,), in characters.
    """
    if not len(boxes):
        none, nothing = np.empty(0, np.int64), np.empty(0)
        return Segments(none, none, nothing, nothing, nothing, nothing, nothing, np.empty(0, bool))
    x0, y0, x1, y1 = boxes.astype(np.float64).T
    start = np.ones(len(boxes), dtype=bool)
    start[1:] = lines[1:] != lines[:-1]
    heads = np.flatnonzero(start)
    tails = np.append(heads[1:], len(boxes)) - 1
    # A line is turned when its words climb rather than advance, or when its only word is much taller than wide: a
    # single letter always is, so short words alone on a line count as upright.
    climbs = np.abs((y0 + y1)[tails] - (y0 + y1)[heads]) > np.abs((x0 + x1)[tails] - (x0 + x1)[heads])
    tall = (y1 - y0)[heads] > 1.8 * (x1 - x0)[heads]
    turned = np.where(heads == tails, tall & (lengths[heads] > 3), climbs & tall | climbs & (lengths[heads] < 3))

    gap = np.maximum(x0[1:] - x1[:-1], x0[:-1] - x1[1:])
    start[1:] |= gap > _GAP * (y1 - y0)[1:]
    line_of_word = np.repeat(np.arange(len(heads)), tails - heads + 1)
    if turned.any():
        start[turned[line_of_word]] = False
        start[heads] = True
    first = np.flatnonzero(start)
    end = np.append(first[1:], len(boxes))
    left, top = np.minimum.reduceat(x0, first), np.minimum.reduceat(y0, first)
    right, bottom = np.maximum.reduceat(x1, first), np.maximum.reduceat(y1, first)
    return Segments(first, end, left, top, right, bottom, bottom - top, turned[line_of_word[first]])


# A group: segments in reading order, and whether each begins a row. Groups follow each other in reading order.
Rows = tuple[Ints, Mask]


def _ordered(s: Segments, region: Ints, *, depth: int, rtl: bool) -> list[Rows]:
    """Return the groups of a region (positions of segments), columns read one after the other."""
    if depth and len(region) >= 2 * _COLUMN_ROWS and _wide_enough(s, region):
        for gutter in _gutters(s, region):
            bands = _bands(s, region, gutter)
            if bands is not None:
                return [group for band in bands for group in _band_groups(s, band, depth=depth, rtl=rtl)]
    return [_rows(s, region, rtl=rtl)] if len(region) else []


def _wide_enough(s: Segments, region: Ints) -> bool:
    return bool(s.x1[region].max() - s.x0[region].min() > 2 * _COLUMN_WIDTH * _middle(s.heights[region]))


def _middle(values: Array) -> float:
    """Return the upper median, ten times faster than np.median on a page's worth of values."""
    half = len(values) // 2
    return float(np.partition(values, half)[half])


def _gutters(s: Segments, region: Ints) -> Iterator[float]:
    """Yield up to three x where few segments cross, the emptiest first, then the widest. Lazy: mostly the first is taken."""
    low, high = float(s.x0[region].min()), float(s.x1[region].max())
    # One bin a point; segments shrink by half a point each side, since neighbouring columns may touch by rounding.
    starts = (s.x0[region] - (low - 0.5)).astype(np.int64)
    ends = np.maximum((s.x1[region] - (low + 0.5)).astype(np.int64), starts + 1)
    bins = int(high - low) + 3
    crossing = np.cumsum(np.bincount(starts, minlength=bins) - np.bincount(ends, minlength=bins))
    inner = crossing[bins // 8 : bins - bins // 8]
    bounded = np.zeros(len(inner) + 2, dtype=bool)
    bounded[1:-1] = inner <= 0.25 * crossing.max()
    edges = np.flatnonzero(bounded[1:] != bounded[:-1])
    if not len(edges):
        return
    left, right = edges[0::2], edges[1::2]
    emptiest = np.minimum.reduceat(inner, np.minimum(edges, len(inner) - 1))[0::2]
    for run in np.lexsort((left - right, emptiest))[:3]:
        bins_of_run = np.flatnonzero(inner[left[run] : right[run]] == emptiest[run])
        # The widest stretch of the emptiest bins is the gutter; its middle is where to cut.
        ends_of = np.append(np.flatnonzero(bins_of_run[1:] - bins_of_run[:-1] > 1), len(bins_of_run) - 1)
        starts_of = np.append(0, ends_of[:-1] + 1)
        widest = int(np.argmax(ends_of - starts_of))
        middle = (bins_of_run[starts_of[widest]] + bins_of_run[ends_of[widest]] + 1) / 2
        yield low + bins // 8 + float(left[run] + middle)


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """A stretch of the page from top to bottom: rows right across (`left` only), or two sides of a gutter."""

    left: Ints
    right: Ints
    columns: bool


def _bands(s: Segments, region: Ints, gutter: float) -> list[_Band] | None:
    """Return the region cut into bands along a gutter, or None where its sides are not running text."""
    x0, x1, height = s.x0[region], s.x1[region], s.heights[region]
    reach = 2 * height  # what only just pokes through the gutter belongs to the side it stands on
    wide = (x0 < gutter - reach) & (x1 > gutter + reach)
    on_left = ~wide & ((x0 + x1) / 2 < gutter)
    on_right = ~wide & ~on_left
    left, right = region[on_left], region[on_right]
    if not (_running(s, left, least=_COLUMN_ROWS) and _running(s, right, least=_COLUMN_ROWS)):
        return None
    if min(s.y1[left].max(), s.y1[right].max()) - max(s.y0[left].min(), s.y0[right].min()) < 2 * _middle(height):
        return None
    middles = (s.y0 + s.y1)[region] / 2
    walls = np.sort(middles[wide])
    stretch = np.searchsorted(walls, middles, side="left") * 2 + wide  # walls take the odd numbers
    bands: list[_Band] = []
    for number in np.unique(stretch):
        inside = region[stretch == number]
        if number % 2:
            bands.append(_Band(inside, inside[:0], False))
        else:
            bands += _softly(s, inside, gutter)
    merged = _merged(bands)
    return merged if any(band.columns and len(band.left) and len(band.right) for band in merged) else None


def _softly(s: Segments, region: Ints, gutter: float) -> list[_Band]:
    """Return bands between white stripes that run through both sides, so that a wide table between columns is read by rows."""
    by_top = region[np.argsort(s.y0[region], kind="stable")]
    reached = np.maximum.accumulate(s.y1[by_top])
    stripe = s.y0[by_top][1:] - reached[:-1] > 0.8 * _middle(s.heights[region])
    pieces = np.split(by_top, np.flatnonzero(stripe) + 1)
    bands = []
    for i, piece in enumerate(pieces):
        is_left = (s.x0 + s.x1)[piece] / 2 < gutter
        left, right = piece[is_left], piece[~is_left]
        columns = not (len(left) and len(right)) or (_running(s, left, least=1) and _running(s, right, least=1))
        if not columns:
            short = max(s.y1[piece].max() - s.y0[piece].min(), 0) < (_COLUMN_ROWS - 0.5) * _middle(s.heights[piece])
            columns = short and 0 < i < len(pieces) - 1  # the ends of two paragraphs, where a header or a table is not
        bands.append(_Band(left, right, True) if columns else _Band(piece, piece[:0], False))
    return bands


def _merged(bands: list[_Band]) -> list[_Band]:
    """Return the bands, with neighbours of the same kind as one."""
    merged: list[_Band] = []
    for band in bands:
        if merged and merged[-1].columns == band.columns:
            last = merged.pop()
            band = _Band(np.concatenate((last.left, band.left)), np.concatenate((last.right, band.right)), band.columns)
        merged.append(band)
    return merged


def _running(s: Segments, side: Ints, *, least: int) -> bool:
    """Return whether a side of a gutter is running text: mostly segments as wide as lines, not as narrow as cells."""
    if len(side) < least:
        return False
    widths = s.x1[side] - s.x0[side]
    extent = s.x1[side].max() - s.x0[side].min()
    solid = (widths >= _SOLID_WIDTH * s.heights[side]) & (widths >= 0.4 * extent)
    return int(solid.sum()) >= least and bool(widths[solid].sum() >= _SOLID_SHARE * widths.sum())


def _band_groups(s: Segments, band: _Band, *, depth: int, rtl: bool) -> list[Rows]:
    if not band.columns:
        return [_rows(s, band.left, rtl=rtl)]
    sides = (band.right, band.left) if rtl else (band.left, band.right)
    return [group for side in sides if len(side) for group in _ordered(s, side, depth=depth - 1, rtl=rtl)]


def _rows(s: Segments, region: Ints, *, rtl: bool) -> Rows:
    """Return rows, from top to bottom, of the segments that share a line."""
    middle = (s.y0 + s.y1)[region] / 2
    by_middle = np.argsort(middle, kind="stable")
    region, middle = region[by_middle], middle[by_middle]
    height = s.heights[region]
    apart = middle[1:] - middle[:-1] > 0.5 * np.minimum(height[1:], height[:-1])
    row = np.concatenate(([0], np.cumsum(apart)))
    across = -s.x1[region] if rtl else s.x0[region]
    return region[np.lexsort((across, row))], np.concatenate(([True], apart))


def _row_each(region: Ints) -> Rows:
    """Return segments as they stand, each a row of its own."""
    return region, np.ones(len(region), dtype=bool)


def _assemble(s: Segments, groups: list[Rows], owners: Ints, boxes: Floats) -> Layout:
    """Return the layout of the groups, page by page. owners (g,): the page of each group."""
    sequence = np.concatenate([segments for segments, _ in groups])
    heads = np.flatnonzero(np.concatenate([starts for _, starts in groups]))  # positions, in `sequence`, of rows
    counts = (s.end - s.first)[sequence]
    ends = np.cumsum(counts)
    starts = ends - counts
    order = np.arange(ends[-1]) + np.repeat(s.first[sequence] - starts, counts)

    row_heads = starts[heads]  # position, in reading order, of each row's first word
    x0, y0, x1, y1 = boxes[order].astype(np.float64).T
    turned = s.turned[sequence[heads]]
    height = _row_heights(x0, y0, x1, y1, row_heads, turned)
    sizes = np.array([len(segments) for segments, _ in groups])
    first_segments = np.cumsum(sizes) - sizes
    pages = np.searchsorted(heads, first_segments[np.flatnonzero(np.append(True, owners[1:] != owners[:-1]))])
    breaks = np.zeros(len(order), dtype=np.int8)
    breaks[row_heads] = _row_breaks(
        np.minimum.reduceat(x0, row_heads),
        np.minimum.reduceat(y0, row_heads),
        np.maximum.reduceat(y1, row_heads),
        height,
        turned,
        pages.tolist(),
    )
    group_heads = starts[first_segments]
    breaks[group_heads] = np.where(np.isin(group_heads, row_heads[turned]), BLOCK, COLUMN) if turned.any() else COLUMN
    words_per_row = _lengths(row_heads, len(order))
    return Layout(order, breaks, np.repeat(height, words_per_row).astype(np.float32), np.repeat(sequence, counts))


def _lengths(starts: Ints, total: int) -> Ints:
    """Return how many of `total` lie from each start to the next. By slices: np.diff costs ten times as much on a page."""
    lengths = np.empty_like(starts)
    lengths[:-1] = starts[1:] - starts[:-1]
    lengths[-1] = total - starts[-1]
    return lengths


def _row_heights(x0: Array, y0: Array, x1: Array, y1: Array, heads: Ints, turned: Mask) -> Array:
    """Return the height of each row's letters: the mean over its words by width, so that a superscript counts for little."""
    widths = np.maximum(x1 - x0, 1e-3)
    upright = np.add.reduceat((y1 - y0) * widths, heads) / np.add.reduceat(widths, heads)
    if not turned.any():
        return np.asarray(upright)
    across = np.add.reduceat(x1 - x0, heads) / _lengths(heads, len(x0))
    return np.where(turned, across, upright)


def _row_breaks(x0: Array, y0: Array, y1: Array, height: Array, turned: Mask, pages: Sequence[int]) -> Bytes:
    """Return LINE or BLOCK before each row, COLUMN before a page's first, (r,).

    x0, y0, y1, height (r,); pages: first row of each page.
    """
    breaks = np.full(len(x0), LINE, dtype=np.int8)
    if len(x0) > 1:
        # Baselines are compared rather than boxes: a superscript raises a box, not its line.
        least = np.minimum(height[1:], height[:-1])
        pitch = (y1[1:] - y1[:-1]) / least
        usual = (pitch > 0.5) & (pitch < 2.5)
        leading = np.empty(len(pitch))
        for start, end in zip(pages, [*pages[1:], len(x0)], strict=True):
            own = pitch[start : end - 1][usual[start : end - 1]]
            leading[start:end] = _middle(own) if len(own) else 1.2
        apart = (pitch > leading + _PARAGRAPH_GAP) | (pitch < 0)
        resized = np.maximum(height[1:], height[:-1]) > _SIZE_CHANGE * least
        indent = (x0[1:] - x0[:-1]) / least
        indented = (indent > 0.6) & (indent < 3.5)
        indented[:-1] &= np.abs(x0[2:] - x0[:-2]) < 0.3 * least[:-1]  # the line after returns to the margin
        indented[np.array([*pages[1:], len(x0)]) - 2] = False  # a page's last row has no line after; -1 wraps harmlessly
        # Turned lines side by side are one paragraph too: vertical writing is made of them.
        beside = turned[1:] & turned[:-1] & (np.abs(indent) < _TURNED_PITCH)
        breaks[1:][np.where(beside, False, apart | indented | turned[1:]) | resized] = BLOCK
    breaks[pages] = COLUMN
    return breaks

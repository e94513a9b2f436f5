"""The words of a PDF's pages become one text: reading order, separators, hyphens, blocks, and spans that map to boxes.

The text is made of the words: a space between words, a newline between lines, a blank line between paragraphs, a form
feed between pages that belongs to no page. A word that a hyphen parts at a line's end is written as one, and stays two words
with a box each whose spans touch. Running headers stand at the beginning of their page and running footers at its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from ragkit.core.types import Array, Block, Floats, Ints, Mask, Page, Span, Words
from ragkit.load.pdf import headers_footers, layout
from ragkit.load.pdf.scripts import RTL, UNSPACED, is_plain, mend

PAGE_BREAK = "\n\f\n"
BATCH = 64  # pages laid out together
_SEPARATORS = {layout.SAME: " ", layout.LINE: "\n", layout.BLOCK: "\n\n", layout.COLUMN: "\n\n"}
_HEADING_RATIO = 1.13  # a heading's letters against the body's
_HEADING_CHARACTERS = 200
_SAME_SIZE = 1.06  # ratio of two sizes of letters up to which they count as one
_ENDS = re.compile(r"[.!?:;。！？…][\"'”’)\]]*$")
_KINDS = {layout.HEADER: "header", layout.FOOTER: "footer", layout.NOTE: "annotation"}
_HYPHENS = ("-", "\u00ad", "\u2010")
_FAR, _LEAST = 1e6, 0.1  # points: the farthest corner of a box, the least side of one
_FIRST = 8  # of a word's tag: it begins a page
_SOFT = "\u00ad"


Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in points
Region = tuple[int, int, int, int]  # x0, y0, x1, y1 in the dots of a page's picture


@dataclass(frozen=True, slots=True)
class Annotation:
    """Something a page holds beside its printed text: kind "field", "annotation" or "hidden"."""

    kind: str
    text: str
    box: Box
    why: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class PageWords:
    """One page as an engine reads it: the words' texts, boxes (w, 4) float32 in points as displayed, and the number of the
    engine's line that each stands on, (w,) int64; the page's displayed size in points, rotation in degrees, label.

    `glued` (w,) bool: no space before the word, where a script writes none; None: nowhere. `doubtful` (w,) bool: words that may
    not be seen; None: none. The last `notes` words are annotations.
    """

    texts: list[str]
    boxes: Floats
    lines: Ints
    width: float
    height: float
    rotation: int
    label: str | None = None
    glued: Mask | None = None
    annotations: tuple[Annotation, ...] = ()
    doubtful: Mask | None = None
    notes: int = 0

    @classmethod
    def blank(cls, width: float = 612, height: float = 792, rotation: int = 0, label: str | None = None) -> PageWords:
        """Return a page without words. Sizes in points; Letter by default."""
        return cls([], np.empty((0, 4), np.float32), np.empty(0, np.int64), width, height, rotation, label)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A page with its text: word spans (w, 2) count from the page's beginning; blocks are runs of words."""

    page: PageWords
    text: str
    spans: Ints
    boxes: Floats
    block_starts: Ints  # (b,) positions of words
    block_heights: Floats  # (b,) height of the letters, points
    block_tags: Ints  # (b,) role, and 4 more where it only repeats an earlier page


def assemble(pages: list[PageWords], *, on_page: Callable[[int], None]) -> tuple[str, tuple[Page, ...], tuple[Block, ...]]:
    """Return the document's text, pages and blocks. `on_page(0)` says that no page is being read any more."""
    on_page(0)
    pages = [_mended(page) for page in pages]
    batches = [_segments(pages[at : at + BATCH]) for at in range(0, len(pages), BATCH)]
    roles = _headers_footers(batches, pages)
    vocabulary: set[str] = set()
    read: list[_Read] = []
    at = 0
    for batch in batches:
        size = len(batch.segments.first)
        own = headers_footers.SegmentRoles(roles.roles[at : at + size], roles.repeated[at : at + size])
        _set_notes(batch, own)
        read += _read(batch, own, lambda: vocabulary or _fill(vocabulary, pages))
        at += size
    text, joined = _joined(read)
    return text, joined, _blocks(read, joined)


def _mended(page: PageWords) -> PageWords:
    """Return a page with its words mended. One whose crop box shows nothing has no size, and viewers show an empty sheet: it
    becomes an empty Letter page."""
    if not (page.width > 0 and page.height > 0):
        return PageWords.blank(rotation=page.rotation, label=page.label)
    texts = mend(page.texts)
    return page if texts is page.texts else replace(page, texts=texts)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Pages laid out together: their words one after the other, and their segments.

    `words` and `starts` (p + 1,): where each page begins among these.
    """

    pages: Sequence[PageWords]
    texts: list[str]
    boxes: Floats
    lengths: Ints
    words: list[int]
    segments: layout.Segments
    starts: list[int]


def _segments(pages: Sequence[PageWords]) -> _Batch:
    """Return pages with their words cut into segments of lines."""
    texts = list(chain.from_iterable(page.texts for page in pages))
    words = np.cumsum([0, *(len(page.texts) for page in pages)])
    # A hostile file has boxes without extent, or light years wide: neither may reach the arithmetic of the layout.
    boxes = np.clip(np.nan_to_num(np.concatenate([page.boxes for page in pages])), -_FAR, _FAR)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + _LEAST)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    # Odd and even, so that neighbouring pages' lines differ whatever their numbers.
    lines = np.concatenate(
        [page.lines * 2 + (number & 1) for number, page in enumerate(pages) if page.texts] or [np.empty(0, np.int64)]
    )
    segments = layout.segments(boxes, lines, lengths)
    return _Batch(pages, texts, boxes, lengths, words.tolist(), segments, np.searchsorted(segments.first, words).tolist())


def _headers_footers(batches: Sequence[_Batch], pages: Sequence[PageWords]) -> headers_footers.SegmentRoles:
    """Return the roles of all segments: headers and footers are known by their repetition through the whole document."""
    if len(batches) == 1:
        batch = batches[0]
        segments, starts, texts = batch.segments, batch.starts, batch.texts
    else:
        word, segment = 0, 0
        starts, pieces = [0], []
        for batch in batches:
            pieces.append(replace(batch.segments, first=batch.segments.first + word, end=batch.segments.end + word))
            starts += [segment + start for start in batch.starts[1:]]
            word, segment = word + len(batch.texts), segment + len(batch.segments.first)
        names = layout.Segments.__slots__
        segments = layout.Segments(**{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names})
        texts = list(chain.from_iterable(batch.texts for batch in batches))
    return headers_footers.find(segments, starts, texts, [page.height for page in pages], [page.label for page in pages])


def _set_notes(batch: _Batch, own: headers_footers.SegmentRoles) -> None:
    """Give the segments of annotations their role."""
    for page, end, start, last in zip(batch.pages, batch.words[1:], batch.starts[:-1], batch.starts[1:], strict=True):
        if page.notes:
            notes = batch.segments.first[start:last] >= end - page.notes
            own.roles[start:last][notes], own.repeated[start:last][notes] = layout.NOTE, False


def _fill(vocabulary: set[str], pages: Sequence[PageWords]) -> set[str]:
    """Return the vocabulary with all words of the pages in it."""
    vocabulary.update(chain.from_iterable(page.texts for page in pages))
    return vocabulary


def _read(batch: _Batch, own: headers_footers.SegmentRoles, vocabulary: Callable[[], set[str]]) -> Iterator[_Read]:
    """Yield each page of a batch with its text."""
    scripts = [_script(page) for page in batch.pages]
    plan = layout.read(batch.segments, batch.boxes, batch.starts, own.roles, rtl=[rtl == _MOSTLY for rtl, _ in scripts])
    order = plan.order.tolist()
    texts, boxes, breaks = [batch.texts[i] for i in order], batch.boxes[plan.order], plan.breaks
    tags = (own.roles + 4 * own.repeated)[plan.segments] if own.roles.any() else np.zeros(len(order), np.int8)
    edges = np.flatnonzero(tags[1:] != tags[:-1]) + 1
    breaks[edges] = np.maximum(breaks[edges], layout.BLOCK)
    lengths = batch.lengths[plan.order]
    separators = [" "] * len(texts)
    tags[np.array(batch.words[:-1])[np.diff(batch.words) > 0]] |= _FIRST  # nothing runs on over a page's end
    _join_lines(texts, breaks, tags, lengths, separators, vocabulary)
    tags &= ~_FIRST
    for page, (rtl, unspaced), start, end in zip(batch.pages, scripts, batch.words[:-1], batch.words[1:], strict=True):
        if start == end:
            empty = np.empty(0, np.int64)
            yield _Read(page, "", np.empty((0, 2), np.int64), page.boxes, empty, np.empty(0, np.float32), empty)
            continue
        here = slice(start, end)
        own_separators, own_breaks = separators[here], breaks[here]
        own_separators[0] = ""
        if unspaced or page.glued is not None:
            _close(texts[here], own_separators, own_breaks, plan.order[here] - start, page.glued)
        if rtl:
            _glue(texts[here], own_separators, boxes[here], page.lines[plan.order[here] - start])
        yield _placed(page, texts[here], own_separators, boxes[here], lengths[here], own_breaks, plan.heights[here], tags[here])


_SOME, _MOSTLY = 1, 2


def _script(page: PageWords) -> tuple[int, bool]:
    """Return whether some or most letters of a page run from right to left (0 for none), and whether some have no spaces."""
    joined = "".join(page.texts)
    if is_plain(joined):
        return 0, False
    rtl = len(RTL.findall(joined))
    return (0 if not rtl else _MOSTLY if 2 * rtl > len(joined) else _SOME), UNSPACED.search(joined) is not None


def _placed(
    page: PageWords,
    texts: Sequence[str],
    separators: Sequence[str],
    boxes: Floats,
    lengths: Ints,
    breaks: Array,
    heights: Floats,
    tags: Array,
) -> _Read:
    """Return a page with its text, from its words in reading order; separators stand before the words."""
    between = np.fromiter(map(len, separators), dtype=np.int64, count=len(separators))
    ends = np.cumsum(lengths + between)
    starts = np.flatnonzero(breaks >= layout.BLOCK)
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, np.array([page.width, page.height] * 2, dtype=np.float32), out=boxes)
    text = "".join(chain.from_iterable(zip(separators, texts, strict=True)))
    return _Read(page, text, np.stack((ends - lengths, ends), axis=1), boxes, starts, heights[starts], tags[starts])


def _join_lines(
    texts: list[str], breaks: Array, tags: Array, lengths: Ints, separators: list[str], vocabulary: Callable[[], set[str]]
) -> None:
    """Set the separators between lines and paragraphs.

    A sentence that runs on into the next column stays one paragraph. A word that was parted at a line's end is written as one:
    without its hyphen, unless it is written with one elsewhere.
    """
    changes = np.flatnonzero(breaks)
    for at, kind, same in zip(
        changes.tolist(), breaks[changes].tolist(), (tags[changes] == tags[changes - 1] & ~_FIRST).tolist(), strict=True
    ):
        before, after = texts[at - 1], texts[at]
        if at and same and kind == layout.COLUMN and after[:1].islower() and not _ENDS.search(before):
            kind = breaks[at] = layout.LINE
        separators[at] = _SEPARATORS[kind]
        if kind == layout.LINE and _is_parted(before, after):
            separators[at] = ""
            if _drops_hyphen(before, after, vocabulary):
                texts[at - 1] = before[:-1]
                lengths[at - 1] -= 1


def _is_parted(before: str, after: str) -> bool:
    """Return whether the last word of a line and the first of the next are one that a hyphen parts."""
    return before[-1:] in _HYPHENS and before[-2:-1].isalpha() and after[:1].isalnum()


def _drops_hyphen(before: str, after: str, vocabulary: Callable[[], set[str]]) -> bool:
    """Return whether the parted word is written without the hyphen."""
    return before[-1] == _SOFT or (after[0].islower() and not _compound(before, after, vocabulary()))


def _compound(before: str, after: str, vocabulary: set[str]) -> bool:
    """Return whether the two halves are one of the document's hyphenated words rather than one word."""
    after = after.rstrip(".,;:!?)]”’\"'")
    return f"{before[:-1]}-{after}" in vocabulary and before[:-1] + after not in vocabulary


def _close(texts: Sequence[str], separators: list[str], breaks: Array, order: Ints, glued: Mask | None) -> None:
    """Take spaces out where the script writes none: within what the engine cut apart, and at the ends of its lines."""
    if glued is not None:
        follows = np.append(False, order[1:] == order[:-1] + 1) & glued[order] & (breaks == layout.SAME)
        for at in np.flatnonzero(follows).tolist():
            separators[at] = ""
    for at in np.flatnonzero(breaks == layout.LINE).tolist():
        if at and UNSPACED.match(texts[at][0]) and UNSPACED.match(texts[at - 1][-1]):
            separators[at] = ""


def _glue(texts: Sequence[str], separators: list[str], boxes: Floats, lines: Ints) -> None:
    """Take the space out between words that touch: engines cut words where the script turns round, as in "(שלום)"."""
    touching = np.maximum(boxes[1:, 0] - boxes[:-1, 2], boxes[:-1, 0] - boxes[1:, 2]) < 0.05 * (boxes[1:, 3] - boxes[1:, 1])
    for at in np.flatnonzero(touching & (lines[1:] == lines[:-1])).tolist():
        if separators[at + 1] == " " and (RTL.search(texts[at]) is None) != (RTL.search(texts[at + 1]) is None):
            separators[at + 1] = ""


def _joined(read: Sequence[_Read]) -> tuple[str, tuple[Page, ...]]:
    """Return the document's text and its pages."""
    pages, at = [], 0
    for number, each in enumerate(read, start=1):
        span = Span(at, at + len(each.text))
        words = Words(each.spans + at, each.boxes)
        page = each.page
        pages.append(Page(number, page.width, page.height, span, words, page.label, page.rotation))
        at = span.end + len(PAGE_BREAK)
    return PAGE_BREAK.join(each.text for each in read), tuple(pages)


def _blocks(read: Sequence[_Read], pages: Sequence[Page]) -> tuple[Block, ...]:
    """Return running headers and footers, annotations, paragraphs and headings, in the order of the text.

    Headings are short blocks in letters clearly larger than the body's; the larger, the higher.
    """
    if not any(len(each.block_starts) for each in read):
        return ()
    spans = np.concatenate([_block_spans(each, page) for each, page in zip(read, pages, strict=True)])
    heights = np.concatenate([each.block_heights for each in read])
    tags = np.concatenate([each.block_tags for each in read])
    lengths = spans[:, 1] - spans[:, 0]
    body = _weighted_median(heights, lengths)
    is_heading = (heights >= _HEADING_RATIO * body) & (lengths <= _HEADING_CHARACTERS) & (tags == layout.BODY)
    sizes = _distinct_sizes(heights[is_heading])
    rows = zip(spans.tolist(), heights.tolist(), is_heading.tolist(), tags.tolist(), strict=True)
    blocks = []
    for (start, end), height, heading, tag in rows:
        if tag:
            blocks.append(Block(_KINDS[tag & 3], Span(start, end), int(tag > 3)))
        elif heading:
            level = min(sum(size > height * _SAME_SIZE for size in sizes) + 1, 6)
            blocks.append(Block("heading", Span(start, end), level))
        else:
            blocks.append(Block("paragraph", Span(start, end), 0))
    return tuple(blocks)


def _block_spans(read: _Read, page: Page) -> Ints:
    """Return the spans of a page's blocks, (b, 2), in characters of the document."""
    if not len(read.block_starts):
        return np.empty((0, 2), np.int64)
    last = np.append(read.block_starts[1:], len(read.spans)) - 1
    return np.stack((page.words.spans[read.block_starts, 0], page.words.spans[last, 1]), axis=1)


def _distinct_sizes(heights: Array) -> list[float]:
    """Return the sizes of headings, largest first; sizes closer than _SAME_SIZE are one, seen through two fonts."""
    sizes: list[float] = []
    for size in np.unique(np.round(heights * 2))[::-1] / 2:
        if not sizes or sizes[-1] > _SAME_SIZE * size:
            sizes.append(float(size))
    return sizes


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])

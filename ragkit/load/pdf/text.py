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
from typing import Any

import numpy as np

from ragkit.core.types import Block, Floats, Ints, Page, Span, Words
from ragkit.load.pdf import headers_footers, layout
from ragkit.load.pdf.scripts import RTL, UNSPACED, is_plain, mend

PAGE_BREAK = "\n\f\n"
BATCH = 64  # pages laid out together
_SEPARATORS = {layout.SAME: " ", layout.LINE: "\n", layout.BLOCK: "\n\n", layout.COLUMN: "\n\n"}
_HEADING_RATIO = 1.13  # a heading's letters against the body's
_HEADING_CHARACTERS = 200
_ENDS = re.compile(r"[.!?:;。！？…][\"'”’)\]]*$")
_KINDS = {layout.HEADER: "header", layout.FOOTER: "footer", layout.NOTE: "annotation"}
_HYPHENS = ("-", "\u00ad", "\u2010")
_FAR, _LEAST = 1e6, 0.1  # points: the farthest corner of a box, the least side of one
_FIRST = 8  # of a word's tag: it begins a page
_SOFT = "\u00ad"


@dataclass(frozen=True, slots=True)
class Annotation:
    """Something a page holds beside its printed text: kind "field", "annotation" or "hidden"; box x0, y0, x1, y1 in points."""

    kind: str
    text: str
    box: tuple[float, float, float, float]
    why: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class PageWords:
    """What an engine says of one page: the words' texts, boxes (w, 4) float32 in points as displayed, and the number
    of the engine's line each stands on, (w,) int64; the page's displayed size in points, rotation in degrees, label.
    `glued` (w,) bool: no space before the word, where a script writes none; None: nowhere. `doubtful` (w,) bool: words that may
    not be seen; None: none. The last `notes` words are annotations."""

    texts: list[str]
    boxes: Floats
    lines: Ints
    width: float
    height: float
    rotation: int
    label: str | None = None
    glued: layout.Bools | None = None
    annotations: tuple[Annotation, ...] = ()
    doubtful: layout.Bools | None = None
    notes: int = 0

    @classmethod
    def blank(cls, width: float = 612, height: float = 792, rotation: int = 0, label: str | None = None) -> PageWords:
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
    """The document's text, pages and blocks. `on_page(0)` says that no page is being read any more."""
    on_page(0)
    pages = [_mended(page) for page in pages]
    parts = [_segments(pages[at : at + BATCH]) for at in range(0, len(pages), BATCH)]
    found = _headers_footers(parts, pages)
    vocabulary: set[str] = set()
    read: list[_Read] = []
    at = 0
    for part in parts:
        size = len(part.segments.first)
        own = headers_footers.SegmentRoles(found.roles[at : at + size], found.repeated[at : at + size])
        _set_notes(part, own)
        read += _read(part, own, lambda: vocabulary or _fill(vocabulary, pages))
        at += size
    text, joined = _joined(read)
    return text, joined, _blocks(read, joined)


def _mended(page: PageWords) -> PageWords:
    """A page whose crop box shows nothing has no size, and viewers show an empty sheet: so it is an empty Letter page."""
    if not (page.width > 0 and page.height > 0):
        return PageWords.blank(rotation=page.rotation, label=page.label)
    texts = mend(page.texts)
    return page if texts is page.texts else replace(page, texts=texts)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some pages: their words one after the other, and their segments. `words` and `starts` (p + 1,): where each page begins."""

    pages: Sequence[PageWords]
    texts: list[str]
    boxes: Floats
    lengths: Ints
    words: list[int]
    segments: layout.Segments
    starts: list[int]


def _segments(pages: Sequence[PageWords]) -> _Part:
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
    return _Part(pages, texts, boxes, lengths, words.tolist(), segments, np.searchsorted(segments.first, words).tolist())


def _headers_footers(parts: Sequence[_Part], pages: Sequence[PageWords]) -> headers_footers.SegmentRoles:
    """Over the whole document, since what runs through it is known by its repetition."""
    if len(parts) == 1:
        part = parts[0]
        segments, starts, texts = part.segments, part.starts, part.texts
    else:
        word, segment = 0, 0
        starts, pieces = [0], []
        for part in parts:
            pieces.append(replace(part.segments, first=part.segments.first + word, end=part.segments.end + word))
            starts += [segment + start for start in part.starts[1:]]
            word, segment = word + len(part.texts), segment + len(part.segments.first)
        names = layout.Segments.__slots__
        segments = layout.Segments(**{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names})
        texts = list(chain.from_iterable(part.texts for part in parts))
    return headers_footers.find(segments, starts, texts, [page.height for page in pages], [page.label for page in pages])


def _set_notes(part: _Part, own: headers_footers.SegmentRoles) -> None:
    for page, end, start, last in zip(part.pages, part.words[1:], part.starts[:-1], part.starts[1:], strict=True):
        if page.notes:
            notes = part.segments.first[start:last] >= end - page.notes
            own.roles[start:last][notes], own.repeated[start:last][notes] = layout.NOTE, False


def _fill(vocabulary: set[str], pages: Sequence[PageWords]) -> set[str]:
    vocabulary.update(chain.from_iterable(page.texts for page in pages))
    return vocabulary


def _read(part: _Part, own: headers_footers.SegmentRoles, vocabulary: Callable[[], set[str]]) -> Iterator[_Read]:
    scripts = [_script(page) for page in part.pages]
    plan = layout.read(part.segments, part.boxes, part.starts, own.roles, rtl=[rtl == _MOSTLY for rtl, _ in scripts])
    order = plan.order.tolist()
    texts, boxes, breaks = [part.texts[i] for i in order], part.boxes[plan.order], plan.breaks
    tags = (own.roles + 4 * own.repeated)[plan.segments] if own.roles.any() else np.zeros(len(order), np.int8)
    edges = np.flatnonzero(tags[1:] != tags[:-1]) + 1
    breaks[edges] = np.maximum(breaks[edges], layout.BLOCK)
    lengths = part.lengths[plan.order]
    separators = [" "] * len(texts)
    tags[np.array(part.words[:-1])[np.diff(part.words) > 0]] |= _FIRST  # nothing runs on over a page's end
    _join_lines(texts, breaks, tags, lengths, separators, vocabulary)
    tags &= ~_FIRST
    for page, (rtl, unspaced), start, end in zip(part.pages, scripts, part.words[:-1], part.words[1:], strict=True):
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
    """Whether some or most letters of a page run from right to left, and whether some belong to scripts without spaces."""
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
    breaks: Any,
    heights: Floats,
    tags: Any,
) -> _Read:
    between = np.fromiter(map(len, separators), dtype=np.int64, count=len(separators))
    ends = np.cumsum(lengths + between)
    starts = np.flatnonzero(breaks >= layout.BLOCK)
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, np.array([page.width, page.height] * 2, dtype=np.float32), out=boxes)
    text = "".join(chain.from_iterable(zip(separators, texts, strict=True)))
    return _Read(page, text, np.stack((ends - lengths, ends), axis=1), boxes, starts, heights[starts], tags[starts])


def _join_lines(
    texts: list[str], breaks: Any, tags: Any, lengths: Ints, separators: list[str], vocabulary: Callable[[], set[str]]
) -> None:
    """Separators between lines and paragraphs; a sentence that runs on into the next column stays one paragraph, and a word
    that was parted at a line's end is written as one: without its hyphen, unless it is written with one elsewhere."""
    changes = np.flatnonzero(breaks)
    for at, kind, same in zip(
        changes.tolist(), breaks[changes].tolist(), (tags[changes] == tags[changes - 1] & ~_FIRST).tolist(), strict=True
    ):
        before, after = texts[at - 1], texts[at]
        if at and same and kind == layout.COLUMN and after[:1].islower() and not _ENDS.search(before):
            kind = breaks[at] = layout.LINE
        separators[at] = _SEPARATORS[kind]
        if kind != layout.LINE or before[-1:] not in _HYPHENS or not before[-2:-1].isalpha() or not after[:1].isalnum():
            continue
        separators[at] = ""
        if before[-1] == _SOFT or (after[0].islower() and not _compound(before, after, vocabulary())):
            texts[at - 1] = before[:-1]
            lengths[at - 1] -= 1


def _compound(before: str, after: str, vocabulary: set[str]) -> bool:
    """Whether the two halves are one of the document's hyphenated words rather than one word."""
    after = after.rstrip(".,;:!?)]”’\"'")
    return f"{before[:-1]}-{after}" in vocabulary and before[:-1] + after not in vocabulary


def _close(texts: Sequence[str], separators: list[str], breaks: Any, order: Ints, glued: layout.Bools | None) -> None:
    """No space where the script writes none: within what the engine cut apart, and at the ends of its lines."""
    if glued is not None:
        follows = np.append(False, order[1:] == order[:-1] + 1) & glued[order] & (breaks == layout.SAME)
        for at in np.flatnonzero(follows).tolist():
            separators[at] = ""
    for at in np.flatnonzero(breaks == layout.LINE).tolist():
        if at and UNSPACED.match(texts[at][0]) and UNSPACED.match(texts[at - 1][-1]):
            separators[at] = ""


def _glue(texts: Sequence[str], separators: list[str], boxes: Floats, lines: Ints) -> None:
    """Engines cut words where the script turns round, as in "(שלום)": what touches is written without a space."""
    touching = np.maximum(boxes[1:, 0] - boxes[:-1, 2], boxes[:-1, 0] - boxes[1:, 2]) < 0.05 * (boxes[1:, 3] - boxes[1:, 1])
    for at in np.flatnonzero(touching & (lines[1:] == lines[:-1])).tolist():
        if separators[at + 1] == " " and (RTL.search(texts[at]) is None) != (RTL.search(texts[at + 1]) is None):
            separators[at + 1] = ""


def _joined(read: Sequence[_Read]) -> tuple[str, tuple[Page, ...]]:
    pages, at = [], 0
    for number, part in enumerate(read, start=1):
        span = Span(at, at + len(part.text))
        words = Words(part.spans + at, part.boxes)
        page = part.page
        pages.append(Page(number, page.width, page.height, span, words, page.label, page.rotation))
        at = span.end + len(PAGE_BREAK)
    return PAGE_BREAK.join(part.text for part in read), tuple(pages)


def _blocks(read: Sequence[_Read], pages: Sequence[Page]) -> tuple[Block, ...]:
    """Running headers and footers; paragraphs; and headings: short blocks in letters clearly larger than the body's; the
    larger, the higher."""
    spans, heights, tags = [], [], []
    for part, page in zip(read, pages, strict=True):
        if not len(part.block_starts):
            continue
        last = np.append(part.block_starts[1:], len(part.spans)) - 1
        spans.append(np.stack((page.words.spans[part.block_starts, 0], page.words.spans[last, 1]), axis=1))
        heights.append(part.block_heights)
        tags.append(part.block_tags)
    if not spans:
        return ()
    span, height, tag = np.concatenate(spans), np.concatenate(heights), np.concatenate(tags)
    length = span[:, 1] - span[:, 0]
    body = _weighted_median(height, length)
    heading = (height >= _HEADING_RATIO * body) & (length <= _HEADING_CHARACTERS) & (tag == layout.BODY)
    sizes: list[float] = []
    for size in np.unique(np.round(height[heading] * 2))[::-1] / 2:
        if not sizes or sizes[-1] > 1.06 * size:  # sizes closer than that are one, seen through two fonts
            sizes.append(float(size))
    blocks = []
    for (start, end), tall, is_heading, role in zip(span.tolist(), height.tolist(), heading.tolist(), tag.tolist(), strict=True):
        if role:
            blocks.append(Block(_KINDS[role & 3], Span(start, end), int(role > 3)))
            continue
        level = min(sum(size > tall * 1.06 for size in sizes) + 1, 6) if is_heading else 0
        blocks.append(Block("heading" if is_heading else "paragraph", Span(start, end), level))
    return tuple(blocks)


def _weighted_median(values: Any, weights: Any) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])

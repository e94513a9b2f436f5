"""Running headers and footers: text that stands at the same place of page after page, page numbers included.

The segments of all pages (`ragkit.load.pdf.layout`) and their texts go in; the role of each segment comes out, and whether it
only repeats what an earlier page says. Repetition alone decides, so a document of one page has no header:

- a text that recurs within three pages on the same line of the page's upper or lower eighth, in letters no larger than the
  body's, where numbers may run on; or anywhere on the page if it is turned (a note of the download along the margin);
- a number alone on its line there that is the page's label, or grows from page to page.

Nothing of the body may stand beside it or beyond it, or it is the head of a table that goes on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ragkit.core.types import Mask
from ragkit.load.pdf.layout import BODY, FOOTER, HEADER, Bytes, Segments

_ZONE = 0.125  # of the page's height, above and below
_LARGER = 1.15  # than the body: a heading, and not a running header
_SAME_LINE = 3.0  # points
_SHORT = 5  # pages; of a longer document, a text recurs on three pages at least
_NEAR = 3  # pages; even and odd pages have headers of their own, and a chapter's first page often none
_LETTERS = 3  # a text has as many, or it is a number
_LONG = 240  # characters; no running line is longer
_NUMBER = re.compile(r"\d+|\b[ivxlc]{1,7}\b")
_ALONE = re.compile(r"\W*(?:page|p\.|seite|s\.)?\W*(\d{1,5}|[ivxlc]{1,7})\W*(?:(?:of|/|von|de)\W*\d{1,5}\W*)?", re.IGNORECASE)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}


@dataclass(frozen=True, slots=True, eq=False)
class SegmentRoles:
    """For each segment, (s,): its role (BODY, HEADER or FOOTER), and whether it only repeats an earlier page."""

    roles: Bytes
    repeated: Mask


@dataclass(frozen=True, slots=True)
class _Line:
    """A segment near the upper or lower edge of its page, or turned."""

    segment: int
    page: int
    y: float  # from the page's upper edge, or for a footer from its lower one
    zone: int
    text: str


def find(
    s: Segments, starts: Sequence[int], texts: Sequence[str], heights: Sequence[float], labels: Sequence[str | None]
) -> SegmentRoles:
    """Return the roles of the segments of all pages.

    starts (p + 1,): where each page's segments begin; texts of the words; heights (p,) of the pages, points; labels (p,).
    """
    count = len(s.first)
    found = SegmentRoles(np.zeros(count, np.int8), np.zeros(count, bool))
    if len(starts) < 3 or not count:
        return found
    lines = _edge_lines(s, starts, texts, heights)
    for group in _running(lines, least=2 if len(starts) - 1 <= _SHORT else 3):
        _mark(found, group)
    numbers = [line for line in lines if _ALONE.fullmatch(line.text)]
    for line in _numbered(numbers, labels):
        found.roles[line.segment], found.repeated[line.segment] = line.zone, True
    lone = np.zeros(count, bool)
    lone[[line.segment for line in numbers]] = True
    for start, end in pairwise(starts):
        if found.roles[start:end].any():
            page = slice(start, end)
            _only_outside(s, found.roles[page], lone[page], page)
            _beside(s, found, lone, page)
    found.repeated[found.roles == BODY] = False
    return found


def _edge_lines(s: Segments, starts: Sequence[int], texts: Sequence[str], heights: Sequence[float]) -> list[_Line]:
    """Return the segments near the upper and lower edges of the pages, in letters no larger than the body's, and turned ones."""
    height = np.repeat(np.asarray(heights, dtype=float), np.diff(starts))
    upper = s.y1 <= _ZONE * height
    zones = np.where(upper, HEADER, np.where(s.turned | (s.y0 >= (1 - _ZONE) * height), FOOTER, BODY))
    zones[~s.turned & (s.heights > _LARGER * _body_height(s))] = BODY
    candidates = np.flatnonzero(zones)
    pages = (np.searchsorted(starts, candidates, side="right") - 1).tolist()
    bounds = zip(s.first[candidates].tolist(), s.end[candidates].tolist(), strict=True)
    places = (s.y1 - np.where(zones == FOOTER, height, 0))[candidates]  # from the nearer edge: a page may be turned or cut
    rows = zip(candidates.tolist(), pages, places.tolist(), zones[candidates].tolist(), bounds, strict=True)
    return [
        _Line(at, page, y, zone, " ".join(texts[first:end]).lower())
        for at, page, y, zone, (first, end) in rows
        if end - first < _LONG // 2
    ]


def _only_outside(s: Segments, roles: Bytes, lone: Mask, page: slice) -> None:
    """Make segments that stand beside or within the body a part of it; a number by itself does not count as body."""
    upright = ~s.turned[page]
    middle = (s.y0[page] + s.y1[page]) / 2
    body = upright & (roles == BODY) & ~lone
    if not body.any():
        return
    top, bottom = s.y0[page][body].min(), s.y1[page][body].max()
    roles[upright & (roles == HEADER) & (middle > top)] = BODY
    roles[upright & (roles == FOOTER) & (middle < bottom)] = BODY


def _beside(s: Segments, roles: SegmentRoles, lone: Mask, page: slice) -> None:
    """Give a number on the line of a running text that text's role: it is the page number."""
    marked = np.flatnonzero(roles.roles[page]) + page.start
    for at in np.flatnonzero(lone[page] & (roles.roles[page] == BODY)) + page.start:
        level = marked[np.abs((s.y0 + s.y1)[marked] - (s.y0 + s.y1)[at]) < s.heights[at]]
        if len(level):
            roles.roles[at], roles.repeated[at] = roles.roles[level[0]], True


def _mark(roles: SegmentRoles, lines: Sequence[_Line]) -> None:
    """Give lines that say the same their role; those after the first page only repeat it."""
    first = min(line.page for line in lines)
    for line in lines:
        known = roles.roles[line.segment] != BODY
        roles.roles[line.segment] = line.zone
        repeats = line.page != first
        roles.repeated[line.segment] = (roles.repeated[line.segment] or repeats) if known else repeats


def _body_height(s: Segments) -> float:
    """Return the height of most of the text: the median of the segments', weighted by their words."""
    order = np.argsort(s.heights)
    reached = np.cumsum((s.end - s.first)[order])
    return float(s.heights[order][np.searchsorted(reached, reached[-1] / 2)])


def _running(lines: Sequence[_Line], *, least: int) -> list[list[_Line]]:
    """Return groups of lines that say the same, but for numbers, at the same place of at least `least` pages."""
    groups = defaultdict(list)
    for line in lines:
        if len(line.text) <= _LONG and (pattern := _NUMBER.sub("#", line.text)) and _letters(pattern) >= _LETTERS:
            groups[line.zone, pattern].append(line)
    running = []
    for (_, pattern), group in groups.items():
        # Short texts with a number ("Table 3") run only where the number stays or grows with the pages.
        certain = "#" not in pattern or _letters(pattern) >= 12
        recurring = (near for near in map(_near, _places(group)) if len({line.page for line in near}) >= least)
        running += [near for near in recurring if certain or _runs(near)]
    return running


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _places(group: list[_Line]) -> list[list[_Line]]:
    """Return the group parted into lines of one height on the page."""
    ordered = sorted(group, key=lambda line: line.y)
    parts = [[ordered[0]]]
    for line in ordered[1:]:
        if line.y - parts[-1][-1].y > _SAME_LINE:
            parts.append([])
        parts[-1].append(line)
    return parts


def _near(place: list[_Line]) -> list[_Line]:
    """Return the lines that have another one a few pages before or after."""
    ordered = sorted(place, key=lambda line: (line.page, line.segment))
    pages = sorted({line.page for line in ordered})
    near = {page for pair in pairwise(pages) if pair[1] - pair[0] <= _NEAR for page in pair}
    return [line for line in ordered if line.page in near]


def _runs(lines: Sequence[_Line]) -> bool:
    """Return whether the numbers in the lines run with the pages, or stay the same."""
    offsets = {tuple(value - line.page for value in _values(line.text)) for line in lines}
    return len(offsets) == 1 or len({_values(line.text) for line in lines}) == 1


def _values(text: str) -> tuple[int, ...]:
    return tuple(_value(word) for word in _NUMBER.findall(text))


def _value(word: str) -> int:
    """Return the value of a decimal or a Roman number."""
    if word.isdigit():
        return int(word[:9])
    digits = [_ROMAN[letter] for letter in word]
    return sum(-digit if digit < after else digit for digit, after in zip(digits, [*digits[1:], 0], strict=True))


def _numbered(lines: Sequence[_Line], labels: Sequence[str | None]) -> list[_Line]:
    """Return the page numbers: lines that are their page's label, or grow with the pages at one place."""
    numbered = [line for line in lines if labels[line.page] and line.text.strip() == str(labels[line.page]).lower()]
    for zone in (HEADER, FOOTER):
        if group := [line for line in lines if line.zone == zone]:
            for place in _places(group):
                numbered += _growing(sorted(place, key=lambda line: line.page))
    return numbered


def _growing(place: list[_Line]) -> list[_Line]:
    """Return the lines whose number grows by one with each page, or all of them where they only ever grow."""
    values = [_page_number(line) for line in place]
    pages = [line.page for line in place]
    if len(place) >= 3 and all(a < b for a, b in pairwise(values)) and len(set(pages)) == len(pages):
        return place
    offsets = defaultdict(list)
    for line, value in zip(place, values, strict=True):
        offsets[value - line.page].append(line)
    return [line for group in offsets.values() if len({each.page for each in group}) >= 2 for line in group]


def _page_number(line: _Line) -> int:
    match = _ALONE.fullmatch(line.text)
    return _value(match[1]) if match else 0

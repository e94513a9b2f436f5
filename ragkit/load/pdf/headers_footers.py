"""Running headers and footers: what stands at the same place of page after page, page numbers among it.

In go the segments of all pages (`ragkit.load.pdf.layout`) and their texts; out comes which of them are header or footer, and
which only repeat what an earlier page says. Found by repetition alone, so a document of one page has none:

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
from typing import Any

import numpy as np

from ragkit.load.pdf.layout import BODY, FOOTER, HEADER, Bools, Bytes, Segments

_ZONE = 0.125  # of the page's height, above and below
_LARGER = 1.15  # than the body: a heading, and not furniture
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
    """Of each segment, (s,): its role (BODY, HEADER or FOOTER), and whether it only repeats an earlier page."""

    roles: Bytes
    repeated: Bools


@dataclass(frozen=True, slots=True)
class _Line:
    segment: int
    page: int
    y: float  # from the page's upper edge, or for a footer from its lower one
    zone: int
    text: str


def find(s: Segments, starts: Sequence[int], texts: Sequence[str], heights: Any, labels: Sequence[str | None]) -> SegmentRoles:
    """starts (p + 1,): where each page's segments begin; texts of the words; heights (p,) of the pages, points; labels (p,)."""
    count = len(s.first)
    found = SegmentRoles(np.zeros(count, np.int8), np.zeros(count, bool))
    if len(starts) < 3 or not count:
        return found
    height = np.repeat(np.asarray(heights, dtype=float), np.diff(starts))
    body = _body_height(s)
    upper = s.y1 <= _ZONE * height
    zones = np.where(upper, HEADER, np.where(s.turned | (s.y0 >= (1 - _ZONE) * height), FOOTER, BODY))
    zones[~s.turned & (s.heights > _LARGER * body)] = BODY
    candidates = np.flatnonzero(zones)
    pages = (np.searchsorted(starts, candidates, side="right") - 1).tolist()
    bounds = zip(s.first[candidates].tolist(), s.end[candidates].tolist(), strict=True)
    places = (s.y1 - np.where(zones == FOOTER, height, 0))[candidates]  # from the nearer edge: a page may be turned or cut
    rows = zip(candidates.tolist(), pages, places.tolist(), zones[candidates].tolist(), bounds, strict=True)
    lines = [_Line(at, page, y, zone, " ".join(texts[a:b]).lower()) for at, page, y, zone, (a, b) in rows if b - a < _LONG // 2]
    for kept in _running(lines, least=2 if len(starts) - 1 <= _SHORT else 3):
        _mark(found, kept)
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


def _only_outside(s: Segments, roles: Bytes, lone: Bools, page: slice) -> None:
    """What stands beside or within the body is taken back; a number by itself is not yet body."""
    upright = ~s.turned[page]
    middle = (s.y0[page] + s.y1[page]) / 2
    body = upright & (roles == BODY) & ~lone
    if not body.any():
        return
    top, bottom = s.y0[page][body].min(), s.y1[page][body].max()
    roles[upright & (roles == HEADER) & (middle > top)] = BODY
    roles[upright & (roles == FOOTER) & (middle < bottom)] = BODY


def _beside(s: Segments, found: SegmentRoles, lone: Bools, page: slice) -> None:
    """A number on the line of a running text is its page number."""
    marked = np.flatnonzero(found.roles[page]) + page.start
    for at in np.flatnonzero(lone[page] & (found.roles[page] == BODY)) + page.start:
        level = marked[np.abs((s.y0 + s.y1)[marked] - (s.y0 + s.y1)[at]) < s.heights[at]]
        if len(level):
            found.roles[at], found.repeated[at] = found.roles[level[0]], True


def _mark(found: SegmentRoles, lines: Sequence[_Line]) -> None:
    """The first of them says it for the document; those after it only repeat it."""
    first = min(line.page for line in lines)
    for line in lines:
        known = found.roles[line.segment] != BODY
        found.roles[line.segment] = line.zone
        repeats = line.page != first
        found.repeated[line.segment] = (found.repeated[line.segment] or repeats) if known else repeats


def _body_height(s: Segments) -> float:
    """The height of most of the text: the median of the segments', weighted by their words."""
    order = np.argsort(s.heights)
    reached = np.cumsum((s.end - s.first)[order])
    return float(s.heights[order][np.searchsorted(reached, reached[-1] / 2)])


def _running(lines: Sequence[_Line], *, least: int) -> list[list[_Line]]:
    """Groups of lines that say the same at the same place of at least as many pages, numbers aside."""
    groups = defaultdict(list)
    for line in lines:
        if len(line.text) <= _LONG and (pattern := _NUMBER.sub("#", line.text)) and _letters(pattern) >= _LETTERS:
            groups[line.zone, pattern].append(line)
    found = []
    for (_, pattern), group in groups.items():
        for place in _places(group):
            near = _near(place)
            if len({line.page for line in near}) < least:
                continue
            # Short texts with a number ("Table 3") are furniture only where the number stays or runs with the pages.
            if "#" not in pattern or _letters(pattern) >= 12 or _runs(near):
                found.append(near)
    return found


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _places(group: list[_Line]) -> list[list[_Line]]:
    """The group parted into lines of one height on the page."""
    ordered = sorted(group, key=lambda line: line.y)
    parts = [[ordered[0]]]
    for line in ordered[1:]:
        if line.y - parts[-1][-1].y > _SAME_LINE:
            parts.append([])
        parts[-1].append(line)
    return parts


def _near(place: list[_Line]) -> list[_Line]:
    """Those with another one a few pages before or after."""
    ordered = sorted(place, key=lambda line: (line.page, line.segment))
    pages = sorted({line.page for line in ordered})
    kept = {page for pair in pairwise(pages) if pair[1] - pair[0] <= _NEAR for page in pair}
    return [line for line in ordered if line.page in kept]


def _runs(lines: Sequence[_Line]) -> bool:
    offsets = {tuple(value - line.page for value in _values(line.text)) for line in lines}
    return len(offsets) == 1 or len({_values(line.text) for line in lines}) == 1


def _values(text: str) -> tuple[int, ...]:
    return tuple(_value(word) for word in _NUMBER.findall(text))


def _value(word: str) -> int:
    """Of a decimal or a Roman number."""
    if word.isdigit():
        return int(word[:9])
    digits = [_ROMAN[letter] for letter in word]
    return sum(-one if one < after else one for one, after in zip(digits, [*digits[1:], 0], strict=True))


def _numbered(lines: Sequence[_Line], labels: Sequence[str | None]) -> list[_Line]:
    """Page numbers: a label, or one of a row of numbers at one place that grow with the pages."""
    found = [line for line in lines if labels[line.page] and line.text.strip() == str(labels[line.page]).lower()]
    for zone in (HEADER, FOOTER):
        if group := [line for line in lines if line.zone == zone]:
            for place in _places(group):
                found += _growing(sorted(place, key=lambda line: line.page))
    return found


def _growing(place: list[_Line]) -> list[_Line]:
    """The lines whose number is the next page's less one, or all of them where they only ever grow."""
    values = []
    for line in place:
        match = _ALONE.fullmatch(line.text)
        values.append(_value(match[1]) if match else 0)
    pages = [line.page for line in place]
    if len(place) >= 3 and all(a < b for a, b in pairwise(values)) and len(set(pages)) == len(pages):
        return place
    offsets = defaultdict(list)
    for line, value in zip(place, values, strict=True):
        offsets[value - line.page].append(line)
    return [line for group in offsets.values() if len({one.page for one in group}) >= 2 for line in group]

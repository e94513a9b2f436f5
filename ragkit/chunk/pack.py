"""Pieces become chunks within a budget of tokens: spans are made from cut positions and token offsets. Knows no documents.

The text is tokenised once; a range holds the tokens whose last character it holds. Packing is the paragraph breaking of
Knuth and Plass (1981) applied to chunks: of all ways to cut, it takes the way with the least sum of a price per chunk, the
square of the room left unused, a price for the kind of each cut, and a price for mixing parts of paragraphs. So chunks are of
even size, and cut at paragraphs rather than sentences, at sentences rather than clauses. Filling every chunk to the brim finds
less at equal retrieved length than leaving paragraphs together. Time is linear: the choices per chunk are bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ragkit.chunk.segment import CLAUSE, GRAPHEME, LINE, SECTION, Cuts, can_cut, cuts_of, extent, fine_cuts, merge
from ragkit.core.types import Ints

SLICE = 1 << 18  # characters tokenised at a time; bounds a tokenizer's memory, which is 1 GB for 10 MB in one piece
SLACK = 1.0  # price of an empty chunk; half full costs a quarter
EACH = 0.3  # price of a chunk, so that of equally good ways the one with fewer chunks wins
PRICES = np.array([4.0, 1.6, 1.2, 1.0, 0.05, 0.05, 0.0, -0.2])  # of a cut, by strength, GRAPHEME to SECTION
MIXED = 1.0  # price of holding part of one paragraph together with text of another; 1 beat 0 and 0.3 on span gold
CHOICES = 64  # cuts considered per chunk, about, at most


@dataclass(frozen=True, slots=True, eq=False)
class Ruler:
    """Measures ranges of one text in tokens: `ends` (t,) int64, ascending character offsets of the tokens' ends."""

    ends: Ints

    def before(self, at: Ints) -> Ints:
        """Return how many tokens end at or before each position."""
        return np.searchsorted(self.ends, at, side="right").astype(np.int64)

    def count(self, start: int, end: int) -> int:
        """Return how many tokens end in a range."""
        low, high = self.before(np.array([start, end]))
        return int(high - low)


def measure(text: str, cuts: Cuts, token_spans: Callable[[str], Ints]) -> Ruler:
    """Tokenise the text, in slices that begin at cuts so that no word is split."""
    strong = cuts.at[cuts.strength > CLAUSE]
    multiples = np.arange(SLICE, len(text), SLICE)
    starts = strong[np.searchsorted(strong, multiples).clip(max=len(strong) - 1)] if len(strong) else []
    edges = np.unique(np.concatenate([[0], starts, [len(text)]]).astype(np.int64)).tolist()
    ends = [token_spans(text[a:b])[:, 1].astype(np.int64) + a for a, b in pairwise(edges)]
    joined = np.concatenate(ends) if ends else np.empty(0, np.int64)
    return Ruler(np.maximum.accumulate(joined))


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The text between cuts, without blanks at its ends: (p,) int64 `starts`, `ends`, and `strength` of the cut before each."""

    starts: Ints
    ends: Ints
    strength: Ints

    def __len__(self) -> int:
        return len(self.starts)


def pieces_between(text: str, start: int, end: int, cuts: Cuts) -> Pieces:
    """Return the pieces of text[start:end]."""
    start, end = extent(text, start, end)
    low, high = np.searchsorted(cuts.at, [start + 1, end])
    starts = np.concatenate([[start], cuts.at[low:high]])
    ends = np.append(starts[1:], end)
    for i, at in enumerate(ends.tolist()):
        while text[at - 1].isspace():
            at -= 1
        ends[i] = at
    return Pieces(starts, ends, np.concatenate([[SECTION], cuts.strength[low:high]]))


def pack(text: str, start: int, end: int, cuts: Cuts, ruler: Ruler, *, budget: int, overlap: int = 0) -> list[tuple[int, int]]:
    """Cut text[start:end] into ranges of at most `budget` tokens; each repeats up to `overlap` tokens of the range before.

    A range is longer than the budget only when it is one grapheme.
    """
    start, end = extent(text, start, end)
    if start == end:
        return []
    if ruler.count(start, end) <= budget:
        return [(start, end)]
    pieces = _refined(text, _thinned(pieces_between(text, start, end, cuts), ruler, budget), ruler, budget)
    below, above = ruler.before(pieces.starts), ruler.before(pieces.ends)
    begins = _begins(text, pieces, ruler, below, above, overlap)
    offered = ruler.before(begins)
    too_much = above - offered > budget  # a piece that does not fit with the tokens it would repeat: it repeats none
    begins, offered = np.where(too_much, pieces.starts, begins), np.where(too_much, below, offered)
    firsts = _best_cuts(offered, above, pieces.strength, budget)
    lasts = np.append(firsts[1:] - 1, len(pieces) - 1)
    return list(zip(begins[firsts].tolist(), pieces.ends[lasts].tolist(), strict=True))


def _best_cuts(below: Ints, above: Ints, strength: Ints, budget: int) -> Ints:
    """Return the pieces that begin a chunk, (c,) int64, at the least total price (dynamic programming over the last cut)."""
    count = len(below)
    below = np.maximum.accumulate(below)
    lowest = np.minimum(np.searchsorted(below, above - budget), np.arange(count)).tolist()
    paragraph, resumed_until = _paragraphs(strength)
    ends_paragraph = np.append(strength[1:] >= LINE, True).tolist()
    price_after = np.append(PRICES[strength[1:]], 0.0).tolist()
    best, begin_of_last = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    for last in range(count):
        low = lowest[last]
        room = 1.0 - (above[last] - below[low : last + 1]) / budget
        prices = best[low : last + 1] + SLACK * room * room
        prices += MIXED * (resumed_until[low : last + 1] <= last)
        if not ends_paragraph[last]:
            prices[: max(0, paragraph[last] - low)] += MIXED
        choice = int(prices.argmin())
        best[last + 1] = prices[choice] + EACH + price_after[last]
        begin_of_last[last + 1] = low + choice
    firsts = [int(begin_of_last[count])]
    while firsts[-1] > 0:
        firsts.append(int(begin_of_last[firsts[-1]]))
    return np.array(firsts[::-1], dtype=np.int64)


def _paragraphs(strength: Ints) -> tuple[list[int], Ints]:
    """Return (first, resumed_until), one entry per piece.

    first: the first piece of the paragraph, or of the line that stands alone like one. resumed_until: for a chunk that begins
    with this piece within a paragraph, the piece after that paragraph; a number beyond all pieces if it begins a paragraph.
    """
    count = len(strength)
    opens = strength >= LINE
    opens[0] = True
    edges = np.append(np.flatnonzero(opens), count)
    until = edges[np.searchsorted(edges, np.arange(count), side="right")]
    first = np.maximum.accumulate(np.where(opens, np.arange(count), 0))
    return first.tolist(), np.where(opens, count + 1, until)


def _begins(text: str, pieces: Pieces, ruler: Ruler, below: Ints, above: Ints, overlap: int) -> Ints:
    """Return where a chunk that begins with each piece begins with its overlap, (p,) int64.

    It repeats whole pieces if one fits into `overlap` tokens, else the end of the piece before it, from a clause or a word on.
    """
    begins = pieces.starts.copy()
    if overlap == 0 or len(pieces) == 1:
        return begins
    first = np.searchsorted(below, above[:-1] - overlap)
    whole = first < np.arange(1, len(pieces))
    begins[1:][whole] = pieces.starts[first[whole]]
    for i in np.flatnonzero(~whole).tolist():
        earliest = int(ruler.ends[above[i] - overlap - 1])  # the last `overlap` tokens begin at or after this token's end
        tail = fine_cuts(text, earliest - 1, int(pieces.ends[i]))
        tail = tail.where(tail.at >= earliest)
        clauses = tail.at[tail.strength == CLAUSE]
        if len(tail):
            begins[i + 1] = clauses[0] if len(clauses) else tail.at[0]
    return begins


def _thinned(pieces: Pieces, ruler: Ruler, budget: int) -> Pieces:
    """Drop cuts where there are very many per chunk: of each CHOICES-th of the budget, keep the strongest, then the last."""
    step = budget // CHOICES
    if step < 2:
        return pieces
    keep = _strongest(ruler.before(pieces.starts[1:]) // step, pieces.strength[1:])
    starts = np.append(pieces.starts[0], pieces.starts[1:][keep])
    before = np.append(pieces.ends[:-1][keep], pieces.ends[-1])
    return Pieces(starts, before, np.append(pieces.strength[0], pieces.strength[1:][keep]))


def _strongest(bucket: Ints, strength: Ints) -> Ints:
    """Return the positions of the strongest (then last) of each bucket; buckets ascending."""
    order = np.lexsort((np.arange(len(bucket)), strength, bucket))
    last = np.append(bucket[order][1:] != bucket[order][:-1], True) if len(order) else np.empty(0, np.bool_)
    return np.sort(order[last])


def _refined(text: str, pieces: Pieces, ruler: Ruler, budget: int) -> Pieces:
    """Cut pieces over the budget at clauses and words, and those still over it at graphemes."""
    over = np.flatnonzero(ruler.before(pieces.ends) - ruler.before(pieces.starts) > budget)
    if len(over) == 0:
        return pieces
    extra = [_inner_cuts(text, int(pieces.starts[i]), int(pieces.ends[i]), ruler, budget) for i in over.tolist()]
    known = Cuts(pieces.starts[1:], pieces.strength[1:])
    return pieces_between(text, int(pieces.starts[0]), int(pieces.ends[-1]), merge(known, *extra))


def _inner_cuts(text: str, start: int, end: int, ruler: Ruler, budget: int) -> Cuts:
    step = max(1, budget // 32)
    fine = fine_cuts(text, start, end)
    fine = fine.where(np.isin(np.arange(len(fine)), _strongest(ruler.before(fine.at) // step, fine.strength)))
    parts = pieces_between(text, start, end, fine)
    over = np.flatnonzero(ruler.before(parts.ends) - ruler.before(parts.starts) > budget)
    graphemes: list[tuple[int, int]] = []
    for i in over.tolist():
        graphemes += _grapheme_cuts(text, int(parts.starts[i]), int(parts.ends[i]), ruler, step)
    return merge(fine, cuts_of(graphemes))


def _grapheme_cuts(text: str, start: int, end: int, ruler: Ruler, step: int) -> list[tuple[int, int]]:
    """Return cuts in a run without words, after every `step` tokens, moved left to the edge of a grapheme."""
    low, high = ruler.before(np.array([start, end - 1])).tolist()
    cuts, previous = [], start
    for token_end in np.unique(ruler.ends[low + step - 1 : high : step]).tolist():
        at = token_end
        while at > previous and not can_cut(text, at):
            at -= 1
        if at > previous and not text[at].isspace():
            cuts.append((at, GRAPHEME))
        previous = max(previous, token_end if at <= previous else at)
    return cuts


def bisect(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return two halves at the grapheme boundary nearest the middle, or the range itself when it is one grapheme."""
    middle = (start + end) // 2
    for distance in range(end - start):
        for at in (middle - distance, middle + distance):
            if start < at < end and can_cut(text, at):
                halves = [extent(text, start, at), extent(text, at, end)]
                return [half for half in halves if half[0] < half[1]]
    return [(start, end)]

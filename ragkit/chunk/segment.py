"""Where a text may be cut, and how well: cut positions with strengths. Knows no tokens and no documents.

A cut is the position of the first non-blank character of a new piece. Its strength says what ends there: a paragraph,
an item of a list, a line, a sentence, a clause, a word, or only a grapheme. Sentences are found by their ends, as in
Unicode Standard Annex 29, with three additions: abbreviations, lines that were wrapped by hand or by a page, and
full stops of scripts that write no spaces. No cut ever stands inside a grapheme.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from ragkit.core.types import Ints, Mask

GRAPHEME, WORD, CLAUSE, SENTENCE, LINE, ITEM, PARAGRAPH, SECTION = range(8)

_NEWLINE = "\n\r\f\v\x85\u2028\u2029"
_SPACED = ".!?…‽؟۔．"  # these end a sentence when white space follows
_UNSPACED = "。！？｡︒﹖﹗।॥։።፧။។៕།"  # these end it by themselves
_STOPS = re.escape(_SPACED + _UNSPACED)
_CLOSERS = re.escape("\"'”’»›」』）)]}】》〉*_")
# One leading character class lets the scanner skip straight to the next candidate. Footnote marks stay with their sentence.
_CANDIDATE = re.compile(
    rf"[{_STOPS}{_NEWLINE}](?:(?<=[{_STOPS}])[{_STOPS}{_CLOSERS}]*(?:\[\d{{1,3}}\])*(?P<blank>\s*)|(?P<lines>\s*))"
)
_ITEM = re.compile(r"(?:[-*+•‣◦▪·–—]|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})[.)])\s|#{1,6}\s|\||>|```")
_CLAUSE = re.compile(rf"[,;:،؛—–][{_CLOSERS}]*\s+|[、，；：][{_CLOSERS}]*\s*|\s[–—-]\s+|\s*[|\t]\s*")
_SPACE = re.compile(r"\s+")
_FIRST_WORD = re.compile(r"[^\W\d_]+")
TITLE = 80  # characters that a line may have to be a title


def _words(line: str) -> frozenset[str]:
    return frozenset(line.split())


_ENDS_NO_SENTENCE = _words(  # abbreviations that a name, a number or a continuation follows
    "mr mrs ms dr prof rev hon st mt gen col lt sgt capt cmdr gov sen rep pres fig figs eq eqs sec ch chap vol no nos nr pp ed "
    "eds al vs cf ca approx resp incl viz tab thm lem prop def ref refs art op cit e.g i.e "
    "hr fr bzw ggf evtl vgl abb kap bd hrsg sog inkl zzgl z.b d.h u.a z.t i.d.r mme mlle p.ex sr sra srta"
)
_MAY_END_SENTENCE = _words(
    "etc inc ltd co corp jr bros dept est univ assn usw ff jan feb mar apr jun jul aug sep sept oct nov dec"
)
_STARTERS = _words(  # after a word that may end a sentence, a number or an initial, these begin a new sentence
    "the this that these those it he she they we you i a an in on at as for from by with if when while however but and so then "
    "see note use each both all some many most no not such more under "
    "there here what who how why after before since although our his her their its my "
    "der die das es ein eine er sie wir ich im am le la les il elle un une ce cette el los las una en"
)


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """`at` (c,) int64 strictly ascending positions; `strength` (c,) int64 of each, GRAPHEME to SECTION."""

    at: Ints
    strength: Ints

    def __len__(self) -> int:
        return len(self.at)

    def where(self, keep: Mask) -> Cuts:
        """Return the cuts that are true in `keep`."""
        return Cuts(self.at[keep], self.strength[keep])


def cuts_of(pairs: list[tuple[int, int]]) -> Cuts:
    """Return the cuts of (position, strength) in any order; of equal positions the strongest remains."""
    if not pairs:
        return Cuts(np.empty(0, np.int64), np.empty(0, np.int64))
    rows = np.array(pairs, dtype=np.int64)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    last = np.append(rows[1:, 0] != rows[:-1, 0], True)
    return Cuts(rows[last, 0], rows[last, 1])


def merge(*several: Cuts) -> Cuts:
    """Return the cuts of all; of equal positions the strongest remains."""
    at, strength = np.concatenate([cuts.at for cuts in several]), np.concatenate([cuts.strength for cuts in several])
    order = np.lexsort((strength, at))
    at, strength = at[order], strength[order]
    last = np.append(at[1:] != at[:-1], True) if len(at) else np.empty(0, np.bool_)
    return Cuts(at[last], strength[last])


def extent(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the range without blanks at either end; start == end when all is blank."""
    while end > start and text[end - 1].isspace():
        end -= 1
    while start < end and text[start].isspace():
        start += 1
    return start, end


def sentence_cuts(text: str) -> Cuts:
    """Return the cuts between sentences, lines, items and paragraphs."""
    width = _wrapped_width(text)
    cuts = []
    for match in _CANDIDATE.finditer(text):
        at = match.end()
        if at == len(text):
            break
        blank = match["blank"]
        if blank is None:
            strength = _after_line(text, match.start(), at, width)
        else:
            strength = _after_stop(text, match.start(), at, blank)
        if strength > WORD and (text[at] < "\u0300" or can_cut(text, at)):
            cuts.append((at, strength))
    return cuts_of(cuts)


def fine_cuts(text: str, start: int, end: int) -> Cuts:
    """Return the cuts inside one sentence: after clauses, and before words. Positions are within the whole text."""
    words = [(match.end(), WORD) for match in _SPACE.finditer(text, start, end)]
    clauses = [(match.end(), CLAUSE) for match in _CLAUSE.finditer(text, start, end)]
    inner = ((at, strength) for at, strength in words + clauses if start < at < end)
    return cuts_of([(at, strength) for at, strength in inner if text[at] < "\u0300" or can_cut(text, at)])


def _wrapped_width(text: str) -> float:
    """Return how long a line must be for its end to be a mere wrap: infinite when lines are not wrapped."""
    ends = np.fromiter((match.start() for match in re.finditer(r"[\n\r]", text)), np.int64)
    lengths = np.diff(ends, prepend=-1)
    lengths = lengths[lengths > 2]
    if len(lengths) < 4:
        return float("inf")
    usual = float(np.quantile(lengths, 0.9))
    return 0.7 * usual if 40 <= usual <= 160 else float("inf")


def _after_line(text: str, newline: int, at: int, width: float) -> int:
    """Return the strength of a cut at `at`, after the line that ends at `newline`."""
    lines = _count_lines(text[newline:at])
    if lines > 1 or text[newline] in "\f\u2029":
        return PARAGRAPH
    if _ITEM.match(text, at):
        return ITEM
    if width == float("inf"):
        return SENTENCE if _announces(text, newline, at) else LINE
    if text[at].islower():
        return WORD
    begin = max(text.rfind("\n", 0, newline), text.rfind("\r", 0, newline))
    return WORD if newline - begin >= width else LINE


def _announces(text: str, newline: int, at: int) -> bool:
    """Return whether the line is a title of the next one: short, without an end mark, and the next one much longer."""
    title = text[max(text.rfind("\n", max(0, newline - TITLE), newline), newline - TITLE, 0) : newline].strip()
    return 0 < len(title) < TITLE - 1 and title[-1] not in ",;" and "\n" not in text[at : at + 2 * len(title)]


def _after_stop(text: str, stop: int, at: int, blank: str) -> int:
    """Return the strength of a cut at `at`, after the stop mark at `stop` and the blanks behind it."""
    lines = _count_lines(blank)
    if lines > 1:
        return PARAGRAPH
    if lines == 1:
        if _ITEM.match(text, at):
            return ITEM
        # A wrapped line may end in an abbreviation.
        return LINE if text[stop] in _UNSPACED or _ends_sentence(text, stop, at) else WORD
    if text[stop] in _UNSPACED:
        return SENTENCE
    return SENTENCE if blank and _ends_sentence(text, stop, at) else WORD


def _count_lines(blank: str) -> int:
    if blank.isascii() and "\r" not in blank:
        return blank.count("\n")
    return len(blank.splitlines()) - (not blank or blank[-1] not in _NEWLINE)


def _ends_sentence(text: str, stop: int, at: int) -> bool:
    """Return whether the stop mark at `stop`, followed by white space and the character at `at`, ends a sentence."""
    if text[at].islower():
        return False
    if text[stop] != "." or text[stop + 1] == ".":
        return True
    before = text[max(0, stop - 16) : stop]
    if not before or before[-1].isspace():
        return True
    word = before.rsplit(None, 1)[-1].lstrip("([{\"'“‘«„")
    lowered = word.lower()
    if lowered in _ENDS_NO_SENTENCE:
        return False
    if _is_number_or_initial(word):
        begins_line = before[: len(before) - len(word)].rstrip(" \t")[-1:] in ("", "\n", "\r")
        return not begins_line and _starter(text, at)
    if lowered in _MAY_END_SENTENCE or "." in word:
        return _starter(text, at)
    return True


def _is_number_or_initial(word: str) -> bool:
    """Return whether a word is a number of one or two digits, or a single letter."""
    return (word.isdigit() and len(word) <= 2) or (len(word) == 1 and word.isalpha())


def _starter(text: str, at: int) -> bool:
    """Return whether the word at `at` is one that begins sentences."""
    word = _FIRST_WORD.match(text, at)
    return word is not None and word[0].lower() in _STARTERS


def _in(character: str, *ranges: tuple[int, int]) -> bool:
    return any(low <= ord(character) <= high for low, high in ranges)


_EXTENDS = (
    (0x200C, 0x200D), (0x1F3FB, 0x1F3FF), (0xFE00, 0xFE0F), (0xE0000, 0xE0FFF), (0xFF9E, 0xFF9F), (0xE33, 0xE33), (0xEB3, 0xEB3),
)  # fmt: skip
_JAMO_AFTER = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF))
_JAMO_FIRST = ((0x1100, 0x115F), (0xA960, 0xA97F))
_PREPENDS = (
    (0x600, 0x605), (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2), (0xD4E, 0xD4E), (0x110BD, 0x110BD),
    (0x110CD, 0x110CD), (0x111C2, 0x111C3), (0x113D1, 0x113D1), (0x1193F, 0x11941), (0x11A3A, 0x11A3A), (0x11A84, 0x11A89),
    (0x11D46, 0x11D46), (0x11F02, 0x11F02),
)  # fmt: skip
_REGIONAL = ((0x1F1E6, 0x1F1FF),)


def can_cut(text: str, at: int) -> bool:
    """Return whether the text may be cut before character `at`: never inside an extended grapheme cluster (Unicode Annex 29).

    Where the standard needs tables that Python lacks this errs towards not cutting: after every joiner and every virama.
    """
    if at <= 0 or at >= len(text):
        return True
    left, right = text[at - 1], text[at]
    if left < "\u0300" and right < "\u0300":
        return left != "\r" or right != "\n"
    if _continues(right) or _holds_next(left):
        return False
    if not _in(left, *_REGIONAL) or not _in(right, *_REGIONAL):
        return True
    flags = at
    while flags and _in(text[flags - 1], *_REGIONAL):  # flags are pairs, counted from the first of their run
        flags -= 1
    return (at - flags) % 2 == 0


def _continues(character: str) -> bool:
    """Return whether a character continues the grapheme before it."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me") or _in(character, *_EXTENDS, *_JAMO_AFTER)


def _holds_next(character: str) -> bool:
    """Return whether the next character belongs to the same grapheme: after joiners, viramas, prepended marks, first jamos."""
    return character == "\u200d" or unicodedata.combining(character) == 9 or _in(character, *_PREPENDS, *_JAMO_FIRST)

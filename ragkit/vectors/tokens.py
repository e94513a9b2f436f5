"""Text becomes terms for BM25: documents and queries by the same rules, in any script.

In goes text and its language (a two-letter code, or None where it is not known); out come terms without white space.

    words        runs of letters, marks and digits; NFKC, case folded, stemmed where the language is known, and then
                 accents folded: Bäume and baume, café and cafe are one term each
    numbers      one term with their separators: 3.14, 1,000
    identifiers  whole and in parts: snake_case, camelCase, C++, C#
    no spaces    Han, kana, Hangul, Thai, Lao, Khmer, Burmese: pairs of neighbouring characters, so that 首都 is found in
                 a sentence; documents give their single characters too, for queries of one character

Punctuation separates and is never an operator: `a:b` and `C++ (x` are queries like others.
"""

from __future__ import annotations

import functools
import re
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

LONGEST = 64  # characters kept of a term; longer runs are encoded data, which nobody types

# Two-letter codes of the languages that Snowball stems. Turkish, Hindi and others included; Korean is paired instead.
STEMMED = {
    "ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
    "et": "estonian", "eu": "basque", "fi": "finnish", "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian",
    "hy": "armenian", "id": "indonesian", "it": "italian", "lt": "lithuanian", "nb": "norwegian", "ne": "nepali",
    "nl": "dutch", "nn": "norwegian", "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip

# Scripts written without spaces, or (Hangul) with particles joined to the words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_APART = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ё": "е"}

_stemmers = threading.local()


def terms(text: str, language: str | None = None) -> list[str]:
    """The terms of a document, in order, repeated as often as they occur; a compound stands beside its parts."""
    return list(_terms(text, language, singles=True))


def query_terms(query: str, languages: set[str] | frozenset[str]) -> list[str]:
    """The terms to look for: each word as documents of each of these languages, and of none, would have it; no repeats."""
    found: dict[str, None] = {}
    for language in (None, *sorted(languages)):
        found.update(dict.fromkeys(_terms(query, language, singles=False)))
    return list(found)


def stem_language(language: str | None) -> str | None:
    """The code under which text is stemmed, from a tag such as "de", "DE" or "pt-BR"; None where no stemmer is known."""
    code = (language or "").lower().replace("_", "-").partition("-")[0]
    return code if code in STEMMED else None


def _terms(text: str, language: str | None, *, singles: bool) -> Iterator[str]:
    stem = _stemmer(stem_language(language))
    for match in _pattern().finditer(unicodedata.normalize("NFKC", text)):
        run = match.group()
        if match.lastgroup == "unspaced":
            yield from _pairs(run, singles=singles)
        elif match.lastgroup == "word":
            yield _fold(stem(run.casefold()))[:LONGEST]
        else:
            yield from _compound(run, stem)


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Runs by kind. Built on first use: the combining marks, which `\\w` leaves out, are read from the Unicode tables."""
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in {"Mn", "Mc"})
    letter = rf"(?:[^\W\d_{_UNSPACED}]|[{marks}])"
    spaced = rf"(?:[^\W{_UNSPACED}]|[{marks}])"
    return re.compile(
        rf"(?P<number>\d+(?:[.,]\d+)+(?![^\W_]))"
        rf"|(?P<unspaced>[{_UNSPACED}]+)"
        rf"|(?P<symbol>\b[A-Za-z](?:\+\+|\#)(?!\w))"
        rf"|(?P<word>[^\W\d_{_UNSPACED}]{letter}*(?![\d_])(?<![a-z](?=[A-Z]))(?<!\s))"
        rf"|(?P<compound>{spaced}+)"
    )


def _compound(run: str, stem: Any) -> Iterator[str]:
    whole = run.casefold()
    yield _fold(whole)[:LONGEST]


@functools.cache
def _cluster() -> re.Pattern[str]:
    return re.compile(r"")


def _pairs(run: str, *, singles: bool) -> Iterator[str]:
    yield run

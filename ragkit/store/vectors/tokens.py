"""Text becomes terms for BM25: documents and queries by the same rules, in any script.

It takes a text and its language (a tag such as "de", or None where it is not known), and gives terms without white space.

    words        runs of letters, marks and digits: NFKC, case folded, stemmed where the language is known, then accents
                 folded in Latin and Greek: Bäume and Baum, café and cafe are one term each
    numbers      one term with their separators: 3.14, 1,000
    identifiers  whole and in parts: snake_case, camelCase; whole: C++, C#
    no spaces    Han, kana, Hangul, Thai, Lao, Khmer, Burmese: pairs of neighbouring characters, so that 首都 is found
                 inside a sentence; documents give their single characters too, for queries of one character

Punctuation separates and is never an operator: `a:b` and `C++ (x` are queries like others.
"""

from __future__ import annotations

import functools
import itertools
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable

LONGEST = 64  # characters kept of a term; longer runs are encoded data, which nobody types
REMEMBERED = 1 << 16  # words whose terms are kept; a text is mostly words that were seen before

# Languages that Snowball stems, by their two-letter codes.
STEMMED = {
    "ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
    "et": "estonian", "eu": "basque", "fi": "finnish", "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian",
    "hy": "armenian", "id": "indonesian", "it": "italian", "lt": "lithuanian", "nb": "norwegian", "ne": "nepali",
    "nl": "dutch", "nn": "norwegian", "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip

# Thai and Lao, Burmese, Khmer, kana, Han; and Hangul, which writes particles onto its words.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Splits camelCase, HTMLParser and parseHTML, but not miRNA, mRNAs, NaCl or pH, which are words of their own.
HUMPS = re.compile(r"_+|(?<=[a-z]{2})(?=[A-Z][a-z])|(?<=[a-z]{3})(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")
POSSESSIVE = re.compile(r"['’]s\b")

_stemmers = threading.local()  # a Snowball stemmer is not thread-safe


def document_terms(text: str, language: str | None = None) -> list[str]:
    """Return the terms of a document, in order, as often as they occur; a compound stands before its parts."""
    return _terms(text, stem_code(language), singles=True)


def query_terms(query: str, languages: Iterable[str]) -> list[str]:
    """Return the terms to look for, each once: every word as a document in any of the languages, or in none, would have it."""
    codes = {code for language in languages if (code := stem_code(language))}
    terms: dict[str, None] = {}
    for code in (None, *sorted(codes)):
        terms.update(dict.fromkeys(_terms(query, code, singles=False)))
    return list(terms)


def stem_code(language: str | None) -> str | None:
    """Return the two-letter code to stem by, from a tag such as "de", "EN" or "pt-BR"; None where no stemmer is known."""
    code = (language or "").lower().replace("_", "-").partition("-")[0]
    return code if code in STEMMED else None


def _terms(text: str, code: str | None, *, singles: bool) -> list[str]:
    terms: list[str] = []
    text = POSSESSIVE.sub("", unicodedata.normalize("NFKC", text))
    for match in _runs().finditer(text):
        run = match.group()
        if match.lastgroup == "unspaced":
            terms += _pairs(run, singles=singles)
        elif match.lastgroup == "whole":
            terms.append(run.casefold()[:LONGEST])
        else:
            terms += _word(run, code)
    return terms


@functools.cache
def _runs() -> re.Pattern[str]:
    """Return the pattern of runs of text, by kind.

    The combining marks, which `\\w` leaves out, are read from the Unicode tables on first use.
    """
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in {"Mn", "Mc"})
    letters = rf"[^\W{UNSPACED}]"
    return re.compile(
        rf"(?P<unspaced>[{UNSPACED}]+)"
        rf"|(?P<whole>\b(?:\d+(?:[.,]\d+)+\b|[A-Za-z](?:\+\+|\#)(?!\w)))"
        rf"|(?P<word>{letters}+(?:[{marks}]+{letters}*)*)"
    )


@functools.lru_cache(REMEMBERED)
def _word(run: str, code: str | None) -> tuple[str, ...]:
    parts = [part for part in HUMPS.split(run) if part]
    words = [run.strip("_").casefold()] if len(parts) > 1 else []
    words += [_stem(part.casefold(), code) for part in parts]
    return tuple(term for word in words if (term := word.translate(_FOLDED)[:LONGEST]))


def _stem(word: str, code: str | None) -> str:
    if code is None:
        return word
    stemmers: dict[str, Callable[[str], str]] = _stemmers.__dict__.setdefault("by_code", {})
    if code not in stemmers:
        import Stemmer

        stemmers[code] = Stemmer.Stemmer(STEMMED[code]).stemWord
    return stemmers[code](word)


def _pairs(run: str, *, singles: bool) -> list[str]:
    """Return neighbouring characters in pairs, a mark staying with its base, and a lone character as itself.

    singles: return all single characters, too.
    """
    characters: list[str] = []
    for character in run:
        if characters and unicodedata.category(character) in {"Mn", "Mc"}:
            characters[-1] += character
        else:
            characters.append(character)
    pairs = [first + second for first, second in itertools.pairwise(characters)]
    return characters + pairs if singles or not pairs else pairs


class _Folding(dict[int, str | int]):
    """Accented Latin and Greek letters to their base, a character at a time. Other scripts' marks are letters: kept."""

    def __missing__(self, code: int) -> str | int:
        decomposed = unicodedata.normalize("NFKD", chr(code))
        base, rest = decomposed[0], decomposed[1:]
        accented = rest and all(unicodedata.combining(mark) for mark in rest)
        folded = base if accented and (base < "\u0250" or "\u0370" <= base < "\u0400") else code
        self[code] = folded
        return folded


_APART = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ı": "i", "ё": "е", "æ": "ae", "œ": "oe"}  # not in the tables
_FOLDED = _Folding({ord(letter): base for letter, base in _APART.items()})
_FOLDED.update(dict.fromkeys(range(0x300, 0x370), ""))  # marks that found no letter to join

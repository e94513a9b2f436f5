"""Bytes become text. The encoding is told by a byte order mark, else it is UTF-8, else the one that the file names, else it is
detected.

A wrong label is common, so a declared encoding is believed only where the bytes fit it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from ragkit.core.errors import LoadError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 256 * 1024  # bytes looked at to guess an encoding
_SURE = 128  # bytes outside ASCII from which a guess over all encodings is better than the likeliest few
_LIKELY = ["cp1252", "cp932", "gb18030", "big5", "cp949", "cp1251", "koi8_r", "cp1256", "cp1255", "cp1253", "iso8859_2"]
_BINARY = re.compile("[\x04-\x06\x0e-\x19]")  # not in texts, some of which do have NUL, BEL, BS, SUB, ESC and field separators
_WORD = re.compile(r"[^\W\d_]+")
_LETTERS = "\u0370-\u06ff\uff61-\uff9f"  # Greek, Cyrillic, Hebrew, Arabic, halfwidth Katakana
_SIGNS = "\u3040-\u9fff\uac00-\ud7af"  # Japanese, Chinese, Korean: Latin letters stand beside them, not around one
_FOREIGN = re.compile(f"[{_LETTERS}{_SIGNS}]")
_MIXED = re.compile(f"[A-Za-z][{_LETTERS}]|[{_LETTERS}][A-Za-z]|[A-Za-z][{_SIGNS}][a-z]")


def text_of(data: bytes, *, declared: Sequence[str] = ()) -> str:
    """Return the text of a file's bytes, as `decode` does. LoadError where they are no text, whatever the file's name says."""
    if data.startswith(b"%PDF-"):
        raise LoadError("it is a PDF, not text; rename it to .pdf")
    text = decode(data, declared=declared)
    sample = text[:_SAMPLE]
    controls = len(_BINARY.findall(sample))
    if controls > 4 and controls * 50 > len(sample):
        raise LoadError(f"it is not text: {controls} of its first {len(sample)} characters are control characters")
    return text


def decode(data: bytes, *, declared: Sequence[str] = ()) -> str:
    """Return the text of a file's bytes, without a byte order mark; line ends stay. What fits no encoding becomes U+FFFD.

    `declared`: encodings the file itself names, best first.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _clean(data[len(mark) :].decode(encoding, errors="replace"))
    if (wide := _wide(data)) is not None:
        return _clean(data.decode(wide, errors="replace"))
    for encoding in ("utf-8", *declared):
        try:
            text = data.decode(encoding)
        except (UnicodeError, LookupError, ValueError):
            continue
        if encoding == "utf-8" or _plausible(text):
            return _clean(text)
    return _clean(data.decode(_guess(data[:_SAMPLE]), errors="replace"))


def _clean(text: str) -> str:
    # Some codecs (UTF-7, cp65001-like) let lone surrogates through, which nothing after us could store.
    return re.sub("[\ud800-\udfff]", "\ufffd", text) if not text.isascii() else text


def _wide(data: bytes) -> str | None:
    """Return the UTF-16 of bytes without a mark, or None: in most such texts nearly every other byte is zero."""
    sample = data[:4096]
    if len(sample) < 4:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if odd > 0.4 * len(sample[1::2]) and even < 0.05 * len(sample):
        return "utf-16-le"
    if even > 0.4 * len(sample[0::2]) and odd < 0.05 * len(sample):
        return "utf-16-be"
    return None


def _plausible(text: str) -> bool:
    """Return whether a text has few control characters of C1: a wrong single-byte encoding turns letters into them."""
    sample = text[:_SAMPLE]
    return sum(1 for c in sample if "\x80" <= c <= "\x9f") * 100 <= len(sample)


def _guess(data: bytes) -> str:
    import charset_normalizer

    # A few words fit dozens of encodings: then only the likely ones compete.
    beyond_ascii = sum(1 for byte in data if byte > 127)
    match = charset_normalizer.from_bytes(data, cp_isolation=None if beyond_ascii >= _SURE else _LIKELY).best()
    return match.encoding if match and not _mixed(data.decode(match.encoding, errors="replace")) else "cp1252"


def _mixed(text: str) -> bool:
    """Return whether words of another script hold Latin letters as often as not, or are all single letters: "ДЦЬ GRЦSSE",
    "J顤g"."""
    words = [word for word in _WORD.findall(text) if _FOREIGN.search(word)]
    mixed = sum(1 for word in words if _MIXED.search(word))
    whole = sum(1 for word in words if len(word) > 1) - mixed
    return bool(words) and mixed >= whole

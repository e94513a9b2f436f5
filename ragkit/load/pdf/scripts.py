"""A PDF's words in all scripts: letters written as one glyph are taken apart, and scripts without spaces are cut into letters.

A word's box is only as good as the word is short, and Chinese, Japanese, Thai, Lao, Khmer and Burmese lines have no spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ragkit.core.types import Ints, Mask

RTL = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")
LAM, ALEFS = "\u0644", "\u0622\u0623\u0625\u0627"
ALEF_LAM = re.compile(f"[{ALEFS}]{LAM}")  # in the wrong order where one glyph stands for both
_EAST_ASIAN = (
    r"\u2e80-\u303f\u3040-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_EAST_ASIAN}]")  # no space between letters, and none where a line ends
_SINGLE = re.compile(rf"[{_EAST_ASIAN}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # no space between letters
_BROKEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Latin and Armenian ligatures, Hebrew and Arabic letters as they are shaped: nobody types them in a question.
_SHAPED = re.compile(r"[\ufb00-\ufb06\ufb13-\ufb17\ufb1d-\ufdff\ufe70-\ufefc]+")


def is_plain(text: str) -> bool:
    """Return whether a text has no shaped letters, and none of scripts without spaces or from right to left. Such a text holds
    nothing from the Hebrew letters on but punctuation and symbols."""
    if text.isascii():
        return True
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return not ((codes >= 0x590) & ((codes < 0x2000) | (codes >= 0x2E80))).any()


def mend(texts: list[str]) -> list[str]:
    """Return the words with control characters replaced and shaped letters taken apart; the list itself where none has any."""
    joined = "".join(texts)
    if joined.isascii() and joined.isprintable():
        return texts
    if not joined.isprintable() and _BROKEN.search(joined):
        texts = [_BROKEN.sub("\ufffd", word) for word in texts]
    if not is_plain(joined) and _SHAPED.search(joined):
        texts = [_SHAPED.sub(_taken_apart, word) for word in texts]
    return texts


def _taken_apart(match: re.Match[str]) -> str:
    # The compatibility form of some Arabic marks begins with a space, which a word must not hold.
    return "".join(unicodedata.normalize("NFKC", match[0]).split()) or match[0]


def has_single(text: str) -> bool:
    """Return whether there are letters of a script without spaces."""
    return not is_plain(text) and _SINGLE.search(text) is not None


def pieces(word: str) -> list[tuple[int, int]]:
    """Return ranges of a word's characters: each letter of a script without spaces with the marks on it, and the text between."""
    cuts, alone = [0], _SINGLE.match(word[0]) is not None
    for at in range(1, len(word)):
        if unicodedata.category(word[at])[0] == "M":
            continue
        before, alone = alone, _SINGLE.match(word[at]) is not None
        if before or alone:
            cuts.append(at)
    return list(zip(cuts, [*cuts[1:], len(word)], strict=True))


def cut(texts: Sequence[str]) -> tuple[list[str], Ints, Ints, Mask]:
    """Return the pieces that words are cut into: their texts; (n,) the word of each; (n, 2) its characters there; (n,) whether it
    continues the piece before."""
    rows = [(number, start, end) for number, word in enumerate(texts) for start, end in pieces(word)]
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return [texts[number][start:end] for number, start, end in rows], table[:, 0], table[:, 1:], table[:, 1] > 0

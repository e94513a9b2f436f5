"""Token counters for the chunkers' tests: one that splits at words and letters, one that counts more by itself than within."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class PieceCounter:
    """Tokens are up to `width` word characters, or one other non-blank character; `specials` are added to each text."""

    def __init__(self, *, width: int = 4, specials: int = 2) -> None:
        self._token = re.compile(rf"\w{{1,{width}}}|[^\w\s]")
        self._specials = specials

    def token_spans(self, text: str) -> Ints:
        return np.array([m.span() for m in self._token.finditer(text)], dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        return np.array([self._specials + len(self._token.findall(d)) for d in documents], dtype=np.int64)


class SeamCounter(PieceCounter):
    """A text by itself has a token more for each capital it begins with, as tokenizers that depend on neighbours may."""

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        extra = [len(d) - len(d.lstrip("ABCDEFGHIJKLM")) for d in documents]
        return super().count_tokens(documents) + np.array(extra, dtype=np.int64)

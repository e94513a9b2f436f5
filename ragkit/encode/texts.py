"""What every text encoder checks at its door."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ragkit.encode.contract import EncoderCard, Item
from ragkit.errors import InputTooLong

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_texts(texts: Sequence[Item]) -> None:
    """Raise TypeError unless it is a sequence of str, and not one str."""
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, got one str: wrap it in a list")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"input {i} is {type(text).__name__}, but this model takes only str")


def check_truncate_dim(truncate_dim: int | None, card: EncoderCard) -> None:
    """Raise ValueError unless it is None or between 1 and the model's own width."""
    if truncate_dim is not None and not 1 <= truncate_dim <= card.dims:
        raise ValueError(f"truncate_dim must be between 1 and {card.dims}, got {truncate_dim}")


def too_long(index: int, tokens: int, card: EncoderCard) -> InputTooLong:
    """The error for input number `index` of `tokens` tokens, special ones and instruction included."""
    return InputTooLong(
        f"input {index} has {tokens} tokens, special ones included, but {card.name} is set to take {card.max_tokens}. "
        "Chunk the text, or pass truncate=True to encode its beginning"
    )


def without_surrogates(text: str) -> str:
    """Lone surrogates, which UTF-8 has no bytes for, as U+FFFD: one character for one, so offsets stay."""
    return _SURROGATE.sub("\ufffd", text)

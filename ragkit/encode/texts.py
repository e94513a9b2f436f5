"""What every encoder checks at its door."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ragkit.core.errors import InputTooLong
from ragkit.encode.contract import EncoderCard, Item

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_texts(texts: Sequence[Item]) -> None:
    """Raise TypeError unless it is a sequence of str, and not one str."""
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, got one str: wrap it in a list")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"input {i} is {type(text).__name__}, but this model takes only str")


def split_item(index: int, item: Item) -> tuple[str | None, Any]:
    """(text or None, PIL image or None) of input number `index`, for a model that sees. TypeError for anything else."""
    if isinstance(item, str):
        return item, None
    if _is_image(item):
        return None, item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and _is_image(item[1]):
        return item
    raise TypeError(f"input {index} is {type(item).__name__}, but this model takes str, PIL images, and pairs (str, image)")


def _is_image(item: object) -> bool:
    pil = sys.modules.get("PIL.Image")  # who has not imported it has no image of its
    return pil is not None and isinstance(item, pil.Image)


def check_truncate_dim(truncate_dim: int | None, card: EncoderCard) -> None:
    """Raise ValueError unless it is None or between 1 and the model's own width; warn of a width that was not trained.

    Models that were not trained for any take every width without a word: see `EncoderCard.truncatable_dims`.
    """
    if truncate_dim is None:
        return
    if not 1 <= truncate_dim <= card.dims:
        raise ValueError(f"truncate_dim must be between 1 and {card.dims}, got {truncate_dim}")
    if card.truncatable_dims and truncate_dim not in (*card.truncatable_dims, card.dims):
        trained = ", ".join(map(str, card.truncatable_dims))
        warnings.warn(f"{card.name} was trained to be cut to {trained}, and is asked for {truncate_dim}", stacklevel=4)


def too_long(index: int, tokens: int, card: EncoderCard) -> InputTooLong:
    """The error for input number `index` of `tokens` tokens, special ones and instruction included."""
    return InputTooLong(
        f"input {index} has {tokens} tokens, special ones included, but {card.name} is set to take {card.max_tokens}. "
        "Chunk the text, or pass truncate=True to encode its beginning"
    )


def without_surrogates(text: str) -> str:
    """Lone surrogates, which UTF-8 has no bytes for, as U+FFFD: one character for one, so offsets stay."""
    return _SURROGATE.sub("\ufffd", text)

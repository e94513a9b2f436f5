"""The checks that every encoder makes of its arguments before it works."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence

from ragkit.core.errors import InputTooLong
from ragkit.core.images import Image
from ragkit.encode.contract import EncoderCard, IdArray, Item

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_texts(texts: Sequence[Item]) -> None:
    """Raise TypeError unless `texts` is a sequence of str, and not one str."""
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, got one str: wrap it in a list")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"input {i} is {type(text).__name__}, but this model takes only str")


def split_items(items: Sequence[Item]) -> list[tuple[str | None, Image]]:
    """Return (text or None, PIL image or None) of each input, for a model that sees. Raises TypeError, also for one str."""
    if isinstance(items, str):
        raise TypeError("expected a list of inputs, got one str: wrap it in a list")
    return [split_item(i, item) for i, item in enumerate(items)]


def split_item(index: int, item: Item) -> tuple[str | None, Image]:
    """Return (text or None, PIL image or None) of input number `index`, for a model that sees. TypeError for anything else."""
    if isinstance(item, str):
        return item, None
    if _is_image(item):
        return None, item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and _is_image(item[1]):
        return item
    raise TypeError(f"input {index} is {type(item).__name__}, but this model takes str, PIL images, and pairs (str, image)")


def _is_image(item: object) -> bool:
    pil = sys.modules.get("PIL.Image")  # a caller that has not imported Pillow has no image of it
    return pil is not None and isinstance(item, pil.Image)


def check_truncate_dim(truncate_dim: int | None, card: EncoderCard) -> None:
    """Raise ValueError unless `truncate_dim` is None or from 1 to the model's own width; warn of a width that was not trained.

    Models that were trained for no such width take every width without a warning: see `EncoderCard.truncatable_dims`.
    """
    if truncate_dim is None:
        return
    if not 1 <= truncate_dim <= card.dims:
        raise ValueError(f"truncate_dim must be between 1 and {card.dims}, got {truncate_dim}")
    if card.truncatable_dims and truncate_dim not in (*card.truncatable_dims, card.dims):
        trained = ", ".join(map(str, card.truncatable_dims))
        warnings.warn(f"{card.name} was trained to be cut to {trained}, and is asked for {truncate_dim}", stacklevel=4)


def check_rows(rows: Sequence[IdArray], card: EncoderCard) -> None:
    """Raise ValueError for a row of ids that is empty, InputTooLong for one beyond the model's limit."""
    for i, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"row {i} has no ids")
        if len(row) > card.max_tokens:
            raise too_long(i, len(row), card)


def too_long(index: int, tokens: int, card: EncoderCard) -> InputTooLong:
    """Return the error for input number `index` of `tokens` tokens, special tokens and instruction included."""
    return InputTooLong(
        f"input {index} has {tokens} tokens, special ones included, but {card.name} is set to take {card.max_tokens}. "
        "Chunk the text, or pass truncate=True to encode its beginning"
    )


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, for which UTF-8 has no bytes, by U+FFFD: one character for one, so offsets stay."""
    return _SURROGATE.sub("\ufffd", text)

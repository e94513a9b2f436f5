"""What is asked: a text, a picture, or both together.

Words are searched by the text. A text encoder embeds the text, or a lone picture if it takes pictures; the encoder of page images
embeds the whole query. Queries of one form (with or without text, with or without picture) are embedded together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ragkit.core.arrays import unit_rows
from ragkit.encode.contract import Encoder, Encoding
from ragkit.encode.texts import split_item

if TYPE_CHECKING:
    from PIL.Image import Image

    Query: TypeAlias = str | Image | tuple[str, Image]
else:  # Pillow is installed only where pictures are searched
    Image = Query = Any


@dataclass(frozen=True, slots=True, eq=False)
class QueryBatch:
    """n queries of one form: their texts, "" for a query without text, and their pictures, or None."""

    texts: tuple[str, ...]
    images: tuple[Image, ...] | None = None
    has_texts: bool = True

    @property
    def items(self) -> list[Query]:
        """The queries as an encoder of images takes them."""
        if self.images is None:
            return list(self.texts)
        return list(zip(self.texts, self.images, strict=True)) if self.has_texts else list(self.images)


@dataclass(frozen=True, slots=True, eq=False)
class QueryVectors:
    """n queries, embedded: their texts, "" without text, their vectors in the spaces of chunks, and in those of pages."""

    texts: Sequence[str]
    chunks: Encoding = field(default_factory=Encoding)
    pages: Encoding = field(default_factory=Encoding)


def is_single_query(query: object) -> bool:
    """Tell a query from a list or tuple of queries. TypeError for a pair of (picture, text)."""
    if isinstance(query, tuple) and len(query) == 2 and isinstance(query[0], str) != isinstance(query[1], str):
        other = query[1] if isinstance(query[0], str) else query[0]
        if not isinstance(query[0], str) and not isinstance(other, tuple):
            raise TypeError("a pair is (text, picture), and this is (picture, text); for two queries use search_many")
        return not isinstance(other, tuple)
    return not isinstance(query, (list, tuple))


def parse_queries(queries: Iterable[Query]) -> QueryBatch | None:
    """Return queries as a batch; None if they are of several forms. TypeError for what is not a query."""
    try:
        split = [split_item(number, query) for number, query in enumerate(queries)]
    except TypeError as error:
        raise TypeError(f"a query is a text, a picture (PIL), or a pair of them: {error}") from None
    forms = {(text is not None, image is not None) for text, image in split}
    if len(forms) > 1:
        return None
    has_texts, has_images = forms.pop() if forms else (True, False)
    images = tuple(image for _, image in split) if has_images else None
    return QueryBatch(tuple(text or "" for text, _ in split), images, has_texts)


def parse_query(query: Query) -> QueryBatch:
    """Return a batch of one query."""
    batch = parse_queries([query])
    assert batch is not None  # one query has one form
    return batch


def encode_queries(encoder: Encoder, items: Sequence[Query], *, task: str | None, dims: int | None) -> Encoding:
    """Embed queries. For a model that takes no pairs, text and picture are embedded separately, and their directions added."""
    pairs = any(isinstance(item, tuple) for item in items)
    try:
        return encoder.encode_query(items, task=task, truncate_dim=dims, truncate=True)
    except TypeError:
        if not pairs:
            raise
    split = cast("Sequence[tuple[str, Image]]", items)
    halves = [
        encoder.encode_query([item[at] for item in split], task=task, truncate_dim=dims, truncate=True).dense for at in (0, 1)
    ]
    if halves[0] is None or halves[1] is None:
        raise ValueError(f"{encoder.card.name} takes no text and picture together")
    return Encoding(dense=unit_rows(halves[0] + halves[1]))

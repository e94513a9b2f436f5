"""What is asked: a text, a picture, or both together; and which spaces of an index can answer it.

Words are looked for by the text; a text encoder embeds the text, unless there is none and it sees; the encoder of pages embeds
all of the query. Queries of one form are asked together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ragkit.core.arrays import unit_rows
from ragkit.core.space import PAGE_SPACES, Space
from ragkit.encode.contract import Encoder, Encoding
from ragkit.encode.texts import split_item
from ragkit.search.request import SearchOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    Query: TypeAlias = str | Image | tuple[str, Image]
else:  # Pillow is there where something sees
    Image = Query = Any


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """n queries of one form: the texts, empty where a query has none, and the pictures, or None."""

    texts: tuple[str, ...]
    images: tuple[Image, ...] | None = None
    spoken: bool = True  # whether there are texts

    @property
    def items(self) -> list[Query]:
        """The queries as an encoder that sees takes them."""
        if self.images is None:
            return list(self.texts)
        return list(zip(self.texts, self.images, strict=True)) if self.spoken else list(self.images)


def is_one(query: Any) -> bool:
    """Whether it is one query, and not a list or tuple of them. TypeError for a pair the wrong way round."""
    if isinstance(query, tuple) and len(query) == 2 and isinstance(query[0], str) != isinstance(query[1], str):
        other = query[1] if isinstance(query[0], str) else query[0]
        if not isinstance(query[0], str) and not isinstance(other, tuple):
            raise TypeError("a pair is (text, picture), and this is the other way round; for two queries pass a list")
        return not isinstance(other, tuple)
    return not isinstance(query, (list, tuple))


def asked(queries: Iterable[Query]) -> Asked | None:
    """The queries, or None where they are of several forms. TypeError for what is no query."""
    try:
        split = [split_item(number, query) for number, query in enumerate(queries)]
    except TypeError as error:
        raise TypeError(f"a query is a text, a picture (PIL), or a pair of them: {error}") from None
    forms = {(text is not None, image is not None) for text, image in split}
    if len(forms) > 1:
        return None
    spoken, seen = forms.pop() if forms else (True, False)
    return Asked(tuple(text or "" for text, _ in split), tuple(image for _, image in split) if seen else None, spoken)


def answerable(options: SearchOptions, queries: Asked, *, texts: Encoder, pages: Encoder | None) -> SearchOptions:
    """The options without the spaces that cannot answer queries of this form; ValueError where nothing looks at the pictures."""
    if queries.images is None:
        return options
    seen = {space for space in options.available if space in PAGE_SPACES and pages and "image" in pages.card.query_modalities}
    sees = queries.spoken or "image" in texts.card.query_modalities
    of_texts = [space for space in options.available if space not in PAGE_SPACES]
    kept = {space for space in of_texts if (queries.spoken if space == Space.LEXICAL else sees)}
    looking = seen if queries.spoken else seen | kept
    if not looking:
        raise ValueError(
            "a picture cannot be searched for here: no model of this index sees it. "
            "Ask with words, or make an index with pages='auto' and a page_model that takes pictures as queries"
        )
    if not looking & set(options.spaces):
        raise ValueError(
            f"a picture cannot be searched for with mode={options.mode!r}{' and these weights' if options.weights else ''}: "
            f"{' and '.join(sorted(looking))} would look at it. Ask with mode='hybrid' or 'pages', or with words"
        )
    return replace(options, available=tuple(space for space in options.available if space in seen | kept))


def encode_queries(encoder: Encoder, items: Sequence[Query], *, task: str | None, dims: int | None) -> Encoding:
    """The queries embedded. Of a model that takes no pairs, text and picture are embedded apart, and their directions added."""
    pairs = any(isinstance(item, tuple) for item in items)
    try:
        return encoder.encode_query(items, task=task, truncate_dim=dims, truncate=True)
    except TypeError:
        if not pairs:
            raise
    split: Sequence[Any] = items
    halves = [
        encoder.encode_query([item[at] for item in split], task=task, truncate_dim=dims, truncate=True).dense for at in (0, 1)
    ]
    if halves[0] is None or halves[1] is None:
        raise ValueError(f"{encoder.card.name} takes no text and picture together")
    return Encoding(dense=unit_rows(halves[0] + halves[1]))


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """What is asked, n queries: their texts, empty where there is none, their vectors in the spaces of chunks, and in those of
    pages."""

    texts: Sequence[str]
    chunks: Encoding = field(default_factory=Encoding)
    pages: Encoding = field(default_factory=Encoding)

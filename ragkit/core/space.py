"""The spaces of an index, its lists of vectors or words: kinds of units (chunk, page) times forms (dense, lexical, multi)."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Kind = Literal["chunk", "page"]
Form = Literal["dense", "lexical", "multi"]
Scale = Literal["cosine", "bm25", "maxsim"]


class Space(StrEnum):
    """A space is its name: on disk, in JSON, as a mode and in `weights` it is this string, and users may pass the string."""

    DENSE = "chunk.dense"
    LEXICAL = "chunk.lexical"
    MULTI = "chunk.multi"
    PAGE_DENSE = "page.dense"
    PAGE_MULTI = "page.multi"

    @classmethod
    def of(cls, kind: str, form: Form) -> Space:
        """Return the space of a kind of units. ValueError where no index has it: the words of pages are those of their chunks."""
        return cls(f"{kind}.{form}")

    @property
    def kind(self) -> Kind:
        """The kind of units that the space lists."""
        return "page" if self in PAGE_SPACES else "chunk"

    @property
    def form(self) -> Form:
        return _FORMS[self]

    @property
    def scale(self) -> Scale:
        """The scale of the scores of a search in this space alone."""
        return _SCALES[self.form]

    def __repr__(self) -> str:
        """Messages and reports quote the plain string."""
        return repr(self.value)


PAGE_SPACES = (Space.PAGE_DENSE, Space.PAGE_MULTI)
MAXSIM_SPACES = (Space.MULTI, Space.PAGE_MULTI)
MODES: dict[str, tuple[Space, ...]] = {
    "hybrid": (Space.DENSE, Space.LEXICAL, Space.MULTI, *PAGE_SPACES),
    "text": (Space.DENSE, Space.LEXICAL, Space.MULTI),
    "pages": PAGE_SPACES,
    "dense": (Space.DENSE,),
    "lexical": (Space.LEXICAL,),
    "multi": (Space.MULTI,),
    **{space: (space,) for space in Space},
}
_FORMS: dict[Space, Form] = {
    Space.DENSE: "dense",
    Space.LEXICAL: "lexical",
    Space.MULTI: "multi",
    Space.PAGE_DENSE: "dense",
    Space.PAGE_MULTI: "multi",
}
_SCALES: dict[Form, Scale] = {"dense": "cosine", "lexical": "bm25", "multi": "maxsim"}

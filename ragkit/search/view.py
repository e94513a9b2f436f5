"""What a search needs of an index: one commit, the recipe that made its vectors, and the encoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ragkit.core.space import Space
from ragkit.encode.contract import Encoder
from ragkit.recipe.models import Models
from ragkit.recipe.recipe import Recipe
from ragkit.store.local.reader import Reader


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One commit of an index, with the recipe of its vectors and the encoders, which are loaded when they are needed."""

    path: Path  # of the index, for messages
    reader: Reader
    recipe: Recipe
    models: Models

    @property
    def encoder(self) -> Encoder:
        return self.models.texts

    @property
    def page_encoder(self) -> Encoder | None:
        return self.models.pages

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces that the index has."""
        return spaces_of(self.recipe)


def spaces_of(recipe: Recipe) -> tuple[Space, ...]:
    """Return the spaces that a recipe fills."""
    multi, pages = recipe.multi, recipe.pages
    spaces = [Space.LEXICAL]
    if multi is None or not multi.alone:
        spaces.insert(0, Space.DENSE)
    if multi is not None:
        spaces.append(Space.MULTI)
    if pages is not None and pages.dense:
        spaces.append(Space.PAGE_DENSE)
    if pages is not None and pages.precision is not None:
        spaces.append(Space.PAGE_MULTI)
    return tuple(spaces)

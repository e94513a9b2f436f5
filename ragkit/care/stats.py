"""The counts of an index: what it holds, and how its vectors are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ragkit.core.types import Metadata
from ragkit.recipe.recipe import Recipe
from ragkit.store.local.reader import Reader


@dataclass(frozen=True, slots=True, eq=False)
class Stats:
    """What an index holds, and how."""

    path: str
    commit: int
    documents: int
    units: int
    segments: int
    bytes: int
    bytes_by_part: Mapping[str, int]
    model: str
    recipe: Metadata
    dense: tuple[Metadata, ...]  # per segment: rows, structure, measured recall
    multi: tuple[Metadata, ...]  # per segment: rows, tokens, dims, precision
    page_dense: tuple[Metadata, ...]  # the same of page images
    page_multi: tuple[Metadata, ...]
    failures: int


def count(path: Path, reader: Reader, recipe: Recipe) -> Stats:
    """Return the counts of one commit of the index at `path`."""
    stored = reader.stats()
    absent = {"multi" if not recipe.multi else "", "pages" if not recipe.pages else ""}
    parts = {name: size for name, size in stored.bytes_by_part.items() if name not in absent}
    return Stats(
        path=str(path),
        commit=reader.commit.number,
        documents=reader.commit.documents,
        units=reader.commit.units,
        segments=stored.segments,
        bytes=sum(parts.values()),
        bytes_by_part=parts,
        model=recipe.encode.model,
        recipe=recipe.model_dump(),
        dense=stored.dense,
        multi=stored.multi,
        page_dense=stored.page_dense,
        page_multi=stored.page_multi,
        failures=len(reader.failures()),
    )

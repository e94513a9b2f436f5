"""Rewrite what a local store holds already: for care alone, not for adding or deleting documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ragkit.store.local.segment import Salvaged, Segment
from ragkit.store.local.writer import Rewriting, Writer
from ragkit.store.values import Commit


def compact(writer: Writer, *, recipe_hash: str = "") -> Commit:
    """Rewrite all segments as one, without deleted rows."""
    return writer.write("compact", recipe_hash=recipe_hash, rewriting=Rewriting(merge=True))


def change_recipe(
    writer: Writer,
    *,
    recipe_hash: str,
    settings: Mapping[str, Any],
    rewrite_rows: bool,
    dims: int | None = None,
    reparse_mimes: Sequence[str] = (),
) -> Commit:
    """Store the settings of a new recipe; with `rewrite_rows` rewrite all vectors by it, dense ones of chunks cut to `dims`.

    reparse_mimes: media types that the new recipe would parse otherwise: their documents are made anew when next added.
    """
    rewriting = Rewriting(merge=rewrite_rows, dims=dims, reparse_mimes=reparse_mimes)
    return writer.write("rebuild", recipe_hash=recipe_hash, settings=settings, rewriting=rewriting)


def replace_damaged(
    writer: Writer, *, salvaged: Mapping[str, Segment | Salvaged | None], rebuild_lexical: bool
) -> Commit:
    """Retire damaged segments, by id, each with the rows that were saved of it; make the lexical index anew where told to."""
    rewriting = Rewriting(salvaged=salvaged, rebuild_lexical=rebuild_lexical, always=True)
    return writer.write("repair", rewriting=rewriting)

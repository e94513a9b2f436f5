"""The settings of an index: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ragkit.recipe.recipe import MULTI, Recipe

OF_MODEL = ("task", "max_tokens", "dtype", "max_pixels")  # settings that a model is loaded with, and that go with it


# The keywords of Index.open, and where each lives in the recipe.
KEYWORDS: dict[str, tuple[str, str]] = {
    "model": ("encode", "model"),
    "task": ("encode", "task"),
    "dims": ("encode", "dims"),
    "max_tokens": ("encode", "max_tokens"),
    "max_pixels": ("encode", "max_pixels"),
    "overflow": ("encode", "overflow"),
    "dtype": ("encode", "dtype"),
    "late_chunking": ("encode", "late_chunking"),
    "contextual_headers": ("encode", "contextual_headers"),
    "chunker": ("chunk", "chunker"),
    "chunk_tokens": ("chunk", "tokens"),
    "chunk_overlap": ("chunk", "overlap"),
    "pdf_engine": ("load", "pdf_engine"),
    "ocr": ("load", "ocr"),
    "recall": ("store", "recall"),
    "coarse": ("store", "coarse"),
    "multi": ("multi", "precision"),
    "pool": ("multi", "pool"),
    "pages": ("pages", "which"),
    "page_model": ("pages", "model"),
    "page_dims": ("pages", "dims"),
    "page_multi": ("pages", "precision"),
    "page_pixels": ("pages", "max_pixels"),
    "page_pool": ("pages", "pool"),
    "page_background": ("pages", "background"),
    "keep_sources": ("store", "keep_sources"),
}


def chunker_name(chunker: str | Callable[..., Any]) -> str:
    """The name a recipe keeps: a built-in chunker's own, or callable:<module>.<qualified name>."""
    if isinstance(chunker, str):
        return chunker
    return f"callable:{chunker.__module__}.{getattr(chunker, '__qualname__', type(chunker).__qualname__)}"


def disagreements(recipe: Recipe, given: Mapping[str, Any]) -> list[str]:
    """The keywords given (None means not given) that differ from the recipe, each as "name: stored X, given Y"."""
    result = []
    for name, value in given.items():
        stored = stored_value(recipe, name)
        agree = {
            "late_chunking": value == "auto",
            "dtype": value == "auto",
            "multi": bool(stored) if value is True else not stored and value is False,
            "model": recipe.multi is not None and stored == f"{value}{MULTI}",  # Index.open appended it
            "pages": bool(stored) if value is True else not stored and value in (False, "none"),
            "page_multi": bool(stored) if value is True else not stored and value is False,
        }
        if value is not None and stored != value and not agree.get(name):
            result.append(f"{name}: stored {stored!r}, given {value!r}")
    return result


def stored_value(recipe: Recipe, name: str) -> Any:
    """A keyword's value in the recipe; None for one of a stage that it does not have."""
    stage, field = KEYWORDS[name]
    return getattr(getattr(recipe, stage), field, None)

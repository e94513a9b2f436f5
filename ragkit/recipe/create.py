"""What an index is made of, settled when it is created, and whether an encoder is the one that built it.

In goes what `Index.open` was given; out comes a recipe, or an error that names the keyword. Nothing is written before the model
is loaded and the recipe stands: what cannot be made leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragkit.core.errors import NotAnIndex, StorageError
from ragkit.encode import load_encoder
from ragkit.encode.contract import Encoder
from ragkit.recipe.fingerprint import page_settings, probe_vectors
from ragkit.recipe.models import encoder_of_pages, with_multi
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.resolve import new_recipe
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.locks import writer_lock
from ragkit.store.local.store import Store
from ragkit.store.values import CHUNK, PAGE
from ragkit.store.vectors.multi import Layout

LOCK_TIMEOUT = 10.0  # seconds


def existing(path: Path) -> Catalog | None:
    """The catalog of the index at `path`, or None where there is none yet; NotAnIndex where there is something else."""
    if path.exists() and not path.is_dir():
        raise NotAnIndex(f"{path} is a file, not a folder")
    if not (path / "catalog.db").exists():
        return None
    catalog = Catalog(path / "catalog.db")
    if catalog.exists:
        return catalog
    catalog.close()
    return None


def create_index(
    path: Path,
    given: Mapping[str, Any],
    *,
    name: str,
    encoder: Encoder | None,
    page_encoder: Encoder | None,
    device: str | None,
    api_keys: Mapping[str, str] | None,
    create: bool,
) -> Catalog:
    if not create:
        raise NotAnIndex(f"there is no index at {path}. Make one: ragkit add {path} FILES")
    ours = {"segments", "lexical", "LOCK", "catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal"}
    if path.exists() and any(entry.name not in ours for entry in path.iterdir()):
        raise NotAnIndex(f"{path} is not empty and holds no index. Name an empty or a new folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {path}: {error.strerror}") from error
    # A wrong model or recipe must leave nothing behind, so both are settled before the first file is written.
    wanted = {one: given[one] for one in ("dtype", "task", "max_tokens", "max_pixels")}
    encoder = encoder or load_encoder(name, device=device, api_keys=api_keys, **wanted)
    if given["multi"]:
        encoder = with_multi(encoder, device=device, wanted=wanted)
    page_encoder = encoder_of_pages(given, encoder, page_encoder, device=device, api_keys=api_keys)
    recipe = new_recipe(given, encoder, page_encoder)
    settings = settings_of(recipe, encoder, page_encoder)
    with writer_lock(path / "LOCK", timeout=LOCK_TIMEOUT):
        found = existing(path)  # another process may have been quicker
        if found is None:
            Store.create(path, settings)
    return found or Catalog(path / "catalog.db")


def settings_of(recipe: Recipe, encoder: Encoder, page_encoder: Encoder | None = None) -> dict[str, Any]:
    """What the catalog keeps of a recipe and its encoders."""
    return {
        "recipe": recipe.model_dump(),
        "fingerprint": encoder.card.fingerprint,
        "probes": probe_vectors(encoder, recipe.encode),
        **(page_settings(page_encoder, recipe.pages) if page_encoder is not None and recipe.pages is not None else {}),
    }


def layouts_of(recipe: Recipe) -> dict[str, Layout]:
    """How a recipe's multi-vectors are stored, by the kind of units that have any."""
    coarse = recipe.store.coarse
    layouts = {} if recipe.multi is None else {CHUNK: Layout(recipe.multi.dims, recipe.multi.precision, coarse)}
    if recipe.pages is not None and recipe.pages.precision is not None:
        layouts[PAGE] = Layout(recipe.pages.multi_dims, recipe.pages.precision, coarse)
    return layouts

"""Make a new index, or open the catalog of one that exists and check that the settings agree with its recipe.

Nothing is written before the model is loaded and the recipe is settled: settings that do not fit leave nothing behind.
"""

from __future__ import annotations

from pathlib import Path

from ragkit.core.errors import Damaged, NotAnIndex, RecipeMismatch, StorageError
from ragkit.encode.contract import Encoder
from ragkit.recipe.fingerprint import stored_settings_of
from ragkit.recipe.models import Machine, page_encoder_for, text_encoder_for
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.resolve import new_recipe
from ragkit.recipe.settings import Settings, disagreements, migrate_command
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.locks import writer_lock
from ragkit.store.local.store import INDEX_FILES, Store
from ragkit.store.values import CHUNK, PAGE
from ragkit.store.vectors.multi_layout import Layout

LOCK_TIMEOUT = 10.0  # seconds


def open_or_create(
    path: Path, settings: Settings, machine: Machine, *, encoder: Encoder | None, page_encoder: Encoder | None, create: bool
) -> tuple[Catalog, Recipe]:
    """Open the catalog of the index at `path`, made if there is none and `create`, and read its recipe.

    encoder, page_encoder: those that the caller has loaded. Raises NotAnIndex, RecipeMismatch, and ValueError for settings that
    do not fit.
    """
    catalog = open_catalog(path)
    if catalog is None:
        if not create:
            raise NotAnIndex(f"there is no index at {path}. Make one: ragkit add {path} FILES")
        catalog = create_index(path, settings, machine, encoder=encoder, page_encoder=page_encoder)
    try:
        return catalog, read_recipe(path, catalog, settings)
    except BaseException:
        catalog.close()
        raise


def open_catalog(path: Path) -> Catalog | None:
    """Open the catalog of the index at `path`; None if there is no index yet. Raises NotAnIndex if `path` is a file."""
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
    path: Path, settings: Settings, machine: Machine, *, encoder: Encoder | None, page_encoder: Encoder | None
) -> Catalog:
    """Make an index at `path` and open its catalog. encoder, page_encoder: those that the caller has loaded.

    Raises NotAnIndex if the folder holds something else, ValueError for settings that do not fit.
    """
    if path.exists() and any(entry.name not in INDEX_FILES for entry in path.iterdir()):
        raise NotAnIndex(f"{path} is not empty and holds no index. Name an empty or a new folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {path}: {error.strerror}") from error
    encoder = text_encoder_for(settings, encoder, machine)
    page_encoder = page_encoder_for(settings, encoder, page_encoder, machine)
    recipe = new_recipe(settings, encoder, page_encoder)
    stored = stored_settings_of(recipe, encoder, page_encoder)
    with writer_lock(path / "LOCK", timeout=LOCK_TIMEOUT):
        catalog = open_catalog(path)  # another process may have been quicker
        if catalog is None:
            Store.create(path, stored)
    return catalog or Catalog(path / "catalog.db")


def read_recipe(path: Path, catalog: Catalog, settings: Settings) -> Recipe:
    """Return the stored recipe of an index. Raises RecipeMismatch if the settings disagree with it."""
    catalog.check_format()
    if (stored := catalog.setting("recipe")) is None:
        if catalog.setting("maxsim") is None:
            raise Damaged(f"{catalog.path} is damaged: it has lost its settings. Restore it from a backup.")
        raise NotAnIndex(f"{path} is an index without documents: open it with ragkit.MaxSimIndex")
    recipe = Recipe.model_validate(stored)
    if differing := disagreements(recipe, settings):
        listed = "; ".join(f"{name}: {difference}" for name, difference in differing.items())
        command = migrate_command(path, {name: value for name, value in settings.chosen().items() if name in differing})
        raise RecipeMismatch(
            f"{path} was built with other settings ({listed}). Leave them out to use the stored ones, "
            f"or change the index: {command}"
        )
    return recipe


def layouts_of(recipe: Recipe) -> dict[str, Layout]:
    """Return how a recipe stores multi-vectors, by the kind of unit that has any."""
    coarse = recipe.store.coarse
    layouts = {} if recipe.multi is None else {CHUNK: Layout(recipe.multi.dims, recipe.multi.precision, coarse)}
    if recipe.pages is not None and recipe.pages.precision is not None:
        layouts[PAGE] = Layout(recipe.pages.multi_dims, recipe.pages.precision, coarse)
    return layouts

"""Load the encoders of an index, each when it is first needed, and check that they are the ones that built it.

An index has an encoder of texts and, with page images, one of pages, which may be the same. `Models` holds both for as long as an
index is open. What the recipe does not decide (the device, API keys, a cache) is this process's choice.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragkit.core.errors import RagkitError
from ragkit.encode import load_encoder, resolve_name
from ragkit.encode.cache import EmbeddingCache, cached
from ragkit.encode.contract import Encoder
from ragkit.encode.load_settings import MULTI_SUFFIX
from ragkit.recipe.fingerprint import check_fingerprint
from ragkit.recipe.recipe import EncodeStage, PagesStage, Recipe
from ragkit.recipe.settings import Settings, table
from ragkit.store.catalog.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and how this process runs models: device ("cpu", "cuda"), keys of hosted models, a cache of embeddings."""

    device: str | None = None
    api_keys: Mapping[str, str] | None = None
    cache: EmbeddingCache | str | Path | None = None


@dataclass(slots=True, eq=False)
class _Slot:
    """An encoder, and whether it was checked to be the one that built the index."""

    encoder: Encoder | None = None
    checked: bool = False


class Models:
    """The encoders of an open index, and the recipe that names them. Threads may share it."""

    def __init__(
        self,
        path: Path,
        catalog: Catalog,
        recipe: Recipe,
        machine: Machine,
        *,
        texts: Encoder | None = None,
        pages: Encoder | None = None,
    ) -> None:
        """texts, pages: encoders that the caller has loaded; None loads the one that the recipe names."""
        self._path = path
        self._catalog = catalog
        self.recipe = recipe
        self.machine = machine
        self._texts, self._pages = _Slot(texts), _Slot(pages)
        self._lock = threading.Lock()

    @property
    def texts(self) -> Encoder:
        """The encoder of texts, loaded and checked. Raises FingerprintMismatch if it did not build the index."""
        slot, stage = self._texts, self.recipe.encode  # in this order: `follow` changes the recipe first
        return self._ready(slot, stage, task=stage.task, max_tokens=stage.max_tokens)

    @property
    def pages(self) -> Encoder | None:
        """The encoder of page images, loaded and checked: that of texts if the recipe names the same, None for an index without
        page images. Raises FingerprintMismatch if it did not build the index."""
        slot, recipe = self._pages, self.recipe
        stage, texts = recipe.pages, recipe.encode
        if stage is None:
            return None
        same = (stage.model, stage.revision, stage.dtype) == (texts.model, texts.revision, texts.dtype)
        if same and stage.max_pixels in (None, texts.max_pixels) and slot.encoder is None:
            return self.texts
        return self._ready(slot, stage)

    def load(self) -> None:
        """Load and check the encoders now. Raises FingerprintMismatch if one did not build the index."""
        _ = self.texts, self.pages

    def follow(self, recipe: Recipe) -> None:
        """Go by a changed recipe from now on: its encoders are loaded and checked when they are next needed."""
        with self._lock:
            self.recipe = recipe
            self._texts, self._pages = _Slot(), _Slot()

    def replace(self, texts: Encoder, pages: Encoder | None) -> None:
        """Take the encoders of a changed recipe, which have just built the index."""
        with self._lock:
            self._texts, self._pages = _Slot(texts, checked=True), _Slot(None if pages is texts else pages, checked=True)

    def changed_texts(self, model: str | Encoder | None, changes: Settings) -> Encoder:
        """Return the encoder of texts for a changed recipe: the index's own, unless the model or how it is loaded changes."""
        loading = {name: value for name, value in changes.chosen().items() if table()[name].loads}
        if model is not None and not isinstance(model, str):
            return model
        if model is None and not loading:
            return self.texts
        stage = self.recipe.encode
        name = stage.model if model is None else resolve_name(model)
        own = {each: getattr(stage, each) for each, row in table().items() if row.loads} if name == stage.model else {}
        revision = (stage.revision or None) if model is None else None
        options: dict[str, Any] = {**own, **loading}
        return load_encoder(name, device=self.machine.device, api_keys=self.machine.api_keys, revision=revision, **options)

    def changed_pages(self, encoder: Encoder, page_model: str | Encoder | None, settings: Settings) -> Encoder | None:
        """Return the encoder of page images for changed settings: the index's own, unless the model changes."""
        own = page_model if page_model is not None and not isinstance(page_model, str) else None
        stage = self.recipe.pages
        stays = stage is not None and (stage.model, stage.max_pixels) == (settings.page_model, settings.page_pixels)
        if page_model is None and stays and wants_pages(settings):
            return self.pages
        return page_encoder_for(settings, encoder, own, self.machine)

    def _ready(self, slot: _Slot, stage: EncodeStage | PagesStage, **settings: Any) -> Encoder:
        with self._lock:
            if slot.encoder is None:
                slot.encoder = load_encoder(
                    stage.model,
                    revision=stage.revision or None,
                    device=self.machine.device,
                    api_keys=self.machine.api_keys,
                    dtype=stage.dtype,
                    max_pixels=stage.max_pixels,
                    **settings,
                )
            if not slot.checked:
                check_fingerprint(self._path, self._catalog, slot.encoder, stage)
                slot.checked = True
                if self.machine.cache is not None:  # behind the check, which must see what the model does now
                    slot.encoder = cached(slot.encoder, self.machine.cache)
            return slot.encoder


def text_encoder_for(settings: Settings, encoder: Encoder | None, machine: Machine) -> Encoder:
    """Return the encoder of texts for a new index: the caller's, or the one that the settings name."""
    loading: dict[str, Any] = {name: getattr(settings, name) for name, row in table().items() if row.loads}
    if encoder is None:
        name = resolve_name(settings.model)
        encoder = load_encoder(name, device=machine.device, api_keys=machine.api_keys, **loading)
    return with_multi(encoder, machine, loading) if settings.multi else encoder


def with_multi(encoder: Encoder, machine: Machine, loading: Mapping[str, Any]) -> Encoder:
    """Return the encoder, or the same model with its token states as multi-vectors; ValueError if it has none to give."""
    if encoder.card.multi_dims:
        return encoder
    try:
        return load_encoder(encoder.card.name + MULTI_SUFFIX, device=machine.device, **loading)
    except (ValueError, RagkitError) as error:
        raise ValueError(
            f"multi needs an encoder with multi-vectors, and {encoder.card.name} has none: {error}. "
            "Leave multi out, or give it up: multi=False"
        ) from None


def page_encoder_for(settings: Settings, encoder: Encoder, page_encoder: Encoder | None, machine: Machine) -> Encoder | None:
    """Return the encoder of page images, if the settings ask for them: the caller's, the one that they name, or that of texts."""
    if not wants_pages(settings):
        return None
    name = settings.page_model
    if page_encoder is None:
        same = name in (None, encoder.card.name) and settings.page_pixels in (None, settings.max_pixels)
        page_encoder = encoder if same else _load_page_encoder(name or encoder.card.name, settings.page_pixels, machine)
    if "image" not in page_encoder.card.modalities:
        raise ValueError(
            f"pages={settings.pages!r} needs an encoder of images, and {page_encoder.card.name} is not one. Name one: "
            "page_model='jinaai/jina-clip-v1', or leave pages out"
        )
    return page_encoder


def _load_page_encoder(name: str, max_pixels: int | None, machine: Machine) -> Encoder:
    return load_encoder(name, device=machine.device, api_keys=machine.api_keys, max_pixels=max_pixels)


def wants_pages(settings: Settings) -> bool:
    """Tell whether the settings ask for page images; ValueError for an unknown value, or settings of pages without pages."""
    if settings.pages not in (None, "none"):
        if settings.pages not in (True, "auto", "all", "figures"):
            raise ValueError(f"pages is 'auto', 'all', 'figures' or 'none', got {settings.pages!r}")
        return True
    for name in settings.chosen():
        if name.startswith("page_"):
            raise ValueError(f"{name} is about page images; set pages='auto', 'all' or 'figures', too")
    return False

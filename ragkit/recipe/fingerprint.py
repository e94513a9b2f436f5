"""Check that an encoder is the one that built an index.

An index keeps the fingerprint of each of its encoders, and the vectors of a few probe inputs: nothing else notices a model that
was changed under its name. Encoders of texts are probed with texts, encoders of page images with a picture.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragkit.core.arrays import mean_vector
from ragkit.core.errors import FingerprintMismatch
from ragkit.core.types import Floats
from ragkit.encode.contract import Encoder
from ragkit.encode.external import embeds_text
from ragkit.recipe.recipe import EncodeStage, PagesStage, Recipe
from ragkit.store.catalog.catalog import Catalog

if TYPE_CHECKING:
    from PIL.Image import Image

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "Wie spät ist es in Zürich?",
    "def add(a, b): return a + b",
    "東京は日本の首都です。",
)
PROBE_COSINE = 0.999  # two builds of one model agree better than this, in bfloat16 too; two models do not


def stored_settings_of(recipe: Recipe, encoder: Encoder, page_encoder: Encoder | None = None) -> dict[str, Any]:
    """Return what the catalog keeps of a recipe and its encoders: the recipe, fingerprints, and vectors of the probes."""
    settings = {
        "recipe": recipe.model_dump(),
        "fingerprint": encoder.card.fingerprint,
        "probes": _text_probes(encoder, recipe.encode),
    }
    if page_encoder is not None and recipe.pages is not None:
        settings["page_fingerprint"] = page_encoder.card.fingerprint
        settings["page_probe"] = _pack(_probe_image_row(page_encoder, recipe.pages))
    return settings


def check_fingerprint(path: Path, catalog: Catalog, encoder: Encoder, stage: EncodeStage | PagesStage) -> None:
    """Raise FingerprintMismatch if an encoder is not the one that built the texts, or the pages, of an index."""
    card = encoder.card
    if isinstance(stage, PagesStage):
        stored = catalog.setting("page_fingerprint")
        what, probe, option = f"the page images of {path} were", "picture", "--page-model"
    else:
        stored = catalog.setting("fingerprint")
        what, probe, option = f"{path} was", "text", "--model"
    way_out = f"or embed again with this one: ragkit migrate {path} {option} {card.name}"
    if card.fingerprint != stored:
        raise FingerprintMismatch(
            f"{what} built with {stage.model} ({stored[:12]}), but this encoder is {card.name} ({card.fingerprint[:12]}). "
            f"Open the index with {stage.model}, {way_out}"
        )
    cosine = probe_agreement(catalog, encoder, stage)
    if cosine < PROBE_COSINE:
        raise FingerprintMismatch(
            f"{what} built with {stage.model}, and this encoder has its name, but its vector of a probe {probe} has a cosine of "
            f"only {cosine:.4f} to the stored one (at least {PROBE_COSINE} expected): its weights or its software differ. "
            f"Restore the former ones, {way_out}"
        )


def probe_agreement(catalog: Catalog, encoder: Encoder, stage: EncodeStage | PagesStage) -> float:
    """Return the least cosine between the stored vectors of the probes and those that this encoder makes; 1.0 without probes."""
    if isinstance(stage, PagesStage):
        stored = np.frombuffer(base64.b64decode(catalog.setting("page_probe")), dtype="<f4")
        row = _probe_image_row(encoder, stage)
        if row.shape != stored.shape:
            return 0.0
        return float(row @ stored / (np.linalg.norm(row) * np.linalg.norm(stored)))
    probes: Mapping[str, str] = catalog.setting("probes")
    if not probes:
        return 1.0
    expected = np.stack([np.frombuffer(base64.b64decode(vector), dtype="<f4") for vector in probes.values()])
    rows = _probe_text_rows(encoder, list(probes), stage)
    return float((rows * expected).sum(axis=1).min())


def _text_probes(encoder: Encoder, stage: EncodeStage) -> dict[str, str]:
    """Return the vectors of the probe texts in the document role: text to base64 of (d,) little-endian float32."""
    if not embeds_text(encoder.card):
        return {}
    rows = _probe_text_rows(encoder, PROBES, stage)
    return {text: _pack(row) for text, row in zip(PROBES, rows, strict=True)}


def _pack(row: Floats) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def _probe_text_rows(encoder: Encoder, texts: Sequence[str], stage: EncodeStage) -> Floats:
    """Return a direction per text, (n, d) unit rows: its dense vector, or else the mean of its multi-vector."""
    encoding = encoder.encode_document(texts, task=stage.task, truncate_dim=stage.dims, truncate=True)
    if encoding.dense is not None:
        return encoding.dense
    assert encoding.multi is not None
    return np.concatenate([mean_vector(encoding.multi[at]) for at in range(len(texts))])


def _probe_image_row(encoder: Encoder, stage: PagesStage) -> Floats:
    """Return the direction of the probe picture, (d,) float32."""
    encoding = encoder.encode_document([_probe_image()], task=stage.task, truncate=True)
    rows = encoding.dense
    if rows is None:
        assert encoding.multi is not None
        rows = mean_vector(encoding.multi[0])
    return np.asarray(rows[0], dtype=np.float32)


def _probe_image() -> Image:
    """Draw 224 x 224 pixels: two ramps and a checkerboard, so that orientation, colours and detail all count."""
    from PIL import Image

    at = np.arange(224)
    red, green = np.broadcast_to(at, (224, 224)), np.broadcast_to(at[:, None], (224, 224))
    blue = 255 * ((red // 16 + green // 16) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))

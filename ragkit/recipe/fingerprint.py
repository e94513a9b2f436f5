"""Check that an encoder is the one that built an index."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.arrays import mean_vector
from ragkit.core.errors import FingerprintMismatch
from ragkit.core.types import Floats
from ragkit.encode.contract import Encoder
from ragkit.encode.external import embeds_text
from ragkit.recipe.recipe import EncodeStage, PagesStage
from ragkit.store.catalog.catalog import Catalog

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "Wie spät ist es in Zürich?",
    "def add(a, b): return a + b",
    "東京は日本の首都です。",
)
PROBE_COSINE = 0.999  # two builds of one model agree better than this, in bfloat16 too; two models do not


def page_settings(encoder: Encoder, stage: PagesStage) -> dict[str, Any]:
    row = _page_probe(encoder, stage)
    return {
        "page_fingerprint": encoder.card.fingerprint,
        "page_probe": base64.b64encode(row.astype("<f4").tobytes()).decode(),
    }


def _page_probe(encoder: Encoder, stage: PagesStage) -> Floats:
    """The direction of a small picture of our own making, (d,) float32: what a silently different model is caught by."""
    encoding = encoder.encode_document([_probe_picture()], task=stage.task, truncate=True)
    rows = encoding.dense
    if rows is None:
        assert encoding.multi is not None
        rows = mean_vector(encoding.multi[0])
    return np.asarray(rows[0], dtype=np.float32)


def _probe_picture() -> Any:
    """224 x 224 pixels: two ramps and a checkerboard, so that orientation, colours and detail all count."""
    from PIL import Image

    at = np.arange(224)
    red, green = np.broadcast_to(at, (224, 224)), np.broadcast_to(at[:, None], (224, 224))
    blue = 255 * ((red // 16 + green // 16) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def probe_vectors(encoder: Encoder, stage: EncodeStage) -> dict[str, str]:
    """The probe texts' vectors in the document role: text to base64 of (d,) little-endian float32."""
    if not embeds_text(encoder.card):
        return {}
    rows = _probe_rows(encoder, PROBES, stage)
    return {text: base64.b64encode(row.astype("<f4").tobytes()).decode() for text, row in zip(PROBES, rows, strict=True)}


def _probe_rows(encoder: Encoder, texts: Sequence[str], stage: EncodeStage) -> Floats:
    """A direction per text, (n, d) unit rows: its dense vector, or the mean of its multi-vectors where it has no other."""
    encoding = encoder.encode_document(texts, task=stage.task, truncate_dim=stage.dims, truncate=True)
    if encoding.dense is not None:
        return encoding.dense
    assert encoding.multi is not None
    return np.concatenate([mean_vector(encoding.multi[at]) for at in range(len(texts))])


def check_fingerprint(path: Path, catalog: Catalog, encoder: Encoder, stage: EncodeStage) -> None:
    stored = catalog.setting("fingerprint")
    if encoder.card.fingerprint != stored:
        raise FingerprintMismatch(
            f"{path} was built with {stage.model} ({stored[:12]}), but this encoder is {encoder.card.name} "
            f"({encoder.card.fingerprint[:12]}). Open it with the first, or embed its documents again with this one: "
            f"ragkit migrate {path} --model {encoder.card.name}"
        )
    cosine = probes_agree(catalog, encoder, stage)
    if cosine < PROBE_COSINE:
        raise FingerprintMismatch(
            f"{encoder.card.name} calls itself the model that built {path}, but a probe text comes out at cosine "
            f"{cosine:.4f} to the stored vector, below {PROBE_COSINE}: its weights or its software differ. "
            f"Put back what it was, or embed all documents again: ragkit migrate {path} --model {encoder.card.name}"
        )


def check_page_fingerprint(path: Path, catalog: Catalog, encoder: Encoder, stage: PagesStage) -> None:
    """FingerprintMismatch where an encoder is not the one that saw the pages of the index."""
    stored = catalog.setting("page_fingerprint")
    problem = ""
    if encoder.card.fingerprint != stored:
        problem = f"the pages of {path} were seen by {stage.model} ({stored[:12]}), but this encoder is {encoder.card.name} "
        problem += f"({encoder.card.fingerprint[:12]}). Open it with the first"
    elif (cosine := page_probe_agrees(catalog, encoder, stage)) < PROBE_COSINE:
        problem = f"{encoder.card.name} calls itself the model that saw the pages of {path}, but a probe picture comes out at "
        problem += f"cosine {cosine:.4f} to the stored vector, below {PROBE_COSINE}. Put back what it was"
    if problem:
        raise FingerprintMismatch(f"{problem}, or see them again: ragkit migrate {path} --page-model {encoder.card.name}")


def page_probe_agrees(catalog: Catalog, encoder: Encoder, stage: PagesStage) -> float:
    """The cosine between the stored vector of the probe picture and the one that this encoder makes."""
    stored = np.frombuffer(base64.b64decode(catalog.setting("page_probe")), dtype="<f4")
    row = _page_probe(encoder, stage)
    if row.shape != stored.shape:
        return 0.0
    return float(row @ stored / (np.linalg.norm(row) * np.linalg.norm(stored)))


def probes_agree(catalog: Catalog, encoder: Encoder, stage: EncodeStage) -> float:
    """The least cosine between the stored vectors of the probe texts and those that this encoder makes."""
    probes = catalog.setting("probes")
    texts = list(probes)
    if not texts:
        return 1.0
    expected = np.stack([np.frombuffer(base64.b64decode(probes[text]), dtype="<f4") for text in texts])
    rows = _probe_rows(encoder, texts, stage)
    return float((rows * expected).sum(axis=1).min())

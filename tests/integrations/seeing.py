"""An encoder that sees: an image is its mean colour, a text the colours it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ragkit.core.arrays import unit_rows
from ragkit.encode.contract import Encoding
from ragkit.encode.texts import split_item
from ragkit.testing import HashEncoder

COLOURS = ("red", "green", "blue")


class SeeingEncoder(HashEncoder):
    def __init__(self) -> None:
        super().__init__(dims=3)
        self.card = replace(self.card, name="test:seeing", modalities=("text", "image"))

    def encode_query(self, queries: Sequence[Any], **options: Any) -> Encoding:
        return self.encode_document(queries)

    def encode_document(self, documents: Sequence[Any], **options: Any) -> Encoding:
        return Encoding(dense=unit_rows(np.stack([_row(*split_item(at, one)) for at, one in enumerate(documents)])))


def _row(text: str | None, image: Any) -> np.ndarray:
    if image is not None:
        return np.asarray(image, dtype=np.float32).reshape(-1, 3).mean(axis=0) + np.float32(1e-3)
    return np.array([float(colour in str(text)) + 1e-3 for colour in COLOURS], dtype=np.float32)


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)

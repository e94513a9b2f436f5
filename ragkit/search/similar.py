"""Find units like a unit, and near duplicates."""

from __future__ import annotations

from dataclasses import dataclass

from ragkit.core.types import Hit


@dataclass(frozen=True, slots=True, eq=False)
class Duplicate:
    """Two units whose vectors have a cosine at or above the threshold asked for."""

    score: float
    first: Hit
    second: Hit

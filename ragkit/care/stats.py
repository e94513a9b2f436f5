"""The counts of an index: what it holds, and how its vectors are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ragkit.core.types import Metadata


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

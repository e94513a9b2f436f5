"""Count what an index holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    recipe: Mapping[str, Any]
    dense: tuple[Mapping[str, Any], ...]  # per segment: rows, structure, measured recall
    multi: tuple[Mapping[str, Any], ...]  # per segment: rows, tokens, dims, precision
    page_dense: tuple[Mapping[str, Any], ...]  # the same of page images
    page_multi: tuple[Mapping[str, Any], ...]
    failures: int

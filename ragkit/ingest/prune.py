"""Delete documents whose files are gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ragkit.ingest.item import absolute_path
from ragkit.load import Source


def pruned_roots(targets: Sequence[str | Path | Source] | None) -> list[Path]:
    """The folders and files beneath which `prune` may delete, absolute; ValueError where the targets name none."""
    if targets is None:
        raise ValueError("prune=True is for files and folders: documents handed in have no place on the disk that could be empty")
    roots = [absolute_path(target) for target in targets]
    for root in roots:
        if not root.exists():
            raise ValueError(f"prune=True is for folders and files, and {root} is a pattern: name the folder, with include=")
    return roots

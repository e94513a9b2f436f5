"""Ways to damage an index on purpose, and all that it answers."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragkit import Index

MODES = ("hybrid", "dense", "lexical")
BESIDES = {"chunk.multi": "multi", "page.dense": "page.dense", "page.multi": "page.multi"}  # spaces, and how to ask them alone
QUERIES = ("otters that sleep", "granite bridge", "fish", "how to bake bread", "nothing of the kind")

Answers = dict[tuple[str, str], list[tuple[Any, ...]]]


def answers(index: Index, queries: Sequence[str] = QUERIES, **options: Any) -> Answers:
    """Every query in every mode, with what identifies a hit, and its score."""
    return {
        (mode, query): [
            (hit.document_id, tuple(hit.span), hit.text, round(hit.score, 5))
            for hit in index.search(query, 50, mode=mode, **options)
        ]
        for mode in (*MODES, *(mode for space, mode in BESIDES.items() if space in index.spaces))
        for query in queries
    }


def flip(path: Path, at: int, bit: int = 1) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(at if at >= 0 else path.stat().st_size + at)
        where = file.tell()
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ bit]))


def only(paths: Any) -> Path:
    found = list(paths)
    assert len(found) == 1, found
    return Path(found[0])


def in_catalog(path: Path, statement: str) -> None:
    """Change rows behind ragkit's back: their checksums do not match any more."""
    catalog = sqlite3.connect(path / "catalog.db")
    try:
        with catalog:
            assert catalog.execute(statement).rowcount, statement
    finally:
        catalog.close()


def folder_bytes(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}

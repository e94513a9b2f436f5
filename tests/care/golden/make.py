"""Makes the golden index of the current format: python -m tests.care.golden.make

Run it once for a format, when it is released, and never again: the test holds later versions to reading it.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ragkit import Document, Index, Page, Span
from ragkit.core.types import Block, Words
from ragkit.store.catalog.schema import FORMAT

HERE = Path(__file__).parent
QUERIES = ("otters asleep", "granite bridge", "Brücken aus Granit", "bread and salt", "page two", "1887")
MODES = ("hybrid", "dense", "lexical")
SETTINGS: dict[str, Any] = {"model": "hash:32", "chunk_tokens": 16, "chunk_overlap": 2}


def records() -> list[Any]:
    """Documents of every shape that a catalog keeps: languages, metadata, pages with words, blocks, no text at all."""
    import numpy as np

    text = "Page one speaks of otters.\n\nPage two speaks of granite."
    words = Words(np.array([[0, 4], [5, 8]], dtype=np.int64), np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32))
    none = Words(np.empty((0, 2), dtype=np.int64), np.empty((0, 4), dtype=np.float32))
    pages = (Page(1, 595.0, 842.0, Span(0, 26), words, label="i"), Page(2, 842.0, 595.0, Span(28, 55), none, rotation=90))
    blocks = (Block("heading", Span(0, 26), 1), Block("paragraph", Span(28, 55)))
    return [
        {
            "id": "otter",
            "text": "Otters hold hands while they are asleep. They eat fish.",
            "title": "Otters",
            "meta": {"year": 1999},
        },
        {"id": "bridge", "text": "The bridge was built in 1887. Its arches are made of granite, from the quarry nearby. " * 3},
        {
            "id": "brücke",
            "text": "Die Brücken sind aus Granit gebaut.",
            "meta": {"lang": "de", "tags": ["a", "b"], "nested": {"x": 1.5}},
        },
        {"id": "bread", "text": "Bread needs flour, salt and time."},
        {"id": "empty", "text": ""},
        Document(text=text, id="paged", title="Pages", pages=pages, blocks=blocks, meta={"kind": "pdf"}),
    ]


def answers(index: Index) -> dict[str, list[list[Any]]]:
    return {
        f"{mode}: {query}": [
            [hit.document_id, hit.key, *hit.span, hit.text, list(hit.headings), str(hit.citation), round(hit.score, 4)]
            for hit in index.search(query, 20, mode=mode, rrf=15.0)  # fused as when it was written
        ]
        for mode in MODES
        for query in QUERIES
    }


def make() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "golden"
        with Index.open(path, **SETTINGS) as index:
            index.add(records())
            index.add([{"id": "bread", "text": "Bread needs flour, water, salt and time."}, {"id": "gone", "text": "Soon gone."}])
            index.delete("gone")
            expected = {
                "answers": answers(index),
                "documents": [[row.source, row.title, dict(row.meta), row.units] for row in index.documents()],
            }
        catalog = sqlite3.connect(path / "catalog.db")
        catalog.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        catalog.close()
        with tarfile.open(HERE / f"format-{FORMAT}.tar.xz", "w:xz") as archive:
            archive.add(path, arcname="golden")
    (HERE / f"format-{FORMAT}.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    make()

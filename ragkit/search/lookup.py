"""Read documents, pages and units of an index."""

from __future__ import annotations

from dataclasses import dataclass

from ragkit.core.types import Floats
from ragkit.store.values import DocumentRow

LISTED = 500  # rows of documents read together
STREAMED = 16  # hits, or documents, read from the catalog together when they are streamed


@dataclass(frozen=True, slots=True, eq=False)
class StoredDocument:
    """A document as it is stored: its row, its text, its dense vectors (n, d), n units by key, or None."""

    row: DocumentRow
    text: str
    vectors: Floats | None

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragkit import Index
from ragkit.testing import HashEncoder

NOTES = {
    "otter": "Otters hold hands while they sleep. They live along the river and eat fish, crabs and mussels.",
    "bridge": "The bridge over the river was built in 1887. Its arches are made of granite from the quarry nearby.",
    "quarry": "The quarry closed in 1961. Granite from here went into bridges, churches and the harbour wall.",
    "bread": "Bread needs flour, water, salt and time. A long cold rise gives it taste.",
    "harbour": "The harbour wall keeps the fishing boats safe in winter. Fish is sold here every Friday morning.",
}


def record(name: str, text: str | None = None, **meta: object) -> dict[str, object]:
    return {"id": name, "text": NOTES[name] if text is None else text, "title": name.title(), "meta": meta}


def records() -> list[dict[str, object]]:
    return [record(name, number=at, lang="en" if at % 2 else "de") for at, name in enumerate(NOTES)]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Five short notes in an index of the test encoder."""
    with Index.open(tmp_path / "library", model=HashEncoder(dims=64), chunk_tokens=16) as index:
        index.add(records())
        yield index

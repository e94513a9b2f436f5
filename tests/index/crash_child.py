"""Run by test_crash.py under strace, to be killed at some write: one operation on the index named on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from ragkit import Index
from ragkit.testing import HashEncoder

ENCODER = HashEncoder(dims=32)


def operate(path: Path, operation: str) -> None:
    with Index.open(path, model=ENCODER) as index:
        if operation == "add":
            index.add(
                [
                    {"id": "changed", "text": "After: the tower was painted green. It leans."},
                    {"id": "new", "text": "Entirely new words about whales and towers."},
                    {"id": "kept", "text": "Kept as it was: salt, bread and a tower."},
                ]
            )
        else:
            index.delete(["changed", "gone"])


def prepare(path: Path) -> None:
    with Index.open(path, model=ENCODER, chunk_tokens=12) as index:
        index.add(
            [
                {"id": "changed", "text": "Before: the tower was painted red. It stands upright. Nobody climbs it."},
                {"id": "kept", "text": "Kept as it was: salt, bread and a tower."},
                {"id": "gone", "text": "A tower of cards falls. Cards are paper."},
            ]
        )
        index.add([{"id": "second", "text": "A second commit mentions whales."}])


if __name__ == "__main__":
    operate(Path(sys.argv[1]), sys.argv[2])

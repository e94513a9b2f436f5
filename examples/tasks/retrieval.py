"""Retrieval: questions find the passages that answer them. Queries and documents are encoded in their own roles.

python examples/tasks/retrieval.py [MODEL]
"""

from __future__ import annotations

import sys
import tempfile

from ragkit import Index

PASSAGES = {
    "tides": "The Moon's gravity raises two bulges of water, so most coasts have two high tides a day.",
    "bread": "Sourdough rises through wild yeast and lactic bacteria that live in a culture of flour and water.",
    "glass": "Window glass is made by floating molten glass on a bath of tin, which leaves it flat on both sides.",
    "bees": "A returning forager tells the hive where flowers are by a dance: its angle is the direction, its length the way.",
    "steel": "Stainless steel does not rust because chromium in it forms a thin layer of oxide that heals itself.",
}
QUESTIONS = {
    "Why does the sea come in twice each day?": "tides",
    "How do insects describe the way to food?": "bees",
    "What keeps kitchen sinks from corroding?": "steel",
    "How are panes made so flat?": "glass",
    "What makes dough grow without bought yeast?": "bread",
}


def main(model: str = "default") -> dict[str, str]:
    """The id of the best passage for each question."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, Index.open(folder, model=model, task="retrieval") as index:
        index.add([{"id": name, "text": text} for name, text in PASSAGES.items()])
        for question, hits in zip(QUESTIONS, index.search_many(QUESTIONS, k=1, mode="dense"), strict=True):
            [hit] = hits
            found[question] = next(name for name, text in PASSAGES.items() if text == hit.text)
            print(f"{question}\n  {hit.score:.2f}  {hit.text}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])

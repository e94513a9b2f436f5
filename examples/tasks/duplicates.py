"""Semantic duplicates: sentences that say the same in other words. The task `text-matching` is symmetric: no query, no document.

python examples/tasks/duplicates.py [MODEL]
"""

from __future__ import annotations

import sys

import numpy as np

from ragkit import load_encoder

TEXTS = [
    "How do I reset my password?",
    "The meeting was moved to Thursday.",
    "What is the best way to change a password that I forgot?",
    "Water boils at 100 degrees Celsius at sea level.",
    "They postponed the meeting until Thursday.",
    "At sea level, the boiling point of water is 100 °C.",
    "The library closes at eight on weekdays.",
]


def main(model: str = "default", threshold: float = 0.6) -> list[tuple[int, int]]:
    """Pairs of positions whose cosine is at least the threshold, the most alike first."""
    rows = load_encoder(model).encode(TEXTS, task="text-matching").dense
    cosines = np.triu(rows @ rows.T, k=1)
    pairs = sorted(np.argwhere(cosines >= threshold).tolist(), key=lambda pair: -cosines[tuple(pair)])
    for a, b in pairs:
        print(f"{cosines[a, b]:.2f}  {TEXTS[a]}\n      {TEXTS[b]}")
    return [(a, b) for a, b in pairs]


if __name__ == "__main__":
    main(*sys.argv[1:2])

"""Clustering: what belongs together in a pile of texts? The task `separation` is for this.

python examples/tasks/clustering.py [MODEL]
"""

from __future__ import annotations

import sys

import numpy as np

from ragkit import load_encoder

TEXTS = [
    "The striker scored twice in the second half.",
    "The central bank raised interest rates to slow inflation.",
    "Fry the onions until they are golden, then add the rice.",
    "The goalkeeper saved a penalty in extra time.",
    "Inflation fell as energy prices eased.",
    "Let the dough rest for an hour before you bake it.",
    "The coach praised the defenders after the match.",
    "Shares closed lower after weak earnings reports.",
    "Season the soup with salt, pepper and a little lemon.",
]


def clusters(rows: np.ndarray, count: int, rounds: int = 20) -> np.ndarray:
    """Spherical k-means, started from rows that are far from each other: (n,) the cluster of each of (n, d) unit rows."""
    centres = rows[:1]
    while len(centres) < count:
        centres = np.concatenate([centres, rows[[(rows @ centres.T).max(axis=1).argmin()]]])
    for _ in range(rounds):
        member = (rows @ centres.T).argmax(axis=1)
        centres = np.stack([rows[member == i].sum(axis=0) for i in range(count)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return member


def main(model: str = "default") -> list[int]:
    """The cluster of each text."""
    rows = load_encoder(model).encode(TEXTS, task="separation").dense
    member = clusters(rows, 3)
    for i in range(3):
        print(f"Cluster {i + 1}", *(f"  {text}" for text, one in zip(TEXTS, member, strict=True) if one == i), sep="\n")
    return member.tolist()


if __name__ == "__main__":
    main(*sys.argv[1:2])

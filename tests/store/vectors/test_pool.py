"""Token pooling against Ward's method by its definition."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragkit.store.vectors.pool import pool_tokens, token_clusters


def test_clusters_are_wards() -> None:
    """Against the definition: merge, again and again, the two clusters whose union adds the least squared distance."""
    rng = np.random.default_rng(0)
    for size, factor in [(9, 2), (14, 3), (5, 1), (4, 9)]:
        tokens = rng.normal(size=(size, 6)).astype(np.float32)
        tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
        clusters = [[at] for at in range(size)]
        while len(clusters) > max(1, size // factor):

            def cost(pair: tuple[int, int], tokens: Any = tokens, clusters: list[list[int]] = clusters) -> float:
                one, two = (tokens[clusters[at]] for at in pair)
                gap = one.mean(axis=0) - two.mean(axis=0)
                return float(len(one) * len(two) / (len(one) + len(two)) * (gap @ gap))

            first, second = min(((i, j) for j in range(len(clusters)) for i in range(j)), key=cost)
            clusters[first] += clusters.pop(second)
        labels = token_clusters(tokens, factor)
        assert sorted(sorted(cluster) for cluster in clusters) == sorted(
            np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)
        )
        means = [tokens[labels == label].mean(axis=0) for label in range(labels.max() + 1)]
        np.testing.assert_allclose(pool_tokens(tokens, factor), [m / np.linalg.norm(m) for m in means], atol=1e-6)

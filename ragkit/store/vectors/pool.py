"""Token pooling: fewer vectors for a text, by clusters of tokens that are alike. SciPy only here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ragkit.core.arrays import unit_rows
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Floats, Ints


def pool_tokens(tokens: Floats, factor: int) -> Floats:
    """Return fewer vectors for a text: its tokens in clusters, each the unit mean of its members (Clavié et al.,
    arXiv 2409.14683).

    tokens (t, d) unit rows; returns (max(1, t // factor), d), or fewer where tokens are equal, by their first members.
    """
    labels = token_clusters(tokens, factor)
    sums = np.zeros((int(labels.max()) + 1, tokens.shape[1]), dtype=np.float64)
    np.add.at(sums, labels, tokens)
    return unit_rows(sums)


def token_clusters(tokens: Floats, factor: int) -> Ints:
    """Return the cluster of each token, (t,) int64, counted by first members; one for every `factor` of them."""
    return clusters_of(tokens, max(1, len(tokens) // factor))


def clusters_of(tokens: Floats, count: int) -> Ints:
    """Return the cluster of each token, (t,) int64, counted by first members, at most `count`: Ward's method on unit rows."""
    if count >= len(tokens):
        return np.arange(len(tokens))
    if count == 1:
        return np.zeros(len(tokens), dtype=np.int64)
    linkage, cut = _clustering()
    labels = cut(linkage(tokens.astype(np.float64), method="ward"), t=count, criterion="maxclust")
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]


def _clustering() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
    except ImportError:
        raise MissingExtra.of("scipy", "cpu", "pooling tokens") from None
    return linkage, fcluster

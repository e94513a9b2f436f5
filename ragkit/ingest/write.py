"""Commit prepared documents."""

from __future__ import annotations

from typing import cast

import numpy as np

from ragkit.core.types import Floats
from ragkit.ingest.item import Item
from ragkit.store.values import Prepared
from ragkit.store.vectors.multi_layout import Stored

COMMIT_UNITS = 8192
COMMIT_SECONDS = 30.0
COMMIT_BYTES = 1 << 28  # of multi-vectors


def as_prepared(item: Item) -> Prepared:
    return Prepared(
        origin=item.origin,
        document=item.document,
        chunks=item.chunks,
        dense=np.stack(cast(list[Floats], item.dense)) if item.dense and item.dense[0] is not None else None,
        replaces=None if item.replaces is None else item.replaces.id,
        multi=Stored.join(cast(list[Stored], item.multi)) if item.multi and item.multi[0] is not None else None,
        seen=item.seen,
        complete=item.settled,
    )

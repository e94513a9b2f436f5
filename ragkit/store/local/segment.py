"""One segment of vectors on disk, open for reading."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import Damaged
from ragkit.core.space import Space
from ragkit.core.types import Floats, Ints
from ragkit.store.local.files import CheckedFolder, FileRecord, map_array
from ragkit.store.local.locks import Pin
from ragkit.store.values import SegmentRow
from ragkit.store.vectors.dense import DenseReader
from ragkit.store.vectors.multi import COARSE, MultiReader
from ragkit.store.vectors.multi_layout import Layout


class Segment:
    """An open segment: `keys` and `documents` (n,) int64, mapped, and a reader per space, all of one `kind` of units.

    Immutable, and held by a shared lock."""

    def __init__(
        self,
        folder: Path,
        row: SegmentRow,
        records: Sequence[FileRecord],
        *,
        repair_command: str,
        device: str | None = None,
        sealed: bool = False,
    ) -> None:
        """repair_command, sealed: see `CheckedFolder`."""
        self._device = device
        self.pin = Pin(folder)
        self.row = row
        self.kind = row.kind
        self.folder = CheckedFolder(folder, records, repair_command=repair_command, sealed=sealed)
        self.keys = self._column("keys.npy")
        self.documents = self._column("documents.npy")
        self._lock = threading.Lock()
        self._dense: DenseReader | None = None
        self._multi: MultiReader | None = None

    @property
    def multi(self) -> MultiReader | None:
        """The multi-vectors, opened on first use."""
        if (space := Space.of(self.kind, "multi")) not in self.row.spaces:
            return None
        with self._lock:
            if self._multi is None:
                self._multi = MultiReader(self.folder, space, self.keys, device=self._device)
            return self._multi

    def bytes_of(self, space: Space) -> int:
        """Return the bytes of a space's files on disk."""
        return sum(record.size for name, record in self.folder.records.items() if name.startswith(f"{space}."))

    @property
    def dense(self) -> DenseReader | None:
        """The dense vectors, opened on first use: a search by words alone must not fail because of them."""
        if (space := Space.of(self.kind, "dense")) not in self.row.spaces:
            return None
        with self._lock:
            if self._dense is None:
                self._dense = DenseReader(self.folder, space)
            return self._dense

    def readable(self) -> bool:
        """Whether every byte that a rewrite reads is as it was written. It does not read coarse vectors, but makes them anew."""
        try:
            for name in self.folder.records:
                if COARSE not in name:
                    self.folder.verify(name)
        except Damaged:
            return False
        return True

    def verify(self) -> None:
        """Compare every byte with its checksum, except blocks verified before; Damaged names the file."""
        for name in self.folder.records:
            self.folder.verify(name)

    def _column(self, name: str) -> Ints:
        path = self.folder.file(name)
        self.folder.verify(name)
        column: Ints = map_array(path)
        return column


@dataclass(frozen=True, slots=True)
class VectorFormats:
    """How vectors are written: the recall that compressed dense ones must reach, and by kind of units how multi-vectors lie on
    disk, where there are any."""

    recall: float
    layouts: Mapping[str, Layout]


@dataclass(frozen=True, slots=True, eq=False)
class Salvaged:
    """Rows saved from a damaged segment: `keys` and `documents` (n,) int64, and their vectors; see `ragkit.care.repair`."""

    kind: str
    keys: Ints
    documents: Ints
    dense: SavedRows

    @property
    def multi(self) -> None:
        """Damaged segments with multi-vectors are embedded again instead."""
        return None


class SavedRows(Protocol):
    """Dense rows by position, (m, d) float32."""

    def rows(self, positions: npt.NDArray[np.int64]) -> Floats: ...

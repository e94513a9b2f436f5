"""A NumPy file of rows: written while they are still counted, and compared with its checksums block by block."""

from __future__ import annotations

import numpy as np

from ragkit.core.types import Ints
from ragkit.store.local.files import CheckedFolder

HEADER = 128  # bytes before the rows


def npy_header(dtype: str, rows: int, width: int) -> bytes:
    """Return NumPy's header (format 1.0), always HEADER bytes long, so that it can be written again when the rows are counted."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


class RowBlocks:
    """Which blocks of a recorded file of rows were compared with their checksums; the header is compared at once.

    Thread-safe: a block is at worst compared twice.
    """

    def __init__(self, folder: CheckedFolder, name: str, *, rows: int, row_bytes: int) -> None:
        record = folder.records[name]
        self._folder = folder
        self._name = name
        self._row_bytes = row_bytes
        self._start = record.size - rows * row_bytes
        self._block = record.block
        self._seen = np.zeros(-(-record.size // record.block), dtype=np.bool_)
        folder.verify(name, 0, self._start)

    def verify_all(self) -> None:
        """Compare every block that was not compared before. Damaged names the file."""
        if not self._seen.all():
            self._folder.verify(self._name)
            self._seen[:] = True

    def verify(self, begins: Ints, ends: Ints) -> None:
        """Compare the blocks that hold the rows begins[i] to ends[i], none of them empty, unless that was done before."""
        if self._seen.all():
            return
        first = (self._start + begins * self._row_bytes) // self._block
        last = (self._start + ends * self._row_bytes - 1) // self._block
        edges = np.zeros(len(self._seen) + 1, dtype=np.int64)
        np.add.at(edges, first, 1)
        np.add.at(edges, last + 1, -1)
        for block in np.flatnonzero((np.cumsum(edges)[:-1] > 0) & ~self._seen).tolist():
            self._folder.verify(self._name, block * self._block, (block + 1) * self._block)
            self._seen[block] = True

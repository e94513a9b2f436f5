"""Evaluate filters over every document version that a local store holds.

Metadata of a document version never changes, so each field that filters use is read once and kept as codes into its
distinct values: evaluating a filter costs one call per distinct value and one numpy lookup per document.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable

import numpy as np

from ragkit.core.types import Ints, Mask
from ragkit.store.filter import (
    UNIT_FIELDS,
    Comparison,
    Filter,
    Row,
    Value,
    Versions,
    bounds,
    field_value,
    fields_of,
    matches,
)


class FieldColumns:
    """The fields that filters used, of every document version seen so far, as codes into their distinct values.

    `rows(after)` yields document versions with ids above `after`, ascending; they never change, but may vanish once nobody
    can see them. All columns are of the same ids, in the same order. Thread-safe.
    """

    def __init__(self, rows: Callable[[int], Iterable[Row]]) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._ids = array("q")
        self._columns: dict[str, _Column] = {}

    def matching(self, where: Filter) -> Ints:
        """Return the ids of the document versions that match, ascending, (n,) int64; deleted versions may be among them.

        Of a filter that speaks of passages: the versions of which some passage may match.
        """
        with self._lock:
            fields = fields_of(where) - UNIT_FIELDS
            if not fields <= self._columns.keys():
                # Versions may have vanished since the others were read, so a new column means that all are read again.
                self._columns = {field: _Column(field) for field in fields | self._columns.keys()}
                self._ids = array("q")
            for row in self._rows(self._ids[-1] if self._ids else 0):
                self._ids.append(row.id)
                for column in self._columns.values():
                    column.append(row)
            ids = np.array(self._ids, dtype=np.int64)
            return ids[bounds(where, lambda condition: self._judge(condition, ids), len(ids))[1]]

    def _judge(self, condition: Comparison | Versions, ids: Ints) -> Mask:
        if isinstance(condition, Versions):
            return np.isin(ids, sorted(condition.ids))
        if len(ids) == 0:
            return np.zeros(0, dtype=np.bool_)
        column = self._columns[condition.field]
        verdicts = (matches(condition.operator, value, condition.target) for value in column.values)
        return np.fromiter(verdicts, dtype=np.bool_, count=len(column.values))[np.array(column.codes, dtype=np.int64)]


class _Column:
    def __init__(self, field: str) -> None:
        self.field = field
        self.codes = array("q")
        self.values: list[Value] = []
        self._code: dict[str, int] = {}

    def append(self, row: Row) -> None:
        value = field_value(row, self.field)
        name = f"{type(value).__name__}:{value!r}"
        if name not in self._code:
            self._code[name] = len(self.values)
            self.values.append(value)
        self.codes.append(self._code[name])

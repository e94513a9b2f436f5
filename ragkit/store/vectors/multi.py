"""Multi-vectors of a segment: one vector per token, stored once, mapped read-only, scanned by `maxsim`.

A segment's multi-vectors are three files in its folder, ordinary NumPy and JSON:

    <name>.npy           (sum_t, w) uint8 codes and weight, float16 or float32: the tokens of all rows, one row after the other
    <name>.offsets.npy   (n + 1,) int64: row i is tokens offsets[i] to offsets[i + 1], at least one
    <name>.json          MultiStats: precision, the quantiser, and what quantising lost

With `Layout.coarse` there are three more, `<name>.coarse.*`, of the same form: for every row fewer int8 vectors, made of its own
by `quantise.thin`, that say which rows are worth a look. They are made anew whenever a segment is written.

Rules. All segments of an index share one `Layout`, so scores compare across them and merging copies codes without rounding
them again: a row's score never changes, unless it was written before codes had weights (`MultiReader.stored`). Bytes are
compared with their checksums when they are first touched, and only the blocks that a search touches are read.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ragkit.core.errors import Damaged
from ragkit.core.types import Array, Floats, Ints, Json, Mask
from ragkit.store.local.files import CheckedFolder, map_array, write_array
from ragkit.store.vectors import maxsim
from ragkit.store.vectors.maxsim_torch import TorchItems
from ragkit.store.vectors.multi_layout import DTYPES, Layout, Precision, Stored, runs_of_rows
from ragkit.store.vectors.quantise import Loss, Quantiser, requantise
from ragkit.store.vectors.rows import RowBlocks, npy_header
from ragkit.store.vectors.tiles import Items, Scores

PARALLEL = 1 << 18  # tokens; a scan of fewer takes a few milliseconds, and threads would cost a good part of them
COARSE = ".coarse"  # behind the name of the vectors that they stand for


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiStats:
    """What a segment's multi-vectors are: `residual` and `longest` as in `quantise.Loss`; `step`, `seed` and `weighed` of the
    quantiser."""

    rows: int
    tokens: int
    dims: int
    precision: Precision
    step: float = 0.0
    seed: int = 0
    weighed: bool = False
    residual: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, layout: Layout, loss: Loss, *, rows: int, tokens: int) -> MultiStats:
        """Return the stats of rows stored in a layout."""
        stats = cls(
            rows=rows, tokens=tokens, dims=layout.dims, precision=layout.precision, residual=loss.residual, longest=loss.longest
        )
        quantiser = layout.quantiser
        return replace(stats, step=quantiser.step, seed=quantiser.seed, weighed=quantiser.weighed) if quantiser else stats

    @property
    def quantiser(self) -> Quantiser | None:
        """What made the codes; None for floats."""
        return Quantiser(dims=self.dims, step=self.step, seed=self.seed, weighed=self.weighed) if self.step else None


# --- writing ----------------------------------------------------------------------------------------------------------


def write_multi(folder: Path, name: str, layout: Layout, parts: Iterable[Stored]) -> MultiStats:
    """Write the rows of all parts, streamed; the files are garbage until a commit records them."""
    with ExitStack() as files:
        exact = files.enter_context(_Writing(folder, name, layout))
        coarse = files.enter_context(_Writing(folder, name + COARSE, Layout(layout.dims))) if layout.coarse else None
        for part in parts:
            exact.append(part)
            if coarse is not None:
                coarse.append_thinned(part, layout)
    if coarse is not None:
        coarse.finish()
    return exact.finish()


class _Writing(AbstractContextManager["_Writing"]):
    """The three files of one name, while rows are added to them."""

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        self._folder, self._name, self._layout = folder, name, layout
        self._loss, self._lengths, self._tokens = Loss(), [np.zeros(0, dtype=np.int64)], 0
        self._file = (folder / f"{name}.npy").open("wb")
        self._file.write(self._header())

    def append(self, part: Stored) -> None:
        self._file.write(np.ascontiguousarray(part.values).data)
        self._lengths.append(part.lengths)
        self._tokens += len(part.values)
        self._loss |= part.loss

    def append_thinned(self, part: Stored, layout: Layout) -> None:
        """Append the coarse vectors of rows stored in `layout`."""
        for piece in part.pieces():
            self.append(layout.thinned(piece))

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(self._header())

    def finish(self) -> MultiStats:
        """Write the offsets and the stats, and return these."""
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]).astype("<i8")
        write_array(self._folder / f"{self._name}.offsets.npy", offsets)
        stats = MultiStats.of(self._layout, self._loss, rows=len(offsets) - 1, tokens=self._tokens)
        (self._folder / f"{self._name}.json").write_text(json.dumps(asdict(stats), indent=1) + "\n")
        return stats

    def _header(self) -> bytes:
        return npy_header(DTYPES[self._layout.precision].str, self._tokens, self._layout.width)


# --- reading ----------------------------------------------------------------------------------------------------------


class MultiReader:
    """A segment's multi-vectors, mapped read-only; `keys` (n,) int64 of its rows. Thread-safe.

    device: where torch scans them, such as "cuda"; None for the kernel.
    """

    def __init__(self, folder: CheckedFolder, name: str, keys: Ints, *, device: str | None = None) -> None:
        self._device = device
        self._sent: TorchItems | None = None
        self._coarse: MultiReader | None = None
        self._lock = threading.Lock()
        self._folder = folder
        self._name = name
        folder.verify(f"{name}.json")
        self.stats = MultiStats(**json.loads(folder.file(f"{name}.json").read_text()))
        self.layout = Layout(self.stats.dims, self.stats.precision)
        quantiser = self.stats.quantiser
        path = folder.file(f"{name}.npy")
        token_bytes = quantiser.row_bytes if quantiser else self.layout.token_bytes
        self._blocks = RowBlocks(folder, path.name, rows=self.stats.tokens, row_bytes=token_bytes)
        folder.verify(f"{name}.offsets.npy")
        offsets = map_array(folder.file(f"{name}.offsets.npy"))
        if (quantiser is None) != (self.layout.quantiser is None) or len(offsets) != len(keys) + 1:
            raise Damaged(f"{path} does not fit its segment: quantiser {quantiser}, {len(offsets)} offsets, {len(keys)} keys")
        self.items = Items(map_array(path), offsets, np.ascontiguousarray(keys), quantiser)

    @property
    def n(self) -> int:
        return self.stats.rows

    @property
    def loss(self) -> Loss:
        return Loss(self.stats.residual, self.stats.longest)

    @property
    def coarse(self) -> MultiReader | None:
        """The coarse vectors of the same rows, opened on first use; None where none were written."""
        if f"{self._name}{COARSE}.json" not in self._folder.records:
            return None
        with self._lock:
            if self._coarse is None:
                self._coarse = MultiReader(self._folder, self._name + COARSE, self.items.keys, device=self._device)
            return self._coarse

    def describe(self) -> Json:
        """Return the stats as plain values, for JSON; `coarse` is how many coarse vectors there are."""
        return {**asdict(self.stats), "coarse": self.coarse.stats.tokens if self.coarse else 0}

    def search(
        self, queries: Sequence[Floats], k: int, *, allowed: Mask | None = None, threads: int | None = None
    ) -> list[tuple[Ints, Scores]]:
        """Return each query's best min(k, allowed) rows, best first, ties by key: keys and scores. queries (q, d) each.

        allowed (n,) bool. threads: None is all that the process may use, where there is enough to do; answers are the same.
        """
        if allowed is not None and allowed.all():
            allowed = None
        if self._device is not None:
            return self._on_device(self._device).scan(queries, k=k, allowed=allowed)
        if allowed is None:
            self._blocks.verify_all()
        else:
            self._verify(np.flatnonzero(allowed))
        if threads is None:
            threads = usable_cores() if self.stats.tokens >= PARALLEL else 1
        return maxsim.scan(queries, self.items, k=k, allowed=allowed, threads=threads)

    def _on_device(self, device: str) -> TorchItems:
        """Return the tokens where torch scans them; all are verified before they are sent."""
        with self._lock:
            if self._sent is None:
                self._blocks.verify_all()
                self._sent = TorchItems(self.items, device)
            return self._sent

    def scores_of(self, queries: Sequence[Floats], positions: Ints) -> Scores:
        """Return the scores of the rows at positions (m,), (queries, m) float64: what `search` would give them."""
        self._verify(positions)
        return maxsim.scores_of(queries, self.items, positions)

    def explain(self, query: Floats, position: int) -> tuple[Ints, Scores]:
        """Return per query token the row's token that matched best and its share, (q,) each; shares sum exactly to the score."""
        self._verify(np.array([position]))
        return maxsim.explain(query, self.items, position)

    def stored(self, positions: Ints) -> Iterator[Stored]:
        """Yield the rows at positions (m,) as they are to be stored, in order, about COPIED tokens at a time.

        They are copied as they are; but codes without weights are given some, which rounds them again, by half as much as the
        first time.
        """
        self._verify(positions)
        begins, ends = self.items.offsets[positions], self.items.offsets[positions + 1]
        for numbers in runs_of_rows(ends - begins):
            adjacent = np.split(numbers, np.flatnonzero(np.diff(positions[numbers]) != 1) + 1)
            pieces = [self.items.values[begins[run[0]] : ends[run[-1]]] for run in adjacent]
            values, loss = self._current(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
            yield Stored(values, ends[numbers] - begins[numbers], loss)

    def _current(self, values: Array) -> tuple[Array, Loss]:
        """Return stored values as the layout has them today, and what they lost in all."""
        old, new = self.items.quantiser, self.layout.quantiser
        if old is None or new is None or old == new:
            return values, self.loss
        codes, again = requantise(values, old, new)
        return codes, Loss(self.loss.residual + again.residual, self.loss.longest)

    def _verify(self, positions: Ints) -> None:
        self._blocks.verify(self.items.offsets[positions], self.items.offsets[positions + 1])


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

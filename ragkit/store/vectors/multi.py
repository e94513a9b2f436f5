"""Multi-vectors of a segment: one vector per token, stored once, mapped read-only, scanned by `maxsim`.

A segment's multi-vectors are three files in its folder, ordinary NumPy and JSON:

    <name>.npy           (sum_t, w) uint8 codes and weight, float16 or float32: the tokens of all rows, one row after the other
    <name>.offsets.npy   (n + 1,) int64: row i is tokens offsets[i] to offsets[i + 1], at least one
    <name>.json          MultiStats: precision, the quantiser, and what quantising lost

With `Layout.coarse` there are three more, `<name>.coarse.*`, of the same form: for every row fewer int8 vectors, made of its own
by `maxsim.thin`, that say which rows are worth a look. They are made anew whenever a segment is written.

Rules. All segments of an index share one `Layout`, so scores compare across them and merging copies codes without rounding
them again: a row's score never changes, unless it was written before codes had weights (`MultiReader.stored`). Bytes are
compared with their checksums when they are first touched, and only the blocks that a search touches are read.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import MultiVectors, unit_rows
from ragkit.core.errors import Damaged, MissingExtra
from ragkit.core.types import Floats, Ints
from ragkit.store.local.files import CheckedFolder, map_array, write_array
from ragkit.store.vectors import maxsim
from ragkit.store.vectors.maxsim import Items, Loss, Mask, Quantiser, Scores
from ragkit.store.vectors.maxsim_torch import TorchItems

Precision = Literal["int8", "float16", "float32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES: dict[str, np.dtype[Any]] = {"int8": np.dtype("u1"), "float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
PARALLEL = 1 << 18  # tokens; a scan of fewer takes a few milliseconds, and threads would cost a good part of them
UNIT = maxsim.ROOM  # length; the quantiser covers unit rows, and would clip longer ones
COARSE = ".coarse"  # behind the name of the vectors that they stand for
COPIED = 1 << 16  # tokens copied, or made fewer, at a time when a segment is written

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How multi-vectors are stored, the same for all segments of an index. `dims` of a vector; see `maxsim` for precisions.
    coarse: how many of a row's vectors one more stands for, to find candidates by; 0 for none. It does not change the vectors."""

    dims: int
    precision: Precision = "int8"
    coarse: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not isinstance(self.dims, int) or not 1 <= self.dims <= maxsim.WIDEST:
            raise ValueError(f"dims must be from 1 to {maxsim.WIDEST}, got {self.dims}")
        if not isinstance(self.coarse, int) or self.coarse < 0 or self.coarse == 1:
            raise ValueError(f"coarse must be 0, or at least 2 vectors that one stands for, got {self.coarse}")

    @property
    def quantiser(self) -> Quantiser | None:
        return Quantiser.of(self.dims) if self.precision == "int8" else None

    @property
    def width(self) -> int:
        """Stored components of a token."""
        return self.quantiser.row_bytes if self.quantiser else self.dims

    @property
    def token_bytes(self) -> int:
        return self.width * DTYPES[self.precision].itemsize

    @property
    def bytes_a_token(self) -> float:
        """On disk, the coarse vectors included."""
        return self.token_bytes + (Quantiser.of(self.dims).row_bytes / self.coarse if self.coarse else 0)

    def store(self, multi: MultiVectors) -> Stored:
        """Vectors as they will lie on disk. ValueError: another width, not finite, or too large for the precision."""
        values = multi.values
        if values.shape[1] != self.dims:
            raise ValueError(f"vectors must have {self.dims} dims, got {values.shape[1]}")
        lengths = np.diff(multi.offsets)
        if self.quantiser:
            codes, loss = maxsim.quantise(values, self.quantiser)
            if loss.longest > UNIT:
                raise ValueError(f"int8 is for vectors of unit length, got one of {loss.longest:.4g}: normalise, or use float16")
            return Stored(codes, lengths, loss)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype=DTYPES[self.precision])
        squares = np.einsum("td,td->t", stored, stored, dtype=np.float64)
        if not (squares <= maxsim.LONGEST**2).all():
            raise ValueError(f"vector {int((squares <= maxsim.LONGEST**2).argmin())} is not finite, or too large for {self}")
        longest = float(np.sqrt(squares.max(initial=0.0)))
        if self.coarse:
            _check_unit(longest)
        return Stored(stored, lengths, Loss(0.0, longest))

    def thinned(self, part: Stored) -> Stored:
        """The coarse vectors of rows that `store` made. ValueError: a layout without `coarse` took vectors of another length."""
        quantiser, codes = Quantiser.of(self.dims), part.values
        if self.precision != "int8":
            codes, loss = maxsim.quantise(part.values.astype(np.float32), quantiser)
            _check_unit(loss.longest)
        fewer, lengths = maxsim.thin(codes, part.lengths, quantiser, self.coarse)
        return Stored(fewer, lengths, part.loss)


def _check_unit(longest: float) -> None:
    if longest > UNIT:
        raise ValueError(f"coarse is for vectors of unit length, got one of {longest:.4g}: normalise, or leave it out")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """n rows as on disk: values (sum_t, w), lengths (n,) int64 of at least one token each, and what storing them lost."""

    values: Values
    lengths: Ints
    loss: Loss

    def __len__(self) -> int:
        return len(self.lengths)

    def pieces(self) -> Iterator[Stored]:
        """The rows in order, about COPIED tokens at a time, not copied."""
        ends = np.cumsum(self.lengths)
        for some in _groups(self.lengths):
            begin, end = ends[some[0]] - self.lengths[some[0]], ends[some[-1]]
            yield Stored(self.values[begin:end], self.lengths[some], self.loss)

    @classmethod
    def join(cls, parts: Sequence[Stored]) -> Stored:
        """The rows of all parts, at least one part; of a single one they are not copied."""
        if len(parts) == 1:
            return parts[0]
        loss = Loss()
        for part in parts:
            loss |= part.loss
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts]), loss)


def _groups(lengths: Ints) -> list[Ints]:
    """The numbers of rows of these lengths, in runs of about COPIED tokens."""
    turns = np.cumsum(lengths) // COPIED
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(turns)) + 1) if len(lengths) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiStats:
    """What a segment's multi-vectors are: `residual` and `longest` as in `maxsim.Loss`; `step`, `seed` and `weighed` of the
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
        """Of rows stored in a layout."""
        found = cls(
            rows=rows, tokens=tokens, dims=layout.dims, precision=layout.precision, residual=loss.residual, longest=loss.longest
        )
        made = layout.quantiser
        return replace(found, step=made.step, seed=made.seed, weighed=made.weighed) if made else found

    @property
    def quantiser(self) -> Quantiser | None:
        """What made the codes; None of floats."""
        return Quantiser(dims=self.dims, step=self.step, seed=self.seed, weighed=self.weighed) if self.step else None


def write_multi(folder: Path, name: str, layout: Layout, parts: Iterable[Stored]) -> MultiStats:
    """Write the rows of all parts, streamed; the files are garbage until a commit records them."""
    with ExitStack() as files:
        exact = files.enter_context(_Writing(folder, name, layout))
        coarse = files.enter_context(_Writing(folder, name + COARSE, Layout(layout.dims))) if layout.coarse else None
        for part in parts:
            exact.append(part)
            if coarse is not None:
                for piece in part.pieces():
                    coarse.append(layout.thinned(piece))
    if coarse is not None:
        coarse.finish()
    return exact.finish()


class _Writing(AbstractContextManager["_Writing"]):
    """The three files of one name, while rows are added to them."""

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        self._folder, self._name, self._layout = folder, name, layout
        self._loss, self._lengths, self._tokens = Loss(), [np.zeros(0, dtype=np.int64)], 0
        self._file = (folder / f"{name}.npy").open("wb")
        self._file.write(_header(layout, 0))

    def append(self, part: Stored) -> None:
        self._file.write(np.ascontiguousarray(part.values).data)
        self._lengths.append(part.lengths)
        self._tokens += len(part.values)
        self._loss |= part.loss

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(_header(self._layout, self._tokens))

    def finish(self) -> MultiStats:
        """Write the offsets and what the rows are."""
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]).astype("<i8")
        write_array(self._folder / f"{self._name}.offsets.npy", offsets)
        stats = MultiStats.of(self._layout, self._loss, rows=len(offsets) - 1, tokens=self._tokens)
        (self._folder / f"{self._name}.json").write_text(json.dumps(asdict(stats), indent=1) + "\n")
        return stats


def _header(layout: Layout, tokens: int) -> bytes:
    """NumPy's header (format 1.0), always 128 bytes long, so that it can be written again when the tokens are counted."""
    shape = (tokens, layout.width)
    text = f"{{'descr': '{DTYPES[layout.precision].str}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


class MultiReader:
    """A segment's multi-vectors, mapped read-only; `keys` (n,) int64 of its rows. Thread-safe.

    device: where torch scans them, such as "cuda"; None for the kernel.
    """

    def __init__(self, folder: CheckedFolder, name: str, keys: Ints, *, device: str | None = None) -> None:
        self._device = device
        self._sent: TorchItems | None = None
        self._lock = threading.Lock()
        self._folder = folder
        self._name = name
        folder.verify(f"{name}.json")
        self.stats = MultiStats(**json.loads(folder.file(f"{name}.json").read_text()))
        self.layout = Layout(self.stats.dims, self.stats.precision)
        stats, made = self.stats, self.stats.quantiser
        path = folder.file(f"{name}.npy")
        self._token_bytes = made.row_bytes if made else self.layout.token_bytes
        self._start = path.stat().st_size - stats.tokens * self._token_bytes
        folder.verify(path.name, 0, self._start)
        folder.verify(f"{name}.offsets.npy")
        offsets = map_array(folder.file(f"{name}.offsets.npy"))
        if (made is None) != (self.layout.quantiser is None) or len(offsets) != len(keys) + 1:
            raise Damaged(f"{path} does not fit its segment: quantiser {made}, {len(offsets)} offsets, {len(keys)} keys")
        self.items = Items(map_array(path), offsets, np.ascontiguousarray(keys), made)
        record = folder.records[path.name]
        self._seen = np.zeros(-(-record.size // record.block), dtype=np.bool_)
        self._block = record.block
        self._coarse: MultiReader | None = None

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

    def describe(self) -> dict[str, Any]:
        """The stats as plain values, for JSON; `coarse` is how many coarse vectors there are."""
        return {**asdict(self.stats), "coarse": self.coarse.stats.tokens if self.coarse else 0}

    def search(
        self, queries: Sequence[Floats], k: int, *, allowed: Mask | None = None, threads: int | None = None
    ) -> list[tuple[Ints, Scores]]:
        """Each query's best min(k, allowed) rows, best first, ties by key: keys and scores. queries (q, d) each.

        allowed (n,) bool. threads: None is all that the process may use, where there is enough to do; answers are the same.
        """
        if allowed is not None and allowed.all():
            allowed = None
        if self._device is not None:
            return self._on_device(self._device).scan(queries, k=k, allowed=allowed)
        self._verify(None if allowed is None else np.flatnonzero(allowed))
        if threads is None:
            threads = usable_cores() if self.stats.tokens >= PARALLEL else 1
        return maxsim.scan(queries, self.items, k=k, allowed=allowed, threads=threads)

    def _on_device(self, device: str) -> TorchItems:
        """The tokens where torch scans them; all are verified before they are sent."""
        with self._lock:
            if self._sent is None:
                self._verify(None)
                self._sent = TorchItems(self.items, device)
            return self._sent

    def scores_of(self, queries: Sequence[Floats], positions: Ints) -> Scores:
        """The scores of the rows at positions (m,), (number of queries, m): what `search` would give them."""
        self._verify(positions)
        return maxsim.scores_of(queries, self.items, positions)

    def explain(self, query: Floats, position: int) -> tuple[Ints, Scores]:
        """Per query token, the row's token that matched best and its share, (q,) each; shares sum to the score exactly."""
        self._verify(np.array([position]))
        return maxsim.explain(query, self.items, position)

    def stored(self, positions: Ints) -> Iterator[Stored]:
        """The rows at positions (m,) as they are to be stored, in order, about COPIED tokens at a time.

        As they are; but codes without weights are given some, which rounds them again, by half as much as the first time.
        """
        self._verify(positions)
        begins, ends = self.items.offsets[positions], self.items.offsets[positions + 1]
        for some in _groups(ends - begins):
            runs = np.split(some, np.flatnonzero(np.diff(positions[some]) != 1) + 1)  # rows that lie behind each other
            pieces = [self.items.values[begins[run[0]] : ends[run[-1]]] for run in runs]
            values, loss = self._current(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
            yield Stored(values, ends[some] - begins[some], loss)

    def _current(self, values: Values) -> tuple[Values, Loss]:
        made, wanted = self.items.quantiser, self.layout.quantiser
        if made is None or wanted is None or made == wanted:
            return values, self.loss
        codes, again = maxsim.requantise(values, made, wanted)
        return codes, Loss(self.loss.residual + again.residual, self.loss.longest)

    def _verify(self, positions: Ints | None) -> None:
        """Compare the checksums of the blocks that hold these rows, or all, unless that was done before."""
        if self._seen.all():
            return
        name = f"{self._name}.npy"
        if positions is None:
            self._folder.verify(name)
            self._seen[:] = True
            return
        width = self._token_bytes
        first = (self._start + self.items.offsets[positions] * width) // self._block
        last = (self._start + self.items.offsets[positions + 1] * width - 1) // self._block
        edges = np.zeros(len(self._seen) + 1, dtype=np.int64)
        np.add.at(edges, first, 1)
        np.add.at(edges, last + 1, -1)
        for block in np.flatnonzero((np.cumsum(edges)[:-1] > 0) & ~self._seen).tolist():
            self._folder.verify(name, block * self._block, (block + 1) * self._block)
            self._seen[block] = True


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- token pooling ----------------------------------------------------------------------------------------------------


def pool_tokens(tokens: Floats, factor: int) -> Floats:
    """Fewer vectors for a text: its tokens in clusters, each the unit mean of its members (Clavié et al., arXiv 2409.14683).

    tokens (t, d) unit rows; returns (max(1, t // factor), d), or fewer where tokens are equal, by their first members.
    """
    labels = token_clusters(tokens, factor)
    sums = np.zeros((int(labels.max()) + 1, tokens.shape[1]), dtype=np.float64)
    np.add.at(sums, labels, tokens)
    return unit_rows(sums)


def token_clusters(tokens: Floats, factor: int) -> Ints:
    """Which cluster each token falls into, (t,) int64, counted by first members; one for every `factor` of them."""
    return some_clusters(tokens, max(1, len(tokens) // factor))


def some_clusters(tokens: Floats, wanted: int) -> Ints:
    """As `token_clusters`, at most so many: Ward's method on unit rows."""
    if wanted >= len(tokens):
        return np.arange(len(tokens))
    if wanted == 1:
        return np.zeros(len(tokens), dtype=np.int64)
    linkage, cut = _clustering()
    labels = cut(linkage(tokens.astype(np.float64), method="ward"), t=wanted, criterion="maxclust")
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

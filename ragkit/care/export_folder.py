"""The folder of an export: vectors and documents as files, written from a reader and read again. See `ragkit.care.exchange`.

    manifest.json            what it is: recipe, fingerprint, counts, spaces, and the sha256 of each of the other files
    documents.jsonl          a document a line; or documents.parquet, a document a row
    <space>.keys.npy         (n,) int64: the unit of each row, in no order
    chunk.dense.npy          (n, d) float16 unit rows
    chunk.multi.npy          (sum_t, w) uint8, float16 or float32: the token vectors of one unit after the other's
    chunk.multi.offsets.npy  (n + 1,) int64: unit i has the token vectors offsets[i] to offsets[i + 1]
    chunk.multi.json         rows, tokens, dims, precision; step, seed, weighed of the quantiser: see docs/format.md
    <space>.parquet          instead of its npy files: `key`, and `vector` (d float32) or `vectors` (a list of w uint8 or float32)

Vectors are those of the index, bit for bit. Both ways they pass through memory in parts. Everything read is checked: it may
come from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ragkit.care import parquet
from ragkit.core.errors import Damaged, StorageError
from ragkit.core.space import Space
from ragkit.core.types import Floats, Ints
from ragkit.store.local.files import write_array
from ragkit.store.local.reader import Reader
from ragkit.store.vectors.multi import MultiStats, write_multi
from ragkit.store.vectors.multi_layout import DTYPES, UNIT, Layout, Stored
from ragkit.store.vectors.quantise import LONGEST, ZERO, Loss, signed_rows

VERSION = 2
ROWS = 4096  # dense rows in memory at a time
NORM = 0.01  # how far a stored row may be from unit length: float16 rounds it, and so do codes
Form = Literal["npy", "parquet"]
Rows = tuple[Ints, Any]  # keys (n,) int64, rows (n, d)
Tokens = tuple[Ints, Stored]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_vectors(folder: Path, reader: Reader, *, form: Form) -> dict[Space, dict[str, Any]]:
    """Write every space of a reader; what the manifest says of each."""
    told = {}
    for space in reader.spaces():
        write = _write_dense if space.form == "dense" else _write_multi
        told[space] = {"form": form, **write(folder, reader, space, form)}
    return told


def _write_dense(folder: Path, reader: Reader, space: Space, form: Form) -> dict[str, Any]:
    dims = next(segment.dense.dims for segment in reader.segments if space in segment.row.spaces and segment.dense)
    count = len(reader.keys(space.kind))
    if form == "parquet":
        parquet.write_dense(folder / f"{space}.parquet", dims, reader.scan_dense(space))
        return {"rows": count, "dims": dims}
    keys = []
    with (folder / f"{space}.npy").open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (count, dims)}
        np.lib.format.write_array_header_1_0(file, header)
        for some, rows in reader.scan_dense(space):
            keys.append(some)
            file.write(np.ascontiguousarray(rows, dtype="<f2").data)
    write_array(folder / f"{space}.keys.npy", np.concatenate([np.empty(0, dtype=np.int64), *keys]))
    return {"rows": count, "dims": dims}


def _write_multi(folder: Path, reader: Reader, space: Space, form: Form) -> dict[str, Any]:
    readers = [segment.multi for segment in reader.segments if space in segment.row.spaces]
    layout = next(reader.layout for reader in readers if reader is not None)
    keys: list[Ints] = [np.empty(0, dtype=np.int64)]

    def parts() -> Iterator[Stored]:
        for some, stored in reader.scan_multi(space):
            keys.append(some)
            yield stored

    if form == "npy":
        stats = write_multi(folder, space, layout, parts())
        write_array(folder / f"{space}.keys.npy", np.concatenate(keys))
        return {"rows": stats.rows, "tokens": stats.tokens}
    loss, tokens = Loss(), 0

    def columns() -> Iterator[tuple[Ints, Any, Ints]]:
        nonlocal loss, tokens
        for stored in parts():
            loss, tokens = loss | stored.loss, tokens + len(stored.values)
            yield keys[-1], stored.values, stored.lengths

    parquet.write_multi(folder / f"{space}.parquet", layout.width, DTYPES[layout.precision], columns())
    rows = sum(map(len, keys))
    stats = MultiStats.of(layout, loss, rows=rows, tokens=tokens)
    (folder / f"{space}.json").write_text(json.dumps(asdict(stats), indent=1) + "\n")
    return {"rows": rows, "tokens": tokens}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class DenseRows:
    """The dense vectors of a parcel: keys (n,) ascending, where each one's row is, and rows (n, d) float16, mapped."""

    where: str
    keys: Ints
    order: npt.NDArray[np.intp]
    rows: Any

    def of(self, keys: Sequence[int]) -> Floats | None:
        """The rows of units, (len(keys), d) float32; None where they have none. Damaged where only some have."""
        if (at := _positions(self, keys)) is None:
            return None
        rows = np.asarray(self.rows[at], dtype=np.float32)
        if not np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) <= NORM):
            raise Damaged(f"{self.where} has vectors that are not of unit length")
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class MultiRows:
    """The multi-vectors of a parcel, as they are stored: keys and order as in `DenseRows`, values (sum_t, w) mapped."""

    where: str
    keys: Ints
    order: npt.NDArray[np.intp]
    values: Any
    offsets: Ints
    layout: Layout
    loss: Loss

    def of(self, keys: Sequence[int]) -> Stored | None:
        """The rows of units, in that order; None where they have none. Damaged where only some have, or none such is stored."""
        if (at := _positions(self, keys)) is None:
            return None
        begins, ends = self.offsets[at], self.offsets[at + 1]
        values = np.concatenate([self.values[begin:end] for begin, end in zip(begins, ends, strict=True)])
        if not _lawful(values, self.layout):
            raise Damaged(f"{self.where} has token vectors that are longer than {self.layout} stores")
        return Stored(values, ends - begins, self.loss)


def _positions(rows: DenseRows | MultiRows, keys: Sequence[int]) -> npt.NDArray[np.intp] | None:
    found = np.isin(keys, rows.keys)
    if not found.any():
        return None
    if not found.all():
        raise Damaged(f"{rows.where} has vectors for only {int(found.sum())} of {len(keys)} units of a document")
    return rows.order[np.searchsorted(rows.keys, keys)]


def _lawful(values: Any, layout: Layout) -> bool:
    """Whether values are such as a layout stores: of bounded length, codes and weights never 0, their padding the code of 0."""
    if (quantiser := layout.quantiser) is None:
        squares = np.einsum("td,td->t", values, values, dtype=np.float64)
        return bool((squares <= LONGEST**2).all())
    lengths = quantiser.step * np.sqrt((signed_rows(values, quantiser) ** 2).sum(axis=1))
    # Rounding moves each dimension by half a step of the row at most.
    most = UNIT + quantiser.step * values[:, quantiser.width] * np.sqrt(quantiser.dims) / 2
    padding = values[:, quantiser.dims : quantiser.width]
    return bool(values.min(initial=1) >= 1 and (padding == ZERO).all() and (lengths <= most).all())


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """An exported folder, its checksums compared: what the manifest says, the vectors of its spaces, the documents' file."""

    folder: Path
    manifest: Mapping[str, Any]
    dense: Mapping[Space, DenseRows]
    multi: Mapping[Space, MultiRows]
    documents: Path | None


@contextmanager
def opened(folder: Path) -> Iterator[Parcel]:
    """Read what `export` wrote; StorageError where it is something else, Damaged where a checksum or a shape is off."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        version, files = int(manifest["ragkit"]), dict(manifest["files"])
        named = _first_version(manifest) if version == 1 else dict(manifest.get("spaces", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{folder} is not what `ragkit export` writes: {error}") from error
    if version > VERSION:
        raise StorageError(f"{folder} was written by a newer ragkit (version {version} of the form). Run: pip install -U ragkit")
    for name, digest in files.items():
        if Path(name).name != name or not (folder / name).is_file() or sha256(folder / name) != digest:
            raise Damaged(f"{folder / name} is not the file that was exported. Export it again.")
    if unknown := sorted(set(named) - set(Space)):
        raise StorageError(f"{folder} has {', '.join(unknown)}: it cannot be imported")
    spaces = {Space(name): told for name, told in named.items()}
    with tempfile.TemporaryDirectory(prefix="ragkit-import-") as scratch:
        try:
            dense, multi = {}, {}
            for space, told in spaces.items():
                if space.form == "dense":
                    dense[space] = _dense(folder, space, told, files, Path(scratch))
                elif space.form == "multi":
                    multi[space] = _multi(folder, space, told, files, Path(scratch))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{folder} does not hold the vectors that it says: {error!r}") from error
        documents = next((folder / name for name in ("documents.jsonl", "documents.parquet") if name in files), None)
        yield Parcel(folder, manifest, dense, multi, documents)


def _first_version(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The spaces of an export of version 1, which had one, and its keys without its name."""
    if manifest.get("spaces", []) not in ([], [Space.DENSE]):
        raise ValueError(f"it is of version 1, which had no place for {', '.join(manifest['spaces'])}. Export it again")
    return {space: {"form": "npy", "keys": "keys.npy"} for space in manifest.get("spaces", [])}


def _dense(folder: Path, space: Space, told: Mapping[str, Any], files: Mapping[str, str], scratch: Path) -> DenseRows:
    if told["form"] == "parquet":
        _named(files, f"{space}.parquet")
        keys, rows = _plain_dense(folder / f"{space}.parquet", int(told["dims"]), scratch / f"{space}.npy")
    else:
        keys = _array(folder, files, told.get("keys", f"{space}.keys.npy"))
        rows = _array(folder, files, f"{space}.npy")
    if rows.ndim != 2 or rows.dtype != np.float16 or keys.shape != rows.shape[:1]:
        raise Damaged(f"{folder} has keys {keys.shape} and rows {rows.shape} {rows.dtype}, which do not fit")
    order = _order(folder, keys)
    return DenseRows(str(folder / space), keys[order], order, rows)


def _multi(folder: Path, space: Space, told: Mapping[str, Any], files: Mapping[str, str], scratch: Path) -> MultiRows:
    _named(files, f"{space}.json")
    stats = MultiStats(**json.loads((folder / f"{space}.json").read_text()))
    layout, loss = Layout(stats.dims, stats.precision), Loss(float(stats.residual), float(stats.longest))
    if stats.quantiser != layout.quantiser or not (0 <= loss.residual <= 2 and 0 <= loss.longest <= LONGEST):
        raise Damaged(f"{folder / space}.json says what no index stores: {stats}")
    if told["form"] == "parquet":
        _named(files, f"{space}.parquet")
        keys, values, offsets = _plain_multi(folder / f"{space}.parquet", layout, scratch / f"{space}.npy")
    else:
        keys, values, offsets = (_array(folder, files, f"{space}.{name}") for name in ("keys.npy", "npy", "offsets.npy"))
    fits = values.ndim == 2 and values.shape[1] == layout.width and values.dtype == DTYPES[layout.precision]
    if not fits or offsets.dtype != np.int64 or offsets.shape != (len(keys) + 1,):
        raise Damaged(f"{folder} has token vectors {values.shape} {values.dtype} and offsets {offsets.shape}, which do not fit")
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 1).any():
        raise Damaged(f"{folder} has offsets that do not ascend from 0 to {len(values)}")
    order = _order(folder, keys)
    return MultiRows(str(folder / space), keys[order], order, values, np.asarray(offsets), layout, loss)


def _named(files: Mapping[str, str], name: str) -> None:
    if name not in files:
        raise KeyError(name)


def _array(folder: Path, files: Mapping[str, str], name: str) -> Any:
    _named(files, name)
    return np.load(folder / name, mmap_mode="r", allow_pickle=False)


def _order(folder: Path, keys: Any) -> npt.NDArray[np.intp]:
    if keys.ndim != 1 or keys.dtype != np.int64 or len(np.unique(keys)) != len(keys):
        raise Damaged(f"{folder} has keys {keys.shape} {keys.dtype}, which must be distinct int64")
    return np.argsort(keys)


def _plain_dense(path: Path, dims: int, scratch: Path) -> tuple[Ints, Any]:
    """Dense vectors out of Parquet: keys, and rows in a file that is mapped."""
    keys: list[Ints] = [np.empty(0, dtype=np.int64)]

    def parts() -> Iterator[Any]:
        for some, rows in parquet.read_dense(path, dims):
            keys.append(some)
            yield rows.astype("<f2")

    rows = _mapped(scratch, np.dtype("<f2"), dims, parts())
    return np.concatenate(keys), rows


def _plain_multi(path: Path, layout: Layout, scratch: Path) -> tuple[Ints, Any, Ints]:
    """Multi-vectors out of Parquet: keys, values in a file that is mapped, and offsets."""
    keys: list[Ints] = [np.empty(0, dtype=np.int64)]
    lengths: list[Ints] = [np.zeros(1, dtype=np.int64)]

    def parts() -> Iterator[Any]:
        for some, values, sizes in parquet.read_multi(path, layout.width, DTYPES[layout.precision]):
            keys.append(some)
            lengths.append(sizes)
            yield values

    values = _mapped(scratch, DTYPES[layout.precision], layout.width, parts())
    return np.concatenate(keys), values, np.cumsum(np.concatenate(lengths))


def _mapped(path: Path, kind: np.dtype[Any], width: int, parts: Iterable[Any]) -> Any:
    count = 0
    with path.open("wb") as file:
        for rows in parts:
            file.write(np.ascontiguousarray(rows, dtype=kind).data)
            count += len(rows)
    return np.memmap(path, dtype=kind, mode="r", shape=(count, width)) if count else np.empty((0, width), dtype=kind)

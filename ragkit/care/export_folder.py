"""The folder of an export, and how it is read and checked. `ragkit.care.export` writes it, `ragkit.care.import_` brings it in.

    manifest.json            what it is: recipe, fingerprint, counts, spaces, and the sha256 of each of the other files
    documents.jsonl          a document a line
    <space>.keys.npy         (n,) int64: the unit of each row, in no order
    chunk.dense.npy          (n, d) float16 unit rows
    chunk.multi.npy          (sum_t, w) uint8, float16 or float32: the token vectors of one unit after the other's
    chunk.multi.offsets.npy  (n + 1,) int64: unit i has the token vectors offsets[i] to offsets[i + 1]
    chunk.multi.json         rows, tokens, dims, precision; step, seed, weighed of the quantiser: see docs/format.md

Vectors are mapped, not read into memory. Everything is checked, since a folder may come from anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import Damaged, StorageError
from ragkit.core.space import Space
from ragkit.core.types import Array, Floats, Ints, Json
from ragkit.store.vectors.multi import MultiStats
from ragkit.store.vectors.multi_layout import DTYPES, UNIT, Layout, Stored
from ragkit.store.vectors.quantise import LONGEST, ZERO, Loss, signed_rows

VERSION = 2
SETTINGS = ("recipe", "fingerprint", "probes")
PAGE_SETTINGS = ("page_fingerprint", "page_probe")  # settings of an index with page images
MADE_ANEW = "made_anew"  # in a manifest: identities of documents that lack something, and are made anew when they are next added
NORM = 0.01  # how far a stored row may be from unit length: float16 rounds it, and so do codes


class SpaceFields(TypedDict):
    """What a manifest says of a space. `keys` is the name of the file of keys, where that is not the usual one."""

    form: str
    rows: NotRequired[int]
    dims: NotRequired[int]
    tokens: NotRequired[int]
    keys: NotRequired[str]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class DenseRows:
    """The dense vectors of a space: keys (n,) ascending, the position of each key's row, and rows (n, d) float16, mapped."""

    path: str  # for messages
    keys: Ints
    order: npt.NDArray[np.intp]
    rows: Array

    def of(self, keys: Sequence[int]) -> Floats | None:
        """Return the rows of units, (len(keys), d) float32; None where they have none. Damaged where only some have."""
        if (positions := _positions(self, keys)) is None:
            return None
        rows = np.asarray(self.rows[positions], dtype=np.float32)
        if not np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) <= NORM):
            raise Damaged(f"{self.path} has vectors that are not of unit length")
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class MultiRows:
    """The multi-vectors of a space, as they are stored: keys and order as in `DenseRows`, values (sum_t, w) mapped."""

    path: str  # for messages
    keys: Ints
    order: npt.NDArray[np.intp]
    values: Array
    offsets: Ints
    layout: Layout
    loss: Loss

    def of(self, keys: Sequence[int]) -> Stored | None:
        """Return the rows of units, in that order; None where they have none. Damaged where only some have, or where no index
        stores such values."""
        if (positions := _positions(self, keys)) is None:
            return None
        begins, ends = self.offsets[positions], self.offsets[positions + 1]
        values = np.concatenate([self.values[begin:end] for begin, end in zip(begins, ends, strict=True)])
        if not _can_be_stored(values, self.layout):
            raise Damaged(f"{self.path} has token vectors that are longer than {self.layout} stores")
        return Stored(values, ends - begins, self.loss)


def _positions(rows: DenseRows | MultiRows, keys: Sequence[int]) -> npt.NDArray[np.intp] | None:
    present = np.isin(keys, rows.keys)
    if not present.any():
        return None
    if not present.all():
        raise Damaged(f"{rows.path} has vectors for only {int(present.sum())} of {len(keys)} units of a document")
    return rows.order[np.searchsorted(rows.keys, keys)]


def _can_be_stored(values: Array, layout: Layout) -> bool:
    """Whether a layout stores such values: of bounded length, codes and weights never 0, their padding the code of 0."""
    if (quantiser := layout.quantiser) is None:
        squares = np.einsum("td,td->t", values, values, dtype=np.float64)
        return bool((squares <= LONGEST**2).all())
    lengths = quantiser.step * np.sqrt((signed_rows(values, quantiser) ** 2).sum(axis=1))
    # Rounding moves each dimension by half a step of the row at most.
    longest = UNIT + quantiser.step * values[:, quantiser.width] * np.sqrt(quantiser.dims) / 2
    padding = values[:, quantiser.dims : quantiser.width]
    return bool(values.min(initial=1) >= 1 and (padding == ZERO).all() and (lengths <= longest).all())


@dataclass(frozen=True, slots=True, eq=False)
class ExportFolder:
    """An exported folder, its checksums compared: what the manifest says, the vectors of its spaces, the documents' file."""

    path: Path
    manifest: Json
    dense: Mapping[Space, DenseRows]
    multi: Mapping[Space, MultiRows]
    documents: Path | None


def open_export(path: Path) -> ExportFolder:
    """Open what `export` wrote; StorageError where it is something else, Damaged where a checksum or a shape is wrong."""
    manifest, files = _read_manifest(path)
    _check_files(path, files)
    spaces = _spaces(path, manifest)
    try:
        dense = {space: _dense(path, space, fields, files) for space, fields in spaces.items() if space.form == "dense"}
        multi = {space: _multi(path, space, files) for space in spaces if space.form == "multi"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} does not hold the vectors that its manifest names: {error!r}") from error
    documents = path / "documents.jsonl" if "documents.jsonl" in files else None
    return ExportFolder(path, manifest, dense, multi, documents)


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        if Path(name).name != name or not (path / name).is_file() or sha256(path / name) != digest:
            raise Damaged(f"{path / name} is not the file that was exported. Export it again.")


def _read_manifest(path: Path) -> tuple[Json, dict[str, str]]:
    """Return the manifest, its spaces in the form of this version, and the sha256 of each file."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        version, files = int(manifest["ragkit"]), dict(manifest["files"])
        spaces = _first_version_spaces(manifest) if version == 1 else dict(manifest.get("spaces", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is not a folder that `ragkit export` wrote: {error}") from error
    if version > VERSION:
        raise StorageError(f"{path} was written by a newer ragkit (version {version} of the form). Run: pip install -U ragkit")
    return {**manifest, "spaces": spaces}, files


def _first_version_spaces(manifest: Json) -> dict[str, SpaceFields]:
    """Return the spaces of an export of version 1, which had one at most, and its keys in a file without the space's name."""
    if manifest.get("spaces", []) not in ([], [Space.DENSE]):
        raise ValueError(f"it is of version 1, which had no place for {', '.join(manifest['spaces'])}. Export it again")
    return {space: {"form": "npy", "keys": "keys.npy"} for space in manifest.get("spaces", [])}


def _spaces(path: Path, manifest: Json) -> dict[Space, SpaceFields]:
    spaces = manifest["spaces"]
    if unknown := sorted(set(spaces) - set(Space)):
        raise StorageError(f"{path} has {', '.join(unknown)}: it cannot be imported")
    if any(isinstance(fields, dict) and fields.get("form") == "parquet" for fields in spaces.values()):
        raise StorageError(f"{path} holds its vectors as Parquet. Turn them into NumPy files first: examples/export_parquet.py")
    return {Space(name): fields for name, fields in spaces.items()}


def _dense(folder: Path, space: Space, fields: SpaceFields, files: Mapping[str, str]) -> DenseRows:
    keys = _array(folder, files, fields.get("keys", f"{space}.keys.npy"))
    rows = _array(folder, files, f"{space}.npy")
    if rows.ndim != 2 or rows.dtype != np.float16 or keys.shape != rows.shape[:1]:
        raise Damaged(f"{folder} has keys {keys.shape} and rows {rows.shape} {rows.dtype}, which do not fit together")
    order = _order(folder, keys)
    return DenseRows(str(folder / space), keys[order], order, rows)


def _multi(folder: Path, space: Space, files: Mapping[str, str]) -> MultiRows:
    _check_listed(files, f"{space}.json")
    stats = MultiStats(**json.loads((folder / f"{space}.json").read_text()))
    layout, loss = Layout(stats.dims, stats.precision), Loss(float(stats.residual), float(stats.longest))
    if stats.quantiser != layout.quantiser or not (0 <= loss.residual <= 2 and 0 <= loss.longest <= LONGEST):
        raise Damaged(f"{folder / space}.json has values that no index stores: {stats}")
    keys, values, offsets = (_array(folder, files, f"{space}.{name}") for name in ("keys.npy", "npy", "offsets.npy"))
    _check_tokens(folder, layout, keys, values, offsets)
    order = _order(folder, keys)
    return MultiRows(str(folder / space), keys[order], order, values, np.asarray(offsets), layout, loss)


def _check_tokens(folder: Path, layout: Layout, keys: Array, values: Array, offsets: Array) -> None:
    """Raise Damaged where token vectors, and the offsets of the units among them, are not of the shapes that a layout has."""
    fits = values.ndim == 2 and values.shape[1] == layout.width and values.dtype == DTYPES[layout.precision]
    if not fits or offsets.dtype != np.int64 or offsets.shape != (len(keys) + 1,):
        raise Damaged(
            f"{folder} has token vectors {values.shape} {values.dtype} and offsets {offsets.shape}, which do not fit together"
        )
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 1).any():
        raise Damaged(f"{folder} has offsets that do not ascend from 0 to {len(values)}")


def _check_listed(files: Mapping[str, str], name: str) -> None:
    """Raise KeyError for a file that the manifest does not list: its checksum was not compared."""
    if name not in files:
        raise KeyError(name)


def _array(folder: Path, files: Mapping[str, str], name: str) -> Array:
    _check_listed(files, name)
    array: Array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    return array


def _order(folder: Path, keys: Array) -> npt.NDArray[np.intp]:
    if keys.ndim != 1 or keys.dtype != np.int64 or len(np.unique(keys)) != len(keys):
        raise Damaged(f"{folder} has keys {keys.shape} {keys.dtype}, which must be distinct int64")
    return np.argsort(keys)

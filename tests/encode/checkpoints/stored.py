"""A checkpoint's files, written and read without torch: JSON, and safetensors with bfloat16, which numpy does not have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Tensors = Mapping[str, Array]

_READ = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32}
_NAMES = {np.dtype(np.float64): "F64", np.dtype(np.float16): "F16", np.dtype(np.int64): "I64", np.dtype(np.int32): "I32"}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def bfloat16_bits(array: Array) -> Array:
    """The nearest bfloat16 of each number, ties to even, as uint16 of the same shape. Finite numbers only."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_tensors(path: Path, tensors: Tensors, dtype: str = "F32") -> None:
    """Write float32 arrays as `dtype` ("F32", "F16" or "BF16"); arrays of any other dtype as they are."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blocks, end = [], 0
    for name in sorted(tensors):
        kind, block = _stored(tensors[name], dtype)
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [end, end + len(block)]}
        blocks.append(block)
        end += len(block)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blocks))


def _stored(array: Array, dtype: str) -> tuple[str, bytes]:
    if array.dtype != np.float32:
        return _NAMES[array.dtype], array.tobytes()
    if dtype == "BF16":
        return dtype, bfloat16_bits(array).tobytes()
    return dtype, array.astype(_READ[dtype]).tobytes()


def read_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """A safetensors file: its tensors, floating ones widened to float64, and their stored dtypes ("BF16", ...) by name."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        array = np.frombuffer(content[start + first : start + last], dtype=_READ[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array if entry["dtype"].startswith("I") else array.astype(np.float64)
    return tensors, {name: entry["dtype"] for name, entry in header.items()}


def edit_tensors(path: Path, *, remove: str | None = None, replace: Tensors | None = None) -> None:
    """Rewrite a safetensors file: without the tensor `remove`, and with those of `replace`, new ones and old.

    The rest keeps its bits. New float32 arrays are stored in the dtype that most of the file has.
    """
    tensors, dtypes = read_tensors(path)
    kinds = [kind for kind in dtypes.values() if not kind.startswith("I")]
    dtype = max(set(kinds), key=kinds.count)
    kept = {
        name: array if dtypes[name].startswith("I") else array.astype(np.float32)  # exact: nothing here is stored wider
        for name, array in tensors.items()
        if name != remove
    }
    if remove is not None and remove not in tensors:
        raise KeyError(f"{path} holds no {remove}: {sorted(tensors)}")
    write_tensors(path, kept | dict(replace or {}), dtype)


def random_linear(rng: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> Array:
    """A weight (rows, columns) that keeps the size of what it is applied to, times `gain`."""
    return (rng.normal(size=(rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)


def random_vector(rng: np.random.Generator, size: int, *, around: float = 0.0, spread: float = 0.2) -> Array:
    """A bias around 0, or a norm's weight around 1."""
    return (around + rng.normal(size=size) * spread).astype(np.float32)

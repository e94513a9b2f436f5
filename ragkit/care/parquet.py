"""Documents and vectors as Parquet files; pyarrow is imported here and nowhere else, on first use.

In go records and arrays in batches, out come the same. Values are kept exactly: float16 travels as float32, which every reader of
Parquet knows. What is read is checked for its types here; `export_folder` and `exchange` check its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.errors import Damaged, MissingExtra
from ragkit.core.types import Ints
from ragkit.store.local.files import writing

GROUP = 1 << 22  # characters of documents, or bytes of vectors, that are written as one row group, and read as one
READ = 256  # documents decoded together


def available() -> None:
    """MissingExtra where pyarrow is not installed."""
    _arrow()


def write_documents(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Documents as `exchange` describes them, one a row, nested; `meta` is JSON, since every document has its own fields."""
    arrow, parquet = _arrow()
    with _file(path), parquet.ParquetWriter(path, schema := _documents(arrow), compression="zstd") as file:
        batch: list[Mapping[str, Any]] = []
        characters = 0
        for record in records:
            batch.append(record)
            characters += len(record["text"])
            if characters >= GROUP:
                file.write_table(arrow.Table.from_pylist(batch, schema=schema))
                batch, characters = [], 0
        if batch:
            file.write_table(arrow.Table.from_pylist(batch, schema=schema))


def read_documents(path: Path) -> Iterator[dict[str, Any]]:
    """The records again, in order. Damaged where they are of other types."""
    arrow, parquet = _arrow()
    with _file(path), parquet.ParquetFile(path) as file:
        _same(path, file.schema_arrow, _documents(arrow))
        for batch in file.iter_batches(batch_size=READ):
            yield from batch.to_pylist()


def write_dense(path: Path, dims: int, parts: Iterable[tuple[Ints, Any]]) -> None:
    """Keys and rows (n, dims) in parts, one vector a row."""
    arrow, parquet = _arrow()
    schema = _dense(arrow, dims)
    with _file(path), parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as file:
        for keys, rows in parts:
            values = arrow.array(np.ascontiguousarray(rows, dtype=np.float32).reshape(-1))
            columns = [arrow.array(keys), arrow.FixedSizeListArray.from_arrays(values, dims)]
            file.write_table(arrow.Table.from_arrays(columns, schema=schema))


def read_dense(path: Path, dims: int) -> Iterator[tuple[Ints, Any]]:
    """Keys (n,) int64 and rows (n, dims) float32, in parts."""
    arrow, parquet = _arrow()
    with _file(path), parquet.ParquetFile(path) as file:
        _same(path, file.schema_arrow, _dense(arrow, dims))
        for batch in file.iter_batches(batch_size=max(1, GROUP // (4 * dims))):
            rows = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
            yield batch.column("key").to_numpy(zero_copy_only=False), rows.reshape(-1, dims)


def write_multi(path: Path, width: int, kind: Any, parts: Iterable[tuple[Ints, Any, Ints]]) -> None:
    """Keys, values (sum_t, width) and lengths (n,) in parts: one unit a row, a list of its token vectors. `kind` is the dtype."""
    arrow, parquet = _arrow()
    schema = _multi(arrow, width, kind)
    with _file(path), parquet.ParquetWriter(path, schema, compression="zstd") as file:
        for keys, values, lengths in parts:
            flat = arrow.array(np.ascontiguousarray(values, dtype=_wire(kind)).reshape(-1))
            tokens = arrow.FixedSizeListArray.from_arrays(flat, width)
            offsets = arrow.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            columns = [arrow.array(keys), arrow.ListArray.from_arrays(offsets, tokens)]
            file.write_table(arrow.Table.from_arrays(columns, schema=schema))


def read_multi(path: Path, width: int, kind: Any) -> Iterator[tuple[Ints, Any, Ints]]:
    """Keys (n,) int64, values (sum_t, width) of `kind` and lengths (n,) int64, in parts."""
    arrow, parquet = _arrow()
    with _file(path), parquet.ParquetFile(path) as file:
        _same(path, file.schema_arrow, _multi(arrow, width, kind))
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(row_groups=[group]):
                tokens = batch.column("vectors")
                lengths = tokens.value_lengths().to_numpy(zero_copy_only=False)
                values = tokens.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
                yield batch.column("key").to_numpy(zero_copy_only=False), values.astype(kind), lengths.astype(np.int64)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra.of("pyarrow", "parquet", "Parquet") from None
    return pyarrow, pyarrow.parquet


@contextmanager
def _file(path: Path) -> Iterator[None]:
    """Arrow's errors as ours: of a full disk an OSError, of what cannot be read Damaged."""
    arrow, _ = _arrow()
    try:
        with writing(path):
            yield
    except arrow.ArrowException as error:
        raise Damaged(f"{path} cannot be read as Parquet: {error}") from error


def _same(path: Path, found: Any, expected: Any) -> None:
    if not found.equals(expected):
        raise Damaged(f"{path} has other columns than an export of ragkit: {found.names}")


def _wire(kind: Any) -> Any:
    return np.uint8 if np.dtype(kind) == np.uint8 else np.float32


def _dense(arrow: Any, dims: int) -> Any:
    return arrow.schema([_column(arrow, "key", arrow.int64()), _column(arrow, "vector", arrow.list_(_item(arrow, "f4"), dims))])


def _multi(arrow: Any, width: int, kind: Any) -> Any:
    token = arrow.field("item", arrow.list_(_item(arrow, _wire(kind)), width), nullable=False)
    return arrow.schema([_column(arrow, "key", arrow.int64()), _column(arrow, "vectors", arrow.list_(token))])


def _item(arrow: Any, kind: Any) -> Any:
    return arrow.field("item", arrow.from_numpy_dtype(np.dtype(kind)), nullable=False)


def _column(arrow: Any, name: str, kind: Any, *, null: bool = False) -> Any:
    return arrow.field(name, kind, nullable=null)


def _documents(arrow: Any) -> Any:
    text, whole, real, single = arrow.string(), arrow.int64(), arrow.float64(), arrow.float32()

    def struct(**kinds: Any) -> Any:
        return arrow.struct([_column(arrow, name, kind, null=name in OPTIONAL) for name, kind in kinds.items()])

    word = struct(start=whole, end=whole, x0=single, y0=single, x1=single, y1=single)
    page = struct(
        number=whole, width=real, height=real, label=text, rotation=whole, start=whole, end=whole, words=arrow.list_(word)
    )  # fmt: skip
    patches = struct(region=arrow.list_(real), tokens=arrow.list_(arrow.list_(whole)))
    columns = {
        "id": text, "text": text, "title": text, "meta": text, "mime": text, "lang": text,
        "origin": struct(identity=text, root=text, path=text, content_hash=text),
        "pages": arrow.list_(page),
        "blocks": arrow.list_(struct(kind=text, start=whole, end=whole, level=whole)),
        "units": arrow.list_(struct(key=whole, start=whole, end=whole, headings=arrow.list_(text))),
        "page_units": arrow.list_(struct(key=whole, page=whole, patches=patches)),
    }  # fmt: skip
    return arrow.schema([_column(arrow, name, kind) for name, kind in columns.items()])


OPTIONAL = frozenset({"root", "path", "label", "patches"})

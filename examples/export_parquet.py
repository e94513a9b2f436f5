"""Parquet: an export folder of `ragkit export` as Parquet files, and back. Needs pyarrow.

    ragkit export library exported/
    python examples/export_parquet.py to-parquet exported/ tables/       # documents.parquet, chunk.dense.parquet, ...
    python examples/export_parquet.py from-parquet tables/ again/
    ragkit import other again/

documents.parquet has a document a row, nested: pages, blocks and units are lists of structs, `meta` is JSON, since every document
has fields of its own. <space>.parquet has `key`, and `vector` or, for a vector per token, `vectors`. Values are kept exactly:
float16 travels as float32, which every reader of Parquet knows. The other files are copied.

    import duckdb
    duckdb.sql("SELECT id, unnest(units) FROM 'tables/documents.parquet'")
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENTS = 256  # rows of documents.parquet written together
VECTORS = 4096  # rows of vectors written together

# documents.jsonl writes these as lists, by position; in Parquet they have names.
BLOCK = ("kind", "start", "end", "level")
UNIT = ("key", "start", "end", "headings")
WORD = ("start", "end", "x0", "y0", "x1", "y1")


def to_parquet(folder: Path, target: Path) -> None:
    target.mkdir(parents=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    if (folder / "documents.jsonl").exists():
        with (folder / "documents.jsonl").open(encoding="utf-8") as lines:
            write_documents(target / "documents.parquet", map(json.loads, lines))
    for space in manifest["spaces"]:
        keys, values = (np.load(folder / f"{space}.{name}", mmap_mode="r") for name in ("keys.npy", "npy"))
        if (folder / f"{space}.offsets.npy").exists():
            write_multi(target / f"{space}.parquet", keys, values, np.load(folder / f"{space}.offsets.npy"))
        else:
            write_dense(target / f"{space}.parquet", keys, values)
    for path in folder.glob("*.json"):
        shutil.copy(path, target)


def from_parquet(folder: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in folder.glob("*.json"):
        shutil.copy(path, target)
    manifest = json.loads((folder / "manifest.json").read_text())
    if (folder / "documents.parquet").exists():
        with (target / "documents.jsonl").open("w", encoding="utf-8") as file:
            for document in read_documents(folder / "documents.parquet"):
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
    for space in manifest["spaces"]:
        read_vectors(folder / f"{space}.parquet", target, space)
    names = sorted(path.name for path in target.iterdir() if path.name != "manifest.json")
    manifest["files"] = {name: hashlib.sha256((target / name).read_bytes()).hexdigest() for name in names}
    (target / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")


# Documents


def write_documents(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    rows = map(named, documents)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        while batch := list(islice(rows, DOCUMENTS)):
            file.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))


def read_documents(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=DOCUMENTS):
            yield from map(listed, batch.to_pylist())


def named(document: dict[str, Any]) -> dict[str, Any]:
    pages = [{**page, "words": [dict(zip(WORD, word, strict=True)) for word in page["words"]]} for page in document["pages"]]
    blocks = [dict(zip(BLOCK, block, strict=True)) for block in document["blocks"]]
    units = [dict(zip(UNIT, unit, strict=True)) for unit in document["units"]]
    meta = json.dumps(document["meta"], ensure_ascii=False)
    return {"page_units": [], **document, "pages": pages, "blocks": blocks, "units": units, "meta": meta}


def listed(row: dict[str, Any]) -> dict[str, Any]:
    pages = [{**page, "words": [[word[name] for name in WORD] for word in page["words"]]} for page in row["pages"]]
    blocks = [[block[name] for name in BLOCK] for block in row["blocks"]]
    units = [[unit[name] for name in UNIT] for unit in row["units"]]
    document = {**row, "pages": pages, "blocks": blocks, "units": units, "meta": json.loads(row["meta"])}
    if not document["page_units"]:
        del document["page_units"]
    return document


# Vectors


def write_dense(path: Path, keys: Any, rows: Any) -> None:
    schema = pa.schema({"key": pa.int64(), "vector": pa.list_(pa.float32(), rows.shape[1])})
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as file:
        for start in range(0, len(keys), VECTORS):
            part = slice(start, start + VECTORS)
            values = pa.array(rows[part].astype(np.float32).reshape(-1))
            columns = [pa.array(keys[part]), pa.FixedSizeListArray.from_arrays(values, rows.shape[1])]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))


def write_multi(path: Path, keys: Any, values: Any, offsets: Any) -> None:
    kind = np.uint8 if values.dtype == np.uint8 else np.float32
    schema = pa.schema({"key": pa.int64(), "vectors": pa.list_(pa.list_(pa.from_numpy_dtype(kind), values.shape[1]))})
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for start in range(0, len(keys), VECTORS):
            ends = offsets[start : start + VECTORS + 1]
            tokens = pa.array(values[ends[0] : ends[-1]].astype(kind).reshape(-1))
            lists = pa.ListArray.from_arrays(
                pa.array((ends - ends[0]).astype(np.int32)), pa.FixedSizeListArray.from_arrays(tokens, values.shape[1])
            )
            file.write_table(pa.Table.from_arrays([pa.array(keys[start : start + VECTORS]), lists], schema=schema))


def read_vectors(path: Path, target: Path, space: str) -> None:
    table = pq.read_table(path).combine_chunks()
    np.save(target / f"{space}.keys.npy", table["key"].to_numpy())
    kind = np.dtype("<f2")
    if "vector" in table.column_names:
        column = table["vector"]
        width, rows = column.type.list_size, column.combine_chunks().flatten()
    else:
        column = table["vectors"].combine_chunks()
        width, rows = column.type.value_type.list_size, column.flatten().flatten()
        offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())]).astype(np.int64)
        np.save(target / f"{space}.offsets.npy", offsets)
        precision = json.loads((target / f"{space}.json").read_text())["precision"]
        kind = np.dtype({"int8": "u1", "float16": "<f2", "float32": "<f4"}[precision])
    np.save(target / f"{space}.npy", rows.to_numpy(zero_copy_only=False).reshape(-1, width).astype(kind))


def struct(**kinds: Any) -> pa.DataType:
    return pa.struct(list(kinds.items()))


WHOLE, REAL, TEXT = pa.int64(), pa.float64(), pa.string()
PAGE = {
    "number": WHOLE, "width": REAL, "height": REAL, "label": TEXT, "rotation": WHOLE, "start": WHOLE, "end": WHOLE,
    "words": pa.list_(struct(start=WHOLE, end=WHOLE, x0=REAL, y0=REAL, x1=REAL, y1=REAL)),
}  # fmt: skip
PATCHES = struct(region=pa.list_(REAL), tokens=pa.list_(pa.list_(WHOLE)))
SCHEMA = pa.schema({
    "id": TEXT, "text": TEXT, "title": TEXT, "meta": TEXT, "mime": TEXT, "lang": TEXT,
    "origin": struct(identity=TEXT, root=TEXT, path=TEXT, content_hash=TEXT),
    "pages": pa.list_(struct(**PAGE)),
    "blocks": pa.list_(struct(kind=TEXT, start=WHOLE, end=WHOLE, level=WHOLE)),
    "units": pa.list_(struct(key=WHOLE, start=WHOLE, end=WHOLE, headings=pa.list_(TEXT))),
    "page_units": pa.list_(struct(key=WHOLE, page=WHOLE, patches=PATCHES)),
})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", choices=["to-parquet", "from-parquet"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, help="the folder to make; it must not be there yet")
    options = parser.parse_args()
    convert = to_parquet if options.direction == "to-parquet" else from_parquet
    convert(options.folder, options.target)


if __name__ == "__main__":
    main()

"""Write the documents, units and vectors of an index to a folder that anything can read: `ragkit.care.export_folder` says how.

Vectors are those of the index, bit for bit. They pass through memory in parts. An export that is cut short leaves nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragkit.care.backup import beside
from ragkit.care.export_folder import MADE_ANEW, PAGE_SETTINGS, SETTINGS, VERSION, SpaceFields, sha256
from ragkit.core.errors import StorageError
from ragkit.core.space import Space
from ragkit.core.types import Document, Ints, Json, Page, Progress
from ragkit.ingest.item import Callback
from ragkit.store.local.files import sync_file, write_array, writing
from ragkit.store.local.reader import Reader
from ragkit.store.local.store import Store
from ragkit.store.values import CHUNK, PAGE, DocumentRow, UnitRow
from ragkit.store.vectors.multi import write_multi
from ragkit.store.vectors.multi_layout import Stored


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and where. `vectors` counts dense vectors, `tokens` the vectors of multi-vectors."""

    path: str
    documents: int
    units: int
    vectors: int
    tokens: int = 0


def export(store: Store, target: Path, *, progress: Callback | None = None) -> ExportReport:
    """Write the newest commit to the new folder `target`. StorageError where something is there already."""
    target = Path(os.path.abspath(target))  # noqa: PTH100 - Path.resolve would follow links
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} exists and is not empty. Name a folder that is not there yet.")
    reader = store.reader()
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside(target) as folder:
            if reader.commit.lexical:  # an index of documents
                _write_documents(folder / "documents.jsonl", _records(reader, progress))
            spaces = _write_vectors(folder, reader)
            _write_manifest(store, reader, folder, spaces)
            for path in (*folder.iterdir(), folder):
                sync_file(path)
            folder.rename(target)
        sync_file(target.parent)
    dense = sum(fields["rows"] for space, fields in spaces.items() if space.form == "dense")
    tokens = sum(fields["tokens"] for space, fields in spaces.items() if space.form == "multi")
    return ExportReport(str(target), reader.commit.documents, reader.commit.units, dense, tokens)


# Documents


def _write_documents(path: Path, records: Iterable[Json]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_manifest(store: Store, reader: Reader, folder: Path, spaces: dict[Space, SpaceFields]) -> None:
    names = sorted(path.name for path in folder.iterdir())
    settings = {name: store.catalog.setting(name) for name in (*SETTINGS, *PAGE_SETTINGS, "maxsim")}
    rows = reader.documents() if reader.commit.lexical else ()
    incomplete = [row.identity for row in rows if not row.recipe_hash]
    manifest = {
        "ragkit": VERSION,
        **{name: value for name, value in settings.items() if value is not None},
        "spaces": spaces,
        **({MADE_ANEW: incomplete} if incomplete else {}),
        "documents": reader.commit.documents,
        "units": reader.commit.units,
        "files": {name: sha256(folder / name) for name in names},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")


def _records(reader: Reader, progress: Callback | None) -> Iterator[Json]:
    for done, row in enumerate(reader.documents(), start=1):
        yield _document_fields(row, reader.document(row), reader.units_of(row.id))
        if progress is not None:
            progress(Progress("export", done, reader.commit.documents, "documents", row.source))


def _document_fields(row: DocumentRow, document: Document, units: Sequence[UnitRow]) -> Json:
    """Return a line of documents.jsonl; `ragkit.care.import_` reads it."""
    page_units = [_page_unit_fields(unit) for unit in units if unit.kind == PAGE]
    return {
        "id": row.source,
        "text": document.text,
        "title": row.title,
        "meta": dict(row.meta),
        "mime": row.mime,
        "lang": row.lang,
        "origin": {"identity": row.identity, "root": row.root, "path": row.path, "content_hash": row.content_hash},
        "pages": [_page_fields(page) for page in document.pages],
        "blocks": [[block.kind, *block.span, block.level] for block in document.blocks],
        "units": [[unit.key, *unit.span, list(unit.headings)] for unit in units if unit.kind == CHUNK],
        **({"page_units": page_units} if page_units else {}),
    }


def _page_unit_fields(unit: UnitRow) -> Json:
    patches = unit.patches
    grid = None if patches is None else {"region": list(patches.region), "tokens": patches.tokens.tolist()}
    return {"key": unit.key, "page": unit.page, "patches": grid}


def _page_fields(page: Page) -> Json:
    words = [
        [*span, *(float(value) for value in box)]
        for span, box in zip(page.words.spans.tolist(), page.words.boxes.tolist(), strict=True)
    ]
    fields = {name: getattr(page, name) for name in ("number", "width", "height", "label", "rotation")}
    return {**fields, "start": page.span.start, "end": page.span.end, "words": words}


# Vectors


def _write_vectors(folder: Path, reader: Reader) -> dict[Space, SpaceFields]:
    """Write every space of a reader; return what the manifest says of each."""
    return {
        space: _write_dense(folder, reader, space) if space.form == "dense" else _write_multi(folder, reader, space)
        for space in reader.spaces()
    }


def _write_dense(folder: Path, reader: Reader, space: Space) -> SpaceFields:
    dims = next(segment.dense.dims for segment in reader.segments if space in segment.row.spaces and segment.dense)
    count = len(reader.keys(space.kind))
    keys: list[Ints] = [np.empty(0, dtype=np.int64)]
    with (folder / f"{space}.npy").open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (count, dims)}
        np.lib.format.write_array_header_1_0(file, header)
        for part, rows in reader.scan_dense(space):
            keys.append(part)
            file.write(np.ascontiguousarray(rows, dtype="<f2").data)
    write_array(folder / f"{space}.keys.npy", np.concatenate(keys))
    return {"form": "npy", "rows": count, "dims": dims}


def _write_multi(folder: Path, reader: Reader, space: Space) -> SpaceFields:
    readers = [segment.multi for segment in reader.segments if space in segment.row.spaces]
    layout = next(multi.layout for multi in readers if multi is not None)
    keys: list[Ints] = [np.empty(0, dtype=np.int64)]

    def parts() -> Iterator[Stored]:
        for part, stored in reader.scan_multi(space):
            keys.append(part)
            yield stored

    stats = write_multi(folder, space, layout, parts())
    write_array(folder / f"{space}.keys.npy", np.concatenate(keys))
    return {"form": "npy", "rows": stats.rows, "tokens": stats.tokens}

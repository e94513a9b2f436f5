"""Documents and vectors out of an index and into another, as files that anything reads.

    FOLDER/
      manifest.json        what it is: recipe, fingerprint, counts, and the sha256 of each of the other files
      documents.jsonl      a document a line: id, text, title, meta, lang, mime, pages with words and boxes, blocks, units
      keys.npy             (n,) int64: the unit of each vector
      chunk.dense.npy      (n, d) float16 unit rows, in the order of keys.npy

What is imported keeps its chunks and vectors, so no model is needed; documents.jsonl alone can be added to any index, which
then chunks and embeds it by its own recipe. Keys are given out anew. Everything read is checked: it may come from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.backup import beside
from ragkit.catalog.catalog import Catalog, DocumentRow, Origin, UnitRow
from ragkit.checked import sync_file, write_array, writing
from ragkit.errors import Damaged, StorageError
from ragkit.load.records import check
from ragkit.locks import writer_lock
from ragkit.recipe import Recipe
from ragkit.store import DENSE, Prepared, Store, Writer
from ragkit.types import AddReport, Block, Chunk, Document, Floats, Outcome, Page, Progress, Span, Words

VERSION = 1
SETTINGS = ("recipe", "fingerprint", "probes")
BATCH = 4096  # units committed together
NORM = 0.01  # how far a float16 row may be from unit length
Callback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and where."""

    path: str
    documents: int
    units: int
    vectors: int


def export(store: Store, target: Path, *, progress: Callback | None = None) -> ExportReport:
    """Write the newest commit to the new folder `target`. StorageError where something is there already."""
    target = Path(os.path.abspath(target))  # noqa: PTH100 - Path.resolve would follow links
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} is there already and not empty. Name a folder that is not there yet.")
    snapshot = store.snapshot()
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside(target) as folder:
            with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
                for done, row in enumerate(store.catalog.documents(snapshot.commit.number), start=1):
                    fields = _fields(row, store.catalog.document(row), store.catalog.units_of(row.id))
                    file.write(json.dumps(fields, ensure_ascii=False) + "\n")
                    if progress is not None:
                        progress(Progress("export", done, snapshot.commit.documents, "documents", row.source))
            keys, rows = snapshot.dense_rows()
            write_array(folder / "keys.npy", keys)
            write_array(folder / f"{DENSE}.npy", rows)
            names = ("documents.jsonl", "keys.npy", f"{DENSE}.npy")
            manifest = {
                "ragkit": VERSION,
                **{name: store.catalog.setting(name) for name in SETTINGS},
                "spaces": sorted({space for segment in snapshot.segments for space in segment.row.spaces}),
                "documents": snapshot.commit.documents,
                "units": snapshot.commit.units,
                "files": {name: _sha256(folder / name) for name in names},
            }
            (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
            for name in (*names, "manifest.json"):
                sync_file(folder / name)
            sync_file(folder)
            folder.rename(target)
        sync_file(target.parent)
    return ExportReport(str(target), snapshot.commit.documents, snapshot.commit.units, len(keys))


def _fields(row: DocumentRow, document: Document, units: Sequence[UnitRow]) -> dict[str, Any]:
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
        "units": [[unit.key, *unit.span, list(unit.headings)] for unit in units],
    }


def _page_fields(page: Page) -> dict[str, Any]:
    words = [
        [*span, *(float(value) for value in box)]
        for span, box in zip(page.words.spans.tolist(), page.words.boxes.tolist(), strict=True)
    ]
    fields = {name: getattr(page, name) for name in ("number", "width", "height", "label", "rotation")}
    return {**fields, "start": page.span.start, "end": page.span.end, "words": words}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """An exported folder, its checksums compared: the settings of its index, keys (n,) ascending, rows (n, d) float16."""

    folder: Path
    settings: Mapping[str, Any]
    order: Any
    keys: Any
    rows: Any

    def dense(self, keys: Sequence[int]) -> Floats | None:
        """The rows of units, (len(keys), d) float32; None where they have none. Damaged where only some have."""
        found = np.isin(keys, self.keys)
        if not found.any():
            return None
        if not found.all():
            raise Damaged(f"{self.folder} has vectors for only {int(found.sum())} of {len(keys)} units of a document")
        rows = np.asarray(self.rows[self.order[np.searchsorted(self.keys, keys)]], dtype=np.float32)
        lengths = np.linalg.norm(rows, axis=1)
        if not np.all(np.abs(lengths - 1) <= NORM):
            raise Damaged(f"{self.folder} has vectors that are not of unit length")
        return rows


def opened(folder: Path) -> Parcel:
    """Read what `export` wrote; StorageError where it is something else, Damaged where a checksum or a shape is off."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        version, files = manifest["ragkit"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{folder} is not what `ragkit export` writes: {error}") from error
    if version != VERSION:
        raise StorageError(f"{folder} was written by a newer ragkit (version {version} of the form). Run: pip install -U ragkit")
    for name in ("documents.jsonl", "keys.npy", f"{DENSE}.npy"):
        if not (folder / name).is_file() or _sha256(folder / name) != files.get(name):
            raise Damaged(f"{folder / name} is not the file that was exported. Export it again.")
    if manifest.get("spaces", []) not in ([], [DENSE]):
        raise StorageError(
            f"{folder} is of an index with {', '.join(manifest['spaces'])}, and only {DENSE} is exported. "
            f"Add its documents to a new index instead: ragkit add INDEX {folder / 'documents.jsonl'} --model ..."
        )
    try:
        keys = np.load(folder / "keys.npy", allow_pickle=False)
        rows = np.load(folder / f"{DENSE}.npy", mmap_mode="r", allow_pickle=False)
        Recipe.model_validate(manifest["recipe"])
    except ValueError as error:
        raise Damaged(f"{folder}: {error}") from error
    if keys.dtype != np.int64 or keys.ndim != 1 or rows.ndim != 2 or len(keys) != len(rows) or rows.dtype != np.float16:
        raise Damaged(f"{folder} has keys {keys.shape} {keys.dtype} and rows {rows.shape} {rows.dtype}, which do not fit")
    order = np.argsort(keys)
    return Parcel(folder, {name: manifest[name] for name in SETTINGS}, order, keys[order], rows)


def prepare_index(path: Path, parcel: Parcel, *, timeout: float) -> None:
    """Make an empty index with the parcel's settings, unless there is one; StorageError where that has others."""
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path / "LOCK", timeout=timeout):
        catalog = Catalog(path / "catalog.db")
        try:
            if not catalog.exists:
                Store.create(path, parcel.settings)
                return
            recipe = catalog.setting("recipe")
            if recipe != parcel.settings["recipe"] or catalog.setting("fingerprint") != parcel.settings["fingerprint"]:
                raise StorageError(
                    f"{path} was built with another recipe than {parcel.folder}, so its vectors do not fit. Import it to a new "
                    f"index, or embed its documents again: ragkit add {path} {parcel.folder / 'documents.jsonl'}"
                )
        finally:
            catalog.close()


def import_documents(store: Store, writer: Writer, parcel: Parcel, *, progress: Callback | None = None) -> AddReport:
    """Bring a parcel's documents in with their chunks and vectors; those that are there already, and the same, stay."""
    outcomes: dict[str, list[Outcome]] = {"added": [], "updated": [], "unchanged": []}
    recipe_hash = Recipe.model_validate(parcel.settings["recipe"]).hash
    ready: list[Prepared] = []

    def commit() -> None:
        # A segment has a row for every unit of its commit, so units without vectors are a commit of their own.
        for bare in (False, True):
            if batch := [one for one in ready if (bool(one.chunks) and one.dense is None) == bare]:
                writer.commit("import", batch, recipe_hash=recipe_hash)
        ready.clear()

    for done, prepared in enumerate(_prepared(parcel), start=1):
        former = store.catalog.find(prepared.origin.identity)
        units = len(prepared.chunks)
        if former is not None and (former.content_hash, former.recipe_hash) == (prepared.origin.content_hash, recipe_hash):
            outcomes["unchanged"].append(Outcome(former.source, units=units))
            continue
        if any(one.origin.identity == prepared.origin.identity for one in ready):
            raise Damaged(f"{parcel.folder} has {prepared.origin.identity!r} twice")
        ready.append(prepared if former is None else replace(prepared, replaces=former.id))
        outcomes["added" if former is None else "updated"].append(Outcome(prepared.origin.source, units=units))
        if sum(len(one.chunks) for one in ready) >= BATCH:
            commit()
        if progress is not None:
            progress(Progress("import", done, None, "documents", prepared.origin.source))
    commit()
    return AddReport(added=tuple(outcomes["added"]), updated=tuple(outcomes["updated"]), unchanged=tuple(outcomes["unchanged"]))


def _prepared(parcel: Parcel) -> Iterator[Prepared]:
    with (parcel.folder / "documents.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield _of_line(parcel, json.loads(line))
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise Damaged(f"{parcel.folder / 'documents.jsonl'}, line {number}: {error!r}") from error


def _of_line(parcel: Parcel, fields: Mapping[str, Any]) -> Prepared:
    text, identifier = fields["text"], fields["id"]
    names = [text, identifier, fields["title"], fields["lang"], fields["origin"]["identity"], fields["origin"]["content_hash"]]
    if not all(isinstance(one, str) for one in names):
        raise TypeError("text, id, title, lang, identity and content_hash are texts")
    document = check(
        Document(
            text=text,
            id=identifier,
            title=fields["title"],
            meta=fields["meta"],
            pages=tuple(_page(page) for page in fields["pages"]),
            blocks=tuple(Block(kind, Span(start, end), level) for kind, start, end, level in fields["blocks"]),
            mime=fields["mime"],
        )
    )
    keys = [int(key) for key, *_ in fields["units"]]
    chunks = tuple(Chunk(Span(start, end), tuple(headings)) for _, start, end, headings in fields["units"])
    if any(chunk.span.end > len(text) for chunk in chunks):
        raise ValueError(f"a unit ends beyond the text's {len(text)} characters")
    origin = Origin(source=identifier, lang=fields["lang"], **fields["origin"])
    return Prepared(origin, document, chunks, parcel.dense(keys) if keys else None, None)


def _page(fields: Mapping[str, Any]) -> Page:
    table = np.array(fields["words"], dtype=np.float64).reshape(-1, 6)
    words = Words(table[:, :2].astype(np.int64), table[:, 2:].astype(np.float32))
    span = Span(fields["start"], fields["end"])
    return Page(fields["number"], fields["width"], fields["height"], span, words, fields["label"], fields["rotation"])

"""Documents and vectors out of an index and into another, as files that anything reads: `ragkit.care.export_folder` says which.

What is imported keeps its chunks and vectors, so no model is needed; documents.jsonl alone can be added to any index, which
then chunks and embeds it by its own recipe. Keys are given out anew, but for an index without documents, whose keys are its
user's. An export that was cut short left nothing; an import that was, is run again and does the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ragkit.care import parquet
from ragkit.care.backup import beside
from ragkit.care.export_folder import VERSION, Form, Parcel, sha256, write_vectors
from ragkit.core.errors import Damaged, StorageError
from ragkit.core.space import Space
from ragkit.core.types import AddReport, Block, Box, Chunk, Document, Floats, Outcome, Page, Patches, Progress, Span, Words
from ragkit.encode.external import PREFIX
from ragkit.load.records import check
from ragkit.recipe.create import layouts_of
from ragkit.recipe.recipe import Recipe
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.files import sync_file, writing
from ragkit.store.local.locks import writer_lock
from ragkit.store.local.reader import Reader
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import CHUNK, PAGE, DocumentRow, Origin, PageVectors, Prepared, UnitRow
from ragkit.store.vectors.multi_layout import Layout, Stored

SETTINGS = ("recipe", "fingerprint", "probes")
PAGE_SETTINGS = ("page_fingerprint", "page_probe")  # settings of an index with page images
ANEW = "made_anew"  # in a manifest: identities of documents that lack something, and are made anew when they are next added
BATCH = 4096  # units committed together
BATCH_BYTES = 1 << 28  # of multi-vectors
Written = Literal["jsonl", "parquet"]
Callback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and where. `vectors` are dense ones, `tokens` those of multi-vectors."""

    path: str
    documents: int
    units: int
    vectors: int
    tokens: int = 0


def export(
    store: Store, target: Path, *, documents: Written = "jsonl", vectors: Form = "npy", progress: Callback | None = None
) -> ExportReport:
    """Write the newest commit to the new folder `target`. StorageError where something is there already; MissingExtra."""
    for name, value, known in (("documents", documents, Written), ("vectors", vectors, Form)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if "parquet" in (documents, vectors):
        parquet.available()
    target = Path(os.path.abspath(target))  # noqa: PTH100 - Path.resolve would follow links
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} is there already and not empty. Name a folder that is not there yet.")
    reader = store.reader()
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside(target) as folder:
            if reader.commit.lexical:  # an index of documents
                _write_documents(folder, _records(store, reader, progress), form=documents)
            spaces = write_vectors(folder, reader, form=vectors)
            _write_manifest(store, reader, folder, spaces)
            for path in (*folder.iterdir(), folder):
                sync_file(path)
            folder.rename(target)
        sync_file(target.parent)
    dense = sum(told["rows"] for space, told in spaces.items() if space.form == "dense")
    tokens = sum(told["tokens"] for space, told in spaces.items() if space.form == "multi")
    return ExportReport(str(target), reader.commit.documents, reader.commit.units, dense, tokens)


def _write_documents(folder: Path, records: Iterator[dict[str, Any]], *, form: Written) -> None:
    if form == "parquet":
        parquet.write_documents(folder / "documents.parquet", map(_named, records))
        return
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            file.write(_json(record) + "\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_manifest(store: Store, reader: Reader, folder: Path, spaces: Mapping[Space, Any]) -> None:
    names = sorted(path.name for path in folder.iterdir())
    settings = {name: store.catalog.setting(name) for name in (*SETTINGS, *PAGE_SETTINGS, "maxsim")}
    lacking = reader.documents() if reader.commit.lexical else ()
    anew = [row.identity for row in lacking if not row.recipe_hash]
    manifest = {
        "ragkit": VERSION,
        **{name: value for name, value in settings.items() if value is not None},
        "spaces": spaces,
        **({ANEW: anew} if anew else {}),
        "documents": reader.commit.documents,
        "units": reader.commit.units,
        "files": {name: sha256(folder / name) for name in names},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")


def _records(store: Store, reader: Reader, progress: Callback | None) -> Iterator[dict[str, Any]]:
    for done, row in enumerate(reader.documents(), start=1):
        yield _fields(row, reader.document(row), reader.units_of(row.id))
        if progress is not None:
            progress(Progress("export", done, reader.commit.documents, "documents", row.source))


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
        "units": [[unit.key, *unit.span, list(unit.headings)] for unit in units if unit.kind == CHUNK],
        **({"page_units": seen} if (seen := [_page_unit(unit) for unit in units if unit.kind == PAGE]) else {}),
    }


def _page_unit(unit: UnitRow) -> dict[str, Any]:
    patches = unit.patches
    grid = None if patches is None else {"region": list(patches.region), "tokens": patches.tokens.tolist()}
    return {"key": unit.key, "page": unit.page, "patches": grid}


def _page_fields(page: Page) -> dict[str, Any]:
    words = [
        [*span, *(float(value) for value in box)]
        for span, box in zip(page.words.spans.tolist(), page.words.boxes.tolist(), strict=True)
    ]
    fields = {name: getattr(page, name) for name in ("number", "width", "height", "label", "rotation")}
    return {**fields, "start": page.span.start, "end": page.span.end, "words": words}


# What JSON lines write as lists, by position, has names in Parquet.
BLOCK = ("kind", "start", "end", "level")
UNIT = ("key", "start", "end", "headings")
WORD = ("start", "end", "x0", "y0", "x1", "y1")


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    pages = [{**page, "words": [dict(zip(WORD, word, strict=True)) for word in page["words"]]} for page in fields["pages"]]
    blocks, units = (
        [dict(zip(names, values, strict=True)) for values in fields[of]] for of, names in (("blocks", BLOCK), ("units", UNIT))
    )
    return {"page_units": [], **fields, "pages": pages, "blocks": blocks, "units": units, "meta": _json(fields["meta"])}


def _listed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_named`."""
    pages = [{**page, "words": [[word[name] for name in WORD] for word in page["words"]]} for page in fields["pages"]]
    blocks, units = ([[one[name] for name in names] for one in fields[of]] for of, names in (("blocks", BLOCK), ("units", UNIT)))
    return {**fields, "pages": pages, "blocks": blocks, "units": units, "meta": json.loads(fields["meta"])}


def prepare_index(path: Path, parcel: Parcel, *, timeout: float) -> None:
    """Make an empty index with the parcel's settings, unless there is one; StorageError where that has others."""
    settings = _settings(parcel)
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path / "LOCK", timeout=timeout):
        catalog = Catalog(path / "catalog.db")
        try:
            if not catalog.exists:
                Store.create(path, settings)
                return
            if any(catalog.setting(name) != settings.get(name) for name in ("recipe", "fingerprint", "page_fingerprint")):
                raise StorageError(
                    f"{path} was built with another recipe than {parcel.folder}, so its vectors do not fit. Import it to a new "
                    f"index, or embed its documents again: ragkit add {path} {parcel.folder / 'documents.jsonl'}"
                )
        finally:
            catalog.close()


def _settings(parcel: Parcel) -> dict[str, Any]:
    """The settings of the index that was exported, and that its vectors are such as its recipe makes."""
    if "maxsim" in parcel.manifest:
        raise StorageError(f"{parcel.folder} is of an index without documents: import it with ragkit.MaxSimIndex.import_from")
    if parcel.documents is None:
        raise StorageError(f"{parcel.folder} has no documents: it cannot be imported")
    try:
        recipe = Recipe.model_validate(parcel.manifest["recipe"])
        settings = {name: parcel.manifest[name] for name in SETTINGS}
        settings |= {name: parcel.manifest[name] for name in PAGE_SETTINGS if name in parcel.manifest}
    except (ValueError, KeyError) as error:
        raise Damaged(f"{parcel.folder}: {error}") from error
    anew = parcel.manifest.get(ANEW, [])
    if not isinstance(anew, list) or not all(isinstance(one, str) for one in anew):
        raise Damaged(f"{parcel.folder}: {ANEW} of its manifest is no list of identities")
    layouts = layouts_of(recipe)
    for space, rows in parcel.multi.items():
        if rows.layout != (layout := layouts.get(space.kind)):
            raise Damaged(f"{parcel.folder / space} has {rows.layout}, and its recipe {layout}")
    return settings


def import_documents(store: Store, writer: Writer, parcel: Parcel, *, progress: Callback | None = None) -> AddReport:
    """Bring a parcel's documents in with their chunks and vectors; those that are there already, and the same, stay."""
    outcomes: dict[str, list[Outcome]] = {"added": [], "updated": [], "unchanged": []}
    recipe = Recipe.model_validate(parcel.manifest["recipe"])
    ready: dict[str, Prepared] = {}
    units = size = 0
    for done, prepared in enumerate(_prepared(parcel, recipe), start=1):
        origin = prepared.origin
        if progress is not None:
            progress(Progress("import", done, parcel.manifest.get("documents"), "documents", origin.source))
        former = writer.reader().by_identity(origin.identity)
        made_by = recipe.hash if prepared.complete else ""
        if former is not None and (former.content_hash, former.recipe_hash) == (origin.content_hash, made_by):
            outcomes["unchanged"].append(Outcome(former.source, units=_units(prepared)))
            continue
        if origin.identity in ready:
            raise Damaged(f"{parcel.folder} has {origin.identity!r} twice")
        ready[origin.identity] = prepared if former is None else replace(prepared, replaces=former.id)
        outcomes["added" if former is None else "updated"].append(Outcome(origin.source, units=_units(prepared)))
        units, size = units + _units(prepared), size + _bytes(prepared)
        if units >= BATCH or size >= BATCH_BYTES:
            _commit(writer, list(ready.values()), recipe)
            ready, units, size = {}, 0, 0
    _commit(writer, list(ready.values()), recipe)
    return AddReport(added=tuple(outcomes["added"]), updated=tuple(outcomes["updated"]), unchanged=tuple(outcomes["unchanged"]))


def _units(prepared: Prepared) -> int:
    return len(prepared.chunks) + len(prepared.seen.pages if prepared.seen else ())


def _bytes(prepared: Prepared) -> int:
    """Of multi-vectors."""
    multi = (*(() if prepared.multi is None else (prepared.multi,)), *(prepared.seen.multi if prepared.seen else ()))
    return sum(one.values.nbytes for one in multi)


def _commit(writer: Writer, ready: Sequence[Prepared], recipe: Recipe) -> None:
    # A segment has a row for every unit of its commit, so units without vectors are a commit of their own.
    for bare in (False, True):
        if batch := [one for one in ready if (bool(one.chunks) and one.dense is None and one.multi is None) == bare]:
            for prepared in batch:
                writer.add(prepared)
            writer.commit("import", recipe_hash=recipe.hash)


def _prepared(parcel: Parcel, recipe: Recipe) -> Iterator[Prepared]:
    anew = set(parcel.manifest.get(ANEW, ()))
    for number, read in enumerate(_read(parcel), start=1):
        try:
            prepared = _of_fields(parcel, read(), recipe)
            yield replace(prepared, complete=prepared.origin.identity not in anew)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            unit = "line" if parcel.documents and parcel.documents.suffix == ".jsonl" else "row"
            raise Damaged(f"{parcel.documents}, {unit} {number}: {error!r}") from error


def _read(parcel: Parcel) -> Iterator[Callable[[], dict[str, Any]]]:
    """How to have the fields of each document; what that raises is of its line."""
    assert parcel.documents is not None
    if parcel.documents.suffix == ".parquet":
        for row in parquet.read_documents(parcel.documents):
            yield partial(_listed, row)
        return
    with parcel.documents.open(encoding="utf-8") as file:
        for line in file:
            yield partial(json.loads, line)


def _of_fields(parcel: Parcel, fields: Mapping[str, Any], recipe: Recipe) -> Prepared:
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
    wanted = (recipe.multi is None or not recipe.multi.alone, recipe.multi is not None)
    bare = recipe.encode.model.startswith(PREFIX)  # users give the vectors, and may give none
    dense, multi = _vectors(parcel, CHUNK, keys, wanted, bare=bare)
    seen = _seen(parcel, document, fields.get("page_units") or (), recipe)
    return Prepared(origin, document, chunks, dense, None, multi=multi, seen=seen)


def _seen(parcel: Parcel, document: Document, units: Sequence[Mapping[str, Any]], recipe: Recipe) -> PageVectors | None:
    """A document's page images: which pages, where their vectors look, and those; None where none was seen."""
    if not units:
        return None
    if recipe.pages is None:
        raise ValueError("it has pages that were seen, and its recipe keeps none")
    known = {page.number: page for page in document.pages}
    pages = tuple(known[unit["page"]] for unit in units)
    keys = [int(unit["key"]) for unit in units]
    wanted = (Space.PAGE_DENSE in parcel.dense, recipe.pages.precision is not None)
    dense, multi = _vectors(parcel, PAGE, keys, wanted, bare=False)
    lengths = [None] * len(pages) if multi is None else multi.lengths.tolist()
    patches = tuple(_patches(unit["patches"], length) for unit, length in zip(units, lengths, strict=True))
    return PageVectors(pages, patches, dense, () if multi is None else (multi,))


def _patches(fields: Mapping[str, Any] | None, length: int | None) -> Patches | None:
    if fields is None:
        return None
    tokens = np.array(fields["tokens"], dtype=np.int64)
    if tokens.ndim != 2 or (tokens < -1).any() or (length is not None and (tokens >= length).any()):
        raise ValueError(f"patches {tokens.shape} look at vectors that are not there, of {length}")
    return Patches(Box(*map(float, fields["region"])), tokens)


def _vectors(
    parcel: Parcel, kind: str, keys: Sequence[int], wanted: tuple[bool, bool], *, bare: bool
) -> tuple[Floats | None, Stored | None]:
    """The dense and the multi-vectors of a document's units: all that are `wanted`, or, where they may be `bare`, none."""
    if not keys:
        return None, None
    dense = parcel.dense[space].of(keys) if (space := Space.of(kind, "dense")) in parcel.dense else None
    multi = parcel.multi[space].of(keys) if (space := Space.of(kind, "multi")) in parcel.multi else None
    found = (dense is not None, multi is not None)
    if found != wanted and (any(found) or not bare):
        raise Damaged(f"{parcel.folder} has not all vectors of the units {keys[0]} to {keys[-1]} that its recipe makes")
    return dense, multi


def keyed_vectors(parcel: Parcel) -> tuple[Layout, Iterator[tuple[int, Stored]]]:
    """What an exported `MaxSimIndex` holds: how its vectors are stored, and each item under its key."""
    try:
        stored = parcel.manifest["maxsim"]
        layout = Layout(stored["dim"], stored["precision"], stored.get("coarse", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{parcel.folder} is of an index of documents: import it with ragkit.Index.import_from") from error
    if Space.MULTI not in parcel.multi:
        return layout, iter(())
    rows = parcel.multi[Space.MULTI]
    if rows.layout != layout or parcel.dense or len(parcel.multi) > 1:
        raise Damaged(f"{parcel.folder} has {rows.layout}, and its manifest {layout}")
    return layout, ((key, item) for key in rows.keys.tolist() if (item := rows.of([key])) is not None)


def _page(fields: Mapping[str, Any]) -> Page:
    table = np.array(fields["words"], dtype=np.float64).reshape(-1, 6)
    words = Words(table[:, :2].astype(np.int64), table[:, 2:].astype(np.float32))
    span = Span(fields["start"], fields["end"])
    return Page(fields["number"], fields["width"], fields["height"], span, words, fields["label"], fields["rotation"])

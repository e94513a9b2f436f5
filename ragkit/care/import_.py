"""Bring an exported folder into an index, with its chunks and vectors: no model is needed, and nothing is embedded.

documents.jsonl alone can be added to any index, which then chunks and embeds it by its own recipe. Keys are given out anew,
except for an index without documents, whose keys are its user's. An import that was cut short is run again and does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ragkit.care.export_folder import MADE_ANEW, PAGE_SETTINGS, SETTINGS, ExportFolder
from ragkit.core.errors import Damaged, StorageError
from ragkit.core.space import Space
from ragkit.core.types import AddReport, Block, Box, Chunk, Document, Floats, Json, Outcome, Page, Patches, Progress, Span, Words
from ragkit.encode.external import PREFIX
from ragkit.ingest.item import Callback
from ragkit.load.records import check
from ragkit.recipe.create import layouts_of
from ragkit.recipe.recipe import Recipe
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local.locks import writer_lock
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import CHUNK, PAGE, Origin, PageVectors, Prepared
from ragkit.store.vectors.multi_layout import Layout, Stored

BATCH = 4096  # units committed together
BATCH_BYTES = 1 << 28  # of multi-vectors


def prepare_index(path: Path, folder: ExportFolder, *, timeout: float) -> None:
    """Make an empty index with the folder's settings, unless there is one; StorageError where that has others."""
    settings = _settings(folder)
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path / "LOCK", timeout=timeout):
        catalog = Catalog(path / "catalog.db")
        try:
            if not catalog.exists:
                Store.create(path, settings)
                return
            if any(catalog.setting(name) != settings.get(name) for name in ("recipe", "fingerprint", "page_fingerprint")):
                raise StorageError(
                    f"{path} was built with another recipe than {folder.path}, so its vectors do not fit. Import it to a new "
                    f"index, or embed its documents again: ragkit add {path} {folder.path / 'documents.jsonl'}"
                )
        finally:
            catalog.close()


def _settings(folder: ExportFolder) -> Json:
    """Return the settings of the index that was exported, once its vectors are seen to fit its recipe."""
    if "maxsim" in folder.manifest:
        raise StorageError(f"{folder.path} is of an index without documents: import it with ragkit.MaxSimIndex.import_from")
    if folder.documents is None:
        raise StorageError(f"{folder.path} has no documents.jsonl: it cannot be imported")
    try:
        recipe = Recipe.model_validate(folder.manifest["recipe"])
        settings = {name: folder.manifest[name] for name in SETTINGS}
        settings |= {name: folder.manifest[name] for name in PAGE_SETTINGS if name in folder.manifest}
    except (ValueError, KeyError) as error:
        raise Damaged(f"{folder.path}: {error}") from error
    incomplete = folder.manifest.get(MADE_ANEW, [])
    if not isinstance(incomplete, list) or not all(isinstance(identity, str) for identity in incomplete):
        raise Damaged(f"{folder.path}: {MADE_ANEW} in its manifest is not a list of identities")
    layouts = layouts_of(recipe)
    for space, rows in folder.multi.items():
        if rows.layout != (layout := layouts.get(space.kind)):
            raise Damaged(f"{folder.path / space} is stored as {rows.layout}, but its recipe says {layout}")
    return settings


@dataclass(slots=True, eq=False)
class _Batch:
    """Documents that wait for their commit, by identity, and how large they are."""

    documents: dict[str, Prepared] = field(default_factory=dict)
    units: int = 0
    bytes: int = 0

    def put(self, prepared: Prepared) -> None:
        self.documents[prepared.origin.identity] = prepared
        self.units += _units(prepared)
        self.bytes += _multi_bytes(prepared)

    @property
    def full(self) -> bool:
        return self.units >= BATCH or self.bytes >= BATCH_BYTES

    def commit(self, writer: Writer, recipe: Recipe) -> None:
        # A segment has a row for every unit of its commit, so units without vectors are a commit of their own.
        documents = list(self.documents.values())
        for without_vectors in (False, True):
            if part := [prepared for prepared in documents if _lacks_vectors(prepared) == without_vectors]:
                for prepared in part:
                    writer.add(prepared)
                writer.commit("import", recipe_hash=recipe.hash)


def import_documents(writer: Writer, folder: ExportFolder, *, progress: Callback | None = None) -> AddReport:
    """Bring a folder's documents in with their chunks and vectors; those that are there already, and the same, stay."""
    outcomes: dict[str, list[Outcome]] = {"added": [], "updated": [], "unchanged": []}
    recipe = Recipe.model_validate(folder.manifest["recipe"])
    batch = _Batch()
    for done, prepared in enumerate(_documents(folder, recipe), start=1):
        origin = prepared.origin
        if progress is not None:
            progress(Progress("import", done, folder.manifest.get("documents"), "documents", origin.source))
        former = writer.reader().by_identity(origin.identity)
        made_by = recipe.hash if prepared.complete else ""
        if former is not None and (former.content_hash, former.recipe_hash) == (origin.content_hash, made_by):
            outcomes["unchanged"].append(Outcome(former.source, units=_units(prepared)))
            continue
        if origin.identity in batch.documents:
            raise Damaged(f"{folder.path} has {origin.identity!r} twice")
        batch.put(prepared if former is None else replace(prepared, replaces=former.id))
        outcomes["added" if former is None else "updated"].append(Outcome(origin.source, units=_units(prepared)))
        if batch.full:
            batch.commit(writer, recipe)
            batch = _Batch()
    batch.commit(writer, recipe)
    return AddReport(added=tuple(outcomes["added"]), updated=tuple(outcomes["updated"]), unchanged=tuple(outcomes["unchanged"]))


def _units(prepared: Prepared) -> int:
    return len(prepared.chunks) + len(prepared.seen.pages if prepared.seen else ())


def _multi_bytes(prepared: Prepared) -> int:
    """Return the bytes of a document's multi-vectors."""
    pages = prepared.seen.multi if prepared.seen else ()
    return sum(part.values.nbytes for part in (prepared.multi, *pages) if part is not None)


def _lacks_vectors(prepared: Prepared) -> bool:
    return bool(prepared.chunks) and prepared.dense is None and prepared.multi is None


def _documents(folder: ExportFolder, recipe: Recipe) -> Iterator[Prepared]:
    assert folder.documents is not None
    incomplete = set(folder.manifest.get(MADE_ANEW, ()))
    with folder.documents.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                prepared = _document(folder, json.loads(line), recipe)
                yield replace(prepared, complete=prepared.origin.identity not in incomplete)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise Damaged(f"{folder.documents}, line {number}: {error!r}") from error


def _document(folder: ExportFolder, fields: Json, recipe: Recipe) -> Prepared:
    """Return the document of a line of documents.jsonl, with the vectors of its units."""
    text, identifier = fields["text"], fields["id"]
    texts = [text, identifier, fields["title"], fields["lang"], fields["origin"]["identity"], fields["origin"]["content_hash"]]
    if not all(isinstance(value, str) for value in texts):
        raise TypeError("text, id, title, lang, identity and content_hash must be strings")
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
    expected = (recipe.multi is None or not recipe.multi.alone, recipe.multi is not None)
    external = recipe.encode.model.startswith(PREFIX)  # users give the vectors, and may give none
    dense, multi = _vectors(folder, CHUNK, keys, expected, optional=external)
    seen = _page_vectors(folder, document, fields.get("page_units") or (), recipe)
    return Prepared(origin, document, chunks, dense, None, multi=multi, seen=seen)


def _page_vectors(folder: ExportFolder, document: Document, units: Sequence[Json], recipe: Recipe) -> PageVectors | None:
    """Return the vectors of a document's page images; None where it has none."""
    if not units:
        return None
    if recipe.pages is None:
        raise ValueError("it has page images, but its recipe has none")
    by_number = {page.number: page for page in document.pages}
    pages = tuple(by_number[unit["page"]] for unit in units)
    keys = [int(unit["key"]) for unit in units]
    expected = (Space.PAGE_DENSE in folder.dense, recipe.pages.precision is not None)
    dense, multi = _vectors(folder, PAGE, keys, expected, optional=False)
    lengths = [None] * len(pages) if multi is None else multi.lengths.tolist()
    patches = tuple(_patches(unit["patches"], length) for unit, length in zip(units, lengths, strict=True))
    return PageVectors(pages, patches, dense, () if multi is None else (multi,))


def _patches(fields: Json | None, length: int | None) -> Patches | None:
    """Return where the vectors of a page look. `length`: how many it has, where that is known."""
    if fields is None:
        return None
    tokens = np.array(fields["tokens"], dtype=np.int64)
    if tokens.ndim != 2 or (tokens < -1).any() or (length is not None and (tokens >= length).any()):
        raise ValueError(f"patches {tokens.shape} name vectors that are not there: the page has {length}")
    return Patches(Box(*map(float, fields["region"])), tokens)


def _vectors(
    folder: ExportFolder, kind: str, keys: Sequence[int], expected: tuple[bool, bool], *, optional: bool
) -> tuple[Floats | None, Stored | None]:
    """Return the dense vectors and the multi-vectors of a document's units: those that are `expected`, or none where they are
    `optional`."""
    if not keys:
        return None, None
    dense = folder.dense[space].of(keys) if (space := Space.of(kind, "dense")) in folder.dense else None
    multi = folder.multi[space].of(keys) if (space := Space.of(kind, "multi")) in folder.multi else None
    present = (dense is not None, multi is not None)
    if present != expected and (any(present) or not optional):
        raise Damaged(f"{folder.path} lacks vectors of the units {keys[0]} to {keys[-1]} that its recipe makes")
    return dense, multi


def keyed_vectors(folder: ExportFolder) -> tuple[Layout, Iterator[tuple[int, Stored]]]:
    """Return what an exported `MaxSimIndex` holds: how its vectors are stored, and each item with its key."""
    try:
        settings = folder.manifest["maxsim"]
        layout = Layout(settings["dim"], settings["precision"], settings.get("coarse", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{folder.path} is of an index of documents: import it with ragkit.Index.import_from") from error
    if Space.MULTI not in folder.multi:
        return layout, iter(())
    rows = folder.multi[Space.MULTI]
    if rows.layout != layout or folder.dense or len(folder.multi) > 1:
        raise Damaged(f"{folder.path} is stored as {rows.layout}, but its manifest says {layout}")
    return layout, ((key, item) for key in rows.keys.tolist() if (item := rows.of([key])) is not None)


def _page(fields: Json) -> Page:
    table = np.array(fields["words"], dtype=np.float64).reshape(-1, 6)
    words = Words(table[:, :2].astype(np.int64), table[:, 2:].astype(np.float32))
    span = Span(fields["start"], fields["end"])
    return Page(fields["number"], fields["width"], fields["height"], span, words, fields["label"], fields["rotation"])

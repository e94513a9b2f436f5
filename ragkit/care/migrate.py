"""Changing one's mind: another recipe for an index that is there, redoing only what the change reaches.

    recall, coarse          the rows are written again, nothing is embedded
    pdf_engine, ocr         nothing is embedded; PDF files, and images for ocr, are parsed anew when they are next added
    dims, fewer             the rows are cut and renormalised, nothing is embedded
    pages, page_*           the vectors of texts are taken over; pages are seen again, or for fewer page_dims cut
    anything else           documents are chunked and embedded again, from their stored texts: nothing is parsed again

What is embedded again is built beside, in `rebuild/`, an index of its own with the numbers of this one, and takes its place
in one commit. Searches go on meanwhile, with the former recipe; adding waits. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragkit.core.errors import Damaged, LoadError, StorageError
from ragkit.encode.contract import Encoder
from ragkit.ingest.add import Ingest
from ragkit.ingest.page_images import NOT_SEEN
from ragkit.load import office
from ragkit.load.formats import format_of, supported
from ragkit.recipe.create import layouts_of
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.settings import disagreements
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.swap import replace_contents
from ragkit.store.local import source_copies
from ragkit.store.local.files import CheckedFolder, sync_file, writing
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import Change


def _laid_out_alone(name: str) -> bool:
    """Whether a file has pages only as LibreOffice lays it out."""
    return office.convertible(name) and not office.has_slides(name)


STAGING = "rebuild"
PDF = "application/pdf"
OFFICE = tuple(sorted({kind.mime for name in supported() if (kind := format_of(f"a{name}")) and _laid_out_alone(f"a{name}")}))
IMAGES = tuple(sorted({kind.mime for name in supported() if (kind := format_of(f"a{name}")) and kind.loader == "image"}))
Settings = Mapping[str, Any]
MakeIngest = Callable[[Store, Writer], Ingest]


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a change of the recipe did: "nothing", "settings", "rows" (rewritten) or "embedded"."""

    done: str
    documents: int = 0  # embedded again
    units: int = 0
    to_parse: int = 0  # documents that are parsed anew when they are next added
    warnings: tuple[str, ...] = ()  # pages that could not be seen, by document


def reach(old: Recipe, new: Recipe, *, width: int, same_model: bool) -> str:
    """How far a change reaches, as `RebuildReport.done` says it. `width` is that of the stored vectors."""
    fewer = new.encode.dims is not None and new.encode.dims < width and old.encode.overflow != "window"
    same = old.encode.model_copy(update={"dims": None}) == new.encode.model_copy(update={"dims": None})
    cut = (new.encode.dims or 0) == (old.encode.dims or 0) or new.encode.dims == width or fewer
    if not same_model or not same or old.chunk != new.chunk or old.multi != new.multi or old.pages != new.pages or not cut:
        return "embedded"
    rows = (old.store.recall, old.store.coarse) != (new.store.recall, new.store.coarse)
    if new.encode.dims not in (old.encode.dims, width) or rows:
        return "rows"
    return "settings" if old != new else "nothing"


def keeps_texts(old: Recipe, new: Recipe) -> bool:
    """Whether chunks and their vectors are the same by both recipes, if the model is."""
    return (old.chunk, old.encode, old.multi) == (new.chunk, new.encode, new.multi)


def keeps_pages(old: Recipe, new: Recipe, encoder: Encoder | None) -> bool:
    """Whether the vectors of pages by the new recipe are those of the old one, or their first dims."""
    if old.pages is None or new.pages is None or encoder is None:
        return old.pages == new.pages
    width = encoder.card.dims
    fewer = (new.pages.dims or width) <= (old.pages.dims or width)
    return fewer and old.pages.model_copy(update={"dims": new.pages.dims}) == new.pages


def reparse_mimes(old: Recipe, new: Recipe) -> tuple[str, ...]:
    """MIME types of the documents that the new recipe would parse otherwise."""
    laid_out = OFFICE if old.pages is None and new.pages is not None else ()  # texts without pages until they are asked for
    if old.load.ocr != new.load.ocr:
        return (PDF, *IMAGES, *laid_out)
    return (*((PDF,) if old.load != new.load else ()), *laid_out)


def keep_sources(store: Store) -> tuple[str, ...]:
    """Copy the files of all documents into the index, as far as they are there as they were read; what is not, by document."""
    missing = []
    for row in store.catalog.documents(store.catalog.latest().number):
        if row.path is None or row.path != row.identity:
            continue
        try:
            source_copies.keep(store.path, Path(row.path), row.content_hash)
        except LoadError as error:
            missing.append(f"{row.source}: no copy of its file was kept: {error}")
    return tuple(missing)


def rewrite(store: Store, writer: Writer, old: Recipe, new: Recipe, settings: Settings, *, rows: bool) -> None:
    """The new recipe in one commit, with the stored rows cut to it where `rows`."""
    dims = new.encode.dims if rows else None
    former = store.recall, store.layouts
    store.recall, store.layouts = new.store.recall, layouts_of(new)
    try:
        writer.commit(
            "rebuild",
            recipe_hash=new.hash,
            merge=rows,
            dims=dims,
            settings=settings,
            reparse_mimes=reparse_mimes(old, new),
        )
    except BaseException:
        store.recall, store.layouts = former
        raise


def rebuild_beside(
    store: Store, old: Recipe, new: Recipe, settings: Settings, *, ingest: MakeIngest, lock_timeout: float
) -> tuple[int, int, tuple[str, ...]]:
    """Build everything anew beside and swap it in; how many documents and units, and which pages were lost. The caller holds the
    writer's lock.

    StorageError where a document cannot be made by the new recipe: then nothing is changed.
    """
    staged = _staging(store, settings, new)
    try:
        with staged.writer(timeout=lock_timeout) as writer:
            warnings = _fill(store, staged, writer, ingest(staged, writer))
        _swap(store, staged, old, new, settings)
        commit = staged.catalog.latest()
    finally:
        staged.close()
    with writing(staged.path):
        shutil.rmtree(staged.path)
    return commit.documents, commit.units, warnings


def _staging(store: Store, settings: Settings, recipe: Recipe) -> Store:
    """The index that is being built beside: the one that was begun, if it has the same recipe, or a new one."""
    path = store.path / STAGING
    with writing(path):
        if not _begun(path, settings):
            if path.exists():
                shutil.rmtree(path)
            path.mkdir()
            Store.create(path, settings)
    catalog = Catalog(path / "catalog.db")
    return Store(path, catalog, recall=recipe.store.recall, layouts=layouts_of(recipe), id_source=store.catalog)


def _begun(path: Path, settings: Settings) -> bool:
    if not (path / "catalog.db").exists():
        return False
    catalog = Catalog(path / "catalog.db")
    try:
        return catalog.exists and all(catalog.setting(name) == value for name, value in settings.items())
    except Damaged:
        return False
    finally:
        catalog.close()


def _fill(store: Store, staged: Store, writer: Writer, ingest: Ingest) -> tuple[str, ...]:
    """Bring the staged index to what the index holds now, whatever of it was there already; the pages that could not be seen."""
    number = store.catalog.latest().number
    identities = {row.identity for row in store.catalog.documents(number)}
    gone = [row.id for row in staged.catalog.documents(staged.catalog.latest().number) if row.identity not in identities]
    if gone:
        writer.commit("delete", delete=gone)
    report = ingest.run_stored(store.catalog, store.catalog.documents(number), replaces=False, total=len(identities))
    if report.failed:
        shown = "; ".join(f"{one.source}: {one.reason}" for one in report.failed[:3])
        raise StorageError(
            f"{store.path} was not changed: {len(report.failed)} of {len(identities)} documents cannot be made by the new "
            f"recipe ({shown}). Choose other settings, or delete these documents first."
        )
    made = (*report.added, *report.updated)
    return tuple(f"{one.source}: {warning}" for one in made for warning in one.warnings if NOT_SEEN in warning)


def _swap(store: Store, staged: Store, old: Recipe, new: Recipe, settings: Settings) -> None:
    snapshot = staged.snapshot()
    lexical = uuid.uuid4().hex
    records = staged.catalog.files(snapshot.commit.lexical)
    with writing(store.path):
        _link(CheckedFolder(staged.path / "lexical" / snapshot.commit.lexical, records), store.path / "lexical" / lexical)
        for segment in snapshot.segments:
            _link(segment.folder, store.path / "segments" / segment.row.id)
        for parent in ("lexical", "segments"):
            sync_file(store.path / parent)
    change = Change(
        number=store.catalog.latest().number + 1,
        kind="rebuild",
        recipe_hash=new.hash,
        lexical=lexical,
        lexical_files=records,
        settings=settings,
        reparse_mimes=reparse_mimes(old, new),
    )
    del snapshot
    replace_contents(store.catalog, staged.catalog, change)
    store.refresh()


def _link(folder: CheckedFolder, target: Path) -> None:
    """The folder's files under another name: links, or checked copies where the file system has none."""
    if target.exists():  # an earlier try got so far
        shutil.rmtree(target)
    target.mkdir()
    for name in folder.records:
        try:
            (target / name).hardlink_to(folder.file(name))
        except OSError:
            for _ in folder.copy(name, target / name):
                pass
    sync_file(target)


def command(path: Path, changes: Sequence[tuple[str, Any]]) -> str:
    """The command line that changes an index so."""
    words = []
    for name, value in changes:
        flag = name.replace("_", "-")
        value = {True: "int8", False: "off"}.get(value, value) if name in ("multi", "page_multi") else value
        value = "auto" if name == "pages" and value is True else value
        words.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join([f"ragkit migrate {path}", *words])


def migrate_command(path: Path, recipe: Recipe, given: Mapping[str, Any]) -> str:

    return command(path, [(name, given[name]) for name in (one.partition(":")[0] for one in disagreements(recipe, given))])

"""Change the recipe of an index, redoing only what the change reaches.

    recall, coarse          the rows are written again, nothing is embedded
    pdf_engine, ocr         nothing is embedded; PDF files, and images for ocr, are parsed anew when they are next added
    fewer dims              the rows are cut and renormalised, nothing is embedded
    pages, page_*           the vectors of texts are taken over; page images are embedded again, or cut to fewer page_dims
    anything else           documents are chunked and embedded again, from their stored texts: nothing is parsed again

Documents that are embedded again are built beside the index, in `rebuild/`: an index of its own, with the numbers of this one,
which takes its place in one commit. Searches go on meanwhile, with the former recipe; adding waits. When it is interrupted, the
same call goes on where it was.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ragkit.chunk import Chunker
from ragkit.core.errors import Damaged, LoadError, StorageError
from ragkit.core.types import Json
from ragkit.encode.contract import Encoder
from ragkit.encode.external import embeds_text
from ragkit.ingest.add import Ingest
from ragkit.ingest.item import AddOptions
from ragkit.ingest.known import FormerIndex
from ragkit.ingest.page_images import NOT_SEEN
from ragkit.ingest.prepare import LoadedModels
from ragkit.load import office
from ragkit.load.formats import format_of, supported
from ragkit.recipe.create import layouts_of
from ragkit.recipe.fingerprint import PROBE_COSINE, probe_agreement, stored_settings_of
from ragkit.recipe.models import Models, with_multi
from ragkit.recipe.recipe import Recipe
from ragkit.recipe.resolve import merge_settings, new_recipe
from ragkit.recipe.settings import Settings, SettingsKeywords
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.catalog.swap import replace_contents
from ragkit.store.local import source_copies
from ragkit.store.local.files import CheckedFolder, sync_file, writing
from ragkit.store.local.rewrite import change_recipe
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import Change


def _needs_layout(name: str) -> bool:
    """Whether a file has pages only once LibreOffice has laid it out."""
    return office.convertible(name) and not office.has_slides(name)


STAGING = "rebuild"
PDF = "application/pdf"
_FORMATS = [(f"a{suffix}", kind) for suffix in supported() if (kind := format_of(f"a{suffix}"))]  # by the name of a file
OFFICE = tuple(sorted({kind.mime for name, kind in _FORMATS if _needs_layout(name)}))
IMAGES = tuple(sorted({kind.mime for _, kind in _FORMATS if kind.loader == "image"}))
MakeIngest = Callable[[Store, Writer], Ingest]


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a change of the recipe did: "nothing", "settings", "rows" (rewritten) or "embedded"."""

    done: str
    documents: int = 0  # embedded again
    units: int = 0
    to_parse: int = 0  # documents that are parsed anew when they are next added
    warnings: tuple[str, ...] = ()  # pages that could not be seen, by document


@dataclass(frozen=True, slots=True, eq=False)
class Migration:
    """A change of an index's recipe, before it is made: both recipes, the encoders of the new one, and how far it reaches.

    `stored` is what the catalog will keep. `reach` is as in `RebuildReport.done`. `same_model` and `same_pages` tell whether the
    vectors of texts, and of pages, may be taken over where their settings stay.
    """

    old: Recipe
    new: Recipe
    encoder: Encoder
    page_encoder: Encoder | None
    stored: Json
    reach: str
    same_model: bool
    same_pages: bool


def plan_migration(models: Models, catalog: Catalog, keywords: SettingsKeywords) -> Migration:
    """Return what a change of settings asks for. ValueError for settings that do not fit."""
    old = models.recipe
    changes, model, page_model = Settings.of(keywords), keywords.get("model"), keywords.get("page_model")
    encoder = models.changed_texts(model, changes)
    if old.multi if changes.multi is None else changes.multi:
        encoder = with_multi(encoder, models.machine, {})
    settings = merge_settings(old, encoder, changes)
    page_encoder = models.changed_pages(encoder, page_model, settings)
    new = new_recipe(settings, encoder, page_encoder)
    same_model = encoder.card.fingerprint == catalog.setting("fingerprint") and (
        model is None or probe_agreement(catalog, encoder, old.encode) >= PROBE_COSINE
    )
    same_pages = keeps_pages(old, new, page_encoder)
    if same_pages and page_encoder is not None and old.pages is not None and page_model is not None:
        same_pages = probe_agreement(catalog, page_encoder, old.pages) >= PROBE_COSINE
    width = old.encode.dims or encoder.card.dims
    return Migration(
        old=old,
        new=new,
        encoder=encoder,
        page_encoder=page_encoder,
        stored=stored_settings_of(new, encoder, page_encoder),
        reach=reach(old, new, width=width, same_model=same_model and same_pages),
        same_model=same_model,
        same_pages=same_pages,
    )


def migrate(
    store: Store, writer: Writer, plan: Migration, *, chunker: Chunker, options: AddOptions, lock_timeout: float
) -> RebuildReport:
    """Make the change that was planned; `to_parse` of the report is left to the caller. chunker: of the new recipe.

    Raises StorageError if a document cannot be made by the new recipe: then nothing is changed.
    """
    old, new = plan.old, plan.new
    documents, units, lost = 0, 0, tuple[str, ...]()
    if plan.reach == "nothing":
        return RebuildReport("nothing")
    if plan.reach == "embedded":
        if not embeds_text(plan.encoder.card):
            raise ValueError(f"{store.path} would keep vectors that were made elsewhere, and ragkit cannot make them")

        models = LoadedModels(plan.encoder, plan.page_encoder, chunker)
        same_texts = old.hash if plan.same_model and keeps_texts(old, new) else None
        former = FormerIndex(store, same_texts=same_texts, same_pages=plan.same_pages)

        def ingest(staged: Store, staged_writer: Writer) -> Ingest:
            return Ingest(staged, staged_writer, new, models, options=options, former=former)

        documents, units, lost = rebuild_beside(store, old, new, plan.stored, ingest=ingest, lock_timeout=lock_timeout)
    else:
        rewrite(store, writer, old, new, plan.stored, rows=plan.reach == "rows")
    if new.store.keep_sources and not old.store.keep_sources:
        lost = (*lost, *keep_sources(store))
    return RebuildReport(plan.reach, documents, units, warnings=lost)


def reach(old: Recipe, new: Recipe, *, width: int, same_model: bool) -> str:
    """Return how far a change reaches, as `RebuildReport.done` says it. `width` is that of the stored vectors."""
    if not (same_model and _same_units(old, new) and _dims_can_be_cut(old, new, width)):
        return "embedded"
    same_rows = (old.store.recall, old.store.coarse) == (new.store.recall, new.store.coarse)
    if new.encode.dims not in (old.encode.dims, width) or not same_rows:
        return "rows"
    return "settings" if old != new else "nothing"


def _same_units(old: Recipe, new: Recipe) -> bool:
    """Whether both recipes make the same units and vectors, dims apart."""
    encode = new.encode.model_copy(update={"dims": old.encode.dims})
    return (old.chunk, old.encode, old.multi, old.pages) == (new.chunk, encode, new.multi, new.pages)


def _dims_can_be_cut(old: Recipe, new: Recipe, width: int) -> bool:
    """Whether the new recipe's dense vectors are the stored ones, of `width` dims, or can be cut out of them."""
    dims = new.encode.dims
    if dims in (old.encode.dims, width):
        return True
    return dims is not None and dims < width and old.encode.overflow != "window"


def keeps_texts(old: Recipe, new: Recipe) -> bool:
    """Whether both recipes make the same chunks and vectors of them, if the model is the same."""
    return (old.chunk, old.encode, old.multi) == (new.chunk, new.encode, new.multi)


def keeps_pages(old: Recipe, new: Recipe, encoder: Encoder | None) -> bool:
    """Whether the new recipe's vectors of pages are those of the old one, or their first dims."""
    if old.pages is None or new.pages is None or encoder is None:
        return old.pages == new.pages
    width = encoder.card.dims
    fewer = (new.pages.dims or width) <= (old.pages.dims or width)
    return fewer and old.pages.model_copy(update={"dims": new.pages.dims}) == new.pages


def reparse_mimes(old: Recipe, new: Recipe) -> tuple[str, ...]:
    """Return the MIME types of the documents that the new recipe parses otherwise."""
    laid_out = OFFICE if old.pages is None and new.pages is not None else ()  # texts without pages until they are asked for
    if old.load.ocr != new.load.ocr:
        return (PDF, *IMAGES, *laid_out)
    return (*((PDF,) if old.load != new.load else ()), *laid_out)


def keep_sources(store: Store) -> tuple[str, ...]:
    """Copy the files of all documents into the index; return a warning for each that is gone, or not as it was read."""
    missing = []
    for row in store.reader().documents():
        if row.path is None or row.path != row.identity:
            continue
        try:
            source_copies.keep(store.path, Path(row.path), row.content_hash)
        except LoadError as error:
            missing.append(f"{row.source}: no copy of its file was kept: {error}")
    return tuple(missing)


def rewrite(store: Store, writer: Writer, old: Recipe, new: Recipe, stored: Json, *, rows: bool) -> None:
    """Take the new recipe in one commit. rows: rewrite the stored rows, cut to its dims."""
    dims = new.encode.dims if rows else None
    former = store.recall, store.layouts
    store.recall, store.layouts = new.store.recall, layouts_of(new)
    try:
        change_recipe(
            writer,
            recipe_hash=new.hash,
            settings=stored,
            rewrite_rows=rows,
            dims=dims,
            reparse_mimes=reparse_mimes(old, new),
        )
    except BaseException:
        store.recall, store.layouts = former
        raise


def rebuild_beside(
    store: Store, old: Recipe, new: Recipe, stored: Json, *, ingest: MakeIngest, lock_timeout: float
) -> tuple[int, int, tuple[str, ...]]:
    """Build the index anew beside itself and swap it in; return how many documents and units it has, and warnings of pages that
    were lost. The caller holds the writer's lock.

    StorageError where a document cannot be made by the new recipe: then nothing is changed.
    """
    staged = _staging(store, stored, new)
    try:
        with staged.writer(timeout=lock_timeout) as writer:
            warnings = _fill(store, staged, writer, ingest(staged, writer))
        _swap(store, staged, old, new, stored)
        commit = staged.catalog.latest()
    finally:
        staged.close()
    with writing(staged.path):
        shutil.rmtree(staged.path)
    return commit.documents, commit.units, warnings


def _staging(store: Store, stored: Json, recipe: Recipe) -> Store:
    """Return the index to build in: the one that an earlier call began, if it has the same recipe, or a new one."""
    path = store.path / STAGING
    with writing(path):
        if not _begun(path, stored):
            if path.exists():
                shutil.rmtree(path)
            path.mkdir()
            Store.create(path, stored)
    catalog = Catalog(path / "catalog.db")
    return Store(path, catalog, recall=recipe.store.recall, layouts=layouts_of(recipe), id_source=store.catalog)


def _begun(path: Path, stored: Json) -> bool:
    if not (path / "catalog.db").exists():
        return False
    catalog = Catalog(path / "catalog.db")
    try:
        return catalog.exists and all(catalog.setting(name) == value for name, value in stored.items())
    except Damaged:
        return False
    finally:
        catalog.close()


def _fill(store: Store, staged: Store, writer: Writer, ingest: Ingest) -> tuple[str, ...]:
    """Bring the staged index to what the index holds now; return warnings of the pages that could not be seen.

    What an earlier call put there stays, unless its document changed since.
    """
    reader = store.reader()
    identities = {row.identity for row in reader.documents()}
    if gone := [row.id for row in writer.reader().documents() if row.identity not in identities]:
        writer.delete(gone)
        writer.commit("delete")
    report = ingest.run_stored(reader, reader.documents(), replaces=False, total=len(identities))
    if report.failed:
        first = "; ".join(f"{outcome.source}: {outcome.reason}" for outcome in report.failed[:3])
        raise StorageError(
            f"{store.path} was not changed: {len(report.failed)} of {len(identities)} documents cannot be made by the new "
            f"recipe ({first}). Choose other settings, or delete these documents first: ragkit delete {store.path} SOURCE..."
        )
    outcomes = (*report.added, *report.updated)
    return tuple(f"{outcome.source}: {warning}" for outcome in outcomes for warning in outcome.warnings if NOT_SEEN in warning)


def _swap(store: Store, staged: Store, old: Recipe, new: Recipe, stored: Json) -> None:
    reader = staged.reader()
    lexical = uuid.uuid4().hex
    records = staged.catalog.files(reader.commit.lexical)
    with writing(store.path):
        _link(CheckedFolder(staged.path / "lexical" / reader.commit.lexical, records), store.path / "lexical" / lexical)
        for segment in reader.segments:
            _link(segment.folder, store.path / "segments" / segment.row.id)
        for parent in ("lexical", "segments"):
            sync_file(store.path / parent)
    change = Change(
        number=store.catalog.latest().number + 1,
        kind="rebuild",
        recipe_hash=new.hash,
        lexical=lexical,
        lexical_files=records,
        settings=stored,
        reparse_mimes=reparse_mimes(old, new),
    )
    del reader
    replace_contents(store.catalog, staged.catalog, change)
    store.refresh()


def _link(folder: CheckedFolder, target: Path) -> None:
    """Give the folder's files another name: as hard links, or as checked copies where the file system has none."""
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

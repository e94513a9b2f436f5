"""Load, chunk and encode documents as a pure step: sources and models in, `Prepared` or `Failure` out.

    prepare(source, recipe, models)             one file that is one document, or one record
    load_items(source, recipe, models)          every document of a file
    prepare_batch(items, recipe, models)        many documents, encoded together

Nothing here knows an index: no catalog, no former versions, no vectors to reuse. Sources, recipes and results can be pickled,
and so can models whose encoders can; so the step can run in another process, or on another machine, that sees the files.
`ragkit.ingest.add` uses the same functions, and brings the index in between them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ragkit.chunk import Chunker, chunk_document
from ragkit.core.errors import LoadError, RagkitError
from ragkit.core.types import Chunk, Document, Floats, Span
from ragkit.encode.contract import Encoder
from ragkit.encode.external import embeds_text, unit_vectors
from ragkit.ingest.collect import SourceReader, as_item, examine, read_records, refusal
from ragkit.ingest.embed import TextEmbedder
from ragkit.ingest.item import AddOptions, Candidate, Item, is_unchanged
from ragkit.ingest.pages import PageEmbedder, has_page_images, textless_pages
from ragkit.ingest.report import Report, load_warnings
from ragkit.load import Parser, Source
from ragkit.recipe.recipe import Recipe
from ragkit.store.values import Failure, Prepared
from ragkit.store.vectors.multi_layout import Stored


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModels:
    """The encoders of a recipe, loaded, and its chunker where that is the caller's own function."""

    encoder: Encoder
    page_encoder: Encoder | None = None  # for the recipe's stage `pages`
    chunker: Chunker | None = None  # None: the one that the recipe names

    @property
    def embeds(self) -> bool:
        """Whether the encoder embeds texts; else every document brings its own vector."""
        return embeds_text(self.encoder.card)

    def sees(self, item: Item) -> bool:
        """Whether the pages of a document are embedded as images."""
        return self.page_encoder is not None and has_page_images(item)


def prepare(
    source: Source | Document | Mapping[str, object], recipe: Recipe, models: LoadedModels, *, options: AddOptions | None = None
) -> Prepared | Failure:
    """Load, chunk and encode one document. A file of many records is a Failure: see `load_items`."""
    items = list(load_items(source, recipe, models, options=options))
    if len(items) != 1:
        name = source.name if isinstance(source, Source) else "the record"
        path = str(source.path) if isinstance(source, Source) else name
        return Failure(path, name, "", f"it holds {len(items)} documents, not one: use load_items and prepare_batch")
    return prepare_batch(items, recipe, models, options=options)[0]


def load_items(
    source: Source | Document | Mapping[str, object], recipe: Recipe, models: LoadedModels, *, options: AddOptions | None = None
) -> Iterator[Item | Failure]:
    """Load a file or check a record: an item for each document in it, or the failure of one."""
    options = options or AddOptions()
    if not isinstance(source, Source):
        loaded = read_records([source])
    elif reason := refusal(source, options.limits):
        yield Failure(str(source.path), source.name, "", reason)
        return
    else:
        try:
            state = examine(source, options)
        except LoadError as error:
            yield Failure(str(source.path), source.name, "", str(error))
            return
        reader = SourceReader(recipe, options, Report(), office_pages=models.page_encoder is not None)
        loaded = reader.read([(source, state)])
    for each in loaded:
        yield as_item(each) if isinstance(each, Candidate) else each


def prepare_batch(
    items: Sequence[Item | Failure], recipe: Recipe, models: LoadedModels, *, options: AddOptions | None = None
) -> list[Prepared | Failure]:
    """Chunk and encode loaded documents together; one result for each, in their order. Failures are passed on."""
    loaded = [item for item in items if isinstance(item, Item)]
    for item in loaded:
        split(item, recipe, models)
    _embed([item for item in loaded if not item.problem], recipe, models, options or AddOptions())
    return [_result(item) if isinstance(item, Item) else item for item in items]


def _embed(items: Sequence[Item], recipe: Recipe, models: LoadedModels, options: AddOptions) -> None:
    if models.embeds:
        TextEmbedder(recipe, models.encoder, Report()).embed(items)
    if models.page_encoder is not None:
        _embed_pages([item for item in items if item.document.pages], recipe, models.page_encoder, options)


def _embed_pages(items: Sequence[Item], recipe: Recipe, encoder: Encoder, options: AddOptions) -> None:
    with page_parser(recipe, options) as parser, tempfile.TemporaryDirectory(prefix="ragkit-pages-") as scratch:
        embedder = PageEmbedder(recipe, encoder, Report(), parser, Path(scratch))
        for item in items:
            if item.problem:
                continue
            same = item.file is not None and is_unchanged(item.file, item.origin.content_hash, item.stamp)
            try:
                embedder.embed(item, item.file if same else None)
            except RagkitError as error:
                item.problem = str(error)


def page_parser(recipe: Recipe, options: AddOptions) -> Parser:
    """A parser that renders pages. It reads no text, so it needs neither OCR nor more than one worker."""
    return Parser(limits=options.limits, pdf_engine=recipe.load.pdf_engine, password=options.password)


def _result(item: Item) -> Prepared | Failure:
    if item.problem:
        return Failure(item.origin.identity, item.origin.source, item.origin.content_hash, item.problem)
    return as_prepared(item)


def as_prepared(item: Item) -> Prepared:
    return Prepared(
        origin=item.origin,
        document=item.document,
        chunks=item.chunks,
        dense=np.stack(cast(list[Floats], item.dense)) if item.dense and item.dense[0] is not None else None,
        replaces=None if item.replaces is None else item.replaces.id,
        multi=Stored.join(cast(list[Stored], item.multi)) if item.multi and item.multi[0] is not None else None,
        seen=item.seen,
        complete=item.complete,
    )


def split(item: Item, recipe: Recipe, models: LoadedModels) -> None:
    """Set the chunks of a document, and its vector where it brings one; or its problem. Sets its warnings, too."""
    try:
        if models.embeds and item.document.vector is None:
            item.chunks = tuple(_chunks(item.document, recipe, models))
            _check_length(item, recipe, models.encoder)
        else:
            _take_vector(item, recipe, models)
    except Exception as error:  # the chunker may be the user's own, and raise anything
        expected = isinstance(error, (RagkitError, ValueError))
        item.problem = str(error) if expected else f"{type(error).__name__}: {error}"
        return
    item.warnings = (*load_warnings(item.document), *_lacks(item, recipe, models))


def _lacks(item: Item, recipe: Recipe, models: LoadedModels) -> Iterator[str]:
    """Yield warnings of what a document cannot be found by: text, a vector."""
    sees = models.sees(item)
    if recipe.load.ocr == "off" and not sees and (count := textless_pages(item.document)):
        yield f'{count} of {len(item.document.pages)} pages have no text; ocr="auto" (--ocr auto) reads them'
    if not item.chunks and not sees:
        yield "no text was found in it"
    elif not models.embeds and not item.dense:
        yield "it brings no vector, so it is found by its words alone"


def _chunks(document: Document, recipe: Recipe, models: LoadedModels) -> list[Chunk]:
    stage = recipe.chunk
    return chunk_document(
        document,
        chunker=models.chunker or stage.chunker,
        tokens=stage.tokens,
        overlap=stage.overlap,
        encoder_tokens=models.encoder,
    )


def _check_length(item: Item, recipe: Recipe, encoder: Encoder) -> None:
    """Units of the `whole` chunker may be longer than the model takes: an error, unless the recipe says otherwise."""
    stage = recipe.encode
    if recipe.chunk.chunker != "whole" or stage.overflow != "error" or not item.chunks:
        return
    counts = encoder.count_tokens([chunk.span.of(item.document.text) for chunk in item.chunks])
    if counts.max() > stage.max_tokens:
        raise ValueError(
            f"it has {counts.max()} tokens and the model takes {stage.max_tokens}. "
            "Choose another chunker, or overflow='truncate' or 'window'."
        )


def _take_vector(item: Item, recipe: Recipe, models: LoadedModels) -> None:
    """Make one unit of the whole text, with the vector that came along; without one it is found by its words alone."""
    document, card = item.document, models.encoder.card
    if models.embeds:
        raise ValueError(
            f"it brings a vector, but this index embeds texts itself, with {card.name}. Leave the vector out, or keep "
            f"vectors made elsewhere in an index of their own: Index.open(..., model='vectors:<dims>')"
        )
    if document.vector is not None:
        item.dense = list(unit_vectors(document.vector[None], card.dims, keep=recipe.encode.dims))
    if item.dense or document.text.strip():
        item.chunks = (Chunk(Span(0, len(document.text))),)

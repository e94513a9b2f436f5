"""Turn the settings a user chose into a recipe: defaults for what was left open, or a ValueError that names the keyword."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ragkit.chunk import CHUNKERS
from ragkit.encode.contract import Encoder, EncoderCard, ImageEncoder
from ragkit.encode.external import embeds_text
from ragkit.encode.late import why_not_late, why_not_late_multi
from ragkit.recipe.recipe import (
    ChunkStage,
    EncodeStage,
    LoadStage,
    MultiStage,
    Overflow,
    PagesStage,
    PdfEngine,
    Precision,
    Recipe,
    StoreStage,
    Which,
)
from ragkit.recipe.settings import PRECISIONS, Settings, stored_settings, table

CHUNK_TOKENS = 128  # what the default model was trained on; finds more per character read than 256: docs/measurements.md

_T = TypeVar("_T")


def new_recipe(settings: Settings, encoder: Encoder, page_encoder: Encoder | None = None) -> Recipe:
    """Return the recipe of a new index. ValueError names the setting that does not fit."""
    encode = _encode_stage(settings, encoder)
    chunk = _chunk_stage(settings, encoder.card, encode)
    _check_late_chunking(settings, encoder, encode, chunk)
    _check_headers(encode)
    if not embeds_text(encoder.card) and (chunk.chunker != "whole" or encode.contextual_headers):
        raise ValueError(
            f"an index of {encoder.card.name} keeps documents whole, each with the vector it brings: nothing is chunked"
        )
    multi, pages = _multi_stage(settings, encoder.card), _pages_stage(settings, page_encoder)
    if settings.coarse and multi is None and (pages is None or pages.precision is None):
        raise ValueError(f"coarse={settings.coarse} is for multi-vectors, and there are none: add multi=True, or set coarse=0")
    try:
        return Recipe(
            load=LoadStage(pdf_engine=cast(PdfEngine, _or(settings.pdf_engine, "auto")), ocr=_or(settings.ocr, "off")),
            chunk=chunk,
            encode=encode,
            multi=multi,
            pages=pages,
            store=StoreStage(
                recall=_or(settings.recall, 0.99),
                coarse=_or(settings.coarse, 0),
                keep_sources=_or(settings.keep_sources, False),
            ),
        )
    except ValidationError as error:
        raise _invalid(error) from None


def merge_settings(old: Recipe, encoder: Encoder, changes: Settings) -> Settings:
    """Return the settings of a changed recipe: the stored ones, replaced by the changes. Settings of a model that is replaced, or
    of vectors that are given up, are dropped with them."""
    stored = stored_settings(old)
    if old.pages is not None and old.pages.precision is None:
        stored = replace(stored, page_multi=False)
    dropped = _dropped_with_pages(stored, changes)
    if encoder.card.name != old.encode.model:
        dropped |= {"dims", *(name for name, row in table().items() if row.loads)}
    if changes.multi is False:
        dropped |= {"pool"}
    remaining = {name: value for name, value in stored.chosen().items() if name not in dropped}
    merged = Settings(**{**remaining, **changes.chosen()})  # type: ignore[arg-type]
    keeps_page_multi = merged.pages not in (None, "none") and merged.page_multi is not False
    if not merged.multi and not keeps_page_multi and changes.coarse is None:
        merged = replace(merged, coarse=None)  # no multi-vectors are left for coarse ones to stand for
    return merged


def _dropped_with_pages(stored: Settings, changes: Settings) -> set[str]:
    """Return the names of settings that a change of the page images, their model or their multi-vectors drops."""
    dropped = {"page_pool", "page_background"} if changes.page_multi is False else set[str]()
    if changes.pages == "none":
        return dropped | {name for name in table() if name.startswith("page_")}
    if changes.page_model not in (None, stored.page_model):
        return dropped | {"page_dims", "page_multi", "page_pixels"}
    return dropped


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _encode_stage(settings: Settings, encoder: Encoder) -> EncodeStage:
    card = encoder.card
    max_tokens = _or(settings.max_tokens, card.max_tokens)
    if max_tokens > card.max_tokens:
        raise ValueError(f"max_tokens {max_tokens} is more than {card.name} takes: {card.max_tokens}")
    if settings.dims is not None and not 1 <= settings.dims <= card.dims:
        raise ValueError(f"dims must be between 1 and {card.dims} for {card.name}, got {settings.dims}")
    if settings.late_chunking not in (None, "auto", True, False):
        raise ValueError(f"late_chunking is 'auto', True or False, got {settings.late_chunking!r}")
    try:
        return EncodeStage(
            model=card.name,
            revision=card.revision,
            task=settings.task,
            dims=settings.dims,
            max_tokens=max_tokens,
            max_pixels=settings.max_pixels,
            overflow=cast(Overflow, _or(settings.overflow, "error")),
            dtype=card.dtype,
            contextual_headers=_or(settings.contextual_headers, False),
            late_chunking=settings.late_chunking is True,  # "auto" is off for every model measured: docs/late-chunking.md
        )
    except ValidationError as error:
        raise _invalid(error) from None


def _chunk_stage(settings: Settings, card: EncoderCard, encode: EncodeStage) -> ChunkStage:
    chunker = _or(settings.chunker, "sentences" if embeds_text(card) else "whole")
    if chunker not in CHUNKERS and not chunker.startswith("callable:"):
        raise ValueError(f"chunker must be one of {', '.join(CHUNKERS)}, or a function from Document to spans; got {chunker!r}")
    room = encode.max_tokens
    tokens = _or(settings.chunk_tokens, min(CHUNK_TOKENS, room - room // 8 if encode.contextual_headers else room))
    if tokens > room:
        raise ValueError(f"chunk_tokens {tokens} is more than max_tokens {room} of {card.name}")
    try:
        return ChunkStage(chunker=chunker, tokens=tokens, overlap=_or(settings.chunk_overlap, 0))
    except ValidationError as error:
        raise _invalid(error) from None


def _check_late_chunking(settings: Settings, encoder: Encoder, encode: EncodeStage, chunk: ChunkStage) -> None:
    if not encode.late_chunking:
        return
    if reason := why_not_late(encoder):
        raise ValueError(f"late_chunking=True is not for {encoder.card.name}: {reason}")
    if chunk.chunker == "whole":
        raise ValueError("late_chunking=True is for chunks of a document; the chunker 'whole' makes none")
    if encode.contextual_headers:
        raise ValueError("contextual_headers=True and late_chunking=True have the same purpose: choose one")
    if settings.multi and (reason := why_not_late_multi(encoder)):
        raise ValueError(reason)


def _check_headers(encode: EncodeStage) -> None:
    if encode.contextual_headers and encode.overflow == "window":
        raise ValueError("contextual_headers=True is not for overflow='window': only the first window would have the header")


def _multi_stage(settings: Settings, card: EncoderCard) -> MultiStage | None:
    """The stage of multi-vectors, if they were asked for: they take many times the room of the dense ones."""
    multi = settings.multi
    if multi is None or multi is False:
        if settings.pool is not None:
            raise ValueError("pool makes multi-vectors fewer; set multi=True, too")
        if not card.dims:
            raise ValueError(f"{card.name} makes multi-vectors only; set multi=True")
        return None
    if multi is not True and multi not in PRECISIONS:
        raise ValueError(f"multi is True, False or a precision ({', '.join(PRECISIONS)}), got {multi!r}")
    if settings.dims is not None and not card.dims:
        raise ValueError(f"dims is for dense vectors, and {card.name} makes none")
    try:
        return MultiStage(dims=card.multi_dims, precision=_precision(multi), pool=_or(settings.pool, 1), alone=not card.dims)
    except ValidationError as error:
        raise _invalid(error) from None


def _precision(multi: str | bool | None) -> Precision:
    return "int8" if multi in (None, True) else cast(Precision, multi)


def _pages_stage(settings: Settings, encoder: Encoder | None) -> PagesStage | None:
    if encoder is None:
        return None
    card = encoder.card
    keeps_multi = _keeps_page_multi(settings, encoder)
    dims = settings.page_dims
    if dims is not None and not 1 <= dims <= card.dims:
        raise ValueError(f"page_dims must be between 1 and {card.dims} for {card.name}, got {dims}")
    try:
        return PagesStage(
            which="auto" if settings.pages is True else cast(Which, settings.pages),
            model=card.name,
            revision=card.revision,
            task=settings.task if settings.task in card.tasks else None,
            dims=dims,
            dense=bool(card.dims),
            max_pixels=settings.page_pixels,
            dtype=card.dtype,
            multi_dims=card.multi_dims if keeps_multi else 0,
            precision=_precision(settings.page_multi) if keeps_multi else None,
            pool=settings.page_pool or 1,
            background=settings.page_background is not False,
        )
    except ValidationError as error:
        raise _invalid(error) from None


def _keeps_page_multi(settings: Settings, encoder: Encoder) -> bool:
    """Whether a vector per patch is kept; ValueError for settings that contradict it or the encoder."""
    card, multi = encoder.card, settings.page_multi
    if multi not in (None, True, False, *PRECISIONS):
        raise ValueError(f"page_multi is True, False or a precision ({', '.join(PRECISIONS)}), got {multi!r}")
    if multi and not card.multi_dims:
        raise ValueError(f"page_multi needs an encoder with multi-vectors, and {card.name} has none")
    keeps = bool(card.multi_dims) and multi is not False
    if not keeps and not card.dims:
        raise ValueError(f"no vectors of pages would be kept: {card.name} makes {', '.join(card.outputs)}")
    fewer = (settings.page_pool or 1) > 1 or settings.page_background is False
    if fewer and not (keeps and isinstance(encoder, ImageEncoder)):
        raise ValueError(
            f"page_pool and page_background make multi-vectors of pages fewer, and none of {card.name} are kept: "
            "set page_pool=1 and page_background=True"
        )
    return keeps


def _invalid(error: ValidationError) -> ValueError:
    stage = error.title.removesuffix("Stage").lower()
    return ValueError("; ".join(_complaint(each, stage) for each in error.errors()))


def _complaint(error: ErrorDetails, stage: str) -> str:
    """Say what pydantic says of a stage's field, under the name of the setting."""
    if error["type"] == "value_error":  # raised by our own validators, whose messages are complete
        return str(error["ctx"]["error"])
    field = str(error["loc"][-1]) if error["loc"] else ""
    name = next((name for name, row in table().items() if (row.stage, row.field) == (stage, field)), field)
    return f"{name}: {error['msg']}, got {error['input']!r}" if name else str(error["msg"])

"""Turn the settings a user chose into a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ragkit.chunk import CHUNKERS
from ragkit.encode.contract import Encoder, ImageEncoder
from ragkit.encode.external import embeds_text
from ragkit.encode.late import why_not_late, why_not_late_multi
from ragkit.recipe.recipe import ChunkStage, EncodeStage, LoadStage, MultiStage, PagesStage, Recipe, StoreStage
from ragkit.recipe.settings import KEYWORDS, OF_MODEL, stored_value
from ragkit.store.vectors.multi import PRECISIONS

CHUNK_TOKENS = 128  # what the default model was trained on; finds more per character read than 256: docs/measurements.md


def _new_multi(given: Mapping[str, Any], encoder: Encoder) -> MultiStage | None:
    """The stage of multi-vectors, where they were asked for: they take many times the room of the dense ones."""
    multi, card = given["multi"], encoder.card
    if multi is None or multi is False:
        if given["pool"] is not None:
            raise ValueError("pool makes the tokens of multi-vectors fewer; set multi=True, too")
        if not card.dims:
            raise ValueError(f"{card.name} makes multi-vectors only; set multi=True")
        return None
    if multi is not True and multi not in PRECISIONS:
        raise ValueError(f"multi is True, False or a precision ({', '.join(PRECISIONS)}), got {multi!r}")
    if given["dims"] is not None and not card.dims:
        raise ValueError(f"dims is for dense vectors, and {card.name} makes none")
    precision: Any
    precision, pool = "int8" if multi is True else multi, 1 if given["pool"] is None else given["pool"]
    return MultiStage(dims=card.multi_dims, precision=precision, pool=pool, alone=not card.dims)


def _new_pages(given: Mapping[str, Any], encoder: Encoder | None) -> PagesStage | None:
    if encoder is None:
        return None
    card, which, multi = encoder.card, given["pages"], given["page_multi"]
    if multi not in (None, True, False, *PRECISIONS):
        raise ValueError(f"page_multi is True, False or a precision ({', '.join(PRECISIONS)}), got {multi!r}")
    if multi and not card.multi_dims:
        raise ValueError(f"page_multi needs an encoder with multi-vectors, and {card.name} has none")
    dims = given["page_dims"]
    if dims is not None and not 1 <= dims <= card.dims:
        raise ValueError(f"page_dims must be between 1 and {card.dims} for {card.name}, got {dims}")
    keeps_multi = bool(card.multi_dims) and multi is not False
    if not keeps_multi and not card.dims:
        raise ValueError(f"no vectors of pages would be kept: {card.name} makes {', '.join(card.outputs)}")
    precision: Any = ("int8" if multi in (None, True) else multi) if keeps_multi else None
    pool, background = given["page_pool"] or 1, given["page_background"] is not False
    if (pool > 1 or not background) and not (keeps_multi and isinstance(encoder, ImageEncoder)):
        raise ValueError(
            f"page_pool and page_background make multi-vectors of pages fewer, and none of {card.name} are kept: "
            "set page_pool=1 and page_background=True"
        )
    return PagesStage(
        which="auto" if which is True else which,
        model=card.name,
        revision=card.revision,
        task=given["task"] if given["task"] in card.tasks else None,
        dims=dims,
        dense=bool(card.dims),
        max_pixels=given["page_pixels"],
        dtype=card.dtype,
        multi_dims=card.multi_dims if keeps_multi else 0,
        precision=precision,
        pool=pool,
        background=background,
    )


def new_recipe(given: Mapping[str, Any], encoder: Encoder, page_encoder: Encoder | None = None) -> Recipe:
    """The recipe of a new index: what was given, and defaults for the rest. ValueError names the keyword that is off."""
    card = encoder.card

    def chosen(name: str, default: Any) -> Any:
        return default if given[name] is None else given[name]

    embeds = embeds_text(card)
    chunker, max_tokens = chosen("chunker", "sentences" if embeds else "whole"), chosen("max_tokens", card.max_tokens)
    headers = chosen("contextual_headers", False)
    tokens = chosen("chunk_tokens", min(CHUNK_TOKENS, max_tokens - max_tokens // 8 if headers else max_tokens))
    if chunker not in CHUNKERS and not chunker.startswith("callable:"):
        raise ValueError(f"chunker must be one of {', '.join(CHUNKERS)}, or a function from Document to spans; got {chunker!r}")
    if max_tokens > card.max_tokens:
        raise ValueError(f"max_tokens {max_tokens} is beyond what {card.name} takes: {card.max_tokens}")
    if tokens > max_tokens:
        raise ValueError(f"chunk_tokens {tokens} is beyond max_tokens {max_tokens} of {card.name}")
    if given["dims"] is not None and not 1 <= given["dims"] <= card.dims:
        raise ValueError(f"dims must be between 1 and {card.dims} for {card.name}, got {given['dims']}")
    late = chosen("late_chunking", "auto")
    if late not in ("auto", True, False):
        raise ValueError(f"late_chunking is 'auto', True or False, got {late!r}")
    if late is True and (reason := why_not_late(encoder)):
        raise ValueError(f"late_chunking=True is not for {card.name}: {reason}")
    if late is True and chunker == "whole":
        raise ValueError("late_chunking=True is for chunks of a document; the chunker 'whole' makes none")
    if not embeds and (chunker != "whole" or headers):
        raise ValueError(f"an index of {card.name} keeps documents whole, each with the vector it brings: nothing is chunked")
    if headers and late is True:
        raise ValueError("contextual_headers=True and late_chunking=True are two ways to one end: choose one")
    if headers and given["overflow"] == "window":
        raise ValueError("contextual_headers=True is not for overflow='window': only the first window would have the header")
    if late is True and given["multi"] and (reason := why_not_late_multi(encoder)):
        raise ValueError(reason)
    multi, pages = _new_multi(given, encoder), _new_pages(given, page_encoder)
    if given["coarse"] and multi is None and (pages is None or pages.precision is None):
        raise ValueError(f"coarse={given['coarse']} is for multi-vectors, and there are none: add multi=True, or say coarse=0")
    try:
        return Recipe(
            multi=multi,
            pages=pages,
            load=LoadStage(pdf_engine=chosen("pdf_engine", "auto"), ocr=chosen("ocr", "off")),
            chunk=ChunkStage(chunker=chunker, tokens=tokens, overlap=chosen("chunk_overlap", 0)),
            encode=EncodeStage(
                model=card.name,
                revision=card.revision,
                task=given["task"],
                dims=given["dims"],
                max_tokens=max_tokens,
                max_pixels=given["max_pixels"],
                overflow=chosen("overflow", "error"),
                dtype=card.dtype,
                contextual_headers=headers,
                late_chunking=late is True,  # "auto" is off for every model that was measured: docs/late-chunking.md
            ),
            store=StoreStage(
                recall=chosen("recall", StoreStage().recall),
                coarse=chosen("coarse", StoreStage().coarse),
                keep_sources=chosen("keep_sources", StoreStage().keep_sources),
            ),
        )
    except ValidationError as error:
        raise ValueError("; ".join(_complaint(one) for one in error.errors())) from None


def changed(old: Recipe, encoder: Encoder, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `open` that make the changed recipe; what belongs to a model goes with it."""
    stored = {name: stored_value(old, name) for name in KEYWORDS}
    if old.pages is not None and old.pages.precision is None:
        stored["page_multi"] = False
    if given.get("pages") in (False, "none"):
        stored |= dict.fromkeys(name for name in KEYWORDS if name.startswith("page_"))
    elif given.get("page_model") not in (None, stored["page_model"]):
        stored |= dict.fromkeys(("page_dims", "page_multi", "page_pixels"))
    if encoder.card.name != old.encode.model:
        stored |= dict.fromkeys(("dims", *OF_MODEL))
    if given.get("multi") is False:
        stored["pool"] = None
    if given.get("page_multi") is False:
        stored |= dict.fromkeys(("page_pool", "page_background"))
    new = {**stored, **given}
    if not new["multi"] and (new["pages"] in (None, False, "none") or new["page_multi"] is False):
        stored["coarse"] = None  # there is nothing left that it stands for
    return {**stored, **given}


def _complaint(error: Any) -> str:
    """What pydantic says of a stage's field, under the keyword of Index.open that set it."""
    if error["type"] == "value_error":  # our own, which says it all
        return str(error["ctx"]["error"])
    field = str(error["loc"][-1]) if error["loc"] else ""
    name = next((name for name, (_, known) in KEYWORDS.items() if known == field), field)
    return f"{name}: {error['msg']}, got {error['input']!r}" if name else str(error["msg"])

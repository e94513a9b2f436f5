"""What an index is made of, settled when it is created, and whether an encoder is the one that built it.

In goes what `Index.open` was given; out comes a recipe, or an error that names the keyword. Nothing is written before the model
is loaded and the recipe stands: what cannot be made leaves nothing behind.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ragkit.catalog.catalog import Catalog
from ragkit.chunk import CHUNKERS
from ragkit.encode import load_encoder
from ragkit.encode.contract import Encoder, ImageEncoder
from ragkit.encode.given import embeds_text
from ragkit.encode.late import why_not_late, why_not_late_multi
from ragkit.errors import FingerprintMismatch, NotAnIndex, RagkitError, StorageError
from ragkit.locks import writer_lock
from ragkit.recipe import (
    KEYWORDS,
    ChunkStage,
    EncodeStage,
    LoadStage,
    MultiStage,
    PagesStage,
    Recipe,
    StoreStage,
    stored_value,
)
from ragkit.recipe import MULTI as TOKEN_STATES
from ragkit.retrieve import mean_vector
from ragkit.store import Store
from ragkit.types import Floats
from ragkit.vectors.multi import PRECISIONS

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "Wie spät ist es in Zürich?",
    "def add(a, b): return a + b",
    "東京は日本の首都です。",
)
PROBE_COSINE = 0.999  # two builds of one model agree better than this, in bfloat16 too; two models do not
OF_MODEL = ("task", "max_tokens", "dtype", "max_pixels")  # settings that a model is loaded with, and that go with it
LOCK_TIMEOUT = 10.0  # seconds
CHUNK_TOKENS = 128  # what the default model was trained on; finds more per character read than 256: docs/measurements.md


def existing(path: Path) -> Catalog | None:
    """The catalog of the index at `path`, or None where there is none yet; NotAnIndex where there is something else."""
    if path.exists() and not path.is_dir():
        raise NotAnIndex(f"{path} is a file, not a folder")
    if not (path / "catalog.db").exists():
        return None
    catalog = Catalog(path / "catalog.db")
    if catalog.exists:
        return catalog
    catalog.close()
    return None


def create_index(
    path: Path,
    given: Mapping[str, Any],
    *,
    name: str,
    encoder: Encoder | None,
    page_encoder: Encoder | None,
    device: str | None,
    api_keys: Mapping[str, str] | None,
    create: bool,
) -> Catalog:
    if not create:
        raise NotAnIndex(f"there is no index at {path}. Make one: ragkit add {path} FILES")
    ours = {"segments", "lexical", "LOCK", "catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal"}
    if path.exists() and any(entry.name not in ours for entry in path.iterdir()):
        raise NotAnIndex(f"{path} is not empty and holds no index. Name an empty or a new folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {path}: {error.strerror}") from error
    # A wrong model or recipe must leave nothing behind, so both are settled before the first file is written.
    wanted = {one: given[one] for one in ("dtype", "task", "max_tokens", "max_pixels")}
    encoder = encoder or load_encoder(name, device=device, api_keys=api_keys, **wanted)
    if given["multi"]:
        encoder = with_multi(encoder, device=device, wanted=wanted)
    page_encoder = encoder_of_pages(given, encoder, page_encoder, device=device, api_keys=api_keys)
    recipe = new_recipe(given, encoder, page_encoder)
    settings = settings_of(recipe, encoder, page_encoder)
    with writer_lock(path / "LOCK", timeout=LOCK_TIMEOUT):
        found = existing(path)  # another process may have been quicker
        if found is None:
            Store.create(path, settings)
    return found or Catalog(path / "catalog.db")


def with_multi(encoder: Encoder, *, device: str | None, wanted: Mapping[str, Any]) -> Encoder:
    """The encoder, or the same model with its token states as multi-vectors; ValueError where it has none to give."""
    if encoder.card.multi_dims:
        return encoder
    try:
        return load_encoder(encoder.card.name + TOKEN_STATES, device=device, **wanted)
    except (ValueError, RagkitError) as error:
        raise ValueError(
            f"multi needs an encoder with multi-vectors, and {encoder.card.name} has none: {error}. "
            "Leave multi out, or give it up: multi=False"
        ) from None


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


def encoder_of_pages(
    given: Mapping[str, Any],
    encoder: Encoder,
    page_encoder: Encoder | None,
    *,
    device: str | None,
    api_keys: Mapping[str, str] | None,
) -> Encoder | None:
    """The encoder of page images, where they are asked for: the one named, or else that of the texts, which must see then."""
    if not wants_pages(given):
        return None
    name = given["page_model"]
    if (
        page_encoder is None
        and (name is None or name == encoder.card.name)
        and given["page_pixels"] in (None, given["max_pixels"])
    ):
        page_encoder = encoder
    if page_encoder is None:
        page_encoder = load_encoder(name or encoder.card.name, device=device, api_keys=api_keys, max_pixels=given["page_pixels"])
    if "image" not in page_encoder.card.modalities:
        raise ValueError(
            f"pages={given['pages']!r} needs an encoder that sees, and {page_encoder.card.name} does not. Name one: "
            "page_model='jinaai/jina-clip-v1', or leave pages out"
        )
    return page_encoder


def wants_pages(given: Mapping[str, Any]) -> bool:
    """Whether page images are asked for; ValueError where only something about them is, or something unknown."""
    if given["pages"] not in (None, False, "none"):
        if given["pages"] not in (True, "auto", "all", "figures"):
            raise ValueError(f"pages is 'auto', 'all', 'figures' or 'none', got {given['pages']!r}")
        return True
    asked = [name for name in KEYWORDS if name.startswith("page_") and given[name] is not None]
    if asked:
        raise ValueError(f"{asked[0]} is about page images; set pages='auto', 'all' or 'figures', too")
    return False


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


def settings_of(recipe: Recipe, encoder: Encoder, page_encoder: Encoder | None = None) -> dict[str, Any]:
    """What the catalog keeps of a recipe and its encoders."""
    return {
        "recipe": recipe.model_dump(),
        "fingerprint": encoder.card.fingerprint,
        "probes": _probes(encoder, recipe.encode),
        **(_page_settings(page_encoder, recipe.pages) if page_encoder is not None and recipe.pages is not None else {}),
    }


def _page_settings(encoder: Encoder, stage: PagesStage) -> dict[str, Any]:
    row = _page_probe(encoder, stage)
    return {
        "page_fingerprint": encoder.card.fingerprint,
        "page_probe": base64.b64encode(row.astype("<f4").tobytes()).decode(),
    }


def _page_probe(encoder: Encoder, stage: PagesStage) -> Floats:
    """The direction of a small picture of our own making, (d,) float32: what a silently different model is caught by."""
    encoding = encoder.encode_document([_probe_picture()], task=stage.task, truncate=True)
    rows = encoding.dense
    if rows is None:
        assert encoding.multi is not None
        rows = mean_vector(encoding.multi[0])
    return np.asarray(rows[0], dtype=np.float32)


def _probe_picture() -> Any:
    """224 x 224 pixels: two ramps and a checkerboard, so that orientation, colours and detail all count."""
    from PIL import Image

    at = np.arange(224)
    red, green = np.broadcast_to(at, (224, 224)), np.broadcast_to(at[:, None], (224, 224))
    blue = 255 * ((red // 16 + green // 16) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def _probes(encoder: Encoder, stage: EncodeStage) -> dict[str, str]:
    """The probe texts' vectors in the document role: text to base64 of (d,) little-endian float32."""
    if not embeds_text(encoder.card):
        return {}
    rows = _probe_rows(encoder, PROBES, stage)
    return {text: base64.b64encode(row.astype("<f4").tobytes()).decode() for text, row in zip(PROBES, rows, strict=True)}


def _probe_rows(encoder: Encoder, texts: Sequence[str], stage: EncodeStage) -> Floats:
    """A direction per text, (n, d) unit rows: its dense vector, or the mean of its multi-vectors where it has no other."""
    encoding = encoder.encode_document(texts, task=stage.task, truncate_dim=stage.dims, truncate=True)
    if encoding.dense is not None:
        return encoding.dense
    assert encoding.multi is not None
    return np.concatenate([mean_vector(encoding.multi[at]) for at in range(len(texts))])


def check_fingerprint(path: Path, catalog: Catalog, encoder: Encoder, stage: EncodeStage) -> None:
    stored = catalog.setting("fingerprint")
    if encoder.card.fingerprint != stored:
        raise FingerprintMismatch(
            f"{path} was built with {stage.model} ({stored[:12]}), but this encoder is {encoder.card.name} "
            f"({encoder.card.fingerprint[:12]}). Open it with the first, or embed its documents again with this one: "
            f"ragkit migrate {path} --model {encoder.card.name}"
        )
    cosine = probes_agree(catalog, encoder, stage)
    if cosine < PROBE_COSINE:
        raise FingerprintMismatch(
            f"{encoder.card.name} calls itself the model that built {path}, but a probe text comes out at cosine "
            f"{cosine:.4f} to the stored vector, below {PROBE_COSINE}: its weights or its software differ. "
            f"Put back what it was, or embed all documents again: ragkit migrate {path} --model {encoder.card.name}"
        )


def check_page_fingerprint(path: Path, catalog: Catalog, encoder: Encoder, stage: PagesStage) -> None:
    """FingerprintMismatch where an encoder is not the one that saw the pages of the index."""
    stored = catalog.setting("page_fingerprint")
    problem = ""
    if encoder.card.fingerprint != stored:
        problem = f"the pages of {path} were seen by {stage.model} ({stored[:12]}), but this encoder is {encoder.card.name} "
        problem += f"({encoder.card.fingerprint[:12]}). Open it with the first"
    elif (cosine := page_probe_agrees(catalog, encoder, stage)) < PROBE_COSINE:
        problem = f"{encoder.card.name} calls itself the model that saw the pages of {path}, but a probe picture comes out at "
        problem += f"cosine {cosine:.4f} to the stored vector, below {PROBE_COSINE}. Put back what it was"
    if problem:
        raise FingerprintMismatch(f"{problem}, or see them again: ragkit migrate {path} --page-model {encoder.card.name}")


def page_probe_agrees(catalog: Catalog, encoder: Encoder, stage: PagesStage) -> float:
    """The cosine between the stored vector of the probe picture and the one that this encoder makes."""
    stored = np.frombuffer(base64.b64decode(catalog.setting("page_probe")), dtype="<f4")
    row = _page_probe(encoder, stage)
    if row.shape != stored.shape:
        return 0.0
    return float(row @ stored / (np.linalg.norm(row) * np.linalg.norm(stored)))


def probes_agree(catalog: Catalog, encoder: Encoder, stage: EncodeStage) -> float:
    """The least cosine between the stored vectors of the probe texts and those that this encoder makes."""
    probes = catalog.setting("probes")
    texts = list(probes)
    if not texts:
        return 1.0
    expected = np.stack([np.frombuffer(base64.b64decode(probes[text]), dtype="<f4") for text in texts])
    rows = _probe_rows(encoder, texts, stage)
    return float((rows * expected).sum(axis=1).min())

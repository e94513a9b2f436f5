"""Load the encoders of an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragkit.core.errors import RagkitError
from ragkit.encode import load_encoder, resolve_name
from ragkit.encode.contract import Encoder
from ragkit.recipe.recipe import MULTI as TOKEN_STATES
from ragkit.recipe.settings import KEYWORDS


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


@dataclass(slots=True, eq=False)
class LoadedModel:
    """An encoder of the index: loaded, and checked to be the one that built it, when it is first needed."""

    encoder: Encoder | None = None
    checked: bool = False


def model_name(model: str | Encoder | None) -> str:
    return resolve_name(model if model is None or isinstance(model, str) else model.card.name)

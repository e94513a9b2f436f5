"""The recipe: everything that decides the vectors, in stages, each with a hash.

An index keeps the recipe that it was created with, and refuses to be opened with settings that disagree. A change of one stage
affects all stages after it:

    load  →  chunk  →  encode  →  multi  →  pages  →  store

What the user does not choose is filled in once, when the index is created. This module knows neither models nor stores.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ragkit.core.types import Json

Precision = Literal["int8", "float16", "float32"]  # as in store/vectors/multi_layout.py
Overflow = Literal["error", "truncate", "window"]
Which = Literal["all", "auto", "figures"]
PdfEngine = Literal["auto", "pymupdf", "pypdfium2"]
# Fields that came later, each with the value under which an index is as it was before there was the field.
LATER: Json = {"keep_sources": False, "ocr": "off", "coarse": 0}
STAGES = ("load", "chunk", "encode", "multi", "pages", "store")


class _Stage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadStage(_Stage):
    """How a file becomes a document."""

    pdf_engine: PdfEngine = "auto"
    # Of pages without text: off, auto, or Tesseract's names of languages, "eng+deu".
    ocr: str = Field(default="off", pattern=r"^[A-Za-z][A-Za-z0-9_/+]*$")


class ChunkStage(_Stage):
    """How a document becomes chunks. `tokens` and `overlap` count the encoder's own tokens, special ones included."""

    chunker: str = "sentences"  # sentences, structure, page, whole; or callable:<module>.<name>
    tokens: int = Field(default=128, ge=8)
    overlap: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _overlap_is_less_than_half(self) -> ChunkStage:
        if 2 * self.overlap > self.tokens:
            raise ValueError(f"chunk_overlap must be at most half of chunk_tokens, got {self.overlap} of {self.tokens}")
        return self


class EncodeStage(_Stage):
    """How a chunk becomes vectors. `dims` is the width after truncation, None for the model's own."""

    model: str
    revision: str = ""
    task: str | None = None
    dims: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(ge=8)
    max_pixels: int | None = Field(default=None, ge=1)  # of an image, for models that take images; None for the model's own
    overflow: Overflow = "error"
    dtype: str = "float32"
    late_chunking: bool = False
    contextual_headers: bool = False


class MultiStage(_Stage):
    """Multi-vectors, stored beside the dense vectors, or `alone` if the model makes no dense ones. `dims` is their width.
    Hierarchical clustering divides a unit's number of vectors by `pool`; 1 keeps all."""

    dims: int = Field(ge=1)
    precision: Precision = "int8"
    pool: int = Field(default=1, ge=1)
    alone: bool = False


class PagesStage(_Stage):
    """Page images, embedded beside the text.

    which: "all": every page that is not blank; "figures": pages with pictures or drawings; "auto": those, and pages with hardly
    any text. `dims` is the width of the dense vectors, None for the model's own, and `dense` whether any are stored. `precision`
    is that of the multi-vectors, None if none are stored. Clustering divides a page's number of patches by `pool`. `background`
    False keeps only one of several patches that are alike.
    """

    which: Which = "auto"
    model: str
    revision: str = ""
    task: str | None = None
    dims: int | None = Field(default=None, ge=1)
    dense: bool = True
    max_pixels: int | None = Field(default=None, ge=1)
    dtype: str = "float32"
    multi_dims: int = Field(default=0, ge=0)
    precision: Precision | None = None
    pool: int = Field(default=1, ge=1)
    background: bool = True


class StoreStage(_Stage):
    """How an index is stored.

    recall: the share of the exact best ten that a search of compressed vectors must find. coarse: for how many multi-vectors one
    more is stored that stands for them, so that a search scores only likely units exactly; 0 for none. keep_sources: whether a
    copy of every added file is stored.
    """

    recall: float = Field(default=0.99, gt=0, le=1)
    coarse: int = Field(default=0, ge=0)
    keep_sources: bool = False

    @field_validator("coarse")
    @classmethod
    def _is_not_one(cls, coarse: int) -> int:
        if coarse == 1:
            raise ValueError("coarse must be 0, or at least 2 vectors that one stands for, got 1")
        return coarse


class Recipe(_Stage):
    """All stages. `multi` is None if no multi-vectors are stored, `pages` if no page images are."""

    load: LoadStage
    chunk: ChunkStage
    encode: EncodeStage
    store: StoreStage
    multi: MultiStage | None = None
    pages: PagesStage | None = None

    def hashes(self) -> dict[str, str]:
        """Return a sha256 for each stage, over it and all stages before it: equal hashes mean that nothing up to that stage
        changed.

        Fields in LATER are left out while they have the value given there, so the hashes of older indexes stay the same.
        """
        result, running = {}, hashlib.sha256()
        for stage in STAGES:
            if (settings := getattr(self, stage)) is None:  # no multi-vectors, no pages: stages that came later
                continue
            fields = {name: value for name, value in settings.model_dump().items() if name not in LATER or LATER[name] != value}
            running.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
            result[stage] = running.hexdigest()
        return result

    @property
    def hash(self) -> str:
        """Return the hash over all stages."""
        return self.hashes()["store"]

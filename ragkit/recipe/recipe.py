"""The recipe: everything that decides the vectors, in stages, each with a hash.

An index keeps its recipe from creation on. Opening it with settings that disagree is refused. The
stages depend on each other from left to right: what changes in one reaches all that follow.

    load  →  chunk  →  encode  →  multi  →  pages  →  store

In goes what the user chose; what was left open is filled in once, when the index is created.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Precision = Literal["int8", "float16", "float32"]  # as in store/vectors/multi_layout.py
Overflow = Literal["error", "truncate", "window"]
Which = Literal["all", "auto", "figures"]
PdfEngine = Literal["auto", "pymupdf", "pypdfium2"]
# Fields added since the first release, each with the value that means what was so before.
LATER: dict[str, Any] = {"keep_sources": False, "ocr": "off", "coarse": 0}
STAGES = ("load", "chunk", "encode", "multi", "pages", "store")


class _Stage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadStage(_Stage):
    """How a file becomes a document."""

    pdf_engine: PdfEngine = "auto"
    ocr: str = Field(
        default="off", pattern=r"^[A-Za-z][A-Za-z0-9_/+]*$"
    )  # of pages without text: off, auto, or Tesseract's names of languages, "eng+deu"


class ChunkStage(_Stage):
    """How a document becomes spans. `tokens` and `overlap` are the encoder's own tokens, special ones included."""

    chunker: str = "sentences"  # sentences, structure, page, whole; or callable:<module>.<name>
    tokens: int = Field(default=128, ge=8)
    overlap: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _overlap_is_less_than_half(self) -> ChunkStage:
        if 2 * self.overlap > self.tokens:
            raise ValueError(f"chunk_overlap must be at most half of chunk_tokens, got {self.overlap} of {self.tokens}")
        return self


class EncodeStage(_Stage):
    """How a span becomes vectors. `dims` is the width after truncation, None for the model's own."""

    model: str
    revision: str = ""
    task: str | None = None
    dims: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(ge=8)
    max_pixels: int | None = Field(default=None, ge=1)  # of an image, for models that see; None for the model's own
    overflow: Overflow = "error"
    dtype: str = "float32"
    late_chunking: bool = False
    contextual_headers: bool = False


class MultiStage(_Stage):
    """Multi-vectors kept beside the dense ones, or `alone` where the model has no others. `dims` of each; `pool` is the factor
    by which hierarchical clustering makes a unit's tokens fewer, 1 for none."""

    dims: int = Field(ge=1)
    precision: Precision = "int8"
    pool: int = Field(default=1, ge=1)
    alone: bool = False


class PagesStage(_Stage):
    """Page images, embedded beside the text. which: every page that is not blank; "figures": pages with pictures or drawings;
    "auto": those, and pages with hardly any text. `dims` of the dense vectors, None for the model's own, where `dense` has any
    kept; `precision` of the multi-vectors, None for none. `pool` makes a page's patches fewer, by clustering; `background` False
    keeps one of patches that are alike."""

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
    """How an index is kept: `recall` is the share of the exact best ten that a compressed search must find; `coarse` how many
    multi-vectors one more stands for, so that a search scores only likely units exactly, 0 for none; `keep_sources` keeps a copy
    of every file that was added."""

    recall: float = Field(default=0.99, gt=0, le=1)
    coarse: int = Field(default=0, ge=0)
    keep_sources: bool = False

    @field_validator("coarse")
    @classmethod
    def _of_two_at_least(cls, coarse: int) -> int:
        if coarse == 1:
            raise ValueError("coarse must be 0, or at least 2 vectors that one stands for, got 1")
        return coarse


class Recipe(_Stage):
    """The stages, `multi` None where no multi-vectors are kept, `pages` None where no page images are. `hashes()` tells what a
    change reaches."""

    load: LoadStage
    chunk: ChunkStage
    encode: EncodeStage
    store: StoreStage
    multi: MultiStage | None = None
    pages: PagesStage | None = None

    def hashes(self) -> dict[str, str]:
        """sha256 per stage, each over the stage and all before it: equal hashes mean nothing to redo up to there.

        Fields that came later are left out while they say what was so before, and change no hash of an index that is there.
        """
        result, running = {}, hashlib.sha256()
        for stage in STAGES:
            if (settings := getattr(self, stage)) is None:  # no multi-vectors, no pages: stages that came later
                continue
            told = {name: value for name, value in settings.model_dump().items() if name not in LATER or LATER[name] != value}
            running.update(json.dumps(told, sort_keys=True).encode() + b"\n")
            result[stage] = running.hexdigest()
        return result

    @property
    def hash(self) -> str:
        return self.hashes()["store"]

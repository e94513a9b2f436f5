"""A hit as JSON: one model, from which the command line, HTTP, MCP and the frameworks' metadata are made.

The values come from the index and are not validated again: metadata may hold whatever a loader put there, lone surrogates and
integers beyond 64 bits included.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, Field

from ragkit.core.types import Citation, CitedBox, Hit, Json, Reason
from ragkit.search.cite import without_hidden


class BoxFields(BaseModel):
    """A box on a page: x0, y0, x1, y1 from the top left."""

    page: int
    points: list[float]
    relative: list[float] = Field(description="in fractions of the page")

    @classmethod
    def of(cls, box: CitedBox) -> BoxFields:
        return cls.model_construct(
            page=box.page, points=[round(v, 2) for v in box.box], relative=[round(v, 5) for v in box.relative]
        )


class CitationFields(BaseModel):
    """Where a passage stands: its source, pages, characters and boxes."""

    text: str
    source: str
    pages: list[int]
    span: list[int]
    boxes: list[BoxFields]

    @classmethod
    def of(cls, citation: Citation) -> CitationFields:
        return cls.model_construct(
            text=str(citation),
            source=citation.source,
            pages=list(citation.pages),
            span=[citation.span.start, citation.span.end],
            boxes=[BoxFields.of(box) for box in citation.boxes],
        )


class ReasonFields(BaseModel):
    """What one space of the index gave to a hit."""

    space: str
    rank: int
    score: float
    key: int | None = Field(None, description="the page's, where a passage was found through its page's picture")
    share: float = Field(0.0, description="what this adds to the hit's score, before reranking")
    boxes: list[BoxFields] = Field(default_factory=list, description="where on the page its picture was found, by MaxSim")

    @classmethod
    def of(cls, reason: Reason) -> ReasonFields:
        return cls.model_construct(
            space=str(reason.space),
            rank=reason.rank,
            score=reason.score,
            key=reason.key,
            share=reason.share,
            boxes=[BoxFields.of(box) for box in reason.boxes],
        )


class HitFields(BaseModel):
    """A hit. Text that its document hides is counted in `meta` and left out: whoever reads JSON may be a model."""

    rank: int
    score: float
    scale: str
    key: int
    kind: str
    text: str
    document_id: str
    title: str
    headings: list[str]
    citation: CitationFields
    meta: Json
    via: list[ReasonFields]

    @classmethod
    def of(cls, hit: Hit) -> HitFields:
        return cls.model_construct(
            rank=hit.rank,
            score=hit.score,
            scale=hit.scale,
            key=hit.key,
            kind=hit.kind,
            text=hit.text,
            document_id=hit.document_id,
            title=hit.title,
            headings=list(hit.headings),
            citation=CitationFields.of(hit.citation),
            meta=without_hidden(hit.meta),
            via=[ReasonFields.of(reason) for reason in hit.via],
        )


def hit_fields(hit: Hit) -> Json:
    """Return a hit as a JSON object."""
    return HitFields.of(hit).model_dump()


def citation_fields(citation: Citation) -> Json:
    """Return a citation as a JSON object."""
    return CitationFields.of(citation).model_dump()


def box_fields(boxes: Iterable[CitedBox]) -> list[Json]:
    """Return boxes as JSON objects."""
    return [BoxFields.of(box).model_dump() for box in boxes]

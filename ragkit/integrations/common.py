"""What the adapters share: opening, ids of passages, citations as metadata, reports as errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragkit.core.errors import RagkitError
from ragkit.core.types import AddReport, Citation, Floats, Hit, Json, Span
from ragkit.encode import load_encoder
from ragkit.encode.contract import Encoder
from ragkit.index.index import Index
from ragkit.search.cite import cite_page
from ragkit.search.hit_json import HitFields, box_fields
from ragkit.search.lookup import StoredDocument

CITATION = "citation"  # the key under which evidence travels in metadata
_PAGE = re.compile(r"(?P<document>.+)#page=(?P<number>\d+)", re.DOTALL)
_PASSAGE = re.compile(r"(?P<document>.+)#(?P<start>\d+)-(?P<end>\d+)", re.DOTALL)


def opened(index: Index | str | Path, **settings: Any) -> Index:
    """The index itself, or the one in that folder. Settings are those of `Index.open`; an open index takes none."""
    if not isinstance(index, Index):
        return Index.open(index, **settings)
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise ValueError(f"{index!r} is open already: {', '.join(given)} cannot be set any more")
    return index


def check_added(report: AddReport) -> None:
    """RagkitError that names the documents that failed; the others were added."""
    if report.failed:
        raise RagkitError(f"{report}. The others were added.")


def passage_id(hit: Hit) -> str:
    """The document's id where it is a single unit; else with the passage's span, "report.pdf#120-480", or, of a page found by
    its picture, with its number, "report.pdf#page=3"."""
    if hit.kind == "page" and not hit.whole:
        return f"{hit.document_id}#page={hit.pages[0]}"
    return hit.document_id if hit.whole else f"{hit.document_id}#{hit.span.start}-{hit.span.end}"


def split_passage_id(name: str) -> tuple[str, Span] | None:
    """("report.pdf", Span(120, 480)) of "report.pdf#120-480"; None where it is no passage's id."""
    match = _PASSAGE.fullmatch(name)
    if match is None or int(match["start"]) > int(match["end"]):
        return None
    return match["document"], Span(int(match["start"]), int(match["end"]))


def split_page_id(name: str) -> tuple[str, int] | None:
    """("report.pdf", 3) of "report.pdf#page=3"; None where it is no page's id."""
    match = _PAGE.fullmatch(name)
    return None if match is None else (match["document"], int(match["number"]))


def evidence(hit: Hit) -> Json:
    """Return where a hit stands and why it was found, as a JSON object: citation, title, headings, kind, key, score, scale, the
    rank in each space, and where on the page its picture was found."""
    return _evidence(hit, HitFields.of(hit))


def metadata(hit: Hit) -> Json:
    """Return the document's metadata, with the evidence under "citation". Text that its pages hide is counted, and left out."""
    fields = HitFields.of(hit)
    return {**fields.meta, CITATION: _evidence(hit, fields)}


def _evidence(hit: Hit, fields: HitFields) -> Json:
    return {
        **fields.citation.model_dump(),
        **fields.model_dump(include={"title", "headings", "kind", "key", "score", "scale"}),
        "found_by": {reason.space: reason.rank for reason in fields.via},
        "seen": box_fields(hit.image_boxes),
    }


def needs_citation(hit: Hit) -> bool:
    """Whether a citation says more than the id does: not of a short record that is its own passage."""
    return not hit.whole or bool(hit.pages)


def by_ids(index: Index, ids: Iterable[str]) -> dict[str, StoredDocument]:
    """The documents of those sources or ids that there are."""
    wanted = frozenset(ids)
    if not wanted:
        return {}
    among = {"field": "id", "operator": lambda value, target: value in target, "value": wanted}
    return {one.row.source: one for one in index.stored(among)}


def passages_by_ids(index: Index, ids: Sequence[str]) -> dict[str, tuple[StoredDocument, str, Citation | None]]:
    """Per id that there is: its document, its text, and its citation where it is the id of a passage."""
    found = by_ids(index, ids)
    passages = {name: split for name in ids if name not in found and (split := split_passage_id(name)) is not None}
    pages = {name: numbered for name in ids if name not in found and (numbered := split_page_id(name)) is not None}
    parents = by_ids(index, {document for document, _ in (*passages.values(), *pages.values())})
    result: dict[str, tuple[StoredDocument, str, Citation | None]] = {name: (one, one.text, None) for name, one in found.items()}
    for name, (document, span) in passages.items():
        one = parents.get(document)
        if one is not None and span.end <= len(one.text):
            result[name] = (one, span.of(one.text), index.cite(one.row, span))
    for name, (document, number) in pages.items():
        one = parents.get(document)
        page = None if one is None else next((page for page in index.pages(one.row) if page.number == number), None)
        if one is not None and page is not None:
            cited = cite_page(one.row.source, page.span, number, (page.width, page.height))
            result[name] = (one, page.span.of(one.text), cited)
    return result


def delete_by_ids(index: Index, ids: Iterable[str]) -> list[str]:
    """Delete the documents of those ids that there are, in one commit; returns them. ValueError for the id of a passage."""
    ids = list(dict.fromkeys(ids))
    found = by_ids(index, ids)
    for name in ids:
        part = None if name in found else split_passage_id(name) or split_page_id(name)
        if part is not None and by_ids(index, [part[0]]):
            raise ValueError(f"{name!r} is a passage of {part[0]!r}, and cannot be deleted by itself: delete the document")
    gone = [name for name in ids if name in found]
    if gone:
        wanted = frozenset(gone)
        index.delete(filters={"field": "id", "operator": lambda value, target: value in target, "value": wanted})
    return gone


def encoder_of(model: Encoder | Index | str | Path | None, **settings: Any) -> Encoder:
    """The encoder itself, an index's own, or the one of that name."""
    if isinstance(model, Index):
        return model.encoder
    if model is None or isinstance(model, (str, Path)):
        return load_encoder(model, **settings)
    return model


def dense(encoder: Encoder, inputs: Sequence[Any], *, role: str, **options: Any) -> Floats:
    """Dense vectors (n, d) in the role "query" or "document". ValueError for a model that has none."""
    encode = encoder.encode_query if role == "query" else encoder.encode_document
    rows = encode(inputs, **options).dense
    if rows is None:
        raise ValueError(f"{encoder.card.name} returns {', '.join(encoder.card.outputs)} only, and no dense vectors")
    return rows


def images(encoder: Encoder, sources: Sequence[Any]) -> list[Any]:
    """PIL images of paths, bytes, file objects or images. ValueError where the model does not see."""
    if "image" not in encoder.card.modalities:
        raise ValueError(f"{encoder.card.name} does not see images: it takes {', '.join(encoder.card.modalities) or 'nothing'}")
    from io import BytesIO

    from PIL import Image

    opened: list[Any] = []
    for source in sources:
        if isinstance(source, Image.Image):
            opened.append(source)
            continue
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            opened.append(image.convert("RGB"))
    return opened


def merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Later settings over earlier ones; None means not given."""
    return {name: value for one in options for name, value in one.items() if value is not None}

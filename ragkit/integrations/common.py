"""What the adapters share: opening an index, ids of passages, citations as metadata, reports as errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypedDict, Unpack

from ragkit.core.errors import RagkitError
from ragkit.core.types import AddReport, Citation, Floats, Hit, Json, Span
from ragkit.encode import load_encoder
from ragkit.encode.contract import Encoder, EncoderCard, Item
from ragkit.index.index import Index
from ragkit.recipe.settings import SettingsKeywords
from ragkit.search.cite import cite_page
from ragkit.search.hit_json import HitFields, box_fields
from ragkit.search.lookup import StoredDocument

if TYPE_CHECKING:
    from PIL.Image import Image

CITATION = "citation"  # the key of the evidence in metadata
Keywords = Mapping[str, Any]  # keywords of `Index.search`
ImageSource: TypeAlias = "Image | bytes | str | Path | BinaryIO"
_PAGE = re.compile(r"(?P<document>.+)#page=(?P<number>\d+)", re.DOTALL)
_PASSAGE = re.compile(r"(?P<document>.+)#(?P<start>\d+)-(?P<end>\d+)", re.DOTALL)


def open_index(index: Index | str | Path, **settings: Unpack[SettingsKeywords]) -> Index:
    """Return an open index as it is, or open the one in a folder. ValueError for settings of an index that is open already."""
    if not isinstance(index, Index):
        return Index.open(index, **settings)
    chosen = [name for name, value in settings.items() if value is not None]
    if chosen:
        raise ValueError(f"{index!r} is open already: {', '.join(chosen)} cannot be set any more")
    return index


def check_added(report: AddReport) -> None:
    """RagkitError with the names of the documents that failed; the others were added."""
    if report.failed:
        raise RagkitError(f"{report}. The others were added.")


def passage_id(hit: Hit) -> str:
    """Return the document's id if it is a single unit; else the id with the passage's span, "report.pdf#120-480", or, for a page
    found by its image, with the page's number, "report.pdf#page=3"."""
    if hit.kind == "page" and not hit.whole:
        return f"{hit.document_id}#page={hit.pages[0]}"
    return hit.document_id if hit.whole else f"{hit.document_id}#{hit.span.start}-{hit.span.end}"


def split_passage_id(name: str) -> tuple[str, Span] | None:
    """Return ("report.pdf", Span(120, 480)) for "report.pdf#120-480"; None if it is not a passage's id."""
    match = _PASSAGE.fullmatch(name)
    if match is None or int(match["start"]) > int(match["end"]):
        return None
    return match["document"], Span(int(match["start"]), int(match["end"]))


def split_page_id(name: str) -> tuple[str, int] | None:
    """Return ("report.pdf", 3) for "report.pdf#page=3"; None if it is not a page's id."""
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
    """Return whether a citation says more than the id does: not for a record without pages that is a single passage."""
    return not hit.whole or bool(hit.pages)


def among(field: str, values: Iterable[str]) -> Json:
    """Return the filter for documents whose field has one of these values, for any number of values."""
    return {"field": field, "operator": lambda value, target: value in target, "value": frozenset(values)}


def by_ids(index: Index, ids: Iterable[str]) -> dict[str, StoredDocument]:
    """Return the documents of those sources or ids, by id; ids that are not there are left out."""
    names = frozenset(ids)
    return {stored.row.source: stored for stored in index.stored(among("id", names))} if names else {}


@dataclass(frozen=True, slots=True, eq=False)
class StoredPassage:
    """A document, or a passage or page of it with its citation: what an id names."""

    document: StoredDocument
    text: str
    citation: Citation | None = None


def passages_by_ids(index: Index, ids: Sequence[str]) -> dict[str, StoredPassage]:
    """Return what the ids name, by id: documents, passages and pages; ids that are not there are left out."""
    documents = by_ids(index, ids)
    others = [name for name in ids if name not in documents]
    parents = by_ids(index, {parent for name in others if (parent := _parent(name)) is not None})
    passages = {name: StoredPassage(stored, stored.text) for name, stored in documents.items()}
    for name in others:
        part = _part(index, parents, name)
        if part is not None:
            passages[name] = part
    return passages


def _part(index: Index, parents: Mapping[str, StoredDocument], name: str) -> StoredPassage | None:
    """Return the passage or page that an id names in one of the documents; None if there is none."""
    passage, page = split_passage_id(name), split_page_id(name)
    if page is not None:
        return _page(index, parents.get(page[0]), page[1])
    return None if passage is None else _passage(index, parents.get(passage[0]), passage[1])


def _passage(index: Index, document: StoredDocument | None, span: Span) -> StoredPassage | None:
    """Return the passage; None without the document, or beyond its end."""
    if document is None or span.end > len(document.text):
        return None
    return StoredPassage(document, span.of(document.text), index.cite(document.row, span))


def _page(index: Index, document: StoredDocument | None, number: int) -> StoredPassage | None:
    """Return the page; None without the document or such a page."""
    if document is None:
        return None
    for page in index.pages(document.row):
        if page.number == number:
            citation = cite_page(document.row.source, page.span, number, (page.width, page.height))
            return StoredPassage(document, page.span.of(document.text), citation)
    return None


def _parent(name: str) -> str | None:
    """Return the document's id in the id of a passage or a page; None if it is neither."""
    split = split_passage_id(name) or split_page_id(name)
    return None if split is None else split[0]


def delete_by_ids(index: Index, ids: Iterable[str]) -> list[str]:
    """Delete the documents of those ids in one commit; return the ids that were there. ValueError for the id of a passage."""
    ids = list(dict.fromkeys(ids))
    documents = by_ids(index, ids)
    for name in ids:
        parent = None if name in documents else _parent(name)
        if parent is not None and by_ids(index, [parent]):
            raise ValueError(f"{name!r} is a passage of {parent!r}, and cannot be deleted by itself: delete the document")
    deleted = [name for name in ids if name in documents]
    if deleted:
        index.delete(filters=among("id", deleted))
    return deleted


class EncodeOptions(TypedDict):
    """Keywords of an encoder's methods."""

    task: str | None
    truncate_dim: int | None
    truncate: bool


class Embedder:
    """An encoder with the options of a call, for the frameworks' embedding classes.

    model: as in `load_encoder`, an encoder, or an Index: then its model, task and dims. A text beyond the model's limit is
    InputTooLong, unless truncate=True.
    """

    def __init__(
        self,
        model: Encoder | Index | str | Path | None = None,
        *,
        task: str | None = None,
        dims: int | None = None,
        truncate: bool = False,
        device: str | None = None,
    ) -> None:
        self.encoder = encoder_of(model, device=device)
        if isinstance(model, Index):
            task, dims = task or model.recipe.encode.task, dims or model.recipe.encode.dims
        self._options: EncodeOptions = {"task": task, "truncate_dim": dims, "truncate": truncate}

    @property
    def card(self) -> EncoderCard:
        return self.encoder.card

    def documents(self, inputs: Sequence[Item]) -> list[list[float]]:
        """Return one unit vector per text or image, in the document role."""
        rows: list[list[float]] = dense(self.encoder, inputs, role="document", options=self._options).tolist()
        return rows

    def query(self, text: str) -> list[float]:
        """Return a unit vector in the query role."""
        row: list[float] = dense(self.encoder, [text], role="query", options=self._options)[0].tolist()
        return row

    def images(self, sources: Sequence[ImageSource]) -> list[list[float]]:
        """Return one unit vector per image, in the document role. ValueError if the model does not see."""
        return self.documents(images(self.encoder, sources))


def encoder_of(model: Encoder | Index | str | Path | None, *, device: str | None = None) -> Encoder:
    """Return an encoder as it is, an index's own, or load the one of that name."""
    if isinstance(model, Index):
        return model.encoder
    if model is None or isinstance(model, (str, Path)):
        return load_encoder(model, device=device)
    return model


def dense(encoder: Encoder, inputs: Sequence[Item], *, role: str, options: EncodeOptions) -> Floats:
    """Return dense vectors (n, d) in the role "query" or "document". ValueError for a model that has none."""
    encode = encoder.encode_query if role == "query" else encoder.encode_document
    rows = encode(inputs, **options).dense
    if rows is None:
        raise ValueError(f"{encoder.card.name} returns {', '.join(encoder.card.outputs)} only, and no dense vectors")
    return rows


def images(encoder: Encoder, sources: Sequence[ImageSource]) -> list[Image]:
    """Return PIL images for paths, bytes, file objects or images. ValueError if the model does not see."""
    if "image" not in encoder.card.modalities:
        raise ValueError(f"{encoder.card.name} does not see images: it takes {', '.join(encoder.card.modalities) or 'nothing'}")
    from io import BytesIO

    from PIL import Image as Images

    opened: list[Image] = []
    for source in sources:
        if isinstance(source, Images.Image):
            opened.append(source)
            continue
        with Images.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            opened.append(image.convert("RGB"))
    return opened


def merged(*options: Keywords) -> dict[str, Any]:
    """Return the options together, later ones over earlier ones, without those that are None."""
    return {name: value for each in options for name, value in each.items() if value is not None}

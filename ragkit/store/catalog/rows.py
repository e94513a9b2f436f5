"""Rows become values, and values rows: here and nowhere else. No I/O."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import RowMapping

from ragkit.core.space import Space
from ragkit.core.types import Block, Box, Document, Page, Patches, Span, Words
from ragkit.store.catalog import schema as s
from ragkit.store.local.files import FileRecord
from ragkit.store.values import PAGE, VECTOR, DocumentRow, Failure, NewDocument, SegmentRow, UnitRow

Row = dict[str, Any]  # a row to insert, by column

PIECE = 1 << 14  # characters of text per row: a hit inflates one or two pieces (about 0.1 ms), whatever the document's length


def document_of(row: RowMapping) -> DocumentRow:
    """Return a document version, its row checked."""
    fields = {name: s.checked(s.documents, row)[name] for name in DocumentRow.__slots__}
    return DocumentRow(**{**fields, "meta": json.loads(row["meta"])})


def document_row(new: NewDocument, *, recipe_hash: str, commit: int) -> Row:
    """Return the row of a new document version. One that is not complete has no recipe hash, and so is made anew."""
    document = new.document
    return {
        "id": new.id,
        **asdict(new.origin),
        "recipe_hash": recipe_hash if new.complete else "",
        "title": document.title,
        "mime": document.mime,
        "meta": json.dumps(dict(document.meta), ensure_ascii=False, sort_keys=True),
        "characters": len(document.text),
        "units": len(new.units),
        "added": commit,
    }


def text_rows(document: int, text: str) -> list[Row]:
    """Return the rows of a document's text, in pieces of PIECE characters."""
    starts = range(0, len(text), PIECE)
    return [{"document": document, "start": start, "body": _deflate(text[start : start + PIECE].encode())} for start in starts]


def block_rows(document: int, content: Document) -> list[Row]:
    """Return the one row of a document's structure, or none where its loader saw none."""
    structure = [[block.kind, block.span.start, block.span.end, block.level] for block in content.blocks]
    return [{"document": document, "body": _deflate(json.dumps(structure).encode())}] if structure else []


def blocks_of(row: RowMapping) -> tuple[Block, ...]:
    """Return a document's structure, its row checked."""
    structure = json.loads(zlib.decompress(s.checked(s.blocks, row)["body"]))
    return tuple(Block(kind, Span(start, end), level) for kind, start, end, level in structure)


def page_row(document: int, page: Page) -> Row:
    """Return the row of a page, its words packed."""
    spans = (page.words.spans - page.span.start).astype("<i4")
    return {
        "document": document,
        "number": page.number,
        "label": page.label,
        "width": float(page.width),
        "height": float(page.height),
        "rotation": page.rotation,
        "start": page.span.start,
        "end": page.span.end,
        "words": _deflate(spans.tobytes() + page.words.boxes.astype("<f4").tobytes()),
    }


def page_of(row: RowMapping) -> Page:
    """Return a page, its row checked."""
    body = zlib.decompress(s.checked(s.pages, row)["words"])
    count = len(body) // 24  # two int32 and four float32 a word
    spans = np.frombuffer(body, dtype="<i4", count=2 * count).reshape(count, 2).astype(np.int64) + row["start"]
    boxes = np.frombuffer(body, dtype="<f4", offset=8 * count).reshape(count, 4).astype(np.float32)
    span = Span(row["start"], row["end"])
    return Page(row["number"], row["width"], row["height"], span, Words(spans, boxes), row["label"], row["rotation"])


def unit_rows(new: NewDocument) -> list[Row]:
    """Return the rows of a document's chunks and pages; vectors under a caller's own key have none."""
    return [
        {
            **{name: getattr(unit, name) for name in ("key", "document", "kind")},
            "start": unit.span.start,
            "end": unit.span.end,
            "headings": json.dumps(unit.headings, ensure_ascii=False),
        }
        for unit in new.units
        if unit.kind != VECTOR
    ]


def page_unit_rows(new: NewDocument) -> list[Row]:
    """Return the rows that pages have beside those in `units`."""
    return [
        {
            "key": unit.key,
            "document": unit.document,
            "number": unit.page,
            "patches": None if unit.patches is None else pack_patches(unit.patches),
        }
        for unit in new.units
        if unit.kind == PAGE
    ]


def unit_of(row: RowMapping, page_units: Mapping[int, RowMapping]) -> UnitRow:
    """Return a unit; `page_units` are the rows of page images by key, all checked."""
    page = page_units.get(row["key"])
    return UnitRow(
        row["key"],
        row["document"],
        row["kind"],
        Span(row["start"], row["end"]),
        tuple(json.loads(row["headings"])),
        None if page is None else page["number"],
        None if page is None or page["patches"] is None else unpack_patches(page["patches"]),
    )


def pack_patches(patches: Patches) -> bytes:
    """Return zlib of: rows and columns as two int32, the region x0, y0, x1, y1 as four float64, then (rows, columns) int32
    tokens."""
    head = struct.pack("<2i4d", *patches.tokens.shape, *patches.region)
    return _deflate(head + patches.tokens.astype("<i4").tobytes())


def unpack_patches(body: bytes) -> Patches:
    """Undo `pack_patches`."""
    plain = zlib.decompress(body)
    rows, columns, *region = struct.unpack_from("<2i4d", plain)
    tokens = np.frombuffer(plain, dtype="<i4", offset=struct.calcsize("<2i4d")).reshape(rows, columns)
    return Patches(Box(*region), tokens.astype(np.int64))


def failure_of(row: RowMapping) -> Failure:
    """Return a failure, its row checked."""
    s.checked(s.failures, row)
    return Failure(row["identity"], row["source"], row["content_hash"], row["reason"])


def segment_of(row: RowMapping) -> SegmentRow:
    """Return a segment; its row was checked."""
    return SegmentRow(row["id"], row["rows"], row["bytes"], tuple(map(Space, json.loads(row["spaces"]))))


def file_of(row: RowMapping) -> FileRecord:
    """Return the record of a file, its row checked."""
    s.checked(s.files, row)
    return FileRecord(row["name"], row["size"], row["block"], row["sums"])


def _deflate(body: bytes) -> bytes:
    return zlib.compress(body, 3)

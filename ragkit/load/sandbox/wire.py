"""What parent and child say to each other: frames of a JSON header and raw bytes, never pickles.

A frame is: magic `RKF1`, header length (uint32), payload length (uint64), little-endian; the header, UTF-8 JSON; the
payload. A Document's payload is its text in UTF-8 and six arrays, back to back, in the order and dtypes of `_ARRAYS`; a
picture's is its pixels, row by row, three bytes each: a pipe carries them in less time than any compression takes.

The parent trusts nothing a child says: lengths are checked against the limits before anything is allocated, arrays
against the dtypes and shapes expected, and the Document rebuilt against every law of `ragkit.core.types`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ragkit.core.errors import EncryptedDocument, LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Array, Block, Document, Json, Page, Span, Words
from ragkit.load.limits import Limits
from ragkit.load.records import BLOCK_KINDS, check, record
from ragkit.load.render import Pixels, RenderedPage, WantedPage

Header = Json  # "kind" says what the frame is
Frame = list[bytes | memoryview]  # its pieces, to be written one after the other

PREFIX = struct.Struct("<4sIQ")
MAGIC = b"RKF1"
_HEADER = 64 * 1024 * 1024  # bytes; meta and page labels are all that is in it
_ERRORS: Mapping[str, type[LoadError]] = {
    kind.__name__: kind for kind in (LoadError, EncryptedDocument, LimitExceeded, UnsupportedFormat)
}
_REASON = 2000  # characters of an error's message

# name, dtype, columns (0: flat); the lengths are counts named in the header
_ARRAYS = (
    ("page_sizes", np.dtype("<f8"), 2, "pages"),
    ("page_spans", np.dtype("<i8"), 2, "pages"),
    ("page_words", np.dtype("<i8"), 2, "pages"),  # number of words; rotation
    ("word_spans", np.dtype("<i8"), 2, "words"),
    ("word_boxes", np.dtype("<f4"), 4, "words"),
    ("blocks", np.dtype("<i8"), 4, "blocks"),  # kind's position in BLOCK_KINDS, start, end, level
)


class BrokenFrame(Exception):
    """A frame that no child of ours would send."""


def frame(header: Header, payload: Sequence[bytes | memoryview] = ()) -> Frame:
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return [PREFIX.pack(MAGIC, len(head), sum(len(piece) for piece in payload)) + head, *payload]


def sizes(prefix: bytes, *, limits: Limits) -> tuple[int, int]:
    """Return the lengths of a frame's header and payload. Raises BrokenFrame, or LimitExceeded before anything is allocated."""
    magic, head, payload = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise BrokenFrame(f"the parser's answer does not begin a frame: {magic!r}")
    if head > _HEADER or payload > limits.output_bytes:
        most = min(_HEADER if head > _HEADER else limits.output_bytes, limits.output_bytes)
        raise LimitExceeded(f"the parser's answer of {head + payload} bytes is over {most} (Limits.output_bytes)")
    return head, payload


def header_of(data: bytes | bytearray) -> Header:
    """Return the header of its bytes. Raises BrokenFrame."""
    try:
        header = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise BrokenFrame(f"the parser's answer has a broken header: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise BrokenFrame("the parser's answer has no kind")
    return header


def pack_document(document: Document) -> Frame:
    """Return a Document as a frame."""
    pages, text = document.pages, document.text.encode()
    arrays = _page_arrays(pages) | {"blocks": _block_array(document.blocks)}
    header = {
        "kind": "document",
        "id": document.id,
        "title": document.title,
        "mime": document.mime,
        "meta": document.meta,
        "text": len(text),
        "pages": len(pages),
        "numbers": [page.number for page in pages],
        "labels": [page.label for page in pages],
        "words": sum(len(page.words) for page in pages),
        "blocks": len(document.blocks),
    }
    raw = [np.ascontiguousarray(arrays[name], dtype=dtype).tobytes() for name, dtype, _, _ in _ARRAYS]
    return frame(header, [text, *raw])


def _page_arrays(pages: Sequence[Page]) -> dict[str, Array]:
    words = [page.words for page in pages]
    return {
        "page_sizes": np.array([(page.width, page.height) for page in pages]),
        "page_spans": np.array([(page.span.start, page.span.end) for page in pages]),
        "page_words": np.array([(len(page.words), page.rotation) for page in pages]),
        "word_spans": np.concatenate([each.spans for each in words]) if words else np.empty((0, 2)),
        "word_boxes": np.concatenate([each.boxes for each in words]) if words else np.empty((0, 4)),
    }


def _block_array(blocks: Sequence[Block]) -> Array:
    return np.array([(BLOCK_KINDS.index(block.kind), block.span.start, block.span.end, block.level) for block in blocks])


def unpack_document(header: Header, payload: memoryview, *, limits: Limits) -> Document:
    """Return the Document of a frame. Raises BrokenFrame where it breaks a law, LimitExceeded where it is over a limit."""
    counts = {name: _count(header, name) for name in ("text", "pages", "words", "blocks")}
    if counts["pages"] > limits.pages:
        raise LimitExceeded(f"{counts['pages']} pages, more than the limit of {limits.pages} (Limits.pages)")
    expected = counts["text"] + sum(dtype.itemsize * columns * counts[count] for _, dtype, columns, count in _ARRAYS)
    if expected != len(payload):
        raise BrokenFrame(f"the parser announced {expected} bytes and sent {len(payload)}")
    try:
        text = str(payload[: counts["text"]], "utf-8")
    except UnicodeDecodeError as error:
        raise BrokenFrame(f"the parser's text is not UTF-8: {error}") from None
    if len(text) > limits.characters:
        raise LimitExceeded(f"{len(text)} characters, more than the limit of {limits.characters} (Limits.characters)")
    at, arrays = counts["text"], {}
    for name, dtype, columns, count in _ARRAYS:
        size = dtype.itemsize * columns * counts[count]
        # Copied out of the payload: aligned, native, and not holding the text's bytes alive.
        arrays[name] = np.frombuffer(payload[at : at + size], dtype).reshape(-1, columns).astype(dtype.newbyteorder("="))
        at += size
    try:
        plain = record({name: header.get(name) for name in ("id", "title", "mime", "meta")} | {"text": text})
        return check(replace(plain, pages=_pages(header, arrays), blocks=_blocks(arrays["blocks"])))
    except (ValueError, TypeError) as error:
        raise BrokenFrame(f"the parser's answer breaks a law: {error}") from None


def _count(header: Header, name: str) -> int:
    value = header.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise BrokenFrame(f"the parser's answer has no count of {name}")
    return value


def _pages(header: Header, arrays: Mapping[str, Array]) -> tuple[Page, ...]:
    """Return the pages of a frame. ValueError where they break a law."""
    page_sizes, spans, words = (arrays[name].tolist() for name in ("page_sizes", "page_spans", "page_words"))
    numbers, labels = (_list_of(header, name, len(spans)) for name in ("numbers", "labels"))
    if any(count < 0 for count, _ in words) or sum(count for count, _ in words) != len(arrays["word_spans"]):
        raise ValueError("the pages' words do not add up")
    pages, at = [], 0
    rows = zip(numbers, labels, page_sizes, spans, words, strict=True)
    for number, label, (width, height), (start, end), (count, rotation) in rows:
        if not isinstance(number, int) or not isinstance(label, str | None) or rotation not in (0, 90, 180, 270):
            raise ValueError(f"page {number!r} with label {label!r}, rotation {rotation!r}")
        # Views: a page's words share their document's two arrays.
        own = Words(arrays["word_spans"][at : at + count], arrays["word_boxes"][at : at + count])
        pages.append(Page(number, width, height, Span(start, end), own, label, rotation))
        at += count
    return tuple(pages)


def _list_of(header: Header, name: str, count: int) -> list[object]:
    values = header.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} of {count} pages are not as many")
    return values


def _blocks(rows: Array) -> tuple[Block, ...]:
    if len(rows) and (rows[:, 0].min() < 0 or rows[:, 0].max() >= len(BLOCK_KINDS)):
        raise ValueError("a block of unknown kind")
    return tuple(Block(BLOCK_KINDS[kind], Span(start, end), level) for kind, start, end, level in rows.tolist())


def pack_picture(page: int, pixels: Pixels, *, blank: bool) -> Frame:
    """Return a rendered page, (height, width, 3), as a frame."""
    height, width = pixels.shape[:2]
    header = {"kind": "picture", "page": page, "width": width, "height": height, "blank": blank}
    return frame(header, [np.ascontiguousarray(pixels).data.cast("B")])


def unpack_picture(header: Header, payload: memoryview, wanted: WantedPage) -> RenderedPage:
    """Return the picture of a frame. Raises BrokenFrame where it is not of the page and the size wanted."""
    from PIL import Image

    stated = tuple(header.get(name) for name in ("page", "width", "height"))
    if stated != (wanted.number, wanted.width, wanted.height) or len(payload) != 3 * wanted.width * wanted.height:
        raise BrokenFrame(f"the parser sent no picture of page {wanted.number} of {wanted.width} x {wanted.height} pixels")
    image = Image.frombytes("RGB", (wanted.width, wanted.height), payload)
    return RenderedPage(wanted.number, image, header.get("blank") is True)


def pack_error(error: LoadError, *, kind: str = "error") -> Frame:
    """Return an error as a frame. `kind` is "error" for a document, "undrawn" for a page."""
    return frame({"kind": kind, "type": type(error).__name__, "reason": str(error)[:_REASON]})


def unpack_error(header: Header) -> LoadError:
    """Return a LoadError, or one of its kinds; never anything else, whatever the child says."""
    kind = _ERRORS.get(str(header.get("type")), LoadError)
    return kind(printable(str(header.get("reason")))[:_REASON] or "no reason given")


def printable(text: str) -> str:
    """Return text from a child, fit for a terminal: control characters could move its cursor or recolour it."""
    return "".join(c if c.isprintable() else " " for c in text).strip()

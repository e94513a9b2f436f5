"""Records from Python become Documents; documents and files get their content hashes; the laws of a Document are checked.

What users hand in goes through `record`, and what a child process answers through `check`: both trust nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ragkit.core.types import Array, Document, Floats, Json, Metadata

BLOCK_KINDS = (
    *("heading", "paragraph", "list", "table", "row", "code", "quote", "caption", "header", "footer", "footnote"),
    "annotation",
)
DEEPEST = 1000  # level of a block
_DEPTH = 20  # of nested meta, so that any JSON parser can read it back


def record(value: Metadata | Document, *, vectors: bool = False) -> Document:
    """Return a record as a Document: `text` (required), `id` or `_id`, `title`, `mime`, `meta`, and `vector` where `vectors` are
    taken; all other keys go into meta.

    Ids may be integers. Dates in meta become ISO strings. A field of the wrong type raises TypeError and a value that
    cannot be stored ValueError, both naming the field.
    """
    if isinstance(value, Document):
        checked = replace(
            value,
            meta=_plain_object(value.meta, "meta"),
            id=_identifier(value.id),
            title=_string(value.title, "title"),
            vector=_vector(value.vector),
        )
        return check(checked)
    if not isinstance(value, Mapping):
        raise TypeError(f"a record is a mapping or a Document, got {type(value).__name__}")
    fields = dict(value)
    if "text" not in fields:
        raise ValueError(f'a record needs the field "text", got {_names(fields)}')
    text = _string(fields.pop("text"), "text")
    identifier = _identifier(fields.pop("_id", None) if "id" not in fields else fields.pop("id"))
    title, mime, meta = (fields.pop(name, None) for name in ("title", "mime", "meta"))
    vector = fields.pop("vector", None) if vectors else None
    if not (meta is None or isinstance(meta, Mapping)):
        raise TypeError(f'the field "meta" of a record must be a mapping, got {type(meta).__name__}')
    merged = _plain_object(fields, "") | _plain_object(meta or {}, "meta")
    return Document(
        text=text,
        id=identifier,
        title="" if title is None else _string(title, "title"),
        mime="text/plain" if mime is None else _string(mime, "mime"),
        meta=merged,
        vector=_vector(vector),
    )


def _names(fields: Metadata) -> str:
    return ", ".join(repr(name) for name in list(fields)[:8]) or "an empty mapping"


def _string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f'the field "{field}" of a record must be a string, got {type(value).__name__}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'the field "{field}" of a record holds a lone surrogate at character {error.start}: not valid Unicode'
        ) from None
    return value


def _identifier(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _string(value, "id")


def _vector(value: object) -> Floats | None:
    if value is None:
        return None
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise TypeError(f'the field "vector" of a record must be a row of numbers, got {type(value).__name__}') from None
    if vector.ndim != 1:
        raise ValueError(f'the field "vector" of a record must be one row of numbers, got the shape {vector.shape}')
    return vector


def _plain_object(value: object, field: str) -> Json:
    plain = _plain(value, field, _DEPTH)
    if not isinstance(plain, dict):
        raise TypeError(f'the field "{field}" of a record must be a mapping, got {type(value).__name__}')
    return plain


def _plain(value: object, field: str, depth: int) -> object:
    """Return the value as JSON can hold it."""
    if depth == 0:
        raise ValueError(f'the field "{field}" of a record is nested deeper than {_DEPTH}')
    if isinstance(value, np.generic):
        return _plain(value.item(), field, depth)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _string(value, field)
    if isinstance(value, int | float):
        return _number(value, field)
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{field}.{key}" if field else key, depth - 1) for key, item in _items(value, field)}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_plain(item, f"{field}[{i}]", depth - 1) for i, item in enumerate(items)]
    raise TypeError(f'the field "{field}" of a record must be what JSON can hold, got {type(value).__name__}')


def _number(value: int | float, field: str) -> int | float:
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f'the field "{field}" of a record is an integer beyond 64 bits')
        return int(value)
    if not math.isfinite(value):
        raise ValueError(f'the field "{field}" of a record is {value}, which JSON cannot hold')
    return float(value)


def _items(value: Mapping[object, object], field: str) -> list[tuple[str, object]]:
    """Return the fields of a mapping. Raises where a name is not a string."""
    items = []
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f'the field "{field}" of a record has a key that is not a string: {key!r}')
        items.append((_string(key, field or "the name of a field"), item))
    return items


def check(document: Document) -> Document:
    """Return the document itself, if it keeps the laws of `ragkit.core.types`. ValueError says which is broken, and where."""
    _string(document.text, "text")
    size = len(document.text)
    end = last = 0
    for page in document.pages:
        where, span = f"page {page.number}", page.span
        _law(page.number >= 1, f"{where}: pages count from 1")
        _law(_positive(page.width) and _positive(page.height), f"{where}: size {page.width} x {page.height}")
        if not end <= span.start <= span.end <= size:
            raise ValueError(f"{where}: its span [{span.start}, {span.end}) is out of order or beyond {size}")
        _law(page.number > last, f"{where} comes after page {last}: numbers ascend")
        end, last = span.end, page.number
        _check_words(page.words.spans, page.words.boxes, (span.start, span.end), where)
    start = 0
    for i, block in enumerate(document.blocks):
        span = block.span
        if not (block.kind in BLOCK_KINDS and 0 <= block.level <= DEEPEST):
            raise ValueError(f"block {i}: unknown kind {block.kind!r} or level {block.level}")
        if not start <= span.start <= span.end <= size:
            raise ValueError(f"block {i}: its span [{span.start}, {span.end}) is out of order or beyond {size}")
        start = span.start
    return document


def _check_words(spans: Array, boxes: Array, within: tuple[int, int], where: str) -> None:
    _law(spans.dtype == np.int64 and boxes.dtype == np.float32, f"{where}: words need int64 spans and float32 boxes")
    if not len(spans):
        return
    flat = spans.ravel()
    # One pass: start <= end <= next start <= ... is ascending and disjoint at once.
    _law(bool((flat[1:] >= flat[:-1]).all()), f"{where}: word spans are not ascending and disjoint")
    _law(bool((spans[:, 1] > spans[:, 0]).all()), f"{where}: a word is empty")
    _law(within[0] <= flat[0] and flat[-1] <= within[1], f"{where}: a word lies outside the page's span {within}")
    _law(bool(np.isfinite(boxes).all()), f"{where}: a box is not finite")
    _law(bool((boxes[:, :2] <= boxes[:, 2:]).all()), f"{where}: a box is turned inside out")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _law(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def content_hash(document: Document) -> str:
    """Return the sha256, in hexadecimal, of all but the id: the text, title, meta, mime, vector, blocks, pages and words."""
    head = {
        "title": document.title,
        "mime": document.mime,
        "meta": document.meta,
        "blocks": [[block.kind, block.span.start, block.span.end, block.level] for block in document.blocks],
        "pages": [
            [page.number, page.width, page.height, page.span.start, page.span.end, page.label, page.rotation]
            for page in document.pages
        ],
    }
    parts = [json.dumps(head, sort_keys=True, ensure_ascii=False).encode(), document.text.encode()]
    for page in document.pages:
        parts += [page.words.spans.tobytes(), page.words.boxes.tobytes()]
    if document.vector is not None:
        parts.append(document.vector.astype("<f4").tobytes())
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # so that nothing can move from one part to the next unseen
        digest.update(part)
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """Return the sha256, in hexadecimal, of a file's bytes, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Metadata that the Documents of all loaders have: MIME type, size, date of the file, language, dates in ISO form."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ragkit.core.errors import LimitExceeded
from ragkit.core.types import Document, Json, Metadata
from ragkit.load.formats import Format
from ragkit.load.language import with_language
from ragkit.load.limits import Limits

DATES = ("created", "modified")


def add_common_metadata(
    document: Document, kind: Format, *, size: int, modified: str, limits: Limits
) -> Document | LimitExceeded:
    """Return the Document with `mime`, `size` in bytes, `lang`, `page_labels`, and `modified` unless it has such a date itself;
    LimitExceeded where its text is too long."""
    if len(document.text) > limits.characters:
        return LimitExceeded(f"{len(document.text)} characters, more than the limit of {limits.characters} (Limits.characters)")
    common: Json = {"mime": kind.mime, "size": size} | ({"modified": modified} if modified else {})
    labels = [page.label for page in document.pages if page.label]
    if labels:
        common["page_labels"] = labels
    meta = common | dated(document.meta)
    if not kind.language:
        meta = with_language(meta, document.text)
    return replace(document, mime=kind.mime, meta=meta)


def dated(meta: Metadata) -> Json:
    """Return the meta with dates in ISO form, which filters order; any other date stays as written, under "date"."""
    result = dict(meta)
    for name in DATES:
        if name in result and not (date := iso_date(result[name])):
            result.setdefault("date", result.pop(name))
        elif name in result:
            result[name] = date
    return result


def iso_date(value: object) -> str:
    """Return a date as `datetime.fromisoformat` reads it, in seconds at most; "" for what is not one."""
    if not isinstance(value, str):
        return ""
    text = value.strip()
    if re.fullmatch(r"\d{4}(-\d\d)?", text):
        return text
    text = re.sub(r"(T\d\d:\d\d:\d\d)[.,]\d+", r"\1", text)
    try:
        datetime.fromisoformat(text)
        return text
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return ""


def iso(moment: float) -> str:
    """Return seconds since 1970 as an ISO date; "" where there is no such date."""
    try:
        return datetime.fromtimestamp(moment, tz=UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""

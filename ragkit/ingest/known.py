"""Tell which documents the index holds already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ragkit.load import office
from ragkit.store.values import DocumentRow

GIVEN = "given"  # the metadata field that keeps what the user said of a file, so that a change of it is seen


def lacked_office(row: DocumentRow) -> bool:
    """Whether a document was read without pages since LibreOffice was not installed."""
    unread = row.meta.get("unread")
    return isinstance(unread, list) and any(str(office.missing()) in str(one) for one in unread)


def same_user_fields(meta: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether stored metadata holds what the user says now, no less and no more."""
    return bool(meta.get(GIVEN, {}) == dict(given))

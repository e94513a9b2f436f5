"""Embed the page images of documents."""

from __future__ import annotations

from ragkit.core.types import Document


def textless_pages(document: Document) -> int:
    """How many pages of a PDF or an image have no text, those that could not be read left out."""
    if document.mime != "application/pdf" and not document.mime.startswith("image/"):
        return 0
    unread = document.meta.get("unread")
    empty = sum(1 for page in document.pages if not page.span.length)
    return empty - (len(unread) if isinstance(unread, list) else 0)

"""Report what became of each document."""

from __future__ import annotations

from ragkit.core.types import Document


def load_warnings(document: Document) -> tuple[str, ...]:
    """What a loader kept a document without."""
    unread = document.meta.get("unread")
    found = [str(one) for one in unread] if isinstance(unread, list) else []
    if hidden := document.meta.get("hidden_characters"):
        found.append(f"{hidden} hidden characters were left out")
    return tuple(found)


def printable(text: str) -> str:
    """The text, with what is not valid Unicode (a file name's stray bytes) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()

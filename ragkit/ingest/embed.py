"""Embed the chunks of documents."""

from __future__ import annotations

LATE_DOCUMENTS = 16  # documents late-chunked between two reports of progress
SLICE = 64  # units between two reports of progress

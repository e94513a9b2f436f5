"""PyMuPDF behind the interface of `ragkit.load.pdf`. Its licence is AGPL-3.0 or commercial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ragkit.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.load.pdf import PageWords


class Pdf:
    """An open file. Raises EncryptedDocument, LoadError, or UnsupportedFormat where PyMuPDF is not installed."""

    def __init__(self, path: Path, password: str | None) -> None:
        try:
            import pymupdf
        except ImportError:
            raise UnsupportedFormat(str(MissingExtra.of("pymupdf", "pdf", "reading PDF files"))) from None
        pymupdf.TOOLS.mupdf_display_errors(False)
        pymupdf.TOOLS.mupdf_display_warnings(False)
        self._pymupdf = pymupdf
        # Ligatures are taken apart, so that "ﬁ" is found as "fi".
        self._flags = pymupdf.TEXTFLAGS_WORDS & ~pymupdf.TEXT_PRESERVE_LIGATURES
        if path.stat().st_size == 0:
            raise LoadError("the PDF is empty: 0 bytes")
        try:
            self._document = pymupdf.open(path, filetype="pdf")
        except (RuntimeError, ValueError) as error:
            raise LoadError(f"not a readable PDF: {error}") from None
        if self._document.needs_pass and not self._document.authenticate(password or ""):
            wrong = "the password does not open it" if password else "it needs a password"
            raise EncryptedDocument(f"the PDF is encrypted; {wrong}")

        self._labelled = self._has_labels()

    def _has_labels(self) -> bool:
        try:
            return bool(self._document.get_page_labels())
        except (RuntimeError, ValueError, TypeError, KeyError):
            return False

    def close(self) -> None:
        self._document.close()

    def count(self) -> int:
        return int(self._document.page_count)

    def metadata(self) -> dict[str, str]:
        found = self._document.metadata or {}
        names = {"title": "title", "author": "author", "created": "creationDate", "modified": "modDate"}
        return {ours: found.get(theirs) or "" for ours, theirs in names.items()}

    def page(self, index: int) -> PageWords:
        page = self._load(index)
        try:
            words = self._textpage(page).extractWORDS()
        except RuntimeError as error:
            raise LoadError(f"page {index + 1} cannot be read: {error}") from None
        width, height, rotation, label = page.rect.width, page.rect.height, int(page.rotation), self._label(page)
        if not words:
            return PageWords.blank(width, height, rotation, label)
        x0, y0, x1, y1, texts, blocks, lines, _ = zip(*words, strict=True)
        block, line = np.array(blocks, dtype=np.int64), np.array(lines, dtype=np.int64)
        return PageWords(
            list(texts),
            np.array((x0, y0, x1, y1), dtype=np.float32).T,
            block * (int(line.max()) + 1) + line,
            width,
            height,
            rotation,
            label,
        )

    def _label(self, page: Any) -> str | None:
        try:
            return page.get_label() or None if self._labelled else None
        except (RuntimeError, ValueError, TypeError, KeyError):  # a damaged label tree is no reason to lose the text
            return None

    def _textpage(self, page: Any) -> Any:
        if page.rotation == 0 and page.cropbox == page.mediabox:
            return page.get_textpage(flags=self._flags)
        # Page.get_textpage undoes the rotation and misplaces a crop box larger than the page; a display list is as displayed.
        return self._pymupdf.TextPage(page.get_displaylist(annots=0).get_textpage(self._flags))

    def _load(self, index: int) -> Any:
        try:
            return self._document[index]
        except (RuntimeError, ValueError, IndexError) as error:
            raise LoadError(f"page {index + 1} cannot be read: {error}") from None

    def render(self, index: int, scale: float) -> tuple[int, int, bytes]:
        """Width and height in pixels, and the RGB bytes, row by row."""
        matrix = self._pymupdf.Matrix(scale, scale)
        pixmap = self._load(index).get_pixmap(matrix=matrix, alpha=False, colorspace=self._pymupdf.csRGB)
        return int(pixmap.width), int(pixmap.height), bytes(pixmap.samples)

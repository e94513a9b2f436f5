"""PyMuPDF behind the interface of `ragkit.load.pdf`. Its licence is AGPL-3.0 or commercial."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.load.part import Part
from ragkit.load.pdf import PageWords


class Pdf:
    """An open file. Raises EncryptedDocument, LoadError, or UnsupportedFormat where PyMuPDF is not installed."""

    def __init__(self, path: Path | Part, password: str | None) -> None:
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
            where = {"stream": path.data} if isinstance(path, Part) else {"filename": path}
            self._document = pymupdf.open(**where, filetype="pdf")
        except (RuntimeError, ValueError) as error:
            raise LoadError(f"not a readable PDF: {error}") from None
        if self._document.needs_pass and not self._document.authenticate(password or ""):
            wrong = "the password does not open it" if password else "it needs a password"
            raise EncryptedDocument(f"the PDF is encrypted; {wrong}")

        self._label = self._labels()

    def _labels(self) -> Callable[[int], str | None]:
        """The printed number of a page by its index. Read once: asking each page anew reads all rules each time."""
        try:
            rules = sorted(self._document.get_page_labels(), key=lambda rule: rule["startpage"])
        except (RuntimeError, ValueError, TypeError, KeyError):  # a damaged label tree is no reason to lose the text
            rules = []
        starts = [rule["startpage"] for rule in rules]

        def label(index: int) -> str | None:
            at = bisect_right(starts, index) - 1
            return _printed(rules[at], index) if at >= 0 else None

        return label

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
        rotation = int(page.rotation)
        try:
            words = self._textpage(page, rotation).extractWORDS()
        except RuntimeError as error:
            raise LoadError(f"page {index + 1} cannot be read: {error}") from None
        shown, label = page.rect, self._label(index)
        width, height = shown.width, shown.height
        if not words:
            return PageWords.blank(width, height, rotation, label)
        x0, y0, x1, y1, texts, blocks, lines, _ = zip(*words, strict=True)
        block, line = np.array((blocks, lines), dtype=np.int64)
        return PageWords(
            list(texts),
            np.array((x0, y0, x1, y1), dtype=np.float32).T,
            block * (int(line.max()) + 1) + line,
            width,
            height,
            rotation,
            label,
        )

    def _textpage(self, page: Any, rotation: int) -> Any:
        if rotation == 0:
            return page.get_textpage(flags=self._flags)
        # Page.get_textpage undoes the rotation, and its way back misplaces odd crop boxes; a display list is as displayed.
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


def _printed(rule: Mapping[str, Any], index: int) -> str | None:
    """A page label (ISO 32000-2, 12.4.2): a prefix, and a number in one of five styles."""
    number = index - int(rule["startpage"]) + int(rule.get("firstpagenum") or 1)
    style, prefix = rule.get("style") or "", rule.get("prefix") or ""
    if style == "D":
        written = str(number)
    elif style in ("r", "R"):
        written = _roman(number) if style == "R" else _roman(number).lower()
    elif style in ("a", "A"):  # a to z, aa to zz, aaa to zzz
        written = chr(ord(style) + (number - 1) % 26) * min((number - 1) // 26 + 1, 100)
    else:
        written = ""
    return prefix + written or None


def _roman(number: int) -> str:
    if not 0 < number < 4000:
        return str(number)
    written = ""
    for value, letters in _ROMAN:
        written += letters * (number // value)
        number %= value
    return written


_ROMAN = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC")),
    *((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)

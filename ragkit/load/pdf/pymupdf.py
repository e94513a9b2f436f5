"""PyMuPDF behind the interface of `ragkit.load.pdf.pdf`. Its licence is AGPL-3.0 or commercial."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ragkit.core.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Floats, Ints, Json, Mask
from ragkit.load.builder import numeral
from ragkit.load.member import EmbeddedFile
from ragkit.load.pdf.hidden_text import LIGHT, SMALLEST
from ragkit.load.pdf.outline import Entry
from ragkit.load.pdf.scripts import ALEF_LAM, ALEFS, LAM, cut, has_single, is_plain
from ragkit.load.pdf.text import Annotation, Box, PageWords, Region
from ragkit.load.render import Canvas, Pixels

_BEYOND = 1e9  # points
_ANNOTATIONS = 10_000  # read of a page
_NOWHERE: Sequence[Box] = ()
_Mu = Any  # an object of PyMuPDF, which has no types
_Word = tuple[float, float, float, float, str, int, int, int]  # box, text, number of its block, its line, and of itself
_NARROW = 0.1  # points
# A span of MuPDF's HTML that has no colour, because it is not painted, or one of LIGHT or lighter.
_PALE = re.compile(rb'font-size:[\d.]+pt(?:">|;color:#(?:e[6-9a-f]|f[0-9a-f]){3}\b)')
_HTML_BYTES = 1 << 16  # about a page's worth


class Pdf:
    """An open file. Raises EncryptedDocument, LoadError, or UnsupportedFormat where PyMuPDF is not installed."""

    def __init__(self, path: Path | EmbeddedFile, password: str | None) -> None:
        try:
            import pymupdf
        except ImportError:
            raise UnsupportedFormat(str(MissingExtra.of("pymupdf", "pdf", "reading PDF files"))) from None
        pymupdf.TOOLS.mupdf_display_errors(False)
        pymupdf.TOOLS.mupdf_display_warnings(False)
        self._pymupdf: _Mu = pymupdf
        self._failure = (RuntimeError, ValueError, IndexError, pymupdf.mupdf.FzErrorBase)
        # Ligatures are taken apart, so that "ﬁ" is found as "fi".
        self._flags = pymupdf.TEXTFLAGS_WORDS & ~pymupdf.TEXT_PRESERVE_LIGATURES & ~pymupdf.TEXT_MEDIABOX_CLIP
        self._flags |= pymupdf.TEXT_PRESERVE_IMAGES  # for their places, and when they are drawn
        kinds = (pymupdf.PDF_WIDGET_TYPE_TEXT, pymupdf.PDF_WIDGET_TYPE_COMBOBOX, pymupdf.PDF_WIDGET_TYPE_LISTBOX)
        self._written = frozenset(kinds)
        self._document = self._open(path, password)
        self._label = self._labels()
        self._canvas = Canvas()

    def _open(self, path: Path | EmbeddedFile, password: str | None) -> _Mu:
        """Return the open document. Raises EncryptedDocument and LoadError."""
        if path.stat().st_size == 0:
            raise LoadError("the PDF is empty: 0 bytes")
        try:
            where = {"stream": path.data} if isinstance(path, EmbeddedFile) else {"filename": path}
            document = self._pymupdf.open(**where, filetype="pdf")
            self._count = int(document.page_count)
        except self._failure as error:
            raise LoadError(f"not a readable PDF: {error}") from None
        if not document.is_pdf:  # MuPDF goes by the content
            raise LoadError(f"not a PDF: its content is {(document.metadata or {}).get('format') or 'something else'}")
        if document.needs_pass and not document.authenticate(password or ""):
            wrong = "the password does not open it" if password else "it needs a password"
            raise EncryptedDocument(f"the PDF is encrypted; {wrong}")
        return document

    def _labels(self) -> Callable[[int], str | None]:
        """Return a function from a page's index to its printed number. Reads the rules once: PyMuPDF would for each page."""
        try:
            rules = sorted(self._document.get_page_labels(), key=lambda rule: rule["startpage"])
        except (*self._failure, TypeError, KeyError):  # a damaged label tree is no reason to lose the text
            rules = []
        starts = [rule["startpage"] for rule in rules]

        def label(index: int) -> str | None:
            at = bisect_right(starts, index) - 1
            return _printed(rules[at], index) if at >= 0 else None

        return label

    def close(self) -> None:
        self._document.close()
        self._pymupdf.TOOLS.store_shrink(100)  # fonts and pictures of a closed document would stay, 0.1 MB a page

    def count(self) -> int:
        return self._count

    def metadata(self) -> dict[str, str]:
        properties = self._document.metadata or {}
        names = {"created": "creationDate", "modified": "modDate"}
        names |= {name: name for name in ("title", "author", "subject", "keywords")}
        return {ours: properties.get(theirs) or "" for ours, theirs in names.items()}

    def size(self, index: int) -> tuple[float, float]:
        shown = self._load(index).rect
        return shown.width, shown.height

    def outline(self) -> list[Entry]:
        try:
            return [Entry(level, title, number - 1) for level, title, number, *_ in self._document.get_toc()]
        except (*self._failure, TypeError, KeyError, RecursionError):  # a damaged outline is no reason to lose the text
            return []

    def page(self, index: int) -> PageWords:
        """Return the words of a page. Raises LoadError."""
        page = self._load(index)
        width, height, rotation = page.rect.width, page.rect.height, int(page.rotation)
        try:
            annotations = self._annotations(page)
            text = self._text(self._textpage(page, plain=not (rotation or annotations)))
        except self._failure as error:
            raise LoadError(f"cannot be read: {error}") from None
        label = self._label(index)
        annotations += [Annotation("hidden", word[4], word[:4], "it lies outside the page") for word in text.outside]
        if not text.texts:
            return replace(PageWords.blank(width, height, rotation, label), annotations=tuple(annotations))
        block, line = text.lines.T
        words = PageWords(
            text.texts,
            text.boxes,
            block * (int(line.max()) + 1) + line,
            width,
            height,
            rotation,
            label,
            annotations=tuple(annotations),
            doubtful=text.doubtful,
        )
        return words if text.letters is None else _cut(words, text.letters)

    def _text(self, textpage: _Mu) -> _Text:
        """Return the words that MuPDF finds on a page, and its letters where they are needed."""
        with _Pictures(self._pymupdf, textpage) as pictures:
            words, boxes, outside = self._words(textpage)
            pale = self._pale(textpage) if words else _NOWHERE
            texts = [word[4] for word in words]
            joined = "".join(texts)
            special = not is_plain(joined)
            by_letter = _by_letter(words, texts, joined if special else "")
            shaped = special and ALEF_LAM.search(joined) is not None
            raw: Json = textpage.extractRAWDICT() if by_letter or shaped else {}
        lines = np.array([word[5:7] for word in words], dtype=np.int64).reshape(-1, 2)
        return _Text(
            _with_lam_first(texts, raw) if shaped else texts,
            boxes,
            lines,
            outside,
            doubtful=_doubtful(boxes, lines[:, 0], pale, pictures.boxes),
            letters=raw if by_letter else None,
        )

    def _textpage(self, page: _Mu, *, plain: bool) -> _Mu:
        """Return the text of a page. `plain`: it is not rotated, and has no fields or annotations."""
        if plain:
            return page.get_textpage(flags=self._flags)
        # Page.get_textpage undoes the rotation and misplaces odd crop boxes when it restores it, and it includes the texts of
        # fields. A display list is as displayed, and may leave fields out.
        return self._pymupdf.TextPage(page.get_displaylist(annots=0).get_textpage(self._flags))

    def _words(self, textpage: _Mu) -> tuple[list[_Word], Floats, list[_Word]]:
        """Return the words on the page, cut at its edge, their boxes, (n, 4) float32, and the words wholly outside it."""
        shown = textpage.this.m_internal.mediabox
        x0, y0, x1, y1 = edges = shown.x0, shown.y0, shown.x1, shown.y1
        shown.x0 = shown.y0 = -_BEYOND
        shown.x1 = shown.y1 = _BEYOND
        words = textpage.extractWORDS()
        shown.x0, shown.y0, shown.x1, shown.y1 = edges
        boxes = _boxes(words)
        if not words or ((boxes[:, :2] >= (x0, y0)).all() and (boxes[:, 2:] <= (x1, y1)).all()):
            return words, boxes, []
        outside = [word for word in words if word[2] <= x0 or word[3] <= y0 or word[0] >= x1 or word[1] >= y1]
        words = textpage.extractWORDS()
        return words, _boxes(words), outside

    def _pale(self, textpage: _Mu) -> Sequence[Box]:
        """Return the boxes of text that is painted in white or nearly, or not at all: by a text mode, or fully transparent."""
        if not _PALE.search(self._html(textpage)):  # a fifth of the time of the spans, which few pages need
            return _NOWHERE
        lines = (line for block in textpage.extractDICT()["blocks"] for line in block.get("lines", ()))
        spans = (span for line in lines for span in line["spans"])
        return [span["bbox"] for span in spans if not span["alpha"] or _is_light(span["color"])]

    def _html(self, textpage: _Mu) -> bytes:
        """Return MuPDF's HTML of a page as it is; TextPage.extractHTML also decodes escapes in it."""
        mupdf = self._pymupdf.mupdf
        buffer = mupdf.fz_new_buffer(_HTML_BYTES)
        output = mupdf.FzOutput(buffer)
        mupdf.fz_print_stext_page_as_html(output, textpage.this, 0)
        output.fz_close_output()
        return bytes(mupdf.fz_buffer_extract_copy(buffer))

    def _annotations(self, page: _Mu) -> list[Annotation]:
        """Return the form fields and the annotations that have a text."""
        annotations: list[Annotation] = []
        annotation, field = page.first_annot, page.first_widget
        turned = page.rotation_matrix
        while annotation and len(annotations) < _ANNOTATIONS:
            if annotation.type[0] != self._pymupdf.PDF_ANNOT_POPUP and (text := annotation.info.get("content")):
                annotations.append(Annotation("annotation", text, tuple(annotation.rect * turned)))
            annotation = annotation.next
        while field and len(annotations) < _ANNOTATIONS:
            if field.field_type in self._written and isinstance(field.field_value, str) and field.field_value.strip():
                annotations.append(Annotation("field", field.field_value, tuple(field.rect * turned)))
            field = field.next
        return annotations

    def _load(self, index: int) -> _Mu:
        try:
            return self._document[index]
        except self._failure as error:
            raise LoadError(f"cannot be read: {error}") from None

    def render(self, index: int, scale: float, region: Region | None = None) -> tuple[int, int, bytes]:
        """Return width and height in pixels, and the RGB bytes, row by row; of the whole page, or of a region of its picture."""
        matrix = self._pymupdf.Matrix(scale, scale)
        clip = None if region is None else self._pymupdf.Rect(region) * ~matrix
        pixmap = self._load(index).get_pixmap(matrix=matrix, alpha=False, colorspace=self._pymupdf.csRGB, clip=clip)
        return int(pixmap.width), int(pixmap.height), bytes(pixmap.samples)

    def draw(self, index: int, width: int, height: int) -> Pixels:
        """Return the page stretched to so many pixels, (height, width, 3). The next page is drawn over it."""
        page = self._load(index)
        mupdf = self._pymupdf.mupdf
        try:
            x0, y0, x1, y1 = page.rect
            # Page.get_pixmap rounds the sides itself: a pixmap of our own is as large as asked for, at the same speed.
            pixmap = mupdf.fz_new_pixmap_with_bbox(
                mupdf.fz_device_rgb(), mupdf.FzIrect(0, 0, width, height), mupdf.FzSeparations(), 0
            )
            mupdf.fz_clear_pixmap_with_value(pixmap, 255)
            if x1 > x0 and y1 > y0:
                across, down = width / (x1 - x0), height / (y1 - y0)
                device = mupdf.fz_new_draw_device(mupdf.FzMatrix(across, 0, 0, down, -x0 * across, -y0 * down), pixmap)
                # Through a display list, as a page run straight to the device decodes its pictures anew for each band.
                everywhere = mupdf.FzRect(mupdf.FzRect.Fixed_INFINITE)
                listed = mupdf.fz_new_display_list_from_page(page.this)
                mupdf.fz_run_display_list(listed, device, mupdf.FzMatrix(), everywhere, mupdf.FzCookie())
                mupdf.fz_close_device(device)
        except self._failure as error:
            raise LoadError(f"page {index + 1} cannot be drawn: {error}") from None
        pixels = self._canvas.of(width, height)
        pixels.reshape(-1)[:] = mupdf.fz_pixmap_samples_memoryview(pixmap)  # copied: the view is invalid once the pixmap is gone
        return pixels


class _Text(NamedTuple):
    """The words of a page: texts, boxes (n, 4), numbers of block and line (n, 2).

    `outside`: the words outside the page. `doubtful` (n,): which may not be seen. `letters`: MuPDF's raw dictionary where the
    page is to be read letter by letter.
    """

    texts: list[str]
    boxes: Floats
    lines: Ints
    outside: list[_Word]
    doubtful: Mask | None
    letters: Json | None


class _Pictures:
    """While it is entered, a text page's pictures do not count as pictures, so that extracting the page leaves them out.

    `boxes`: for each picture that is drawn after a text, the number of its block and its box; blocks are numbered in the order in
    which they are drawn.
    """

    def __init__(self, pymupdf: _Mu, textpage: _Mu) -> None:
        self._image, self._other = pymupdf.mupdf.FZ_STEXT_BLOCK_IMAGE, pymupdf.mupdf.FZ_STEXT_BLOCK_VECTOR
        self._first = textpage.this.m_internal.first_block
        self._blocks: list[_Mu] = []
        self.boxes: list[tuple[int, Box]] = []

    def __enter__(self) -> _Pictures:
        block, number = self._first, 0
        while block:
            if block.type == self._image:
                if number > len(self._blocks):
                    box = block.bbox
                    self.boxes.append((number, (box.x0, box.y0, box.x1, box.y1)))
                self._blocks.append(block)
                block.type = self._other
            block, number = block.next, number + 1
        return self

    def __exit__(self, *failure: object) -> None:
        for block in self._blocks:
            block.type = self._image  # or MuPDF would not give back what it holds


def _is_light(color: int) -> bool:
    return min(color >> 16, color >> 8 & 255, color & 255) >= LIGHT


def _doubtful(places: Floats, blocks: Ints, pale: Sequence[Box], pictures: Sequence[tuple[int, Box]]) -> Mask | None:
    """Return which words, at places (n, 4), in blocks (n,), may not be seen, (n,); None where all are.

    Doubtful are tiny words, pale ones, and those over whose middle a later block is a picture.
    """
    doubtful = places[:, 3] - places[:, 1] < SMALLEST
    x, y = (places[:, :2] + places[:, 2:]).T / 2
    for x0, y0, x1, y1 in pale:
        doubtful |= (x > x0) & (x < x1) & (y > y0) & (y < y1)
    for number, (x0, y0, x1, y1) in pictures:
        doubtful |= (blocks < number) & (x > x0) & (x < x1) & (y > y0) & (y < y1)
    return doubtful if doubtful.any() else None


def _boxes(words: Sequence[_Word]) -> Floats:
    """Return the boxes of words, (n, 4) float32."""
    return np.array([word[:4] for word in words], dtype=np.float32).reshape(-1, 4)


def _by_letter(words: Sequence[_Word], texts: Sequence[str], joined: str) -> bool:
    """Return whether a page is to be read letter by letter: for a script without spaces, or where most lines are a single letter,
    as they are in vertical writing."""
    if has_single(joined):
        return True
    if 2 * list(map(len, texts)).count(1) <= len(texts):
        return False
    counts = Counter((word[5], word[6]) for word in words).values()
    return len(counts) >= 4 and 2 * sum(count == 1 for count in counts) > len(counts)


def _with_lam_first(texts: Sequence[str], raw: Json) -> list[str]:
    """Return the words with the two letters of each lam-alef in the order in which they are read.

    One glyph that stands for both gives the first letter its width and the second none, at its right edge. MuPDF orders the
    letters of a line by where they stand, and so puts the alef before the lam.
    """
    letters = [char for line in _raw_lines(raw) for span in line["spans"] for char in span["chars"] if not char["c"].isspace()]
    flat = list("".join(texts))
    if flat != [char["c"] for char in letters]:
        return list(texts)
    ends = set(accumulate(map(len, texts)))
    for at, (alef, lam) in enumerate(pairwise(letters), start=1):
        if at not in ends and _is_one_glyph(alef, lam):
            flat[at - 1 : at + 1] = lam["c"], alef["c"]
    left = iter(flat)
    return ["".join(islice(left, len(text))) for text in texts]


def _is_one_glyph(alef: Json, lam: Json) -> bool:
    """Return whether one glyph stands for an alef and a lam: then the alef has no width, and is at the lam's right edge."""
    if lam["c"] != LAM or alef["c"] not in ALEFS:
        return False
    (x0, _, x1, _), (left, _, right, _) = alef["bbox"], lam["bbox"]
    return bool(x1 - x0 < _NARROW and abs(x0 - right) < _NARROW < right - left)


def _raw_lines(raw: Json) -> Iterator[Json]:
    """Yield the lines of MuPDF's raw dictionary of a page."""
    return (line for block in raw["blocks"] for line in block.get("lines", ()))


def _cut(found: PageWords, raw: Json) -> PageWords:
    """Return the page's words with those of scripts without spaces cut into letters, and letters of vertical writing put
    together to lines and boxed where they stand."""
    letters = [letter for line in _raw_lines(raw) for letter in _letters(line)]
    texts, owners, ranges, glued = cut(found.texts)
    if found.doubtful is not None:
        found = replace(found, doubtful=found.doubtful[owners])
    if sum(map(len, found.texts)) != len(letters):  # MuPDF left some out, or took one apart: equal parts of the word's box
        return replace(found, texts=texts, boxes=_shares(found, owners, ranges), lines=found.lines[owners], glued=glued)
    lengths = np.fromiter(map(len, found.texts), dtype=np.int64, count=len(found.texts))
    first = (np.cumsum(lengths) - lengths)[owners] + ranges[:, 0]
    each = np.array(letters, dtype=np.float32)
    boxes = np.concatenate((np.minimum.reduceat(each[:, :2], first), np.maximum.reduceat(each[:, 2:4], first)), axis=1)
    numbers, vertical = found.lines[owners], each[first, 4]
    if vertical.any():
        below = boxes[1:, 1] - boxes[:-1, 1]
        under = (vertical[1:] * vertical[:-1] > 0) & (np.abs(boxes[1:] - boxes[:-1])[:, [0, 2]].max(axis=1) < 0.5 * vertical[1:])
        numbers = np.cumsum(
            np.append(0, np.where(under & (below < 2.5 * vertical[1:]) & (below > 0), 0, numbers[1:] != numbers[:-1]))
        )
        glued[1:] |= under & (below < 1.4 * vertical[1:]) & (below > 0)
    return replace(found, texts=texts, boxes=boxes, lines=numbers, glued=glued)


def _letters(line: Json) -> Iterator[tuple[float, float, float, float, float]]:
    """Yield the boxes of a line's letters without blanks, and with each its size where the line is vertical, else 0."""
    for span in line["spans"]:
        size = span["size"] if line["wmode"] else 0.0
        for char in span["chars"]:
            if char["c"].isspace():
                continue
            x0, y0, x1, y1 = char["bbox"]
            if size:
                # The origin MuPDF reports in vertical writing is one advance, an em, below the letter's own, and the
                # letter stands 0.88 em above and 0.12 em below that (the default vertical origin, ISO 32000-2, 9.7.4.3).
                y0 = char["origin"][1] - 1.88 * size
                y1 = y0 + size
            yield x0, y0, x1, y1, size


def _shares(page: PageWords, owners: Ints, ranges: Ints) -> Floats:
    """Return the boxes, (n, 4), of pieces of words: equal shares of the word's box for each letter."""
    lengths = np.fromiter(map(len, page.texts), dtype=np.int64, count=len(page.texts))[owners]
    boxes = page.boxes[owners].copy()
    width = boxes[:, 2] - boxes[:, 0]
    left = boxes[:, 0].copy()
    boxes[:, 0], boxes[:, 2] = left + width * ranges[:, 0] / lengths, left + width * ranges[:, 1] / lengths
    return boxes


def _printed(rule: Json, index: int) -> str | None:
    """Return a page label (ISO 32000-2, 12.4.2): a prefix, and a number in one of five styles."""
    number = index - int(rule["startpage"]) + int(rule.get("firstpagenum") or 1)
    style, prefix = rule.get("style") or "", rule.get("prefix") or ""
    if style == "D":
        written = str(number)
    elif style in ("r", "R"):
        written = numeral(number, "upperRoman" if style == "R" else "lowerRoman")
    elif style in ("a", "A"):  # a to z, aa to zz, aaa to zzz
        written = chr(ord(style) + (number - 1) % 26) * min((number - 1) // 26 + 1, 100)
    else:
        written = ""
    return prefix + written or None

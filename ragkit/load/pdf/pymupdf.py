"""PyMuPDF behind the interface of `ragkit.load.pdf.pdf`. Its licence is AGPL-3.0 or commercial."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Floats, Ints
from ragkit.load.member import EmbeddedFile
from ragkit.load.pdf.hidden_text import LIGHT, SMALLEST
from ragkit.load.pdf.outline import Entry
from ragkit.load.pdf.scripts import ALEF_LAM, ALEFS, LAM, Bools, cut, has_single, is_plain
from ragkit.load.pdf.text import Annotation, PageWords
from ragkit.load.render import Canvas, Pixels

_BEYOND = 1e9  # points
_ANNOTATIONS = 10_000  # read of a page
_Box = tuple[float, float, float, float]
_NOWHERE: Sequence[_Box] = ()
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
        self._pymupdf = pymupdf
        self._failure = (RuntimeError, ValueError, IndexError, pymupdf.mupdf.FzErrorBase)
        # Ligatures are taken apart, so that "ﬁ" is found as "fi".
        self._flags = pymupdf.TEXTFLAGS_WORDS & ~pymupdf.TEXT_PRESERVE_LIGATURES & ~pymupdf.TEXT_MEDIABOX_CLIP
        self._flags |= pymupdf.TEXT_PRESERVE_IMAGES  # for their places, and when they are drawn
        kinds = (pymupdf.PDF_WIDGET_TYPE_TEXT, pymupdf.PDF_WIDGET_TYPE_COMBOBOX, pymupdf.PDF_WIDGET_TYPE_LISTBOX)
        self._written = frozenset(kinds)
        if path.stat().st_size == 0:
            raise LoadError("the PDF is empty: 0 bytes")
        try:
            where = {"stream": path.data} if isinstance(path, EmbeddedFile) else {"filename": path}
            self._document = pymupdf.open(**where, filetype="pdf")
            self._count = int(self._document.page_count)
        except self._failure as error:
            raise LoadError(f"not a readable PDF: {error}") from None
        if not self._document.is_pdf:  # MuPDF goes by the content
            raise LoadError(f"not a PDF: its content is {(self._document.metadata or {}).get('format') or 'something else'}")
        if self._document.needs_pass and not self._document.authenticate(password or ""):
            wrong = "the password does not open it" if password else "it needs a password"
            raise EncryptedDocument(f"the PDF is encrypted; {wrong}")

        self._label = self._labels()
        self._canvas = Canvas()

    def _labels(self) -> Callable[[int], str | None]:
        """The printed number of a page by its index. Read once: asking each page anew reads all rules each time."""
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
        found = self._document.metadata or {}
        names = {"created": "creationDate", "modified": "modDate"}
        names |= {name: name for name in ("title", "author", "subject", "keywords")}
        return {ours: found.get(theirs) or "" for ours, theirs in names.items()}

    def size(self, index: int) -> tuple[float, float]:
        shown = self._load(index).rect
        return shown.width, shown.height

    def outline(self) -> list[Entry]:
        try:
            return [Entry(level, title, number - 1) for level, title, number, *_ in self._document.get_toc()]
        except (*self._failure, TypeError, KeyError, RecursionError):  # a damaged outline is no reason to lose the text
            return []

    def page(self, index: int) -> PageWords:
        page = self._load(index)
        rotation = int(page.rotation)
        try:
            annotations = self._annotations(page)
            textpage = self._textpage(page, plain=not (rotation or annotations))
            with _Pictures(self._pymupdf, textpage) as pictures:
                words, boxes, outside = self._words(textpage)
                pale = self._pale(textpage) if words else _NOWHERE
                texts = [word[4] for word in words]
                joined = "".join(texts)
                special = not is_plain(joined)
                by_letter = _by_letter(words, texts, joined if special else "")
                shaped = special and ALEF_LAM.search(joined) is not None
                raw = textpage.extractRAWDICT() if by_letter or shaped else {}
        except self._failure as error:
            raise LoadError(f"cannot be read: {error}") from None
        shown, label = page.rect, self._label(index)
        width, height = shown.width, shown.height
        annotations += [Annotation("hidden", word[4], word[:4], "it lies outside the page") for word in outside]
        if not words:
            return replace(PageWords.blank(width, height, rotation, label), annotations=tuple(annotations))
        block, line = np.array([word[5:7] for word in words], dtype=np.int64).T
        found = PageWords(
            _with_lam_first(texts, raw) if shaped else texts,
            boxes,
            block * (int(line.max()) + 1) + line,
            width,
            height,
            rotation,
            label,
            annotations=tuple(annotations),
            doubtful=_doubtful(boxes, block, pale, pictures.boxes),
        )
        return _cut(found, raw) if by_letter else found

    def _textpage(self, page: Any, *, plain: bool) -> Any:
        if plain:
            return page.get_textpage(flags=self._flags)
        # Page.get_textpage undoes the rotation, its way back misplaces odd crop boxes, and it takes in what fields show; a
        # display list is as displayed, and may leave those out.
        return self._pymupdf.TextPage(page.get_displaylist(annots=0).get_textpage(self._flags))

    def _words(self, textpage: Any) -> tuple[list[Any], Floats, list[Any]]:
        """The words on the page, cut at its edge, their boxes, (n, 4) float32, and the words wholly outside it."""
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

    def _pale(self, textpage: Any) -> Sequence[_Box]:
        """Boxes of the text that is painted in white or nearly, or not at all: by a text mode, or fully transparent."""
        if not _PALE.search(self._html(textpage)):  # a fifth of the time of the spans, which few pages need
            return _NOWHERE
        lines = (line for block in textpage.extractDICT()["blocks"] for line in block.get("lines", ()))
        spans = (span for line in lines for span in line["spans"])
        return [span["bbox"] for span in spans if not span["alpha"] or _is_light(span["color"])]

    def _html(self, textpage: Any) -> bytes:
        """What TextPage.extractHTML gives, as it is: that one decodes escapes in it too."""
        mupdf = self._pymupdf.mupdf
        buffer = mupdf.fz_new_buffer(_HTML_BYTES)
        output = mupdf.FzOutput(buffer)
        mupdf.fz_print_stext_page_as_html(output, textpage.this, 0)
        output.fz_close_output()
        return bytes(mupdf.fz_buffer_extract_copy(buffer))

    def _annotations(self, page: Any) -> list[Annotation]:
        """Form fields with text in them, and annotations with a text."""
        found: list[Annotation] = []
        annotation, field = page.first_annot, page.first_widget
        turned = page.rotation_matrix
        while annotation and len(found) < _ANNOTATIONS:
            if annotation.type[0] != self._pymupdf.PDF_ANNOT_POPUP and (text := annotation.info.get("content")):
                found.append(Annotation("annotation", text, tuple(annotation.rect * turned)))
            annotation = annotation.next
        while field and len(found) < _ANNOTATIONS:
            if field.field_type in self._written and isinstance(field.field_value, str) and field.field_value.strip():
                found.append(Annotation("field", field.field_value, tuple(field.rect * turned)))
            field = field.next
        return found

    def _load(self, index: int) -> Any:
        try:
            return self._document[index]
        except self._failure as error:
            raise LoadError(f"cannot be read: {error}") from None

    def render(self, index: int, scale: float, part: tuple[int, int, int, int] | None = None) -> tuple[int, int, bytes]:
        """Width and height in pixels, and the RGB bytes, row by row; of the whole page, or of a part of that picture."""
        matrix = self._pymupdf.Matrix(scale, scale)
        clip = None if part is None else self._pymupdf.Rect(part) * ~matrix
        pixmap = self._load(index).get_pixmap(matrix=matrix, alpha=False, colorspace=self._pymupdf.csRGB, clip=clip)
        return int(pixmap.width), int(pixmap.height), bytes(pixmap.samples)

    def draw(self, index: int, width: int, height: int) -> Pixels:
        """The page stretched to so many pixels, (height, width, 3), until the next is drawn."""
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
        pixels.reshape(-1)[:] = mupdf.fz_pixmap_samples_memoryview(pixmap)  # which dangles once the pixmap is gone
        return pixels


class _Pictures:
    """While it is entered, a text page's pictures are no pictures, so that what writes the page down leaves them out.

    `boxes`: of each picture that is drawn after a text, the number of its block and its box; blocks are numbered as they are
    drawn.
    """

    def __init__(self, pymupdf: Any, textpage: Any) -> None:
        self._image, self._other = pymupdf.mupdf.FZ_STEXT_BLOCK_IMAGE, pymupdf.mupdf.FZ_STEXT_BLOCK_VECTOR
        self._first = textpage.this.m_internal.first_block
        self._blocks: list[Any] = []
        self.boxes: list[tuple[int, _Box]] = []

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


def _doubtful(places: Floats, blocks: Ints, pale: Sequence[_Box], pictures: Sequence[tuple[int, _Box]]) -> Bools | None:
    """Which of the words at places (n, 4), in blocks (n,), may not be seen: tiny ones, pale ones, and those over whose middle
    a later block is a picture. None: none."""
    found = places[:, 3] - places[:, 1] < SMALLEST
    x, y = (places[:, :2] + places[:, 2:]).T / 2
    for x0, y0, x1, y1 in pale:
        found |= (x > x0) & (x < x1) & (y > y0) & (y < y1)
    for number, (x0, y0, x1, y1) in pictures:
        found |= (blocks < number) & (x > x0) & (x < x1) & (y > y0) & (y < y1)
    return found if found.any() else None


def _boxes(words: Sequence[Any]) -> Floats:
    return np.array([word[:4] for word in words], dtype=np.float32).reshape(-1, 4)


def _by_letter(words: Sequence[Any], texts: Sequence[str], joined: str) -> bool:
    """Whether a page is to be read letter by letter: for a script without spaces, or where most lines are a single letter, as
    they are in vertical writing."""
    if has_single(joined):
        return True
    if 2 * list(map(len, texts)).count(1) <= len(texts):
        return False
    counts = Counter((word[5], word[6]) for word in words).values()
    return len(counts) >= 4 and 2 * sum(count == 1 for count in counts) > len(counts)


def _with_lam_first(texts: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    """The words with the two letters of each lam-alef in the order they are read.

    One glyph that stands for both gives the first of them its width and the second none, at its right edge; MuPDF turns a line
    round by where letters stand, and so has the alef before the lam.
    """
    lines = (line for block in raw["blocks"] for line in block.get("lines", ()))
    letters = [char for line in lines for span in line["spans"] for char in span["chars"] if not char["c"].isspace()]
    flat = list("".join(texts))
    if flat != [char["c"] for char in letters]:
        return list(texts)
    ends = set(accumulate(map(len, texts)))
    for at, (alef, lam) in enumerate(pairwise(letters), start=1):
        if lam["c"] == LAM and alef["c"] in ALEFS and at not in ends:
            (x0, _, x1, _), right = alef["bbox"], lam["bbox"][2]
            if x1 - x0 < _NARROW and abs(x0 - right) < _NARROW < lam["bbox"][2] - lam["bbox"][0]:
                flat[at - 1 : at + 1] = lam["c"], alef["c"]
    left = iter(flat)
    return ["".join(islice(left, len(text))) for text in texts]


def _cut(found: PageWords, raw: Mapping[str, Any]) -> PageWords:
    """The page's words with those of scripts without spaces cut into letters, and letters of vertical writing put together
    to lines and boxed where they stand."""
    lines = [line for block in raw["blocks"] for line in block.get("lines", ())]
    letters = [letter for line in lines for letter in _letters(line)]
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


def _letters(line: Mapping[str, Any]) -> Iterator[tuple[float, float, float, float, float]]:
    """The boxes of a line's letters, blanks left out, and with each its size where the line is vertical, else 0."""
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
    lengths = np.fromiter(map(len, page.texts), dtype=np.int64, count=len(page.texts))[owners]
    boxes = page.boxes[owners].copy()
    width = boxes[:, 2] - boxes[:, 0]
    left = boxes[:, 0].copy()
    boxes[:, 0], boxes[:, 2] = left + width * ranges[:, 0] / lengths, left + width * ranges[:, 1] / lengths
    return boxes


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

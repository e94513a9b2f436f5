"""pypdfium2 (PDFium, BSD and Apache licences) behind the interface of `ragkit.load.pdf.pdf`.

PDFium knows characters, not words. A page's text is fetched once and cut at spaces and line ends; boxes are asked for
the first and the last character of a word, and for all of them only where the page's edge cuts through it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Floats, Ints, Mask
from ragkit.load.member import EmbeddedFile
from ragkit.load.pdf.hidden_text import LIGHT, SMALLEST
from ragkit.load.pdf.outline import Entry
from ragkit.load.pdf.scripts import ALEFS, LAM, cut, has_single
from ragkit.load.pdf.text import Annotation, Box, PageWords, Region
from ragkit.load.render import Canvas, Pixels

_HYPHEN = (0x02, 0xFFFE)  # what PDFium puts for a hyphen at a line's end, joining the two lines
_LINE_ENDS = (0x0A, 0x0D)
_UNDRAWN = (3, 7)  # text modes (ISO 32000-2, 9.3.6)
_SHARED = 0.1  # of a word's box, which has room around the letters, that lies in the bounds of their ink
_SAME = 0.1  # points
_OBJECTS = 100_000  # of a page that are looked at for hidden text
_ANNOTATIONS = 10_000  # read of a page
_Fpdf = Any  # a module, or a handle, of pypdfium2 and ctypes, which have no types
_Codes = npt.NDArray[np.uint32]


class Pdf:
    """An open file. Raises EncryptedDocument, LoadError, or UnsupportedFormat where pypdfium2 is not installed."""

    def __init__(self, path: Path | EmbeddedFile, password: str | None) -> None:
        try:
            import pypdfium2
            import pypdfium2.raw
        except ImportError:
            raise UnsupportedFormat(str(MissingExtra.of("pypdfium2", "pdfium", "reading PDF files"))) from None
        self._raw: _Fpdf = pypdfium2.raw
        self._failure = pypdfium2.PdfiumError
        self._canvas = Canvas()
        if path.stat().st_size == 0:
            raise LoadError("the PDF is empty: 0 bytes")
        try:
            where = path.data if isinstance(path, EmbeddedFile) else path
            self._document = pypdfium2.PdfDocument(where, password=password)
        except pypdfium2.PdfiumError as error:
            if getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD:
                wrong = "the password does not open it" if password else "it needs a password"
                raise EncryptedDocument(f"the PDF is encrypted; {wrong}") from None
            raise LoadError(f"not a readable PDF: {error}") from None

    def close(self) -> None:
        self._document.close()

    def count(self) -> int:
        return len(self._document)

    def metadata(self) -> dict[str, str]:
        names = {"created": "CreationDate", "modified": "ModDate"}
        names |= {name.lower(): name for name in ("Title", "Author", "Subject", "Keywords")}
        return {ours: _mended(self._document.get_metadata_value(theirs) or "") for ours, theirs in names.items()}

    def size(self, index: int) -> tuple[float, float]:
        width, height = self._load(index).get_size()
        return float(width), float(height)

    def outline(self) -> list[Entry]:
        entries = []
        try:
            for item in self._document.get_toc():
                place = item.get_dest()
                if place is not None and (number := place.get_index()) is not None:
                    entries.append(Entry(item.level + 1, item.get_title(), number))
        except (self._failure, ValueError, RecursionError):  # a damaged outline is no reason to lose the text
            return []
        return entries

    def page(self, index: int) -> PageWords:
        """Return the words of a page. Raises LoadError."""
        page = self._load(index)
        try:
            textpage = page.get_textpage()
        except self._failure as error:
            raise LoadError(f"cannot be read: {error}") from None
        width, height = page.get_size()
        rotation, label = int(page.get_rotation()), self._document.get_page_label(index) or None
        x0, y0, x1, y1 = page.get_bbox()
        turn = _Displayed(x0, y0, x1, y1, rotation)
        annotations = self._annotations(page, turn)
        codes = self._with_lam_first(textpage, self._codes(textpage))
        starts, ends, lines, codes = _cut(codes)
        if not len(starts):
            return replace(PageWords.blank(width, height, rotation, label), annotations=tuple(annotations))
        text = codes.astype("<u4").tobytes().decode("utf-32-le", errors="replace")
        glued = None
        if has_single(text):
            _, owners, ranges, glued = cut(_texts(text, starts, ends))
            starts, ends, lines = starts[owners] + ranges[:, 0], starts[owners] + ranges[:, 1], lines[owners]
        words = _Words(starts, ends, lines, turn(self._boxes(textpage, starts, ends)))
        edge = ((words.boxes[:, :2] < 0) | (words.boxes[:, 2:] > (width, height))).any(axis=1)
        if edge.any():
            whole = words
            words, shows = self._visible(textpage, turn, whole, np.flatnonzero(edge))
            outside = zip(*(column[~shows].tolist() for column in (whole.starts, whole.ends, whole.boxes)), strict=True)
            annotations += [
                Annotation("hidden", text[start:end], tuple(box), "it lies outside the page") for start, end, box in outside
            ]
            glued = None if glued is None else glued[shows]
        texts = _texts(text, words.starts, words.ends)
        doubtful = self._doubtful(page, turn, words.boxes) if texts else None
        return PageWords(texts, words.boxes, words.lines, width, height, rotation, label, glued, tuple(annotations), doubtful)

    def _doubtful(self, page: _Fpdf, turn: _Displayed, boxes: Floats) -> Mask | None:
        """Return which words may not be seen, (w,); None where all are.

        Doubtful are tiny words, those in white or in a text mode that does not paint, and those that a picture is drawn over.
        """
        doubtful = boxes[:, 3] - boxes[:, 1] < SMALLEST
        places = self._doubtful_places(page)
        if places:
            area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6)
            for x0, y0, x1, y1 in np.unique(turn(np.array(places, np.float32)), axis=0).tolist():
                across = np.minimum(boxes[:, 2], x1) - np.maximum(boxes[:, 0], x0)
                down = np.minimum(boxes[:, 3], y1) - np.maximum(boxes[:, 1], y0)
                doubtful |= np.maximum(across, 0) * np.maximum(down, 0) > _SHARED * area
        return doubtful if doubtful.any() else None

    def _doubtful_places(self, page: _Fpdf) -> list[Box]:
        """Return the bounds, in the page's own coordinates, of text objects that may not be seen, and of forms that hold some."""
        raw, handle = self._raw, page.raw
        count = min(raw.FPDFPage_CountObjects(handle), _OBJECTS)
        objects = [raw.FPDFPage_GetObject(handle, number) for number in range(count)]
        kinds = [raw.FPDFPageObj_GetType(each) for each in objects]
        pictures = raw.FPDF_PAGEOBJ_IMAGE in kinds or raw.FPDF_PAGEOBJ_FORM in kinds
        places: list[Box] = []
        shown: list[Box] = []  # texts that a picture may yet be drawn over
        for drawn, kind in zip(objects, kinds, strict=True):
            if self._has_hidden_text(drawn, kind):
                places.append(self._bounds(drawn))
            elif kind == raw.FPDF_PAGEOBJ_TEXT:
                if pictures:
                    shown.append(self._bounds(drawn))
            elif shown and self._is_picture(drawn, kind):
                covered, shown = _covered(shown, self._bounds(drawn))
                places += covered
        return places

    def _has_hidden_text(self, drawn: _Fpdf, kind: int) -> bool:
        """Return whether an object of a page is a text that may not be seen, or a form that holds one."""
        if kind == self._raw.FPDF_PAGEOBJ_TEXT:
            return self._hides(drawn)
        return kind == self._raw.FPDF_PAGEOBJ_FORM and self._form_hides(drawn, depth=3)

    def _is_picture(self, drawn: _Fpdf, kind: int) -> bool:
        """Return whether an object of a page is an image, or a form with one."""
        return kind == self._raw.FPDF_PAGEOBJ_IMAGE or (kind == self._raw.FPDF_PAGEOBJ_FORM and self._has_image(drawn))

    def _hides(self, text: _Fpdf) -> bool:
        """Return whether a text is not painted, or painted in white or nearly, or nearly transparent."""
        raw = self._raw
        if raw.FPDFTextObj_GetTextRenderMode(text) in _UNDRAWN:
            return True
        red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
        return bool(raw.FPDFPageObj_GetFillColor(text, red, green, blue, alpha)) and (
            min(red.value, green.value, blue.value) >= LIGHT or alpha.value <= 255 - LIGHT
        )

    def _bounds(self, page_object: _Fpdf) -> Box:
        edges = [ctypes.c_float() for _ in range(4)]
        self._raw.FPDFPageObj_GetBounds(page_object, *edges)
        return edges[0].value, edges[1].value, edges[2].value, edges[3].value

    def _inner(self, form: _Fpdf) -> Iterator[tuple[_Fpdf, int]]:
        """Yield the objects of a form, each with its kind."""
        for number in range(min(self._raw.FPDFFormObj_CountObjects(form), _OBJECTS)):
            inner = self._raw.FPDFFormObj_GetObject(form, number)
            yield inner, self._raw.FPDFPageObj_GetType(inner)

    def _form_hides(self, form: _Fpdf, *, depth: int) -> bool:
        """Return whether a form holds text that may not be seen; one nested deeper than anybody draws counts as such."""
        for inner, kind in self._inner(form):
            if kind == self._raw.FPDF_PAGEOBJ_TEXT and self._hides(inner):
                return True
            if kind == self._raw.FPDF_PAGEOBJ_FORM and (depth == 0 or self._form_hides(inner, depth=depth - 1)):
                return True
        return False

    def _has_image(self, form: _Fpdf) -> bool:
        return any(kind != self._raw.FPDF_PAGEOBJ_TEXT and kind != self._raw.FPDF_PAGEOBJ_PATH for _, kind in self._inner(form))

    def _annotations(self, page: _Fpdf, turn: _Displayed) -> list[Annotation]:
        """Return the form fields and the annotations that have a text."""
        raw, annotations = self._raw, []
        for number in range(min(raw.FPDFPage_GetAnnotCount(page.raw), _ANNOTATIONS)):
            handle = raw.FPDFPage_GetAnnot(page.raw, number)
            if not handle:
                continue
            try:
                annotation = self._annotation(handle, turn)
            finally:
                raw.FPDFPage_CloseAnnot(handle)
            if annotation is not None:
                annotations.append(annotation)
        return annotations

    def _annotation(self, handle: _Fpdf, turn: _Displayed) -> Annotation | None:
        """Return a field or an annotation, or None for one without a text."""
        raw = self._raw
        kind = raw.FPDFAnnot_GetSubtype(handle)
        if kind in (raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP):
            return None
        field = kind == raw.FPDF_ANNOT_WIDGET
        text = self._value(handle, b"V" if field else b"Contents")
        if not text.strip() or (field and (self._value(handle, b"FT") == "Btn" or text in ("Off", "Yes"))):
            return None
        rect = raw.FS_RECTF()
        raw.FPDFAnnot_GetRect(handle, rect)
        across, up = sorted((rect.left, rect.right)), sorted((rect.bottom, rect.top))
        box = turn(np.array([[across[0], up[0], across[1], up[1]]], np.float32))[0]
        return Annotation("field" if field else "annotation", text, tuple(box.tolist()))

    def _value(self, annotation: _Fpdf, key: bytes) -> str:
        """Return the text under a key of an annotation's dictionary, "" for none."""
        size = self._raw.FPDFAnnot_GetStringValue(annotation, key, None, 0)
        if size <= 2:
            return ""
        buffer = ctypes.create_string_buffer(size)
        self._raw.FPDFAnnot_GetStringValue(annotation, key, ctypes.cast(buffer, ctypes.POINTER(self._raw.FPDF_WCHAR)), size)
        return buffer.raw[: size - 2].decode("utf-16-le", errors="replace")

    def _codes(self, textpage: _Fpdf) -> _Codes:
        """Return the code point of each character of the page, by PDFium's own character numbers."""
        count = textpage.count_chars()
        if count <= 0:
            return np.empty(0, np.uint32)
        buffer = (ctypes.c_ushort * (count + 1))()
        written = self._raw.FPDFText_GetText(textpage.raw, 0, count, buffer) - 1
        units = np.frombuffer(buffer, dtype=np.uint16)[: max(written, 0)]
        if len(units) == count and not ((units >= 0xD800) & (units < 0xE000)).any():
            return units.astype(np.uint32)
        # The text leaves out characters without a code and takes two units for some: only one by one do numbers match.
        ask, handle = self._raw.FPDFText_GetUnicode, textpage.raw
        return np.fromiter((ask(handle, i) for i in range(count)), dtype=np.uint32, count=count)

    def _with_lam_first(self, textpage: _Fpdf, codes: _Codes) -> _Codes:
        """Return the codes with each lam-alef in the order in which it is read.

        PDFium swaps the two letters of one glyph, which have one box.
        """
        pairs = np.flatnonzero((codes[1:] == ord(LAM)) & np.isin(codes[:-1], [ord(alef) for alef in ALEFS]))
        if len(pairs):
            alef, lam = self._boxes(textpage, pairs, pairs + 1), self._boxes(textpage, pairs + 1, pairs + 2)
            for at in pairs[np.abs(alef - lam).max(axis=1) < _SAME]:
                codes[at : at + 2] = codes[at + 1], codes[at]
        return codes

    def _boxes(self, textpage: _Fpdf, starts: Ints, ends: Ints) -> Floats:
        """Return boxes (w, 4) in the page's own coordinates: left, bottom, right, top, with room for ascenders and descenders."""
        rect = self._raw.FS_RECTF()
        pointer, ask, handle = ctypes.byref(rect), self._raw.FPDFText_GetLooseCharBox, textpage.raw
        boxes: list[Box] = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            ask(handle, start, pointer)
            left, bottom, right, top = rect.left, rect.bottom, rect.right, rect.top
            if end - start > 1:
                ask(handle, end - 1, pointer)
                left, bottom = min(left, rect.left), min(bottom, rect.bottom)
                right, top = max(right, rect.right), max(top, rect.top)
            boxes.append((left, bottom, right, top))
        return np.array(boxes, dtype=np.float32).reshape(-1, 4)

    def _visible(self, textpage: _Fpdf, turn: _Displayed, words: _Words, at_edge: Ints) -> tuple[_Words, Mask]:
        """Return the words, and which of those before are left, (w,).

        Words `at_edge` are shortened to the letters that show, and left out where none does.
        """
        starts, ends, boxes = words.starts.copy(), words.ends.copy(), words.boxes.copy()
        keep = np.ones(len(starts), dtype=bool)
        for i in at_edge:
            each = np.arange(starts[i], ends[i])
            letters = turn(self._boxes(textpage, each, each + 1))
            middle = (letters[:, :2] + letters[:, 2:]) / 2
            shows = ((middle > 0) & (middle < (turn.width, turn.height))).all(axis=1)
            if not shows.any():
                keep[i] = False
                continue
            inside = np.flatnonzero(shows)
            first, last = int(inside[0]), int(inside[-1]) + 1
            starts[i], ends[i] = each[first], each[last - 1] + 1
            boxes[i] = [*letters[first:last, :2].min(axis=0), *letters[first:last, 2:].max(axis=0)]
        return _Words(starts[keep], ends[keep], words.lines[keep], boxes[keep]), keep

    def _load(self, index: int) -> _Fpdf:
        try:
            return self._document[index]
        except (self._failure, IndexError) as error:
            raise LoadError(f"cannot be read: {error}") from None

    def render(self, index: int, scale: float, region: Region | None = None) -> tuple[int, int, bytes]:
        """Return width and height in pixels, and the RGB bytes, row by row; of the whole page, or of a region of its picture."""
        page = self._load(index)
        crop: tuple[float, ...] = (0, 0, 0, 0)
        if region is not None:
            whole = [math.ceil(side * scale) for side in page.get_size()]
            # From the left, below, the right and above; pypdfium2 takes points, and rounds up the dots that they make.
            dots = region[0], whole[1] - region[3], whole[0] - region[2], region[1]
            crop = tuple(max(side - 0.5, 0) / scale for side in dots)
        bitmap = page.render(scale=scale, rev_byteorder=True, prefer_bgrx=False, crop=crop)
        pixels = bitmap.to_numpy()
        rgb = np.repeat(pixels.reshape(*pixels.shape[:2], -1), 3, axis=2) if pixels.ndim == 2 else pixels[:, :, :3]
        return int(rgb.shape[1]), int(rgb.shape[0]), np.ascontiguousarray(rgb).tobytes()

    def draw(self, index: int, width: int, height: int) -> Pixels:
        """Return the page stretched to so many pixels, (height, width, 3). The next page is drawn over it."""
        raw = self._raw
        if self._document.formenv is None and self._document.get_formtype() != raw.FORMTYPE_NONE:
            self._document.init_forms()  # before the page is loaded, or its fields are not drawn
        page, pixels = self._load(index), self._canvas.of(width, height)
        pixels[:] = 255
        if min(page.get_size()) <= 0:
            return pixels
        bitmap = raw.FPDFBitmap_CreateEx(width, height, raw.FPDFBitmap_BGR, pixels.ctypes.data, 3 * width)
        if not bitmap:
            raise LoadError(f"page {index + 1} cannot be drawn: PDFium makes no picture of {width} x {height} pixels")
        try:
            place = (0, 0, width, height, 0, raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER)
            raw.FPDF_RenderPageBitmap(bitmap, page.raw, *place)
            if self._document.formenv is not None:
                raw.FPDF_FFLDraw(self._document.formenv, bitmap, page.raw, *place)
        finally:
            raw.FPDFBitmap_Destroy(bitmap)
            page.close()
        return pixels


class _Words(NamedTuple):
    """Words of a page: first and end (w,) in characters, the number of each word's line (w,), boxes (w, 4) as displayed."""

    starts: Ints
    ends: Ints
    lines: Ints
    boxes: Floats


def _texts(text: str, starts: Ints, ends: Ints) -> list[str]:
    return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _covered(boxes: list[Box], over: Box) -> tuple[list[Box], list[Box]]:
    """Return the boxes whose middle lies in the box `over`, and the others."""
    x0, y0, x1, y1 = over
    covered: list[Box] = []
    others: list[Box] = []
    for box in boxes:
        inside = x0 < (box[0] + box[2]) / 2 < x1 and y0 < (box[1] + box[3]) / 2 < y1
        (covered if inside else others).append(box)
    return covered, others


class _Displayed:
    """Turns a page's own coordinates (y upwards) into points as displayed: crop, then rotation, then y downwards."""

    def __init__(self, x0: float, y0: float, x1: float, y1: float, rotation: int) -> None:
        self._crop, self._rotation = (x0, y0, x1, y1), rotation % 360
        across, up = x1 - x0, y1 - y0
        self.width, self.height = (up, across) if self._rotation in (90, 270) else (across, up)

    def __call__(self, boxes: Floats) -> Floats:
        """Return boxes (w, 4) left, bottom, right, top as (w, 4) x0, y0, x1, y1."""
        x0, y0, x1, y1 = self._crop
        left, bottom, right, top = boxes.T
        turned = {
            0: (left - x0, y1 - top, right - x0, y1 - bottom),
            90: (bottom - y0, left - x0, top - y0, right - x0),
            180: (x1 - right, bottom - y0, x1 - left, top - y0),
            270: (y1 - top, x1 - right, y1 - bottom, x1 - left),
        }[self._rotation]
        return np.stack(turned, axis=1).astype(np.float32)


def _mended(text: str) -> str:
    """Return text that PDFium read as Latin-1 though it is UTF-8, so that é became Ã©: some writers leave out the mark."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _cut(codes: _Codes) -> tuple[Ints, Ints, Ints, npt.NDArray[np.uint32]]:
    """Return the words of a page's characters: first and end (w,), the number of each word's line (w,), and the characters
    mended."""
    hyphen = np.isin(codes, _HYPHEN)
    codes = np.where(hyphen, ord("-"), codes)
    line_end = np.isin(codes, _LINE_ENDS)
    blank = line_end | np.isin(codes, _BLANKS) | (codes < 0x20) | ((codes >= 0xD800) & (codes < 0xE000))
    inside = np.concatenate(([False], ~blank, [False]))
    starting = inside[1:-1] & (~inside[:-2] | np.concatenate(([False], hyphen[:-1])))
    ending = inside[1:-1] & (~inside[2:] | hyphen)
    starts, ends = np.flatnonzero(starting), np.flatnonzero(ending) + 1
    line = np.cumsum(line_end | np.concatenate(([False], hyphen[:-1]))) if len(codes) else np.empty(0, np.int64)
    return starts, ends, line[starts].astype(np.int64), codes.astype(np.uint32)


_BLANKS = tuple(code for code in range(0x20, 0x3001) if chr(code).isspace() and code != 0xA0)

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
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import EncryptedDocument, LoadError, MissingExtra, UnsupportedFormat
from ragkit.core.types import Floats, Ints
from ragkit.load.member import EmbeddedFile
from ragkit.load.pdf.hidden_text import LIGHT, SMALLEST
from ragkit.load.pdf.outline import Entry
from ragkit.load.pdf.scripts import ALEFS, LAM, Bools, cut, has_single
from ragkit.load.pdf.text import Annotation, PageWords
from ragkit.load.render import Canvas, Pixels

_HYPHEN = (0x02, 0xFFFE)  # what PDFium puts for a hyphen at a line's end, joining the two lines
_LINE_ENDS = (0x0A, 0x0D)
_UNDRAWN = (3, 7)  # text modes (ISO 32000-2, 9.3.6)
_SHARED = 0.1  # of a word's box, which has room around the letters, that lies in the bounds of their ink
_SAME = 0.1  # points
_OBJECTS = 100_000  # of a page that are looked at for hidden text
_ANNOTATIONS = 10_000  # read of a page


class Pdf:
    """An open file. Raises EncryptedDocument, LoadError, or UnsupportedFormat where pypdfium2 is not installed."""

    def __init__(self, path: Path | EmbeddedFile, password: str | None) -> None:
        try:
            import pypdfium2
            import pypdfium2.raw
        except ImportError:
            raise UnsupportedFormat(str(MissingExtra.of("pypdfium2", "pdfium", "reading PDF files"))) from None
        self._raw: Any = pypdfium2.raw
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
        found = []
        try:
            for item in self._document.get_toc():
                place = item.get_dest()
                if place is not None and (number := place.get_index()) is not None:
                    found.append(Entry(item.level + 1, item.get_title(), number))
        except (self._failure, ValueError, RecursionError):  # a damaged outline is no reason to lose the text
            return []
        return found

    def page(self, index: int) -> PageWords:
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
            words = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
            _, owners, ranges, glued = cut(words)
            starts, ends, lines = starts[owners] + ranges[:, 0], starts[owners] + ranges[:, 1], lines[owners]
        boxes = turn(self._boxes(textpage, starts, ends))
        edge = (boxes[:, 0] < 0) | (boxes[:, 1] < 0) | (boxes[:, 2] > width) | (boxes[:, 3] > height)
        if edge.any():
            whole = starts, ends, boxes
            starts, ends, lines, boxes, kept = self._visible(textpage, turn, (starts, ends, lines, boxes), np.flatnonzero(edge))
            outside = zip(*(one[~kept].tolist() for one in whole), strict=True)
            annotations += [
                Annotation("hidden", text[start:end], tuple(box), "it lies outside the page") for start, end, box in outside
            ]
            glued = None if glued is None else glued[kept]
        texts = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        doubtful = self._doubtful(page, turn, boxes) if texts else None
        return PageWords(texts, boxes, lines, width, height, rotation, label, glued, tuple(annotations), doubtful)

    def _doubtful(self, page: Any, turn: _Displayed, boxes: Floats) -> Bools | None:
        """Which words may not be seen: tiny ones, those drawn by no mode or in white, and those that a picture is drawn over.
        None: none."""
        found = boxes[:, 3] - boxes[:, 1] < SMALLEST
        places = self._doubtful_places(page)
        if places:
            area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6)
            for x0, y0, x1, y1 in np.unique(turn(np.array(places, np.float32)), axis=0).tolist():
                across = np.minimum(boxes[:, 2], x1) - np.maximum(boxes[:, 0], x0)
                down = np.minimum(boxes[:, 3], y1) - np.maximum(boxes[:, 1], y0)
                found |= np.maximum(across, 0) * np.maximum(down, 0) > _SHARED * area
        return found if found.any() else None

    def _doubtful_places(self, page: Any) -> list[tuple[float, float, float, float]]:
        """Bounds, in the page's own coordinates, of the text objects that may not be seen, and of forms that hold some."""
        raw, handle = self._raw, page.raw
        count = min(raw.FPDFPage_CountObjects(handle), _OBJECTS)
        objects = [raw.FPDFPage_GetObject(handle, number) for number in range(count)]
        kinds = [raw.FPDFPageObj_GetType(one) for one in objects]
        found: list[tuple[float, float, float, float]] = []
        before: list[tuple[float, float, float, float]] = []
        pictures = raw.FPDF_PAGEOBJ_IMAGE in kinds or raw.FPDF_PAGEOBJ_FORM in kinds
        for one, kind in zip(objects, kinds, strict=True):
            if kind == raw.FPDF_PAGEOBJ_TEXT:
                if self._hides(one):
                    found.append(self._bounds(one))
                elif pictures:
                    before.append(self._bounds(one))
            elif kind == raw.FPDF_PAGEOBJ_FORM and self._form_hides(one, depth=3):
                found.append(self._bounds(one))
            elif kind in (raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_FORM) and before:
                if kind == raw.FPDF_PAGEOBJ_FORM and not self._has_image(one):
                    continue
                x0, y0, x1, y1 = self._bounds(one)
                under = [box for box in before if x0 < (box[0] + box[2]) / 2 < x1 and y0 < (box[1] + box[3]) / 2 < y1]
                found += under
                before = [box for box in before if box not in under] if under else before
        return found

    def _hides(self, text: Any) -> bool:
        raw = self._raw
        if raw.FPDFTextObj_GetTextRenderMode(text) in _UNDRAWN:
            return True
        red, green, blue, alpha = (ctypes.c_uint() for _ in range(4))
        return bool(raw.FPDFPageObj_GetFillColor(text, red, green, blue, alpha)) and (
            min(red.value, green.value, blue.value) >= LIGHT or alpha.value <= 255 - LIGHT
        )

    def _bounds(self, one: Any) -> tuple[float, float, float, float]:
        edges = [ctypes.c_float() for _ in range(4)]
        self._raw.FPDFPageObj_GetBounds(one, *edges)
        return edges[0].value, edges[1].value, edges[2].value, edges[3].value

    def _inner(self, form: Any) -> Iterator[tuple[Any, int]]:
        for number in range(min(self._raw.FPDFFormObj_CountObjects(form), _OBJECTS)):
            one = self._raw.FPDFFormObj_GetObject(form, number)
            yield one, self._raw.FPDFPageObj_GetType(one)

    def _form_hides(self, form: Any, *, depth: int) -> bool:
        for one, kind in self._inner(form):
            if kind == self._raw.FPDF_PAGEOBJ_TEXT and self._hides(one):
                return True
            if kind == self._raw.FPDF_PAGEOBJ_FORM and (depth == 0 or self._form_hides(one, depth=depth - 1)):
                return True  # deeper than anybody draws is looked at
        return False

    def _has_image(self, form: Any) -> bool:
        return any(kind != self._raw.FPDF_PAGEOBJ_TEXT and kind != self._raw.FPDF_PAGEOBJ_PATH for _, kind in self._inner(form))

    def _annotations(self, page: Any, turn: _Displayed) -> list[Annotation]:
        """Form fields with text in them, and annotations with a text."""
        raw, found = self._raw, []
        for number in range(min(raw.FPDFPage_GetAnnotCount(page.raw), _ANNOTATIONS)):
            one = raw.FPDFPage_GetAnnot(page.raw, number)
            if not one:
                continue
            try:
                kind = raw.FPDFAnnot_GetSubtype(one)
                if kind in (raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP):
                    continue
                field = kind == raw.FPDF_ANNOT_WIDGET
                text = self._value(one, b"V" if field else b"Contents")
                if not text.strip() or (field and (self._value(one, b"FT") == "Btn" or text in ("Off", "Yes"))):
                    continue
                rect = raw.FS_RECTF()
                raw.FPDFAnnot_GetRect(one, rect)
                across, up = sorted((rect.left, rect.right)), sorted((rect.bottom, rect.top))
                box = turn(np.array([[across[0], up[0], across[1], up[1]]], np.float32))[0]
                found.append(Annotation("field" if field else "annotation", text, tuple(box.tolist())))
            finally:
                raw.FPDFPage_CloseAnnot(one)
        return found

    def _value(self, annotation: Any, key: bytes) -> str:
        size = self._raw.FPDFAnnot_GetStringValue(annotation, key, None, 0)
        if size <= 2:
            return ""
        buffer = ctypes.create_string_buffer(size)
        self._raw.FPDFAnnot_GetStringValue(annotation, key, ctypes.cast(buffer, ctypes.POINTER(self._raw.FPDF_WCHAR)), size)
        return buffer.raw[: size - 2].decode("utf-16-le", errors="replace")

    def _codes(self, textpage: Any) -> npt.NDArray[np.uint32]:
        """The code point of each character of the page, by PDFium's own character numbers."""
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

    def _with_lam_first(self, textpage: Any, codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Each lam-alef in the order it is read: PDFium turns round the two letters of one glyph, which have one box."""
        pairs = np.flatnonzero((codes[1:] == ord(LAM)) & np.isin(codes[:-1], [ord(alef) for alef in ALEFS]))
        if len(pairs):
            alef, lam = self._boxes(textpage, pairs, pairs + 1), self._boxes(textpage, pairs + 1, pairs + 2)
            for at in pairs[np.abs(alef - lam).max(axis=1) < _SAME]:
                codes[at : at + 2] = codes[at + 1], codes[at]
        return codes

    def _boxes(self, textpage: Any, starts: Ints, ends: Ints) -> Floats:
        """Boxes (w, 4) in the page's own coordinates: left, bottom, right, top, with room for ascenders and descenders."""
        rect = self._raw.FS_RECTF()
        pointer, ask, handle = ctypes.byref(rect), self._raw.FPDFText_GetLooseCharBox, textpage.raw
        found: list[tuple[float, float, float, float]] = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            ask(handle, start, pointer)
            left, bottom, right, top = rect.left, rect.bottom, rect.right, rect.top
            if end - start > 1:
                ask(handle, end - 1, pointer)
                left, bottom = min(left, rect.left), min(bottom, rect.bottom)
                right, top = max(right, rect.right), max(top, rect.top)
            found.append((left, bottom, right, top))
        return np.array(found, dtype=np.float32).reshape(-1, 4)

    def _visible(
        self, textpage: Any, turn: _Displayed, words: tuple[Ints, Ints, Ints, Floats], cut: Ints
    ) -> tuple[Ints, Ints, Ints, Floats, npt.NDArray[np.bool_]]:
        """The words with those at `cut` shortened to the characters that show, and left out where none do; and which are kept."""
        starts, ends, lines, boxes = words[0].copy(), words[1].copy(), words[2], words[3].copy()
        keep = np.ones(len(starts), dtype=bool)
        for i in cut:
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
        return starts[keep], ends[keep], lines[keep], boxes[keep], keep

    def _load(self, index: int) -> Any:
        try:
            return self._document[index]
        except (self._failure, IndexError) as error:
            raise LoadError(f"cannot be read: {error}") from None

    def render(self, index: int, scale: float, part: tuple[int, int, int, int] | None = None) -> tuple[int, int, bytes]:
        """Width and height in pixels, and the RGB bytes, row by row; of the whole page, or of a part of that picture."""
        page = self._load(index)
        crop: tuple[float, ...] = (0, 0, 0, 0)
        if part is not None:
            whole = [math.ceil(side * scale) for side in page.get_size()]
            # From the left, below, the right and above; pypdfium2 takes points, and rounds up the dots that they make.
            dots = part[0], whole[1] - part[3], whole[0] - part[2], part[1]
            crop = tuple(max(side - 0.5, 0) / scale for side in dots)
        bitmap = page.render(scale=scale, rev_byteorder=True, prefer_bgrx=False, crop=crop)
        pixels = bitmap.to_numpy()
        rgb = np.repeat(pixels.reshape(*pixels.shape[:2], -1), 3, axis=2) if pixels.ndim == 2 else pixels[:, :, :3]
        return int(rgb.shape[1]), int(rgb.shape[0]), np.ascontiguousarray(rgb).tobytes()

    def draw(self, index: int, width: int, height: int) -> Pixels:
        """The page stretched to so many pixels, (height, width, 3), until the next is drawn."""
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


class _Displayed:
    """From a page's own coordinates (y upwards) to points as displayed: crop, then rotation, then y downwards."""

    def __init__(self, x0: float, y0: float, x1: float, y1: float, rotation: int) -> None:
        self._crop, self._rotation = (x0, y0, x1, y1), rotation % 360
        across, up = x1 - x0, y1 - y0
        self.width, self.height = (up, across) if self._rotation in (90, 270) else (across, up)

    def __call__(self, boxes: Floats) -> Floats:
        """boxes (w, 4) left, bottom, right, top -> (w, 4) x0, y0, x1, y1."""
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
    """PDFium reads UTF-8 without a mark, which some writers put, as Latin-1: é becomes Ã©."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _cut(codes: npt.NDArray[np.uint32]) -> tuple[Ints, Ints, Ints, npt.NDArray[np.uint32]]:
    """Words of a page's characters: first and end (w,), the number of each word's line (w,), and the characters mended."""
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

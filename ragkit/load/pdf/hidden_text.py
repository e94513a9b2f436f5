"""What a PDF page holds beside its printed text: form fields, annotations, and text that nobody sees.

Fields are filled in where they stand. Annotations follow the page's text. Hidden text is taken out: it is in no chunk and in no
page's text, and `meta["hidden"]` says what it was. Whether a word is seen is not guessed from operators but looked up in the
page's picture: where that has one colour all over the word, whatever the reason (white on white, text mode 3, a picture or a
box on top), nobody reads it. So a scan's invisible layer of recognised words, which lies over visible ones, counts as text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from ragkit.core.types import Floats, Json, Mask
from ragkit.load.pdf.text import Annotation, PageWords, Region
from ragkit.load.render import Pixels

FIELD, ANNOTATION, HIDDEN = "field", "annotation", "hidden"
SMALLEST = 1.0  # points; the height of letters below which nobody reads them
PIXELS = 2_000_000  # of the picture that words are looked up in
_CONTRAST = 12  # of 255, between the lightest and the darkest dot of a word
_FIELD_HEIGHT = 12.0  # points; a field's letters are no taller, however large the field
LIGHT = 230  # of 255; a colour from here on may be that of the paper
_MOST, _LONGEST = 100, 2000  # entries of meta["hidden"], characters of each


def with_annotations(page: PageWords) -> PageWords:
    """Return the page with its fields' values as words where they stand, and its annotations as words after all others."""
    fields, notes = (
        [each for each in page.annotations if each.kind == kind and each.text.split()] for kind in (FIELD, ANNOTATION)
    )
    if not fields and not notes:
        return page
    field_words, note_words = ([each.text.split() for each in group] for group in (fields, notes))
    words = field_words + note_words
    boxes = [_shares(field, own) for field, own in zip(fields, field_words, strict=True)]
    boxes += [np.array([note.box] * len(own), np.float32) for note, own in zip(notes, note_words, strict=True)]
    line = int(page.lines.max()) + 1 if len(page.lines) else 0
    lines = np.repeat(np.arange(line, line + len(words)), [len(own) for own in words])
    return replace(
        page,
        texts=[*page.texts, *chain.from_iterable(words)],
        boxes=np.concatenate([page.boxes, *boxes]),
        lines=np.concatenate((page.lines, lines)),
        glued=None if page.glued is None else np.append(page.glued, np.zeros(len(lines), bool)),
        notes=sum(map(len, note_words)),
    )


def _shares(field: Annotation, words: Sequence[str]) -> Floats:
    """Return the boxes, (w, 4), of a field's words side by side in its rectangle, each as wide as it has letters."""
    x0, y0, x1, y1 = field.box
    if y1 - y0 > _FIELD_HEIGHT:
        y0 = (y0 + y1 - _FIELD_HEIGHT) / 2 if y1 - y0 < 2.5 * _FIELD_HEIGHT else y0
        y1 = y0 + _FIELD_HEIGHT
    ends = np.cumsum([len(word) + 1 for word in words]).astype(float)
    letter = min((x1 - x0) / max(ends[-1] - 1, 1), 0.6 * (y1 - y0))
    starts = np.append(0.0, ends[:-1])
    left, right = x0 + letter * starts, x0 + letter * (ends - 1)
    return np.stack((left, np.full_like(left, y0), right, np.full_like(left, y1)), axis=1).astype(np.float32)


Look = Callable[[float, Region], tuple[int, int, bytes]]  # scale in dots a point, region -> width, height, RGB


def without_hidden(page: PageWords, look: Look) -> PageWords:
    """Return the page without those of its doubtful words that its picture does not show; they become annotations.

    `look(scale, region)` returns width, height and RGB of a region of the page's picture, which has `scale` dots a point.
    """
    if page.doubtful is None or not (page.width > 0 and page.height > 0):
        return page
    scale = min(1.0, math.sqrt(PIXELS / (page.width * page.height)))
    far = math.ceil(page.width * scale), math.ceil(page.height * scale)
    # A little within the box, where neighbours and underlines do not reach.
    boxes = page.boxes * np.array([far[0] / page.width, far[1] / page.height] * 2)
    inset = 0.1 * np.minimum(boxes[:, 2:] - boxes[:, :2], (boxes[:, 3:] - boxes[:, 1:2]))
    edges = np.concatenate((np.floor(boxes[:, :2] + inset), np.ceil(boxes[:, 2:] - inset)), axis=1)
    doubtful = edges[page.doubtful]
    low = np.clip(doubtful[:, :2].min(axis=0), 0, far).astype(int)
    high = np.clip(doubtful[:, 2:].max(axis=0), low + 1, np.maximum(far, low + 1)).astype(int)
    width, height, rgb = look(scale, (*low.tolist(), *high.tolist()))
    image = np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
    sizes = page.boxes[:, 3] - page.boxes[:, 1]
    rows = zip(page.doubtful.tolist(), (edges - [*low, *low]).astype(int).tolist(), sizes.tolist(), page.texts, strict=True)
    seen = [not doubt or _seen(image, edge, size, word) for doubt, edge, size, word in rows]
    return split(page, _settled(seen), "it cannot be seen")


def _seen(image: Pixels, edge: Sequence[int], size: float, word: str) -> bool | None:
    """Return whether a word shows, or None where it is too small a mark to tell."""
    if size < SMALLEST:
        return False
    if not any(map(str.isalnum, word)):
        return None
    x0, y0, x1, y1 = edge
    patch = image[max(y0, 0) : max(y1, y0 + 1, 0), max(x0, 0) : max(x1, x0 + 1, 0)].reshape(-1, 3)
    return bool(len(patch)) and int((patch.max(axis=0).astype(int) - patch.min(axis=0)).max()) >= _CONTRAST


def _settled(seen: Iterable[bool | None]) -> Mask:
    """Return whether each word shows, (w,); a mark that tells nothing by itself goes with the word before it."""
    settled, last = [], True
    for shows in seen:
        last = last if shows is None else shows
        settled.append(last)
    return np.array(settled, dtype=bool)


def split(page: PageWords, keep: Mask, why: str) -> PageWords:
    """Return the page without the words that are not to be kept, (w,): they become hidden annotations, a line each."""
    if keep.all():
        return page
    annotations = []
    gone, rest = np.flatnonzero(~keep), np.flatnonzero(keep)
    for run in np.split(gone, np.flatnonzero((np.diff(gone) > 1) | (np.diff(page.lines[gone]) != 0)) + 1):
        low, high = page.boxes[run, :2].min(axis=0), page.boxes[run, 2:].max(axis=0)
        annotations.append(Annotation(HIDDEN, " ".join(page.texts[i] for i in run), (*low.tolist(), *high.tolist()), why))
    return replace(
        page,
        texts=[page.texts[i] for i in rest],
        boxes=page.boxes[rest],
        lines=page.lines[rest],
        glued=None if page.glued is None else page.glued[rest],
        doubtful=None,
        annotations=(*page.annotations, *annotations),
    )


def hidden(pages: Sequence[PageWords]) -> Json:
    """Return `meta` of a document: its hidden text, by page, with reason and box in points; and how many characters there are."""
    lines = [(number, line) for number, page in enumerate(pages, start=1) for line in _hidden_lines(page)]
    if not lines:
        return {}
    entries = [
        {"page": number, "why": line.why, "text": line.text[:_LONGEST], "box": [round(side, 1) for side in line.box]}
        for number, line in lines[:_MOST]
    ]
    return {"hidden": entries, "hidden_characters": sum(len(line.text) for _, line in lines)}


def _hidden_lines(page: PageWords) -> list[Annotation]:
    """Return a page's hidden text; pieces that follow each other on a line are one."""
    lines: list[Annotation] = []
    for annotation in page.annotations:
        if annotation.kind != HIDDEN:
            continue
        if lines and _same_line(lines[-1], annotation):
            lines[-1] = _joined(lines[-1], annotation)
        else:
            lines.append(annotation)
    return lines


def _same_line(first: Annotation, second: Annotation) -> bool:
    return first.why == second.why and first.box[1] < second.box[3] and second.box[1] < first.box[3]


def _joined(first: Annotation, second: Annotation) -> Annotation:
    (a0, b0, a1, b1), (c0, d0, c1, d1) = first.box, second.box
    return replace(first, text=f"{first.text} {second.text}", box=(min(a0, c0), min(b0, d0), max(a1, c1), max(b1, d1)))

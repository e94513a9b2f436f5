"""Embed the pages of a document as a reader sees them: rendered, judged, encoded, a few at a time.

In go a document's pages and its file; out come `PageVectors`, how many pages were left out, and warnings. Rendering runs ahead
in the parser's sandbox while the encoder works, as far as 64 MiB of pictures go. Multi-vectors are brought to their stored
form at once, and those of a long document wait for their commit in an unlinked file.

Rules. There are as many rows as pages embedded, in their order. A page that cannot be rendered or encoded costs that page
alone, with a warning. The pictures are of the very bytes that the text was read from, or the document fails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import MultiVectors
from ragkit.core.errors import EncodeError, LoadError
from ragkit.core.images import Image
from ragkit.core.types import Document, Floats, Page, Patches
from ragkit.encode.contract import Encoder, ImageEncoder, as_encode_errors, checked
from ragkit.load import Parser, RenderedPage, WantedPage
from ragkit.recipe.recipe import PagesStage
from ragkit.store.values import PageVectors
from ragkit.store.vectors.multi_layout import Layout, Stored
from ragkit.store.vectors.patches import fewer_patches

BATCH = 8  # pictures encoded together; encoders cut them further by their own budgets
SPOOL = 64 << 20  # bytes of a document's multi-vectors that stay in memory before its commit
DPI = 100  # of a page for an encoder that does not say at what size it looks
INK = 48  # of 255: how far a pixel is from the paper's colour to be ink
CELL = 8  # pixels; the side of the squares in which ink is looked for
FULL = 0.1  # share of a square's pixels with ink outside the words that makes it part of a figure
# Share of a page's squares that are part of a figure from which the page has one. Of the 84 pages of `benchmarks/pages.py kept`
# the same 45 have 0.0025 or more at each of three sizes, and the others, but one, 0.0004 or less; 0.02 missed charts. A rule
# across a page has more than that, too: better a page too many than a chart too few.
FIGURE = 0.002
SCANT = 100  # characters; the text of a page with fewer says little of it. Of those 84 pages none has fewer but the blank one

NOT_SEEN = "not seen"  # in the warning of pages that should have been



@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What became of a document's pages: the vectors of some, how many were blank, how many are left to their text alone, and
    warnings of those that could not be seen."""

    vectors: PageVectors
    blank: int = 0
    plain: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Collected:
    """What `Seen` is made from, as the pages are seen."""

    pages: list[Page] = field(default_factory=list)
    patches: list[Patches | None] = field(default_factory=list)
    dense: list[Floats] = field(default_factory=list)
    multi: list[Stored] = field(default_factory=list)
    blank: int = 0
    plain: int = 0
    warnings: list[str] = field(default_factory=list)

    def vectors(self) -> PageVectors:
        dense = np.concatenate(self.dense) if self.dense else None
        return PageVectors(tuple(self.pages), tuple(self.patches), dense, tuple(self.multi))


class PageReader:
    """Renders pages with a `Parser` and embeds them, as the recipe's stage says. `folder` is where vectors of long documents
    wait."""

    def __init__(
        self,
        parser: Parser,
        encoder: Encoder,
        stage: PagesStage,
        layout: Layout | None,
        *,
        folder: Path,
        on_pages: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._parser = parser
        self._encoder = encoder
        self._stage = stage
        self._layout = layout
        self._folder = folder
        self._on_pages = on_pages

    def size(self, page: Page) -> tuple[int, int]:
        """Return the pixels at which a page is rendered: as many as the encoder looks at."""
        width, height = max(page.width, 1.0), max(page.height, 1.0)
        if isinstance(self._encoder, ImageEncoder):
            return self._encoder.image_size(width, height)
        return max(1, round(width * DPI / 72)), max(1, round(height * DPI / 72))

    def page_bytes(self, page: Page) -> int:
        """Return about how many bytes a page's multi-vector takes on disk."""
        if self._layout is None or not isinstance(self._encoder, ImageEncoder):
            return 0
        cells = self._encoder.patches(*self.size(page)).tokens.size
        return int(cells * self._layout.bytes_a_token) // self._stage.pool

    def see(self, path: Path, document: Document, *, name: Path | None = None) -> Seen:
        """Embed a document's pages, rendered from the file at `path`. `name` is the file's own, where `path` is a copy."""
        collected = _Collected()
        with closing(_Spool(self._folder)) as spool:
            self._see(path, document, collected, spool, name=name)
        return Seen(collected.vectors(), collected.blank, collected.plain, tuple(collected.warnings))

    def _see(self, path: Path, document: Document, collected: _Collected, spool: _Spool, *, name: Path | None) -> None:
        pages = {page.number: page for page in document.pages}
        requests = [WantedPage(page.number, *self.size(page)) for page in document.pages]
        rendered = zip(document.pages, self._parser.render_pages(path, requests, name=name), strict=True)
        while batch := list(islice(rendered, BATCH)):
            chosen = [picture for page, picture in batch if self._is_chosen(document, page, picture, collected)]
            pictures = [(pages[picture.number], picture.image) for picture in chosen if isinstance(picture, RenderedPage)]
            self._encode(pictures, collected)
            collected.multi = spool.relieve(collected.multi)
            self._on_pages(len(batch))

    def _is_chosen(
        self, document: Document, page: Page, picture: RenderedPage | LoadError, collected: _Collected
    ) -> bool:
        """Whether a page is embedded by the stage's rule; the others are counted, or warned of."""
        if isinstance(picture, LoadError):
            collected.warnings.append(f"page {page.number} was {NOT_SEEN}: {picture}")
            return False
        if picture.blank:
            collected.blank += 1
            return False
        if self._stage.which == "all" or figure_share(picture.image, page) >= FIGURE:
            return True
        if self._stage.which == "auto" and len(page.span.of(document.text).strip()) < SCANT:
            return True
        collected.plain += 1
        return False

    def _encode(self, pictures: Sequence[tuple[Page, Image]], collected: _Collected) -> None:
        if not pictures:
            return
        try:
            with as_encode_errors():
                dense, multi, patches = self._vectors([image for _, image in pictures])
        except EncodeError as error:
            if len(pictures) == 1:
                collected.warnings.append(f"page {pictures[0][0].number} was {NOT_SEEN}: {error}")
                return
            for picture in pictures:  # one bad picture must not take its neighbours with it
                self._encode([picture], collected)
            return
        collected.dense += [] if dense is None else [dense]
        collected.multi += [] if multi is None else [multi]
        collected.pages += [page for page, _ in pictures]
        collected.patches += patches

    def _vectors(self, images: Sequence[Image]) -> tuple[Floats | None, Stored | None, list[Patches | None]]:
        """Return what is stored of n pictures: dense vectors (n, d), n multi-vectors as on disk, and where these look."""
        stage = self._stage
        encoding = self._encoder.encode_document(images, task=stage.task, truncate_dim=stage.dims, truncate=True)
        width = stage.dims or self._encoder.card.dims
        checked(encoding, len(images), dense=width if stage.dense else 0, multi=self._layout is not None)
        dense = encoding.dense if stage.dense else None
        patches = [self._patches(image) for image in images]
        if self._layout is None:
            return dense, None, patches
        assert encoding.multi is not None
        reduced = [self._reduced(encoding.multi[number], patches[number], image) for number, image in enumerate(images)]
        multi = self._layout.store(MultiVectors.pack([rows for rows, _ in reduced]))
        return dense, multi, [grid for _, grid in reduced]

    def _patches(self, image: Image) -> Patches | None:
        return self._encoder.patches(image.width, image.height) if isinstance(self._encoder, ImageEncoder) else None

    def _reduced(self, rows: Floats, patches: Patches | None, image: Image) -> tuple[Floats, Patches | None]:
        """Return a page's multi-vector with fewer vectors, as the stage says, and where these look."""
        if patches is None:
            return rows, patches
        return fewer_patches(rows, patches, pool=self._stage.pool, background=self._stage.background, image=image)


class _Spool:
    """Multi-vectors that wait for their commit: in memory, or beyond SPOOL bytes in a file without a name, which no crash leaves
    behind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def relieve(self, parts: list[Stored]) -> list[Stored]:
        """Return the parts; those in memory are written to the file where they are too large together."""
        held = [part for part in parts if not isinstance(part.values, np.memmap)]
        if sum(part.values.nbytes for part in held) < SPOOL:
            return parts
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it is closed by `close`
        joined = Stored.join(held)
        begin = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(joined.values).data)
        self._file.flush()
        mapped = np.memmap(self._file, dtype=joined.values.dtype, mode="r", offset=begin, shape=joined.values.shape)
        return [*(part for part in parts if isinstance(part.values, np.memmap)), Stored(mapped, joined.lengths, joined.loss)]

    def close(self) -> None:
        """Close the file. What is mapped of it stays readable for as long as it is used."""
        if self._file is not None:
            self._file.close()


def figure_share(image: Image, page: Page) -> float:
    """Return the share of a page, 0-1, that has ink other than words: pictures, drawings, charts. It is 1 for a page without
    words that has ink all over."""
    grey = np.asarray(image.convert("L"))
    height, width = (side // CELL * CELL for side in grey.shape)
    if height == 0 or width == 0:
        return 0.0
    paper = int(np.bincount(grey.ravel(), minlength=256).argmax())
    ink = np.abs(grey.astype(np.int16) - paper) > INK
    for x0, y0, x1, y1 in _pixels(page, grey.shape):
        ink[y0:y1, x0:x1] = False
    cells = ink[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL).mean(axis=(1, 3))
    return float((cells >= FULL).mean())


def _pixels(page: Page, shape: tuple[int, ...]) -> Iterator[list[int]]:
    """Yield the words' boxes in pixels of the rendered page, a little larger, since ink runs over."""
    boxes = page.words.boxes
    if len(boxes) == 0 or page.width <= 0 or page.height <= 0:
        return
    scale = np.array([shape[1] / page.width, shape[0] / page.height] * 2)
    grown = boxes * scale + np.array([-2, -2, 2, 2])
    limits = np.array([shape[1], shape[0]] * 2)
    whole: npt.NDArray[np.int64] = np.clip(np.rint(grown), 0, limits).astype(np.int64)
    yield from whole.tolist()

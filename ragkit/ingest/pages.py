"""Embed the page images of documents: which documents have any, from which file, and what is reported when some cannot be seen.

`page_images` renders and encodes the pages of one file; this module decides about the document. No store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.encode.contract import Encoder
from ragkit.ingest.item import CHANGED, Item, is_unchanged
from ragkit.ingest.page_images import NOT_SEEN, PageReader, Seen
from ragkit.ingest.report import Report
from ragkit.load import Parser, can_render
from ragkit.recipe.create import layouts_of
from ragkit.recipe.recipe import Recipe
from ragkit.store.values import PAGE


@dataclass(frozen=True, slots=True, eq=False)
class PageEmbedder:
    """Embeds page images by a recipe's stage `pages`. `parser` renders; `scratch` is the folder where vectors of long documents
    wait for their commit."""

    recipe: Recipe
    encoder: Encoder
    report: Report
    parser: Parser
    scratch: Path

    def embed(self, item: Item, path: Path | None, *, had_pages: bool = False) -> None:
        """Set the page vectors of a document, or warn of the pages that cannot be seen.

        path: where the bytes are that its text was read from; None where they are gone. had_pages: page images of it are in
        the index that is being rebuilt. LoadError where these would be lost, or the file changes meanwhile.
        """
        if item.file is None and item.origin.path is not None:
            item.warnings += (f"its pages were {NOT_SEEN}, since it lies within another file: add it by itself",)
        if not has_page_images(item):
            return
        if path is None:
            self._note_missing_file(item, had_pages=had_pages)
            return
        seen = self._see(item, path)
        if len(seen.warnings) == len(item.document.pages) and had_pages:
            raise LoadError(f"none of its pages can be seen again: {seen.warnings[0]}")  # what was seen before must not be lost
        item.seen, item.complete = seen.vectors, item.complete and not seen.warnings
        item.warnings += seen.warnings
        if not item.units and not seen.warnings:
            item.warnings += ("nothing was found in it: no text, and no page that is not blank",)
        self.report.count_pages(len(seen.vectors.pages), blank=seen.blank)

    def _note_missing_file(self, item: Item, *, had_pages: bool) -> None:
        if had_pages:
            raise LoadError(
                f"{item.file} has moved or changed, so its pages cannot be seen. Put it back, or add it again; "
                "keep_sources=True keeps a copy"
            )
        item.complete = False
        item.warnings += (f"its pages were {NOT_SEEN}, since {item.file} has moved or changed: add it again",)

    def _see(self, item: Item, path: Path) -> Seen:
        stage = self.recipe.pages
        assert stage is not None
        layout = layouts_of(self.recipe).get(PAGE)
        reader = PageReader(
            self.parser, self.encoder, stage, layout, folder=self.scratch, on_pages=self.report.count_rendered
        )  # fmt: skip
        if self.report.needs_cost(PAGE):
            size = sum(reader.page_bytes(page) for page in item.document.pages)
            self.report.tell_cost(PAGE, size, documents=1)
        seen = reader.see(path, item.document, name=item.file)
        if not is_unchanged(path, item.origin.content_hash, item.stamp if path == item.file else None):
            raise LoadError(CHANGED)
        return seen


def has_page_images(item: Item) -> bool:
    """Whether a document has pages to look at: it is a file of its own that can be rendered."""
    return bool(item.document.pages) and item.file is not None and can_render(item.file)


def page_warnings(warnings: Iterable[str]) -> tuple[str, ...]:
    """Return those warnings that are about pages that were not seen."""
    return tuple(warning for warning in warnings if NOT_SEEN in warning)


def textless_pages(document: Document) -> int:
    """Return how many pages of a PDF or an image have no text. Pages that could not be read are not counted."""
    if document.mime != "application/pdf" and not document.mime.startswith("image/"):
        return 0
    unread = document.meta.get("unread")
    empty = sum(1 for page in document.pages if not page.span.length)
    return empty - (len(unread) if isinstance(unread, list) else 0)

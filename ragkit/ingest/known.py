"""Tell what the index holds already: which documents are unchanged, and which vectors need not be made again.

It only reads. An index that is being rebuilt is asked too: its recipe is another, but many of its vectors may be taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ragkit.core.arrays import unit_rows
from ragkit.core.types import Metadata
from ragkit.ingest.item import USER_FIELDS, Item, is_unchanged
from ragkit.ingest.reuse import EmbeddingInput, ReusedVectors, page_units, reusable_vectors, same_content, stored_pages
from ragkit.load import can_render, office
from ragkit.recipe.create import layouts_of
from ragkit.recipe.recipe import Recipe
from ragkit.store.local import source_copies
from ragkit.store.local.store import Store
from ragkit.store.local.writer import Writer
from ragkit.store.values import CHUNK, DocumentRow, PageVectors


@dataclass(frozen=True, slots=True, eq=False)
class FormerIndex:
    """The index that is being rebuilt, and what of it may be taken over.

    same_texts: its recipe's hash, where the vectors of its texts may be; same_pages: those of its pages may be, cut to fewer
    dims.
    """

    store: Store
    same_texts: str | None = None
    same_pages: bool = False


class KnownDocuments:
    """The live documents of an index, and of the one that is being rebuilt, if one is."""

    def __init__(
        self, path: Path, writer: Writer, recipe: Recipe, *, sees_pages: bool, former: FormerIndex | None = None
    ) -> None:
        """path: the index's folder. sees_pages: whether page images are embedded, so that a document may lack them."""
        self._path = path
        self._writer = writer
        self._recipe = recipe
        self._sees_pages = sees_pages
        self._former = former

    def find(self, identity: str) -> DocumentRow | None:
        """Return the live version of a document."""
        return self._writer.reader().by_identity(identity)

    def is_current(self, row: DocumentRow | None, digest: str, user_fields: Metadata | None = None) -> bool:
        """Whether the index holds this content, made by this recipe, with the user's fields as they are now."""
        if row is None or row.content_hash != digest or row.recipe_hash != self._recipe.hash:
            return False
        if user_fields is not None and not same_user_fields(row.meta, user_fields):
            return False
        return not (self._sees_pages and row.path is not None and lacked_office(row) and can_render(row.path))

    def vectors(self, items: Sequence[Item]) -> list[ReusedVectors | None]:
        """Return the vectors that are known for each document's chunks, or None where they must be made."""
        inputs = [embedding_input(item) for item in items]
        multi = CHUNK in layouts_of(self._recipe)
        current = reusable_vectors(self._writer.reader(), inputs, recipe_hash=self._recipe.hash, multi=multi)
        if self._former is None or self._former.same_texts is None:
            return current
        reader, multi = self._former.store.reader(), CHUNK in self._former.store.layouts
        rows = [reader.by_identity(item.origin.identity) for item in items]
        inputs = [replace(each, former=row) for each, row in zip(inputs, rows, strict=True)]
        former = reusable_vectors(reader, inputs, recipe_hash=self._former.same_texts, multi=multi)
        return [first or second for first, second in zip(current, former, strict=True)]

    def pages(self, item: Item) -> PageVectors | None:
        """Return the page vectors of a live document with the same bytes and recipe, or this document's in the former index."""
        digest, pages = item.origin.content_hash, item.document.pages
        reader = self._writer.reader()
        for row in same_content(reader, {digest}, recipe_hash=self._recipe.hash).get(digest, []):
            if (vectors := stored_pages(reader, row, pages)) is not None:
                return vectors
        return self._former_pages(item)

    def _former_pages(self, item: Item) -> PageVectors | None:
        if self._former is None or not self._former.same_pages:
            return None
        reader = self._former.store.reader()
        row = reader.by_identity(item.origin.identity)
        if row is None:
            return None
        if not self.had_pages(item):
            return PageVectors((), (), None, ())  # its pages were looked at, and none was worth a vector
        vectors = stored_pages(reader, row, item.document.pages)
        dims = self._recipe.pages.dims if self._recipe.pages is not None else None
        if vectors is None or vectors.dense is None or dims is None or dims >= vectors.dense.shape[1]:
            return vectors
        return replace(vectors, dense=unit_rows(vectors.dense[:, :dims]))

    def had_pages(self, item: Item) -> bool:
        """Whether the former index holds page images of the document, which must not be lost."""
        if self._former is None:
            return False
        reader = self._former.store.reader()
        row = reader.by_identity(item.origin.identity)
        return row is not None and bool(page_units(reader, row))

    def file_of(self, item: Item) -> Path | None:
        """Return where a document's bytes still are: its file, or the copy that the index keeps; None where nowhere."""
        if item.file is None or is_unchanged(item.file, item.origin.content_hash, item.stamp):
            return item.file
        folder = self._path if self._former is None else self._former.store.path
        return source_copies.kept(folder, item.origin.content_hash)


def embedding_input(item: Item) -> EmbeddingInput:
    return EmbeddingInput(item.document, item.chunks, item.origin.content_hash, item.replaces)


def lacked_office(row: DocumentRow) -> bool:
    """Whether a document was read without its pages because LibreOffice was not installed."""
    unread = row.meta.get("unread")
    return isinstance(unread, list) and any(str(office.missing()) in str(part) for part in unread)


def same_user_fields(meta: Metadata, user_fields: Metadata) -> bool:
    """Whether stored metadata holds the user's fields as they are now, no fewer and no more."""
    return bool(meta.get(USER_FIELDS, {}) == dict(user_fields))

"""The seam between an index and its storage: what a store, a reader of one commit, and a writer can do.

`ragkit.store.local` keeps an index in a folder; `ragkit.testing.MemoryStore` keeps one in memory, as an oracle. A third passes
`ragkit.testing.assert_store_contract`. Verifying, repairing, copying and compacting are no part of the seam: each store has its
own ways there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ragkit.core.space import Space
from ragkit.core.types import Block, Document, Floats, Ints, Page, Span
from ragkit.store.filter import Filter
from ragkit.store.values import Commit, DocumentRow, Failure, Prepared, UnitRow

Ranked: TypeAlias = tuple[Ints, npt.NDArray[np.floating[Any]]]  # keys (n,) int64 and scores (n,), best first, ties by key
Queries: TypeAlias = Sequence[str] | Floats | Sequence[Floats]  # texts; unit rows (q, d); q arrays of (t, d) unit rows
FindBy = Literal["identity", "reference", "file", "beneath", "content", "id"]


class Store(Protocol):
    """Where an index lives. Any number of threads and processes read; one at a time writes."""

    def setting(self, name: str) -> Any:
        """Return a setting, of JSON values; None where it was never set."""

    def reader(self, *, degraded: bool = False) -> Reader:
        """Return the newest commit; Damaged where it is not whole. degraded: without what is damaged, which `missing` names."""

    def writer(self, *, timeout: float) -> AbstractContextManager[Writer]:
        """Return the only writer, until the block ends; IndexLocked where another does not end in `timeout` seconds."""

    def close(self) -> None:
        """Let go of files and connections."""


class Reader(Protocol):
    """One commit: vectors, words, documents, failures. It never changes, and serves any number of threads."""

    @property
    def commit(self) -> Commit: ...
    @property
    def missing(self) -> Sequence[str]:
        """What a degraded reader leaves out, in words."""

    # Vectors and words

    def search(
        self,
        space: Space,
        queries: Queries,
        k: int,
        *,
        where: Filter | None = None,
        dims: int | None = None,
        exact: bool = False,
    ) -> Sequence[Ranked]:
        """Return the k best units of a space per query. where: the documents to answer from; of a filter that speaks of passages,
        those of which some passage may match: see `passage_test`. dims: compare only the first dims of dense vectors.
        exact: no shortcut decides what is compared."""

    def scores(self, space: Space, query: Floats, keys: Ints) -> Ranked:
        """Return those of the keys that have multi-vectors, ranked by MaxSim with a query (t, d)."""

    def matches(self, space: Space, query: Floats, key: int) -> tuple[Ints, npt.NDArray[np.floating[Any]]]:
        """Return, per vector of a query (t, d), the unit's vector that matched best and its share of the MaxSim score, (t,) each;
        KeyError for a unit that has none here."""

    def rows(self, space: Space, keys: Iterable[int]) -> Mapping[int, Floats]:
        """Return the dense vectors (d,) of those units that have one, by key."""

    def scan(self, space: Space) -> Iterator[tuple[Ints, object]]:
        """Yield every unit of a space once, in parts and in no order: keys (n,), and n rows as the store keeps them."""

    # Documents

    def documents(self, where: Filter | None = None) -> Iterator[DocumentRow]:
        """Yield the documents, or those that match a filter of documents, by id, without their texts."""

    def find(self, names: Iterable[str | int], *, by: FindBy) -> Sequence[DocumentRow]:
        """Return the documents that the names name, by id. What names them: their identity; a reference, which is a source, a
        record's id, a path or an identity; the file that they were read from with others; a file or folder above them; the hash
        of their content; or their id."""

    def units(self, keys: Iterable[int]) -> Mapping[int, UnitRow]:
        """Return units by key; StorageError where one is not there."""

    def known_units(self, keys: Iterable[int]) -> Mapping[int, UnitRow]:
        """Return those units of the keys that are there, by key."""

    def units_of(self, document: int) -> Sequence[UnitRow]:
        """Return all units of a document version, by key."""

    def passage_test(self, where: Filter | None) -> Callable[[UnitRow], bool] | None:
        """Return whether a unit that was found satisfies a filter; None where the filter speaks of documents alone."""

    def passages(self, spans: Sequence[tuple[int, Span]]) -> Sequence[tuple[str, Sequence[Page]]]:
        """Return, for each (document version, span), its text and the pages it overlaps."""

    def pages(self, document: int, span: Span | None = None) -> Sequence[Page]:
        """Return the pages of a document version, or those whose text overlaps a span."""

    def blocks(self, document: int) -> Sequence[Block]:
        """Return the structure that the loader of a document version saw, in order."""

    def document(self, row: DocumentRow) -> Document:
        """Return a whole document, as its loader made it."""

    def failures(self) -> Sequence[Failure]:
        """Return the documents that failed when they were last added, by source."""


class Writer(Protocol):
    """Stages changes, until a commit makes them visible, all at once. What is not committed when its block ends is dropped."""

    def reader(self) -> Reader:
        """Return the newest commit, this writer's own included."""

    def add(self, prepared: Prepared) -> None:
        """Stage a document. Its commit ends the life of the version it replaces, and clears its failure."""

    def delete(self, documents: Iterable[int]) -> None:
        """Stage the deletion of document versions, by id."""

    def fail(self, failure: Failure) -> None:
        """Stage a document that could not be added."""

    def forgive(self, identities: Iterable[str]) -> None:
        """Stage that failures of these documents are forgotten."""

    def commit(self, kind: str, *, recipe_hash: str = "", settings: Mapping[str, Any] | None = None) -> Commit:
        """Make everything staged visible, with changed settings where given; return the newest commit. StorageError where a
        version to replace or delete is not live any more: then nothing is changed."""

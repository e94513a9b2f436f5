"""A store in memory, of dictionaries and NumPy: the plainest thing that keeps the laws of `ragkit.store.protocol`.

For tests that want no disk, and as the oracle of other stores: nothing is compressed, and every search is a loop over all units.
Multi-vectors must come in float32, as `Layout(dims, "float32")` stores them.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ragkit.core.arrays import top_k, unit_rows
from ragkit.core.errors import IndexLocked, StorageError
from ragkit.core.space import Space
from ragkit.core.types import Block, Document, Floats, Ints, Page, Span
from ragkit.store.filter import UNIT_FIELDS, Filter, bounds, fields_of, passage_test, satisfies
from ragkit.store.protocol import FindBy, Queries, Ranked
from ragkit.store.values import CHUNK, PAGE, Commit, DocumentRow, Failure, Prepared, UnitRow
from ragkit.store.vectors.multi_layout import Stored


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    """A document version: its row, content, units and their vectors by key."""

    row: DocumentRow
    document: Document
    units: tuple[UnitRow, ...]
    vectors: Mapping[Space, Mapping[int, Floats]]  # dense (d,), multi (t, d)


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """Everything one commit sees."""

    commit: Commit
    versions: Mapping[int, _Version] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class MemoryStore:
    """An index in memory."""

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self._state = _State(Commit(1, "", 0, 0), settings=dict(settings or {}))
        self._writing = threading.Lock()
        self._next = {"document": 1, "key": 1}

    def setting(self, name: str) -> Any:
        return self._state.settings.get(name)

    def reader(self, *, degraded: bool = False) -> MemoryReader:
        return MemoryReader(self._state)

    @contextmanager
    def writer(self, *, timeout: float) -> Iterator[MemoryWriter]:
        if not self._writing.acquire(timeout=max(timeout, 0)):
            raise IndexLocked("this store is being written to by another thread. Wait for it to finish.")
        try:
            yield MemoryWriter(self)
        finally:
            self._writing.release()

    def close(self) -> None:
        """Nothing is held."""


class MemoryReader:
    """One commit of a `MemoryStore`."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._units = {unit.key: unit for version in state.versions.values() for unit in version.units}

    @property
    def commit(self) -> Commit:
        return self._state.commit

    @property
    def missing(self) -> Sequence[str]:
        return ()

    def search(
        self,
        space: Space,
        queries: Queries,
        k: int,
        *,
        where: Filter | None = None,
        dims: int | None = None,
        exact: bool = False,
    ) -> list[Ranked]:
        versions = [version for version in self._state.versions.values() if where is None or _may_match(where, version.row)]
        if space.form == "lexical":
            return [_best(_bm25(str(query), versions), k) for query in queries]
        vectors = {key: row for version in versions for key, row in version.vectors.get(space, {}).items()}
        if space.form == "multi":
            return [_best({key: _maxsim(np.asarray(query), rows) for key, rows in vectors.items()}, k) for query in queries]
        if dims is not None:
            queries = unit_rows(np.asarray(queries, dtype=np.float32)[:, :dims])
            vectors = {key: unit_rows(row[None, :dims])[0] for key, row in vectors.items()}
        return [_best({key: float(np.asarray(query) @ row) for key, row in vectors.items()}, k) for query in queries]

    def scores(self, space: Space, query: Floats, keys: Ints) -> Ranked:
        vectors = self._vectors(space)
        return _best({key: _maxsim(query, vectors[key]) for key in keys.tolist() if key in vectors}, len(keys))

    def matches(self, space: Space, query: Floats, key: int) -> tuple[Ints, Floats]:
        similarities = query @ self._vectors(space)[key].T
        return similarities.argmax(axis=1), similarities.max(axis=1)

    def rows(self, space: Space, keys: Iterable[int]) -> dict[int, Floats]:
        vectors = self._vectors(space)
        return {key: vectors[key] for key in keys if key in vectors}

    def scan(self, space: Space) -> Iterator[tuple[Ints, object]]:
        for key, row in self._vectors(space).items():
            yield np.array([key], dtype=np.int64), row[None]

    def documents(self, where: Filter | None = None) -> Iterator[DocumentRow]:
        rows = (version.row for _, version in sorted(self._state.versions.items()))
        return (row for row in rows if where is None or satisfies(where, row))

    def find(self, names: Iterable[str | int], *, by: FindBy) -> list[DocumentRow]:
        names = list(names)
        return [row for row in self.documents() if any(_named(row, name, by) for name in names)]

    def documents_by_id(self, ids: Iterable[int]) -> dict[int, DocumentRow]:
        return {id: self._version(id).row for id in ids}

    def units(self, keys: Iterable[int]) -> dict[int, UnitRow]:
        keys = list(keys)
        found = self.known_units(keys)
        if missing := [key for key in keys if key not in found]:
            raise StorageError(f"there is no unit {missing[0]}")
        return found

    def known_units(self, keys: Iterable[int]) -> dict[int, UnitRow]:
        return {key: self._units[key] for key in keys if key in self._units}

    def units_of(self, document: int) -> list[UnitRow]:
        return list(self._state.versions[document].units) if document in self._state.versions else []

    def passage_test(self, where: Filter | None) -> Callable[[UnitRow], bool] | None:
        return passage_test(where, self)

    def passages(self, spans: Sequence[tuple[int, Span]]) -> list[tuple[str, list[Page]]]:
        return [(span.of(self._version(id).document.text), self.pages(id, span)) for id, span in spans]

    def pages(self, document: int, span: Span | None = None) -> list[Page]:
        return [page for page in self._version(document).document.pages if span is None or page.span.overlaps(span)]

    def page(self, document: int, number: int) -> Page:
        return next(page for page in self.pages(document) if page.number == number)

    def blocks(self, document: int) -> tuple[Block, ...]:
        return self._version(document).document.blocks

    def document(self, row: DocumentRow) -> Document:
        return replace(self._version(row.id).document, id=row.source)

    def failures(self) -> list[Failure]:
        return sorted(self._state.failures.values(), key=lambda failure: failure.source)

    def _version(self, id: int) -> _Version:
        if id not in self._state.versions:
            raise StorageError(f"there is no document {id}")
        return self._state.versions[id]

    def _vectors(self, space: Space) -> dict[int, Floats]:
        return {key: row for version in self._state.versions.values() for key, row in version.vectors.get(space, {}).items()}


class MemoryWriter:
    """The writer of a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._drop()

    def _drop(self) -> None:
        self._prepared: list[Prepared] = []
        self._deleted: set[int] = set()
        self._failures: dict[str, Failure] = {}
        self._forgiven: set[str] = set()

    def reader(self) -> MemoryReader:
        return self._store.reader()

    def add(self, prepared: Prepared) -> None:
        self._failures.pop(prepared.origin.identity, None)
        self._prepared.append(prepared)

    def delete(self, documents: Iterable[int]) -> None:
        self._deleted.update(documents)

    def fail(self, failure: Failure) -> None:
        self._failures[failure.identity] = failure

    def forgive(self, identities: Iterable[str]) -> None:
        for identity in identities:
            self._failures.pop(identity, None)
            self._forgiven.add(identity)

    def commit(self, kind: str, *, recipe_hash: str = "", settings: Mapping[str, Any] | None = None) -> Commit:
        state, prepared = self._store._state, self._prepared
        mended = self._forgiven.union(item.origin.identity for item in prepared)
        failures = {name: failure for name, failure in state.failures.items() if name not in mended} | self._failures
        deleted = self._deleted.union(item.replaces for item in prepared if item.replaces is not None)
        self._drop()
        if not (prepared or deleted or settings):
            self._store._state = replace(state, failures=failures)
            return state.commit
        versions = dict(state.versions)
        if gone := deleted - versions.keys():
            raise StorageError(f"{len(gone)} of {len(deleted)} documents to replace are not live any more; nothing was changed")
        for id in deleted:
            del versions[id]
        number = state.commit.number + 1
        for item in prepared:
            version = self._version(item, recipe_hash, number)
            versions[version.row.id] = version
        commit = Commit(number, "", len(versions), sum(len(version.units) for version in versions.values()))
        self._store._state = _State(commit, versions, failures, {**state.settings, **(settings or {})})
        return commit

    def _version(self, item: Prepared, recipe_hash: str, commit: int) -> _Version:
        id = self._take("document", 1)
        pages = item.seen.pages if item.seen else ()
        first = self._take("key", len(item.chunks) + len(pages))
        chunks = [UnitRow(first + at, id, CHUNK, chunk.span, chunk.headings) for at, chunk in enumerate(item.chunks)]
        first += len(chunks)
        seen = [UnitRow(first + at, id, PAGE, page.span, page=page.number) for at, page in enumerate(pages)]
        document, origin = item.document, item.origin
        vectors = {
            Space.DENSE: _by_key(chunks, item.dense),
            Space.MULTI: _by_key(chunks, _multi_rows(() if item.multi is None else (item.multi,))),
            Space.PAGE_DENSE: _by_key(seen, item.seen.dense if item.seen else None),
            Space.PAGE_MULTI: _by_key(seen, _multi_rows(item.seen.multi if item.seen else ())),
        }
        row = DocumentRow(
            id=id,
            identity=origin.identity,
            root=origin.root,
            path=origin.path,
            source=origin.source,
            content_hash=origin.content_hash,
            recipe_hash=recipe_hash if item.complete else "",
            title=document.title,
            mime=document.mime,
            lang=origin.lang,
            meta=document.meta,
            characters=len(document.text),
            units=len(chunks) + len(seen),
            added=commit,
            deleted=None,
        )
        return _Version(row, document, (*chunks, *seen), vectors)

    def _take(self, name: str, count: int) -> int:
        first = self._store._next[name]
        self._store._next[name] += count
        return first


def _by_key(units: Sequence[UnitRow], rows: Sequence[Floats] | Floats | None) -> dict[int, Floats]:
    return {} if rows is None else {unit.key: row for unit, row in zip(units, rows, strict=False)}


def _multi_rows(parts: Iterable[Stored]) -> list[Floats]:
    rows: list[Floats] = []
    for part in parts:
        ends = np.cumsum(part.lengths)
        rows += [np.asarray(row, dtype=np.float32) for row in np.split(part.values, ends[:-1])]
    return rows


def _may_match(where: Filter, row: DocumentRow) -> bool:
    """Whether a document matches a filter or, of one that speaks of passages, some passage of it may."""
    if not fields_of(where) & UNIT_FIELDS:
        return satisfies(where, row)
    _, may = bounds(where, lambda condition: np.array([satisfies(condition, row)]), 1)
    return bool(may[0])


def _named(row: DocumentRow, name: str | int, by: FindBy) -> bool:
    text, path = str(name), os.path.abspath(os.path.expanduser(str(name)))  # noqa: PTH100, PTH111 - links are not followed
    if by == "reference":
        return row.source == text or row.identity in (text, f"id:{text}", path)
    if by == "file":
        return row.path is not None and (row.path == path or row.source.startswith(f"{text}#"))
    if by == "beneath":
        return row.path is not None and (row.path == text or row.path.startswith(text.rstrip("/") + "/"))
    return name == {"identity": row.identity, "content": row.content_hash, "id": row.id}[by]


def _best(scores: Mapping[int, float], k: int) -> Ranked:
    keys, values = np.array(list(scores), dtype=np.int64), np.array(list(scores.values()), dtype=np.float64)
    best = top_k(values, keys, k)
    return keys[best], values[best]


def _maxsim(query: Floats, rows: Floats) -> float:
    """Return the sum, over the query's vectors, of the best match among the rows."""
    return float((query.astype(np.float64) @ rows.T.astype(np.float64)).max(axis=1).sum())


def _bm25(query: str, versions: Sequence[_Version]) -> dict[int, float]:
    """Score the chunks that have a word of the query (Robertson & Zaragoza 2009, k1 1.2, b 0.75); words are runs of letters."""
    chunks = [(unit, version) for version in versions for unit in version.units if unit.kind == CHUNK]
    counts = {unit.key: Counter(_words(unit.span.of(version.document.text))) for unit, version in chunks}
    mean = sum(map(Counter.total, counts.values())) / max(1, len(counts))
    scores: dict[int, float] = {}
    for word in _words(query):
        having = [key for key, words in counts.items() if word in words]
        weight = np.log(1 + (len(counts) - len(having) + 0.5) / (len(having) + 0.5))
        for key in having:
            count, length = counts[key][word], counts[key].total()
            share = weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))
            scores[key] = scores.get(key, 0.0) + float(share)
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

"""An index with its search options fixed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ragkit.core.types import Hit, Hits
from ragkit.search.queries import Query


class Searchable(Protocol):
    """What a retriever needs of an index: `ragkit.Index` has it."""

    @property
    def search(self) -> Callable[..., Hits]: ...
    @property
    def search_many(self) -> Callable[..., list[Hits]]: ...
    @property
    def asearch(self) -> Callable[..., Awaitable[Hits]]: ...
    @property
    def stream(self) -> Callable[..., Iterator[Hit]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Retriever:
    """An index with k and search options fixed. Call it, or `search`, with a query."""

    index: Searchable
    k: int
    options: Mapping[str, object]

    def search(self, query: Query, **changes: Any) -> Hits:
        """Return the hits of a query; options given here take precedence over the fixed ones."""
        return self.index.search(query, **self._options(changes))

    __call__ = search

    def search_many(self, queries: list[Query], **changes: Any) -> list[Hits]:
        """Return the hits of each query."""
        return self.index.search_many(queries, **self._options(changes))

    async def asearch(self, query: Query, **changes: Any) -> Hits:
        """`search` in a thread, so that an event loop goes on meanwhile."""
        return await self.index.asearch(query, **self._options(changes))

    def stream(self, query: Query, **changes: Any) -> Iterator[Hit]:
        """Yield the hits one by one, read as they are taken; if they are refined, all are found first."""
        options = self._options(changes)
        if any(options.get(name) for name in ("phrasings", "rerank", "diversity", "degraded")):
            return iter(self.index.search(query, **options))
        return self.index.stream(query, **options)

    def _options(self, changes: Mapping[str, object]) -> dict[str, object]:
        return {"k": self.k, **self.options, **changes}

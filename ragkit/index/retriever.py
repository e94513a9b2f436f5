"""An index with search settings fixed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from ragkit.core.types import Hit
from ragkit.search.request import Refinement


class Searchable(Protocol):
    """What a retriever needs of an index: `ragkit.Index` has it."""

    @property
    def search(self) -> Callable[..., Any]: ...
    @property
    def asearch(self) -> Callable[..., Any]: ...
    @property
    def stream(self) -> Callable[..., Any]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Retriever:
    """An index with k and search settings fixed. Call it, or `search`, with a query or a list of them."""

    index: Searchable
    k: int
    options: Mapping[str, Any]

    def search(self, query: str | list[str], **changes: Any) -> Any:
        """The hits of a query, or a list of lists for a list; keywords given here take precedence over the fixed ones."""
        return self.index.search(query, **{"k": self.k, **self.options, **changes})

    __call__ = search

    async def asearch(self, query: str | list[str], **changes: Any) -> Any:
        """`search` in a thread, so that an event loop goes on meanwhile."""
        return await self.index.asearch(query, **{"k": self.k, **self.options, **changes})

    def stream(self, query: str, **changes: Any) -> Iterator[Hit]:
        """The hits one by one, read as they are taken; where they are refined, all are found first."""
        settings = {"k": self.k, **self.options, **changes}
        if settings.keys() & {"degraded", *(one.name for one in fields(Refinement))}:
            return iter(self.index.search(query, **settings))
        hits: Iterator[Hit] = self.index.stream(query, **settings)
        return hits

    async def astream(self, query: str, **changes: Any) -> AsyncIterator[Hit]:
        """`stream`, each step in a thread."""
        hits = await asyncio.to_thread(self.stream, query, **changes)
        while (hit := await asyncio.to_thread(next, hits, None)) is not None:
            yield hit

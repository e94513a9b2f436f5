"""Limits on one request, and on all waiting requests together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ragkit.load.limits import parsed

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLimits:
    """Every field can be set. A request over one of them is refused, with the limit in the message."""

    body_bytes: int = 64 * MIB  # of a request, read into memory
    upload_bytes: int = 1024 * MIB  # of a request that brings files, which go to the disk
    input_bytes: int = 8_000_000  # of one image, decoded from base64, or fetched
    inputs: int = 2048  # of a request for embeddings or reranking
    tokens: int = 300_000  # of all inputs of a request
    query_characters: int = 100_000  # of a search's text; words are looked for one by one
    answer_characters: int = 20_000_000  # of the passages of one answer, widened ones too
    k: int = 1000
    filter_depth: int = 10
    seconds: float = 60.0  # from the last byte of a request to the first of its answer
    idle_seconds: float = 20.0  # between two pieces of a request's body
    waiting_requests: int = 256  # for one model, or for searches
    waiting_tokens: int = 1_000_000  # for one model
    waiting_jobs: int = 64  # additions
    batch_tokens: int = 16_384  # computed together
    searches: int = 4  # at the same time

    @classmethod
    def parse(cls, settings: Iterable[str]) -> ServeLimits:
        """Limits from "name=value" texts, as the command line takes them; the others stay at their defaults."""
        return cls(**parsed(cls, settings))

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"ServeLimits.{name} must be above 0, got {getattr(self, name)}")

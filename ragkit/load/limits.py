"""How much one document may take before it is given up, and what a loader is told.

Values only. The parent counts time from outside the child (`sandbox`); the child's own kernel limits hold memory; the
rest is checked where the bytes are read and again, before anything is allocated, where the answer is received (`wire`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ragkit.errors import LimitExceeded

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one document may cost. Every field can be set; a document over one of them fails with `LimitExceeded`."""

    seconds: float = 300.0  # wall time per document (per record of a JSONL file), while its results are being taken
    page_seconds: float = 30.0  # wall time per page
    memory: int = 4096 * MIB  # bytes of address space of the child
    file_bytes: int = 1024 * MIB  # of one file; of one line, where a file is read line by line
    pages: int = 10_000
    characters: int = 50_000_000  # of one document's text
    pixels: int = 50_000_000  # of one rendered page, and of an image that is a page
    inflated_bytes: int = 4096 * MIB  # that one file unpacks to, counted while unpacking, archives within archives included
    nesting: int = 4  # archives and messages within each other
    documents_per_child: int = 500  # a child is replaced after as many, so that what a parser leaks is given back

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"Limits.{name} must be above 0, got {getattr(self, name)}")


class Budget:
    """Bytes that one file may still unpack to, whatever is nested in it; counted while they are unpacked."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    @property
    def spent(self) -> bool:
        return self._left < 0

    def take(self, size: int) -> None:
        """Raises LimitExceeded once more was taken than there was."""
        self._left -= size
        if self._left < 0:
            raise LimitExceeded(f"it unpacks to more than {self._limit} bytes (Limits.inflated_bytes)")


def _ignore(_page: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a loader is told beside the path. `on_page(number)` is called before each page, for the clock outside."""

    limits: Limits = field(default_factory=Limits)
    pdf_engine: str = "auto"  # "pymupdf", "pypdfium2", or "auto": the first of them that is installed
    password: str | None = field(default=None, repr=False)
    on_page: Callable[[int], None] = _ignore
    depth: int = 0  # how many files this one is in
    budget: Budget | None = None  # shared by all parts of one file
    skip: Mapping[int, str] = field(default_factory=dict)  # pages not to be read, by number, and why

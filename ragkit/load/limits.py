"""How much one document may cost before it is given up, and the options of a loader.

Values only; docs/limits.md is their table. The parent counts time from outside the child (`sandbox`); the child's own
kernel limits hold memory. The rest is checked where the bytes are read, and again where the answer is received, before anything
is allocated (`wire`).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ragkit.core.errors import LimitExceeded
from ragkit.core.types import Json

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one document may cost. Every field can be set; a document over one of them fails with `LimitExceeded`."""

    seconds: float = 300.0  # wall time per document (per record of a JSONL file), while its results are being taken
    page_seconds: float = 30.0  # wall time per page
    cpu_seconds: float = 240.0  # processor time per document
    page_cpu_seconds: float = 25.0  # processor time per page
    lost_pages: int = 3  # that may end their child: the document is read again without each. With one more it fails
    memory: int = 4096 * MIB  # bytes of address space of the child
    file_bytes: int = 1024 * MIB  # of one file; of one line, where a file is read line by line
    pages: int = 10_000
    characters: int = 50_000_000  # of one document's text
    pixels: int = 50_000_000  # of one rendered page, and of an image that is a page
    inflated_bytes: int = 4096 * MIB  # that one file unpacks to, counted while unpacking, archives within archives included
    nesting: int = 4  # archives and messages within each other
    output_bytes: int = 2048 * MIB  # of one answer of the child: a document's text, words and boxes, or a picture
    documents_per_child: int = 500  # a child is replaced after as many, so that what a parser leaks is given back

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"Limits.{name} must be above 0, got {getattr(self, name)}")

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Limits:
        """Return limits from "name=value" texts, as the command line takes them; the others stay at their defaults."""
        return cls(**parsed(cls, settings))


def parsed(limits: type[Any], settings: Iterable[str]) -> Json:
    """Return the fields of a dataclass of numbers that "name=value" texts set. ValueError for a text that sets none."""
    values: Json = {}
    types = {each.name: each.type for each in fields(limits)}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name.strip() not in types:
            raise ValueError(f"there is no limit {name.strip()!r}; they are {', '.join(types)}")
        number = int if types[name.strip()] == "int" else float
        try:
            values[name.strip()] = number(value.strip().replace("_", ""))
        except ValueError:
            raise ValueError(f"the limit {name.strip()} needs a {number.__name__}, as {name.strip()}=60; got {value!r}") from None
    return values


def cpu_of(process: int) -> float:
    """Return the processor seconds that a process, by its id, has used so far; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    with contextlib.suppress(OSError):
        return time.clock_gettime(~process << 3 | 2)  # the clock of a process, by its id (clock_getcpuclockid(3))
    return 0.0


class Budget:
    """Bytes that one file may still unpack to, whatever is nested in it; counted while they are unpacked."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    @property
    def spent(self) -> bool:
        return self._left < 0

    def take(self, size: int) -> None:
        """Take so many bytes. Raises LimitExceeded once more were taken than there were."""
        self._left -= size
        if self._left < 0:
            raise LimitExceeded(f"it unpacks to more than {self._limit} bytes (Limits.inflated_bytes)")


def _read_every_part(_name: str) -> bool:
    return True


def _ignore_page(_page: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a loader reads a file. `on_page(number)` is called before each page, for the clock outside, and with 0 when no page is
    being read any more."""

    limits: Limits = field(default_factory=Limits)
    pdf_engine: str = "auto"  # "pymupdf", "pypdfium2", or "auto": the first of them that is installed
    ocr: str = "off"  # of pages without text: "off", "auto", or languages as Tesseract names them, "eng+deu"
    password: str | None = field(default=None, repr=False)
    on_page: Callable[[int], None] = _ignore_page
    on_part: Callable[[str], bool] = _read_every_part  # called before each file in a file, with its name; False: leave it out
    depth: int = 0  # how many files this one is in
    budget: Budget | None = None  # shared by all parts of one file
    skip: Mapping[int, str] = field(default_factory=dict)  # pages not to be read, by number, and why

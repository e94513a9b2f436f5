"""JSON lines: each line a record. A bad line is a failed record that names its line; the others go on.

Records are read one by one, so a file larger than memory is fine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load.decode import decode
from ragkit.load.language import with_language
from ragkit.load.limits import Limits, Options
from ragkit.load.records import content_hash, record

_UTF8_MARK = b"\xef\xbb\xbf"


def load(path: Path, options: Options) -> Iterator[Document | LoadError]:
    """Yield a Document for each line, its `id` the record's own or made from its content; a LoadError for a bad line."""
    limit = options.limits.file_bytes
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise LimitExceeded(f"line {number} is longer than {limit} bytes (Limits.file_bytes)")
            if number == 1:
                line = line.removeprefix(_UTF8_MARK)
            if line.strip():
                yield _record(line, number, options.limits)


def _record(line: bytes, number: int, limits: Limits) -> Document | LoadError:
    try:
        document = record(json.loads(decode(line), parse_constant=_refuse))
    except RecursionError:
        return LoadError(f"line {number}: nested too deeply")
    except (ValueError, TypeError) as error:
        return LoadError(f"line {number}: {error}")
    if len(document.text) > limits.characters:
        return LimitExceeded(
            f"line {number}: {len(document.text)} characters, over the limit of {limits.characters} (Limits.characters)"
        )
    document = replace(document, meta=with_language(document.meta, document.text))
    return document if document.id else replace(document, id=f"sha256:{content_hash(document)[:16]}")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

"""Find the documents that an `add` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragkit.core.types import Document
from ragkit.ingest.item import Target
from ragkit.ingest.known import GIVEN
from ragkit.load import Source, discover
from ragkit.store.values import Failure


def paths_of(target: Target) -> list[str | Path | Source] | None:
    """The paths and globs that a target names, or None where it is documents. FileNotFoundError for one that is not there."""
    if isinstance(target, (bytes, bytearray)):
        raise TypeError("add() takes a path, a glob, or an iterable of paths, documents and dicts; not bytes")
    if isinstance(target, (str, Path, Source)):
        paths: list[str | Path | Source] = [target]
    elif isinstance(target, (list, tuple)) and target and all(isinstance(one, (str, Path, Source)) for one in target):
        paths = list(target)
    else:
        return None
    for path in paths:
        discover(path)
    return paths


def described(document: Document, given: Mapping[str, Any], *, sha256: str = "") -> Document:
    """A document with the hash of its file, and over its own metadata what the user says: `given` names those fields."""
    meta = {"sha256": sha256, **document.meta} if sha256 else dict(document.meta)
    if not given:
        return replace(document, meta=meta)
    title = given.get("title")
    return replace(
        document,
        title=title if isinstance(title, str) else document.title,
        meta={**meta, **{name: value for name, value in given.items() if name != "title"}, GIVEN: dict(given)},
    )


def source_of(failure: Failure) -> Source | None:
    """The file that failed, or that holds what failed, under the name it is known by; None for a record from Python."""
    parts = failure.identity.split("#")
    paths = ["#".join(parts[:end]) for end in range(len(parts), 0, -1)]
    path = next((Path(one) for one in paths if Path(one).is_file()), Path(failure.identity))
    if not path.is_absolute():
        return None
    name = next((one for one in (failure.source, failure.source.split("#")[0]) if str(path).endswith("/" + one)), path.name)
    return Source(path, Path(str(path).removesuffix("/" + name) or "/"), name)


def by_file(identities: Iterable[str]) -> dict[str, list[str]]:
    """Identities by themselves and by the file they may lie in: "a#b" is found under "a#b" and under "a"."""
    found: dict[str, list[str]] = {}
    for identity in identities:
        for name in (identity, *(identity[:at] for at, character in enumerate(identity) if character == "#")):
            found.setdefault(name, []).append(identity)
    return found

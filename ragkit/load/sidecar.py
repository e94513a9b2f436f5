"""Metadata that the user writes beside a file: `report.pdf.meta.json`, or `.meta.yaml`, an object of fields.

    {"project": "lake", "year": 2024, "title": "Ducks, revised"}

The fields become the document's metadata, over what the file says of itself; `title` becomes its title. In a file that holds
many documents they apply to each. A sidecar is not a document. The user wrote it, so this process reads it itself: it is small,
JSON or YAML without aliases, and nothing in it is run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ragkit.core.errors import LoadError
from ragkit.core.types import Json
from ragkit.load.decode import decode
from ragkit.load.records import record

SUFFIXES = (".meta.json", ".meta.yaml", ".meta.yml")
_LARGEST = 1 << 20  # bytes


def is_sidecar(path: str) -> bool:
    """Return whether a file is the sidecar of another one that exists."""
    base = next((path.removesuffix(suffix) for suffix in SUFFIXES if path.endswith(suffix)), "")
    return bool(os.path.basename(base)) and os.path.isfile(base)  # noqa: PTH113, PTH119 - asked of every file found


def sidecar(path: Path) -> Json:
    """Return the fields that a file's sidecar gives, as JSON can hold them; none without a sidecar.

    Raises LoadError for one that cannot be read, and where there are two.
    """
    sidecars = [beside for suffix in SUFFIXES if (beside := Path(f"{path}{suffix}")).is_file()]
    if not sidecars:
        return {}
    if len(sidecars) > 1:
        raise LoadError(f"it has two sidecars, {' and '.join(file.name for file in sidecars)}; keep one")
    return _fields_of(sidecars[0])


def _fields_of(file: Path) -> Json:
    """Return the fields of a sidecar. Raises LoadError."""
    name = file.name
    try:
        if file.stat().st_size > _LARGEST:
            raise LoadError(f"its sidecar {name} is larger than {_LARGEST} bytes")
        text = decode(file.read_bytes())
        return fields(json.loads(text) if name.endswith(".json") else plain_yaml(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise LoadError(f"its sidecar {name} cannot be used: {error}") from None
    except OSError as error:
        raise LoadError(f"its sidecar {name} cannot be read: {error.strerror or error}") from None


def fields(value: object) -> Json:
    """Return user metadata as JSON can hold it. TypeError and ValueError name the field that cannot be stored."""
    if not isinstance(value, dict):
        raise TypeError(f"an object of fields is expected, got {type(value).__name__}")
    return dict(record({"text": "", "meta": value}).meta)


def plain_yaml(source: str) -> object:
    """Return YAML's plain values. ValueError for what is malformed, and for aliases: a few of them unfold into gigabytes."""
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: object, index: object) -> object:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

    try:
        value: object = yaml.load(source, Plain)
        return value
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None

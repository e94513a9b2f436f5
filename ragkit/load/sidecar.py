"""Metadata that the user writes beside a file: `report.pdf.meta.json`, or `.meta.yaml`, an object of fields.

    {"project": "lake", "year": 2024, "title": "Ducks, revised"}

The fields become the document's metadata, over what the file says of itself; `title` becomes its title. In a file that holds
many documents they apply to each. A sidecar is no document of its own. It is the user's word, and read by this process: it is
small, JSON or YAML without aliases, and nothing in it is run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ragkit.core.errors import LoadError
from ragkit.load.decode import decode
from ragkit.load.records import record

SUFFIXES = (".meta.json", ".meta.yaml", ".meta.yml")
_LARGEST = 1 << 20  # bytes


def is_sidecar(path: str) -> bool:
    """Whether a file is the sidecar of another one, which is there."""
    base = next((path.removesuffix(suffix) for suffix in SUFFIXES if path.endswith(suffix)), "")
    return bool(os.path.basename(base)) and os.path.isfile(base)  # noqa: PTH113, PTH119 - asked of every file found


def sidecar(path: Path) -> dict[str, Any]:
    """The fields that a file's sidecar gives, as JSON can hold them; none where there is no sidecar.

    Raises LoadError for one that cannot be read, and where there are two.
    """
    found = [beside for suffix in SUFFIXES if (beside := Path(f"{path}{suffix}")).is_file()]
    if not found:
        return {}
    if len(found) > 1:
        raise LoadError(f"it has two sidecars, {' and '.join(one.name for one in found)}; keep one")
    name = found[0].name
    try:
        if found[0].stat().st_size > _LARGEST:
            raise LoadError(f"its sidecar {name} is larger than {_LARGEST} bytes")
        text = decode(found[0].read_bytes())
        return fields(json.loads(text) if name.endswith(".json") else plain_yaml(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise LoadError(f"its sidecar {name} cannot be used: {error}") from None
    except OSError as error:
        raise LoadError(f"its sidecar {name} cannot be read: {error.strerror or error}") from None


def fields(value: Any) -> dict[str, Any]:
    """User metadata as JSON can hold it. TypeError or ValueError name the field that cannot be kept."""
    if not isinstance(value, dict):
        raise TypeError(f"an object of fields is expected, got {type(value).__name__}")
    return dict(record({"text": "", "meta": value}).meta)


def plain_yaml(source: str) -> Any:
    """YAML's plain values. ValueError for what is malformed, and for aliases: a few of them unfold into gigabytes."""
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

    try:
        return yaml.load(source, Plain)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None

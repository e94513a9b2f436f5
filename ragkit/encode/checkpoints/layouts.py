"""Which module runs a checkpoint: decided by its files, never by its name.

A layout is recognised from config.json and the names of its tensors, which are read without the weights. What none of ours
recognises goes to sentence-transformers, once `checkpoint.refuse_code` has passed it; our own modules run no code of a
checkpoint and ignore what it brings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ragkit.core.errors import CheckpointError
from ragkit.encode.checkpoints.checkpoint import has_bert_layout, read_json, refuse_code
from ragkit.encode.models.jina_v3_files import is_v3
from ragkit.encode.models.jina_v4_files import is_v4

HEADER = 1 << 27  # bytes; the format's own limit is 100 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Which files to load, and how: the arguments of `load_encoder`, and where `name` was found.

    commit: of the hub's snapshot, None for a folder. multi: token states as multi-vectors too, for models that were not
    trained for any.
    """

    folder: Path
    name: str
    commit: str | None = None
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    task: str | None = None
    max_tokens: int | None = None
    max_pixels: int | None = None
    merge_adapters: bool = False
    multi: bool = False

    def revision_of(self, digest: str) -> str:
        """What the card says: the commit, or `digest`, the sha256 over a folder's weights. CheckpointError for another one."""
        if self.commit is None and self.revision not in (None, "", digest):
            raise CheckpointError(f"{self.name}: {self.folder} is at revision {digest}, but {self.revision} was asked for")
        return self.commit or digest


@dataclass(frozen=True, slots=True)
class Layout:
    """A module of this package whose `load(opening)` returns an encoder, and which of the rarer settings it takes."""

    module: str
    recognises: Callable[[Path, dict[str, Any], frozenset[str]], bool]  # folder, config.json, names of the tensors
    takes: frozenset[str] = frozenset()


def _is_bert(folder: Path, config: dict[str, Any], names: frozenset[str]) -> bool:
    if config.get("model_type") != "bert":
        return False
    refuse_code(folder)
    return has_bert_layout(folder)


def _is_jina_clip_v1(folder: Path, config: dict[str, Any], names: frozenset[str]) -> bool:
    """v2 has the same model_type and other towers."""
    towers = {"text_model.transformer.embeddings.word_embeddings.weight", "vision_model.blocks.0.attn.q_proj.weight"}
    return config.get("model_type") == "jina_clip" and towers <= names


LAYOUTS = (
    Layout("bert", _is_bert, frozenset({"multi"})),
    Layout("jina_v3", is_v3, frozenset({"merge_adapters"})),
    Layout("jina_v4", is_v4, frozenset({"max_pixels"})),
    Layout("jina_clip", _is_jina_clip_v1),
)
OTHERS = Layout("sentence_transformers", lambda folder, config, names: True)


_RARER = {
    "multi": "returns its token states as multi-vectors (BERT models with mean pooling do)",
    "max_pixels": "sees images of a size that may be chosen",
    "merge_adapters": "has adapters to merge",
}


def load(opening: Opening) -> Any:
    """The encoder of these files. ValueError for a setting that its layout does not know."""
    layout = layout_of(opening.folder)
    for setting, what in _RARER.items():
        if getattr(opening, setting) and setting not in layout.takes:
            raise ValueError(f"{opening.name} is not a model that {what}: {setting} is not for it")
    return import_module(f"ragkit.encode.models.{layout.module}").load(opening)


def layout_of(folder: Path) -> Layout:
    """The layout of a checkpoint's files. Raises CheckpointError where the files ask to run code and no layout of ours fits."""
    config, names = read_json(folder / "config.json", optional=True), tensor_names(folder)
    found = next((layout for layout in LAYOUTS if layout.recognises(folder, config, names)), None)
    if found is None:
        refuse_code(folder)
    return found or OTHERS


def tensor_names(folder: Path) -> frozenset[str]:
    """The names in model.safetensors or in the index of its shards; none where neither can be read, which loading reports."""
    index = read_json(folder / "model.safetensors.index.json", optional=True)
    if index:
        return frozenset(index.get("weight_map", {}))
    try:
        with (folder / "model.safetensors").open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= HEADER else {}
    except (OSError, ValueError):
        return frozenset()
    return frozenset(header) - {"__metadata__"} if isinstance(header, dict) else frozenset()

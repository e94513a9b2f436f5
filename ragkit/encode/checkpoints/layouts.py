"""Which module runs a checkpoint: decided by its files, never by its name.

A layout is recognised from config.json and the names of its tensors, which are read without the weights. A checkpoint that no
layout here recognises goes to sentence-transformers, once `checkpoint.refuse_code` has passed it; our own modules run no code of
a checkpoint and ignore code that it brings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from ragkit.core.errors import CheckpointError
from ragkit.encode.checkpoints.checkpoint import Config, has_bert_layout, read_json, refuse_code
from ragkit.encode.contract import Encoder
from ragkit.encode.load_settings import LoadSettings
from ragkit.encode.models.jina_v3_files import is_v3
from ragkit.encode.models.jina_v4_files import is_v4

HEADER = 1 << 27  # bytes; the format's own limit is 100 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The files to load, and how.

    name: as the encoder's card will have it. commit: of the hub's snapshot, None for a folder. multi: return token states as
    multi-vectors too, for models that were not trained for any.
    """

    folder: Path
    name: str
    commit: str | None = None
    multi: bool = False
    settings: LoadSettings = field(default_factory=LoadSettings)

    def revision_of(self, digest: str) -> str:
        """Return the revision for the card: the commit, or `digest`, the sha256 over a folder's weights.

        Raises CheckpointError if another revision was asked for.
        """
        revision = self.settings.revision
        if self.commit is None and revision not in (None, "", digest):
            raise CheckpointError(f"{self.name}: {self.folder} is at revision {digest}, but {revision} was asked for")
        return self.commit or digest


@dataclass(frozen=True, slots=True)
class Layout:
    """A module of this package whose `load(checkpoint)` returns an encoder, and which of the rarer settings it takes."""

    module: str
    recognises: Callable[[Path, Config, frozenset[str]], bool]  # folder, config.json, names of the tensors
    takes: frozenset[str] = frozenset()


def _is_bert(folder: Path, config: Config, names: frozenset[str]) -> bool:
    if config.get("model_type") != "bert":
        return False
    refuse_code(folder)
    return has_bert_layout(folder)


def _is_jina_clip_v1(folder: Path, config: Config, names: frozenset[str]) -> bool:
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


def load(checkpoint: Checkpoint) -> Encoder:
    """Return the encoder of these files. Raises ValueError for a setting that its layout does not know."""
    layout = layout_of(checkpoint.folder)
    settings = checkpoint.settings
    asked_for = {
        "multi": checkpoint.multi,
        "max_pixels": bool(settings.max_pixels),
        "merge_adapters": settings.merge_adapters,
    }
    for setting, ability in _RARER.items():
        if asked_for[setting] and setting not in layout.takes:
            raise ValueError(f"{checkpoint.name} is not a model that {ability}: {setting} is not for it")
    encoder: Encoder = import_module(f"ragkit.encode.models.{layout.module}").load(checkpoint)
    return encoder


def layout_of(folder: Path) -> Layout:
    """Return the layout of a checkpoint's files. Raises CheckpointError where they ask to run code and no layout of ours fits."""
    config, names = read_json(folder / "config.json", optional=True), tensor_names(folder)
    layout = next((layout for layout in LAYOUTS if layout.recognises(folder, config, names)), None)
    if layout is None:
        refuse_code(folder)
    return layout or OTHERS


def tensor_names(folder: Path) -> frozenset[str]:
    """Return the names in model.safetensors or in the index of its shards; none if neither can be read: loading reports that."""
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

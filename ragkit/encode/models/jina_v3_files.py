"""jina-embeddings-v3 on disk, in its two published layouts, checked and read under one set of names.

- `jinaai/jina-embeddings-v3`: one model.safetensors, five LoRA banks stacked in one tensor per module. Its config.json names
  remote code, which is neither needed nor run.
- `jinaai/jina-embeddings-v3-hf`: the base alone, and a folder of PEFT adapters per task. Its config.json has no task list,
  instructions or Matryoshka widths: they are the published ones, below.

Both come out as `V3Files`. Every tensor that the config calls for must be there in its shape, and no other, but for the pooler,
which embeddings do not use. transformers' own class fills what it cannot find with random numbers; here that is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ragkit.core.errors import CheckpointError
from ragkit.encode.checkpoints.checkpoint import (
    Config,
    StoredTensors,
    check_names_and_shapes,
    impossible_sizes,
    read_json,
    read_plain_lora,
    read_sizes,
)
from ragkit.encode.torch_backend import Tensor

INSTRUCTIONS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}
MATRYOSHKA = (32, 64, 128, 256, 512, 768, 1024)
LINEARS = ("mixer.Wqkv", "mixer.out_proj", "mlp.fc1", "mlp.fc2")
NORMS = ("norm1", "norm2")
WORDS, TYPES = "embeddings.word_embeddings", "embeddings.token_type_embeddings"
POOLER = "pooler.dense"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class V3Shape:
    """Sizes of config.json, in its names; `rope_theta` under whichever name it has there."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    rope_theta: float

    def linear(self, name: str) -> tuple[int, int]:
        """Return (out, in) of a linear layer."""
        h, f = self.hidden_size, self.intermediate_size
        return {"Wqkv": (3 * h, h), "out_proj": (h, h), "fc1": (f, h), "fc2": (h, f), "dense": (h, h)}[name.rpartition(".")[2]]

    def linears(self) -> list[str]:
        """Return the names of all linear layers that embeddings use."""
        return [f"encoder.layers.{layer}.{part}" for layer in range(self.num_hidden_layers) for part in LINEARS]

    def norms(self) -> list[str]:
        return ["emb_ln", *(f"encoder.layers.{layer}.{part}" for layer in range(self.num_hidden_layers) for part in NORMS)]


class V3Files(Protocol):
    """One layout, opened. Tensors are float32; modules have the original's names, without the prefix `roberta.`."""

    shape: V3Shape
    tasks: tuple[str, ...]  # full names, in the order of the banks
    instructions: Mapping[str, str]
    matryoshka: tuple[int, ...]
    rank: int
    scale: float  # LoRA's alpha / rank
    weights: list[Path]  # all files with weights

    def base(self, name: str) -> Tensor:
        """Return a weight or bias of the base, by its full name: "encoder.layers.0.mixer.Wqkv.bias"."""
        ...

    def low_rank(self, module: str, task: int) -> list[tuple[Tensor, Tensor]]:
        """Return (A (rank, in), B (out, rank)) of a linear layer: one pair, or one for each of query, key and value."""
        ...

    def table(self, module: str, task: int) -> tuple[Tensor, Tensor]:
        """Return (A (rows, rank), B (rank, width)) of an embedding table."""
        ...


def open_v3(folder: Path) -> V3Files:
    """Open the layout that the folder has, by its config and tensor names. CheckpointError for anything that does not fit."""
    path = folder / "config.json"
    config = read_json(path)
    stored = StoredTensors(folder / "model.safetensors")
    shape = _read_shape(path, config)
    if any(".parametrizations." in name for name in stored.shapes):
        return _Original(path, config, stored, shape)
    return _Native(path, stored, shape)


def _read_shape(path: Path, config: Config) -> V3Shape:
    rope = config.get("rope_parameters") or {}
    allowed = {
        "hidden_act": (config.get("hidden_act", "gelu"), ("gelu",)),
        "position_embedding_type": (config.get("position_embedding_type", "rotary"), ("rotary",)),
        "rope_type": (rope.get("rope_type", "default"), ("default",)),
        "emb_pooler": (config.get("emb_pooler"), (None, "mean")),
    }
    for name, (value, values) in allowed.items():
        if value not in values:
            known = values[-1]
            raise CheckpointError(f"{path}: {name} is {value!r}, but jina-embeddings-v3 has {known!r}: this is another model")
    theta = config.get("rotary_emb_base", rope.get("rope_theta"))
    sizes = {"layer_norm_eps": 1e-5, **config, "rope_theta": theta}
    shape = read_sizes(path, sizes, V3Shape, model="jina-embeddings-v3")
    if shape.hidden_size % (2 * shape.num_attention_heads):
        raise impossible_sizes(path, shape)
    return shape


def _base_shapes(shape: V3Shape) -> dict[str, Shape]:
    """Return the shape of every tensor of the base, by its full name."""
    h = shape.hidden_size
    shapes: dict[str, Shape] = {f"{WORDS}.weight": (shape.vocab_size, h), f"{TYPES}.weight": (shape.type_vocab_size, h)}
    for name in shape.linears():
        shapes |= {f"{name}.weight": shape.linear(name), f"{name}.bias": shape.linear(name)[:1]}
    for name in shape.norms():
        shapes |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
    return shapes


def _prefix(stored: StoredTensors) -> str:
    return "roberta." if all(name.startswith("roberta.") for name in stored.shapes) else ""


class _Original:
    """`<module>.parametrizations.weight.original`, with banks `.0.lora_A` and `.0.lora_B` stacked over tasks."""

    def __init__(self, path: Path, config: Config, stored: StoredTensors, shape: V3Shape) -> None:
        self.shape = shape
        self.weights = [stored.path]
        self._stored, self._prefix = stored, _prefix(stored)
        try:
            self.tasks = tuple(map(str, config["lora_adaptations"]))
            self.rank = int(config["lora_rank"])
            self.scale = float(config["lora_alpha"]) / self.rank
            self.matryoshka = tuple(map(int, config.get("matryoshka_dimensions") or MATRYOSHKA))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(f"{path} does not say which adapters its weights hold ({error!r}). Fetch it again") from None
        self.instructions: Mapping[str, str] = {
            task: str((config.get("task_instructions") or {}).get(task, "")) for task in self.tasks
        }
        _check_tasks(path, self.tasks)
        check_names_and_shapes(stored.path, stored.shapes, self._expected(), ignorable=self._ignorable())

    def _expected(self) -> dict[str, Shape]:
        banks, expected = (len(self.tasks), self.rank), {}
        for name, shape in _base_shapes(self.shape).items():
            module, _, kind = name.rpartition(".")
            if kind == "bias" or module in self.shape.norms():
                expected[self._prefix + name] = shape
                continue
            rows, columns = shape
            at = f"{self._prefix}{module}.parametrizations.weight"
            a, b = (banks[0], self.rank, columns), (banks[0], rows, self.rank)
            if module in (WORDS, TYPES):
                a, b = (banks[0], rows, self.rank), (banks[0], self.rank, columns)
            expected |= {f"{at}.original": shape, f"{at}.0.lora_A": a, f"{at}.0.lora_B": b}
        return expected

    def _ignorable(self) -> list[str]:
        at = f"{self._prefix}{POOLER}"
        return [f"{at}.bias", *(f"{at}.parametrizations.weight.{part}" for part in ("original", "0.lora_A", "0.lora_B"))]

    def base(self, name: str) -> Tensor:
        module, _, kind = name.rpartition(".")
        parametrised = kind == "weight" and module not in self.shape.norms()
        return self._stored[f"{self._prefix}{module}.parametrizations.weight.original" if parametrised else self._prefix + name]

    def low_rank(self, module: str, task: int) -> list[tuple[Tensor, Tensor]]:
        return [self.table(module, task)]

    def table(self, module: str, task: int) -> tuple[Tensor, Tensor]:
        at = f"{self._prefix}{module}.parametrizations.weight.0"
        return self._stored[f"{at}.lora_A"][task], self._stored[f"{at}.lora_B"][task]


# The original's names, and those of transformers' class; there, queries, keys and values are separate modules.
_RENAMED = {
    "emb_ln": "embeddings.LayerNorm",
    "encoder.layers": "layers",
    "mixer.out_proj": "self_attn.o_proj",
    "norm1": "post_attention_layernorm",
    "norm2": "post_mlp_layernorm",
}


def _native_names(module: str) -> list[str]:
    """Return the name of a module in transformers, or the three of query, key and value."""
    for old, new in _RENAMED.items():
        module = module.replace(old, new)
    return [module.replace("mixer.Wqkv", f"self_attn.{part}_proj") for part in "qkv"] if "Wqkv" in module else [module]


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The names of a tensor of the base in a file: one, or three to be joined along the first dimension."""

    names: list[str]
    shape: Shape


class _Native:
    """A base in fused or split names, and PEFT folders `retrieval_query`, `text_matching`, ..."""

    def __init__(self, path: Path, stored: StoredTensors, shape: V3Shape) -> None:
        folder = path.parent
        self.shape = shape
        self.tasks = tuple(INSTRUCTIONS)
        self.instructions: Mapping[str, str] = INSTRUCTIONS
        self.matryoshka: tuple[int, ...] = MATRYOSHKA
        self._stored = stored
        self._parts = self._find_base()
        settings = [read_plain_lora(folder / _folder_name(task) / "adapter_config.json") for task in self.tasks]
        if len(set(settings)) != 1:
            raise CheckpointError(f"{folder}: its adapters differ in rank or alpha ({settings}), which is not supported")
        self.rank, alpha = settings[0]
        self.scale = alpha / self.rank
        self._adapters = [StoredTensors(folder / _folder_name(task) / "adapter_model.safetensors") for task in self.tasks]
        self.weights = [stored.path, *(adapter.path for adapter in self._adapters)]
        for adapter in self._adapters:
            check_names_and_shapes(adapter.path, adapter.shapes, self._expected(), ignorable=_adapter_names(POOLER))

    def _find_base(self) -> dict[str, _Parts]:
        """Return the names in this file for each tensor of the base. Raises CheckpointError for a file that does not fit."""
        prefix, split = _prefix(self._stored), any("self_attn." in name for name in self._stored.shapes)
        base = {}
        for name, shape in _base_shapes(self.shape).items():
            module, _, kind = name.rpartition(".")
            modules = _native_names(module) if split else [module]
            base[name] = _Parts([f"{prefix}{part}.{kind}" for part in modules], (shape[0] // len(modules), *shape[1:]))
        expected = {name: parts.shape for parts in base.values() for name in parts.names}
        ignorable = [f"{prefix}{POOLER}.weight", f"{prefix}{POOLER}.bias"]
        check_names_and_shapes(self._stored.path, self._stored.shapes, expected, ignorable=ignorable)
        return base

    def _expected(self) -> dict[str, Shape]:
        """Return the shapes of each adapter file, without the pooler's."""
        r, h = self.rank, self.shape.hidden_size
        expected: dict[str, Shape] = {}
        for module, rows in ((WORDS, self.shape.vocab_size), (TYPES, self.shape.type_vocab_size)):
            expected |= dict(zip(_adapter_names(module), ((r, rows), (h, r)), strict=True))
        for module in self.shape.linears():
            out, wide = self.shape.linear(module)
            native = _native_names(module)
            for name in native:
                expected |= dict(zip(_adapter_names(name), ((r, wide), (out // len(native), r)), strict=True))
        return expected

    def base(self, name: str) -> Tensor:
        import torch

        parts = [self._stored[part] for part in self._parts[name].names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def low_rank(self, module: str, task: int) -> list[tuple[Tensor, Tensor]]:
        stored = self._adapters[task]
        a_and_b = (_adapter_names(name) for name in _native_names(module))
        return [(stored[a], stored[b]) for a, b in a_and_b]

    def table(self, module: str, task: int) -> tuple[Tensor, Tensor]:
        a, b = _adapter_names(module)
        return self._adapters[task][a].T, self._adapters[task][b].T


def _adapter_names(module: str) -> tuple[str, str]:
    """Return PEFT's names for A and B of a module."""
    at = f"base_model.model.{module}"
    if module.startswith("embeddings."):
        return f"{at}.lora_embedding_A", f"{at}.lora_embedding_B"
    return f"{at}.lora_A.weight", f"{at}.lora_B.weight"


def _folder_name(task: str) -> str:
    return task.replace(".", "_").replace("-", "_")


def _check_tasks(path: Path, tasks: Iterable[str]) -> None:
    if unknown := set(tasks) ^ set(INSTRUCTIONS):
        raise CheckpointError(
            f"{path}: lora_adaptations must be {', '.join(INSTRUCTIONS)} in some order; too many or too few: {sorted(unknown)}"
        )


def is_v3(folder: Path, config: Config, names: frozenset[str]) -> bool:
    """Return whether a folder has one of the two layouts, by tensor names; users' copies may have no `model_type`."""
    bare = {name.removeprefix("roberta.") for name in names}
    return f"{WORDS}.parametrizations.weight.original" in bare or (
        config.get("model_type") == "jina_embeddings_v3"
        or ("encoder.layers.0.mixer.Wqkv.weight" in bare and (folder / "retrieval_query").is_dir())
    )

"""jina-embeddings-v4's network: transformers' Qwen2_5_VLModel with adapters that each row chooses, and the projector.

It takes rows of token ids, some with an image at a place, and returns the states after the final norm, and the multi-vectors,
of one forward pass. Rows are padded on the right: attention is causal, so no token can see its row's padding, and none is masked.

Positions are made here, in three dimensions, for every row: otherwise the class falls back to one dimension where an image
stands, and does not say so. Weights stay where the files are mapped, as long as device and dtype are those of the files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import CheckpointError, MissingExtra
from ragkit.core.types import Floats, Ints
from ragkit.encode.models.jina_v4_files import PROJECTOR, V4Settings, V4Tensors, adapted_modules
from ragkit.encode.torch_backend import Tensor, Torch, import_torch

Dtype = Any  # torch.dtype
Module = Any  # torch.nn.Module, or one of its functions


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One input: token ids (t,); for an image, where its `high * wide` tokens begin, else high = wide = 0; its adapter."""

    ids: npt.NDArray[np.int32]
    task: str
    at: int = 0
    high: int = 0
    wide: int = 0

    def positions(self) -> Ints:
        """Return time, row and column of each token, (3, t). Text counts on in all three; an image stands still in time."""
        length, image = len(self.ids), self.high * self.wide
        places = np.tile(np.arange(length), (3, 1))
        if image:
            rows, columns = np.divmod(np.arange(image), self.wide)
            places[:, self.at : self.at + image] = self.at + np.stack([np.zeros_like(rows), rows, columns])
            behind = places[:, self.at + image :]
            behind += max(self.high, self.wide) - image
        return places


class Adapters:
    """LoRA of one linear layer: y + scale * x A B by the task of each row."""

    def __init__(self, pairs: Mapping[str, tuple[Tensor, Tensor]], scale: float, linear: Module) -> None:
        self._pairs, self._scale, self._linear = pairs, scale, linear

    def add(self, y: Tensor, x: Tensor, runs: Sequence[tuple[str, slice]]) -> Tensor:
        """Add the adapters' share to y (n, t, out), in place, and return it; x (n, t, in); runs: rows of one task in a row."""
        for task, rows in runs:
            a, b = self._pairs[task]
            y[rows].add_(self._linear(self._linear(x[rows], a), b), alpha=self._scale)
        return y


class QwenAdapted:
    """The network on its device. Thread-safe: one batch at a time."""

    def __init__(self, settings: V4Settings, tensors: V4Tensors, *, device: str, dtype: Dtype) -> None:
        """Build the network and fill it. dtype: torch's. Raises CheckpointError for weights that do not fit."""
        self.torch = import_torch()
        self.device, self.dtype = device, dtype
        self._merge = int(settings.vision["spatial_merge_size"])
        self._lock = threading.Lock()
        self._runs: list[tuple[str, slice]] = []
        self._model = _on_meta(settings, flash=_flash(device, dtype, self.torch))
        self._fill(settings, tensors)

    def forward(self, rows: Sequence[Row], pixels: Floats | None) -> tuple[Tensor, Tensor]:
        """Return (states (n, longest, d), multi-vectors (n, longest, m), not normalised); ignore what is behind a row's end.

        rows: those of one task stand together. pixels: rows of patches of all images, in order, or None. Call it within
        `context`.
        """
        torch, longest = self.torch, max(len(row.ids) for row in rows)
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        positions = np.zeros((3, len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = row.ids
            positions[:, i, : len(row.ids)] = row.positions()
        with self._lock:
            self._runs = _runs(rows)
            inputs = self._model.language_model.embed_tokens(torch.from_numpy(ids).to(self.device))
            if pixels is not None:
                self._place_images(inputs, rows, pixels)
            output = self._model.language_model(
                inputs_embeds=inputs, position_ids=torch.from_numpy(positions).to(self.device), use_cache=False
            )
            states = output.last_hidden_state
            return states, self._project(states)

    def context(self) -> AbstractContextManager[object]:
        """Return the context to enter around `forward`."""
        return self.torch.inference_mode()  # type: ignore[no-any-return]

    def _project(self, states: Tensor) -> Tensor:
        """Return the multi-vectors of states, not normalised."""
        return self._head_adapters.add(self.torch.nn.functional.linear(states, *self._head), states, self._runs)

    def _place_images(self, inputs: Tensor, rows: Sequence[Row], pixels: Floats) -> None:
        """Write the vision tower's vectors of the images over their tokens' embeddings, (n, longest, d)."""
        torch = self.torch
        grids = [(1, row.high * self._merge, row.wide * self._merge) for row in rows if row.high]
        patches = torch.from_numpy(pixels).to(self.device, self.dtype)
        seen = self._model.visual(patches, grid_thw=torch.tensor(grids, device=self.device)).pooler_output
        start = 0
        for i, row in enumerate(rows):
            image = row.high * row.wide
            inputs[i, row.at : row.at + image] = seen[start : start + image].to(inputs.dtype)
            start += image

    def _fill(self, settings: V4Settings, tensors: V4Tensors) -> None:
        """Give the module its weights, mapped where they may stay as they are, and its adapters."""
        model = self._model
        shapes = {_published(name): tuple(weight.shape) for name, weight in model.state_dict().items()}
        shapes |= {f"{PROJECTOR}.weight": (settings.multi_dims, settings.text["hidden_size"])}
        tensors.check(shapes | {f"{PROJECTOR}.bias": (settings.multi_dims,)})
        weights = {name: self._place(tensors.base(_published(name))) for name in model.state_dict()}
        model.load_state_dict(weights, assign=True)
        for rotary in ("visual.rotary_pos_emb", "language_model.rotary_emb"):
            parent, _, name = rotary.rpartition(".")
            old = model.get_submodule(rotary)  # its frequencies are computed, not stored, and have no values yet
            setattr(model.get_submodule(parent), name, type(old)(config=old.config).to(self.device))
        self._add_adapters(settings, tensors)
        self._head = self._place(tensors.base(f"{PROJECTOR}.weight")), self._place(tensors.base(f"{PROJECTOR}.bias"))
        model.requires_grad_(False).eval()

    def _add_adapters(self, settings: V4Settings, tensors: V4Tensors) -> None:
        """Hook the adapters to their linear layers, and keep those of the projector."""
        for module in adapted_modules(settings):
            pairs = {task: tensors.low_rank(module, task) for task in settings.tasks}
            placed = {task: (self._place(a), self._place(b)) for task, (a, b) in pairs.items()}
            adapters = Adapters(placed, settings.scale, self.torch.nn.functional.linear)
            if module == PROJECTOR:
                self._head_adapters = adapters
            else:
                self._model.get_submodule(module).register_forward_hook(self._hook(adapters))

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)

    def _hook(self, adapters: Adapters) -> Callable[[Module, Sequence[Tensor], Tensor], Tensor]:
        return lambda module, inputs, y: adapters.add(y, inputs[0], self._runs)


def _runs(rows: Sequence[Row]) -> list[tuple[str, slice]]:
    runs, start = [], 0
    for task, own in groupby(rows, key=lambda row: row.task):
        end = start + len(list(own))
        runs.append((task, slice(start, end)))
        start = end
    return runs


def _published(name: str) -> str:
    """Return the name in the shards for one of Qwen2_5_VLModel's."""
    return name.replace("language_model.", "model.", 1)


def _on_meta(settings: V4Settings, *, flash: bool) -> Module:
    """Return the module without memory for weights. Its configuration is built by class: no Auto class looks at the folder."""
    torch = import_torch()
    try:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
    except ImportError:
        raise MissingExtra.of("transformers", "cpu", "jina-embeddings-v4") from None
    config = Qwen2_5_VLConfig(
        text_config={
            **settings.text,
            "rope_parameters": dict(settings.text["rope_parameters"]),
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config=dict(settings.vision),
        image_token_id=settings.image_token,
        vision_start_token_id=settings.vision_start,
        vision_end_token_id=settings.vision_end,
    )
    with torch.device("meta"):
        model = Qwen2_5_VLModel._from_config(config, attn_implementation="flash_attention_2" if flash else "sdpa")
    actual, expected = dict(model.language_model.config.rope_parameters), settings.text["rope_parameters"]
    if any(actual.get(name) != value for name, value in expected.items()):
        raise CheckpointError(
            f"this version of transformers turns the rotary settings {expected} into {actual}, and positions would be wrong: "
            "install another version"
        )
    return model


def _flash(device: str, dtype: Dtype, torch: Torch) -> bool:
    if not device.startswith("cuda") or dtype == torch.float32:
        return False
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())

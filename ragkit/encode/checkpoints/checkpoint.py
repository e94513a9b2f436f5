"""Reading a model's files, strictly: a folder goes in; checked arrays come out, or an error that names the tensor.

Rules: safetensors only, nothing is unpickled. The bytes that were hashed are the bytes that are used: a file is read once.
A missing, extra or misshapen tensor is refused. A checkpoint that asks to run code is refused with the way out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ragkit.core.errors import CheckpointError, MissingExtra
from ragkit.core.types import Array, Floats
from ragkit.encode.torch_backend import Tensor

Config = Mapping[str, Any]  # a JSON object of settings: config.json and its like
Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name
Sizes = TypeVar("Sizes")

# What modules.json of a sentence-transformers model may name: classes of that package, by their last component.
KNOWN_MODULES = frozenset({
    "Asym", "BoW", "CLIPModel", "CNN", "Dense", "Dropout", "HierarchicalTokenPooling", "LSTM", "LayerNorm", "MultiVectorMask",
    "Normalize", "Pooling", "Router", "StaticEmbedding", "Transformer", "WeightedLayerPooling", "WordEmbeddings", "WordWeights",
})  # fmt: skip
_LEGACY_POOLING = [
    f"pooling_mode_{kind}" for kind in
    ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
]  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_NOT_PLAIN_LORA = ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "modules_to_save", "fan_in_fan_out")


def read_json(path: Path, *, optional: bool = False) -> Any:
    """Return a JSON file's content; {} for an optional file that is absent. Raises CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise CheckpointError(f"{path} is missing: this is not a complete checkpoint. Fetch the model again") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}). Fetch the model again") from None


def read_sizes(path: Path, config: Config, sizes: type[Sizes], *, model: str) -> Sizes:
    """Return `sizes`, a dataclass of ints and floats, from the settings of its fields' names in `config`, read from `path`.

    model: for the error. Raises CheckpointError for a setting that is missing or not a number, and for an int below 1.
    """
    kinds = {field.name: float if field.type == "float" else int for field in fields(sizes)}  # type: ignore[arg-type]
    try:
        values = {name: kind(config[name]) for name, kind in kinds.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} lacks the sizes of {model} ({error!r}). Fetch the model again") from None
    if min(value for name, value in values.items() if kinds[name] is int) < 1:
        raise impossible_sizes(path, values)
    return sizes(**values)


def impossible_sizes(path: Path, sizes: object) -> CheckpointError:
    """Return the error for sizes that no model can have."""
    return CheckpointError(f"{path} has impossible sizes: {sizes}. Fetch the model again")


def read_plain_lora(path: Path) -> tuple[int, float]:
    """Return (rank, alpha) of a PEFT adapter_config.json. Raises CheckpointError for anything but plain LoRA."""
    config = read_json(path)
    variants = {name: config[name] for name in _NOT_PLAIN_LORA if config.get(name)}
    if config.get("peft_type") != "LORA" or variants or config.get("bias", "none") != "none":
        raise CheckpointError(
            f"{path} is not a plain LoRA adapter: {variants or config.get('peft_type')}. Merge it, or use another"
        )
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if rank < 1:
            raise ValueError(f"r is {rank}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} lacks r or lora_alpha ({error!r}). Fetch the model again") from None
    return rank, alpha


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """A safetensors file in memory: name to array in the file's own dtype (bfloat16 as uint16, see `bfloat16`)."""

    path: Path
    sha256: str  # of the whole file, hexadecimal
    arrays: Mapping[str, Array]
    bfloat16: frozenset[str]

    def float32(self, name: str) -> Floats:
        """Return one tensor as float32, writable, of the file's shape. float16 and bfloat16 widen exactly."""
        array = self.arrays[name]
        if name in self.bfloat16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        if array.dtype not in (np.float32, np.float16):
            raise CheckpointError(
                f"{self.path}: tensor {name} holds {array.dtype}, but a weight must be a float32, float16 or bfloat16"
            )
        return array.astype(np.float32, copy=False)


_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_tensors(path: Path, *, sha256: str | None = None) -> Tensors:
    """Read a safetensors file and its sha256. Raises CheckpointError for a file that is damaged or has not the given `sha256`."""
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise MissingExtra.of("safetensors", "cpu", "reading a model's weights") from None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. Weights must be safetensors; fetch the model again"
        ) from None
    # Hashing 90 MB takes a quarter of a second and leaves the interpreter free: the file is taken apart meanwhile.
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(lambda: hashlib.sha256(content).hexdigest())
        try:
            entries = deserialize(content)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            entries = error
    digest = hashing.result()
    if sha256 is not None and digest != sha256:
        raise CheckpointError(f"{path} has sha256 {digest}, expected {sha256}: it is damaged or another model. Install it again")
    if isinstance(entries, SafetensorError):
        raise CheckpointError(f"{path} is not a whole safetensors file ({entries}). Fetch the model again")
    arrays, bfloat16 = {}, set()
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {name} has the dtype {entry['dtype']}, which is not supported")
        arrays[name] = np.frombuffer(entry["data"], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            bfloat16.add(name)
    return Tensors(path, digest, arrays, frozenset(bfloat16))


class StoredTensors:
    """A safetensors file, mapped: tensors are read one by one, as float32, so that a large model is never in memory twice."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises CheckpointError for a file that is not a whole safetensors file."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise MissingExtra.of("safetensors", "cpu", "reading a model's weights") from None
        self.path = path
        try:
            file: Any = safe_open(path, framework="pt")
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing. Weights must be safetensors; fetch the model again") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file ({error}). Fetch the model again") from None
        self._file = file
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
        for name, tensor in slices.items():
            if tensor.get_dtype() not in ("F32", "F16", "BF16"):
                raise CheckpointError(
                    f"{path}: tensor {name} holds {tensor.get_dtype()}, but a weight must be a float32, float16 or bfloat16"
                )

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor as float32; float16 and bfloat16 widen exactly."""
        return self.mapped(name).float()

    def mapped(self, name: str) -> Tensor:
        """Return a tensor as stored, a window into the file, not to be written to.

        Only pages that are read take memory, and the system can take them back.
        """
        return self._file.get_tensor(name)


def digest_of(paths: Sequence[Path], *, root: Path) -> str:
    """Return a sha256, hexadecimal: one file's own; for several, that over their names below root and their own sums."""
    digests = []
    for path in paths:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}. Fetch the model again") from None
    if len(paths) == 1:
        return digests[0]
    lines = [f"{path.relative_to(root).as_posix()} {digest}\n" for path, digest in zip(paths, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_names_and_shapes(path: Path, stored: Shapes, expected: Shapes, *, ignorable: Collection[str] = ()) -> None:
    """Raise CheckpointError unless every expected tensor is stored in its shape, and no other but `ignorable` ones.

    The error names the tensors.
    """
    wrong = [f"{name} is missing" for name in expected if name not in stored]
    known = {*expected, *ignorable}
    wrong += [f"{name} is not known" for name in stored if name not in known]
    shapes = ((name, stored[name], shape) for name, shape in expected.items() if name in stored)
    wrong += [f"{name} has the shape {own}, expected {shape}" for name, own, shape in shapes if own != shape]
    if wrong:
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{path} does not fit its config.json: {'; '.join(wrong[:5])}{more}. Weights that do not fit are never "
            "filled with random numbers: fetch the model again, or use the folder's own config.json"
        )


def refuse_code(folder: Path) -> None:
    """Raise CheckpointError for a folder that would run code.

    That is one with `auto_map` in a config, a foreign class in modules.json, or pickled weights alone.
    """
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if read_json(folder / name, optional=True).get("auto_map"):
            raise CheckpointError(
                f"{folder / name} asks to run code from the checkpoint (auto_map). ragkit never does. "
                "Use a version of this model that needs no remote code, or serve it behind an embeddings API"
            )
    for place in [folder, *_module_folders(folder)]:
        pickles = [file for pattern in _PICKLES for file in place.glob(pattern)]
        if pickles and not any(place.glob("*.safetensors")):
            raise CheckpointError(
                f"{place} has its weights only as a pickle ({pickles[0].name}), which can run code when opened. "
                "Use a checkpoint with safetensors, or convert it where you trust it: model.save_pretrained(folder)"
            )


def _module_folders(folder: Path) -> list[Path]:
    """Return the folders of the modules in modules.json. CheckpointError for foreign classes, and for folders outside."""
    places = []
    for module in _modules(folder):
        kind = module["type"]
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in KNOWN_MODULES:
            raise CheckpointError(
                f"{folder / 'modules.json'} names the class {kind}, which is not one of sentence-transformers' own: loading it "
                f"would run foreign code. Known: {', '.join(sorted(KNOWN_MODULES))}"
            )
        place = (folder / module["path"]).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder / 'modules.json'} points outside its folder: {module['path']}")
        places.append(place)
    return places


def _modules(folder: Path) -> list[dict[str, str]]:
    listed = read_json(folder / "modules.json", optional=True) or []
    if not isinstance(listed, list) or not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in listed):
        raise CheckpointError(f"{folder / 'modules.json'} must be a list of modules with a type each")
    return [{"type": module["type"], "path": str(module.get("path", ""))} for module in listed]


def has_bert_layout(folder: Path) -> bool:
    """Return whether `bert.py` can run it: model_type bert, absolute positions, erf gelu, one mean pooling, no prompts."""
    modules = _modules(folder)
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    return (
        _is_plain_bert(read_json(folder / "config.json", optional=True))
        and kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        and not modules[0]["path"]
        and _encodes_without_prompts(read_json(folder / "config_sentence_transformers.json", optional=True))
        and _pools_by_mean(read_json(folder / modules[1]["path"] / "config.json"))
    )


def _is_plain_bert(config: Config) -> bool:
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder", False)
    )


def _encodes_without_prompts(settings: Config) -> bool:
    kind = settings.get("model_type", "SentenceTransformer")
    return kind == "SentenceTransformer" and not any((settings.get("prompts") or {}).values())


def _pools_by_mean(pooling: Config) -> bool:
    if "pooling_mode" in pooling:
        return pooling["pooling_mode"] in ("mean", ["mean"])
    return [name for name in _LEGACY_POOLING if pooling.get(name)] == ["pooling_mode_mean_tokens"]


def licence_of(folder: Path) -> str:
    """Return the licence that the model card (README.md) names, or "unknown"."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    licence = re.match(r"---\n(?:.*\n)*?license: *([^\n]+)\n", text)
    return licence[1].strip() if licence else "unknown"

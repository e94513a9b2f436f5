"""What is wrong with checkpoints found in the wild, done to a folder in place. See `stored.edit_tensors` for the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.encode.checkpoints.stored import read_json, write_json

# Protocol 0 of what `pickle` would run as eval("1/0"): whoever unpickles it gets a ZeroDivisionError.
PICKLE = b"cbuiltins\neval\n(V1/0\ntR."


def set_json(path: Path, *, remove: tuple[str, ...] = (), **fields: Any) -> None:
    """Change fields of a JSON file."""
    content = {name: value for name, value in read_json(path).items() if name not in remove}
    write_json(path, content | fields)


def name_code(folder: Path, file: str = "config.json", target: str = "modeling_evil.Model") -> None:
    """Ask for code of the checkpoint to be run, and ship some that tells on whoever runs it."""
    set_json(folder / file, auto_map={"AutoConfig": target, "AutoModel": target, "AutoTokenizer": [None, target]})
    (folder / f"{target.split('--')[-1].split('.')[0]}.py").write_text('raise AssertionError("code of a checkpoint was run")\n')


def pickles_only(folder: Path) -> None:
    """Every safetensors file is a pickle instead, under the name it has in published checkpoints."""
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.safetensors.index.json")]:
        path.unlink()
        if path.suffix == ".safetensors":
            name = path.name.replace("model", "pytorch_model", 1) if path.name.startswith("model") else path.name
            path.with_name(name).with_suffix(".bin").write_bytes(PICKLE)


def pickle_beside(folder: Path) -> None:
    """A pickle next to the safetensors, as many repositories have it: to be left alone."""
    (folder / "pytorch_model.bin").write_bytes(PICKLE)


def foreign_module(folder: Path, kind: str = "modeling_evil.Model") -> None:
    """modules.json names a class that is not sentence-transformers' own."""
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])


def tokenizer_truncates(folder: Path, length: int = 16) -> None:
    """The published tokenizer.json has somebody's padding and truncation switched on; a loader switches both off."""
    truncation = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": length}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    set_json(folder / "tokenizer.json", truncation=truncation, padding=padding | {"pad_token": "[PAD]"})


def text_only(folder: Path) -> None:
    """config.json knows nothing of images, though the weights have a vision tower."""
    set_json(folder / "config.json", remove=("vision_config",))

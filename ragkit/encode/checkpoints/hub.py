"""Models by hub id: finding one on this machine, and fetching one when the caller agrees.

`load_encoder` only looks into the cache (huggingface_hub's own). `fetch_model` is the one place that uses the network: it
asks first, with name, revision, size and licence in hand, and takes safetensors, JSON and vocabularies, nothing that could run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ragkit.core.errors import CheckpointError, MissingExtra

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "README.md", "LICENSE*")
_SHA256_LENGTH = 64  # a card's revision may be a file's sha256, which the hub does not know
Hub = Any  # the module huggingface_hub and its values, which not every installation has


@dataclass(frozen=True, slots=True)
class Offer:
    """A download that may be agreed to. `size` in bytes; `licence` as the model card says, or "unknown"."""

    name: str
    revision: str
    size: int
    licence: str

    def __str__(self) -> str:
        return f"{self.name} at {self.revision[:12]}: {self.size / 1e6:,.0f} MB, licence {self.licence}"


def cached_folder(name: str, *, revision: str | None = None) -> Path:
    """Return the folder of a model that was fetched before; the network is not touched.

    Raises CheckpointError with the way out for a name that is neither a folder nor in the cache.
    """
    hub = _import_hub()
    if revision is not None and len(revision) == _SHA256_LENGTH:
        revision = None  # the code that reads the file compares the sum
    # Not snapshot_download(local_files_only=True): it also asks for files that are never read here.
    malformed = False
    try:
        for file in ("config.json", "modules.json"):
            if isinstance(path := hub.try_to_load_from_cache(name, file, revision=revision), str):
                return Path(path).parent
    except hub.errors.HFValidationError:
        malformed = True
    if malformed or "/" not in name:
        raise CheckpointError(
            f"{name!r} is neither a folder here, nor a registered name (default, all-MiniLM-L6-v2, hash, hash:<dims>), "
            "nor a hub id such as organisation/model. An index built with an encoder object is opened with one: model=encoder"
        )
    at = f", revision={revision!r}" if revision else ""
    raise CheckpointError(
        f"{name}{f' at {revision}' if revision else ''} is not on this machine, and nothing is downloaded unasked. Fetch it once "
        f"with ragkit.encode.checkpoints.hub.fetch_model({name!r}{at}, agree=...), or give the path of a folder with its files"
    )


def fetch_model(name: str, *, agree: Callable[[Offer], bool], revision: str | None = None, endpoint: str | None = None) -> Path:
    """Download a model into the cache, if `agree(offer)` says so, and return its folder.

    endpoint: another hub, as a URL. Raises CheckpointError if the model is not there, has no safetensors, or was declined.
    """
    hub = _import_hub()
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True)
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise CheckpointError(f"{name} cannot be fetched: {error}") from None
    offer = _offer(name, info)
    if not agree(offer):
        raise CheckpointError(f"not downloaded, as you chose: {offer}")
    folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS), endpoint=endpoint))
    if folder.name != info.sha:
        raise CheckpointError(f"{name} changed from {info.sha} to {folder.name} while it was fetched. Fetch it again")
    return folder


def _offer(name: str, info: Hub) -> Offer:
    """Return what a download would bring, from the hub's ModelInfo. Raises CheckpointError for a model without safetensors."""
    files = [file for file in info.siblings or [] if _is_fetched(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise CheckpointError(f"{name} has no safetensors, and ragkit opens no pickles. Use another version of the model")
    licence = str((info.card_data or {}).get("license") or "unknown")
    return Offer(name, str(info.sha), sum(file.size or 0 for file in files), licence)


def _is_fetched(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in PATTERNS)


def _import_hub() -> Hub:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtra.of("huggingface_hub", "cpu", "a model by its hub id") from None
    return huggingface_hub

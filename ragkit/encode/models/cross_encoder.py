"""Cross-encoders as rerankers: a model that reads query and text together, through sentence-transformers.

    index.search("who pays?", rerank=load_cross_encoder("models/ms-marco-MiniLM-L6-v2"))

Rules as for every model here: safetensors only, no code from the checkpoint, no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ragkit.core.errors import CheckpointError, MissingExtra
from ragkit.encode.checkpoints.checkpoint import refuse_code
from ragkit.encode.checkpoints.hub import cached_folder

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


def load_cross_encoder(name_or_path: str | Path, *, device: str | None = None, max_tokens: int | None = None) -> CrossEncoder:
    """Return a sentence_transformers.CrossEncoder from a local folder, or from a hub id that is in this machine's cache.

    Pairs beyond `max_tokens`, or the model's own limit, are cut at the end of the text. CheckpointError for files that are
    missing, damaged or would run code, and for a model with more than one label; MissingExtra for a missing package.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        folder = cached_folder(str(name_or_path), revision=None)
    refuse_code(folder)
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise MissingExtra.of("sentence-transformers", "cpu", "reranking with a cross-encoder") from None
    try:
        model = CrossEncoder(
            str(folder),
            device=device,
            max_length=max_tokens,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"sentence-transformers cannot load {folder} as a cross-encoder: {error}") from error
    if model.num_labels != 1:
        raise CheckpointError(f"{folder} has {model.num_labels} labels; a reranker has one, the score")
    return model

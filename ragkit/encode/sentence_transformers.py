"""Any dense sentence-transformers model through one short adapter: its own prompts, its own pooling, our contract.

In goes a folder that `checkpoint.refuse_code` has passed. Rules: no remote code, no network, safetensors only; prompts are the
model's, by role. Models that return one vector per token (`MultiVectorEncoder`) and sparse ones are not taken here.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.encode.checkpoint import licence_of, read_json
from ragkit.encode.contract import EncoderCard, Encoding, Item, TokenStates
from ragkit.encode.layouts import Opening
from ragkit.encode.precision import AUTO, checked_dtype
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_texts, check_truncate_dim, too_long, without_surrogates
from ragkit.errors import CheckpointError, MissingExtra
from ragkit.ragged import truncate_dims, unit_rows
from ragkit.types import Ints

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that sentence-transformers' own encode_document tries, in order
TOGETHER = 256  # texts tokenised at a time


def load(opening: Opening) -> SentenceTransformerEncoder:
    """Load a folder that sentence-transformers wrote or understands."""
    folder = opening.folder
    kind = read_json(folder / "config_sentence_transformers.json", optional=True).get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise CheckpointError(f"{folder} is a {kind}; this adapter takes dense models (SentenceTransformer) only")
    digest = _digest(folder) if opening.commit is None else opening.commit
    revision = opening.revision_of(digest)
    dtype = checked_dtype(opening.dtype)
    model = _open(folder, device=opening.device, dtype=dtype)
    if opening.max_tokens is not None:
        model.max_seq_length = opening.max_tokens
    prompts = {role: text for role, text in model.prompts.items() if text}
    card = EncoderCard(
        name=opening.name,
        revision=revision,
        licence=licence_of(folder),
        dims=int(model.get_embedding_dimension()),
        tasks=GENERAL,
        max_tokens=int(model.max_seq_length or 512),
        pooling="its own",
        dtype=dtype,
        preprocessing={"prompts": prompts, "weights": digest},
    )
    card = replace(card, task=checked_task(opening.task, card))
    return SentenceTransformerEncoder(card, model=model)


def _open(folder: Path, *, device: str | None, dtype: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise MissingExtra.of("sentence-transformers", "cpu", f"the model in {folder}") from None
    try:
        return SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": "float32" if dtype == AUTO else dtype},
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"sentence-transformers cannot load {folder}: {error}") from error


def _digest(folder: Path) -> str:
    """sha256 over the names and contents of all weights and settings below the folder."""
    running = hashlib.sha256()
    for path in sorted(p for pattern in ("*.safetensors", "*.json", "*.txt", "*.model") for p in folder.rglob(pattern)):
        running.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                running.update(piece)
    return running.hexdigest()


class SentenceTransformerEncoder:
    """An `Encoder` (see `contract.py`) around a SentenceTransformer. Calls from several threads take turns."""

    def __init__(self, card: EncoderCard, *, model: Any) -> None:
        self.card = card
        self._model = model
        self._lock = threading.Lock()  # its tokenizer changes its own truncation on every call
        self._prompts: dict[str, str] = card.preprocessing["prompts"]

    @property
    def _document_prompt(self) -> str:
        return self._prompt(full_task(None, self.card, role="document"))

    def _prompt(self, task: str) -> str:
        """The model's own prompt for a role or a symmetric task, "" where it has none."""
        names = {"retrieval.query": ("query",), "retrieval.passage": DOCUMENT_PROMPTS}.get(task, (task,))
        return next((self._prompts[name] for name in names if name in self._prompts), "")

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """With the model's query prompt, if it has one."""
        return self._encode(queries, full_task(task, self.card, role="query"), truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """With the model's document prompt, if it has one."""
        return self._encode(documents, full_task(task, self.card, role="document"), truncate_dim=truncate_dim, truncate=truncate)

    def encode(self, inputs: Sequence[Item], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        """With the model's prompt of that name, if it has one."""
        return self._encode(inputs, full_task(task, self.card, role=None), truncate_dim=truncate_dim, truncate=truncate)

    def _encode(self, texts: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        prompt, encode = (
            self._prompt(task),
            self._model.encode_document if task.endswith(".passage") else self._model.encode_query,
        )
        check_texts(texts)
        check_truncate_dim(truncate_dim, self.card)
        counts = self._counts(texts, prompt)
        over = np.flatnonzero(counts > self.card.max_tokens)
        if len(over) and not truncate:
            raise too_long(int(over[0]), int(counts[over[0]]), self.card)
        if not texts:
            return Encoding(dense=np.empty((0, truncate_dim or self.card.dims), dtype=np.float32))
        with self._lock:
            rows = encode(_clean(texts), prompt=prompt, convert_to_tensor=True, show_progress_bar=False).float().cpu().numpy()
        dense = unit_rows(rows) if truncate_dim is None else truncate_dims(rows, truncate_dim)
        return Encoding(dense=dense, truncated=len(over))

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        """The states the pooling sees, of one text in the document role, within the limit."""
        check_texts([text])
        [count] = self._counts([text], self._document_prompt)
        if count > self.card.max_tokens:
            raise too_long(0, int(count), self.card)
        [clean] = _clean([text])
        with self._lock:
            made = self._model.tokenizer(
                self._document_prompt + clean, return_offsets_mapping=True, return_special_tokens_mask=True
            )
            states = self._model.encode_document(
                [clean], prompt=self._document_prompt, output_value="token_embeddings", show_progress_bar=False
            )[0]
        spans = np.array(made["offset_mapping"], dtype=np.int64).reshape(-1, 2) - len(self._document_prompt)
        special = np.array(made["special_tokens_mask"], dtype=np.bool_) | (spans[:, 0] < 0)
        spans[special] = 0
        return TokenStates(states.float().cpu().numpy(), spans, special)

    def token_spans(self, text: str) -> Ints:
        """Character spans of the text's own tokens, (t, 2) int64, ascending; any length."""
        check_texts([text])
        with self._lock:
            made = self._model.tokenizer(_clean([text])[0], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return np.array(made["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Tokens in the document role, special ones and prompt included, (n,) int64; any length."""
        check_texts(documents)
        return self._counts(documents, self._document_prompt)

    def _counts(self, texts: Sequence[str], prompt: str) -> Ints:
        counts: list[int] = []
        for group in _groups([prompt + text for text in _clean(texts)]):
            with self._lock:
                counts += map(len, self._model.tokenizer(group, truncation=False, padding=False, verbose=False)["input_ids"])
        return np.array(counts, dtype=np.int64)


def _clean(texts: Sequence[str]) -> list[str]:
    return [without_surrogates(text) for text in texts]


def _groups(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), TOGETHER):
        yield texts[start : start + TOGETHER]

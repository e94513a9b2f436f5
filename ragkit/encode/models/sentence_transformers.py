"""Dense, multi-vector and CLIP-like sentence-transformers models: their own prompts and pooling, our contract, one adapter.

It loads a folder that `checkpoint.refuse_code` has passed. Rules: no remote code, no network, safetensors only; prompts are the
model's, by role. A text is a text: sentence-transformers takes a string that looks like the path or address of an image for
that image, and would open it or fetch it, so every input is passed on with its kind, {"text": ...} or {"image": ...}.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ragkit.core.arrays import MultiVectors, unit_and_lengths, unit_rows
from ragkit.core.errors import CheckpointError, EncodeError, MissingExtra
from ragkit.core.types import Floats, Ints, Patches
from ragkit.encode.batching import batches
from ragkit.encode.checkpoints.checkpoint import licence_of, read_json
from ragkit.encode.checkpoints.layouts import Checkpoint
from ragkit.encode.contract import EncoderCard, Encoding, IdArray, Item, TokenIds
from ragkit.encode.methods import RoleMethods, TokenMethods
from ragkit.encode.models.processors import Model, masked_tokens, seen_patches, seen_size
from ragkit.encode.precision import AUTO, checked_dtype
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_rows, check_texts, check_truncate_dim, split_items, too_long, without_surrogates
from ragkit.encode.tokens import text_of

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that sentence-transformers' own encode_document tries, in order
TOGETHER = 256  # texts tokenised at a time
BUDGET = 16384  # tokens a batch, and an image counts as IMAGE of them; halved when memory does not suffice
IMAGE = 1024
NO_LIMIT = 1 << 20  # tokenizers without a limit say some 1e30
MULTI_CLASSES = ("MultiVectorEncoder", "ColBERT")  # the second is the name that PyLate wrote

Named = dict[str, Any]  # one input as sentence-transformers takes it: {"text": str}, {"image": PIL image}, or both
Kind = tuple[str, ...]  # the keys of a Named


def load(checkpoint: Checkpoint) -> SentenceTransformerEncoder:
    """Load a folder that sentence-transformers wrote or understands."""
    folder, settings = checkpoint.folder, checkpoint.settings
    multi = _is_multi(folder)
    digest = _digest(folder) if checkpoint.commit is None else checkpoint.commit
    revision = checkpoint.revision_of(digest)
    dtype = checked_dtype(settings.dtype)
    # "auto" is float32 here: of an unknown model nobody has measured what half precision does to it.
    dtype = "float32" if dtype == AUTO else dtype
    model = _open(folder, multi=multi, device=settings.device, dtype=dtype)
    if settings.max_tokens is not None:
        model.max_seq_length = settings.max_tokens
    card = _card(checkpoint, model, multi=multi, digest=digest, revision=revision, dtype=dtype)
    card = replace(card, task=checked_task(settings.task, card))
    return SentenceTransformerEncoder(card, model=model)


def _card(checkpoint: Checkpoint, model: Model, *, multi: bool, digest: str, revision: str, dtype: str) -> EncoderCard:
    prompts = {role: text for role, text in model.prompts.items() if text}
    modalities = tuple(modality for modality in ("text", "image") if modality in model.modalities)
    dims = int(model.get_embedding_dimension())
    return EncoderCard(
        name=checkpoint.name,
        revision=revision,
        licence=licence_of(checkpoint.folder),
        dims=0 if multi else dims,
        multi_dims=dims if multi else 0,
        tasks=GENERAL,
        modalities=modalities,
        query_modalities=modalities,
        max_tokens=_limit(model, "document"),
        outputs=("multi",) if multi else ("dense",),
        pooling="none" if multi else _pooling_of(model),
        dtype=dtype,
        preprocessing={"prompts": prompts, "weights": digest, "query_tokens": _limit(model, "query")},
    )


def _is_multi(folder: Path) -> bool:
    """Return whether the model makes a vector per token. CheckpointError for kinds that are not dense either, such as sparse."""
    settings = read_json(folder / "config_sentence_transformers.json", optional=True)
    architectures = read_json(folder / "config.json", optional=True).get("architectures") or []
    kind = settings.get("model_type")
    if kind is None and any(str(name).endswith("ForRetrieval") for name in architectures):
        return True  # ColPali, ColQwen and their kin, as transformers itself saves them
    if kind not in (None, "SentenceTransformer", *MULTI_CLASSES):
        raise CheckpointError(f"{folder} is a {kind}; this adapter takes a SentenceTransformer or a MultiVectorEncoder")
    return kind in MULTI_CLASSES


def _open(folder: Path, *, multi: bool, device: str | None, dtype: str) -> Model:
    try:
        import sentence_transformers
    except ImportError:
        raise MissingExtra.of("sentence-transformers", "cpu", f"the model in {folder}") from None
    kind = sentence_transformers.MultiVectorEncoder if multi else sentence_transformers.SentenceTransformer
    try:
        return kind(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": dtype},
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"sentence-transformers cannot load {folder}: {error}") from error


def _limit(model: Model, role: str) -> int:
    """Return how many tokens a text in that role may have: the model's own setting, or its positions."""
    of_role = getattr(model[0], f"{role}_length", None)
    limit = int(of_role or model.max_seq_length or 512)
    if limit <= NO_LIMIT:
        return limit
    config = getattr(model[0], "config", None)
    return int(getattr(config, "max_position_embeddings", None) or 512)


def _pooling_of(model: Model) -> str:
    """Return "mean", "cls", ...; for anything beyond one pooling of a text transformer's states, the modules in order."""
    kinds = [type(module).__name__ for module in model]
    if kinds[0] == "Transformer" and kinds[1:] in (["Pooling"], ["Pooling", "Normalize"]):
        mode = model[1].pooling_mode
        return mode if isinstance(mode, str) and model[1].include_prompt else f"{mode}, without the prompt"
    return " > ".join(kinds[1:]) or "inside the model"


def _digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of all weights and settings below the folder."""
    running = hashlib.sha256()
    for path in sorted(p for pattern in ("*.safetensors", "*.json", "*.txt", "*.model") for p in folder.rglob(pattern)):
        running.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                running.update(piece)
    return running.hexdigest()


class SentenceTransformerEncoder(RoleMethods, TokenMethods):
    """An `Encoder` (see `contract.py`) around a SentenceTransformer or a MultiVectorEncoder. Calls of several threads take turns.

    An input stands behind the model's own prompt for the task, if it has one; symmetric tasks are encoded as documents are.
    `encode_tokens`, `token_ids` and `encode_ids` are for text transformers; with others they raise EncodeError.
    """

    def __init__(self, card: EncoderCard, *, model: Model) -> None:
        self.card = card
        self._model = model
        self._lock = threading.Lock()  # its tokenizer changes its own truncation on every call
        self._prompts: dict[str, str] = card.preprocessing["prompts"]
        self._budget = BUDGET

    def _prompt(self, task: str) -> str:
        """Return the model's own prompt for a role or a symmetric task, "" where it has none."""
        names = {"retrieval.query": ("query",), "retrieval.passage": DOCUMENT_PROMPTS}.get(task, (task,))
        return next((self._prompts[name] for name in names if name in self._prompts), "")

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        """Return the (width, height) in pixels that the model's own processor makes of an image of these proportions."""
        self._check_sees()
        return seen_size(self._model, width, height)

    def patches(self, width: int, height: int) -> Patches:
        """Return the grid by the model's own processor, see `processors.py`; in an unknown arrangement no cell has a vector."""
        self._check_sees()
        prompt = self._prompt(full_task(None, self.card, role="document"))
        with self._lock:
            return seen_patches(self._model, width, height, prompt=prompt)

    def query_tokens(self, query: str, *, task: str | None = None) -> Ints:
        """Return the characters that each vector of a query text stands for, (t, 2) int64; (0, 0) for prompts and marks.

        The query's own tokens are looked for in the ids that the model's preprocessing makes of it; where they do not stand
        there in a row, all are (0, 0).
        """
        check_texts([query])
        text, prompt = without_surrogates(query), self._prompt(full_task(task, self.card, role="query"))
        with self._lock:
            features = self._model.preprocess([{"text": text}], prompt=prompt or None, task="query")
            ids, with_vector = features["input_ids"][0].numpy(), masked_tokens(self._model, features, task="query")
            spans_of_ids = np.zeros((len(ids), 2), dtype=np.int64)
            for before in ("", " "):  # behind a prompt a first word may begin with its space
                own = self._tokenized(before + text)
                spans = np.maximum(np.array(own["offset_mapping"], dtype=np.int64).reshape(-1, 2) - len(before), 0)
                if len(places := _places_of(own["input_ids"], ids)):
                    spans_of_ids[places[-1] : places[-1] + len(spans)] = spans
                    break
        return np.asarray(spans_of_ids[with_vector], dtype=np.int64)

    def _tokenized(self, text: str) -> dict[str, list[Any]]:
        """Return ids and offsets of a text's own tokens. The caller holds the lock."""
        return self._model.tokenizer(  # type: ignore[no-any-return]
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )

    def _check_sees(self) -> None:
        if "image" not in self.card.modalities:
            raise ValueError(f"{self.card.name} sees no images")

    def _encode(self, items: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        inputs, kinds = self._inputs(items)
        if truncate_dim is not None and not self.card.dims:
            raise ValueError(f"{self.card.name} returns multi-vectors only, which are not cut: leave truncate_dim out")
        check_truncate_dim(truncate_dim, self.card)
        role = "query" if task.endswith(".query") else "document"
        sizes, truncated = self._sizes(inputs, kinds, task, limit=_limit(self._model, role), truncate=truncate)
        rows: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(items)
        # A batch of sentence-transformers holds one kind of input.
        for kind in dict.fromkeys(kinds):
            positions = np.flatnonzero([own == kind for own in kinds])
            for batch in batches(sizes[positions], tokens=self._budget):
                self._run(inputs, positions[batch].tolist(), rows, role=role, prompt=self._prompt(task))
        return self._packed(rows, truncate_dim=truncate_dim, truncated=truncated)

    def _inputs(self, items: Sequence[Item]) -> tuple[list[Named], list[Kind]]:
        """Return each input by the names of its parts, and these names. TypeError for inputs that the model does not take."""
        if self.card.modalities == ("text",):
            check_texts(items)
        inputs = []
        for text, image in split_items(items):
            parts = {"text": None if text is None else without_surrogates(text), "image": image}
            inputs.append({name: part for name, part in parts.items() if part is not None})
        kinds = [tuple(parts) for parts in inputs]
        for i, kind in enumerate(kinds):
            if not self._model.supports(kind[0] if len(kind) == 1 else ("image", "text")):
                raise TypeError(f"input {i} is {' and '.join(kind)}, but {self.card.name} takes {self._model.modalities}")
        return inputs, kinds

    def _sizes(
        self, inputs: Sequence[Named], kinds: Sequence[Kind], task: str, *, limit: int, truncate: bool
    ) -> tuple[Ints, int]:
        """Return (tokens of each input as a batch counts them, how many texts will be cut). Raises InputTooLong."""
        sizes = np.array([IMAGE * ("image" in kind) for kind in kinds], dtype=np.int64)
        texts = [i for i, kind in enumerate(kinds) if kind == ("text",)]
        counts = self._counts([inputs[i]["text"] for i in texts], self._prompt(task))
        over = np.flatnonzero(counts > limit)
        if len(over) and not truncate:
            raise too_long(texts[over[0]], int(counts[over[0]]), replace(self.card, max_tokens=limit))
        sizes[texts] = np.minimum(counts, limit)
        return sizes, len(over)

    def _run(self, inputs: Sequence[Named], batch: list[int], rows: list[Floats], *, role: str, prompt: str) -> None:
        """Write the vectors of the inputs at the positions `batch` to these rows: (1, d), or (t, d) of a multi-vector model."""
        import torch

        encode = self._model.encode_query if role == "query" else self._model.encode_document
        try:
            with self._lock:
                vectors = encode([inputs[i] for i in batch], prompt=prompt, batch_size=len(batch), show_progress_bar=False)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise EncodeError(f"input {batch[0]} exceeds the memory of {self._model.device}: {error}") from None
        else:
            for i, own in zip(batch, vectors, strict=True):
                rows[i] = np.atleast_2d(own.float().cpu().numpy() if isinstance(own, torch.Tensor) else own)
            return
        self._budget = max(512, self._budget // 2)  # here, not in the handler: its traceback holds what filled the memory
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            self._run(inputs, part, rows, role=role, prompt=prompt)

    def _packed(self, rows: list[Floats], *, truncate_dim: int | None, truncated: int) -> Encoding:
        card = self.card
        if card.multi_dims:
            empty = np.empty((0, card.multi_dims), dtype=np.float32)
            values = np.concatenate([empty, *rows])
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            if len(blank := np.flatnonzero(np.diff(offsets) == 0)):
                raise EncodeError(f"input {blank[0]} has no vector of its own left: {card.name} drops all of its tokens")
            return Encoding(multi=MultiVectors(unit_rows(values), offsets), truncated=truncated)
        dense = np.concatenate([np.empty((0, card.dims), dtype=np.float32), *rows])
        dense, lengths = unit_and_lengths(dense, truncate_dim)
        return Encoding(dense=dense, truncated=truncated, lengths=lengths)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """Return the whole input in the document role, prompt and special tokens included; any length."""
        self._require_states()
        check_texts([text])
        prompt = self._prompt(full_task(task, self.card, role="document"))
        with self._lock:
            tokens = self._model.tokenizer(
                prompt + without_surrogates(text),
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                truncation=False,
                verbose=False,
            )
        spans = np.array(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2) - len(prompt)
        special = np.array(tokens["special_tokens_mask"], dtype=np.bool_) | ((spans[:, 1] <= 0) & (len(prompt) > 0))
        spans[special] = 0
        return TokenIds(np.array(tokens["input_ids"], dtype=np.int64), np.maximum(spans, 0), special)

    def encode_ids(self, rows: Sequence[IdArray], *, task: str | None = None) -> list[Floats]:
        """Return the last states of each row of ids within the limit, (t, d) float32 each; nothing is added to a row."""
        self._require_states()
        check_rows(rows, self.card)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        states: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
        for batch in batches(lengths, tokens=self._budget):
            padded = self._padded_states([rows[i] for i in batch])
            for i, own in zip(batch.tolist(), padded, strict=True):
                states[i] = own[: lengths[i]]
        return states

    def _padded_states(self, rows: Sequence[IdArray]) -> Floats:
        """Return the last states of rows that are padded to the longest, (n, longest, d) float32."""
        import torch

        longest, pad = max(map(len, rows)), self._model.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=self._model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._model.device)
        with self._lock, torch.inference_mode():
            states = self._model[0]({"input_ids": ids, "attention_mask": mask})["token_embeddings"]
        return np.asarray(states.float().cpu().numpy())

    def _require_states(self) -> None:
        first = self._model[0]
        if type(first).__name__ != "Transformer" or getattr(first, "module_output_name", "") != "token_embeddings":
            raise EncodeError(f"{self.card.name} gives no token states: its first module is {type(first).__name__}")

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of the tokenizer's own ids."""
        self._require_states()

        def own(text: str) -> list[int]:
            return list(self._model.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

        with self._lock:
            tokenizer = self._model.tokenizer
            around = tokenizer("", truncation=False, verbose=False)["input_ids"]
            return text_of(ids, around=around, size=len(tokenizer), decode=tokenizer.decode, own=own)

    def token_spans(self, text: str) -> Ints:
        """Return the character spans of the text's own tokens, (t, 2) int64, ascending; any length."""
        check_texts([text])
        with self._lock:
            tokens = self._tokenized(without_surrogates(text))
        return np.array(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        """Count as `count_tokens` does, with the prompt of a full task."""
        check_texts(texts)
        return self._counts(texts, self._prompt(task))

    def _counts(self, texts: Sequence[str], prompt: str) -> Ints:
        counts: list[int] = []
        for group in _groups([prompt + without_surrogates(text) for text in texts]):
            with self._lock:
                counts += map(len, self._model.tokenizer(group, truncation=False, padding=False, verbose=False)["input_ids"])
        return np.array(counts, dtype=np.int64)


def _places_of(part: Sequence[int], whole: IdArray) -> Ints:
    """Return where a run of ids begins in a row, ascending; no place for an empty run."""
    if not 0 < len(part) <= len(whole):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero((np.lib.stride_tricks.sliding_window_view(whole, len(part)) == np.asarray(part)).all(axis=1))


def _groups(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), TOGETHER):
        yield texts[start : start + TOGETHER]

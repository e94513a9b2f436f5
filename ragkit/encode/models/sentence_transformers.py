"""Dense, multi-vector and CLIP-like sentence-transformers models: their own prompts and pooling, our contract, one adapter.

In goes a folder that `checkpoint.refuse_code` has passed. Rules: no remote code, no network, safetensors only; prompts are the
model's, by role. A text is a text: sentence-transformers takes a string that looks like the path or address of an image for
that image, and would open it or fetch it, so every input is handed over under the name of what it is.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import MultiVectors, unit_and_lengths, unit_rows
from ragkit.core.errors import CheckpointError, EncodeError, MissingExtra
from ragkit.core.types import Floats, Ints, Patches
from ragkit.encode.batching import batches
from ragkit.encode.checkpoints.checkpoint import licence_of, read_json
from ragkit.encode.checkpoints.layouts import Opening
from ragkit.encode.contract import EncoderCard, Encoding, Item, TokenIds, TokenStates
from ragkit.encode.models.processors import kept_tokens, seen_patches, seen_size
from ragkit.encode.precision import AUTO, checked_dtype
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_texts, check_truncate_dim, split_item, too_long, without_surrogates
from ragkit.encode.tokens import text_of

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the names that sentence-transformers' own encode_document tries, in order
TOGETHER = 256  # texts tokenised at a time
BUDGET = 16384  # tokens a batch, and an image counts as IMAGE of them; halved where memory does not do
IMAGE = 1024
NO_LIMIT = 1 << 20  # tokenizers without a limit say some 1e30
MULTI = ("MultiVectorEncoder", "ColBERT")  # the second is what PyLate wrote


def load(opening: Opening) -> SentenceTransformerEncoder:
    """Load a folder that sentence-transformers wrote or understands."""
    folder = opening.folder
    multi = _is_multi(folder)
    digest = _digest(folder) if opening.commit is None else opening.commit
    revision = opening.revision_of(digest)
    dtype = checked_dtype(opening.dtype)
    # "auto" is float32 here: of an unknown model nobody has measured what half precision does to it.
    dtype = "float32" if dtype == AUTO else dtype
    model = _open(folder, multi=multi, device=opening.device, dtype=dtype)
    if opening.max_tokens is not None:
        model.max_seq_length = opening.max_tokens
    prompts = {role: text for role, text in model.prompts.items() if text}
    modalities = tuple(one for one in ("text", "image") if one in model.modalities)
    dims = int(model.get_embedding_dimension())
    card = EncoderCard(
        name=opening.name,
        revision=revision,
        licence=licence_of(folder),
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
    card = replace(card, task=checked_task(opening.task, card))
    return SentenceTransformerEncoder(card, model=model)


def _is_multi(folder: Path) -> bool:
    """Whether a vector per token comes out. CheckpointError for kinds that are neither, such as sparse ones."""
    settings = read_json(folder / "config_sentence_transformers.json", optional=True)
    architectures = read_json(folder / "config.json", optional=True).get("architectures") or []
    kind = settings.get("model_type")
    if kind is None and any(str(name).endswith("ForRetrieval") for name in architectures):
        return True  # ColPali, ColQwen and their kin, as transformers itself saves them
    if kind not in (None, "SentenceTransformer", *MULTI):
        raise CheckpointError(f"{folder} is a {kind}; this adapter takes a SentenceTransformer or a MultiVectorEncoder")
    return kind in MULTI


def _open(folder: Path, *, multi: bool, device: str | None, dtype: str) -> Any:
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


def _limit(model: Any, role: str) -> int:
    """Tokens of a text in that role: the model's own setting, or its positions."""
    of_role = getattr(model[0], f"{role}_length", None)
    limit = int(of_role or model.max_seq_length or 512)
    if limit <= NO_LIMIT:
        return limit
    config = getattr(model[0], "config", None)
    return int(getattr(config, "max_position_embeddings", None) or 512)


def _pooling_of(model: Any) -> str:
    """ "mean", "cls", ...; for anything beyond one pooling of a text transformer's states, the modules in order."""
    kinds = [type(module).__name__ for module in model]
    if kinds[0] == "Transformer" and kinds[1:] in (["Pooling"], ["Pooling", "Normalize"]):
        mode = model[1].pooling_mode
        return mode if isinstance(mode, str) and model[1].include_prompt else f"{mode}, without the prompt"
    return " > ".join(kinds[1:]) or "inside the model"


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
    """An `Encoder` (see `contract.py`) around a SentenceTransformer or a MultiVectorEncoder. Calls of several threads take turns.

    `encode_tokens`, `token_ids` and `encode_ids` are for text transformers; others raise EncodeError.
    """

    def __init__(self, card: EncoderCard, *, model: Any) -> None:
        self.card = card
        self._model = model
        self._lock = threading.Lock()  # its tokenizer changes its own truncation on every call
        self._prompts: dict[str, str] = card.preprocessing["prompts"]
        self._budget = BUDGET

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
        """With the model's prompt of that name, if it has one; symmetric tasks go the way of documents."""
        return self._encode(inputs, full_task(task, self.card, role=None), truncate_dim=truncate_dim, truncate=truncate)

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        """(width, height) in pixels that the model's own processor makes of an image of these proportions."""
        self._check_sees()
        return seen_size(self._model, width, height)

    def patches(self, width: int, height: int) -> Patches:
        """By the model's own processor, see `processors`; cells have no vector where its arrangement is not a known one."""
        self._check_sees()
        with self._lock:
            return seen_patches(self._model, width, height, prompt=self._document_prompt)

    def query_tokens(self, query: str, *, task: str | None = None) -> Ints:
        """Of each vector of a query alone, the characters of it; (0, 0) for those of prompts and marks.

        The query's own tokens are looked for in what the model's preprocessing makes of it; where they are not there as they
        stand, all are (0, 0).
        """
        check_texts([query])
        text, prompt = without_surrogates(query), self._prompt(full_task(task, self.card, role="query"))
        with self._lock:
            features = self._model.preprocess([{"text": text}], prompt=prompt or None, task="query")
            ids, kept = features["input_ids"][0].numpy(), kept_tokens(self._model, features, task="query")
            found = np.zeros((len(ids), 2), dtype=np.int64)
            for before in ("", " "):  # behind a prompt a first word may begin with its space
                own = self._model.tokenizer(
                    before + text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
                )
                spans = np.maximum(np.array(own["offset_mapping"], dtype=np.int64).reshape(-1, 2) - len(before), 0)
                if len(at := _places_of(own["input_ids"], ids)):
                    found[at[-1] : at[-1] + len(spans)] = spans
                    break
        return np.asarray(found[kept], dtype=np.int64)

    def _check_sees(self) -> None:
        if "image" not in self.card.modalities:
            raise ValueError(f"{self.card.name} sees no images")

    def _encode(self, items: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        named, kinds = self._named(items)
        if truncate_dim is not None and not self.card.dims:
            raise ValueError(f"{self.card.name} returns multi-vectors only, which are not cut: leave truncate_dim out")
        check_truncate_dim(truncate_dim, self.card)
        role = "query" if task.endswith(".query") else "document"
        sizes, over = self._sizes(named, kinds, task, limit=_limit(self._model, role), truncate=truncate)
        rows: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(items)
        # A batch of sentence-transformers holds one kind of input.
        for kind in dict.fromkeys(kinds):
            at = np.flatnonzero([one == kind for one in kinds])
            for batch in batches(sizes[at], tokens=self._budget):
                self._run([named[i] for i in at[batch]], at[batch].tolist(), rows, role=role, prompt=self._prompt(task))
        return self._packed(rows, truncate_dim=truncate_dim, truncated=over)

    def _named(self, items: Sequence[Item]) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
        """Each input as {"text": ...}, {"image": ...} or both, and which of them it has. TypeError for what is not taken."""
        if self.card.modalities == ("text",):
            check_texts(items)
        elif isinstance(items, str):
            raise TypeError("expected a list of inputs, got one str: wrap it in a list")
        named = []
        for i, item in enumerate(items):
            text, image = split_item(i, item)
            parts = {"text": None if text is None else without_surrogates(text), "image": image}
            named.append({name: part for name, part in parts.items() if part is not None})
        kinds = [tuple(one) for one in named]
        for i, kind in enumerate(kinds):
            if not self._model.supports(kind[0] if len(kind) == 1 else ("image", "text")):
                raise TypeError(f"input {i} is {' and '.join(kind)}, but {self.card.name} takes {self._model.modalities}")
        return named, kinds

    def _sizes(
        self, named: Sequence[dict[str, Any]], kinds: Sequence[tuple[str, ...]], task: str, *, limit: int, truncate: bool
    ) -> tuple[Ints, int]:
        """(tokens of each input as a batch counts them, how many texts will be cut). Raises InputTooLong."""
        sizes = np.array([IMAGE * ("image" in kind) for kind in kinds], dtype=np.int64)
        texts = [i for i, kind in enumerate(kinds) if kind == ("text",)]
        counts = self._counts([named[i]["text"] for i in texts], self._prompt(task))
        over = np.flatnonzero(counts > limit)
        if len(over) and not truncate:
            raise too_long(texts[over[0]], int(counts[over[0]]), replace(self.card, max_tokens=limit))
        sizes[texts] = np.minimum(counts, limit)
        return sizes, len(over)

    def _run(self, inputs: list[Any], at: list[int], rows: list[Floats], *, role: str, prompt: str) -> None:
        """Write what comes out of these inputs to `rows[at]`: (1, d), or (t, d) of a multi-vector model."""
        import torch

        encode: Callable[..., Any] = self._model.encode_query if role == "query" else self._model.encode_document
        try:
            with self._lock:
                made = encode(inputs, prompt=prompt, batch_size=len(inputs), show_progress_bar=False)
        except torch.OutOfMemoryError as error:
            if len(inputs) == 1:
                raise EncodeError(f"input {at[0]} exceeds the memory of {self._model.device}: {error}") from None
        else:
            for i, one in zip(at, made, strict=True):
                rows[i] = np.atleast_2d(one.float().cpu().numpy() if isinstance(one, torch.Tensor) else one)
            return
        self._budget = max(512, self._budget // 2)  # here, not in the handler: its traceback holds what filled the memory
        half = len(inputs) // 2
        for part in (slice(half), slice(half, None)):
            self._run(inputs[part], at[part], rows, role=role, prompt=prompt)

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

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        """The states the pooling sees, of one text in the document role, within the limit."""
        tokens = self.token_ids(text, task=task)
        if len(tokens.ids) > self.card.max_tokens:
            raise too_long(0, len(tokens.ids), self.card)
        [states] = self.encode_ids([tokens.ids])
        return TokenStates(states, tokens.spans, tokens.special)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """The whole input in the document role, prompt and special tokens included; any length."""
        self._require_states()
        check_texts([text])
        prompt = self._prompt(full_task(task, self.card, role="document"))
        with self._lock:
            made = self._model.tokenizer(
                prompt + without_surrogates(text),
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                truncation=False,
                verbose=False,
            )
        spans = np.array(made["offset_mapping"], dtype=np.int64).reshape(-1, 2) - len(prompt)
        special = np.array(made["special_tokens_mask"], dtype=np.bool_) | ((spans[:, 1] <= 0) & (len(prompt) > 0))
        spans[special] = 0
        return TokenIds(np.array(made["input_ids"], dtype=np.int64), np.maximum(spans, 0), special)

    def encode_ids(self, rows: Sequence[npt.NDArray[Any]], *, task: str | None = None) -> list[Floats]:
        """The last states of each row of ids within the limit, (t, d) float32 each; nothing is added to a row."""
        self._require_states()
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        for i, length in enumerate(lengths.tolist()):
            if length == 0:
                raise ValueError(f"row {i} has no ids")
            if length > self.card.max_tokens:
                raise too_long(i, length, self.card)
        states: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
        for batch in batches(lengths, tokens=self._budget):
            padded = self._padded_states([rows[i] for i in batch])
            for i, own in zip(batch.tolist(), padded, strict=True):
                states[i] = own[: lengths[i]]
        return states

    def _padded_states(self, rows: Sequence[npt.NDArray[Any]]) -> Floats:
        """(n, longest, d) float32."""
        import torch

        longest, pad = max(map(len, rows)), self._model.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=self._model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._model.device)
        with self._lock, torch.inference_mode():
            made = self._model[0]({"input_ids": ids, "attention_mask": mask})["token_embeddings"]
        return np.asarray(made.float().cpu().numpy())

    def _require_states(self) -> None:
        first = self._model[0]
        if type(first).__name__ != "Transformer" or getattr(first, "module_output_name", "") != "token_embeddings":
            raise EncodeError(f"{self.card.name} gives no token states: its first module is {type(first).__name__}")

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of the tokenizer's own ids."""
        self._require_states()

        def own(text: str) -> list[int]:
            return list(self._model.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

        with self._lock:
            tokenizer = self._model.tokenizer
            around = tokenizer("", truncation=False, verbose=False)["input_ids"]
            return text_of(ids, around=around, size=len(tokenizer), decode=tokenizer.decode, own=own)

    def token_spans(self, text: str) -> Ints:
        """Character spans of the text's own tokens, (t, 2) int64, ascending; any length."""
        check_texts([text])
        with self._lock:
            made = self._model.tokenizer(
                without_surrogates(text), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
            )
        return np.array(made["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Tokens in the document role, special ones and prompt included, (n,) int64; any length."""
        check_texts(documents)
        return self._counts(documents, self._document_prompt)

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        """As `count_tokens`, with the prompt of a full task."""
        check_texts(texts)
        return self._counts(texts, self._prompt(task))

    def _counts(self, texts: Sequence[str], prompt: str) -> Ints:
        counts: list[int] = []
        for group in _groups([prompt + without_surrogates(text) for text in texts]):
            with self._lock:
                counts += map(len, self._model.tokenizer(group, truncation=False, padding=False, verbose=False)["input_ids"])
        return np.array(counts, dtype=np.int64)


def _places_of(part: Sequence[int], whole: npt.NDArray[Any]) -> Ints:
    """Where a run of ids begins in a row, ascending; nowhere for an empty one."""
    if not 0 < len(part) <= len(whole):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero((np.lib.stride_tricks.sliding_window_view(whole, len(part)) == np.asarray(part)).all(axis=1))


def _groups(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), TOGETHER):
        yield texts[start : start + TOGETHER]

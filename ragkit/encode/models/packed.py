"""An encoder around a transformer that works on packed rows (see `kernels.py`): what all such text models share.

Texts are tokenised ahead on another thread, sorted by length, and run in batches of a budget of tokens, without padding. A
model says how token ids become states, and what stands before a text for a task; tasks may be mixed in a batch.

Rules: pooling (the mean over all tokens, special ones and instruction included) and normalising in float32; a vector does not
depend on what else is in its batch; the instruction and the adapter of a task are chosen together, here and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import MultiVectors, unit_and_lengths, unit_rows
from ragkit.core.errors import EncodeError
from ragkit.core.types import Floats, Ints
from ragkit.encode.batching import ahead, batches, side_by_side, slices
from ragkit.encode.contract import EncoderCard, Encoding, Item, TokenIds, TokenStates
from ragkit.encode.models.kernels import Kernels, runs_of
from ragkit.encode.tasks import full_task
from ragkit.encode.texts import check_texts, check_truncate_dim, too_long
from ragkit.encode.tokens import Tokenizer

QUERY = 1000  # characters, some 250 tokens: on a busy machine two threads waited for each other five times longer than one worked
FEW = 1 << 13  # characters, some 2 k tokens: so few are one batch or two, not worth threads of their own
SLICE = 1 << 16  # characters, some 16 k tokens, tokenised at a time

Row = npt.NDArray[np.int32]  # token ids of one text, special ones and instruction included
Forward = Callable[[Sequence[Row], Sequence[str]], Any]  # rows and the full task of each -> packed states (sum of lengths, d)


class PackedModel(Protocol):
    """What differs between models."""

    @property
    def device(self) -> str: ...

    @property
    def budget(self) -> int:
        """Tokens a batch, to begin with."""
        ...

    def arithmetic(self, tokens: int, *, few: bool) -> tuple[Kernels, Forward]:
        """How a batch of that many tokens is computed. few: the call it is of is a query or the like; speed is not its matter."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """Tokenised texts: where they stand in the caller's list, their ids, and how many were cut."""

    positions: Ints
    ids: list[Row]
    cut: int


@dataclass(frozen=True, slots=True, eq=False)
class _Outputs:
    """Where the batches of one call write to, each to its own positions."""

    tasks: Sequence[str]
    few: bool
    dense: Floats
    multi: list[Floats] | None


class PackedEncoder:
    """An `Encoder`, a `TokenEncoder` and a `TokenReader` (see `contract.py`). Thread-safe."""

    def __init__(
        self, card: EncoderCard, *, model: PackedModel, tokenizer: Tokenizer, instructions: Mapping[str, str] | None = None
    ) -> None:
        """instructions: by full task, what stands before each text; "" where it names none. The tokenizer puts one token
        before a text and one after it."""
        self.card = card
        self.device = model.device
        self._model = model
        self._tokenizer = tokenizer
        self._instructions = dict(instructions or {})
        self._budget = model.budget

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """n texts -> n unit rows, in order. Raises InputTooLong (unless `truncate`), TypeError for what is not a str."""
        tasks = [full_task(task, self.card, role="query")] * len(queries)
        return self._encode(queries, tasks, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """As `encode_query`, in the other role. Beside the result, memory does not grow with the list."""
        tasks = [full_task(task, self.card, role="document")] * len(documents)
        return self._encode(documents, tasks, truncate_dim=truncate_dim, truncate=truncate)

    def encode(
        self, inputs: Sequence[Item], *, task: str | Sequence[str], truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """By full name or symmetric family: one for all inputs, or one each; a batch may mix them."""
        named = [task] * len(inputs) if isinstance(task, str) else list(task)
        if len(named) != len(inputs):
            raise ValueError(f"{len(named)} tasks for {len(inputs)} inputs: give one for all, or one each")
        full = {name: full_task(name, self.card, role=None) for name in {*named, *([task] if isinstance(task, str) else [])}}
        return self._encode(inputs, [full[name] for name in named], truncate_dim=truncate_dim, truncate=truncate)

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        """The last layer's states of one text within the limit, before pooling: not of unit length. Raises InputTooLong."""
        tokens = self.token_ids(text, task=task)
        if len(tokens.ids) > self.card.max_tokens:
            raise too_long(0, len(tokens.ids), self.card)
        [states] = self.encode_ids([tokens.ids], task=task)
        return TokenStates(states, tokens.spans, tokens.special)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """The token before the text, the instruction, the text's tokens, the token after it; any length."""
        check_texts([text])
        instruction = self._instruction(full_task(task, self.card, role="document"))
        ids, spans = self._tokenizer.own(instruction + text)
        spans = spans - len(instruction)
        special = np.pad((spans[:, 1] <= 0) & (len(instruction) > 0), 1, constant_values=True)
        spans = np.pad(np.maximum(spans, 0), ((1, 1), (0, 0)))
        spans[special] = 0
        first, last = self._tokenizer.ids([""])[0]
        return TokenIds(np.concatenate([[first], ids, [last]], dtype=np.int32), spans, special)

    def encode_ids(self, rows: Sequence[npt.NDArray[Any]], *, task: str | None = None) -> list[Floats]:
        """The last layer's states of each row of ids within the limit; nothing is added to a row."""
        full = full_task(task, self.card, role="document")
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        for i, length in enumerate(lengths.tolist()):
            if length == 0:
                raise ValueError(f"row {i} has no ids")
            if length > self.card.max_tokens:
                raise too_long(i, length, self.card)
        states: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
        characters = 4 * int(lengths.sum())

        def keep(batch: Ints) -> Callable[[], None]:
            work = partial(self._states_of, rows, full, characters <= QUERY, states)
            return partial(self._halving, work, batch, lengths)

        self._run((keep(batch) for batch in batches(lengths, tokens=self._budget)), characters=characters)
        return states

    def token_spans(self, text: str) -> Ints:
        """Character spans of the text's own tokens, (t, 2) int64, ascending; any length, no special tokens."""
        tokens = self.token_ids(text)
        return tokens.spans[~tokens.special]

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Tokens of each text in the document role, special ones and instruction included, (n,) int64; any length."""
        return self.task_tokens(documents, full_task(None, self.card, role="document"))

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        """As `count_tokens`, with a full task's own instruction."""
        check_texts(texts)
        instruction = self._instruction(task)
        return self._tokenizer.counts([instruction + text for text in texts])

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of the tokenizer's own ids."""
        return self._tokenizer.text_of(ids)

    def _instruction(self, task: str) -> str:
        return self._instructions.get(task, "")

    def _encode(self, inputs: Sequence[Item], tasks: Sequence[str], *, truncate_dim: int | None, truncate: bool) -> Encoding:
        check_texts(inputs)
        check_truncate_dim(truncate_dim, self.card)
        dense = np.empty((len(inputs), self.card.dims), dtype=np.float32)
        multi: list[Floats] | None = [np.empty((0, 0), dtype=np.float32)] * len(inputs) if self.card.multi_dims else None
        characters, truncated = sum(map(len, inputs)), 0
        outputs = _Outputs(tasks, characters <= QUERY, dense, multi)

        def work() -> Iterator[Callable[[], None]]:
            nonlocal truncated
            for part in ahead(partial(self._tokenise, inputs, tasks, truncate=truncate), slices(inputs, characters=SLICE)):
                truncated += part.cut
                lengths = np.array([len(row) for row in part.ids], dtype=np.int64)
                for batch in batches(lengths, tokens=self._budget):
                    yield partial(self._halving, partial(self._write, part, outputs), batch, lengths)

        self._run(work(), characters=characters)
        dense, lengths = unit_and_lengths(dense, truncate_dim)
        packed = None if multi is None else _pack(multi, self.card.multi_dims)
        return Encoding(dense=dense, multi=packed, truncated=truncated, lengths=lengths)

    def _run(self, work: Iterator[Callable[[], None]], *, characters: int) -> None:
        """Run the batches: for little, one after the other; for much, on as many threads as torch would use in one operation.

        A batch per thread has no point at which threads wait for each other, as there are several in each operation otherwise.
        """
        kernels, _ = self._model.arithmetic(0, few=characters <= QUERY)
        workers = kernels.threads if characters > FEW else 1
        if workers > 1 or (kernels.threads > 1 and characters <= QUERY):
            side_by_side(work, workers=workers, start=kernels.alone)
            return
        for batch in work:
            batch()

    def _tokenise(self, texts: Sequence[str], tasks: Sequence[str], positions: Ints, *, truncate: bool) -> _Slice:
        whole = [self._instruction(tasks[i]) + texts[i] for i in positions]
        ids, cut, limit = self._tokenizer.ids(whole), 0, self.card.max_tokens
        for i, row in enumerate(ids):
            if len(row) <= limit:
                continue
            if not truncate:
                raise too_long(int(positions[i]), len(row), self.card)
            ids[i], cut = np.append(row[: limit - 1], row[-1]), cut + 1  # the last one is [SEP] or </s>
        return _Slice(positions, ids, cut)

    def _halving(self, work: Callable[[Ints], str | None], batch: Ints, lengths: Ints) -> None:
        """`work(batch)`, which says what it had no memory for; then in halves, and smaller batches from now on."""
        reason = work(batch)
        if reason is None:
            return
        if len(batch) == 1:
            raise EncodeError(f"a text of {lengths[batch[0]]} tokens exceeds the memory of {self.device}: {reason}")
        self._budget = max(512, self._budget // 2)
        for half in np.array_split(batch, 2):
            self._halving(work, half, lengths)

    def _write(self, part: _Slice, outputs: _Outputs, batch: Ints) -> str | None:
        """Write the means of the texts at the positions `batch` of the slice, and their token states if wanted."""
        ids, at = [part.ids[i] for i in batch], part.positions[batch]
        lengths = [len(row) for row in ids]
        kernels, forward = self._model.arithmetic(sum(lengths), few=outputs.few)
        try:
            with kernels.context():
                states = forward(ids, [outputs.tasks[i] for i in at])
                outputs.dense[at] = kernels.means(states, runs_of(lengths))
                rows = None if outputs.multi is None else kernels.to_numpy(states)
        except kernels.out_of_memory as error:
            return str(error)  # the caller goes on, not this handler: its traceback holds the tensors that filled the memory
        if rows is not None and outputs.multi is not None:
            _keep_token_states(rows, lengths, at=at, multi=outputs.multi)
        return None

    def _states_of(self, rows: Sequence[npt.NDArray[Any]], task: str, few: bool, states: list[Floats], batch: Ints) -> str | None:
        """Write the states of the rows at the positions `batch` to those positions of `states`."""
        lengths = [len(rows[i]) for i in batch]
        kernels, forward = self._model.arithmetic(sum(lengths), few=few)
        try:
            with kernels.context():
                packed = kernels.to_numpy(forward([rows[i] for i in batch], [task] * len(batch)))
        except kernels.out_of_memory as error:
            return str(error)
        for i, own in zip(batch.tolist(), np.split(packed, np.cumsum(lengths)[:-1]), strict=True):
            states[i] = own
        return None


class Placed:
    """A model's weights on their device, once per dtype, placed when first used. Thread-safe."""

    def __init__(self, place: Callable[[str], Any]) -> None:
        self._place = place
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __contains__(self, dtype: str) -> bool:
        return dtype in self._made

    def __getitem__(self, dtype: str) -> Any:
        with self._lock:
            if dtype not in self._made:
                self._made[dtype] = self._place(dtype)
            return self._made[dtype]


def _keep_token_states(rows: Floats, lengths: Sequence[int], *, at: Ints, multi: list[Floats]) -> None:
    """Unit states of each text's own tokens; of the two special ones for a text without any, since no multi-vector is empty."""
    for position, states in zip(at.tolist(), np.split(rows, np.cumsum(lengths)[:-1]), strict=True):
        multi[position] = unit_rows(states[1:-1] if len(states) > 2 else states)


def _pack(items: list[Floats], dims: int) -> MultiVectors:
    if not items:
        return MultiVectors(np.empty((0, dims), dtype=np.float32), np.zeros(1, dtype=np.int64))
    return MultiVectors.pack(items)


def by_task(tasks: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """(task, positions that have it), each task once."""
    order = sorted(range(len(tasks)), key=lambda i: tasks[i])
    for task, positions in groupby(order, key=lambda i: tasks[i]):
        yield task, list(positions)

"""An encoder around a transformer that works on packed rows (see `kernels.py`): what all such text models share.

Texts are tokenised ahead on another thread, sorted by length, and run in batches of a budget of tokens, without padding. A
model defines how token ids become states, and which instruction stands before a text for a task; a batch may mix tasks.

Rules: pooling (the mean over all tokens, special ones and instruction included) and normalising in float32; a vector does not
depend on what else is in its batch; the instruction and the adapter of a task are chosen together, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import unit_and_lengths, unit_rows
from ragkit.core.errors import EncodeError
from ragkit.core.types import Floats, Ints
from ragkit.encode.batching import ahead, batches, side_by_side, slices
from ragkit.encode.contract import EncoderCard, Encoding, IdArray, Item, TokenIds
from ragkit.encode.methods import TokenMethods, pack_multi
from ragkit.encode.models.kernels import Kernels, runs_of
from ragkit.encode.tasks import full_task, full_task_of_each
from ragkit.encode.texts import check_rows, check_texts, check_truncate_dim, too_long
from ragkit.encode.tokens import Tokenizer
from ragkit.encode.torch_backend import Tensor

QUERY = 1000  # characters, some 250 tokens: on a busy machine two threads waited for each other five times longer than one worked
FEW = 1 << 13  # characters, some 2 k tokens: they make one batch or two, not worth threads of their own
SLICE = 1 << 16  # characters, some 16 k tokens, tokenised at a time

Row = npt.NDArray[np.int32]  # token ids of one text, special ones and instruction included
Forward = Callable[[Sequence[Row], Sequence[str]], Tensor]  # rows and the full task of each -> packed states (sum of lengths, d)


class PackedModel(Protocol):
    """The part of a `PackedEncoder` that differs between models."""

    @property
    def device(self) -> str: ...

    @property
    def budget(self) -> int:
        """The tokens of a batch, to begin with."""
        ...

    def arithmetic(self, tokens: int, *, few: bool) -> tuple[Kernels, Forward]:
        """Return how to compute a batch of that many tokens. few: the whole call is a query or as short."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    """Tokenised texts: their positions in the caller's list, their ids, and how many were cut."""

    positions: Ints
    ids: list[Row]
    cut: int


@dataclass(frozen=True, slots=True, eq=False)
class _Outputs:
    """The arrays that the batches of one call write to, each to its own positions."""

    tasks: Sequence[str]
    few: bool
    dense: Floats
    multi: list[Floats] | None


class PackedEncoder(TokenMethods):
    """An `Encoder`, a `TokenEncoder` and a `TokenReader` (see `contract.py`). Thread-safe."""

    def __init__(
        self, card: EncoderCard, *, model: PackedModel, tokenizer: Tokenizer, instructions: Mapping[str, str] | None = None
    ) -> None:
        """Join the parts. The tokenizer puts one token before a text and one after it.

        instructions: by full task, the words before each text; a task that is not named has none.
        """
        self.card = card
        self.device = model.device
        self._model = model
        self._tokenizer = tokenizer
        self._instructions = dict(instructions or {})
        self._budget = model.budget

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """Return n unit rows for n texts, in order. Raises InputTooLong (unless `truncate`), TypeError for anything but str."""
        tasks = [full_task(task, self.card, role="query")] * len(queries)
        return self._encode(queries, tasks, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """Encode as `encode_query` does, in the other role. Beside the result, memory does not grow with the list."""
        tasks = [full_task(task, self.card, role="document")] * len(documents)
        return self._encode(documents, tasks, truncate_dim=truncate_dim, truncate=truncate)

    def encode(
        self, inputs: Sequence[Item], *, task: str | Sequence[str], truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """Encode by full name or symmetric family: one for all inputs, or one each; a batch may mix them."""
        tasks = full_task_of_each(task, len(inputs), self.card)
        return self._encode(inputs, tasks, truncate_dim=truncate_dim, truncate=truncate)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """Return the token before the text, the instruction, the text's tokens, the token after it; any length."""
        check_texts([text])
        instruction = self._instruction(full_task(task, self.card, role="document"))
        ids, spans = self._tokenizer.own(instruction + text)
        spans = spans - len(instruction)
        special = np.pad((spans[:, 1] <= 0) & (len(instruction) > 0), 1, constant_values=True)
        spans = np.pad(np.maximum(spans, 0), ((1, 1), (0, 0)))
        spans[special] = 0
        first, last = self._tokenizer.ids([""])[0]
        return TokenIds(np.concatenate([[first], ids, [last]], dtype=np.int32), spans, special)

    def encode_ids(self, rows: Sequence[IdArray], *, task: str | None = None) -> list[Floats]:
        """Return the last layer's states of each row of ids within the limit; nothing is added to a row."""
        full = full_task(task, self.card, role="document")
        check_rows(rows, self.card)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        states: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
        characters = 4 * int(lengths.sum())

        work = partial(self._write_states, rows, full, characters <= QUERY, states)
        tasks = (partial(self._halving, work, batch, lengths) for batch in batches(lengths, tokens=self._budget))
        self._run(tasks, characters=characters)
        return states

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        """Count as `count_tokens` does, with a full task's own instruction."""
        check_texts(texts)
        instruction = self._instruction(task)
        return self._tokenizer.counts([instruction + text for text in texts])

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of the tokenizer's own ids."""
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
                    yield partial(self._halving, partial(self._write_vectors, part, outputs), batch, lengths)

        self._run(work(), characters=characters)
        dense, lengths = unit_and_lengths(dense, truncate_dim)
        packed = None if multi is None else pack_multi(multi, self.card.multi_dims)
        return Encoding(dense=dense, multi=packed, truncated=truncated, lengths=lengths)

    def _run(self, work: Iterator[Callable[[], None]], *, characters: int) -> None:
        """Run the batches: few characters one batch after the other; many on as many threads as torch would use in one operation.

        With a batch per thread, threads never wait for each other; within one operation they do, several times.
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
        """Run `work(batch)`, which returns None, or why it had no memory: then in halves, and smaller batches from now on."""
        reason = work(batch)
        if reason is None:
            return
        if len(batch) == 1:
            raise EncodeError(f"a text of {lengths[batch[0]]} tokens exceeds the memory of {self.device}: {reason}")
        self._budget = max(512, self._budget // 2)
        for half in np.array_split(batch, 2):
            self._halving(work, half, lengths)

    def _write_vectors(self, part: _Slice, outputs: _Outputs, batch: Ints) -> str | None:
        """Write the means of the texts at the positions `batch` of the slice; for multi-vectors, their token states.

        Return None, or why there was no memory.
        """
        ids, at = [part.ids[i] for i in batch], part.positions[batch]
        lengths = [len(row) for row in ids]
        kernels, forward = self._model.arithmetic(sum(lengths), few=outputs.few)
        try:
            with kernels.context():
                states = forward(ids, [outputs.tasks[i] for i in at])
                outputs.dense[at] = kernels.means(states, runs_of(lengths))
                rows = None if outputs.multi is None else kernels.to_numpy(states)
        except kernels.out_of_memory as error:
            return str(error)  # the caller runs the halves, not this handler: its traceback holds what filled the memory
        if rows is not None and outputs.multi is not None:
            _keep_token_states(rows, lengths, at=at, multi=outputs.multi)
        return None

    def _write_states(self, rows: Sequence[IdArray], task: str, few: bool, states: list[Floats], batch: Ints) -> str | None:
        """Write the states of the rows at the positions `batch` to those positions of `states`.

        Return None, or why there was no memory.
        """
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


def _keep_token_states(rows: Floats, lengths: Sequence[int], *, at: Ints, multi: list[Floats]) -> None:
    """Write unit states of each text's own tokens; for a text without any, of the two special ones: no multi-vector is empty."""
    for position, states in zip(at.tolist(), np.split(rows, np.cumsum(lengths)[:-1]), strict=True):
        multi[position] = unit_rows(states[1:-1] if len(states) > 2 else states)


def by_task(tasks: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield (task, positions that have it), each task once."""
    order = sorted(range(len(tasks)), key=lambda i: tasks[i])
    for task, positions in groupby(order, key=lambda i: tasks[i]):
        yield task, list(positions)

"""Dynamic batching: what many requests ask of one model at a time is computed together.

Requests wait as pieces of at most `batch_tokens`. Whenever the model is free it takes the oldest piece and, with it, every
waiting piece of the same kind that fits: nobody waits for others to come, and under load batches fill by themselves. The rules:

The queue is bounded, in requests and in tokens: a request that finds it full is refused, with the seconds until the next try.
A request whose caller has gone is not computed. A bad input fails its own request and no other of the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem
from ragkit.core.arrays import MultiVectors
from ragkit.core.errors import EncodeError
from ragkit.core.types import Floats
from ragkit.encode.contract import Encoder, Encoding, Item

FIRST_RATE = 2000.0  # tokens/s, assumed until a batch was measured
MEMORY = 0.8  # weight of the former rate when a new one is measured
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Kind:
    """The options that pieces must share to be computed in one call. late: the piece is one document, chunked late."""

    task: str
    truncate: bool = False
    late: bool = False


@dataclass(slots=True, eq=False)
class _Piece:
    kind: Kind
    items: Sequence[Item]
    tokens: int
    first: int  # position of the first item in its request
    answer: asyncio.Future[Encoding] = field(repr=False)


class Batcher:
    """One model's queue and the thread that computes it. Create, start, use and close it within one event loop."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        limits: ServeLimits,
        on_batch: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """on_batch(inputs, tokens, seconds) is called after every batch."""
        self.encoder = encoder
        self.waiting_requests = 0
        self.waiting_tokens = 0
        self._limits = limits
        self._on_batch = on_batch
        self._pieces: deque[_Piece] = deque()
        self._arrived = asyncio.Event()
        self._rate = FIRST_RATE
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ragkit-model")
        self._tokenising = ThreadPoolExecutor(2, thread_name_prefix="ragkit-tokens")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Let the running batch end; pieces still waiting are cancelled."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        for piece in self._pieces:
            piece.answer.cancel()
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._tokenising.shutdown)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Take a place among the waiting requests, and give it back at the end. Problem 429 if all are taken."""
        if self.waiting_requests >= self._limits.waiting_requests:
            raise self._full(f"{self.waiting_requests} requests are waiting for {self.encoder.card.name}")
        self.waiting_requests += 1
        try:
            yield
        finally:
            self.waiting_requests -= 1

    async def tokenised(self, work: Callable[[], Result]) -> Result:
        """Run work of the tokenizer on a thread of its own, so that it does not wait for the model."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenising, work)

    async def encode(self, items: Sequence[Item], tokens: Sequence[int], *, kind: Kind) -> Encoding:
        """Return the vectors of n inputs with so many tokens each, in order. Raises Problem 429, and what the encoder raises."""
        total = sum(tokens)
        if self.waiting_tokens and self.waiting_tokens + total > self._limits.waiting_tokens:
            raise self._full(f"{self.waiting_tokens:,} tokens are waiting for {self.encoder.card.name}", code="TOKEN")
        pieces = [self._piece(kind, items, tokens, part) for part in self._parts(tokens, whole=kind.late)]
        self.waiting_tokens += total
        try:
            self._pieces.extend(pieces)
            self._arrived.set()
            answers = [await piece.answer for piece in pieces]
        finally:
            self.waiting_tokens -= total
            for piece in pieces:  # when the caller has gone or one piece failed, the others need not be computed
                piece.answer.cancel()
        return answers[0] if len(answers) == 1 else _joined(answers)

    def _piece(self, kind: Kind, items: Sequence[Item], tokens: Sequence[int], part: slice) -> _Piece:
        answer: asyncio.Future[Encoding] = asyncio.get_running_loop().create_future()
        return _Piece(kind, items[part], sum(tokens[part]), part.start, answer)

    def _parts(self, tokens: Sequence[int], *, whole: bool) -> list[slice]:
        """Return slices of the inputs with at most `batch_tokens` tokens in sum, at least one input each."""
        if whole:
            return [slice(0, len(tokens))]
        parts, start, running = [], 0, 0
        for at, count in enumerate(tokens):
            if at > start and running + count > self._limits.batch_tokens:
                parts.append(slice(start, at))
                start, running = at, 0
            running += count
        return [*parts, slice(start, len(tokens))]

    def _full(self, why: str, *, code: str = "REQUEST") -> Problem:
        wait = self.waiting_tokens / self._rate
        return Problem(
            429, f"{why}; try again in {wait:.0f} s", code=f"RATE_{code}_LIMIT_EXCEEDED", retry_after=min(max(wait, 1.0), 60.0)
        )

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._next()
            if not batch:
                self._arrived.clear()
                continue
            await self._compute(batch)

    def _next(self) -> list[_Piece]:
        """Take from the queue the oldest piece whose caller still waits, and those of its kind that fit beside it."""
        alive = deque(piece for piece in self._pieces if not piece.answer.done())
        self._pieces = alive
        if not alive:
            return []
        batch, room = [alive[0]], self._limits.batch_tokens - alive[0].tokens
        for piece in list(alive)[1:] if not alive[0].kind.late else ():
            if piece.kind == batch[0].kind and piece.tokens <= room:
                batch.append(piece)
                room -= piece.tokens
        taken = set(map(id, batch))
        self._pieces = deque(piece for piece in alive if id(piece) not in taken)
        return batch

    async def _compute(self, batch: list[_Piece]) -> None:
        started = time.perf_counter()
        try:
            encoding = await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, batch)
            answers: list[Encoding | Exception] = [*_split(encoding, batch)]
        except Exception as error:
            answers = [error] if len(batch) == 1 else [await self._alone(piece) for piece in batch]
        seconds, tokens = time.perf_counter() - started, sum(piece.tokens for piece in batch)
        self._rate = MEMORY * self._rate + (1 - MEMORY) * tokens / max(seconds, 1e-6)
        if self._on_batch is not None:
            self._on_batch(sum(len(piece.items) for piece in batch), tokens, seconds)
        for piece, answer in zip(batch, answers, strict=True):
            _settle(piece, answer)

    async def _alone(self, piece: _Piece) -> Encoding | Exception:
        """Compute a piece of a failed batch by itself: only the one at fault fails again."""
        if piece.answer.done():
            return Encoding()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, [piece])
        except Exception as error:
            return error

    def _encode(self, batch: Sequence[_Piece]) -> Encoding:
        kind, items = batch[0].kind, [item for piece in batch for item in piece.items]
        if not kind.late:
            return self.encoder.encode(items, task=kind.task, truncate=kind.truncate)
        from ragkit.encode.late import late_encoding

        return late_encoding(self.encoder, items, task=kind.task)


def _settle(piece: _Piece, answer: Encoding | Exception) -> None:
    if piece.answer.done():
        return
    if isinstance(answer, Encoding):
        piece.answer.set_result(answer)
    else:
        piece.answer.set_exception(_renumbered(answer, piece.first))


def _renumbered(error: Exception, first: int) -> Exception:
    """Return the error with the input's number in the request: the encoder names its number in the call."""
    if not isinstance(error, EncodeError) or not first:
        return error
    return type(error)(re.sub(r"\binput (\d+)", lambda match: f"input {int(match[1]) + first}", str(error), count=1))


def _split(encoding: Encoding, batch: Sequence[_Piece]) -> list[Encoding]:
    """Split the encoding of a batch into those of its pieces."""
    if len(batch) == 1:
        return [encoding]
    ends = np.cumsum([len(piece.items) for piece in batch]).tolist()
    return [
        Encoding(
            dense=None if encoding.dense is None else encoding.dense[start:end],
            multi=None if encoding.multi is None else _part(encoding.multi, start, end),
            lengths=None if encoding.lengths is None else encoding.lengths[start:end],
        )
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _part(multi: MultiVectors, start: int, end: int) -> MultiVectors:
    offsets = multi.offsets[start : end + 1]
    return MultiVectors(multi.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _joined(encodings: Sequence[Encoding]) -> Encoding:
    """Join the encodings of a request's pieces, all of the same outputs."""
    dense: list[Floats] = [encoding.dense for encoding in encodings if encoding.dense is not None]
    lengths = [encoding.lengths for encoding in encodings if encoding.lengths is not None]
    multi = [rows for encoding in encodings if encoding.multi is not None for rows in _rows(encoding.multi)]
    return Encoding(
        dense=np.concatenate(dense) if dense else None,
        multi=MultiVectors.pack(multi) if multi else None,
        lengths=np.concatenate(lengths) if lengths else None,
    )


def _rows(multi: MultiVectors) -> list[Floats]:
    return [multi[i] for i in range(len(multi))]

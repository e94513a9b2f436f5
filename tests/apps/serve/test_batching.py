"""The queue of a model: what runs together, what waits, what is refused, and what nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ragkit.apps.serve.batching import Batcher, Kind
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem
from ragkit.encode.contract import Encoding
from ragkit.testing import HashEncoder

PLAIN = Kind("text-matching")


class Held(HashEncoder):
    """Notes every call, and computes none before it is let go."""

    def __init__(self) -> None:
        super().__init__(32)
        self.calls: list[tuple[str, list[str]]] = []
        self.let_go = threading.Event()
        self.begun = threading.Event()

    def encode(self, inputs: Sequence[Any], *, task: str, **options: Any) -> Encoding:
        self.calls.append((task, list(inputs)))
        self.begun.set()
        assert self.let_go.wait(10)
        return super().encode(inputs, task=task, **options)


def with_batcher(test: Callable[[Held, Batcher], Awaitable[None]], **limits: Any) -> None:
    async def run() -> None:
        encoder = Held()
        batcher = Batcher(encoder, limits=ServeLimits(**limits))
        batcher.start()
        try:
            await test(encoder, batcher)
        finally:
            encoder.let_go.set()
            await batcher.close()

    asyncio.run(run())


async def begun(encoder: Held) -> None:
    assert await asyncio.to_thread(encoder.begun.wait, 10)


def ask(batcher: Batcher, *texts: str, kind: Kind = PLAIN) -> asyncio.Task[Encoding]:
    return asyncio.ensure_future(batcher.encode(texts, [len(text) for text in texts], kind=kind))


def test_what_waits_is_computed_together_by_kind_and_each_gets_its_own() -> None:
    async def test(encoder: Held, batcher: Batcher) -> None:
        first = ask(batcher, "first")
        await begun(encoder)
        other = Kind("retrieval.query")
        rest = [ask(batcher, "a", "b"), ask(batcher, "q", kind=other), ask(batcher, "c")]
        await asyncio.sleep(0)
        encoder.let_go.set()
        answers = await asyncio.gather(first, *rest)
        assert encoder.calls == [("text-matching", ["first"]), ("text-matching", ["a", "b", "c"]), ("retrieval.query", ["q"])]
        for texts, answer in zip((["first"], ["a", "b"], ["q"], ["c"]), answers, strict=True):
            np.testing.assert_array_equal(answer.dense, HashEncoder(32).encode_document(texts).dense)

    with_batcher(test)


def test_a_batch_keeps_to_its_tokens_and_a_large_request_is_cut_and_joined() -> None:
    async def test(encoder: Held, batcher: Batcher) -> None:
        encoder.let_go.set()
        texts = [letter * 4 for letter in "abcdefg"]
        answer = await batcher.encode(texts, [4] * 7, kind=PLAIN)
        assert [call[1] for call in encoder.calls] == [texts[:2], texts[2:4], texts[4:6], texts[6:]]
        np.testing.assert_array_equal(answer.dense, HashEncoder(32).encode_document(texts).dense)

    with_batcher(test, batch_tokens=8)


def test_a_full_queue_says_when_to_come_back_and_loses_nobody() -> None:
    async def test(encoder: Held, batcher: Batcher) -> None:
        running = ask(batcher, "r")
        await begun(encoder)
        waiting = ask(batcher, "w" * 5)
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await batcher.encode(["x" * 5], [5], kind=PLAIN)
        assert (refused.value.status, refused.value.code) == (429, "RATE_TOKEN_LIMIT_EXCEEDED")
        assert int(refused.value.headers["Retry-After"]) >= 1
        with batcher.admitted(), batcher.admitted(), pytest.raises(Problem, match="2 requests are waiting"), batcher.admitted():
            pass
        encoder.let_go.set()
        await asyncio.gather(running, waiting)
        assert (batcher.waiting_tokens, batcher.waiting_requests) == (0, 0)
        await batcher.encode(["x" * 5], [5], kind=PLAIN)  # recovered at once

    with_batcher(test, waiting_tokens=10, waiting_requests=2)


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def test(encoder: Held, batcher: Batcher) -> None:
        running = ask(batcher, "running")
        await begun(encoder)
        gone, stays = ask(batcher, "gone"), ask(batcher, "stays")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        encoder.let_go.set()
        await asyncio.gather(running, stays)
        assert [call[1] for call in encoder.calls] == [["running"], ["stays"]]
        assert batcher.waiting_tokens == 0

    with_batcher(test)

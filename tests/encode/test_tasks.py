"""Which way to encode a call means: families, full names, and roles that never swap."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ragkit.encode import EncoderCard, load_encoder
from ragkit.encode.tasks import checked_task, full_task, full_tasks

CARD = EncoderCard(name="model", revision="1", licence="mit", dims=8, tasks=("retrieval", "code", "text-matching"))


@pytest.mark.parametrize(
    ("task", "role", "expected"),
    [
        (None, "query", "retrieval.query"),
        (None, "document", "retrieval.passage"),
        ("code", "query", "code.query"),
        ("code.passage", "document", "code.passage"),
        ("text-matching", "query", "text-matching"),
        ("text-matching", "document", "text-matching"),
        ("text-matching", None, "text-matching"),
        ("code.query", None, "code.query"),
    ],
)
def test_a_method_and_a_family_make_a_full_name(task: str | None, role: str | None, expected: str) -> None:
    assert full_task(task, CARD, role=role) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "role", "message"),
    [
        ("retrieval.passage", "query", "encode_query got the task 'retrieval.passage': roles never swap"),
        ("code.query", "document", "roles never swap"),
        ("retrieval", None, "'retrieval' has two roles"),
        ("separation", "query", "has the tasks retrieval.query, retrieval.passage, code.query, code.passage, text-matching"),
        ("text-matching.query", "query", "has the tasks"),
        ("retrieval.", "query", "has the tasks"),
        ("retrieval.document", None, "has the tasks"),
    ],
)
def test_what_a_model_does_not_have_is_refused_by_name(task: str, role: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full_task(task, CARD, role=role)  # type: ignore[arg-type]


def test_a_card_may_hold_the_task_that_calls_without_one_mean() -> None:
    chosen = replace(CARD, task=checked_task("code", CARD))
    assert full_task(None, chosen, role="query") == "code.query"
    assert full_tasks(chosen) == ["retrieval.query", "retrieval.passage", "code.query", "code.passage", "text-matching"]
    assert chosen.fingerprint != CARD.fingerprint
    with pytest.raises(ValueError, match="roles never swap"):
        checked_task("code.query", CARD)


def test_a_setting_that_a_layout_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="not a model that has adapters to merge"):
        load_encoder(merge_adapters=True)
    with pytest.raises(ValueError, match="max_pixels"):
        load_encoder(max_pixels=10_000)
    with pytest.raises(ValueError, match="max_pixels"):
        load_encoder("hash", max_pixels=10_000)

"""Tasks and roles: which of a model's ways to encode a call means.

A task is a family. `retrieval` and `code` have two roles, `.query` and `.passage`; the others (`text-matching`, `separation`,
`classification`) are symmetric. The full names are those of the HTTP APIs. Roles never swap: a query task is refused where
documents are encoded, and the other way round.
"""

from __future__ import annotations

from typing import Literal

from ragkit.encode.contract import EncoderCard

ASYMMETRIC = ("retrieval", "code")
GENERAL = (
    "retrieval",
    "text-matching",
    "separation",
    "classification",
)  # what a model that was trained without tasks is used for
NO_TASK = "none"  # of a model with adapters: the base alone, and no instruction; as jina's hosted API has v3 without a task
_SIDES = {"query": "query", "document": "passage"}


def full_task(task: str | None, card: EncoderCard, *, role: Literal["query", "document"] | None) -> str:
    """The full name of what is asked: "retrieval.query", "code.passage", "text-matching", ...

    task: a family, a full name, or None for the card's own. role: of the method that was called; None for `encode`, which
    takes symmetric families and full names. Raises ValueError with the names this model has.
    """
    asked = task or card.task or card.tasks[0]
    family, dot, side = asked.partition(".")
    if family not in card.tasks or (dot and (family not in ASYMMETRIC or side not in _SIDES.values())):
        raise ValueError(f"{card.name} has the tasks {', '.join(full_tasks(card))}, got {asked!r}")
    if family not in ASYMMETRIC:
        return family
    if role is None and not side:
        raise ValueError(
            f"{family!r} has two roles: call encode_query or encode_document, or name one: {family}.query, {family}.passage"
        )
    wanted = side if role is None else _SIDES[role]
    if side and side != wanted:
        raise ValueError(f"encode_{role} got the task {asked!r}: roles never swap. Name the family, {family!r}")
    return f"{family}.{wanted}"


def full_tasks(card: EncoderCard) -> list[str]:
    """Every full name this model takes, in the order of its card."""
    return [name for task in card.tasks for name in ([f"{task}.query", f"{task}.passage"] if task in ASYMMETRIC else [task])]


def checked_task(task: str | None, card: EncoderCard) -> str | None:
    """A task for `card.task`: a family. ValueError for what the model does not have, and for a role alone."""
    if task is not None:
        full_task(task, card, role="query")
        full_task(task, card, role="document")
    return task

"""Tasks and roles: for which purpose a call encodes, under the names of the HTTP APIs.

A task is a family. `retrieval` and `code` have two roles, `.query` and `.passage`; the others (`text-matching`, `separation`,
`classification`) are symmetric. The full names are those of the HTTP APIs. Roles never swap: a query task is refused where
documents are encoded, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ragkit.encode.contract import EncoderCard

ASYMMETRIC = ("retrieval", "code")
# What a model that was trained without tasks is used for.
GENERAL = ("retrieval", "text-matching", "separation", "classification")
NO_TASK = "none"  # of a model with adapters: the base alone, and no instruction; as jina's hosted API has v3 without a task
_SIDES = {"query": "query", "document": "passage"}

Role = Literal["query", "document"]


def full_task(task: str | None, card: EncoderCard, *, role: Role | None) -> str:
    """Return the full name of a task: "retrieval.query", "code.passage", "text-matching", ...

    task: a family, a full name, or None for the card's own. role: of the method that was called; None for `encode`, which
    takes symmetric families and full names. Raises ValueError with the names this model has.
    """
    name = task or card.task or card.tasks[0]
    family, side = _split_task(name, card)
    if family not in ASYMMETRIC:
        return family
    if role is None and not side:
        raise ValueError(
            f"{family!r} has two roles: call encode_query or encode_document, or name one: {family}.query, {family}.passage"
        )
    side_of_role = side if role is None else _SIDES[role]
    if side and side != side_of_role:
        raise ValueError(f"encode_{role} got the task {name!r}: roles never swap. Name the family, {family!r}")
    return f"{family}.{side_of_role}"


def _split_task(name: str, card: EncoderCard) -> tuple[str, str]:
    """Return (family, side or "") of a task's name. Raises ValueError for one that the model does not have."""
    family, dot, side = name.partition(".")
    if family not in card.tasks or (dot and (family not in ASYMMETRIC or side not in _SIDES.values())):
        raise ValueError(f"{card.name} has the tasks {', '.join(full_tasks(card))}, got {name!r}")
    return family, side


def full_task_of_each(task: str | Sequence[str], count: int, card: EncoderCard) -> list[str]:
    """Return the full task of each of `count` inputs of `encode`. task: one for all inputs, or one for each.

    Raises ValueError for another number of tasks, and for names that the model does not have.
    """
    names = [task] * count if isinstance(task, str) else list(task)
    if len(names) != count:
        raise ValueError(f"{len(names)} tasks for {count} inputs: give one for all, or one each")
    distinct = {*names, task} if isinstance(task, str) else {*names}  # one task for no inputs is checked, too
    full = {name: full_task(name, card, role=None) for name in distinct}
    return [full[name] for name in names]


def full_tasks(card: EncoderCard) -> list[str]:
    """Return every full name this model takes, in the order of its card."""
    return [name for task in card.tasks for name in ([f"{task}.query", f"{task}.passage"] if task in ASYMMETRIC else [task])]


def checked_task(task: str | None, card: EncoderCard) -> str | None:
    """Return a task for `card.task`: a family. Raises ValueError for one that the model does not have, and for a role alone."""
    if task is not None:
        full_task(task, card, role="query")
        full_task(task, card, role="document")
    return task

"""A small index, the operations that change it, and all that it answers: what the proofs of this folder are made of.

Everything here runs in forked processes (see `tracer`), so this module imports what will be needed and starts no thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss  # noqa: F401 - imported before forking, so that each fork need not
import tantivy  # noqa: F401 - the same

from ragkit import Index
from ragkit.errors import RagkitError
from ragkit.testing import HashEncoder
from ragkit.vectors.tokens import query_terms
from tests.index.test_pages import pdf
from tests.safe.damage import Answers, answers

ENCODER = HashEncoder(dims=32, multi_dims=16)
SEES = HashEncoder(dims=32, multi_dims=16, images=True)
QUERIES = ("a tower of whales and cards", "painted green")
query_terms("warm", ("en",))  # makes a table that every fork would make for itself


PICTURES = "pictures"  # a folder in the scratch folder of a proof, beside the folders of its indexes


def prepare(path: Path, operation: str = "") -> None:
    """Two commits, of four documents; for the operation on pages, of one that has pages."""
    if operation == "pages":
        pictures = path.parent.parent / PICTURES
        pictures.mkdir()
        pdf(pictures / "first.pdf", [("A red tower", "red"), ("A green tower", "green")])
        with Index.open(path, model=SEES, chunk_tokens=12, pages="all", keep_sources=True) as index:
            index.add(pictures)
        pdf(pictures / "first.pdf", [("A tower painted blue", "blue")])
        pdf(pictures / "second.pdf", [("Whales", "green"), ("Cards", "red")])
        return
    with Index.open(path, model=ENCODER, chunk_tokens=12, multi=True) as index:
        index.add(
            [
                {"id": "changed", "text": "Before: the tower was painted red. It stands upright. Nobody climbs it."},
                {"id": "kept", "text": "Kept as it was: salt, bread and a tower."},
                {"id": "gone", "text": "A tower of cards falls. Cards are paper."},
            ]
        )
        index.add([{"id": "second", "text": "A second commit mentions whales."}])


def told(path: Path) -> Answers:
    """What the index answers, opened anew: every query in every mode, to the fifth digit of the scores."""
    with Index.open(path, create=False) as index:
        return answers(index, QUERIES)


def _add(index: Index) -> None:
    index.add(
        [
            {"id": "changed", "text": "After: the tower was painted green. It leans."},
            {"id": "new", "text": "Entirely new words about whales and towers."},
            {"id": "kept", "text": "Kept as it was: salt, bread and a tower."},
        ]
    )


def _replace(index: Index) -> None:
    index.add([{"id": "changed", "text": "After: nobody painted the tower."}])


def _delete(index: Index) -> None:
    index.delete(["changed", "gone"])


def _backup(index: Index) -> None:
    index.backup(backup_of(index.path))


def backup_of(path: Path) -> Path:
    return path.with_name(path.name + "-backup")


def _compact(index: Index) -> None:
    index.delete("gone")
    index.compact()


OPERATIONS: dict[str, Callable[[Index], Any]] = {
    "add": _add,
    "replace": _replace,
    "delete": _delete,
    "compact": lambda index: index.compact(),
    "cut": lambda index: index.rebuild(dims=16),
    "rebuild": lambda index: index.rebuild(model="hash:32+multi16+seed5"),
    "backup": _backup,
    "pages": lambda index: index.add(index.path.parent.parent / PICTURES),
}


def operate(path: Path, operation: str) -> str:
    """Do it, if it was not done before; the message of an error of ours, or nothing."""
    try:
        with Index.open(path, create=False) as index:
            if operation == "backup" and backup_of(path).exists():
                return ""
            OPERATIONS[operation](index)
    except RagkitError as error:
        return str(error)
    return ""


def whole(path: Path) -> list[str]:
    """What verifying finds, what the next writer will remove left out."""
    with Index.open(path, create=False) as index:
        return [one.problem for one in index.verify() if not one.remedy.startswith("none needed")]


@dataclass(frozen=True, slots=True)
class Ends:
    """The two states between which an operation may be stopped."""

    before: Answers
    after: Answers


def ends(base: Path, scratch: Path, operation: str, *, fork: Callable[[Callable[[], Any]], Any]) -> Ends:
    finished = scratch / "finished" / "library"
    shutil.copytree(base, finished)
    before = fork(lambda: told(base))
    assert fork(lambda: operate(finished, operation)) == ""
    after = fork(lambda: told(finished))
    assert (before != after) == (operation not in ("compact", "backup")), operation
    return Ends(before, after)

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
import numpy as np
import tantivy  # noqa: F401 - the same

from ragkit import Index, MaxSimIndex
from ragkit.core.arrays import unit_rows
from ragkit.core.errors import RagkitError
from ragkit.core.types import Floats
from ragkit.store.local.garbage import FORGET
from ragkit.store.vectors.tokens import query_terms
from ragkit.testing import HashEncoder
from tests.care.damage import Answers, answers
from tests.index.test_pages import pdf

ENCODER = HashEncoder(dims=32, multi_dims=16)
SEES = HashEncoder(dims=32, multi_dims=16, images=True)
QUERIES = ("a tower of whales and cards", "painted green")
query_terms("warm", ("en",))  # makes a table that every fork would make for itself


PICTURES = "pictures"  # a folder in the scratch folder of a proof, beside the folders of its indexes


def prepare(path: Path, operation: str = "") -> None:
    """Two commits, of four documents; for the operation on pages, of one that has pages; for that on vectors, of so many keys
    that its commit is the one at which the catalog forgets folders."""
    if operation == "vectors":
        with MaxSimIndex.open(path, dim=8, coarse=2) as vectors:
            for key in range(FORGET):
                vectors.add([key], [_rows(key)])
                vectors.commit()
        return
    if operation == "pages":
        pictures = path.parent.parent / PICTURES
        pictures.mkdir()
        pdf(pictures / "first.pdf", [("A red tower", "red"), ("A green tower", "green")])
        with Index.open(path, model=SEES, chunk_tokens=12, pages="all", keep_sources=True, coarse=3) as index:
            index.add(pictures)
        pdf(pictures / "first.pdf", [("A tower painted blue", "blue")])
        pdf(pictures / "second.pdf", [("Whales", "green"), ("Cards", "red")])
        return
    with Index.open(path, model=ENCODER, chunk_tokens=12, multi=True, coarse=4) as index:
        index.add(
            [
                {"id": "changed", "text": "Before: the tower was painted red. It stands upright. Nobody climbs it."},
                {"id": "kept", "text": "Kept as it was: salt, bread and a tower."},
                {"id": "gone", "text": "A tower of cards falls. Cards are paper."},
            ]
        )
        index.add([{"id": "second", "text": "A second commit mentions whales."}])


def _rows(seed: int) -> Floats:
    return unit_rows(np.random.default_rng(seed).normal(size=(1 + seed % 4, 8)))


def opened(path: Path) -> Any:
    """The Index, or the MaxSimIndex: that never has words."""
    return (Index if any((path / "lexical").iterdir()) else MaxSimIndex).open(path, create=False)


def told(path: Path) -> Answers:
    """What the index answers, opened anew: every query in every mode, to the fifth digit of the scores."""
    with opened(path) as index:
        return asked(index)


def asked(index: Any) -> Answers:
    if isinstance(index, Index):
        return answers(index, QUERIES)
    found = {seed: index.search(_rows(seed), 50) for seed in (100, 103)}
    assert len(index) == len(found[100][0])
    likely = index.search(_rows(100), 2, candidates=2)  # by the coarse vectors, which only what is committed has
    assert set(zip(*map(np.ndarray.tolist, likely), strict=True)) <= set(zip(*map(np.ndarray.tolist, found[100]), strict=True))
    return {("multi", str(seed)): list(zip(*map(np.ndarray.tolist, pair), strict=True)) for seed, pair in found.items()}


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


def _vectors(index: MaxSimIndex) -> None:
    index.add([1, 99], [_rows(50), _rows(51)])
    index.delete([2, 1000])
    index.commit()


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "add": _add,
    "replace": _replace,
    "delete": _delete,
    "compact": lambda index: index.compact(),
    "cut": lambda index: index.rebuild(dims=16),
    "rebuild": lambda index: index.rebuild(model="hash:32+multi16+seed5"),
    "backup": _backup,
    "pages": lambda index: index.add(index.path.parent.parent / PICTURES),
    "vectors": _vectors,
}


def operate(path: Path, operation: str) -> str:
    """Do it, if it was not done before; the message of an error of ours, or nothing."""
    try:
        with opened(path) as index:
            if operation == "backup" and backup_of(path).exists():
                return ""
            OPERATIONS[operation](index)
    except RagkitError as error:
        return str(error)
    return ""


def whole(path: Path) -> list[str]:
    """What verifying finds, what the next writer will remove left out."""
    with opened(path) as index:
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

"""Many small additions cost little to search, adding again embeds nothing, and a model that is not the index's is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index
from ragkit.core.errors import FingerprintMismatch, RecipeMismatch
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, record, records

SINGLE = 40


class Counting(HashEncoder):
    """The test encoder, keeping the texts that it embedded as documents."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[str] = []

    def encode_document(self, documents: Sequence[Any], **options: Any) -> Any:
        self.seen += [text for text in documents if "Note" in text or text in " ".join(NOTES.values())]
        return super().encode_document(documents, **options)


def notes(count: int) -> list[dict[str, str]]:
    return [{"id": f"d{n}", "text": f"Note {n} says {n * n} of things like {n % 7} and {n % 11}."} for n in range(count)]


def _grown(path: Path, count: int) -> tuple[Index, Index]:
    """An index of single additions, and one of a single addition, of the same documents."""
    grown, fresh = (Index.open(path / name, model="hash:32") for name in ("grown", "fresh"))
    for one in notes(count):
        grown.add([one])
    fresh.add(notes(count))
    return grown, fresh


def _same_answers(grown: Index, fresh: Index) -> None:
    for query in ("note 12", "things like 3", "361"):
        for mode in ("dense", "lexical"):
            assert [hit.document_id for hit in grown.search(query, 20, mode=mode)] == [
                hit.document_id for hit in fresh.search(query, 20, mode=mode)
            ], (query, mode)


def test_single_additions_leave_few_segments_and_the_same_answers(tmp_path: Path) -> None:
    grown, fresh = _grown(tmp_path, SINGLE)
    assert grown.stats().segments <= 2
    assert grown._store.reader().lexical.segments <= 12
    _same_answers(grown, fresh)
    for index in (grown, fresh):
        index.close()


def _seconds(index: Index, mode: str) -> float:
    """CPU seconds of a search: the median of many."""
    times = []
    for n in range(200):
        start = time.process_time()
        index.search(f"note {n} things", 10, mode=mode)
        times.append(time.process_time() - start)
    return float(np.median(times))


@pytest.mark.slow
def test_a_thousand_single_additions_search_no_slower_than_twice_a_fresh_build(tmp_path: Path) -> None:
    grown, fresh = _grown(tmp_path, 1000)
    assert grown.stats().segments <= 3
    _same_answers(grown, fresh)
    for mode in ("dense", "lexical", "hybrid"):
        ratios = [_seconds(grown, mode) / _seconds(fresh, mode) for _ in range(3)]
        print(f"{mode}: {min(ratios):.2f} of a fresh build's time; {grown._store.reader().lexical.segments} lexical segments")
        assert min(ratios) <= 2
    for index in (grown, fresh):
        index.close()


def test_adding_again_embeds_nothing_whatever_the_time_stamps_say(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for one in notes(6):
        (folder / f"{one['id']}.txt").write_text(one["text"])
    (folder / "twin.txt").write_bytes((folder / "d0.txt").read_bytes())
    encoder = Counting(dims=32)
    with Index.open(tmp_path / "library", model=encoder) as index:
        assert len(index.add(folder).added) == 7
        assert len(encoder.seen) == 6  # of two equal files one is embedded
        for path in folder.iterdir():
            os.utime(path, (1, 1))
        assert len(index.add(folder).unchanged) == 7
        assert len(encoder.seen) == 6
        assert {hit.document_id for hit in index.search("Note 0 says 0 of things like 0 and 0.", 2, mode="dense")} == {
            "d0.txt",
            "twin.txt",
        }  # equal bytes stay two
        (folder / "d1.txt").write_text("Note 1 changed.")
        assert [one.source for one in index.add(folder).updated] == ["d1.txt"]
        assert encoder.seen[6:] == ["Note 1 changed."]


@pytest.mark.parametrize(
    ("built", "other", "refusal"),
    [
        ({"model": "hash:64"}, {"model": "hash:64+seed1"}, RecipeMismatch),
        ({"model": "hash:64"}, {"model": "hash:32"}, RecipeMismatch),
        ({"model": "hash:64"}, {"dims": 32}, RecipeMismatch),
        ({"model": "hash:64", "dims": 32}, {"dims": 64}, RecipeMismatch),
        ({"model": "hash:64", "task": "retrieval"}, {"task": "text-matching"}, RecipeMismatch),
        ({"model": "hash:64"}, {"max_tokens": 64}, RecipeMismatch),
    ],
)
def test_another_model_task_or_width_is_refused(
    tmp_path: Path, built: dict[str, Any], other: dict[str, Any], refusal: type[Exception]
) -> None:
    with Index.open(tmp_path / "library", **built) as index:
        index.add(records())
    with pytest.raises(refusal, match="ragkit migrate"):
        Index.open(tmp_path / "library", **other)
    with Index.open(tmp_path / "library", **built) as index:
        assert index.search("otters", 1)


def _card(encoder: HashEncoder, **changes: Any) -> HashEncoder:
    from dataclasses import replace

    encoder.card = replace(encoder.card, **changes)
    return encoder


@pytest.mark.parametrize(
    "changes",
    [{"revision": "2"}, {"preprocessing": {"prompts": {"query": "search: "}}}, {"pooling": "cls"}, {"dtype": "float16"}],
)
def test_another_revision_prompt_pooling_or_precision_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with Index.open(tmp_path / "library", model=HashEncoder(dims=64)) as index:
        index.add(records())
    with Index.open(tmp_path / "library", model=_card(HashEncoder(dims=64), **changes)) as other:
        with pytest.raises(FingerprintMismatch, match="ragkit migrate"):
            other.search("otters")
        with pytest.raises(FingerprintMismatch, match="ragkit migrate"):
            other.add([record("bread", "Changed.")])
        assert other.search("otters", mode="lexical")  # words need no model

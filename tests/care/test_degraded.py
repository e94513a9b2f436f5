"""Damage is an error by default; asked for, the intact rest answers, and says that it is the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.core.errors import Damaged, RagkitError
from ragkit.testing import HashEncoder
from tests.care.damage import MODES, QUERIES, answers, flip, in_catalog
from tests.conftest import NOTES, record


@pytest.fixture
def two_segments(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An index whose second segment holds one more document, not merged into the first."""
    monkeypatch.setattr("ragkit.store.local.writer.merge_policy", lambda *args, **options: [])
    index.add([{"id": "whale", "text": "Whales sing. They swim in the sea, far from the river, and eat no bread."}])
    assert index.stats().segments == 2
    return index


def newest_segment(index: Index) -> Path:
    rows = index._catalog.segments(index.stats().commit)
    return index.path / "segments" / rows[-1].id


@pytest.mark.parametrize("name", ["keys.npy", "documents.npy", "chunk.dense.npy", "chunk.dense.json"])
@pytest.mark.parametrize("how", ["flipped", "missing", "cut short"])
def test_without_a_damaged_segment_the_rest_answers(two_segments: Index, name: str, how: str) -> None:
    whole = answers(two_segments)
    path = newest_segment(two_segments) / name
    two_segments.close()
    if how == "flipped":
        flip(path, -1)
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with Index.open(two_segments.path, model=HashEncoder(dims=64)) as index:
        with pytest.raises(RagkitError, match=rf"{name}.*ragkit repair"):
            index.search("whales", mode="dense")
        for query in QUERIES:
            hits = index.search(query, 50, mode="dense", degraded=True)
            assert len(hits.missing) == 1
            assert name in hits.missing[0]
            rest = [hit for hit in whole["dense", query] if hit[0] != "whale"]
            assert [(hit.document_id, tuple(hit.span), hit.text, round(hit.score, 5)) for hit in hits] == rest
        assert index.search("whales", 1, mode="lexical", degraded=True)[0].document_id == "whale"


def test_without_a_damaged_lexical_index_vectors_answer(index: Index) -> None:
    whole = answers(index)
    index.close()
    for path in (index.path / "lexical").glob("*/*.store"):
        flip(path, 0)
    with Index.open(index.path) as damaged:
        with pytest.raises(Damaged, match="ragkit repair"):
            damaged.search("fish", mode="lexical")
        assert damaged.search("fish", mode="lexical", degraded=True) == []
        hits = damaged.search("fish", 50, mode="dense", degraded=True)
        assert [hit.text for hit in hits] == [hit[2] for hit in whole["dense", "fish"]]
        assert "the lexical index" in hits.missing[0]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE texts SET body = zeroblob(40) WHERE document = 3",
        "UPDATE units SET end = end + 1 WHERE document = 3",
        "UPDATE documents SET title = 'Wrong' WHERE id = 3",
        "UPDATE documents SET deleted = 1 WHERE id = 3",
        "UPDATE documents SET deleted = 'x' WHERE id = 3",
    ],
)
def test_hits_whose_rows_are_damaged_are_left_out_and_counted(index: Index, damage: str) -> None:
    index.close()
    in_catalog(index.path, damage)
    with Index.open(index.path) as damaged:
        for mode in MODES:
            with pytest.raises(Damaged, match="ragkit repair"):
                damaged.search("quarry granite river fish", 50, mode=mode)
            hits = damaged.search("quarry granite river fish", 50, mode=mode, degraded=True)
            assert hits.missing
            assert {hit.document_id for hit in hits} <= set(NOTES) - {"quarry"}
            assert len(hits) >= 3


def test_of_a_whole_index_nothing_is_missing(index: Index) -> None:
    assert answers(index, degraded=True) == answers(index)
    found: Any = index.search_many(["fish", "bread"], 3, degraded=True)
    assert [hits.missing for hits in found] == [(), ()]
    assert index.search("fish").missing == ()


def test_the_intact_rest_follows_new_commits(two_segments: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = newest_segment(two_segments) / "chunk.dense.npy"
    two_segments.close()
    flip(path, -1)
    with Index.open(two_segments.path) as index:
        assert index.search("otter", degraded=True).missing
        index.delete("whale")  # with its last document gone, a damaged segment is dropped unread
        index.add([record("bread", "Cake.")])
        assert index.search("otter", 50, degraded=True).missing == ()

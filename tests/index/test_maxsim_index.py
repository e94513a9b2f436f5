"""MaxSimIndex: keys in, keys and scores out, under the same commit as an index of documents."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ragkit import Index, MaxSimIndex, MultiVectors
from ragkit.core.arrays import unit_rows
from ragkit.core.errors import Damaged, IndexLocked, NotAnIndex, RecipeMismatch
from ragkit.core.types import Floats
from ragkit.index.maxsim_index import REPAIR, SETTING
from ragkit.store.catalog.catalog import Catalog
from ragkit.store.local import writer
from ragkit.store.local.store import Store
from ragkit.store.vectors import multi_layout
from ragkit.store.vectors.multi import MultiReader
from ragkit.store.vectors.multi_layout import Layout, Stored
from ragkit.store.vectors.quantise import Loss
from ragkit.testing import HashEncoder

DIM = 24


def item(seed: int, size: int | None = None) -> Floats:
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(size=(size or int(rng.integers(1, 9)), DIM)))


def naive(query: Floats, items: dict[int, Floats]) -> dict[int, float]:
    """The definition, in float64."""
    return {key: float((query.astype(np.float64) @ rows.T.astype(np.float64)).max(axis=1).sum()) for key, rows in items.items()}


def assert_snapshot_of_the_catalog(store: Store) -> None:
    """A writer moves its snapshot without reading the catalog; it must come to what a reader finds there."""
    own = store.reader()
    other = Store(store.path, Catalog(store.path / "catalog.db"), recall=store.recall, layouts=store.layouts)
    read = other.reader()
    assert own.commit == read.commit
    assert own.recipe == read.recipe
    assert own.deleted.tolist() == read.deleted.tolist()
    assert [segment.row for segment in own.segments] == [segment.row for segment in read.segments]
    for at in range(len(own.segments)):
        np.testing.assert_array_equal(own.live(at), read.live(at))
    other.close()


def pairs(found: Any) -> list[tuple[int, float]]:
    return list(zip(found[0].tolist(), found[1].tolist(), strict=True))


@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
def test_the_issues_example(tmp_path: Path, precision: str) -> None:
    items = {key: item(abs(key)) for key in (5, 3, 900, -7)}
    with MaxSimIndex.open(tmp_path / "vectors", dim=DIM, precision=precision) as index:
        index.add(list(items), list(items.values()))
        index.commit()
        query = item(100, 6)
        exact = naive(query, items)
        keys, scores = index.search(query, k=10)
        assert keys.tolist() == sorted(exact, key=lambda key: -exact[key])
        np.testing.assert_allclose(scores, [exact[key] for key in keys.tolist()], atol=0.05 if precision == "int8" else 5e-3)
        for key, score in pairs((keys, scores)):
            found = index.explain(query, key)
            assert found.score == score
            assert found.tokens.tolist() == (query @ items[key].T).argmax(axis=1).tolist() or precision != "float32"
        two = index.search([query, item(101)], k=2, allowed=[3, 900, 12345])
        assert [len(keys) for keys, _ in two] == [2, 2]
        assert pairs(two[0]) == [pair for pair in pairs((keys, scores)) if pair[0] in (3, 900)]
        assert index.delete([3, 4]) == 1
        index.commit()
        assert pairs(index.search(query)) == [pair for pair in pairs((keys, scores)) if pair[0] != 3]
        assert index.verify() == []
    with MaxSimIndex.open(tmp_path / "vectors") as again:
        assert len(again) == 3
        assert pairs(again.search(query)) == [pair for pair in pairs((keys, scores)) if pair[0] != 3]


def test_changes_are_searchable_at_once_and_others_see_them_after_the_commit(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM) as index, MaxSimIndex.open(tmp_path / "v") as other:
        index.add([1, 2], MultiVectors.pack([item(1), item(2)]))
        before = pairs(index.search(item(9)))
        assert len(before) == len(index) == 2
        assert pairs(other.search(item(9))) == []
        index.commit()
        assert pairs(other.search(item(9))) == pairs(index.search(item(9))) == before
        index.add([2], [item(3)])
        index.delete([1])
        replaced = pairs(index.search(item(9)))
        assert [key for key, _ in replaced] == [2]
        assert replaced != before
        assert index.explain(item(9), 2).score == replaced[0][1]
        with pytest.raises(KeyError):
            index.explain(item(9), 1)
        assert pairs(other.search(item(9))) == before
        index.commit()
        assert pairs(other.search(item(9))) == replaced


class AgainstADictionary(RuleBasedStateMachine):
    """Any sequence of changes leaves what a dictionary would hold, with the scores that each item had from the start."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.index = MaxSimIndex.open(Path(self.folder.name) / "v", dim=DIM)
        self.held: dict[int, int] = {}
        self.committed: dict[int, int] = {}
        self.scores: dict[int, float] = {}

    @rule(keys=st.lists(st.integers(0, 12), unique=True, max_size=5), seed=st.integers(0, 40))
    def add(self, keys: list[int], seed: int) -> None:
        self.index.add(keys, [item(seed + at) for at in range(len(keys))])
        self.held |= {key: seed + at for at, key in enumerate(keys)}

    @rule(keys=st.lists(st.integers(0, 14), unique=True, max_size=4))
    def delete(self, keys: list[int]) -> None:
        assert self.index.delete(keys) == len(set(keys) & set(self.held))
        self.held = {key: seed for key, seed in self.held.items() if key not in keys}

    @rule()
    def commit(self) -> None:
        self.index.commit()
        self.committed = dict(self.held)

    @rule()
    def compact(self) -> None:
        self.index.compact()
        self.committed = dict(self.held)
        assert self.index.verify() == []

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = MaxSimIndex.open(Path(self.folder.name) / "v")
        self.held = dict(self.committed)

    @invariant()
    def answers_as_the_dictionary(self) -> None:
        if not hasattr(self, "index"):
            return
        found = dict(pairs(self.index.search(item(1000, 5), k=50)))
        assert set(found) == set(self.held)
        assert len(self.index) == len(self.held)
        for key, seed in self.held.items():
            assert found[key] == self.scores.setdefault(seed, found[key])
        allowed = [key for key in self.held if key % 2]
        assert {key for key, _ in pairs(self.index.search(item(1000, 5), k=50, allowed=allowed))} == set(allowed)

    @invariant()
    def holds_what_the_catalog_says(self) -> None:
        if hasattr(self, "index"):
            assert_snapshot_of_the_catalog(self.index._store)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            self.folder.cleanup()


AgainstADictionary.TestCase.settings = settings(max_examples=6, stateful_step_count=10, deadline=None)
TestAgainstADictionary = AgainstADictionary.TestCase


def test_a_process_that_dies_before_the_commit_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM) as index:
        index.add([1], [item(1)])
        index.commit()
    code = (
        "import os, sys, numpy as np\nfrom ragkit import MaxSimIndex\n"
        f"index = MaxSimIndex.open({str(tmp_path / 'v')!r})\nindex.add([2], [np.eye({DIM}, dtype='f4')])\n"
        "index.delete([1])\nos._exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 3, done.stderr.decode()
    with MaxSimIndex.open(tmp_path / "v") as again:
        assert again.search(item(9))[0].tolist() == [1]


def test_misuse_is_told_and_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dim=128"):
        MaxSimIndex.open(tmp_path / "v")
    with pytest.raises(ValueError, match="precision"):
        MaxSimIndex.open(tmp_path / "v", dim=DIM, precision="int4")
    with MaxSimIndex.open(tmp_path / "v", dim=DIM) as index:
        index.add([1], [item(1)])
        index.commit()
        wrong: list[tuple[Any, Any, str]] = [
            ([1, 1], [item(1), item(2)], "1 repeat another"),
            ([1], [item(1), item(2)], "as many"),
            ([1.5], [item(1)], "int64"),
            ([2], [np.zeros((0, DIM), np.float32)], "no vectors"),
            ([2], [np.ones((3, DIM + 1), np.float32)], "dims"),
            ([2], [np.full((3, DIM), np.nan, np.float32)], "not finite"),
            ([2], [5 * item(2)], "unit length"),
            ([2, 3], [item(2), np.ones(DIM, np.float32)], "item 1"),
        ]
        for keys, vectors, message in wrong:
            with pytest.raises(ValueError, match=message):
                index.add(keys, vectors)
        for k in (0, -1):
            with pytest.raises(ValueError, match="k must be"):
                index.search(item(9), k)
        assert len(index.search(item(9), allowed=[])[0]) == 0
        assert index.search(item(9))[0].tolist() == [1]
        index.delete([1])
        with MaxSimIndex.open(tmp_path / "v")._store.writer(timeout=1), pytest.raises(IndexLocked):
            index.commit(lock_timeout=0)
        index.commit()
        assert len(index) == 0
    with pytest.raises(RecipeMismatch, match="float16"):
        MaxSimIndex.open(tmp_path / "v", precision="float16")
    with pytest.raises(NotAnIndex, match="MaxSimIndex"):
        Index.open(tmp_path / "v", model=HashEncoder())
    Index.open(tmp_path / "documents", model=HashEncoder()).close()
    with pytest.raises(NotAnIndex, match=r"ragkit\.Index"):
        MaxSimIndex.open(tmp_path / "documents", dim=DIM)


def test_a_flipped_bit_is_an_error_and_only_where_it_is_touched(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, precision="float32") as index:
        index.add(range(400), [item(key, 60) for key in range(400)])  # some two megabytes: three blocks
        index.commit()
    [path] = (tmp_path / "v").glob("segments/*/chunk.multi.npy")
    body = bytearray(path.read_bytes())
    body[-3] ^= 4
    path.write_bytes(body)
    with MaxSimIndex.open(tmp_path / "v") as again:
        assert again.search(item(9), allowed=[0, 1, 2])[0].tolist()
        with pytest.raises(Damaged, match=r"chunk\.multi\.npy"):
            again.search(item(9))
        assert again.verify()


def test_two_writers_in_turn_never_share_a_version(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM) as one, MaxSimIndex.open(tmp_path / "v") as two:
        for key in range(6):
            writer = (one, two)[key % 2]
            writer.add([key], [item(key)])
            writer.commit()
        live = one._store.reader().find([f"key:{key}" for key in range(6)], by="identity")
        ids = [row.id for row in live]
        assert len(set(ids)) == 6
        assert sorted(one.search(item(9), k=9)[0].tolist()) == list(range(6))
        for index in (one, two):
            assert_snapshot_of_the_catalog(index._store)
        assert one.verify() == []


def test_many_single_additions_leave_few_segments(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM) as index:
        for key in range(40):
            index.add([key], [item(key)])
            index.commit()
        assert len(index.stats()) <= 4
        assert len(index.search(item(9), k=500)[0]) == 40


@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
def test_deleting_and_merging_change_no_survivors_score(tmp_path: Path, precision: str) -> None:
    keys, gone = list(range(40)), [0, 3, 4, 9, 22, 38, 39]  # first, last, alone, side by side
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, precision=precision) as index:

        def residual(some: list[int]) -> float:
            return index.layout.store(MultiVectors.pack([item(key) for key in some])).loss.residual

        halves = sorted([keys[:20], keys[20:]], key=residual, reverse=True)  # the worse first: it must not be forgotten
        for half in halves:
            index.add(half, [item(key) for key in half])
            index.commit()
        before = [pair for pair in pairs(index.search(item(99, 7), 50)) if pair[0] not in gone]
        index.delete(gone)
        assert pairs(index.search(item(99, 7), 50)) == before
        index.compact()
        assert len(index.stats()) == 1
        assert pairs(index.search(item(99, 7), 50)) == before
        assert index.stats()[0]["tokens"] == sum(len(item(key)) for key in keys if key not in gone)
        assert index.stats()[0]["residual"] == max(residual(half) for half in halves)
        assert index.verify() == []


# --- coarse vectors ---------------------------------------------------------------------------------------------------


def alike(seed: int, size: int = 16) -> Floats:
    """Vectors that come in groups, as those of the words of a text do."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(rng.normal(size=(-(-size // 4), DIM)), 4, axis=0)[:size]
    return unit_rows(groups + 0.3 * rng.normal(size=(size, DIM)))


def part_of(key: int) -> Floats:
    """A query that the item of this key answers best."""
    return unit_rows(alike(key)[::3] + 0.1 * np.random.default_rng(key).normal(size=(6, DIM)))


@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
def test_candidates_are_found_by_coarse_vectors_and_scored_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(multi_layout, "COPIED", 300)  # so that several pieces are made of each addition
    monkeypatch.setattr(writer, "merge_policy", lambda *_, **__: [])
    looked: list[int] = []
    real = MultiReader.scores_of

    def scores_of(self: MultiReader, queries: Any, positions: Any) -> Any:
        looked.append(len(positions))
        return real(self, queries, positions)

    monkeypatch.setattr(MultiReader, "scores_of", scores_of)
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, precision=precision, coarse=4) as index:
        for start in range(0, 400, 100):
            index.add(range(start, start + 100), [alike(key) for key in range(start, start + 100)])
            index.commit()
        assert [one["coarse"] for one in index.stats()] == [100 * 4] * 4
        index.search(part_of(3), 5, candidates=40)
        assert sum(looked) == 40  # of all segments together
        queries = [part_of(key) for key in range(0, 400, 7)]
        whole = [dict(pairs(found)) for found in index.search(queries, 400)]
        few = index.search(queries, 5, candidates=40)
        for key, (keys, scores), scored in zip(range(0, 400, 7), few, whole, strict=True):
            assert keys[0] == key
            assert len(keys) == 5
            assert scores.tolist() == [scored[one] for one in keys.tolist()]  # exact, whatever was passed over
        index.delete(range(7))
        assert (
            pairs(index.search(part_of(3), 5, candidates=40))
            == [pair for pair in pairs(index.search(part_of(3), 30, candidates=40)) if pair[0] > 6][:5]
        )
        index.commit()
        before = [pairs(found) for found in index.search(queries[1:], 5, candidates=40)]
        index.compact()
        assert [pairs(found) for found in index.search(queries[1:], 5, candidates=40)] == before
        assert [pairs(index.search(one, 5, candidates=40)) for one in queries[1:]] == before
        index.add([1000], [part_of(77)])  # not committed, and so not thinned yet
        assert index.search(part_of(77), 2, candidates=40)[0].tolist() == [1000, 77]
        assert index.search(part_of(77), 9, candidates=3, allowed=[5, 77, 80, 1000])[0].tolist()[:2] == [1000, 77]
        assert len(index.search(part_of(77), 9, candidates=3, allowed=range(300))[0]) == 9  # k, at least
        assert index.verify() == []
    with MaxSimIndex.open(tmp_path / "v") as again:
        assert "coarse=4" in repr(again)
        assert pairs(again.search(queries[1], 5, candidates=40)) == before[0]


def test_candidates_of_nearly_all_are_all(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, coarse=8) as index:
        index.add(range(60), [item(key) for key in range(60)])
        index.commit()
        for candidates in (30, 60, 1000):
            assert pairs(index.search(item(99, 7), 9, candidates=candidates)) == pairs(index.search(item(99, 7), 9))


def test_coarse_vectors_are_part_of_the_index(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, coarse=4) as index:
        index.add(range(100), [alike(key) for key in range(100)])
        index.commit()
        for candidates in (0, -1):
            with pytest.raises(ValueError, match="candidates must be at least 1"):
                index.search(item(9), candidates=candidates)
    with pytest.raises(RecipeMismatch, match="coarse=4, not 2"):
        MaxSimIndex.open(tmp_path / "v", coarse=2)
    with pytest.raises(ValueError, match="at least 2"):
        MaxSimIndex.open(tmp_path / "w", dim=DIM, coarse=1)
    [path] = (tmp_path / "v").glob("segments/*/chunk.multi.coarse.npy")
    body = bytearray(path.read_bytes())
    body[-3] ^= 4
    path.write_bytes(body)
    with MaxSimIndex.open(tmp_path / "v", coarse=4) as index:
        assert index.search(part_of(5))[0][0] == 5
        with pytest.raises(Damaged, match=r"chunk\.multi\.coarse\.npy.*Run: compact\(\), which makes coarse vectors anew"):
            index.search(part_of(5), candidates=10)
        assert [one.remedy for one in index.verify()] == [REPAIR]
        index.compact()
        assert index.verify() == []
        assert index.search(part_of(5), candidates=10)[0][0] == 5


def test_an_index_without_coarse_vectors_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    Store.create(tmp_path / "v", {SETTING: {"dim": DIM, "precision": "int8"}}, lexical=False)  # as before there were any
    with MaxSimIndex.open(tmp_path / "v", coarse=0) as index:
        index.add(range(30), [alike(key) for key in range(30)])
        index.commit()
        assert not [*index.path.glob("segments/*/*coarse*")]
        with pytest.raises(ValueError, match="coarse=4, say"):
            index.search(item(9), candidates=3)
        assert index.search(part_of(5))[0][0] == 5
        index.export(tmp_path / "out")
    assert MaxSimIndex.import_from(tmp_path / "w", tmp_path / "out", coarse=4) == 30
    with MaxSimIndex.open(tmp_path / "w") as other:
        assert other.search(part_of(5), candidates=5)[0][0] == 5


@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
def test_what_a_token_takes_on_disk_is_told(tmp_path: Path, precision: Any) -> None:
    layout = Layout(DIM, precision, coarse=4)
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, precision=precision, coarse=4) as index:
        index.add(range(500), [alike(key) for key in range(500)])
        index.commit()
    files = (tmp_path / "v").glob("segments/*/chunk.multi*.npy")
    size = sum(path.stat().st_size for path in files if "offsets" not in path.name)
    assert size == 2 * 128 + 500 * 16 * layout.bytes_a_token


def test_coarse_vectors_ask_for_unit_length_in_every_precision(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, precision="float16", coarse=4) as index:
        with pytest.raises(ValueError, match="coarse is for vectors of unit length"):
            index.add([1], [5 * item(1)])
        assert len(index) == 0
    with MaxSimIndex.open(tmp_path / "long", dim=DIM, precision="float32") as index:
        index.add([1, 2], [5 * item(1), item(2)])
        index.commit()
        index.export(tmp_path / "out")
    with pytest.raises(ValueError, match="coarse is for vectors of unit length, got one of 5"):
        MaxSimIndex.import_from(tmp_path / "new", tmp_path / "out", coarse=4)
    with MaxSimIndex.open(tmp_path / "new") as index:
        assert len(index) == 0


@pytest.mark.parametrize("wrong", [{"coarse": 2.5}, {"coarse": 4.0}, {"coarse": float("nan")}, {"coarse": -1}, {"dim": 24.0}])
def test_an_index_of_no_whole_numbers_is_not_made(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^(coarse|dims) must be .* got"):
        MaxSimIndex.open(tmp_path / "v", **{"dim": DIM, **wrong})
    assert not (tmp_path / "v").exists()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    for _ in range(2):
        with MaxSimIndex.open(tmp_path / "v", dim=np.int64(DIM), coarse=np.int32(4)) as index:  # type: ignore[arg-type]
            assert (index.layout.dims, index.layout.coarse) == (DIM, 4)


def test_an_export_keeps_what_coarse_was(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM, coarse=4) as index:
        index.add(range(30), [alike(key) for key in range(30)])
        index.commit()
        found = pairs(index.search(part_of(5), 3, candidates=5))
        index.export(tmp_path / "out")
    for name, given, kept in (("same", None, 4), ("none", 0, 0), ("other", 8, 8), ("none", None, 0), ("same", None, 4)):
        MaxSimIndex.import_from(tmp_path / name, tmp_path / "out", coarse=given)
        with MaxSimIndex.open(tmp_path / name) as other:
            assert other.layout.coarse == kept
            assert [bool(one["coarse"]) for one in other.stats()] == [kept > 0]
    with MaxSimIndex.open(tmp_path / "same") as other:
        assert pairs(other.search(part_of(5), 3, candidates=5)) == found
    with pytest.raises(RecipeMismatch, match="not 8: leave it out, or import an export of it to a new index with coarse=8"):
        MaxSimIndex.import_from(tmp_path / "same", tmp_path / "out", coarse=8)


def test_what_is_not_committed_yet_is_ranked_with_the_rest(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM) as index:
        index.add(range(0, 20, 2), [item(key) for key in range(0, 20, 2)])
        index.commit()
        index.add(range(1, 20, 2), [item(key) for key in range(1, 20, 2)])
        index.add([21, 22], [item(4), item(5)])  # ties with the keys 4 and 5
        searches = [(k, allowed) for k in (1, 2, 7, 21, 30) for allowed in (None, [0, 3, 4, 5, 21, 22, 77])]
        apart = [pairs(index.search(item(99, 7), k, allowed=allowed)) for k, allowed in searches]
        assert [len(found) for found in apart] == [min(k, 22 if allowed is None else 6) for k, allowed in searches]
        index.commit()
        assert apart == [pairs(index.search(item(99, 7), k, allowed=allowed)) for k, allowed in searches]


def test_what_others_commit_between_a_deletion_and_its_commit_is_deleted_too(tmp_path: Path) -> None:
    with MaxSimIndex.open(tmp_path / "v", dim=DIM) as one, MaxSimIndex.open(tmp_path / "v") as two:
        one.add([1, 2], [item(1), item(2)])
        one.commit()
        assert two.delete([1, 5]) == 1
        one.add([1, 5], [item(3), item(4)])
        one.commit()
        two.commit()
        for index in (one, two):
            assert index.search(item(9))[0].tolist() == [2]
            assert len(index) == 1
            assert_snapshot_of_the_catalog(index._store)
        assert one.verify() == []


def test_joined_rows_have_lost_what_the_worst_of_them_lost() -> None:
    stored = Layout(DIM).store(MultiVectors.pack([item(1), item(2)]))
    parts = [replace(stored, loss=loss) for loss in (Loss(0.25, 1.0), Loss(0.125, 1.5))]
    for some in (parts, parts[::-1]):
        joined = Stored.join(some)
        assert joined.loss == Loss(0.25, 1.5)
        assert joined.lengths.tolist() == 2 * stored.lengths.tolist()

"""Laws of single-vector search. The oracle is NumPy in float64 over the stored float16 rows."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.core.arrays import unit_rows
from ragkit.core.errors import Damaged
from ragkit.store.local.files import CheckedFolder, seal
from ragkit.store.vectors import dense, dense_compress
from ragkit.store.vectors.cosines import widen
from ragkit.store.vectors.dense import DenseReader, write_dense
from ragkit.store.vectors.dense_compress import Trial

NAME = "chunk.dense"


def written(folder: Path, rows: np.ndarray, *, step: int = 700, recall: float = 0.99) -> DenseReader:
    folder.mkdir()
    write_dense(folder, NAME, (rows[start : start + step] for start in range(0, len(rows), step)), recall=recall)
    return DenseReader(CheckedFolder(folder, seal(folder)), NAME)


def clustered(n: int, d: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 40), d))
    return unit_rows(centres[rng.integers(len(centres), size=n)] + 0.7 * rng.normal(size=(n, d)))


def oracle(
    rows: np.ndarray, query: np.ndarray, k: int, keys: np.ndarray, allowed: np.ndarray | None = None, dims: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best k scores, and the score of every row."""
    stored = rows.astype(np.float16).astype(np.float64)[:, :dims]
    query = query.astype(np.float64)[:dims]
    if dims is not None:
        stored = np.array([row / (np.linalg.norm(row) or 1) for row in stored])
        query = query / (np.linalg.norm(query) or 1)
    scores = (stored @ query).astype(np.float32)
    mine = range(len(rows)) if allowed is None else np.flatnonzero(allowed)
    order = sorted(mine, key=lambda at: (-scores[at], keys[at]))[:k]
    return scores[order], scores


def assert_same(found: tuple[np.ndarray, np.ndarray], row: int, expected: tuple[np.ndarray, np.ndarray]) -> None:
    """Scores equal the oracle's to 1e-6, rank by rank, and each is that of its position."""
    positions, scores = found[0][row], found[1][row]
    best, of_rows = expected
    assert len(positions) == len(best)
    np.testing.assert_allclose(scores, best, atol=1e-6)
    np.testing.assert_allclose(scores, of_rows[positions], atol=1e-6)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[DenseReader, np.ndarray]:
    rows = clustered(6000, 32)
    rows[100:600] = rows[100]  # more equal rows than there are candidates
    rows[700] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_compress, "COMPRESS", 1)
        reader = written(tmp_path_factory.mktemp("dense") / "segment", rows)
    assert reader.stats.structure == "PQ16x4fs"
    return reader, rows


def test_a_stranger_reads_the_rows_with_numpy(tmp_path: Path) -> None:
    rows = clustered(1500, 7)
    reader = written(tmp_path / "s", rows)
    stored = np.load(tmp_path / "s" / f"{NAME}.npy", mmap_mode="r", allow_pickle=False)
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, rows.astype(np.float16))
    assert json.loads((tmp_path / "s" / f"{NAME}.json").read_text()) == reader.describe()
    np.testing.assert_array_equal(reader.rows(np.arange(len(rows))), stored.astype(np.float32))


def test_widening_is_exact_for_every_finite_half() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)][None]
    np.testing.assert_array_equal(widen(halves, np.empty(halves.shape, np.float32)), halves.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 90),
    d=st.integers(1, 9),
    k=st.integers(0, 100),
    q=st.integers(1, 9),
    share=st.floats(0, 1),
    cut=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_search_equals_numpy(
    tmp_path_factory: pytest.TempPathFactory, n: int, d: int, k: int, q: int, share: float, cut: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = unit_rows(rng.integers(-2, 3, size=(n, d)))  # many ties, some zero rows
    keys = rng.permutation(1000)[:n]
    queries = unit_rows(rng.integers(-2, 3, size=(q, d)))
    allowed = rng.random(n) < share if share < 1 else None
    dims = cut if 1 <= cut <= d else None
    reader = written(tmp_path_factory.mktemp("d") / "s", rows)
    positions, scores = reader.search(queries, k, keys=keys, allowed=allowed, dims=dims)
    expected = n if allowed is None else int(allowed.sum())
    assert positions.shape == scores.shape == (q, min(k, expected))
    for row in range(q):
        assert_same((positions, scores), row, oracle(rows, queries[row], k, keys, allowed, None if dims == d else dims))
        assert sorted(zip(-scores[row], keys[positions[row]], strict=True)) == list(
            zip(-scores[row], keys[positions[row]], strict=True)
        )
        assert len(set(positions[row].tolist())) == len(positions[row])


@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_path_gives_the_same_bits(compressed: tuple[DenseReader, np.ndarray], count: int) -> None:
    """In place, by blocks, gathered and compressed: a row's score is one number."""
    reader, rows = compressed
    keys = np.arange(len(rows))[::-1].copy()
    queries = clustered(count, 32, seed=5)
    single = [reader.search(query[None], 10, keys=keys, exact=True) for query in queries]
    by_path = [
        reader.search(queries, 10, keys=keys, exact=True),
        reader.search(queries, 10, keys=keys),
        reader.search(queries, 3000, keys=keys, exact=True),
        tuple(np.concatenate(part) for part in zip(*single, strict=True)),
    ]
    scores: dict[tuple[int, int], float] = {}
    for positions, values in by_path:
        for row in range(count):
            for position, value in zip(positions[row].tolist(), values[row].tolist(), strict=True):
                assert scores.setdefault((row, position), value) == value
    np.testing.assert_array_equal(by_path[0][0], by_path[2][0][:, :10])
    np.testing.assert_array_equal(by_path[0][0], by_path[3][0])


def test_one_dimension_orders_by_key(tmp_path: Path) -> None:
    """One dimension: all cosines are 1 or -1, and the order is that of the keys."""
    rows = np.where(np.arange(5000) % 3 == 0, -1.0, 1.0).astype(np.float32)[:, None]
    keys = np.random.default_rng(0).permutation(5000)
    reader = written(tmp_path / "s", rows)
    for exact in (True, False):
        positions, scores = reader.search(np.ones((1, 1), np.float32), 9, keys=keys, exact=exact)
        assert keys[positions[0]].tolist() == sorted(keys[rows[:, 0] > 0])[:9]
        assert (scores == 1).all()


def test_ties_break_by_key_in_a_compressed_index(compressed: tuple[DenseReader, np.ndarray]) -> None:
    reader, rows = compressed
    keys = np.random.default_rng(1).permutation(len(rows))
    positions, _ = reader.search(rows[100:101], 7, keys=keys)
    assert keys[positions[0]].tolist() == sorted(keys[100:600])[:7]
    zero, scores = reader.search(np.zeros((1, 32), np.float32), 5, keys=keys)
    assert keys[zero[0]].tolist() == [0, 1, 2, 3, 4]
    assert not scores.any()


def test_recall_is_what_was_measured(compressed: tuple[DenseReader, np.ndarray]) -> None:
    reader, rows = compressed
    assert reader.stats.recall >= reader.stats.recall_target == 0.99
    queries = clustered(300, 32, seed=0)[:100] * 0.6 + 0.8 * unit_rows(np.random.default_rng(3).normal(size=(100, 32)))
    queries = unit_rows(queries)
    keys = np.arange(len(rows))
    tenth = reader.search(queries, 10, keys=keys, exact=True)[1][:, -1:]
    assert (reader.search(queries, 10, keys=keys)[1] >= tenth).mean() >= 0.98


def test_a_held_out_row_does_not_count_as_its_own_find() -> None:
    """The measured index holds the queries themselves, and nonsense elsewhere: its recall is that of the nonsense."""
    import faiss

    rows, held = clustered(2000, 16).astype(np.float16), np.arange(20)
    trial = Trial.of(rows, held, np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32))
    wide = rows.astype(np.float32)
    cosines = wide[held] @ wide.T
    cosines[held, held] = -1
    np.testing.assert_allclose(trial.tenth[:20], np.sort(cosines, axis=1)[:, -10], atol=1e-6)
    perfect, nonsense = faiss.IndexFlatIP(16), faiss.IndexFlatIP(16)
    perfect.add(wide)
    nonsense.add(np.concatenate([wide[:20], wide[:19:-1]]))
    assert trial.recalls(rows, perfect, probes=0)[0] == (1, 1.0, 1.0)
    assert trial.recalls(rows, nonsense, probes=0)[0][1] < 0.09


def test_inverted_lists_serve_large_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_compress, "COMPRESS", 1)
    monkeypatch.setattr(dense_compress, "INVERT", 1)
    rows = clustered(6000, 16)
    reader = written(tmp_path / "s", rows, recall=0.9)
    assert reader.stats.structure.startswith("IVF64,")
    assert reader.stats.recall >= 0.9
    keys, queries = np.arange(6000), clustered(50, 16, seed=8)
    exact = reader.search(queries, 10, keys=keys, exact=True)
    found = reader.search(queries, 10, keys=keys)
    assert (found[1] >= exact[1][:, -1:]).mean() > 0.85


def test_a_recall_that_cannot_be_reached_means_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_compress, "COMPRESS", 1)
    monkeypatch.setattr(dense_compress, "FACTORS", (1,))
    rows = clustered(3000, 16)
    reader = written(tmp_path / "s", rows, recall=0.9999)
    assert reader.stats.structure == "rows"
    assert not (tmp_path / "s" / f"{NAME}.faiss").exists()
    assert_same(reader.search(rows[:1], 10, keys=np.arange(3000)), 0, oracle(rows, rows[0], 10, np.arange(3000)))


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("count", [1, 20])
def test_filters_that_have_nothing_to_do_with_the_query_are_exact(
    compressed: tuple[DenseReader, np.ndarray], share: float, count: int
) -> None:
    reader, rows = compressed
    rng = np.random.default_rng(2)
    queries, keys = clustered(count, 32, seed=4), rng.permutation(len(rows))
    far = np.argsort(rows @ queries[0])[: int(share * len(rows))]  # the farthest rows from the first query
    allowed = np.zeros(len(rows), np.bool_)
    allowed[far] = True
    positions, scores = reader.search(queries, 20, keys=keys, allowed=allowed, exact=share < dense.MOSTLY)
    assert positions.shape == (count, min(20, len(far)))
    assert allowed[positions].all()
    if share < dense.MOSTLY:
        for row in range(count):
            assert_same((positions, scores), row, oracle(rows, queries[row], 20, keys, allowed))


def test_deleting_the_whole_neighbourhood_still_finds_the_next(compressed: tuple[DenseReader, np.ndarray]) -> None:
    reader, rows = compressed
    keys = np.arange(len(rows))
    allowed = np.ones(len(rows), np.bool_)
    allowed[np.argsort(-(rows @ rows[50]))[:500]] = False
    found = reader.search(rows[50:51], 10, keys=keys, allowed=allowed)
    assert_same(found, 0, oracle(rows, rows[50], 10, keys, allowed))


def test_deleting_others_changes_no_survivors_score(compressed: tuple[DenseReader, np.ndarray]) -> None:
    reader, rows = compressed
    keys = np.arange(len(rows))
    for query in clustered(5, 32, seed=9)[:, None]:
        before = reader.search(query, 10, keys=keys)
        allowed = np.ones(len(rows), np.bool_)
        allowed[before[0][0, ::2]] = False
        after = reader.search(query, 10, keys=keys, allowed=allowed)
        survivors = dict(zip(before[0][0, 1::2].tolist(), before[1][0, 1::2].tolist(), strict=True))
        again = dict(zip(after[0][0].tolist(), after[1][0].tolist(), strict=True))
        assert {at: again[at] for at in survivors} == survivors


@pytest.mark.parametrize("suffix", ["npy", "json", "faiss"])
def test_every_damaged_byte_is_found_before_an_answer(
    compressed: tuple[DenseReader, np.ndarray], tmp_path: Path, suffix: str
) -> None:
    source = compressed[0]._folder
    keys, query = np.arange(6000), np.ones((1, 32), np.float32)
    size = (source.path / f"{NAME}.{suffix}").stat().st_size
    for at in [0, 5, 130, size // 2, size - 1]:
        folder = tmp_path / f"{suffix}{at}"
        folder.mkdir()
        for name in source.records:
            (folder / name).write_bytes((source.path / name).read_bytes())
        damaged = bytearray((folder / f"{NAME}.{suffix}").read_bytes())
        damaged[at] ^= 4
        (folder / f"{NAME}.{suffix}").write_bytes(damaged)
        checked = CheckedFolder(folder, list(source.records.values()))

        def touch(checked: CheckedFolder = checked) -> None:
            reader = DenseReader(checked, NAME)
            reader.search(query, 3, keys=keys)
            reader.search(query, 3, keys=keys, exact=True)

        with pytest.raises(Damaged):
            touch()


def test_many_threads_search_one_reader(compressed: tuple[DenseReader, np.ndarray]) -> None:
    reader, rows = compressed
    keys = np.arange(len(rows))
    expected = [reader.search(rows[at : at + 1], 5, keys=keys)[0].tolist() for at in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: reader.search(rows[at : at + 1], 5, keys=keys)[0].tolist(), range(40)))
    assert found == expected


def test_a_closed_reader_says_so_and_lets_go_of_the_map(tmp_path: Path) -> None:
    reader = written(tmp_path / "s", clustered(50, 4))
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.rows(np.array([0]))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_misuse_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for blocks in ([], [np.empty((0, 3), np.float32)], [np.full((2, 3), np.nan, np.float32)], [np.ones((1, 3)), np.ones((1, 4))]):
        with pytest.raises(ValueError, match="rows"):
            write_dense(folder, NAME, blocks)
    reader = written(tmp_path / "s", clustered(50, 4))
    keys, query = np.arange(50), np.ones((1, 4), np.float32)
    short = np.ones(3, np.bool_)
    for wrong in ({"k": -1}, {"dims": 0}, {"dims": 5}, {"keys": keys[:3]}, {"allowed": short}, {"queries": query[:, :2]}):
        with pytest.raises(ValueError, match="must"):
            reader.search(**{"queries": query, "k": 1, "keys": keys, **wrong})

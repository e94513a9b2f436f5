"""Laws of BM25 search. The oracle is a naive BM25 with exact lengths; Tantivy quantises lengths as Lucene does, so
scores are compared to 5 % and orders where the oracle's scores differ by more."""

from __future__ import annotations

import hashlib
import math
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ragkit.core.errors import Damaged
from ragkit.store.local.files import CheckedFolder, FileRecord
from ragkit.store.vectors import lexical
from ragkit.store.vectors.lexical import LexicalReader, write_generation
from ragkit.store.vectors.tokens import document_terms, query_terms

Row = tuple[int, int, str, str | None]


class Chain:
    """Generations one after the other, as commits make them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: list[Path] = []
        self.records: list[list[FileRecord]] = []

    def commit(self, add: list[Row] = (), delete: list[int] = ()) -> Chain:  # type: ignore[assignment]
        previous = self.folders[-1] if self.folders else None
        known = {record.name: record for record in self.records[-1]} if self.folders else {}
        folder = self.path / f"g{len(self.folders)}"
        self.records.append(write_generation(previous, folder, add=iter(add), delete_documents=iter(delete), known=known.get))
        self.folders.append(folder)
        return self

    def reader(self, number: int = -1) -> LexicalReader:
        return LexicalReader(CheckedFolder(self.folders[number], self.records[number]))


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def found(reader: LexicalReader, query: str, k: int = 10, **filters: np.ndarray) -> list[int]:
    keys, documents, scores = reader.search(query, k, **filters)
    assert keys.dtype == documents.dtype == np.int64
    assert scores.dtype == np.float32
    assert sorted(zip(-scores, keys, strict=True)) == list(zip(-scores, keys, strict=True))
    return keys.tolist()


def corpus(n: int, *, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(300)]
    weights = [1 / (number + 3) for number in range(300)]
    return [(1000 + i, i // 3, " ".join(rng.choices(vocabulary, weights, k=rng.randint(5, 60))), None) for i in range(n)]


def bm25(rows: list[Row], query: str) -> dict[int, float]:
    texts = {key: Counter(document_terms(text)) for key, _, text, _ in rows}
    mean = sum(sum(terms.values()) for terms in texts.values()) / len(texts)
    scores: Counter[int] = Counter()
    for term in query_terms(query, ()):
        holding = [key for key, terms in texts.items() if term in terms]
        idf = math.log(1 + (len(texts) - len(holding) + 0.5) / (len(holding) + 0.5))
        for key in holding:
            tf, length = texts[key][term], sum(texts[key].values())
            scores[key] += idf * 2.2 * tf / (tf + 1.2 * (0.25 + 0.75 * length / mean))
    return dict(scores)


def test_scores_are_bm25(chain: Chain) -> None:
    rows = corpus(400)
    reader = chain.commit(rows[:150]).commit(rows[150:]).reader()
    assert reader.segments == 2
    for query in ("w5 w17 w120", "w0 w1", "w250", "w33 w34 w35 w36 w299"):
        expected = bm25(rows, query)
        keys, _, scores = reader.search(query, len(rows))
        assert set(keys.tolist()) == expected.keys()
        np.testing.assert_allclose(scores, [expected[key] for key in keys.tolist()], rtol=0.05)


@pytest.mark.parametrize("named", [0, 10_000])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_filters_return_exactly_what_may_be_returned(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, named: int, share: float
) -> None:
    monkeypatch.setattr(lexical, "NAMED", named)
    rows = corpus(900)
    reader = chain.commit(rows).reader()
    rng = np.random.default_rng(0)
    documents = np.arange(300)
    allowed, excluded = documents[rng.random(300) < share], documents[rng.random(300) < 0.3]
    for query in ("w2 w9", "w77 w0", "w222"):
        everything = reader.search(query, 900)
        for permitted, excluding in ((allowed, None), (None, excluded), (allowed, excluded)):
            mask = np.ones(len(everything[0]), np.bool_)
            if permitted is not None:
                mask &= np.isin(everything[1], permitted)
            if excluding is not None:
                mask &= ~np.isin(everything[1], excluding)
            for k in (1, 7, 400):
                keys, of, scores = reader.search(query, k, allowed_documents=permitted, excluded_documents=excluding)
                np.testing.assert_array_equal(keys, everything[0][mask][:k])
                np.testing.assert_array_equal(of, everything[1][mask][:k])
                np.testing.assert_allclose(scores, everything[2][mask][:k], rtol=1e-5)


def test_nothing_allowed_nothing_asked_nothing_found(chain: Chain) -> None:
    reader = chain.commit(corpus(10)).reader()
    nobody = np.empty(0, np.int64)
    assert found(reader, "w0", allowed_documents=nobody) == []
    assert found(reader, "…", 5) == found(reader, "w0", 0) == found(reader, "unheard") == []
    assert len(found(reader, "w0", excluded_documents=nobody)) > 0
    with pytest.raises(ValueError, match="negative"):
        reader.search("w0", -1)


@pytest.mark.parametrize("k", [1, 5, 49, 50])
def test_equal_texts_come_by_key_at_the_cut_too(chain: Chain, k: int) -> None:
    keys = list(range(200))
    random.Random(0).shuffle(keys)
    text = "equal words in every one of them, seven terms at least"
    for start in range(0, 200, 50):
        chain.commit([(key, key, text, "en") for key in keys[start : start + 50]])
    assert found(chain.reader(), "seven equal terms", k) == list(range(k))


def test_sums_that_differ_by_rounding_are_ties() -> None:
    scores = np.float32([9.000002, 9.0, 8.999999, 8.99, 1.0])
    assert lexical._levelled(scores).tolist() == np.float32([9.000002, 9.000002, 9.000002, 8.99, 1.0]).tolist()
    assert lexical._levelled(scores[:0]).shape == (0,)


def test_a_question_in_chinese_finds_the_sentence(chain: Chain) -> None:
    chain.commit([(1, 1, "东京是日本的首都。", "zh"), (2, 2, "富士山是最高的山。", "zh"), (3, 3, "กรุงเทพเป็นเมืองหลวง", None)])
    assert found(chain.reader(), "首都") == [1]
    assert found(chain.reader(), "日本的首都是哪里?")[0] == 1
    assert found(chain.reader(), "山") == [2]
    assert found(chain.reader(), "เมืองหลวง") == [3]


def test_punctuation_is_never_an_operator(chain: Chain) -> None:
    reader = chain.commit([(1, 1, "How to call C++ (x) from C", "en"), (2, 2, "the ratio a:b of sides", "en")]).reader()
    assert found(reader, "C++ (x")[0] == 1
    assert found(reader, "a:b")[0] == 2
    for query in ('"', "AND OR NOT", "+-&&||!(){}[]^~*?:\\/", "body:x", "* ", "\0 a", "\ud800x"):
        found(reader, query)


def test_each_chunk_is_stemmed_by_its_language_and_a_query_by_all(chain: Chain) -> None:
    reader = chain.commit(
        [(1, 1, "She was running home", "en"), (2, 2, "Die alten Häuser am See", "de"), (3, 3, "unstemmed houses", None)]
    ).reader()
    assert reader.languages == {"en", "de", "xx"}
    assert found(reader, "runs") == [1]
    assert found(reader, "Haus See")[0] == 2
    assert found(reader, "house") == []
    assert found(reader, "houses") == [3]


def test_a_rare_language_is_not_favoured(chain: Chain) -> None:
    """Why there is one field for all: in a field of its own, "in" and "was" would be rare in the one German text."""
    english = [(i, i, f"what was found in the harbour of town {i}", "en") for i in range(99)]
    reader = chain.commit([*english, (99, 99, "was man in dem alten Hafen fand", "de")]).reader()
    assert found(reader, "what was in the harbour", 1) == [0]
    assert found(reader, "Häfen", 1) == [99]


def test_deleted_documents_are_gone_and_the_rest_stays(chain: Chain) -> None:
    rows = corpus(60)
    chain.commit(rows).commit(delete=[2, 5])
    everything = [key for key, document, _, _ in rows if document not in {2, 5}]
    query = " ".join(f"w{number}" for number in range(300))
    assert sorted(found(chain.reader(), query, 100)) == everything
    chain.commit([(9000, 2, "w0 again under a new key", None)], delete=[2])
    assert sorted(found(chain.reader(), query, 100)) == [*everything, 9000]


def test_a_generation_never_changes_and_its_readers_see_no_other(chain: Chain) -> None:
    chain.commit(corpus(50))
    first = chain.reader()
    before = found(first, "w1 w2")
    for number in range(15):
        folder = chain.folders[-1]
        hashes = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}
        chain.commit([(5000 + number, 5000 + number, "w1 w2", None)], delete=[number // 3])
        assert hashes == {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}
    assert found(first, "w1 w2") == found(chain.reader(0), "w1 w2") == before
    assert set(found(chain.reader(), "w1 w2", 100)) > set(range(5000, 5015))
    shutil.rmtree(chain.path)
    assert found(first, "w1 w2") == before


def test_many_single_additions_leave_few_segments_and_no_old_files(chain: Chain) -> None:
    for number in range(30):
        chain.commit([(number, number, f"w{number} common", None)])
    reader = chain.reader()
    assert reader.n == 30
    assert reader.segments <= 8
    assert {path.name for path in chain.folders[-1].iterdir()} == {record.name for record in chain.records[-1]}
    assert len(chain.records[-1]) <= 8 * 7 + 2
    assert found(reader, "common", 100) == list(range(30))


def test_unchanged_files_are_linked_and_the_json_files_are_not(chain: Chain) -> None:
    chain.commit(corpus(20)).commit([(1, 99, "w1", None)])
    old, new = chain.folders
    shared = {path.name for path in old.iterdir()} & {path.name for path in new.iterdir()}
    linked = {name for name in shared if (old / name).stat().st_ino == (new / name).stat().st_ino}
    assert shared - linked == {"meta.json", ".managed.json"}
    assert linked


def test_without_links_files_are_copied(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(lexical.os, "link", refuse)
    chain.commit(corpus(20)).commit([(1, 99, "w1 w2", None)])
    assert 1 in found(chain.reader(), "w1 w2", 30)


def test_a_read_only_folder_can_be_read_and_nothing_is_left_in_it(chain: Chain) -> None:
    chain.commit(corpus(20))
    chain.folders[0].chmod(0o500)
    try:
        names = sorted(path.name for path in chain.folders[0].iterdir())
        assert found(chain.reader(), "w0")
        assert names == sorted(path.name for path in chain.folders[0].iterdir()) == [r.name for r in chain.records[0]]
    finally:
        chain.folders[0].chmod(0o700)


def flip(path: Path, at: int) -> None:
    """Write a copy with one bit changed, so that files linked elsewhere keep theirs."""
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 16
    path.unlink()
    path.write_bytes(damaged)


def test_a_flipped_bit_in_any_file_is_damage_and_no_answer(chain: Chain) -> None:
    chain.commit(corpus(30)).commit(delete=[3])
    for record in chain.records[-1]:
        for at in {0, record.size // 2, record.size - 1}:
            path = chain.folders[-1] / record.name
            good = path.read_bytes()
            flip(path, at)
            with pytest.raises(Damaged, match="damaged"):
                chain.reader()
            path.write_bytes(good)
    assert found(chain.reader(), "w0")


def test_damage_is_not_merged_into_good_looking_files(chain: Chain) -> None:
    """A merge reads old files and writes new ones; a bit flipped before must not get a fresh checksum."""
    for number in range(7):
        chain.commit([(number, number, f"w{number} common words", None)])
    for kind in ("idx", "store", "fieldnorm", "fast", "term"):
        record = next(record for record in chain.records[-1] if record.name.endswith(kind))
        for at in range(0, record.size, 1 + record.size // 4):
            path = chain.folders[-1] / record.name
            good = path.read_bytes()
            flip(path, at)
            again = Chain(chain.path)
            again.folders, again.records = chain.folders[:], chain.records[:]
            with pytest.raises(Damaged, match="damaged"):  # when it is merged, or where that fails, when it is read
                again.commit([(50, 50, "common", None)]).reader()
            path.write_bytes(good)
            shutil.rmtree(chain.path / "g7")
    assert set(found(chain.commit([(50, 50, "common", None)]).reader(), "common")) == {*range(7), 50}
    assert chain.reader().segments == 1


def test_a_missing_or_mangled_generation_is_damaged(chain: Chain) -> None:
    chain.commit(corpus(5))
    flip(chain.folders[0] / "meta.json", 30)
    with pytest.raises(Damaged, match=r"meta\.json"):
        chain.commit([(1, 1, "x", None)])


def test_an_empty_generation_opens_and_grows(chain: Chain) -> None:
    assert found(chain.commit().reader(), "w0") == []
    assert chain.reader().languages == frozenset()
    assert found(chain.commit([(4, 4, "w0", None)]).reader(), "w0") == [4]
    assert found(chain.commit(delete=[4]).reader(), "w0") == []


def test_many_threads_search_one_reader(chain: Chain) -> None:
    reader = chain.commit(corpus(300)).reader()
    queries = [f"w{number} w{number + 40}" for number in range(60)]
    expected = [found(reader, query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: found(reader, query), queries)) == expected

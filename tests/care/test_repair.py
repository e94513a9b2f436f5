"""Whatever was damaged, repairing gives a whole index: with all of the answers where they can be had from what is left,
with those documents named that cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index
from ragkit.core.errors import Damaged
from ragkit.testing import HashEncoder
from tests.care.damage import answers, flip, in_catalog, only
from tests.conftest import NOTES, record, records


def repaired(path: Path, **options: Any) -> tuple[Any, Any]:
    """The report, and what the index answers afterwards, when it is verified to be whole."""
    with Index.open(path) as index:
        report = index.repair(**options)
        assert index.verify() == []
    with Index.open(path) as index:
        return report, answers(index)


def rows_of(found: Any) -> Any:
    """Answers without their BM25 scores, and without what depends on them: those may move a little."""
    return {key: [hit[:3] for hit in hits] for key, hits in found.items() if key[0] == "dense"}


def test_a_whole_index_is_left_alone(index: Index) -> None:
    before, commit = answers(index), index.stats().commit
    assert index.repair().problems == ()
    assert (answers(index), index.stats().commit) == (before, commit)


@pytest.mark.parametrize("name", ["*.store", "*.term", "meta.json", "*.fast"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_damaged_lexical_index_is_made_anew(index: Index, name: str, how: str) -> None:
    before = answers(index)
    index.close()
    path = sorted((index.path / "lexical").glob(f"*/{name}"))[0]
    flip(path, path.stat().st_size // 2) if how == "flipped" else path.unlink()
    report, after = repaired(index.path)
    assert report.lexical
    assert (report.lost, report.embedded) == ((), ())
    assert after == before  # to the last digit of every score


def test_a_lost_lexical_folder_is_made_anew(index: Index) -> None:
    before = answers(index)
    index.close()
    shutil.rmtree(only((index.path / "lexical").iterdir()))
    assert repaired(index.path)[1] == before


@pytest.mark.parametrize("name", ["keys.npy", "documents.npy", "chunk.dense.npy"])
def test_vectors_that_are_lost_are_embedded_again_from_the_stored_text(index: Index, name: str) -> None:
    before = answers(index)
    index.close()
    folder = only((index.path / "segments").iterdir())
    flip(folder / name, -1)
    report, after = repaired(index.path)
    assert set(report.embedded) == set(NOTES)
    assert report.lost == ()
    assert after == before
    assert report.quarantined == (str(index.path / "quarantine" / folder.name),)
    assert (index.path / "quarantine" / folder.name / name).exists()


@pytest.mark.parametrize("file", [".npy", ".offsets.npy", ".json"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_coarse_vectors_are_made_anew_and_nothing_is_embedded(tmp_path: Path, file: str, how: str) -> None:
    with Index.open(tmp_path / "library", model="hash:32+multi16", multi=True, coarse=4) as index:
        index.add(records())
        before = answers(index)
    segment = only((tmp_path / "library" / "segments").iterdir())
    path = segment / f"chunk.multi.coarse{file}"
    flip(path, -1) if how == "flipped" else path.unlink()
    with Index.open(tmp_path / "library") as index:
        assert [path.name in one.problem for one in index.verify()] == [True]
        assert answers(index) == before  # so few units are all looked at
    report, after = repaired(tmp_path / "library", embed=False)
    assert (report.lost, report.embedded) == ((), ())
    assert report.salvaged == len(np.load(tmp_path / "library" / "quarantine" / segment.name / "keys.npy"))
    assert after == before
    with Index.open(tmp_path / "library") as index:
        assert all(one["coarse"] for one in index.stats().multi)


def test_vectors_and_coarse_ones_lost_together_are_embedded_again(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model="hash:32+multi16", multi=True, coarse=4) as index:
        index.add(records())
        before = answers(index)
    for name in ("chunk.multi.coarse.npy", "chunk.multi.npy"):
        flip(only((tmp_path / "library" / "segments").glob(f"*/{name}")), -1)
    report, after = repaired(tmp_path / "library")
    assert (set(report.embedded), report.lost) == (set(NOTES), ())
    assert after == before


def test_without_embedding_documents_that_lost_vectors_are_named(index: Index) -> None:
    index.close()
    flip(only((index.path / "segments").glob("*/keys.npy")), -1)
    report, after = repaired(index.path, embed=False)
    assert {one.source for one in report.lost} == set(NOTES)
    assert not any(after.values())
    with Index.open(index.path) as again:
        assert {one.source for one in again.failures()} == set(NOTES)
        again.add([record(name) for name in NOTES])
        assert (again.stats().documents, again.failures(), again.verify()) == (5, [], [])


def test_what_is_derived_from_the_rows_is_made_anew_without_embedding(index: Index) -> None:
    before = answers(index)
    index.close()
    only((index.path / "segments").glob("*/chunk.dense.json")).write_text("{}")
    report, after = repaired(index.path, embed=False)
    assert (report.lost, report.embedded) == ((), ())
    assert report.salvaged > 0
    assert after == before


def test_only_the_rows_of_damaged_blocks_are_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragkit.store.local.files.BLOCK", 1024)
    texts = {f"note{n}": f"Note {n} speaks of {'otters' if n % 2 else 'granite'} and of the number {n * n}." for n in range(60)}
    with Index.open(tmp_path / "library", model="hash:64") as index:
        index.add([{"id": name, "text": text} for name, text in texts.items()])
        before = answers(index)
    path = only((tmp_path / "library" / "segments").glob("*/chunk.dense.npy"))
    rows = np.load(path)
    flip(path, path.stat().st_size - rows.nbytes + 30 * rows.shape[1] * 2)  # the first byte of row 30
    report, after = repaired(tmp_path / "library")
    assert "note30" in report.embedded
    assert 8 <= len(report.embedded) <= 9  # 1024 bytes are eight rows of 128
    assert report.salvaged == 60 - len(report.embedded)
    assert rows_of(after).keys() == rows_of(before).keys()
    for key, hits in rows_of(after).items():
        assert sorted(hits) == sorted(rows_of(before)[key])  # new keys break ties otherwise


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE texts SET body = zeroblob(40) WHERE document = 3",
        "DELETE FROM texts WHERE document = 3",
        "UPDATE documents SET title = 'Wrong' WHERE id = 3",
        "UPDATE documents SET deleted = 1 WHERE id = 3",
        "UPDATE documents SET id = 77 WHERE id = 3",
        "UPDATE texts SET document = 77 WHERE document = 3",
    ],
)
def test_a_document_of_which_the_catalog_lost_something_goes_and_is_named(index: Index, damage: str) -> None:
    before = answers(index)
    index.close()
    in_catalog(index.path, damage)
    report, after = repaired(index.path)
    lost = [one.source for one in report.lost]
    assert lost == (["quarry", "document 3"] if "SET id" in damage else ["quarry"])  # the number, too, has lost its row
    assert report.embedded == ()
    for key, hits in rows_of(before).items():
        assert [hit[:3] for hit in after[key]] == [hit for hit in hits if hit[0] != "quarry"]
    with Index.open(index.path) as again:
        again.add([record(name, number=at, lang="en" if at % 2 else "de") for at, name in enumerate(NOTES)])
        assert again.stats().documents == 5
        found = answers(again)
        assert {key: sorted(hit[:3] for hit in hits) for key, hits in found.items()} == {
            key: sorted(hit[:3] for hit in hits) for key, hits in before.items()
        }


def test_a_document_that_lost_units_is_chunked_and_embedded_again(index: Index) -> None:
    before = answers(index)
    index.close()
    in_catalog(index.path, "DELETE FROM units WHERE document = 3 AND key = (SELECT min(key) FROM units WHERE document = 3)")
    report, after = repaired(index.path)
    assert report.embedded == ("quarry",)
    assert {key: sorted(hits) for key, hits in after.items() if key[0] == "dense"} == {
        key: sorted(hits) for key, hits in before.items() if key[0] == "dense"
    }


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE commits SET units = 99",
        "UPDATE commits SET lexical = 'elsewhere'",
        "UPDATE commits SET number = number + 5 WHERE number = (SELECT max(number) FROM commits)",
        "UPDATE segments SET rows = 3",
        "UPDATE files SET size = size + 1 WHERE name = 'keys.npy'",
        "UPDATE files SET sums = zeroblob(8) WHERE name = 'meta.json'",
        "UPDATE counters SET next = 1",
        "DELETE FROM counters",
        "UPDATE units SET end = end + 1",
        "UPDATE units SET headings = '[]x' WHERE key = 2",
    ],
)
def test_what_the_catalog_can_tell_from_the_rest_is_made_anew(index: Index, damage: str) -> None:
    before = answers(index)
    index.close()
    in_catalog(index.path, damage)
    report, after = repaired(index.path)
    assert report.lost == ()
    for key, hits in before.items():
        parts = 4 if key[0] == "dense" else 3  # a document that is embedded again leaves its words in BM25's statistics
        assert sorted(hit[:parts] for hit in after[key]) == sorted(hit[:parts] for hit in hits)
    with Index.open(index.path) as again:
        seen = {hit.key for hit in again.search("fish", 100, mode="dense")}
        again.add([{"id": "new", "text": "Something new."}])
        assert again.search("something new", 1, mode="dense")[0].key not in seen
        assert again.verify() == []


def test_vectors_that_were_made_elsewhere_are_lost_by_name_and_words_alone_stay(tmp_path: Path) -> None:
    rows = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    with Index.open(tmp_path / "library", model="vectors:2") as index:
        index.add([{"id": name, "text": f"Words of {name}.", "vector": row} for name, row in rows.items()])
        index.add([{"id": "bare", "text": "Words of nobody."}])
        assert index.verify() == []
    for path in (tmp_path / "library" / "lexical").glob("*/*.store"):
        flip(path, 0)
    with Index.open(tmp_path / "library") as index:
        assert (index.repair().lost, index.verify()) == ((), [])
    flip(only((tmp_path / "library" / "segments").glob("*/chunk.dense.npy")), -1)
    with Index.open(tmp_path / "library") as index:
        assert {one.source for one in index.repair().lost} == {"a", "b"}
        assert [hit.document_id for hit in index.search("words", mode="lexical")] == ["bare"]
        with pytest.raises(ValueError, match="made elsewhere"):
            index.rebuild(chunk_tokens=9)


def test_pages_that_leave_numbers_out_are_whole(tmp_path: Path) -> None:
    (tmp_path / "film.srt").write_text(
        "1\n00:00:01,000 --> 00:00:04,000\nOtters hold hands.\n\n2\n00:05:01,000 --> 00:05:04,000\nThey sleep.\n"
    )
    with Index.open(tmp_path / "library", model="hash:64") as index:
        index.add(tmp_path / "film.srt")
        assert [page.number for page in index.document("film.srt").pages] == [1, 6]
        assert index.verify() == []
        assert index.repair().lost == ()


@pytest.mark.parametrize("parent", ["segments", "lexical"])
def test_a_lost_folder_of_all_vectors_or_words_is_made_anew(index: Index, parent: str) -> None:
    before = answers(index)
    index.close()
    shutil.rmtree(index.path / parent)
    with Index.open(index.path) as damaged:
        assert f"{index.path / parent} is missing" in [one.problem for one in damaged.verify()]
    report, after = repaired(index.path)
    assert (report.lost, after) == ((), before)


@pytest.mark.parametrize("where", ["segments", "segments/*", "lexical", "lexical/*"])
def test_what_another_program_left_is_put_aside_and_nothing_is_made_anew(tmp_path: Path, where: str) -> None:
    model = HashEncoder(dims=64, multi_dims=16)
    with Index.open(tmp_path / "library", model=model, multi=True) as index:
        index.add([record(name) for name in NOTES])
        before = answers(index)
    stray = only((tmp_path / "library").glob(where)) / ".DS_Store"
    stray.write_text("left by a file manager")
    with Index.open(tmp_path / "library", model=model) as index:
        assert [one.problem for one in index.verify()] == [f"{stray}: the catalog has no record of it"]
        report = index.repair()
        assert (report.lost, report.embedded, report.salvaged) == ((), (), 0)
        assert [Path(one).read_text() for one in report.quarantined] == ["left by a file manager"]
        assert index.verify() == []
        assert answers(index) == before


def test_a_document_whose_name_is_lost_is_told_by_its_number(index: Index) -> None:
    index.close()
    in_catalog(index.path, "DELETE FROM documents WHERE source = 'quarry'")
    report, _ = repaired(index.path)
    assert [one.source for one in report.lost] == ["document 3"]
    with Index.open(index.path) as again:
        records = [record(name, number=at, lang="en" if at % 2 else "de") for at, name in enumerate(NOTES)]
        assert [one.source for one in again.add(records).added] == ["quarry"]


def test_lost_settings_name_the_backup(index: Index) -> None:
    index.close()
    in_catalog(index.path, "UPDATE settings SET value = 'x' WHERE name = 'probes'")
    with Index.open(index.path) as damaged, pytest.raises(Damaged, match="backup"):
        damaged.repair()


def test_a_catalog_whose_pages_cannot_be_read_names_the_ways_out(index: Index) -> None:
    index.close()
    body = bytearray((index.path / "catalog.db").read_bytes())
    assert len(body) > 5 * 4096
    body[3 * 4096 : 4 * 4096] = b"\xff" * 4096
    (index.path / "catalog.db").write_bytes(body)
    with Index.open(index.path) as damaged:
        with pytest.raises(Damaged, match="backup") as caught:
            damaged.repair()
        assert "ragkit repair" not in str(caught.value)
        assert "ragkit export" in str(caught.value)


def test_until_it_is_whole_again_nothing_is_answered_from_half_of_it(index: Index) -> None:
    index.close()
    flip(only((index.path / "segments").glob("*/chunk.dense.npy")), -1)
    asked: list[str] = []

    def ask(step: Any) -> None:
        with Index.open(index.path) as reader, pytest.raises(Damaged):
            reader.search("fish", mode="dense")
        asked.append(step.stage)

    with Index.open(index.path) as damaged:
        damaged.repair(progress=ask)
        assert damaged.search("fish", mode="dense")
    assert {"verify", "encode", "write"} <= set(asked)


Damage = Callable[[Path], None]


def in_files(pattern: str, *, gone: bool) -> Damage:
    def damage(path: Path) -> None:
        for file in sorted(path.glob(pattern)):
            file.unlink() if gone else flip(file, -1)

    return damage


def in_rows(statement: str) -> Damage:
    return lambda path: in_catalog(path, statement)


DAMAGES: dict[str, Damage] = {
    "words": lambda path: shutil.rmtree(only((path / "lexical").iterdir())),
    "stored words": in_files("lexical/*/*.store", gone=False),
    "terms": in_files("lexical/*/*.term", gone=True),
    "segment": lambda path: shutil.rmtree(only((path / "segments").iterdir())),
    "vectors": in_files("segments/*/chunk.dense.npy", gone=True),
    "a vector": in_files("segments/*/chunk.dense.npy", gone=False),
    "keys": in_files("segments/*/keys.npy", gone=False),
    "owners": in_files("segments/*/documents.npy", gone=True),
    "derived": in_files("segments/*/chunk.dense.json", gone=False),
    "multi-vectors": in_files("segments/*/chunk.multi*", gone=False),
    "count": in_rows("UPDATE commits SET units = 99"),
    "generation": in_rows("UPDATE commits SET lexical = 'elsewhere'"),
    "number": in_rows("UPDATE commits SET number = number + 5 WHERE number = (SELECT max(number) FROM commits)"),
    "rows": in_rows("UPDATE segments SET rows = 3"),
    "size": in_rows("UPDATE files SET size = size + 1 WHERE name = 'keys.npy'"),
    "sums": in_rows("UPDATE files SET sums = zeroblob(8) WHERE name = 'meta.json'"),
    "counters": in_rows("DELETE FROM counters"),
    "ends": in_rows("UPDATE units SET end = end + 1"),
    "a unit": in_rows("DELETE FROM units WHERE document = 3 AND key = (SELECT min(key) FROM units WHERE document = 3)"),
    "a text": in_rows("UPDATE texts SET body = zeroblob(40) WHERE document = 3"),
    "a title": in_rows("UPDATE documents SET title = 'Wrong' WHERE id = 3"),
    "an id": in_rows("UPDATE documents SET id = 77 WHERE id = 3"),
}
LOSING = {"a text", "a title", "an id"}  # of document 3, and nothing else holds it


def known(found: Any) -> Any:
    """Answers without document 3; of the lexical mode only which documents are found, since what is embedded again leaves its
    words in BM25's statistics."""
    return {
        key: sorted(hit[: 1 if key[0] == "lexical" else 4] for hit in hits if hit[0] != "quarry")
        for key, hits in found.items()
        if key[0] != "hybrid"
    }


def mended(path: Path, both: tuple[str, str]) -> None:
    """Two damages at once, mended: nothing is lost but what no file holds any more."""
    model = HashEncoder(dims=64, multi_dims=16)
    with Index.open(path / "library", model=model, multi=True, chunk_tokens=32) as index:
        if not index.stats().documents:
            index.add([record(name, number=at) for at, name in enumerate(NOTES)])
        before = answers(index)
    copy = path / "damaged"
    shutil.copytree(path / "library", copy)
    for name in both:
        DAMAGES[name](copy)
    with Index.open(copy, model=model) as index:
        lost = {one.source for one in index.repair().lost}
        assert lost <= ({"quarry", "document 3"} if LOSING & set(both) else set())
        assert index.verify() == []
        assert known(answers(index)) == known(before)
    shutil.rmtree(copy)


@pytest.mark.parametrize("other", ["vectors", "keys", "a unit", "a text", "rows", "multi-vectors"])
def test_words_that_are_lost_together_with_something_else(tmp_path: Path, other: str) -> None:
    mended(tmp_path, ("words", other))


@pytest.mark.slow
@pytest.mark.parametrize("first", DAMAGES)
def test_any_two_damages_at_once(tmp_path: Path, first: str) -> None:
    for both in permutations(DAMAGES, 2):
        if both[0] == first and both != ("an id", "a title"):  # by then there is no such row
            mended(tmp_path, both)

"""The laws that every store keeps, for whoever writes another one.

    assert_store_contract(lambda: functools.partial(MyStore, empty_place()))

Each law gets a new, empty place, and opens the store there as often as it likes: what it opens again must hold what was
committed. A store for the contract has the setting `recipe` = RECIPE, dense vectors of DIMS dims for chunks, and multi-vectors
of DIMS dims in float32, as LAYOUT says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ragkit.core.arrays import MultiVectors, unit_rows
from ragkit.core.errors import IndexLocked, StorageError
from ragkit.core.space import Space
from ragkit.core.types import Chunk, Document, Floats, Span
from ragkit.store.filter import Comparison, Filter, Logic
from ragkit.store.protocol import Ranked, Reader, Store, Writer
from ragkit.store.values import Failure, Origin, Prepared
from ragkit.store.vectors.multi_layout import Layout

DIMS = 16
LAYOUT = Layout(DIMS, "float32")
RECIPE = {"encode": {"model": "contract"}}
CLOSE = 1e-3  # stores may keep dense rows in float16
WORDS = ("harbour", "granite", "otter", "lantern", "meadow", "copper", "sparrow")

OpenStore = Callable[[], Store]  # opens the same place each time
Law = Callable[[OpenStore], None]


def assert_store_contract(new_place: Callable[[], OpenStore]) -> None:
    """Check a store against all laws; AssertionError names the one it breaks."""
    for law in LAWS:
        try:
            law(new_place())
        except AssertionError as error:
            raise AssertionError(f"{law.__name__}: {error}") from error


# Material


def prepared(name: str, *, seed: int = 0, chunks: int = 3, replaces: int | None = None, **meta: Any) -> Prepared:
    """Return a document of some chunks, which its name and the seed determine."""
    rng = np.random.default_rng([seed, *name.encode()])
    sentences = [f"{name} {' '.join(rng.choice(WORDS, 4))}." for _ in range(chunks)]
    text = " ".join(sentences)
    starts = [0, *np.cumsum([len(sentence) + 1 for sentence in sentences])[:-1].tolist()] if chunks else []
    spans = [Span(start, start + len(sentence)) for start, sentence in zip(starts, sentences, strict=True)]
    tokens = [unit_rows(rng.normal(size=(int(rng.integers(1, 5)), DIMS)).astype(np.float32)) for _ in range(chunks)]
    return Prepared(
        origin=Origin(identity=f"id:{name}", source=name, content_hash=f"{name}:{seed}", lang="en"),
        document=Document(text=text, id=name, title=name.title(), meta={"seed": seed, **meta}),
        chunks=tuple(Chunk(span, (name.title(),)) for span in spans),
        dense=unit_rows(rng.normal(size=(chunks, DIMS)).astype(np.float32)) if chunks else None,
        replaces=replaces,
        multi=LAYOUT.store(MultiVectors.pack(tokens)) if chunks else None,
    )


def questions(count: int = 4) -> Floats:
    """Return unit rows (count, DIMS)."""
    return unit_rows(np.random.default_rng(7).normal(size=(count, DIMS)).astype(np.float32))


def add(store: Store, *documents: Prepared) -> None:
    with store.writer(timeout=10) as writer:
        for document in documents:
            writer.add(document)
        writer.commit("add", recipe_hash="r")


def pairs(ranked: Ranked) -> list[tuple[int, float]]:
    return [(int(key), round(float(score), 2)) for key, score in zip(*ranked, strict=True)]


def contents(reader: Reader) -> dict[str, tuple[str, list[str]]]:
    """Return the text and the texts of all units of each document, by source."""
    found = {}
    for row in reader.documents():
        units = reader.units_of(row.id)
        texts = [text for text, _ in reader.passages([(unit.document, unit.span) for unit in units])]
        found[row.source] = reader.document(row).text, texts
    return found


def answers(reader: Reader, where: Filter | None = None) -> list[list[tuple[int, float]]]:
    """Return what a reader answers in every space."""
    rows = questions()
    found = [*reader.search(Space.DENSE, rows, 50, where=where, exact=True)]
    found += reader.search(Space.MULTI, [rows[:2], rows[1:]], 50, where=where, exact=True)
    found += reader.search(Space.LEXICAL, list(WORDS[:3]), 50, where=where)
    return [pairs(ranked) for ranked in found]


def ids_of(reader: Reader, *names: str) -> list[int]:
    return [row.id for row in reader.find([f"id:{name}" for name in names], by="identity")]


def assert_refused(error: type[Exception], action: Callable[[], object]) -> None:
    """Check that an action raises that error."""
    try:
        action()
    except error:
        return
    raise AssertionError(f"nothing raised {error.__name__}")


# Laws


def a_reader_never_changes(open_store: OpenStore) -> None:
    store = open_store()
    add(store, prepared("a"), prepared("b"), prepared("c"))
    reader = store.reader()
    before = reader.commit, contents(reader), answers(reader), list(reader.failures())
    with store.writer(timeout=10) as writer:
        writer.add(prepared("a", seed=1, replaces=ids_of(reader, "a")[0]))
        writer.delete(ids_of(reader, "b"))
        writer.fail(Failure("id:x", "x", "", "it is broken"))
        writer.commit("add", recipe_hash="r")
    add(store, prepared("d"))
    assert (reader.commit, contents(reader), answers(reader), list(reader.failures())) == before
    assert {row.source for row in store.reader().documents()} == {"a", "c", "d"}
    store.close()


def a_commit_is_whole_or_not_there(open_store: OpenStore) -> None:
    store = open_store()
    add(store, prepared("a"), prepared("b"))
    [first, second] = ids_of(store.reader(), "a", "b")
    add(store, prepared("a", seed=1, replaces=first))
    before = store.reader().commit, contents(store.reader())

    def replace_twice() -> None:
        with store.writer(timeout=10) as writer:
            writer.add(prepared("c"))
            writer.delete([second])
            writer.add(prepared("a", seed=2, replaces=first))  # that version is not live any more
            writer.commit("add", recipe_hash="r")

    assert_refused(StorageError, replace_twice)
    assert (store.reader().commit, contents(store.reader())) == before
    store.close()


def what_was_not_committed_is_never_seen(open_store: OpenStore) -> None:
    store = open_store()
    add(store, prepared("a"))
    before = store.reader().commit, contents(store.reader())

    def killed(writer: Writer) -> None:
        writer.add(prepared("b"))
        writer.delete(ids_of(writer.reader(), "a"))
        raise KeyboardInterrupt

    try:
        with store.writer(timeout=10) as writer:
            killed(writer)
    except KeyboardInterrupt:
        pass
    assert (store.reader().commit, contents(store.reader())) == before
    with store.writer(timeout=10) as writer:
        assert writer.commit("add") == before[0]  # and another writer has nothing of it
    store.close()


def what_was_committed_is_there_when_it_is_opened_again(open_store: OpenStore) -> None:
    store = open_store()
    add(store, prepared("a"), prepared("b"))
    before = store.reader().commit, contents(store.reader()), answers(store.reader())
    store.close()
    again = open_store()
    assert (again.reader().commit, contents(again.reader()), answers(again.reader())) == before
    again.close()


def deletion_leaves_the_scores_of_others(open_store: OpenStore) -> None:
    store = open_store()
    add(store, *(prepared(name) for name in "abcdef"))
    reader = store.reader()
    gone = {unit.key for id in ids_of(reader, "b", "e") for unit in reader.units_of(id)}
    rows = questions()
    before = [pairs(ranked) for ranked in reader.search(Space.DENSE, rows, 50, exact=True)]
    before += [pairs(ranked) for ranked in reader.search(Space.MULTI, [rows], 50, exact=True)]
    with store.writer(timeout=10) as writer:
        writer.delete(ids_of(writer.reader(), "b", "e"))
        writer.commit("delete")
    reader = store.reader()
    after = [pairs(ranked) for ranked in reader.search(Space.DENSE, rows, 50, exact=True)]
    after += [pairs(ranked) for ranked in reader.search(Space.MULTI, [rows], 50, exact=True)]
    assert after == [[pair for pair in found if pair[0] not in gone] for found in before]
    store.close()


def replacing_keeps_one_live_version(open_store: OpenStore) -> None:
    store = open_store()
    add(store, prepared("a"), prepared("b"))
    for seed in range(1, 4):
        [id] = ids_of(store.reader(), "a")
        add(store, prepared("a", seed=seed, replaces=id))
    reader = store.reader()
    [row] = reader.find(["a"], by="reference")
    assert row.content_hash == "a:3"
    assert reader.document(row).text == prepared("a", seed=3).document.text
    assert reader.find(["a:0", "a:3"], by="content")[0].id == row.id
    assert (reader.commit.documents, reader.commit.units) == (2, 6)
    store.close()


FILTERS: tuple[Filter, ...] = (
    Comparison("==", "year", 2001),
    Comparison(">=", "meta.year", 2002),
    Comparison("in", "lang", ["en", "de"]),
    Comparison("exists", "colour", True),
    Logic("not", (Comparison("==", "colour", "red"),)),
    Logic("or", (Comparison("==", "source", "a"), Comparison("<", "year", 2002))),
    Logic("and", ()),
)


def a_filter_answers_from_the_documents_that_it_lists(open_store: OpenStore) -> None:
    store = open_store()
    colours: Sequence[dict[str, Any]] = ({"colour": "red"}, {"colour": "blue"}, {})
    add(store, *(prepared(name, year=2000 + at, **colours[at % 3]) for at, name in enumerate("abcdef")))
    reader = store.reader()
    owner = {unit.key: unit.document for row in reader.documents() for unit in reader.units_of(row.id)}
    for where in FILTERS:
        ids = {row.id for row in reader.documents(where)}
        expected = [[pair for pair in found if owner[pair[0]] in ids] for found in answers(reader)]
        assert answers(reader, where)[:6] == expected[:6], where
        for found, ranked in zip(answers(reader, where), expected, strict=True):
            assert {key for key, _ in found} == {key for key, _ in ranked}, where
    store.close()


def dense_scores_are_cosines(open_store: OpenStore) -> None:
    store, documents, rows = open_store(), [prepared(name) for name in "abcd"], questions()
    add(store, *documents)
    reader = store.reader()
    keys = keys_of(reader)
    dense = np.concatenate([document.dense for document in documents if document.dense is not None])
    for query, ranked in zip(rows, reader.search(Space.DENSE, rows, 99, exact=True), strict=True):
        assert_ranked(ranked, dict(zip(keys, (dense @ query).tolist(), strict=True)))
    [(key, row)] = reader.rows(Space.DENSE, [keys[2]]).items()
    assert key == keys[2]
    assert np.abs(row - dense[2]).max() < CLOSE
    store.close()


def multi_scores_are_sums_of_the_best_matches(open_store: OpenStore) -> None:
    store, documents, rows = open_store(), [prepared(name) for name in "abcd"], questions()
    add(store, *documents)
    reader = store.reader()
    tokens = [row for document in documents for row in _tokens(document)]
    sums = [sum(max(float(query @ token) for token in row) for query in rows) for row in tokens]
    expected = dict(zip(keys_of(reader), sums, strict=True))
    [ranked] = reader.search(Space.MULTI, [rows], 99, exact=True)
    assert_ranked(ranked, expected)
    assert_ranked(reader.scores(Space.MULTI, rows, ranked[0]), expected)
    winners, shares = reader.matches(Space.MULTI, rows, min(expected))
    assert winners.tolist() == [int((tokens[0] @ query).argmax()) for query in rows]
    assert abs(float(shares.sum()) - sums[0]) < CLOSE
    store.close()


def keys_of(reader: Reader) -> list[int]:
    """Return the keys of all units, in the order of their documents; keys ascend in it."""
    keys = [unit.key for row in reader.documents() for unit in reader.units_of(row.id)]
    assert keys == sorted(keys)
    return keys


def _tokens(document: Prepared) -> list[Floats]:
    assert document.multi is not None
    return list(np.split(document.multi.values, np.cumsum(document.multi.lengths)[:-1]))


def assert_ranked(ranked: Ranked, expected: dict[int, float]) -> None:
    """Check that all are found, with their scores, best first."""
    keys, scores = ranked
    assert set(keys.tolist()) == set(expected)
    assert np.abs(scores - np.array([expected[key] for key in keys.tolist()])).max() < CLOSE
    assert (np.diff(scores) <= 0).all()


def ties_break_by_key(open_store: OpenStore) -> None:
    store, first = open_store(), prepared("a", chunks=1)
    same = [replace(prepared(name, chunks=1), dense=first.dense, multi=first.multi) for name in "bcdefg"]
    add(store, first, *same[:3])
    add(store, *same[3:])
    reader, rows = store.reader(), questions(1)
    every = keys_of(reader)
    for k in (2, 5, 7):
        assert reader.search(Space.DENSE, rows, k, exact=True)[0][0].tolist() == every[:k]
        assert reader.search(Space.MULTI, [rows], k, exact=True)[0][0].tolist() == every[:k]
    store.close()


def a_scan_gives_every_live_row_once(open_store: OpenStore) -> None:
    store = open_store()
    for name in "abcde":
        add(store, prepared(name))
    with store.writer(timeout=10) as writer:
        writer.delete(ids_of(writer.reader(), "c"))
        writer.add(prepared("a", seed=1, replaces=ids_of(writer.reader(), "a")[0]))
        writer.commit("add", recipe_hash="r")
    reader = store.reader()
    expected = sorted(keys_of(reader))
    for space in (Space.DENSE, Space.MULTI):
        assert sorted(key for keys, _ in reader.scan(space) for key in keys.tolist()) == expected
    store.close()


def failures_clear_with_the_commit_that_mends_them(open_store: OpenStore) -> None:
    store = open_store()
    broken = [Failure(f"id:{name}", name, "", "it is broken") for name in "abc"]
    with store.writer(timeout=10) as writer:
        for failure in broken:
            writer.fail(failure)
        assert list(writer.reader().failures()) == []
        number = writer.commit("add").number
        assert list(writer.reader().failures()) == broken
    assert list(store.reader().failures()) == broken
    assert store.reader().commit.number == number
    with store.writer(timeout=10) as writer:
        assert list(writer.reader().failures()) == broken
        writer.add(prepared("a"))
        writer.forgive(["id:b"])
        assert list(store.reader().failures()) == broken
        writer.commit("add", recipe_hash="r")
    assert list(store.reader().failures()) == broken[2:]
    store.close()


def one_writer_at_a_time(open_store: OpenStore) -> None:
    store, entered, done = open_store(), threading.Event(), threading.Event()

    def hold() -> None:
        with store.writer(timeout=10) as writer:
            entered.set()
            done.wait(10)
            writer.add(prepared("a"))
            writer.commit("add", recipe_hash="r")

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)

    def enter() -> None:
        with store.writer(timeout=0):
            pass

    assert_refused(IndexLocked, enter)
    done.set()
    with store.writer(timeout=10) as writer:  # it waits for its turn, and builds on what the first committed
        assert writer.reader().commit.documents == 1
        writer.add(prepared("b"))
        writer.commit("add", recipe_hash="r")
    thread.join()
    assert store.reader().commit.documents == 2
    store.close()


def counts_are_those_of_the_commit(open_store: OpenStore) -> None:
    store = open_store()
    for at, name in enumerate("abcd"):
        add(store, prepared(name, chunks=at + 1))
        reader = store.reader()
        units = [unit for row in reader.documents() for unit in reader.units_of(row.id)]
        assert (reader.commit.documents, reader.commit.units) == (len(list(reader.documents())), len(units))
        assert sum(row.units for row in reader.documents()) == len(units)
    store.close()


def settings_change_with_a_commit(open_store: OpenStore) -> None:
    store = open_store()
    assert store.setting("colour") is None
    with store.writer(timeout=10) as writer:
        writer.add(prepared("a"))
        writer.commit("add", recipe_hash="r", settings={"colour": ["red", 1]})
    assert store.setting("colour") == ["red", 1]
    assert store.setting("recipe") == RECIPE
    store.close()


LAWS: tuple[Law, ...] = (
    a_reader_never_changes,
    a_commit_is_whole_or_not_there,
    what_was_not_committed_is_never_seen,
    what_was_committed_is_there_when_it_is_opened_again,
    deletion_leaves_the_scores_of_others,
    replacing_keeps_one_live_version,
    a_filter_answers_from_the_documents_that_it_lists,
    dense_scores_are_cosines,
    multi_scores_are_sums_of_the_best_matches,
    ties_break_by_key,
    a_scan_gives_every_live_row_once,
    failures_clear_with_the_commit_that_mends_them,
    one_writer_at_a_time,
    counts_are_those_of_the_commit,
    settings_change_with_a_commit,
)

"""Changing one's mind: the changed index answers as one that was built so from the start, and redoes only what it must."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Document, Index
from ragkit.core.errors import Damaged, FingerprintMismatch, IndexLocked, RecipeMismatch, StorageError
from ragkit.core.types import Span
from ragkit.testing import HashEncoder
from tests.care.damage import Answers, answers, flip, only
from tests.conftest import NOTES, record, records


class Counting(HashEncoder):
    """The test encoder, with a count of the documents it embedded beyond the probes."""

    embedded = 0

    def encode_document(self, documents: Sequence[Any], **options: Any) -> Any:
        self.embedded += sum(1 for text in documents if text in str(NOTES.values()) or "Whale" in text)
        return super().encode_document(documents, **options)


def built(path: Path, **settings: Any) -> Answers:
    """What an index with these settings from the start answers."""
    with Index.open(path, **{"model": "hash:64", "chunk_tokens": 16, **settings}) as index:
        index.add(records())
        return answers(index)


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({"dims": 8}, "rows"),
        ({"dims": 64}, "settings"),
        ({"recall": 0.9}, "rows"),
        ({"pdf_engine": "pypdfium2"}, "settings"),
        ({"chunker": "whole"}, "embedded"),
        ({"chunk_tokens": 32, "chunk_overlap": 4}, "embedded"),
        ({"model": "hash:32"}, "embedded"),
        ({"model": "hash:64+seed3"}, "embedded"),  # another model of the same width
        ({"model": "hash:128", "dims": 16}, "embedded"),
        ({"late_chunking": True}, "embedded"),
        ({"contextual_headers": True}, "embedded"),
        ({"max_tokens": 256}, "embedded"),
        ({"model": "hash:64"}, "nothing"),
        ({}, "nothing"),
    ],
)
def test_the_changed_index_answers_as_one_built_so(tmp_path: Path, changes: dict[str, Any], done: str) -> None:
    expected = built(tmp_path / "built", **changes)
    with Index.open(tmp_path / "library", model="hash:64", chunk_tokens=16) as index:
        index.add(records())
        assert index.rebuild(**changes).done == done
        found = answers(index)
        assert index.verify() == []
    assert {key: [hit[:3] for hit in hits] for key, hits in found.items()} == {
        key: [hit[:3] for hit in hits] for key, hits in expected.items()
    }
    for key, hits in found.items():  # rows that were cut were rounded to float16 twice
        np.testing.assert_allclose([hit[3] for hit in hits], [hit[3] for hit in expected[key]], atol=2e-3)
    with Index.open(tmp_path / "library", **changes) as index:  # these are its settings now
        assert answers(index) == found
        assert len(index.add(records()).unchanged) == 5
    assert not (tmp_path / "library" / "rebuild").exists()


def test_nothing_is_parsed_again_and_a_cut_embeds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text(NOTES["otter"])
    encoder = Counting(dims=64)
    with Index.open(tmp_path / "library", model=encoder) as index:
        index.add(path)
        path.unlink()
        before = encoder.embedded
        index.rebuild(dims=16)
        assert encoder.embedded == before
        index.rebuild(chunker="whole")
        assert encoder.embedded > before
        assert index.search("otters", 1)[0].text == NOTES["otter"]
        assert [row.source for row in index.documents()] == ["note.txt"]


def test_documents_keep_their_names_titles_metadata_and_pages(index: Index) -> None:
    before = {row.source: (row.title, dict(row.meta), row.identity, row.content_hash) for row in index.documents()}
    index.rebuild(model="hash:32")
    assert {row.source: (row.title, dict(row.meta), row.identity, row.content_hash) for row in index.documents()} == before


def test_keys_are_not_given_out_again(index: Index) -> None:
    seen = {hit.key for hit in index.search("fish", 100, mode="dense")}
    index.rebuild(model="hash:32")
    fresh = {hit.key for hit in index.search("fish", 100, mode="dense")}
    assert len(fresh) == len(seen)
    assert not seen & fresh
    index.add([{"id": "new", "text": "Something new."}])
    assert index.search("something new", 1, mode="dense")[0].key not in seen | fresh


def test_one_who_had_it_open_goes_on_with_the_new_model(index: Index) -> None:
    with Index.open(index.path) as reader:
        reader.search("fish")
        index.rebuild(model="hash:64+seed3")  # of the same width: a mistake would not show as an error
        expected = answers(index)
        assert answers(reader) == expected
        assert reader.recipe.encode.model == "hash:64+seed3"
        reader.add([record("bread", "Cake needs sugar.")])
        assert index.search("cake sugar", 1, mode="dense")[0].text == "Cake needs sugar."
        assert index.verify() == []


def test_searches_meanwhile_are_answered_by_one_model_or_the_other(index: Index) -> None:
    before = answers(index)
    with Index.open(index.path) as reader:
        found: list[Answers] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                found.append({(mode, "fish"): _told(reader, mode) for mode in ("dense", "lexical", "hybrid")})

        thread = threading.Thread(target=ask)
        thread.start()
        after = []
        for model in ("hash:64+seed3", "hash:32", "hash:64"):
            index.rebuild(model=model)
            after.append({(mode, "fish"): _told(index, mode) for mode in ("dense", "lexical", "hybrid")})
        stop.set()
        thread.join()
    allowed = [{key: hits for key, hits in before.items() if key[1] == "fish"}, *after]
    for one in found:
        for key, hits in one.items():
            assert hits in [each[key] for each in allowed], key


def _told(index: Index, mode: str) -> list[tuple[Any, ...]]:
    return [(hit.document_id, tuple(hit.span), hit.text, round(hit.score, 5)) for hit in index.search("fish", 50, mode=mode)]


def test_interrupted_it_changes_nothing_and_goes_on_where_it_was(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(index)
    monkeypatch.setattr("ragkit.ingest.write.COMMIT_UNITS", 2)
    monkeypatch.setattr("ragkit.ingest.add.POOL", 2)
    steps = 0

    def stop(step: Any) -> None:
        nonlocal steps
        steps += step.stage == "write"
        if steps == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.rebuild(model="hash:32", progress=stop)
    assert answers(index) == before
    index.delete("otter")
    index.add([record("bread", "Cake needs sugar."), {"id": "whale", "text": "Whales sing."}])
    encoder = Counting(dims=32)
    index.rebuild(model=encoder)
    assert encoder.embedded < index.stats().units, "nothing of the first try was kept"
    assert {row.source for row in index.documents()} == {*NOTES, "whale"} - {"otter"}
    assert index.search("cake sugar", 1, mode="dense")[0].text == "Cake needs sugar."
    assert index.verify() == []


def test_what_was_begun_for_another_recipe_is_thrown_away(index: Index) -> None:
    def stop(step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.rebuild(model="hash:32", progress=stop)
    index.rebuild(model="hash:16")
    assert index.recipe.encode.model == "hash:16"
    assert index.verify() == []


def test_a_document_that_the_new_recipe_cannot_make_stops_it(tmp_path: Path) -> None:
    with Index.open(tmp_path / "library", model="hash:64") as index:
        index.add([{"id": "long", "text": " ".join(f"word{n}" for n in range(600))}, {"id": "short", "text": "Few words."}])
        before = index.search("word5", 50, mode="dense")
        with pytest.raises(StorageError, match=r"was not changed: 1 of 2 documents.*long.*512"):
            index.rebuild(chunker="whole")
        assert [hit.key for hit in index.search("word5", 50, mode="dense")] == [hit.key for hit in before]
        index.rebuild(chunker="whole", overflow="window")
        assert index.stats().units == 2


def test_adding_meanwhile_waits_and_says_why(index: Index) -> None:
    refused = []

    def add(step: Any) -> None:
        with Index.open(index.path) as other, pytest.raises(IndexLocked, match="being written to"):
            other.add([{"id": "x", "text": "y"}], lock_timeout=0)
        refused.append(step)

    index.rebuild(chunker="whole", progress=add)
    assert refused


def test_a_chunker_of_ones_own(index: Index) -> None:
    def halves(document: Document) -> list[Span]:
        middle = document.text.index(" ", len(document.text) // 2)
        return [Span(0, middle), Span(middle + 1, len(document.text))]

    index.rebuild(chunker=halves)
    assert index.stats().units == 10
    assert len(index.add(records()).unchanged) == 5


def test_rows_that_are_damaged_are_not_left_behind_at_their_old_width(index: Index) -> None:
    index.close()
    flip(only((index.path / "segments").glob("*/chunk.dense.npy")), -1)
    with Index.open(index.path) as damaged, pytest.raises(Damaged, match="ragkit repair"):
        damaged.rebuild(dims=8)


def test_settings_that_make_no_sense_are_refused_by_name(index: Index) -> None:
    with pytest.raises(TypeError, match="colour"):
        index.rebuild(colour="red")
    with pytest.raises(ValueError, match="dims must be between"):
        index.rebuild(dims=99)
    with pytest.raises(ValueError, match="chunker must be one of"):
        index.rebuild(chunker="sausages")


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        ({"dims": 8}, "ragkit migrate PATH --dims 8"),
        ({"model": "hash:32"}, "ragkit migrate PATH --model hash:32"),
        ({"chunk_tokens": 32, "late_chunking": True}, "ragkit migrate PATH --late-chunking --chunk-tokens 32"),
    ],
)
def test_what_disagrees_is_refused_with_the_command_that_mends(index: Index, settings: dict[str, Any], way_out: str) -> None:
    with pytest.raises(RecipeMismatch, match=way_out.replace("PATH", str(index.path))):
        Index.open(index.path, **settings)


def test_another_model_under_the_same_name_is_embedded_again_when_asked_for(index: Index) -> None:
    class Changed(HashEncoder):
        """Calls itself the same, embeds differently: a library that was updated."""

        def encode_document(self, documents: Any, **options: Any) -> Any:
            return super().encode_document([f"{text[::-1]} reversed" for text in documents], **options)

    with Index.open(index.path, model=Changed(dims=64)) as other:
        with pytest.raises(FingerprintMismatch, match=rf"ragkit migrate {index.path} --model hash:64"):
            other.search("fish")
        assert other.rebuild(model=Changed(dims=64)).done == "embedded"
        assert other.search("fish", mode="dense")

"""Files and folders as people have them: named oddly, moved, repeated, broken. Nothing is lost, and nothing twice."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index
from ragkit.core.errors import Damaged, EncodeError, RecipeMismatch
from ragkit.encode.late import late_chunk
from ragkit.testing import HashEncoder
from tests.index.test_index import MODES


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "library", model=HashEncoder(dims=32)) as index:
        yield index


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def sources(outcomes: Any) -> list[str]:
    return sorted(one.source for one in outcomes)


def test_filters_stay_exact_while_documents_are_replaced_between_them(index: Index) -> None:
    index.add([{"id": f"d{n}", "text": f"otters {n}", "meta": {"n": n, "parity": n % 2}} for n in range(20)])
    for round, field in enumerate(("n", "parity", "n", "other")):
        index.search("otters", filters={field: 0})
        index.add([{"id": "d0", "text": f"otters again {round}", "meta": {"n": 0, "parity": 0}}])
        for mode in MODES:
            hits = index.search("otters", 50, mode=mode, filters={"n": {"$lte": 100}, "parity": 1})
            assert sorted(hit.meta["n"] for hit in hits) == list(range(1, 20, 2))


def test_two_files_of_one_name_under_two_roots_stay_two(index: Index, tmp_path: Path) -> None:
    first, second = (write(tmp_path / name / "report.txt", f"Words of {name}.") for name in ("A", "B"))
    index.add(first.parent)
    index.add(second.parent)
    assert [row.source for row in index.documents()] == ["report.txt", "report.txt"]
    with pytest.raises(ValueError, match="several documents"):
        index.delete("report.txt")
    row = index.find(str(first))[0]
    assert [hit.text for hit in index.search_within(row, "words")] == ["Words of A."]
    assert index.delete(first) == 1
    assert index.document("report.txt").text == "Words of B."


def test_names_stay_whichever_folder_a_file_is_added_through(index: Index, tmp_path: Path) -> None:
    write(tmp_path / "home" / "papers" / "x.txt", "One.")
    write(tmp_path / "home" / "todo.txt", "Two.")
    index.add(tmp_path / "home" / "todo.txt")
    index.add(tmp_path / "home" / "papers")
    assert sources(index.documents()) == ["todo.txt", "x.txt"]
    assert len(index.add(tmp_path / "home").unchanged) == 2
    write(tmp_path / "home" / "papers" / "x.txt", "Changed.")
    assert sources(index.add(tmp_path / "home").updated) == ["x.txt"]
    assert sources(index.documents()) == ["todo.txt", "x.txt"]


def test_an_index_inside_the_folder_does_not_swallow_itself(tmp_path: Path) -> None:
    write(tmp_path / "note.txt", "A note.")
    with Index.open(tmp_path / "library", model=HashEncoder(dims=32)) as index:
        assert sources(index.add(tmp_path).added) == ["note.txt"]
        assert sources(index.add(tmp_path).unchanged) == ["note.txt"]


def test_one_file_named_in_stray_bytes_fails_alone(index: Index, tmp_path: Path) -> None:
    write(tmp_path / "files" / "good.txt", "Good.")
    (tmp_path / "files" / os.fsdecode(b"bad\xff.txt")).write_text("x")
    report = index.add(tmp_path / "files")
    assert sources(report.added) == ["good.txt"]
    assert "not valid UTF-8" in report.failed[0].reason
    assert len(index.add([{"id": "sur\ud800", "text": "x"}]).failed) == 1


def test_what_is_no_regular_file_is_refused_not_waited_for(index: Index, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a regular file" in index.add(tmp_path / "pipe.txt").failed[0].reason


def test_what_no_loader_takes_is_counted_as_skipped(index: Index, tmp_path: Path) -> None:
    write(tmp_path / "files" / "a.txt", "Words.")
    write(tmp_path / "files" / "b.unheardof", "Bytes.")
    report = index.add(tmp_path / "files")
    assert [Path(one.source).name for one in report.skipped] == ["b.unheardof"]
    assert "skipped 1" in str(report)


def test_every_line_of_a_jsonl_ends_in_the_report(index: Index, tmp_path: Path) -> None:
    lines = [
        '{"id":"a","text":"one"}',
        '{"id":"a","text":"two"}',
        "not json",
        '{"text":"anonymous"}',
        '{"id":"line-4","text":"real"}',
    ]
    path = write(tmp_path / "many.jsonl", "\n".join(lines))
    report = index.add(path)
    assert (len(report.added), len(report.updated), len(report.failed)) == (3, 1, 1)
    assert index.document("many.jsonl#a").text == "two"
    assert len(index.failures()) == 1
    write(path, "\n".join(line for line in lines if line != "not json"))
    index.add(path)
    assert index.failures() == []
    assert index.delete("many.jsonl") == 3
    assert list(index.documents()) == []


def test_a_file_that_fails_and_is_mended_is_no_failure_any_more(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    write(path, "<p>Words.</p>")
    index.add(path)
    write(tmp_path / "empty.pdf", "")
    index.add(tmp_path / "empty.pdf")
    assert sources(index.failures()) == ["empty.pdf"]
    assert index.delete("empty.pdf") == 0
    assert index.failures() == []


@pytest.mark.parametrize("name", ["C#notes.txt", "what?.txt", "100%.txt", "a b.txt", "größe.txt", "'quoted'.txt"])
def test_odd_names_of_files_and_of_indexes_work(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "files" / name, "Words about otters.")
    for _ in range(2):
        with Index.open(tmp_path / f"index of {name}", model=HashEncoder(dims=32)) as index:
            index.add(path)
            hit = index.search("otters", 1)[0]
            assert hit.source == name
            assert next(index.documents()).path == str(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["files", f"index of {name}"])


class Picky(HashEncoder):
    """Refuses texts that say BAD."""

    error: Exception = EncodeError("it says BAD")

    def encode_document(self, documents: Any, **options: Any) -> Any:
        if any("BAD" in text for text in documents):
            raise self.error
        return super().encode_document(documents, **options)

    def token_ids(self, text: str, **options: Any) -> Any:
        if "BAD" in text:
            raise self.error
        return super().token_ids(text, **options)


def test_vectors_of_another_width_than_the_card_s_are_refused_when_they_are_added(tmp_path: Path) -> None:
    class Narrow(HashEncoder):
        def encode_document(self, documents: Any, **options: Any) -> Any:
            return HashEncoder(dims=32).encode_document(documents, **options)

    with Index.open(tmp_path / "library", model=Narrow(dims=48)) as index:
        [failed] = index.add([{"id": "a", "text": "words"}]).failed
    assert failed.reason == "the encoder returned vectors of 32 dims, and its card says 48"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [EncodeError("it says BAD"), RuntimeError("device lost"), MemoryError()], ids=repr)
def test_a_text_that_cannot_be_encoded_fails_alone(tmp_path: Path, error: Exception, late: bool) -> None:
    model = Picky(dims=32)
    model.error = error
    with Index.open(tmp_path / "library", model=model, late_chunking=late) as index:
        report = index.add([{"id": "a", "text": "BAD"}, {"id": "b", "text": "fine"}, {"id": "a", "text": "good"}])
        assert sources(report.failed) == ["a"]
        told = str(error) if isinstance(error, EncodeError) else f"the encoder failed: {type(error).__name__}: {error}"
        assert report.failed[0].reason == told
        assert sources(report.added) == ["a", "b"]
        assert index.document("a").text == "good"


def test_a_chunker_that_raises_fails_its_document_only(tmp_path: Path) -> None:
    def chunker(document: Any) -> list[tuple[int, int]]:
        return [(0, {"good": 4}[document.id])]

    with Index.open(tmp_path / "library", model=HashEncoder(dims=32), chunker=chunker) as index:
        report = index.add([{"id": "good", "text": "Good words."}, {"id": "bad", "text": "Bad words."}])
    assert sources(report.added) == ["good"]
    assert "KeyError" in report.failed[0].reason


def test_an_iterator_that_breaks_off_keeps_what_it_gave(index: Index) -> None:
    def records() -> Iterator[dict[str, str]]:
        yield {"id": "given", "text": "Words."}
        raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError, match="went away"):
        index.add(records())
    assert sources(index.documents()) == ["given"]


def test_several_paths_are_one_addition(index: Index, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"f{n}.txt", f"Words {n}.") for n in range(3)]
    report = index.add([*paths, paths[0]])
    assert sources(report.added) == ["f0.txt", "f1.txt", "f2.txt"]
    with pytest.raises(FileNotFoundError):
        index.add([paths[0], tmp_path / "nope.txt"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunker": "sentense"}, "chunker must be one of"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"chunk_tokens": 4}, "chunk_tokens"),
        ({"recall": 0.0}, "recall"),
        ({"overflow": "foo"}, "overflow"),
        ({"late_chunking": "banana"}, "late_chunking"),
        ({"chunk_overlap": 200}, r"^chunk_overlap must be at most half of chunk_tokens, got 200 of 128$"),
        ({"contextual_headers": True, "late_chunking": True}, "choose one"),
        ({"contextual_headers": True, "chunker": "whole", "overflow": "window"}, "contextual_headers"),
    ],
)
def test_a_recipe_that_makes_no_sense_leaves_nothing_behind(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Index.open(tmp_path / "library", model=HashEncoder(), **settings)
    assert "pydantic" not in str(error.value)
    assert not (tmp_path / "library" / "catalog.db").exists()


def test_late_chunking_keeps_each_chunks_vector_from_its_document(tmp_path: Path) -> None:
    encoder = HashEncoder(dims=32)
    text = "Otters sleep on water. " * 12 + "They hold hands. Bridges are of granite."
    with Index.open(tmp_path / "late", model=encoder, chunk_tokens=24, late_chunking=True) as index:
        index.add([{"id": "a", "text": text}, {"id": "b", "text": "Another document. It is short."}, {"id": "c", "text": ""}])
        hits = sorted((hit for hit in index.search("x", 99, mode="dense") if hit.document_id == "a"), key=lambda hit: hit.span)
        known = index._store.reader().known_rows([hit.key for hit in hits])
        rows = np.stack([known[hit.key] for hit in hits])
        expected = late_chunk(encoder, text, [hit.span for hit in hits], window=index.recipe.encode.max_tokens)
        np.testing.assert_allclose(rows, expected, atol=1e-3)  # rows are kept in float16
        naive = encoder.encode_document([hit.text for hit in hits]).dense
        assert naive is not None
        assert np.abs(rows - naive).max() > 1e-2
        assert index.stats().recipe["encode"]["late_chunking"] is True
        assert len(index.add([{"id": "a", "text": text}]).unchanged) == 1
    with pytest.raises(RecipeMismatch, match="late_chunking"):
        Index.open(tmp_path / "late", late_chunking=False)
    with pytest.raises(ValueError, match="whole"):
        Index.open(tmp_path / "whole", model=encoder, chunker="whole", late_chunking=True)


def test_contextual_headers_are_embedded_and_neither_cited_nor_searched_by_words(tmp_path: Path) -> None:
    encoder = HashEncoder(dims=32, max_tokens=64)
    page = "# Animals\n\n## Otters\n\nThey hold hands.\n\n## Beavers\n\nThey build dams."
    (tmp_path / "rivers.md").write_text(page, encoding="utf-8")
    settings: dict[str, Any] = {"chunker": "structure", "contextual_headers": True}
    with Index.open(tmp_path / "library", model=encoder, **settings) as index:
        assert index.recipe.chunk.tokens == 56  # an eighth of what the model takes is left to headers
        index.add(tmp_path / "rivers.md")
        document = index.document("rivers.md")
        [hit] = [hit for hit in index.search("build dams", 9, mode="lexical") if "dams" in hit.text]
        assert hit.text == hit.span.of(document.text)
        assert "Animals" not in hit.text
        assert hit.headings == ("Animals", "Beavers")
        [stored] = index._store.reader().known_rows([hit.key]).values()
        expected = encoder.encode_document([f"Animals\n{hit.text}"]).dense
        assert expected is not None
        np.testing.assert_allclose(stored, expected[0], atol=1e-3)
        assert not [hit for hit in index.search("Animals", 9, mode="lexical") if "dams" in hit.text]
    with pytest.raises(RecipeMismatch, match="contextual_headers"):
        Index.open(tmp_path / "library", contextual_headers=False)


def test_grouping_with_a_least_score_still_gives_k_documents(index: Index) -> None:
    index.add([{"id": "long", "text": " ".join(f"Fish number {n} is a fish of the sea. " * 8 for n in range(120))}])
    index.add([{"id": f"s{n}", "text": f"Fish {n}."} for n in range(6)])
    for minimum in (None, -1.0):
        hits = index.search("fish of the sea", 5, mode="dense", group_by="document", min_score=minimum)
        assert len({hit.document_id for hit in hits}) == 5


def test_a_damaged_segment_is_mended_as_verify_says(index: Index) -> None:
    index.add([{"id": "a", "text": "Words about otters."}, {"id": "b", "text": "Words about bridges."}])
    index.close()
    rows = next((index.path / "segments").glob("*/chunk.dense.npy"))
    body = bytearray(rows.read_bytes())
    body[-1] ^= 1
    rows.write_bytes(body)
    with Index.open(index.path, model=HashEncoder(dims=32)) as damaged:
        finding = next(one for one in damaged.verify() if "chunk.dense.npy" in one.problem)
        assert finding.remedy == f"ragkit repair {index.path}"
        assert damaged.search("otters", mode="lexical")
        with pytest.raises(Damaged):
            damaged.search("otters", mode="dense")
        damaged.add([{"id": "c", "text": "More words."}])
        damaged.repair()
        assert damaged.search("otters", mode="dense")[0].document_id == "a"
        assert damaged.verify() == []


def test_compacting_changes_no_answer(index: Index) -> None:
    for n in range(5):
        index.add([{"id": f"d{n}", "text": f"Note {n} about otters."}])
    index.delete("d3")
    before = [(hit.key, hit.score) for hit in index.search("otters", 50, mode="dense")]
    index.compact()
    assert [(hit.key, hit.score) for hit in index.search("otters", 50, mode="dense")] == before
    assert index.stats().segments == 1
    assert index.stats().dense[0]["rows"] == 4
    assert index.verify() == []


def test_deleted_text_leaves_the_disk_once_nobody_reads_it(index: Index) -> None:
    index.add([{"id": "secret", "text": "The word is xylophone."}])
    index.delete("secret")
    index.add([{"id": "other", "text": "Nothing to see."}])
    with index._catalog.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM texts").scalar_one() == 1
        assert connection.exec_driver_sql("SELECT count(*) FROM commits").scalar_one() == 1


def test_a_reader_without_write_rights_reads(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    with Index.open(tmp_path / "library", model=HashEncoder(dims=32)) as index:
        index.add([{"id": "a", "text": "Words."}])
    (tmp_path / "library").chmod(0o500)
    with Index.open(tmp_path / "library", model=HashEncoder(dims=32)) as reader:
        assert reader.search("words")


def test_similar_of_what_is_not_there_is_told_plainly(index: Index) -> None:
    index.add([{"id": "a", "text": "Words."}])
    with pytest.raises(ValueError, match="no unit 99999"):
        index.similar(99999)
    key = index.search("words", 1)[0].key
    index.delete("a")
    with pytest.raises(ValueError, match="no unit"):
        index.similar(key)
    with pytest.raises(ValueError, match="no unit"):
        index.unit(key)


@pytest.mark.parametrize(
    "options", [{"rrf": -1.0}, {"weights": {"chunk.dense": float("nan")}}, {"weights": {"chunk.dense": 0, "chunk.lexical": 0}}]
)
def test_numbers_that_make_no_sense_are_refused(index: Index, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).rstrip("s")):
        index.search("x", **options)


def test_progress_on_a_file_of_records_has_no_false_total(index: Index, tmp_path: Path) -> None:
    path = write(tmp_path / "many.jsonl", "\n".join(json.dumps({"id": str(n), "text": "Words."}) for n in range(20)))
    steps: list[Any] = []
    index.add(path, progress=steps.append)
    assert all(step.total is None or step.done <= step.total for step in steps)


def zipped(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_files_in_an_archive_are_documents_that_change_by_themselves(index: Index, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"one.txt": "Otters.", "sub/two.md": "# Ducks", "x.bin": "1", "bad.json": "{"})
    report = index.add(path)
    assert sources(report.added) == ["a.zip#one.txt", "a.zip#sub/two.md"]
    assert [one.reason for one in report.skipped] == ["x.bin: no loader takes this kind of file"]
    assert [one.reason.split(":")[0] for one in report.failed] == ["bad.json"]
    assert str(index.search("ducks", 1, mode="lexical")[0].citation) == "a.zip#sub/two.md"
    zipped(path, {"one.txt": "Otters, changed.", "sub/two.md": "# Ducks"})
    report = index.add(path)
    assert (sources(report.updated), sources(report.unchanged)) == (["a.zip#one.txt"], ["a.zip#sub/two.md"])
    assert index.failures() == []
    assert index.delete("a.zip#one.txt") == 1
    assert index.delete("a.zip") == 1


def test_a_message_is_known_by_its_file_and_its_attachments_within_it(index: Index, tmp_path: Path) -> None:
    message = EmailMessage()
    message["Subject"] = "Otters"
    message.set_content("See the note.")
    message.add_attachment("Ducks.", filename="note.txt")
    (tmp_path / "m.eml").write_bytes(message.as_bytes())
    assert sources(index.add(tmp_path / "m.eml").added) == ["m.eml", "m.eml#note.txt"]
    assert sources(index.add(tmp_path / "m.eml").unchanged) == ["m.eml", "m.eml#note.txt"]
    assert index.search("otters", 1, filters={"mime": "message/rfc822"})[0].title == "Otters"
    assert index.delete("m.eml#note.txt") == 1
    assert index.document("m.eml").title == "Otters"

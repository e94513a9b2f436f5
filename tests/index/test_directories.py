"""Folders at scale: metadata from users, files that change, copies, what failed and is tried again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ragkit import Document, Index
from ragkit.apps.cli.main import app
from ragkit.core.types import Progress
from ragkit.encode.contract import Encoding
from ragkit.load.sandbox import parser as sandbox
from ragkit.testing import HashEncoder


class Counting(HashEncoder):
    """The test encoder, which remembers every text that it embedded."""

    def __init__(self) -> None:
        super().__init__(dims=32)
        self.embedded: list[str] = []

    def encode_document(self, texts: Sequence[str], **options: Any) -> Encoding:
        self.embedded += texts
        return super().encode_document(texts, **options)


@pytest.fixture
def encoder() -> Counting:
    return Counting()


@pytest.fixture
def index(tmp_path: Path, encoder: Counting) -> Iterator[Index]:
    with Index.open(tmp_path / "library", model=encoder) as index:
        encoder.embedded.clear()  # of the probes
        yield index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def sources(outcomes: Any) -> list[str]:
    return sorted(one.source for one in outcomes)


def ours(encoder: Counting) -> list[str]:
    return [text for text in encoder.embedded if "otter" in text]


# Copies


def test_a_copy_is_linked_and_embedded_once_in_one_call_and_in_the_next(index: Index, encoder: Counting, folder: Path) -> None:
    text = "The otter swims. " * 40
    write(folder / "a.txt", text)
    write(folder / "b.txt", text)
    report = index.add(folder)
    assert [one.duplicate_of for one in report.added] == ["", "a.txt"]
    assert "duplicates 1" in str(report)
    once = len(ours(encoder))
    write(folder / "c.txt", text)
    report = index.add(folder)
    assert [(one.source, one.duplicate_of) for one in report.added] == [("c.txt", "a.txt")]
    assert len(ours(encoder)) == once
    scores = {hit.document_id: hit.score for hit in index.search("otter", 9, mode="dense", group_by="document")}
    assert sorted(scores) == ["a.txt", "b.txt", "c.txt"]
    assert len(set(scores.values())) == 1


def test_a_copy_outlives_what_it_is_a_copy_of(index: Index, folder: Path) -> None:
    write(folder / "a.txt", "The otter swims.")
    index.add(folder)
    write(folder / "b.txt", "The otter swims.")
    index.add(folder)
    index.delete("a.txt")
    assert [hit.document_id for hit in index.search("otter", 9)] == ["b.txt"]
    assert index.verify() == []


def test_the_same_bytes_read_in_another_way_are_embedded(index: Index, encoder: Counting, folder: Path) -> None:
    write(folder / "a.txt", "<p>The otter</p><p>swims.</p>")
    write(folder / "b.html", "<p>The otter</p><p>swims.</p>")
    report = index.add(folder)
    assert [one.duplicate_of for one in report.added] == ["", ""]
    assert len(ours(encoder)) == 2


def test_copied_vectors_are_those_that_embedding_gives(index: Index, encoder: Counting, folder: Path, tmp_path: Path) -> None:
    texts = {"a.txt": "The otter swims. " * 90, "b.txt": "The otter sleeps. " * 90}
    for name, text in texts.items():
        write(folder / name, text)
        write(folder / f"copy of {name}", text)
    index.add(folder / "a.txt")
    index.add(folder)
    alone: dict[str, np.ndarray[Any, Any]] = {}
    for name, text in texts.items():
        with Index.open(tmp_path / f"apart {name}", model=HashEncoder(dims=32)) as apart:
            apart.add([Document(text=text, id=name)])
            alone[name] = vectors(apart)[name]
    for name, rows in vectors(index).items():
        np.testing.assert_array_equal(rows, alone[name.removeprefix("copy of ")])


def vectors(index: Index) -> Mapping[str, Any]:
    ids = {row.id: row.source for row in index.documents()}
    rows = index._store.reader().rows_of(np.array(sorted(ids), dtype=np.int64))
    return {ids[document]: found for document, found in rows.items()}


# What the user says of files


def test_a_sidecar_describes_a_file_and_its_change_is_an_update_without_embedding(
    index: Index, encoder: Counting, folder: Path
) -> None:
    write(folder / "a.txt", "The otter swims.")
    write(folder / "b.txt", "The otter sleeps.")
    write(folder / "a.txt.meta.json", '{"project": "lake", "year": 2024, "title": "Otters"}')
    write(folder / "b.txt.meta.yaml", "project: river\nseen: 2024-01-31\n")
    assert sources(index.add(folder).added) == ["a.txt", "b.txt"]
    assert [hit.title for hit in index.search("otter", filters={"project": "lake"})] == ["Otters"]
    assert [hit.document_id for hit in index.search("otter", filters={"seen": {"$gte": "2024-01-01"}})] == ["b.txt"]
    before = len(ours(encoder))
    assert sources(index.add(folder).unchanged) == ["a.txt", "b.txt"]
    write(folder / "a.txt.meta.json", '{"project": "sea"}')
    (folder / "b.txt.meta.yaml").unlink()
    assert sources(index.add(folder).updated) == ["a.txt", "b.txt"]
    assert len(ours(encoder)) == before + 1  # a.txt lost its title, and was embedded under its name again
    assert index.search("otter", filters={"project": ["river"]}) == []
    (row,) = index.find("b.txt")
    assert "project" not in row.meta


def test_a_broken_sidecar_fails_its_file_alone(index: Index, folder: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        write(folder / name, "The otter swims.")
    write(folder / "a.txt.meta.json", "{")
    write(folder / "b.txt.meta.yaml", "a: &x [1]\nb: *x\n")
    write(folder / "c.txt.meta.json", '["no object"]')
    report = index.add(folder)
    assert sources(report.added) == ["d.txt"]
    assert {one.source: one.reason.split(" ")[2] for one in report.failed} == {
        "a.txt": "a.txt.meta.json",
        "b.txt": "b.txt.meta.yaml",
        "c.txt": "c.txt.meta.json",
    }


def test_a_callback_describes_files_over_their_sidecars_and_the_rest_goes_on_where_it_fails(index: Index, folder: Path) -> None:
    write(folder / "2023" / "a.txt", "The otter swims.")
    write(folder / "2024" / "b.txt", "The otter sleeps.")
    write(folder / "2024" / "bad.txt", "The otter eats.")
    write(folder / "2024" / "b.txt.meta.json", '{"year": 1, "kind": "note"}')

    def metadata(path: Path) -> Mapping[str, Any]:
        if path.name == "bad.txt":
            raise KeyError("no entry")
        return {"year": int(path.parent.name)}

    report = index.add(folder, metadata=metadata)
    assert [one.reason for one in report.failed] == ["the metadata callback failed: KeyError: 'no entry'"]
    assert [hit.document_id for hit in index.search("otter", filters={"year": 2024, "kind": "note"})] == ["2024/b.txt"]
    assert len(index.add(folder, metadata=metadata).unchanged) == 2
    assert sources(index.add(folder, metadata=lambda path: {"year": 7}).updated) == ["2023/a.txt", "2024/b.txt"]


def test_what_a_file_is_can_be_filtered_by(index: Index, folder: Path) -> None:
    write(folder / "a.md", "---\ntitle: Otters\nauthor: A. Wader\ndate: 2024-01-31\nlang: en\n---\n# Kinds\n\nThe otter swims.\n")
    write(folder / "b.txt", "The otter sleeps.")
    index.add(folder)
    (row,) = index.find("a.md")
    for filters in (
        {"title": "Otters"},
        {"author": "A. Wader"},
        {"created": {"$gte": "2024-01-01", "$lt": "2025-01-01"}},
        {"lang": "en"},
        {"mime": "text/markdown"},
        {"size": row.meta["size"]},
        {"sha256": row.content_hash},
        {"modified": {"$gte": "2000-01-01"}, "source": "a.md"},
    ):
        assert {hit.document_id for hit in index.search("otter", filters=filters)} == {"a.md"}, filters


# Files that change, and files that cannot be read


def test_a_file_that_changes_while_it_is_read_fails_and_is_read_again(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "a.txt", "The otter swims.")
    write(folder / "b.txt", "The otter sleeps.")
    original = sandbox.Parser._results

    def slow(self: Any, source: Any, task: Any) -> Any:
        for result in original(self, source, task):
            if source.path == path and path.read_text() != "The otter is gone.":
                write(path, "The otter is gone.")
            yield result

    monkeypatch.setattr(sandbox.Parser, "_results", slow)
    report = index.add(folder)
    assert sources(report.added) == ["b.txt"]
    assert [one.reason for one in report.failed] == ["it changed while it was read; add it again"]
    assert sources(index.retry().added) == ["a.txt"]
    assert index.document("a.txt").text == "The otter is gone."


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_fails_alone(index: Index, folder: Path) -> None:
    write(folder / "a.txt", "The otter swims.").chmod(0)
    write(folder / "b.txt", "The otter sleeps.")
    report = index.add(folder)
    assert (sources(report.added), [one.reason for one in report.failed]) == (["b.txt"], ["Permission denied"])


# What failed


def test_what_failed_is_told_with_its_reason_and_can_be_tried_again(index: Index, folder: Path) -> None:
    write(folder / "good.txt", "The otter swims.")
    write(folder / "sub" / "bad.json", "{")
    write(folder / "sub" / "worse.json", "[")
    write(folder / "box.jsonl", '{"id": "x", "text": "The otter eats."}\nnot json\n')
    index.add(folder)
    index.add([{"id": "record", "text": 7}])
    status = index.status()
    assert (status.documents, len(status.failures)) == (2, 4)
    assert status.mimes == {"text/plain": 2}
    write(folder / "sub" / "bad.json", '{"otter": "mended"}')
    write(folder / "box.jsonl", '{"id": "x", "text": "The otter eats."}\n{"id": "y", "text": "mended"}\n')
    report = index.retry()
    assert sources(report.added) == ["box.jsonl#y", "sub/bad.json"]
    assert sources(report.unchanged) == ["box.jsonl#x"]
    assert sources(report.failed) == ["sub/worse.json"]
    assert [one.source for one in report.skipped] == ["record"]
    assert sources(index.status().failures) == ["record", "sub/worse.json"]
    assert sources(index.add(folder).unchanged) == ["box.jsonl#x", "box.jsonl#y", "good.txt", "sub/bad.json"]


def test_files_that_are_gone_are_told(index: Index, folder: Path) -> None:
    write(folder / "a.txt", "The otter swims.")
    index.add(folder)
    assert index.status().gone == ()
    shutil.rmtree(folder)
    assert index.status().gone == ("a.txt",)


def test_status_and_retry_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    write(folder / "good.txt", "The otter swims.")
    write(folder / "bad.json", "{")
    library, runner = str(tmp_path / "library"), CliRunner()
    with Index.open(library, model=HashEncoder(dims=32)) as index:
        index.add(folder)
    told = runner.invoke(app, ["status", library])
    assert told.exit_code == 3
    assert "1 documents" in told.stdout
    assert "bad.json: not JSON" in told.stdout
    found = json.loads(runner.invoke(app, ["status", library, "--json"]).stdout)
    assert [one["source"] for one in found["failures"]] == ["bad.json"]
    assert sum(found["reasons"].values()) == 1
    deleted = runner.invoke(app, ["delete", library, "bad.json"])
    assert (deleted.exit_code, deleted.stdout) == (0, "deleted 0, forgot 1 that failed\n")
    assert runner.invoke(app, ["status", library]).exit_code == 0
    assert runner.invoke(app, ["delete", library, "bad.json"]).exit_code == 1


def test_progress_knows_how_many_there_will_be_records_included(index: Index, folder: Path) -> None:
    for n in range(30):
        write(folder / f"{n:02}.txt", f"The otter {n}.")
    write(folder / "z.jsonl", "".join(f'{{"id": "{n}", "text": "otter {n}"}}\n' for n in range(5)))
    steps: list[Progress] = []
    index.add(folder, progress=steps.append)
    last = [step for step in steps if step.unit == "documents"][-1]
    assert (last.done, last.total) == (35, 35)


# Passages


def test_filters_on_passages_are_exact_with_those_on_documents(folder: Path) -> None:
    index = Index.open(folder.parent / "sections", model=HashEncoder(dims=32), chunker="structure")
    for n in range(6):
        sections = "".join(f"# {name}\n\nThe otter of {name} {n} swims.\n\n" for name in ("Methods", "Results", "Notes"))
        write(folder / f"{n}.md", f"---\nyear: {2020 + n}\n---\n{sections}")
    index.add(folder)
    everything = {mode: index.search("otter", 100, mode=mode) for mode in ("hybrid", "dense", "lexical")}
    assert {mode: len(hits) for mode, hits in everything.items()} == {"hybrid": 24, "dense": 24, "lexical": 18}

    def in_late_notes(hit: Any) -> bool:
        return "Notes" in hit.headings and hit.meta["year"] >= 2024

    def in_results_or_2021(hit: Any) -> bool:
        return hit.headings == ("Results",) or hit.meta["year"] == 2021

    def brute(mode: str, test: Any) -> list[int]:
        return sorted(hit.key for hit in everything[mode] if test(hit))

    cases: list[tuple[Any, Any]] = [
        ({"hit.headings": {"$contains": "Methods"}}, lambda hit: "Methods" in hit.headings),
        (
            {"hit.headings": {"$contains": "Notes"}, "year": {"$gte": 2024}},
            lambda h: "Notes" in h.headings and h.meta["year"] >= 2024,
        ),
        (
            {"$or": [{"hit.headings": ["Results"]}, {"year": 2021}]},
            lambda h: h.headings == ("Results",) or h.meta["year"] == 2021,
        ),
        ({"$not": {"hit.headings": {"$contains": "Methods"}}}, lambda hit: "Methods" not in hit.headings),
        (
            {"$not": {"$and": [{"hit.headings": {"$contains": "Methods"}}, {"year": 2020}]}},
            lambda hit: not ("Methods" in hit.headings and hit.meta["year"] == 2020),
        ),
        ({"hit.page": {"$gte": 1}}, lambda hit: False),
    ]
    for filters, test in cases:
        for mode in everything:
            expected = brute(mode, test)
            assert sorted(hit.key for hit in index.search("otter", 100, mode=mode, filters=filters)) == expected, (mode, filters)
            few = index.search("otter", 2, mode=mode, filters=filters)
            assert len(few) == min(2, len(expected))
            assert {hit.key for hit in few} <= set(expected)
    with pytest.raises(ValueError, match="are fields of passages"):
        list(index.documents({"hit.page": 1}))
    with pytest.raises(ValueError, match="are fields of passages"):
        index.delete(filters={"hit.headings": {"$contains": "Methods"}})
    index.close()


def test_passages_are_found_by_their_page_and_its_label(index: Index, folder: Path) -> None:
    cues = "".join(
        f"00:{minute:02}:01.000 --> 00:{minute:02}:02.000\nThe otter of minute {minute} swims.\n\n" for minute in range(4)
    )
    write(folder / "talk.vtt", "WEBVTT\n\n" + cues)
    with Index.open(folder.parent / "by page", model=HashEncoder(dims=32), chunker="page") as pages:
        pages.add(folder)
        assert [hit.pages for hit in pages.search("otter", 9, filters={"hit.page": 3})] == [(3,)]
        assert [hit.pages for hit in pages.search("otter", 9, filters={"hit.page_label": "00:01:00"})] == [(2,)]
        assert sorted(hit.pages for hit in pages.search("otter", 9, filters={"hit.page": {"$lt": 3}})) == [(1,), (2,)]
        assert list(pages.documents({"page_labels": {"$contains": "00:02:00"}}))


def test_show_prints_the_passage_where_pages_cannot_be_drawn(folder: Path, tmp_path: Path) -> None:
    write(folder / "talk.srt", "1\n00:01:01,000 --> 00:01:02,000\nThe otter swims.\n")
    with Index.open(tmp_path / "library", model=HashEncoder(dims=32)) as index:
        index.add(folder)
    told = CliRunner().invoke(app, ["show", str(tmp_path / "library"), "talk.srt"])
    assert (told.exit_code, told.stdout) == (0, "talk.srt, p. 2: The otter swims.\n")

"""The command line as a user meets it: exit codes, JSON, messages that name the way out; one session and all signals in real
processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.apps.cli.running import run, run_json


def _write_notes(folder: Path) -> Path:
    folder.mkdir()
    (folder / "otter.md").write_text("# Otters\n\nOtters hold hands while they sleep.\n")
    (folder / "bridge.txt").write_text("The bridge over the river was built in 1887.\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 this is not one")
    return folder


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_notes(tmp_path_factory.mktemp("cli") / "notes")


@pytest.fixture(scope="module")
def library(notes: Path) -> Path:
    """An index that no test changes."""
    run("add", notes.parent / "library", notes, "--model", "hash:64", code=3)
    return notes.parent / "library"


def test_a_session_of_processes_from_add_to_delete(tmp_path: Path) -> None:
    notes, library = _write_notes(tmp_path / "notes"), tmp_path / "library"
    run("add", library, notes, "--model", "hash:64", code=3, process=True)
    assert "unchanged 2, failed 1" in run("add", library, notes, code=3, process=True)
    hits = run_json("search", library, "otters that sleep", "-k", "1", process=True)
    assert hits[0]["citation"]["source"] == "otter.md"
    assert hits[0]["headings"] == ["Otters"]
    assert "otter.md" in run("search", library, "otters that sleep")
    assert [row["source"] for row in run_json("list", library)] == ["bridge.txt", "otter.md"]
    assert run_json("list", library, "--failed")[0]["source"] == "broken.pdf"
    assert run_json("stats", library)["documents"] == 2
    assert "deleted 1" in run("delete", library, "otter.md")
    assert run_json("search", library, "otters", "--mode", "lexical") == []
    assert "nothing by that name" in run("delete", library, "otter.md", code=1, process=True)


def test_failed_documents_are_named_with_their_reason_and_exit_three(library: Path, notes: Path) -> None:
    report = run_json("add", library, notes, code=3)
    assert [failure["source"] for failure in report["failed"]] == ["broken.pdf"]
    assert report["failed"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("search", "nowhere", "x"), 1, "ragkit add"),
        (("add", "LIBRARY", "no/such/file"), 1, "no/such/file"),
        (("add", "LIBRARY", "NOTES", "--model", "hash:32"), 1, "model"),
        (("add", "LIBRARY", "NOTES", "--chunk-tokens", "9"), 1, "chunk_tokens"),
        (("search", "LIBRARY", "x", "--mode", "psychic"), 1, "mode"),
        (("search", "LIBRARY", "x", "--filter", "lang=en"), 1, "JSON"),
        (("search", "LIBRARY", "x", "-k", "0"), 2, "-k"),
        (("show", "LIBRARY", "unknown.pdf"), 1, "ragkit list"),
        (("show", "LIBRARY", "999999"), 1, "no unit"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_mistakes_end_in_one_clear_message(
    library: Path, notes: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    names = {"LIBRARY": str(library), "NOTES": str(notes)}
    output = run(*(names.get(word, word) for word in arguments), cwd=library.parent, code=code)
    assert message in output
    assert "Traceback" not in output


def test_show_prints_the_passage_of_a_text(library: Path) -> None:
    key = run_json("search", library, "otters", "-k", "1", "--mode", "lexical")[0]["key"]
    assert "otter.md: # Otters Otters hold hands" in run("show", library, str(key))


def test_doctor_names_versions_and_licences() -> None:
    findings = run_json("doctor")
    assert findings["packages"]["pymupdf"]["licence"] == "AGPL-3.0 or commercial"
    assert findings["python"] == sys.version.split()[0]


def test_eval_measures_every_mode_and_compares(tmp_path: Path) -> None:
    judged = tmp_path / "judged"
    (judged / "qrels").mkdir(parents=True)
    texts = {"a": "Otters sleep on water.", "b": "Bridges are made of granite.", "c": "Bread needs salt."}
    (judged / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": id, "title": "", "text": text}) + "\n" for id, text in texts.items())
    )
    queries = {"q1": "granite bridges", "q2": "salt in bread"}
    (judged / "queries.jsonl").write_text("".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in queries.items()))
    (judged / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tb\t1\nq2\tc\t1\n")
    result = run_json("eval", tmp_path / "index", judged, "--add", "--model", "hash:64")
    assert [run["mode"] for run in result["evaluations"]] == ["hybrid", "dense", "lexical"]
    assert result["evaluations"][2]["measures"]["nDCG@10"] == 1.0
    assert len(result["differences"]) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_the_index_whole_and_running_again_completes(tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(160):
        (folder / f"note{n}.txt").write_text(f"Note {n} is about the number {n * n}. " * 40)
    library = tmp_path / "library"
    run("add", library, folder / "note0.txt", "--model", "hash:64")
    command = [sys.executable, "-m", "ragkit.apps.cli.main", "add", str(library), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 60
    while str(process.pid) not in (library / "LOCK").read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # until it writes
    process.send_signal(how)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130 or process.returncode == 0  # it may have been quicker than the signal
    if process.returncode == 130:
        assert "run the same command again" in message
    assert run_json("stats", library)["documents"] >= 1
    run("add", library, folder)
    assert run_json("stats", library)["documents"] == 160


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; sys.argv = ['ragkit', '--help']\nfrom ragkit.apps.cli.main import main\n"
    script += "try: main()\nexcept SystemExit: pass\n"
    script += (
        "heavy = {'torch', 'transformers', 'faiss', 'pymupdf', 'sqlalchemy', 'tantivy', 'numpy', 'pydantic'} & set(sys.modules)\n"
    )
    script += "assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_importing_ragkit_imports_nothing_heavy() -> None:
    script = "import sys, ragkit\nassert not {'torch', 'numpy', 'faiss', 'sqlalchemy', 'pydantic'} & set(sys.modules)\n"
    script += "assert set(ragkit.__all__) <= set(dir(ragkit))\nfor name in ragkit.__all__: getattr(ragkit, name)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_what_a_document_was_kept_without_is_told_when_it_is_added_and_when_it_is_found(tmp_path: Path) -> None:
    from tests.load.rawpdf import bomb, show

    (tmp_path / "in").mkdir()
    otters = show(b"otters hold hands") + b"1 g " + show(b"obey me now", y=300)
    (tmp_path / "in" / "a.pdf").write_bytes(bomb([otters, show(b"two")], at=1))
    command = ["add", tmp_path / "library", tmp_path / "in", "--model", "hash:64", "--limit", "page_cpu_seconds=0.5"]
    (added,) = run_json(*command)["added"]
    assert added["warnings"] == [
        "page 2 took longer than 0.5 s of processor time (Limits.page_cpu_seconds)",
        "11 hidden characters were left out",
    ]
    assert "11 hidden characters" in run("search", tmp_path / "library", "otters")
    assert run_json("search", tmp_path / "library", "obey", "--mode", "lexical") == []
    assert "no limit 'speed'" in run(*command[:-1], "speed=3", code=1)

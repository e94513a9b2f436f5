"""The commands that keep an index whole and change it, as their users run them: exit codes, JSON, messages with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.apps.cli.running import run, run_json
from tests.care.damage import flip, only


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "otter.md").write_text("# Otters\n\nOtters hold hands while they sleep.\n")
    (folder / "bridge.txt").write_text("The bridge over the river was built in 1887.\n")
    return folder


@pytest.fixture
def library(tmp_path: Path, notes: Path) -> Path:
    run("add", tmp_path / "library", notes, "--model", "hash:64")
    return tmp_path / "library"


def test_from_backup_through_damage_to_repair(tmp_path: Path, library: Path, notes: Path) -> None:
    assert "2 documents" in run("backup", library, tmp_path / "backup")
    assert "not there yet" in run("backup", library, tmp_path / "backup", code=1)
    assert "whole" in run("verify", library)
    flip(only((library / "segments").glob("*/chunk.dense.npy")), -1)
    assert f"ragkit repair {library}" in run("search", library, "otters", code=1)
    degraded = json.loads(run("search", library, "otters", "--degraded", "--json", code=3).partition("degraded: ")[0])
    assert "chunk.dense.npy" in degraded["missing"][0]
    assert degraded["hits"][0]["document_id"] == "otter.md"
    assert [one["remedy"] for one in run_json("verify", library, code=1)] == [f"ragkit repair {library}"]
    output = run("repair", library)
    assert "otter.md, again, from its stored text" in output
    assert "quarantine" in output
    assert "whole: nothing to repair" in run("repair", library)
    assert "whole" in run("verify", tmp_path / "backup")
    (notes / "bridge.txt").unlink()
    assert "pruned 1" in run("add", library, notes, "--prune")


def test_export_and_import(tmp_path: Path, library: Path) -> None:
    assert "2 documents" in run("export", library, tmp_path / "exported")
    assert {path.suffix for path in (tmp_path / "exported").iterdir()} == {".jsonl", ".npy", ".json"}
    assert len(run_json("import", tmp_path / "new", tmp_path / "exported")["added"]) == 2


def test_what_is_lost_is_named_and_exits_three(library: Path) -> None:
    flip(only((library / "segments").glob("*/keys.npy")), -1)
    assert "ragkit list" in run("repair", library, "--no-embed", code=3)
    assert [one["source"] for one in run_json("list", library, "--failed")] == ["bridge.txt", "otter.md"]


def test_migrate_does_what_the_refusal_says(library: Path, notes: Path) -> None:
    refusal = run("add", library, notes, "--dims", "16", "--chunker", "whole", code=1)
    command = refusal.partition("ragkit migrate ")[2].split()
    assert run_json("migrate", *command)["done"] == "embedded"
    assert "unchanged 2" in run("add", library, notes, "--dims", "16", "--chunker", "whole")
    assert "nothing to do" in run("migrate", library, "--dims", "16")
    assert "nothing was embedded" in run("migrate", library, "--dims", "8")
    assert "1 segment," in run("compact", library)

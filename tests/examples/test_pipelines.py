"""The pipelines run as a reader would run them, on the example corpus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.test_corpus import generate

PIPELINES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("corpus"))


def run(program: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(PIPELINES / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_text_corpus_is_indexed_once_and_asked_in_three_ways(corpus: Path, tmp_path: Path) -> None:
    output = run("text_corpus.py", tmp_path / "index", corpus / "incidents.jsonl", "a noise that neighbours heard")
    assert "added 9" in output
    assert output.count("INC-2024-013") >= 2
    assert "unchanged 9" in run("text_corpus.py", tmp_path / "index", corpus / "incidents.jsonl", "noise")


def test_a_mixed_folder_cites_page_and_box(corpus: Path, tmp_path: Path) -> None:
    output = run("mixed_folder.py", tmp_path / "index", corpus, "why did F07 stop")
    assert "failed 0" in output
    assert "report.pdf, p. " in output
    assert "points" in output


def test_a_code_repository_answers_with_lines(corpus: Path, tmp_path: Path) -> None:
    output = run("code_repository.py", tmp_path / "index", PIPELINES.parent / "examples", "how is the yaw angle computed")
    source = next(line for line in output.splitlines() if "yaw.py:" in line)
    first, last = map(int, source.split()[0].rpartition(":")[2].split("-"))
    lines = (PIPELINES.parent / "examples" / source.partition(":")[0]).read_text().splitlines()
    assert 1 <= first <= last <= len(lines)
    assert lines[first - 1].strip() in output

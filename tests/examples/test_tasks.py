"""The examples of the tasks: right with the default model, and run with models that have the tasks themselves."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.encode.checkpoints.jina_v3 import write_v3_original
from tests.encode.checkpoints.jina_v4 import write_v4

TASKS = Path(__file__).parents[2] / "examples" / "tasks"
NAMES = ["classification", "clustering", "code_search", "duplicates", "retrieval"]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", TASKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_for_each_task() -> None:
    assert sorted(path.stem for path in TASKS.glob("*.py")) == NAMES


def test_the_default_model_answers_rightly() -> None:
    retrieval, classification, code = example("retrieval"), example("classification"), example("code_search")
    assert retrieval.main() == retrieval.QUESTIONS
    assert classification.main() == classification.NEW
    assert code.main() == code.QUERIES
    member = example("clustering").main()
    assert [len(set(member[i::3])) for i in range(3)] == [1, 1, 1]  # the texts go round: football, money, kitchen
    assert len(set(member)) == 3
    assert sorted(example("duplicates").main()) == [(0, 2), (1, 4), (3, 5)]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_tasks_runs_it(name: str, tmp_path: Path) -> None:
    folder = (write_v4 if name == "code_search" else write_v3_original)(tmp_path / "model")
    assert len(example(name).main(str(folder))) >= (0 if name == "duplicates" else 4)


def test_it_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, str(TASKS / "clustering.py")], capture_output=True, text=True, check=True, timeout=120)
    assert "Cluster 3" in done.stdout

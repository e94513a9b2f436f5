"""The targets of `make fuzz-guided`, each with its first input and some damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.guided import PARTS, TEXTS, targets
from tests.load.hostile import Case, damaged


@pytest.mark.parametrize("name", [*TEXTS, *PARTS, "zip", "frame"])
def test_damaged_inputs_end_as_lawful_documents_or_reasons(name: str, tmp_path: Path) -> None:
    take, first = targets(tmp_path)[name]
    take(first)
    for seed in range(30):
        take(damaged(Case(name, "", first), seed).data)

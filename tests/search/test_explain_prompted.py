"""A model with a prompt before its texts: what its vectors stand for is told all the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ragkit import Index, load_encoder
from tests.encode.checkpoints.jina_v4 import write_v4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v4")
    write_v4(folder)
    return folder


def test_words_of_question_and_text_are_told_beside_their_shares(folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(folder)
    with Index.open(tmp_path / "library", model=encoder, multi="float32", chunk_tokens=32) as index:
        index.add([{"id": "a", "text": "Otters hold hands while they sleep."}])
        [hit] = index.search("otters sleep", 1, mode="multi")
        found = index.explain("otters sleep", hit.key)
        assert math.isclose(found.score, hit.score, rel_tol=1e-6)
        asked = [one.query_word for one in found.matches if one.query_span is not None]
        assert asked
        assert set(asked) <= {"otters", "sleep"}
        prompt = [one for one in found.matches if one.query_span is None]
        assert len(prompt) == len(found.matches) - len(asked) > 0  # "Query: "
        document = "Otters hold hands while they sleep."
        for one in found.matches:
            assert all(span.of(document).strip() in one.word for span in one.spans)

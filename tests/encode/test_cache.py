"""The embedding cache: the same vectors without encoding, never another encoder's, and never in the way."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Index
from ragkit.core.errors import InputTooLong
from ragkit.encode import load_encoder
from ragkit.encode.cache import OVERHEAD, EmbeddingCache, cached, content_key
from ragkit.encode.contract import TokenEncoder
from ragkit.encode.late import late_chunk
from ragkit.testing import HashEncoder, assert_encoder_contract
from tests.encode.checkpoints.jina_clip import write_clip_v1

TEXTS = ["green tea", "", "black tea with milk", "green tea", "Zürich \ud800"]


class Counting(HashEncoder):
    """Counts the inputs it encodes."""

    seen = 0

    def encode(self, inputs: Sequence[Any], **options: Any) -> Any:
        self.seen += len(inputs)
        return super().encode(inputs, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "embeddings.db"


def assert_same(found: Any, expected: Any) -> None:
    assert np.abs(found.dense - expected.dense).max() < 1e-6
    assert found.truncated == expected.truncated
    if expected.multi is not None:
        assert np.array_equal(found.multi.offsets, expected.multi.offsets)
        assert np.abs(found.multi.values - expected.multi.values).max() < 1e-6


def test_what_was_encoded_once_is_not_encoded_again(path: Path) -> None:
    encoder = Counting(16, multi_dims=8, asymmetric=True)
    first = cached(encoder, path)
    assert_same(first.encode_document(TEXTS), HashEncoder(16, multi_dims=8, asymmetric=True).encode_document(TEXTS))
    assert encoder.seen == 4  # one text is there twice
    again = cached(encoder, path)  # another process would see the same file
    assert_same(again.encode_document([*TEXTS, "new"]), encoder.encode_document([*TEXTS, "new"]))
    assert encoder.seen == 5
    for dims in (1, 5, 16):
        assert_same(again.encode_document(TEXTS, truncate_dim=dims), encoder.encode_document(TEXTS, truncate_dim=dims))
    assert encoder.seen == 5


def test_it_keeps_the_contract_and_offers_what_the_encoder_offers(path: Path) -> None:
    encoder: Any = cached(HashEncoder(16, multi_dims=8, asymmetric=True), path)
    for _ in range(2):
        assert_encoder_contract(encoder)
    assert isinstance(encoder, TokenEncoder)
    assert late_chunk(encoder, "one two", [(0, 3), (4, 7)]).shape == (2, 16)
    assert cached(HashEncoder(16), path).encode_query([]).dense.shape == (0, 16)


def test_another_encoder_role_or_task_finds_nothing(path: Path) -> None:
    card = HashEncoder(16).card
    cards = [card, replace(card, revision="2"), replace(card, dtype="bfloat16"), replace(card, max_tokens=100)]
    cards += [replace(card, task="separation"), replace(card, query_modalities=("image",)), replace(card, pooling="cls")]
    keys = {content_key(0, "text", one, task) for one in cards for task in ("retrieval.query", "retrieval.passage", "separation")}
    assert len(keys) == 3 * len(cards)
    assert {len(key) for key in keys} == {32}
    assert content_key(0, "a", card, "b") != content_key(0, "ab", card, "")
    encoder = Counting(16, asymmetric=True)
    both = cached(encoder, path)
    assert np.abs(both.encode_query(["tea"]).dense - both.encode_document(["tea"]).dense).max() > 0.01
    assert encoder.seen == 2


def test_a_flipped_bit_is_encoded_again(path: Path) -> None:
    encoder = Counting(16)
    first = cached(encoder, path)
    expected = first.encode_document(TEXTS).dense
    with sqlite3.connect(path) as file:
        for key, value in file.execute("SELECT key, value FROM entries").fetchall():
            damaged = bytes([*value[:-2], value[-2] ^ 1, value[-1]])
            file.execute("UPDATE entries SET value = ? WHERE key = ?", [damaged, key])
    file.close()
    assert np.array_equal(cached(encoder, path).encode_document(TEXTS).dense, expected)
    assert encoder.seen == 8
    cached(encoder, path).encode_document(TEXTS)
    assert encoder.seen == 8  # and mended


def test_a_damaged_file_is_warned_of_once_and_not_in_the_way(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 1000)
    encoder = Counting(16)
    kept = cached(encoder, path)
    with pytest.warns(UserWarning, match=r"embeddings.db is out of order .*Delete the file"):
        found = kept.encode_document(TEXTS)
    assert_same(found, encoder.encode_document(TEXTS))
    kept.encode_document(TEXTS)


def test_a_locked_file_is_waited_for_and_then_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragkit.encode.cache.PATIENCE", 0.1)
    encoder = Counting(16)
    kept = cached(encoder, path)
    kept.encode_document(["a"])
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(UserWarning, match="is busy"):
        kept.encode_document(["b"])
    other.rollback()
    other.close()
    kept.encode_document(["b"])
    kept.encode_document(["b"])
    assert encoder.seen == 3


def test_it_stays_within_its_bound_and_forgets_the_oldest(path: Path) -> None:
    cache = EmbeddingCache(path, max_bytes=1 << 20)
    encoder = Counting(1024)
    kept = cached(encoder, cache)
    size = 4 * 1024 + OVERHEAD + 13
    for batch in range(8):
        kept.encode_document([f"text {batch} {i}" for i in range(50)])
        with sqlite3.connect(path) as file:  # as if time went by
            file.execute("UPDATE entries SET used = used - 1000")
        file.close()
    entries, total = cache.size()
    assert total == entries * size <= 1 << 20
    assert entries > 200
    seen = encoder.seen
    kept.encode_document([f"text 7 {i}" for i in range(50)])
    assert encoder.seen == seen
    kept.encode_document(["text 0 0"])
    assert encoder.seen == seen + 1
    cache.close()
    assert sum(one.stat().st_size for one in path.parent.iterdir()) < 4 << 20
    with pytest.raises(ValueError, match="at least 1048576"):
        EmbeddingCache(path, max_bytes=1000)


def test_cut_texts_are_counted_and_do_not_answer_where_cutting_was_not_asked_for(path: Path) -> None:
    encoder = Counting(16, max_tokens=6)
    kept = cached(encoder, path)
    texts = ["short", "one two three four five six", "tiny", "seven words are more than five in all"]
    for _ in range(2):
        assert kept.encode_document(texts, truncate=True).truncated == 2
    assert encoder.seen == 4
    with pytest.raises(InputTooLong, match="input 1 has"):
        kept.encode_document(texts)
    assert kept.encode_document([texts[0], texts[2]]).truncated == 0


def test_processes_share_it(path: Path) -> None:
    program = (
        "import sys; from ragkit.encode.cache import cached; from ragkit.testing import HashEncoder; "
        "e = cached(HashEncoder(64), sys.argv[1]); "
        "[e.encode_document([f'text {i} {j}' for j in range(20)]) for i in range(20)]"
    )
    running = [subprocess.Popen([sys.executable, "-W", "error", "-c", program, str(path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    cache = EmbeddingCache(path)
    assert cache.size() == (400, 400 * (4 * 64 + OVERHEAD + 13))
    cache.close()


def test_images_are_told_apart_by_what_they_show(path: Path, tmp_path: Path) -> None:
    from PIL import Image

    encoder = cached(load_encoder(write_clip_v1(tmp_path / "clip"), dtype="float32"), path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    palette = image.convert("P")
    other = palette.copy()
    other.putpalette(list(reversed(palette.getpalette())))
    items: list[Any] = [image, turned, image.resize((40, 30)), palette, other, "a text", image.convert("L")]
    assert len({content_key(0, item, encoder.card, "retrieval.query") for item in items}) == len(items)
    for _ in range(2):
        assert np.abs(encoder.encode_document(items).dense - encoder.encoder.encode_document(items).dense).max() < 1e-5  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="input 1"):
        encoder.encode_document([image, 3])


def test_an_index_asks_it_and_its_check_of_the_model_does_not(path: Path, tmp_path: Path) -> None:
    records = [{"id": str(i), "text": f"Turbine {i} stood still for {i} weeks."} for i in range(5)]
    encoder = Counting(32)
    for name in ("one", "two"):
        with Index.open(tmp_path / name, model=encoder, cache=path) as index:
            assert len(index.add(records).added) == 5
            assert "Turbine 3" in index.search("turbine 3")[0].text
    assert encoder.seen == 6  # five texts and a query, in the first index

    class Impostor(Counting):
        def encode_document(self, documents: Any, **options: Any) -> Any:
            return super().encode_document([text[::-1] for text in documents], **options)

    with Index.open(tmp_path / "two", model=Impostor(32), cache=path) as index, pytest.raises(Exception, match="probe text"):
        index.search("turbine 3")

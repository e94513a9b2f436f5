"""The test encoder is an encoder: the contract, a sensible ranking, and no model anywhere."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ragkit.core.arrays import MultiVectors, unit_rows
from ragkit.core.errors import CheckpointError, EncodeError, InputTooLong
from ragkit.core.types import Box
from ragkit.encode import Encoding, load_encoder, resolve_name
from ragkit.encode.contract import TokenStates
from ragkit.testing import HashEncoder
from ragkit.testing.encoder_contract import SAMPLES, assert_encoder_contract


@pytest.mark.parametrize(
    "encoder",
    [
        HashEncoder(),
        HashEncoder(1),
        HashEncoder(300, multi_dims=20),
        HashEncoder(2, multi_dims=1, max_tokens=40, asymmetric=True, seed=3),
        HashEncoder(images=True),
        HashEncoder(20, multi_dims=30, images=True, asymmetric=True, max_pixels=8 * 28 * 28),
    ],
    ids=lambda encoder: encoder.card.name,
)
def test_it_keeps_the_contract(encoder: HashEncoder) -> None:
    assert_encoder_contract(encoder)


def test_texts_that_share_words_are_similar() -> None:
    encoder = HashEncoder(256)
    documents = [
        "The index keeps vectors in immutable segments on disk.",
        "Bread is baked from flour, water, salt and yeast.",
        "Late chunking pools token states after the whole document was read.",
        "首都は東京です。",
    ]
    queries = ["immutable segments of an index", "how to bake bread with yeast", "what does late chunking pool?", "東京"]
    scores = encoder.encode_query(queries).dense @ encoder.encode_document(documents).dense.T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert encoder.encode_query(["Bread"]).dense @ encoder.encode_document(["bread"]).dense.T == pytest.approx(1)


def test_multi_vectors_match_word_by_word() -> None:
    encoder = HashEncoder(8, multi_dims=64)
    multi = encoder.encode_document(["green tea", "black tea with milk"]).multi
    assert np.diff(multi.offsets).tolist() == [2, 4]
    assert multi[0][1] @ multi[1][1] == pytest.approx(1)  # tea is tea


def test_roles_differ_only_when_asked() -> None:
    plain, asymmetric = HashEncoder(), HashEncoder(asymmetric=True)
    for texts in (["a text"], [""]):
        assert np.array_equal(plain.encode_query(texts).dense, plain.encode_document(texts).dense)
        assert np.abs(asymmetric.encode_query(texts).dense - asymmetric.encode_document(texts).dense).max() > 0.01


def test_the_mean_of_all_token_states_is_the_vector_and_late_chunks_know_their_document() -> None:
    encoder = HashEncoder(128)
    text = "Berlin is the capital of Germany. The city has many lakes."
    tokens = encoder.encode_tokens(text)
    pooled = unit_rows(tokens.states.mean(axis=0, keepdims=True))
    assert np.abs(pooled - encoder.encode_document([text]).dense).max() < 1e-6
    alone = encoder.encode_tokens(text[34:])
    late = tokens.states[(tokens.spans[:, 0] >= 34) & ~tokens.special]
    chunks = unit_rows(np.stack([late.mean(axis=0), alone.states[~alone.special].mean(axis=0)]))
    to_document = chunks @ encoder.encode_document([text]).dense[0]
    assert to_document[0] > to_document[1] + 0.01


def test_every_setting_changes_name_and_fingerprint_and_the_name_opens_it_again() -> None:
    encoders = [
        HashEncoder(), HashEncoder(65), HashEncoder(multi_dims=8), HashEncoder(asymmetric=True), HashEncoder(seed=1),
        HashEncoder(32, multi_dims=16, asymmetric=True, seed=12), HashEncoder(images=True),
        HashEncoder(32, multi_dims=16, images=True, asymmetric=True, seed=12),
    ]  # fmt: skip
    assert len({encoder.card.fingerprint for encoder in encoders}) == len(encoders)
    for encoder in encoders:
        again = load_encoder(encoder.card.name, revision=encoder.card.revision)
        assert again.card == encoder.card
        assert np.array_equal(again.encode_query(SAMPLES).dense, encoder.encode_query(SAMPLES).dense)
    assert HashEncoder(max_tokens=99).card.fingerprint != HashEncoder().card.fingerprint
    small, most = load_encoder("hash:64+images", max_pixels=50 * 28 * 28), HashEncoder(images=True)
    assert small.card.fingerprint != most.card.fingerprint
    assert small.image_size(10, 10) == (7 * 28, 7 * 28)
    assert most.image_size(10, 10) == (16 * 28, 16 * 28)
    assert resolve_name("hash") == load_encoder("hash").card.name == "hash:64"


def test_what_it_cannot_be_is_refused() -> None:
    for name in ("hash:", "hash:x", "hash:0", "hash:8+multi", "hash:8+seed"):
        with pytest.raises(ValueError):
            load_encoder(name)
    with pytest.raises(ValueError):
        load_encoder("hash", device="cuda")
    with pytest.raises(CheckpointError, match="revision"):
        load_encoder("hash", revision="0")
    for settings in ({"max_pixels": 10000}, {"images": True, "max_pixels": 783}):
        with pytest.raises(ValueError, match="from 784 on"):
            HashEncoder(**settings)
    with pytest.raises(ValueError, match=r"only with \+images"):
        load_encoder("hash", max_pixels=10000)
    with pytest.raises(ValueError, match="images=True"):
        HashEncoder().patches(10, 10)
    with pytest.raises(TypeError, match="input 0 is Image, but this model takes only str"):
        HashEncoder().encode_query([page()])
    for sides in ((0, 10), (10, -1), (float("nan"), 1), (1, float("inf"))):
        with pytest.raises(ValueError, match="a width and a height above 0"):
            HashEncoder(images=True).image_size(*sides)


def page(size: tuple[int, int] = (392, 504), **marks: tuple[int, int, int, int]) -> Any:
    """White, with a rectangle of each colour."""
    image = Image.new("RGB", size, "white")
    for colour, corners in marks.items():
        ImageDraw.Draw(image).rectangle(corners, fill=colour)
    return image


@pytest.mark.parametrize("size", [(392, 504), (613, 791), (1000, 60), (31, 29), (3000, 2500)])
def test_a_word_finds_the_picture_with_its_colour_and_the_patch_where_it_is(size: tuple[int, int]) -> None:
    encoder, (width, height) = HashEncoder(256, multi_dims=128, images=True), size
    x, y = int(width * 0.7), int(height * 0.4)
    corners = (x - width // 30, y - height // 30, x + width // 30, y + height // 30)
    pages = [page(size, red=corners), page(size, green=corners), page(size)]
    seen, asked = encoder.encode_document(pages), encoder.encode_query(["red", "green"])
    assert (asked.dense @ seen.dense.T).argmax(axis=1).tolist() == [0, 1]
    patches = encoder.patches(*size)
    for i in range(2):
        assert len(seen.multi[i]) == 3 + patches.tokens.size
        [at] = np.argwhere(patches.tokens == (asked.multi[i] @ seen.multi[i].T).argmax())
        box = patches.box(*at.tolist())
        assert box.x0 - 1 / 30 <= x / width <= box.x1 + 1 / 30
        assert box.y0 - 1 / 30 <= y / height <= box.y1 + 1 / 30


def test_the_words_beside_a_picture_are_read_too_and_roles_reach_its_vectors() -> None:
    encoder = HashEncoder(128, multi_dims=64, images=True, asymmetric=True)
    image = page(blue=(0, 0, 100, 100))
    alone, beside = encoder.encode_document([image, ("green tea", image)]).multi
    assert np.array_equal(beside[: len(alone)], alone)
    assert len(beside) == len(alone) + 2
    assert np.array_equal(beside[-2:], encoder.encode_document(["green tea"]).multi[0])
    asked = encoder.encode_query([image]).multi[0]
    assert (np.flatnonzero((asked != alone).any(axis=1)) == [0, 1, len(alone) - 1]).all()  # the prompt's, not the cells'
    with pytest.raises(EncodeError, match="input 1: the image has 20000 x 2 pixels"):
        encoder.encode_document(["a", Image.new("L", (20000, 2))])


def test_vectors_are_the_same_on_every_machine_and_in_every_process() -> None:
    """Stored on purpose: a change here is a change of VERSION."""
    assert np.abs(HashEncoder(8).encode_query(["late chunking"]).dense[0] - STORED).max() < 1e-4
    program = (
        "import sys; from ragkit.testing import HashEncoder; v = HashEncoder(32, multi_dims=4).encode_document(['a b', 'é']); "
        "assert not {'torch', 'tokenizers', 'transformers'} & set(sys.modules); sys.stdout.buffer.write(v.dense.tobytes())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {HashEncoder(32, multi_dims=4).encode_document(["a b", "é"]).dense.tobytes()}


STORED = [
    0.45329999923706055,
    -0.33239999413490295,
    0.21150000393390656,
    0.2720000147819519,
    0.0,
    -0.3928999900817871,
    0.45329999923706055,
    0.45329999923706055,
]


class Broken:
    """A HashEncoder with one law broken, for the check to find."""

    def __init__(self, **changes: Any) -> None:
        self._inner = HashEncoder(16, multi_dims=4, max_tokens=64)
        self.card = self._inner.card
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return self._changes.get(name) or getattr(self._inner, name)


def _map(change: Any) -> dict[str, Any]:
    inner = HashEncoder(16, multi_dims=4, max_tokens=64)
    return {"encode_document": lambda texts, **keywords: change(inner.encode_document(texts, **keywords))}


def _reversed(encoding: Encoding) -> Encoding:
    return replace(encoding, dense=encoding.dense[::-1])


def _batch_dependent(encoding: Encoding) -> Encoding:
    return replace(encoding, dense=unit_rows(encoding.dense + 0.01 * len(encoding.dense)))


_inner = HashEncoder(16, multi_dims=4, max_tokens=64)
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "order": (_map(_reversed), "in another order|alone"),
    "batch": (_map(_batch_dependent), "alone differs"),
    "count": (_map(lambda e: replace(e, dense=e.dense[:-1])), "texts of 16 dims"),
    "length": (_map(lambda e: replace(e, dense=e.dense * 2)), "unit length"),
    "dtype": (_map(lambda e: replace(e, dense=e.dense.astype(np.float64))), "not float32"),
    "no multi": (_map(lambda e: replace(e, multi=None)), "multi is there: False"),
    "multi": (_map(lambda e: replace(e, multi=MultiVectors(e.multi.values * 3, e.multi.offsets))), "multi: row"),
    "silence": (
        {"encode_query": lambda texts, **k: _inner.encode_query(texts, **(k | {"truncate": True}))},
        "without truncate=True",
    ),
    "uncounted": (_map(lambda e: replace(e, truncated=0)), "truncated is 0"),
    "counts": ({"count_tokens": lambda texts: _inner.count_tokens(texts) - 1}, "count_tokens says"),
    "spans": ({"token_spans": lambda text: _inner.token_spans(text)[::-1]}, "not ascending"),
    "outside": ({"token_spans": lambda text: _inner.token_spans(text) + 200}, "outside the text"),
    "special": (
        {"encode_tokens": lambda text: (lambda t: TokenStates(t.states, t.spans + 1, t.special))(_inner.encode_tokens(text))},
        "special tokens have spans",
    ),
    "dims": (
        {"encode_query": lambda texts, truncate_dim=None, **k: _inner.encode_query(texts, **k)},
        "truncate_dim=",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_check_finds(fault: str) -> None:
    changes, message = FAULTS[fault]
    with pytest.raises(AssertionError, match=message):
        assert_encoder_contract(Broken(**changes))


SEEING = HashEncoder(16, multi_dims=4, images=True)
BLIND = {
    "tokens": ({"patches": lambda w, h: replace(SEEING.patches(w, h), tokens=SEEING.patches(w, h).tokens + 5)}, "tokens from 7"),
    "region": ({"patches": lambda w, h: replace(SEEING.patches(w, h), region=Box(0, 0, 0, 1))}, "nothing is seen"),
    "unit": ({"image_size": lambda w, h: (int(w), int(h))}, "depends on the unit"),
    "batch": ({"encode_document": lambda items, **k: SEEING.encode_document(items[::-1], **k)}, "a picture beside|text 0"),
}


@pytest.mark.parametrize("fault", BLIND)
def test_the_contract_check_finds_of_pictures(fault: str) -> None:
    changes, message = BLIND[fault]
    broken = Broken(**{"image_size": SEEING.image_size, "patches": SEEING.patches} | changes)
    broken.image_size, broken.patches = broken._changes["image_size"], broken._changes["patches"]
    broken._inner, broken.card = SEEING, SEEING.card
    with pytest.raises(AssertionError, match=message):
        assert_encoder_contract(broken)


def test_the_check_passes_what_is_not_broken() -> None:
    assert_encoder_contract(Broken())


def test_too_long_is_refused_or_counted() -> None:
    encoder = HashEncoder(max_tokens=5)
    with pytest.raises(InputTooLong, match="input 1 has 6 tokens"):
        encoder.encode_document(["a b c", "a b c d"])
    cut = encoder.encode_document(["a b c", "a b c d"], truncate=True)
    assert cut.truncated == 1
    assert np.array_equal(cut.dense[0], cut.dense[1])
    with pytest.raises(InputTooLong):
        encoder.encode_tokens("a b c d")

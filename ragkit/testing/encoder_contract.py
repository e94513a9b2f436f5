"""The contract of encoders, as a check for any encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ragkit.core.arrays import MultiVectors, truncate_dims
from ragkit.core.errors import InputTooLong
from ragkit.core.types import Floats, Ints, Patches
from ragkit.encode.contract import Encoder, EncoderCard, Encoding, ImageEncoder
from ragkit.encode.tasks import full_tasks

Encode = Callable[..., Any]  # a method that returns an Encoding with the outputs of the card
SAMPLES = (
    "Late chunking embeds the whole document first and pools its token states afterwards.",
    "",
    "word",
    "Zürich, naïve café – e\u0301té 😀 “quotes”",
    "首都は東京です。北京是中国的首都。",
    "a\x00b \t\n c\u2028d",
    "  leading and trailing spaces  ",
    "x" * 150,
    "one two three four five six seven eight nine ten eleven twelve",
)


def assert_encoder_contract(encoder: Encoder, *, tolerance: float = 1e-5) -> None:
    """Raise AssertionError unless the encoder keeps the laws of `ragkit.encode.contract`, on a few short texts.

    Counts and order are kept; rows have unit length; an input gets the same vector whatever its neighbours (to `tolerance`);
    truncation is counted or refused; token spans ascend and are in range; there are as many states as tokens. For a model that
    sees, the same holds for pictures, and patches lie within the multi-vector and the picture. The check encodes a few hundred
    tokens, and some small pictures.
    """
    _assert_shapes(encoder)
    _assert_independence(encoder, tolerance=tolerance)
    _assert_truncated_dims(encoder, tolerance=tolerance)
    _assert_tokens(encoder)
    _assert_limit(encoder, tolerance=tolerance)
    _assert_tasks(encoder, tolerance=tolerance)
    if "image" in encoder.card.modalities:
        _assert_images(encoder, tolerance=tolerance)
    assert encoder.card.fingerprint == encoder.card.fingerprint, "the fingerprint changes from call to call"


def _roles(encoder: Encoder) -> list[tuple[str, Encode]]:
    return [("encode_query", encoder.encode_query), ("encode_document", encoder.encode_document)]


def _assert_shapes(encoder: Encoder) -> None:
    for role, encode in _roles(encoder):
        for texts in (list(SAMPLES), list(SAMPLES[:1]), []):
            encoding = encode(texts)
            _assert_outputs(encoding, encoder.card, role)
            if encoding.dense is not None:
                _assert_dense(encoding.dense, (len(texts), encoder.card.dims), role)
            if encoding.multi is not None:
                _assert_multi(encoding.multi, (len(texts), encoder.card.multi_dims), role)
            assert encoding.truncated == 0, f"{role}: {encoding.truncated} truncated, though all fit"


def _assert_outputs(encoding: Encoding, card: EncoderCard, role: str) -> None:
    for output, offered in (("dense", card.dims > 0), ("multi", card.multi_dims > 0)):
        made = getattr(encoding, output) is not None
        assert made == offered == (output in card.outputs), f"{role}: {output} is there: {made}; the card says {card.outputs}"


def _assert_dense(dense: Floats, shape: tuple[int, int], role: str) -> None:
    assert dense.shape == shape, f"{role}: {dense.shape} for {shape[0]} texts of {shape[1]} dims"
    assert dense.dtype == np.float32, f"{role}: dense is {dense.dtype}, not float32"
    assert np.isfinite(dense).all(), f"{role}: dense has values that are not finite"
    _assert_unit(dense, f"{role}: dense")


def _assert_multi(multi: MultiVectors, shape: tuple[int, int], role: str) -> None:
    assert len(multi) == shape[0], f"{role}: {len(multi)} multi-vectors for {shape[0]} texts"
    assert multi.dim == shape[1], f"{role}: multi is {multi.dim} wide, not {shape[1]}"
    _assert_unit(multi.values, f"{role}: multi")


def _assert_unit(rows: Floats, what: str) -> None:
    lengths = np.linalg.norm(rows, axis=1)
    assert np.allclose(lengths, 1, atol=1e-4), f"{what}: row {int(np.abs(lengths - 1).argmax())} is not of unit length"


def _assert_independence(encoder: Encoder, *, tolerance: float) -> None:
    """Order, neighbours and repetition change nothing."""
    for role, encode in _roles(encoder):
        together = encode(list(SAMPLES))
        turned = encode(list(reversed(SAMPLES)))
        for i, text in enumerate(SAMPLES):
            alone = encode([text])
            for what, other, at in (("alone", alone, 0), ("in another order", turned, len(SAMPLES) - 1 - i)):
                if together.dense is not None:
                    gap = np.abs(together.dense[i] - other.dense[at]).max()
                    assert gap <= tolerance, f"{role}: text {i} {what} differs by {gap:.2e}: order or batching leaks"
                if together.multi is not None:
                    mine, theirs = together.multi[i], other.multi[at]
                    assert mine.shape == theirs.shape, f"{role}: text {i} {what} has {len(theirs)} vectors, not {len(mine)}"
                    assert np.abs(mine - theirs).max() <= tolerance, f"{role}: multi-vectors of text {i} {what} differ"


def _assert_truncated_dims(encoder: Encoder, *, tolerance: float) -> None:
    for role, encode in _roles(encoder):
        full = encode(list(SAMPLES)).dense
        if full is None:
            continue
        for dims in {1, -(-encoder.card.dims // 2), encoder.card.dims}:
            cut = encode(list(SAMPLES), truncate_dim=dims).dense
            expected = truncate_dims(full, dims)
            decided = np.linalg.norm(full[:, :dims], axis=1) > 1e-3  # for a prefix of zeros nothing but the length is promised
            assert cut.shape == expected.shape, f"{role}: truncate_dim={dims} gives {cut.shape}"
            gap = np.abs(cut - expected)[decided].max(initial=0)
            assert gap <= 10 * tolerance, f"{role}: truncate_dim={dims} is not the first {dims}, renormalised: off by {gap:.2e}"


def _assert_tokens(encoder: Encoder) -> None:
    counts = encoder.count_tokens(list(SAMPLES))
    assert counts.shape == (len(SAMPLES),), f"count_tokens: {counts.shape} for {len(SAMPLES)} texts"
    for i, text in enumerate(SAMPLES):
        spans = encoder.token_spans(text)
        assert spans.shape == (len(spans), 2), f"token_spans of text {i}: shape {spans.shape}, not (t, 2)"
        _assert_spans(spans, text, f"token_spans of text {i}")
        if not hasattr(encoder, "encode_tokens"):
            continue
        tokens = encoder.encode_tokens(text)
        t = len(tokens.states)
        assert (tokens.spans.shape, tokens.special.shape) == ((t, 2), (t,)), f"encode_tokens of text {i}: sizes differ"
        assert t == counts[i], f"encode_tokens of text {i}: {t} states, count_tokens says {counts[i]}"
        assert not tokens.spans[tokens.special].any(), f"encode_tokens of text {i}: special tokens have spans"
        assert np.array_equal(tokens.spans[~tokens.special], spans), f"encode_tokens and token_spans of text {i} differ"


def _assert_spans(spans: Ints, text: str, what: str) -> None:
    if len(spans) == 0:
        return
    assert (spans[:, 0] <= spans[:, 1]).all(), f"{what}: a span ends before it starts"
    assert (np.diff(spans, axis=0) >= 0).all(), f"{what}: not ascending"
    assert 0 <= spans.min() <= spans.max() <= len(text), f"{what}: outside the text"


def _assert_tasks(encoder: Encoder, *, tolerance: float) -> None:
    """Every task of the card works under its full name, means what the two methods with a role mean, and no other is taken."""
    texts = list(SAMPLES[:3])
    for name in full_tasks(encoder.card):
        expected = encoder.encode(texts, task=name).dense
        family, _, side = name.partition(".")
        methods = {"query": encoder.encode_query, "passage": encoder.encode_document}
        for encode in [method for role, method in methods.items() if side in ("", role)]:
            for task in (family, name):
                _assert_same(encode(texts, task=task).dense, expected, f"{encode.__name__}(task={task!r})", name, tolerance)
    every: tuple[Encode, ...] = (encoder.encode, encoder.encode_query, encoder.encode_document)
    for encode in every:
        try:
            encode(texts, task="no-such-task")
        except ValueError:
            continue
        raise AssertionError("a task that the card does not have was taken")


def _assert_same(dense: Floats | None, expected: Floats | None, call: str, task: str, tolerance: float) -> None:
    assert (dense is None) == (expected is None), f"{call} has other outputs than encode(task={task!r})"
    gap = 0.0 if dense is None or expected is None else np.abs(dense - expected).max()
    assert gap <= tolerance, f"{call} differs from encode(task={task!r}) by {gap:.2e}"


def _assert_limit(encoder: Encoder, *, tolerance: float) -> None:
    """One token over the limit is refused, or counted; what comes after the limit is not seen."""
    limit = encoder.card.max_tokens
    words = ["word"] * limit
    long = " ".join(words)
    assert encoder.count_tokens([long])[0] > limit or encoder.count_tokens([""])[0] == 0, "count_tokens stops at the limit"
    for role, encode in _roles(encoder):
        message = _refusal(encode, ["fits", long + " more"])
        assert message, f"{role}: {limit} words and more were taken without truncate=True"
        assert str(limit) in message, f"{role}: InputTooLong does not name the limit {limit}: {message}"
        cut = encode([long, "fits", long + " and something else"], truncate=True)
        assert cut.truncated == 2, f"{role}: truncated is {cut.truncated} for 2 texts that were cut"
        if cut.dense is not None:
            gap = np.abs(cut.dense[0] - cut.dense[2]).max()
            assert gap <= tolerance, f"{role}: what lies beyond the limit changes the vector by {gap:.2e}"


def _assert_images(encoder: Encoder, *, tolerance: float) -> None:
    """Pictures beside texts and alone get the same vectors, and the patches of a picture lie within both."""
    from PIL import Image as Images

    assert isinstance(encoder, ImageEncoder), f"{encoder.card.name} takes images, but has not both image_size and patches"
    noise = np.random.default_rng(0)
    for width, height in ((61, 83), (200, 40)):
        picture = Images.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8))
        alone, beside = encoder.encode_document([picture]), encoder.encode_document(["a text", picture])
        for output in encoder.card.outputs:
            mine, theirs = getattr(alone, output)[0], getattr(beside, output)[1]
            assert mine.shape == theirs.shape, f"{output} of a picture beside a text is {theirs.shape}, alone {mine.shape}"
            gap = np.abs(mine - theirs).max()
            assert gap <= tolerance, f"{output} of a picture beside a text differs by {gap:.2e}"
        _assert_patches(encoder.patches(width, height), vectors=0 if alone.multi is None else len(alone.multi[0]))
        size = encoder.image_size(width, height)
        assert min(size) > 0, f"image_size: {size}"
        assert size == encoder.image_size(width / 7, height / 7), f"image_size depends on the unit: {size}"


def _assert_patches(patches: Patches, *, vectors: int) -> None:
    assert patches.tokens.ndim == 2, f"patches: tokens of shape {patches.tokens.shape}"
    assert patches.tokens.size, f"patches: tokens of shape {patches.tokens.shape}"
    assert -1 <= patches.tokens.min() <= patches.tokens.max() < vectors or (patches.tokens == -1).all(), (
        f"patches: tokens from {patches.tokens.min()} to {patches.tokens.max()} for {vectors} vectors"
    )
    assert patches.region.area > 0, f"patches: nothing is seen of the picture, {patches.region}"


def _refusal(encode: Encode, texts: Sequence[str]) -> str:
    """Return the message of the InputTooLong that is raised, or ""."""
    try:
        encode(texts)
    except InputTooLong as error:
        return str(error)
    return ""

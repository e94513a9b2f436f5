"""Laws of the default model's encoder, against an oracle that was written from the paper and against sentence-transformers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit.core.arrays import unit_rows
from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.encode import DEFAULT_MODEL, Encoder, load_encoder
from ragkit.encode.checkpoints.checkpoint import read_tensors
from ragkit.encode.models.bert import BertShape, _prepare, _read_weights, forward
from ragkit.encode.models.kernels import NumpyKernels, TorchKernels, runs_of
from ragkit.encode.tokens import Tokenizer
from ragkit.testing import assert_encoder_contract
from tests.encode.conftest import TEXTS
from tests.encode.oracle import Oracle


@pytest.fixture(scope="module")
def oracle(model_folder: Path) -> Oracle:
    return Oracle(model_folder)


def test_it_keeps_the_contract(minilm: Encoder) -> None:
    assert_encoder_contract(minilm)


def test_vectors_equal_the_oracle(minilm: Encoder, oracle: Oracle) -> None:
    expected = np.stack([oracle.vector(text) for text in TEXTS])
    assert np.abs(minilm.encode_document(TEXTS).dense - expected).max() < 1e-5


def test_token_states_equal_the_oracle(minilm: Encoder, oracle: Oracle) -> None:
    for text in TEXTS:
        expected = oracle.states(text)
        assert np.abs(minilm.encode_tokens(text).states - expected).max() < 1e-4


def test_numpy_and_torch_kernels_equal_the_oracle_on_packed_rows(model_folder: Path, oracle: Oracle) -> None:
    shape = BertShape.read(model_folder / "config.json")
    weights = _prepare(_read_weights(read_tensors(model_folder / "model.safetensors"), shape), shape.num_hidden_layers)
    ids = Tokenizer(model_folder / "tokenizer.json").ids([TEXTS[0], TEXTS[2], "other", TEXTS[3]])
    expected = np.concatenate([oracle.states(text) for text in (TEXTS[0], TEXTS[2], "other", TEXTS[3])])
    torch_kernels = TorchKernels("cpu", "float32")
    for kernels, placed in ((NumpyKernels(), weights), (torch_kernels, torch_kernels.place(weights))):
        with kernels.context():
            states = kernels.to_numpy(forward(kernels, placed, shape, ids=ids))
        assert np.abs(states - expected).max() < 1e-4
    assert runs_of([5, 5, 3, 5]) == [(2, 5), (1, 3), (1, 5)]


def test_a_fresh_process_encodes_its_first_query_without_torch(minilm: Encoder) -> None:
    program = (
        "import sys; from ragkit.encode import load_encoder; e = load_encoder(dtype='float32'); "
        "q = ['what is late chunking?', '']; "
        "a = e.encode_query(q).dense; heavy = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules); "
        "b = e.encode_query(['word ' * 200] * 3 + q).dense[3:]; "
        "sys.stdout.buffer.write(bytes([len(heavy), 'torch' in sys.modules]) + a.tobytes() + b.tobytes())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120).stdout
    assert out[:2] == b"\x00\x01"  # nothing heavy for a query; torch from the first large batch on
    a, b = np.frombuffer(out[2:], dtype=np.float32).reshape(2, 2, 384)
    assert np.abs(a - b).max() < 1e-5
    assert np.abs(a - minilm.encode_query(["what is late chunking?", ""]).dense).max() < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_vectors_equal_those_of_sentence_transformers(minilm: Encoder, model_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder), device="cpu", local_files_only=True)
    texts = [*TEXTS, "long " * 400, "[SEP] and [MASK] in a text", "x" * 150]
    theirs = model.encode(texts, normalize_embeddings=True)
    ours = minilm.encode_document(texts, truncate=True)
    assert (ours.dense * theirs).sum(axis=1).min() > 0.99999
    assert ours.truncated == 1


def test_a_vector_does_not_depend_on_batch_order_or_neighbours(minilm: Encoder) -> None:
    rng = np.random.default_rng(7)
    vocabulary = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    texts = [" ".join(rng.choice(vocabulary, size=rng.integers(0, 200))) for _ in range(60)]
    together = minilm.encode_document(texts).dense
    order = rng.permutation(len(texts))
    shuffled = minilm.encode_document([texts[i] for i in order]).dense
    assert np.abs(together[order] - shuffled).max() < 1e-5
    for i in range(0, len(texts), 7):
        assert np.abs(minilm.encode_document([texts[i]]).dense[0] - together[i]).max() < 1e-5


def test_truncating_keeps_the_beginning_and_the_last_special_token(minilm: Encoder, oracle: Oracle) -> None:
    short = load_encoder(max_tokens=10)
    assert short.card.max_tokens == 10
    long = "one two three four five six seven eight nine ten eleven"
    cut = short.encode_query([long], truncate=True)
    assert cut.truncated == 1
    assert np.abs(cut.dense[0] - oracle.vector("one two three four five six seven eight")).max() < 1e-5
    assert short.encode_query(["one two three four five six seven eight"]).truncated == 0


def test_too_long_an_input_is_an_error_that_names_it(minilm: Encoder) -> None:
    for call in (minilm.encode_query, minilm.encode_document):
        with pytest.raises(InputTooLong, match=r"input 2 has 302 tokens.*256"):
            call(["fine", "fine", "word " * 300])
    with pytest.raises(InputTooLong, match="302 tokens"):
        minilm.encode_tokens("word " * 300)


def test_the_limit_is_256_as_published_and_512_at_most(minilm: Encoder, model_folder: Path) -> None:
    assert minilm.card.max_tokens == 256
    wide = load_encoder(max_tokens=512)
    assert wide.encode_document(["word " * 510]).truncated == 0
    with pytest.raises(ValueError, match="between 3 and 512"):
        load_encoder(max_tokens=513)


def test_dims_truncate_by_slicing_and_renormalising(minilm: Encoder) -> None:
    full = minilm.encode_query(TEXTS).dense
    for dims in (1, 64, 383, 384):
        cut = minilm.encode_query(TEXTS, truncate_dim=dims).dense
        assert np.abs(cut - unit_rows(full[:, :dims])).max() < 1e-6
    for dims in (0, 385):
        with pytest.raises(ValueError, match="between 1 and 384"):
            minilm.encode_query(["a"], truncate_dim=dims)


def test_any_python_string_is_taken(minilm: Encoder) -> None:
    odd = ["\ud800", "a\udfffb", "\x00", "\x00" * 50, "\ufeff", "\u200b", "\u202e", "🧑‍🚀" * 20, "e" + "\u0301" * 60]
    dense = minilm.encode_document(odd, truncate=True).dense
    assert np.allclose(np.linalg.norm(dense, axis=1), 1, atol=1e-5)
    assert (
        np.abs(
            minilm.encode_document(["before \ud800 after"]).dense - minilm.encode_document(["before \ufffd after"]).dense
        ).max()
        == 0
    )


def test_what_is_not_text_is_a_type_error(minilm: Encoder) -> None:
    with pytest.raises(TypeError, match="input 1 is NoneType"):
        minilm.encode_query(["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="wrap it in a list"):
        minilm.encode_query("a text")
    with pytest.raises(ValueError, match=r"has the tasks retrieval.query, retrieval.passage, text-matching.*got 'code'"):
        minilm.encode_query(["a"], task="code")


def test_the_mean_of_all_token_states_is_the_vector(minilm: Encoder) -> None:
    for text in TEXTS:
        pooled = unit_rows(minilm.encode_tokens(text).states.mean(axis=0, keepdims=True))
        assert np.abs(pooled - minilm.encode_document([text]).dense).max() < 1e-5


def test_threads_share_an_encoder(minilm: Encoder) -> None:
    expected = minilm.encode_document(TEXTS).dense
    found: list[Any] = [None] * 6

    def work(i: int) -> None:
        found[i] = [minilm.encode_document(TEXTS).dense, minilm.token_spans("some words " * 50), minilm.count_tokens(TEXTS)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.abs(dense - expected).max() < 1e-5 and len(spans) == 100 for dense, spans, _ in found)


def test_many_texts_run_on_several_threads_and_leave_torchs_own_setting_alone(minilm: Encoder) -> None:
    import torch

    texts = [f"{text} number {i}" for i in range(30) for text in TEXTS]
    expected = minilm.encode_document(texts).dense
    before, used = torch.get_num_threads(), []
    original = TorchKernels.alone

    def alone(self: TorchKernels) -> None:
        original(self)
        used.append(self.threads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchKernels, "alone", alone)
        torch.set_num_threads(3)
        try:
            found = minilm.encode_document(texts).dense
            seen = [torch.get_num_threads()]
            fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            fresh.start()
            fresh.join()
            with pytest.raises(InputTooLong, match="input 270 has"):
                minilm.encode_document([*texts, "word " * 300])
        finally:
            torch.set_num_threads(before)
    assert used[:3] == [1, 1, 1]
    assert seen == [3, 3]
    assert np.abs(found - expected).max() < 1e-5


def test_half_precision_stays_close(minilm: Encoder) -> None:
    expected = minilm.encode_document(TEXTS).dense
    for dtype in ("bfloat16", "auto"):
        half = load_encoder(dtype=dtype)
        dense = half.encode_document(TEXTS).dense
        assert dense.dtype == np.float32
        assert (dense * expected).sum(axis=1).min() > 0.9999
        assert half.card.fingerprint != minilm.card.fingerprint
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_encoder(dtype="int8")


def test_auto_is_float32_for_a_query_and_one_setting_on_every_machine(minilm: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from ragkit.encode import precision

    texts, query = [text for text in TEXTS if text] * 4, ["what is late chunking?"]
    made, cards = {}, []
    for native in (False, True):
        monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda torch, native=native: native)
        encoder = load_encoder()
        cards.append(encoder.card)
        made[native] = encoder.encode_document(texts).dense
        assert np.array_equal(encoder.encode_query(query).dense, minilm.encode_query(query).dense)
    assert cards[0] == cards[1]
    assert cards[0].dtype == "auto"
    assert np.array_equal(made[False], minilm.encode_document(texts).dense)
    assert not np.array_equal(made[True], made[False])
    assert (made[True] * made[False]).sum(axis=1).min() > 0.9999


def test_as_a_multi_vector_encoder_it_returns_its_own_tokens_states() -> None:
    encoder = load_encoder("default+multi")
    assert_encoder_contract(encoder)
    assert encoder.card.name == DEFAULT_MODEL + "+multi"
    encoding = encoder.encode_document([*TEXTS])
    for i, text in enumerate(TEXTS):
        tokens = encoder.encode_tokens(text)
        own = tokens.states[~tokens.special] if text else tokens.states
        assert np.abs(encoding.multi[i] - unit_rows(own)).max() < 1e-5


def test_out_of_memory_halves_the_batch_and_goes_on(minilm: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(dtype="float32")
    expected = minilm.encode_document(TEXTS).dense
    original, sizes = TorchKernels.attention, []

    def small_card(self: TorchKernels, qkv: Any, runs: Any, heads: int) -> Any:
        sizes.append(len(qkv))
        if len(qkv) > 70:
            raise self.torch.OutOfMemoryError("the card is full")
        return original(self, qkv, runs, heads)

    monkeypatch.setattr(TorchKernels, "attention", small_card)
    assert np.abs(encoder.encode_document(TEXTS).dense - expected).max() < 1e-5
    assert max(sizes) > 70
    with pytest.raises(EncodeError, match="102 tokens exceeds the memory"):
        encoder.encode_document(["word " * 100])


def test_prefixed_and_half_stored_weights_are_the_same_model(tiny: Callable[..., Path]) -> None:
    from tests.encode.conftest import tiny_tensors

    tensors = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in tiny_tensors().items()}
    plain = load_encoder(
        tiny(tensors={k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in tensors.items()}, name="a")
    )
    stored = load_encoder(tiny(tensors={f"bert.{name}": array for name, array in tensors.items()}, name="b"))
    assert np.array_equal(plain.encode_query(TEXTS[:5]).dense, stored.encode_query(TEXTS[:5]).dense)


def test_a_tiny_checkpoint_of_the_layout_equals_the_oracle(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    encoder, oracle = load_encoder(folder), Oracle(folder)
    assert encoder.card.max_tokens == 40
    texts = TEXTS[:6]
    assert np.abs(encoder.encode_document(texts).dense - np.stack([oracle.vector(text) for text in texts])).max() < 1e-5

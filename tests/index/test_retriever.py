"""The retriever API: refining, widening, streaming and not blocking, each against an independent oracle."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import Document, Hit, Index
from ragkit.core.errors import CheckpointError
from ragkit.core.types import Block, Box, Page, Span, Words
from ragkit.search.rerank import diverse
from ragkit.testing import HashEncoder
from tests.conftest import NOTES, record

QUERY = "fish sold at the harbour"


def keys(hits: Sequence[Hit]) -> list[int]:
    return [hit.key for hit in hits]


# Reranking


def shared_letters(query: str, texts: Sequence[str]) -> list[float]:
    return [float(len(set(query) & set(text))) + len(text) / 1000 for text in texts]


def test_a_reranked_search_is_the_deep_search_sorted_by_the_scorer(index: Index) -> None:
    deep = index.search(QUERY, 50)
    scores = dict(zip(keys(deep), shared_letters(QUERY, [hit.text for hit in deep]), strict=True))
    expected = sorted(scores, key=lambda key: -scores[key])
    hits = index.search(QUERY, 3, rerank=shared_letters)
    assert keys(hits) == expected[:3]
    assert keys(hits) != keys(deep[:3])
    assert [hit.score for hit in hits] == [scores[hit.key] for hit in hits]
    assert [(hit.rank, hit.scale, hit.via[-1].space) for hit in hits] == [(rank, "rerank", "rerank") for rank in (1, 2, 3)]


def test_only_the_candidates_are_reranked_and_min_score_is_on_the_new_scale(index: Index) -> None:
    seen: list[int] = []

    def constant(query: str, texts: Sequence[str]) -> list[float]:
        seen.append(len(texts))
        return [5.0] * len(texts)

    hits = index.search(QUERY, 2, rerank=constant, candidates=4, min_score=4.9)
    assert seen == [4]
    assert keys(hits) == keys(index.search(QUERY, 2))  # equal scores keep their order
    assert index.search(QUERY, 2, rerank=constant, min_score=5.1) == []


@pytest.mark.parametrize("wrong", [lambda query, texts: [1.0], lambda query, texts: [float("nan")] * len(texts)])
def test_a_reranker_that_loses_texts_or_scores_is_an_error(index: Index, wrong: Any) -> None:
    with pytest.raises(ValueError, match="finite score"):
        index.search(QUERY, 3, rerank=wrong)


def test_a_cross_encoder_scores_as_transformers_does(index: Index, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from ragkit.encode.models.cross_encoder import load_cross_encoder

    model, tokenizer = tiny_cross_encoder(tmp_path / "reranker", labels=1)
    hits = index.search(QUERY, 4, rerank=load_cross_encoder(tmp_path / "reranker", device="cpu"))
    deep = index.search(QUERY, 50)
    with torch.no_grad():
        expected = {hit.key: model(**tokenizer(QUERY, hit.text, return_tensors="pt")).logits.sigmoid().item() for hit in deep}
    assert keys(hits) == sorted(expected, key=lambda key: -expected[key])[:4]
    np.testing.assert_allclose([hit.score for hit in hits], [expected[hit.key] for hit in hits], atol=1e-5)

    tiny_cross_encoder(tmp_path / "classifier", labels=3)
    with pytest.raises(CheckpointError, match="3 labels"):
        load_cross_encoder(tmp_path / "classifier", device="cpu")


def tiny_cross_encoder(folder: Path, *, labels: int) -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = sorted({word.strip(".,").lower() for text in (*NOTES.values(), QUERY) for word in text.split()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *words]))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words) + 7,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=labels,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


# Diversity


def test_diversity_is_maximal_marginal_relevance() -> None:
    """Against the formula of the paper, written as a loop over plain Python floats."""
    generator = np.random.default_rng(5)
    for diversity in (0.2, 0.5, 0.9):
        rows = generator.normal(size=(12, 4)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        relevance = generator.random(12).astype(np.float32)
        taken: list[int] = []
        while len(taken) < 7:
            gains = {
                at: (1 - diversity) * float(relevance[at])
                - (diversity * max(float(rows[at] @ rows[other]) for other in taken) if taken else 0.0)
                for at in range(12)
                if at not in taken
            }
            taken.append(max(gains, key=lambda at: gains[at]))
        assert diverse(relevance, rows, k=7, diversity=diversity) == taken


def test_a_diverse_answer_does_not_say_the_same_thing_twice(index: Index) -> None:
    index.add([{"id": f"copy {n}", "text": NOTES["quarry"]} for n in range(5)])
    plain = index.search("the quarry closed", 4, mode="dense")
    assert len({hit.text for hit in plain}) == 1
    for mode in ("dense", "hybrid"):
        hits = index.search("the quarry closed", 4, mode=mode, diversity=0.6)
        assert hits[0].text == plain[0].text
        assert len({hit.text for hit in hits}) == len(hits), mode
        assert [hit.rank for hit in hits] == [1, 2, 3, 4][: len(hits)]


# Phrasings and batches


def test_phrasings_are_fused_by_reciprocal_ranks(index: Index) -> None:
    phrasings = ["Where is fish sold?", "market for the catch", "harbour fishing boats"]
    scores: dict[int, float] = {}
    for one in phrasings:
        for hit in index.search(one, 50):
            scores[hit.key] = scores.get(hit.key, 0.0) + 1 / (15 + hit.rank)
    hits = index.search(phrasings[0], 4, phrasings=phrasings[1:])
    assert keys(hits) == sorted(scores, key=lambda key: (-scores[key], key))[:4]
    np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.key] for hit in hits])
    grouped = index.search(phrasings[0], 5, phrasings=phrasings[1:], group_by="document")
    assert len({hit.document_id for hit in grouped}) == len(grouped)
    with pytest.raises(ValueError, match="one query"):
        index.search_many(phrasings, 4, phrasings=["more"])


def test_a_batch_is_each_query_alone(index: Index) -> None:
    queries = [QUERY, "bread", "granite bridge"]
    for refining in ({}, {"rerank": shared_letters}, {"diversity": 0.4}):
        alone = [keys(index.search(query, 3, **refining)) for query in queries]
        assert [keys(hits) for hits in index.search_many(queries, 3, **refining)] == alone


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"diversity": 1.5}, "between 0 and 1"),
        ({"rerank": "magic"}, "rerank"),
        ({"phrasings": "one text"}, "phrasings"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_refining_nonsense_is_refused_by_name(index: Index, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        index.search(QUERY, **wrong)
    with pytest.raises((ValueError, TypeError), match=said):
        index.as_retriever(**wrong)


# Widening


def test_neighbours_join_into_the_text_between_them(index: Index) -> None:
    text = " ".join(f"Sentence number {n} says {'abc'[n % 3]}." for n in range(30))
    index.add([{"id": "long", "text": text}])
    units = sorted(index.search("sentence", 100, mode="dense", filters={"source": "long"}), key=lambda hit: hit.span.start)
    assert len(units) > 4
    for at in (0, 2, len(units) - 1):
        for before, after in ((1, 1), (0, 2), (100, 0)):
            wide = units[at].expand(before=before, after=after)
            first, last = units[max(at - before, 0)], units[min(at + after, len(units) - 1)]
            assert tuple(wide.span) == (first.span.start, last.span.end)
            assert wide.text == wide.span.of(text)
            assert (wide.key, wide.rank, wide.score) == (units[at].key, units[at].rank, units[at].score)
    assert units[2].expand() is units[2]


def paged(name: str, pages: int) -> Document:
    """Five words a page, a box each, pages split by a blank line."""
    texts = [" ".join(f"p{page}w{word}" for word in range(5)) + "." for page in range(1, pages + 1)]
    text, made, at = "\n\n".join(texts), [], 0
    for number, one in enumerate(texts, start=1):
        spans = [(at + one.index(word), at + one.index(word) + len(word)) for word in one.rstrip(".").split()]
        boxes = [(10 + 50 * w, 10, 55 + 50 * w, 20) for w in range(5)]
        words = Words(np.array(spans, dtype=np.int64), np.array(boxes, dtype=np.float32))
        made.append(Page(number, 300, 400, Span(at, at + len(one)), words))
        at += len(one) + 2
    return Document(id=name, text=text, pages=tuple(made))


def test_a_whole_page_is_cited_with_its_boxes(tmp_path: Path) -> None:
    spans = lambda document: [Span(page.span.start + 5, page.span.end - 6) for page in document.pages]  # noqa: E731
    with Index.open(tmp_path / "library", model=HashEncoder(dims=64), chunker=spans) as index:
        index.add([paged("book", 3), {"id": "note", "text": "no pages here"}])
        hit = index.search("p2w2", 1, filters={"source": "book"}, mode="lexical")[0]
        page = hit.expand(to="page")
        assert page.text == "p2w0 p2w1 p2w2 p2w3 p2w4."
        assert page.pages == (2,)
        covered = [one.box for one in page.boxes]
        assert Box(min(b.x0 for b in covered), 10, max(b.x1 for b in covered), 20) == Box(10, 10, 255, 20)
        assert len(hit.text) < len(page.text)
    with Index.open(tmp_path / "notes", model=HashEncoder(dims=64)) as index:
        index.add([{"id": "note", "text": "no pages here"}])
        assert index.search("pages", 1)[0].expand(to="page").text == "no pages here"


def test_a_section_ends_at_the_next_heading_of_its_level(tmp_path: Path) -> None:
    text = "before\n\nOne\n\nalpha\n\nOne a\n\nbeta\n\nTwo\n\ngamma"
    levels = {"One": 1, "One a": 2, "Two": 1}
    blocks = []
    for line in text.split("\n\n"):
        at = text.index(f"\n\n{line}\n\n") + 2 if line in levels else text.index(line)
        kind = "heading" if line in levels else "paragraph"
        blocks.append(Block(kind, Span(at, at + len(line)), levels.get(line, 0)))
    spans = lambda document: [block.span for block in document.blocks]  # noqa: E731
    with Index.open(tmp_path / "library", model=HashEncoder(dims=64), chunker=spans) as index:
        index.add([Document(id="d", text=text, blocks=tuple(blocks))])
        found = {
            name: index.search(name, 1, mode="lexical")[0].expand(to="section").text.strip()
            for name in ("before", "alpha", "beta", "gamma")
        }
    assert found == {
        "before": "before",
        "alpha": "One\n\nalpha\n\nOne a\n\nbeta",
        "beta": "One a\n\nbeta",
        "gamma": "Two\n\ngamma",
    }


def test_a_hit_of_a_purged_version_says_so_and_copies_stay_values(index: Index) -> None:
    hit = index.search("bread flour", 1)[0]
    assert copy.deepcopy(hit).expand(after=1).text == hit.expand(after=1).text
    with pytest.raises(ValueError, match="does not know its index"):
        pickle.loads(pickle.dumps(hit)).expand(after=1)
    with pytest.raises(ValueError, match="before and after"):
        hit.expand(before=-1)
    with pytest.raises(ValueError, match="'page' or 'section'"):
        hit.expand(to="book")
    for n in range(3):  # a version is purged once no snapshot can see it
        index.add([record("bread", f"Cake number {n} needs sugar.")])
    with pytest.raises(ValueError, match="bread was replaced or deleted"):
        hit.expand(after=1)


# Streaming and not blocking


def test_a_stream_is_the_search_read_as_it_is_taken(index: Index) -> None:
    index.add([{"id": f"n{n}", "text": f"fish number {n} of the harbour"} for n in range(60)])
    for options in ({}, {"mode": "dense"}, {"mode": "lexical", "filters": {"source": "n3"}}, {"group_by": "document"}):
        expected = [(hit.key, hit.rank, hit.score, hit.text) for hit in index.search(QUERY, 45, **options)]
        stream = index.stream(QUERY, 45, **options)
        assert [(hit.key, hit.rank, hit.score, hit.text) for hit in stream] == expected


def test_a_stream_sees_the_commit_of_its_call(index: Index) -> None:
    units = index.stats().units
    stream = index.stream(QUERY)
    first = next(stream)
    index.delete(list(NOTES))
    index.add([{"id": "new", "text": QUERY}])
    rest = [hit.document_id for hit in stream]
    assert first.document_id in NOTES
    assert set(rest) <= set(NOTES)
    assert len(rest) + 1 == units


class Blocking(HashEncoder):
    """Encodes queries only while `gate` is open."""

    gate = threading.Event()

    def encode_query(self, queries: Sequence[Any], **options: Any) -> Any:
        assert self.gate.wait(timeout=20)
        return super().encode_query(queries, **options)


def test_async_twins_leave_the_loop_free(index: Index) -> None:
    """The search can end only after the loop has opened the gate, so a twin that blocked the loop would time out."""
    expected = keys(index.search(QUERY, 3))
    index.close()
    with Index.open(index.path, model=Blocking(dims=64)) as slow:
        retriever = slow.as_retriever(k=3)

        async def run() -> list[Any]:
            slow.encoder  # noqa: B018  (the fingerprint is checked before the gate matters)
            found = []
            for start in (lambda: slow.asearch(QUERY, 3), lambda: retriever.asearch(QUERY)):
                Blocking.gate.clear()
                task = asyncio.create_task(start())
                await asyncio.sleep(0.02)
                assert not task.done()
                Blocking.gate.set()
                found.append(keys(await task))
            assert (await slow.aadd([record("otter", "gone fishing")])).updated
            return found

        assert asyncio.run(run()) == [expected] * 2

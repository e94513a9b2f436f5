"""Hits become better hits: the answers to several phrasings fused, reranked by a second model, made diverse.

Hits in, hits out, ranks counted anew; what is cited does not change. The order of the steps:

    answers to each phrasing ─ fuse by reciprocal ranks ─ rerank ─ min_score ─ diversify ─ the first k

Each step sees at most `candidates` hits, so that what it costs does not grow with the index.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from ragkit.core.space import Space
from ragkit.core.types import Floats, Hit, Hits, Reason
from ragkit.search.request import CrossEncoder, Scorer, SearchRequest

_CROSS_ENCODER = threading.Lock()  # the tokenizer of a CrossEncoder must not be used by two threads at once


def refine(
    query: str,
    answers: Sequence[Hits],
    request: SearchRequest,
    *,
    constant: float,
    rows: Callable[[list[int]], Mapping[int, Floats]],
    maxsim: Callable[[list[int]], Mapping[int, float]],
) -> Hits:
    """Return the best hits of the answers to a query and its phrasings.

    constant: of reciprocal-rank fusion over the answers. rows: gives the stored vectors, (d,), of the keys that have one. maxsim:
    gives the scores of keys by their multi-vectors.
    """
    hits = fuse_answers(answers, constant=constant, group_by=request.group_by) if len(answers) > 1 else list(answers[0])
    hits = _reranked(query, hits[: max(request.k, request.candidates)], request, maxsim)
    if request.min_score is not None and request.rescores:
        hits = [hit for hit in hits if hit.score >= request.min_score]
    if request.diversity and hits:
        hits = _diversified(hits, request, rows)
    missing = dict.fromkeys(problem for answer in answers for problem in answer.missing)
    return Hits(_ranked(hits[: request.k]), missing=missing)


def _reranked(
    query: str, hits: list[Hit], request: SearchRequest, maxsim: Callable[[list[int]], Mapping[int, float]]
) -> list[Hit]:
    if isinstance(request.rerank, str):
        return rerank_by_maxsim(hits, maxsim([hit.key for hit in hits]))
    return hits if request.rerank is None or not hits else rerank(query, hits, request.rerank)


def _diversified(hits: list[Hit], request: SearchRequest, rows: Callable[[list[int]], Mapping[int, Floats]]) -> list[Hit]:
    relevance = np.array([hit.score for hit in hits], dtype=np.float32)
    if hits[0].scale != "cosine":
        relevance = _unit_range(relevance)
    keys = [hit.key for hit in hits]
    order = diverse(relevance, _stacked(keys, rows(keys)), k=request.k, diversity=request.diversity)
    return [hits[at] for at in order]


def _stacked(keys: Sequence[int], known: Mapping[int, Floats]) -> Floats:
    """(n, d): a unit without a vector gets zeros, and so is like none and unlike none."""
    width = len(next(iter(known.values()))) if known else 1
    return np.stack([known.get(key, np.zeros(width, dtype=np.float32)) for key in keys])


def _ranked(hits: Sequence[Hit]) -> list[Hit]:
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]


def fuse_answers(answers: Sequence[Sequence[Hit]], *, constant: float, group_by: str | None = None) -> list[Hit]:
    """Return every hit of several answers once, by the sum of 1 / (constant + rank) over its answers; ties by key.

    A page that one answer found as a chunk that stands on it is that chunk in the others. A hit keeps the reasons of the
    answer that ranked it best. group_by="document": the best hit of each document.
    """
    scores: dict[int, float] = {}
    best: dict[int, Hit] = {}
    found_as = {why.key: hit.key for hits in answers for hit in hits for why in hit.via if why.key is not None}
    for hits in answers:
        for hit in hits:
            key = found_as.get(hit.key, hit.key)
            scores[key] = scores.get(key, 0.0) + 1.0 / (constant + hit.rank)
            if key not in best or (hit.key == key, -hit.rank) > (best[key].key == key, -best[key].rank):
                best[key] = hit
    fused = [replace(best[key], score=scores[key], scale="rrf") for key in sorted(scores, key=lambda key: (-scores[key], key))]
    if group_by is None:
        return _ranked(fused)
    first: dict[str, Hit] = {}
    for hit in fused:
        first.setdefault(hit.document_id, hit)
    return _ranked(list(first.values()))


def rerank(query: str, hits: Sequence[Hit], scorer: CrossEncoder | Scorer) -> list[Hit]:
    """Return the hits by the scorer's scores, highest first; equal scores keep their order. ValueError for wrong scores."""
    texts = [hit.text for hit in hits]
    if hasattr(scorer, "predict"):  # before callable(): a CrossEncoder is a torch module, and those can be called, too
        with _CROSS_ENCODER:
            predicted = cast(CrossEncoder, scorer).predict([(query, text) for text in texts], show_progress_bar=False)
    else:
        predicted = scorer(query, texts)
    scores = [float(score) for score in predicted]
    if len(scores) != len(hits) or not all(map(math.isfinite, scores)):
        raise ValueError(
            f"the reranker must return a finite score for each of {len(hits)} texts, got {len(scores)}: {scores[:5]}"
        )
    order = sorted(range(len(hits)), key=lambda at: (-scores[at], at))
    return [
        replace(hits[at], rank=rank, score=scores[at], scale="rerank", via=(*hits[at].via, Reason("rerank", rank, scores[at])))
        for rank, at in enumerate(order, start=1)
    ]


def rerank_by_maxsim(hits: Sequence[Hit], scores: Mapping[int, float]) -> list[Hit]:
    """Return the hits by their scores, highest first, ties by key; the score is on the scale of mode="multi"."""
    order = sorted(hits, key=lambda hit: (-scores[hit.key], hit.key))
    return [
        replace(hit, rank=rank, score=scores[hit.key], scale="maxsim", via=(*hit.via, Reason(Space.MULTI, rank, scores[hit.key])))
        for rank, hit in enumerate(order, start=1)
    ]


def diverse(relevance: Floats, rows: Floats, *, k: int, diversity: float) -> list[int]:
    """Return the positions of k of n hits by maximal marginal relevance (Carbonell & Goldstein 1998), in that order.

    relevance (n,), on the scale of cosines; rows (n, d) unit. Each step takes the highest of (1 - diversity) * relevance -
    diversity * cosine to the most similar one taken before; the first is the most relevant, ties go to the earlier.
    """
    taken = [int(np.argmax(relevance))] if len(relevance) else []
    nearest = np.full(len(relevance), -1.0, dtype=np.float32)
    while taken and len(taken) < min(k, len(relevance)):
        nearest = np.maximum(nearest, rows @ rows[taken[-1]])
        gain = (1 - diversity) * relevance - diversity * nearest
        gain[taken] = -np.inf
        taken.append(int(np.argmax(gain)))
    return taken


def _unit_range(scores: Floats) -> Floats:
    """Scores of any scale between 0, the lowest, and 1, the highest: diversity weighs them against cosines."""
    low, high = float(scores.min()), float(scores.max())
    return np.ones_like(scores) if high == low else (scores - low) / (high - low)

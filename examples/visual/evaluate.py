"""What the trained encoder finds on pages it never saw: figures for retrieval and for heat maps.

    python examples/visual/evaluate.py [--encoder FOLDER] [--pages 200] [--each 3] [--seed 1000000] [--rendered]

The encoder is opened as any other, by `ragkit.load_encoder`. Retrieval: each query ranks all pages, by MaxSim over the
multi-vectors and by the product of the dense vectors; it is right when it is true of the first page, and chance is the share
of pages that it is true of. Heat maps: over the page that a query was made for, each token of the query marks the
cell that it matches best, with its share of the score; the map is right when its largest cell is one that a box of what was
asked covers, and chance is the share of such cells. `--rendered`: the pages go through a PDF of scans and PyMuPDF first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pages import Page, Query, covered, draw_page, make_page, queries_of, write_pdf
from PIL import Image

from ragkit import load_encoder
from ragkit.store.vectors.maxsim import explain, scan
from ragkit.store.vectors.tiles import Items

ENCODER = Path(__file__).parent / "encoder"
UNSEEN = 1_000_000  # seeds from here on are not used in training


@dataclass(frozen=True, slots=True)
class Found:
    """Of one kind of query: how many, how many right by the first place, mean reciprocal rank, and what chance has of both."""

    queries: int
    hit: float
    mrr: float
    chance: float


@dataclass(frozen=True, slots=True)
class Warm:
    """Of heat maps: how many, the rate of those that are right, the share of all heat that lies on the boxes, and chance."""

    queries: int
    hit: float
    on_box: float
    chance: float


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Pages and queries with their vectors; home: the page each query was made for."""

    pages: Sequence[Page]
    queries: Sequence[Query]
    home: Sequence[int]
    items: Items
    dense: Any  # (pages, d)
    tokens: Sequence[Any]  # (q, m) of each query
    query_dense: Any  # (queries, d)


def encode(encoder: Any, pages: Sequence[Page], images: Sequence[Any], *, each: int, seed: int) -> Encoded:
    home, queries = zip(*queries_of(pages, seed=seed, each=each), strict=True)
    seen, asked = encoder.encode_document(images), encoder.encode_query([query.text for query in queries])
    items = Items(seen.multi.values, seen.multi.offsets, np.arange(len(pages)))
    return Encoded(pages, queries, home, items, seen.dense, [asked.multi[n] for n in range(len(queries))], asked.dense)


def rankings(encoded: Encoded, space: str) -> Iterator[list[int]]:
    """Of each query, all pages, best first. space: "multi" or "dense"."""
    if space == "dense":
        scores = encoded.query_dense @ encoded.dense.T
        yield from np.argsort(-scores, axis=1, kind="stable").tolist()
        return
    for keys, _ in scan(encoded.tokens, encoded.items, k=len(encoded.pages)):
        yield keys.tolist()


def retrieval(encoded: Encoded, space: str) -> dict[str, Found]:
    """By kind of query: those for one word, one figure, two things, and all."""
    rows: dict[str, list[tuple[float, float, float]]] = {"word": [], "figure": [], "two things": [], "all": []}
    for query, ranking in zip(encoded.queries, rankings(encoded, space), strict=True):
        true = np.array([query.true_of(encoded.pages[n]) for n in ranking])
        row = (float(true[0]), 1 / (1 + int(true.argmax())), float(true.mean()))
        kind = "two things" if len(query.things) > 1 else "word" if query.things[0].word else "figure"
        rows[kind].append(row)
        rows["all"].append(row)
    return {kind: Found(len(own), *np.mean(own, axis=0).tolist()) for kind, own in rows.items() if own}


def heat(encoder: Any, encoded: Encoded, query: int, page: int) -> Any:
    """(rows, columns): of each cell of a page, the shares of the score that it won."""
    width, height = encoded.pages[page].width, encoded.pages[page].height
    cells = encoder.patches(width, height).tokens
    winners, shares = explain(encoded.tokens[query], encoded.items, page)
    per_token = np.zeros(int(np.diff(encoded.items.offsets)[page]))
    np.add.at(per_token, winners, shares)
    return per_token[cells]


def heat_maps(encoder: Any, encoded: Encoded) -> dict[str, Warm]:
    """By kind of query, of those for one thing."""
    rows: dict[str, list[tuple[float, float, float]]] = {"word": [], "figure": [], "all": []}
    for n, (query, page) in enumerate(zip(encoded.queries, encoded.home, strict=True)):
        if len(query.things) > 1:
            continue
        warm = heat(encoder, encoded, n, page)
        right = np.any([covered(box, encoded.pages[page]) for box in query.boxes(encoded.pages[page])], axis=0)
        row = float(right.ravel()[warm.argmax()]), float(warm[right].sum() / warm.sum()), float(right.mean())
        rows["word" if query.things[0].word else "figure"].append(row)
        rows["all"].append(row)
    return {kind: Warm(len(own), *np.mean(own, axis=0).tolist()) for kind, own in rows.items() if own}


def rendered(pages: Sequence[Page], encoder: Any) -> list[Image.Image]:
    """As PyMuPDF shows a PDF of them, in the size that the encoder asks for."""
    import pymupdf

    images = []
    with tempfile.TemporaryDirectory() as folder:
        write_pdf(Path(folder) / "scans.pdf", pages)
        with pymupdf.open(Path(folder) / "scans.pdf") as document:
            for page in document:
                width, height = encoder.image_size(page.rect.width, page.rect.height)
                pixels = page.get_pixmap(matrix=pymupdf.Matrix(width / page.rect.width, height / page.rect.height))
                images.append(Image.frombytes("RGB", (pixels.width, pixels.height), pixels.samples))
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", default=str(ENCODER))
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--seed", type=int, default=UNSEEN)
    parser.add_argument("--rendered", action="store_true")
    args = parser.parse_args()
    encoder = load_encoder(args.encoder)
    pages = [make_page(args.seed + n) for n in range(args.pages)]
    images = rendered(pages, encoder) if args.rendered else [draw_page(page, scale=2).reduce(2) for page in pages]
    encoded = encode(encoder, pages, images, each=args.each, seed=args.seed)
    print(f"| {len(pages)} pages | queries | hit@1 | MRR | chance of hit@1 |\n|---|---|---|---|---|")
    for space in ("multi", "dense"):
        for kind, found in retrieval(encoded, space).items():
            print(f"| {space}, {kind} | {found.queries} | {found.hit:.3f} | {found.mrr:.3f} | {found.chance:.3f} |")
    print("\n| heat maps | queries | largest cell on the box | heat on the box | area of the box |\n|---|---|---|---|---|")
    for kind, warm in heat_maps(encoder, encoded).items():
        print(f"| {kind} | {warm.queries} | {warm.hit:.3f} | {warm.on_box:.3f} | {warm.chance:.3f} |")


if __name__ == "__main__":
    main()

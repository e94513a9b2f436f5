"""Evidence on pages and fewer vectors for them: how constants were chosen, and what reductions cost.

    python benchmarks/visual.py boxes [--encoder FOLDER] [--pages 200]          # how far to smooth, and where to cut
    python benchmarks/visual.py reduce --encoder FOLDER [--pages 200] [--each 3] [--alike 0.98]

boxes: pages of examples/visual/pages.py. Without an encoder they are three times as large as the small encoder's, and for each
query of three to nine tokens winners are drawn at random, most in a cell of what is asked, the others anywhere; with one, the
winners are its own. Reported for each choice of constants: the share of wanted things that a box meets, the share of boxes that
meet none, how much of a box that meets one lies on it, and how many boxes a page has.

reduce: pages and queries that the encoder in the folder never saw. Reported for each reduction, of one run: vectors and bytes
(int8) a page, hit@1 and mean reciprocal rank by MaxSim, how much of the first evidence box lies on one thing that was asked
for, and what share of the page all those take, which is chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ragkit import load_encoder
from ragkit.core.arrays import MultiVectors
from ragkit.core.types import Box, Patches
from ragkit.search import heat
from ragkit.search.heat import Relevance, evidence_boxes, relevance
from ragkit.store.vectors import patches as reducing
from ragkit.store.vectors.maxsim import explain, scan
from ragkit.store.vectors.multi_layout import Layout
from ragkit.store.vectors.tiles import Items

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "visual"))
from pages import CELL, Page, covered, draw_page, make_page, queries_of

UNSEEN = 1_000_000  # seeds of pages that no encoder was trained on
LARGER = 3
ON = 0.7  # of a query's tokens, drawn in a cell of what is asked
REDUCTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("all vectors", {}),
    ("pool 2", {"pool": 2}),
    ("pool 3", {"pool": 3}),
    ("pool 4", {"pool": 4}),
    ("pool 9", {"pool": 9}),
    ("no copies", {"background": False, "image": False}),
    ("no bare paper", {"background": False}),
    ("no bare paper, pool 4", {"background": False, "pool": 4}),
)


def on_page(box: Sequence[float], page: Page) -> Box:
    x0, y0, x1, y1 = box
    return Box(x0 / page.width, y0 / page.height, x1 / page.width, y1 / page.height)


def overlap(one: Box, other: Box) -> float:
    return Box(max(one.x0, other.x0), max(one.y0, other.y0), min(one.x1, other.x1), min(one.y1, other.y1)).area


def drawn(rng: np.random.Generator, page: Page, wanted: Sequence[Sequence[float]]) -> Relevance:
    """The relevance of a query of three to nine tokens."""
    rows, columns = -(-page.height // CELL), -(-page.width // CELL)
    patches = Patches(Box(0, 0, 1, 1), np.arange(rows * columns).reshape(rows, columns))
    count = int(rng.integers(3, 10))
    winners = rng.integers(0, rows * columns, count)
    for token in np.flatnonzero(rng.random(count) < ON):
        cells = np.flatnonzero(covered(wanted[rng.integers(len(wanted))], page))
        winners[token] = rng.choice(cells)
    return relevance(winners, rng.uniform(0.3, 0.9, count), patches)


def judged(found: Sequence[Box], wanted: Sequence[Box]) -> tuple[float, float, float]:
    """(share of wanted things met, share of boxes that meet none, how much of those that do lies on one)."""
    met = np.array([[overlap(box, thing) > 0 for thing in wanted] for box in found]).reshape(len(found), len(wanted))
    inside = [
        max(overlap(box, thing) for thing in wanted) / box.area for box, hit in zip(found, met.any(axis=1), strict=True) if hit
    ]
    wrong = 1 - met.any(axis=1).mean() if found else 0.0
    return float(met.any(axis=0).mean()), float(wrong), float(np.mean(inside)) if inside else 0.0


Case = tuple[Relevance, list[Box]]  # of a query on its page, and where what it asks for is


def drawn_cases(pages: int) -> list[Case]:
    made = [make_page(UNSEEN + n, columns=8 * LARGER, rows=11 * LARGER) for n in range(pages)]
    rng = np.random.default_rng(0)
    cases = []
    for number, query in queries_of(made, seed=UNSEEN, each=3):
        page, wanted = made[number], query.boxes(made[number])
        cases.append((drawn(rng, page, wanted), [on_page(box, page) for box in wanted]))
    return cases


def seen_cases(encoder: Any, pages: int) -> list[Case]:
    made = [make_page(UNSEEN + n) for n in range(pages)]
    images = [draw_page(page, scale=2).resize(encoder.image_size(page.width, page.height)) for page in made]
    seen, cases = encoder.encode_document(images).multi, []
    for number, query in queries_of(made, seed=UNSEEN, each=3):
        similar = encoder.encode_query([query.text]).multi[0] @ seen[number].T
        patches = encoder.patches(images[number].width, images[number].height)
        found = relevance(similar.argmax(axis=1), similar.max(axis=1), patches)
        cases.append((found, [on_page(box, made[number]) for box in query.boxes(made[number])]))
    return cases


def boxes(cases: Sequence[Case]) -> None:
    print(f"{len(cases)} queries\n| sigma, threshold, least | things met | boxes that meet none | of a box on it | boxes |")
    print("|---|---|---|---|---|")
    for sigma, threshold, least in product((0.5, 1.0, 1.5, 2.0), (0.1, 0.25, 0.5), (0.0, 0.1, 0.2)):
        heat.THRESHOLD, heat.LEAST = threshold, least
        heat.smoothed.__kwdefaults__["sigma"] = sigma
        found = [[box for box, _ in evidence_boxes(one)] for one, _ in cases]
        rows = np.mean([judged(own, wanted) for own, (_, wanted) in zip(found, cases, strict=True)], axis=0)
        figures = " | ".join(f"{value:.3f}" for value in rows)
        print(f"| {sigma}, {threshold}, {least} | {figures} | {np.mean([len(own) for own in found]):.2f} |", flush=True)


def reduce(encoder: Any, *, pages: int, each: int) -> None:
    made = [make_page(UNSEEN + n) for n in range(pages)]
    images = [draw_page(page, scale=2).resize(encoder.image_size(page.width, page.height)) for page in made]
    home, queries = zip(*queries_of(made, seed=UNSEEN, each=each), strict=True)
    seen = encoder.encode_document(images).multi
    asked = encoder.encode_query([query.text for query in queries]).multi
    tokens = [asked[n] for n in range(len(queries))]
    true = np.array([[query.true_of(page) for page in made] for query in queries])
    print(f"{pages} pages, {len(queries)} queries, chance of hit@1 {true.mean():.3f}")
    print("| | vectors a page | bytes a page | hit@1 | MRR | boxes on what was asked | chance |\n|---|---|---|---|---|---|---|")
    layout = Layout(encoder.card.multi_dims)
    for name, settings in REDUCTIONS:
        fewer = [_reduced(encoder, seen[n], image, settings) for n, image in enumerate(images)]
        packed = MultiVectors.pack([vectors for vectors, _ in fewer])
        stored = layout.store(packed)
        items = Items(stored.values, packed.offsets, np.arange(pages), layout.quantiser)
        ranks = [int(true[n][keys].argmax()) for n, (keys, _) in enumerate(scan(tokens, items, k=pages))]
        hit, reciprocal = np.mean([rank == 0 for rank in ranks]), np.mean([1 / (1 + rank) for rank in ranks])
        on, area = _evidence(tokens, items, [where for _, where in fewer], made, queries, home)
        size = len(packed.values) / pages
        print(
            f"| {name} | {size:.1f} | {size * layout.token_bytes:.0f} | {hit:.3f} | {reciprocal:.3f} | {on:.3f} | {area:.3f} |",
            flush=True,
        )


def _reduced(encoder: Any, vectors: Any, image: Any, settings: dict[str, Any]) -> tuple[Any, Patches]:
    given = {"image": image} | settings
    if not given["image"]:
        given["image"] = None
    return reducing.fewer_patches(vectors, encoder.patches(image.width, image.height), **given)


def _evidence(
    tokens: Sequence[Any],
    items: Items,
    where: Sequence[Patches],
    pages: Sequence[Page],
    queries: Sequence[Any],
    home: Sequence[int],
) -> tuple[float, float]:
    """(how much of the best box's area lies on what was asked, how much of the page does), by the page a query was made for."""
    on, area = [], []
    for n, page in enumerate(home):
        winners, shares = explain(tokens[n], items, page)
        found = evidence_boxes(relevance(winners, shares, where[page]))
        wanted = [on_page(box, pages[page]) for box in queries[n].boxes(pages[page])]
        area.append(min(1.0, sum(box.area for box in wanted)))
        on.append(max((overlap(found[0][0], box) for box in wanted), default=0.0) / found[0][0].area if found else 0.0)
    return float(np.mean(on)), float(np.mean(area))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("boxes", "reduce"))
    parser.add_argument("--encoder")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--alike", type=float, default=reducing.ALIKE)
    args = parser.parse_args()
    if args.what == "boxes":
        boxes(seen_cases(load_encoder(args.encoder), args.pages) if args.encoder else drawn_cases(args.pages))
        return
    if args.encoder is None:
        parser.error("reduce needs --encoder")
    reducing.ALIKE = args.alike
    reduce(load_encoder(args.encoder), pages=args.pages, each=args.each)


if __name__ == "__main__":
    main()

"""The visual example: its pages keep their own laws, what is trained is what is served, and the encoder trained by it sees."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit import load_encoder

VISUAL = Path(__file__).parents[2] / "examples" / "visual"
ENCODER = VISUAL / "encoder"
UNSEEN = 1_000_000


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The programs import each other as they do when they are run: from their own folder."""
    sys.path.insert(0, str(VISUAL))
    yield importlib.import_module
    sys.path.remove(str(VISUAL))
    for name in ("pages", "train", "evaluate"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def drawn(example: Any) -> Any:
    return example("pages")


def test_a_page_is_its_seed(drawn: Any) -> None:
    first, again, other = (drawn.draw_page(drawn.make_page(seed)) for seed in (3, 3, 4))
    assert drawn.make_page(3) == drawn.make_page(3)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_query_is_true_of_the_page_it_was_made_for_and_of_each_thing_it_asks_for(drawn: Any) -> None:
    pages = [drawn.make_page(seed) for seed in range(40)]
    asked = list(drawn.queries_of(pages, seed=1, each=3))
    assert len(asked) == 120
    for n, query in asked:
        assert query.true_of(pages[n])
        assert len(query.boxes(pages[n])) >= len(set(query.things))
        assert query.things[-1] == [wanted for wanted in query.asked if wanted][-1]
        gone = replace(pages[n], elements=tuple(e for e in pages[n].elements if not query.things[0].fits(e)))
        assert not query.true_of(gone)


def test_a_box_holds_what_is_drawn(drawn: Any) -> None:
    """Take one thing away, and the page differs within its box and a margin of three units, and nowhere else."""
    for seed in range(12):
        page = drawn.make_page(seed)
        # The last is drawn last, so what is random about the others stays as it is.
        less = replace(page, elements=page.elements[:-1])
        differs = np.asarray(drawn.draw_page(page)) != np.asarray(drawn.draw_page(less))
        rows, columns = np.nonzero(differs.any(axis=2))
        x0, y0, x1, y1 = (2 * side for side in page.elements[-1].box)
        assert len(rows) > 50
        assert columns.min() >= x0 - 7
        assert columns.max() <= x1 + 7
        assert rows.min() >= y0 - 7
        assert rows.max() <= y1 + 7
        assert columns.max() - columns.min() >= 0.85 * (x1 - x0)


def test_covered_cells_are_those_of_the_box(drawn: Any) -> None:
    page = drawn.make_page(0)
    cells = drawn.covered((28, 56, 98, 84), page)
    assert cells.shape == (drawn.ROWS, drawn.COLUMNS)
    assert np.argwhere(cells).tolist() == [[2, 1], [2, 2], [2, 3]]  # half of the last
    assert np.argwhere(drawn.covered((28, 56, 92, 84), page)).tolist() == [[2, 1], [2, 2]]  # 8 of 28 are less than a third
    assert np.argwhere(drawn.covered((30, 60, 33, 62), page)).tolist() == [[2, 1]]  # smaller than a third: the best


@pytest.fixture(scope="module")
def network(example: Any) -> Any:
    train = example("train")
    train.torch.manual_seed(0)
    return train.Network(train.make_tokenizer())


def test_what_is_trained_is_what_is_served(example: Any, drawn: Any, network: Any, tmp_path: Path) -> None:
    train = example("train")
    train.write_encoder(tmp_path, network)
    encoder = load_encoder(tmp_path, dtype="float32")
    pages = [drawn.make_page(seed) for seed in range(3)]
    rng = np.random.default_rng(0)
    queries = [drawn.make_query(rng, page) for page in pages]
    with train.torch.inference_mode():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16())  # as it is written
        multi, dense, image = network.pages(pages, network.see(pages, train.page_pixels(rng, pages, varied=False)))
        tokens, _, query_dense = network.queries(queries)
    seen = encoder.encode_document([drawn.draw_page(page, scale=2).reduce(2) for page in pages])
    asked = encoder.encode_query([query.text for query in queries])
    assert np.abs(seen.dense - dense.numpy()).max() < 1e-3
    assert np.abs(seen.multi.values - multi.flatten(0, 1).numpy()).max() < 1e-3
    assert np.abs(asked.dense - query_dense.numpy()).max() < 1e-3
    assert np.abs(asked.multi.values - tokens.numpy()).max() < 1e-3
    assert encoder.patches(pages[0].width, pages[0].height).tokens.ravel().tolist() == list(range(image.start, image.stop))


def test_a_few_steps_on_one_batch_lower_every_loss(example: Any, drawn: Any, network: Any) -> None:
    train, learner = example("train"), copy.deepcopy(network)
    rng = np.random.default_rng(0)
    pages = [drawn.make_page(seed, columns=8, rows=4) for seed in range(4)]
    queries = [drawn.make_query(rng, page) for page in pages]
    pixels = train.page_pixels(rng, pages, varied=False)
    optimizers = train.make_optimizers(learner)
    history = [train.learn(learner, optimizers, pages, pixels, queries) for _ in range(6)]
    assert np.all(np.array(history[-1]) < np.array(history[0]))


@pytest.fixture(scope="module")
def trained() -> Any:
    return load_encoder(ENCODER)


@pytest.fixture(scope="module")
def encoded(example: Any, drawn: Any, trained: Any) -> Any:
    """Forty pages that were not trained on, and three queries for each."""
    pages = [drawn.make_page(UNSEEN + 5000 + n) for n in range(40)]
    images = [drawn.draw_page(page, scale=2).reduce(2) for page in pages]
    return example("evaluate").encode(trained, pages, images, each=3, seed=7)


@pytest.mark.parametrize(("space", "least", "times"), [("multi", 0.6, 6), ("dense", 0.25, 3)])
def test_the_trained_encoder_finds_pages_it_never_saw(example: Any, encoded: Any, space: str, least: float, times: int) -> None:
    found = example("evaluate").retrieval(encoded, space)["all"]
    assert found.queries == 120
    assert found.hit > max(least, times * found.chance)


def test_its_heat_lies_on_what_was_asked_for(example: Any, encoded: Any, trained: Any) -> None:
    found = example("evaluate").heat_maps(trained, encoded)
    assert found["all"].hit > 0.8 > 4 * found["all"].chance
    assert found["word"].hit > 0.8 > 10 * found["word"].chance
    assert found["all"].on_box > 0.7


def test_the_fixture_is_small_and_says_what_it_is() -> None:
    assert sum(path.stat().st_size for path in ENCODER.rglob("*") if path.is_file()) < 10_000_000
    assert load_encoder(ENCODER).card.licence == "apache-2.0"

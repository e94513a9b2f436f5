"""Where vectors look: a mark in one cell of a picture changes that cell's vector, for every model that sees.

The proof runs whole models, pixels to multi-vector, whose attention is cut: every layer that mixes tokens adds nothing. Then a
token knows its own pixels alone, and which vector a mark changes is which vector looks there. Nothing of our own geometry is
in that.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ragkit.core.types import Box
from ragkit.encode import load_encoder
from ragkit.encode.cache import cached
from ragkit.encode.contract import ImageEncoder, Patches
from ragkit.encode.images import Resizing
from ragkit.search.explain import query_spans
from ragkit.testing import HashEncoder
from tests.encode.checkpoints.jina_clip import write_clip_v1
from tests.encode.checkpoints.jina_v4 import write_v4
from tests.encode.checkpoints.retrievers import write_clip, write_retriever
from tests.encode.checkpoints.stored import edit_tensors, read_tensors
from tests.encode.test_images import picture

SIZES = [(395, 305), (113, 640), (1201, 90), (30, 29), (1300, 1000)]
NOISE = np.random.default_rng(0)


def blank(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (250, 250, 250))


def marked(size: tuple[int, int], box: Box) -> Image.Image:
    """A blank picture with noise in a box, given in fractions of it; one pixel at least."""
    image = blank(size)
    left, top = (min(math.floor(at * side), side - 1) for at, side in zip((box.x0, box.y0), size, strict=True))
    right, bottom = (
        max(low + 1, math.ceil(at * side)) for low, at, side in zip((left, top), (box.x1, box.y1), size, strict=True)
    )
    image.paste(Image.fromarray(NOISE.integers(0, 200, (bottom - top, right - left, 3), dtype=np.uint8)), (left, top))
    return image


def changes(encoder: Any, size: tuple[int, int], boxes: list[Box]) -> list[np.ndarray]:
    """Of each mark, how far it moves each vector of the blank picture, (t,)."""
    multi = encoder.encode_document([blank(size), *(marked(size, box) for box in boxes)]).multi
    return [np.linalg.norm(multi[i] - multi[0], axis=1) for i in range(1, len(multi))]


def some_cells(patches: Patches, count: int = 3) -> list[tuple[int, int]]:
    """The four corners, and others."""
    rows, columns = patches.tokens.shape
    corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]
    return list(
        dict.fromkeys([*corners, *zip(NOISE.integers(rows, size=count), NOISE.integers(columns, size=count), strict=True)])
    )


def assert_marks_are_found(encoder: Any, size: tuple[int, int], *, overviews: int = 0) -> None:
    """What moves when everything is marked is what the grid names, each once, and so many vectors that see all of the picture
    and are no cell's; a mark in a cell moves that cell's vector most, and none that stands for no cell."""
    patches = encoder.patches(*size)
    cells = some_cells(patches)
    whole, *each = changes(encoder, size, [Box(0, 0, 1, 1), *(patches.box(*cell) for cell in cells)])
    seeing = np.flatnonzero(whole > 1e-3)
    assert len(seeing) == patches.tokens.size + overviews
    assert np.isin(patches.tokens, seeing).all()
    assert len(np.unique(patches.tokens)) == patches.tokens.size
    for cell, moved in zip(cells, each, strict=True):
        moved[np.setdiff1d(seeing, patches.tokens)] = 0
        assert moved.argmax() == patches.tokens[cell], f"{size}, cell {cell} of {patches.tokens.shape}"
        assert np.delete(moved, seeing).max(initial=0) < 1e-4, "a mark moves a vector that sees nothing"


def assert_a_cell_sees_its_box(encoder: Any, size: tuple[int, int], cell: tuple[int, int]) -> None:
    """Thin bars across a cell and its neighbours: those that move its vector lie in the cell's box, and fill it."""
    patches = encoder.patches(*size)
    box, step = patches.box(*cell), 1 / 8
    wide, high = box.x1 - box.x0, box.y1 - box.y0
    at = np.arange(-0.5, 1.5, step)  # in cells
    across = [Box(box.x0 + x * wide, box.y0, box.x0 + (x + step) * wide, box.y1) for x in at]
    down = [Box(box.x0, box.y0 + y * high, box.x1, box.y0 + (y + step) * high) for y in at]
    image = Image.new("RGB", size, "white")
    pictures = [image]
    for bar in (*across, *down):
        picture = image.copy()
        corners = [round(side * edge) for side, edge in zip(2 * size, bar, strict=True)]
        picture.paste("black", (*corners[:2], max(corners[0] + 1, corners[2]), max(corners[1] + 1, corners[3])))
        pictures.append(picture)
    multi = encoder.encode_document(pictures).multi
    token = patches.tokens[cell]
    moved = np.array([np.linalg.norm(multi[n][token] - multi[0][token]) for n in range(1, len(pictures))])
    overlap = 1.0
    for side in np.split(moved, 2):
        seen = at[side > 0.5 * np.median(side[4:-4])]
        left, right = seen.min(), seen.max() + step
        overlap *= (min(right, 1) - max(left, 0)) / (max(right, 1) - min(left, 0))
    assert overlap >= 0.9, f"what cell {cell} sees and its box have an IoU of {overlap:.2f}, at a step of {step:.2f} a side"


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny, in its published layout, its attention cut in tower, language model and adapters."""
    folder = write_v4(tmp_path_factory.mktemp("v4"))
    for path in folder.rglob("*.safetensors"):
        mixing = re.compile(r".*(attn\.proj|self_attn\.o_proj)\.(weight|bias|lora_B\.\S+\.weight)")
        cut = {name: np.zeros(array.shape, np.float32) for name, array in read_tensors(path)[0].items() if mixing.fullmatch(name)}
        assert cut
        edit_tensors(path, replace=cut)
    return load_encoder(folder, dtype="float32")


@pytest.mark.parametrize("size", SIZES)
def test_v4_marks_are_found_in_their_cells(v4: Any, size: tuple[int, int]) -> None:
    assert_marks_are_found(v4, size)


def test_what_a_cell_of_v4_sees_is_its_box(v4: Any) -> None:
    assert_a_cell_sees_its_box(v4, (448, 352), (1, 2))


def test_the_words_of_a_query_are_known_behind_its_prefix(v4: Any) -> None:
    query = "a photo of a cat"
    told = v4.query_tokens(query).tolist()
    assert len(told) == len(v4.encode_query([query]).multi[0])
    assert told[0] == [0, 0]
    assert "".join(query[start:end] for start, end in told) == query
    spans = query_spans(v4, query, count=len(told))
    assert spans[0] == ()
    assert [one[0].of(query).strip() for one in spans if one][-1] == "cat"[-len(spans[-1][0].of(query).strip()) :]
    assert query_spans(v4, query, count=3) == []


def test_v4_cells_follow_max_pixels_and_the_size_to_render_at(v4: Any) -> None:
    small = 6 * 28 * 28
    image, patches = picture(300, 200), v4.patches(300, 200, max_pixels=small)
    assert patches.tokens.shape == (2, 3)
    assert len(v4.encode_document([image], max_pixels=small).multi[0]) == v4.image_tokens(300, 200) - 24 + 6
    width, height = v4.image_size(595.3, 841.9)
    assert (width, height) == (4 * 28, 5 * 28)
    assert v4.patches(width, height).tokens.shape == (5, 4)
    with pytest.raises(ValueError, match="above 0"):
        v4.patches(0, 10)


@given(
    width=st.floats(0.1, 1e5),
    aspect=st.floats(1 / 200, 200),
    cells=st.integers(16, 5000),
)
@settings(max_examples=300, deadline=None)
def test_the_size_to_render_at_is_within_the_budget_and_left_as_it_is(width: float, aspect: float, cells: int) -> None:
    rule = Resizing(unit=28, least=4 * 28 * 28, most=cells * 28 * 28)
    size = rule.largest(width, width / aspect)
    assert all(side % 28 == 0 and side >= 28 for side in size)
    assert rule.size(*size) == size
    if 28 not in size:
        assert cells * 28 * 28 / 3 <= size[0] * size[1] <= cells * 28 * 28
        assert abs(math.log(size[0] / size[1] / aspect)) < math.log(2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["colpali", "colqwen2", "colqwen2.5", "tiles"])
def test_marks_are_found_by_what_sentence_transformers_loads(kind: Any, tmp_path: Path) -> None:
    encoder: Any = load_encoder(write_retriever(tmp_path, kind, cut=True))
    for size in SIZES[1:4]:
        assert_marks_are_found(encoder, size, overviews=16 * (kind == "tiles"))
    assert_a_cell_sees_its_box(encoder, (448, 352), (1, 2))
    query, told = "the red image : a", encoder.query_tokens("the red image : a").tolist()
    assert len(told) == len(encoder.encode_query([query]).multi[0])
    assert [query[start:end] for start, end in told if end] == ["the", "red", "image", ":", "a"]
    for width, height in ((612, 792), (1200, 500)):
        seen = encoder.image_size(width, height)
        assert encoder.image_size(*seen) == seen
        assert encoder.patches(*seen).tokens.shape == encoder.patches(4 * seen[0], 4 * seen[1]).tokens.shape
    if kind == "tiles":
        encoder._model[0].processor.image_processor.do_image_splitting = False
        assert encoder.image_size(300, 100) == (64, 64)
        assert_marks_are_found(encoder, (300, 100))


@pytest.mark.filterwarnings("ignore")
def test_vectors_that_a_model_drops_are_not_counted(tmp_path: Path) -> None:
    encoder: Any = load_encoder(write_retriever(tmp_path, "tiles", cut=True, keep_image_tokens=True))
    assert encoder.patches(300, 200).tokens.min() == 0
    assert_marks_are_found(encoder, (300, 200), overviews=16)


@pytest.mark.filterwarnings("ignore")
def test_what_arranges_its_tokens_otherwise_gets_no_box(tmp_path: Path) -> None:
    encoder: Any = load_encoder(write_retriever(tmp_path, "colpali"))
    assert (encoder.patches(300, 200).tokens >= 0).all()
    processor = encoder._model[0].processor.image_processor
    processor.do_center_crop, processor.crop_size = True, {"height": 70, "width": 70}
    processor.size = {"shortest_edge": 70}
    patches = encoder.patches(300, 200)
    assert (patches.tokens == -1).all()
    assert tuple(patches.region) == pytest.approx((17 / 105, 0, 87 / 105, 1))
    processor.do_center_crop, processor.size = None, {"height": 70, "width": 70}
    encoder._model.append(type("Shortening", (type(encoder._model[1]),), {})())  # a module that may drop or join tokens
    assert (encoder.patches(300, 200).tokens == -1).all()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_encoder(write_clip_v1(tmp_path_factory.mktemp("clip")), dtype="float32")


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As sentence-transformers loads it, by its own processor."""
    return load_encoder(write_clip(tmp_path_factory.mktemp("other")))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["clip", "other_clip"])
@pytest.mark.parametrize("size", [(101, 300), (300, 101), (64, 1500)])
def test_clip_sees_its_region_and_nothing_outside(name: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    clip = request.getfixturevalue(name)
    patches = clip.patches(*size)
    region, across = patches.region, 4 / min(size)  # bicubic resizing looks some pixels over the edge
    assert (patches.tokens == -1).all()
    assert max(region.x1 - region.x0, region.y1 - region.y0) == 1
    sides = [Box(0, 0, 1, region.y0), Box(0, region.y1, 1, 1), Box(0, 0, region.x0, 1), Box(region.x1, 0, 1, 1)]
    [plain] = clip.encode_document([blank(size)]).dense
    for side in sides:
        seen = Box(max(side.x0, region.x0), max(side.y0, region.y0), min(side.x1, region.x1), min(side.y1, region.y1))
        assert seen.area == 0
        inner = Box(side.x0 + across * (side.x0 > 0), side.y0 + across * (side.y0 > 0),
                    side.x1 - across * (side.x1 < 1), side.y1 - across * (side.y1 < 1))  # fmt: skip
        if inner.area > 0 and inner.x1 > inner.x0 and inner.y1 > inner.y0:
            assert np.abs(clip.encode_document([marked(size, inner)]).dense[0] - plain).max() < 1e-5
    for row, column in some_cells(patches):
        assert np.abs(clip.encode_document([marked(size, patches.box(row, column))]).dense[0] - plain).max() > 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["clip", "other_clip"])
def test_clip_sees_every_pixel_of_what_is_rendered_at_its_size(name: str, request: pytest.FixtureRequest) -> None:
    clip = request.getfixturevalue(name)
    side = clip.image_size(10, 10)[0]
    for width, height in ((612, 792), (792, 612), (7.5, 7.5)):
        size = clip.image_size(width, height)
        assert min(size) == side
        region = clip.patches(*size).region
        assert (region.x1 - region.x0) * size[0] == pytest.approx(side)
        assert (region.y1 - region.y0) * size[1] == pytest.approx(side)


def test_a_cache_lets_the_geometry_through(tmp_path: Path) -> None:
    encoder = HashEncoder(multi_dims=8, images=True)
    behind: Any = cached(encoder, tmp_path / "cache.db")
    assert isinstance(behind, ImageEncoder)
    assert behind.image_size(595, 842) == encoder.image_size(595, 842)
    assert np.array_equal(behind.patches(100, 300).tokens, encoder.patches(100, 300).tokens)
    with pytest.raises(ValueError, match="sees no images"):
        cached(HashEncoder(), tmp_path / "other.db").patches(1, 1)  # type: ignore[attr-defined]

"""The geometry of a sentence-transformers model's own image processor: how large it sees an image, and which vector looks where.

Nothing depends on a model's name. A blank image goes through the model's own preprocessing, and the result shows which tokens
are image tokens, and which tokens become vectors. Three arrangements of image tokens are known, each proved through whole models
in tests/encode/test_patches.py: a grid whose shape the processor reports (Qwen2-VL and its kin), a square grid (PaliGemma), and
tiles followed by the whole image made small (Idefics3, SmolVLM). Any other arrangement gets a grid without vectors: no box is
better than a wrong one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ragkit.core.images import Image
from ragkit.core.types import Box, Ints, Mask, Patches
from ragkit.encode.images import Resizing, check_sides, shortest_at

UNKNOWN = 1 << 20  # pixels to render for a processor that names no sizes
_WHOLE = Box(0, 0, 1, 1)
_KEEP_TOKENS = ("Dense", "Normalize", "MultiVectorMask")  # modules behind the transformer that leave each token its place

Model = Any  # a SentenceTransformer or MultiVectorEncoder: naming the types would import sentence-transformers, and torch with it
Processor = Any  # transformers' image processor, of whatever class
Features = Any  # what a model's preprocessing returns: tensors by name


def seen_size(model: Model, width: float, height: float) -> tuple[int, int]:
    """Return the (width, height) in pixels at which the model sees an image of these proportions."""
    check_sides(width, height)
    processor = _image_processor(model)
    size = _settings(processor, "size")
    if (unit := _merged(processor)) and {"shortest_edge", "longest_edge"} <= size.keys():
        return Resizing(unit=unit, least=size["shortest_edge"], most=size["longest_edge"]).largest(width, height)
    if tile := _settings(processor, "max_image_size").get("longest_edge"):
        return _tiled(width, height, longest=size.get("longest_edge") or tile, tile=tile, split=processor.do_image_splitting)
    if {"width", "height"} <= size.keys():
        return size["width"], size["height"]
    if "shortest_edge" in size:
        return shortest_at(width, height, size["shortest_edge"])
    return Resizing(unit=1, least=1, most=UNKNOWN).largest(width, height)


def _tiled(width: float, height: float, *, longest: int, tile: int, split: bool) -> tuple[int, int]:
    """Bring the longer side to `longest`, then both to whole tiles."""
    if not split:
        return tile, tile
    scale = longest / max(width, height)
    across, down = (max(1, math.ceil(round(side * scale / tile, 6))) * tile for side in (width, height))
    return across, down


def seen_patches(model: Model, width: int, height: int, *, prompt: str) -> Patches:
    """Return where the vectors of an image look that is encoded alone. Runs the preprocessing, not the model."""
    check_sides(width, height)
    processor = _image_processor(model)
    region = _region(processor, width, height)
    kinds = [type(module).__name__ for module in model]
    if kinds[0] != "Transformer" or not {"MultiVectorMask"} <= set(kinds[1:]) <= set(_KEEP_TOKENS):
        return _without_vectors(region)
    from PIL import Image as Images

    blank = Images.new("RGB", (width, height), "white")
    features = model.preprocess([{"image": blank}], prompt=prompt or None, task="document")
    if "input_ids" not in features:
        return _without_vectors(region)
    at = np.flatnonzero(features["input_ids"][0].numpy() == _image_token(model))
    places = _places(processor, features, blank, count=len(at))
    if places is None or region != _WHOLE:
        return _without_vectors(region)
    with_vector = masked_tokens(model, features, task="document")
    vectors = np.where(with_vector, np.cumsum(with_vector) - 1, -1)
    return Patches(_WHOLE, np.asarray(vectors[at[places]], dtype=np.int64))


def _places(processor: Processor, features: Features, blank: Image, *, count: int) -> Ints | None:
    """Return (rows, columns): which of the `count` image tokens, in reading order, looks at each cell; None if unknown."""
    if "image_grid_thw" in features:
        [frames, high, wide] = features["image_grid_thw"][0].tolist()
        rows, columns = high // processor.merge_size, wide // processor.merge_size
        return _row_by_row(rows, columns) if frames == 1 and rows * columns == count else None
    if _settings(processor, "max_image_size"):
        return _tile_by_tile(processor, blank, count=count)
    side = math.isqrt(count)
    square = count and side * side == count and _settings(processor, "size").keys() >= {"width", "height"}
    return _row_by_row(side, side) if square and getattr(processor, "image_seq_length", None) == count else None


def _row_by_row(rows: int, columns: int) -> Ints:
    return np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)


def _tile_by_tile(processor: Processor, blank: Image, *, count: int) -> Ints | None:
    """Return the image tokens of tiles by rows, each tile a square grid.

    A last grid is of the whole image made small; its tokens stand for no cell, unless there are no tiles.
    """
    processed = processor([[blank]], return_row_col_info=True, return_tensors="pt")
    down, across = int(processed["rows"][0][0]), int(processed["cols"][0][0])
    tiles = down * across
    side = math.isqrt(count // (tiles + 1))
    if not side or (tiles + 1) * side * side != count:
        return None
    if not tiles:
        return _row_by_row(side, side)
    grid = np.arange(tiles * side * side, dtype=np.int64).reshape(down, across, side, side)
    return grid.transpose(0, 2, 1, 3).reshape(down * side, across * side)


def masked_tokens(model: Model, features: Features, *, task: str) -> Mask:
    """Return which tokens of the first input become vectors, in order, by the model's own mask: (tokens,) bool."""
    for module in model:
        if type(module).__name__ == "MultiVectorMask":
            features = module(dict(features), task=task)
    return features["attention_mask"][0].bool().numpy()  # type: ignore[no-any-return]


def _image_token(model: Model) -> int:
    processor = getattr(model[0], "processor", None)
    token = getattr(processor, "image_token_id", None)
    if token is None:
        token = getattr(getattr(model[0], "config", None), "image_token_id", None)
    return -1 if token is None else int(token)


def _region(processor: Processor, width: int, height: int) -> Box:
    """Return the part of the image that remains after cutting out the middle, in fractions; beyond 0-1 where it is padded."""
    if not getattr(processor, "do_center_crop", None):
        return _WHOLE
    cut, size = _settings(processor, "crop_size"), _settings(processor, "size")
    across, down = width, height
    if "shortest_edge" in size:
        shortest = size["shortest_edge"]
        longest = int(shortest * max(width, height) / min(width, height))
        across, down = (shortest, longest) if width <= height else (longest, shortest)
    elif {"width", "height"} <= size.keys():
        across, down = size["width"], size["height"]
    x0, y0 = (across - cut["width"]) // 2 / across, (down - cut["height"]) // 2 / down
    return Box(x0, y0, x0 + cut["width"] / across, y0 + cut["height"] / down)


def _without_vectors(region: Box) -> Patches:
    return Patches(region, np.full((1, 1), -1, dtype=np.int64))


def _image_processor(model: Model) -> Processor:
    """Return the processor's image processor, or the processor itself if it has no other part."""
    processor = getattr(model[0], "processor", None)
    return getattr(processor, "image_processor", processor)


def _merged(processor: Processor) -> int:
    """Return the side in pixels of the patches that become one token; 0 for a processor that merges none."""
    merge, patch = getattr(processor, "merge_size", None), getattr(processor, "patch_size", None)
    return merge * patch if isinstance(merge, int) and isinstance(patch, int) else 0


def _settings(processor: Processor, name: str) -> dict[str, int]:
    """Return a size of the processor, of whatever kind, without the entries that are not set."""
    size = getattr(processor, name, None)
    return {key: value for key, value in dict(size or {}).items() if value is not None}

"""jina-clip-v1, run by us from its published files (Koukounas et al., arXiv 2405.20204): no code of the checkpoint.

Texts and images in one space of 768 dimensions. The text tower is a post-norm BERT with ALiBi in place of positions and a
gated middle, mean-pooled, on packed rows (see `packed.py`). The image tower is EVA-02 B/16: patches with rotary rows and
columns, a norm inside attention and middle, the class token pooled.

The published checkpoint does not hold the text tower's sizes, they stand in another repository; here they are defaults. Its
own code cuts texts at 512 tokens without a word; the model takes 8,192, and so does this. Images are cut to the centre square,
so the ends of a long page are not seen. Cosines of an image and a text are lower than of two texts: never merge the rankings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import unit_and_lengths
from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.core.images import Image
from ragkit.core.types import Box, Floats, Ints, Patches
from ragkit.encode.batching import ahead
from ragkit.encode.checkpoints.checkpoint import check_names_and_shapes, licence_of, read_tensors
from ragkit.encode.checkpoints.layouts import Opening
from ragkit.encode.contract import EncoderCard, Encoding, Item, TokenIds, TokenStates
from ragkit.encode.images import (
    centre_square,
    check_sides,
    normalised,
    shortest_at,
    square_cut,
    upright_rgb,
    upright_size,
)
from ragkit.encode.models.bert import read_tokenizer
from ragkit.encode.models.jina_clip_files import ClipShape, is_buffer
from ragkit.encode.models.jina_clip_towers import Towers
from ragkit.encode.models.kernels import import_torch
from ragkit.encode.models.packed import PackedEncoder
from ragkit.encode.precision import checked_dtype, default_device
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_truncate_dim, split_item, too_long

MAX_TOKENS = 8192  # trained up to here; nothing in the weights depends on it
CPU_IMAGES, GPU_IMAGES = 16, 512  # a batch; 197 tokens each


def load(opening: Opening) -> ClipEncoder:
    """Check and load a folder of the published layout."""
    torch, shape = import_torch(), ClipShape.read(opening.folder)
    tokenizer = read_tokenizer(opening.folder / "tokenizer.json", shape.text.vocab_size)
    tensors = read_tensors(opening.folder / "model.safetensors")
    expected = shape.tensors()
    buffers = [name for name in tensors.arrays if is_buffer(name)]
    shapes = {name: array.shape for name, array in tensors.arrays.items()}
    check_names_and_shapes(tensors.path, shapes, expected, ignorable=buffers)
    max_tokens = MAX_TOKENS if opening.max_tokens is None else opening.max_tokens
    if not 3 <= max_tokens <= MAX_TOKENS:
        raise ValueError(f"max_tokens must be between 3 and {MAX_TOKENS}, which this model was trained for, got {max_tokens}")
    dtype, device = checked_dtype(opening.dtype), opening.device or default_device(torch)
    card = EncoderCard(
        name=opening.name,
        revision=opening.revision_of(tensors.sha256),
        licence=licence_of(opening.folder),
        dims=shape.projection_dim,
        tasks=GENERAL,
        modalities=("text", "image"),
        query_modalities=("text", "image"),
        max_tokens=max_tokens,
        pooling="mean",
        dtype=dtype,
        preprocessing={"weights": tensors.sha256, "tokenizer": tokenizer.sha256, "shape": asdict(shape)},
    )
    card = replace(card, task=checked_task(opening.task, card))
    towers = Towers({name: tensors.float32(name) for name in expected}, shape=shape, device=device, dtype=dtype)
    return ClipEncoder(card, towers=towers, texts=PackedEncoder(card, model=towers, tokenizer=tokenizer))


class ClipEncoder:
    """An `Encoder` and a `TokenEncoder` (see `contract.py`). Thread-safe. Texts and images may be mixed in a call.

    `logit_scale`: softmax of logit_scale times cosines is the model's own probability of texts for an image.
    """

    def __init__(self, card: EncoderCard, *, towers: Towers, texts: PackedEncoder) -> None:
        self.card = card
        self.device = towers.device
        self.logit_scale = towers.logit_scale
        self._towers = towers
        self._texts = texts
        self._together = CPU_IMAGES if towers.device == "cpu" else GPU_IMAGES

    def encode_query(
        self, queries: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """n texts or images -> n unit rows, in order. Raises InputTooLong (unless `truncate`), EncodeError for a bad image."""
        full_task(task, self.card, role="query")
        return self._encode(queries, truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Item], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        """As `encode_query`: this model knows no roles."""
        full_task(task, self.card, role="document")
        return self._encode(documents, truncate_dim=truncate_dim, truncate=truncate)

    def encode(self, inputs: Sequence[Item], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        """As `encode_query`, for any of the general tasks: all are encoded alike."""
        full_task(task, self.card, role=None)
        return self._encode(inputs, truncate_dim=truncate_dim, truncate=truncate)

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        return self._texts.encode_tokens(text, task=task)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        return self._texts.token_ids(text, task=task)

    def encode_ids(self, rows: Sequence[npt.NDArray[Any]], *, task: str | None = None) -> list[Floats]:
        return self._texts.encode_ids(rows, task=task)

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        return self._texts.task_tokens(texts, task)

    def text_of(self, ids: Sequence[int]) -> str:
        return self._texts.text_of(ids)

    def token_spans(self, text: str) -> Ints:
        return self._texts.token_spans(text)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        return self._texts.count_tokens(documents)

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        """(width, height) in pixels with the shorter side as the model has it; of the longer one it sees the middle."""
        return shortest_at(width, height, self._towers.shape.vision.image_size)

    def patches(self, width: int, height: int) -> Patches:
        """The tower's grid over the centre square. One vector stands for all of it: no cell has one of its own."""
        check_sides(width, height)
        vision = self._towers.shape.vision
        size, left, top = square_cut(width, height, vision.image_size)
        right, bottom = left + vision.image_size, top + vision.image_size
        region = Box(left / size[0], top / size[1], right / size[0], bottom / size[1])
        return Patches(region, np.full((vision.grid, vision.grid), -1, dtype=np.int64))

    def _encode(self, inputs: Sequence[Item], *, truncate_dim: int | None, truncate: bool) -> Encoding:
        if isinstance(inputs, str):
            raise TypeError("expected a list of inputs, got one str: wrap it in a list")
        check_truncate_dim(truncate_dim, self.card)
        items = [split_item(i, item) for i, item in enumerate(inputs)]
        for i, (text, image) in enumerate(items):
            if text is not None and image is not None:
                raise TypeError(f"input {i} is a text and an image together, but {self.card.name} takes the one or the other")
        images = {i: image for i, (_, image) in enumerate(items) if image is not None}
        for i, image in images.items():
            upright_size(i, image)  # what cannot be encoded is found before the work begins
        at = [i for i in range(len(items)) if i not in images]
        dense = np.empty((len(items), self.card.dims), dtype=np.float32)
        encoded = self._encode_texts([inputs[i] for i in at], at, truncate=truncate)
        dense[at] = encoded.dense
        self._encode_images(images, dense)
        dense, lengths = unit_and_lengths(dense, truncate_dim)
        if encoded.lengths is not None:
            lengths[at] *= encoded.lengths  # texts come as unit rows
        return Encoding(dense=dense, truncated=encoded.truncated, lengths=lengths)

    def _encode_texts(self, texts: list[str], at: list[int], *, truncate: bool) -> Encoding:
        """Errors name the positions that the texts have among all inputs."""
        try:
            return self._texts.encode_document(texts, truncate=truncate)
        except InputTooLong:
            counts = self._texts.count_tokens(texts)
            first = int(np.argmax(counts > self.card.max_tokens))
            raise too_long(at[first], int(counts[first]), self.card) from None

    def _encode_images(self, images: Mapping[int, Image], dense: Floats) -> None:
        """Write the vectors of the images to their rows; the next batch is decoded while one is computed."""
        order = list(images)
        groups = [order[start : start + self._together] for start in range(0, len(order), self._together)]
        for group, pixels in zip(groups, ahead(partial(self._pixels, images), groups), strict=True):
            self._write(np.array(group), pixels, dense)

    def _pixels(self, images: Mapping[int, Image], group: Sequence[int]) -> Floats:
        """(len(group), 3, side, side)."""
        shape, side = self._towers.shape, self._towers.shape.vision.image_size
        squares = [normalised(centre_square(upright_rgb(i, images[i]), side), shape.mean, shape.std) for i in group]
        return np.stack(squares).transpose(0, 3, 1, 2)

    def _write(self, at: Ints, pixels: Floats, dense: Floats) -> None:
        found = self._towers.see(pixels)
        if not isinstance(found, str):
            dense[at] = found
            return
        if len(at) == 1:
            raise EncodeError(f"an image exceeds the memory of {self.device}: {found}")
        self._together = max(1, len(at) // 2)
        for rows, part in zip(np.array_split(at, 2), np.array_split(pixels, 2), strict=True):
            self._write(rows, part, dense)



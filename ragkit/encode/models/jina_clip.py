"""jina-clip-v1, run by ragkit from its published files (Koukounas et al., arXiv 2405.20204): no code of the checkpoint.

Texts and images in one space of 768 dimensions. The text tower is a post-norm BERT with ALiBi in place of positions and a
gated middle, mean-pooled, on packed rows (see `packed.py`). The image tower is EVA-02 B/16: patches with rotary rows and
columns, a norm inside attention and middle, the class token pooled.

The published checkpoint does not hold the text tower's sizes: they stand in another repository, and are defaults here. Its
own code cuts texts at 512 tokens without saying so; the model takes 8,192, and so does this. Images are cut to the centre square,
so the ends of a long page are not seen. Cosines of an image and a text are lower than of two texts: never merge the rankings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from ragkit.core.arrays import unit_and_lengths
from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.core.images import Image
from ragkit.core.types import Box, Floats, Ints, Patches
from ragkit.encode.batching import ahead
from ragkit.encode.checkpoints.checkpoint import check_names_and_shapes, licence_of, read_tensors
from ragkit.encode.checkpoints.layouts import Checkpoint
from ragkit.encode.contract import EncoderCard, Encoding, IdArray, Item, TokenIds, TokenStates
from ragkit.encode.images import (
    centre_square,
    check_sides,
    normalised,
    shortest_at,
    square_cut,
    upright_rgb,
    upright_size,
)
from ragkit.encode.methods import RoleMethods
from ragkit.encode.models.bert import read_tokenizer
from ragkit.encode.models.jina_clip_files import ClipShape, is_buffer
from ragkit.encode.models.jina_clip_towers import Towers
from ragkit.encode.models.packed import PackedEncoder
from ragkit.encode.precision import checked_dtype, default_device
from ragkit.encode.tasks import GENERAL, checked_task
from ragkit.encode.texts import check_truncate_dim, split_items, too_long
from ragkit.encode.torch_backend import import_torch

MAX_TOKENS = 8192  # trained up to here; nothing in the weights depends on it
CPU_IMAGES, GPU_IMAGES = 16, 512  # a batch; 197 tokens each


def load(checkpoint: Checkpoint) -> ClipEncoder:
    """Check and load a folder of the published layout."""
    folder, settings = checkpoint.folder, checkpoint.settings
    torch, shape = import_torch(), ClipShape.read(folder)
    tokenizer = read_tokenizer(folder / "tokenizer.json", shape.text.vocab_size)
    tensors = read_tensors(folder / "model.safetensors")
    expected = shape.tensors()
    buffers = [name for name in tensors.arrays if is_buffer(name)]
    shapes = {name: array.shape for name, array in tensors.arrays.items()}
    check_names_and_shapes(tensors.path, shapes, expected, ignorable=buffers)
    dtype, device = checked_dtype(settings.dtype), settings.device or default_device(torch)
    card = EncoderCard(
        name=checkpoint.name,
        revision=checkpoint.revision_of(tensors.sha256),
        licence=licence_of(folder),
        dims=shape.projection_dim,
        tasks=GENERAL,
        modalities=("text", "image"),
        query_modalities=("text", "image"),
        max_tokens=_token_limit(settings.max_tokens),
        pooling="mean",
        dtype=dtype,
        preprocessing={"weights": tensors.sha256, "tokenizer": tokenizer.sha256, "shape": asdict(shape)},
    )
    card = replace(card, task=checked_task(settings.task, card))
    towers = Towers({name: tensors.float32(name) for name in expected}, shape=shape, device=device, dtype=dtype)
    return ClipEncoder(card, towers=towers, texts=PackedEncoder(card, model=towers, tokenizer=tokenizer))


def _token_limit(max_tokens: int | None) -> int:
    if max_tokens is None:
        return MAX_TOKENS
    if not 3 <= max_tokens <= MAX_TOKENS:
        raise ValueError(f"max_tokens must be between 3 and {MAX_TOKENS}, which this model was trained for, got {max_tokens}")
    return max_tokens


class ClipEncoder(RoleMethods):
    """An `Encoder` and a `TokenEncoder` (see `contract.py`). Thread-safe. Texts and images may be mixed in a call.

    The model knows neither roles nor tasks: all texts are encoded alike. `logit_scale`: softmax of logit_scale times cosines is
    the model's own probability of texts for an image.
    """

    def __init__(self, card: EncoderCard, *, towers: Towers, texts: PackedEncoder) -> None:
        self.card = card
        self.device = towers.device
        self.logit_scale = towers.logit_scale
        self._towers = towers
        self._texts = texts
        self._images_per_batch = CPU_IMAGES if towers.device == "cpu" else GPU_IMAGES

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        return self._texts.encode_tokens(text, task=task)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        return self._texts.token_ids(text, task=task)

    def encode_ids(self, rows: Sequence[IdArray], *, task: str | None = None) -> list[Floats]:
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
        """Return (width, height) in pixels with the shorter side as the model has it; of the longer one it sees the middle."""
        return shortest_at(width, height, self._towers.shape.vision.image_size)

    def patches(self, width: int, height: int) -> Patches:
        """Return the tower's grid over the centre square. One vector stands for all of it: no cell has one of its own."""
        check_sides(width, height)
        vision = self._towers.shape.vision
        size, left, top = square_cut(width, height, vision.image_size)
        right, bottom = left + vision.image_size, top + vision.image_size
        region = Box(left / size[0], top / size[1], right / size[0], bottom / size[1])
        return Patches(region, np.full((vision.grid, vision.grid), -1, dtype=np.int64))

    def _encode(self, items: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        inputs = self._inputs(items)
        check_truncate_dim(truncate_dim, self.card)
        images = {i: item for i, item in enumerate(inputs) if not isinstance(item, str)}
        for i, image in images.items():
            upright_size(i, image)  # an image that cannot be encoded is reported before the work begins
        texts = {i: item for i, item in enumerate(inputs) if isinstance(item, str)}
        dense = np.empty((len(inputs), self.card.dims), dtype=np.float32)
        positions = list(texts)
        encoded = self._encode_texts(texts, truncate=truncate)
        dense[positions] = encoded.dense
        self._encode_images(images, dense)
        dense, lengths = unit_and_lengths(dense, truncate_dim)
        if encoded.lengths is not None:
            lengths[positions] *= encoded.lengths  # texts come as unit rows
        return Encoding(dense=dense, truncated=encoded.truncated, lengths=lengths)

    def _inputs(self, items: Sequence[Item]) -> list[str | Image]:
        """Return each text or image. Raises TypeError for inputs that are neither, or both."""
        parts = split_items(items)
        for i, (text, image) in enumerate(parts):
            if text is not None and image is not None:
                raise TypeError(f"input {i} is a text and an image together, but {self.card.name} takes the one or the other")
        return [image if text is None else text for text, image in parts]

    def _encode_texts(self, texts: Mapping[int, str], *, truncate: bool) -> Encoding:
        """Encode texts by their positions among all inputs, which errors name."""
        try:
            return self._texts.encode_document([*texts.values()], truncate=truncate)
        except InputTooLong:
            counts = self._texts.count_tokens([*texts.values()])
            first = int(np.argmax(counts > self.card.max_tokens))
            raise too_long([*texts][first], int(counts[first]), self.card) from None

    def _encode_images(self, images: Mapping[int, Image], dense: Floats) -> None:
        """Write the vectors of the images to their rows; the next batch is decoded while one is computed."""
        positions, size = list(images), self._images_per_batch
        batches = [positions[start : start + size] for start in range(0, len(positions), size)]
        for batch, pixels in zip(batches, ahead(partial(self._pixels, images), batches), strict=True):
            self._write(np.array(batch), pixels, dense)

    def _pixels(self, images: Mapping[int, Image], batch: Sequence[int]) -> Floats:
        """Return the images of a batch, (n, 3, side, side)."""
        shape, side = self._towers.shape, self._towers.shape.vision.image_size
        squares = [normalised(centre_square(upright_rgb(i, images[i]), side), shape.mean, shape.std) for i in batch]
        return np.stack(squares).transpose(0, 3, 1, 2)

    def _write(self, rows: Ints, pixels: Floats, dense: Floats) -> None:
        """Write the vectors of the images to their rows of `dense`, in halves if there is no memory for all at once."""
        vectors = self._towers.see(pixels)
        if not isinstance(vectors, str):
            dense[rows] = vectors
            return
        if len(rows) == 1:
            raise EncodeError(f"an image exceeds the memory of {self.device}: {vectors}")
        self._images_per_batch = max(1, len(rows) // 2)
        for half, part in zip(np.array_split(rows, 2), np.array_split(pixels, 2), strict=True):
            self._write(half, part, dense)

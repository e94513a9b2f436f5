"""jina-embeddings-v4, run by ragkit from its published files (Günther et al., arXiv 2506.18902): no code of the checkpoint.

Texts, images, and both together become a dense vector (2048, or its first dimensions) and a multi-vector (128 wide), from one
forward pass. The rules, each as published:

- A text is "Query: ..." or "Passage: ..." by its role; text-matching has "Query: " on both sides. Nothing else is added. Its
  vector is the mean over all tokens; its multi-vector has them all.
- An image stands in a fixed prompt without prefix. Its vector is the mean from <|vision_start|> through <|vision_end|>; its
  multi-vector has all tokens, those of the prompt too.
- A text with an image stands in that prompt in place of "Describe the image.", with its prefix; its vector is the mean from
  <|vision_start|> to the end of the text. Nothing is published about this one: it is ours.
- The adapter is the task's, in all cases; rows of different tasks, texts and images share batches, and each is pooled by its
  own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ragkit.core.arrays import unit_and_lengths, unit_rows
from ragkit.core.errors import EncodeError, InputTooLong
from ragkit.core.images import Image, resized
from ragkit.core.types import Box, Floats, Ints, Patches
from ragkit.encode.batching import ahead
from ragkit.encode.checkpoints.checkpoint import digest_of, licence_of
from ragkit.encode.checkpoints.layouts import Checkpoint
from ragkit.encode.contract import EncoderCard, Encoding, IdArray, Item, TokenIds
from ragkit.encode.images import Resizing, check_sides, normalised, patch_rows, upright_rgb, upright_size
from ragkit.encode.methods import TokenMethods, pack_multi
from ragkit.encode.models.jina_v4_files import MAX_TOKENS, V4Settings, V4Tensors
from ragkit.encode.models.jina_v4_model import QwenAdapted, Row
from ragkit.encode.models.jina_v4_prompts import DESCRIBE, Prompts
from ragkit.encode.precision import checked_dtype, compute_dtype, default_device
from ragkit.encode.tasks import checked_task, full_task, full_task_of_each
from ragkit.encode.texts import check_rows, check_texts, check_truncate_dim, split_items, too_long
from ragkit.encode.tokens import Tokenizer
from ragkit.encode.torch_backend import Tensor, import_torch

CPU_TOKENS, GPU_TOKENS = 2048, 32768  # a batch, padding included
CPU_PATCHES, GPU_PATCHES = 4096, 65536  # of images in a batch, 14 x 14 pixels each: one page of the published size, or 21

# Takes (position of an input, its states (t, d), its multi-vector (t, m)), both on the device.
Sink = Callable[[int, Tensor, Tensor], None]


def load(checkpoint: Checkpoint) -> JinaV4:
    """Check and load a folder of the published layout. dtype None is the files' own, whose weights then stay mapped."""
    folder, settings = checkpoint.folder, checkpoint.settings
    torch, published = import_torch(), V4Settings.read(folder)
    tensors = V4Tensors(folder, published)
    device = settings.device or default_device(torch)
    dtype = checked_dtype(settings.dtype) if settings.dtype else tensors.dtype
    prompts = Prompts(Tokenizer(folder / "tokenizer.json"), published)
    resizing = _resizing(published.resizing, settings.max_pixels)
    with ThreadPoolExecutor(1) as pool:  # hashing leaves the interpreter free
        hashing = pool.submit(digest_of, tensors.files, root=folder)
        network = QwenAdapted(published, tensors, device=device, dtype=getattr(torch, compute_dtype(dtype, device, torch)))
        digest = hashing.result()
    dims = int(published.text["hidden_size"])
    card = EncoderCard(
        name=checkpoint.name,
        revision=checkpoint.revision_of(digest),
        licence=licence_of(folder),
        dims=dims,
        multi_dims=published.multi_dims,
        truncatable_dims=tuple(sorted(width for width in published.matryoshka if width <= dims)),
        tasks=published.tasks,
        modalities=("text", "image"),
        query_modalities=("text", "image"),
        max_tokens=_token_limit(published, settings.max_tokens),
        outputs=("dense", "multi"),
        pooling="mean",
        dtype=dtype,
        preprocessing={
            "weights": digest,
            "tokenizer": prompts.tokenizer.sha256,
            "text": dict(published.text),
            "vision": dict(published.vision),
            "scale": published.scale,
            "min_pixels": resizing.least,
            "max_pixels": resizing.most,
            "mean": published.mean,
            "std": published.std,
        },
    )
    card = replace(card, task=checked_task(settings.task, card))
    return JinaV4(card, network=network, settings=replace(published, resizing=resizing), prompts=prompts)


def _token_limit(settings: V4Settings, max_tokens: int | None) -> int:
    most = min(MAX_TOKENS, int(settings.text["max_position_embeddings"]))
    if max_tokens is not None and not 16 <= max_tokens <= most:
        raise ValueError(f"max_tokens must be between 16 and {most}, which this model takes, got {max_tokens}")
    return max_tokens or most


def _resizing(published: Resizing, max_pixels: int | None) -> Resizing:
    """Return the checkpoint's rule with another upper limit."""
    if max_pixels is None:
        return published
    least = max(published.least, published.unit**2)
    if max_pixels < least:
        raise ValueError(f"max_pixels must be at least {least}, the fewest this model sees of an image, got {max_pixels}")
    return replace(published, most=max_pixels)


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """One input prepared: its row, the range of tokens whose mean is its dense vector, its image, and whether it was cut."""

    row: Row
    start: int
    end: int
    image: Image = None
    size: tuple[int, int] = (0, 0)  # width and height in pixels after resizing
    cut: bool = False


class JinaV4(TokenMethods):
    """An `Encoder` and a `TokenEncoder` (see `contract.py`). Thread-safe. Inputs of all kinds may be mixed in a call.

    `max_pixels` of a call: the most pixels an image keeps, instead of the limit set at loading; the fingerprint holds only the
    latter. Token states are those after the final norm, 2048 wide. Attention is causal: a token's state depends on the tokens
    before it, and on none that follow.
    """

    def __init__(self, card: EncoderCard, *, network: QwenAdapted, settings: V4Settings, prompts: Prompts) -> None:
        self.card = card
        self.device = network.device
        self._network = network
        self._settings = settings
        self._prompts = prompts
        on_cpu = network.device == "cpu"
        self._tokens, self._patches = (CPU_TOKENS, CPU_PATCHES) if on_cpu else (GPU_TOKENS, GPU_PATCHES)

    def encode_query(
        self,
        queries: Sequence[Item],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        truncate: bool = False,
        max_pixels: int | None = None,
    ) -> Encoding:
        """Return n unit rows and n multi-vectors for n texts, images, or pairs of both, in order.

        Raises InputTooLong (unless `truncate`, which cuts texts, never images), EncodeError for a bad image.
        """
        tasks = [full_task(task, self.card, role="query")] * len(queries)
        return self._encode(queries, tasks, truncate_dim=truncate_dim, truncate=truncate, max_pixels=max_pixels)

    def encode_document(
        self,
        documents: Sequence[Item],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        truncate: bool = False,
        max_pixels: int | None = None,
    ) -> Encoding:
        """Encode as `encode_query` does, in the other role. Images are decoded batch by batch."""
        tasks = [full_task(task, self.card, role="document")] * len(documents)
        return self._encode(documents, tasks, truncate_dim=truncate_dim, truncate=truncate, max_pixels=max_pixels)

    def encode(
        self,
        inputs: Sequence[Item],
        *,
        task: str | Sequence[str],
        truncate_dim: int | None = None,
        truncate: bool = False,
        max_pixels: int | None = None,
    ) -> Encoding:
        """Encode by full name or symmetric family: one for all inputs, or one each; a batch may mix them."""
        tasks = full_task_of_each(task, len(inputs), self.card)
        return self._encode(inputs, tasks, truncate_dim=truncate_dim, truncate=truncate, max_pixels=max_pixels)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """Return the prefix's tokens, marked special, and the text's; any length."""
        return self._behind(self._prompts.prefix(full_task(task, self.card, role="document")), text)

    def query_tokens(self, query: str, *, task: str | None = None) -> Ints:
        """Return the characters that each vector of a query text stands for, (t, 2) int64; (0, 0) for the prefix's."""
        prefix = self._prompts.prefix(full_task(task, self.card, role="query"))
        return self._behind(prefix, query).spans[: self.card.max_tokens]

    def _behind(self, prefix: str, text: str) -> TokenIds:
        check_texts([text])
        ids, spans = self._prompts.tokenizer.own(prefix + text)
        spans = spans - len(prefix)
        special = spans[:, 1] <= 0
        spans = np.maximum(spans, 0)  # a text's first token may begin with the prefix's space
        spans[special] = 0
        return TokenIds(ids, spans, special)

    def encode_ids(self, rows: Sequence[IdArray], *, task: str | None = None) -> list[Floats]:
        """Return the states after the final norm of each row of ids within the limit; nothing is added to a row."""
        adapter = full_task(task, self.card, role="document").partition(".")[0]
        check_rows(rows, self.card)
        inputs = [_Input(Row(np.asarray(row, dtype=np.int32), adapter), 0, len(row)) for row in rows]
        states_by_row: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(rows)

        def keep(position: int, states: Tensor, multi: Tensor) -> None:
            states_by_row[position] = states.float().cpu().numpy()

        self._run(inputs, keep)
        return states_by_row

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of the tokenizer's own ids, without prefix."""
        return self._prompts.tokenizer.text_of(ids)

    def task_tokens(self, texts: Sequence[str], task: str) -> Ints:
        """Count as `count_tokens` does, with the prefix of a full task."""
        check_texts(texts)
        prefix = self._prompts.prefix(task)
        return self._prompts.tokenizer.counts([prefix + text for text in texts])

    def image_tokens(self, width: int, height: int) -> int:
        """Return how many tokens the model sees of an upright image alone, those of the prompt around it included."""
        prompts, resizing = self._prompts, self._settings.resizing
        wide, high = (side // resizing.unit for side in resizing.size(width, height))
        return len(prompts.with_image(prompts.tokenizer.ids([DESCRIBE])[0], high, wide))

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        """Return the largest (width, height) in pixels at which the model sees an image of these proportions."""
        return self._settings.resizing.largest(width, height)

    def patches(self, width: int, height: int, *, max_pixels: int | None = None) -> Patches:
        """Return the grid of an image. A cell is four patches that the model joins: 28 x 28 pixels after resizing.

        max_pixels: as for `encode_document`.
        """
        check_sides(width, height)
        resizing = _resizing(self._settings.resizing, max_pixels)
        columns, rows = (side // resizing.unit for side in resizing.size(width, height))
        cells = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
        return Patches(Box(0, 0, 1, 1), len(self._prompts.before) + cells)

    def _encode(
        self, items: Sequence[Item], tasks: Sequence[str], *, truncate_dim: int | None, truncate: bool, max_pixels: int | None
    ) -> Encoding:
        check_truncate_dim(truncate_dim, self.card)
        inputs = self._prepare(items, tasks, truncate=truncate, resizing=_resizing(self._settings.resizing, max_pixels))
        dense = np.empty((len(inputs), self.card.dims), dtype=np.float32)
        multi: list[Floats] = [np.empty((0, 0), dtype=np.float32)] * len(inputs)

        def keep(position: int, states: Tensor, vectors: Tensor) -> None:
            pooled = states[inputs[position].start : inputs[position].end]
            dense[position] = pooled.float().mean(dim=0).cpu().numpy()
            multi[position] = unit_rows(vectors.float().cpu().numpy())

        self._run(inputs, keep)
        dense, lengths = unit_and_lengths(dense, truncate_dim)
        packed = pack_multi(multi, self.card.multi_dims)
        return Encoding(dense, packed, truncated=sum(prepared.cut for prepared in inputs), lengths=lengths)

    def _prepare(self, items: Sequence[Item], tasks: Sequence[str], *, truncate: bool, resizing: Resizing) -> list[_Input]:
        """Return the token ids of all inputs, and the sizes of their images, which are not decoded yet."""
        parts = split_items(items)
        words = [
            DESCRIBE if text is None else self._prompts.prefix(task) + text for (text, _), task in zip(parts, tasks, strict=True)
        ]
        ids = self._prompts.tokenizer.ids(words)
        return [
            self._text(i, row, task, truncate=truncate)
            if image is None
            else self._image(i, image, row, task, beside_text=text is not None, truncate=truncate, resizing=resizing)
            for i, ((text, image), row, task) in enumerate(zip(parts, ids, tasks, strict=True))
        ]

    def _text(self, index: int, ids: npt.NDArray[np.int32], task: str, *, truncate: bool) -> _Input:
        limit = self.card.max_tokens
        if len(ids) > limit and not truncate:
            raise too_long(index, len(ids), self.card)
        return _Input(Row(ids[:limit], task.partition(".")[0]), 0, min(len(ids), limit), cut=len(ids) > limit)

    def _image(
        self,
        index: int,
        image: Image,
        words: npt.NDArray[np.int32],
        task: str,
        *,
        beside_text: bool,
        truncate: bool,
        resizing: Resizing,
    ) -> _Input:
        """Prepare an image. words: the text beside it, which is pooled with it; or else DESCRIBE, which is not."""
        size = resizing.size(*upright_size(index, image))
        wide, high = (side // resizing.unit for side in size)
        prompts = self._prompts
        at = len(prompts.before)
        end = at + high * wide + 1  # behind <|vision_end|>
        room = self.card.max_tokens - end - len(prompts.after)
        if room < 1 or (len(words) > room and not (beside_text and truncate)):
            raise InputTooLong(
                f"input {index} has {end + len(words) + len(prompts.after)} tokens, {high * wide} of them for its image of "
                f"{size[0]} x {size[1]} pixels after resizing, but {self.card.name} is set to take {self.card.max_tokens}. Lower "
                "max_pixels, shorten the text beside it, or pass truncate=True to cut the text"
            )
        fitting = words[:room]
        row = Row(prompts.with_image(fitting, high, wide), task.partition(".")[0], at=at, high=high, wide=wide)
        start = at - 1  # at <|vision_start|>
        return _Input(row, start, end + len(fitting) * beside_text, image=image, size=size, cut=len(words) > room)

    def _run(self, inputs: Sequence[_Input], keep: Sink) -> None:
        """Compute every input, and call `keep` with the results of each."""
        for batch, pixels in ahead(lambda batch: (batch, self._pixels(inputs, batch)), self._batches(inputs)):
            self._run_batch(inputs, batch, pixels, keep)

    def _batches(self, inputs: Sequence[_Input]) -> Iterator[list[int]]:
        """Yield positions, longest first, in batches within both budgets or of one input; by task within a batch."""
        batch: list[int] = []
        patches = longest = 0
        for i in sorted(range(len(inputs)), key=lambda i: -len(inputs[i].row.ids)):
            more = _patches(inputs[i])
            if batch and ((len(batch) + 1) * longest > self._tokens or patches + more > self._patches):
                yield sorted(batch, key=lambda i: inputs[i].row.task)
                batch, patches = [], 0
            longest = longest if batch else len(inputs[i].row.ids)
            batch.append(i)
            patches += more
        if batch:
            yield sorted(batch, key=lambda i: inputs[i].row.task)

    def _pixels(self, inputs: Sequence[_Input], batch: Sequence[int]) -> Floats | None:
        """Return the patches of a batch's images below each other, (patches, 1176); None without images."""
        s, vision = self._settings, self._settings.vision
        shape = {"patch": vision["patch_size"], "frames": vision["temporal_patch_size"], "merge": vision["spatial_merge_size"]}
        rows = [
            patch_rows(normalised(resized(upright_rgb(i, inputs[i].image), inputs[i].size), s.mean, s.std), **shape)
            for i in batch
            if inputs[i].image is not None
        ]
        return np.concatenate(rows) if rows else None

    def _run_batch(self, inputs: Sequence[_Input], batch: Sequence[int], pixels: Floats | None, keep: Sink) -> None:
        """Compute a batch, in halves if there is no memory for all of it."""
        network = self._network
        try:
            with network.context():
                states, multi = network.forward([inputs[i].row for i in batch], pixels)
                for n, i in enumerate(batch):
                    length = len(inputs[i].row.ids)
                    keep(i, states[n, :length], multi[n, :length])
            return
        except network.torch.OutOfMemoryError as error:
            reason = str(error)
        if len(batch) == 1:
            raise EncodeError(f"input {batch[0]} exceeds the memory of {self.device}: {reason}")
        self._tokens, self._patches = max(512, self._tokens // 2), max(1024, self._patches // 2)
        for half in np.array_split(np.array(batch), 2):
            self._run_batch(inputs, half.tolist(), self._pixels(inputs, half.tolist()), keep)


def _patches(prepared: _Input) -> int:
    return 4 * prepared.row.high * prepared.row.wide

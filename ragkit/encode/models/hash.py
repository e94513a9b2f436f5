"""For tests, ours and other people's: an encoder without a model, and a check that any encoder keeps the contract.

`HashEncoder` is deterministic on every machine, fast, needs neither torch nor files, and ranks sensibly: texts that share
words, or parts of words, are similar, and `HashEncoder(images=True)` sees colours: the query "red" finds the pictures with red
in them, and the patch where it is. `assert_encoder_contract(encoder)` raises AssertionError with what is broken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ragkit.core.arrays import MultiVectors, unit_and_lengths, unit_rows
from ragkit.core.images import Image
from ragkit.core.types import Box, Floats, Ints, Patches
from ragkit.encode.contract import EncoderCard, Encoding, TokenIds, TokenStates
from ragkit.encode.images import Resizing, upright_rgb, upright_size
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_texts, check_truncate_dim, split_item, too_long, without_surrogates

VERSION = "1"  # of the vectors: changes with anything that changes them
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs: one token each
_TOKEN = re.compile(f"[{_NO_SPACES}]|[^\\W{_NO_SPACES}]+|[^\\w\\s]")
_NAME = re.compile(
    r"hash(?::(?P<dims>\d+)(?:\+multi(?P<multi>\d+))?(?P<images>\+images)?(?P<asymmetric>\+asymmetric)?(?:\+seed(?P<seed>\d+))?)?"
)
_SPECIALS = 2  # one token before the text, one after it, as most models have: off-by-ones show
_FIRST, _LAST = "\0first", "\0last"  # ids of the special tokens: no word has a NUL in it and goes on
COLOURS = {
    "white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), "red": (255, 0, 0), "orange": (255, 140, 0),
    "yellow": (255, 255, 0), "green": (0, 160, 0), "cyan": (0, 255, 255), "blue": (0, 0, 255), "purple": (128, 0, 128),
    "pink": (255, 160, 200), "brown": (140, 70, 20),
}  # fmt: skip
CELL, MAX_PIXELS = 28, 28 * 28 * 256  # a side of a cell; of an image, 256 cells
_WHITE = 0.05  # of a colour's weight: paper is no content, and a mark stands out from it
_BEFORE, _AFTER = ("\0picture", "\0look"), ("\0end",)  # vectors of the prompt around an image: off-by-prefixes show
_CONTEXT = 0.25  # of the text's mean in each token state: late chunks differ from chunks alone, and the mean keeps its direction


class HashEncoder:
    """Words and their three-letter parts, hashed to signs. An `Encoder`; thread-safe.

    A token's state is a vector of pseudo-random signs, longer words weighing more, plus a share of its text's mean; a text's
    dense vector is the unit mean of all its states. Multi-vectors are the tokens' own, one each, without context.
    asymmetric: queries and documents get different special tokens, so that a test sees roles swapped.
    images: it is an `ImageEncoder` too. A picture is a grid of square cells, each the mean of the words for its pixels' colours
    (`COLOURS`), white weighing little; its multi-vector is two vectors of a prompt, the cells by rows, and one more. Texts
    beside a picture follow it. Cells do not count against max_tokens; max_pixels bounds them.
    """

    def __init__(
        self,
        dims: int = 64,
        *,
        multi_dims: int = 0,
        max_tokens: int = 512,
        images: bool = False,
        asymmetric: bool = False,
        seed: int = 0,
        task: str | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """dims, multi_dims: widths, multi_dims 0 for none. max_tokens: the two special tokens included."""
        if dims < 1 or multi_dims < 0 or max_tokens < _SPECIALS + 1 or seed < 0:
            raise ValueError(
                f"HashEncoder needs dims >= 1, multi_dims >= 0, max_tokens >= {_SPECIALS + 1}, seed >= 0, "
                f"got {dims}, {multi_dims}, {max_tokens}, {seed}"
            )
        if max_pixels is not None and not (images and max_pixels >= CELL**2):
            raise ValueError(f"max_pixels is for HashEncoder(images=True), from {CELL**2} on, one cell; got {max_pixels}")
        flags = "+images" * images + "+asymmetric" * asymmetric
        parts = (f"+multi{multi_dims}" * bool(multi_dims), flags, f"+seed{seed}" * bool(seed))
        self._resizing = Resizing(unit=CELL, least=CELL**2, most=max_pixels or MAX_PIXELS)
        seen = {"images": {"cell": CELL, "max_pixels": self._resizing.most}} if images else {}
        modalities = ("text", "image") if images else ("text",)
        self.card = EncoderCard(
            name=f"hash:{dims}" + "".join(parts),
            revision=VERSION,
            licence="apache-2.0",
            dims=dims,
            multi_dims=multi_dims,
            max_tokens=max_tokens,
            tasks=GENERAL,
            modalities=modalities,
            query_modalities=modalities,
            outputs=("dense", "multi") if multi_dims else ("dense",),
            preprocessing={"casefold": True, "seed": seed, "asymmetric": asymmetric, **seen},
        )
        self.card = replace(self.card, task=checked_task(task, self.card))
        self._seed = seed
        self._roles = {"query": "query" if asymmetric else "", "document": "document" if asymmetric else ""}

    @classmethod
    def from_name(
        cls, name: str, *, max_tokens: int | None = None, task: str | None = None, max_pixels: int | None = None
    ) -> HashEncoder:
        """The encoder whose card has that name: "hash", "hash:64", "hash:64+multi32+images+asymmetric+seed7"."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name!r} is not hash, hash:<dims>, or hash:<dims>+multi<dims>+images+asymmetric+seed<n> with parts left out"
            )
        return cls(
            int(match["dims"] or 64),
            multi_dims=int(match["multi"] or 0),
            max_tokens=512 if max_tokens is None else max_tokens,
            images=match["images"] is not None,
            asymmetric=match["asymmetric"] is not None,
            seed=int(match["seed"] or 0),
            task=task,
            max_pixels=max_pixels,
        )

    @classmethod
    def full_name(cls, name: str) -> str:
        """ "hash" -> "hash:64"."""
        return cls.from_name(name).card.name

    def encode_query(
        self, queries: Sequence[Any], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        return self._encode(queries, full_task(task, self.card, role="query"), truncate_dim=truncate_dim, truncate=truncate)

    def encode_document(
        self, documents: Sequence[Any], *, task: str | None = None, truncate_dim: int | None = None, truncate: bool = False
    ) -> Encoding:
        return self._encode(documents, full_task(task, self.card, role="document"), truncate_dim=truncate_dim, truncate=truncate)

    def encode(self, inputs: Sequence[Any], *, task: str, truncate_dim: int | None = None, truncate: bool = False) -> Encoding:
        return self._encode(inputs, full_task(task, self.card, role=None), truncate_dim=truncate_dim, truncate=truncate)

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        full_task(task, self.card, role="document")
        check_texts([text])
        spans = self.token_spans(text)
        self._check_length(0, len(spans))
        states = self._states([text[a:b] for a, b in spans], "document", dims=self.card.dims)
        spans = np.concatenate([np.zeros((1, 2), dtype=np.int64), spans, np.zeros((1, 2), dtype=np.int64)])
        special = np.zeros(len(spans), dtype=np.bool_)
        special[[0, -1]] = True
        return TokenStates(states, spans, special)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """Ids are the words themselves, with a mark that no word has for the two special tokens."""
        full_task(task, self.card, role="document")
        spans = self.token_spans(text)
        ids = np.array([_FIRST, *(text[a:b] for a, b in spans), _LAST], dtype=object)
        special = np.zeros(len(ids), dtype=np.bool_)
        special[[0, -1]] = True
        return TokenIds(ids, np.pad(spans, ((1, 1), (0, 0))), special)

    def encode_ids(self, rows: Sequence[npt.NDArray[Any]], *, task: str | None = None) -> list[Floats]:
        """A token's context is its row's mean, special tokens included where the row has them."""
        full_task(task, self.card, role="document")
        for i, row in enumerate(rows):
            if len(row) == 0:
                raise ValueError(f"row {i} has no ids")
            self._check_length(i, len(row) - _SPECIALS)
        return [_with_context(np.stack([self._own_state(token) for token in row])) for row in rows]

    def _own_state(self, token: str) -> Floats:
        if token in (_FIRST, _LAST):
            return self._special(token[1:], "document", dims=self.card.dims)
        return _word_vector(without_surrogates(token.casefold()), self.card.dims, self._seed)

    def token_spans(self, text: str) -> Ints:
        check_texts([text])
        return np.array([match.span() for match in _TOKEN.finditer(text)], dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        check_texts(documents)
        return np.array([len(_TOKEN.findall(text)) + _SPECIALS for text in documents], dtype=np.int64)

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        self._check_sees()
        return self._resizing.largest(width, height)

    def patches(self, width: int, height: int) -> Patches:
        self._check_sees()
        columns, rows = (side // CELL for side in self._resizing.size(width, height))
        tokens = len(_BEFORE) + np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
        return Patches(Box(0, 0, 1, 1), tokens if self.card.multi_dims else np.full_like(tokens, -1))

    def _check_sees(self) -> None:
        if "image" not in self.card.modalities:
            raise ValueError(f"{self.card.name} sees no images: make it with images=True")

    def _encode(self, items: Sequence[Any], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        role = "query" if task.endswith(".query") else "document"  # symmetric tasks are encoded as documents are
        inputs = self._inputs(items)
        check_truncate_dim(truncate_dim, self.card)
        dense = np.empty((len(inputs), self.card.dims), dtype=np.float32)
        multi, truncated, room = [], 0, self.card.max_tokens - _SPECIALS
        for i, (text, image) in enumerate(inputs):
            words = _TOKEN.findall(text)
            if len(words) > room:
                if not truncate:
                    self._check_length(i, len(words))
                words, truncated = words[:room], truncated + 1
            seen = None if image is None else _colour_shares(self._cells(i, image))
            dense[i] = self._states(words, role, dims=self.card.dims, seen=seen).mean(axis=0)
            if self.card.multi_dims:
                multi.append(self._multi(words, role, seen=seen))
        # With few dims the signs may cancel; a text's vector has a direction all the same.
        dense[~dense.any(axis=1)] = 1
        dense, lengths = unit_and_lengths(dense if truncate_dim is None else _no_zero_prefix(dense, truncate_dim), truncate_dim)
        if not self.card.multi_dims:
            return Encoding(dense=dense, truncated=truncated, lengths=lengths)
        packed = MultiVectors.pack(multi) if multi else _no_multi(self.card.multi_dims)
        return Encoding(dense=dense, multi=packed, truncated=truncated, lengths=lengths)

    def _inputs(self, items: Sequence[Any]) -> list[tuple[str, Image]]:
        """(text or "", image or None) of each. TypeError for what it does not take, EncodeError for sizes no model takes."""
        if "image" not in self.card.modalities:
            check_texts(items)
            return [(text, None) for text in items]
        if isinstance(items, str):
            raise TypeError("expected a list of inputs, got one str: wrap it in a list")
        inputs = [split_item(i, item) for i, item in enumerate(items)]
        for i, (_, image) in enumerate(inputs):
            if image is not None:
                upright_size(i, image)  # what cannot be encoded is found before the work begins
        return [(text or "", image) for text, image in inputs]

    def _cells(self, index: int, image: Image) -> npt.NDArray[np.uint8]:
        """(cells, pixels of a cell, 3), by rows."""
        from PIL import Image as Images

        image = upright_rgb(index, image)
        wide, high = self._resizing.size(*image.size)
        pixels = np.asarray(image.resize((wide, high), Images.Resampling.NEAREST))  # nearest: no colours that are not there
        blocks = pixels.reshape(high // CELL, CELL, wide // CELL, CELL, 3).transpose(0, 2, 1, 3, 4)
        return blocks.reshape(-1, CELL * CELL, 3)

    def _states(self, words: Sequence[str], role: str, *, dims: int, seen: Floats | None = None) -> Floats:
        """(t, dims): the states of one input, special tokens first and last; seen: the colour shares of its picture's cells."""
        pictured = [] if seen is None else list(self._picture(seen, role, dims=dims))
        states = [self._special("first", role, dims=dims), *pictured, *self._words(words, dims=dims)]
        return _with_context(np.stack([*states, self._special("last", role, dims=dims)]))

    def _multi(self, words: Sequence[str], role: str, *, seen: Floats | None = None) -> Floats:
        """(t, multi_dims) unit rows: the picture's, then the words'; the first special token stands for a text without words."""
        dims = self.card.multi_dims
        own = [] if seen is None else list(self._picture(seen, role, dims=dims))
        own += self._words(words, dims=dims)
        return unit_rows(np.stack(own or [self._special("first", role, dims=dims)]))

    def _words(self, words: Sequence[str], *, dims: int) -> list[Floats]:
        return [_word_vector(without_surrogates(word.casefold()), dims, self._seed) for word in words]

    def _picture(self, seen: Floats, role: str, *, dims: int) -> Floats:
        """(2 + cells + 1, dims) of colour shares (cells, colours): a picture's multi-vector before it has unit length."""
        colours = unit_rows(np.stack([_word_vector(name, dims, self._seed) for name in COLOURS])) * np.float32(np.sqrt(dims))
        cells = seen @ colours  # of full weight whatever the length of the colour's name
        before, after = ([self._special(name[1:], role, dims=dims) for name in names] for names in (_BEFORE, _AFTER))
        return np.concatenate([before, _no_zero_prefix(cells, dims), after])

    def _special(self, place: str, role: str, *, dims: int) -> Floats:
        return np.float32(0.25) * _signs(f"\0{place}\0{self._roles[role]}", dims, self._seed)

    def _check_length(self, index: int, words: int) -> None:
        if words + _SPECIALS > self.card.max_tokens:
            raise too_long(index, words + _SPECIALS, self.card)


def _with_context(states: Floats) -> Floats:
    return np.asarray(states + np.float32(_CONTEXT) * states.mean(axis=0), dtype=np.float32)


def _colour_shares(cells: npt.NDArray[np.uint8]) -> Floats:
    """(cells, pixels, 3) -> (cells, colours): how much of each cell has the name of which colour, the nearest in RGB."""
    coarse = cells.astype(np.int64) >> 4
    named = _colour_table()[coarse[..., 0], coarse[..., 1], coarse[..., 2]]
    at = np.arange(len(cells))[:, None] * len(COLOURS) + named
    counts = np.bincount(at.ravel(), minlength=len(cells) * len(COLOURS)).reshape(len(cells), len(COLOURS))
    weights = np.array([_WHITE if name == "white" else 1.0 for name in COLOURS])
    return np.asarray(counts * weights / cells.shape[1], dtype=np.float32)


@lru_cache(maxsize=1)
def _colour_table() -> Ints:
    """(16, 16, 16): the nearest of COLOURS by the upper four bits of red, green and blue."""
    middles = np.arange(16) * 16 + 8
    pixels = np.stack(np.meshgrid(middles, middles, middles, indexing="ij"), axis=-1)
    away = pixels[..., None, :] - np.array(list(COLOURS.values()))
    return np.asarray((away**2).sum(axis=-1).argmin(axis=-1), dtype=np.int64)


@lru_cache(maxsize=1 << 16)
def _word_vector(word: str, dims: int, seed: int) -> Floats:
    """(dims,) read-only: the word's own signs, and half as much of its three-letter parts' mean. Short words weigh less."""
    vector = _signs(word, dims, seed)
    parts = [f"\1{word[i : i + 3]}" for i in range(len(word) - 2)] if len(word) > 3 else []
    if parts:
        vector = vector + np.float32(0.5) * np.mean([_signs(part, dims, seed) for part in parts], axis=0, dtype=np.float32)
    weight = 0.1 if not word[:1].isalnum() else min(len(word), 8) / 8 if word.isascii() else 1.0
    vector = np.asarray(vector * np.float32(weight), dtype=np.float32)
    vector.flags.writeable = False  # it is shared by the cache
    return vector


def _signs(feature: str, dims: int, seed: int) -> Floats:
    """(dims,) of +1 and -1, from the bits of xxh3-128."""
    content = feature.encode()
    digests = [xxhash.xxh3_128_digest(content, seed=(seed << 16) + block) for block in range(-(-dims // 128))]
    bits = np.unpackbits(np.frombuffer(b"".join(digests), dtype=np.uint8))[:dims]
    return bits.astype(np.float32) * 2 - 1


def _no_zero_prefix(rows: Floats, dims: int) -> Floats:
    """Rows whose first `dims` are all zero get ones there: a cut vector has a direction, too."""
    rows[~rows[:, :dims].any(axis=1), :dims] = 1
    return rows


def _no_multi(dims: int) -> MultiVectors:
    return MultiVectors(np.empty((0, dims), dtype=np.float32), np.zeros(1, dtype=np.int64))



"""An encoder without a model, for tests: ragkit's own, and those of programs that use it (`ragkit.testing.HashEncoder`).

It is deterministic on every machine, fast, needs neither torch nor files, and ranks sensibly: texts that share words, or parts
of words, are similar. `HashEncoder(images=True)` sees colours: the query "red" finds the images with red in them, and the patch
where it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

from ragkit.core.arrays import unit_and_lengths, unit_rows
from ragkit.core.images import Image
from ragkit.core.types import Box, Floats, Ints, Mask, Patches
from ragkit.encode.contract import EncoderCard, Encoding, IdArray, Item, TokenIds, TokenStates
from ragkit.encode.images import Resizing, upright_rgb, upright_size
from ragkit.encode.methods import RoleMethods, pack_multi
from ragkit.encode.tasks import GENERAL, checked_task, full_task
from ragkit.encode.texts import check_rows, check_texts, check_truncate_dim, split_items, too_long, without_surrogates

VERSION = "1"  # of the vectors: changes with anything that changes them
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and ideographs: one token each
_TOKEN = re.compile(f"[{_NO_SPACES}]|[^\\W{_NO_SPACES}]+|[^\\w\\s]")
_NAME = re.compile(
    r"hash(?::(?P<dims>\d+)(?:\+multi(?P<multi>\d+))?(?P<images>\+images)?(?P<asymmetric>\+asymmetric)?(?:\+seed(?P<seed>\d+))?)?"
)
_SPECIALS = 2  # one token before the text, one after it, as most models have: off-by-ones show
_FIRST, _LAST = "\0first", "\0last"  # ids of the special tokens: no word has a NUL and more characters
COLOURS = {
    "white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), "red": (255, 0, 0), "orange": (255, 140, 0),
    "yellow": (255, 255, 0), "green": (0, 160, 0), "cyan": (0, 255, 255), "blue": (0, 0, 255), "purple": (128, 0, 128),
    "pink": (255, 160, 200), "brown": (140, 70, 20),
}  # fmt: skip
CELL, MAX_PIXELS = 28, 28 * 28 * 256  # a side of a cell; of an image, 256 cells
_WHITE = 0.05  # of a colour's weight: paper carries no content, and a mark stands out from it
_BEFORE, _AFTER = ("\0picture", "\0look"), ("\0end",)  # vectors of the prompt around an image: off-by-prefixes show
_CONTEXT = 0.25  # of the text's mean in each token state: late chunks differ from chunks alone, and the mean keeps its direction


class HashEncoder(RoleMethods):
    """Words and their three-letter parts, hashed to signs. An `Encoder`; thread-safe.

    A token's state is a vector of pseudo-random signs, longer words weighing more, plus a share of its text's mean; a text's
    dense vector is the unit mean of all its states. Multi-vectors are the tokens' own, one each, without context. Symmetric tasks
    are encoded as documents are.
    asymmetric: queries and documents get different special tokens, so that a test notices swapped roles.
    images: it is an `ImageEncoder` too. An image is a grid of square cells, each the mean of the words for its pixels' colours
    (`COLOURS`), white weighing little; its multi-vector is two vectors of a prompt, the cells by rows, and one more. A text
    beside an image follows it. Cells do not count against max_tokens; max_pixels bounds them.
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
        """Make an encoder. dims, multi_dims: widths, multi_dims 0 for none. max_tokens: the two special tokens included."""
        if dims < 1 or multi_dims < 0 or max_tokens < _SPECIALS + 1 or seed < 0:
            raise ValueError(
                f"HashEncoder needs dims >= 1, multi_dims >= 0, max_tokens >= {_SPECIALS + 1}, seed >= 0, "
                f"got {dims}, {multi_dims}, {max_tokens}, {seed}"
            )
        self._resizing = _resizing(max_pixels, images=images)
        self._seed = seed
        self._roles = {"query": "query" if asymmetric else "", "document": "document" if asymmetric else ""}
        modalities = ("text", "image") if images else ("text",)
        preprocessing: dict[str, object] = {"casefold": True, "seed": seed, "asymmetric": asymmetric}
        if images:
            preprocessing["images"] = {"cell": CELL, "max_pixels": self._resizing.most}
        card = EncoderCard(
            name=_name(dims, multi_dims, images=images, asymmetric=asymmetric, seed=seed),
            revision=VERSION,
            licence="apache-2.0",
            dims=dims,
            multi_dims=multi_dims,
            max_tokens=max_tokens,
            tasks=GENERAL,
            modalities=modalities,
            query_modalities=modalities,
            outputs=("dense", "multi") if multi_dims else ("dense",),
            preprocessing=preprocessing,
        )
        self.card = replace(card, task=checked_task(task, card))

    @classmethod
    def from_name(
        cls, name: str, *, max_tokens: int | None = None, task: str | None = None, max_pixels: int | None = None
    ) -> HashEncoder:
        """Return the encoder whose card has that name: "hash", "hash:64", "hash:64+multi32+images+asymmetric+seed7"."""
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
        """Return the name that the card will have: "hash" -> "hash:64"."""
        return cls.from_name(name).card.name

    def encode_tokens(self, text: str, *, task: str | None = None) -> TokenStates:
        full_task(task, self.card, role="document")
        check_texts([text])
        spans = self.token_spans(text)
        self._check_length(0, len(spans))
        states = self._states([text[a:b] for a, b in spans], "document", dims=self.card.dims)
        spans, special = _between_specials(spans)
        return TokenStates(states, spans, special)

    def token_ids(self, text: str, *, task: str | None = None) -> TokenIds:
        """Return the words themselves as ids, and two that no word can be for the special tokens."""
        full_task(task, self.card, role="document")
        spans = self.token_spans(text)
        ids = np.array([_FIRST, *(text[a:b] for a, b in spans), _LAST], dtype=object)
        return TokenIds(ids, *_between_specials(spans))

    def encode_ids(self, rows: Sequence[IdArray], *, task: str | None = None) -> list[Floats]:
        """Return each row's states. A token's context is its row's mean, special tokens included where the row has them."""
        full_task(task, self.card, role="document")
        check_rows(rows, self.card)
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

    def _encode(self, items: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        role = "query" if task.endswith(".query") else "document"
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
            shares = None if image is None else _colour_shares(self._cells(i, image))
            dense[i] = self._states(words, role, dims=self.card.dims, shares=shares).mean(axis=0)
            if self.card.multi_dims:
                multi.append(self._multi(words, role, shares=shares))
        # With few dims the signs may cancel; a text's vector has a direction all the same.
        dense[~dense.any(axis=1)] = 1
        dense, lengths = unit_and_lengths(dense if truncate_dim is None else _no_zero_prefix(dense, truncate_dim), truncate_dim)
        packed = pack_multi(multi, self.card.multi_dims) if self.card.multi_dims else None
        return Encoding(dense=dense, multi=packed, truncated=truncated, lengths=lengths)

    def _inputs(self, items: Sequence[Item]) -> list[tuple[str, Image]]:
        """Return (text or "", image or None) of each. TypeError for other inputs, EncodeError for impossible sizes."""
        if "image" not in self.card.modalities:
            check_texts(items)
            return [(text, None) for text in items]
        inputs = split_items(items)
        for i, (_, image) in enumerate(inputs):
            if image is not None:
                upright_size(i, image)  # an image that cannot be encoded is reported before the work begins
        return [(text or "", image) for text, image in inputs]

    def _cells(self, index: int, image: Image) -> npt.NDArray[np.uint8]:
        """Return the pixels of each cell by rows, (cells, pixels of a cell, 3)."""
        from PIL import Image as Images

        image = upright_rgb(index, image)
        wide, high = self._resizing.size(*image.size)
        pixels = np.asarray(image.resize((wide, high), Images.Resampling.NEAREST))  # nearest: no colours that are not there
        blocks = pixels.reshape(high // CELL, CELL, wide // CELL, CELL, 3).transpose(0, 2, 1, 3, 4)
        return blocks.reshape(-1, CELL * CELL, 3)

    def _states(self, words: Sequence[str], role: str, *, dims: int, shares: Floats | None = None) -> Floats:
        """Return the states of one input, (t, dims), special tokens first and last.

        shares: the colour shares of its image's cells.
        """
        pictured = [] if shares is None else list(self._picture(shares, role, dims=dims))
        states = [self._special("first", role, dims=dims), *pictured, *self._words(words, dims=dims)]
        return _with_context(np.stack([*states, self._special("last", role, dims=dims)]))

    def _multi(self, words: Sequence[str], role: str, *, shares: Floats | None = None) -> Floats:
        """Return unit rows (t, multi_dims): the image's, then the words'; the first special token for a text without words."""
        dims = self.card.multi_dims
        vectors = [] if shares is None else list(self._picture(shares, role, dims=dims))
        vectors += self._words(words, dims=dims)
        return unit_rows(np.stack(vectors or [self._special("first", role, dims=dims)]))

    def _words(self, words: Sequence[str], *, dims: int) -> list[Floats]:
        return [_word_vector(without_surrogates(word.casefold()), dims, self._seed) for word in words]

    def _picture(self, shares: Floats, role: str, *, dims: int) -> Floats:
        """Return an image's multi-vector before unit length, (2 + cells + 1, dims), of its colour shares (cells, colours)."""
        colours = unit_rows(np.stack([_word_vector(name, dims, self._seed) for name in COLOURS])) * np.float32(np.sqrt(dims))
        cells = shares @ colours  # of full weight whatever the length of the colour's name
        before, after = ([self._special(name[1:], role, dims=dims) for name in names] for names in (_BEFORE, _AFTER))
        return np.concatenate([before, _no_zero_prefix(cells, dims), after])

    def _special(self, place: str, role: str, *, dims: int) -> Floats:
        return np.float32(0.25) * _signs(f"\0{place}\0{self._roles[role]}", dims, self._seed)

    def _check_length(self, index: int, words: int) -> None:
        if words + _SPECIALS > self.card.max_tokens:
            raise too_long(index, words + _SPECIALS, self.card)


def _name(dims: int, multi_dims: int, *, images: bool, asymmetric: bool, seed: int) -> str:
    """Return the name by which `from_name` makes the same encoder."""
    multi = f"+multi{multi_dims}" if multi_dims else ""
    return f"hash:{dims}{multi}" + "+images" * images + "+asymmetric" * asymmetric + (f"+seed{seed}" if seed else "")


def _resizing(max_pixels: int | None, *, images: bool) -> Resizing:
    if max_pixels is not None and not (images and max_pixels >= CELL**2):
        raise ValueError(f"max_pixels is for HashEncoder(images=True), from {CELL**2} on, one cell; got {max_pixels}")
    return Resizing(unit=CELL, least=CELL**2, most=max_pixels or MAX_PIXELS)


def _between_specials(spans: Ints) -> tuple[Ints, Mask]:
    """Return (spans, special) of the text's own tokens with a special token before and after them."""
    special = np.zeros(len(spans) + 2, dtype=np.bool_)
    special[[0, -1]] = True
    return np.pad(spans, ((1, 1), (0, 0))), special


def _with_context(states: Floats) -> Floats:
    return np.asarray(states + np.float32(_CONTEXT) * states.mean(axis=0), dtype=np.float32)


def _colour_shares(cells: npt.NDArray[np.uint8]) -> Floats:
    """Return the share of each named colour in each cell, the nearest in RGB: (cells, pixels, 3) -> (cells, colours)."""
    coarse = cells.astype(np.int64) >> 4
    named = _colour_table()[coarse[..., 0], coarse[..., 1], coarse[..., 2]]
    at = np.arange(len(cells))[:, None] * len(COLOURS) + named
    counts = np.bincount(at.ravel(), minlength=len(cells) * len(COLOURS)).reshape(len(cells), len(COLOURS))
    weights = np.array([_WHITE if name == "white" else 1.0 for name in COLOURS])
    return np.asarray(counts * weights / cells.shape[1], dtype=np.float32)


@lru_cache(maxsize=1)
def _colour_table() -> Ints:
    """Return the nearest of COLOURS by the upper four bits of red, green and blue, (16, 16, 16)."""
    middles = np.arange(16) * 16 + 8
    pixels = np.stack(np.meshgrid(middles, middles, middles, indexing="ij"), axis=-1)
    away = pixels[..., None, :] - np.array(list(COLOURS.values()))
    return np.asarray((away**2).sum(axis=-1).argmin(axis=-1), dtype=np.int64)


@lru_cache(maxsize=1 << 16)
def _word_vector(word: str, dims: int, seed: int) -> Floats:
    """Return a word's own signs and half its three-letter parts' mean, (dims,) read-only. Short words weigh less."""
    vector = _signs(word, dims, seed)
    parts = [f"\1{word[i : i + 3]}" for i in range(len(word) - 2)] if len(word) > 3 else []
    if parts:
        vector = vector + np.float32(0.5) * np.mean([_signs(part, dims, seed) for part in parts], axis=0, dtype=np.float32)
    weight = 0.1 if not word[:1].isalnum() else min(len(word), 8) / 8 if word.isascii() else 1.0
    vector = np.asarray(vector * np.float32(weight), dtype=np.float32)
    vector.flags.writeable = False  # it is shared by the cache
    return vector


def _signs(feature: str, dims: int, seed: int) -> Floats:
    """Return (dims,) of +1 and -1, from the bits of xxh3-128."""
    content = feature.encode()
    digests = [xxhash.xxh3_128_digest(content, seed=(seed << 16) + block) for block in range(-(-dims // 128))]
    bits = np.unpackbits(np.frombuffer(b"".join(digests), dtype=np.uint8))[:dims]
    return bits.astype(np.float32) * 2 - 1


def _no_zero_prefix(rows: Floats, dims: int) -> Floats:
    """Put ones into the first `dims` of rows where these are all zero, in place: a cut vector has a direction, too."""
    rows[~rows[:, :dims].any(axis=1), :dims] = 1
    return rows

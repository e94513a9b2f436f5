"""Text to token ids and character offsets, by the `tokenizers` package from a checkpoint's tokenizer.json.

The tokenizer neither truncates nor pads, so that one serves many threads, and the encoder cuts where it sees the lengths. It
takes any Python `str`: lone surrogates count as U+FFFD, offsets unchanged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import CheckpointError, MissingExtra
from ragkit.core.types import Ints
from ragkit.encode.checkpoints.checkpoint import Config
from ragkit.encode.texts import without_surrogates

if TYPE_CHECKING:
    from tokenizers import Encoding as TokenizerEncoding

PIECE = 1 << 16  # characters tokenised at a time: the tokenizer keeps some 200 bytes per token while it works
# A long text may be cut here without moving a token: no word goes across these. Not `\s`: its \x1c-\x1f are dropped from words.
_BREAK = re.compile(r"[ \t\n\r]")


class Tokenizer:
    """A tokenizer of BERT's or XLM-RoBERTa's kind. Thread-safe. `special_count`: special tokens around a text, 2 for these."""

    def __init__(self, path: Path) -> None:
        """Load `path` (tokenizer.json). Raises CheckpointError for a file that is missing or not a tokenizer.

        `sha256` is over its content without truncation and padding, which are not used.
        """
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError:
            raise MissingExtra.of("tokenizers", "cpu", "tokenising") from None
        try:
            content = path.read_text(encoding="utf-8")
            settings = json.loads(content)
            self._backend = Backend.from_str(content)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: this is not a complete checkpoint. Fetch the model again") from None
        except Exception as error:  # the backend raises bare Exception for a file it cannot make sense of
            raise CheckpointError(f"{path} is not a tokenizer ({error}). Fetch the model again") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self.special_count = int(self._backend.num_special_tokens_to_add(is_pair=False))
        self.cuts_at_whitespace = _splits_first(settings.get("pre_tokenizer") or {})
        self.vocabulary_size = int(self._backend.get_vocab_size())
        settings["truncation"] = settings["padding"] = None
        self.sha256 = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def ids(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the token ids of each text, special tokens included, (t,) int32 each."""
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._batch(texts, offsets=False)]

    def own(self, text: str) -> tuple[npt.NDArray[np.int32], Ints]:
        """Return ids (t,) int32 and character spans (t, 2) int64, ascending, of the text's own tokens; any length, by pieces."""
        ids, spans = [np.empty(0, dtype=np.int32)], [np.empty((0, 2), dtype=np.int64)]
        for start, piece in self._pieces(text):
            [encoding] = self._batch([piece], offsets=True, specials=False)
            ids.append(np.array(encoding.ids, dtype=np.int32))
            spans.append(_spans(encoding) + start)
        return np.concatenate(ids), np.concatenate(spans)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text from which `own` makes these ids; special tokens may stand around them. ValueError if there is none."""

        def decode(ids: Sequence[int]) -> str:
            return self._backend.decode(list(ids), skip_special_tokens=False)

        around = self.ids([""])[0].tolist()
        return text_of(ids, around=around, size=self.vocabulary_size, decode=decode, own=lambda text: self.own(text)[0].tolist())

    def counts(self, texts: Sequence[str]) -> Ints:
        """Return the number of tokens of each text, special tokens included, (n,) int64; texts of any length."""
        result = np.full(len(texts), self.special_count, dtype=np.int64)
        for group in _groups(texts):
            owners, pieces = zip(*((i, piece) for i in group for _, piece in self._pieces(texts[i])), strict=True)
            lengths = [len(encoding) for encoding in self._batch(pieces, offsets=False, specials=False)]
            np.add.at(result, list(owners), lengths)
        return result

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield (start, piece): the text cut at whitespace into pieces of about PIECE characters, tokenised as if in one."""
        start = 0
        while self.cuts_at_whitespace and len(text) - start > PIECE and (cut := _BREAK.search(text, start + PIECE)):
            yield start, text[start : cut.start()]
            start = cut.start()
        yield start, text[start:]

    def _batch(self, texts: Sequence[str], *, offsets: bool, specials: bool = True) -> list[TokenizerEncoding]:
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        try:
            return encode(list(texts), add_special_tokens=specials)
        except TypeError:  # the backend takes UTF-8, which has no lone surrogates
            cleaned = [without_surrogates(text) for text in texts]
            return encode(cleaned, add_special_tokens=specials)


def text_of(
    ids: Sequence[int],
    *,
    around: Sequence[int],
    size: int,
    decode: Callable[[Sequence[int]], str],
    own: Callable[[str], list[int]],
) -> str:
    """Return the text from which a tokenizer of `size` ids makes exactly these, without the special tokens `around` a text.

    An id does not show to which tokenizer it belongs. So the text that the ids spell is tokenised again, and must give the same
    ids: few ids of another tokenizer do. Raises ValueError.
    """
    if unknown := [token for token in ids if not 0 <= token < size]:
        raise ValueError(
            f"{unknown[0]} is not among the {size} ids of this model's tokenizer: do they come from another tokenizer?"
        )
    text_ids = _without_specials(list(ids), around)
    text = decode(text_ids)
    if own(text) != text_ids:
        raise ValueError(
            f"the ids spell {text[:40]!r}, but this model's tokenizer makes other ids of that text: they are another "
            "tokenizer's, or begin within a word"
        )
    return text


def _without_specials(ids: list[int], around: Sequence[int]) -> list[int]:
    """Return the ids without the special tokens before and after them, if they are there."""
    half = len(around) // 2
    first, last = list(around[:half]), list(around[half:])
    if half and len(ids) >= len(around) and ids[:half] == first and ids[-len(last) :] == last:
        return ids[half : -len(last)]
    return ids


def _splits_first(pre_tokenizer: Config) -> bool:
    """Return whether the text is first split at whitespace, so that no token reaches across it."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    return bool(steps[0].get("type") in ("BertPreTokenizer", "WhitespaceSplit"))


def _spans(encoding: TokenizerEncoding) -> Ints:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _groups(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield positions in order, in groups of about PIECE characters."""
    group: list[int] = []
    size = 0
    for i, text in enumerate(texts):
        group.append(i)
        size += len(text) + 1
        if size >= PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group

"""Text to token ids and character offsets, by the `tokenizers` package from a checkpoint's tokenizer.json.

Truncation and padding are never the tokenizer's: it is switched to neither, so that one tokenizer serves many threads, and
the encoder cuts with the numbers in hand. Any Python `str` is taken: lone surrogates count as U+FFFD, offsets unchanged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import CheckpointError, MissingExtra
from ragkit.core.types import Ints
from ragkit.encode.texts import without_surrogates

if TYPE_CHECKING:
    from tokenizers import Encoding as TokenizerEncoding

PIECE = 1 << 16  # characters tokenised at a time: the tokenizer keeps some 200 bytes per token while it works
# Where a long text may be cut without moving a token: no word goes across these. Not `\s`: its \x1c-\x1f are dropped from words.
_BREAK = re.compile(r"[ \t\n\r]")


class Tokenizer:
    """A tokenizer of BERT's or XLM-RoBERTa's kind. Thread-safe. `special_count` is what a text gets around it, 2 for these."""

    def __init__(self, path: Path) -> None:
        """Load `path` (tokenizer.json). `sha256` is over its content without truncation and padding, which are not used."""
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
        """Token ids of each text, specials included, (t,) int32 each."""
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._batch(texts, offsets=False)]

    def own(self, text: str) -> tuple[npt.NDArray[np.int32], Ints]:
        """Ids (t,) int32 and character spans (t, 2) int64, ascending, of the text's own tokens; any length, by pieces."""
        ids, found = [np.empty(0, dtype=np.int32)], [np.empty((0, 2), dtype=np.int64)]
        for start, piece in self._pieces(text):
            [encoding] = self._batch([piece], offsets=True, specials=False)
            ids.append(np.array(encoding.ids, dtype=np.int32))
            found.append(_spans(encoding) + start)
        return np.concatenate(ids), np.concatenate(found)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that `own` makes these ids of; specials around it may be there. ValueError where there is none."""

        def decode(ids: Sequence[int]) -> str:
            return self._backend.decode(list(ids), skip_special_tokens=False)

        around = self.ids([""])[0].tolist()
        return text_of(ids, around=around, size=self.vocabulary_size, decode=decode, own=lambda text: self.own(text)[0].tolist())

    def counts(self, texts: Sequence[str]) -> Ints:
        """Tokens of each text, specials included, (n,) int64; texts of any length."""
        result = np.full(len(texts), self.special_count, dtype=np.int64)
        for group in _groups(texts):
            owners, pieces = zip(*((i, piece) for i in group for _, piece in self._pieces(texts[i])), strict=True)
            lengths = [len(encoding) for encoding in self._batch(pieces, offsets=False, specials=False)]
            np.add.at(result, list(owners), lengths)
        return result

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        """(start, piece): the text cut at whitespace into pieces of about PIECE characters, tokenised as if in one."""
        start = 0
        while self.cuts_at_whitespace and len(text) - start > PIECE and (cut := _BREAK.search(text, start + PIECE)):
            yield start, text[start : cut.start()]
            start = cut.start()
        yield start, text[start:]

    def _batch(self, texts: Sequence[str], *, offsets: bool, specials: bool = True) -> list[TokenizerEncoding]:
        encode: Any = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        try:
            return encode(list(texts), add_special_tokens=specials)  # type: ignore[no-any-return]
        except TypeError:  # the backend takes UTF-8, which has no lone surrogates
            cleaned = [without_surrogates(text) for text in texts]
            return encode(cleaned, add_special_tokens=specials)  # type: ignore[no-any-return]


def text_of(
    ids: Sequence[int],
    *,
    around: Sequence[int],
    size: int,
    decode: Callable[[Sequence[int]], str],
    own: Callable[[str], list[int]],
) -> str:
    """The text that a tokenizer of `size` ids makes exactly these of, without the specials `around` a text.

    An id says nothing of the tokenizer it is of. So what the ids spell is tokenised again, and must come out the same: few ids
    of another tokenizer do.
    """
    if strange := [one for one in ids if not 0 <= one < size]:
        raise ValueError(f"{strange[0]} is no id of this model's tokenizer, which has {size}: are they another's?")
    half = len(around) // 2
    first, last = list(around[:half]), list(around[half:])
    kept = list(ids)
    if half and kept[:half] == first and kept[-len(last) :] == last and len(kept) >= len(around):
        kept = kept[half : -len(last)]
    text = decode(kept)
    if own(text) != kept:
        raise ValueError(
            f"the ids spell {text[:40]!r}, of which this model's tokenizer makes others: they are another tokenizer's, or begin "
            "within a word"
        )
    return text


def _splits_first(pre_tokenizer: dict[str, Any]) -> bool:
    """Whether no token reaches across whitespace, whatever comes after."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    return bool(steps[0].get("type") in ("BertPreTokenizer", "WhitespaceSplit"))


def _spans(encoding: TokenizerEncoding) -> Ints:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _groups(texts: Sequence[str]) -> Iterator[list[int]]:
    """Positions in order, in groups of about PIECE characters."""
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

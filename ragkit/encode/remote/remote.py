"""Hosted models as encoders: Jina's and OpenAI's `/v1/embeddings`, and servers that speak like them.

    encoder = load_encoder("jina:jina-embeddings-v3", api_keys={"jina": key})
    encoder = load_encoder("jina:jina-embeddings-v4+multi", api_keys={"jina": key})     # dense and multi-vectors
    encoder = load_encoder("openai:text-embedding-3-small", api_keys={"openai": key})
    encoder = load_encoder("openai:bge-m3@http://127.0.0.1:8080/v1", api_keys={"http://127.0.0.1:8080/v1": ""})

Texts and images leave this machine. Nothing is sent anywhere but to the service or address that `api_keys` names: an index
that somebody else made cannot send your questions to an address of theirs.

The services count tokens with tokenizers that are not here: `count_tokens` and `token_spans` are estimates, on the high side
for English. The service decides what is too long; the input is then found and named. Token states are not served, so
there is no `encode_tokens`; `encode_late` is the service's own late chunking.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ragkit.core.arrays import truncate_dims, unit_rows
from ragkit.core.errors import EncodeError, InputTooLong, RemoteError
from ragkit.core.images import Image
from ragkit.core.types import Box, Floats, Ints, Patches
from ragkit.encode.batching import side_by_side
from ragkit.encode.contract import EncoderCard, Encoding, Item
from ragkit.encode.images import Resizing, shortest_at, upright_rgb
from ragkit.encode.methods import RoleMethods, pack_multi
from ragkit.encode.remote.api_client import ApiClient, Json
from ragkit.encode.remote.hosted import KNOWN, Hosted, HostedName, card_of, key_of
from ragkit.encode.tasks import checked_task, full_task
from ragkit.encode.texts import check_texts, check_truncate_dim, split_items, without_surrogates

ITEMS = 256  # a request; both services take 2,048
TOKENS = 100_000  # a request, by estimate; OpenAI takes 300,000
BYTES = 1 << 24  # of images a request
LARGEST_IMAGE = 6_000_000  # bytes of a file, 8 MB in base64, which is the services' limit
AT_ONCE = 4  # requests
TOO_LONG = re.compile(r"too long|too large|token|length|context|exceed", re.IGNORECASE)
BAD_INPUT = (400, 413, 422)
# A letter each for scripts without spaces, four of ASCII's or two of another alphabet's a piece, all else alone.
_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf"[{_NO_SPACES}]|[A-Za-z]{{1,4}}|\d{{1,3}}|[^\W\d_A-Za-z{_NO_SPACES}]{{1,2}}|[^\w\s]|_")
SPECIALS = 2


def load_remote(
    name: str,
    *,
    api_keys: Mapping[str, str] | None,
    task: str | None = None,
    max_tokens: int | None = None,
    client: Callable[[str, str], ApiClient] = ApiClient,
) -> RemoteEncoder:
    """Return the encoder of such a name. Models that are not in KNOWN are asked for one vector, to learn their width.

    api_keys: by service ("jina", "openai") for its own address, or by address; "" for a server without keys. client: makes
    the ApiClient, from address and key. Raises ValueError for an address without a key here, RemoteError.
    """
    parts = HostedName.parse(name)
    hosted = parts.hosted
    if parts.multi and not hosted.multi_dims:
        raise ValueError(f"{name}: only jina:jina-embeddings-v4 has multi-vectors behind this API")
    key = key_of(name, parts, api_keys or {})
    card = card_of(name, parts, hosted, hosted.max_tokens if max_tokens is None else max_tokens)
    card = replace(card, task=checked_task(task, card))
    encoder = RemoteEncoder(card, client=client(parts.url, key), name=parts)
    return encoder if hosted.dims else encoder.measured()


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """What one call asks for, the same for all its inputs."""

    task: str
    dims: int | None = None
    truncate: bool = False  # whether the caller allows a text to be cut
    multi: bool = False
    late: bool = False
    cut: bool = False  # whether the service is asked to cut


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What the requests of one call write to, each to its own positions: a row (d,) or (t, d) per input; which ones were cut."""

    values: list[Floats]
    cut: set[int]


class RemoteEncoder(RoleMethods):
    """An `Encoder` (see `contract.py`) without token states. Thread-safe. `tokens_used` counts the tokens that are billed."""

    def __init__(self, card: EncoderCard, *, client: ApiClient, name: HostedName) -> None:
        self.card = card
        self.tokens_used = 0
        self._client = client
        self._name = name
        self._lock = threading.Lock()

    def encode_late(self, pieces: Sequence[str], *, task: str | None = None, truncate_dim: int | None = None) -> Floats:
        """Return a vector for each of consecutive pieces of one document, (n, d) float32 unit rows: the service's late chunking.

        Jina's text models only. Raises InputTooLong if all pieces together do not fit the model, ValueError, RemoteError.
        """
        if self._name.service != "jina" or not KNOWN.get(f"jina:{self._name.model}", Hosted()).takes_tasks:
            raise ValueError(f"{self.card.name} has no late chunking behind its API; jina-embeddings-v3 and -v4 have")
        check_texts(pieces)
        check_truncate_dim(truncate_dim, self.card)
        if not pieces:
            return np.empty((0, truncate_dim or self.card.dims), dtype=np.float32)
        request = _Request(full_task(task, self.card, role="document"), truncate_dim, late=True)
        try:
            rows = self._post(list(pieces), request)
        except RemoteError as error:
            if error.status in BAD_INPUT and TOO_LONG.search(str(error)):
                raise InputTooLong(f"the {len(pieces)} pieces are too long together for {self.card.name}: {error}") from error
            raise
        return self._shortened(np.stack(rows), truncate_dim)

    def token_spans(self, text: str) -> Ints:
        """Return character offsets of pieces about as large as tokens, (t, 2) int64, ascending: an estimate."""
        check_texts([text])
        return np.array([match.span() for match in _PIECE.finditer(text)], dtype=np.int64).reshape(-1, 2)

    def count_tokens(self, documents: Sequence[str]) -> Ints:
        """Return about how many tokens the model would see of each text, (n,) int64."""
        check_texts(documents)
        return np.array([_estimate(text) for text in documents], dtype=np.int64)

    def image_size(self, width: float, height: float) -> tuple[int, int]:
        """Return (width, height) in pixels by what is published of the model; the service may see less."""
        seen = self._name.hosted.seen
        if seen is None:
            raise ValueError(f"{self.card.name} sees no images")
        return seen.largest(width, height) if isinstance(seen, Resizing) else shortest_at(width, height, seen)

    def patches(self, width: int, height: int) -> Patches:
        """Return one cell without a vector: no API says which vectors look where in the image."""
        self.image_size(width, height)
        return Patches(Box(0, 0, 1, 1), np.full((1, 1), -1, dtype=np.int64))

    def measured(self) -> RemoteEncoder:
        """Return the same encoder with the width in its card, learnt by asking for one vector."""
        [row] = self._post(["width"], _Request(full_task(None, self.card, role="query")))
        return RemoteEncoder(replace(self.card, dims=len(row)), client=self._client, name=self._name)

    def _encode(self, items: Sequence[Item], task: str, *, truncate_dim: int | None, truncate: bool) -> Encoding:
        inputs = self._inputs(items)
        check_truncate_dim(truncate_dim, self.card)
        cut: set[int] = set()
        rows = self._request_all(inputs, _Request(task, truncate_dim, truncate=truncate), cut)
        multi = None
        if self.card.multi_dims:
            multi_rows = self._request_all(inputs, _Request(task, truncate=truncate, multi=True), cut)
            multi = pack_multi([unit_rows(vectors) for vectors in multi_rows], self.card.multi_dims)
        width = truncate_dim or self.card.dims
        dense = self._shortened(np.stack(rows), truncate_dim) if rows else np.empty((0, width), dtype=np.float32)
        return Encoding(dense, multi, len(cut))

    def _inputs(self, items: Sequence[Item]) -> list[str | Image]:
        if "image" not in self.card.modalities:
            check_texts(items)
            return list(items)
        parts = split_items(items)
        for i, (text, image) in enumerate(parts):
            if text is not None and image is not None:
                raise TypeError(f"input {i} is a text and an image together, but this API takes the one or the other")
        return [image if text is None else text for text, image in parts]

    def _request_all(self, inputs: Sequence[str | Image], request: _Request, cut: set[int]) -> list[Floats]:
        """Return a row (d,), or (t, d), for each input, as the service answers them; add the positions of cut texts to `cut`."""
        rows = _Rows([np.empty(0, dtype=np.float32)] * len(inputs), cut)
        work = (partial(self._batch, inputs, positions, request, rows) for positions in _batches(inputs))
        side_by_side(work, workers=AT_ONCE, start=lambda: None)
        return rows.values

    def _batch(self, inputs: Sequence[str | Image], positions: Sequence[int], request: _Request, rows: _Rows) -> None:
        """Write the rows of the inputs at those positions; a batch that the service refuses is halved until it is one input."""
        try:
            answer = self._post([self._encoded(i, inputs[i]) for i in positions], request)
        except RemoteError as error:
            if error.status not in BAD_INPUT:
                raise
            if len(positions) > 1:
                for half in (positions[: len(positions) // 2], positions[len(positions) // 2 :]):
                    self._batch(inputs, half, request, rows)
                return
            answer = [self._shorter(inputs[positions[0]], positions[0], request, error)]
            rows.cut.add(positions[0])
        for i, row in zip(positions, answer, strict=True):
            rows.values[i] = row

    def _shorter(self, item: str | Image, index: int, request: _Request, error: RemoteError) -> Floats:
        """Return the row of an input that the service refused: of its beginning, if it is too long and may be cut."""
        if not isinstance(item, str) or not TOO_LONG.search(str(error)):
            raise EncodeError(f"input {index} was refused: {error}") from error
        if not request.truncate:
            raise InputTooLong(
                f"input {index} has about {_estimate(item)} tokens, and {self.card.name} is set to take {self.card.max_tokens}: "
                f"{error} Chunk the text, or pass truncate=True to encode its beginning"
            ) from error
        if self._name.service == "jina":
            [row] = self._post([self._encoded(index, item)], replace(request, cut=True))
            return row
        return self._beginning(item, index, request, error)

    def _beginning(self, text: str, index: int, request: _Request, error: RemoteError) -> Floats:
        """Return the row of a text's beginning. OpenAI's API cuts nothing, and its tokens are unknown: send less and less."""
        spans, room = self.token_spans(text), self.card.max_tokens - SPECIALS
        while room > 0:
            try:
                [row] = self._post([text[: spans[min(room, len(spans)) - 1, 1]] if len(spans) else " "], request)
                return row
            except RemoteError as again:
                if again.status not in BAD_INPUT or not TOO_LONG.search(str(again)):
                    raise
            room = room * 3 // 4
        raise InputTooLong(f"input {index} was refused however short it was cut: {error}") from error

    def _encoded(self, index: int, item: str | Image) -> str | dict[str, str]:
        """Return an input as it stands in a request."""
        if isinstance(item, str):
            text = without_surrogates(item)
            return text or " " if self._name.service == "openai" else text  # OpenAI refuses the empty string
        return {"image": base64.b64encode(_file_of(index, item)).decode()}

    def _post(self, items: Sequence[str | dict[str, str]], request: _Request) -> list[Floats]:
        """Return the rows (or multi-vectors) of one request, in the order of its items. Raises RemoteError."""
        answer = self._client.post("/embeddings", self._body(items, request))
        rows = _read(answer, count=len(items), multi=request.multi)
        widths = {row.shape[-1] for row in rows}
        expected = {self.card.multi_dims} if request.multi else {self.card.dims, request.dims or self.card.dims}
        if len(widths) != 1 or (self.card.dims and not widths <= expected):
            raise RemoteError(f"{self.card.name} answered vectors {sorted(widths)} wide, expected {sorted(expected)}")
        with self._lock:
            self.tokens_used += int((answer.get("usage") or {}).get("total_tokens") or 0)
        return rows

    def _body(self, items: Sequence[str | dict[str, str]], request: _Request) -> dict[str, object]:
        hosted = self._name.hosted
        sees = any(isinstance(item, dict) for item in items)
        body: dict[str, object] = {
            "model": self._name.model,
            "input": [{"text": item} if sees and isinstance(item, str) else item for item in items],
        }
        if request.dims is not None and hosted.takes_dims:
            body["dimensions"] = request.dims
        if self._name.service == "openai":
            return body | {"encoding_format": "base64"}
        if hosted.takes_tasks:
            body["task"] = request.task
        body |= {name: True for name, on in (("late_chunking", request.late), ("truncate", request.cut)) if on}
        if request.multi:
            return body | {"return_multivector": True, "embedding_type": "float"}
        return body | {"embedding_type": "base64"}

    def _shortened(self, rows: Floats, truncate_dim: int | None) -> Floats:
        """Return unit rows of that width, whether or not the service has cut them already."""
        return unit_rows(rows) if truncate_dim is None else truncate_dims(rows, min(truncate_dim, rows.shape[1]))


def _estimate(text: str) -> int:
    return sum(1 for _ in _PIECE.finditer(text)) + SPECIALS


def _batches(items: Sequence[str | Image]) -> Iterator[list[int]]:
    """Yield positions in order, within ITEMS, TOKENS and BYTES a request."""
    batch: list[int] = []
    tokens = size = 0
    for i, item in enumerate(items):
        own = _estimate(item) if isinstance(item, str) else 0
        weight = 0 if isinstance(item, str) else min(LARGEST_IMAGE, item.width * item.height)
        if batch and (len(batch) == ITEMS or tokens + own > TOKENS or size + weight > BYTES):
            yield batch
            batch, tokens, size = [], 0, 0
        batch.append(i)
        tokens, size = tokens + own, size + weight
    if batch:
        yield batch


def _file_of(index: int, image: Image) -> bytes:
    """Return the image as PNG, which loses nothing; as JPEG if that is too large. Raises EncodeError if both are."""
    upright = upright_rgb(index, image)
    for kind, settings in (("PNG", {}), ("JPEG", {"quality": 92})):
        file = io.BytesIO()
        upright.save(file, kind, **settings)
        if file.tell() <= LARGEST_IMAGE:
            return file.getvalue()
    raise EncodeError(
        f"input {index}: the image of {upright.width} x {upright.height} pixels has over {LARGEST_IMAGE:,} bytes as a JPEG, more "
        "than the service takes. Make it smaller"
    )


def _read(answer: Json, *, count: int, multi: bool) -> list[Floats]:
    """Return each input's row (d,) or rows (t, d), by `index`. Raises RemoteError for an answer of another form."""
    name = "embeddings" if multi else "embedding"
    try:
        by_index = {int(row["index"]): _numbers(row[name], dimensions=2 if multi else 1) for row in answer["data"]}
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
        raise RemoteError(f"the service's answer is not a list of {name} ({type(error).__name__}: {error})") from None
    if set(by_index) != set(range(count)) or len(answer["data"]) != count:
        raise RemoteError(f"the service answered {len(answer['data'])} vectors for {count} inputs, or numbered them wrongly")
    return [by_index[i] for i in range(count)]


def _numbers(value: Json, *, dimensions: int) -> Floats:
    """Return the numbers of a list, or of base64 of little-endian float32. Raises ValueError, TypeError or binascii.Error."""
    if isinstance(value, str):
        numbers = np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
    else:
        numbers = np.array(value, dtype=np.float32)
    if numbers.ndim != dimensions or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"numbers of shape {numbers.shape}, or not finite")
    return numbers

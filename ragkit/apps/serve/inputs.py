"""What a request for embeddings brings, as an encoder takes it: texts, images, and both together, each with its tokens.

An image is base64, a data URI, or, where fetching is switched on, a URL. It is opened here and decoded by the encoder. Token ids
are taken for the text that they spell in the model's own tokenizer.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem
from ragkit.core.errors import EncodeError
from ragkit.encode.contract import Encoder, Item, TokenReader
from ragkit.encode.images import upright_rgb, upright_size

if TYPE_CHECKING:
    from ragkit.apps.serve.urls import Fetcher

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
IMAGE_WORK = 256  # tokens that an image is to compute for a model that does not say: it sees every image at one size
TILE, TILE_TOKENS = 224, 1000  # clip-v1's accounting: an image costs its tiles, partly filled ones in full


class InputItem(BaseModel):
    """A text, an image, or both together. `url` and `bytes` are older names for an image."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    image: str | None = Field(None, description="base64, a data URI, or a URL where this server fetches any")
    url: str | None = None
    bytes: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_pdf(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "pdf" in given:
            told = "PDFs are not embedded here: send their pages as images, or add the file to an index"
            raise Problem(422, told, field="input")  # no ValueError, which would come with what else an input could be
        return given

    @model_validator(mode="after")
    def _is_something(self) -> InputItem:
        images = [one for one in (self.image, self.url, self.bytes) if one is not None]
        if len(images) > 1 or (not images and self.text is None):
            raise ValueError("an input is a text, an image, or one of each")
        return self

    @property
    def picture(self) -> str | None:
        return next((one for one in (self.image, self.url, self.bytes) if one is not None), None)


TokenList = Annotated[list[int], Field(min_length=1, description="ids of the model's own tokenizer")]
Inputs = (
    Annotated[str, Field()]
    | InputItem
    | Annotated[list[str | InputItem], Field(min_length=1)]
    | TokenList
    | Annotated[list[TokenList], Field(min_length=1)]
)
Given = str | InputItem | list[int]  # one input as it was sent


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """n inputs as the encoder takes them; `texts` where an input has one; tokens of each, and those of the images in them.

    `work` is what each is to compute, in tokens: an image's price in tokens may be another.
    """

    items: list[Item]
    texts: list[str | None]
    tokens: list[int]
    work: list[int]
    image_tokens: int


def listed(inputs: Any, *, limits: ServeLimits) -> list[Given]:
    """The inputs as a list. Problem for too many."""
    one = not isinstance(inputs, list) or isinstance(inputs[0], int)
    found: list[Given] = [inputs] if one else inputs
    if len(found) > limits.inputs:
        raise Problem(400, f"{len(found)} inputs are over this server's {limits.inputs} in one request", field="input")
    return found


def spelled(inputs: Sequence[Given], encoder: Encoder) -> list[str | InputItem]:
    """Token ids as the texts they are of. Problem for ids that are not the model's own."""
    return [_spelled(i, one, encoder) if isinstance(one, list) else one for i, one in enumerate(inputs)]


def _spelled(index: int, ids: list[int], encoder: Encoder) -> str:
    way_out = "Send the text itself. With langchain_openai: OpenAIEmbeddings(..., check_embedding_ctx_length=False)"
    if not isinstance(encoder, TokenReader):
        raise Problem(400, f"input {index} is token ids, which {encoder.card.name} does not take. {way_out}", field="input")
    try:
        return encoder.text_of(ids)
    except ValueError as error:
        raise Problem(400, f"input {index}: {error}. {way_out}", field="input") from None


def urls_of(inputs: Sequence[Given]) -> list[str]:
    """The URLs among the images."""
    pictures = [one.picture for one in inputs if isinstance(one, InputItem)]
    return [one for one in pictures if one is not None and _is_url(one)]


def _is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


async def fetched(urls: Sequence[str], fetcher: Fetcher | None, limits: ServeLimits) -> dict[str, bytes]:
    """The files behind the URLs, together no larger than a body may be. Problem where fetching is switched off, or one is
    refused."""
    if urls and fetcher is None:
        raise Problem(400, "this server fetches no URLs: send the image itself, as base64", field="input")
    if fetcher is None:
        return {}
    files: dict[str, bytes] = {}
    for url in dict.fromkeys(urls):
        files[url] = await fetcher.fetch(url)
        if sum(map(len, files.values())) > limits.body_bytes:
            told = f"the images of one request are over {limits.body_bytes:,} bytes"
            raise Problem(400, told, code="INPUT_TOO_LARGE", field="input")
    return files


def prepare(
    given: Sequence[Given], files: dict[str, bytes], encoder: Encoder, *, task: str, limits: ServeLimits, truncate: bool
) -> Prepared:
    """Items and their tokens. Problem for an image that is none, an input over the model's limit, tokens over the server's.

    task: its full name.
    """
    inputs = spelled(given, encoder)
    texts = [one if isinstance(one, str) else one.text for one in inputs]
    images = [None if isinstance(one, str) else picture_of(f"input {i}", one, files, limits) for i, one in enumerate(inputs)]
    for i, image in enumerate(images):
        if image is not None and "image" not in encoder.card.modalities:
            raise Problem(400, f"input {i} is an image, and {encoder.card.name} does not see", field="input")
    counts = iter(_counts([text for text in texts if text is not None], encoder, task))
    tokens, work, of_images = [], [], 0
    for i, (text, image) in enumerate(zip(texts, images, strict=True)):
        own = 0 if text is None else int(next(counts))
        if own > encoder.card.max_tokens and not truncate:
            raise Problem(
                400,
                f"input {i} has {own} tokens, and {encoder.card.name} takes {encoder.card.max_tokens}. Send less of it, or "
                '"truncate": true for its beginning',
                code="INPUT_TOO_LONG",
                field="input",
            )
        seen = 0 if image is None else image_tokens(i, image, encoder)
        of_images += seen
        of_text = min(own, encoder.card.max_tokens)
        tokens.append(of_text + seen)
        work.append(of_text + (min(seen, IMAGE_WORK) if image is not None and not hasattr(encoder, "image_tokens") else seen))
    if sum(tokens) - of_images > limits.tokens:  # an image's accounting may be a price; images are limited by their bytes
        raise Problem(
            400, f"{sum(tokens) - of_images:,} tokens are over this server's {limits.tokens:,} in one request", field="input"
        )
    items = [_item(text, image) for text, image in zip(texts, images, strict=True)]
    return Prepared(items, texts, tokens, work, of_images)


def _counts(texts: list[str], encoder: Encoder, task: str) -> list[int]:
    """Tokens that the model sees of each text, the task's instruction included where the encoder says it."""
    counts = encoder.task_tokens(texts, task) if isinstance(encoder, TokenReader) else encoder.count_tokens(texts)
    return [int(count) for count in counts]


def _item(text: str | None, image: Any) -> Item:
    if image is None:
        return text
    return image if text is None else (text, image)


def picture_of(name: str, one: InputItem, files: dict[str, bytes], limits: ServeLimits) -> Any:
    """The image that was sent, opened and not yet decoded; None where there is none. `name` stands in what is refused."""
    value = one.picture
    if value is None:
        return None
    content = files[value] if _is_url(value) else _decoded(name, value, limits)
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images: the encoder has a limit of its own
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # decoders raise whatever the damage makes of them
        kinds = ", ".join(FORMATS)
        raise Problem(400, f"{name} is no image of {kinds} ({type(error).__name__})", field="input") from None


def query_of(given: str | InputItem, files: dict[str, bytes], limits: ServeLimits) -> Any:
    """What `Index.search` takes: a text, an image, or (text, image). Problem 400 for an image that is none, or too large, and
    for a text that is too long."""
    text = given if isinstance(given, str) else given.text
    if text is not None and len(text) > limits.query_characters:
        told = f"the query has {len(text):,} characters, over this server's {limits.query_characters:,}"
        raise Problem(400, told, code="INPUT_TOO_LONG", field="query")
    if isinstance(given, str):
        return given
    opened = picture_of("the query", given, files, limits)
    if opened is None:
        return given.text
    try:
        image = upright_rgb(0, opened)
    except EncodeError as error:
        raise Problem(400, str(error).replace("input 0", "the query", 1), field="query") from None
    return image if given.text is None else (given.text, image)


def _decoded(name: str, value: str, limits: ServeLimits) -> bytes:
    if value[:5].lower() == "data:":
        head, _, value = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise Problem(400, f"{name} is a data URI without ;base64", field="input")
    if len(value) * 3 // 4 > limits.input_bytes:
        raise Problem(400, f"{name} is over {limits.input_bytes:,} bytes", code="INPUT_TOO_LARGE", field="input")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, f"{name} is neither base64 nor a URL that begins with https://", field="input") from None


def image_tokens(index: int, image: Any, encoder: Encoder) -> int:
    """What an image counts for: the tokens a model says it sees of it, or clip-v1's tiles at a thousand each."""
    try:
        width, height = upright_size(index, image)
    except EncodeError as error:
        raise Problem(400, str(error), field="input") from None
    own: Any = getattr(encoder, "image_tokens", None)
    if own is not None:
        return int(own(width, height))
    return math.ceil(width / TILE) * math.ceil(height / TILE) * TILE_TOKENS

"""Turn the inputs of a request into what an encoder takes: texts, images, and both together, each with its tokens.

An image is base64, a data URI, or, where fetching is switched on, a URL. It is opened here and decoded by the encoder. Token ids
are replaced by the text that they spell in the model's own tokenizer.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.problems import Problem
from ragkit.core.errors import EncodeError
from ragkit.encode.contract import Encoder, Item, TokenReader
from ragkit.encode.images import upright_rgb, upright_size

if TYPE_CHECKING:
    from PIL.Image import Image

    from ragkit.apps.serve.urls import Fetcher
    from ragkit.search.queries import Query

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
IMAGE_WORK = 256  # tokens of work that an image is counted as, if the model does not tell: it sees every image at one size
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
    def _refuse_pdf(cls, value: object) -> object:
        if isinstance(value, Mapping) and "pdf" in value:
            message = "PDFs are not embedded here: send their pages as images, or add the file to an index"
            raise Problem(422, message, field="input")  # pydantic would list a ValueError beside all other forms of an input
        return value

    @model_validator(mode="after")
    def _check_parts(self) -> InputItem:
        images = sum(image is not None for image in (self.image, self.url, self.bytes))
        if images > 1 or (not images and self.text is None):
            raise ValueError("an input is a text, an image, or one of each")
        return self

    @property
    def picture(self) -> str | None:
        return next((image for image in (self.image, self.url, self.bytes) if image is not None), None)


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
    """n inputs as the encoder takes them. `texts`: None for an input without one. `tokens`: what each counts for; `image_tokens`:
    the share of all images in their sum. `work`: the tokens that the model computes for each, which may be fewer.
    """

    items: list[Item]
    texts: list[str | None]
    tokens: list[int]
    work: list[int]
    image_tokens: int


def listed(inputs: Inputs, *, limits: ServeLimits) -> list[Given]:
    """Return the inputs as a list. Problem 400 for too many."""
    if isinstance(inputs, (str, InputItem)):
        return [inputs]
    if isinstance(inputs[0], int):
        return [inputs]
    if len(inputs) > limits.inputs:
        raise Problem(400, f"{len(inputs)} inputs are over this server's {limits.inputs} in one request", field="input")
    return cast("list[Given]", inputs)


def spelled(inputs: Sequence[Given], encoder: Encoder) -> list[str | InputItem]:
    """Replace token ids by the texts that they spell. Problem 400 for ids that the model does not have."""
    return [_spelled(i, item, encoder) if isinstance(item, list) else item for i, item in enumerate(inputs)]


def _spelled(index: int, ids: list[int], encoder: Encoder) -> str:
    way_out = "Send the text itself. With langchain_openai: OpenAIEmbeddings(..., check_embedding_ctx_length=False)"
    if not isinstance(encoder, TokenReader):
        raise Problem(400, f"input {index} is token ids, which {encoder.card.name} does not take. {way_out}", field="input")
    try:
        return encoder.text_of(ids)
    except ValueError as error:
        raise Problem(400, f"input {index}: {error}. {way_out}", field="input") from None


def urls_of(inputs: Sequence[Given]) -> list[str]:
    """Return the URLs among the images."""
    pictures = [item.picture for item in inputs if isinstance(item, InputItem)]
    return [picture for picture in pictures if picture is not None and _is_url(picture)]


def _is_url(value: str) -> bool:
    return value[:8].lower().startswith(("http://", "https://"))


async def fetched(urls: Sequence[str], fetcher: Fetcher | None, limits: ServeLimits) -> dict[str, bytes]:
    """Fetch the files behind the URLs, together no larger than a body may be. Problem 400 if fetching is switched off, or for a
    URL that is refused."""
    if urls and fetcher is None:
        raise Problem(400, "this server fetches no URLs: send the image itself, as base64", field="input")
    if fetcher is None:
        return {}
    files: dict[str, bytes] = {}
    for url in dict.fromkeys(urls):
        files[url] = await fetcher.fetch(url)
        if sum(map(len, files.values())) > limits.body_bytes:
            message = f"the images of one request are over {limits.body_bytes:,} bytes"
            raise Problem(400, message, code="INPUT_TOO_LARGE", field="input")
    return files


def prepare(
    given: Sequence[Given], files: Mapping[str, bytes], encoder: Encoder, *, task: str, limits: ServeLimits, truncate: bool
) -> Prepared:
    """Return the inputs as the encoder takes them, with their tokens. task: its full name.

    Problem 400 for an image that cannot be read, an input over the model's limit, and tokens over the server's.
    """
    inputs = spelled(given, encoder)
    texts = [item if isinstance(item, str) else item.text for item in inputs]
    images = [_image(i, item, files, encoder, limits) for i, item in enumerate(inputs)]
    of_texts = _text_tokens(texts, encoder, task, truncate=truncate)
    # An image's tokens may be a price; images are limited by their bytes.
    if sum(of_texts) > limits.tokens:
        raise Problem(400, f"{sum(of_texts):,} tokens are over this server's {limits.tokens:,} in one request", field="input")
    of_images = [0 if image is None else image_tokens(i, image, encoder) for i, image in enumerate(images)]
    most_work = math.inf if hasattr(encoder, "image_tokens") else IMAGE_WORK
    return Prepared(
        items=[_item(text, image) for text, image in zip(texts, images, strict=True)],
        texts=texts,
        tokens=[text + image for text, image in zip(of_texts, of_images, strict=True)],
        work=[text + int(min(image, most_work)) for text, image in zip(of_texts, of_images, strict=True)],
        image_tokens=sum(of_images),
    )


def _image(index: int, item: str | InputItem, files: Mapping[str, bytes], encoder: Encoder, limits: ServeLimits) -> Image | None:
    """Return the image of an input. Problem 400 if the model does not see."""
    image = None if isinstance(item, str) else picture_of(f"input {index}", item, files, limits)
    if image is not None and "image" not in encoder.card.modalities:
        raise Problem(400, f"input {index} is an image, and {encoder.card.name} does not see", field="input")
    return image


def _text_tokens(texts: Sequence[str | None], encoder: Encoder, task: str, *, truncate: bool) -> list[int]:
    """Return the tokens that the model reads of each input's text, 0 without one. Problem 400 for one over the model's limit,
    unless it may be truncated."""
    most = encoder.card.max_tokens
    counts = iter(_counts([text for text in texts if text is not None], encoder, task))
    tokens = [0 if text is None else next(counts) for text in texts]
    too_long = next((i for i, count in enumerate(tokens) if count > most), None)
    if too_long is not None and not truncate:
        raise Problem(
            400,
            f"input {too_long} has {tokens[too_long]} tokens, and {encoder.card.name} takes {most}. Send less of it, or "
            '"truncate": true for its beginning',
            code="INPUT_TOO_LONG",
            field="input",
        )
    return [min(count, most) for count in tokens]


def _counts(texts: list[str], encoder: Encoder, task: str) -> list[int]:
    """Return the tokens that the model sees of each text, with the task's instruction if the encoder tells its length."""
    counts = encoder.task_tokens(texts, task) if isinstance(encoder, TokenReader) else encoder.count_tokens(texts)
    return [int(count) for count in counts]


def _item(text: str | None, image: Image | None) -> Item:
    if image is None:
        return text
    return image if text is None else (text, image)


def picture_of(name: str, item: InputItem, files: Mapping[str, bytes], limits: ServeLimits) -> Image | None:
    """Return the image of an input, opened and not yet decoded; None without one. Problem 400, with `name` in it, for a file that
    is not a supported image."""
    value = item.picture
    if value is None:
        return None
    content = files[value] if _is_url(value) else _decoded(name, value, limits)
    from PIL import Image as Images

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images: the encoder has its own limit
            return Images.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # on a damaged file decoders raise errors of any class
        kinds = ", ".join(FORMATS)
        raise Problem(
            400, f"{name} is not an image of a supported format ({kinds}): {type(error).__name__}", field="input"
        ) from None


def checked_text(text: str, limits: ServeLimits) -> str:
    """Return the text of a query. Problem 400 if it is too long."""
    if len(text) > limits.query_characters:
        message = f"the query has {len(text):,} characters, over this server's {limits.query_characters:,}"
        raise Problem(400, message, code="INPUT_TOO_LONG", field="query")
    return text


def query_of(query: str | InputItem, files: Mapping[str, bytes], limits: ServeLimits) -> Query:
    """Return what `Index.search` takes: a text, an image, or (text, image). Problem 400 for a file that is not an image, for an
    image that is too large, and for a text that is too long."""
    if isinstance(query, str):
        return checked_text(query, limits)
    text = checked_text(query.text or "", limits)
    opened = picture_of("the query", query, files, limits)
    if opened is None:
        return text
    try:
        image = upright_rgb(0, opened)
    except EncodeError as error:
        raise Problem(400, str(error).replace("input 0", "the query", 1), field="query") from None
    return image if query.text is None else (text, image)


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


def image_tokens(index: int, image: Image, encoder: Encoder) -> int:
    """Return what an image counts for: the tokens that the model says it sees of it, or clip-v1's tiles at a thousand each."""
    try:
        width, height = upright_size(index, image)
    except EncodeError as error:
        raise Problem(400, str(error), field="input") from None
    tokens_of = getattr(encoder, "image_tokens", None)
    if tokens_of is not None:
        return int(tokens_of(width, height))
    return math.ceil(width / TILE) * math.ceil(height / TILE) * TILE_TOKENS

"""What is published of models behind an API, and what their names say: service, model, address. Nothing is sent from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ragkit.encode.contract import EncoderCard
from ragkit.encode.images import Resizing
from ragkit.encode.load_settings import MULTI_SUFFIX
from ragkit.encode.tasks import GENERAL

URLS = {"jina": "https://api.jina.ai/v1", "openai": "https://api.openai.com/v1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """What is published of a model behind an API; dims 0: the service is asked for one vector to learn the width."""

    dims: int = 0
    multi_dims: int = 0
    max_tokens: int = 8192
    truncatable: tuple[int, ...] = ()
    takes_dims: bool = False  # whether `dimensions` may be sent
    tasks: tuple[str, ...] = GENERAL
    takes_tasks: bool = False
    seen: Resizing | int | None = None  # how its preprocessing resizes images: Qwen2-VL's rule, or the side of a square

    @property
    def sees(self) -> bool:
        return self.seen is not None


KNOWN = {
    "jina:jina-embeddings-v3": Hosted(
        dims=1024, truncatable=(32, 64, 128, 256, 512, 768, 1024), takes_dims=True, tasks=GENERAL, takes_tasks=True
    ),
    "jina:jina-embeddings-v4": Hosted(
        dims=2048, multi_dims=128, max_tokens=32768, truncatable=(128, 256, 512, 1024, 2048), takes_dims=True,
        tasks=("retrieval", "text-matching", "code"), takes_tasks=True,
        seen=Resizing(unit=28, least=56 * 56, most=768 * 28 * 28),
    ),
    "jina:jina-clip-v1": Hosted(dims=768, seen=224),
    "openai:text-embedding-3-small": Hosted(dims=1536, truncatable=(512, 1536), takes_dims=True),
    "openai:text-embedding-3-large": Hosted(dims=3072, truncatable=(256, 1024, 3072), takes_dims=True),
    "openai:text-embedding-ada-002": Hosted(dims=1536),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostedName:
    """ "jina:model@https://host/v1+multi", taken apart."""

    service: str
    model: str
    url: str
    multi: bool

    @classmethod
    def parse(cls, name: str) -> HostedName:
        service, _, rest = name.removesuffix(MULTI_SUFFIX).partition(":")
        model, at, url = rest.partition("@http")
        if service not in URLS or not model:
            raise ValueError(f"{name!r} is not jina:<model> or openai:<model>, with @<address> behind it for another server")
        return cls(service, model, f"http{url}".rstrip("/") if at else URLS[service], name.endswith(MULTI_SUFFIX))

    @property
    def hosted(self) -> Hosted:
        return KNOWN.get(f"{self.service}:{self.model}", Hosted())


def key_of(name: str, parts: HostedName, api_keys: Mapping[str, str]) -> str:
    """Return the key for the model's address. Raises ValueError if the caller named neither the service nor the address."""
    keys = {place.rstrip("/"): key for place, key in api_keys.items()}
    place = parts.service if parts.url == URLS[parts.service] else parts.url
    if place not in keys:
        service = parts.service.upper()
        raise ValueError(
            f"{name} sends texts to {parts.url}, which needs your word: pass api_keys={{{place!r}: <key>}}. On the command line, "
            f"set {service}_API_KEY" + (f" and {service}_BASE_URL" if place == parts.url else "")
        )
    return keys[place]


def card_of(name: str, parts: HostedName, hosted: Hosted, max_tokens: int) -> EncoderCard:
    modalities = ("text", "image") if hosted.sees else ("text",)
    return EncoderCard(
        name=name,
        revision="",
        licence="unknown",
        dims=hosted.dims,
        multi_dims=hosted.multi_dims if parts.multi else 0,
        truncatable_dims=hosted.truncatable,
        tasks=hosted.tasks,
        modalities=modalities,
        query_modalities=modalities,
        max_tokens=max_tokens,
        outputs=("dense", "multi") if parts.multi else ("dense",),
        pooling="its own",
        dtype="float32",
        preprocessing={"api": parts.service, "url": parts.url, "model": parts.model},
    )

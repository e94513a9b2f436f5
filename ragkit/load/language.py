"""Which language a text is in: declared by the file, else recognised where there is enough of it (py3langid)."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from types import SimpleNamespace
from typing import Protocol

from ragkit.core.types import Document, Json, Metadata

_LEAST = 120  # letters from which recognition is reliable
_SAMPLE = 3000  # characters from each of the beginning, the middle and the end
_CONFIDENCE = 0.9
_CODE = re.compile(r"([A-Za-z]{2})(?:[-_][A-Za-z0-9]+)*")


def declared_language(tag: object) -> str:
    """Return the ISO 639-1 code of a language tag ("de-AT" -> "de"), or "" for what is not one."""
    match = _CODE.fullmatch(tag.strip()) if isinstance(tag, str) else None
    return match[1].lower() if match else ""


def with_language(meta: Metadata, text: str) -> Json:
    """Return the meta with `lang`: as declared if that is a language tag, else as recognised, else left out."""
    code = declared_language(meta.get("lang")) or recognise(text)
    rest = {key: value for key, value in meta.items() if key != "lang"}
    return {**rest, "lang": code} if code else rest


def language_of(document: Document) -> str:
    """Return the language of a document: as its meta declares it, else as recognised from its text, else ""."""
    return declared_language(document.meta.get("lang")) or recognise(document.text)


def recognise(text: str) -> str:
    """Return the ISO 639-1 code of a text's language, or "" where it is too short or too mixed to tell."""
    if len(text) <= 3 * _SAMPLE:
        sample = text
    else:
        half = len(text) // 2
        sample = "\n".join((text[:_SAMPLE], text[half : half + _SAMPLE], text[-_SAMPLE:]))
    letters = sum(map(str.isalpha, sample))
    # A letter of Chinese or Japanese says as much as several of an alphabet.
    weight = letters + 3 * sum(1 for c in sample if "\u3040" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7af")
    if weight < _LEAST or letters < 0.4 * len(sample.replace(" ", "")):
        return ""
    code, confidence = _identifier().classify(sample)
    return code if confidence >= _CONFIDENCE and len(code) == 2 else ""


class _Identifier(Protocol):
    def classify(self, text: str) -> tuple[str, float]: ...


@lru_cache(maxsize=1)
def _identifier() -> _Identifier:
    from py3langid import modelio
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    # It unpacks its model through a temporary file; the sandbox lets nobody write files, so it gets one in memory.
    modelio.tempfile = SimpleNamespace(TemporaryFile=lambda suffix: io.BytesIO())
    identifier: _Identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return identifier

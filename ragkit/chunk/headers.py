"""Contextual headers: where a chunk stands, in front of it when it is embedded, never when it is searched by words or cited.

A chunk that says "It was replaced in May" can be found by the words of its headings. `headed_texts` returns the texts to embed,
one per chunk, in order. A header is the document's title and the path of headings, without those that the chunk itself begins
with. It gives way to the text: where both together are over the limit, its outermost parts are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ragkit.core.types import Chunk, Document, Ints

BETWEEN = " › "  # as headings are printed


def headed_texts(
    document: Document, chunks: Sequence[Chunk], *, count_tokens: Callable[[Sequence[str]], Ints], limit: int
) -> list[str]:
    """Return each chunk's text behind its header, together at most `limit` tokens as `count_tokens` counts, or the text alone."""
    plain = [chunk.span.of(document.text) for chunk in chunks]
    headers = [_parts(document.title, chunk.headings, text) for chunk, text in zip(chunks, plain, strict=True)]
    texts = [_joined(header, text) for header, text in zip(headers, plain, strict=True)]
    unchecked = [i for i, header in enumerate(headers) if header]
    while unchecked:
        counts = count_tokens([texts[i] for i in unchecked]).tolist()
        too_long = [i for i, count in zip(unchecked, counts, strict=True) if count > limit]
        for i in too_long:
            headers[i] = headers[i][1:]
            texts[i] = _joined(headers[i], plain[i])
        unchecked = [i for i in too_long if headers[i]]
    return texts


def _parts(title: str, headings: Sequence[str], text: str) -> list[str]:
    """Return title and headings, outermost first, each once, without blanks and without those that the text begins with."""
    parts = dict.fromkeys(" ".join(part.split()) for part in (title, *headings))
    start = " ".join(text[: 2 * sum(map(len, parts)) + 64].split()).lstrip("#=* ")  # marks of headings in plain text
    return [part for part in parts if part and not start.startswith(part)]


def _joined(parts: Sequence[str], text: str) -> str:
    return f"{BETWEEN.join(parts)}\n{text}" if parts else text

"""Contextual headers: where a chunk stands, in front of it when it is embedded, never when it is searched by words or cited.

A chunk that says "It was replaced in May" is found under what its headings say. In go a document and its chunks; out come the
texts to embed, one a chunk, in order. A header is the document's title and the path of headings, without what the chunk itself
begins with. It gives way to the text: where both together are over the limit, its outermost parts are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ragkit.core.types import Chunk, Document, Ints

BETWEEN = " › "  # as headings are printed


def headed_texts(
    document: Document, chunks: Sequence[Chunk], *, count_tokens: Callable[[Sequence[str]], Ints], limit: int
) -> list[str]:
    """Each chunk's text behind its header, together at most `limit` tokens as `count_tokens` counts, or the text alone."""
    plain = [chunk.span.of(document.text) for chunk in chunks]
    parts = [_parts(document.title, chunk.headings, text) for chunk, text in zip(chunks, plain, strict=True)]
    texts = [_joined(own, text) for own, text in zip(parts, plain, strict=True)]
    long = [at for at, own in enumerate(parts) if own]
    while long:
        counts = count_tokens([texts[at] for at in long])
        long = [at for at, count in zip(long, counts.tolist(), strict=True) if count > limit]
        for at in long:
            parts[at] = parts[at][1:]
            texts[at] = _joined(parts[at], plain[at])
        long = [at for at in long if parts[at]]
    return texts


def _parts(title: str, headings: Sequence[str], text: str) -> list[str]:
    """Title and headings, outermost first, each once, without blanks and without what the text begins with."""
    named = dict.fromkeys(" ".join(part.split()) for part in (title, *headings))
    start = " ".join(text[: 2 * sum(map(len, named)) + 64].split()).lstrip("#=* ")  # marks of headings in plain text
    return [part for part in named if part and not start.startswith(part)]


def _joined(parts: Sequence[str], text: str) -> str:
    return f"{BETWEEN.join(parts)}\n{text}" if parts else text

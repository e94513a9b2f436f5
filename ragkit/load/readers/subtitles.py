"""Subtitles (SubRip, WebVTT): what is said, without the times. A page per minute, labelled with the time it begins at.

So a citation of "talk.srt, p. 13" is the thirteenth minute, 00:12:00 to 00:13:00. A pause of some seconds, or another
speaker, begins a paragraph.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from ragkit.core.errors import LoadError
from ragkit.core.types import Document
from ragkit.load.builder import DocumentBuilder
from ragkit.load.decode import text_of
from ragkit.load.limits import Options

_TIME = r"(?:(\d+):)?(\d\d):(\d\d)[.,](\d{1,3})"
_TIMES = re.compile(rf"^[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}.*$", re.MULTILINE)
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_LANGUAGE = re.compile(r"\n[Ll]anguage:[ \t]*([\w-]+)")
_PAUSE = 3.0  # seconds of silence that end a paragraph
_SIZE = (640.0, 360.0)  # points; a minute has no size, and citations need none

_Cue = tuple[float, float, str]  # start and end in seconds, and the words


def load(path: Path, options: Options) -> Iterator[Document]:
    """Yield the one Document of a subtitle file."""
    text = text_of(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    builder = DocumentBuilder(options.limits)
    cues = _cues(text)
    if not cues and text.strip():
        raise LoadError("it has no subtitles: no line of times was found")
    ended = _write(builder, cues)
    language = _LANGUAGE.search(text.split("\n\n", 1)[0]) if text.startswith("WEBVTT") else None
    yield builder.document(meta={"seconds": round(ended, 3), "lang": language[1] if language else ""})


def _write(builder: DocumentBuilder, cues: list[_Cue]) -> float:
    """Write the cues in paragraphs, a page per minute; return the second at which the last one ends."""
    paragraph: list[str] = []
    ended, minute = 0.0, -1
    for start, end, words in cues:
        now = int(start // 60)
        if paragraph and (now > minute or start - ended > _PAUSE or ": " in words[:40]):
            builder.paragraph(" ".join(paragraph))
            paragraph = []
        if now > minute:
            minute = now
            builder.page(*_SIZE, label=f"{now // 60:02}:{now % 60:02}:00", number=now + 1)
        paragraph.append(words)
        ended = max(ended, end)
    builder.paragraph(" ".join(paragraph))
    return ended


def _cues(text: str) -> list[_Cue]:
    """Return the cues that have words, in the order of the file."""
    cues = []
    times = list(_TIMES.finditer(text))
    for match, end in zip(times, [*(following.start() for following in times[1:]), len(text)], strict=False):
        body = text[match.end() : end].rstrip("\n")
        before, _, last = body.rpartition("\n")
        if before.endswith("\n") and last.strip().isdecimal():  # the number of the next cue, where this one has no words
            body = before
        body = body.strip("\n").split("\n\n", 1)[0]
        body = _VOICE.sub(lambda voice: f"{voice[1].strip()}: ", body)
        words = " ".join(html.unescape(_TAG.sub("", body)).split())
        if words:
            cues.append((_seconds(*match.groups()[:4]), _seconds(*match.groups()[4:]), words))
    return cues


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction) / 10.0 ** len(fraction)

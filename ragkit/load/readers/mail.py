"""E-mail (.eml, .mbox): each message a Document, each attachment another, read by the loader of its own kind.

A message's text is its subject, who wrote to whom and when, and its body: the plain text, or the HTML where that says nothing;
then the texts that stand beside the body without a name, such as what is written below a picture.
In a mailbox a message is known by its Message-ID, else by its content, so that moving it within the mailbox changes nothing.
A mailbox is read message by message, so one larger than memory is fine.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from collections.abc import Iterator
from dataclasses import replace
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import getaddresses
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Document
from ragkit.load.builder import DocumentBuilder, clean, one_line
from ragkit.load.decode import decode
from ragkit.load.formats import Format
from ragkit.load.limits import Options
from ragkit.load.member import EmbeddedFile, begins, inside, load_embedded, named, unique
from ragkit.load.normalize import add_common_metadata
from ragkit.load.readers import html

_KIND = Format("mail", "message/rfc822", container=True)
_SHOWN = ("From", "To", "Cc", "Date")
_TIME = re.compile(rb"\d\d:\d\d\D.*\d{4}")  # of the line before a message; years stand last
_HEADER = re.compile(rb"[!-9;-~]+:")
_QUOTED = re.compile(r"(?:^[ \t]*>.*\n?)+", re.MULTILINE)


def load(path: Path, options: Options) -> Iterator[Document | LoadError]:
    """The messages of a file and their attachments; a message or an attachment that cannot be read is yielded as an error."""
    deeper = inside(options)
    if path.suffix.lower() == ".mbox":
        with path.open("rb") as file:
            taken: set[str] = set()
            for number, data in enumerate(_messages(file, options.limits.file_bytes), start=1):
                if isinstance(data, LoadError):
                    yield type(data)(f"message {number}: {data}")
                    continue
                name = unique(_name(data), taken)
                if not begins(f"message {number}", deeper):
                    continue
                for result in _message(data, deeper):
                    if isinstance(result, Document):
                        yield replace(result, id=f"{name}#{result.id}" if result.id else name)
                    else:
                        yield named(result, f"message {number}")
        return
    data = path.read_bytes()
    if len(data) > options.limits.file_bytes:
        raise LimitExceeded(f"{len(data)} bytes, more than the limit of {options.limits.file_bytes} (Limits.file_bytes)")
    yield from _message(data, deeper, alone=True)


def _messages(file: BinaryIO, limit: int) -> Iterator[bytes | LoadError]:
    """The messages of a mailbox. Each begins with a line "From " at the beginning, or after a blank line where it has a time, or
    a header comes next: some programs leave such lines in texts as they are."""
    lines: list[bytes] = []
    size, blank, began = 0, True, False
    line = file.readline(limit + 1)
    while line:
        following = file.readline(limit + 1)
        if blank and line.startswith(b"From ") and (not began or _TIME.search(line) or _HEADER.match(following)):
            if began:
                yield _whole(lines, size, limit)
            lines, size, began = [], 0, True
        elif began:
            size += len(line)
            if size <= limit:
                lines.append(line[1:] if re.match(rb">+From ", line) else line)
        elif line.strip():
            raise LoadError('it is no mailbox: it does not begin with "From "')
        blank = not line.strip()
        line = following
    if began:
        yield _whole(lines, size, limit)


def _whole(lines: list[bytes], size: int, limit: int) -> bytes | LoadError:
    if size > limit:
        return LimitExceeded(f"{size} bytes, more than the limit of {limit} (Limits.file_bytes)")
    return b"".join(lines)


def _name(data: bytes) -> str:
    """What a message in a mailbox is known by."""
    head = BytesParser(policy=policy.compat32).parsebytes(data[:65536], headersonly=True)
    name = one_line(str(head.get("Message-ID") or "")).strip("<> ")
    return name.replace("#", "") if 0 < len(name) <= 200 else f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def _message(data: bytes, options: Options, *, alone: bool = False) -> Iterator[Document | LoadError]:
    """A message, then its attachments; of a message `alone` in its file they are the file's parts."""
    message = BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(data)
    if not message.keys():
        yield LoadError("it is no message: it has no headers")
        return
    builder = DocumentBuilder(options.limits)
    subject = _header(message, "Subject")
    builder.heading(subject, 1)
    lines = (f"{name}: {value}" for name in _SHOWN if (value := _header(message, name)))
    builder.block("paragraph", "\n".join(lines))
    texts, attachments = _parts(message)
    for part in texts:
        _write(builder, part)
    meta = {
        "author": _header(message, "From"),
        "to": [address for _, address in getaddresses([_header(message, "To"), _header(message, "Cc")]) if address],
        "created": _header(message, "Date"),
        "message_id": _header(message, "Message-ID").strip("<> "),
        "in_reply_to": _header(message, "In-Reply-To").strip("<> "),
    }
    meta["attachments"] = [name for name, _ in attachments]
    written = builder.document(title=subject, meta=meta)
    done = add_common_metadata(written, _KIND, size=len(data), modified="", limits=options.limits)
    if not alone or begins("the message", options):
        yield (
            done if isinstance(done, LoadError) else replace(done, meta={**done.meta, "sha256": hashlib.sha256(data).hexdigest()})
        )
    for name, part in attachments:
        if not alone or begins(name, options):
            yield from _attachment(name, part, options)


def _attachment(name: str, part: Any, options: Options) -> Iterator[Document | LoadError]:
    if options.depth >= options.limits.nesting:
        yield LimitExceeded(f"{name}: files within files more than {options.limits.nesting} deep (Limits.nesting)")
        return
    try:
        content = part.get_payload(0).as_bytes() if part.get_content_type() == "message/rfc822" else part.get_payload(decode=True)
        if options.budget is not None:
            options.budget.take(len(content or b""))
    except (ValueError, LookupError, TypeError, AttributeError, IndexError, UnicodeError) as error:
        yield LoadError(f"{name}: its attachment cannot be decoded: {error}")
        return
    yield from load_embedded(EmbeddedFile(name, content or b""), options)


def _header(message: EmailMessage, name: str) -> str:
    """A header's value decoded, on one line; "" where it is missing. One that is broken is as written, in whatever encoding."""
    raw = str(next((value for key, value in message.raw_items() if key.lower() == name.lower()), ""))
    try:
        if not re.search("[\ud800-\udfff]", raw):  # what is not ASCII, though it ought to be
            return one_line(str(message.get(name) or ""))
    except (ValueError, TypeError, AttributeError, IndexError, LookupError):
        pass
    return one_line(decode(raw.encode(errors="surrogateescape")))


def _body(message: EmailMessage) -> Any:
    try:
        plain, rich = message.get_body(("plain",)), message.get_body(("html",))
        blank = plain is None or not _bytes(plain).strip()
    except (KeyError, ValueError, AttributeError, IndexError):
        return None
    return rich if blank and rich is not None else plain


def _bytes(part: Any) -> bytes:
    return part.get_payload(decode=True) or b""


def _write(builder: DocumentBuilder, part: Any) -> None:
    data = _bytes(part)
    charset = str(part.get_content_charset() or "")
    text = clean(decode(data, declared=[charset] if charset else []).replace("\r\n", "\n"))
    if part.get_content_type() == "text/html":
        builder.include(html.parse(text))
        return
    at = 0
    for match in _QUOTED.finditer(text):
        _paragraphs(builder, text[at : match.start()])
        builder.block("quote", match[0].strip("\n"))
        at = match.end()
    _paragraphs(builder, text[at:])


def _paragraphs(builder: DocumentBuilder, text: str) -> None:
    for paragraph in re.split(r"\n[ \t]*\n", text):
        builder.block("paragraph", "\n".join(line.rstrip() for line in paragraph.strip("\n").split("\n")))


def _parts(message: EmailMessage) -> tuple[list[Any], list[tuple[str, Any]]]:
    """The parts that are the message's text, and those that are files of their own, each with a name that no other has.

    Of alternatives to each other the body alone is text. Pictures shown in the text are neither.
    """
    body = _body(message)
    texts: list[Any] = []
    files: list[tuple[str, Any]] = []
    taken: set[str] = set()
    todo: list[tuple[Any, bool]] = [(message, False)]  # with whether it is one of several alternatives
    while todo:
        part, alternative = todo.pop(0)
        kind = part.get_content_type()
        if kind == "message/rfc822" and part is not message:
            name = "message.eml"
        elif part.is_multipart():
            alternative = alternative or kind == "multipart/alternative"
            todo = [*((inner, alternative) for inner in part.get_payload()), *todo]
            continue
        else:
            name = _file_name(part)
        if part is body or (not name and not alternative and kind.startswith("text/")):
            texts.append(part)
        elif name:
            files.append((unique(name, taken, suffix=PurePosixPath(name).suffix), part))
    return texts, files


def _file_name(part: Any) -> str:
    """The name of a part that is a file: its own, or one after its kind; "" for what is shown within the message."""
    try:
        name = clean(re.split(r"[/\\]", part.get_filename() or "")[-1]).replace("#", "").strip()
        if not name and (part.get_content_disposition() == "attachment" or part.get_content_maintype() == "application"):
            name = "attachment" + (mimetypes.guess_extension(part.get_content_type(), strict=False) or "")
    except (ValueError, TypeError, LookupError, AttributeError):
        return ""
    return name

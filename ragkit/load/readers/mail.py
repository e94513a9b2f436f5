"""E-mail (.eml, .mbox): each message a Document, each attachment another, read by the loader of its own kind.

A message's text is its subject, who wrote to whom and when, and its body: the plain text, or the HTML where the plain text is
blank; then the texts beside the body that have no file name, such as what is written below a picture.
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
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from email.utils import getaddresses
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ragkit.core.errors import LimitExceeded, LoadError
from ragkit.core.types import Document, Json
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
    """Yield the messages of a file and their attachments; for a message or an attachment that cannot be read, an error."""
    deeper = inside(options)
    if path.suffix.lower() == ".mbox":
        yield from _mailbox(path, deeper)
        return
    data = path.read_bytes()
    if len(data) > options.limits.file_bytes:
        raise LimitExceeded(f"{len(data)} bytes, more than the limit of {options.limits.file_bytes} (Limits.file_bytes)")
    yield from _message(data, deeper, alone=True)


def _mailbox(path: Path, options: Options) -> Iterator[Document | LoadError]:
    taken: set[str] = set()
    with path.open("rb") as file:
        for number, data in enumerate(_messages(file, options.limits.file_bytes), start=1):
            where = f"message {number}"
            if isinstance(data, LoadError):
                yield type(data)(f"{where}: {data}")
                continue
            name = unique(_name(data), taken)
            if begins(where, options):
                yield from _in_mailbox(_message(data, options), name, where)


def _in_mailbox(results: Iterator[Document | LoadError], name: str, where: str) -> Iterator[Document | LoadError]:
    """Yield the results of a message with the message's name in front of their ids; errors say where in the mailbox it is."""
    for result in results:
        if isinstance(result, Document):
            yield replace(result, id=f"{name}#{result.id}" if result.id else name)
        else:
            yield named(result, where)


def _messages(file: BinaryIO, limit: int) -> Iterator[bytes | LoadError]:
    """Yield the messages of a mailbox; one of more than `limit` bytes is an error."""
    lines: list[bytes] = []
    size, blank, began = 0, True, False
    line = file.readline(limit + 1)
    while line:
        following = file.readline(limit + 1)
        if blank and _begins_message(line, following, first=not began):
            if began:
                yield _whole(lines, size, limit)
            lines, size, began = [], 0, True
        elif began:
            size += len(line)
            if size <= limit:
                lines.append(line[1:] if re.match(rb">+From ", line) else line)
        elif line.strip():
            raise LoadError('not a mailbox: it does not begin with "From "')
        blank = not line.strip()
        line = following
    if began:
        yield _whole(lines, size, limit)


def _begins_message(line: bytes, following: bytes, *, first: bool) -> bool:
    """Whether a line at the beginning, or after a blank one, begins a message. Some programs leave lines "From " in texts as they
    are, so every message but the first needs a time in that line, or a header after it."""
    return line.startswith(b"From ") and bool(first or _TIME.search(line) or _HEADER.match(following))


def _whole(lines: list[bytes], size: int, limit: int) -> bytes | LoadError:
    if size > limit:
        return LimitExceeded(f"{size} bytes, more than the limit of {limit} (Limits.file_bytes)")
    return b"".join(lines)


def _name(data: bytes) -> str:
    """Return what a message in a mailbox is known by: its Message-ID, else a hash of its bytes."""
    head = BytesParser(policy=policy.compat32).parsebytes(data[:65536], headersonly=True)
    name = one_line(str(head.get("Message-ID") or "")).strip("<> ")
    return name.replace("#", "") if 0 < len(name) <= 200 else f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def _message(data: bytes, options: Options, *, alone: bool = False) -> Iterator[Document | LoadError]:
    """Yield a message, then its attachments. Where the message is `alone` in its file, they are the file's parts."""
    message = BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(data)
    if not message.keys():
        yield LoadError("not a message: it has no headers")
        return
    texts, attachments = _parts(message)
    document = _document(message, texts, [name for name, _ in attachments], size=len(data), options=options)
    if not alone or begins("the message", options):
        if isinstance(document, LoadError):
            yield document
        else:
            yield replace(document, meta={**document.meta, "sha256": hashlib.sha256(data).hexdigest()})
    for name, part in attachments:
        if not alone or begins(name, options):
            yield from _attachment(name, part, options)


def _document(
    message: EmailMessage, texts: list[MIMEPart], attachments: list[str], *, size: int, options: Options
) -> Document | LoadError:
    """Return the Document of a message without its attachments, of which it has the names."""
    builder = DocumentBuilder(options.limits)
    subject = _header(message, "Subject")
    builder.heading(subject, 1)
    lines = (f"{name}: {value}" for name in _SHOWN if (value := _header(message, name)))
    builder.block("paragraph", "\n".join(lines))
    for part in texts:
        _write(builder, part)
    recipients = getaddresses([_header(message, "To"), _header(message, "Cc")])
    meta: Json = {
        "author": _header(message, "From"),
        "to": [address for _, address in recipients if address],
        "created": _header(message, "Date"),
        "message_id": _header(message, "Message-ID").strip("<> "),
        "in_reply_to": _header(message, "In-Reply-To").strip("<> "),
        "attachments": attachments,
    }
    written = builder.document(title=subject, meta=meta)
    return add_common_metadata(written, _KIND, size=size, modified="", limits=options.limits)


def _attachment(name: str, part: MIMEPart, options: Options) -> Iterator[Document | LoadError]:
    if options.depth >= options.limits.nesting:
        yield LimitExceeded(f"{name}: files within files more than {options.limits.nesting} deep (Limits.nesting)")
        return
    try:
        content = _attached_message(part) if part.get_content_type() == "message/rfc822" else _bytes(part)
        if options.budget is not None:
            options.budget.take(len(content))
    except (ValueError, LookupError, TypeError, AttributeError, IndexError, UnicodeError) as error:
        yield LoadError(f"{name}: its attachment cannot be decoded: {error}")
        return
    yield from load_embedded(EmbeddedFile(name, content), options)


def _attached_message(part: MIMEPart) -> bytes:
    message = part.get_payload(0)
    if not isinstance(message, EmailMessage):
        raise TypeError("it holds no message")
    return message.as_bytes()


def _header(message: EmailMessage, name: str) -> str:
    """Return a header's value decoded, on one line; "" where it is missing. A broken one is returned as it is written."""
    raw = str(next((value for key, value in message.raw_items() if key.lower() == name.lower()), ""))
    try:
        if not re.search("[\ud800-\udfff]", raw):  # surrogates stand for bytes that are not ASCII, though they ought to be
            return one_line(str(message.get(name) or ""))
    except (ValueError, TypeError, AttributeError, IndexError, LookupError):
        pass
    return one_line(decode(raw.encode(errors="surrogateescape")))


def _body(message: EmailMessage) -> MIMEPart | None:
    """Return the part that is the message's text: the plain one, or the HTML where that one is blank."""
    try:
        plain, rich = message.get_body(("plain",)), message.get_body(("html",))
        blank = plain is None or not _bytes(plain).strip()
    except (KeyError, ValueError, AttributeError, IndexError):
        return None
    return rich if blank and rich is not None else plain


def _bytes(part: MIMEPart) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _write(builder: DocumentBuilder, part: MIMEPart) -> None:
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


def _parts(message: EmailMessage) -> tuple[list[MIMEPart], list[tuple[str, MIMEPart]]]:
    """Return the parts that are the message's text, and those that are files of their own, each with a unique name.

    Of parts that are alternatives to each other only the body is text. Pictures shown in the text are left out.
    """
    body = _body(message)
    texts: list[MIMEPart] = []
    files: list[tuple[str, MIMEPart]] = []
    taken: set[str] = set()
    for part, is_alternative in _leaves(message):
        kind = part.get_content_type()
        name = "message.eml" if kind == "message/rfc822" and part is not message else _file_name(part)
        if part is body or (not name and not is_alternative and kind.startswith("text/")):
            texts.append(part)
        elif name:
            files.append((unique(name, taken, suffix=PurePosixPath(name).suffix), part))
    return texts, files


def _leaves(message: EmailMessage) -> Iterator[tuple[MIMEPart, bool]]:
    """Yield the parts in order, attached messages whole, and whether each is one of several alternatives."""
    waiting: list[tuple[MIMEPart, bool]] = [(message, False)]
    while waiting:
        part, is_alternative = waiting.pop(0)
        kind = part.get_content_type()
        if not part.is_multipart() or (kind == "message/rfc822" and part is not message):
            yield part, is_alternative
        else:
            is_alternative = is_alternative or kind == "multipart/alternative"
            waiting = [*((inner, is_alternative) for inner in part.iter_parts()), *waiting]


def _file_name(part: MIMEPart) -> str:
    """Return the name of a part that is a file: its own, or one after its kind; "" for what is shown within the message."""
    try:
        name = clean(re.split(r"[/\\]", part.get_filename() or "")[-1]).replace("#", "").strip()
        if not name and (part.get_content_disposition() == "attachment" or part.get_content_maintype() == "application"):
            name = "attachment" + (mimetypes.guess_extension(part.get_content_type(), strict=False) or "")
    except (ValueError, TypeError, LookupError, AttributeError):
        return ""
    return name

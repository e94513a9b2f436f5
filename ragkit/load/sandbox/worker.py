"""The child: reads files that nobody vouches for, so that nothing they do to a parser reaches the parent.

`python -m ragkit.load.sandbox.worker` reads requests from stdin and answers on stdout, in the frames of `wire`. It first takes
from itself what parsing does not need (`confine`): writing to files, the network, more memory than the limit. It ignores
Ctrl-C, which is the parent's to decide, and ends when the parent does.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ragkit.core.errors import LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Document
from ragkit.load.formats import format_of, supported
from ragkit.load.limits import Limits, Options
from ragkit.load.sandbox import wire
from ragkit.load.sandbox.confine import confine


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not end up between frames
    requests = os.fdopen(0, "rb", buffering=0)
    with contextlib.suppress(BrokenPipeError):
        first = _request(requests)
        if first is None:
            return
        limits = Limits(**first["limits"])
        taken = confine(limits.memory)
        _send(answers, wire.frame({"kind": "ready", "confined": taken}))
        while (request := _request(requests)) is not None:
            with _leash():
                _answer(request, limits, answers)
            # Only now, off the leash: after this the parent may send the next request, which must not look like its end.
            _send(answers, wire.frame({"kind": "end"}))


def _request(requests: BinaryIO) -> dict[str, Any] | None:
    """The next request, or None at the end."""
    prefix = _read(requests, wire.PREFIX.size)
    if prefix is None:
        return None
    _, head, _ = wire.PREFIX.unpack(prefix)
    body = _read(requests, head)
    return None if body is None else wire.header_of(body)


def _read(file: BinaryIO, size: int) -> bytes | None:
    found = b""
    while len(found) < size:
        piece = file.read(size - len(found))
        if not piece:
            return None
        found += piece
    return found


def _send(answers: BinaryIO, frame: list[bytes | memoryview]) -> None:
    for part in frame:
        view = memoryview(part)
        while len(view):
            view = view[answers.write(view) :]


@contextlib.contextmanager
def _leash() -> Iterator[None]:
    """While a request is worked on, the end of stdin (the parent is gone) ends this process, whatever it is busy with.

    The parent sends nothing meanwhile, so the only thing that can happen on stdin is its end, for which the kernel sends
    SIGIO. A thread could not do this, since parsers hold the interpreter's lock; PR_SET_PDEATHSIG would also fire
    when only the thread that started us ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    before = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, before | os.O_ASYNC)
    try:
        yield
    finally:
        fcntl.fcntl(0, fcntl.F_SETFL, before)


def _answer(request: dict[str, Any], limits: Limits, answers: BinaryIO) -> None:
    try:
        if request["kind"] == "render":
            _send(answers, wire.frame({"kind": "image"}, [_png(request, limits, answers)]))
        elif request["kind"] == "draw":
            for frame in _pictures(request, limits, answers):
                _send(answers, frame)
        else:
            for result in _load(request, limits, answers):
                _send(answers, wire.pack_document(result) if isinstance(result, Document) else wire.pack_error(result))
    except LoadError as error:
        _send(answers, wire.pack_error(error))
    except MemoryError:
        _send(answers, wire.pack_error(LimitExceeded(f"more memory than {limits.memory} bytes (Limits.memory)")))
    except BrokenPipeError:
        raise
    except OSError as error:
        _send(answers, wire.pack_error(LoadError(f"cannot be read: {error.strerror or error}")))
    except Exception as error:  # the boundary: what a parser raises on a broken file is that file's failure, told as such
        _send(answers, wire.pack_error(LoadError(f"{type(error).__name__}: {error}")))


def _png(request: dict[str, Any], limits: Limits, answers: BinaryIO) -> bytes:
    from ragkit.load.render import page_png

    path, options = _drawing(request, limits, answers)
    how = {name: request[name] for name in ("dpi", "max_pixels", "count", "name")}
    return page_png(path, request["page"], options, **how)


def _pictures(request: dict[str, Any], limits: Limits, answers: BinaryIO) -> Iterator[list[bytes | memoryview]]:
    """A frame for each wanted page."""
    from ragkit.load.render import WantedPage, drawn, is_blank

    path, options = _drawing(request, limits, answers)
    wanted = [WantedPage(*page) for page in request["wanted"]]
    for page, result in zip(wanted, drawn(path, wanted, options, name=request["name"]), strict=True):
        if isinstance(result, LoadError):
            yield wire.pack_error(result, kind="undrawn")
        else:
            yield wire.pack_picture(page.number, result, blank=is_blank(result))


def _drawing(request: dict[str, Any], limits: Limits, answers: BinaryIO) -> tuple[Path, Options]:
    """The file whose pages are to be drawn, and how; what draws it has been imported."""
    from ragkit.load.render import prepare

    path = Path(request["path"])
    size = _regular(path).st_size
    if size > limits.file_bytes:
        raise LimitExceeded(f"{size} bytes, more than the limit of {limits.file_bytes} (Limits.file_bytes)")
    prepare(request["name"], request["pdf_engine"])
    _send(answers, wire.frame({"kind": "begin"}))

    def on_page(number: int) -> None:
        _send(answers, wire.frame({"kind": "page", "page": number}))

    return path, Options(limits=limits, pdf_engine=request["pdf_engine"], password=request["password"], on_page=on_page)


def _regular(path: Path) -> os.stat_result:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device would be waited for without end
        raise LoadError("not a regular file")
    return found


def _load(request: dict[str, Any], limits: Limits, answers: BinaryIO) -> Iterator[Document | LoadError]:
    path = Path(request["path"])
    found = _regular(path)
    kind = format_of(path)
    if kind is None:
        raise UnsupportedFormat(f"no loader takes {path.suffix or path.name!r}. Loaders exist for {' '.join(supported())}")
    if not kind.container and found.st_size > limits.file_bytes:
        raise LimitExceeded(f"{found.st_size} bytes, more than the limit of {limits.file_bytes} (Limits.file_bytes)")

    def on_page(number: int) -> None:
        _send(answers, wire.frame({"kind": "page", "page": number}))

    begun = 0

    def on_part(name: str) -> bool:
        nonlocal begun
        begun += 1
        if begun <= request["after"]:
            return False
        _send(answers, wire.frame({"kind": "part", "part": begun, "name": name}))
        return True

    options = Options(
        limits=limits,
        pdf_engine=request["pdf_engine"],
        ocr=request["ocr"],
        password=request["password"],
        on_page=on_page,
        on_part=on_part,
        skip={int(number): reason for number, reason in request["skip"].items()},
    )
    from ragkit.load.normalize import add_common_metadata, iso

    loader = importlib.import_module(kind.module)
    if kind.loader == "pdf":
        loader.prepare(options.pdf_engine)
    _send(answers, wire.frame({"kind": "begin"}))  # importing a library is not the document's time
    try:
        for result in loader.load(path, options):
            if isinstance(result, LoadError) or kind.container:  # a container's loader finishes what it finds
                yield result
            else:
                result = _laid_out(result, request, options)
                yield add_common_metadata(result, kind, size=found.st_size, modified=iso(found.st_mtime), limits=limits)
    except LoadError as error:
        if found.st_size or isinstance(error, UnsupportedFormat):
            raise
        raise LoadError("it is empty: 0 bytes") from None


def _laid_out(document: Document, request: dict[str, Any], options: Options) -> Document:
    """An Office document with the pages of its rendition, or with the reason why it has none; any other as it is."""
    from ragkit.load import office, render

    if not request["laid_out"]:
        return office.without_pages(document, request["unread"]) if request["unread"] else document
    try:
        return office.with_pages(document, render.page_sizes(Path(request["laid_out"]), options))
    except LoadError as error:
        return office.without_pages(document, str(error))


if __name__ == "__main__":
    main()

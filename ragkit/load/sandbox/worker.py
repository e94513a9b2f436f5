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
from typing import BinaryIO

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


def _request(requests: BinaryIO) -> wire.Header | None:
    """Return the next request, or None at the end."""
    prefix = _read(requests, wire.PREFIX.size)
    if prefix is None:
        return None
    _, head, _ = wire.PREFIX.unpack(prefix)
    body = _read(requests, head)
    return None if body is None else wire.header_of(body)


def _read(file: BinaryIO, size: int) -> bytes | None:
    """Return `size` bytes, or None where the file ends before."""
    data = b""
    while len(data) < size:
        piece = file.read(size - len(data))
        if not piece:
            return None
        data += piece
    return data


def _send(answers: BinaryIO, frame: wire.Frame) -> None:
    for piece in frame:
        view = memoryview(piece)
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


def _answer(request: wire.Header, limits: Limits, answers: BinaryIO) -> None:
    """Send the results of a request. Whatever it raises is sent as a LoadError, but that nobody reads the answers."""
    serve = {"render": _png, "draw": _pictures}.get(request["kind"], _documents)
    try:
        for frame in serve(request, limits, answers):
            _send(answers, frame)
    except BrokenPipeError:
        raise
    except Exception as error:  # the boundary: what a parser raises on a broken file is that file's failure
        _send(answers, wire.pack_error(_load_error(error, limits)))


def _load_error(error: Exception, limits: Limits) -> LoadError:
    """Return the LoadError that says what an exception means for the file."""
    if isinstance(error, LoadError):
        return error
    if isinstance(error, MemoryError):
        return LimitExceeded(f"more memory than {limits.memory} bytes (Limits.memory)")
    if isinstance(error, OSError):
        return LoadError(f"cannot be read: {error.strerror or error}")
    return LoadError(f"{type(error).__name__}: {error}")


def _png(request: wire.Header, limits: Limits, answers: BinaryIO) -> Iterator[wire.Frame]:
    """Yield one frame: a page as a PNG file."""
    from ragkit.load.render import page_png

    path, options = _drawing(request, limits, answers)
    how = {name: request[name] for name in ("dpi", "max_pixels", "count", "name")}
    yield wire.frame({"kind": "image"}, [page_png(path, request["page"], options, **how)])


def _pictures(request: wire.Header, limits: Limits, answers: BinaryIO) -> Iterator[wire.Frame]:
    """Yield a frame for each wanted page."""
    from ragkit.load.render import WantedPage, drawn, is_blank

    path, options = _drawing(request, limits, answers)
    wanted = [WantedPage(*page) for page in request["wanted"]]
    for page, result in zip(wanted, drawn(path, wanted, options, name=request["name"]), strict=True):
        if isinstance(result, LoadError):
            yield wire.pack_error(result, kind="undrawn")
        else:
            yield wire.pack_picture(page.number, result, blank=is_blank(result))


def _drawing(request: wire.Header, limits: Limits, answers: BinaryIO) -> tuple[Path, Options]:
    """Return the file whose pages are to be drawn, and how. What draws it has been imported then."""
    from ragkit.load.render import prepare

    path = Path(request["path"])
    _check_size(_regular(path).st_size, limits)
    prepare(request["name"], request["pdf_engine"])
    _send(answers, wire.frame({"kind": "begin"}))
    report = _Progress(answers, after=0)
    return path, Options(limits=limits, pdf_engine=request["pdf_engine"], password=request["password"], on_page=report.on_page)


def _documents(request: wire.Header, limits: Limits, answers: BinaryIO) -> Iterator[wire.Frame]:
    """Yield a frame for each Document of a file, and for each part of it that cannot be read."""
    path = Path(request["path"])
    status = _regular(path)
    kind = format_of(path)
    if kind is None:
        raise UnsupportedFormat(f"no loader takes {path.suffix or path.name!r}. Loaders exist for {' '.join(supported())}")
    if not kind.container:
        _check_size(status.st_size, limits)
    report = _Progress(answers, after=request["after"])
    options = Options(
        limits=limits,
        pdf_engine=request["pdf_engine"],
        ocr=request["ocr"],
        password=request["password"],
        on_page=report.on_page,
        on_part=report.on_part,
        skip={int(number): reason for number, reason in request["skip"].items()},
    )
    from ragkit.load.normalize import add_common_metadata, iso

    loader = importlib.import_module(kind.module)
    if kind.loader == "pdf":
        loader.prepare(options.pdf_engine)
    _send(answers, wire.frame({"kind": "begin"}))  # importing a library is not the document's time
    try:
        for result in loader.load(path, options):
            if isinstance(result, Document) and not kind.container:  # a container's loader completes its Documents itself
                result = _laid_out(result, request, options)
                result = add_common_metadata(result, kind, size=status.st_size, modified=iso(status.st_mtime), limits=limits)
            yield wire.pack_document(result) if isinstance(result, Document) else wire.pack_error(result)
    except LoadError as error:
        if status.st_size or isinstance(error, UnsupportedFormat):
            raise
        raise LoadError("it is empty: 0 bytes") from None


class _Progress:
    """Tells the parent which page, and which file within the file, is being read. The first `after` of these are left out."""

    def __init__(self, answers: BinaryIO, *, after: int) -> None:
        self._answers, self._after = answers, after
        self._parts = 0

    def on_page(self, number: int) -> None:
        _send(self._answers, wire.frame({"kind": "page", "page": number}))

    def on_part(self, name: str) -> bool:
        """Return whether the file within the file, whose turn it is, is to be read."""
        self._parts += 1
        if self._parts <= self._after:
            return False
        _send(self._answers, wire.frame({"kind": "part", "part": self._parts, "name": name}))
        return True


def _regular(path: Path) -> os.stat_result:
    """Return a file's status. Raises LoadError for a pipe or a device, which would be waited for without end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise LoadError("not a regular file")
    return status


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise LimitExceeded(f"{size} bytes, more than the limit of {limits.file_bytes} (Limits.file_bytes)")


def _laid_out(document: Document, request: wire.Header, options: Options) -> Document:
    """Return an Office document with the pages of its rendition, or with the reason why it has none; any other as it is."""
    from ragkit.load import office, render

    if not request["laid_out"]:
        return office.without_pages(document, request["unread"]) if request["unread"] else document
    try:
        return office.with_pages(document, render.page_sizes(Path(request["laid_out"]), options))
    except LoadError as error:
        return office.without_pages(document, str(error))


if __name__ == "__main__":
    main()

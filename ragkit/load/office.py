"""Office documents become PDF, by LibreOffice where it is installed, so that their pages can be drawn.

The text of such a document is what our own loaders make of the file. This module adds only pictures of pages, and for texts
(Word, OpenDocument, RTF) the number and sizes of their pages. LibreOffice works on a copy, in a scratch folder that is its home
and is removed afterwards, in a process of its own that first gives up the rights that it does not need (`confine`). This module
is that process too: `python -m ragkit.load.office`.

Spreadsheets are left out: a sheet is not a page, and what a printer would be given of it is nobody's view of it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ragkit.core.errors import LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Document, Json, Page, Span, Words
from ragkit.load.limits import Limits, cpu_of

_SLIDES = {".pptx": "impress", ".pptm": "impress", ".ppsx": "impress", ".odp": "impress"}
_TEXTS = {".docx": "writer", ".docm": "writer", ".dotx": "writer", ".odt": "writer", ".rtf": "writer"}
_OPTIONS: Mapping[str, Json] = {
    "impress": {"ExportHiddenSlides": {"type": "boolean", "value": "true"}},
    "writer": {},
}
_PROGRAMS = ("soffice", "libreoffice", "/Applications/LibreOffice.app/Contents/MacOS/soffice")
# What LibreOffice reads besides its own folder and the scratch folder: libraries, fonts, its settings; no home folders.
_READ = (
    *("/usr", "/lib", "/lib64", "/bin", "/opt", "/nix/store", "/var/cache/fontconfig", "/var/spool/libreoffice"),
    *("/etc/fonts", "/etc/libreoffice", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives"),
    *("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"),
)
_RESTART = 81  # LibreOffice's exit code where it made its settings anew and is to be started again
_WAIT = 0.05  # seconds between two looks at a conversion
_LAST_WORDS = 300  # characters
_DEATH = 1  # PR_SET_PDEATHSIG, prctl(2)


def convertible(path: str | Path) -> bool:
    """Return whether LibreOffice, where it is installed, makes pages of a file; by its name."""
    return Path(path).suffix.lower() in _SLIDES | _TEXTS


def has_slides(path: str | Path) -> bool:
    """Return whether the pages of a file are its slides, which our loaders know without LibreOffice."""
    return Path(path).suffix.lower() in _SLIDES


def program() -> Path | None:
    """Return LibreOffice's program, by the search path; None where it is not installed."""
    command = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if command is None:
        return None
    script = Path(command).resolve()
    # The script that starts it forks twice, and the forked processes would outlive us; the binary does not fork.
    binary = script.with_name("soffice.bin")
    return binary if binary.is_file() else script


def missing() -> UnsupportedFormat:
    """Return the error of a machine without LibreOffice."""
    return UnsupportedFormat(
        "LibreOffice is not installed, without which its pages cannot be drawn. "
        "Install it; on Debian and Ubuntu: apt install libreoffice-writer libreoffice-impress"
    )


class Rendition:
    """A document as a PDF, in a folder that is removed when nobody holds the Rendition any more."""

    def __init__(self, folder: Path) -> None:
        self.pdf = folder / "document.pdf"
        self.close = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)


def convert(path: Path, name: str, limits: Limits, *, environment: Mapping[str, str], unwanted: Callable[[], bool]) -> Rendition:
    """Return the document as a PDF; `name` is its own and tells its kind. `unwanted` is asked now and then: True ends it.

    Raises UnsupportedFormat without LibreOffice, LimitExceeded, and LoadError where LibreOffice made no PDF.
    """
    start = program()
    if start is None:
        raise missing()
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise LoadError("not a regular file")
    if status.st_size > limits.file_bytes:
        raise LimitExceeded(f"{status.st_size} bytes, more than the limit of {limits.file_bytes} (Limits.file_bytes)")
    folder = Path(tempfile.mkdtemp(prefix="ragkit-office-"))
    rendition = Rendition(folder)
    try:
        copy = folder / f"document{Path(name).suffix.lower()}"
        shutil.copyfile(path, copy)
        code = _run(start, copy, limits, environment=environment, unwanted=unwanted)
        if code == _RESTART:
            code = _run(start, copy, limits, environment=environment, unwanted=unwanted)
        if code or not rendition.pdf.is_file():
            raise _failure(code, folder)
        _remove_all_but(rendition.pdf)
        return rendition
    except BaseException:
        rendition.close()
        raise


def _remove_all_but(file: Path) -> None:
    """Remove all that stands beside a file."""
    for path in file.parent.iterdir():
        if path != file:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(start: Path, copy: Path, limits: Limits, *, environment: Mapping[str, str], unwanted: Callable[[], bool]) -> int:
    """Run LibreOffice. Returns its exit code; minus a signal's number where that ended it."""
    job: Json = {"program": str(start), "copy": str(copy), "memory": limits.memory, "bytes": limits.output_bytes}
    job["seconds"] = math.ceil(limits.cpu_seconds) + 5  # the kernel's limit, should we die and nobody look at its clock
    with (copy.parent / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "ragkit.load.office", json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**environment, "HOME": str(copy.parent), "TMPDIR": str(copy.parent)},
            start_new_session=True,
        )
    began = time.monotonic()
    try:
        while process.poll() is None:
            if unwanted():
                raise LoadError("nobody waits for it any more")
            if time.monotonic() - began > limits.seconds:
                raise LimitExceeded(f"LibreOffice took longer than {limits.seconds:g} s (Limits.seconds)")
            if cpu_of(process.pid) > limits.cpu_seconds:
                bound = f"{limits.cpu_seconds:g} s of processor time (Limits.cpu_seconds)"
                raise LimitExceeded(f"LibreOffice took longer than {bound}")
            time.sleep(_WAIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def _failure(code: int, folder: Path) -> LoadError:
    """Return why LibreOffice made no PDF, with its last words."""
    with (folder / "errors").open("rb") as errors:
        written = errors.read(16 * _LAST_WORDS).decode(errors="replace").split("\n")
    lines = [line.strip() for line in written if line.strip() and "[0x" not in line and line.strip() != "Stack:"]
    how = f"made no PDF of it (exit code {code})"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}: it crashed, or needs more than Limits.memory or Limits.output_bytes"
    return LoadError(" / ".join([f"LibreOffice {how}", *lines])[:_LAST_WORDS])


def with_pages(document: Document, sizes: list[tuple[float, float]]) -> Document:
    """Return the Document with the pages that LibreOffice lays it out on; sizes in points.

    Where the file itself notes as many pages, their texts stay and only the sizes are new. Else it is unknown which text is on
    which page: the pages are empty and stand at the end of the text.
    """
    if len(document.pages) == len(sizes):
        return replace(
            document,
            pages=tuple(replace(page, width=w, height=h) for page, (w, h) in zip(document.pages, sizes, strict=True)),
        )
    end, words = Span(len(document.text), len(document.text)), Words(np.empty((0, 2), np.int64), np.empty((0, 4), np.float32))
    pages = tuple(Page(number, w, h, end, words) for number, (w, h) in enumerate(sizes, start=1))
    return replace(document, pages=pages, meta={**document.meta, "pages": len(pages)})


def without_pages(document: Document, reason: str) -> Document:
    """Return the Document with the reason why its pages cannot be drawn, in `meta["unread"]`."""
    unread = document.meta.get("unread")
    return replace(
        document, meta={**document.meta, "unread": [*(unread if isinstance(unread, list) else []), f"its pages: {reason}"]}
    )


def main(job: Json) -> None:
    """Give up the rights that LibreOffice does not need, and become LibreOffice."""
    import ctypes

    from ragkit.load.sandbox.confine import Scratch, confine

    start, copy = Path(job["program"]), Path(job["copy"])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL)  # with the thread that waits for it
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    confine(job["memory"], scratch=Scratch(copy.parent, (*_READ, str(start.parent.parent)), job["bytes"]))
    kind = (_SLIDES | _TEXTS)[copy.suffix]
    options = json.dumps(_OPTIONS[kind], separators=(",", ":"))
    target = f"pdf:{kind}_pdf_Export" + (f":{options}" if _OPTIONS[kind] else "")
    profile = f"-env:UserInstallation={(copy.parent / 'profile').as_uri()}"
    modes = ["--headless", "--norestore", "--nolockcheck", "--nodefault", "--nologo"]
    command = [str(start), profile, *modes, "--convert-to", target, "--outdir", str(copy.parent), str(copy)]
    os.execv(start, command)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

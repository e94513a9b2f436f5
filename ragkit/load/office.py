"""Office documents become PDF, by LibreOffice where it is installed, so that their pages can be drawn.

The text of such a document is what our own loaders make of the file; from here come only pictures of pages, and for texts
(Word, OpenDocument, RTF) how many pages there are and of what size. LibreOffice works on a copy, in a scratch folder that is
its home and goes with it, in a process of its own that first takes from itself what it does not need (`confine`). This module
is that process too: `python -m ragkit.load.office`.

Spreadsheets are not among them: a sheet is no page, and what a printer would be given of it is nobody's view of it.
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
from typing import Any

import numpy as np

from ragkit.core.errors import LimitExceeded, LoadError, UnsupportedFormat
from ragkit.core.types import Document, Page, Span, Words
from ragkit.load.limits import Limits, cpu_of

_SLIDES = {".pptx": "impress", ".pptm": "impress", ".ppsx": "impress", ".odp": "impress"}
_TEXTS = {".docx": "writer", ".docm": "writer", ".dotx": "writer", ".odt": "writer", ".rtf": "writer"}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "impress": {"ExportHiddenSlides": {"type": "boolean", "value": "true"}},
    "writer": {},
}
_PROGRAMS = ("soffice", "libreoffice", "/Applications/LibreOffice.app/Contents/MacOS/soffice")
# What LibreOffice reads besides its own folder and the scratch folder: libraries, fonts, its settings. No home of anybody.
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
    """Whether a file is one that LibreOffice, where it is installed, makes pages of; by its name."""
    return Path(path).suffix.lower() in _SLIDES | _TEXTS


def has_slides(path: str | Path) -> bool:
    """Whether the pages of a file are its slides, which our loaders know without LibreOffice."""
    return Path(path).suffix.lower() in _SLIDES


def program() -> Path | None:
    """LibreOffice, by the search path; None where it is not installed."""
    found = next((where for name in _PROGRAMS if (where := shutil.which(name))), None)
    if found is None:
        return None
    start = Path(found).resolve()
    # The script that starts it forks twice, and what is forked would outlive us: the program itself does not.
    itself = start.with_name("soffice.bin")
    return itself if itself.is_file() else start


def missing() -> UnsupportedFormat:
    return UnsupportedFormat(
        "LibreOffice is not installed, without which its pages cannot be drawn. "
        "Install it; on Debian and Ubuntu: apt install libreoffice-writer libreoffice-impress"
    )


class Rendition:
    """A document as a PDF, in a folder of its own, which is removed when nobody holds the Rendition any more."""

    def __init__(self, folder: Path) -> None:
        self.pdf = folder / "document.pdf"
        self.close = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)


def convert(path: Path, name: str, limits: Limits, *, environment: Mapping[str, str], unwanted: Callable[[], bool]) -> Rendition:
    """The document as a PDF, by the kind that its own name tells. `unwanted` is asked now and then, and ends it.

    Raises UnsupportedFormat without LibreOffice, LimitExceeded, and LoadError where LibreOffice made nothing of it.
    """
    start = program()
    if start is None:
        raise missing()
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise LoadError("not a regular file")
    if found.st_size > limits.file_bytes:
        raise LimitExceeded(f"{found.st_size} bytes, more than the limit of {limits.file_bytes} (Limits.file_bytes)")
    folder = Path(tempfile.mkdtemp(prefix="ragkit-office-"))
    rendition = Rendition(folder)
    try:
        copy = folder / f"document{Path(name).suffix.lower()}"
        shutil.copyfile(path, copy)
        code = _RESTART
        for _ in range(2):
            if code == _RESTART:
                code = _run(start, copy, limits, environment=environment, unwanted=unwanted)
        if code or not rendition.pdf.is_file():
            raise _failure(code, folder)
        for one in folder.iterdir():
            if one != rendition.pdf:
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        return rendition
    except BaseException:
        rendition.close()
        raise


def _run(start: Path, copy: Path, limits: Limits, *, environment: Mapping[str, str], unwanted: Callable[[], bool]) -> int:
    """LibreOffice's exit code; minus a signal's number where that ended it."""
    told = {"program": str(start), "copy": str(copy), "memory": limits.memory, "bytes": limits.output_bytes}
    told |= {"seconds": math.ceil(limits.cpu_seconds) + 5}  # should nobody be there any more to look at its clock
    with (copy.parent / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "ragkit.load.office", json.dumps(told)],
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
    with (folder / "errors").open("rb") as errors:
        said = errors.read(16 * _LAST_WORDS).decode(errors="replace").split("\n")
    lines = [line.strip() for line in said if line.strip() and "[0x" not in line and line.strip() != "Stack:"]
    how = f"made no PDF of it (exit code {code})"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}: it crashed, or needs more than Limits.memory or Limits.output_bytes"
    return LoadError(" / ".join([f"LibreOffice {how}", *lines])[:_LAST_WORDS])


def with_pages(document: Document, sizes: list[tuple[float, float]]) -> Document:
    """The Document with the pages that LibreOffice lays it out on.

    Where the file itself notes as many pages, their texts are kept and only the sizes are new. Else nobody knows which text is
    on which page: the pages are empty and stand at the end of the text.
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
    """The Document with the reason why nobody can draw its pages, where what could not be read is told."""
    unread = document.meta.get("unread")
    return replace(
        document, meta={**document.meta, "unread": [*(unread if isinstance(unread, list) else []), f"its pages: {reason}"]}
    )


def main(told: Mapping[str, Any]) -> None:
    """Takes the rights away and becomes LibreOffice."""
    import ctypes

    from ragkit.load.sandbox.confine import Scratch, confine

    start, copy = Path(told["program"]), Path(told["copy"])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL)  # with the thread that waits for it
    resource.setrlimit(resource.RLIMIT_CPU, (told["seconds"], told["seconds"]))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    confine(told["memory"], scratch=Scratch(copy.parent, (*_READ, str(start.parent.parent)), told["bytes"]))
    kind = (_SLIDES | _TEXTS)[copy.suffix]
    options = json.dumps(_OPTIONS[kind], separators=(",", ":"))
    target = f"pdf:{kind}_pdf_Export" + (f":{options}" if _OPTIONS[kind] else "")
    profile = f"-env:UserInstallation={(copy.parent / 'profile').as_uri()}"
    modes = ["--headless", "--norestore", "--nolockcheck", "--nodefault", "--nologo"]
    command = [str(start), profile, *modes, "--convert-to", target, "--outdir", str(copy.parent), str(copy)]
    os.execv(start, command)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""The words of a picture, read by Tesseract, where it is installed and asked for.

A page that can be drawn goes in, words with boxes and lines come out, as a PDF engine gives them. Tesseract is a separate program
(Apache-2.0). It inherits the confinement of the parser process that starts it, runs on one thread and ends with the process that
started it. The kernel limits its processor time to that of a page; this module limits its wall time to what is left.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import LoadError, MissingExtra
from ragkit.core.types import Array, Ints
from ragkit.load.limits import Limits
from ragkit.load.pdf.text import PageWords
from ragkit.load.render import Drawable

OFF, AUTO = "off", "auto"
DPI = 300.0  # what Tesseract is made for
PIXELS = 10_000_000  # of a page's picture, at most: A4 at that resolution has 8.7 million
_LANGUAGES = re.compile(r"[A-Za-z][A-Za-z0-9_/]*(?:\+[A-Za-z][A-Za-z0-9_/]*)*")
_ORIENTATION = "osd"  # not a language: data by which Tesseract knows which way a page is turned
_MOST = 4  # languages that "auto" takes: each costs its time on every page
_SHARE = 0.8  # of a document's and of a page's wall time that recognition may take, so that the rest still arrives
_FLAT = 12  # of 255: a picture with less between its darkest and its lightest dot is an empty sheet
_WORD = "5"  # the level of a row of Tesseract's table that is a word
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, prctl(2)
Grey = npt.NDArray[np.uint8]


def check(ocr: str) -> None:
    """Check a setting before a document is read. ValueError for an invalid one; MissingExtra where Tesseract or one of its
    languages is not installed."""
    if ocr != OFF:
        languages(ocr)


def languages(ocr: str) -> str:
    """Return the languages of a setting, joined by "+". Raises as `check` does."""
    if ocr != AUTO and not _LANGUAGES.fullmatch(ocr):
        raise ValueError(f'ocr must be "off", "auto" or languages of Tesseract, as "eng+deu", got {ocr!r}')
    available = installed()
    if ocr == AUTO:
        if len(available) > _MOST:
            raise ValueError(
                f'ocr="auto" takes {_MOST} languages at most and {len(available)} are installed: name them, as "eng+deu"'
            )
        return "+".join(available)
    if missing := [name for name in ocr.split("+") if name not in available]:
        raise MissingExtra(f"Tesseract has no data for {', '.join(missing)}, only for {', '.join(available)}. {_INSTALL}")
    return ocr


_INSTALL = "On Debian and Ubuntu: apt install tesseract-ocr tesseract-ocr-deu (for German); macOS: brew install tesseract-lang"


def installed() -> list[str]:
    """Return the languages that Tesseract has data for, sorted. MissingExtra without Tesseract, or without any language."""
    names = sorted(name for name in _listed() if name != _ORIENTATION)
    if not names:
        raise MissingExtra(f"Tesseract has no language data. {_INSTALL}")
    return names


def _listed() -> list[str]:
    """Return the names of all of Tesseract's data. MissingExtra without Tesseract."""
    program = shutil.which("tesseract")
    if program is None:
        raise MissingExtra(f"ocr needs Tesseract, which is not installed (no `tesseract` on PATH). {_INSTALL}")
    answer = subprocess.run([program, "--list-langs"], capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout.splitlines()[1:]  # the first line says where the data lies


def _command(ocr: str) -> list[str]:
    # Page segmentation 1 finds out which way a page is turned, for which it needs data.
    segmentation = "1" if _ORIENTATION in _listed() else "3"
    return ["tesseract", "stdin", "stdout", "-l", languages(ocr), "--psm", segmentation, "-c", "tessedit_create_tsv=1"]


class Reader:
    """Reads the pages of one document, within the time that is left to it. `ocr` is the setting; `pages` are the numbers of the
    pages in which words were recognised."""

    def __init__(self, ocr: str, limits: Limits) -> None:
        self._ocr, self._limits = ocr, limits
        self._command: list[str] = []  # made for the first page that needs it
        self._until = time.monotonic() + _SHARE * limits.seconds
        self.pages: list[int] = []

    def read(self, pages: Drawable, index: int) -> PageWords:
        """Return the words of a page, counted from 0; none of an empty sheet. LoadError where they cannot be read."""
        width, height = pages.size(index)
        if not (width > 0 and height > 0):
            return PageWords.blank()
        grey = self._drawn(pages, index, width, height)
        rows = self._table(grey, dpi=72 * grey.shape[1] / width) if int(np.ptp(grey)) >= _FLAT else []
        if not rows:
            return PageWords.blank(width, height)
        self.pages.append(index + 1)
        boxes = _boxes(rows) * np.array([width / grey.shape[1], height / grey.shape[0]] * 2)
        return PageWords([row[11] for row in rows], boxes.astype(np.float32), _line_numbers(rows), width, height, 0)

    def _drawn(self, pages: Drawable, index: int, width: float, height: float) -> Grey:
        """Return the page in grey, (h, w), weighted as ITU-R BT.601 does, DPI dots an inch or fewer."""
        most = min(PIXELS, self._limits.pixels)
        scale = min(DPI / 72, math.sqrt(most / (width * height)))
        rgb = pages.draw(index, max(int(width * scale), 1), max(int(height * scale), 1))
        grey = (rgb[..., 0] * np.uint16(77) + rgb[..., 1] * np.uint16(150) + rgb[..., 2] * np.uint16(29)) >> 8
        return np.asarray(grey, np.uint8)

    def _table(self, grey: Grey, *, dpi: float) -> list[list[str]]:
        """Return Tesseract's rows of words: level, page, block, paragraph, line, word, left, top, width, height, confidence,
        text."""
        left = min(self._until - time.monotonic(), _SHARE * self._limits.page_seconds)
        if left <= 0:
            spent = _SHARE * self._limits.seconds
            raise LoadError(f"its text was not recognised: the pages before took all of {spent:g} s (Limits.seconds)")
        self._command = self._command or _command(self._ocr)
        command = [*self._command, "--dpi", str(min(max(round(dpi), 70), 2400))]
        picture = b"P5 %d %d 255\n" % grey.shape[::-1] + np.ascontiguousarray(grey).tobytes()
        one_thread = {**os.environ, "OMP_THREAD_LIMIT": "1", "LC_ALL": "C"}  # there is a parser process per worker
        try:
            done = subprocess.run(
                command, input=picture, capture_output=True, timeout=left, check=False, preexec_fn=self._bind, env=one_thread
            )
        except subprocess.TimeoutExpired:
            raise LoadError(f"recognising its text took longer than {left:.0f} s (Limits.page_seconds)") from None
        except OSError as error:
            raise LoadError(f"Tesseract cannot be started: {error}") from None
        self._check(done)
        rows = (line.split("\t", 11) for line in done.stdout.decode(errors="replace").splitlines())
        words = (row for row in rows if len(row) == 12 and row[0] == _WORD)
        return [[*row[:11], word] for row in words if (word := "".join(row[11].split()))]

    def _check(self, done: subprocess.CompletedProcess[bytes]) -> None:
        """Raise LoadError where Tesseract failed."""
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            bound = self._limits.page_cpu_seconds
            raise LoadError(f"recognising its text took longer than {bound:g} s of processor time (Limits.page_cpu_seconds)")
        if done.returncode:
            errors = done.stderr.decode(errors="replace").strip().splitlines()
            raise LoadError(f"Tesseract failed with exit code {done.returncode}" + (f": {errors[-1]}" if errors else ""))

    def _bind(self) -> None:
        """Have the kernel limit the processor time, and end the process with its parent. Runs in the child, before it becomes
        Tesseract."""
        seconds = max(int(self._limits.page_cpu_seconds), 1)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        if sys.platform == "linux":
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _boxes(rows: list[list[str]]) -> Array:
    """Return the boxes of Tesseract's words, (w, 4): left, top, right, bottom, in dots of the picture."""
    boxes = np.array([[int(cell) for cell in row[6:10]] for row in rows], float)  # left, top, width, height
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _line_numbers(rows: list[list[str]]) -> Ints:
    """Return the number of the line that each word stands on, (w,) int64."""
    lines = [row[2:5] for row in rows]  # block, paragraph, line
    return np.cumsum([at > 0 and lines[at] != lines[at - 1] for at in range(len(lines))]).astype(np.int64)

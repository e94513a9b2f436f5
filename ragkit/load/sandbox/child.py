"""One child process that parses files."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import cast

from ragkit.load.limits import Limits, cpu_of
from ragkit.load.sandbox import wire

START_SECONDS = 120.0  # for a child to start; a cold disk under load is slow, and it is no document's fault
_STDERR = 4000  # bytes of a child's last words
_PASSED_ON = {
    "PATH",
    "HOME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "SYSTEMROOT",
} | {
    "TESSDATA_PREFIX"  # where Tesseract's languages are
}


class ChildDied(Exception):
    """The child ended; the message says how."""


class Child:
    """One child process. Used by one thread at a time; `close` may be called from any."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last_words = b""
        self.served = 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "ragkit.load.sandbox.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            bufsize=0,
            close_fds=True,
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._requests, self._answers, self._errors = (cast("FileIO", pipe) for pipe in pipes)  # without buffers
        self._selector = selectors.DefaultSelector()
        for file in (self._answers, self._errors):
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ)
        try:
            self.send({"kind": "limits", "limits": asdict(limits)})
            began = time.monotonic()
            header, _ = self.receive(lambda: began + START_SECONDS - time.monotonic())
            if header["kind"] != "ready":
                raise ChildDied("the parser process did not start")
            self.confined = tuple(header["confined"])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, request: wire.Header) -> None:
        """Send a request. Raises ChildDied."""
        try:
            for piece in wire.frame(request):
                self._requests.write(piece)
        except OSError:
            raise ChildDied(self._epitaph()) from None

    def cpu(self) -> float:
        """Return the processor seconds that the child has used so far; 0 where the system does not tell."""
        return cpu_of(self.pid)

    def receive(self, left: Callable[[], float]) -> tuple[wire.Header, memoryview]:
        """Return the next frame.

        `left` says how many seconds may pass until it is asked again. What it raises is raised here, and TimeoutError where no
        second is left. Also raises ChildDied, BrokenFrame and LimitExceeded.
        """
        head, body = wire.sizes(bytes(self._take(wire.PREFIX.size, left)), limits=self._limits)
        header = wire.header_of(self._take(head, left))
        return header, memoryview(self._take(body, left))

    def _take(self, size: int, left: Callable[[], float]) -> bytearray:
        buffer = bytearray(size)
        view, got = memoryview(buffer), 0
        while got < size:
            count = self._answers.readinto(view[got:])
            if count == 0:
                raise ChildDied(self._epitaph())
            if count is None:
                self._wait(left())
            else:
                got += count
        return buffer

    def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._errors:
                self._listen()

    def _listen(self) -> None:
        """Take what the child wrote to stderr, so that it never waits for us there, and remember the last of it."""
        with contextlib.suppress(BlockingIOError):
            piece = os.read(self._errors.fileno(), 65536)
            self._last_words = (self._last_words + piece)[-_STDERR:]
            if not piece:
                self._selector.unregister(self._errors)

    def _epitaph(self) -> str:
        """Return how the child ended, with its last words."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the parser process closed its output"
        with contextlib.suppress(OSError, KeyError, ValueError):
            while self._errors in self._selector.get_map():
                before = self._last_words
                self._listen()
                if self._last_words == before:
                    break
        lines = wire.printable(self._last_words.decode(errors="replace").replace("\n", " / "))[-300:]
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return f"the parser process {how}" + (f": {lines}" if lines else "")

    def close(self) -> None:
        """End the child at once; it holds nothing worth saving."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for file in (self._requests, self._answers, self._errors):
            with contextlib.suppress(OSError):
                file.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def child_environment() -> dict[str, str]:
    """Return what a child needs to find its libraries, and nothing else: no keys, no tokens, no settings of the caller."""
    passed_on = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("LC_")}
    here = str(Path(__file__).resolve().parents[2])
    if here not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        passed_on["PYTHONPATH"] = os.pathsep.join(filter(None, (here, passed_on.get("PYTHONPATH", ""))))
    # One thread each: there is a child per worker, and every thread costs address space.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return passed_on | threads | {"PYTHONIOENCODING": "utf-8", "PYTHONNOUSERSITE": os.environ.get("PYTHONNOUSERSITE", "")}

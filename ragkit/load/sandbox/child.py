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
from pathlib import Path
from typing import Any

from ragkit.load.limits import Limits, cpu_of
from ragkit.load.sandbox import wire

START_SECONDS = 120.0  # for a child to start; a cold disk under load is slow, and it is no document's fault
_STDERR = 4000  # bytes of a child's last words
_KEPT = {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "SYSTEMROOT"} | {
    "TESSDATA_PREFIX"  # where Tesseract's languages are
}


class ChildDied(Exception):
    """The child ended, or said what no child of ours says; the message is the reason."""


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
        process: Any = self._process  # all three are pipes, which its type does not know
        self._requests, self._answers, self._errors = process.stdin, process.stdout, process.stderr
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

    def send(self, request: dict[str, Any]) -> None:
        try:
            for part in wire.frame(request):
                self._requests.write(part)
        except OSError:
            raise ChildDied(self._epitaph()) from None

    def cpu(self) -> float:
        """Processor seconds the child has used so far; 0 where the system does not tell."""
        return cpu_of(self.pid)

    def receive(self, left: Callable[[], float]) -> tuple[dict[str, Any], memoryview]:
        """The next frame. `left` tells how many seconds may pass until it is asked again; it may raise, and where it
        gives none this raises TimeoutError. Also raises ChildDied and LimitExceeded."""
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
        """Takes what the child wrote to stderr, so that it never waits for us there; keeps the last of it."""
        with contextlib.suppress(BlockingIOError):
            piece = os.read(self._errors.fileno(), 65536)
            self._last_words = (self._last_words + piece)[-_STDERR:]
            if not piece:
                self._selector.unregister(self._errors)

    def _epitaph(self) -> str:
        """How the child ended."""
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
        """Ends the child at once; it holds nothing worth saving."""
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
    """What a child needs to find its libraries, and nothing else: no keys, no tokens, no settings of the caller."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    here = str(Path(__file__).resolve().parents[2])
    if here not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (here, kept.get("PYTHONPATH", ""))))
    # One thread each: there is a child per worker, and every thread costs address space.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | threads | {"PYTHONIOENCODING": "utf-8", "PYTHONNOUSERSITE": os.environ.get("PYTHONNOUSERSITE", "")}

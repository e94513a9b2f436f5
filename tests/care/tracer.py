"""A process stopped, or failed, at its N-th system call that changes a folder: of any thread, in any library.

strace can do as much for one thread, but counts each thread by itself, so that calls of a second thread (tantivy writes in
its own) are never the N-th of all. So this is a tracer of our own: ptrace through ctypes, Linux on x86-64 only. Only calls
that change something beneath the given folders count.

The process is forked from this one, which must have imported what is needed and started no thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import platform
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRACEME, POKEUSER, CONT, GETREGS, SETOPTIONS = 0, 6, 7, 12, 0x4200
OPTIONS = 2 | 4 | 8 | 0x80 | 0x100000  # forks and threads are followed; stops where the filter says so; all die with us
FILTERED = 7  # the event of a stop that the filter asked for
WALL = 0x40000000
O_CREAT, O_TRUNC, O_APPEND = os.O_CREAT, os.O_TRUNC, os.O_APPEND
REGISTERS = tuple(
    name
    for line in (
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi",
        "orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs",
    )
    for name in line.split()
)
# By number: name, and what its arguments say: "fd" a file, "path" a name, "at" a folder and a name, "2" of two names the second.
CALLS = {
    1: ("write", "fd"),
    18: ("pwrite64", "fd"),
    20: ("writev", "fd"),
    40: ("sendfile", "fd"),
    74: ("fsync", "fd"),
    75: ("fdatasync", "fd"),
    76: ("truncate", "path"),
    77: ("ftruncate", "fd"),
    82: ("rename", "path2"),
    83: ("mkdir", "path"),
    84: ("rmdir", "path"),
    86: ("link", "path2"),
    87: ("unlink", "path"),
    2: ("open", "path"),
    257: ("openat", "at"),
    258: ("mkdirat", "at"),
    263: ("unlinkat", "at"),
    264: ("renameat", "at2"),
    265: ("linkat", "at2"),
    285: ("fallocate", "fd"),
    296: ("pwritev", "fd"),
    316: ("renameat2", "at2"),
    326: ("copy_file_range", "fd3"),
}
NEEDS_SPACE = {"write", "pwrite64", "writev", "sendfile", "ftruncate", "rename", "mkdir", "link", "open", "openat"} | {
    *("mkdirat", "renameat", "linkat", "fallocate", "pwritev", "renameat2", "copy_file_range")
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def supported() -> str:
    """Why this machine cannot be traced on, or nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the tracer is for Linux on x86-64"
    done = run(lambda: None, folders=[Path("/nowhere")])
    return "" if done.status == 0 else "ptrace is not allowed here"


@dataclass(frozen=True, slots=True)
class Call:
    """A counted call: its name, the path it changes, and what is needed to do it again."""

    name: str
    path: str
    other: str = ""  # of renames and links: where from
    offset: int = 0
    data: bytes = b""
    size: int = 0
    new: bool = False


@dataclass(slots=True)
class Traced:
    """What became of the process: 0 and its result, or the signal that killed it, negative."""

    status: int = 0
    result: Any = None
    count: int = 0
    last: str = ""
    calls: list[Call] = field(default_factory=list)


def run(
    work: Callable[[], Any],
    *,
    folders: Sequence[Path],
    at: int = 0,
    code: int = 0,
    forever: bool = False,
    record: bool = False,
) -> Traced:
    """Run `work` in a forked process under trace. At its `at`-th counted call it is killed with SIGKILL, before the call is
    made, or the call fails with the error `code`, and all later ones too where `forever`. `record`: keep what was called."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, writer)
    os.close(writer)
    traced = _trace(pid, [str(folder) for folder in folders], at=at, code=code, forever=forever, record=record)
    with os.fdopen(reader, "rb") as pipe:
        body = pipe.read()
    if traced.status == 0:
        kind, traced.result = pickle.loads(body)
        if kind == "error":
            raise AssertionError(f"an error that is not ours: {traced.result}")
    return traced


def _child(work: Callable[[], Any], pipe: int) -> None:
    _libc.ptrace(TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        _stop_only_at_calls_of_interest()
        body = pickle.dumps(("done", work()))
    except BaseException as error:
        import traceback

        body = pickle.dumps(("error", "".join(traceback.format_exception(error))))
    while body:
        body = body[os.write(pipe, body) :]
    os._exit(0)


def _trace(pid: int, folders: list[str], *, at: int, code: int, forever: bool, record: bool) -> Traced:
    traced = Traced()
    os.waitpid(pid, WALL)
    if _libc.ptrace(SETOPTIONS, pid, None, OPTIONS) or _libc.ptrace(CONT, pid, None, None):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, WALL)
        traced.status = -1
        return traced
    seen: set[int] = set()
    while True:
        tid, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            if tid == pid:
                traced.status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                _end(seen - {pid})
                return traced
            seen.discard(tid)
            continue
        seen.add(tid)
        stop, event = os.WSTOPSIG(status), status >> 16
        call = _counted(tid, folders, code=code, record=record) if event == FILTERED else None
        if call is not None:
            traced.count += 1
            if record:
                traced.calls.append(call)
            if at and (traced.count == at or (forever and traced.count > at)):
                traced.last = f"{call.name} {call.path}"
                if not code:
                    os.kill(pid, signal.SIGKILL)
                    continue
                # There is no call of the number -1, so none is made, and what stands in rax is what it returned.
                _libc.ptrace(POKEUSER, tid, 8 * REGISTERS.index("orig_rax"), ctypes.c_void_p(-1))
                _libc.ptrace(POKEUSER, tid, 8 * REGISTERS.index("rax"), ctypes.c_void_p(-code))
        deliver = 0 if event or stop in (signal.SIGTRAP, signal.SIGSTOP) else stop
        _libc.ptrace(CONT, tid, None, deliver)


def _end(left: set[int]) -> None:
    """The processes that a traced one started, and left when it died: they would stand still at their next call."""
    for tid in left:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(tid, signal.SIGKILL)
            os.waitpid(tid, WALL)


def _stop_only_at_calls_of_interest() -> None:
    """Have the kernel stop this process, and all that it starts, at the calls of CALLS alone (seccomp): others cost nothing."""
    load, equal, any_of, give = 0x20, 0x15, 0x45, 0x06
    allow, trace = 0x7FFF0000, 0x7FF00000
    plain = [number for number in CALLS if number not in (2, 257)]
    program = [(load, 0, 0, 0)]
    program += [(equal, len(plain) + 6 - at, 0, number) for at, number in enumerate(plain)]  # jumps: to the last line
    program += [(equal, 0, 2, 2), (load, 0, 0, 24), (any_of, 4, 3, O_CREAT | O_TRUNC)]  # open: its second argument
    program += [(equal, 0, 2, 257), (load, 0, 0, 32), (any_of, 1, 0, O_CREAT | O_TRUNC)]  # openat: its third
    program += [(give, 0, 0, allow), (give, 0, 0, trace)]
    body = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in program))
    whole = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(body)))
    no_new_privileges, set_filter = (38, 1, 0), (22, 2, ctypes.addressof(whole))
    for option, value, pointer in (no_new_privileges, set_filter):
        if _libc.prctl(option, value, ctypes.c_void_p(pointer), None, None):
            raise OSError(ctypes.get_errno(), "seccomp is not allowed here")


def _counted(tid: int, folders: list[str], *, code: int, record: bool) -> Call | None:
    """The call that a thread is about to make, if it changes something beneath one of the folders (and may fail so)."""
    registers = (ctypes.c_ulonglong * len(REGISTERS))()
    if _libc.ptrace(GETREGS, tid, None, ctypes.addressof(registers)):
        return None
    values = dict(zip(REGISTERS, registers, strict=True))
    known = CALLS.get(values["orig_rax"])
    if known is None:
        return None
    name, kind = known
    a, b, c, d = (values[one] for one in ("rdi", "rsi", "rdx", "r10"))
    if (name == "open" and not b & (O_CREAT | O_TRUNC)) or (name == "openat" and not c & (O_CREAT | O_TRUNC)):
        return None
    if code == errno.ENOSPC and name not in NEEDS_SPACE:
        return None
    other = ""
    if kind == "fd":
        path = _link(tid, a)
    elif kind == "fd3":
        path = _link(tid, c)
    elif kind == "path":
        path = _named(tid, None, a)
    elif kind == "path2":
        other, path = _named(tid, None, a), _named(tid, None, b)
    elif kind == "at":
        path = _named(tid, a, b)
    else:
        other, path = _named(tid, a, b), _named(tid, c, d)
    if not any(path == folder or path.startswith(f"{folder}/") for folder in folders):
        return None
    if not record:
        return Call(name, path)
    return _recorded(tid, name, path, other, a, b, c, d)


def _recorded(tid: int, name: str, path: str, other: str, a: int, b: int, c: int, d: int) -> Call:
    if name in ("write", "pwrite64"):
        at = d if name == "pwrite64" else _position(tid, a, path)
        return Call(name, path, offset=at, data=_memory(tid, b, c))
    if name == "sendfile":
        start = int.from_bytes(_memory(tid, c, 8), "little") if c else _position(tid, b, _link(tid, b))
        with Path(f"/proc/{tid}/fd/{b}").open("rb") as source:
            source.seek(start)
            return Call("write", path, offset=_position(tid, a, path), data=source.read(d))
    if name in ("writev", "pwritev", "copy_file_range", "fallocate"):
        raise AssertionError(f"{name} is not recorded: teach the tracer")
    if name in ("ftruncate", "truncate"):
        return Call(name, path, size=b)
    if name in ("open", "openat"):
        flags = b if name == "open" else c
        return Call("open", path, new=bool(flags & O_CREAT), size=-1 if flags & O_TRUNC else 0)
    return Call(name, path, other=other)


def _position(tid: int, fd: int, path: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{tid}/fdinfo/{fd}").read_text().splitlines() if ":" in line)
    return Path(path).stat().st_size if int(lines["flags"], 8) & O_APPEND else int(lines["pos"])


def _link(tid: int, fd: int) -> str:
    try:
        return str(Path(f"/proc/{tid}/fd/{fd}").readlink())
    except OSError:
        return ""


def _named(tid: int, folder: int | None, address: int) -> str:
    name = os.fsdecode(_memory(tid, address, 4096, until=b"\0"))
    if name.startswith("/"):
        return os.path.normpath(name)
    at_cwd = folder is None or ctypes.c_int(folder & 0xFFFFFFFF).value == -100
    base = str(Path(f"/proc/{tid}/cwd").readlink()) if at_cwd or folder is None else _link(tid, folder)
    return os.path.normpath(f"{base}/{name}")


def _memory(tid: int, address: int, size: int, *, until: bytes = b"") -> bytes:
    with Path(f"/proc/{tid}/mem").open("rb", buffering=0) as memory:
        found = b""
        while len(found) < size:
            memory.seek(address + len(found))
            page = 4096 - (address + len(found)) % 4096 if until else size - len(found)
            piece = memory.read(min(page, size - len(found)))
            if not piece:
                break
            found += piece
            if until and until in piece:
                return found[: found.index(until)]
        return found

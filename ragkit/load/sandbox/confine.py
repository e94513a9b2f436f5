"""What a parser process may not do: it takes these rights from itself before it sees the first file, and cannot get them back.

Resource limits hold everywhere; the rest as far as the kernel knows it, and `confine` says how far that was:

- no writing: RLIMIT_FSIZE 0 (every POSIX system), and on Linux ≥ 5.13 Landlock, under which nothing can be created, removed,
  renamed or truncated either. There is no scratch folder: no loader of ours needs one. /dev/null may be written.
- no network: on Linux a seccomp filter, under which there are no sockets, Unix ones included. TCP is refused by Landlock
  too (Linux ≥ 6.7).
- no other process: no tracing, no reading of others' memory (seccomp), no signals to them (Landlock, Linux ≥ 6.12).

What stays possible: reading what the user may read. A parser taken over by a file can lie about it, and no more.

A program that is not ours (LibreOffice) gets a scratch folder to write to, and may read only what it is given (Landlock). It
listens for others of its kind on a Unix socket and would not start without. It gets that socket, but nothing can be connected:
binding and listening are answered as done without being done.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl(2)
_LOAD, _EQUAL, _AT_LEAST, _GIVE = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_AND = 0x54  # BPF_ALU|AND|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_*
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH

# Landlock's rights to change files, by the version that brought them (landlock(7)).
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_READING = 1 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
_OF_A_FILE = 1 | _WRITE_FILE | 1 << 2 | _TRUNCATE | 1 << 15  # rights that a path to a file, not a folder, can be given
_CHANGES = {1: _WRITE_FILE | sum(1 << bit for bit in range(4, 13)), 2: 1 << 13, 3: _TRUNCATE, 5: 1 << 15}
_TCP = 0b11  # bind, connect; version 4
_SCOPE = 0b11  # abstract Unix sockets, signals; version 6

# name: system call numbers on x86_64 and aarch64 (asm/unistd.h)
_REFUSED = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "ptrace": (101, 117),
    "mount": (165, 40),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),  # or it would make sockets unseen
    "pidfd_getfd": (438, 438),
}
_PRETENDED = {"bind": (49, 200), "listen": (50, 201)}  # for a program with a scratch folder: as if done
_UNIX, _STREAM, _TYPE = 1, 1, 0xF  # AF_UNIX, SOCK_STREAM, and the bits that tell a socket's type
_FIRST, _SECOND = 16, 24  # where seccomp_data has the low halves of a call's arguments, on machines that put those first
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above; AUDIT_ARCH_*
_X32 = 0x40000000  # x86_64's second set of numbers for the same calls


@dataclass(frozen=True, slots=True)
class Scratch:
    """What a program that is not ours may write and read: its folder, files and folders to read, bytes of a file it writes."""

    folder: Path
    readable: tuple[str, ...]
    file_bytes: int


def confine(memory: int, *, scratch: Scratch | None = None) -> list[str]:
    """Take the rights away; `memory` in bytes of address space. Returns what this kernel took: "landlock", "seccomp"."""
    _lower(resource.RLIMIT_AS, memory)
    _lower(resource.RLIMIT_FSIZE, scratch.file_bytes if scratch else 0)  # at 0, writing to any file fails; pipes are not files
    _lower(resource.RLIMIT_CORE, 0)
    if scratch is None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    taken: list[str] = []
    if sys.platform != "linux":
        return taken
    libc = ctypes.CDLL(None, use_errno=True)
    for name, take in (("landlock", _landlock), ("seccomp", _seccomp)):
        with contextlib.suppress(OSError, AttributeError):
            _call(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))  # neither is given without
            if take(libc, scratch):
                taken.append(name)
    return taken


def landlock_version() -> int:
    """Return the version of Landlock that the kernel knows, 0 for none."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))), 0)


def _lower(which: int, to: int) -> None:
    _, hard = resource.getrlimit(which)
    most = to if hard == resource.RLIM_INFINITY else min(to, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (most, most))


def _call(result: int) -> int:
    """Return what a system call returned. Raises OSError where it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _landlock(libc: ctypes.CDLL, scratch: Scratch | None) -> bool:
    """Refuse every change to files but writing to /dev/null and changes within the scratch folder, and with such a folder also
    reading. Returns whether the kernel can."""
    version = landlock_version()
    if not version:
        return False
    changes = sum(right for since, right in _CHANGES.items() if since <= version)
    rights = changes | (_READING if scratch else 0)
    fields = [rights, *([_TCP] if version >= 4 else []), *([_SCOPE] if version >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _call(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    try:
        _allow(libc, ruleset, os.devnull, rights & (_WRITE_FILE | _TRUNCATE))
        if scratch:
            _allow(libc, ruleset, str(scratch.folder), rights)
            for path in scratch.readable:
                _allow(libc, ruleset, path, _READING, missing_ok=True)
        _call(libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)
    return True


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int, *, missing_ok: bool = False) -> None:
    """Give rights to a file, or to a folder and all beneath it. A link stands for what it leads to."""
    try:
        place = os.open(path, os.O_PATH)
    except FileNotFoundError:
        if missing_ok:
            return
        raise
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_A_FILE
        _call(libc.syscall(_ADD_RULE, ruleset, _BENEATH, struct.pack("=Qi", rights, place), ctypes.c_uint32(0)))
    finally:
        os.close(place)


def _seccomp(libc: ctypes.CDLL, scratch: Scratch | None) -> bool:
    """Refuse system calls by a classic BPF program over their architecture and number: those refused fail with EPERM. Returns
    whether the machine's numbers are known."""
    if platform.machine() not in _ARCHITECTURES:
        return False
    program = _program(*_ARCHITECTURES[platform.machine()], deaf=scratch is not None)
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    _call(libc.prctl(_SET_SECCOMP, _FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)), 0, 0))
    return True


def _program(column: int, architecture: int, *, deaf: bool) -> list[tuple[int, int, int, int]]:
    """Return the steps: what to do, how many steps to skip if so and if not, and the number that it is done with.

    `deaf`: a stream socket of the Unix kind may be made.
    """
    numbers = {name: row[column] for name, row in _REFUSED.items()}
    pretended = {name: row[column] for name, row in _PRETENDED.items()} if deaf else {}
    steps: list[tuple[int, str, str, int]] = [
        (_LOAD, "", "", 4),
        (_EQUAL, "", "refuse", architecture),
        (_LOAD, "", "", 0),
        (_AT_LEAST, "refuse", "", _X32),
        *((_EQUAL, "pretend", "", number) for number in pretended.values()),
        *((_EQUAL, "refuse", "", number) for name, number in numbers.items() if not deaf or name != "socket"),
    ]
    if deaf:
        steps += [
            (_EQUAL, "", "allow", numbers["socket"]),
            (_LOAD, "", "", _FIRST),
            (_EQUAL, "", "refuse", _UNIX),
            (_LOAD, "", "", _SECOND),
            (_AND, "", "", _TYPE),
            (_EQUAL, "", "refuse", _STREAM),
        ]
    return _linked(steps)


def _linked(steps: Sequence[tuple[int, str, str, int]]) -> list[tuple[int, int, int, int]]:
    """Return the steps with the ends of the program after them, and the names of these as numbers of steps to skip."""
    ends = {"allow": _ALLOW, "refuse": _ERRNO | errno.EPERM, "pretend": _ERRNO}
    where = {name: len(steps) + at for at, name in enumerate(ends)}

    def skipped(at: int, to: str) -> int:
        return where[to] - at - 1 if to else 0

    jumps = [(what, skipped(at, yes), skipped(at, no), number) for at, (what, yes, no, number) in enumerate(steps)]
    return [*jumps, *((_GIVE, 0, 0, value) for value in ends.values())]

"""The compiled MaxSim kernel, where one was built. It is imported here and nowhere else."""

from __future__ import annotations

from functools import cache
from typing import Any

try:
    from ragkit.store.vectors import _maxsim  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # installed without a compiler
    _maxsim = None

INTERFACE = 3  # what the sources beside this file are built to
NUMPY = "numpy"

# None without a kernel, or with one built from other sources than these: run setup.py build_ext
extension: Any = _maxsim if hasattr(_maxsim, "interface") and _maxsim.interface() == INTERFACE else None


def kernels() -> list[str]:
    """Return the names of the kernels that run on this machine, best first; the last is NumPy."""
    return [*_compiled(), NUMPY]


@cache  # asking the processor traps in virtual machines: a millisecond or more each time
def _compiled() -> tuple[str, ...]:
    return tuple(extension.kernels()) if extension else ()


def kernel_name() -> str:
    """Return the name of the kernel that runs unless another is chosen."""
    return kernels()[0]

"""The numbers a model computes with, and the device it runs on.

"auto", the default, is bfloat16 where the hardware multiplies it natively (CUDA; CPUs with AVX512-BF16 or AMX), else float32.
It is one setting for fingerprints: vectors of the two agree to a cosine of 0.999 and better (docs/encoders.md), so an index
built on one machine is read on another. Pooling and normalising are float32 whatever the dtype.
"""

from __future__ import annotations

from ragkit.encode.torch_backend import Torch

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16", "float16")


def checked_dtype(dtype: str | None) -> str:
    """Return `dtype`, or "auto" for None. Raises ValueError for one that is not known."""
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype or AUTO


def compute_dtype(dtype: str, device: str, torch: Torch) -> str:
    """Return what "auto" is on this device, "bfloat16" or "float32"; every other dtype is itself."""
    if dtype != AUTO:
        return dtype
    native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else device == "cpu" and _cpu_has_bfloat16(torch)
    return "bfloat16" if native else "float32"


def _cpu_has_bfloat16(torch: Torch) -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public; without them: float32, as anywhere else
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def default_device(torch: Torch) -> str:
    """Return "cuda" where there is one, else "cpu": for models that are slow without."""
    return "cuda" if torch.cuda.is_available() else "cpu"

"""The arithmetic of a transformer encoder on packed rows, twice: with numpy, and with torch.

Packed: the tokens of all texts of a batch lie below each other, (sum of lengths, width), without padding; only attention
knows where a text ends. `runs` says so: (texts, tokens each) of neighbouring texts of equal length, so that each run is
one dense attention. A text's numbers do not depend on its neighbours beyond rounding.

numpy is for the first query of a fresh process: importing torch takes longer than encoding it. Both give the same to 1e-6.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import MissingExtra
from ragkit.core.types import Floats
from ragkit.encode.precision import compute_dtype

Tensor = Any  # torch.Tensor: naming the type would import torch, or tie the types here to one version of it
Runs = Sequence[tuple[int, int]]


class Kernels(Protocol):
    """What the forward pass in `bert.py` is written with; x and y are packed rows (T, width)."""

    @property
    def out_of_memory(self) -> type[Exception]:
        """What is raised when a batch does not fit."""
        ...

    @property
    def threads(self) -> int:
        """How many threads the calling thread's operations use."""
        ...

    def alone(self) -> None:
        """From now on the calling thread's operations use no other thread."""
        ...

    def context(self) -> AbstractContextManager[Any]:
        """To be entered around all calls."""
        ...

    def gather(self, table: Any, rows: npt.NDArray[np.int32]) -> Any:
        """Rows of a table (v, width) -> (T, width)."""
        ...

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        """x (T, in) @ weight (out, in).T + bias (out,) -> (T, out)."""
        ...

    def gelu(self, x: Any) -> Any:
        """The exact form, by erf."""
        ...

    def norm_of_sum(self, x: Any, y: Any, weight: Any, bias: Any, eps: float) -> Any:
        """Layer normalisation of x + y."""
        ...

    def attention(self, qkv: Any, runs: Runs, heads: int) -> Any:
        """Bidirectional attention within each text: qkv (T, 3 * width) -> (T, width), scaled by 1 / sqrt(head width)."""
        ...

    def to_numpy(self, x: Any) -> Floats:
        """As float32 in main memory."""
        ...

    def means(self, x: Any, runs: Runs) -> Floats:
        """The mean row of each text, taken in float32: (texts, width)."""
        ...


def runs_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """[5, 5, 3] -> [(2, 5), (1, 3)]."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    return runs


class NumpyKernels:
    """float32 on the CPU, nothing to import."""

    out_of_memory: type[Exception] = MemoryError
    threads = 1  # NumPy's own are not counted: these are small products

    def alone(self) -> None:
        pass

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def gather(self, table: Floats, rows: npt.NDArray[np.int32]) -> Floats:
        return table[rows]

    def linear(self, x: Floats, weight: Floats, bias: Floats) -> Floats:
        return x @ weight.T + bias

    def gelu(self, x: Floats) -> Floats:
        return np.asarray(0.5 * x * (1 + _erf(x * np.float32(math.sqrt(0.5)))), dtype=np.float32)

    def norm_of_sum(self, x: Floats, y: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
        total = x + y
        total -= total.mean(axis=1, keepdims=True)
        variance = np.square(total).mean(axis=1, keepdims=True)
        return np.asarray(total / np.sqrt(variance + np.float32(eps)) * weight + bias)

    def attention(self, qkv: Floats, runs: Runs, heads: int) -> Floats:
        width = qkv.shape[1] // 3
        out, start = np.empty((len(qkv), width), dtype=np.float32), 0
        for texts, length in runs:
            stop = start + texts * length
            q, k, v = qkv[start:stop].reshape(texts, length, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
            scores = q @ k.swapaxes(-1, -2) * np.float32((width // heads) ** -0.5)  # (texts, heads, length, length)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            out[start:stop] = (scores @ v).swapaxes(1, 2).reshape(-1, width)
            start = stop
        return out

    def to_numpy(self, x: Floats) -> Floats:
        return x

    def means(self, x: Floats, runs: Runs) -> Floats:
        ends = np.cumsum([0] + [texts * length for texts, length in runs])
        parts = [
            x[a:b].reshape(texts, length, -1).mean(axis=1) for (texts, length), a, b in zip(runs, ends, ends[1:], strict=False)
        ]
        return np.concatenate(parts)


def _erf(x: Floats) -> Floats:
    """The error function to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26)."""
    sign, x = np.sign(x), np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * x)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    return np.asarray(sign * (1 - series * np.exp(-x * x)), dtype=np.float32)


_THREADS = threading.Lock()


class TorchKernels:
    """Any device and floating dtype torch has. What goes from layer to layer is float32, and rounded only to be multiplied:
    rounding that sum, too, would cost three times the error (cosine 0.99990 instead of 0.99997) and save nothing."""

    def __init__(self, device: str, dtype: str) -> None:
        self.torch = import_torch()
        self.device = self.torch.device(device)
        self.dtype = getattr(self.torch, compute_dtype(dtype, device, self.torch))
        self.out_of_memory: type[Exception] = self.torch.OutOfMemoryError

    def context(self) -> AbstractContextManager[Any]:
        return self.torch.inference_mode()  # type: ignore[no-any-return]

    @property
    def threads(self) -> int:
        """How many threads the calling thread's operations use: torch's own default, or what `torch.set_num_threads` said."""
        return int(self.torch.get_num_threads()) if self.device.type == "cpu" else 1

    def alone(self) -> None:
        """From now on the calling thread's operations use no other thread."""
        with _THREADS:
            before = self.torch.get_num_threads()
            self.torch.set_num_threads(1)
            # That call also sets what threads to come will start with; another thread's call puts it back for them alone.
            mend = threading.Thread(target=self.torch.set_num_threads, args=(before,))
            mend.start()
            mend.join()

    def place(self, weights: Mapping[str, Floats]) -> dict[str, Tensor]:
        """The weights where and as they are computed with; float32 on the CPU shares numpy's memory."""
        return {name: self.placed(self.torch.from_numpy(array)) for name, array in weights.items()}

    def placed(self, weight: Tensor) -> Tensor:
        """One weight; those of norms, and biases, stay float32: they are small, and what they change is."""
        return weight.to(self.device, self.torch.float32 if weight.dim() == 1 else self.dtype).contiguous()

    def gather(self, table: Tensor, rows: npt.NDArray[np.int32]) -> Tensor:
        return table[self.torch.from_numpy(rows).to(self.device)]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.torch.nn.functional.linear(x.to(self.dtype), weight, bias.to(self.dtype))

    def gelu(self, x: Tensor) -> Tensor:
        return self.torch.nn.functional.gelu(x)

    def norm_of_sum(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return self.torch.nn.functional.layer_norm(x.float().add_(y), weight.shape, weight, bias, eps)

    def attention(self, qkv: Tensor, runs: Runs, heads: int) -> Tensor:
        width, mixed = qkv.shape[1] // 3, []
        for rows, (texts, length) in zip(qkv.split([texts * length for texts, length in runs]), runs, strict=True):
            q, k, v = rows.view(texts, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            out = self.torch.nn.functional.scaled_dot_product_attention(q, k, v)  # reads the strided views as they are
            mixed.append(out.transpose(1, 2).reshape(len(rows), width))
        return mixed[0] if len(mixed) == 1 else self.torch.cat(mixed)

    def rotary(self, lengths: Sequence[int], width: int, *, theta: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `rotate`, (T, 1, 1, width / 2) float32 each: positions count from 0 in each text."""
        positions = self.torch.cat([self.torch.arange(length, dtype=self.torch.float64) for length in lengths])
        powers = self.torch.arange(0, width, 2, dtype=self.torch.float64) / width
        angles = (positions[:, None] / theta**powers)[:, None, None].to(self.device)  # float64: 8,191 radians to 1e-12
        return angles.cos().float(), angles.sin().float()

    def rotate(self, qkv: Tensor, rotary: tuple[Tensor, Tensor], heads: int) -> Tensor:
        """Turn queries and keys by their positions, in place (Su et al. 2021): the first half of a head with the second."""
        cos, sin = rotary
        qk = qkv.view(len(qkv), 3, heads, -1)[:, :2]
        first, second = qk.chunk(2, dim=-1)
        turned = self.torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        qk.copy_(turned)
        return qkv

    def to_numpy(self, x: Tensor) -> Floats:
        return np.asarray(x.float().cpu().numpy())

    def means(self, x: Tensor, runs: Runs) -> Floats:
        parts = x.split([texts * length for texts, length in runs])
        pooled = [part.view(texts, length, -1).float().mean(dim=1) for (texts, length), part in zip(runs, parts, strict=True)]
        return self.to_numpy(self.torch.cat(pooled))


def import_torch() -> Any:
    """The one place that imports torch for the encoders here."""
    try:
        import torch
    except ImportError:
        raise MissingExtra.of("torch", "cpu", "encoding more than a short query") from None
    return torch

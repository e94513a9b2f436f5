"""The arithmetic of a transformer encoder on packed rows, twice: with numpy, and with torch.

Packed: the tokens of all texts of a batch lie below each other, (sum of lengths, width), without padding. Only attention
needs to know where a text ends: `runs` are (texts, tokens each) of neighbouring texts of equal length, so that each run is
one dense attention. A text's numbers do not depend on its neighbours beyond rounding.

numpy is for the first query of a fresh process: importing torch takes longer than encoding it. Both give the same to 1e-6.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ragkit.core.types import Floats
from ragkit.encode.precision import compute_dtype
from ragkit.encode.torch_backend import Tensor, import_torch

Runs = Sequence[tuple[int, int]]
Value = TypeVar("Value")


class Kernels(Protocol):
    """The operations of the forward pass in `bert.py`; x and y are packed rows (T, width), of numpy or of torch."""

    @property
    def out_of_memory(self) -> type[Exception]:
        """The exception raised when a batch does not fit."""
        ...

    @property
    def threads(self) -> int:
        """The number of threads that the calling thread's operations use."""
        ...

    def alone(self) -> None:
        """Let the calling thread's operations use no other thread from now on."""
        ...

    def context(self) -> AbstractContextManager[object]:
        """Return the context to enter around all calls."""
        ...

    def gather(self, table: Tensor, rows: npt.NDArray[np.int32]) -> Tensor:
        """Return rows (T, width) of a table (v, width)."""
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return x (T, in) @ weight (out, in).T + bias (out,): (T, out)."""
        ...

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU in its exact form, by erf."""
        ...

    def norm_of_sum(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Return the layer normalisation of x + y."""
        ...

    def attention(self, qkv: Tensor, runs: Runs, heads: int) -> Tensor:
        """Attend in both directions within each text: qkv (T, 3 * width) -> (T, width), scaled by 1 / sqrt(head width)."""
        ...

    def to_numpy(self, x: Tensor) -> Floats:
        """Return x as float32 in main memory."""
        ...

    def means(self, x: Tensor, runs: Runs) -> Floats:
        """Return the mean row of each text, taken in float32: (texts, width)."""
        ...


def runs_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Count neighbours of equal length: [5, 5, 3] -> [(2, 5), (1, 3)]."""
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

    def context(self) -> AbstractContextManager[object]:
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
    """Return the error function to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26)."""
    sign, x = np.sign(x), np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * x)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    return np.asarray(sign * (1 - series * np.exp(-x * x)), dtype=np.float32)


_THREADS = threading.Lock()


class TorchKernels:
    """Any device and floating dtype that torch has.

    States go from layer to layer in float32, and are rounded only to be multiplied: rounding their sums, too, would cost three
    times the error (cosine 0.99990 instead of 0.99997) and save nothing.
    """

    def __init__(self, device: str, dtype: str) -> None:
        self.torch = import_torch()
        self.device = self.torch.device(device)
        self.dtype = getattr(self.torch, compute_dtype(dtype, device, self.torch))
        self.out_of_memory: type[Exception] = self.torch.OutOfMemoryError

    def context(self) -> AbstractContextManager[object]:
        return self.torch.inference_mode()  # type: ignore[no-any-return]

    @property
    def threads(self) -> int:
        """The number of threads of the calling thread's operations: torch's default, or the last `torch.set_num_threads`."""
        return int(self.torch.get_num_threads()) if self.device.type == "cpu" else 1

    def alone(self) -> None:
        """Let the calling thread's operations use no other thread from now on."""
        with _THREADS:
            before = self.torch.get_num_threads()
            self.torch.set_num_threads(1)
            # That call also sets the number with which later threads start; a call in another thread puts back only that.
            restoring = threading.Thread(target=self.torch.set_num_threads, args=(before,))
            restoring.start()
            restoring.join()

    def place(self, weights: Mapping[str, Floats]) -> dict[str, Tensor]:
        """Return the weights on the device, in the dtype they are computed with; float32 on the CPU shares numpy's memory."""
        return {name: self.placed(self.torch.from_numpy(array)) for name, array in weights.items()}

    def placed(self, weight: Tensor) -> Tensor:
        """Return one weight placed. Norms and biases stay float32: they take little memory, and small values matter in them."""
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
        """Return cosines and sines for `rotate`, (T, 1, 1, width / 2) float32 each: positions count from 0 in each text."""
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


class Placed(Generic[Value]):
    """A value per dtype, such as a model's weights on their device, made when first used. Thread-safe."""

    def __init__(self, place: Callable[[str], Value]) -> None:
        self._place = place
        self._values: dict[str, Value] = {}
        self._lock = threading.Lock()

    def __contains__(self, dtype: str) -> bool:
        return dtype in self._values

    def __getitem__(self, dtype: str) -> Value:
        with self._lock:
            if dtype not in self._values:
                self._values[dtype] = self._place(dtype)
            return self._values[dtype]

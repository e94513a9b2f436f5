"""How fast jina-embeddings-v3 runs in its full published size, with random weights: the arithmetic is the same.

    python benchmarks/jina_v3.py [--device cpu] [--dtype auto] [--tokens 2048] [--lengths 128 512] [--layers 24] [--rounds 3]

Per length: tokens per processor second (per second on a GPU), the share of a matrix product's speed measured in the same run,
with adapters row by row, in a batch that mixes all five tasks, and merged; and the memory taken.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ragkit.encode.models.jina_v3 import JinaV3
from ragkit.encode.models.jina_v3_files import INSTRUCTIONS, V3Shape
from ragkit.encode.models.kernels import Placed


class RandomFiles:
    """A `V3Files` that has no files."""

    tasks = tuple(INSTRUCTIONS)
    instructions = INSTRUCTIONS
    matryoshka = (1024,)
    rank, scale = 4, 0.25

    def __init__(self, layers: int) -> None:
        self.weights: list[Any] = []
        self.shape = V3Shape(
            vocab_size=250002, hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096,
            max_position_embeddings=8194, type_vocab_size=1, layer_norm_eps=1e-5, rope_theta=20000.0,
        )  # fmt: skip

    def base(self, name: str) -> torch.Tensor:
        module, _, kind = name.rpartition(".")
        if module in self.shape.norms():
            return torch.ones(1024) if kind == "weight" else torch.zeros(1024)
        rows, columns = {
            "embeddings.word_embeddings": (250002, 1024),
            "embeddings.token_type_embeddings": (1, 1024),
        }.get(module) or self.shape.linear(module)
        return torch.randn(rows, columns) * 0.03 if kind == "weight" else torch.zeros(rows)

    def low_rank(self, module: str, task: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows, columns = self.shape.linear(module)
        return [(torch.randn(4, columns) * 0.03, torch.randn(rows, 4) * 0.03)]

    def table(self, module: str, task: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = 250002 if "word" in module else 1
        return torch.randn(rows, 4) * 0.03, torch.randn(4, 1024) * 0.03


def spent(work: Callable[[], object], *, rounds: int, device: str) -> float:
    """The least seconds of processor time, or of time on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    work()
    best = float("inf")
    for _ in range(rounds):
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


def product_speed(model: JinaV3, tokens: int, device: str) -> float:
    """Floating-point operations a second of a plain product of the model's largest kind."""
    kernels, _ = model.arithmetic(0, few=False)
    x = torch.randn(tokens, 1024, device=device).to(kernels.dtype)
    weight = torch.randn(4096, 1024, device=device).to(x.dtype)
    return 2 * tokens * 1024 * 4096 / spent(lambda: x @ weight.T, rounds=5, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=2048, help="a batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    files, device = RandomFiles(arguments.layers), arguments.device
    plain = JinaV3(files, device=device, dtype=arguments.dtype, merged=False)
    merged = copy.copy(plain)  # the same weights, so that both fit
    merged._merged = Placed(merged._merge)
    peak = product_speed(plain, arguments.tokens, device)
    threads = torch.get_num_threads()
    print(f"{device}, {arguments.dtype}, {arguments.layers} layers, {threads} thread(s); matrix product {peak:.3g} FLOP/s")
    for length in arguments.lengths:
        rows = [np.random.default_rng(i).integers(5, 250000, length, dtype=np.int32) for i in range(arguments.tokens // length)]
        one, mixed = [files.tasks[1]] * len(rows), [files.tasks[i % 5] for i in range(len(rows))]
        flops = 2 * len(rows) * length * arguments.layers * (12 * 1024**2 + 2 * length * 1024)
        for name, model, tasks in (("row by row", plain, one), ("five tasks mixed", plain, mixed), ("merged", merged, one)):
            kernels, forward = model.arithmetic(0, few=False)
            with kernels.context():
                seconds = spent(lambda: forward(rows, tasks), rounds=arguments.rounds, device=device)  # noqa: B023
            speed, share = len(rows) * length / seconds, flops / seconds / peak
            print(f"{length:6} tokens  {name:18}{speed:10,.0f} tokens/s  {share:6.1%} of a product")
    memory = torch.cuda.max_memory_allocated() if device != "cpu" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"memory at most {memory / 2**30:.2f} GiB, random numbers and both models included")


if __name__ == "__main__":
    main()

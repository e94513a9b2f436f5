"""MaxSim in torch, for graphics cards: the same items and queries as `maxsim.scan`, in blocks that fit the card's memory.

For int8 every product of bytes is a whole number, and float32 holds their sums exactly up to EXACT dims (wider rows are added in
parts, in float64), TF32 included: the same scores to the bit as the kernel's. Float precisions agree to float32 rounding, stated
in TOLERANCE. Items stay on the card where they take at most half of what is free, and are sent block by block otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from ragkit.core.arrays import top_k
from ragkit.core.errors import MissingExtra
from ragkit.core.types import Floats, Ints, Mask
from ragkit.store.vectors.maxsim_numpy import EXACT
from ragkit.store.vectors.quantise import ZERO
from ragkit.store.vectors.tiles import Items, Scores, build_tile, check_queries

TOLERANCE = 2e-6  # of a score, a query token, unit rows
SHARE = 0.25  # of the free memory for one block and its products
CPU_BLOCK = 1 << 26  # bytes, where the device is the processor, which tests use

Tensor = Any  # torch.Tensor: torch is imported when it is used


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError:
        raise MissingExtra.of("torch", "cpu", "scanning multi-vectors on a device") from None
    return torch


class TorchItems:
    """Items that torch scans on a device, such as "cuda". Thread-safe."""

    def __init__(self, items: Items, device: str) -> None:
        torch = _torch()
        self.items = items
        self.device = torch.device(device)
        self.resident: Tensor | None = None  # all tokens on the device, where they fit
        if 2 * items.values.nbytes <= self._free():
            self.resident = torch.from_numpy(np.array(items.values)).to(self.device)

    def _free(self) -> int:
        """Return the bytes that are free on the device."""
        if self.device.type == "cuda":
            free: int = _torch().cuda.mem_get_info(self.device)[0]
            return free
        return 2 * CPU_BLOCK

    def scan(self, queries: Sequence[Floats], *, k: int, allowed: Mask | None = None) -> list[tuple[Ints, Scores]]:
        """As `maxsim.scan`: return each query's best min(k, allowed), best first, ties by the smaller key."""
        positions = np.arange(len(self.items)) if allowed is None else np.flatnonzero(allowed)
        keys = self.items.keys[positions]
        results = []
        for query in check_queries(queries, self.items):
            scores = self._scores(query, positions)
            best = top_k(scores, keys, k)
            results.append((np.asarray(keys[best]), scores[best]))
        return results

    def _scores(self, query: Floats, positions: Ints) -> Scores:
        torch, quantiser = _torch(), self.items.quantiser
        tile = build_tile([query], quantiser)
        rows = torch.from_numpy(np.ascontiguousarray(tile.rows, dtype=np.float32)).to(self.device)
        scores = np.empty(len(positions), dtype=np.float64)
        ends = [*range(0, rows.shape[1], EXACT if quantiser else rows.shape[1]), rows.shape[1]]
        parts = [slice(at, to) for at, to in pairwise(ends)]
        weights = torch.from_numpy(tile.weights).to(self.device).double()
        for place, lengths, tokens in self._blocks(positions, rows=len(rows)):
            wide = tokens.to(torch.float32) - (ZERO if quantiser else 0)
            products = sum((wide[:, part] @ rows[:, part].T).double() for part in parts)
            if quantiser:  # in float32, as the kernel rounds
                weighed = tokens[:, quantiser.width :].float() if quantiser.weighed else 1
                products = (products.float() * weighed).double()
            maxima = torch.segment_reduce(products, "max", lengths=lengths, axis=0)
            # Floats in the query's units, as the kernel counts.
            maxima = maxima * weights if quantiser else torch.round(maxima / float(tile.units[0]))
            scores[place] = maxima.sum(dim=1).cpu().numpy() * tile.units[0]
        return scores

    def _blocks(self, positions: Ints, *, rows: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield whole items, as many as fit: which of the positions, their lengths, their tokens, both on the device."""
        torch, items = _torch(), self.items
        begins, ends = items.offsets[positions], items.offsets[positions + 1]
        totals = np.cumsum(ends - begins)
        room = max(1, int(SHARE * self._free()) // (8 * (items.values.shape[1] + 2 * rows)))  # tokens
        start = 0
        while start < len(positions):
            before = totals[start] - (ends[start] - begins[start])
            stop = max(start + 1, int(np.searchsorted(totals, before + room, side="right")))
            inside = slice(start, stop)
            lengths = ends[inside] - begins[inside]
            at = np.repeat(begins[inside] - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(lengths.sum())
            if self.resident is not None:
                tokens = self.resident[torch.from_numpy(at).to(self.device)]
            else:
                tokens = torch.from_numpy(np.ascontiguousarray(items.values[at])).to(self.device)
            yield inside, torch.from_numpy(lengths).to(self.device), tokens
            start = stop

"""jina-embeddings-v3, run by ragkit from its published files (Sturua et al., arXiv 2409.10173): no code of the checkpoint.

XLM-RoBERTa with rotary positions and post-norm, mean pooling, and five LoRA adapters, on packed rows (see `packed.py`).
Adapter and instruction of a task are chosen together, by `PackedEncoder`.

Adapters are applied row by row, so that a batch mixes tasks: x W' + (x A' masked to the row's own task) B', with all tasks'
A side by side. Of the embedding table only the rows that are read get their adapter's share; nothing here is ever as large as
the vocabulary. `merge_adapters` adds B A into a copy of the linear layers per task in use, and runs rows of a task together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from ragkit.encode.checkpoints.checkpoint import digest_of, licence_of
from ragkit.encode.checkpoints.layouts import Checkpoint
from ragkit.encode.contract import EncoderCard
from ragkit.encode.models.bert import CPU_TOKENS, GPU_TOKENS, read_tokenizer
from ragkit.encode.models.jina_v3_files import TYPES, WORDS, V3Files, V3Shape, open_v3
from ragkit.encode.models.kernels import Kernels, Placed, TorchKernels, runs_of
from ragkit.encode.models.packed import Forward, PackedEncoder, Row, by_task
from ragkit.encode.precision import checked_dtype, default_device
from ragkit.encode.tasks import NO_TASK, checked_task
from ragkit.encode.torch_backend import Tensor, Torch, import_torch

MAX_TOKENS = 8192  # documented; the tokenizer's own limit is two more
TASKS = ("retrieval", "text-matching", "separation", "classification", NO_TASK)


def load(checkpoint: Checkpoint) -> PackedEncoder:
    """Check and load a folder of either published layout."""
    folder, settings = checkpoint.folder, checkpoint.settings
    torch, files = import_torch(), open_v3(folder)
    tokenizer = read_tokenizer(folder / "tokenizer.json", files.shape.vocab_size)
    dtype, device = checked_dtype(settings.dtype), settings.device or default_device(torch)
    with ThreadPoolExecutor(1) as pool:  # hashing leaves the interpreter free
        hashing = pool.submit(digest_of, files.weights, root=folder)
        model = JinaV3(files, device=device, dtype=dtype, merged=settings.merge_adapters)
        digest = hashing.result()
    card = EncoderCard(
        name=checkpoint.name,
        revision=checkpoint.revision_of(digest),
        licence=licence_of(folder),
        dims=files.shape.hidden_size,
        truncatable_dims=tuple(dims for dims in files.matryoshka if dims <= files.shape.hidden_size),
        tasks=TASKS,
        max_tokens=_token_limit(files.shape, settings.max_tokens),
        pooling="mean",
        dtype=dtype,
        preprocessing={
            "weights": digest,
            "tokenizer": tokenizer.sha256,
            "shape": asdict(files.shape),
            "instructions": dict(files.instructions),
            "adapters": {"tasks": files.tasks, "rank": files.rank, "scale": files.scale},
        },
    )
    card = replace(card, task=checked_task(settings.task, card))
    return PackedEncoder(card, model=model, tokenizer=tokenizer, instructions=files.instructions)


def _token_limit(shape: V3Shape, max_tokens: int | None) -> int:
    positions = shape.max_position_embeddings
    if max_tokens is not None and not 3 <= max_tokens <= positions:
        raise ValueError(f"max_tokens must be between 3 and {positions}, the positions this model has, got {max_tokens}")
    return max_tokens or min(MAX_TOKENS, positions)


@dataclass(frozen=True, slots=True, eq=False)
class _Adapters:
    """LoRA of one module for all T tasks: A side by side (T * rank, in), and B below each other (T * rank, out), scaled."""

    a: Tensor
    b: Tensor
    rank: int


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """Placed on a device: the base by full name, the adapters by module, and the share of the token types by task."""

    base: Mapping[str, Tensor]
    adapters: Mapping[str, _Adapters]
    words_a: Tensor  # (V, T * rank)
    words_b: Tensor  # (T * rank, hidden), scaled
    types: Tensor  # (T + 1, hidden): the row that all tokens get, by task; the last one without an adapter


class JinaV3:
    """A `PackedModel` (see `packed.py`)."""

    def __init__(self, files: V3Files, *, device: str, dtype: str, merged: bool) -> None:
        self.device = device
        self.budget = CPU_TOKENS if device == "cpu" else GPU_TOKENS
        self._shape, self._tasks = files.shape, files.tasks
        self._kernels = TorchKernels(device, dtype)
        self._weights = _read(files, self._kernels)
        self._merged = Placed(self._merge) if merged else None

    def arithmetic(self, tokens: int, *, few: bool) -> tuple[Kernels, Forward]:
        return self._kernels, self.forward

    def forward(self, ids: Sequence[Row], tasks: Sequence[str]) -> Tensor:
        """Return packed states (sum of lengths, hidden) of rows of ids and the task of each (NO_TASK for the base alone)."""
        if self._merged is None or len(set(tasks)) == 1:
            return self._forward(ids, tasks)
        parts: list[Tensor] = [None] * len(ids)
        for task, positions in by_task(tasks):
            rows = [ids[i] for i in positions]
            states = self._forward(rows, [task] * len(rows)).split([len(row) for row in rows])
            for i, own in zip(positions, states, strict=True):
                parts[i] = own
        return self._kernels.torch.cat(parts)

    def _forward(self, ids: Sequence[Row], tasks: Sequence[str]) -> Tensor:
        kernels, shape, weights = self._kernels, self._shape, self._weights
        lengths = [len(row) for row in ids]
        runs, base = runs_of(lengths), weights.base
        banks = _Banks(self._tasks, tasks, lengths, kernels)
        merged = self._merged[tasks[0]] if self._merged is not None and tasks[0] != NO_TASK else {}

        def linear(x: Tensor, name: str) -> Tensor:
            bias = base[f"{name}.bias"]
            if name in merged:
                return kernels.linear(x, merged[name], bias)
            return banks.add(kernels.linear(x, base[f"{name}.weight"], bias), x.to(kernels.dtype), weights.adapters[name])

        def norm_of_sum(x: Tensor, y: Tensor, name: str) -> Tensor:
            return kernels.norm_of_sum(x, y, base[f"{name}.weight"], base[f"{name}.bias"], shape.layer_norm_eps)

        tokens = np.concatenate(ids)
        words = kernels.gather(base[f"{WORDS}.weight"], tokens)
        words = banks.add_rows(words, kernels.gather(weights.words_a, tokens), weights.words_b)
        x = norm_of_sum(words, kernels.gather(weights.types, banks.of_tokens), "emb_ln")
        rotary = kernels.rotary(lengths, shape.hidden_size // shape.num_attention_heads, theta=shape.rope_theta)
        for layer in range(shape.num_hidden_layers):
            at = f"encoder.layers.{layer}"
            qkv = kernels.rotate(linear(x, f"{at}.mixer.Wqkv"), rotary, shape.num_attention_heads)
            mixed = kernels.attention(qkv, runs, shape.num_attention_heads)
            x = norm_of_sum(linear(mixed, f"{at}.mixer.out_proj"), x, f"{at}.norm1")
            inner = kernels.gelu(linear(x, f"{at}.mlp.fc1"))
            x = norm_of_sum(linear(inner, f"{at}.mlp.fc2"), x, f"{at}.norm2")
        return x

    def _merge(self, task: str) -> dict[str, Tensor]:
        """Return the linear layers with a task's adapter added, in float32 before they are rounded."""
        at, merged = self._tasks.index(task), {}
        for name, adapters in self._weights.adapters.items():
            own = slice(at * adapters.rank, (at + 1) * adapters.rank)
            weight = self._weights.base[f"{name}.weight"]
            product = adapters.b[own].float().T @ adapters.a[own].float()
            merged[name] = (weight.float() + product).to(weight.dtype)
        return merged


class _Banks:
    """The columns of the adapters that apply to each packed token: those of its own task."""

    def __init__(self, known: Sequence[str], tasks: Sequence[str], lengths: Sequence[int], kernels: TorchKernels) -> None:
        """Note the task of each token. tasks: of each row. A row of NO_TASK has no columns."""
        self._known, self._kernels = known, kernels
        places = [known.index(task) if task != NO_TASK else len(known) for task in tasks]
        self.of_tokens: npt.NDArray[np.int32] = np.repeat(np.array(places, dtype=np.int32), lengths)
        self._alone = places[0] if len(set(places)) == 1 else None
        self._masks: dict[int, Tensor] = {}

    def add(self, y: Tensor, x: Tensor, adapters: _Adapters) -> Tensor:
        """Return y + x A B for each token's own task: y (T, out), changed in place; x (T, in)."""
        if self._alone == len(self._known):
            return y
        if self._alone is not None:
            own = slice(self._alone * adapters.rank, (self._alone + 1) * adapters.rank)
            return y.addmm_(x @ adapters.a[own].T, adapters.b[own])
        return y.addmm_((x @ adapters.a.T).mul_(self._mask(adapters.rank)), adapters.b)

    def add_rows(self, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return y + a B for each token's own task: a (T, tasks * rank) as gathered, changed in place."""
        return y.addmm_(a.mul_(self._mask(len(b) // len(self._known))), b)

    def _mask(self, rank: int) -> Tensor:
        """Return (T, tasks * rank), 1 where the column belongs to the token's task, else 0."""
        if rank not in self._masks:
            one_hot = self.of_tokens[:, None] == np.repeat(np.arange(len(self._known)), rank)
            self._masks[rank] = self._kernels.torch.from_numpy(one_hot).to(self._kernels.device, self._kernels.dtype)
        return self._masks[rank]


def _read(files: V3Files, kernels: TorchKernels) -> _Weights:
    """Return every tensor on its device, in the dtype it is computed with, read one at a time."""
    torch, tasks = kernels.torch, range(len(files.tasks))
    place = kernels.placed
    base = {f"{WORDS}.weight": place(files.base(f"{WORDS}.weight"))}
    for name in [*files.shape.linears(), *files.shape.norms()]:
        base |= {f"{name}.{kind}": place(files.base(f"{name}.{kind}")) for kind in ("weight", "bias")}
    adapters = {name: _adapters(files, name, kernels) for name in files.shape.linears()}
    words = [files.table(WORDS, task) for task in tasks]
    types, plain = [files.table(TYPES, task) for task in tasks], files.base(f"{TYPES}.weight")[0]
    shares = [plain + files.scale * (a[0] @ b) for a, b in types]
    return _Weights(
        base=base,
        adapters=adapters,
        words_a=place(torch.cat([a for a, _ in words], dim=1)),
        words_b=place(files.scale * torch.cat([b for _, b in words])),
        types=place(torch.stack([*shares, plain])),
    )


def _adapters(files: V3Files, name: str, kernels: TorchKernels) -> _Adapters:
    """Return one module's adapters.

    Query, key and value share their A in the published files; in files where they do not, each has its own.
    """
    torch = kernels.torch
    pairs_by_task = [files.low_rank(name, task) for task in range(len(files.tasks))]
    if all(_shares_a(pairs, torch) for pairs in pairs_by_task):
        joined = [(pairs[0][0], torch.cat([b for _, b in pairs])) for pairs in pairs_by_task]
    else:
        joined = [(torch.cat([a for a, _ in pairs]), torch.block_diag(*(b for _, b in pairs))) for pairs in pairs_by_task]
    a, b = torch.cat([a for a, _ in joined]), files.scale * torch.cat([b.T for _, b in joined])
    return _Adapters(kernels.placed(a), kernels.placed(b), rank=len(joined[0][0]))


def _shares_a(pairs: Sequence[tuple[Tensor, Tensor]], torch: Torch) -> bool:
    """Return whether all (A, B) of one module and task have the same A."""
    return all(torch.equal(a, pairs[0][0]) for a, _ in pairs)

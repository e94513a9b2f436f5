"""Train a small encoder that sees pages, and write it in the published layout of jina-embeddings-v4.

    python examples/visual/train.py --out examples/visual/encoder --minutes 75 --seed 0 --threads 1

The network is the one that ragkit runs: transformers' Qwen2_5_VLModel with the multi-vector projector, its prompts, positions
and pixels made by the same functions, so that what was trained is what is served. It begins at random and sees only the
pages of `pages.py`, other ones at every step. Five losses, all over the pages and queries of a batch:

- spelling: what the vision tower makes of a cell tells which letters stand there.
- name: among the names of all that can stand on a page, each thing's own is the most similar to the vectors over it.
- where: each word of a query finds, among the vectors of all pages, one that looks at what the query asks for up to there
  on its own page. Words that ask nothing find the prompt before the image, which is the same for all pages.
- multi: the late-interaction score picks the query's page. Other pages of which the query is true too are left out.
- dense: the pooled vectors do.

The adapters are written as the layout demands, and add nothing. `--out` is written every five minutes, so that a run that is
stopped leaves a model. Needs the extras cpu and dev.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import (
    BEFORE,
    BEFORE_WORD,
    BETWEEN,
    CELL,
    COLOURS,
    COLUMNS,
    KINDS,
    ROWS,
    WORDS,
    Page,
    Query,
    covered,
    draw_page,
    letters,
    make_page,
    make_query,
)
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from ragkit.encode.images import normalised, patch_rows
from ragkit.encode.models.jina_v4_files import ADAPTED, TASKS
from ragkit.encode.models.jina_v4_model import Row
from ragkit.encode.models.jina_v4_prompts import AFTER, DESCRIBE
from ragkit.encode.models.jina_v4_prompts import BEFORE as PROMPT

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 192, 2, 6, 2, 384
V_HIDDEN, V_DEPTH, V_HEADS, V_INTERMEDIATE, V_FULL = 128, 4, 4, 288, (1, 3)
MULTI = 128
RANK = 1  # of the adapters
MAX_PIXELS = 92 * CELL * CELL  # so that A4 gets 8 x 11 cells
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RATE, WARM_UP, DECAY = 2e-3, 60, 0.05
WEIGHTS = {"spelling": 0.5, "name": 1.0, "where": 1.0, "multi": 1.0, "dense": 0.5}  # of the losses
OTHER_NAMES = 24  # in a batch, beside those on its pages
SHORT = 0.35  # of the time goes to parts of pages, which are cheaper
SAVE_EVERY = 300  # seconds

Tensor = torch.Tensor


# --- the words it knows --------------------------------------------------------------------------------------------------


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE as Qwen2's, in which every word of the pages and queries is one token. Upper case is lowered."""
    places = ["top", "bottom", "left", "right"]
    phrases = [*WORDS, *COLOURS, *KINDS, *BEFORE, *BEFORE_WORD, *BETWEEN, *places, DESCRIBE]
    words = {word for phrase in phrases for word in phrase.split()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4096, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"query passage user describe{''.join(f' {word}' for word in sorted(words))}"], trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    for word in words - set(DESCRIBE.split()):
        if len(tokenizer.encode(f"query: {word}").ids) != 3:
            raise RuntimeError(f"{word} is not one token")
    return tokenizer


# --- the network ---------------------------------------------------------------------------------------------------------


def text_config(vocabulary: int) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 2048, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6, "use_sliding_window": False, "vocab_size": vocabulary,
    }  # fmt: skip


ROPE = {"rope_theta": 1000.0, "mrope_section": [4, 6, 6]}  # of the 16 pairs of a head: order, row, column
VISION = {
    "depth": V_DEPTH, "fullatt_block_indexes": list(V_FULL), "hidden_act": "silu", "hidden_size": V_HIDDEN, "in_channels": 3,
    "in_chans": 3, "intermediate_size": V_INTERMEDIATE, "model_type": "qwen2_5_vl", "num_heads": V_HEADS,
    "out_hidden_size": HIDDEN, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    "window_size": 112,
}  # fmt: skip


class StillPatches(torch.nn.Module):
    """What a model of films makes of a still picture: two equal frames, so half the work on one."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(3 * 14 * 14, V_HIDDEN, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)

    def both_frames(self) -> Tensor:
        """The published weight, (out, colours, frames, 14, 14)."""
        return (self.proj.weight.detach() / 2).view(V_HIDDEN, 3, 1, 14, 14).repeat(1, 1, 2, 1, 1)


class Network(torch.nn.Module):
    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        names = ("image_pad", "vision_start", "vision_end")
        self.pad, self.start, self.end = (tokenizer.token_to_id(f"<|{name}|>") for name in names)
        self.vocabulary = -(-(tokenizer.get_vocab_size() + 2) // 16) * 16
        config = Qwen2_5_VLConfig(
            text_config=text_config(self.vocabulary) | {"rope_parameters": {"rope_type": "default"} | ROPE}
            | {"bos_token_id": None, "eos_token_id": None},
            vision_config=dict(VISION), image_token_id=self.pad, vision_start_token_id=self.start, vision_end_token_id=self.end,
        )  # fmt: skip
        self.model = Qwen2_5_VLModel._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        self.model.visual.patch_embed = StillPatches()
        self.head = torch.nn.Linear(HIDDEN, MULTI)
        self.spelling = torch.nn.Linear(HIDDEN, 26)  # only for a loss; not written
        self.scales = torch.nn.Parameter(torch.tensor([12.0, 12.0, 20.0, 15.0]).log())  # of the losses; not written
        self._begin()

    def _begin(self) -> None:
        """Every linear keeps the size of what it is applied to; those that end a residual branch begin small."""
        for name, weight in self.named_parameters():
            if name == "scales":
                continue
            if weight.ndim < 2:
                torch.nn.init.constant_(weight, float(name.endswith("weight")))
            else:
                small = 0.4 if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")) else 1.0
                torch.nn.init.normal_(weight, std=small / math.sqrt(weight[0].numel()))
        torch.nn.init.constant_(self.spelling.bias, -4.0)  # most cells have no letter
        torch.nn.init.normal_(self.model.language_model.embed_tokens.weight, std=0.5)
        self._whiten()

    @torch.no_grad()
    def _whiten(self) -> None:
        """Let patches begin as their principal components, all of one size: else white paper drowns what is printed on it."""
        rng = np.random.default_rng(15)
        patches = page_pixels(rng, [make_page(3_000_000 + n, figures=0.4) for n in range(60)], varied=True)
        sizes, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        largest = slice(-V_HIDDEN, None)
        self.model.visual.patch_embed.proj.weight.copy_((components[:, largest] / (sizes[largest] + 0.05).sqrt()).T)

    def states(self, rows: Sequence[Row], seen: Tensor | None = None) -> Tensor:
        """(n, longest, HIDDEN) after the final norm, as `QwenAdapted.forward` computes them."""
        longest = max(len(row.ids) for row in rows)
        ids, positions = np.zeros((len(rows), longest), dtype=np.int64), np.zeros((3, len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = row.ids
            positions[:, i, : len(row.ids)] = row.positions()
        inputs = self.model.language_model.embed_tokens(torch.from_numpy(ids))
        if seen is not None:
            at, behind = rows[0].at, rows[0].at + seen.shape[1]  # pages of one size
            inputs = torch.cat([inputs[:, :at], seen, inputs[:, behind:]], dim=1)
        found = self.model.language_model(inputs_embeds=inputs, position_ids=torch.from_numpy(positions), use_cache=False)
        return found.last_hidden_state

    def see(self, pages: Sequence[Page], pixels: Tensor) -> Tensor:
        """What the vision tower makes of pages of one size: (n, cells, HIDDEN)."""
        high, wide = pages[0].height // CELL, pages[0].width // CELL
        grids = torch.tensor([[1, 2 * high, 2 * wide]] * len(pages))
        return self.model.visual(pixels, grid_thw=grids).pooler_output.view(len(pages), high * wide, HIDDEN)

    def pages(self, pages: Sequence[Page], seen: Tensor) -> tuple[Tensor, Tensor, slice]:
        """Of what was seen: multi-vectors (n, t, MULTI), dense (n, HIDDEN), unit rows both, and which t are the image's."""
        high, wide = pages[0].height // CELL, pages[0].width // CELL
        before, behind = self.ids(PROMPT), self.ids(f"<|vision_end|>{DESCRIBE}{AFTER}")
        row = Row(np.array([*before, *[self.pad] * (high * wide), *behind]), "retrieval", at=len(before), high=high, wide=wide)
        states = self.states([row] * len(pages), seen)
        image = slice(row.at, row.at + high * wide)
        dense = states[:, image.start - 1 : image.stop + 1].mean(dim=1)  # from <|vision_start|> through <|vision_end|>
        return functional.normalize(self.head(states), dim=-1), functional.normalize(dense, dim=-1), image

    def queries(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor, Tensor]:
        """Multi-vectors (tokens, MULTI) of all, whose query each is (tokens,), and dense (n, HIDDEN)."""
        rows = [Row(np.array(self.ids(f"Query: {query.text}")), "retrieval") for query in queries]
        states = self.states(rows)
        lengths = torch.tensor([len(row.ids) for row in rows])
        own = torch.arange(states.shape[1]) < lengths[:, None]
        dense = (states * own[..., None]).sum(dim=1) / lengths[:, None]
        owners = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        return functional.normalize(self.head(states[own]), dim=-1), owners, functional.normalize(dense, dim=-1)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)


def page_pixels(rng: np.random.Generator, pages: Sequence[Page], *, varied: bool) -> Tensor:
    """Rows of patches of all pages; varied: rendered at many scales, lit and blurred a little, as pages are."""
    images = []
    for page in pages:
        size = (page.width, page.height)
        if varied and rng.random() < 0.3:
            image = draw_page(page, scale=float(rng.uniform(1, 2.5))).resize(size, Image.Resampling.BICUBIC)
        else:
            image = draw_page(page, scale=2).reduce(2)
        pixels = normalised(image, MEAN, STD)
        if varied:
            pixels = pixels * np.float32(rng.uniform(0.85, 1.05)) + np.float32(rng.normal(0, 0.05))
        images.append(patch_rows(pixels, patch=14, frames=1, merge=2))
    return torch.from_numpy(np.concatenate(images))


# --- what is true --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """gold (tokens, pages * t): where a token of a query should look; asks (tokens,): whether it asks for anything.

    true (queries, pages): of which pages a query is true. cells: of each thing, page by page, the positions among pages * t.
    """

    gold: Tensor
    asks: Tensor
    true: Tensor
    cells: list[Tensor]


def find_truth(pages: Sequence[Page], queries: Sequence[Query], *, image: slice, length: int) -> Truth:
    """length: tokens of a page. Tokens of a query are two of the prefix and one a word."""
    elements = [(n, element) for n, page in enumerate(pages) for element in page.elements]
    cells = np.zeros((len(elements), len(pages), length), dtype=np.float32)
    for i, (n, element) in enumerate(elements):
        cells[i, n, image] = covered(element.box, pages[n]).ravel()
    has = np.array([[e.kind, e.colour, e.word, e.across, e.down] for _, e in elements])
    on = np.equal.outer([n for n, _ in elements], np.arange(len(pages)))
    asked = [wanted for query in queries for wanted in (None, None, *query.asked)]
    asks = np.array([wanted is not None for wanted in asked])
    fits = _fits([astuple(wanted) for wanted in asked if wanted is not None], has)
    gold = np.zeros((len(asked), len(pages) * length), dtype=bool)
    gold[asks] = fits @ cells.reshape(len(elements), -1) > 0
    true = np.ones((len(queries), len(pages)), dtype=bool)
    things = [(n, astuple(thing)) for n, query in enumerate(queries) for thing in query.things]
    np.logical_and.at(true, [n for n, _ in things], _fits([thing for _, thing in things], has) @ on > 0)
    own = [torch.from_numpy(np.flatnonzero(one)) for one in cells.reshape(len(elements), -1)]
    return Truth(torch.from_numpy(gold), torch.from_numpy(asks), torch.from_numpy(true), own)


def _fits(wanted: Sequence[tuple[str, ...]], has: Any) -> Any:
    """(wanted, elements) float32 of 0 and 1: which elements are what is wanted."""
    asked = np.array(wanted)
    fits = np.ones((len(asked), len(has)), dtype=bool)
    for column in range(asked.shape[1]):
        fits &= (asked[:, column, None] == "") | (asked[:, column, None] == has[None, :, column])
    return fits.astype(np.float32)


def _name(words: str) -> Query:
    return Query(tuple(words.split()), (None,) * len(words.split()), ())


_ALL = [*WORDS, "table", *(f"{colour} {kind}" for colour in COLOURS for kind in KINDS if kind != "table")]
NAMED = {name: n for n, name in enumerate(_ALL)}
NAMES = tuple(_name(name) for name in _ALL)  # of all that can stand on a page


# --- the losses ----------------------------------------------------------------------------------------------------------


def losses(network: Network, pages: Sequence[Page], pixels: Tensor, queries: Sequence[Query]) -> dict[str, Tensor]:
    """By their names in WEIGHTS; the queries are as many for each page, page by page."""
    seen = network.see(pages, pixels)
    multi, dense, image = network.pages(pages, seen)
    tokens, owners, query_dense = network.queries(queries)
    shown, right = _names_for(pages)
    names, of_name, _ = network.queries(shown)
    names = names[torch.bincount(of_name).cumsum(0) - 1]  # the last token of each
    truth = find_truth(pages, queries, image=image, length=multi.shape[1])
    for_name, where, for_multi, for_dense = network.scales.clamp(max=math.log(60)).exp()
    home = torch.arange(len(pages)).repeat_interleave(len(queries) // len(pages))
    flat = multi.flatten(0, 1)
    similar = tokens @ flat.T  # (query tokens, pages * t)
    best = similar.view(len(tokens), len(pages), -1).amax(dim=2)
    scores = torch.zeros(len(queries), len(pages)).index_add(0, owners, best) / torch.bincount(owners)[:, None]
    others = truth.true.clone()
    others[torch.arange(len(queries)), home] = False
    return {
        "spelling": _spelled(network.spelling(seen), pages),
        "name": _named(names @ flat.T * for_name, right, truth),
        "where": _where(similar * where, truth, home[owners], image=image, pages=len(pages)),
        "multi": functional.cross_entropy((scores * for_multi).masked_fill(others, -torch.inf), home),
        "dense": functional.cross_entropy((query_dense @ dense.T * for_dense).masked_fill(others, -torch.inf), home),
    }


def _spelled(guesses: Tensor, pages: Sequence[Page]) -> Tensor:
    """Of each cell, which letters stand in it: logits (pages, cells, 26). Per letter there is."""
    there = np.zeros((*guesses.shape[:2], 26), dtype=np.float32)
    for n, page in enumerate(pages):
        for element in (element for element in page.elements if element.word):
            rows = np.flatnonzero(covered(element.box, page).any(axis=1))
            for letter, x in letters(element):
                there[n, rows * (page.width // CELL) + int(x / CELL), ord(letter) - ord("a")] = 1
    found = functional.binary_cross_entropy_with_logits(guesses, torch.from_numpy(there), reduction="sum")
    return found / max(1, there.sum())


def _names_for(pages: Sequence[Page]) -> tuple[list[Query], Tensor]:
    """The names of all things on the pages and others beside them; and for each thing, page by page, which is its own."""
    own = [NAMED[element.word or f"{element.colour} {element.kind}".strip()] for page in pages for element in page.elements]
    others = np.random.default_rng(own).choice(len(NAMES), size=OTHER_NAMES, replace=False)
    shown, right = np.unique([*own, *others], return_inverse=True)
    return [NAMES[n] for n in shown], torch.from_numpy(right[: len(own)])


def _named(similar: Tensor, right: Tensor, truth: Truth) -> Tensor:
    """Among the names, a thing's own is the one that the vectors over it are most similar to. similar (names, pages * t)."""
    over = torch.stack([similar[:, cells].logsumexp(dim=1) for cells in truth.cells])
    return functional.cross_entropy(over, right)


def _where(similar: Tensor, truth: Truth, home: Tensor, *, image: slice, pages: int) -> Tensor:
    """-log of the share that the right vectors have of the exponentials; words that ask nothing count a fifth."""
    length = similar.shape[1] // pages
    page, place = torch.arange(pages).repeat_interleave(length), torch.arange(length).repeat(pages)
    own = page == home[:, None]
    idle = ~truth.asks[:, None]
    right = torch.where(idle, own & (place < image.start), truth.gold & own)
    wrong = torch.where(idle, (place >= image.start) & (place < image.stop), ~truth.gold)
    right_sum = similar.masked_fill(~right, -torch.inf).logsumexp(dim=1)
    wrong_sum = similar.masked_fill(~wrong, -torch.inf).logsumexp(dim=1)
    weight = torch.where(truth.asks, 1.0, 0.2)
    return (functional.softplus(wrong_sum - right_sum) * weight).sum() / weight.sum()


# --- the files -----------------------------------------------------------------------------------------------------------


def write_encoder(folder: Path, network: Network) -> None:
    """The published layout, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = network.model.state_dict() | {"visual.patch_embed.proj.weight": network.model.visual.patch_embed.both_frames()}
    weights = {
        name.replace("language_model.", "model.", 1): weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in state.items()
    }
    head = {f"multi_vector_projector.{name}": weight.to(torch.bfloat16) for name, weight in network.head.state_dict().items()}
    save_file(weights | head, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "adapters").mkdir(exist_ok=True)
    save_file(_adapters(network), folder / "adapters" / "adapter_model.safetensors", metadata={"format": "pt"})
    network.tokenizer.save(str(folder / "tokenizer.json"))
    text = text_config(network.vocabulary) | {"rope_theta": ROPE["rope_theta"]}
    text |= {"rope_scaling": {"mrope_section": ROPE["mrope_section"], "rope_type": "default", "type": "default"}}
    ids = {f"{name}_token_id": network.tokenizer.token_to_id(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {"image_token_id": network.pad, "vision_token_id": network.tokenizer.token_to_id("<|vision_pad|>")}
    ids |= {"video_token_id": network.tokenizer.token_to_id("<|video_pad|>")}
    own = {
        "architectures": ["JinaEmbeddingsV4Model"], "matryoshka_dims": [HIDDEN], "model_type": "qwen2_5_vl",
        "multi_vector_projector_dim": MULTI, "single_vector_pool_strategy": "mean", "task_names": list(TASKS),
        "torch_dtype": "bfloat16", "truncate_dim": None, "vision_config": VISION,
        "text_config": text | {"model_type": "qwen2_5_vl_text"},
    }  # fmt: skip
    _write_json(folder / "config.json", text | ids | own)
    _write_json(folder / "preprocessor_config.json", {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN,
        "image_processor_type": "Qwen2VLImageProcessor", "image_std": STD, "max_pixels": MAX_PIXELS, "merge_size": 2,
        "min_pixels": 4 * CELL * CELL, "patch_size": 14, "resample": 3, "rescale_factor": 1 / 255, "temporal_patch_size": 2,
    })  # fmt: skip
    _write_json(folder / "adapters" / "adapter_config.json", {
        "bias": "none", "exclude_modules": ".*visual.*", "lora_alpha": RANK, "lora_dropout": 0.0, "peft_type": "LORA",
        "r": RANK, "target_modules": [*(name.split(".")[1] for name in ADAPTED), "multi_vector_projector"],
        "task_type": "FEATURE_EXTRACTION",
    })  # fmt: skip


def _adapters(network: Network) -> dict[str, Tensor]:
    """Of no effect: B is zero."""
    modules = {
        f"model.language_model.layers.{layer}.{name}": network.model.language_model.layers[layer].get_submodule(name)
        for layer in range(LAYERS)
        for name in ADAPTED
    } | {"multi_vector_projector": network.head}
    tensors = {}
    for module, linear in modules.items():
        out, wide = linear.weight.shape
        for task in TASKS:
            tensors[f"base_model.model.{module}.lora_A.{task}.weight"] = torch.zeros(RANK, wide, dtype=torch.bfloat16)
            tensors[f"base_model.model.{module}.lora_B.{task}.weight"] = torch.zeros(out, RANK, dtype=torch.bfloat16)
    return tensors


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- training ------------------------------------------------------------------------------------------------------------


def batch(rng: np.random.Generator, *, progress: float) -> tuple[list[Page], list[Query]]:
    """Pages of one size, and as many queries for each: parts of pages first, full of words, then whole pages."""
    short = progress < SHORT
    columns, rows = ((8, 4), (6, 5), (4, 8))[int(rng.integers(3))] if short else (COLUMNS, ROWS)
    count, each = (24, 2) if short else (10, 4)
    seeds = rng.integers(1_000_000, size=count)
    figures = [float(rng.choice([0.15, 0.45, 0.75])) for _ in seeds]
    pages = [
        make_page(int(seed), columns=columns, rows=rows, figures=share, gap=float(rng.uniform(0, 1)))
        for seed, share in zip(seeds, figures, strict=True)
    ]
    return pages, [make_query(rng, page, places=not short) for page in pages for _ in range(each)]


def held_out(network: Network, *, pages: int = 48) -> tuple[float, float]:
    """hit@1 of multi and dense among pages never trained on, for a glance; `evaluate.py` has the figures."""
    rng = np.random.default_rng(0)
    own = [make_page(2_000_000 + n) for n in range(pages)]
    queries = [make_query(rng, page) for page in own for _ in range(3)]
    with torch.inference_mode():
        groups = [own[n : n + 16] for n in range(0, pages, 16)]
        parts = [network.pages(group, network.see(group, page_pixels(rng, group, varied=False))) for group in groups]
        multi, dense = (torch.cat([part[i] for part in parts]) for i in range(2))
        tokens, owners, query_dense = network.queries(queries)
    best = (tokens @ multi.flatten(0, 1).T).view(len(tokens), pages, -1).amax(dim=2)
    scores = torch.zeros(len(queries), pages).index_add(0, owners, best), query_dense @ dense.T
    firsts = [score.argmax(dim=1).tolist() for score in scores]
    multi_hits, dense_hits = ([query.true_of(own[n]) for query, n in zip(queries, first, strict=True)] for first in firsts)
    return float(np.mean(multi_hits)), float(np.mean(dense_hits))


def make_optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within the layers, AdamW for what reads and writes the residual stream, and for vectors."""
    inner, outer, vectors = [], [], []
    for name, weight in network.named_parameters():
        within = weight.ndim == 2 and (".layers." in name or ".blocks." in name or ".merger." in name)
        (inner if within else outer if weight.ndim > 1 else vectors).append(weight)
    groups = [{"params": outer, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(inner, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98)),
    ]


def train(out: Path, *, minutes: float, seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng([16, seed])
    network = Network(make_tokenizer())
    print(f"{sum(weight.numel() for weight in network.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizers = make_optimizers(network)
    started = saved = time.monotonic()
    recent: list[list[float]] = []
    step = seen = 0
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * math.cos(math.pi / 2 * progress) ** 2)
        pages, queries = batch(rng, progress=progress)
        recent.append(learn(network, optimizers, pages, page_pixels(rng, pages, varied=True), queries))
        step, seen = step + 1, seen + len(pages)
        if step % 50 == 0:
            means = "  ".join(f"{name} {mean:.3f}" for name, mean in zip(WEIGHTS, np.mean(recent, axis=0), strict=True))
            print(f"{progress:6.1%}  step {step}  {seen} pages  {means}", flush=True)
            recent = []
        if time.monotonic() - saved > SAVE_EVERY:
            save(out, network)
            saved = time.monotonic()
    print(f"{step} steps, {seen} pages")
    save(out, network)


def learn(
    network: Network, optimizers: Sequence[torch.optim.Optimizer], pages: Sequence[Page], pixels: Tensor, queries: Sequence[Query]
) -> list[float]:
    """One step; the losses before it, in the order of WEIGHTS."""
    parts = losses(network, pages, pixels, queries)
    network.zero_grad()
    sum(weight * parts[name] for name, weight in WEIGHTS.items()).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return [float(parts[name].detach()) for name in WEIGHTS]


def save(out: Path, network: Network) -> None:
    write_encoder(out, network)
    multi, dense = held_out(network)
    print(f"        hit@1 of 48 pages never seen: multi {multi:.3f}, dense {dense:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.out, minutes=args.minutes, seed=args.seed)


if __name__ == "__main__":
    main()

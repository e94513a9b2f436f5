"""How fast jina-embeddings-v4 and jina-clip-v1 run in their full published sizes, and in how much memory.

    python benchmarks/vision.py v4 [--device cpu] [--max-pixels 602112] [--batch 1] [--layers 36] [--folder KEEP]
    python benchmarks/vision.py clip [--device cpu] [--batch 8]

Weights are random, in exactly the published layout: speed and memory depend on sizes alone. v4's files take 8 GB of disk; they
are written to --folder, if given, and found there again. Reported are pages (A4 scans, 1,654 x 2,339) and tokens a second, of
processor time on the CPU and of wall time on a GPU, and both times; the memory taken beside the mapped files, or the device's
peak; the arithmetic in TFLOP/s and as a share of what large matrix products reach in the same run; and the same pages without
adapters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from ragkit.encode import load_encoder
from ragkit.encode.models import jina_v4_model
from ragkit.encode.models.jina_clip_files import ClipShape, TextShape, VisionShape
from ragkit.encode.models.jina_v4 import _resizing
from ragkit.encode.models.jina_v4_files import V4Settings, _adapter_shapes

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|unused_{i}|>" for i in range(6)), "<|vision_start|>"]
SPECIALS += ["<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
FIRST_SPECIAL = 151643
Times = tuple[float, float]  # wall, processor


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Random numbers of deviation 0.02, the same few million again and again."""
    width = {"BF16": 2, "F32": 4}[kind]
    block = (np.random.default_rng(0).normal(size=1 << 22) * 0.02).astype(np.float32)
    content = (block.view(np.uint32) >> 16).astype(np.uint16).tobytes() if kind == "BF16" else block.tobytes()
    header, end = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * width
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        while end > 0:
            end -= file.write(content[: min(end, len(content))])


def write_v4(folder: Path, *, layers: int) -> None:
    text = {
        "hidden_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 2,
        "intermediate_size": 11008, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": {"mrope_section": [16, 24, 24]},
        "vocab_size": 151936, "max_position_embeddings": 128000,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        "in_channels": 3,
    }  # fmt: skip
    ids = {"image_token_id": 151655, "vision_start_token_id": 151652, "vision_end_token_id": 151653}
    own = {"multi_vector_projector_dim": 128, "matryoshka_dims": [128, 256, 512, 1024, 2048]}
    own["task_names"] = ["retrieval", "text-matching", "code"]
    write_json(folder / "config.json", text | ids | own | {"vision_config": vision})
    pixels = {"min_pixels": 3136, "max_pixels": 602112, "image_mean": MEAN, "image_std": STD}
    write_json(folder / "preprocessor_config.json", pixels)
    write_json(folder / "adapters" / "adapter_config.json", {"peft_type": "LORA", "r": 32, "lora_alpha": 32})
    settings = V4Settings.read(folder)
    model = jina_v4_model._on_meta(settings, flash=False)
    shapes = {jina_v4_model._published(name): tuple(weight.shape) for name, weight in model.state_dict().items()}
    shapes |= {"multi_vector_projector.weight": (128, 2048), "multi_vector_projector.bias": (128,)}
    write_tensors(folder / "model.safetensors", shapes, "BF16")
    write_tensors(folder / "adapters" / "adapter_model.safetensors", _adapter_shapes(settings), "BF16")
    bytes_ = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = bytes_ | {f"unused{i}": i for i in range(len(bytes_), FIRST_SPECIAL)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_clip(folder: Path) -> None:
    vision = {"width": 768, "layers": 12, "head_width": 64, "image_size": 224, "patch_size": 16, "mlp_ratio": 2.6667}
    write_json(
        folder / "config.json",
        {"model_type": "jina_clip", "projection_dim": 768, "text_config": {}, "vision_config": vision | {"embed_dim": 768}},
    )
    pixels = {"size": 224, "resize_mode": "shortest", "interpolation": "bicubic", "mean": MEAN, "std": STD}
    write_json(folder / "preprocessor_config.json", pixels)
    shape = ClipShape(
        text=TextShape(),
        vision=VisionShape(**vision),
        projection_dim=768,
        add_projections=False,
        mean=tuple(MEAN),
        std=tuple(STD),
    )
    write_tensors(folder / "model.safetensors", shape.tensors(), "F32")
    names = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def page(seed: int) -> Image.Image:
    """An A4 page at 200 dpi, grey noise where its lines are."""
    pixels = np.full((2339, 1654), 255, dtype=np.uint8)
    rng = np.random.default_rng(seed)
    for top in range(150, 2150, 40):
        pixels[top : top + 20, 150:1500] = rng.integers(0, 256, (20, 1350))
    return Image.fromarray(pixels)


class Meter:
    """Seconds of one call, and memory: by processor on the CPU, by wall on a GPU, whose work is waited for."""

    def __init__(self, device: str) -> None:
        self.gpu = device.startswith("cuda")
        self.which = 0 if self.gpu else 1  # of (wall, processor): other work on the machine lengthens the one, not the other

    def seconds(self, work: Callable[[], Any]) -> tuple[float, float]:
        """(wall, processor)"""
        if self.gpu:
            torch.cuda.synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        work()
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - wall, time.process_time() - processor

    def memory(self) -> int:
        """Bytes: the device's peak since the last call, or this process's own (mapped files apart)."""
        if self.gpu:
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return peak
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def matrix_rate(device: str, dtype: torch.dtype, meter: Meter) -> float:
    """TFLOP/s of a large product: the best of some."""
    n = 8192 if meter.gpu else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = [meter.seconds(lambda: a @ b) for _ in range(6)]
    return 2 * n**3 / min(one[meter.which] for one in times[1:]) / 1e12


def work_of(shapes: Mapping[str, tuple[int, ...]], tokens: int) -> float:
    """TFLOP of the matrix products with weights for so many tokens."""
    return sum(2 * tokens * int(np.prod(shape)) for name, shape in shapes.items() if len(shape) > 1) / 1e12


def report(meter: Meter, name: str, count: int, unit: str, times: list[Times], tflop: float, rate: float, memory: int) -> None:
    wall, processor = statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)
    own = (wall, processor)[meter.which]
    line = f"{name:34} {count / own:10.3f} {unit}/s  {wall / count:8.3f} s a {unit} ({processor / count:.3f} of processor)"
    print(f"{line}  {tflop / own:6.3f} TFLOP/s = {tflop / own / rate:.0%}  {memory / 1e9:6.2f} GB", flush=True)


def measure_v4(folder: Path, options: argparse.Namespace) -> None:
    meter = Meter(options.device)
    before = meter.memory()
    wall, _ = meter.seconds(lambda: globals().__setitem__("ENCODER", load_encoder(folder, device=options.device)))
    encoder: Any = globals()["ENCODER"]
    files = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"loaded in {wall:.1f} s, {(meter.memory() - before) / 1e9:.2f} GB beside {files / 1e9:.2f} GB of files")
    rate = matrix_rate(options.device, torch.bfloat16, meter)
    print(f"matrix products in bfloat16 reach {rate:.2f} TFLOP/s")
    weights = {name: tuple(weight.shape) for name, weight in encoder._network._model.state_dict().items()}
    language = {name: shape for name, shape in weights.items() if name.startswith("language_model.layers")}
    vision = {name: shape for name, shape in weights.items() if name.startswith("visual.blocks")}
    for batch in options.batch:
        for most in options.max_pixels:
            pages = [page(seed) for seed in range(batch)]
            resizing = _resizing(encoder._settings.resizing, most)
            prepared = encoder._prepare(pages, ["retrieval.passage"] * batch, truncate=False, resizing=resizing)
            tokens = sum(len(one.row.ids) for one in prepared)
            work = work_of(language, tokens) + work_of(vision, 4 * tokens)
            name = f"{batch} pages of {most:,} pixels"

            def run(pages: list[Image.Image] = pages, most: int = most) -> Any:
                return encoder.encode_document(pages, max_pixels=most)

            times = [meter.seconds(run) for _ in range(options.rounds)]
            report(meter, name, batch, "page", times, work, rate, meter.memory() - (0 if meter.gpu else before))
            with_adapters, jina_v4_model._runs = jina_v4_model._runs, lambda rows: []
            times = [meter.seconds(run) for _ in range(options.rounds)]
            jina_v4_model._runs = with_adapters
            report(meter, "  without adapters", batch, "page", times, work, rate, meter.memory() - (0 if meter.gpu else before))
    for batch in options.batch:
        texts = ["x" * (options.tokens - 9)] * batch
        count = int(encoder.count_tokens(texts).sum())
        times = [meter.seconds(lambda texts=texts: encoder.encode_document(texts)) for _ in range(options.rounds)]
        memory = meter.memory() - (0 if meter.gpu else before)
        report(meter, f"{batch} texts of {options.tokens} tokens", count, "token", times, work_of(language, count), rate, memory)


def measure_clip(folder: Path, options: argparse.Namespace) -> None:
    meter = Meter(options.device)
    before = meter.memory()
    encoder: Any = load_encoder(folder, device=options.device)
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix products in {dtype} reach {matrix_rate(options.device, dtype, meter):.2f} TFLOP/s")
    rate = matrix_rate(options.device, encoder._towers._placed[encoder.card.dtype][0].dtype, meter)
    shapes = encoder._towers.shape.vision.tensors(), encoder._towers.shape.text.tensors()
    blocks, layers = ({k: v for k, v in one.items() if "blocks" in k or "encoder" in k} for one in shapes)
    for batch in options.batch:
        pages = [page(seed) for seed in range(batch)]
        encoder.encode_document(pages[:1])
        times = [meter.seconds(lambda pages=pages: encoder.encode_document(pages)) for _ in range(options.rounds)]
        memory = meter.memory() - (0 if meter.gpu else before)
        report(meter, f"{batch} images", batch, "image", times, work_of(blocks, 197 * batch), rate, memory)
        small = [one.resize((300, 300)) for one in pages]
        times = [meter.seconds(lambda small=small: encoder.encode_document(small)) for _ in range(options.rounds)]
        report(meter, f"{batch} images of 300 x 300", batch, "image", times, work_of(blocks, 197 * batch), rate, memory)
        texts = ["x " * (options.tokens - 2)] * batch
        count = int(encoder.count_tokens(texts).sum())
        times = [meter.seconds(lambda texts=texts: encoder.encode_document(texts)) for _ in range(options.rounds)]
        memory = meter.memory() - (0 if meter.gpu else before)
        report(meter, f"{batch} texts of {options.tokens} tokens", count, "token", times, work_of(layers, count), rate, memory)


def folder_of(options: argparse.Namespace) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        if not (folder / "tokenizer.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_v4(folder, layers=options.layers) if options.model == "v4" else write_clip(folder)
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["v4", "clip"], nargs="?", default="clip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--max-pixels", type=int, nargs="+", default=[602112])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--folder")
    options = parser.parse_args()
    for folder in folder_of(options):
        (measure_v4 if options.model == "v4" else measure_clip)(folder, options)


if __name__ == "__main__":
    main()

"""Page retrievers of other houses, tiny and random, as transformers and sentence-transformers save them.

colpali: a square grid, image tokens first. colqwen2, colqwen2.5: a grid of any shape behind a prompt. tiles: Idefics3 behind a
chat template, tiles of 4 x 4 tokens by rows and then the whole picture in as many. cut: every layer that mixes tokens adds
nothing, so that a token knows its own pixels alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

Kind = Literal["colpali", "colqwen2", "colqwen2.5", "tiles"]
WORDS = [
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "a",
    "b",
    "c",
    "red",
    "Describe",
    "the",
    "image",
    ".",
    ":",
    "Question",
    "Query",
    "user",
]
QWEN = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TILED = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<|begin_of_text|>"]
TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}{{message['role']}} : {% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{line['text']}}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>{% endfor %}"
)
MIXING = re.compile(r".*(attn\.proj|o_proj|out_proj)")
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_retriever(folder: Path, kind: Kind, *, cut: bool = False, keep_image_tokens: bool = False) -> Path:
    """keep_image_tokens: only they become vectors (colpali, tiles)."""
    import torch

    torch.manual_seed(0)
    make = {"colpali": _colpali, "colqwen2": _colqwen, "colqwen2.5": _colqwen, "tiles": _tiles}[kind]
    model, processor = make(kind)
    if cut:
        _cut(model)
    base = folder / "base"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    if kind != "tiles" and not keep_image_tokens:
        return base
    return _with_modules(
        folder, base, project=kind == "tiles", image_token=processor.image_token_id if keep_image_tokens else None
    )


def _cut(model: Any) -> None:
    import torch

    found = [module for name, module in model.named_modules() if MIXING.fullmatch(name) and isinstance(module, torch.nn.Linear)]
    assert found
    for module in found:
        module.weight.data.zero_()
        if module.bias is not None:
            module.bias.data.zero_()


def _with_modules(folder: Path, base: Path, *, project: bool, image_token: int | None) -> Path:
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    at = {"module_input_name": "token_embeddings"}
    mask = MultiVectorMask(keep_only_token_ids=None if image_token is None else [image_token])
    if project:
        projection = Dense(16, 8, bias=False, activation_function=None, **at)
        modules = [Transformer(str(base)), projection, mask, Normalize(**at)]
    else:
        modules = [MultiVectorEncoder(str(base), device="cpu", local_files_only=True)[0], mask]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder / "saved"))
    return folder / "saved"


def _tokenizer(specials: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    own.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*WORDS[:4], *specials]])
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", model_max_length=400
    )


def _colpali(_: Kind) -> tuple[Any, Any]:
    from transformers import ColPaliConfig, ColPaliForRetrieval, ColPaliProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = _tokenizer(["<image>"])
    text = TEXT | {"model_type": "gemma", "head_dim": 8, "vocab_size": len(tokenizer) + 1200}
    vision = VISION | {"model_type": "siglip_vision_model", "image_size": 70, "patch_size": 14, "vision_use_head": False}
    vlm = {"model_type": "paligemma", "text_config": text, "vision_config": vision | {"projection_dim": 16}, "hidden_size": 16}
    vlm |= {"projection_dim": 16, "image_token_index": tokenizer.convert_tokens_to_ids("<image>")}
    images = SiglipImageProcessorPil(size={"height": 70, "width": 70}, image_seq_length=25)
    model = ColPaliForRetrieval(ColPaliConfig(vlm_config=vlm, embedding_dim=8))
    return model, ColPaliProcessor(images, tokenizer)


def _colqwen(kind: Kind) -> tuple[Any, Any]:
    from transformers import ColQwen2Config, ColQwen2ForRetrieval, ColQwen2Processor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(QWEN)
    ids = dict(zip(QWEN, tokenizer.convert_tokens_to_ids(QWEN), strict=True))
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    own = {"vocab_size": len(tokenizer) + 3, "rope_parameters": rope, "bos_token_id": 2, "eos_token_id": 3}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if kind == "colqwen2":
        vision |= {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 16, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1]}
    name = {"colqwen2": "qwen2_vl", "colqwen2.5": "qwen2_5_vl"}[kind]
    vlm = {"model_type": name, "text_config": TEXT | own | {"model_type": f"{name}_text"}, "vision_config": vision}
    vlm |= {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]}
    vlm |= {"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]}
    images = Qwen2VLImageProcessorPil(min_pixels=4 * 784, max_pixels=24 * 784)
    model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=vlm, embedding_dim=8))
    return model, ColQwen2Processor(images, tokenizer)


def _tiles(_: Kind) -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3Model, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = _tokenizer([*TILED, *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))])
    text = TEXT | {"model_type": "llama", "vocab_size": len(tokenizer) + 3, "max_position_embeddings": 2048, "pad_token_id": 0}
    vision = VISION | {"image_size": 64, "patch_size": 8}
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = Idefics3Config(text_config=text, vision_config=vision, image_token_id=image_token, scale_factor=2)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 256}, max_image_size={"longest_edge": 64})
    return Idefics3Model(config), Idefics3Processor(images, tokenizer, image_seq_len=16, chat_template=TEMPLATE)


def write_clip(folder: Path) -> Path:
    """Random CLIP with 12 dims, 32 pixels and an alphabet."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    letters = [chr(i) for i in range(97, 123)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 12}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], model_max_length=20, unk_token="<|endoftext|>"
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder

"""Tiny tokenizers of the three published kinds, made from the corpus: the same on every run, and the same ids for specials."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.encode.checkpoints.corpus import SENTENCES
from tests.encode.checkpoints.stored import read_json, write_json


def _frequent_pieces(words: Counter[str], count: int) -> Counter[str]:
    """Every character of the words, and the most frequent of their longer pieces up to `count` in all."""
    characters: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    for word, times in words.items():
        for start in range(len(word)):
            characters[word[start]] += times
            for end in range(start + 2, len(word) + 1):
                pieces[word[start:end]] += times * (end - start)  # by how much text it covers
    longest = sorted(pieces, key=lambda piece: (-pieces[piece], piece))[: count - len(characters)]
    return characters + Counter({piece: pieces[piece] for piece in longest})


def write_unigram(folder: Path, *, max_tokens: int = 8194, pieces: int = 420) -> int:
    """XLM-R's kind (SentencePiece Unigram, `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` last); returns its size."""
    words = Counter("▁" + word for sentence in SENTENCES for word in sentence.split())
    counts = _frequent_pieces(words, pieces)
    total = sum(counts.values())
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece, math.log(counts[piece] / total)) for piece in sorted(counts, key=lambda piece: (-counts[piece], piece))]
    vocab += [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in specials] + [AddedToken("<mask>", lstrip=True, special=True)]
    )
    names: dict[str, Any] = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    names |= {"pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    settings = {"clean_up_tokenization_spaces": True, "model_max_length": max_tokens, "tokenizer_class": "XLMRobertaTokenizer"}
    _write(folder, tokenizer, settings | names, names)
    return tokenizer.get_vocab_size()


def write_wordpiece(folder: Path, *, max_tokens: int = 512, pieces: int = 400) -> int:
    """BERT's uncased kind (WordPiece, `[PAD]` 0, `[UNK]` 100, `[CLS]` 101, `[SEP]` 102, `[MASK]` 103); returns its size."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for sentence in SENTENCES:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence)))
    characters = sorted(set("".join(words)))
    frequent = _frequent_pieces(words, pieces)
    longer = sorted((piece for piece in frequent if len(piece) > 1), key=lambda piece: (-frequent[piece], piece))
    vocab = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *longer]
    vocab += [f"##{piece}" for piece in [*characters, *longer[:60]]]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    names: dict[str, Any] = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    names |= {"unk_token": "[UNK]"}
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")])
    settings = {"clean_up_tokenization_spaces": True, "do_lower_case": True, "model_max_length": max_tokens}
    settings |= {"strip_accents": None, "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer"}
    _write(folder, tokenizer, settings | names, names)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    return len(vocab)


# In the published order; the first one's id is the size of the byte-pair vocabulary. The last eight count as plain text.
QWEN_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>",
)  # fmt: skip
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_byte_pairs(folder: Path, *, max_tokens: int = 131072, pieces: int = 420) -> dict[str, int]:
    """Qwen2's kind (byte-level BPE, no token before or after a text); returns the ids of QWEN_TOKENS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_TOKENS[:14]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in QWEN_TOKENS[14:]])
    names: dict[str, Any] = {"additional_special_tokens": list(QWEN_TOKENS[1:14]), "eos_token": "<|im_end|>"}
    names |= {"pad_token": "<|endoftext|>"}
    settings = {"add_bos_token": False, "add_prefix_space": False, "bos_token": None, "chat_template": CHAT_TEMPLATE}
    settings |= {"clean_up_tokenization_spaces": False, "errors": "replace", "model_max_length": max_tokens}
    settings |= {"split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    _write(folder, tokenizer, settings | names, names)
    model = read_json(folder / "tokenizer.json")["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    ids = {token: tokenizer.token_to_id(token) for token in QWEN_TOKENS}
    write_json(folder / "added_tokens.json", ids)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return ids


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)


def _write(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], specials: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {str(i): _added(token) for i, token in sorted(tokenizer.get_added_tokens_decoder().items())}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added} | settings)
    write_json(folder / "special_tokens_map.json", specials)


def _added(token: AddedToken) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}

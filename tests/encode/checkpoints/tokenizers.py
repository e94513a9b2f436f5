"""Tiny tokenizers of the three published kinds, made from the corpus: the same on every run, and the same ids for specials."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.encode.checkpoints.corpus import SENTENCES
from tests.encode.checkpoints.stored import write_json


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


def _write(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], specials: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {str(i): _added(token) for i, token in sorted(tokenizer.get_added_tokens_decoder().items())}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added} | settings)
    write_json(folder / "special_tokens_map.json", specials)


def _added(token: AddedToken) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}

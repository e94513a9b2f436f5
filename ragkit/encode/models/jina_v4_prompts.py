"""The fixed words around jina-embeddings-v4's inputs, as token ids; the rules stand in `jina_v4.py`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ragkit.core.errors import CheckpointError
from ragkit.encode.models.jina_v4_files import V4Settings
from ragkit.encode.tokens import Tokenizer

BEFORE = "<|im_start|>user\n<|vision_start|>"
AFTER = "<|im_end|>\n"
DESCRIBE = "Describe the image."


class Prompts:
    """Inputs as token ids. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, settings: V4Settings) -> None:
        """Raise CheckpointError for a tokenizer that adds tokens of its own or lacks those of the prompt."""
        self.tokenizer = tokenizer
        self.before, self.after = tokenizer.ids([BEFORE, AFTER])
        self.pad, self.end = settings.image_token, settings.vision_end
        whole = tokenizer.ids([f"{BEFORE}<|image_pad|><|vision_end|>"])[0]
        rows = settings.text["vocab_size"]
        if tokenizer.special_count or whole.tolist()[-3:] != [settings.vision_start, self.pad, self.end]:
            raise CheckpointError(
                "tokenizer.json is not this model's: it adds tokens to a text, or its ids of <|vision_start|>, "
                "<|image_pad|> and <|vision_end|> are not those in config.json. Fetch the model again"
            )
        if tokenizer.vocabulary_size > rows:
            raise CheckpointError(
                f"tokenizer.json has {tokenizer.vocabulary_size} tokens, config.json has {rows}: they belong to different models"
            )

    @staticmethod
    def prefix(task: str) -> str:
        """Return the words that stand before a text, by the full task."""
        return "Passage: " if task.endswith(".passage") else "Query: "

    def with_image(self, words: npt.NDArray[np.int32], high: int, wide: int) -> npt.NDArray[np.int32]:
        """Return the prompt around high * wide image tokens, with the ids of a text or of DESCRIBE behind them."""
        image = np.full(high * wide, self.pad, dtype=np.int32)
        return np.concatenate([self.before, image, np.array([self.end], dtype=np.int32), words, self.after])

"""Classification of pictures without training: which of some words describes each one best?

python examples/images/classify.py MODEL "cat, dog, page of text" IMAGE...

MODEL sees texts and images: a folder with jina-clip-v1's files, or its hub id. Words become a sentence, as in the captions that
such models learned from; the probabilities are the model's own, from the scale that was trained with it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from ragkit import load_encoder

SENTENCE = "a photo of a {}"
SCALE = 30.0  # for models that bring none


def main(model: str, labels: Sequence[str], paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """By path, the probability of each label."""
    encoder = load_encoder(model)
    sentences = encoder.encode_query([SENTENCE.format(label) for label in labels]).dense
    with ExitStack() as files:
        pictures = encoder.encode_document([files.enter_context(Image.open(path)) for path in paths]).dense
    logits = getattr(encoder, "logit_scale", SCALE) * pictures @ sentences.T
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    found = {str(path): dict(zip(labels, row.tolist(), strict=True)) for path, row in zip(paths, shares, strict=True)}
    for path, row in found.items():
        best = sorted(row.items(), key=lambda item: -item[1])
        print(path, *(f"{label} {share:.1%}" for label, share in best[:3]), sep="  ")
    return found


if __name__ == "__main__":
    main(sys.argv[1], [label.strip() for label in sys.argv[2].split(",")], [Path(path) for path in sys.argv[3:]])

"""Classification from a few examples a class: a new text goes to the class whose examples' mean is nearest.

python examples/tasks/classification.py [MODEL]
"""

from __future__ import annotations

import sys

import numpy as np

from ragkit import load_encoder

EXAMPLES = {
    "billing": ["I was charged twice this month.", "Please send me the invoice for March.", "My refund has not arrived yet."],
    "login": ["I forgot my password.", "The code for signing in never comes.", "My account is locked after three attempts."],
    "shipping": ["Where is my parcel?", "The package arrived damaged.", "Can you deliver to another address?"],
}
NEW = {
    "The courier left my order with a neighbour I do not know.": "shipping",
    "Two-factor authentication rejects every number I type.": "login",
    "Why is there a fee on my credit card statement?": "billing",
    "I cannot get into my profile any more.": "login",
}


def main(model: str = "default") -> dict[str, str]:
    """The class of each new text."""
    encoder = load_encoder(model)
    centres = np.stack([encoder.encode(texts, task="classification").dense.mean(axis=0) for texts in EXAMPLES.values()])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    scores = encoder.encode(list(NEW), task="classification").dense @ centres.T
    found = {text: list(EXAMPLES)[best] for text, best in zip(NEW, scores.argmax(axis=1), strict=True)}
    for text, name in found.items():
        print(f"{name:10}{text}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])

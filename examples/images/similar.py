"""Pictures like a picture, and a picture by words: a folder of images, ranked for an image or a sentence.

python examples/images/similar.py MODEL FOLDER IMAGE
python examples/images/similar.py MODEL FOLDER "a red lighthouse"

MODEL sees texts and images: a folder with the files of jina-clip-v1 or jina-embeddings-v4, or a hub id. Pictures that cannot be
read are named and left out.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from PIL import Image

from ragkit import load_encoder
from ragkit.core.errors import EncodeError

KINDS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(model: str, folder: Path, query: str, k: int = 5) -> list[tuple[str, float]]:
    """The k best pictures of the folder, each with its cosine."""
    encoder, rows = load_encoder(model), {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS):
        try:
            with Image.open(path) as image:
                rows[path.relative_to(folder).as_posix()] = encoder.encode_document([image]).dense[0]
        except (EncodeError, OSError) as error:
            print(f"{path} is left out: {error}", file=sys.stderr)
    with Image.open(query) if Path(query).is_file() else nullcontext(query) as asked:
        vector = encoder.encode_query([asked]).dense[0]
    found = sorted(((name, float(row @ vector)) for name, row in rows.items()), key=lambda one: -one[1])[:k]
    for name, score in found:
        print(f"{score:.3f}  {name}")
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

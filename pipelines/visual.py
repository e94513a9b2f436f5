"""Scans, charts and slides become an index that finds pages by what they look like, and says where on the page it is.

    python examples/visual/pages.py scans          # twelve pages to try it on, none with a text to read
    python pipelines/visual.py INDEX scans "purple star" "page about delivery" "table and orange pie chart"

What to take from it: `pages="all"` looks at every page, of PDFs and of pictures; the model that sees pages may be another
than the one that reads text; `mode="page.multi"` asks the images alone, by late interaction, and without it text and images
are ranked together. The boxes of a visual hit are the patches of the page that matched the words of the query.

The model is the small one that `examples/visual/train.py` made, which knows what `examples/visual/pages.py` draws and
nothing else. For pages of your own, name one that was trained on such: `--model FOLDER`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ragkit import Index

SMALL = Path(__file__).parents[1] / "examples" / "visual" / "encoder"


def main(folder: str, documents: str, questions: Sequence[str], *, model: str = str(SMALL)) -> None:
    with Index.open(folder, pages="all", page_model=model) as index:
        report = index.add(documents)
        print(report)
        for failed in report.failed:
            print(f"  not added: {failed.source}: {failed.reason}")
        for question, hits in zip(questions, index.search_many(questions, k=2, mode="page.multi"), strict=True):
            print(f"\n{question}")
            for hit in hits:
                print(f"   {hit.rank}. {hit.citation}   {hit.score:.3f} {hit.scale}")
                for box in hit.boxes:
                    x0, y0, x1, y1 = box.box
                    size = f"{box.page_width:.0f} x {box.page_height:.0f} points"
                    print(f"      {x0:.0f}, {y0:.0f} to {x1:.0f}, {y1:.0f} of {size}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("index")
    parser.add_argument("documents")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--model", default=str(SMALL))
    args = parser.parse_args()
    main(args.index, args.documents, args.questions, model=args.model)

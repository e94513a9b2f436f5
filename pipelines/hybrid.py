"""PDFs with text and charts become an index that is asked for both, and shows on the page what it found.

    python pipelines/hybrid.py INDEX FOLDER "a question" [PAGE_MODEL [EVIDENCE.png]]

What to take from it: one encoder embeds the text, another sees the pages, and one question is asked of both; a page that is found
by its words and by its picture is one hit with both reasons; the evidence of a picture is where on it the model looked. The
encoder of pages here is the small one of examples/visual, which knows charts, shapes, colours and some printed words. For work,
name a larger one: jinaai/jina-embeddings-v4, jinaai/jina-clip-v1, a ColPali or ColQwen.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ragkit import Hit, Index
from ragkit.apps.show import evidence, page_png

SEES = str(Path(__file__).parents[1] / "examples" / "visual" / "encoder")


def main(folder: str, documents: str, question: str, page_model: str = SEES, picture: str = "evidence.png") -> None:
    with Index.open(folder, pages="auto", page_model=page_model) as index:
        report = index.add(documents)
        print(report)
        for outcome in (*report.added, *report.updated):
            for warning in outcome.warnings:
                print(f"  {outcome.source}: {warning}")  # a page that could not be seen is one of these

        hits = index.search(question, k=3)
        for hit in hits:
            print(f"\n{hit.rank}. {hit.citation}  ({hit.kind})")
            print("   " + " ".join(hit.text.split())[:200])
            for reason in hit.via:
                print(f"   found by {reason.space}, number {reason.rank} there")
        if hits:
            show(index, hits[0], question, Path(picture))


def show(index: Index, hit: Hit, question: str, picture: Path) -> None:
    """The page of a hit as a picture: with a heat map where its image was found, else with its words boxed."""
    seen = next((reason.key or hit.key for reason in hit.via if reason.space == "page.multi"), hit.key)
    found = evidence(index, str(seen), query=question)
    picture.write_bytes(page_png(index, found, page=found.pages[0]))
    print(f"\nwrote {picture}: p. {found.pages[0]}, {found.boxes_on(found.pages[0])} boxes")


if __name__ == "__main__":
    main(*sys.argv[1:6])

"""A folder of PDFs, Markdown, HTML and text becomes an index that cites page and box.

    python pipelines/mixed_folder.py INDEX FOLDER "a question"

What to take from it: `structure` keeps headings and table rows whole; a document that fails is reported and the rest goes
on; every hit says where it stands, in words for people and in numbers for a viewer.
"""

from __future__ import annotations

import sys

from ragkit import Index


def main(folder: str, documents: str, question: str) -> None:
    with Index.open(folder, chunker="structure") as index:
        report = index.add(documents, exclude=["*.tmp"])
        print(report)
        for failed in report.failed:
            print(f"  not added: {failed.source}: {failed.reason}")

        for hit in index.search(question, k=3):
            print(f"\n{hit.rank}. {hit.citation}" + (f"  ({' › '.join(hit.headings)})" if hit.headings else ""))
            print("   " + " ".join(hit.text.split())[:200])
            for box in hit.boxes[:2]:
                x0, y0, x1, y1 = box.box
                print(f"   p. {box.page}: {x0:.0f}, {y0:.0f} to {x1:.0f}, {y1:.0f} points")


if __name__ == "__main__":
    main(*sys.argv[1:4])

"""Recommendation: the documents most like one that the reader has before them.

    python examples/recommend.py library report.pdf -k 3

Documents are compared by the mean direction of their passages; what is shown of each is the passage that is most alike.
"""

from __future__ import annotations

import argparse

from ragkit import Index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("document", help="its source or id, as `ragkit list` shows it")
    parser.add_argument("-k", type=int, default=3)
    given = parser.parse_args()

    with Index.open(given.index, create=False) as index:
        for hit in index.similar(given.document, given.k):
            passage = " ".join(hit.text.split())
            print(f"{hit.score:.3f}  {hit.citation}  {hit.title}\n       {passage[:100]}")


if __name__ == "__main__":
    main()
